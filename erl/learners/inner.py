"""What a lifetime notes of itself on the way: the generations of an evolution inside it, in bounded space, and scores."""

import copy
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from erl.errors import UserError
from erl.evaluation import Policy, evaluate_afresh
from erl.spec import LifetimeSpec
from erl.tasks import Ledger

ROWS = 200
NUMBERS = 4000


class InnerLog:
    """Generations of a hybrid learner, thinned evenly so that they fit into a study's database, and totals of all.

    A row is what one generation notes, by name: numbers, words, or lists of numbers, one for each individual. When the rows are more than `ROWS`,
    or hold more than `NUMBERS` numbers, every second one goes, and from then on only every second generation is kept.

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
            self.rows.append({"generation": self.generations, **{k: _short(v) for k, v in row.items()}})
        self.generations += 1
        while len(self.rows) > 2 and (len(self.rows) > ROWS or sum(map(_numbers, self.rows)) > NUMBERS):
            self._stride *= 2
            self.rows = self.rows[::2]

    def to_json(self) -> dict[str, Any]:
        """Totals, and the rows as columns: `{"generations": n, "totals": {name: sum}, "kept": {name: [value or null, …]}}`."""
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
    """Scores on the way that are only reported: fresh episodes, without exploration, at no cost to the budget or the seconds of training.

    Args:
        spec: of the lifetime.
        ledger: of the lifetime.
        every: steps between two evaluations; 0: there are none.
        episodes: of each policy in an evaluation.

    Attributes:
        rows: `{"steps": steps taken, name of a policy: mean return, …}` of each evaluation.
    """

    SETTINGS: ClassVar[dict[str, int]] = {"eval_freq": 0, "eval_episodes": 5}

    def __init__(self, spec: LifetimeSpec, ledger: Ledger, every: int, episodes: int) -> None:
        self._spec, self._ledger, self._every, self._episodes = spec, ledger, every, episodes
        self._at = 0
        self.rows: list[dict[str, Any]] = []

    @classmethod
    def of(cls, spec: LifetimeSpec, ledger: Ledger) -> "Scores":
        """As the learner's settings `eval_freq` (0) and `eval_episodes` (5) say.

        Raises:
            UserError: they are no whole numbers, or too small.
        """
        given = [spec.learner.config.get(name, usual) for name, usual in cls.SETTINGS.items()]
        for name, value, least in zip(cls.SETTINGS, given, (0, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name} is a whole number from {least}, not {value!r}")
        return cls(spec, ledger, *given)

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self._every > 0 and self._ledger.steps // self._every > self._at // self._every

    def add(self, policies: Mapping[str, Policy]) -> dict[str, float]:
        """Evaluate policies; their mean returns."""
        begun = time.perf_counter()
        self._at = self._ledger.steps
        # Not the episodes that the finished agent will be evaluated on.
        seed = self._spec.seeds.evaluation + 1
        scores = {
            name: float(np.mean(evaluate_afresh(policy, self._spec.make_env, self._episodes, seed).returns))
            for name, policy in policies.items()
        }
        self.rows.append({"steps": self._at, **scores})
        self._ledger.reporting += time.perf_counter() - begun
        return scores

    def get_state(self) -> tuple[int, list[dict[str, Any]]]:
        """All that it takes to go on."""
        return self._at, list(self.rows)

    def set_state(self, state: tuple[int, list[dict[str, Any]]]) -> None:
        """Go on from `get_state`."""
        self._at, self.rows = state[0], list(state[1])
