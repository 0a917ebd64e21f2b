"""CEM and ACEM against hand-worked numbers and against one another."""

import numpy as np
import pytest

from erl.populations.cem import ACEM, CEM


def cem(mean=(0.0, 0.0), seed=0, **settings):
    return CEM(np.array(mean), np.random.default_rng(seed), **settings)


def acem(mean=(0.0, 0.0), seed=0, **settings):
    return ACEM(np.array(mean), np.random.default_rng(seed), **settings)


def test_a_generation_by_hand():
    """Two parents of four: weights log 3 / (log 3 + log 1.5) and log 1.5 / (log 3 + log 1.5)."""
    p = cem((1.0, 2.0), population_size=4, damp=0.5, damp_limit=0.1, damp_tau=0.9)
    solutions = np.array([[9.0, 9.0], [2.0, 4.0], [7.0, 7.0], [0.0, 1.0]])
    p.tell(solutions, np.array([-5.0, 3.0, -6.0, 2.0]))
    w1, w2 = np.log(3) / np.log(4.5), np.log(1.5) / np.log(4.5)
    assert p.mean == pytest.approx([2 * w1, 4 * w1 + w2])
    # Squares around the old mean (1, 2): (1, 4) and (1, 1); the damping is now 0.46.
    assert p.var == pytest.approx([0.5 + 0.46, (4 * w1 + w2) / 2 + 0.46])


def test_damping_falls_to_its_limit():
    p = cem(population_size=2, damp=1.0, damp_limit=1e-5, damp_tau=0.9)
    for k in range(200):
        p.tell(np.zeros((2, 2)), np.zeros(2))
        assert p.var == pytest.approx(1e-5 + (1.0 - 1e-5) * 0.9 ** (k + 1))


def test_solutions_come_in_mirrored_pairs():
    p = cem((1.0, -2.0), var=0.5)
    drawn = p.ask(10)
    assert drawn[:5] + drawn[5:] == pytest.approx(np.tile([2.0, -4.0], (5, 1)))
    drawn = p.ask(7)
    assert drawn[:3] + drawn[3:6] == pytest.approx(np.tile([2.0, -4.0], (3, 1)))
    plain = cem(antithetic=False).ask(10)
    assert (np.abs(plain[:5] + plain[5:]) > 1e-6).all()


def test_only_a_whole_generation_is_learned_from():
    p = cem()
    with pytest.raises(ValueError, match="a generation has 10 solutions, not 9"):
        p.tell(p.ask(9), np.zeros(9))


def test_acem_moves_by_a_tenth_of_cems_step_on_the_same_results():
    one, ten = cem((0.5, -0.5)), acem((0.5, -0.5))
    solutions = one.ask(10)
    fitness = np.random.default_rng(3).normal(size=10)
    one.tell(solutions, fitness)
    ten.tell(solutions, fitness)
    start = np.array([0.5, -0.5])
    assert ten.mean - start == pytest.approx((one.mean - start) / 10)
    # The variances differ by the damping alone, which is the tenth root of the way down.
    damp, tau = 1e-3, 0.9
    down = (damp - 1e-5) * (tau**0.1 - tau)
    assert ten.var - one.var == pytest.approx([down, down])


def test_acem_changes_nothing_before_it_has_ten_results():
    p = acem((0.5, -0.5))
    for _ in range(9):
        p.tell(p.ask(1), np.ones(1))
    assert (p.mean == [0.5, -0.5]).all()
    assert (p.var == 1e-3).all()
    p.tell(p.ask(1), np.ones(1))
    assert (p.mean != [0.5, -0.5]).all()


def test_acem_forgets_all_but_the_last_ten_results():
    """Ten results later, what came before has no part in the variance."""
    rng = np.random.default_rng(0)
    late = rng.normal(size=(10, 2)), rng.normal(size=10)
    variances = []
    for seed in (1, 2):
        p = acem()
        early = np.random.default_rng(seed).normal(size=(13, 2))
        p.tell(early, 100.0 + np.arange(13.0))
        p.mean = np.zeros(2)
        p.tell(late[0][:9], late[1][:9])
        p.mean = np.zeros(2)
        p.tell(late[0][9:], late[1][9:])
        variances.append(p.var)
    assert (variances[0] == variances[1]).all()


def test_acem_by_hand():
    """Two results are remembered, one is a parent; every result moves half of the way."""
    p = acem((0.0,), memory=2, damp=0.0, damp_limit=0.0)
    p.tell(np.array([[4.0], [1.0]]), np.array([1.0, 0.0]))
    assert p.mean == pytest.approx([2.0])
    assert p.var == pytest.approx([16.0])
    p.tell(np.array([[3.0]]), np.array([0.5]))  # the 4 is gone; the best of 1 and 3 is 3
    assert p.mean == pytest.approx([2.5])
    assert p.var == pytest.approx([1.0])


def test_equal_results_count_in_their_order():
    """As a stable sort has them, whatever place in the ring they have."""
    p = acem((0.0,), memory=2, damp=0.0, damp_limit=0.0)
    p.tell(np.array([[8.0], [1.0], [5.0]]), np.zeros(3))
    # First 8 before 1, then 1 before 5.
    assert p.mean == pytest.approx([4.0 + (1.0 - 4.0) / 2])
