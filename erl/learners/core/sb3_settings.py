"""Settings of Stable-Baselines3's and sb3-contrib's algorithms: keyword arguments of their
constructors, spelled as in Python or as in the SB3 Zoo's files.

What a value may be follows from the constructors' annotations, and from the bounds below, which
annotations do not have.
"""

import copy
import inspect
import math
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
)
from stable_baselines3.common.vec_env import VecEnv

from erl.errors import UserError
from erl.learners.core.settings import (
    Count,
    EvaluationSettings,
    NotNegative,
    Positive,
    Range,
    Share,
    convert,
    refuse_unknown,
)
from erl.learners.core.settings_file import parse_value

# Arguments that this project sets itself.
OURS = frozenset(
    {
        "env",
        "seed",
        "tensorboard_log",
        "verbose",
        "device",
        "_init_setup_model",
        "stats_window_size",
    }
)
# Arguments that are objects of Python, which no file can give.
_OBJECTS = frozenset({"action_noise", "replay_buffer_class", "rollout_buffer_class"})

_BOUNDS: dict[str, Range] = {
    **dict.fromkeys(
        (
            "gamma",
            "gae_lambda",
            "tau",
            "exploration_initial_eps",
            "exploration_final_eps",
            "line_search_shrinking_factor",
        ),
        Range(0, 1),
    ),
    **dict.fromkeys(
        (
            "learning_rate",
            "clip_range",
            "clip_range_vf",
            "max_grad_norm",
            "target_kl",
            "delta_std",
            "rms_prop_eps",
        ),
        Range(above=0),
    ),
    "exploration_fraction": Range(above=0, high=1),
    **dict.fromkeys(
        (
            "batch_size",
            "buffer_size",
            "cg_max_steps",
            "line_search_max_iter",
            "n_critic_updates",
            "n_delta",
            "n_epochs",
            "n_eval_episodes",
            "n_steps",
            "n_top",
            "policy_delay",
            "sub_sampling_factor",
            "target_update_interval",
        ),
        Range(1),
    ),
    **dict.fromkeys(
        (
            "cg_damping",
            "learning_starts",
            "target_noise_clip",
            "target_policy_noise",
            "top_quantiles_to_drop_per_net",
            "vf_coef",
        ),
        Range(0),
    ),
}
# Where an annotation takes too much even with bounds.
_ANNOTATIONS: dict[str, Any] = {
    "gradient_steps": Count | Literal[-1],
    "sde_sample_freq": Count | Literal[-1],
    "target_entropy": float | Literal["auto"],
    "train_freq": Count | tuple[Count, Literal["step", "episode"]],
}

NORMALIZE: dict[str, Any] = {
    "norm_obs": bool,
    "norm_reward": bool,
    "clip_obs": Positive,
    "clip_reward": Positive,
    "gamma": Share,
    "epsilon": Positive,
    "training": bool,
}


@cache
def annotations(algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    """What each setting of an algorithm may be, by name: its constructor's arguments, and `n_envs`,
    `normalize`, `noise_type`, `noise_std` of the Zoo's files.
    """
    found = typing.get_type_hints(algorithm.__init__, None, {"VecEnv": VecEnv})
    known: dict[str, Any] = {}
    for name in inspect.signature(algorithm.__init__).parameters:
        if name in found and name not in OURS | _OBJECTS:
            known[name] = _ANNOTATIONS.get(name) or _bounded(found[name], _BOUNDS.get(name))
    known["policy"] = Literal[tuple(policies(algorithm))]
    known |= {"n_envs": Count, "normalize": bool | dict[str, Any]}
    if "action_noise" in found:
        known["noise_type"] = Literal["normal", "ornstein-uhlenbeck"] | None
        known["noise_std"] = NotNegative
    evaluation = typing.get_type_hints(EvaluationSettings, include_extras=True)
    return known | {name: evaluation[name] for name in ("eval_freq", "eval_episodes")}


def _bounded(annotation: Any, bounds: Range | None) -> Any:
    """An annotation with bounds at its number."""
    if bounds is None:
        return annotation
    if annotation in (int, float):
        return Annotated[annotation, bounds]
    alternatives = typing.get_args(annotation)
    bounded = [Annotated[a, bounds] if a in (int, float) else a for a in alternatives]
    return Union[tuple(bounded)]  # noqa: UP007


def policies(algorithm: type[BaseAlgorithm]) -> list[str]:
    """Names of an algorithm's policies that see vectors, its usual one first."""
    names = [name for name in algorithm.policy_aliases if name.startswith(("Mlp", "Linear"))]
    return sorted(names, key=lambda name: not name.startswith("Mlp"))


def read(
    name: str,
    algorithm: type[BaseAlgorithm],
    config: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A learner's configuration as settings of the algorithm, each in the form that it takes.

    Args:
        name: of the learner, for messages.
        algorithm: its class.
        config: as files spell it; stays as it is.
        more: annotations of settings that this project's own implementation has beside.

    Raises:
        UserError: a setting is unknown, has a value that cannot be, or does not fit another one.
    """
    known = {**annotations(algorithm), **(more or {})}
    for key in config:
        if key in OURS and key not in known:
            raise UserError(f"{key} is not {name}'s to set here: this project does")
        if key in _OBJECTS:
            raise UserError(f"{name}'s {key} has a value that settings cannot name")
    refuse_unknown(name, config, known)
    settings = {
        key: convert(name, key, known[key], parse_value(copy.deepcopy(value)))
        for key, value in config.items()
    }
    if isinstance(settings.get("normalize"), dict):
        settings["normalize"] = _normalize(name, settings["normalize"])
    _check_together(name, algorithm, settings)
    return settings


def _normalize(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    what = f"{name}'s normalize"
    refuse_unknown(what, arguments, NORMALIZE)
    return {key: convert(what, key, NORMALIZE[key], value) for key, value in arguments.items()}


def _check_ent_coef(name: str, ent_coef: float | str) -> None:
    """Refuse a coefficient of the entropy that cannot be, where `auto` learns it."""
    single = np.finfo(np.float32)
    if isinstance(ent_coef, str):
        learned, _, initial = ent_coef.partition("_")
        try:
            value = float(initial) if initial else 1.0
        except ValueError:
            value = math.nan
        # Its logarithm is learned. Stable-Baselines3 reads up to a second underscore.
        spelled = ent_coef == "auto" or (learned == "auto" and initial and "_" not in initial)
        fits = bool(spelled and single.tiny <= value <= single.max)
    else:
        fits = bool(0.0 <= ent_coef <= single.max)
    if not fits:
        raise UserError(
            f"{name}'s ent_coef must be a number from 0, auto or auto_NUMBER (above 0), not "
            f"{ent_coef!r}"
        )


def action_noise(kind: str | None, std: float, action_space: spaces.Space) -> ActionNoise | None:
    """The noise that `noise_type` and `noise_std` mean, as a model of Stable-Baselines3 has it."""
    if kind is None:
        return None
    shape = action_space.shape or ()
    made = NormalActionNoise if kind == "normal" else OrnsteinUhlenbeckActionNoise
    return made(np.zeros(shape), np.full(shape, std))


def _check_together(name: str, algorithm: type[BaseAlgorithm], settings: Mapping[str, Any]) -> None:
    """Refuse settings that the constructor takes and training fails over, or learns nothing with.

    Some are assertions of Stable-Baselines3, which `python -O` leaves out.
    """
    usual = inspect.signature(algorithm.__init__).parameters

    def setting(key: str) -> Any:
        return settings.get(key, usual[key].default if key in usual else None)

    n_envs = settings.get("n_envs", 1)
    if setting("normalize_advantage"):
        size = setting("n_steps") * n_envs
        # TRPO normalises over what it takes of the rollout, PPO leaves a minibatch of one as it is,
        # and RecurrentPPO's becomes NaN.
        smallest = -(-size // (setting("sub_sampling_factor") or 1))
        if name in ("PPO", "RecurrentPPO"):
            batch_size = min(setting("batch_size") or size, size)
            smallest = batch_size if name == "PPO" else size % batch_size or batch_size
        if smallest < 2:
            raise UserError(
                f"{name} normalises advantages over minibatches, and one would have a single step: "
                f"choose another n_steps * n_envs ({size}), batch_size or sub_sampling_factor, or "
                f"set normalize_advantage to false"
            )
    if settings.get("noise_std") and settings.get("noise_type") is None:
        raise UserError(
            f"{name}'s noise_std changes nothing without noise_type: normal or ornstein-uhlenbeck"
        )
    if settings.get("noise_type") is not None and "noise_std" not in settings:
        raise UserError(f"{name}'s noise_type changes nothing without noise_std")
    train_freq = setting("train_freq")
    if isinstance(train_freq, tuple) and train_freq[1] == "episode" and n_envs > 1:
        raise UserError(f"{name}'s train_freq counts episodes, which needs n_envs 1, not {n_envs}")
    if usual.get("ent_coef") is not None and isinstance(usual["ent_coef"].default, str):
        _check_ent_coef(name, setting("ent_coef"))
    dropped = setting("top_quantiles_to_drop_per_net")
    n_quantiles = (setting("policy_kwargs") or {}).get("n_quantiles", 25)
    if dropped is not None and not isinstance(n_quantiles, int):
        raise UserError(f"{name}'s n_quantiles must be a whole number from 1, not {n_quantiles!r}")
    if dropped is not None and dropped >= n_quantiles:
        raise UserError(
            f"{name}'s top_quantiles_to_drop_per_net, {dropped}, leaves none of {n_quantiles} "
            f"quantiles"
        )
