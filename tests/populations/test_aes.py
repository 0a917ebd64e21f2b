"""The asynchronous evolution strategy: four updates of the mean and two of the variance."""

import math

import numpy as np
import pytest

from erl.populations.aes import AES, MEAN_UPDATES


def aes(mean=(0.0, 0.0), seed=0, **settings):
    return AES(np.array(mean), np.random.default_rng(seed), **settings)


@pytest.mark.parametrize(
    ("update", "r", "fitness", "mean_fitness", "p"),
    [
        ("fixed-linear", 10.0, 7.0, 2.0, 0.5),
        ("fixed-linear", 10.0, 20.0, 2.0, 1.0),
        ("fixed-linear", 10.0, -3.0, 2.0, 0.0),
        ("fixed-sigmoid", 10.0, 2.0, 2.0, 0.5),
        ("fixed-sigmoid", 5.0, 7.0, 2.0, 1.0 / (1.0 + math.exp(-1.0))),
        ("fixed-sigmoid", 5.0, -3.0, 2.0, 1.0 / (1.0 + math.exp(1.0))),
        ("fixed-sigmoid", 1.0, -1e6, 2.0, 0.0),
        ("fixed-sigmoid", 1.0, 1e6, 2.0, 1.0),
        ("baseline-absolute", -2.0, 1.0, -1.0, 0.75),  # 3 above the baseline against 1
        ("baseline-absolute", -2.0, -3.0, -1.0, 0.0),
        ("baseline-absolute", -2.0, 1.0, -5.0, 1.0),  # the mean is below the baseline
        ("baseline-absolute", -2.0, 1.0, -2.0, 1.0),
        ("baseline-absolute", -2.0, -2.0, -2.0, 0.0),
        ("baseline-absolute", -2.0, -3.0, -5.0, 0.0),
        ("baseline-absolute", 1.0, 5.0, -3.0, 1.0),  # (f - b) + (f̄ - b) is zero here
        ("baseline-relative", 4.0, 2.0, 2.0, 0.5),
        ("baseline-relative", 4.0, 10.0, 2.0, 0.75),  # 12 above the baseline against 4
        ("baseline-relative", 4.0, -2.0, 2.0, 0.0),
        ("baseline-relative", 4.0, -9.0, 2.0, 0.0),
    ],
)
def test_the_step_by_hand(update, r, fitness, mean_fitness, p):
    a = aes((1.0, -1.0), mean_update=update, mean_update_param=r)
    assert a.step(fitness, mean_fitness) == pytest.approx(p, abs=1e-12)
    a.tell(np.array([[3.0, 5.0]]), np.array([fitness]), mean_fitness)
    assert a.p == pytest.approx(p, abs=1e-12)
    assert a.mean == pytest.approx([1.0 + 2.0 * p, -1.0 + 6.0 * p])


def test_a_worse_solution_pushes_the_mean_away_where_that_is_asked_for():
    a = aes(mean_update="fixed-linear", mean_update_param=10.0, negative_ratio=0.5)
    assert a.step(-3.0, 2.0) == pytest.approx(-0.25)
    assert a.step(-30.0, 2.0) == pytest.approx(-0.5)
    a.tell(np.array([[4.0, 4.0]]), np.array([-3.0]), 2.0)
    assert a.mean == pytest.approx([-1.0, -1.0])
    assert (a.var == 1e-3).all()


def test_fixed_variance_by_hand():
    a = aes(
        (0.0,),
        mean_update="fixed-linear",
        mean_update_param=10.0,
        var_update="fixed",
        fixed_var_n=4.0,
        var=1.0,
    )
    a.tell(np.array([[2.0]]), np.array([5.0]), 0.0)
    # The mean goes from 0 to 1: (2 - 0)(2 - 1) = 2 with the weight 1/4.
    assert a.mean == pytest.approx([1.0])
    assert a.var == pytest.approx([1.25])


def test_adaptive_variance_by_hand():
    a = aes(
        (0.0,),
        mean_update="fixed-linear",
        mean_update_param=10.0,
        var_update="adaptive",
        var=1.0,
    )
    a.tell(np.array([[5.0]]), np.array([2.0]), 0.0)
    # p = 1/5, n = 4; the mean goes from 0 to 1: (5 - 0)(5 - 1) = 20.
    assert a.var == pytest.approx([1.0 + (20.0 - 1.0) / 4.0])


def test_adaptive_variance_is_the_fixed_one_of_the_same_weight():
    """A step of 1/11 has the weight 1/10."""
    common = {"mean_update": "fixed-linear", "mean_update_param": 11.0, "var": 0.3}
    fixed = aes(var_update="fixed", fixed_var_n=10.0, **common)
    adaptive = aes(var_update="adaptive", **common)
    for z in np.random.default_rng(0).normal(size=(20, 1, 2)):
        for a in (fixed, adaptive):
            a.tell(z, np.array([1.0]), 0.0)
        assert adaptive.var == pytest.approx(fixed.var)


def test_adaptive_variance_of_equal_steps_is_welfords():
    """With steps 1/2, 1/3, 1/4 … the mean is that of all solutions and of the first mean."""
    a = aes((0.0,), mean_update="fixed-linear", mean_update_param=1.0, var_floor=0.0)
    seen = [0.0]
    a.tell(np.array([[3.0]]), np.array([0.5]), 0.0)  # n = 1: the variance is that of both, times 2
    seen.append(3.0)
    for k, z in enumerate(np.random.default_rng(0).normal(size=30), start=3):
        a.tell(np.array([[z]]), np.array([1.0 / k]), 0.0)
        seen.append(z)
        assert a.mean == pytest.approx([np.mean(seen)])
        # n is k - 1, so that what is averaged is the variance with n - 1 in the denominator.
        assert a.var == pytest.approx([np.var(seen, ddof=1)])


@pytest.mark.parametrize("var_update", ["fixed", "adaptive"])
def test_a_step_of_nearly_nothing_leaves_the_variance(var_update):
    a = aes(mean_update="fixed-linear", mean_update_param=1.0, var_update=var_update)
    a.tell(np.full((1, 2), 100.0), np.array([0.9e-3]), 0.0)
    assert (a.var == 1e-3).all()
    a.tell(np.full((1, 2), 100.0), np.array([1.1e-3]), 0.0)
    assert (a.var != 1e-3).all()


def test_without_a_step_nothing_moves():
    a = aes(mean_update="baseline-relative", mean_update_param=1.0)
    a.tell(np.full((5, 2), 100.0), np.full(5, -2.0), 0.0)
    assert (a.mean == 0.0).all()
    assert (a.var == 1e-3).all()


@pytest.mark.parametrize("update", MEAN_UPDATES)
def test_the_step_grows_with_the_fitness(update):
    a = aes(mean_update=update, mean_update_param=3.0)
    steps = [a.step(f, 5.0) for f in np.linspace(-30.0, 30.0, 200)]
    assert (np.diff(steps) >= 0.0).all()
    assert 0.0 <= min(steps) < 0.3
    assert 0.8 < max(steps) <= 1.0
