"""OpenAI-ES: gradient ascent on the expected fitness of a normal distribution with fixed variance.

Salimans, Ho, Chen, Sidor and Sutskever, "Evolution Strategies as a Scalable Alternative to
Reinforcement Learning", 2017, arXiv 1703.03864.
"""

import numpy as np

from erl.populations.gaussian import Gaussian
from erl.populations.vectors import frozen, told


class OpenAIES(Gaussian):
    """A mean that follows an estimate of the gradient of E[F(mean + sigma noise)].

    Args:
        mean: first mean (dim,); float32 or double precision, as all else then.
        rng: draws everything.
        sigma: standard deviation of the noise; it does not change.
        learning_rate: of the ascent.
        mirrored: whether solutions come in pairs mean ± noise: i and i + n // 2; of an odd number
            the last one is alone.
        rank_shaping: whether ranks, evenly from -0.5 to 0.5, stand for the fitness, instead of the
            fitness minus its mean, divided by its standard deviation.
    """

    def __init__(
        self,
        mean: np.ndarray,
        rng: np.random.Generator,
        sigma: float = 0.1,
        learning_rate: float = 0.01,
        mirrored: bool = False,
        rank_shaping: bool = False,
    ) -> None:
        super().__init__(mean, rng, sigma**2, mirrored)
        self._sigma, self._learning_rate = float(sigma), float(learning_rate)
        self._shape = ranks if rank_shaping else standardised

    def ask(self, n: int) -> np.ndarray:
        """Draw n solutions (n, dim)."""
        return self._mean + self._sigma * self._noise(n)

    def tell(
        self, solutions: np.ndarray, fitness: np.ndarray, mean_fitness: float | None = None
    ) -> None:
        """Take a step.

        Args:
            solutions: (n, dim), drawn from the distribution as it is now; at least 2.
            fitness: (n,), higher is better.
            mean_fitness: not needed.

        Raises:
            ValueError: shapes that do not fit, or a fitness that is not finite.
        """
        solutions, fitness = told(solutions, fitness, self._mean)
        if len(solutions) < 2:
            raise ValueError("a step needs at least 2 solutions to compare")
        gradient = self.gradient(solutions, self._shape(fitness))
        self._mean = frozen(self._mean + self._learning_rate * gradient)  # alg. 1

    def gradient(self, solutions: np.ndarray, utilities: np.ndarray) -> np.ndarray:
        """The estimate (dim,) of the gradient of the expected utility, by the mean: 1 / (n sigma)
        times the sum of utility times noise (section 2.1).

        Args:
            solutions: (n, dim), mean + sigma noise.
            utilities: (n,): the fitness itself, or what stands for it.
        """
        noise = (np.asarray(solutions, self._mean.dtype) - self._mean) / self._sigma
        weights = np.asarray(utilities, dtype=np.float64) / (len(noise) * self._sigma)
        return weights.astype(noise.dtype) @ noise


def standardised(fitness: np.ndarray) -> np.ndarray:
    """Fitness (n,) with mean 0 and standard deviation 1; zeros where all are equal."""
    if (fitness == fitness[0]).all():  # their mean would be rounded, and differ from them
        return np.zeros_like(fitness)
    # Scaled first: neither the sum nor the squares of large numbers overflow.
    scaled = fitness / np.abs(fitness).max()
    centred = scaled - scaled.mean()
    std = centred.std()
    return centred / std if std > 0.0 else np.zeros_like(fitness)


def ranks(fitness: np.ndarray) -> np.ndarray:
    """Ranks of the fitness (n,), evenly from -0.5 to 0.5; equals share the mean of theirs."""
    _, place, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - (counts + 1) / 2)[place]) / max(1, len(fitness) - 1) - 0.5
