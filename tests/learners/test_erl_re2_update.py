"""ERL-Re²'s update against the plain one by autograd: values, gradients, whole runs of updates."""

import math

import pytest
import torch
from plain_erl_re2 import Plain, _modules

from erl.errors import UserError
from erl.learners.core.replay import Batch
from erl.learners.erl_re2.settings import Re2Settings
from erl.learners.erl_re2.update import Draws, TwoScale, act, new_heads
from erl.networks.products import product

OBSERVATIONS, ACTIONS, BATCH = 5, 3, 32


def settings(**config):
    return Re2Settings.from_learner_config(config, "HalfCheetah-v4")


def make(seed=0, **config):
    """Both implementations with the same weights, which have moved since their initialisation."""
    s = settings(**config)
    fast = TwoScale(s, OBSERVATIONS, ACTIONS, torch.Generator().manual_seed(seed))
    noise = torch.Generator().manual_seed(seed + 1)
    for network in fast.networks:
        network.values += 0.02 * torch.randn(network.values.shape, generator=noise)
        network.target += 0.02 * torch.randn(network.values.shape, generator=noise)
    plain = Plain(s, OBSERVATIONS, ACTIONS)
    plain.load(fast)
    return s, fast, plain


def batches(n, s, seed=3, evolving=True, size=BATCH):
    g = torch.Generator().manual_seed(seed)
    heads = new_heads(4, ACTIONS, 300, g)
    for k in range(n):
        observations = torch.randn(size, OBSERVATIONS, generator=g)
        actions = torch.rand(size, ACTIONS, generator=g) * 2 - 1
        next_observations = torch.randn(size, OBSERVATIONS, generator=g)
        rewards = torch.randn(size, 1, generator=g)
        not_done = (torch.rand(size, 1, generator=g) > 0.2).float()
        rows = torch.cat([observations, actions, rewards, not_done], 1)
        batch = Batch(rows, next_observations, OBSERVATIONS, ACTIONS)
        noise = torch.randn(size, ACTIONS, generator=g)
        valued = heads[k % 4] if s.EA else None
        yield batch, Draws(noise, valued, heads[1 : 1 + s.K] if s.EA and evolving else None)


CASES = {
    "published": {},
    "K": {"K": 3, "actor_alpha": 0.7, "EA_actor_alpha": 0.3, "learning_rate": 3e-4},
    "of representation": {"OFF_TYPE": 0},
    "DDPG": {"algorithm": "DDPG"},
    "without evolution": {"EA": False},
    "not normalised": {"use_ln": False},
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_losses(case):
    s, fast, plain = make(**CASES[case])
    batch, draws = next(batches(1, s))
    policy_value_loss, critic_loss = plain.losses(batch, draws)
    rl, _ = plain.policy_losses(batch, draws)
    # The delayed part sees critics that have moved; both implementations are asked before.
    statistics = fast.update(batch, draws, improve=False)
    torch.testing.assert_close(
        statistics["critic_loss"], critic_loss.detach(), rtol=1e-4, atol=1e-5
    )
    if s.EA:
        torch.testing.assert_close(
            statistics["policy_value_loss"], policy_value_loss.detach(), rtol=1e-4, atol=1e-5
        )
    s, fast, plain = make(**CASES[case])
    torch.testing.assert_close(
        fast._improve(batch, draws.representation_heads)["actor_loss"],
        rl.detach(),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    """Of every tensor, in single precision against autograd's; those of the shared half at weights
    that have not moved.
    """
    s, fast, plain = make(**CASES[case])
    batch, draws = next(batches(1, s))
    policy_value_loss, critic_loss = plain.losses(batch, draws)
    rl, shared = plain.policy_losses(batch, draws)
    wanted = {
        0: torch.autograd.grad(shared, plain.parameters()[0], retain_graph=True),
        1: torch.autograd.grad(rl, plain.parameters()[1]),
        2: torch.autograd.grad(critic_loss, plain.parameters()[2]),
    }
    if s.EA:
        wanted[3] = torch.autograd.grad(policy_value_loss, plain.parameters()[3])
    kept = [n.values.clone() for n in fast.networks]
    fast._learn_critic(batch, draws.noise)
    if s.EA:
        fast._learn_policy_value(batch, draws.value_head)
    for network, values in zip(fast.networks, kept):
        network.values.copy_(values)
    fast._improve(batch, draws.representation_heads)
    found = plain.flats(fast, [n.grads for n in fast.networks])
    for k, grads in wanted.items():
        # The step has shortened long ones.
        factor = min(1.0, 10.0 / torch.cat([g.flatten() for g in grads]).norm().item())
        for mine, theirs in zip(found[k], (factor * g for g in grads), strict=True):
            scale = theirs.abs().max()
            assert scale > 0
            torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=2e-3)


@pytest.fixture
def double(monkeypatch):
    """Double precision, and no epsilon beside the deviation: Adam makes steps of rounding errors
    where a gradient is almost zero.
    """
    monkeypatch.setattr("plain_erl_re2.STD_EPS", 0.0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES)
def test_many_updates_are_the_plain_ones(case):
    s, fast, plain = make(**CASES[case])
    for k, (batch, draws) in enumerate(batches(12, s)):
        fast.update(batch, draws, k % s.delay == 0)
        plain.update(batch, draws, k % s.delay == 0)
    networks = fast.networks if s.EA else fast.networks[:-1]
    for flats, theirs in (
        ([n.values for n in networks], plain.parameters()),
        ([n.target for n in networks], plain.target_parameters()),
    ):
        mine = plain.flats(fast, [*flats, fast.networks[-1].values][:4])
        for m, t in zip(mine, theirs[: len(networks)]):
            for a, b in zip(m, t, strict=True):
                # Twelve steps of Adam move a weight by about a hundredth.
                torch.testing.assert_close(a, b.data, rtol=0, atol=1e-7)


def test_without_evolution_the_population_plays_no_part():
    s, fast, _ = make(EA=False)
    other = TwoScale(
        settings(EA=False, pr=8), OBSERVATIONS, ACTIONS, torch.Generator().manual_seed(9)
    )
    for mine, theirs in zip(fast.networks[:3], other.networks[:3]):
        theirs.set_state(mine.get_state())
    before = fast.policy_value.values.clone()
    for k, (batch, draws) in enumerate(batches(6, s)):
        fast.update(batch, draws, k % 2 == 0)
        other.update(batch, draws, k % 2 == 0)
    assert all(
        torch.equal(a.values, b.values) for a, b in zip(fast.networks[:3], other.networks[:3])
    )
    assert torch.equal(fast.policy_value.values, before)


def test_before_evolution_begins_the_representation_follows_the_rl_agent_alone():
    s, fast, plain = make()
    batch, draws = next(batches(1, s, evolving=False))
    assert draws.representation_heads is None
    assert draws.value_head is not None
    rl, shared = plain.policy_losses(batch, draws)
    assert shared.item() == rl.item()
    fast._improve(batch, draws.representation_heads)
    (theirs,) = torch.autograd.grad(rl, [plain.parameters()[0][0]])
    torch.testing.assert_close(
        _modules(fast._z, fast.representation.grads[0])[0][0], theirs, rtol=1e-2, atol=1e-5
    )


def test_one_encoding_for_a_batch_is_an_encoding_for_every_row():
    s, fast, plain = make()
    batch, _ = next(batches(1, s))
    head = new_heads(1, ACTIONS, 300, torch.Generator().manual_seed(5))[0]
    x = torch.cat([batch.observations, batch.actions], 1)
    values = fast._v.forward(x, head)[1].output
    with torch.no_grad():
        theirs = torch.stack([v(x, head) for v in plain.pevfa])
    torch.testing.assert_close(values, theirs, rtol=1e-4, atol=1e-5)


def test_value_of_many_policies_is_that_of_each():
    _, fast, plain = make()
    observations = torch.randn(4, OBSERVATIONS)
    heads = new_heads(4, ACTIONS, 300, torch.Generator().manual_seed(5))
    with torch.no_grad():
        for k, value in enumerate(fast.value_of(observations, heads)):
            one = observations[k : k + 1]
            x = torch.cat([one, act(heads[k], plain.z(one))], 1)
            assert value.item() == pytest.approx(
                min(v(x, heads[k]).item() for v in plain.pevfa), abs=1e-5
            )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [{}, {"OFF_TYPE": 0}, {"use_ln": False}])
def test_what_bfloat16_rounds(monkeypatch, precision, config):
    asked = []

    def spy(a, b, low=False, bias=None, out=None):
        if min(*a.shape[-2:], b.shape[-1]) >= 128:
            asked.append(low)
        return product(a, b, low, bias, out)

    monkeypatch.setattr("erl.networks.products.product", spy)
    s, fast, _ = make(precision=precision, **config)
    batch, draws = next(batches(1, s, size=128))
    fast.update(batch, draws, improve=True)
    assert len(asked) > 20 - 8 * (not s.use_ln)  # twins without normalisation are one product
    assert set(asked) == {precision == "bf16"}


def test_initial_weights():
    fast = TwoScale(settings(), OBSERVATIONS, ACTIONS, torch.Generator().manual_seed(0))
    bound = 300**-0.5
    assert 0.09 * bound < fast.rl_head.abs().max() <= 0.1 * bound
    for network in (fast._q, fast._v.value):
        for layers, _ in network.members:
            assert 0.09 * bound < layers[-1].weight.abs().max() <= 0.1 * bound
    heads = new_heads(5, ACTIONS, 300, torch.Generator().manual_seed(0))
    assert 0.99 * bound < heads.abs().max() <= bound
    assert all(torch.equal(n.values, n.target) for n in fast.networks)


def test_state_comes_back():
    s, fast, _ = make()
    other = TwoScale(s, OBSERVATIONS, ACTIONS, torch.Generator().manual_seed(7))
    for batch, draws in batches(2, s):
        fast.update(batch, draws, True)
    other.set_state(fast.get_state())
    for k, (batch, draws) in enumerate(batches(4, s, seed=8)):
        fast.update(batch, draws, k % 2 == 0)
        other.update(batch, draws, k % 2 == 0)
    assert all(torch.equal(a.values, b.values) for a, b in zip(fast.networks, other.networks))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"popsize": 5}, "did you mean pop_size"),
        ({"pop_size": 2}, "pop_size must be at least 3"),
        ({"pop_size": 2.5}, "whole number"),
        ({"theta": 1.5}, "theta must be a number from 0 to 1, not 1.5"),
        ({"theta": math.nan}, "theta must be a number from 0 to 1, not nan"),
        ({"EA": 1}, "true or false"),
        ({"EA": False, "RL": False}, "without EA and RL"),
        ({"K": 7}, "at most the number of policies, 6"),
        ({"prob_reset_and_sup": 0.6}, "prob_reset_and_sup must be a number from 0 to 0.5, not 0.6"),
        ({"frac_frames_train": 0.0}, "above 0"),
        ({"learning_rate": 0}, "above 0"),
        ({"precision": "bf16", "batch_size": 127}, "at least 128 where precision is bf16"),
        ({"elite_fraction": 1.0}, "less than the whole population"),
        ({"buffer_size": 1000}, "learning_starts must be at most buffer_size, 1000, not 5000"),
        ({"algorithm": "SAC"}, "TD3 or DDPG"),
        ({"precision": "fp16"}, "fp32 or bf16"),
        ({"device": "abacus"}, "knows no device"),
        ({"device": "meta"}, "no device 'meta'"),
    ],
)
def test_settings_that_cannot_be(config, says):
    with pytest.raises(UserError, match=says):
        settings(**config)


def test_defaults_by_environment():
    ant, cheetah = (Re2Settings.from_learner_config({}, f"{e}-v5") for e in ("Ant", "HalfCheetah"))
    assert (ant.theta, ant.time_steps, ant.frac) == (0.5, 200, 0.7)
    assert (cheetah.theta, cheetah.time_steps, cheetah.frac) == (0.3, 200, 1.0)
    assert Re2Settings.environment_defaults("module:Walker2d-v4") == {
        "theta": 0.8,
        "time_steps": 50,
        "frac": 0.2,
        "sync_period": 1,
    }
    pendulum, other = map(Re2Settings.environment_defaults, ("Pendulum-v1", "Nothing-v0"))
    assert pendulum == other
    assert Re2Settings.from_learner_config({"theta": 1.0}, "Ant-v4").theta == 1.0
