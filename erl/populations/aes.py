"""The asynchronous evolution strategy of AES-RL: mean and variance move with every result.

Lee, Lee, Shin and Kweon, "An Efficient Asynchronous Method for Integrating Evolutionary and
Gradient-based Policy Search", NeurIPS 2020, arXiv 2012.05417 (sections 4.2 and 4.3).

Differences from the published code: `baseline-absolute` counts what lies below the baseline as
nothing, of the solution and of the mean alike, so that the step is defined everywhere. There a mean
below the baseline gives a step of 1, a step of 0, or a division by zero.
"""

import math
from typing import Any

import numpy as np

from erl.populations.gaussian import Gaussian
from erl.populations.vectors import frozen, given, told

MEAN_UPDATES = ("fixed-linear", "fixed-sigmoid", "baseline-absolute", "baseline-relative")
VAR_UPDATES = ("fixed", "adaptive")

# Steps shorter than this leave the variance as it is.
_SHORTEST = 1e-3


class AES(Gaussian):
    """A normal distribution whose mean goes a part p of the way to each solution: the further, the
    better the solution is than the mean.

    With the fitness f of the solution, f̄ of the mean and the parameter r, p is

    - `fixed-linear`: (f - f̄) / r, in [-1, 1], what is negative multiplied by `negative_ratio`;
    - `fixed-sigmoid`: 1 / (1 + exp(-(f - f̄) / r));
    - `baseline-absolute`: with a⁺ = max(a, 0), (f - r)⁺ / ((f - r)⁺ + (f̄ - r)⁺), and 0 where
      neither is above the baseline r;
    - `baseline-relative`: the same with the baseline f̄ - r.

    Args:
        mean: first mean (dim,); float32 or double precision, as all else then.
        rng: draws everything.
        mean_update: one of `MEAN_UPDATES`.
        mean_update_param: r, in units of fitness; above 0, but for `baseline-absolute`, where it is
            any number.
        var_update: `fixed`: the variance is a running average with the weight 1 / `fixed_var_n`;
            `adaptive`: with the weight 1 / max(1 / p - 1, 1).
        fixed_var_n: at least 1.
        negative_ratio: see `fixed-linear`; 0 to 1.
        var: first variance of every gene.
        var_floor: no variance falls below.

    Attributes:
        p: the latest step; None before the first.
    """

    def __init__(
        self,
        mean: np.ndarray,
        rng: np.random.Generator,
        mean_update: str = "baseline-relative",
        mean_update_param: float = 1.0,
        var_update: str = "adaptive",
        fixed_var_n: float = 10.0,
        negative_ratio: float = 0.0,
        var: float = 1e-3,
        var_floor: float = 1e-5,
    ) -> None:
        super().__init__(mean, rng, var)
        self._mean_update, self._r, self._negative = mean_update, mean_update_param, negative_ratio
        self._var_update, self._fixed_n, self._var_floor = var_update, fixed_var_n, var_floor
        self.p: float | None = None

    def tell(
        self, solutions: np.ndarray, fitness: np.ndarray, mean_fitness: float | None = None
    ) -> None:
        """Learn from results, one after the other.

        Args:
            solutions: (n, dim).
            fitness: (n,), higher is better.
            mean_fitness: of the mean that all of them are judged against.

        Raises:
            ValueError: shapes that do not fit, numbers that are not finite, or no mean_fitness.
        """
        solutions, fitness = told(solutions, fitness, self._mean)
        reference = given(mean_fitness)
        for z, f in zip(solutions, fitness):
            self.p = p = self.step(float(f), reference)
            before = self._mean
            self._mean = frozen(before + p * (z - before))
            if p >= _SHORTEST:
                n = self._fixed_n if self._var_update == "fixed" else max(1.0 / p - 1.0, 1.0)
                # Welford's update of a running variance.
                var = self._var + ((z - before) * (z - self._mean) - self._var) / n
                self._var = frozen(np.maximum(var, var.dtype.type(self._var_floor)))

    def step(self, fitness: float, mean_fitness: float) -> float:
        """How far the mean goes to a solution, p: see the class."""
        better = fitness - mean_fitness
        match self._mean_update:
            case "fixed-linear":
                p = min(max(better / self._r, -1.0), 1.0)
                return p if p > 0.0 else p * self._negative
            case "fixed-sigmoid":
                return 0.5 * (1.0 + math.tanh(0.5 * better / self._r))
            case "baseline-absolute":
                mine, means = max(fitness - self._r, 0.0), max(mean_fitness - self._r, 0.0)
            case _:  # baseline-relative
                mine, means = max(better + self._r, 0.0), self._r
        return mine / (mine + means) if mine > 0.0 else 0.0

    def get_state(self) -> dict[str, Any]:
        """Distribution, the latest step and random stream."""
        return super().get_state() | {"p": self.p}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        super().set_state(state)
        self.p = state["p"]
