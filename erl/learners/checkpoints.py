"""Checkpoints of lifetimes: a file for each, so that an agent which is taken up again may stand beside others than before.

What is too large to be written whole every time, a replay buffer, lies in a folder beside it.
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

from erl.files import write_whole
from erl.spec import LifetimeSpec, to_json, versions

# To be raised when what a state's parts mean changes. Parts that come or go are noticed by their names.
FORMAT = 2


def save_checkpoint(path: str, spec: LifetimeSpec, state: dict[str, Any]) -> None:
    """Write a lifetime's checkpoint; a file of this name is always a whole one."""
    content = {"format": FORMAT, "spec": to_json(spec), "versions": versions(), "state": state}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), lambda part: Path(part).write_bytes(pickle.dumps(content, protocol=5)))


def load_checkpoint(path: str | None, spec: LifetimeSpec, parts: frozenset[str]) -> dict[str, Any] | None:
    """A lifetime's state, which has these parts; None if there is no checkpoint, or it is damaged or of another lifetime, format or library."""
    if path is None or not Path(path).exists():
        return None
    try:
        content = pickle.loads(Path(path).read_bytes())
        here = (FORMAT, to_json(spec), versions(), parts)
        there = (content["format"], content["spec"], content["versions"], frozenset(content["state"]))
        return content["state"] if here == there else None
    except Exception:  # whatever a damaged file makes pickle raise; the lifetime begins anew
        return None


def beside(path: str) -> Path:
    """The folder of what belongs to the checkpoint of this path."""
    return Path(f"{path}.buffer")


def checkpoint_files(path: str) -> list[Path]:
    """All files of a checkpoint; none if there is no checkpoint."""
    return [Path(path), *beside(path).glob("*.npy")] if Path(path).exists() else []


def remove_checkpoint(path: str) -> None:
    """Remove a checkpoint, if there is one."""
    Path(path).unlink(missing_ok=True)
    shutil.rmtree(beside(path), ignore_errors=True)
