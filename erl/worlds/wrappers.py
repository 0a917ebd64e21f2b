"""Environments as agents meet them, one at a time: counted, checked, flat, stacked.

`Metered` is the door between an environment and whoever steps it by itself (Stable-Baselines3's
learners, films, users' own scripts); `lockstep.Lockstep` is the one for environments that step
together. Both go through `Actions` and `Observations`.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from erl.errors import RAISED, EnvironmentFault
from erl.worlds.actions import Actions
from erl.worlds.ledger import Ledger
from erl.worlds.observations import Observations, is_finite, reward_of

_log = logging.getLogger(__name__)


def close_quietly(env: gym.Env) -> None:
    """Close an environment. Errors on closing are logged and ignored."""
    try:
        env.close()
    except RAISED as e:
        _log.info("an environment raised when it was closed: %s: %s", type(e).__name__, e)


@contextmanager
def closing_on_error() -> Iterator[ExitStack]:
    """Within it, what is entered in the stack is closed if something raises, and stays open
    otherwise.
    """
    with ExitStack() as opened:
        yield opened
        opened.pop_all()


def stacked_space(space: spaces.Box, frame_stack: int) -> spaces.Box:
    """The space of several observations side by side; zeros, which stand for what was before a
    reset, lie in it.
    """
    if frame_stack == 1:
        return space
    low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)
    return spaces.Box(np.tile(low, frame_stack), np.tile(high, frame_stack), dtype=space.dtype.type)


class Metered(gym.Wrapper, RecordConstructorArgs):
    """Shows flat observations, takes actions as agents choose them, enters every step and episode
    in a ledger, and stops at the first action, reward or observation that is not finite.

    Finished episodes are also announced in `info["episode"]`, as Stable-Baselines3's Monitor does.

    Args:
        env: any environment with spaces that agents know.
        ledger: where steps and episodes are entered; by default a new one.
        keep: indices of the flat observation's entries that agents see; None for all.
    """

    def __init__(
        self, env: gym.Env, ledger: Ledger | None = None, keep: np.ndarray | None = None
    ) -> None:
        # An environment made again from its specification has its own ledger.
        RecordConstructorArgs.__init__(self, keep=keep)
        gym.Wrapper.__init__(self, env)
        self.ledger = ledger if ledger is not None else Ledger()
        name = env.spec.id if env.spec is not None else str(env)
        self._observations = Observations(env.observation_space, name, keep)
        self._actions = Actions(env.action_space, name)
        self.observation_space = self._observations.space
        self.action_space = self._actions.agent_space
        self._return, self._length = 0.0, 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        try:
            observation, info = self.env.reset(**kwargs)
        except RAISED as e:
            raise EnvironmentFault(
                f"the environment raised at a reset: {type(e).__name__}: {e}"
            ) from e
        seen = self._see(observation)
        self._return, self._length = 0.0, 0
        return seen, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step, count and check."""
        actions = self._actions.batch([action])
        if self._actions.not_finite(actions).size:
            raise FloatingPointError(
                f"the policy chose an action that is not finite, {_shown(action)}, at step "
                f"{self.ledger.steps + 1}"
            )
        try:
            observation, reward, terminated, truncated, info = self.env.step(
                self._actions.decode(actions)[0]
            )
        except RAISED as e:
            where = f"at step {self.ledger.steps + 1}"
            raise EnvironmentFault(
                f"the environment raised {where}: {type(e).__name__}: {e}"
            ) from e
        self.ledger.step()
        try:
            earned = reward_of(reward)
        except EnvironmentFault as fault:
            raise self._at_step(fault) from None
        if not np.isfinite(earned):
            raise self._at_step(f"the environment returned a reward that is not finite, {earned}")
        seen = self._see(observation)
        self._return += earned
        self._length += 1
        terminated, truncated = bool(terminated), bool(truncated)
        if terminated or truncated:
            self.ledger.episode(self._return, self._length)
            info = {**info, "episode": {"r": self._return, "l": self._length, "t": 0.0}}
        return seen, earned, terminated, truncated, info

    def close(self) -> None:
        """Close the environment; what it raises then costs nothing."""
        close_quietly(self.env)

    def _see(self, observation: Any) -> np.ndarray:
        try:
            seen = self._observations.encode(observation)
        except EnvironmentFault as fault:
            raise self._at_step(fault) from None
        if not is_finite(seen):
            raise self._at_step(
                f"the environment returned an observation that is not finite, {_shown(seen)}"
            )
        return seen

    def _at_step(self, what: Any) -> EnvironmentFault:
        return EnvironmentFault(f"{what}, at step {self.ledger.steps}")


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
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise TypeError(f"frames of {space} cannot be stacked: they are no vectors")
        self.observation_space = stacked_space(space, frame_stack)
        self._size = space.shape[0]
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


def _shown(value: Any) -> str:
    return np.array2string(np.asarray(value), threshold=8)
