"""Comparing arms of an experiment over seeds.

The statistics are those of Agarwal et al. (2021, arXiv 2108.13264): interquartile means, percentile
bootstrap intervals and the probability of improvement, which few seeds and single outliers mislead
less than means or maxima.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from erl.errors import UserError, nearest

Interval = tuple[float, float]
# Of all intervals: the share of the resampled statistics that they cover, the number of resamples,
# and the seed, so that a table comes out the same twice.
CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0
# Values, or pairs of them, of resamples that are computed at once: 4 million are 32 MiB.
MOST_AT_ONCE = 1 << 22


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
            f"the target return {r_target} must differ from the random return {r_random}"
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
    return math.nan if np.isnan(values).any() else float(_trimmed(values, 0))


def bootstrap_interval(
    x: ArrayLike,
    statistic: Callable[[np.ndarray], float],
    n_resamples: int = RESAMPLES,
) -> Interval:
    """95 % percentile bootstrap interval of a statistic (Efron, 1979; Agarwal et al., 2021, arXiv
    2108.13264).

    Args:
        x: array (n,) of independent values, one per seed.
        statistic: takes an array (n,).
        n_resamples: number of resamples.

    Returns:
        Lower and upper end, both NaN where there is nothing to resample (one value) or a value is
        NaN.

    Raises:
        ValueError: for an empty array.
    """
    return _bootstrap((_values(x),), statistic, n_resamples)


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """P(X > Y) + P(X = Y) / 2 over all pairs: Mann and Whitney's U, divided by the number of pairs.

    Args:
        x: array (n,), the scores of an arm.
        y: array (m,), the scores of the baseline; n and m may differ. A NaN in either makes the
            result NaN.

    Raises:
        ValueError: for an empty array.
    """
    x, y = _values(x), _values(y)
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    return float(_improvements(x[None], y[None])[0])


def _improvements(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`probability_of_improvement` of each row of x (k, n) over that of y (k, m)."""
    x, y = x[:, :, None], y[:, None, :]
    return np.mean(x > y, axis=(1, 2)) + 0.5 * np.mean(x == y, axis=(1, 2))


def improvement_interval(x: ArrayLike, y: ArrayLike) -> Interval:
    """95 % percentile bootstrap interval of `probability_of_improvement`, with x and y resampled
    independently.

    Where all values of one arm lie above all of the other's, so do those of every resample and the
    interval has no width: with few seeds, that says little about the true probability.

    Args:
        x: array (n,), the scores of an arm.
        y: array (m,), the scores of the baseline.

    Returns:
        Lower and upper end, both NaN where either array holds a single value or a NaN.

    Raises:
        ValueError: for an empty array.
    """
    return _bootstrap((_values(x), _values(y)), probability_of_improvement, RESAMPLES)


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., float],
    n_resamples: int,
) -> Interval:
    if any(len(s) < 2 or np.isnan(s).any() for s in samples):
        return math.nan, math.nan
    rng = np.random.default_rng(SEED)
    of_rows = _OF_ROWS.get(statistic)
    sizes = [len(s) for s in samples]
    at_once = max(1, MOST_AT_ONCE // math.prod(sizes))
    resampled: list[float] = []
    while len(resampled) < n_resamples:
        k = min(at_once, n_resamples - len(resampled))
        places = rng.integers(0, np.repeat(sizes, sizes), (k, sum(sizes)))
        drawn = [s[i] for s, i in zip(samples, np.split(places, np.cumsum(sizes)[:-1], axis=1))]
        if of_rows is None:
            resampled += [statistic(*each) for each in zip(*drawn)]
        else:
            resampled += of_rows(*drawn).tolist()
    low, high = _ends(resampled)
    return float(low), float(high)


def _ends(resampled: Sequence[float] | np.ndarray) -> np.ndarray:
    """Lower and upper end of an interval, or of a band: of the resamples along the first axis."""
    return np.quantile(np.asarray(resampled), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)


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


@dataclass(frozen=True)
class Compared:
    """An arm beside the baseline.

    Attributes:
        name: of the arm.
        seeds: how many scores it has.
        iqm, interval: interquartile mean, and its 95 % bootstrap interval.
        probability, probability_interval: of improvement over the baseline, likewise; NaN for the
            baseline itself, as the next two.
        p: of Mann and Whitney's test, two-sided.
        p_holm: the same, corrected by Holm's method for all arms but the baseline.
    """

    name: str
    seeds: int
    iqm: float
    interval: Interval
    probability: float = math.nan
    probability_interval: Interval = (math.nan, math.nan)
    p: float = math.nan
    p_holm: float = math.nan


def compare(scores: Mapping[str, ArrayLike], baseline: str) -> list[Compared]:
    """Every arm against the baseline: one family of tests. An arm with a NaN has NaN for its
    p-values and is none of the family; so have all where the baseline has one.

    Args:
        scores: by arm, at least one each.
        baseline: one of the arms.

    Raises:
        ValueError: for an arm without scores.
    """
    against = scores[baseline]
    p = {arm: mann_whitney(x, against) for arm, x in scores.items() if arm != baseline}
    known = {arm: value for arm, value in p.items() if not math.isnan(value)}
    corrected = dict(zip(known, holm([*known.values()])))
    found = []
    for arm, x in scores.items():
        row = Compared(
            arm, _values(x).size, interquartile_mean(x), bootstrap_interval(x, interquartile_mean)
        )
        if arm != baseline:
            row = replace(
                row,
                probability=probability_of_improvement(x, against),
                probability_interval=improvement_interval(x, against),
                p=p[arm],
                p_holm=float(corrected.get(arm, math.nan)),
            )
        found.append(row)
    return found


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
    header = ("arm", "seeds", "IQM", "95 % interval", "P(arm > baseline)", "steps/s")
    scores = {arm.name: arm.scores for arm in rows}
    if baseline is not None and baseline not in scores:
        raise UserError(f"no arm is called {baseline!r}{nearest(baseline, scores)}")
    reference = rows[0].name if baseline is None else baseline
    cells: list[tuple[str, ...]] = [header]
    for arm, of in zip(rows, compare(scores, reference)):
        improvement = "baseline"
        if arm.name != reference:
            improvement = number_text(of.probability, "{:.2f}")
            if not math.isnan(of.probability_interval[0]):  # of one seed there is no interval
                improvement += f" {interval_text(of.probability_interval, '{:.2f}')}"
        cells.append(
            (
                arm.name,
                str(of.seeds),
                number_text(of.iqm),
                interval_text(of.interval),
                improvement,
                "-" if arm.steps_per_second is None else f"{arm.steps_per_second:,.0f}",
            )
        )
    if all(arm.steps_per_second is None for arm in rows):
        cells = [row[:-1] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def number_text(value: float | None, form: str | None = None) -> str:
    """A number in a table; "-" for None and NaN.

    Args:
        value: the number.
        form: for `str.format`; by default four significant digits, or no decimals from 1,000 to
            a billion.
    """
    if value is None or math.isnan(value):
        return "-"
    return (form or ("{:,.0f}" if 1000 <= abs(value) < 1e9 else "{:.4g}")).format(value)


def interval_text(ends: Interval, form: str | None = None) -> str:
    """An interval in a table; "-" where there is none. `form` is that of `number_text`."""
    return "-" if math.isnan(ends[0]) else f"[{', '.join(number_text(x, form) for x in ends)}]"


# -- curves, profiles and families of tests --


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down adjustment of p-values for a family of tests (Holm, 1979, Scandinavian
    Journal of Statistics 6, 65-70).

    It controls the family-wise error rate, whatever the dependence between the tests.

    Args:
        p_values: array (n,) in [0, 1].

    Returns:
        Adjusted p-values (n,), in the order of the input: reject those at most alpha.

    Raises:
        ValueError: for a value outside of [0, 1], or NaN.
    """
    p = np.asarray(p_values, dtype=float).ravel()
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values lie in [0, 1]: {p.tolist()}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


# Up to so many values in both arms the distribution of rank sums is counted, in milliseconds.
COUNTED = 100


def mann_whitney(x: ArrayLike, y: ArrayLike) -> float:
    """Two-sided p-value of Mann and Whitney's test, whose statistic is `probability_of_improvement`
    times the number of pairs.

    It is exact, with ties too: twice the smaller tail of the rank sums over all ways to deal the
    values into two arms of these sizes. SciPy's `auto` is the normal approximation where there are
    ties or nine values in each arm, which is wrong for few seeds. Its exact test with ties visits
    each way, of which there are many. Of more than `COUNTED` values it is that approximation,
    corrected for ties.

    Args:
        x: array (n,).
        y: array (m,).

    Returns:
        NaN if a value is NaN.

    Raises:
        ValueError: for an empty array.
    """
    x, y = _values(x), _values(y)
    n, both = len(x), np.concatenate([x, y])
    if np.isnan(both).any():
        return math.nan
    if np.ptp(both) == 0:
        return 1.0
    if len(both) > COUNTED:
        return float(stats.mannwhitneyu(x, y, method="asymptotic").pvalue)
    ranks = np.rint(2 * stats.rankdata(both)).astype(int)  # ties have halves
    # By size of the first arm and by its sum of ranks: in how many ways it comes about.
    ways = np.zeros((n + 1, ranks.sum() + 1))
    ways[0, 0] = 1.0
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank]
    of_sum, here = ways[n], ranks[:n].sum()
    tail = min(of_sum[: here + 1].sum(), of_sum[here:].sum())
    return float(min(1.0, 2 * tail / of_sum.sum()))


Curve = Sequence[tuple[float, float]]


def align(curves: Sequence[Curve], points: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Learning curves on one grid of steps, by linear interpolation.

    Args:
        curves: each a sequence of (steps, return) with rising steps, at least one point.
        points: of the grid.

    Returns:
        Steps (points,) over the range that all curves cover, and returns (n, points). Where the
        curves have no range in common, arrays of length 0.

    Raises:
        ValueError: for no curve, or one without points.
    """
    if not curves or not all(len(c) for c in curves):
        raise ValueError("no curves to align, or one without points")
    arrays = [np.asarray(c, dtype=float) for c in curves]
    first, last = max(a[0, 0] for a in arrays), min(a[-1, 0] for a in arrays)
    if first > last:
        return np.empty(0), np.empty((len(arrays), 0))
    grid = np.linspace(first, last, points) if last > first else np.array([first])
    return grid, np.stack([np.interp(grid, a[:, 0], a[:, 1]) for a in arrays])


def bands(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile mean at each point, with a pointwise 95 % percentile bootstrap band over the
    rows.

    Args:
        values: array (n, points), a row per seed. Whole rows are resampled.

    Returns:
        Interquartile mean, lower and upper end, each (points,); the ends are NaN with one row.
    """
    return _trimmed(values, 0), *_band(values, lambda rows: _trimmed(rows, 1))


def _band(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the band of a statistic of rows, which are resampled whole; NaN with one row."""
    n, points = values.shape
    if n < 2:
        return np.full(points, np.nan), np.full(points, np.nan)
    rng = np.random.default_rng(SEED)
    low, high = _ends(statistic(values[rng.integers(0, n, (RESAMPLES, n))]))
    return low, high


def _trimmed(values: np.ndarray, axis: int) -> np.ndarray:
    """`interquartile_mean` along an axis: SciPy's `trim_mean`, without its overhead. NaN where a
    value is NaN.
    """
    n = values.shape[axis]
    cut = n // 4
    parted = np.partition(values, (cut, n - cut - 1), axis)
    trimmed = np.take(parted, np.arange(cut, n - cut), axis).mean(axis)
    return np.where(np.isnan(values).any(axis), np.nan, trimmed)


# Statistics of one resample, and the same of a row for each resample, which is faster.
_OF_ROWS: dict[Callable[..., Any], Callable[..., np.ndarray]] = {
    interquartile_mean: lambda rows: _trimmed(rows, 1),
    np.mean: lambda rows: rows.mean(1),
    probability_of_improvement: _improvements,
}


# Points of a learning curve, of at most 200, over which single episodes are averaged out.
SMOOTHING = 10


def smoothed(curve: Curve, window: int = SMOOTHING) -> list[tuple[float, float]]:
    """A learning curve in which each point is the mean of the last `window` points.

    Args:
        curve: (steps, return), with rising steps.
        window: points of the mean; fewer where the curve has fewer.

    Returns:
        (steps, mean return) from the first point that has `window` points up to it.
    """
    if not len(curve):
        return []
    steps, returns = np.asarray(curve, dtype=float).T
    window = min(window, len(returns))
    means = np.lib.stride_tricks.sliding_window_view(returns, window).mean(1)
    return [(float(s), float(m)) for s, m in zip(steps[window - 1 :], means)]


def steps_to(curve: Curve, threshold: float, window: int = SMOOTHING) -> float:
    """Steps after which a learning curve, `smoothed`, is at a threshold or above for the first
    time.

    Args:
        curve: (steps, return), with rising steps.
        threshold: a return.
        window: points over which the curve is averaged.

    Returns:
        Steps; infinity if it is never reached.
    """
    return next((steps for steps, mean in smoothed(curve, window) if mean >= threshold), math.inf)


def share_reached(steps: ArrayLike, at: ArrayLike) -> np.ndarray:
    """Share of runs that had reached their target by then: the empirical distribution of run times.

    Args:
        steps: array (n,), steps that each run needed; infinity for those that never did.
        at: array (points,), budgets.

    Returns:
        Shares (points,).
    """
    return np.mean(_values(steps)[:, None] <= np.asarray(at, dtype=float)[None, :], axis=0)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Share of runs whose score is above each threshold (Agarwal et al., 2021, arXiv 2108.13264,
    eq. 1).

    Args:
        scores: array (n,).
        thresholds: array (points,).

    Returns:
        Shares (points,).
    """
    return np.mean(_values(scores)[:, None] > np.asarray(thresholds, dtype=float)[None, :], axis=0)


def profile_band(scores: ArrayLike, thresholds: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise 95 % percentile bootstrap band of `performance_profile`: lower and upper end, each
    (points,); NaN with one run.
    """
    above = _values(scores)[:, None] > np.asarray(thresholds, dtype=float)[None, :]
    return _band(above, lambda rows: rows.mean(1))
