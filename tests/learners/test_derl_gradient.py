"""DERL's gradient half against plain networks with autograd, and its values against sums."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from erl.learners.core.replay import ReplayBuffer
from erl.learners.derl.gradient import GradientHalf, n_step
from erl.learners.derl.settings import DERLSettings

OBSERVATIONS, BATCH = 4, 32


def network(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, outputs)
    ).double()


def fill(module, flat):
    """Parameters that lie as this project has them: a row for each input."""
    begin = 0
    for layer in module:
        if isinstance(layer, nn.Linear):
            for p in (layer.weight, layer.bias):
                part = flat[begin : begin + p.numel()].double()
                p.data.copy_(part.view(*p.shape[::-1]).t() if p.dim() == 2 else part)
                begin += p.numel()
    return module


def flat(*modules):
    """The inverse."""
    return torch.cat(
        [p.detach().t().reshape(-1) for module in modules for p in module.parameters()]
    ).float()


class Plain:
    """The same updates in a few lines of autograd, in double precision."""

    def __init__(self, half, settings, actions, discrete):
        self.s, self.discrete = settings, discrete
        self.pi = fill(network(OBSERVATIONS, actions), half.policy.values[0])
        sizes = (OBSERVATIONS, actions) if discrete else (OBSERVATIONS + actions, 1)
        values = half.critic.values[0].view(2, -1)
        self.q = [fill(network(*sizes), row) for row in values]
        self.pi_target, self.q_target = copy.deepcopy(self.pi), copy.deepcopy(self.q)
        self.pi_optimiser = torch.optim.Adam(self.pi.parameters(), settings.lr_policy)
        self.q_optimiser = torch.optim.Adam(
            [p for q in self.q for p in q.parameters()], settings.lr_value
        )

    def update(self, k, batch, noise):
        s, a, s2, r, on = (
            t.double()
            for t in (
                batch.observations,
                batch.actions,
                batch.next_observations,
                batch.rewards,
                batch.not_done,
            )
        )
        with torch.no_grad():
            if self.discrete:
                pi = torch.distributions.Categorical(logits=self.pi_target(s2))
                lowest = torch.minimum(*(q(s2) for q in self.q_target))
                v = (pi.probs * lowest).sum(1) + self.s.ent_coef * pi.entropy()
                y = r + self.s.gamma * on * v[:, None]
            else:
                noise = (0.2 * noise.double()).clamp(-0.5, 0.5)
                a2 = (self.pi_target(s2).tanh() + noise).clamp(-1, 1)
                pairs = torch.cat([s2, a2], 1)
                y = r + self.s.gamma * on * torch.minimum(*(q(pairs) for q in self.q_target))
        if self.discrete:
            predicted = [q(s).gather(1, a.long()) for q in self.q]
        else:
            predicted = [q(torch.cat([s, a], 1)) for q in self.q]
        loss = sum(nn.functional.mse_loss(p, y) for p in predicted)
        self.q_optimiser.zero_grad()
        loss.backward()
        self.q_optimiser.step()
        if not self.discrete and k % 2:
            return
        if self.discrete:
            pi = torch.distributions.Categorical(logits=self.pi(s))
            lowest = torch.minimum(*(q(s) for q in self.q)).detach()
            gain = (pi.probs * lowest).sum(1) + self.s.ent_coef * pi.entropy()
        else:
            gain = self.q[0](torch.cat([s, self.pi(s).tanh()], 1))
        self.pi_optimiser.zero_grad()
        (-gain.mean()).backward()
        self.pi_optimiser.step()
        pairs = zip([*self.q, self.pi], [*self.q_target, self.pi_target])
        for module, target in pairs:
            for p, t in zip(module.parameters(), target.parameters()):
                t.data.lerp_(p.data, self.s.tau)


@pytest.mark.parametrize(("actions", "discrete"), [(3, True), (2, False)])
def test_updates_are_those_of_autograd(actions, discrete):
    settings = DERLSettings(hidden=(16, 8), lr_policy=1e-3, lr_value=3e-3, ent_coef=0.2, tau=0.1)
    half = GradientHalf(settings, OBSERVATIONS, actions, discrete, torch.Generator().manual_seed(0))
    plain = Plain(half, settings, actions, discrete)
    rng, n = np.random.default_rng(1), 200
    buffer = ReplayBuffer(n, OBSERVATIONS, 1 if discrete else actions)
    chosen = rng.integers(actions, size=(n, 1)) if discrete else rng.uniform(-1, 1, (n, actions))
    buffer.add(
        rng.normal(size=(n, OBSERVATIONS)),
        chosen,
        rng.normal(size=(n, OBSERVATIONS)),
        rng.normal(size=n),
        rng.random(n) < 0.2,
    )
    generator = torch.Generator().manual_seed(2)
    for k in range(12):
        places = torch.randint(n, (BATCH,), generator=generator)
        noise = torch.randn(BATCH, actions, generator=generator)
        half.update(k, buffer.batch(places), noise)
        plain.update(k, buffer.batch(places), noise)
        for mine, theirs in (
            (half.policy.values, flat(plain.pi)),
            (half.policy.target, flat(plain.pi_target)),
            (half.critic.values, flat(*plain.q)),
            (half.critic.target, flat(*plain.q_target)),
        ):
            assert mine[0].numpy() == pytest.approx(theirs.numpy(), rel=2e-3, abs=2e-4)


def test_theta_is_a_copy_both_ways():
    half = GradientHalf(DERLSettings(), 3, 1, False, torch.Generator().manual_seed(0))
    theta = half.theta
    theta[:] = 0.0
    assert (half.theta != 0.0).any()
    half.theta = theta
    theta[:] = 1.0
    assert (half.theta == 0.0).all()


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("terminated", [True, False])
def test_transitions_of_several_steps(n, length, terminated):
    """Targets from the buffer are sums of rewards and what follows them, written out."""
    rng, gamma = np.random.default_rng(0), 0.9
    observations = np.arange(length + 1.0)[:, None]
    actions, rewards = rng.normal(size=(length, 1)), rng.normal(size=length)
    ends = np.zeros(length)
    ends[-1] = terminated
    buffer = ReplayBuffer(100, 1, 1)
    episode = observations[:-1], actions, observations[1:], rewards, ends
    for chain in n_step(episode, n, gamma):
        buffer.add(*chain)
    assert len(buffer) == length
    batch = buffer.batch(torch.arange(length))
    targets = batch.targets(100.0 + batch.next_observations, gamma)
    for row in range(length):
        t = int(batch.observations[row, 0])
        m = min(n, length - t)
        expected = sum(gamma**k * rewards[t + k] for k in range(m))
        if t + m < length or not terminated:
            expected += gamma**m * (100.0 + t + m)
        assert targets[row].item() == pytest.approx(expected, abs=1e-4)
        assert batch.actions[row].item() == pytest.approx(actions[t, 0], abs=1e-6)
    assert sorted(batch.observations[:, 0].tolist()) == [*range(length)]


def test_transitions_of_one_step_are_those_of_the_episode():
    episode = tuple(np.random.default_rng(0).normal(size=(5, 2)) for _ in range(3))
    episode += np.arange(5.0), np.array([0.0, 0.0, 0.0, 0.0, 1.0])
    (chain,) = n_step(episode, 1, 0.9)
    for mine, theirs in zip(chain, episode):
        assert (mine == theirs).all()
