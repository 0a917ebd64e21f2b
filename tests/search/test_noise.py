"""What is said of noise, against the textbook and against simulated truth."""

import numpy as np
import pytest
from scipy import stats

from erl.search.noise import (
    MOST_SEEDS,
    expect,
    luck_share,
    mean_interval,
    seeds_for_half,
)


def test_the_interval_of_a_mean_is_students():
    x = [3.0, 5.0, 4.5, 7.0]
    low, high = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert mean_interval(x) == pytest.approx((low, high))
    assert mean_interval([1.0]) is None


def drawn(rng, trials, seeds, of_trials, of_seeds, noise):
    values, effects = of_trials * rng.standard_normal(trials), of_seeds * rng.standard_normal(seeds)
    return values[:, None] + effects + noise * rng.standard_normal((trials, seeds))


@pytest.mark.parametrize("of_seeds", [0.0, 50.0])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_the_share_of_luck_is_found_whatever_seeds_do_to_all(noise, of_seeds):
    rng = np.random.default_rng(1)
    true = noise**2 / 3 / (1.0 + noise**2 / 3)
    shares = [luck_share(drawn(rng, 200, 3, 1.0, of_seeds, noise)[:, None]) for _ in range(40)]
    # The mean of 40 shares lies within a few standard errors of the truth.
    assert np.mean(shares) == pytest.approx(true, abs=4 * np.std(shares) / np.sqrt(40) + 0.005)


def test_environments_that_differ_are_no_luck():
    rng = np.random.default_rng(0)
    one = drawn(rng, 50, 3, 1.0, 0.0, 1.0)
    two = np.stack([one, one + 100.0], axis=1)  # (trials, environments, seeds)
    assert luck_share(two) == pytest.approx(luck_share(one[:, None]))


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_environments_of_a_trial_share_its_seeds(shared):
    """What a seed does to a trial may be much the same in all environments, or not."""
    rng, shares = np.random.default_rng(2), []
    for _ in range(40):
        values = rng.standard_normal((200, 4, 1))
        common, own = rng.standard_normal((200, 1, 3)), rng.standard_normal((200, 4, 3))
        noise = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
        shares.append(luck_share(values + 2.0 * noise))
    luck = 4.0 * (shared + (1 - shared) / 4) / 3
    true = luck / (0.25 + luck)
    assert np.mean(shares) == pytest.approx(true, abs=4 * np.std(shares) / np.sqrt(40) + 0.005)


def test_nothing_tells_luck_of_one_seed_one_trial_or_equal_trials():
    assert luck_share(np.ones((5, 1, 1))) is None
    assert luck_share(np.ones((1, 1, 3))) is None
    assert luck_share(np.ones((5, 1, 3))) is None
    for trials in (10, 15, 20, 30):  # whose mean is rounded
        assert luck_share(np.tile([23.1, 22.7, 23.5], (trials, 1, 1))) is None
    assert luck_share(np.arange(6.0).reshape(3, 1, 2)) == pytest.approx(0.0)


def test_seeds_for_half_of_the_variance():
    # noise of one seed: share s of n seeds -> s / (1 - s) n / m is 1 at the answer.
    assert seeds_for_half(0.5, 3) == 3
    assert seeds_for_half(0.75, 3) == 9
    assert seeds_for_half(0.1, 3) == 1
    assert seeds_for_half(0.5, MOST_SEEDS) == MOST_SEEDS
    assert seeds_for_half(0.51, MOST_SEEDS) is None
    assert seeds_for_half(1.0, 3) is None


def test_without_noise_values_are_those_of_the_later_seeds():
    again = [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [4.0, 5.0, 6.0]]
    found = expect([[10.0, 20.0], [11.0, 21.0], []], again)
    assert found.values == pytest.approx([2.0, 3.0, 5.0])
    # Seeds differ, so the level is uncertain all the same.
    assert (found.low < found.values).all()


def test_a_fall_that_all_share_changes_nothing():
    rng = np.random.default_rng(3)
    proposed, again = rng.standard_normal((5, 3)), rng.standard_normal((5, 5))
    one, other = expect(proposed, again), expect(proposed + 100.0, again)
    assert other.values == pytest.approx(one.values)
    moved = expect(proposed, again + np.arange(5.0))  # what seeds do to all moves the level alone
    assert moved.values - moved.values.mean() == pytest.approx(one.values - one.values.mean())


def test_the_order_is_that_of_pooled_means_and_shrinkage_lowers_the_winner():
    rng = np.random.default_rng(4)
    proposed, again = rng.standard_normal((6, 3)), rng.standard_normal((6, 5))
    pooled = again.sum(1) + proposed.sum(1)
    found = expect(proposed, again)
    assert list(np.argsort(found.values)) == list(np.argsort(pooled))
    assert found.values.max() < again.mean(1)[found.values.argmax()]
    assert np.isfinite(found.values).all()


def test_one_finalist_one_seed_and_seeds_that_some_lack():
    assert expect([[5.0]], [[2.0]]).values == pytest.approx([2.0])
    assert np.isnan(expect([[5.0], [4.0]], [[2.0], [3.0]]).low).all()
    # The second has the first two seeds alone, on which it is one better: not the harder third.
    found = expect([[], []], [[5.0, 6.0, 0.0], [6.0, 7.0]])
    assert found.values[1] - found.values[0] == pytest.approx(1.0)


def test_a_gap_takes_no_score_to_another_seed():
    lacks, nan = [5.0, 6.0, 1.0], float("nan")
    # The third seed is harder for all. The second finalist lacks the first seed, and is one better.
    found = expect([[], []], [lacks, [nan, 7.0, 2.0]])
    assert found.values[1] - found.values[0] == pytest.approx(1.0)
    without = expect([[], []], [lacks, [7.0, 2.0]])  # as if they were the first two seeds
    assert without.values[1] - without.values[0] < 0
    # A seed that nobody has is none; gaps at the end are no more than an end.
    again = [[nan, *lacks], [nan, nan, 7.0, 2.0]]
    for one, other in ((again, found), ([lacks, [nan, 7.0, 2.0, nan]], found)):
        given = expect([[], []], one)
        assert given.values == pytest.approx(other.values)
        assert given.low == pytest.approx(other.low)


def test_the_interval_does_not_depend_on_how_far_finalists_of_fewer_seeds_are_behind():
    rng = np.random.default_rng(0)
    fewer, more = rng.standard_normal((4, 3)), rng.standard_normal((4, 6))
    widths = []
    for behind in (1e3, 1e6):  # too far for any shrinkage
        found = expect([[]] * 8, [*(fewer - behind).tolist(), *more.tolist()])
        widths.append((found.high - found.low)[4:])
    assert widths[0] == pytest.approx(widths[1], rel=1e-2)
    alone = expect([[]] * 4, more.tolist())
    assert widths[0].mean() < 1.5 * (alone.high - alone.low).mean()


def test_two_seeds_give_no_interval():
    assert np.isnan(expect([[3.0], [4.0]], [[1.0, 2.0], [2.0, 4.0]]).low).all()
    assert np.isfinite(expect([[3.0], [4.0]], [[1.0, 2.0, 5.0], [2.0, 4.0, 4.0]]).low).all()


@pytest.mark.parametrize("of_seeds", [0.0, 2.0])
def test_what_is_expected_of_the_winner_is_true_where_its_mean_is_too_high(of_seeds):
    rng = np.random.default_rng(5)
    said, claimed, covered = [], [], []
    for _ in range(400):
        true = 0.5 * rng.standard_normal(40)
        first = true[:, None] + of_seeds * rng.standard_normal(3) + rng.standard_normal((40, 3))
        best = np.argsort(-first.mean(1))[:6]
        fresh = of_seeds * rng.standard_normal(5) + rng.standard_normal((6, 5))
        again = true[best, None] + fresh
        found = expect(first[best], again)
        k = found.values.argmax()
        said.append(found.values[k] - true[best[k]])
        claimed.append(again[k].mean() - true[best[k]])
        covered.append(found.low[k] <= true[best[k]] <= found.high[k])
    error = np.std(claimed) / 20  # standard error of a mean of 400
    assert np.mean(claimed) > 0.2 - 3 * error + 0.05
    assert abs(np.mean(said)) < np.mean(claimed) / 2 + 3 * error
    assert np.mean(covered) > 0.85
