"""TD3 and DDPG for many agents side by side.

Fujimoto, van Hoof and Meger, "Addressing Function Approximation Error in Actor-Critic Methods",
ICML 2018, arXiv 1802.09477. DDPG (Lillicrap et al., 2016, arXiv 1509.02971) is the case of one
critic, no delay and no smoothing. Semantics and defaults are Stable-Baselines3's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from erl.errors import UserError
from erl.learners.core.export import PlainPolicy
from erl.learners.core.off_policy import Block, OffPolicy
from erl.learners.core.off_policy_settings import OffPolicySettings
from erl.learners.core.off_policy_training import OffPolicyLearner
from erl.learners.core.replay import Batch
from erl.learners.core.settings import Count, NotNegative, convert
from erl.learners.core.settings_file import parse_value
from erl.learners.core.td3_update import actor_step, critic_step
from erl.networks.perceptrons import Shape


@dataclass(frozen=True)
class TD3Settings(OffPolicySettings):
    """Settings of a TD3 agent.

    Attributes:
        policy_delay: updates of the critics for one of the actor and of the targets.
        target_policy_noise, target_noise_clip: smoothing of target actions.
        preset: name of other defaults, a key of `PRESETS`. With `aes_td3` hidden layers are tanh in
            the actor and leaky ReLU in the critics.
    """

    learner: ClassVar[str] = "TD3"
    own: ClassVar[Mapping[str, Any]] = {**OffPolicySettings.own, "preset": Literal["aes_td3"]}
    algorithm: ClassVar[type[OffPolicyAlgorithm]] = TD3
    policy: ClassVar[type[BasePolicy]] = TD3Policy
    shared: ClassVar[tuple[str, ...]] = (*OffPolicySettings.shared, "policy_delay", "preset")

    pi: tuple[Count, ...] = (400, 300)
    qf: tuple[Count, ...] = (400, 300)
    policy_delay: Count = 2
    target_policy_noise: NotNegative = 0.2
    target_noise_clip: NotNegative = 0.5
    preset: Literal["aes_td3"] | None = None

    @classmethod
    def from_learner_config(cls, config: Mapping[str, Any], env_id: str = "") -> Self:
        """See `OffPolicySettings`; with a `preset` its defaults."""
        given = dict(config)
        preset = given.pop("preset", None)
        if preset is None:
            return super().from_learner_config(given, env_id)
        if cls is not TD3Settings or preset not in list(PRESETS):  # it may be a list
            raise UserError(f"{cls.learner} has no preset {preset!r}: TD3 has {', '.join(PRESETS)}")
        asked = parse_value(given.get("policy_kwargs"))
        policy_kwargs = convert(cls.learner, "policy_kwargs", dict[str, Any] | None, asked) or {}
        if "activation_fn" in policy_kwargs:
            raise UserError(f"TD3's preset {preset} has activations of its own: no activation_fn")
        defaults = PRESETS[preset]
        given["policy_kwargs"] = {**defaults["policy_kwargs"], **policy_kwargs}
        return replace(super().from_learner_config({**defaults, **given}, env_id), preset=preset)

    @property
    def activations(self) -> tuple[str, str]:
        """Of the hidden layers of actor and critics."""
        return ("Tanh", "LeakyReLU") if self.preset else (self.activation,) * 2

    def policy_class(self) -> type[BasePolicy]:
        """See `OffPolicySettings`."""
        return PlainPolicy if self.preset else TD3Policy


# `aes_td3`: TD3 as Lee et al. (NeurIPS 2020, arXiv 2012.05417) compare AES-RL with it.
PRESETS: dict[str, dict[str, Any]] = {
    "aes_td3": {
        "policy_kwargs": {"net_arch": [256, 256]},
        "learning_rate": 3e-4,
        "batch_size": 256,
        "buffer_size": 1_000_000,
        "learning_starts": 10_000,
        "noise_type": "normal",
        "noise_std": 0.1,
    }
}


@dataclass(frozen=True)
class DDPGSettings(TD3Settings):
    """Settings of a DDPG agent; what TD3 adds is no setting here."""

    learner: ClassVar[str] = "DDPG"
    own: ClassVar[Mapping[str, Any]] = OffPolicySettings.own
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
        s, o, a = self.settings[0], self.obs_dim, self.action_dim
        pi, qf = s.activations
        actor = Shape(o, s.pi, a, activation=pi, norm=False, aligned=True)
        return actor, Shape(o + a, s.qf, 1, activation=qf, norm=False, aligned=True)

    def policy_actions(self, outputs: Tensor, draw: Callable[[], np.ndarray]) -> np.ndarray:
        """Actions in [-1, 1]."""
        return outputs.tanh().cpu().numpy().copy()

    def course(self, updates: int, gradient_step: int) -> bool:
        """Whether the actor is updated as well."""
        return (updates + 1) % self.settings[0].policy_delay == 0

    def update(
        self, block: Block[TD3Settings], batch: Batch, noise: Tensor, course: Any
    ) -> dict[str, Tensor]:
        """Algorithm 1, lines 7 to 15."""
        statistics = {"critic_loss": critic_step(block, batch, noise[:, 0], self.critic)}
        if course:
            networks, members = (block.actor, block.first_critic), (block.begin, block.end)
            statistics["actor_loss"] = actor_step(*networks, batch, self.actor, *members)
            self.soft_update(block)
        return statistics

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
