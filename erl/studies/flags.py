"""Flags of the commands on studies. Nothing here needs a library that takes long to load."""

import re
from dataclasses import dataclass

from erl.cli import option
from erl.errors import UserError
from erl.search.choices import check_choice
from erl.studies import DEFAULT_STORAGE

ROWS = ("lifetimes", "trials", "generations", "arms")
# Endings of exported files.
CSV = (".csv", ".csv.gz")
DOCUMENTS = (".md", ".tex")


@dataclass(frozen=True)
class ListConfig:
    """Flags of `list`."""

    storage: str = option(DEFAULT_STORAGE, "study database: any Optuna address, or a journal file")


@dataclass(frozen=True)
class ShowConfig(ListConfig):
    """Flags of `show`."""

    study: str | None = option(None, "name of the study; needed if the storage has several")
    best: int = option(5, "how many of the best trials are shown")
    trial: int | None = option(
        None, "show this trial alone, by its number: parameters, lifetimes, traceback"
    )

    def __post_init__(self) -> None:
        if self.best < 0:
            raise UserError(f"--best must be at least 0, not {self.best}")


@dataclass(frozen=True)
class ExportConfig(ListConfig):
    """Flags of `export`."""

    study: str | None = option(None, "name of the study; needed if the storage has several")
    file: str | None = option(None, "required: file to write, .csv; of arms also .md and .tex")
    rows: str = option("lifetimes", "what each row is; arms: the agents of a test", choices=ROWS)
    overwrite: bool = option(False, "replace the file if it exists")

    def __post_init__(self) -> None:
        if not self.file:
            raise UserError("--file is missing: name the file to write")
        check_choice("--rows", self.rows, ROWS)
        known = CSV + DOCUMENTS * (self.rows == "arms")
        if not self.file.casefold().endswith(known):
            raise UserError(
                f"--file {self.file}: --rows {self.rows} needs a name that ends in "
                f"{', '.join(known)}"
            )


@dataclass(frozen=True)
class CopyConfig(ListConfig):
    """Flags of `copy`."""

    study: str | None = option(None, "name of the study; needed if the storage has several")
    to: str | None = option(
        None, "required: storage to copy to; a file is created if it does not exist"
    )
    to_name: str | None = option(None, "name of the copy; by default the study's")
    overwrite: bool = option(False, "replace a study of that name")

    def __post_init__(self) -> None:
        if not self.to:
            raise UserError("--to is missing: the storage to copy to")


@dataclass(frozen=True)
class DeleteConfig(ListConfig):
    """Flags of `delete`."""

    study: str | None = option(None, "required: name of the study")
    yes: bool = option(False, "delete it; without this flag nothing is deleted")
    files: bool = option(False, "delete its folders of models, logs and checkpoints too")
    models: str = option("models", "folder of trained models")
    logs: str = option("logs", "folder of TensorBoard logs")
    runs: str = option("runs", "folder of checkpoints")

    def __post_init__(self) -> None:
        if not self.study:
            raise UserError("--study is missing: name the study to delete")


@dataclass(frozen=True)
class PushConfig(ListConfig):
    """Flags of `push`."""

    study: str | None = option(None, "name of the study; needed if the storage has several")
    repo: str | None = option(
        None, "repository of the Hugging Face Hub, USER/NAME; either this or --folder"
    )
    folder: str | None = option(
        None, "a new folder to write, without a network; either this or --repo"
    )
    private: bool = option(False, "nobody else sees the repository, if it is a new one")
    models: str = option("models", "folder of trained models")

    def __post_init__(self) -> None:
        if bool(self.repo) == bool(self.folder):
            raise UserError("name either --repo, the repository to upload to, or --folder")
        if self.repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise UserError(f"--repo must be USER/NAME, not {self.repo!r}")


@dataclass(frozen=True)
class DashboardConfig(ListConfig):
    """Flags of the dashboard."""

    host: str = option("127.0.0.1", "address at which it listens; 0.0.0.0 for other machines")
    port: int = option(8080, "port at which it listens; 0 for any that is free")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"--port must be from 0 to 65535, not {self.port}")
