"""The (1+1) evolution strategy with the 1/5 success rule, as a baseline of AES-RL.

Lee, Lee, Shin and Kweon, NeurIPS 2020, arXiv 2012.05417; the rule is Rechenberg's (1973).

Differences from the published code: the rule looks at the last ten results. There the history stops
recording after the first ten, so that the variance grows or shrinks for ever.
"""

from collections import deque
from typing import Any

import numpy as np

from erl.populations.gaussian import Gaussian
from erl.populations.vectors import frozen, given, told


class OnePlusOneES(Gaussian):
    """A solution that is better than the mean becomes the mean; the variance grows where more than
    a fifth of the latest solutions were better, and shrinks otherwise.

    Args:
        mean: first mean (dim,); float32 or double precision, as all else then.
        rng: draws everything.
        var: first variance of every gene.
        memory: latest results that the rule looks at; before there are as many, the variance stays.
        success_rate: share of successes above which the variance grows.
        decay: factor by which it shrinks, and by whose inverse it grows.
        var_floor: it does not fall below.
    """

    def __init__(
        self,
        mean: np.ndarray,
        rng: np.random.Generator,
        var: float = 1e-3,
        memory: int = 10,
        success_rate: float = 0.2,
        decay: float = 0.99,
        var_floor: float = 1e-5,
    ) -> None:
        super().__init__(mean, rng, var)
        self._success_rate, self._decay, self._var_floor = success_rate, decay, var_floor
        self._memory, self._successes = memory, deque[bool](maxlen=memory)

    def tell(
        self, solutions: np.ndarray, fitness: np.ndarray, mean_fitness: float | None = None
    ) -> None:
        """Learn from results, one after the other.

        Args:
            solutions: (n, dim).
            fitness: (n,), higher is better.
            mean_fitness: of the mean. A solution that is accepted brings its own fitness along:
                the next ones are judged against that.

        Raises:
            ValueError: shapes that do not fit, numbers that are not finite, or no mean_fitness.
        """
        solutions, fitness = told(solutions, fitness, self._mean)
        to_beat = given(mean_fitness)
        for solution, score in zip(solutions, fitness):
            better = bool(score > to_beat)
            if better:
                self._mean, to_beat = frozen(solution.copy()), float(score)
            self._successes.append(better)
            if len(self._successes) == self._memory:
                often = sum(self._successes) > self._success_rate * self._memory
                var = self._var / self._decay if often else self._var * self._decay
                self._var = frozen(np.maximum(var, var.dtype.type(self._var_floor)))

    def get_state(self) -> dict[str, Any]:
        """Distribution, the latest successes and random stream."""
        return super().get_state() | {"successes": list(self._successes)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        super().set_state(state)
        self._successes = deque(state["successes"], self._memory)
