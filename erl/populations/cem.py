"""The cross-entropy method of CEM-RL, by generations (CEM) and result by result (ACEM).

Pourchot and Sigaud, "CEM-RL: Combining evolutionary and gradient-based methods for policy search",
ICLR 2019, arXiv 1810.01222 (CEM: section 2.2). Lee, Lee, Shin and Kweon, "An Efficient
Asynchronous Method for Integrating Evolutionary and Gradient-based Policy Search", NeurIPS 2020,
arXiv 2012.05417 (ACEM, one of its baselines).
"""

from typing import Any

import numpy as np

from erl.populations.gaussian import Gaussian
from erl.populations.vectors import frozen, told


class CEM(Gaussian):
    """The cross-entropy method with a diagonal covariance, damped variance and mirrored draws.

    Args:
        mean: first mean (dim,); float32 or double precision, as all else then.
        rng: draws everything.
        population_size: solutions of a generation, at least 2, whose better half forms the mean.
        var: first variance of every gene.
        damp: first value of what is added to every variance.
        damp_limit: what it falls to.
        damp_tau: share of its distance to the limit that remains after a generation.
        antithetic: whether solutions come in pairs mean ± noise: i and i + n // 2; of an odd
            number the last one is alone.
    """

    def __init__(
        self,
        mean: np.ndarray,
        rng: np.random.Generator,
        population_size: int = 10,
        var: float = 1e-3,
        damp: float = 1e-3,
        damp_limit: float = 1e-5,
        damp_tau: float = 0.9,
        antithetic: bool = True,
    ) -> None:
        super().__init__(mean, rng, var, antithetic)
        self._population_size, self._weights = population_size, _weights(population_size // 2)
        self._damp, self._damp_limit, self._damp_tau = damp, damp_limit, damp_tau

    def tell(
        self, solutions: np.ndarray, fitness: np.ndarray, mean_fitness: float | None = None
    ) -> None:
        """Learn from a whole generation.

        Args:
            solutions: (population_size, dim).
            fitness: (population_size,), higher is better.
            mean_fitness: not needed.

        Raises:
            ValueError: it is no whole generation, or a fitness is not finite.
        """
        solutions, fitness = told(solutions, fitness, self._mean)
        if len(solutions) != self._population_size:
            raise ValueError(
                f"a generation has {self._population_size} solutions, not {len(solutions)}"
            )
        best = _best(solutions, fitness, len(self._weights))
        self._damp = _damped(self._damp, self._damp_tau, self._damp_limit)
        self._mean, self._var = (
            frozen(_weighted(self._weights, best)),  # eq. 1
            frozen(_spread(self._weights, best, self._mean, self._damp)),  # eq. 2
        )

    def get_state(self) -> dict[str, Any]:
        """Distribution, damping and random stream."""
        return super().get_state() | {"damp": self._damp}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        super().set_state(state)
        self._damp = state["damp"]


class ACEM(Gaussian):
    """The cross-entropy method for results that come one by one.

    Every result replaces the oldest of the last `memory` ones, and a CEM update over these follows.
    Since each result takes part in `memory` updates, an update moves the mean by a `memory`-th of
    CEM's step, and the damping falls by the `memory`-th root of CEM's factor. Nothing moves before
    there are `memory` results.

    Args:
        mean: first mean (dim,); float32 or double precision, as all else then.
        rng: draws everything.
        memory: results that an update looks at, at least 2.
        var: first variance of every gene.
        damp: first value of what is added to every variance.
        damp_limit: what it falls to.
        damp_tau: share of its distance to the limit that remains after `memory` updates.
    """

    def __init__(
        self,
        mean: np.ndarray,
        rng: np.random.Generator,
        memory: int = 10,
        var: float = 1e-3,
        damp: float = 1e-3,
        damp_limit: float = 1e-5,
        damp_tau: float = 0.9,
    ) -> None:
        super().__init__(mean, rng, var)
        self._memory, self._weights = memory, _weights(memory // 2)
        self._damp, self._damp_limit = damp, damp_limit
        self._damp_tau = damp_tau ** (1 / memory)
        # The latest results, in places that are used again in turn.
        self._solutions = np.zeros((memory, len(self._mean)), self._mean.dtype)
        self._fitness = np.zeros(memory)
        self._told = 0

    def tell(
        self, solutions: np.ndarray, fitness: np.ndarray, mean_fitness: float | None = None
    ) -> None:
        """Learn from results, one after the other.

        Args:
            solutions: (n, dim).
            fitness: (n,), higher is better.
            mean_fitness: not needed.

        Raises:
            ValueError: shapes that do not fit, or a fitness that is not finite.
        """
        for solution, score in zip(*told(solutions, fitness, self._mean)):
            place = self._told % self._memory
            self._solutions[place], self._fitness[place] = solution, score
            self._told += 1
            if self._told >= self._memory:
                self._update()

    def _update(self) -> None:
        # Equals in the order in which they came, the oldest first, whatever their places.
        order = np.arange(self._told, self._told + self._memory) % self._memory
        best = _best(self._solutions[order], self._fitness[order], len(self._weights))
        self._damp = _damped(self._damp, self._damp_tau, self._damp_limit)
        step = (_weighted(self._weights, best) - self._mean) / self._memory
        self._mean, self._var = (
            frozen(self._mean + step),
            frozen(_spread(self._weights, best, self._mean, self._damp)),
        )

    def get_state(self) -> dict[str, Any]:
        """Distribution, damping, the latest results and random stream."""
        return super().get_state() | {
            "damp": self._damp,
            "solutions": self._solutions.copy(),
            "fitness": self._fitness.copy(),
            "told": self._told,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        super().set_state(state)
        self._damp, self._told = state["damp"], state["told"]
        self._solutions[:], self._fitness[:] = state["solutions"], state["fitness"]


def _weights(parents: int) -> np.ndarray:
    """Weights (parents,) of the best solutions, log((parents + 1) / rank), normalised."""
    weights = np.log((parents + 1) / np.arange(1, parents + 1))
    return weights / weights.sum()


def _best(solutions: np.ndarray, fitness: np.ndarray, parents: int) -> np.ndarray:
    """The best solutions (parents, dim), the best one first; equals keep their order."""
    return solutions[np.argsort(-fitness, kind="stable")[:parents]]


def _damped(damp: float, tau: float, limit: float) -> float:
    return tau * damp + (1.0 - tau) * limit


def _weighted(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Weighted sum of rows (n, dim), in their type."""
    return weights.astype(rows.dtype) @ rows


def _spread(weights: np.ndarray, best: np.ndarray, mean: np.ndarray, damp: float) -> np.ndarray:
    """Variances (dim,) of the best solutions around the mean that they were judged with.

    As in the published code, the weighted squares, whose weights sum to one, are divided by the
    number of parents once more.
    """
    return _weighted(weights, np.square(best - mean)) / len(best) + damp
