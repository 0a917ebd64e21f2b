"""What the distributions share: checks of what they are given, and normal draws."""

import math
from typing import Any

import numpy as np


def own(vector: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """A read-only copy of a flat vector.

    Args:
        vector: (dim,), of finite numbers.
        like: a vector whose length and type it has to have; by default float32 stays float32, and
            all else becomes double precision.

    Raises:
        ValueError: it is no vector of finite numbers, or of another length.
    """
    array = np.asarray(vector)
    if array.ndim != 1 or not array.size or (like is not None and array.shape != like.shape):
        expected = "(dim,)" if like is None else like.shape
        raise ValueError(f"expected a vector of shape {expected}, not {array.shape}")
    if like is not None:
        dtype = like.dtype
    else:
        dtype = np.dtype(np.float32 if array.dtype == np.float32 else np.float64)
    array = np.array(array, dtype=dtype)
    if not np.isfinite(array).all():
        raise ValueError("a vector holds numbers that are not finite")
    return frozen(array)


def frozen(array: np.ndarray) -> np.ndarray:
    """The array itself, read-only from now on: it can be handed out without a copy."""
    array.flags.writeable = False
    return array


def told(
    solutions: np.ndarray, fitness: np.ndarray, like: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Results as arrays (n, dim) of `like`'s type and (n,) in double precision; copies only where
    types differ.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite.
    """
    solutions = np.asarray(solutions, dtype=like.dtype)
    fitness = np.asarray(fitness, dtype=np.float64)
    if solutions.ndim != 2 or solutions.shape[1:] != like.shape or not len(solutions):
        raise ValueError(f"expected solutions of shape (n, {len(like)}), not {solutions.shape}")
    if fitness.shape != solutions.shape[:1]:
        raise ValueError(
            f"{len(solutions)} solutions have {len(solutions)} fitnesses, not an array of shape "
            f"{fitness.shape}"
        )
    if not np.isfinite(fitness).all():
        raise ValueError(f"a fitness is not finite: {fitness}")
    if not np.isfinite(solutions).all():
        raise ValueError("a solution holds numbers that are not finite")
    return solutions, fitness


def given(mean_fitness: float | None) -> float:
    """The fitness of the mean.

    Raises:
        ValueError: it is missing, or not finite.
    """
    if mean_fitness is None or not math.isfinite(mean_fitness):
        raise ValueError(f"mean_fitness has to be a finite number, not {mean_fitness!r}")
    return float(mean_fitness)


def count(n: int) -> int:
    """How many solutions to draw.

    Raises:
        ValueError: fewer than one.
    """
    if n < 1:
        raise ValueError(f"at least one solution is drawn, not {n}")
    return n


def normal(
    rng: np.random.Generator, n: int, like: np.ndarray, mirrored: bool = False
) -> np.ndarray:
    """Standard normal draws (n, dim) of `like`'s type.

    Where `mirrored`, draw i of the first half has its negative at i + n // 2; of an odd number the
    last one is alone.
    """
    dtype: Any = like.dtype
    if not mirrored:
        return rng.standard_normal((n, len(like)), dtype=dtype)
    half = rng.standard_normal((n // 2, len(like)), dtype=dtype)
    alone = rng.standard_normal((n % 2, len(like)), dtype=dtype)
    return np.concatenate([half, -half, alone])
