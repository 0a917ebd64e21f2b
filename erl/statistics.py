"""Comparing arms of an experiment over seeds.

The statistics are those of Agarwal et al. (2021, arXiv 2108.13264): interquartile means, percentile
bootstrap intervals and the probability of improvement, which few seeds and single outliers mislead
less than means or maxima.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from erl.errors import UserError, nearest

Interval = tuple[float, float]


def normalised_score(r: Any, r_random: float, r_target: float) -> Any:
    """Return on a scale where the random policy has 0 and the target 1: (r - r_random) / (r_target
    - r_random).

    Args:
        r: return or array of returns, each the sum of an episode's rewards, as the two references
            are.
        r_random: return of the random policy.
        r_target: return of the reference.

    Raises:
        ValueError: if the references are equal or not finite.
    """
    span = r_target - r_random
    if span == 0 or not math.isfinite(span):
        raise ValueError(
            f"no scale lies between a random return of {r_random} and a target of {r_target}"
        )
    return (r - r_random) / span


def interquartile_mean(x: ArrayLike) -> float:
    """Mean of what is left when the lowest and the highest quarter (each floor(n / 4) values) are
    left out.

    Args:
        x: array of any shape, at least one value; a NaN makes the result NaN.

    Raises:
        ValueError: for an empty array.
    """
    values = _values(x)
    return math.nan if np.isnan(values).any() else float(stats.trim_mean(values, 0.25))


def bootstrap_interval(
    x: ArrayLike,
    statistic: Callable[[np.ndarray], float],
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic (Efron, 1979; Agarwal et al., 2021, arXiv
    2108.13264).

    Args:
        x: array (n,) of independent values, one per seed.
        statistic: takes an array (n,).
        confidence: share of the resampled statistics that the interval covers, in (0, 1).
        n_resamples: number of resamples.
        seed: of the resampling, so that a table comes out the same twice.

    Returns:
        Lower and upper end, both NaN where there is nothing to resample (one value) or a value is
        NaN.

    Raises:
        ValueError: for an empty array.
    """
    return _bootstrap((_values(x),), statistic, confidence, n_resamples, seed)


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """P(X > Y) + P(X = Y) / 2 over all pairs: Mann and Whitney's U, divided by the number of pairs.

    Args:
        x: array (n,), the scores of an arm.
        y: array (m,), the scores of the baseline; n and m may differ. A NaN in either makes the
            result NaN.

    Raises:
        ValueError: for an empty array.
    """
    x, y = _values(x)[:, None], _values(y)[None, :]
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    return float(np.mean(x > y) + 0.5 * np.mean(x == y))


def improvement_interval(
    x: ArrayLike, y: ArrayLike, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of `probability_of_improvement`, with x and y resampled
    independently.

    Where all values of one arm lie above all of the other's, so do those of every resample and the
    interval has no width: with few seeds, that says little about the true probability.

    Args:
        x: array (n,), the scores of an arm.
        y: array (m,), the scores of the baseline.
        confidence: as in `bootstrap_interval`, likewise the other two.
        n_resamples: number of resamples.
        seed: of the resampling.

    Returns:
        Lower and upper end, both NaN where either array holds a single value or a NaN.

    Raises:
        ValueError: for an empty array.
    """
    return _bootstrap(
        (_values(x), _values(y)), probability_of_improvement, confidence, n_resamples, seed
    )


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., float],
    confidence: float,
    n_resamples: int,
    seed: int,
) -> Interval:
    if any(len(s) < 2 or np.isnan(s).any() for s in samples):
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    resampled = [statistic(*(rng.choice(s, len(s)) for s in samples)) for _ in range(n_resamples)]
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _values(x: ArrayLike) -> np.ndarray:
    values = np.asarray(x, dtype=float).ravel()
    if not values.size:
        raise ValueError("no values to summarise")
    return values


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison, a row of `table`.

    Attributes:
        name: what the row is called.
        scores: one score per seed.
        steps_per_second: environment steps per second of wall-clock time; None where it was not
            measured.
    """

    name: str
    scores: Sequence[float]
    steps_per_second: float | None = None


def table(rows: Sequence[Arm], baseline: str | None = None) -> str:
    """Compare arms in plain text: seeds, interquartile mean and its 95 % interval, P(arm >
    baseline), speed.

    Args:
        rows: the arms, each with at least one score.
        baseline: name of the arm that the others are held against, the first one by default.

    Returns:
        Lines without a final line break; "-" stands where a value does not exist.

    Raises:
        UserError: for a baseline that is not among the arms.
        ValueError: for an arm without scores.
    """
    header = (
        "arm",
        "seeds",
        "IQM",
        "95 % interval",
        "P(arm > baseline)",
        "95 % interval",
        "steps/s",
    )
    by_name = {arm.name: arm for arm in rows}
    if baseline is not None and baseline not in by_name:
        raise UserError(f"no arm is called {baseline!r}{nearest(baseline, by_name)}")
    cells = [header]
    for arm in rows:
        reference = by_name[baseline] if baseline is not None else rows[0]
        improvement = ("baseline", "-")
        if arm is not reference:
            p = probability_of_improvement(arm.scores, reference.scores)
            improvement = (
                f"{p:.2f}",
                _show_interval(improvement_interval(arm.scores, reference.scores), "{:.2f}"),
            )
        cells.append(
            (
                arm.name,
                str(len(arm.scores)),
                _show(interquartile_mean(arm.scores)),
                _show_interval(bootstrap_interval(arm.scores, interquartile_mean)),
                *improvement,
                "-" if arm.steps_per_second is None else f"{arm.steps_per_second:,.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _show(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def _show_interval(interval: Interval, form: str | None = None) -> str:
    if math.isnan(interval[0]):
        return "-"
    low, high = (form.format(end) if form else _show(end) for end in interval)
    return f"[{low}, {high}]"
