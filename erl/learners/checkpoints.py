"""Checkpoints of lifetimes: a file for each, so that an agent which is taken up again may stand beside others than before.

What is too large to be written whole every time, a replay buffer, lies in a folder beside it.
"""

import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

from erl.files import write_whole
from erl.spec import LifetimeSpec, to_json, versions

_log = logging.getLogger(__name__)

# To be raised when what a state's parts mean changes. Parts that come or go are noticed by their names.
FORMAT = 2


def save_checkpoint(path: str, spec: LifetimeSpec, state: dict[str, Any]) -> None:
    """Write a lifetime's checkpoint; a file of this name is always a whole one."""
    content = {"format": FORMAT, "spec": to_json(spec), "versions": versions(), "state": state}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), lambda part: Path(part).write_bytes(pickle.dumps(content, protocol=5)))


def load_checkpoint(path: str | None, spec: LifetimeSpec, parts: frozenset[str]) -> dict[str, Any] | None:
    """A lifetime's state, which has these parts; None if there is no checkpoint.

    None too if it is damaged, or of another lifetime, format or library: then it is set aside.

    Raises:
        OSError, MemoryError: it cannot be read now, and perhaps can later.
    """
    if path is None:
        return None
    try:
        content = pickle.loads(Path(path).read_bytes())
        here = {"format": FORMAT, "lifetime": to_json(spec), "versions": versions(), "parts": parts}
        there = [content["format"], content["spec"], content["versions"], frozenset(content["state"])]
    except (FileNotFoundError, NotADirectoryError):
        shutil.rmtree(beside(path), ignore_errors=True)  # nothing refers to what lies there
        return None
    except (OSError, MemoryError):
        raise
    except Exception as e:  # whatever a damaged file makes pickle raise
        set_aside(path, f"it is damaged ({type(e).__name__}: {e})")
        return None
    others = [name for (name, mine), theirs in zip(here.items(), there) if mine != theirs]
    if others:
        why = f"it is of another {others[0]}"
        if others[0] == "versions":
            changed = sorted(dict(there[2].items() ^ versions().items()))
            why = "it was written with " + ", ".join(f"{p} {there[2].get(p)}, not {versions().get(p)}" for p in changed)
        set_aside(path, why)
        return None
    return content["state"]


def set_aside(path: str, why: str) -> None:
    """Move a checkpoint out of the way that cannot be taken up, with a warning. It is kept until its lifetime has ended."""
    _remove(_aside(path))
    Path(path).replace(_aside(path))
    if beside(path).exists():
        beside(path).replace(beside(_aside(path)))
    _log.warning("a lifetime begins anew, its checkpoint is kept as %s: %s", _aside(path), why)


def beside(path: str) -> Path:
    """The folder of what belongs to the checkpoint of this path."""
    return Path(f"{path}.buffer")


def checkpoint_files(path: str) -> list[Path]:
    """All files of a checkpoint; none if there is no checkpoint."""
    return [Path(path), *beside(path).glob("*.npy")] if Path(path).exists() else []


def remove_checkpoint(path: str) -> None:
    """Remove a checkpoint, if there is one, and what was set aside of earlier ones."""
    for each in (path, _aside(path)):
        _remove(each)
    for part in Path(path).parent.glob(f".{Path(path).stem}.*"):  # of a process that was killed while it wrote
        shutil.rmtree(part, ignore_errors=True)


def _aside(path: str) -> str:
    return f"{path}.aside"


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
    shutil.rmtree(beside(path), ignore_errors=True)
