"""Observations: what an environment returns, as the vector of numbers that agents see.

One rule for all learners, engines, arms and evaluation: an agent sees floating-point numbers, in
the precision that the environment declares for its real numbers (double where a Box is float64,
single otherwise). What is delivered is converted to that, and never rounded to whole numbers: where
a Box declares integers, and 4.33 comes, the agent sees 4.33. So the declared precision of reals
holds. Whole numbers above 16,777,216 are rounded to single precision.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from erl.errors import EnvironmentFault, UserError, one_line

# How many different observations of whole numbers are kept as they were encoded, and how many
# numbers in all: pictures of bits hardly ever come again.
_KNOWN = 4096
_KNOWN_NUMBERS = 2**21


# In single precision, in which networks see all numbers.
LARGEST = float(np.finfo(np.float32).max)


def is_finite(observations: np.ndarray) -> bool:
    """Whether all of these numbers are finite, also in single precision."""
    return bool((np.abs(observations) <= LARGEST).all())


class Observations:
    """What agents see of the observations of one environment.

    A Box of any shape is flattened; Discrete and MultiDiscrete become one-hot, MultiBinary its
    bits, Tuple and Dict their parts side by side, as Gymnasium's `spaces.flatten` has them. Lists
    and tuples are taken wherever NumPy takes them for an array.

    Args:
        space: the environment's observation space.
        name: of the environment, for messages.
        keep: indices of the flat vector's entries that agents see; None for all.

    Attributes:
        space: of what agents see, a flat float32 or float64 Box.
        size: its length.

    Raises:
        UserError: images, or a space that has no vector of fixed length.
    """

    def __init__(
        self,
        space: spaces.Space,
        name: str = "the environment",
        keep: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self._real = _real(space, name)
        flat = spaces.flatten_space(self._real)
        if not isinstance(flat, spaces.Box) or not flat.shape[0]:
            raise UserError(f"{name} has observations {space}, which hold no number")
        self._all = flat.shape[0]
        self._keep = None if keep is None else np.arange(self._all)[np.asarray(keep)]
        dtype = np.float64 if _has_doubles(self._real) else np.float32
        low, high = self.visible(flat.low[None])[0], self.visible(flat.high[None])[0]
        self.space = spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
        self.size = len(low)
        self._dtype = np.dtype(dtype)
        self._shape = space.shape if isinstance(space, spaces.Box) else None
        # Of observations that need no more than to be copied.
        is_vector = self._shape is not None and len(self._shape) == 1
        self._plain = self._shape if is_vector and keep is None else None
        self._finite = isinstance(
            space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
        )
        self._known: dict[Hashable, np.ndarray] = {}

    def is_plain(self, observation: Any) -> bool:
        """Whether an observation is a vector just as agents see it: most are."""
        return (
            type(observation) is np.ndarray
            and observation.shape == self._plain
            and observation.dtype == self._dtype
        )

    def encode(self, observation: Any) -> np.ndarray:
        """What agents see of an observation: a float32 or float64 array (size,), a new one, since
        some environments write each observation into the same array.

        Raises:
            EnvironmentFault: it is of another shape or kind than the environment declares.
        """
        if self.is_plain(observation):
            plain: np.ndarray = observation.copy()
            return plain
        # Of whole numbers the same few come again and again, and checking them takes long.
        key = _key(observation) if self._finite else None
        if key is None:
            return self._encoded(observation)
        known = self._known.get(key)
        if known is None:
            known = self._encoded(observation)
            if len(self._known) < min(_KNOWN, _KNOWN_NUMBERS // self._all):
                self._known[key] = known
        return known.copy()

    def _encoded(self, observation: Any) -> np.ndarray:
        flat: np.ndarray
        if self._shape is not None:
            flat = _numbers(observation, self._dtype, self._shape).flatten()
        else:
            parts = spaces.flatten(self._real, _prepared(self._real, observation))
            flat = np.asarray(parts, dtype=self._dtype)
        return flat if self._keep is None else flat[self._keep]

    def visible(self, rows: np.ndarray) -> np.ndarray:
        """What agents see of flat vectors: arrays (k, all) and (k, size)."""
        return rows if self._keep is None else rows.take(self._keep, axis=1)


def reward_of(value: Any) -> float:
    """A reward as a number.

    Raises:
        EnvironmentFault: it is none, or an array of some.
    """
    if isinstance(value, float | int | np.number):
        return float(value)
    if np.ndim(value) == 0:
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise EnvironmentFault(
        f"the environment returned a reward that is no single number, {_shown(value)}"
    )


def _real(space: spaces.Space, name: str) -> spaces.Space:
    """The space with floating-point Boxes in place of others; refuses what is no vector."""
    match space:
        case spaces.Box():
            if space.dtype == np.uint8 and len(space.shape) == 3:
                raise UserError(
                    f"{name} has images (shape {space.shape}) as observations, but agents here "
                    f"need vectors of numbers: a wrapper that hands over features makes some"
                )
            if space.dtype in (np.float32, np.float64):
                return space
            with np.errstate(over="ignore"):
                low, high = space.low.astype(np.float32), space.high.astype(np.float32)
            return spaces.Box(low, high, dtype=np.float32)
        case spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return space
        case spaces.Tuple():
            return spaces.Tuple([_real(part, name) for part in space.spaces])
        case spaces.Dict():
            # Of pairs, since the keys of a mapping are sorted.
            return spaces.Dict([(key, _real(part, name)) for key, part in space.spaces.items()])
    raise UserError(
        f"{name} has {type(space).__name__} observations, but agents here need Box, Discrete, "
        f"MultiDiscrete, MultiBinary, or Tuple and Dict of these"
    )


def _has_doubles(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Tuple | spaces.Dict):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return any(map(_has_doubles, parts))
    return isinstance(space, spaces.Box) and space.dtype == np.float64


def _numbers(observation: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The observation as an array of this dtype, if it is of this shape."""
    if type(observation) is np.ndarray and observation.dtype == dtype:
        array = observation
    else:
        try:
            # What is too large for the precision becomes infinite, and is found as such.
            with np.errstate(over="ignore"):
                array = np.asarray(observation).astype(dtype, copy=False)
        except (TypeError, ValueError) as e:
            raise EnvironmentFault(
                f"the environment returned an observation that is no array of numbers, "
                f"{_shown(observation)}"
            ) from e
    if array.shape != shape:
        raise EnvironmentFault(
            f"the environment returned an observation of shape {array.shape}, and declares {shape}"
        )
    return array


def _key(observation: Any) -> Hashable:
    """What is equal for equal observations of whole numbers; None for rare kinds of them."""
    if isinstance(observation, int | np.integer):
        return observation
    if type(observation) is np.ndarray and observation.dtype.kind in "iub":
        return observation.dtype, observation.shape, observation.tobytes()
    return None


def _prepared(space: spaces.Space, value: Any) -> Any:
    """A value of a space as `spaces.flatten` takes it, checked."""
    match space:
        case spaces.Box():
            return _numbers(value, space.dtype, space.shape)
        case spaces.Tuple():
            parts = list(value) if isinstance(value, tuple | list | np.ndarray) else [value]
            if len(parts) != len(space.spaces) or not isinstance(value, tuple | list | np.ndarray):
                raise EnvironmentFault(
                    f"the environment returned an observation of {len(parts)} parts, "
                    f"{_shown(value)}, and declares {len(space.spaces)}"
                )
            return tuple(_prepared(s, part) for s, part in zip(space.spaces, parts))
        case spaces.Dict():
            if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
                names = sorted(map(str, value)) if isinstance(value, Mapping) else _shown(value)
                raise EnvironmentFault(
                    f"the environment returned an observation of parts {names}, and declares "
                    f"{sorted(map(str, space.spaces))}"
                )
            return {key: _prepared(part, value[key]) for key, part in space.spaces.items()}
    given = _numbers(value, np.float64, space.shape or ())
    least: Any = getattr(space, "start", 0)
    most = least + (1 if isinstance(space, spaces.MultiBinary) else _values(space) - 1)
    with np.errstate(invalid="ignore"):
        whole = given.astype(np.int64)
    if not ((given == whole) & (least <= whole) & (whole <= most)).all():
        raise EnvironmentFault(
            f"the environment returned an observation outside its space: {_shown(value)}, and it "
            f"declares {space}"
        )
    return int(whole) if isinstance(space, spaces.Discrete) else whole


def _values(space: Any) -> Any:
    return int(space.n) if isinstance(space, spaces.Discrete) else space.nvec


def _shown(value: Any) -> str:
    return one_line(repr(value), 80)
