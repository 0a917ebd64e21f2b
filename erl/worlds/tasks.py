"""Tasks: which environment, what of it the agent may see, and the ledger that counts every step
taken in it.

Knows no learner. `make_env` is the only place that calls `gym.make`.
"""

import importlib
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from erl.errors import RAISED, UserError, nearest

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


class EnvironmentFault(RuntimeError):
    """An environment raised, or returned an observation or a reward that is not finite."""


@dataclass(frozen=True)
class Task:
    """An environment and what the agent sees of it.

    Attributes:
        env_id: Gymnasium's name, or `module:name` for an environment that a module registers.
        del_obs: whether the velocities are deleted from the observation.
        frame_stack: how many observations it sees at a time, the oldest first; zeros stand for
            those before a reset.
    """

    env_id: str
    del_obs: bool = False
    frame_stack: int = 1


@dataclass
class Ledger:
    """Counts one lifetime's steps where its environments are stepped, and keeps its episodes.

    Attributes:
        steps: steps taken so far, in all of the lifetime's environments.
        episodes: (steps so far at its end, return, length) of every finished episode, in order.
        on_step: called with `steps` after every 256th step.
        should_stop: asked, from time to time, whether the lifetime shall end before its budget.
        earlier: steps, and seconds they took, before the lifetime was taken up from a checkpoint.
        reporting: seconds since then that went into what is only reported.
        notes: gives what else the learner has noted for the lifetime's record.
    """

    steps: int = 0
    episodes: list[tuple[int, float, int]] = field(default_factory=list)
    on_step: Callable[[int], None] | None = None
    should_stop: Callable[[], bool] | None = None
    earlier: tuple[int, float] = (0, 0.0)
    reporting: float = 0.0
    notes: Callable[[], dict[str, Any] | None] | None = None

    def step(self, n: int = 1) -> None:
        """Count `n` steps."""
        before, self.steps = self.steps, self.steps + n
        if self.on_step is not None and before >> 8 != self.steps >> 8:
            self.on_step(self.steps)

    @property
    def stopped(self) -> bool:
        """Whether the lifetime was told to end."""
        return self.should_stop is not None and self.should_stop()

    def episode(self, total_return: float, length: int) -> None:
        """Keep a finished episode."""
        self.episodes.append((self.steps, float(total_return), int(length)))


def shared_seconds(ledgers: Sequence[Ledger], elapsed: float) -> list[float]:
    """Seconds of training of lifetimes that were trained side by side for `elapsed` seconds: each
    one's share by its steps.

    What is only reported takes none of them.
    """
    elapsed -= sum(ledger.reporting for ledger in ledgers)
    new = [ledger.steps - ledger.earlier[0] for ledger in ledgers]
    return [ledger.earlier[1] + elapsed * n / max(1, sum(new)) for ledger, n in zip(ledgers, new)]


def _spec(env_id: str) -> Any:
    """Gymnasium's specification of `env_id`; a UserError with the nearest names if there is
    none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module, _, name = env_id.rpartition(":")
            if module:
                importlib.import_module(module)
            return gym.spec(name)
    except ModuleNotFoundError as e:
        raise UserError(f"environment {env_id!r}: {e}") from e
    except gym.error.DeprecatedEnv as e:
        name = env_id.rpartition("-v")[0]
        newest = max(
            (s.version or 0, i)
            for i, s in gym.registry.items()
            if s.name == name.rpartition("/")[2]
        )[1]
        raise UserError(
            f"environment {env_id!r} is gone from Gymnasium {gym.__version__}; use {newest}"
        ) from e
    except gym.error.Error as e:
        name = env_id.rpartition("-v")[0]
        versions = [i for i, s in gym.registry.items() if name and i.rpartition("-v")[0] == name]
        hint = f"; it has {', '.join(versions)}" if versions else nearest(env_id, gym.registry)
        raise UserError(f"unknown environment {env_id!r}{hint}") from e
    except Exception as e:  # the module in front of the name runs when it is imported
        raise UserError(f"environment {env_id!r} cannot be found: {type(e).__name__}: {e}") from e


def _observed(task: Task, observation_space: spaces.Box) -> np.ndarray | None:
    """Indices of the observation's entries that the agent sees; None for all."""
    if not task.del_obs:
        return None
    if task.env_id not in VELOCITIES:
        raise UserError(
            f"no velocities are known for {task.env_id!r}: --del_obs takes {', '.join(VELOCITIES)}"
        )
    return np.delete(np.arange(observation_space.shape[0]), VELOCITIES[task.env_id])


def _make(env_id: str, **kwargs: Any) -> gym.Env:
    _spec(env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return gym.make(env_id, disable_env_checker=True, **kwargs)
        except Exception as e:  # its constructor may raise anything
            raise UserError(
                f"environment {env_id!r} cannot be made: {type(e).__name__}: "
                f"{' '.join(str(e).split())}"
            ) from e


@cache
def check_task(task: Task) -> tuple[spaces.Box, spaces.Space]:
    """The observation space (velocities deleted if so asked) and the action space of a task.

    Raises:
        UserError: unknown environment, or one whose observations or actions are not supported.
    """
    env = _make(task.env_id)
    observation_space, action_space = env.observation_space, env.action_space
    env.close()
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        kind = (
            "images"
            if isinstance(observation_space, spaces.Box)
            else type(observation_space).__name__
        )
        raise UserError(
            f"{task.env_id} observes {kind} (shape {observation_space.shape}); agents here take "
            f"vectors of numbers"
        )
    if not (isinstance(action_space, spaces.Discrete) or _is_vector_box(action_space)):
        raise UserError(
            f"{task.env_id} takes {action_space} for its actions; agents here take Discrete and "
            f"Box vectors"
        )
    seen = _restrict(observation_space, _observed(task, observation_space))
    return stacked_space(seen, task.frame_stack), action_space


def stacked_space(space: spaces.Box, frame_stack: int) -> spaces.Box:
    """The space of several observations side by side; zeros, which stand for what was before a
    reset, lie in it.
    """
    if frame_stack == 1:
        return space
    low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)
    return spaces.Box(np.tile(low, frame_stack), np.tile(high, frame_stack), dtype=space.dtype.type)


def _is_vector_box(space: spaces.Space) -> bool:
    return (
        isinstance(space, spaces.Box)
        and len(space.shape) == 1
        and np.issubdtype(space.dtype, np.floating)
        and space.is_bounded()
    )


def _restrict(space: spaces.Box, keep: np.ndarray | None) -> spaces.Box:
    if keep is None:
        return space
    return spaces.Box(space.low[keep], space.high[keep], dtype=space.dtype.type)


class HiddenVelocities(gym.ObservationWrapper, RecordConstructorArgs):
    """Deletes entries of the observation.

    Args:
        env: environment with vector observations.
        keep: indices of the entries that stay.
    """

    def __init__(self, env: gym.Env, keep: np.ndarray) -> None:
        RecordConstructorArgs.__init__(self, keep=keep)
        gym.ObservationWrapper.__init__(self, env)
        self.keep = keep
        assert isinstance(env.observation_space, spaces.Box)
        self.observation_space = _restrict(env.observation_space, keep)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """The entries that stay."""
        return observation[self.keep]


class StackedFrames(gym.Wrapper, RecordConstructorArgs):
    """Shows the latest observations side by side, the oldest first, as Stable-Baselines3's
    VecFrameStack does.

    Args:
        env: environment with vector observations.
        frame_stack: how many.
    """

    def __init__(self, env: gym.Env, frame_stack: int) -> None:
        RecordConstructorArgs.__init__(self, frame_stack=frame_stack)
        gym.Wrapper.__init__(self, env)
        assert isinstance(env.observation_space, spaces.Box)
        self.observation_space = stacked_space(env.observation_space, frame_stack)
        self._size = env.observation_space.shape[0]
        self._frames = np.zeros(self.observation_space.shape, self.observation_space.dtype)

    def _push(self, observation: np.ndarray) -> np.ndarray:
        self._frames = np.concatenate([self._frames[self._size :], observation]).astype(
            self.observation_space.dtype
        )
        return self._frames

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: zeros, then its observation."""
        observation, info = self.env.reset(**kwargs)
        self._frames = np.zeros_like(self._frames)
        return self._push(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step, and drop the oldest observation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._push(observation), reward, terminated, truncated, info


class Metered(gym.Wrapper, RecordConstructorArgs):
    """Enters every step and episode in a ledger and stops at the first value that is not finite.

    Finished episodes are also announced in `info["episode"]`, as Stable-Baselines3's Monitor does.
    """

    def __init__(self, env: gym.Env, ledger: Ledger | None = None) -> None:
        RecordConstructorArgs.__init__(
            self
        )  # an environment made again from its specification has its own ledger
        gym.Wrapper.__init__(self, env)
        self.ledger = ledger if ledger is not None else Ledger()
        self._return, self._length = 0.0, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        try:
            observation, info = self.env.reset(**kwargs)
        except RAISED as e:
            raise EnvironmentFault(
                f"the environment raised at a reset: {type(e).__name__}: {e}"
            ) from e
        self._check("an observation", observation)
        self._return, self._length = 0.0, 0
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, count and check."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except RAISED as e:
            where = f"at step {self.ledger.steps + 1}"
            raise EnvironmentFault(
                f"the environment raised {where}: {type(e).__name__}: {e}"
            ) from e
        self.ledger.step()
        self._check("a reward", reward)
        self._check("an observation", observation)
        self._return += float(reward)
        self._length += 1
        if terminated or truncated:
            self.ledger.episode(self._return, self._length)
            info = {**info, "episode": {"r": self._return, "l": self._length, "t": 0.0}}
        return observation, reward, terminated, truncated, info

    def _check(self, what: str, value: Any) -> None:
        if not np.isfinite(value).all():
            shown = np.array2string(np.asarray(value), threshold=8)
            raise EnvironmentFault(
                f"the environment returned {what} that is not finite, {shown}, at step "
                f"{self.ledger.steps}"
            )


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
    env, keep = make_bare_env(task, render_mode)
    if keep is not None:
        env = HiddenVelocities(env, keep)
    env = Metered(env, ledger)
    return env if task.frame_stack == 1 else StackedFrames(env, task.frame_stack)


def make_bare_env(task: Task, render_mode: str | None = None) -> tuple[gym.Env, np.ndarray | None]:
    """Gymnasium's environment without this project's wrappers, and the indices that the agent sees
    (None: all).
    """
    # An environment that cannot be rendered may not know the argument.
    env = _make(task.env_id) if render_mode is None else _make(task.env_id, render_mode=render_mode)
    assert isinstance(env.observation_space, spaces.Box)
    return env, _observed(task, env.observation_space)
