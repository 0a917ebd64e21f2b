"""Small environments with one peculiarity each. Importing this module registers them:
`peculiar_environments:DictObservation-v0`.

To add one is an entry of `PECULIAR`: spaces, what is odd about it, and what it is refused for
(`refused`, before anything is trained) or fails with (`fails`, in training), if it is not served.
"""

from collections import namedtuple
from copy import deepcopy

import gymnasium as gym
import numpy as np
from gymnasium import spaces

VECTOR = spaces.Box(-1, 1, (2,), np.float32)
MOVES = spaces.Discrete(2)
FORCE = spaces.Box(-1, 1, (1,), np.float32)
LARGEST = float(np.finfo(np.float32).max)

Parts = namedtuple("Parts", "refused fails")


class Peculiar(gym.Env):
    """Episodes of five steps; observations are drawn from the space, each step earns 1.

    Args:
        observation_space, action_space: what it declares.
        observe: what it returns in place of an observation that was drawn, given that.
        reset, step: what they return in place of what they should, given that.
        reward: of a step.
        close: what closing does.
    """

    def __init__(
        self,
        observation_space=VECTOR,
        action_space=MOVES,
        observe=lambda drawn: drawn,
        reset=lambda *returned: returned,
        step=lambda *returned: returned,
        reward=1.0,
        close=lambda: None,
    ):
        self.observation_space, self.action_space = observation_space, action_space
        self._drawn, self._observe = deepcopy(observation_space), observe
        self._reset, self._step, self._reward, self._close = reset, step, reward, close
        self.t = 0

    def _observation(self):
        return self._observe(self._drawn.sample())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self._drawn.seed(seed)
        self.t = 0
        return self._reset(self._observation(), {})

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not one of {self.action_space}")
        self.t += 1
        return self._step(self._observation(), self._reward, self.t == 5, False, {})

    def close(self):
        self._close()


class OldReset(Peculiar):
    """`reset` of Gym before version 0.26."""

    def reset(self):
        return super().reset()[0]


class OneArray(Peculiar):
    """Writes each observation into the same array."""

    def __init__(self, **given):
        super().__init__(**given)
        space = self.observation_space
        self._shown = np.zeros(space.shape, space.dtype)

    def _observation(self):
        self._shown[...] = super()._observation()
        return self._shown


def raising():
    raise RuntimeError("the window is gone")


def leaving():
    raise SystemExit("the window is gone")


def late(value):
    """The value, from the eighth observation on."""
    seen = []

    def observe(drawn):
        seen.append(1)
        return value if len(seen) > 7 else drawn

    return observe


def box(*shape, dtype=np.float32, low=-1, high=1):
    return spaces.Box(low, high, shape, dtype)


# name -> arguments of `Peculiar`; `refused` and `fails` are parts of messages.
PECULIAR = {
    # observations
    "DiscreteObservation": {"observation_space": spaces.Discrete(5)},
    "ShiftedObservation": {"observation_space": spaces.Discrete(5, start=-2)},
    "MultiDiscreteObservation": {"observation_space": spaces.MultiDiscrete([3, 4])},
    "MultiDiscreteTable": {"observation_space": spaces.MultiDiscrete([[3, 4], [2, 2]])},
    "MultiBinaryObservation": {"observation_space": spaces.MultiBinary(4)},
    "TupleObservation": {
        "observation_space": spaces.Tuple([spaces.Discrete(3), box(2), spaces.Discrete(2)])
    },
    "DictObservation": {
        "observation_space": spaces.Dict(
            {"where": box(2, 2), "what": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)])}
        )
    },
    "UnsortedDict": {"observation_space": spaces.Dict([("z", box(2)), ("a", spaces.Discrete(3))])},
    "OneByOneBox": {"observation_space": box(1, 1)},
    "TwoByThreeBox": {"observation_space": box(2, 3)},
    "ScalarBox": {"observation_space": box()},
    "ManyAxes": {"observation_space": box(2, 2, 2)},
    "DoubleBox": {"observation_space": box(2, dtype=np.float64)},
    "HalfBox": {"observation_space": box(2, dtype=np.float16)},
    "Bytes": {"observation_space": box(3, dtype=np.uint8, low=0, high=255)},
    "GreyPicture": {"observation_space": box(3, 3, dtype=np.uint8, low=0, high=255)},
    "FractionsInAnIntegerBox": {
        "observation_space": box(2, dtype=np.int64, low=0, high=10),
        "observe": lambda drawn: drawn + 0.33,
    },
    "DoublesInASingleBox": {"observe": lambda drawn: drawn.astype(np.float64) / 3},
    "SinglesInADoubleBox": {
        "observation_space": box(2, dtype=np.float64),
        "observe": lambda drawn: drawn.astype(np.float32),
    },
    "Lists": {"observe": lambda drawn: drawn.tolist()},
    "Tuples": {"observe": tuple},
    "ListsOfArrays": {"observe": list},
    "IntegerList": {"observation_space": spaces.MultiDiscrete([3, 4]), "observe": list},
    "TupleAsList": {"observation_space": spaces.Tuple([VECTOR, MOVES]), "observe": list},
    "OneVector": {"kind": OneArray},
    "OneTable": {"kind": OneArray, "observation_space": box(2, 3)},
    "Infinite": {"observation_space": box(2, low=-np.inf, high=np.inf)},
    "Picture": {
        "observation_space": box(8, 8, 3, dtype=np.uint8, low=0, high=255),
        "refused": "has images",
    },
    "PictureInADict": {
        "observation_space": spaces.Dict({"eye": box(8, 8, 3, dtype=np.uint8, low=0, high=255)}),
        "refused": "has images",
    },
    "SequenceObservation": {
        "observation_space": spaces.Sequence(MOVES),
        "refused": "has Sequence observations",
    },
    "TextObservation": {"observation_space": spaces.Text(3), "refused": "has Text observations"},
    "NoNumbers": {"observation_space": box(0), "refused": "hold no number"},
    "OtherShape": {
        "observe": lambda drawn: drawn[:1],
        "refused": r"returned an observation of shape \(1,\), and declares \(2,\)",
    },
    "RowForAVector": {
        "observe": lambda drawn: drawn[None],
        "refused": r"returned an observation of shape \(1, 2\), and declares \(2,\)",
    },
    "WordsObserved": {"observe": lambda drawn: ["left", "right"], "refused": "no array of numbers"},
    "Ragged": {"observe": lambda drawn: [1.0, [2.0]], "refused": "no array of numbers"},
    "NothingObserved": {"observe": lambda drawn: None, "refused": r"of shape \(\)"},
    "MissingPart": {
        "observation_space": spaces.Dict({"a": VECTOR, "b": MOVES}),
        "observe": lambda drawn: {"a": drawn["a"]},
        "refused": r"of parts \['a'\], and declares \['a', 'b'\]",
    },
    "TooFewParts": {
        "observation_space": spaces.Tuple([VECTOR, MOVES]),
        "observe": lambda drawn: drawn[:1],
        "refused": "of 1 parts",
    },
    "OutsideDiscrete": {
        "observation_space": spaces.Discrete(3),
        "observe": lambda drawn: 3,
        "refused": "outside its space: 3",
    },
    "HalfWayBetween": {
        "observation_space": spaces.Discrete(3),
        "observe": lambda drawn: 0.5,
        "refused": "outside its space: 0.5",
    },
    "NotANumber": {"observe": lambda drawn: drawn * np.nan, "refused": "that is not finite"},
    "TooLargeForSingle": {
        "observation_space": box(2, low=-np.inf, high=np.inf),
        "observe": lambda drawn: np.array([1e300, 0.0]),
        "refused": "that is not finite",
    },
    "TooLargeForSingleLater": {
        "observation_space": box(2, dtype=np.float64, low=-np.inf, high=np.inf),
        "observe": late(np.array([1e39, 0.0])),
        "fails": "an observation that is not finite",
    },
    "NotANumberLater": {
        "observe": late(np.array([0.0, np.nan], np.float32)),
        "fails": "an observation that is not finite",
    },
    "OtherShapeLater": {"observe": late(np.zeros(3)), "fails": r"of shape \(3,\), and declares"},
    "OutsideLater": {
        "observation_space": spaces.Discrete(3),
        "observe": late(-1),
        "fails": "outside its space: -1",
    },
    # actions
    "ShiftedAction": {"action_space": spaces.Discrete(3, start=1)},
    "MultiDiscreteAction": {"action_space": spaces.MultiDiscrete([2, 3])},
    "ShiftedMultiDiscrete": {"action_space": spaces.MultiDiscrete([2, 3], start=[1, -1])},
    "MultiDiscreteActionTable": {"action_space": spaces.MultiDiscrete([[2, 3], [2, 2]])},
    "MultiBinaryAction": {"action_space": spaces.MultiBinary(3)},
    "MultiBinaryActionOfAShape": {"action_space": spaces.MultiBinary([3])},
    "MultiBinaryActionTable": {"action_space": spaces.MultiBinary([2, 2])},
    "OneForce": {"action_space": FORCE},
    "TwoByTwoForces": {"action_space": box(2, 2)},
    "ScalarForce": {"action_space": box()},
    "LopsidedForce": {"action_space": box(2, low=-3, high=1)},
    # Single precision rounds these bounds to outside of the space.
    "DoubleForce": {"action_space": box(1, dtype=np.float64, low=-0.1, high=0.3)},
    "WholeNumbers": {
        "action_space": box(2, dtype=np.int64, low=0, high=5),
        "refused": "a Box of whole numbers",
    },
    "Unbounded": {
        "action_space": box(1, low=-np.inf, high=np.inf),
        "refused": "actions without bounds",
    },
    "AsGoodAsUnbounded": {
        "action_space": box(1, low=-LARGEST, high=LARGEST),
        "refused": "too large for float32",
    },
    "TextAction": {"action_space": spaces.Text(3), "refused": "has actions Text"},
    "DictAction": {"action_space": spaces.Dict({"a": MOVES}), "refused": "has actions Dict"},
    # reset, step, reward, close
    "OldReset": {"kind": OldReset, "refused": "Gym before version 0.26.*asks for reset"},
    "ResetWithoutInfo": {
        "reset": lambda observation, info: observation,
        "refused": "its reset returned an array of shape .*asks for reset",
    },
    "OldStep": {
        "step": lambda o, r, terminated, truncated, info: (o, r, terminated, info),
        "refused": "returned 4 values, as in Gym before version 0.26; Gymnasium asks for step",
    },
    "EndIsNone": {
        "step": lambda o, r, terminated, truncated, info: (o, r, terminated, None, info),
        "refused": "returned None for truncated",
    },
    "EndIsAWholeNumber": {
        "step": lambda o, r, terminated, truncated, info: (o, r, int(terminated), 0, info)
    },
    "EndIsNumPys": {
        "step": lambda o, r, terminated, truncated, info: (o, r, np.bool_(terminated), False, info)
    },
    "InfoIsNone": {
        "step": lambda o, r, terminated, truncated, info: (o, r, terminated, truncated, None),
        "refused": "returned None for info",
    },
    "RewardOfOne": {"reward": np.ones(1), "refused": r"the reward an array of shape \(1,\)"},
    "RewardIsNone": {"reward": None, "refused": "the reward None"},
    "RewardIsNumPys": {"reward": np.float32(1.0)},
    "RewardIsAnArray": {"reward": np.array(1.0)},
    "RewardIsAWholeNumber": {"reward": 1},
    "RewardIsNotANumber": {"reward": float("nan"), "refused": "a reward that is not finite"},
    "CloseRaises": {"close": raising},
    "CloseLeaves": {"close": leaving},
}

EXPECTED = {}
for _name, _given in PECULIAR.items():
    _arguments = dict(_given)
    EXPECTED[_name] = Parts(_arguments.pop("refused", None), _arguments.pop("fails", None))
    _kind = _arguments.pop("kind", Peculiar)
    gym.register(f"{_name}-v0", _kind, kwargs=_arguments)
