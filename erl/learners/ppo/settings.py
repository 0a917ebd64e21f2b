"""Settings of PPO agents that train side by side: Stable-Baselines3's keyword arguments, checked
and in one form.
"""

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space

from erl.errors import UserError, nearest
from erl.learners import Unsupported
from erl.learners.core import sb3_settings
from erl.learners.core.settings import (
    Count,
    EvaluationSettings,
    NotNegative,
    Positive,
    Schedule,
    Share,
    convert,
    refuse_unknown,
)
from erl.learners.core.settings_file import activation
from erl.networks.cohort_networks import ACTIVATIONS


@dataclass(frozen=True)
class PPOSettings(EvaluationSettings):
    """Settings of one agent, in Stable-Baselines3's names and with its defaults.

    Attributes:
        learning_rate, clip_range, clip_range_vf: numbers, or functions of the share of the training
            that remains (1 to 0).
        n_steps: steps of each environment between updates.
        n_envs: environments per agent.
        pi, vf: widths of the hidden layers of policy and value network.
        activation: name of a class in `torch.nn`, one of `ACTIVATIONS`.
        adam_eps: Adam's epsilon.
        norm_obs, norm_reward, clip_obs, clip_reward, norm_gamma, norm_epsilon: `VecNormalize`'s
            arguments; a `norm_gamma` of None stands for `gamma`.
    """

    learner: ClassVar[str] = "PPO"
    spelled: ClassVar[Mapping[str, str]] = {
        "pi": "net_arch",
        "vf": "net_arch",
        "activation": "activation_fn",
        "adam_eps": "optimizer_kwargs eps",
        "norm_gamma": "normalize gamma",
        "norm_epsilon": "normalize epsilon",
    }

    learning_rate: Positive | Schedule = 3e-4
    n_steps: Count = 2048
    batch_size: Count = 64
    n_epochs: Count = 10
    gamma: Share = 0.99
    gae_lambda: Share = 0.95
    clip_range: Positive | Schedule = 0.2
    clip_range_vf: Positive | Schedule | None = None
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: NotNegative = 0.5
    max_grad_norm: Positive = 0.5
    target_kl: Positive | None = None
    n_envs: Count = 1
    pi: tuple[Count, ...] = (64, 64)
    vf: tuple[Count, ...] = (64, 64)
    activation: str = "Tanh"
    ortho_init: bool = True
    log_std_init: float = 0.0
    adam_eps: Positive = 1e-5
    norm_obs: bool = False
    norm_reward: bool = False
    clip_obs: Positive = 10.0
    clip_reward: Positive = 10.0
    norm_gamma: Share | None = None
    norm_epsilon: Positive = 1e-8

    def _check(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise _unsupported(f"activation_fn={self.activation}")

    @classmethod
    def from_learner_config(cls, config: Mapping[str, Any], env_id: str = "") -> "PPOSettings":
        """Settings from keyword arguments of `stable_baselines3.PPO` plus `n_envs`, `normalize` and
        how often to evaluate, as in the SB3 Zoo's files.

        Raises:
            UserError: a setting is unknown or has a value that cannot be.
            Unsupported: a setting that only Stable-Baselines3 itself offers.
        """
        names = {f.name for f in fields(cls)}
        settings: dict[str, Any] = {}
        for key, value in sb3_settings.read("PPO", PPO, config).items():
            if key == "policy_kwargs":
                settings |= _policy_settings(value or {})
            elif key == "normalize":
                settings |= _normalize_settings(value)
            elif key in names:
                settings[key] = value
            elif key != "policy" and value != inspect.signature(PPO).parameters[key].default:
                raise _unsupported(f"{key}={value}")
        return cls(**settings)

    def policy_kwargs(self) -> dict[str, Any]:
        """The `policy_kwargs` of an equal `stable_baselines3.PPO`."""
        return {
            "net_arch": {"pi": list(self.pi), "vf": list(self.vf)},
            "activation_fn": getattr(torch.nn, self.activation),
            "ortho_init": self.ortho_init,
            "log_std_init": self.log_std_init,
            "optimizer_kwargs": {"eps": self.adam_eps},
        }


def _unsupported(what: str) -> Unsupported:
    return Unsupported("PPO", what)


def _policy_settings(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(ActorCriticPolicy).parameters
    settings: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key == "net_arch" and value is not None:
            settings |= _widths(value)
        elif key == "activation_fn":
            settings["activation"] = activation(value).__name__
        elif key in ("ortho_init", "log_std_init"):
            settings[key] = value
        elif key == "optimizer_kwargs" and value is not None:
            value = convert("PPO", "optimizer_kwargs", dict[str, Any], value)
            if value.keys() - {"eps"}:
                raise _unsupported(f"{key}={value} in policy_kwargs")
            # Giving any takes Stable-Baselines3's own 1e-5 away.
            settings["adam_eps"] = value.get("eps", 1e-8)
        elif key not in known:
            raise UserError(f"PPO's policy_kwargs have no {key!r}{nearest(key, known)}")
        elif value != known[key].default:
            raise _unsupported(f"{key}={value} in policy_kwargs")
    return settings


def _widths(net_arch: Any) -> dict[str, tuple[int, ...]]:
    """Widths of the policy's and of the value network's layers, `pi` and `vf`."""
    if isinstance(net_arch, list | tuple) and len(net_arch) == 1 and isinstance(net_arch[0], dict):
        net_arch = net_arch[0]  # the form that Stable-Baselines3 used before version 1.8
    nets = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
    refuse_unknown("PPO's net_arch", nets, ("pi", "vf"))
    widths = tuple[Count, ...]
    return {net: convert("PPO", "net_arch", widths, nets.get(net, ())) for net in ("pi", "vf")}


def _normalize_settings(value: bool | dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"norm_obs": value, "norm_reward": value}
    if not value.get("training", True):
        raise _unsupported("normalize with training=False")
    names = {"gamma": "norm_gamma", "epsilon": "norm_epsilon"}
    given = {names.get(k, k): v for k, v in value.items() if k != "training"}
    return {"norm_obs": True, "norm_reward": True} | given


def cohort_key(
    config: PPOSettings, observation_space: spaces.Space, action_space: spaces.Space
) -> Hashable:
    """What the agents of one cohort agree in.

    Raises:
        UserError: spaces other than a Box that is no image for observations; a bounded Box, or a
            Discrete, MultiDiscrete or MultiBinary that counts from 0 in one row for actions.
    """
    if not isinstance(observation_space, spaces.Box) or is_image_space(observation_space):
        raise _unsupported(f"the observation space {observation_space}")
    if isinstance(action_space, spaces.Box) and action_space.is_bounded():
        action: tuple = (
            action_space.shape,
            action_space.low.tobytes(),
            action_space.high.tobytes(),
        )
    elif isinstance(action_space, spaces.Discrete) and action_space.start == 0:
        action = (int(action_space.n),)
    elif (
        isinstance(action_space, spaces.MultiDiscrete)
        and len(action_space.shape) == 1
        and not action_space.start.any()
    ):
        action = ("MultiDiscrete", *action_space.nvec.tolist())
    elif isinstance(action_space, spaces.MultiBinary) and len(action_space.shape) == 1:
        action = ("MultiBinary", *action_space.shape)
    else:
        raise _unsupported(f"the action space {action_space}")
    shared = [
        "n_steps",
        "batch_size",
        "n_epochs",
        "n_envs",
        "pi",
        "vf",
        "activation",
        "normalize_advantage",
    ]
    shared += ["norm_obs", "norm_reward", "clip_obs", "clip_reward", "norm_epsilon"]
    return (observation_space.shape, action, *(getattr(config, name) for name in shared))
