"""What an evolution inside a lifetime tries next.

One distribution over flat vectors, or one population of heads, a file, in NumPy alone. No network,
no environment and no budget belongs here.
"""

from typing import Any, Protocol

import numpy as np


class Distribution(Protocol):
    """A normal distribution N(mean, diag(var)) over flat vectors that moves to where fitness is
    higher: the contract of `cem.CEM`, `cem.ACEM`, `one_plus_one_es.OnePlusOneES`, `aes.AES` and
    `openai_es.OpenAIES`.

    It never changes what it is given, and draws from its own generator only. Genes are float32
    where the mean that it was made with is, double precision otherwise.

    Attributes:
        mean: (dim,), read-only. An array that was read keeps its values when the mean moves.
            Setting it moves the distribution, and copies.
        var: variances (dim,), read-only likewise.
    """

    @property
    def mean(self) -> np.ndarray:
        """Mean (dim,)."""

    @mean.setter
    def mean(self, mean: np.ndarray) -> None: ...

    @property
    def var(self) -> np.ndarray:
        """Variances (dim,)."""

    def ask(self, n: int) -> np.ndarray:
        """Draw n solutions, (n, dim): a new array, the caller's own."""

    def tell(
        self, solutions: np.ndarray, fitness: np.ndarray, mean_fitness: float | None = None
    ) -> None:
        """Learn from results, in the order in which they came.

        Args:
            solutions: (n, dim), which may differ from what was asked: learners improve some.
            fitness: (n,), higher is better.
            mean_fitness: fitness of the mean. Those that judge a solution against the mean need it;
                the others pass it over, so that one loop drives all.

        Raises:
            ValueError: shapes that do not fit, a fitness that is not finite, or a mean_fitness that
                is missing.
        """

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit: picklable, and independent of what comes."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from the `get_state` of a distribution with the same settings."""


__all__ = ["Distribution"]
