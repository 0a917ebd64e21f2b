"""What a lifetime notes of itself on the way: the generations of an evolution inside it, in bounded space, and scores."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from erl.errors import UserError
from erl.evaluation import Policy, evaluate
from erl.spec import LifetimeSpec

ROWS = 200
NUMBERS = 2000


class InnerLog:
    """Generations of a hybrid learner, thinned evenly so that they fit into a study's database, and totals of all.

    A row is what one generation notes, by name: numbers, or lists of them, one for each individual. When there are too many rows, every second
    one goes, and from then on only every second generation is kept.

    Attributes:
        generations: how many there were.
        totals: sums over all generations, kept or not.
    """

    def __init__(self, individuals: int) -> None:
        self._limit = max(10, min(ROWS, NUMBERS // max(1, individuals)))
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
        if len(self.rows) > self._limit:
            self._stride *= 2
            self.rows = self.rows[::2]

    def to_json(self) -> dict[str, Any]:
        """Totals, and the rows as columns: `{"generations": n, "totals": {name: sum}, "kept": {name: [value or null, …]}}`."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        columns = {name: [row.get(name) for row in self.rows] for name in names}
        return {"generations": self.generations, "totals": dict(self.totals), "kept": columns}

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on."""
        return {k: v for k, v in vars(self).items() if k != "_limit"}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        vars(self).update(state)


def _short(value: Any) -> Any:
    """Numbers with five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_short(v) for v in value] if isinstance(value, list | tuple) else value


class Scores:
    """Scores on the way that are only reported: fresh episodes, without exploration, at no cost to the budget.

    Args:
        spec: of the lifetime.
        every: steps between two evaluations; 0: there are none.
        episodes: of each policy in an evaluation.

    Attributes:
        rows: `{"steps": steps taken, name of a policy: mean return, …}` of each evaluation.
    """

    SETTINGS: ClassVar[dict[str, int]] = {"eval_freq": 0, "eval_episodes": 5}

    def __init__(self, spec: LifetimeSpec, every: int, episodes: int) -> None:
        self._spec, self._every, self._episodes = spec, every, episodes
        self._at = 0
        self.rows: list[dict[str, Any]] = []

    @classmethod
    def of(cls, spec: LifetimeSpec) -> "Scores":
        """As the learner's settings `eval_freq` (0) and `eval_episodes` (5) say.

        Raises:
            UserError: they are no whole numbers, or too small.
        """
        given = [spec.learner.config.get(name, usual) for name, usual in cls.SETTINGS.items()]
        for name, value, least in zip(cls.SETTINGS, given, (0, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name} is a whole number from {least}, not {value!r}")
        return cls(spec, *given)

    def due(self, steps: int) -> bool:
        """Whether it is time, after so many steps."""
        return self._every > 0 and steps // self._every > self._at // self._every

    def add(self, steps: int, policies: Mapping[str, Policy]) -> dict[str, float]:
        """Evaluate policies after so many steps; their mean returns."""
        self._at = steps
        env = self._spec.make_env()
        try:
            # Not the episodes that the finished agent will be evaluated on.
            seed = self._spec.seeds.evaluation + 1
            scores = {
                name: float(np.mean(evaluate(policy, env, self._episodes, seed).returns))
                for name, policy in policies.items()
            }
        finally:
            env.close()
        self.rows.append({"steps": steps, **scores})
        return scores

    def get_state(self) -> tuple[int, list[dict[str, Any]]]:
        """All that it takes to go on."""
        return self._at, self.rows

    def set_state(self, state: tuple[int, list[dict[str, Any]]]) -> None:
        """Go on from `get_state`."""
        self._at, self.rows = state
