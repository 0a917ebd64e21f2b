"""OpenAI-ES: the estimate is the gradient, and sigma enters once."""

import numpy as np
import pytest

from erl.populations.openai_es import OpenAIES, ranks, standardised


def es(mean=(0.0, 0.0), seed=0, **settings):
    return OpenAIES(np.array(mean), np.random.default_rng(seed), **settings)


def test_a_step_by_hand():
    """theta + lr / (n sigma) sum of standardised fitness times noise."""
    p = es((1.0, 2.0), sigma=0.5, learning_rate=0.1)
    noise = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [0.0, 0.0]])
    p.tell(np.array([1.0, 2.0]) + 0.5 * noise, np.array([4.0, 0.0, 0.0, 4.0]))
    # Standardised: 1, -1, -1, 1. Sum: (1, 0) - (0, 2) - (-1, 1) = (2, -3).
    assert p.mean == pytest.approx([1.0 + 0.1 * 2.0 / (4 * 0.5), 2.0 - 0.1 * 3.0 / (4 * 0.5)])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("sigma", [0.02, 0.5])
def test_the_estimate_agrees_with_the_gradient_of_a_quadratic(mirrored, sigma):
    """Of the expected fitness it is the gradient at the mean, whatever sigma is: within four
    standard errors in every gene.
    """
    rng = np.random.default_rng(7)
    dim, n, repeats = 6, 50, 400
    a = rng.normal(size=(dim, dim))
    a, b, mean = a + a.T, rng.normal(size=dim), rng.normal(size=dim)
    p = es(mean, seed=1, sigma=sigma, mirrored=mirrored)
    estimates = []
    for _ in range(repeats):
        x = p.ask(n)
        estimates.append(p.gradient(x, 0.5 * np.einsum("ni,ij,nj->n", x, a, x) + x @ b))
    estimates = np.array(estimates)
    error = estimates.std(0, ddof=1) / np.sqrt(repeats)
    assert (np.abs(estimates.mean(0) - (a @ mean + b)) < 4 * error).all()
    if mirrored and sigma == 0.02:
        # Pairs cancel the fitness of the mean, which is most of the noise here.
        plain = es(mean, seed=1, sigma=sigma)
        x = [plain.ask(n) for _ in range(repeats)]
        others = [plain.gradient(v, 0.5 * np.einsum("ni,ij,nj->n", v, a, v) + v @ b) for v in x]
        assert estimates.std(0).mean() < 0.2 * np.std(others, axis=0).mean()


def test_sigma_enters_once():
    """On a linear function the standardised fitness is the same for every sigma, so the step is
    proportional to 1 / sigma.
    """
    steps = {}
    for sigma in (0.01, 0.1, 1.0):
        p = es(np.zeros(5), sigma=sigma, learning_rate=1.0)
        x = p.ask(40)
        p.tell(x, x @ np.arange(5.0))
        steps[sigma] = p.mean
    assert steps[0.01] == pytest.approx(10.0 * steps[0.1])
    assert steps[0.1] == pytest.approx(10.0 * steps[1.0])


def test_rank_shaping_looks_at_the_order_alone():
    x = np.random.default_rng(0).normal(size=(20, 3))
    means = []
    for transform in (np.asarray, np.exp, lambda f: 1e9 * f + 3.0):
        p = es(np.zeros(3), rank_shaping=True)
        p.tell(x, transform(x[:, 0]))
        means.append(p.mean)
    assert (means[0] == means[1]).all()
    assert (means[0] == means[2]).all()


def test_ranks():
    assert ranks(np.array([3.0, -1.0, 10.0])) == pytest.approx([0.0, -0.5, 0.5])
    assert ranks(np.array([5.0, 5.0, 1.0, 7.0])) == pytest.approx([0.0, 0.0, -0.5, 0.5])
    assert ranks(np.array([2.0, 2.0])) == pytest.approx([0.0, 0.0])
    assert sum(ranks(np.random.default_rng(0).integers(4, size=50))) == pytest.approx(0.0)


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
def test_standardised(scale):
    z = standardised(scale * np.array([1.0, 2.0, 4.0]))
    assert z.mean() == pytest.approx(0.0, abs=1e-12)
    assert z.std() == pytest.approx(1.0)
    assert z[2] > z[1] > z[0]


@pytest.mark.parametrize("rank_shaping", [False, True])
def test_where_all_are_equal_there_is_no_step(rank_shaping):
    p = es(rank_shaping=rank_shaping)
    p.tell(p.ask(7), np.full(7, 0.1))
    assert (p.mean == 0.0).all()


def test_one_solution_has_nothing_to_compare_with():
    p = es()
    with pytest.raises(ValueError, match="at least 2 solutions"):
        p.tell(p.ask(1), np.zeros(1))


def test_mirrored_pairs():
    p = es((1.0, -1.0), mirrored=True)
    drawn = p.ask(8)
    assert drawn[:4] + drawn[4:] == pytest.approx(np.tile([2.0, -2.0], (4, 1)))
