"""Settings of off-policy agents that train side by side: Stable-Baselines3's keyword arguments,
checked and in one form.
"""

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space

from erl.errors import UserError
from erl.learners import Unsupported
from erl.learners.core import sb3_settings
from erl.learners.core.settings import (
    Count,
    EvaluationSettings,
    NotNegative,
    Positive,
    Range,
    Schedule,
    Share,
    check_actions,
    check_device,
    convert,
    refuse_unknown,
)
from erl.learners.core.settings_file import activation
from erl.networks.perceptrons import ACTIVATIONS

_Beta = Annotated[float, Range(0, 0.999999)]
# What has an effect only together with settings that the cohort does not know, or on images.
_WITHOUT_EFFECT = frozenset({"sde_sample_freq", "use_sde_at_warmup"})
_POLICY_WITHOUT_EFFECT: dict[str, Any] = {
    "share_features_extractor": bool,
    "normalize_images": bool,
    "log_std_init": float,
    "use_expln": bool,
    "clip_mean": float,
}


@dataclass(frozen=True)
class OffPolicySettings(EvaluationSettings):
    """Settings of one agent, in Stable-Baselines3's names and with its defaults.

    Attributes:
        learning_rate: a number, or a function of the share of the training that remains (1 to 0).
        buffer_size: transitions in the replay buffer.
        learning_starts: steps at random before anything is learned.
        train_freq: how many steps or episodes lie between two times of learning; steps count once
            for all environments.
        gradient_steps: updates each time; -1: as many as steps were taken since.
        n_envs: environments per agent.
        noise_type, noise_std: of the noise on actions in [-1, 1].
        pi, qf: widths of the hidden layers of actor and critics.
        activation: of the hidden layers, a key of `ACTIVATIONS`.
        n_critics: critics of an agent.
        adam_betas, adam_eps, weight_decay: Adam's.
        device: PyTorch's name of where the networks learn, or `auto`: a GPU if there is one.
        precision: `fp32`, or `bf16` for the factors of wide matrix products.
    """

    spelled: ClassVar[Mapping[str, str]] = {
        "pi": "net_arch",
        "qf": "net_arch",
        "activation": "activation_fn",
        "adam_betas": "optimizer_kwargs betas",
        "adam_eps": "optimizer_kwargs eps",
        "weight_decay": "optimizer_kwargs weight_decay",
    }
    # What Stable-Baselines3 has not.
    own: ClassVar[Mapping[str, Any]] = {"device": str, "precision": Literal["fp32", "bf16"]}
    algorithm: ClassVar[type[OffPolicyAlgorithm]]
    policy: ClassVar[type[BasePolicy]]
    # What the agents of a cohort agree in.
    shared: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "train_freq",
        "gradient_steps",
        "n_envs",
        "pi",
        "qf",
        "activation",
        "n_critics",
        "adam_betas",
        "adam_eps",
        "weight_decay",
        "device",
        "precision",
    )

    learning_rate: Positive | Schedule = 1e-3
    buffer_size: Count = 1_000_000
    learning_starts: Annotated[int, Range(0)] = 100
    batch_size: Count = 256
    tau: Share = 0.005
    gamma: Share = 0.99
    train_freq: tuple[Count, Literal["step", "episode"]] = (1, "step")
    gradient_steps: Count | Literal[-1] = 1
    n_envs: Count = 1
    noise_type: Literal["normal", "ornstein-uhlenbeck"] | None = None
    noise_std: NotNegative = 0.0
    pi: tuple[Count, ...] = (256, 256)
    qf: tuple[Count, ...] = (256, 256)
    activation: str = "ReLU"
    n_critics: Count = 2
    adam_betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    adam_eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"

    def _check(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise self.unsupported(f"activation_fn={self.activation}")
        if self.n_envs > self.buffer_size:
            raise self._wrong("buffer_size", "at least n_envs")
        if self.device != "auto":
            check_device(self.learner, self.device)

    @classmethod
    def unsupported(cls, what: str) -> Unsupported:
        """The error for what Stable-Baselines3 itself has."""
        return Unsupported(cls.learner, what)

    def resolved_device(self) -> torch.device:
        """Where the networks learn."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @classmethod
    def from_learner_config(cls, config: Mapping[str, Any], env_id: str = "") -> Self:
        """Settings from keyword arguments of Stable-Baselines3's algorithm plus `n_envs`,
        `noise_type`, `noise_std` and how often to evaluate, as in the SB3 Zoo's files, and `device`
        and `precision`.

        Raises:
            UserError: a setting is unknown or has a value that cannot be.
            Unsupported: a setting that only Stable-Baselines3 itself offers.
        """
        names = {f.name for f in fields(cls)}
        signature = inspect.signature(cls.algorithm).parameters
        settings: dict[str, Any] = {}
        for key, value in sb3_settings.read(cls.learner, cls.algorithm, config, cls.own).items():
            if key == "policy_kwargs":
                settings |= cls._policy_settings(value or {})
            elif key == "train_freq":
                settings[key] = value if isinstance(value, tuple) else (value, "step")
            elif key in names:
                settings[key] = value
            elif key == "normalize":
                if value is not False:
                    raise cls.unsupported(f"normalize={value}")
            elif key in ("policy", *_WITHOUT_EFFECT):
                pass
            elif value != signature[key].default and value != {}:
                raise cls.unsupported(f"{key}={value}")
        return cls(**settings)

    @classmethod
    def _policy_settings(cls, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        known = inspect.signature(cls.policy).parameters
        refuse_unknown(f"{cls.learner}'s policy_kwargs", kwargs, known)
        settings: dict[str, Any] = {}
        for key, value in kwargs.items():
            if key == "net_arch" and value is not None:
                nets = value if isinstance(value, Mapping) else {"pi": value, "qf": value}
                refuse_unknown(f"{cls.learner}'s net_arch", nets, ("pi", "qf"))
                if len(nets) != 2:
                    raise UserError(f"{cls.learner}'s net_arch is a list, or lists pi and qf")
                settings |= nets
            elif key == "activation_fn":
                settings["activation"] = activation(value).__name__
            elif key == "n_critics":
                settings[key] = value
            elif key == "optimizer_kwargs" and value is not None:
                settings |= cls._adam_settings(value)
            elif key in _POLICY_WITHOUT_EFFECT:
                convert(cls.learner, key, _POLICY_WITHOUT_EFFECT[key], value)
            elif value != known[key].default and value != {}:
                raise cls.unsupported(f"{key}={value} in policy_kwargs")
        return settings

    @classmethod
    def _adam_settings(cls, value: Any) -> dict[str, Any]:
        kwargs = convert(cls.learner, "optimizer_kwargs", dict[str, Any], value)
        names = {"betas": "adam_betas", "eps": "adam_eps", "weight_decay": "weight_decay"}
        # How PyTorch computes it is this project's affair.
        for key in kwargs.keys() - names.keys() - {"fused", "foreach"}:
            if key in ("amsgrad", "maximize") and kwargs[key] is False:
                continue
            raise cls.unsupported(f"{key}={kwargs[key]} in optimizer_kwargs")
        return {names[key]: value for key, value in kwargs.items() if key in names}

    def policy_kwargs(self) -> dict[str, Any]:
        """The `policy_kwargs` of an equal agent of Stable-Baselines3."""
        adam = {"betas": self.adam_betas, "eps": self.adam_eps, "weight_decay": self.weight_decay}
        return {
            "net_arch": {"pi": list(self.pi), "qf": list(self.qf)},
            "activation_fn": getattr(torch.nn, self.activation),
            "n_critics": self.n_critics,
            "optimizer_kwargs": adam,
        }

    def policy_class(self) -> type[BasePolicy]:
        """The policy of an equal agent of Stable-Baselines3."""
        return self.policy

    def arguments(self) -> dict[str, Any]:
        """Further arguments of an equal agent of Stable-Baselines3."""
        names = inspect.signature(self.algorithm).parameters.keys() & {f.name for f in fields(self)}
        return {name: getattr(self, name) for name in names - sb3_settings.OURS}

    def rate(self, progress_remaining: float) -> float:
        """The learning rate when this share of the training remains."""
        rate = self.learning_rate
        return float(rate(progress_remaining) if callable(rate) else rate)

    @property
    def rollout(self) -> int:
        """Steps of each environment in one iteration."""
        n, unit = self.train_freq
        return n if unit == "step" else 1

    def capacity(self, steps: int) -> int:
        """Transitions that the buffer of a lifetime of so many steps holds at most."""
        # A lifetime ends the rollout that reaches its budget.
        needed = -(-steps // (self.n_envs * self.rollout)) * self.rollout
        return min(self.buffer_size // self.n_envs, needed) * self.n_envs

    def cohort_key(
        self, observation_space: spaces.Space, action_space: spaces.Space
    ) -> tuple[Hashable, ...]:
        """What the agents of one cohort agree in.

        Raises:
            UserError: spaces other than a Box that is no image for observations, a bounded Box for
                actions.
        """
        if not isinstance(observation_space, spaces.Box) or is_image_space(observation_space):
            raise self.unsupported(f"the observation space {observation_space}")
        check_actions(self.learner, action_space, spaces.Box)
        assert isinstance(action_space, spaces.Box)
        box = (action_space.shape, action_space.low.tobytes(), action_space.high.tobytes())
        return (observation_space.shape, box, *(getattr(self, name) for name in self.shared))

    def lengths(
        self, observation_space: spaces.Space, action_space: spaces.Space
    ) -> tuple[int, int]:
        """Of an observation and of an action."""
        return int(np.prod(observation_space.shape or ())), int(np.prod(action_space.shape or ()))
