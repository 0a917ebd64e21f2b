"""SAC for many agents side by side.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, arXiv 1812.05905. Semantics
and defaults are Stable-Baselines3's: the coefficient of the entropy is the exponential of what is
learned.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from torch import Tensor, nn

from erl.learners.core.off_policy import Block, OffPolicy
from erl.learners.core.off_policy_settings import OffPolicySettings
from erl.learners.core.off_policy_training import OffPolicyLearner
from erl.learners.core.replay import Batch
from erl.learners.core.settings import Count, Positive, Schedule
from erl.networks.perceptrons import Shape, Trace
from erl.networks.trained import Trained

_EPS = 1e-6  # keeps the logarithm of the squashing's slope finite
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class SACSettings(OffPolicySettings):
    """Settings of a SAC agent.

    Attributes:
        ent_coef: coefficient of the entropy; `auto` (or `auto_0.1`, with its initial value) for one
            that is learned.
        target_entropy: at which a learned one aims; `auto`: minus the dimensions of an action.
        target_update_interval: gradient steps between two updates of the targets.
    """

    learner: ClassVar[str] = "SAC"
    algorithm: ClassVar[type[OffPolicyAlgorithm]] = SAC
    policy: ClassVar[type[BasePolicy]] = SACPolicy
    shared: ClassVar[tuple[str, ...]] = (
        *OffPolicySettings.shared,
        "target_update_interval",
        "learned",
    )

    learning_rate: Positive | Schedule = 3e-4
    ent_coef: float | str = "auto"
    target_entropy: float | Literal["auto"] = "auto"
    target_update_interval: Count = 1

    @property
    def learned(self) -> bool:
        """Whether the coefficient is learned."""
        return isinstance(self.ent_coef, str)

    @property
    def initial_ent_coef(self) -> float:
        """With which it begins."""
        if isinstance(self.ent_coef, str):
            return float(self.ent_coef.partition("_")[2] or 1.0)
        return self.ent_coef


class CohortSAC(OffPolicy[SACSettings]):
    """SAC agents that learn side by side."""

    noises_per_update = 2

    def __init__(
        self,
        settings: Sequence[SACSettings],
        seeds: Sequence[int],
        observation_space: spaces.Space,
        action_space: spaces.Space,
        steps: Sequence[int],
    ) -> None:
        super().__init__(settings, seeds, observation_space, action_space, steps)
        # What is learned is its logarithm.
        self.log_ent_coef = Trained(len(settings), 1, device=self.device)
        self.networks["log_ent_coef"] = self.log_ent_coef
        for row, s in zip(self.log_ent_coef.values, settings):
            row.fill_(math.log(s.initial_ent_coef) if s.learned else 0.0)

    def shapes(self) -> tuple[Shape, Shape]:
        """Of an actor, which puts out means and logarithms of standard deviations, and a critic."""
        s, o, a = self.settings[0], self.obs_dim, self.action_dim
        plain = partial(Shape, activation=s.activation, norm=False, aligned=True)
        return plain(o, s.pi, 2 * a), plain(o + a, s.qf, 1)

    def policy_actions(self, outputs: Tensor, draw: Callable[[], np.ndarray]) -> np.ndarray:
        """Actions in [-1, 1]."""
        mean, log_std = np.split(outputs.cpu().numpy(), [self.action_dim], -1)
        return np.tanh(mean + np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)) * draw())

    def course(self, updates: int, gradient_step: int) -> bool:
        """Whether the targets are updated as well."""
        return gradient_step % self.settings[0].target_update_interval == 0

    def update(
        self, block: Block[SACSettings], batch: Batch, noise: Tensor, course: Any
    ) -> dict[str, Tensor]:
        """Algorithm 1, an iteration of its second loop. The coefficient of the entropy that all
        losses see is the one from before.
        """
        ent_coef = self.ent_coef(block)
        # The actor takes its step last: what it does before is done for both at once.
        both = torch.cat([batch.observations, batch.next_observations], 1)
        outputs = block.actor.forward(both)
        policy = Squashed(outputs.output, noise.reshape(block.n, -1, self.action_dim))
        statistics = {"ent_coef": ent_coef[:, 0, 0]}
        if block.settings[0].learned:
            statistics["ent_coef_loss"] = self.update_ent_coef(
                block, policy.log_prob[:, : batch.size]
            )
        statistics["critic_loss"] = self.update_critic(block, batch, policy, ent_coef)
        if course:
            self.soft_update(block)
        outputs = outputs.head(batch.size)
        statistics["actor_loss"] = self.update_actor(block, batch, outputs, policy, ent_coef)
        return statistics

    def ent_coef(self, block: Block[SACSettings]) -> Tensor:
        """Coefficients of the entropy, (n, 1, 1)."""
        if not block.settings[0].learned:
            return block.column("ent_coef")
        return self.log_ent_coef.values[block.begin : block.end].exp().unsqueeze(2)

    def update_ent_coef(self, block: Block[SACSettings], log_prob: Tensor) -> Tensor:
        """Raise the coefficient where the entropy is below its target; the losses (n,)."""
        target = block.column(
            "target_entropy",
            lambda s: -self.action_dim if s.target_entropy == "auto" else float(s.target_entropy),
        )
        rows = slice(block.begin, block.end)
        grad = self.log_ent_coef.grads[rows]
        grad.copy_((log_prob + target).mean((1, 2)).neg_().unsqueeze(1))
        loss = (self.log_ent_coef.values[rows] * grad)[:, 0]
        self.log_ent_coef.step(block.begin, block.end)
        return loss

    def update_critic(
        self, block: Block[SACSettings], batch: Batch, policy: "Squashed", ent_coef: Tensor
    ) -> Tensor:
        """Descend half the squared error of every critic; the critics' losses, summed, (n,)."""
        after = slice(batch.size, None)
        next_pairs = block.for_critics(batch.next_pairs(policy.actions[:, after]))
        next_q_values = block.by_member(block.critic_target.forward(next_pairs, keep=False).output)
        next_q_values = next_q_values.amin(1) - ent_coef * policy.log_prob[:, after]
        target_q_values = batch.targets(next_q_values, block.column("gamma"))

        q_values = block.critic.forward(block.for_critics(batch.pairs))
        error = block.by_member(q_values.output) - target_q_values.unsqueeze(1)
        batch_size = error.shape[2]
        block.critic.backward(q_values, (error * (1.0 / batch_size)).view_as(q_values.output))
        self.critic.step(block.begin, block.end)
        return error.square_().sum((1, 2, 3)).mul_(0.5 / batch_size)

    def update_actor(
        self,
        block: Block[SACSettings],
        batch: Batch,
        outputs: Trace,
        policy: "Squashed",
        ent_coef: Tensor,
    ) -> Tensor:
        """Ascend the smallest of each member's critics, and the entropy; the losses (n,)."""
        now, by_actions = slice(batch.size), slice(self.obs_dim, None)
        traced = block.critic.forward(block.for_critics(batch.pairs_with(policy.actions[:, now])))
        least, which = block.by_member(traced.output).min(1)
        d = block.critic.backward_through(traced, which, -1.0 / batch.size, by_actions)
        block.actor.backward(outputs, policy.backward(d, ent_coef * (1.0 / batch.size)))
        self.actor.step(block.begin, block.end)
        return (ent_coef * policy.log_prob[:, now] - least).mean((1, 2))

    def soft_update(self, block: Block[SACSettings]) -> None:
        """Targets follow."""
        self.critic.follow([s.tau for s in block.settings], block.begin)

    def modules(self, policy: Any, target: bool) -> list[list[tuple[nn.Linear, ...]]]:
        """Linear layers of the actor, which has no target, and of each critic."""
        critic = policy.critic_target if target else policy.critic
        actor = [(m,) for m in policy.actor.latent_pi if isinstance(m, nn.Linear)]
        heads = [*actor, (policy.actor.mu, policy.actor.log_std)]
        critics = [[(m,) for m in net if isinstance(m, nn.Linear)] for net in critic.q_networks]
        return [[] if target else heads, *critics]

    def store_rest(self, i: int, model: Any) -> None:
        """Write member i's coefficient of the entropy, and its Adam, into a model."""
        if not self.settings[i].learned:
            return
        moments = self.log_ent_coef.moments(i)
        model.log_ent_coef.data.copy_(self.log_ent_coef.values[i])
        if moments["step"] > 0:
            model.ent_coef_optimizer.state[model.log_ent_coef] = {
                name: value.cpu().clone() for name, value in moments.items()
            }


class Squashed:
    """Actions drawn from normal distributions and squashed by tanh.

    Args:
        outputs: means and logarithms of standard deviations side by side, (n, batch, 2 * actions).
        noise: standard normal, (n, batch, actions).

    Attributes:
        actions: (n, batch, actions) in [-1, 1].
        log_prob: of each action, (n, batch, 1).
    """

    def __init__(self, outputs: Tensor, noise: Tensor) -> None:
        # Sums over the few units run along the long axis, so units come first here.
        noise = noise.mT.contiguous()
        mean, given = outputs.mT.contiguous().split(noise.shape[1], 1)
        self._given, self._log_std = given, given.clamp(LOG_STD_MIN, LOG_STD_MAX)
        self._deviation = self._log_std.exp().mul_(noise)
        self._actions = (mean + self._deviation).tanh_()
        self._slope = 1.0 - self._actions.square()
        density = torch.addcmul(self._log_std, noise, noise, value=0.5)
        density = (
            density.add_((self._slope + _EPS).log_()).sum(1).add_(noise.shape[1] * _HALF_LOG_2PI)
        )
        self.actions, self.log_prob = self._actions.mT, density.neg_().unsqueeze(2)

    def backward(self, d_actions: Tensor, d_log_prob: Tensor) -> Tensor:
        """Derivative of a loss by the outputs of the first rows, given those by their actions and
        by their log_prob.
        """
        rows, n_actions = d_actions.shape[1:]
        given, log_std, deviation, actions, slope = (
            t[..., :rows]
            for t in (self._given, self._log_std, self._deviation, self._actions, self._slope)
        )
        d_squash = (actions * (2.0 * d_log_prob)).div_(slope + _EPS)
        d = d_actions.new_empty(len(d_actions), 2 * n_actions, rows)
        d_mean, d_log_std = d.split(n_actions, 1)
        torch.mul(d_squash.add_(d_actions.mT), slope, out=d_mean)
        torch.mul(d_mean, deviation, out=d_log_std)
        d_log_std.sub_(d_log_prob).mul_(given == log_std)
        return d.mT


class SACLearner(OffPolicyLearner):
    """SAC, many lifetimes side by side. Its settings are `SACSettings`."""

    settings, cohort = SACSettings, CohortSAC
