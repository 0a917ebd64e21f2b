"""The state of an environment between two steps, as bytes."""

import io
import pickle
import zlib
from types import FunctionType
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle


def _layers(env: gym.Env) -> list[gym.Env]:
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _fixtures(env: gym.Env) -> dict[str, Any]:
    """Objects that an environment's attributes may refer to and that stay when its state is
    replaced. MuJoCo's data is one, since views of its arrays are held elsewhere.
    """
    fixtures: dict[str, Any] = {f"layer {k}": layer for k, layer in enumerate(_layers(env))}
    if _physics(env) is not None:
        for name in ("model", "data", "mujoco_renderer"):
            if hasattr(env.unwrapped, name):
                fixtures[name] = getattr(env.unwrapped, name)
    return fixtures


def _physics(env: gym.Env) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
    """MuJoCo's model and data, where an environment keeps them as Gymnasium's do."""
    model, data = (getattr(env.unwrapped, name, None) for name in ("model", "data"))
    known = isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData)
    return (model, data) if known else None


class _Pickler(pickle.Pickler):
    """Pickles attributes, and refuses what would not come back as it is.

    Args:
        file: to write to.
        names: of fixtures, by their identity.
    """

    def __init__(self, file: io.BytesIO, names: dict[int, str]) -> None:
        super().__init__(file)
        self._names = names
        self._arrays: dict[int, list[np.ndarray]] = {}  # by the array that owns their memory

    def persistent_id(self, obj: Any) -> str | None:
        """The name of a fixture; None for what is pickled."""
        if id(obj) in self._names:
            return self._names[id(obj)]
        if isinstance(obj, EzPickle | mujoco.MjModel | mujoco.MjData):
            raise pickle.PicklingError(
                "an EzPickle would come back newly constructed, without its state, and MuJoCo's "
                "objects as others than those in use"
            )
        if isinstance(obj, np.ndarray):
            self._check_memory(obj)
        return None

    def _check_memory(self, array: np.ndarray) -> None:
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        others = self._arrays.setdefault(id(owner), [])
        shared = any(o is not array and np.shares_memory(o, array) for o in others)
        if shared or not isinstance(owner.base, bytes | None):
            raise pickle.PicklingError("arrays would no longer share memory with others")
        others.append(array)


def snapshot(env: gym.Env) -> bytes | None:
    """The attributes of an environment and its wrappers, pickled and compressed; None if some
    cannot be pickled, or would not come back as they are.
    """
    buffer, physics = io.BytesIO(), _physics(env)
    try:
        # Functions are code, not state, and lambdas (ClipAction has one) cannot be pickled. Neither
        # can what an environment was registered as, if that is a function in a function.
        _Pickler(buffer, {id(fixture): name for name, fixture in _fixtures(env).items()}).dump(
            [
                {k: v for k, v in vars(e).items() if not isinstance(v, FunctionType | EnvSpec)}
                for e in _layers(env)
            ]
        )
        # Its model is pickled together with it, whose textures compress well.
        pickle.dump(None if physics is None else physics[1], buffer)
    except Exception:
        return None
    return zlib.compress(buffer.getvalue(), 1)


def restore(env: gym.Env, saved: bytes) -> bool:
    """Set an environment to the state that `snapshot` took of one which was made alike.

    Returns:
        Whether that was possible. It is not after a change of the environment's code.
    """
    fixtures, physics = _fixtures(env), _physics(env)

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return fixtures[pid]

    try:
        buffer = io.BytesIO(zlib.decompress(saved))
        states, data = Unpickler(buffer).load(), pickle.load(buffer)
        pairs = list(zip(_layers(env), states, strict=True))
        if physics is not None:
            mujoco.mj_copyData(physics[1], physics[0], data)
    except Exception:  # whatever a class or a model that has changed raises
        return False
    for layer, attributes in pairs:
        vars(layer).update(attributes)
    return True
