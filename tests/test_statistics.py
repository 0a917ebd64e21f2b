"""Statistics against SciPy and closed forms."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from erl.errors import UserError
from erl.statistics import (
    Arm,
    align,
    bands,
    bootstrap_interval,
    compare,
    holm,
    improvement_interval,
    interquartile_mean,
    interval_text,
    mann_whitney,
    normalised_score,
    number_text,
    performance_profile,
    probability_of_improvement,
    profile_band,
    share_reached,
    smoothed,
    steps_to,
    table,
)

# -- statistics --


def test_interquartile_mean():
    assert interquartile_mean([1, 2, 3, 100]) == 2.5
    assert (
        interquartile_mean([[8, 1, 2, 3], [4, 5, 6, 1e9]]) == 4.5
    )  # sorted: 1 2 | 3 4 5 6 | 8 1e9
    assert interquartile_mean([1, 2, 6]) == 3  # too few to leave one out
    assert interquartile_mean([7]) == 7
    assert math.isnan(interquartile_mean([1, 2, 3, np.nan, 4]))
    with pytest.raises(ValueError, match="no values"):
        interquartile_mean([])


def test_bootstrap_interval_agrees_with_scipy():
    x = np.random.default_rng(0).normal(3, 2, 40)
    ours = bootstrap_interval(x, np.mean, n_resamples=5000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=5000, method="percentile")
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.06)
    assert ours == bootstrap_interval(x, np.mean, n_resamples=5000)


def test_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(200):
        low, high = bootstrap_interval(rng.normal(0, 1, 30), np.mean, n_resamples=200)
        hits.append(low <= 0 <= high)
    assert 0.87 < np.mean(hits) < 0.99


def test_bootstrap_of_too_little():
    assert np.isnan(bootstrap_interval([1.0], interquartile_mean)).all()
    assert np.isnan(bootstrap_interval([1.0, np.nan], interquartile_mean)).all()
    assert np.isnan(improvement_interval([1.0], [1.0, 2.0])).all()
    assert np.isnan(improvement_interval([1.0, 2.0], [1.0])).all()
    assert bootstrap_interval([2.0, 2.0], interquartile_mean) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], interquartile_mean)


def test_probability_of_improvement():
    assert probability_of_improvement([2, 3], [0, 1, 1]) == 1
    assert probability_of_improvement([0], [0]) == 0.5
    assert probability_of_improvement([1, 2], [1, 3]) == (0.5 + 0 + 1 + 0) / 4
    assert math.isnan(probability_of_improvement([1, np.nan], [0]))
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 9, 30), rng.integers(2, 9, 20)
    u = stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement(x, y) == pytest.approx(u / (30 * 20))
    assert probability_of_improvement(y, x) == pytest.approx(1 - u / (30 * 20))


def test_improvement_interval_agrees_with_scipy():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.7, 1, 25), rng.normal(0, 1, 15)
    ours = improvement_interval(x, y)
    theirs = stats.bootstrap(
        (x, y), probability_of_improvement, n_resamples=3000, method="percentile", vectorized=False
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.03)
    assert ours[0] < probability_of_improvement(x, y) < ours[1]


def test_normalised_score():
    np.testing.assert_allclose(normalised_score(np.array([-10.0, 20.0, 50.0]), -10, 20), [0, 1, 2])
    assert normalised_score(-100.0, -200, -150) == 2.0
    with pytest.raises(ValueError, match="must differ from the random return"):
        normalised_score(1.0, 5.0, 5.0)


def test_table():
    text = table(
        [
            Arm("PPO", [100.0, 110.0, 90.0, 105.0], 1234.5),
            Arm("RES_PPO", [120.0, 130.0, 125.0, 100.0]),
            Arm("one seed", [12345.6], 10.0),
        ]
    )
    header, rule, ppo, res, one = text.splitlines()
    assert header.split("  ")[0] == "arm"
    assert set(rule) == {"-", " "}
    assert {len(line) for line in text.splitlines()} == {len(header)}
    assert ppo.split()[:3] == ["PPO", "4", "102.5"]
    assert "baseline" in ppo
    assert "1,234" in ppo
    assert res.split()[:3] == ["RES_PPO", "4", "122.5"]
    p = probability_of_improvement([120, 130, 125, 100], [100, 110, 90, 105])
    low, high = improvement_interval([120, 130, 125, 100], [100, 110, 90, 105])
    assert f"{p:.2f} [" in res
    assert f"[{low:.2f}, {high:.2f}]" in res
    assert "130" not in ppo + one
    assert one.split()[2:5] == ["1", "12,346", "-"]
    _, _, first, second = table([Arm("a", [1.0]), Arm("b", [2.0])], baseline="b").splitlines()
    assert "baseline" in second
    assert first.split() == ["a", "1", "1", "-", "0.00"]
    with pytest.raises(UserError, match="did you mean PPO"):
        table([Arm("PPO", [1.0])], baseline="PPPO")
    with pytest.raises(ValueError, match="no values"):
        table([Arm("PPO", [])])


def test_numbers_of_tables_are_plain_text():
    """Also from 10,000 on, where four significant digits alone would be 1.235e+04."""
    values = (12345.6, -1234.5, 999.94, 0.45391, math.nan, None)
    assert [number_text(v) for v in values] == ["12,346", "-1,234", "999.9", "0.4539", "-", "-"]
    large = (999_999_999.0, 1e9, -1.5e30, math.inf)
    assert [number_text(v) for v in large] == ["999,999,999", "1e+09", "-1.5e+30", "inf"]
    assert number_text(0.5, "{:.2f}") == "0.50"
    assert interval_text((9876.5, 12345.6)) == "[9,876, 12,346]"
    assert interval_text((math.nan, math.nan)) == "-"
    assert interval_text((0.1, 0.25), "{:.2f}") == "[0.10, 0.25]"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 50])
def test_the_interquartile_mean_is_scipys_trimmed_mean(n):
    for values in np.random.default_rng(n).normal(size=(20, n)):
        assert interquartile_mean(values) == stats.trim_mean(values, 0.25)


# -- curves, profiles and families of tests --


def test_holm_is_the_closed_test_of_bonferroni():
    """The slow definition: a hypothesis is rejected where every intersection with it is."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 5):
        p = rng.random(n) ** 3
        subsets = [s for k in range(1, n + 1) for s in itertools.combinations(range(n), k)]
        slow = [
            max(min(1.0, len(s) * p[list(s)].min()) for s in subsets if i in s) for i in range(n)
        ]
        assert holm(p) == pytest.approx(slow)
    assert holm([0.5, 0.5]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="lie in"):
        holm([0.1, math.nan])


def test_mann_whitney_tests_the_probability_of_improvement():
    # All 20 ways to deal six values into two threes: exactly one is as extreme on each side.
    assert mann_whitney([4, 5, 6], [1, 2, 3]) == pytest.approx(2 / 20)
    assert mann_whitney([1, 1], [1, 1]) == 1.0
    assert math.isnan(mann_whitney([1, 2], [3, math.nan]))


@pytest.mark.parametrize("most", [1, 1000, 1 << 22])
@pytest.mark.parametrize("n", [2, 3, 7, 10, 33])
def test_intervals_are_those_of_one_resample_after_the_other(n, most, monkeypatch):
    monkeypatch.setattr("erl.statistics.MOST_AT_ONCE", most)
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal(n), np.round(rng.standard_normal(n + 1), 1)
    for statistic in (interquartile_mean, np.mean, np.median):  # the last one alone, each time
        again = np.random.default_rng(0)
        drawn = [statistic(again.choice(x, n)) for _ in range(2000)]
        expected = np.quantile(drawn, [0.025, 0.975])
        assert bootstrap_interval(x, statistic) == pytest.approx(expected, rel=1e-14)
    again = np.random.default_rng(0)
    drawn = [
        probability_of_improvement(again.choice(x, n), again.choice(y, n + 1)) for _ in range(2000)
    ]
    assert improvement_interval(x, y) == tuple(np.quantile(drawn, [0.025, 0.975]))


def test_an_arm_with_nan_is_none_of_the_family():
    scores = {"PPO": [1.0, 2, 3, 4], "A": [5.0, 6, 7, 8], "B": [1.0, math.nan]}
    without, (_, a, b) = (
        compare({k: scores[k] for k in ("PPO", "A")}, "PPO"),
        compare(scores, "PPO"),
    )
    assert a == without[1]
    assert math.isnan(b.p)
    assert math.isnan(b.p_holm)
    assert table([Arm(name, x) for name, x in scores.items()]).splitlines()[-1].split() == [
        *("B", "2", "-", "-", "-")
    ]


@pytest.mark.parametrize(("n", "m"), [(3, 3), (2, 5), (5, 5), (6, 4)])
@pytest.mark.parametrize("values", [2, 4, 1000])
def test_mann_whitneys_p_is_exact_with_ties(n, m, values):
    """Against all ways to deal the values, and against SciPy, which visits them too."""
    rng = np.random.default_rng(values)
    x, y = rng.integers(0, values, n), rng.integers(0, values, m)
    y[0], y[1] = 0, 1  # not all the same
    both = np.concatenate([x, y])
    ranks = stats.rankdata(both)
    sums = np.array([ranks[list(arm)].sum() for arm in itertools.combinations(range(n + m), n)])
    here = ranks[:n].sum()
    tails = np.mean(sums <= here), np.mean(sums >= here)
    assert mann_whitney(x, y) == pytest.approx(min(1.0, 2 * min(tails)))
    method = stats.PermutationMethod(n_resamples=np.inf)
    assert mann_whitney(x, y) == pytest.approx(stats.mannwhitneyu(x, y, method=method).pvalue)


def test_mann_whitneys_p_is_that_of_few_seeds_and_of_many():
    assert mann_whitney([2, 2, 2], [1, 1, 1]) == pytest.approx(0.1)  # SciPy: 0.047
    low, high = range(10), range(10, 20)
    assert mann_whitney(low, high) == pytest.approx(2 / math.comb(20, 10))  # SciPy: 0.00018
    rng = np.random.default_rng(0)
    for n in (50, 51):  # both sides of what is counted
        x, y = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
        exact = stats.mannwhitneyu(x, y, method="exact").pvalue
        assert mann_whitney(x, y) == pytest.approx(exact, rel=1e-9 if n == 50 else 0.05)


def test_curves_are_aligned_on_the_steps_that_all_have():
    steps, values = align([((0, 0.0), (10, 10.0)), ((5, 1.0), (20, 1.0))], points=6)
    assert steps.tolist() == [5, 6, 7, 8, 9, 10]
    assert values.tolist() == [[5, 6, 7, 8, 9, 10], [1] * 6]
    steps, values = align([((0, 0.0),), ((5, 1.0),)])
    assert values.shape == (2, 0)
    assert align([((3, 7.0),)])[1].tolist() == [[7.0]]
    with pytest.raises(ValueError, match="no curves"):
        align([])


def test_a_band_is_the_bootstrap_interval_at_each_point():
    values = np.random.default_rng(0).normal(size=(7, 3))
    centre, low, high = bands(values)
    for i in range(3):
        assert centre[i] == interquartile_mean(values[:, i])
        expected = bootstrap_interval(values[:, i], interquartile_mean)
        assert (low[i], high[i]) == pytest.approx(expected, abs=0.12)
    assert np.isnan(bands(values[:1])[1]).all()
    values[0, 1] = np.nan  # is no large value
    assert [np.isnan(end).tolist() for end in bands(values)] == [[False, True, False]] * 3


def test_a_smoothed_curve_is_a_mean_of_its_last_points():
    curve = [(i, float(i % 2)) for i in range(1, 6)]
    assert smoothed(curve, 2) == [(2, 0.5), (3, 0.5), (4, 0.5), (5, 0.5)]
    assert smoothed(curve, 9) == [(5, 0.6)]
    assert smoothed([]) == []
    assert steps_to(curve, 0.5, window=2) == 2
    assert steps_to(curve, 0.6, window=2) == math.inf
    assert steps_to([(1, 0.1), (2, 0.1), (3, 0.1)], 0.1, window=3) == 3


def test_the_band_of_a_profile_is_that_of_a_share():
    """Of ten resampled runs, those above a threshold are binomial."""
    for threshold, share in ((4.5, 0.5), (8.5, 0.1)):
        ends = profile_band(range(10), [threshold])
        exact = stats.binom.ppf([0.025, 0.975], 10, share) / 10
        assert np.ravel(ends) == pytest.approx(exact)


def test_shares_and_profiles_count():
    assert share_reached([1, 3, math.inf], [0, 1, 2, 3]).tolist() == [0, 1 / 3, 1 / 3, 2 / 3]
    assert performance_profile([1, 2, 3, 4], [0, 2, 4]).tolist() == [1.0, 0.5, 0.0]
    low, high = profile_band([1, 2, 3, 4], [0, 2, 4])
    assert low.tolist() == [1.0, 0.0, 0.0]
    assert high.tolist() == [1.0, 1.0, 0.0]
    assert np.isnan(profile_band([1], [0])).all()
