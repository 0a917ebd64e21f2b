"""A first look at an environment: one reset and one step, before anything is stored or trained."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np

from erl.errors import RAISED, EnvironmentFault, UserError, one_line
from erl.worlds.actions import Actions
from erl.worlds.observations import Observations, is_finite, reward_of

_RESET = "reset(self, *, seed=None, options=None), which returns (observation, info)"
_STEP = "step(action), which returns (observation, reward, terminated, truncated, info)"


def try_out(env: gym.Env, name: str, observations: Observations, actions: Actions) -> None:
    """Reset an environment and take one step, and compare what comes with what Gymnasium asks for
    and the environment declares.

    Args:
        env: fresh; it is not to be used afterwards.
        name: for messages.
        observations, actions: of its spaces.

    Raises:
        UserError: names the fault, what was expected, what came, and the way out.
    """
    returned = _record(env.unwrapped)
    result: Any
    try:
        result = env.reset(seed=0)
    except RAISED as e:
        if isinstance(e, TypeError) and "seed" in str(e):
            raise UserError(
                f"{name}: its reset takes no seed, as in Gym before version 0.26; Gymnasium asks "
                f"for {_RESET}"
            ) from e
        raise _raised(name, "reset", e) from e
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise UserError(
            f"{name}: its reset returned {_kind(result)}, as in Gym before version 0.26; Gymnasium "
            f"asks for {_RESET}"
        )
    _check_observation(name, "reset", observations, result[0])
    (action,) = actions.decode(actions.batch([actions.first]))
    try:
        result = env.step(action)
    except RAISED as e:
        # Gymnasium's wrappers unpack what the environment returned.
        inner = returned.get("step")
        if isinstance(inner, tuple) and len(inner) != 5:
            raise _wrong_step(name, inner) from e
        raise _raised(name, "step", e) from e
    if not isinstance(result, tuple) or len(result) != 5:
        raise _wrong_step(name, result)
    observation, reward, *ends, info = result
    _check_observation(name, "step", observations, observation)
    try:
        earned = reward_of(reward)
    except EnvironmentFault as e:
        raise UserError(
            f"{name}: its step returned the reward {_kind(reward)}; a reward is one number, such "
            f"as float(reward)"
        ) from e
    if not np.isfinite(earned):
        raise UserError(f"{name}: its first step returned a reward that is not finite: {earned}")
    for what, end in zip(("terminated", "truncated"), ends):
        if not isinstance(end, bool | np.bool_ | int | np.integer):
            raise UserError(
                f"{name}: its step returned {_kind(end)} for {what}, which is True or False; "
                f"Gymnasium asks for {_STEP}"
            )
    if not isinstance(info, Mapping):
        raise UserError(
            f"{name}: its step returned {_kind(info)} for info, which is a dictionary; Gymnasium "
            f"asks for {_STEP}"
        )


def _record(env: Any) -> dict[str, Any]:
    """Have an environment keep what its `step` returned last, below all wrappers."""
    returned: dict[str, Any] = {}
    step = env.step

    def recording(action: Any) -> Any:
        returned["step"] = step(action)
        return returned["step"]

    with suppress(AttributeError):  # without room for attributes, errors are less precise
        env.step = recording
    return returned


def _check_observation(name: str, where: str, observations: Observations, value: Any) -> None:
    try:
        seen = observations.encode(value)
    except EnvironmentFault as e:
        reason = str(e).removeprefix("the environment returned ")
        raise UserError(
            f"{name}: its {where} returned {reason}; observation_space and observations have to "
            f"agree"
        ) from e
    if not is_finite(seen):
        raise UserError(
            f"{name}: its first {where} returned an observation that is not finite: "
            f"{np.array2string(seen, threshold=8)}"
        )


def _wrong_step(name: str, result: Any) -> UserError:
    old = isinstance(result, tuple) and len(result) == 4
    return UserError(
        f"{name}: its step returned {_kind(result)}"
        + (", as in Gym before version 0.26" if old else "")
        + f"; Gymnasium asks for {_STEP}"
    )


def _raised(name: str, where: str, error: BaseException) -> UserError:
    said = one_line(error)
    return UserError(f"{name}: its first {where} raised {type(error).__name__}: {said}")


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return "None" if value is None else f"{value!r:.40} ({type(value).__name__})"
