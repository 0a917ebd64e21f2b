"""Settings of off-policy agents that train side by side: Stable-Baselines3's keyword arguments,
checked and in one form.
"""

import inspect
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space

from erl.errors import UserError, nearest
from erl.learners.core.settings import OURS, Schedule, activation, parse_value, schedule
from erl.learners.core.telemetry import Scores
from erl.networks.perceptrons import ACTIVATIONS

NOISES = ("normal", "ornstein-uhlenbeck")
PRECISIONS = ("fp32", "bf16")
_ADAM = {"lr", "betas", "eps", "weight_decay"}


@dataclass(frozen=True)
class OffPolicySettings:
    """Settings of one agent, in Stable-Baselines3's names and with its defaults.

    Attributes:
        learning_rate: a number, or a function of the share of the training that remains (1 to 0).
        buffer_size: transitions in the replay buffer.
        learning_starts: steps at random before anything is learned.
        train_freq: how many of `step` or `episode` lie between two times of learning; steps count
            once for all environments.
        gradient_steps: updates each time; -1: as many as steps were taken since.
        n_envs: environments per agent.
        noise_type, noise_std: of the noise on actions in [-1, 1], one of `NOISES` or None.
        pi, qf: widths of the hidden layers of actor and critics.
        activation: of the hidden layers, a key of `ACTIVATIONS`.
        n_critics: critics of an agent.
        adam_betas, adam_eps, weight_decay: Adam's.
        device: PyTorch's name of where the networks learn, or `auto`: a GPU if there is one.
        precision: `fp32`, or `bf16` for the factors of wide matrix products.
    """

    learning_rate: float | Schedule = 1e-3
    buffer_size: int = 1_000_000
    learning_starts: int = 100
    batch_size: int = 256
    tau: float = 0.005
    gamma: float = 0.99
    train_freq: tuple[int, str] = (1, "step")
    gradient_steps: int = 1
    n_envs: int = 1
    noise_type: str | None = None
    noise_std: float = 0.0
    pi: tuple[int, ...] = (256, 256)
    qf: tuple[int, ...] = (256, 256)
    activation: str = "ReLU"
    n_critics: int = 2
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    device: str = "cpu"
    precision: str = "fp32"

    algorithm: ClassVar[type[OffPolicyAlgorithm]]
    policy: ClassVar[type[BasePolicy]]
    # Whole numbers from 1 are those that are not named here, with the least that they may be.
    _LEAST: ClassVar[dict[str, int]] = {"learning_starts": 0, "gradient_steps": -1}
    _SHARES: ClassVar[tuple[str, ...]] = ("tau", "gamma")
    # What the agents of a cohort agree in.
    _SHARED: ClassVar[tuple[str, ...]] = (
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

    @classmethod
    def name(cls) -> str:
        """Of the algorithm."""
        return cls.algorithm.__name__

    def __post_init__(self) -> None:
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            if type(default) is int:
                least = self._LEAST.get(field.name, 1)
                if not _whole(value) or value < least:
                    raise self.wrong(field.name, f"a whole number from {least}", value)
            if type(default) is float and not callable(value):
                most = 1.0 if field.name in self._SHARES else math.inf
                if not _number(value) or not 0.0 <= value <= most:
                    kind = "a number from 0 to 1" if most == 1.0 else "a number from 0"
                    raise self.wrong(field.name, kind, value)
        for name in ("pi", "qf"):
            if any(not _whole(width) or width < 1 for width in getattr(self, name)):
                raise self.wrong("net_arch", "whole numbers from 1", list(getattr(self, name)))
        if self.activation not in ACTIVATIONS:
            raise self.unsupported(f"activation_fn={self.activation}")
        n, unit = self.train_freq
        if not _whole(n) or n < 1 or unit not in ("step", "episode"):
            kind = "a whole number from 1, or that of steps or episodes as [1, episode]"
            raise self.wrong("train_freq", kind, list(self.train_freq))
        if unit == "episode" and self.n_envs > 1:
            raise UserError(f"{self.name()} counts train_freq in episodes only where n_envs is 1")
        if self.noise_type not in (None, *NOISES):
            raise UserError(
                f"unknown noise_type {self.noise_type!r}{nearest(str(self.noise_type), NOISES)}"
            )
        if self.n_envs > self.buffer_size:
            raise UserError("buffer_size is at least n_envs")
        if self.precision not in PRECISIONS:
            raise self.wrong("precision", " or ".join(PRECISIONS), self.precision)
        self.resolved_device()

    @classmethod
    def wrong(cls, name: str, kind: str, value: Any) -> UserError:
        """The error for a value of another kind."""
        return UserError(f"{cls.name()}'s {name} is {kind}, not {value!r}")

    @classmethod
    def unsupported(cls, what: str) -> UserError:
        """The error for what Stable-Baselines3 itself has."""
        return UserError(
            f"the cohort engine of {cls.name()} does not know {what}: use --engine sb3"
        )

    def resolved_device(self) -> torch.device:
        """Where the networks learn."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError):
            raise self.wrong("device", "cpu, cuda or auto", self.device) from None
        if device.type not in ("cpu", "cuda"):
            raise self.wrong("device", "cpu, cuda or auto", self.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device={self.device}: PyTorch finds no GPU here; use device=cpu")
        return device

    @classmethod
    def from_learner_config(cls, config: Mapping[str, Any]) -> Self:
        """Settings from keyword arguments of Stable-Baselines3's algorithm plus `n_envs`,
        `noise_type` and `noise_std`, as in the SB3 Zoo's files, and `device` and `precision`.

        How often agents are scored on the way (`Scores.SETTINGS`) is left out. Schedules may be
        strings ("lin_3e-4" falls to zero), `policy_kwargs` a "dict(...)" expression.

        Raises:
            UserError: a key that is unknown, or a setting that only Stable-Baselines3 itself
                offers.
        """
        try:
            return cls(**cls._understood(config))
        except (TypeError, ValueError, AttributeError) as e:
            raise UserError(
                f"{cls.name()} cannot understand its settings: {' '.join(str(e).split())}"
            ) from e

    @classmethod
    def _understood(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        signature = inspect.signature(cls.algorithm).parameters
        beside = {"n_envs", "noise_type", "noise_std", "device", "precision"}
        own = {f.name for f in fields(cls)} & signature.keys() | beside
        settings: dict[str, Any] = {}
        for key, value in config.items():
            if key in own:
                settings[key] = cls._value(key, parse_value(value))
            elif key == "policy_kwargs":
                settings |= cls._policy_settings(parse_value(value) or {})
            elif key in Scores.SETTINGS:
                continue
            elif key in OURS:
                raise UserError(f"{key} is not {cls.name()}'s to set here: this project does")
            elif key == "normalize" or key in signature:
                usual = {"policy": "MlpPolicy", "normalize": False}
                default = usual[key] if key in usual else signature[key].default
                if parse_value(value) != default:
                    raise cls.unsupported(f"{key}={value}")
            else:
                known = own | {"policy_kwargs", *Scores.SETTINGS}
                raise UserError(f"{cls.name()} has no setting {key!r}{nearest(key, known)}")
        return settings

    @classmethod
    def _value(cls, key: str, value: Any) -> Any:
        if key == "learning_rate":
            return schedule(value)
        if key == "train_freq":
            return (value, "step") if _whole(value) else tuple(value)
        return value

    @classmethod
    def _policy_settings(cls, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        signature = inspect.signature(cls.policy).parameters
        settings: dict[str, Any] = {}
        for key, value in kwargs.items():
            if key == "net_arch" and value is not None:
                nets = value if isinstance(value, Mapping) else {"pi": value, "qf": value}
                if nets.keys() != {"pi", "qf"}:
                    raise cls.wrong("net_arch", "a list, or lists pi and qf", value)
                settings |= {net: tuple(nets[net]) for net in ("pi", "qf")}
            elif key == "activation_fn":
                settings["activation"] = activation(value).__name__
            elif key == "n_critics":
                settings[key] = value
            elif key == "optimizer_kwargs" and value is not None:
                settings |= cls._adam_settings(dict(value))
            elif key not in signature:
                raise UserError(
                    f"{cls.name()}'s policy_kwargs have no {key!r}{nearest(key, signature)}"
                )
            elif value != signature[key].default:
                raise cls.unsupported(f"{key}={value} in policy_kwargs")
        return settings

    @classmethod
    def _adam_settings(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        # How PyTorch computes it, which is this project's affair.
        for key in ("fused", "foreach"):
            kwargs.pop(key, None)
        for key, value in kwargs.items():
            if key not in ("betas", "eps", "weight_decay"):
                raise cls.unsupported(f"{key}={value} in optimizer_kwargs")
            if key == "betas":
                if len(value) != 2 or not all(_number(b) and 0 <= b < 1 for b in value):
                    raise cls.wrong("betas", "two numbers from 0 and below 1", value)
                value = tuple(map(float, value))
            settings[key if key == "weight_decay" else f"adam_{key}"] = value
        return settings

    def policy_kwargs(self) -> dict[str, Any]:
        """The `policy_kwargs` of an equal agent of Stable-Baselines3."""
        adam = {"betas": self.adam_betas, "eps": self.adam_eps, "weight_decay": self.weight_decay}
        usual = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        kwargs: dict[str, Any] = {
            "net_arch": {"pi": list(self.pi), "qf": list(self.qf)},
            "activation_fn": getattr(torch.nn, self.activation),
            "n_critics": self.n_critics,
        }
        return kwargs | ({} if adam == usual else {"optimizer_kwargs": adam})

    def arguments(self) -> dict[str, Any]:
        """Further arguments of an equal agent of Stable-Baselines3."""
        names = inspect.signature(self.algorithm).parameters.keys() & {f.name for f in fields(self)}
        return {name: getattr(self, name) for name in names - OURS}

    def rate(self, progress_remaining: float) -> float:
        """The learning rate when this share of the training remains."""
        rate: float | Callable[[float], float] = self.learning_rate
        return float(rate(progress_remaining) if callable(rate) else rate)

    def capacity(self, steps: int) -> int:
        """Transitions that the buffer of a lifetime of so many steps holds at most."""
        rows = max(self.buffer_size // self.n_envs, 1)
        # A lifetime ends the batch of steps that reaches its budget.
        batch = self.train_freq[0] if self.train_freq[1] == "step" else 1
        needed = -(-steps // (self.n_envs * batch)) * batch
        return min(rows, needed) * self.n_envs

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
        if not isinstance(action_space, spaces.Box) or not action_space.is_bounded():
            kind = type(action_space).__name__
            raise UserError(f"{self.name()} takes continuous (Box) actions, not {kind} ones")
        box = (action_space.shape, action_space.low.tobytes(), action_space.high.tobytes())
        return (observation_space.shape, box, *(getattr(self, name) for name in self._SHARED))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
