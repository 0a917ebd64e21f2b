"""Settings of PPO agents that train side by side: Stable-Baselines3's keyword arguments, checked
and in one form.
"""

import inspect
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space

from erl.errors import UserError, nearest
from erl.learners.core.settings import OURS, Schedule, activation, parse_value, schedule
from erl.learners.core.telemetry import Scores
from erl.networks.cohort_networks import ACTIVATIONS


@dataclass(frozen=True)
class PPOConfig:
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

    learning_rate: float | Schedule = 3e-4
    n_steps: int = 2048
    batch_size: int = 64
    n_epochs: int = 10
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float | Schedule = 0.2
    clip_range_vf: float | Schedule | None = None
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    n_envs: int = 1
    pi: tuple[int, ...] = (64, 64)
    vf: tuple[int, ...] = (64, 64)
    activation: str = "Tanh"
    ortho_init: bool = True
    log_std_init: float = 0.0
    adam_eps: float = 1e-5
    norm_obs: bool = False
    norm_reward: bool = False
    clip_obs: float = 10.0
    clip_reward: float = 10.0
    norm_gamma: float | None = None
    norm_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(field.default) is float and not (isinstance(value, Real) or callable(value)):
                raise UserError(f"PPO's {field.name} is a number, not {value!r}")
            if isinstance(value, Real) and not math.isfinite(value):
                raise UserError(f"PPO's {field.name} is a finite number, not {value!r}")
            if type(field.default) is bool and not isinstance(value, bool):
                raise UserError(f"PPO's {field.name} is true or false, not {value!r}")
            if type(field.default) is int and not (isinstance(value, int) and value >= 1):
                raise UserError(f"PPO's {field.name} is a whole number from 1, not {value!r}")
        if self.normalize_advantage and (self.batch_size < 2 or self.n_steps * self.n_envs < 2):
            raise UserError(
                "PPO normalises advantages over minibatches: batch_size and n_steps * n_envs are "
                "at least 2"
            )
        for name in ("clip_range_vf", "target_kl", "norm_gamma"):
            if not (
                getattr(self, name) is None
                or isinstance(getattr(self, name), Real)
                or callable(getattr(self, name))
            ):
                raise UserError(f"PPO's {name} is a number or null, not {getattr(self, name)!r}")
        for names, fits, what in (
            (
                (
                    "clip_range",
                    "clip_range_vf",
                    "target_kl",
                    "max_grad_norm",
                    "adam_eps",
                    "clip_obs",
                    "clip_reward",
                    "norm_epsilon",
                ),
                lambda v: v > 0,
                "positive",
            ),
            (("gamma", "gae_lambda", "norm_gamma"), lambda v: 0 <= v <= 1, "between 0 and 1"),
            (("learning_rate", "vf_coef"), lambda v: v >= 0, "not negative"),
        ):
            for name in names:
                value = getattr(self, name)
                if isinstance(value, Real) and not fits(value):
                    raise UserError(f"PPO's {name} is {what}: {value}")
        if any(not isinstance(width, int) or width < 1 for width in (*self.pi, *self.vf)):
            raise UserError(
                f"PPO's net_arch holds whole numbers from 1, not {self.pi} and {self.vf}"
            )
        if self.activation not in ACTIVATIONS:
            raise _unsupported(f"activation_fn={self.activation}")

    @classmethod
    def from_learner_config(cls, config: Mapping[str, Any]) -> "PPOConfig":
        """Settings from keyword arguments of `stable_baselines3.PPO` plus `n_envs` and `normalize`,
        as in the SB3 Zoo's files.

        How often agents are scored on the way (`Scores.SETTINGS`) is left out. Schedules may be
        strings ("lin_3e-4" falls to zero), `policy_kwargs` and `normalize` "dict(...)" expressions.

        Raises:
            UserError: a key that is unknown, or a setting that only Stable-Baselines3 itself
                offers.
        """
        try:
            return cls(**cls._understood(config))
        except (TypeError, ValueError, AttributeError) as e:
            raise UserError(
                f"PPO cannot understand its settings: {' '.join(str(e).split())}"
            ) from e

    @classmethod
    def _understood(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        signature = inspect.signature(PPO).parameters
        own = {f.name for f in fields(cls)} & signature.keys() | {"n_envs"}
        settings: dict[str, Any] = {}
        for key, value in config.items():
            if key in own:
                scheduled = key in ("learning_rate", "clip_range", "clip_range_vf")
                settings[key] = schedule(value) if scheduled else value
            elif key == "policy_kwargs":
                settings |= _policy_settings(parse_value(value) or {})
            elif key == "normalize":
                settings |= _normalize_settings(parse_value(value))
            elif key in Scores.SETTINGS:
                continue
            elif key in OURS:
                raise UserError(f"{key} is not PPO's to set here: this project does")
            elif key not in signature:
                raise UserError(
                    f"PPO has no setting "
                    f"{key!r}{nearest(key, own | {'policy_kwargs', 'normalize', *Scores.SETTINGS})}"
                )
            elif value != ("MlpPolicy" if key == "policy" else signature[key].default):
                raise _unsupported(f"{key}={value}")
        return settings

    def policy_kwargs(self) -> dict[str, Any]:
        """The `policy_kwargs` of an equal `stable_baselines3.PPO`."""
        return {
            "net_arch": {"pi": list(self.pi), "vf": list(self.vf)},
            "activation_fn": getattr(torch.nn, self.activation),
            "ortho_init": self.ortho_init,
            "log_std_init": self.log_std_init,
            "optimizer_kwargs": {"eps": self.adam_eps},
        }


def _unsupported(what: str) -> UserError:
    return UserError(f"the cohort engine of PPO does not know {what}: use --engine sb3")


def _policy_settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(ActorCriticPolicy).parameters
    settings: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key == "net_arch" and value is not None:
            if len(value) == 1 and not isinstance(value, Mapping) and isinstance(value[0], Mapping):
                value = value[0]  # the form that Stable-Baselines3 used before version 1.8
            nets = value if isinstance(value, Mapping) else {"pi": value, "vf": value}
            settings |= {net: tuple(nets.get(net, ())) for net in ("pi", "vf")}
        elif key == "activation_fn":
            settings["activation"] = activation(value).__name__
        elif key in ("ortho_init", "log_std_init"):
            settings[key] = value
        elif key == "optimizer_kwargs" and value is not None and value.keys() <= {"eps"}:
            settings["adam_eps"] = value.get(
                "eps", 1e-8
            )  # giving any takes Stable-Baselines3's own 1e-5 away
        elif key not in signature:
            raise UserError(f"PPO's policy_kwargs have no {key!r}{nearest(key, signature)}")
        elif value != signature[key].default:
            raise _unsupported(f"{key}={value} in policy_kwargs")
    return settings


def _normalize_settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping | bool | None):
        raise UserError(f"PPO's normalize is true, false or its settings, not {value!r}")
    if not isinstance(value, Mapping):
        return {"norm_obs": bool(value), "norm_reward": bool(value)}
    names = {k: k for k in ("norm_obs", "norm_reward", "clip_obs", "clip_reward")}
    names |= {"gamma": "norm_gamma", "epsilon": "norm_epsilon"}
    for key in value.keys() - names.keys():
        raise UserError(f"PPO's normalize has no {key!r}{nearest(key, names)}")
    return {"norm_obs": True, "norm_reward": True} | {names[k]: v for k, v in value.items()}


def cohort_key(
    config: PPOConfig, observation_space: spaces.Space, action_space: spaces.Space
) -> Hashable:
    """What the agents of one cohort agree in.

    Raises:
        UserError: spaces other than a Box that is no image for observations, a bounded Box or a
            Discrete for actions.
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
