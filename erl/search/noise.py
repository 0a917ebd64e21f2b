"""How much of a fitness is luck: seeds within trials tell the noise, and what stays of a value when
it is taken into account.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# The spread between finalists is at least this share of the noise of their means. The order of
# finalists that nothing tells apart is then that of their means, and not a draw.
LEAST_SPREAD = 0.01
MOST_SEEDS = 100  # a trial, that `seeds_for_half` asks for


def mean_interval(x: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval for the mean of independent values (n,); None for less than two."""
    if len(x) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(x) - 1) * np.std(x, ddof=1) / math.sqrt(len(x)))
    return float(np.mean(x)) - half, float(np.mean(x)) + half


def luck_share(scores: np.ndarray) -> float | None:
    """Share of the variance of trials' fitness that comes from their seeds.

    The fitness is the mean over environments and seeds. All trials have the same seeds, so what a
    seed does to all of them is no luck of one: noise is what a two-way analysis of variance (trials
    x seeds) leaves over. The environments of a trial share its seeds, and with them the reservoir,
    so their noise is not independent: scores are first averaged over environments. The share is 1
    minus the reliability of the mean (Shrout and Fleiss, 1979, Psychological Bulletin 86, 420-428:
    the intraclass correlation ICC(3, k)).

    Args:
        scores: (trials, environments, seeds) of completed trials.

    Returns:
        In [0, 1]; None with less than two trials or seeds, or where all trials are equally good.
    """
    trials, _, seeds = scores.shape
    if trials < 2 or seeds < 2:
        return None
    variance = float(scores.mean((1, 2)).var(ddof=1))
    if variance <= (1e-12 * np.abs(scores).max()) ** 2:  # no more than roundings of the means
        return None
    of_seed = scores.mean(1)  # (trials, seeds)
    left = of_seed - of_seed.mean(1, keepdims=True) - of_seed.mean(0) + of_seed.mean()
    noise = float((left**2).sum()) / ((trials - 1) * (seeds - 1))
    return min(1.0, noise / seeds / variance)


def seeds_for_half(share: float, nb_seeds: int) -> int | None:
    """With how many seeds a trial half of the variance of the fitness would be luck; None if
    `MOST_SEEDS` are not enough.

    Args:
        share: `luck_share` with `nb_seeds` seeds.
        nb_seeds: of a trial now.
    """
    if share >= 1:
        return None
    seeds = max(1, math.ceil(nb_seeds * share / (1 - share) - 1e-9))
    return seeds if seeds <= MOST_SEEDS else None


@dataclass(frozen=True)
class Expected:
    """What finalists are expected to reach on new seeds, see `expect`.

    Attributes:
        values: (n,); the finalist with the highest one is the one to choose.
        low, high: ends of 95 % intervals, (n,); NaN with less than three later seeds. Two would
            give intervals that are wider than anything that a mean can be.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def expect(proposed: Sequence[Sequence[float]], again: Sequence[Sequence[float]]) -> Expected:
    """What finalists are expected to reach on new seeds, from all of their lifetimes.

    1. A score is the finalist's value, plus what its seed does to all finalists, plus noise: a
       two-way layout, solved by least squares. Finalists were chosen for their first scores, which
       lie above the later ones by the luck that made them finalists. The effects of the first seeds
       take that in. The level comes from the later seeds alone.
    2. The values are shrunk towards their common mean: the empirical Bayes estimate for normal
       values (Efron and Morris, 1975, JASA 70, 311-319; the positive part of James and Stein, 1961)
       with the moment estimate of the spread for unequal numbers of lifetimes (Morris, 1983, JASA
       78, 47-55). The noise is what the layout leaves over. So the winner's value is no maximum
       over noisy means. Their factor (n - 3) / (n - 1), which shrinks a little less, is left out:
       so the winner's value is a little too low rather than too high (benchmarks/winner.md).
    3. The interval has the shrunk noise of the finalist, that of the shrinkage itself (Morris,
       1983: the spread is an estimate too; left out for less than four finalists), and that of the
       level, which has Student's distribution over the later seeds.

    Args:
        proposed: of each finalist, the scores with which it was proposed, seed by seed; empty for
            one that was not a trial.
        again: of each, the scores on seeds that did not choose it, from the first on; at least one.
            Finalists share their seeds: the k-th scores of all are those of the k-th seed. One may
            have fewer of them, and NaN for seeds that it lacks.
    """
    first, later = _table(proposed), _table(again)
    n, seeds = later.shape
    counts = (~np.isnan(first)).sum(1) + (~np.isnan(later)).sum(1)
    rows, scores = _layout(first, later)
    effects, _, rank, _ = np.linalg.lstsq(rows, scores, rcond=None)
    means = effects[:n] + effects[n : n + seeds].mean()
    freedom = len(scores) - int(rank)
    noise = float(((scores - rows @ effects) ** 2).sum()) / max(1, freedom)
    variances = noise / counts
    spread = float(means.var(ddof=1) - variances.mean()) if n > 1 else math.inf
    spread = max(spread, LEAST_SPREAD * float(variances.mean()))
    # Without noise, and with one finalist, all of a difference is kept.
    kept = np.ones(n) if not noise > 0 or n == 1 else spread / (spread + variances)
    weights = kept / kept.sum()  # proportional to 1 / (spread + variances)
    centre = float((weights * means).sum())
    values = centre + kept * (means - centre)
    if seeds < 3:
        return Expected(values, np.full(n, np.nan), np.full(n, np.nan))
    of_shrinkage = 2 / (n - 3) * ((1 - kept) * (means - centre)) ** 2 if n > 3 else 0.0
    of_level = np.var(effects[n : n + seeds], ddof=1) / seeds
    half = np.sqrt(
        stats.norm.ppf(0.975) ** 2 * (kept * variances + of_shrinkage)
        + stats.t.ppf(0.975, seeds - 1) ** 2 * of_level
    )
    return Expected(values, values - half, values + half)


def _table(groups: Sequence[Sequence[float]]) -> np.ndarray:
    """Scores of finalists by seed, (finalists, seeds), NaN where there is none; without seeds that
    nobody has.
    """
    table = np.full((len(groups), max(map(len, groups), default=0)), np.nan)
    for row, group in zip(table, groups):
        row[: len(group)] = group
    return table[:, ~np.isnan(table).all(0)]


def _layout(first: np.ndarray, later: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two-way layout: a row for each score, with ones in the columns of its finalist and of its
    seed, (scores, finalists + later seeds + first seeds); and the scores.
    """
    n, seeds = later.shape
    rows, scores = [], []
    for offset, table in ((n, later), (n + seeds, first)):
        for finalist, seed in np.argwhere(~np.isnan(table)):
            row = np.zeros(n + seeds + first.shape[1])
            row[[finalist, offset + seed]] = 1.0
            rows.append(row)
            scores.append(table[finalist, seed])
    return np.array(rows), np.array(scores, dtype=float)
