"""What a user sees of a campaign while it runs, beside its output: notes and files for Optuna's
dashboard, and the evolution itself in TensorBoard.

Nothing here changes a result. What cannot be drawn or written costs a warning.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erl.errors import UserError
from erl.studies.storage import StorageError
from erl.studies.study import Study
from erl.studies.trials import RunningTrial
from erl.studies.winner import said_of_winner

if TYPE_CHECKING:
    from erl.studies.data import StudyData

# A trial with less training, in seconds, has no picture of its curve: drawing it takes a twentieth
# of this.
CURVE_SECONDS = 1.0
# From the study's name, and one of its trials or None, to the commands that its note names.
Commands = Callable[[str, RunningTrial | None], Sequence[str]]
_log = logging.getLogger(__name__)


class DashboardNotes:
    """Notes and files of a study and its trials.

    Args:
        study: the campaign's.
        files: whether curves and models are attached to their trials.
        commands: what notes name.
    """

    def __init__(self, study: Study, files: bool, commands: Commands) -> None:
        self._study, self._files, self._commands = study, files, commands

    def study(self) -> None:
        """Write the note of the study."""
        commands = self._commands(self._study.name_now(), None)
        self._study.note(commands, said_of_winner(self._study))

    def trial(
        self,
        trial: RunningTrial,
        state: str,
        value: float | None,
        models: Mapping[int, str],
    ) -> None:
        """A trial is about to end: write its note, and attach its files.

        Args:
            trial: it changes no more.
            state: `COMPLETE`, `PRUNED` or `FAIL`.
            value: its fitness, or the value that it was pruned at.
            models: paths without ending of the saved models of its lifetimes.
        """
        commands = self._commands(self._study.name, trial)
        self._study.note_trial(trial, state, value, commands)
        if not self._files:
            return
        try:
            for model in models.values():
                for path in files_of(Path(model)):
                    self._study.attach(path, trial_id=trial.trial_id)
            self._attach_curve(trial)
        except StorageError:
            raise
        except (UserError, OSError) as e:
            _log.warning("trial %d has not all its files in the dashboard: %s", trial.number, e)

    def _attach_curve(self, trial: RunningTrial) -> None:
        records = {i: r for i, r in sorted(trial.records.items()) if len(r.curve) > 1}
        if sum(r.seconds for r in records.values()) < CURVE_SECONDS:
            return
        from erl.figures.learning import lifetime_curves
        from erl.figures.style import save

        figure = lifetime_curves({f"lifetime {i}": r.curve for i, r in records.items()})
        with tempfile.TemporaryDirectory() as folder:
            [path] = save(figure, folder, "curve", ["png"])
            self._study.attach(path, trial_id=trial.trial_id)


def files_of(model: Path) -> list[Path]:
    """The files of a saved model, those of agents beside it included."""
    zips = [model.with_name(f"{model.name}.zip"), *model.parent.glob(f"{model.name}.*.zip")]
    return [p for p in (*zips, model.with_name(f"{model.name}.json")) if p.is_file()]


class EvolutionLog:
    """An evolution in TensorBoard, by the number of trials that had ended: best and mean fitness of
    each generation, and where the sampler's distribution was. A full disk costs the log, not the
    evolution.

    Args:
        study: the evolution's.
        folder: of the log. A log that is there is written anew, from the study.
    """

    def __init__(self, study: Study, folder: str) -> None:
        self._study, self._folder = study, folder
        self._writer: Any = None
        self._written = 0  # generations
        self._failed = False

    def update(self) -> None:
        """Write the generations that have ended since."""
        from erl.studies.data import read_trials

        if self._failed:
            return
        generations = generation_scalars(read_trials(self._study))
        with self._errors_as_warnings():
            for _, step, scalars in generations[self._written :]:
                self._written += 1
                self._write(step, scalars)

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(self._folder, purge_step=0)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the log."""
        if self._writer is not None:
            with self._errors_as_warnings():
                self._writer.close()

    @contextmanager
    def _errors_as_warnings(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # what TensorBoard makes of it depends on what else is installed
            _log.warning("the evolution is not in TensorBoard: %s", e)
            self._writer, self._failed = None, True


def generation_scalars(data: "StudyData") -> list[tuple[int, int, dict[str, float]]]:
    """What there is to show of each generation whose trials have all ended, up to the first one
    that has others: who follows the log takes it in order.

    Returns:
        Generation, number of trials that had ended with it, and scalars by name: `evolution/best`
        so far, `evolution/mean` and `evolution/std` of the generation, and of the sampler's
        distribution `mean/PARAMETER` on the parameter's own scale and `std/PARAMETER` as a share of
        the searched range.
    """
    from erl.studies.data import sampler_path

    frame = data.trials
    if not len(frame) or frame.generation.isna().any():
        return []
    open_ones = set(frame[frame.state.isin(("RUNNING", "WAITING"))].generation)
    places: dict[Any, Any] = {}
    with suppress(UserError):  # nothing that varies was searched, or no trial has ended
        places = {row.generation: row for row in sampler_path(data).itertuples()}
    found, best, ended = [], -np.inf, 0
    for generation, part in frame.groupby("generation"):
        ended += int((~part.state.isin(("RUNNING", "WAITING"))).sum())
        fitness = part[part.state == "COMPLETE"].fitness.dropna()
        scalars: dict[str, float] = {}
        if len(fitness):
            best = max(best, float(fitness.max()))
            scalars |= {
                "evolution/best": best,
                "evolution/mean": float(fitness.mean()),
                "evolution/std": float(fitness.std(ddof=0)),
            }
        place = places.get(generation)
        if place is not None:
            stds = np.sqrt(np.diag(place.cov))
            for name, mean, std in zip(place.parameters, place.mean, stds):
                scalars[f"mean/{name}"] = float(data.space[name].value(mean))
                scalars[f"std/{name}"] = float(std)
        if generation in open_ones:
            break
        found.append((int(generation), ended, scalars))
    return found
