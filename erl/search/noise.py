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
MOST_SEEDS = 100  # that `seeds_for_half` asks for


def mean_interval(x: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval for the mean of independent values; None for less than two.

    Args:
        x: values (n,), one for each seed.
        confidence: share of such intervals that cover the mean, in (0, 1).
    """
    if len(x) < 2:
        return None
    half = float(
        stats.t.ppf((1 + confidence) / 2, len(x) - 1) * np.std(x, ddof=1) / math.sqrt(len(x))
    )
    return float(np.mean(x)) - half, float(np.mean(x)) + half


def luck_share(scores: np.ndarray) -> float | None:
    """Share of the variance of trials' fitness that comes from their seeds.

    The fitness is the mean over environments and seeds. All trials have the same seeds, so what a
    seed does to all of them is no luck of one: noise is what a two-way analysis of variance (trials
    x seeds) leaves over, in each environment. The share is 1 minus the reliability of the mean
    (Shrout and Fleiss, 1979, Psychological Bulletin 86, 420-428: the intraclass correlation
    ICC(3, k)).

    Args:
        scores: (trials, environments, seeds) of completed trials.

    Returns:
        In [0, 1]; None with less than two trials or seeds, or where all trials are equally good.
    """
    trials, environments, seeds = scores.shape
    if trials < 2 or seeds < 2:
        return None
    variance = float(scores.mean((1, 2)).var(ddof=1))
    if not variance > 0:
        return None
    left = (
        scores
        - scores.mean(2, keepdims=True)
        - scores.mean(0, keepdims=True)
        + scores.mean((0, 2), keepdims=True)
    )
    squares = (left**2).sum((0, 2)) / ((trials - 1) * (seeds - 1))  # (environments,)
    return min(1.0, float(squares.sum()) / (environments**2 * seeds) / variance)


def seeds_for_half(share: float, nb_seeds: int) -> int:
    """With how many seeds a trial half of the variance of the fitness would be luck; at most
    `MOST_SEEDS`.

    Args:
        share: `luck_share` with `nb_seeds` seeds.
        nb_seeds: of a trial now.
    """
    if share >= 1:
        return MOST_SEEDS
    return min(MOST_SEEDS, max(1, math.ceil(nb_seeds * share / (1 - share) - 1e-9)))


@dataclass(frozen=True)
class Expected:
    """What finalists are expected to reach on new seeds, see `expect`.

    Attributes:
        values: (n,); the finalist with the highest one is the one to choose.
        low, high: ends of 95 % intervals, (n,); NaN where nothing tells the noise.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def expect(proposed: Sequence[Sequence[float]], again: Sequence[Sequence[float]]) -> Expected:
    """What finalists are expected to reach on new seeds, from all of their lifetimes.

    1. Finalists were chosen for their first lifetimes. On average over them, those lie above the
       later ones by the luck that made them finalists. This fall is taken from all first lifetimes.
    2. The mean of a finalist is then taken over its first and its later lifetimes.
    3. The means are shrunk towards their common mean: the empirical Bayes estimate for normal
       values (Efron and Morris, 1975, JASA 70, 311-319; the positive part of James and Stein, 1961)
       with the moment estimate of the spread for unequal numbers of lifetimes (Morris, 1983, JASA
       78, 47-55). The noise of one lifetime is the variance within finalists, of both sets of
       seeds. So the winner's value is no maximum over noisy means.

    Args:
        proposed: of each finalist, the scores with which it was proposed; empty for one that was
            not a trial.
        again: of each, the scores of later lifetimes, on seeds that did not choose it; at least
            one. Finalists with the same number of lifetimes had the same seeds.
    """
    later = np.array([np.mean(x) for x in again])
    falls = [float(np.mean(p)) - value for p, value in zip(proposed, later) if len(p)]
    fall = float(np.mean(falls)) if falls else 0.0
    counts = np.array([len(p) + len(a) for p, a in zip(proposed, again)])
    sums = np.array([np.sum(a) + np.sum(p) - fall * len(p) for p, a in zip(proposed, again)])
    means = sums / counts
    groups = [np.asarray(x, dtype=float) for x in (*proposed, *again) if len(x) > 1]
    freedom = sum(len(x) - 1 for x in groups)
    noise = sum(float(((x - x.mean()) ** 2).sum()) for x in groups) / max(1, freedom)
    if not noise > 0:  # nothing tells it, or there is none
        ends = means if freedom else np.full(len(means), np.nan)
        return Expected(means, ends, ends)
    variances = noise / counts
    spread = LEAST_SPREAD * variances.mean()
    if len(means) > 1:
        spread = max(float(means.var(ddof=1) - variances.mean()), spread)
    kept = spread / (spread + variances) if len(means) > 1 else np.ones(1)
    weights = 1 / (spread + variances)
    centre = float((weights * means).sum() / weights.sum())
    # What a seed does to all finalists does not average out over them, only over the seeds.
    of_centre = max(1 / weights.sum(), _seeds_variance(again))
    values = centre + kept * (means - centre)
    errors = np.sqrt(kept * variances + (1 - kept) ** 2 * of_centre)
    half = stats.t.ppf(0.975, freedom) * errors
    return Expected(values, values - half, values + half)


def _seeds_variance(again: Sequence[Sequence[float]]) -> float:
    """Variance of the mean over finalists and seeds, from its spread over seeds."""
    n = len(again[0])
    if n < 2 or any(len(x) != n for x in again):
        return 0.0
    return float(np.mean(np.asarray(again, dtype=float), axis=0).var(ddof=1)) / n
