"""The genetic population: its operators change the behaviour that they should, in the frequencies
and sizes of the paper.
"""

import numpy as np
import pytest
from scipy import stats

from erl.populations.genetic import GeneticPopulation


def population(n=5, actions=4, features=6, seed=0, **settings):
    heads = np.random.default_rng(99).normal(size=(n, actions, features + 1))
    return GeneticPopulation(heads, np.random.default_rng(seed), **settings)


def behaviour(head, states):
    """Actions (states, actions) of a policy."""
    return np.tanh(states @ head[:, :-1].T + head[:, -1])


def test_crossover_swaps_whole_actions_and_nothing_else():
    p, states = population(), np.random.default_rng(1).normal(size=(50, 6))
    counts, directions = [], []
    for _ in range(2000):
        one, two = p.heads[0].copy(), p.heads[1].copy()
        before = behaviour(one, states), behaviour(two, states)
        n = p.crossover(one, two)
        after = behaviour(one, states), behaviour(two, states)
        moved = 0
        for action in range(4):
            for mine, other in ((0, 1), (1, 0)):
                same = (after[mine][:, action] == before[mine][:, action]).all()
                others = (after[mine][:, action] == before[other][:, action]).all()
                assert same != others  # each action is one parent's, for every state, bias and all
                moved += others
                if others:
                    directions.append(mine)
        assert moved <= n
        counts.append(n)
    # Swaps are uniform in [0, 2 * actions), and go either way equally often.
    assert stats.chisquare(np.bincount(counts, minlength=8)).pvalue > 1e-3
    assert stats.binomtest(int(np.sum(directions)), len(directions)).pvalue > 1e-3


def test_mutation_has_the_papers_frequencies_and_sizes():
    p = population(features=100, frac=0.7, prob_reset_and_sup=0.05)
    head = p.heads[0].copy()
    sizes, ways = {"normal": [], "super": [], "reset": []}, []
    for _ in range(3000):
        mutated = head.copy()
        done = p.mutate(mutated)
        ways += done
        assert (mutated[:, -1] == head[:, -1]).all()  # biases stay
        for row, before, way in zip(mutated[:, :-1], head[:, :-1], done):
            changed = row != before
            assert changed.sum() == 70
            if way == "reset":
                sizes[way].append(row[changed][0])
            else:
                sizes[way].append(((row - before) / np.abs(before))[changed][0])
    observed = [ways.count(w) for w in ("super", "reset", "normal")]
    assert stats.chisquare(observed, np.array([0.05, 0.05, 0.9]) * len(ways)).pvalue > 1e-3
    for way, std in (("normal", 0.1), ("super", 10.0), ("reset", 1.0)):
        assert stats.kstest(sizes[way], stats.norm(0, std).cdf).pvalue > 1e-3


def test_weights_are_clipped():
    p = population(prob_reset_and_sup=0.5)
    head = np.full((4, 7), 9e5, dtype=np.float32)
    for _ in range(50):
        p.mutate(head)
    assert np.abs(head[:, :-1]).max() <= 1e6
    assert (head[:, -1] == 9e5).all()


def test_each_is_mutated_in_nine_tenths_of_three_quarters_of_generations():
    p, n, mutated, at_risk = population(), 4000, 0, 0
    for _ in range(n):
        v = p.evolve(np.arange(5.0))
        mutated += len(v.mutated)
        at_risk += 5 - len(v.kept)
        assert not set(v.kept) & set(v.mutated)
    assert stats.binomtest(mutated, at_risk, 0.9 * 0.75).pvalue > 1e-3


@pytest.mark.parametrize(("n", "n_elites"), [(3, 1), (4, 2), (5, 1), (10, 2), (7, 7)])
def test_a_generation(n, n_elites):
    """Whoever is what; the best one survives unchanged; who is neither made anew nor mutated
    stays.
    """
    p = population(n, n_elites=n_elites)
    rng = np.random.default_rng(5)
    for _ in range(200):
        before, fitness = p.heads.copy(), rng.normal(size=n)
        v = p.evolve(fitness)
        after = p.heads
        best = list(np.argsort(-fitness)[:n_elites])
        assert list(v.elites) == best
        assert sorted({*v.elites, *v.selected, *v.discarded}) == list(range(n))
        assert not set(v.discarded) & {*v.elites, *v.selected}
        assert len(set(v.kept)) == len(v.kept) == len(best)
        for place, elite in zip(v.kept, v.elites):
            assert (after[place] == before[elite]).all()
        changed = {*v.kept, *v.mutated, *(i for pair in v.crossovers for i in pair)}
        for i in set(range(n)) - changed:
            assert (after[i] == before[i]).all()
        assert set(sum(v.crossovers, ())) <= set(v.discarded)
        assert sum(v.operators.values()) == 4 * len(v.mutated)


def test_tournaments_of_three():
    """The best of five wins a tournament of three with probability 1 - (4/5)^3; a winner counts
    once among four tournaments.
    """
    p, n, wins = population(), 4000, np.zeros(5)
    for _ in range(n):
        wins[list(p.evolve(np.arange(5.0)[::-1]).selected)] += 1
    lose = 1 - (((5 - np.arange(5)) / 5) ** 3 - ((4 - np.arange(5)) / 5) ** 3)
    for won, chance in zip(wins, 1 - lose**4):
        assert stats.binomtest(int(won), n, chance).pvalue > 1e-3


def test_same_seed_same_generations_and_states_come_back():
    one, two, third = population(seed=1), population(seed=1), population(seed=2)
    for k in range(5):
        if k == 3:
            third.set_state(one.get_state())
        for p in (one, two, third) if k >= 3 else (one, two):
            p.evolve(np.cos(np.arange(5.0) * k))
        assert (one.heads == two.heads).all()
    assert (one.heads == third.heads).all()


def test_the_smallest_mutation_changes_one_weight():
    for frac, changed in ((0.001, 1), (0.0, 0)):
        p = population(frac=frac, prob_reset_and_sup=0.0)
        head = p.heads[0].copy()
        p.mutate(head)
        assert ((head != p.heads[0]).sum(1) == changed).all()
