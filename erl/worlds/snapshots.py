"""The state of an environment between two steps, as bytes."""

import io
import pickle
import zlib
from types import FunctionType
from typing import Any

import gymnasium as gym
import mujoco
from gymnasium.utils import EzPickle


def _layers(env: gym.Env) -> list[gym.Env]:
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _fixtures(env: gym.Env) -> dict[str, Any]:
    """Objects that an environment's attributes may refer to and that stay when its state is
    replaced.
    """
    fixtures: dict[str, Any] = {f"layer {k}": layer for k, layer in enumerate(_layers(env))}
    for name in ("model", "mujoco_renderer"):
        if hasattr(env.unwrapped, name):
            fixtures[name] = getattr(env.unwrapped, name)
    return fixtures


def snapshot(env: gym.Env) -> bytes | None:
    """The attributes of an environment and its wrappers, pickled and compressed; None if some
    cannot be pickled.
    """
    names = {id(fixture): name for name, fixture in _fixtures(env).items()}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> str | None:
            if isinstance(obj, EzPickle) and id(obj) not in names:
                raise pickle.PicklingError(
                    "an EzPickle would come back newly constructed, without its state"
                )
            return names.get(id(obj))

    buffer = io.BytesIO()
    try:
        # Functions are code, not state, and lambdas (ClipAction has one) cannot be pickled.
        Pickler(buffer).dump(
            [
                {k: v for k, v in vars(e).items() if not isinstance(v, FunctionType)}
                for e in _layers(env)
            ]
        )
    except Exception:
        return None
    # MjData is pickled together with its model, whose textures compress well.
    return zlib.compress(buffer.getvalue(), 1)


def restore(env: gym.Env, saved: bytes) -> None:
    """Put an environment where `snapshot` was taken of one made alike."""
    fixtures = _fixtures(env)

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return fixtures[pid]

    for layer, attributes in zip(
        _layers(env), Unpickler(io.BytesIO(zlib.decompress(saved))).load(), strict=True
    ):
        data = attributes.get("data")
        if isinstance(data, mujoco.MjData):
            # Into the object in use, since views of its arrays are held elsewhere.
            mujoco.mj_copyData(vars(layer)["data"], vars(layer)["model"], data)
            del attributes["data"]
        vars(layer).update(attributes)
