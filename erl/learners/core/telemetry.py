"""What a lifetime reports on the way: rows of an evolution inside it and evaluations for its
record, curves for TensorBoard, and a status file.
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

from erl.files import write_text
from erl.learners import Outputs
from erl.learners.core.settings import EvaluationSettings
from erl.worlds.evaluation import Policy, evaluate_afresh
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LifetimeSpec

_log = logging.getLogger(__name__)

# What a record keeps of an evolution, unless its learner's settings say otherwise.
ROWS, NUMBERS = EvaluationSettings.kept


class Telemetry:
    """All that one lifetime reports. Nothing that it does changes the training, and neither a full
    disk nor an evaluation that fails ends it.

    Args:
        spec: of the lifetime.
        ledger: of the lifetime; its record takes from there what is kept here (`to_json`).
        output: where the files go.
        settings: how often to evaluate.

    Attributes:
        generations: rows of an evolution inside the lifetime.
        evaluations: `{"steps": steps taken, name of a policy: mean return, …}` of each evaluation,
            or its `error`.
        logger: of Stable-Baselines3, to TensorBoard.
    """

    def __init__(
        self, spec: LifetimeSpec, ledger: Ledger, output: Outputs, settings: EvaluationSettings
    ) -> None:
        self._spec, self._ledger, self._status_file = spec, ledger, output.status
        self._eval_freq, self._eval_episodes = settings.eval_freq, settings.eval_episodes
        self._evaluated_at = 0
        self._status: dict[str, float] = {}
        self.generations = Generations(*settings.kept)
        self.evaluations: list[dict[str, Any]] = []
        self.logger = TensorBoardLogger(output.tensorboard)
        ledger.notes = self.to_json

    # For the record

    def record(
        self,
        row: Mapping[str, Any],
        totals: Mapping[str, float] | None = None,
        scalars: Mapping[str, float] | None = None,
    ) -> None:
        """Keep a generation, and show it in TensorBoard and in the status file.

        Args:
            row: what it did, by name: numbers, words, or lists of numbers. `fitness` has a number
                for each individual, a sum of rewards unless `whole` is 0; a name that ends in
                `_return` is the return of an episode that counts.
            totals: what is summed over all generations.
            scalars: for TensorBoard, beside those that follow from the row. The status file shows
                `train/updates_per_second` of them.
        """
        scalars = scalars or {}
        self.generations.add(row, totals or {})
        returns = {name: value for name, value in row.items() if name.endswith("_return")}
        fitness = row.get("fitness")
        curves = {f"rollout/{name}": value for name, value in returns.items()}
        status = {name.removesuffix("_return"): value for name, value in returns.items()}
        if fitness is not None:
            for name in ("max", "mean", "min"):
                curves[f"evolution/fitness_{name}"] = getattr(np, name)(fitness)
            curves |= {f"evolution/head_{k}": value for k, value in enumerate(fitness)}
            if row.get("whole", 1):
                status["population"] = float(np.mean(fitness))
        if rate := scalars.get("train/updates_per_second"):
            status["updates/s"] = rate
        self.status(status)
        self.scalars({**curves, **scalars})

    @property
    def evaluation_due(self) -> bool:
        """Whether it is time for an evaluation."""
        every = self._eval_freq
        return every > 0 and self._ledger.steps // every > self._evaluated_at // every

    def evaluate(self, policies: Mapping[str, Policy]) -> dict[str, float]:
        """Evaluate policies without exploration in fresh episodes, which are only reported: they
        cost neither budget nor seconds of training.

        Returns:
            Mean returns by name; none where an evaluation failed.
        """
        begun = time.perf_counter()
        self._evaluated_at = self._ledger.steps
        # Not the episodes that the finished agent will be evaluated on.
        seed = self._spec.seeds.evaluation + 1
        scores: dict[str, float] = {}
        try:
            results = evaluate_afresh(policies, self._spec, self._eval_episodes, seed)
            scores = {name: float(np.mean(result.returns)) for name, result in results.items()}
            self.evaluations.append({"steps": self._evaluated_at, **scores})
        except Exception as e:  # it would only have been reported
            scores, error = {}, f"{type(e).__name__}: {e}"
            self.evaluations.append({"steps": self._evaluated_at, "error": error})
            _log.warning("no evaluation after %d steps: %s", self._evaluated_at, error)
        self._ledger.reporting += time.perf_counter() - begun
        return scores

    def to_json(self) -> dict[str, Any] | None:
        """What the lifetime's record keeps, whatever becomes of the lifetime; None for nothing."""
        evolution = self.generations.to_json() if self.generations.count else {}
        if not (evolution or self.evaluations):
            return None
        return {**evolution, "evaluations": self.evaluations}

    # While it runs

    def status(self, values: Mapping[str, float]) -> None:
        """Write these values, and the latest of others, to the status file."""
        self._status |= values
        if self._status_file is None or not self._status:
            return
        path, text = Path(self._status_file), json.dumps(self._status)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as e:
            _log.warning("no status written: %s", e)

    def scalars(self, values: Mapping[str, float]) -> None:
        """Write these values to TensorBoard, and the means of the last 100 training episodes."""
        if not self.logger.output_formats:
            return
        recent = self._ledger.episodes[-100:]
        if recent:
            self.logger.record("rollout/ep_rew_mean", np.mean([r for _, r, _ in recent]))
            self.logger.record("rollout/ep_len_mean", np.mean([n for _, _, n in recent]))
        for name, value in values.items():
            self.logger.record(name, float(value))
        self.logger.dump(step=self._ledger.steps)

    def close(self) -> None:
        """Close the files."""
        self.logger.close()

    # Checkpoints

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on."""
        return {
            "generations": self.generations.get_state(),
            "evaluations": list(self.evaluations),
            "evaluated_at": self._evaluated_at,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        self.generations.set_state(state["generations"])
        self.evaluations = list(state["evaluations"])
        self._evaluated_at = state["evaluated_at"]


class Generations:
    """Rows of an evolution, thinned evenly so that they fit into a study's database, and totals of
    all.

    When they are too many, or hold too many numbers, every second row goes, and from then on only
    every second generation is kept.

    Args:
        most_rows: that are kept at most.
        most_numbers: in all of them.

    Attributes:
        count: how many generations there were.
        rows: those that are kept.
        totals: sums over all generations, kept or not.
    """

    def __init__(self, most_rows: int = ROWS, most_numbers: int = NUMBERS) -> None:
        self._most_rows, self._most_numbers = most_rows, most_numbers
        self._stride = 1
        self._held = 0  # numbers in the rows
        self.count = 0
        self.rows: list[dict[str, Any]] = []
        self.totals: dict[str, float] = {}

    def add(self, row: Mapping[str, Any], totals: Mapping[str, float]) -> None:
        """Keep a generation, and add to the totals."""
        for name, value in totals.items():
            self.totals[name] = self.totals.get(name, 0) + value
        if self.count % self._stride == 0:
            self.rows.append({"generation": self.count, **{k: _short(v) for k, v in row.items()}})
            self._held += _numbers(self.rows[-1])
        self.count += 1
        while len(self.rows) > 2 and (
            len(self.rows) > self._most_rows or self._held > self._most_numbers
        ):
            self._stride *= 2
            self.rows = self.rows[::2]
            self._held = sum(map(_numbers, self.rows))

    def to_json(self) -> dict[str, Any]:
        """Totals, and the rows as columns:
        `{"generations": n, "totals": {name: sum}, "kept": {name: [value or null, …]}}`.
        """
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        columns = {name: [row.get(name) for row in self.rows] for name in names}
        return {"generations": self.count, "totals": dict(self.totals), "kept": columns}

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


class TensorBoardLogger(Logger):
    """Stable-Baselines3's logger, to TensorBoard or to nowhere. A full disk costs the logs, not the
    training.

    Args:
        folder: of the logs; None for none.
    """

    def __init__(self, folder: str | None) -> None:
        super().__init__(folder, [])
        if folder is not None:
            with self._errors_as_warnings():
                self.output_formats.append(TensorBoardOutputFormat(folder))

    def dump(self, step: int = 0) -> None:
        """Write what was recorded."""
        with self._errors_as_warnings():
            super().dump(step)
        for recorded in (self.name_to_value, self.name_to_count, self.name_to_excluded):
            recorded.clear()

    def close(self) -> None:
        """Close the files."""
        with self._errors_as_warnings():
            super().close()

    @contextmanager
    def _errors_as_warnings(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # what TensorBoard makes of it depends on what else is installed
            _log.warning("no more TensorBoard logs in %s: %s", self.dir, e)
            self.output_formats.clear()
