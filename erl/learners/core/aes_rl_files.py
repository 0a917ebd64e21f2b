"""Settings as the published code of AES-RL spells them: its flags, and its JSON files.

https://github.com/KyunghyunLee/aes-rl
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from erl.errors import UserError, nearest

# Its names, and ours in an evolution of TD3 actors.
NAMES = {
    "hidden": "hidden",
    "lr": "learning_rate",
    "batch_size": "batch_size",
    "replay_size": "buffer_size",
    "discount": "gamma",
    "tau": "tau",
    "policy_noise": "target_policy_noise",
    "noise_clip": "target_noise_clip",
    "initial_steps": "learning_starts",
    "sigma_init": "var",
    "num_actor_worker": "actor_workers",
    "num_critic_worker": "critic_workers",
    "population_size": "population_size",
    "aesrl_mean_update": "mean_update",
    "aesrl_mean_update_param": "mean_update_param",
    "aesrl_var_update": "var_update",
    "aesrl_fixed_var_n": "fixed_var_n",
    "aesrl_negative_ratio": "negative_ratio",
    "aesrl_rl_ratio": "rl_ratio",
    "aesrl_rl_k": "rl_k",
    "aesrl_sigma_limit": "var_floor",
    "aesrl_critic_batch": "critic_job",
    "aesrl_one_plus_one_success_rate": "success_rate",
    "aesrl_one_plus_one_success_rate_tau": "success_decay",
    "cemrl_damp_init": "damp",
    "cemrl_damp_limit": "damp_limit",
    "cemrl_tau": "damp_tau",
    "cemrl_rl_population": "rl_population",
}
# The same in TD3.
_TD3_NAMES = {
    "lr": "learning_rate",
    "batch_size": "batch_size",
    "replay_size": "buffer_size",
    "discount": "gamma",
    "tau": "tau",
    "policy_noise": "target_policy_noise",
    "noise_clip": "target_noise_clip",
    "initial_steps": "learning_starts",
    "expl_noise": "noise_std",
    "update_freq": "policy_delay",
}
# What it takes where a file does not say, and we do not, at least in some environment.
_DEFAULTS = {
    "discount": 0.99,
    "batch_size": 100,
    "replay_size": 200_000,
    "num_actor_worker": 1,
    "hidden": [400, 300],
    "lr": 1e-3,
}
# What is 0 there where it is not given.
_NONE = ("population_size", "aesrl_fixed_var_n", "cemrl_rl_population", "aesrl_mean_update_param")
_SWITCHES = ("parallel_critic", "cemrl_no_antithetic")
_FIXED = {"actor_activation": "tanh", "critic_activation": "leaky_relu"}
# What has no meaning here, or is said by other flags.
_ELSEWHERE = {
    "env_name": "--env_id",
    "max_timestep": "--steps",
    "seed": "--seed",
    "logdir": "--logs",
    "ray_address": "--ray_address",
    "ray_port": "--ray_address",
}
_NOWHERE = (
    "redis_password",
    "visualize",
    "debug",
    "config",
    "actor_network_scheme",
    "cemrl_damp_tau",
    "update_freq",
    "expl_noise",
)


class Adopted(NamedTuple):
    """Settings in our names, and lines for the user: what does not apply."""

    settings: dict[str, Any]
    notes: tuple[str, ...] = ()


def adopt(
    learner: str,
    settings: Mapping[str, Any],
    known: Collection[str],
    given: Collection[str] = (),
) -> Adopted:
    """Settings of a file, in our names if the file is one of the published code, which says so by
    its `algorithm`.

    Args:
        learner: whom they are for.
        settings: what the file has.
        known: names of the learner's settings.
        given: those that a flag gives, which goes before the file.

    Raises:
        UserError: the file is for another algorithm, has an unknown key, or networks that are
            not known here.
    """
    if "algorithm" not in settings:
        return Adopted(dict(settings))
    if settings["algorithm"] != learner:
        raise UserError(
            f"these settings are for {settings['algorithm']}: add --learner "
            f"{settings['algorithm']}, in place of {learner}"
        )
    every = [*NAMES, *_SWITCHES, *_FIXED, *_ELSEWHERE, *_NOWHERE]
    names = _TD3_NAMES if learner == "TD3" else NAMES
    adopted: dict[str, Any] = {}
    left_out: list[str] = []
    by_default: list[str] = []
    for key, value in {**_DEFAULTS, **settings}.items():
        if key == "algorithm":
            continue
        known_here = names.get(key) in known or (learner == "TD3" and key == "hidden")
        if key not in settings and known_here and names.get(key) not in given:
            by_default.append(f"{key} {value}")
        if key not in every:
            raise UserError(f"the published code has no setting {key!r}{nearest(key, every)}")
        if key in _FIXED:
            if value != _FIXED[key]:
                raise UserError(f"{key} is {_FIXED[key]} here, not {value!r}")
        elif key == "hidden" and learner == "TD3":
            adopted["policy_kwargs"] = {"net_arch": value}
        elif key == "parallel_critic":
            adopted |= {"critic_workers": 1} if value else {}
        elif key == "cemrl_no_antithetic" and "antithetic" in known:
            adopted["antithetic"] = not value
        elif _not_given(key, value, settings):
            continue
        elif key == "num_critic_worker" and learner != "P-CEM-RL":
            if value not in (0, 1):  # there is but one possible value here
                left_out.append(f"{key} {value}")
        elif key == "num_critic_worker" and not settings.get("parallel_critic"):
            if value:  # there, too, it has a critic worker with that switch only
                left_out.append(f"{key} {value} (parallel_critic is not true)")
        elif names.get(key) in known:
            adopted.setdefault(names[key], value)
        elif key in settings:
            there = f" ({_ELSEWHERE[key]})" if key in _ELSEWHERE else ""
            left_out.append(f"{key}{there}")
    if learner == "TD3":
        adopted["preset"] = "aes_td3"
    notes = [f"{', '.join(left_out)} do not apply here and are left out"] if left_out else []
    if by_default:
        notes.append(f"not in the file, so as in the published code: {', '.join(by_default)}")
    return Adopted(adopted, tuple(notes))


def _not_given(key: str, value: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a number is 0 because nobody gave it. A baseline of 0 is one."""
    if (
        key == "aesrl_mean_update_param"
        and settings.get("aesrl_mean_update") == "baseline-absolute"
    ):
        return False
    return key in _NONE and not value
