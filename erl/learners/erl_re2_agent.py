"""ERL-Re²'s agents as Stable-Baselines3's TD3 models: the same networks in its terms, which predict, save, load and train on there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from erl.learners.erl_re2_update import TwoScale
from erl.learners.off_policy_networks import STD_EPS, Layer, unbias
from erl.learners.sb3 import SB3Agent


class TwoScalePolicy(TD3Policy):
    """TD3's policy with normalised hidden layers: tanh in the actor, leaky ReLU in the critics."""

    def make_actor(self, features_extractor: Any = None) -> Any:
        """An actor: the representation, then one head."""
        actor = super().make_actor(features_extractor)
        width = actor.features_dim
        outputs = int(np.prod(self.action_space.shape or (1,)))
        actor.mu = nn.Sequential(*_body(width, nn.Tanh), nn.Linear(TwoScale.hidden[-1], outputs), nn.Tanh())
        return actor.to(self.device)

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Critics."""
        critic = super().make_critic(features_extractor)
        width = self.observation_space.shape[0] + self.action_space.shape[0]  # type: ignore[index]
        for k in range(critic.n_critics):
            network = nn.Sequential(*_body(width, nn.LeakyReLU), nn.Linear(TwoScale.hidden[-1], 1))
            critic.q_networks[k] = network
            setattr(critic, f"qf{k}", network)
        return critic.to(self.device)


def _body(width: int, activation: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for size in TwoScale.hidden:
        layers += [nn.Linear(width, size), nn.LayerNorm(size, eps=STD_EPS), activation()]
        width = size
    return layers


def to_sb3(
    networks: TwoScale, head: Tensor, observation_space: spaces.Box, action_space: spaces.Space, steps: int
) -> TD3:
    """A policy as a `stable_baselines3.TD3` without environment; its critics are the RL agent's.

    Args:
        networks: representation and critics.
        head: of the policy, (actions, features + 1).
        observation_space: of what the policy sees.
        action_space: of the environment.
        steps: environment steps that went into it.
    """
    settings = networks.settings
    model = TD3(
        TwoScalePolicy,
        None,  # type: ignore[arg-type]
        learning_rate=settings.learning_rate,
        buffer_size=1,  # it is made here and now, and nothing is put in it; set it anew to train on
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        policy_delay=settings.delay,
        target_policy_noise=settings.smoothing,
        policy_kwargs={"n_critics": settings.n_critics},
        device="cpu",
        _init_setup_model=False,
    )
    model.observation_space, model.action_space = observation_space, action_space
    model.n_envs, model.num_timesteps = 1, steps
    with torch.random.fork_rng(devices=[]):
        model._setup_model()
    for target in (False, True):
        z, q = (network.target if target else network.values for network in (networks.representation, networks.critic))
        actor, critic = (model.actor_target, model.critic_target) if target else (model.actor, model.critic)
        assert isinstance(actor.mu, nn.Sequential)
        (layers, _), *_ = networks.cut_representation(z)
        _copy(actor.mu, [*layers, Layer(head[:, :-1].t(), head[:, -1])])
        for network, (layers, _) in zip(critic.q_networks, networks.cut_critic(q), strict=True):
            assert isinstance(network, nn.Sequential)
            _copy(network, layers)
    return model


def _copy(modules: nn.Sequential, layers: list[Layer]) -> None:
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    norms = [m for m in modules if isinstance(m, nn.LayerNorm)]
    with torch.no_grad():
        for module, layer in zip(linear, layers, strict=True):
            module.weight.copy_(layer.weight.t())
            module.bias.copy_(layer.bias)
        for norm, layer in zip(norms, layers):
            assert layer.gain is not None
            assert layer.shift is not None
            norm.weight.copy_(layer.gain * unbias(len(layer.gain)))
            norm.bias.copy_(layer.shift)


class Re2Agent(SB3Agent):
    """The policy that a lifetime hands over, with the one that it is to be told apart from.

    Attributes:
        companions: the RL agent, `rl`, where the policy handed over is the champion; saved beside it as `{name}.rl.zip`.
        inner: records of the evolution inside the lifetime.
    """

    def __init__(self, model: Any, companions: Mapping[str, SB3Agent], inner: dict[str, Any]) -> None:
        super().__init__(model, None)
        self.companions, self.inner = companions, inner

    def save(self, folder: Path, name: str) -> None:
        """Write `name.zip`, and each companion beside it."""
        super().save(folder, name)
        for which, agent in self.companions.items():
            agent.save(folder, f"{name}.{which}")
