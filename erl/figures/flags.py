"""Flags of figures. Nothing here needs a library that takes long to load."""

import math
from dataclasses import dataclass

from erl.cli import option
from erl.errors import UserError
from erl.studies import DEFAULT_STORAGE

FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class FigureConfig:
    """Flags of `python -m erl.figures`."""

    study: str | None = option(
        None,
        "required: study, STORAGE#STUDY, journal file or folder of TensorBoard logs; several "
        "comma-separated, or the flag repeated",
        holds="list",
    )
    storage: str = option(DEFAULT_STORAGE, "study database of studies that are only named")
    folder: str | None = option(
        None, "required: folder that figures, tables, film and report.html go to"
    )
    formats: str = option(
        "png,pdf,svg", "files of each figure, comma-separated", choices=FORMATS, holds="list"
    )
    baseline: str | None = option(
        None,
        "agent that others are compared with; by default the learner alone, or else the first",
    )
    thresholds: str | None = option(
        None,
        "training returns, comma-separated: how many steps each agent needs to reach them; by "
        "default three between beginning and end",
        holds="list",
    )
    models: str = option("models", "folder of trained models, for film and behaviour")
    film: bool = option(True, "film an agent, where there is a model")
    attach: bool = option(
        False, "attach figures and film to the study and its trial too, for the dashboard"
    )
    overwrite: bool = option(False, "replace the report that is in the folder")

    def __post_init__(self) -> None:
        if not self.study:
            raise UserError("--study is missing: which study to show")
        if not self.folder:
            raise UserError("--folder is missing: where to write figures and report")
        unknown = [f for f in self.form_list() if f not in FORMATS]
        if unknown or not self.form_list():
            known = ", ".join(FORMATS)
            raise UserError(f"--formats {self.formats!r}: known are {known}")
        self.threshold_list()

    def form_list(self) -> list[str]:
        """The formats."""
        return [f.strip() for f in self.formats.split(",") if f.strip()]

    def threshold_list(self) -> list[float] | None:
        """The thresholds."""
        if self.thresholds is None:
            return None
        try:
            values = [float(t) for t in self.thresholds.split(",")]
            if not all(map(math.isfinite, values)):
                raise ValueError
            return values
        except ValueError:
            raise UserError(f"--thresholds {self.thresholds!r}: numbers, comma-separated") from None
