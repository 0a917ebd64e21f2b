"""Checkpoints of lifetimes: a file for each, so that an agent which is taken up again may stand
beside others than before.

What is too large to be written whole every time, a replay buffer, lies in a folder beside it.
"""

import logging
import pickle
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from erl.files import read_patiently, write_whole
from erl.worlds.specification import LifetimeSpec, to_json, versions

_log = logging.getLogger(__name__)

# To be raised when what a state's parts mean changes. Parts that come or go are noticed by their
# names.
FORMAT = 2


def save_checkpoint(path: str, spec: LifetimeSpec, state: dict[str, Any]) -> None:
    """Write a lifetime's checkpoint; a file of this name is always a whole one."""
    content = {"format": FORMAT, "spec": to_json(spec), "versions": versions(), "state": state}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), lambda part: Path(part).write_bytes(pickle.dumps(content, protocol=5)))


def load_checkpoint(
    path: str | None, spec: LifetimeSpec, parts: frozenset[str]
) -> dict[str, Any] | None:
    """A lifetime's state, which has these parts; None if there is no checkpoint.

    None too if it cannot be read, is damaged, or of another lifetime, format or library: then it is
    set aside.
    """
    if path is None:
        return None
    try:
        content = pickle.loads(read_patiently(Path(path)))
        here = {"format": FORMAT, "lifetime": to_json(spec), "versions": versions(), "parts": parts}
        there = [
            content["format"],
            content["spec"],
            content["versions"],
            frozenset(content["state"]),
        ]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as e:  # whatever a damaged file makes pickle raise
        set_aside(path, f"it cannot be read ({type(e).__name__}: {e})")
        return None
    others = [name for (name, mine), theirs in zip(here.items(), there) if mine != theirs]
    if others:
        why = f"it is of another {others[0]}"
        if others[0] == "versions":
            changed = sorted(dict(there[2].items() ^ versions().items()))
            why = "it was written with " + ", ".join(
                f"{p} {there[2].get(p)}, not {versions().get(p)}" for p in changed
            )
        set_aside(path, why)
        return None
    return content["state"]


def set_aside(path: str, why: str) -> None:
    """Move a checkpoint out of the way that cannot be taken up, with a warning.

    It is kept until its lifetime has ended.
    """
    aside = next(a for n in count(1) if not Path(a := f"{path}.aside{n}").exists())
    _log.warning("a lifetime begins anew, its checkpoint is kept as %s: %s", aside, why)
    try:
        # The state last: who is killed in between finds it where it was, and moves it after its
        # folder.
        for source, target in ((beside(path), beside(aside)), (Path(path), Path(aside))):
            with suppress(FileNotFoundError):
                source.replace(target)
    except OSError as e:  # the next checkpoint replaces it
        _log.warning("it cannot be kept: %s", e)


def beside(path: str) -> Path:
    """The folder of what belongs to the checkpoint of this path."""
    return Path(f"{path}.buffer")


def checkpoint_files(path: str) -> list[Path]:
    """All files of a checkpoint; none if there is no checkpoint."""
    return [Path(path), *beside(path).glob("*.npy")] if Path(path).exists() else []


def remove_checkpoint(path: str) -> None:
    """Remove a checkpoint, if there is one, what was set aside of earlier ones, and what a killed
    process was writing.
    """
    file = Path(path)
    for left in (
        file,
        beside(path),
        *file.parent.glob(f"{file.name}.aside*"),
        *file.parent.glob(f".{file.stem}.*"),
    ):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
