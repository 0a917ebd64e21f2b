"""TD3 and DDPG for many agents side by side.

Fujimoto, van Hoof and Meger, "Addressing Function Approximation Error in Actor-Critic Methods",
ICML 2018, arXiv 1802.09477. DDPG (Lillicrap et al., 2016, arXiv 1509.02971) is the case of one
critic, no delay and no smoothing. Semantics and defaults are Stable-Baselines3's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from erl.learners.core.off_policy import Block, OffPolicy
from erl.learners.core.off_policy_settings import OffPolicySettings
from erl.learners.core.off_policy_training import OffPolicyLearner
from erl.learners.core.replay import Batch
from erl.learners.core.settings import Count, NotNegative
from erl.networks.perceptrons import Shape


@dataclass(frozen=True)
class TD3Settings(OffPolicySettings):
    """Settings of a TD3 agent.

    Attributes:
        policy_delay: updates of the critics for one of the actor and of the targets.
        target_policy_noise, target_noise_clip: smoothing of target actions.
    """

    learner: ClassVar[str] = "TD3"
    algorithm: ClassVar[type[OffPolicyAlgorithm]] = TD3
    policy: ClassVar[type[BasePolicy]] = TD3Policy
    shared: ClassVar[tuple[str, ...]] = (*OffPolicySettings.shared, "policy_delay")

    pi: tuple[Count, ...] = (400, 300)
    qf: tuple[Count, ...] = (400, 300)
    policy_delay: Count = 2
    target_policy_noise: NotNegative = 0.2
    target_noise_clip: NotNegative = 0.5


@dataclass(frozen=True)
class DDPGSettings(TD3Settings):
    """Settings of a DDPG agent; what TD3 adds is no setting here."""

    learner: ClassVar[str] = "DDPG"
    algorithm: ClassVar[type[OffPolicyAlgorithm]] = DDPG

    n_critics: Count = 1
    policy_delay: Count = 1
    target_policy_noise: NotNegative = 0.1
    target_noise_clip: NotNegative = 0.0


class CohortTD3(OffPolicy[TD3Settings]):
    """TD3 agents that learn side by side."""

    noises_per_update = 1

    def shapes(self) -> tuple[Shape, Shape]:
        """Of an actor, whose output is squashed by tanh, and of a critic."""
        s, o, a = self.settings[0], self.observations, self.actions
        plain = {"activation": s.activation, "norm": False, "aligned": True}
        return Shape(o, s.pi, a, **plain), Shape(o + a, s.qf, 1, **plain)  # type: ignore[arg-type]

    def policy_actions(self, outputs: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """Actions in [-1, 1]."""
        return outputs.tanh()

    def course(self, updates: int, gradient_step: int) -> bool:
        """Whether the actor is updated as well."""
        return (updates + 1) % self.settings[0].policy_delay == 0

    def update(
        self, block: Block[TD3Settings], batch: Batch, noise: Tensor, course: Any
    ) -> dict[str, Tensor]:
        """Algorithm 1, lines 7 to 15."""
        statistics = {"critic_loss": self.update_critic(block, batch, noise[:, 0])}
        if course:
            statistics["actor_loss"] = self.update_actor(block, batch)
            self.soft_update(block)
        return statistics

    def update_critic(self, block: Block[TD3Settings], batch: Batch, noise: Tensor) -> Tensor:
        """Descend the squared error of every critic; the critics' losses, summed, (n,)."""
        clip = block.column("target_noise_clip")
        noise = (noise * block.column("target_policy_noise")).clamp_(-clip, clip)
        next_actions = block.actor_target.forward(batch.next_observations, keep=False).output
        next_actions = (next_actions.tanh() + noise).clamp_(-1.0, 1.0)
        next_pairs = block.for_critics(batch.next_pairs(next_actions))
        next_q_values = block.by_member(block.critic_target.forward(next_pairs, keep=False).output)
        target_q_values = batch.targets(next_q_values.amin(1), block.column("gamma"))

        q_values = block.critic.forward(block.for_critics(batch.pairs))
        error = block.by_member(q_values.output) - target_q_values.unsqueeze(1)
        batch_size = error.shape[2]
        block.critic.backward(q_values, (error * (2.0 / batch_size)).view_as(q_values.output))
        self.critic.step(block.begin, block.end)
        return error.square_().sum((1, 2, 3)).div_(batch_size)

    def update_actor(self, block: Block[TD3Settings], batch: Batch) -> Tensor:
        """Ascend each member's first critic; the negative mean values (n,)."""
        outputs = block.actor.forward(batch.observations)
        actions = outputs.output.tanh()
        q_values = block.first_critic.forward(batch.pairs_with(actions))
        batch_size = actions.shape[1]
        d = torch.full_like(q_values.output, -1.0 / batch_size)
        d = block.first_critic.backward(
            q_values, d, weights=False, inputs=slice(self.observations, None)
        )
        block.actor.backward(outputs, d * (1.0 - actions.square()))
        self.actor.step(block.begin, block.end)
        return q_values.output.sum((1, 2)).div_(-batch_size)

    def soft_update(self, block: Block[TD3Settings]) -> None:
        """Targets follow."""
        taus = [s.tau for s in block.settings]
        self.critic.follow(taus, block.begin)
        self.actor.follow(taus, block.begin)

    def modules(self, policy: Any, target: bool) -> list[list[tuple[nn.Linear, ...]]]:
        """Linear layers of the actor and of each critic."""
        actor = policy.actor_target if target else policy.actor
        critic = policy.critic_target if target else policy.critic
        networks = [actor.mu, *critic.q_networks]
        return [[(m,) for m in net if isinstance(m, nn.Linear)] for net in networks]


class TD3Learner(OffPolicyLearner):
    """TD3, many lifetimes side by side. Its settings are `TD3Settings`."""

    settings, cohort = TD3Settings, CohortTD3


class DDPGLearner(OffPolicyLearner):
    """DDPG, many lifetimes side by side. Its settings are `DDPGSettings`."""

    settings, cohort = DDPGSettings, CohortTD3
