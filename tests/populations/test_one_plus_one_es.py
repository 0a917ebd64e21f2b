"""The (1+1) evolution strategy: who is accepted, and the 1/5 rule over the last ten results."""

import numpy as np
import pytest

from erl.populations.one_plus_one_es import OnePlusOneES


def es(seed=0, **settings):
    return OnePlusOneES(np.zeros(2), np.random.default_rng(seed), **settings)


def tell(p, success):
    """A result that is accepted, or not."""
    p.tell(np.ones((1, 2)), np.array([1.0 if success else -1.0]), 0.0)


def test_only_what_is_better_than_the_mean_becomes_the_mean():
    p = es()
    p.tell(np.array([[1.0, 2.0]]), np.array([3.0]), 3.0)
    assert (p.mean == 0.0).all()
    p.tell(np.array([[1.0, 2.0]]), np.array([3.1]), 3.0)
    assert (p.mean == [1.0, 2.0]).all()


def test_of_several_results_the_accepted_one_is_the_next_one_to_beat():
    p = es()
    p.tell(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), np.array([5.0, 4.0, 6.0]), 0.0)
    assert (p.mean == 3.0).all()
    p = es()
    p.tell(np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([5.0, 4.0]), 0.0)
    assert (p.mean == 1.0).all()


def test_the_rule_looks_at_the_last_ten_results():
    """The variance by a plain count over a long list of results."""
    p, history, var = es(), [], 1e-3
    for success in np.random.default_rng(1).random(500) < 0.25:
        tell(p, bool(success))
        history.append(bool(success))
        if len(history) >= 10:
            var = max(var / 0.99 if sum(history[-10:]) > 2 else var * 0.99, 1e-5)
        assert p.var == pytest.approx([var, var])


@pytest.mark.parametrize("first", [True, False])
def test_the_history_goes_on_after_ten_results(first):
    """Ten successes and then none: the variance first grows, and then shrinks to the floor. The
    other way round it grows.
    """
    p = es()
    for _ in range(10):
        tell(p, first)
    for _ in range(1000):
        tell(p, not first)
    assert (p.var == 1e-5).all() if first else (p.var > 1.0).all()


def test_a_fifth_is_not_more_than_a_fifth():
    p = es()
    for k in range(10):
        tell(p, k < 2)
    assert p.var == pytest.approx(0.99e-3)
    p = es()
    for k in range(10):
        tell(p, k < 3)
    assert p.var == pytest.approx(1e-3 / 0.99)
