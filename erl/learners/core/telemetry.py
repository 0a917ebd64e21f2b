"""What a lifetime tells of itself on the way: the generations of an evolution inside it, in bounded
space; scores; logs for whoever watches.
"""

import copy
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from erl.files import write_whole
from erl.learners import Outputs
from erl.worlds.evaluation import Policy, evaluate_afresh
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import Ledger

_log = logging.getLogger(__name__)

ROWS = 200
NUMBERS = 4000


class InnerLog:
    """Generations of a hybrid learner, thinned evenly so that they fit into a study's database, and
    totals of all.

    A row is what one generation notes, by name: numbers, words, or lists of numbers, one for each
    individual. When the rows are more than `ROWS`, or hold more than `NUMBERS` numbers, every
    second one goes, and from then on only every second generation is kept.

    Attributes:
        generations: how many there were.
        totals: sums over all generations, kept or not.
    """

    def __init__(self) -> None:
        self._stride = 1
        self.generations = 0
        self.rows: list[dict[str, Any]] = []
        self.totals: dict[str, float] = {}

    def add(self, row: dict[str, Any], totals: dict[str, float]) -> None:
        """Note a generation, and add to the totals."""
        for name, value in totals.items():
            self.totals[name] = self.totals.get(name, 0) + value
        if self.generations % self._stride == 0:
            self.rows.append(
                {"generation": self.generations, **{k: _short(v) for k, v in row.items()}}
            )
        self.generations += 1
        while len(self.rows) > 2 and (
            len(self.rows) > ROWS or sum(map(_numbers, self.rows)) > NUMBERS
        ):
            self._stride *= 2
            self.rows = self.rows[::2]

    def to_json(self) -> dict[str, Any]:
        """Totals, and the rows as columns:
        `{"generations": n, "totals": {name: sum}, "kept": {name: [value or null, …]}}`.
        """
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        columns = {name: [row.get(name) for row in self.rows] for name in names}
        return {"generations": self.generations, "totals": dict(self.totals), "kept": columns}

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on."""
        return copy.deepcopy(vars(self))

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        vars(self).update(copy.deepcopy(state))


def _numbers(row: dict[str, Any]) -> int:
    return sum(len(v) if isinstance(v, list) else 1 for v in row.values())


def _short(value: Any) -> Any:
    """As JSON has it, numbers with five digits."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_short(v) for v in value] if isinstance(value, list | tuple) else value


class Scores:
    """Scores on the way that are only reported: fresh episodes, without exploration, at no cost to
    the budget or the seconds of training.

    Args:
        spec: of the lifetime.
        ledger: of the lifetime.
        every: steps between two evaluations; 0: there are none.
        episodes: of each policy in an evaluation.

    Attributes:
        rows: `{"steps": steps taken, name of a policy: mean return, …}` of each evaluation, or its
            `error`.
    """

    def __init__(self, spec: LifetimeSpec, ledger: Ledger, every: int, episodes: int) -> None:
        self._spec, self._ledger, self._every, self._episodes = spec, ledger, every, episodes
        self._at = 0
        self.rows: list[dict[str, Any]] = []

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self._every > 0 and self._ledger.steps // self._every > self._at // self._every

    def add(self, policies: Mapping[str, Policy]) -> dict[str, float]:
        """Evaluate policies; their mean returns, none where an evaluation failed."""
        begun = time.perf_counter()
        self._at = self._ledger.steps
        # Not the episodes that the finished agent will be evaluated on.
        seed = self._spec.seeds.evaluation + 1
        try:
            results = evaluate_afresh(policies, self._spec, self._episodes, seed)
            scores = {name: float(np.mean(result.returns)) for name, result in results.items()}
            self.rows.append({"steps": self._at, **scores})
        except Exception as e:  # it would only have been reported
            scores, error = {}, f"{type(e).__name__}: {e}"
            self.rows.append({"steps": self._at, "error": error})
            _log.warning("no evaluation after %d steps: %s", self._at, error)
        self._ledger.reporting += time.perf_counter() - begun
        return scores

    def get_state(self) -> tuple[int, list[dict[str, Any]]]:
        """All that it takes to go on."""
        return self._at, list(self.rows)

    def set_state(self, state: tuple[int, list[dict[str, Any]]]) -> None:
        """Go on from `get_state`."""
        self._at, self.rows = state[0], list(state[1])


def note(ledger: Ledger, scores: Scores, log: InnerLog | None = None) -> None:
    """Have a lifetime's record hold these, whatever becomes of it: see `LifetimeRecord.inner`."""

    def notes() -> dict[str, Any] | None:
        said = log.to_json() if log is not None else {}
        return {**said, "evaluations": scores.rows} if said or scores.rows else None

    ledger.notes = notes


class Logs(Logger):
    """Stable-Baselines3's logger, to TensorBoard or to nowhere. A full disk costs the logs, not the
    training.

    Args:
        folder: of the logs; None for none.
    """

    def __init__(self, folder: str | None) -> None:
        super().__init__(folder, [])
        if folder is not None:
            with self._warning():
                self.output_formats.append(TensorBoardOutputFormat(folder))

    def dump(self, step: int = 0) -> None:
        """Write what was recorded."""
        with self._warning():
            super().dump(step)
        for recorded in (self.name_to_value, self.name_to_count, self.name_to_excluded):
            recorded.clear()

    def close(self) -> None:
        """Close the files."""
        with self._warning():
            super().close()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # what TensorBoard makes of it depends on what else is installed
            _log.warning("no more TensorBoard logs in %s: %s", self.dir, e)
            self.output_formats.clear()


class Report:
    """What a lifetime says while it runs: TensorBoard in Stable-Baselines3's names, and the status
    file.

    Args:
        output: where to; what has no place is not said.
        ledger: of the lifetime.
    """

    def __init__(self, output: Outputs, ledger: Ledger) -> None:
        self._status, self._ledger = output.status, ledger
        self._logger = Logs(output.tensorboard)
        self._said: dict[str, float] = {}

    def say(self, values: Mapping[str, float]) -> None:
        """To whoever watches: these values, and the latest of others."""
        self._said |= values
        if self._status is not None and self._said:
            path, text = Path(self._status), json.dumps(self._said)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, lambda part: Path(part).write_text(text, encoding="utf-8"))
            except OSError as e:  # it is for show only
                _log.warning("no status written: %s", e)

    def tell(self, values: Mapping[str, float]) -> None:
        """To TensorBoard: these values, and the means of the last 100 training episodes."""
        if not self._logger.output_formats:
            return
        recent = self._ledger.episodes[-100:]
        if recent:
            self._logger.record("rollout/ep_rew_mean", np.mean([r for _, r, _ in recent]))
            self._logger.record("rollout/ep_len_mean", np.mean([n for _, _, n in recent]))
        for name, value in values.items():
            self._logger.record(name, float(value))
        self._logger.dump(step=self._ledger.steps)

    def close(self) -> None:
        """Close the log."""
        self._logger.close()
