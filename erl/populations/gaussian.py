"""What the distributions of this package are: a normal distribution that is asked and told."""

from typing import Any

import numpy as np

from erl.populations.vectors import count, frozen, normal, own


class Gaussian:
    """N(mean, diag(var)), with its random stream and the state that all of its kind have.

    A subclass moves `_mean` and `_var` in `tell`, and adds its own to the state.

    Args:
        mean: first mean (dim,); float32 or double precision, as all else then.
        rng: draws everything.
        var: first variance of every gene.
        mirrored: whether solutions come in pairs mean ± noise: i and i + n // 2; of an odd number
            the last one is alone.
    """

    def __init__(
        self, mean: np.ndarray, rng: np.random.Generator, var: float, mirrored: bool = False
    ) -> None:
        self._mean, self._rng, self._mirrored = own(mean), rng, mirrored
        self._var = frozen(np.full_like(self._mean, var))

    @property
    def mean(self) -> np.ndarray:
        """Mean (dim,), read-only; setting it copies."""
        return self._mean

    @mean.setter
    def mean(self, mean: np.ndarray) -> None:
        self._mean = own(mean, self._mean)

    @property
    def var(self) -> np.ndarray:
        """Variances (dim,), read-only."""
        return self._var

    def ask(self, n: int) -> np.ndarray:
        """Draw n solutions (n, dim)."""
        return self._mean + np.sqrt(self._var) * self._noise(n)

    def _noise(self, n: int) -> np.ndarray:
        return normal(self._rng, count(n), self._mean, self._mirrored)

    def get_state(self) -> dict[str, Any]:
        """Distribution and random stream."""
        return {
            "mean": self._mean.copy(),
            "var": self._var.copy(),
            "rng": self._rng.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        self._mean = own(state["mean"], self._mean)
        self._var = own(state["var"], self._mean)
        self._rng.bit_generator.state = state["rng"]
