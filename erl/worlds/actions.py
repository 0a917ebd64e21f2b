"""Actions: what an agent chooses, what the environment takes, and what a reservoir sees of it.

Every learner, the lockstep, wrapped environments, reservoirs and evaluation go through one
`Actions`, so that an action means the same everywhere.
"""

from math import isfinite
from typing import Any

import numpy as np
from gymnasium import spaces

from erl.errors import UserError

_NO_ROWS = np.zeros(0, dtype=int)


class Actions:
    """The actions of one environment, in three forms.

    | environment's space | agents choose | a reservoir sees |
    |---|---|---|
    | Box of floats, any shape | the same, or a vector of one number | its numbers |
    | Discrete, any start | Discrete from 0 | one-hot |
    | MultiDiscrete, any shape and start | MultiDiscrete vector from 0 | one-hot of each |
    | MultiBinary, any shape | MultiBinary vector | its bits |

    Args:
        space: the environment's action space.
        name: of the environment, for messages.

    Attributes:
        space: the environment's.
        agent_space: what agents choose from.
        size: length of an action as a reservoir sees it.
        continuous: whether actions are real numbers.
        low, high: float arrays (size,), bounds of what a reservoir sees; zeros, which stand for the
            action before an episode, lie between them.

    Raises:
        UserError: a space that is none of these. `check_bounds` refuses Boxes that agents cannot
            choose from.
    """

    def __init__(self, space: spaces.Space, name: str = "the environment") -> None:
        self.space, self._name = space, name
        self.continuous = isinstance(space, spaces.Box)
        self.agent_space: spaces.Space
        match space:
            case spaces.Box():
                self.agent_space = space if space.shape else _vector(space)
                self.size = int(np.prod(space.shape, dtype=int))
                low, high = space.low.ravel().astype(float), space.high.ravel().astype(float)
                self.low, self.high = np.minimum(low, 0.0), np.maximum(high, 0.0)
            case spaces.Discrete():
                self.agent_space = space if space.start == 0 else spaces.Discrete(int(space.n))
                self.size = int(space.n)
                self._offsets = np.zeros(1, dtype=np.int64)
            case spaces.MultiDiscrete():
                values = space.nvec.ravel().astype(np.int64)
                flat = space.nvec.ndim == 1 and not space.start.any()
                self.agent_space = space if flat else spaces.MultiDiscrete(values)
                self.size = int(values.sum())
                self._offsets = np.cumsum(values) - values
            case spaces.MultiBinary():
                self.size = int(np.prod(space.shape, dtype=int))
                # Of a shape, also one of a single axis, Stable-Baselines3 cannot tell the size.
                flat = isinstance(space.n, int)
                self.agent_space = space if flat else spaces.MultiBinary(self.size)
            case _:
                raise UserError(
                    f"{name} has actions {space}, but agents here need Box, Discrete, "
                    f"MultiDiscrete or MultiBinary actions"
                )
        if not isinstance(space, spaces.Box):
            self.low, self.high = np.zeros(self.size), np.ones(self.size)
        self._shape, self._dtype = self.agent_space.shape or (), self.agent_space.dtype
        self._one_hot = isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
        self._as_is = self.agent_space is space and not isinstance(space, spaces.Discrete)
        self._rows = np.arange(0)

    @property
    def first(self) -> Any:
        """An action that any agent may choose: the middle of a Box, zeros otherwise."""
        if isinstance(self.space, spaces.Box):
            middle = 0.5 * self.space.low + 0.5 * self.space.high
            return middle.astype(self.space.dtype).reshape(self.agent_space.shape or ())
        return np.zeros(self.agent_space.shape or (), dtype=self.agent_space.dtype)

    def check_bounds(self) -> None:
        """Raise a UserError for a Box of whole numbers, without bounds, or without numbers."""
        space, name = self.space, self._name
        if not isinstance(space, spaces.Box):
            return
        if not np.issubdtype(space.dtype, np.floating):
            raise UserError(
                f"{name} has a Box of whole numbers ({space.dtype}) for its actions, but agents "
                f"choose real numbers in a Box: use a Discrete or MultiDiscrete space for whole "
                f"numbers"
            )
        if not space.is_bounded():
            raise UserError(
                f"{name} has actions without bounds ({space}), but agents choose between bounds: "
                f"its action_space must declare them"
            )
        with np.errstate(over="ignore"):
            if not np.isfinite(space.high - space.low).all():
                raise UserError(
                    f"{name} has bounds of actions ({space}) whose difference is too large for "
                    f"{space.dtype}: declare smaller ones"
                )
        if 0 in space.shape:
            raise UserError(f"{name} has actions of shape {space.shape}, which hold no number")

    def batch(self, actions: Any) -> np.ndarray:
        """Actions of agents as a new array (k, *shape of `agent_space`) in the dtype of the space.

        Args:
            actions: (k, …), an action a row.
        """
        array = np.array(actions, dtype=self._dtype)
        return array.reshape(len(array), *self._shape)

    def not_finite(self, actions: np.ndarray) -> np.ndarray:
        """The rows of `batch`'s result with numbers that are not finite, int array; empty where all
        are.
        """
        # The sum of squares is the cheapest look; one that merely overflowed is cleared by the
        # closer look.
        if not self.continuous or isfinite(np.vdot(actions, actions)):
            return _NO_ROWS
        return np.flatnonzero(~np.isfinite(actions.reshape(len(actions), -1)).all(axis=1))

    def decode(self, actions: np.ndarray) -> Any:
        """What each environment's `step` is given.

        Args:
            actions: `batch`'s result, (k, …).

        Returns:
            A sequence of k actions. A Discrete action is a Python int, as most environments expect.
        """
        if self._as_is:
            return actions
        match self.space:
            case spaces.Discrete(start=start):
                return (actions + int(start) if start else actions).tolist()
            case spaces.MultiDiscrete(start=start):
                shaped = actions.reshape(len(actions), *self.space.shape)
                return (shaped + start).astype(self.space.dtype)
        shaped = actions.reshape(len(actions), *(self.space.shape or ()))
        return shaped if self.space.shape else [np.asarray(number) for number in shaped]

    def encode(self, actions: np.ndarray, out: np.ndarray) -> None:
        """Write what a reservoir sees of actions.

        Args:
            actions: of agents, (k, …).
            out: float array (k, size), overwritten.
        """
        values = actions.reshape(out.shape[0], -1)
        if not self._one_hot:
            out[:] = values
            return
        if len(out) != len(self._rows):
            self._rows = np.arange(len(out))[:, None]
        out[:] = 0.0
        out[self._rows, self._offsets + values.astype(np.int64, copy=False)] = 1.0

    def encode_first(self, out: np.ndarray) -> None:
        """Write what ER-MRL's published code feeds in place of an action: zeros, or the one-hot of
        action 0.
        """
        if self._one_hot:
            self.encode(np.zeros((len(out), *self._shape), dtype=np.int64), out)
        else:
            out[:] = 0.0

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Actions of a Box from numbers between -1 and 1, which stand for its bounds.

        Args:
            values: (k, n), n numbers of an action.

        Returns:
            Array (k, *shape) in the dtype of the space.
        """
        space = self.agent_space
        if not isinstance(space, spaces.Box):
            raise TypeError(f"only the actions of a Box have a scale, not those of {space}")
        shaped = values.reshape(len(values), *space.shape)
        scaled = (space.low + 0.5 * (shaped + 1.0) * (space.high - space.low)).astype(space.dtype)
        return np.clip(scaled, space.low, space.high)  # the sum is rounded


def _vector(space: spaces.Box) -> spaces.Box:
    return spaces.Box(space.low.reshape(1), space.high.reshape(1), dtype=space.dtype.type)
