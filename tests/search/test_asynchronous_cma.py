"""The optimiser without a study: what it is told, when it begins anew, and what it makes of late
results.
"""

import math

import numpy as np
import pytest
from cmaes import CMA, get_warm_start_mgd

from erl.search.asynchronous_cma import (
    GROWTH,
    SIGMA,
    TOLERANCE,
    AsynchronousCMA,
    Result,
    Start,
    draw_seed,
    promising,
)

BOUNDS = np.tile([0.0, 1.0], (3, 1))


def sphere(x):
    return float(np.sum((x - 0.3) ** 2))


def drive(optimizer, n, objective, first=0, in_flight=1):
    """One worker; gives the run of every proposal."""
    runs = []
    for number in range(first, first + n):
        x = optimizer.ask(number)
        runs.append(optimizer.run)
        optimizer.tell(Result(number, optimizer.run, x, objective(x)), in_flight)
    return runs


def told_to(monkeypatch):
    """Every population that a CMA is told from now on, as (points, values)."""
    populations = []
    tell = CMA.tell

    def noted(self, solutions):
        populations.append(list(solutions))
        tell(self, solutions)

    monkeypatch.setattr(CMA, "tell", noted)
    return populations


def lengths(runs):
    return [runs.count(run) for run in range(max(runs) + 1)]


def test_draws_and_constants_are_those_of_earlier_versions():
    """Or a stored evolution would go on as another one."""
    assert draw_seed(5, "trial", 3) == 3671540305
    assert draw_seed(5, "restart", 1) == 4068796671
    assert draw_seed(5, "regime", 1) == 561009821
    assert draw_seed(5, "trial", 3, "sr") == 2267195712
    assert (GROWTH, SIGMA, TOLERANCE) == ((10, 20, 40, 80), 1 / 6, 3e-3)


def test_ipop_doubles_and_every_run_converges():
    optimizer = AsynchronousCMA(3, 7, seed=1)
    runs = drive(optimizer, 4000, sphere)
    assert [plan.popsize for plan in optimizer._plans] == [
        7 * 2**k for k in range(len(optimizer._plans))
    ]
    assert len(optimizer._plans) >= 3
    assert all(length % (7 * 2**run) == 0 for run, length in enumerate(lengths(runs)[:-1]))


def test_a_run_ends_where_its_deviations_are_below_the_tolerance():
    optimizer = AsynchronousCMA(3, 7, seed=1)
    number = 0
    while optimizer.run == 0:
        before = optimizer._cma._sigma * np.sqrt(np.diag(optimizer._cma._C))
        number += len(drive(optimizer, 7, sphere, number))
    assert before.max() > TOLERANCE
    assert before.max() < 3 * TOLERANCE
    assert np.array_equal(optimizer._cma._C, np.eye(3))
    assert optimizer._cma._sigma == SIGMA


def test_bipop_balances_small_and_large_runs():
    optimizer = AsynchronousCMA(3, 7, seed=5, restarts="bipop")
    drive(optimizer, 12_000, sphere)
    plans, spent = optimizer._plans, optimizer._spent
    assert (plans[1].large, plans[1].popsize, plans[2].large) == (True, 14, False)
    large = [plan for plan in plans[1:] if plan.large]
    small = [(plan, n) for plan, n in zip(plans, spent) if not plan.large]
    assert len(large) >= 2
    assert len(small) >= 2
    assert [plan.popsize for plan in large] == [7 * 2 ** (k + 1) for k in range(len(large))]
    assert all(plan.sigma == SIGMA for plan in large)
    assert len({plan.sigma for plan, _ in small}) == len(small)
    for plan, n in small:
        assert SIGMA / 100 <= plan.sigma <= SIGMA
        assert 7 <= plan.popsize <= large[-1].popsize / 2
        assert n < plan.limit + plan.popsize  # it may end the generation that it is in
    # Each run that began was of the regime that had spent less.
    for k in range(2, len(plans)):
        sums = [
            sum(n for p, n in zip(plans[1:k], spent[1:k]) if p.large == size)
            for size in (True, False)
        ]
        assert plans[k].large == (sums[0] <= sums[1])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "objective", [sphere, lambda x: 1.0, lambda x: -float(x[0]), lambda x: 1e300]
)
@pytest.mark.parametrize("restarts", ["ipop", "bipop", "none"])
def test_it_goes_on_for_ever_and_stays_within(restarts, objective):
    optimizer = AsynchronousCMA(3, 4, seed=0, restarts=restarts)
    runs = drive(optimizer, 3000, objective)
    assert (max(runs) == 0) == (restarts == "none")
    draws = np.array([optimizer.ask(k) for k in range(50)])
    assert np.isfinite(draws).all()
    assert ((draws >= 0) & (draws <= 1)).all()


@pytest.mark.parametrize("restarts", ["ipop", "bipop", "none"])
@pytest.mark.parametrize("in_flight", [1, 90])
@pytest.mark.parametrize(
    "start",
    [None, Start(np.full(3, 0.5), 0.1, np.array([[2, 1, 0.1], [1, 2, 0.3], [0.1, 0.3, 1]]))],
)
def test_drawing_changes_nothing(start, in_flight, restarts):
    """A replay that draws nothing between its results stays in the same distribution, to the last
    bit.
    """
    drawn, replayed = (AsynchronousCMA(3, 7, 3, restarts, start) for _ in range(2))
    for number in range(1500):
        x = drawn.ask(number)
        for optimizer in (drawn, replayed):
            optimizer.tell(Result(number, drawn.run, x, sphere(x)), in_flight)
    assert drawn.run == replayed.run
    assert (drawn.run == 0) == (restarts == "none")
    assert np.array_equal(drawn.ask(1500), replayed.ask(1500))


@pytest.mark.parametrize(
    ("in_flight", "population", "window"), [(1, 7, 7), (14, 7, 7), (20, 7, 10), (90, 21, 45)]
)
def test_with_many_workers_the_best_of_a_window_are_told(
    in_flight, population, window, monkeypatch
):
    populations = told_to(monkeypatch)
    optimizer = AsynchronousCMA(3, 7, seed=0)
    points = np.random.default_rng(0).random((63, 3))
    for number, x in enumerate(points):
        optimizer.tell(Result(number, 0, x, sphere(x)), in_flight)
    assert len(populations[-1]) == population
    latest = points[-window:]
    best = latest[np.argsort([sphere(x) for x in latest])][:population]
    np.testing.assert_array_equal([x for x, _ in populations[-1]], best)
    assert optimizer.ranked == 63


def test_the_population_grows_with_the_run_and_never_shrinks():
    optimizer = AsynchronousCMA(3, 7, seed=0)
    sizes = []
    for k in range(80):
        # Flight after flight of good and bad luck: it neither converges nor stagnates.
        drive(
            optimizer, 7, lambda x: float(np.random.default_rng(x.view(np.uint64)).random()), 7 * k
        )
        sizes.append(optimizer._cma.population_size)
    assert sizes == [7 * (1 + sum(k + 1 >= g for g in GROWTH)) for k in range(80)]
    optimizer = AsynchronousCMA(3, 7, seed=0)
    drive(optimizer, 42, sphere, in_flight=90)
    drive(optimizer, 7, sphere, 42, in_flight=1)
    assert optimizer._cma.population_size == 21


def test_pruned_trials_rank_below_completed_ones_and_by_how_long_they_lived(monkeypatch):
    populations = told_to(monkeypatch)
    optimizer = AsynchronousCMA(3, 7, seed=0)
    x = np.random.default_rng(0).random((7, 3))
    results = [
        Result(0, 0, x[0], -5.0, pruned_at=-1),
        Result(1, 0, x[1], -5.0, pruned_at=2),
        Result(2, 0, x[2], -9.0, pruned_at=2),
        Result(3, 0, x[3], 3.0),
        Result(4, 0, x[4], 9.0, pruned_at=8),
        Result(5, 0, x[5], 2.0),
        Result(6, 0, x[6], 2.0),
    ]
    for result in results:
        optimizer.tell(result, 1)
    [population] = populations
    np.testing.assert_array_equal([p for p, _ in population], x[[5, 6, 3, 4, 2, 1, 0]])
    assert [value for _, value in population] == [2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0]


def test_a_start_is_what_the_first_run_begins_with():
    start = Start(np.array([0.2, 0.7, 0.5]), 0.05, np.diag([1.0, 4.0, 0.25]))
    optimizer = AsynchronousCMA(3, 7, seed=0, start=start)
    draws = np.array([optimizer.ask(k) for k in range(2000)])
    np.testing.assert_allclose(draws.mean(0), start.mean, atol=0.01)
    np.testing.assert_allclose(draws.std(0), [0.05, 0.1, 0.025], rtol=0.1)
    drive(optimizer, 3000, sphere)
    assert optimizer.run > 0


def test_promising_solutions_are_the_library_s_best_tenth():
    rng = np.random.default_rng(0)
    solutions = [(x, sphere(x)) for x in rng.random((100, 3))]
    mean, sigma, cov = get_warm_start_mgd(solutions, gamma=0.1)
    start = promising(solutions)
    np.testing.assert_array_equal(start.mean, mean)
    np.testing.assert_array_equal(start.cov, cov)
    assert start.sigma == sigma
    # Of few solutions, dim + 1 and not the single best.
    few = sorted(solutions[:10], key=lambda s: s[1])
    np.testing.assert_allclose(
        promising(solutions[:10]).mean, np.mean([x for x, _ in few[:4]], axis=0)
    )
    assert math.isfinite(promising(solutions[:2]).sigma)
    # The number is not lost in a division: 6 / 47 * 47 is less than 6 in floating point numbers.
    points = [(x, sphere(x)) for x in rng.random((47, 5))]
    best = sorted(points, key=lambda s: s[1])[:6]
    np.testing.assert_allclose(promising(points).mean, np.mean([x for x, _ in best], axis=0))
