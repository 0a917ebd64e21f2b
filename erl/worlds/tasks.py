"""Tasks: which environment, with which arguments, and what of it the agent may see.

Knows no learner. Only here is `gym.make` called.
"""

import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from inspect import Parameter
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

from erl.errors import RAISED, UserError, nearest, one_line
from erl.worlds.actions import Actions
from erl.worlds.arguments import Arguments
from erl.worlds.env_check import try_out
from erl.worlds.ledger import Ledger
from erl.worlds.observations import Observations
from erl.worlds.own_context import see_working_folder
from erl.worlds.wrappers import Metered, StackedFrames, close_quietly, stacked_space

__all__ = [
    "VELOCITIES",
    "Task",
    "bare_name",
    "check_task",
    "find",
    "make_bare_env",
    "make_env",
]

# Entries of the observation that are velocities (ER-MRL's partially observable tasks), by
# Gymnasium's present names.
VELOCITIES: dict[str, tuple[int, ...]] = {
    "CartPole-v1": (1, 3),
    "Pendulum-v1": (2,),
    "MountainCar-v0": (1,),
    "MountainCarContinuous-v0": (1,),
    "LunarLander-v3": (2, 3, 5),
    "LunarLanderContinuous-v3": (2, 3, 5),
}


_log = logging.getLogger(__name__)
# MuJoCo would print its warnings and write them to a file in the working folder.
mujoco.set_mju_user_warning(lambda message: _log.info("MuJoCo: %s", message))


_NONE = Arguments()


@dataclass(frozen=True)
class Task:
    """An environment and what the agent sees of it.

    Attributes:
        env_id: Gymnasium's name, or `module:name` for an environment that a module registers.
        del_obs: whether the velocities are deleted from the observation.
        frame_stack: how many observations it sees at a time, the oldest first; zeros stand for
            those before a reset.
        kwargs: arguments of the environment's constructor, beside those that it is registered with.
    """

    env_id: str
    del_obs: bool = False
    frame_stack: int = 1
    # Left out of JSON where there are none, as before there were any.
    kwargs: Mapping[str, Any] = field(default=_NONE, metadata={"omit_default": True})

    def __post_init__(self) -> None:
        if not isinstance(self.kwargs, Arguments):
            object.__setattr__(self, "kwargs", Arguments(self.kwargs))


# Packages of environments that are extras of this project.
EXTRAS = frozenset({"popgym"})


def find(env_id: str) -> Any:
    """Gymnasium's specification of `env_id`.

    Raises:
        UserError: there is none; with the nearest names.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module, _, name = env_id.rpartition(":")
            if module:
                see_working_folder()
                importlib.import_module(module)
            return gym.spec(name)
    except ModuleNotFoundError as e:
        hint = f'; pip install "erl[{e.name}]"' if e.name in EXTRAS else ""
        raise UserError(f"environment {env_id!r}: {e}{hint}") from e
    except gym.error.DeprecatedEnv as e:
        others = _versions(env_id)
        use = f"; use {others[-1]}" if others else ""
        raise UserError(
            f"Gymnasium {gym.__version__} no longer has environment {env_id!r}{use}"
        ) from e
    except gym.error.Error as e:
        versions = _versions(env_id)
        hint = f"; known versions: {', '.join(versions)}" if versions else _similar(env_id)
        raise UserError(f"unknown environment {env_id!r}{hint}") from e
    except RAISED as e:  # the module in front of the name runs when it is imported
        raise UserError(f"environment {env_id!r} cannot be found: {type(e).__name__}: {e}") from e


def bare_name(env_id: str) -> str:
    """The name of an environment without its module and its version: `Ant` of `module:Ant-v4`."""
    return re.sub(r"-v[0-9]+$", "", env_id.rpartition(":")[2])


def _versions(env_id: str) -> list[str]:
    """All versions of an environment that there are, as they are registered, oldest first."""
    name = bare_name(env_id)
    found = [(s.version or 0, i) for i, s in gym.registry.items() if bare_name(i) == name]
    return [registered for _, registered in sorted(found)]


def _similar(env_id: str) -> str:
    """Environments with almost this name, as the end of a message, or what to do where a package is
    missing.
    """
    namespace, _, _ = env_id.rpartition("/")
    if namespace and not any(spec.namespace == namespace for spec in gym.registry.values()):
        return (
            f": no package that is loaded has environments {namespace}/…; install the package, and "
            f"name its module too, MODULE:{env_id}"
        )
    alike = [i for i, s in gym.registry.items() if (s.namespace or "") == namespace]
    close = get_close_matches(env_id.casefold(), [i.casefold() for i in alike], 3, cutoff=0.7)
    return nearest(close[0], alike) if close else "; MODULE:NAME names one of a module of yours"


def _hidden(task: Task) -> np.ndarray | None:
    """Indices of the flat observation's entries that the agent does not see; None for none."""
    if not task.del_obs:
        return None
    name = task.env_id.rpartition(":")[2]
    if name not in VELOCITIES:
        raise UserError(
            f"--del_obs does not know the velocities of {task.env_id!r}; it knows "
            f"{', '.join(VELOCITIES)}"
        )
    return np.array(VELOCITIES[name])


def _make(task: Task, **more: Any) -> gym.Env:
    find(task.env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return gym.make(task.env_id, disable_env_checker=True, **{**task.kwargs, **more})
        except RAISED as e:  # its constructor may raise anything
            if unknown := _unknown_argument(task, e):
                raise UserError(unknown) from e
            given = f" with {task.kwargs}" if task.kwargs else ""
            raise UserError(
                f"environment {task.env_id!r} cannot be made{given}: {type(e).__name__}: "
                f"{one_line(e)}"
            ) from e


def _unknown_argument(task: Task, error: BaseException) -> str | None:
    """A message with the arguments that the environment takes, where its constructor refused one
    that is none of them; None where it was something else, or that is not known.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or found is None or found[1] not in task.kwargs:
        return None
    creator = find(task.env_id).entry_point
    try:
        creator = load_env_creator(creator) if isinstance(creator, str) else creator
        parameters = inspect.signature(creator).parameters.values()
    except RAISED:  # of a module of the user's, or of a creator without a signature
        return None
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    known = {p.name for p in parameters if p.kind in by_name} - {"render_mode"}
    if found[1] in known:  # of something else that the constructor calls
        return None
    known.add("max_episode_steps")  # of `gym.make`
    return (
        f"environment {task.env_id!r} has no argument {found[1]!r}{nearest(found[1], known, 1)} "
        f"(known: {', '.join(sorted(known))})"
    )


@cache
def check_task(task: Task) -> tuple[spaces.Box, spaces.Space]:
    """Look at a task before anything is trained on it: make its environment, reset it, and take
    one step.

    Returns:
        The spaces of what agents see (flat, velocities hidden and frames stacked if so asked) and
        of what they choose: see `Observations` and `Actions`.

    Raises:
        UserError: an unknown environment, spaces that agents do not know, or a `reset` or `step`
            that does not do what Gymnasium asks.
    """
    hidden = _hidden(task)
    env = _make(task)
    try:
        observations = Observations(env.observation_space, task.env_id)
        actions = Actions(env.action_space, task.env_id)
        actions.check_bounds()
        try_out(env, task.env_id, observations, actions)
        keep = _keep(hidden, observations.size)
        seen = Observations(env.observation_space, task.env_id, keep).space
    finally:
        close_quietly(env)
    return stacked_space(seen, task.frame_stack), actions.agent_space


def _keep(hidden: np.ndarray | None, size: int) -> np.ndarray | None:
    """Indices of the entries that stay; None for all."""
    return None if hidden is None else np.delete(np.arange(size), hidden)


def make_env(task: Task, ledger: Ledger | None = None, render_mode: str | None = None) -> gym.Env:
    """Make a task's environment.

    Args:
        task: the task.
        ledger: where steps and episodes are entered; by default a new one, `env.ledger`.
        render_mode: Gymnasium's.

    Raises:
        UserError: see `check_task`.
    """
    check_task(task)
    env, _ = make_bare_env(task, render_mode)
    return wrap_env(env, task, ledger)


def wrap_env(env: gym.Env, task: Task, ledger: Ledger | None = None) -> gym.Env:
    """Gymnasium's environment of a task as agents without a context meet it: see `make_env`."""
    env = Metered(env, ledger, _seen_entries(env, task))
    return env if task.frame_stack == 1 else StackedFrames(env, task.frame_stack)


def make_bare_env(task: Task, render_mode: str | None = None) -> tuple[gym.Env, np.ndarray | None]:
    """Gymnasium's environment without this project's wrappers, and the indices of the flat
    observation's entries that the agent sees (None: all).
    """
    # An environment that cannot be rendered may not take the argument.
    env = _make(task) if render_mode is None else _make(task, render_mode=render_mode)
    return env, _seen_entries(env, task)


def _seen_entries(env: gym.Env, task: Task) -> np.ndarray | None:
    """Indices of the flat observation's entries that the agent sees; None for all."""
    hidden = _hidden(task)
    size = 0 if hidden is None else Observations(env.observation_space, task.env_id).size
    return _keep(hidden, size)
