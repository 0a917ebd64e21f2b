"""DERL's gradient half: a policy and twin value functions that learn from a replay buffer.

For continuous actions it is TD3 (Fujimoto et al., 2018, arXiv 1802.09477): a deterministic policy
that climbs its value.

For discrete actions it is the off-policy actor-critic of discrete soft actor-critic (Christodoulou,
2019, arXiv 1910.07207) with a fixed weight of the entropy, and with a slowly following copy of the
policy, π', in the targets, where Christodoulou has the policy itself. The values of all actions are
known, so expectations over the policy are sums: neither the target nor the policy's gradient is
sampled, and nothing has to be corrected for who chose the stored action.

With `n_steps` above 1, targets hold the rewards of several steps (`n_step`). The actions within
them are those that were taken: nothing corrects for who chose them, as in Rainbow (Hessel et al.,
2018, arXiv 1710.02298), and their entropy is not counted.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from erl.learners.core.replay import Batch, smoothed
from erl.learners.derl.settings import DERLSettings
from erl.networks.perceptrons import Perceptrons, Shape
from erl.networks.trained import Trained

_SMOOTHING = 0.2  # standard deviation of the noise on TD3's target actions
_DELAY = 2  # updates of TD3's critics for each of its policy


class GradientHalf:
    """A policy with its twin critics, and targets of all.

    Args:
        settings: of the agent.
        obs_dim: length of what it sees.
        action_dim: length of an action, or number of actions.
        discrete: which of the two.
        generator: draws the first parameters.

    Attributes:
        policy, critic: parameters, targets and optimisers.
        pi, pi_target, q, q_target: the networks of these.
    """

    def __init__(
        self,
        settings: DERLSettings,
        obs_dim: int,
        action_dim: int,
        discrete: bool,
        generator: torch.Generator,
    ) -> None:
        s, self._settings, self._discrete = settings, settings, discrete

        def networks(shape: Shape, n: int) -> tuple[Trained, Perceptrons, Perceptrons]:
            trained = Trained(1, shape.size(n), device=s.device)
            network = Perceptrons(shape, n, trained.values[0], trained.grads[0])
            network.initialise(generator)
            trained.start_target()
            return trained, network, Perceptrons(shape, n, trained.target[0])

        common: dict[str, Any] = {"hidden": s.hidden, "activation": "ReLU", "norm": False}
        self.policy, self.pi, self.pi_target = networks(
            Shape(obs_dim, outputs=action_dim, **common), 1
        )
        shape = (
            Shape(obs_dim, outputs=action_dim, **common)
            if discrete
            else Shape(obs_dim + action_dim, **common)
        )
        self.critic, self.q, self.q_target = networks(shape, 2)
        self.set_rates(1.0)
        self._obs_dim = obs_dim

    # -- the policy as a flat vector --

    @property
    def theta(self) -> np.ndarray:
        """Parameters of the policy (dim,), a copy."""
        return self.policy.values[0].detach().cpu().numpy().copy()

    @theta.setter
    def theta(self, theta: np.ndarray) -> None:
        self.policy.values[0].copy_(torch.tensor(theta))

    # -- learning --

    def set_rates(self, progress_remaining: float) -> None:
        """Follow schedules of the learning rates; progress goes from 1 to 0."""
        for trained, rate in zip(
            (self.policy, self.critic), self._settings.rates(progress_remaining)
        ):
            if trained.rates != [rate]:
                trained.set_rates([rate])

    def update(self, k: int, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """The k-th update of the networks.

        Args:
            k: counted from 0.
            batch: minibatch.
            noise: standard normal (batch, actions), for the target actions of TD3.
        """
        s = self._settings
        if self._discrete:
            statistics = self._update_discrete_critic(batch) | self._update_discrete_policy(batch)
        else:
            statistics = self._update_critic(batch, noise)
            if k % _DELAY:
                return statistics
            statistics |= self._update_policy(batch)
        for trained in (self.critic, self.policy):
            trained.follow([s.tau])
        return statistics

    def _update_critic(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """Regression of both values on r + γ min Q'(s', π'(s') + clipped noise)."""
        actions = self.pi_target.forward(batch.next_observations, keep=False).output[0].tanh_()
        pairs = batch.next_pairs(smoothed(actions, noise, _SMOOTHING))
        next_values = self.q_target.forward(pairs, keep=False).output.amin(0)
        targets = batch.targets(next_values, self._settings.gamma)
        trace = self.q.forward(batch.pairs)
        error = trace.output - targets
        loss = error.square().mean()
        self.q.backward(trace, error * (2.0 / len(targets)))
        self.critic.step()
        return {"critic_loss": loss, "value": targets.mean()}

    def _update_policy(self, batch: Batch) -> dict[str, Tensor]:
        """Ascent on Q1(s, π(s))."""
        trace = self.pi.forward(batch.observations)
        actions = trace.output[0].tanh()
        values = self.q.forward(batch.pairs_with(actions), first=1)
        ones = torch.full_like(values.output, -1.0 / len(actions))
        by_actions = self.q.backward(values, ones, weights=False, inputs=slice(self._obs_dim, None))
        self.pi.backward(trace, by_actions * (1.0 - actions.square()))
        self.policy.step()
        return {"actor_loss": -values.output.mean()}

    def _update_discrete_critic(self, batch: Batch) -> dict[str, Tensor]:
        """Regression of both values of the stored action on r + γ E_π'[min Q' - α log π']."""
        s = self._settings
        logits = self.pi_target.forward(batch.next_observations, keep=False).output[0]
        logs = logits.log_softmax(1)
        values = self.q_target.forward(batch.next_observations, keep=False).output.amin(0)
        expected = (logs.exp() * (values - s.ent_coef * logs)).sum(1, keepdim=True)
        targets = batch.targets(expected, s.gamma)
        trace = self.q.forward(batch.observations)
        chosen = batch.actions.long().expand(2, -1, -1)
        error = trace.output.gather(2, chosen) - targets
        d = torch.zeros_like(trace.output).scatter_(2, chosen, error * (2.0 / len(targets)))
        self.q.backward(trace, d)
        self.critic.step()
        return {"critic_loss": error.square().mean(), "value": targets.mean()}

    def _update_discrete_policy(self, batch: Batch) -> dict[str, Tensor]:
        """Ascent on E_π[min Q - α log π], summed over the actions."""
        trace = self.pi.forward(batch.observations)
        logs = trace.output[0].log_softmax(1)
        pi = logs.exp()
        values = self.q.forward(batch.observations, keep=False).output.amin(0)
        cost = self._settings.ent_coef * logs - values
        mean = (pi * cost).sum(1, keepdim=True)
        # By the logits: π (cost - its mean). The entropy's own derivative sums to nothing.
        self.pi.backward(trace, (pi * (cost - mean) / len(pi)).unsqueeze(0))
        self.policy.step()
        return {"actor_loss": mean.mean(), "entropy": -(pi * logs).sum(1).mean()}

    def get_state(self) -> dict[str, list[Tensor]]:
        """Parameters, targets and optimisers."""
        return {"policy": self.policy.get_state(), "critic": self.critic.get_state()}

    def set_state(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from `get_state`."""
        self.policy.set_state(state["policy"])
        self.critic.set_state(state["critic"])


Transitions = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def n_step(transitions: Transitions, n: int, gamma: float) -> Iterator[Transitions]:
    """An episode's transitions as those of n steps: R = Σ γ^k r_{t+k} over the n steps from t on,
    and the observation after them.

    They come as chains, of which the first has the steps 0, n, 2n, … : so each one's next
    observation is the following one's observation, as a `ReplayBuffer` stores them.

    Args:
        transitions: observations, actions, next observations, rewards, and where the episode ended
            for good; in their order, of one episode.
        n: at least 1.
        gamma: discount γ.

    Returns:
        Chains like `transitions`. Their last part is 1 - γ^(m - 1) for m steps that ended nothing
        (m is n, and less before the end of an episode that was cut), so that r + γ (1 - it) V is
        R + γ^m V.
    """
    observations, actions, next_observations, rewards, ends = transitions
    length = len(rewards)
    padded = np.concatenate([rewards, np.zeros(n - 1)])
    returns = sliding_window_view(padded, n) @ gamma ** np.arange(n)
    first = np.arange(length)
    last = np.minimum(first + n, length) - 1
    ends = 1.0 - (1.0 - ends[last]) * gamma ** (last - first)
    for k in range(min(n, length)):
        chain = slice(k, None, n)
        after = next_observations[last[chain]]
        yield observations[chain], actions[chain], after, returns[chain], ends[chain]
