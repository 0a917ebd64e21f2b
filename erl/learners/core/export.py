"""Off-policy learners' agents as Stable-Baselines3's models: the same networks in its terms, which
predict, save, load and train on there.

Saved models name the policy's class in this module: it stays where it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from erl.learners.core import sb3_settings
from erl.learners.core.off_policy import OffPolicy
from erl.networks.perceptrons import STD_EPS, Layer, unbias


class ShapedPolicy(TD3Policy):
    """TD3's policy with normalised hidden layers: tanh in the actor, leaky ReLU in the critics.

    `net_arch` has their widths.
    """

    normalised = True

    def make_actor(self, features_extractor: Any = None) -> Any:
        """An actor."""
        actor = super().make_actor(features_extractor)
        outputs = get_action_dim(self.action_space)
        body, width = self._body(actor.features_dim, self.actor_kwargs["net_arch"], nn.Tanh)
        actor.mu = nn.Sequential(*body, nn.Linear(width, outputs), nn.Tanh())
        return actor.to(self.device)

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Critics."""
        critic = super().make_critic(features_extractor)
        actions = get_action_dim(self.action_space)
        inputs = self.observation_space.shape[0] + actions  # type: ignore[index]
        for k in range(critic.n_critics):
            body, width = self._body(inputs, self.critic_kwargs["net_arch"], nn.LeakyReLU)
            critic.q_networks[k] = network = nn.Sequential(*body, nn.Linear(width, 1))
            setattr(critic, f"qf{k}", network)
        return critic.to(self.device)

    def _body(
        self, width: int, hidden: Any, activation: type[nn.Module]
    ) -> tuple[list[nn.Module], int]:
        layers: list[nn.Module] = []
        for size in hidden:
            norm = [nn.LayerNorm(size, eps=STD_EPS)] if self.normalised else []
            layers += [nn.Linear(width, size), *norm, activation()]
            width = size
        return layers, width


class PlainPolicy(ShapedPolicy):
    """The same without normalisation."""

    normalised = False


def td3_model(
    actors: Sequence[Sequence[Layer]],
    critics: Sequence[Sequence[Sequence[Layer]]],
    observation_space: spaces.Box,
    action_space: spaces.Space,
    steps: int,
    policy_kwargs: dict[str, Any],
    **settings: Any,
) -> TD3:
    """A `stable_baselines3.TD3` without environment and with an empty buffer of one transition: set
    it anew to train on.

    Args:
        actors: layers of the actor and of its target, all hidden ones normalised or none.
        critics: of each critic, and of each one's target.
        observation_space: of what the policy sees.
        action_space: of the environment.
        steps: environment steps that went into it.
        policy_kwargs: of `ShapedPolicy`.
        settings: further arguments of `TD3`.
    """
    model = TD3(
        PlainPolicy if actors[0][0].gain is None else ShapedPolicy,
        None,  # type: ignore[arg-type]
        buffer_size=1,
        policy_kwargs=policy_kwargs,
        device="cpu",
        _init_setup_model=False,
        **settings,
    )
    set_up(model, observation_space, action_space, 1, steps)
    for network, layers in zip((model.actor.mu, model.actor_target.mu), actors, strict=True):
        copy_layers(network, layers)
    for critic, members in zip((model.critic, model.critic_target), critics, strict=True):
        for q, layers in zip(critic.q_networks, members, strict=True):
            copy_layers(q, layers)
    return model


def set_up(
    model: BaseAlgorithm,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    n_envs: int,
    steps: int,
    total_steps: int = 0,
    updates: int = 0,
) -> None:
    """Make the networks of a model of Stable-Baselines3's that has no environment.

    Args:
        model: made with `_init_setup_model=False`.
        observation_space: of what the policy sees.
        action_space: of the environment.
        n_envs: environments that it is to train in.
        steps, updates: that went into it.
        total_steps: its budget, which schedules refer to; 0: they are at their beginning.
    """
    model.observation_space, model.action_space = observation_space, action_space
    model.n_envs, model.num_timesteps, model._total_timesteps = n_envs, steps, total_steps
    model._n_updates = updates
    if total_steps:
        model._update_current_progress_remaining(steps, total_steps)
    with torch.random.fork_rng(devices=[]):
        # What the learner has no values for, as the value network of DERL's discrete policies.
        torch.default_generator.manual_seed(0)
        model._setup_model()


def copy_layers(network: nn.Module, layers: Sequence[Layer]) -> None:
    """Give a network of PyTorch's the parameters of these layers."""
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    with torch.no_grad():
        for module, layer in zip(linear, layers, strict=True):
            module.weight.copy_(layer.weight.t())
            module.bias.copy_(layer.bias)
        for norm, layer in zip(norms, layers):
            norm.weight.copy_(_given(layer.gain) * unbias(len(_given(layer.gain))))
            norm.bias.copy_(_given(layer.shift))


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def off_policy_model(cohort: OffPolicy[Any], i: int, total_steps: int) -> OffPolicyAlgorithm:
    """Member i as a model of Stable-Baselines3's algorithm without environment and with an empty
    buffer, which predicts, saves and, after `set_env`, goes on training with its optimisers.

    Args:
        cohort: members that learn side by side.
        i: index of the member.
        total_steps: its budget, which schedules refer to.
    """
    s, steps = cohort.settings[i], int(cohort.steps[i])
    noise = sb3_settings.action_noise(s.noise_type, s.noise_std, cohort.action_space)
    # No larger than what the cohort had, which fits into memory.
    settings = s.arguments() | {"action_noise": noise, "buffer_size": s.capacity(total_steps)}
    if settings.get("target_entropy") == "auto":
        settings["target_entropy"] = -float(cohort.action_dim)
    model = s.algorithm(
        s.policy_class(),
        None,
        policy_kwargs=s.policy_kwargs(),
        device="cpu",
        _init_setup_model=False,
        **settings,
    )
    spaces_of = cohort.observation_space, cohort.action_space
    set_up(model, *spaces_of, s.n_envs, steps, total_steps, int(cohort.updates[i]))
    model.buffer_size = s.buffer_size
    cohort.store_policy(i, model.policy)
    cohort.store_rest(i, model)
    return model
