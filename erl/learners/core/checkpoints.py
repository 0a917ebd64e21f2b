"""Checkpoints of lifetimes: named parts, a file for each lifetime, so that an agent which is taken
up again may stand beside others than before.

What is too large to be written whole every time, a replay buffer, lies in a folder beside it.
Behind the pickled content a line tells the lifetime's steps (`checkpoint_steps`); `pickle` reads no
further than its content.
"""

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from erl.files import read_patiently, write_whole
from erl.learners.core.settings import Settings
from erl.worlds.specification import LifetimeSpec, to_json, versions

_log = logging.getLogger(__name__)

# To be raised when what a state's parts mean changes. Parts that come or go are noticed by their
# names.
FORMAT = 6
_LAST_LINE = 60  # bytes, at most, of the line that tells the steps


@runtime_checkable
class CohortStateful(Protocol):
    """A part that all agents of a cohort share."""

    def get_states(self) -> list[Any]:
        """The state of each agent that is in training, picklable."""

    def set_states(self, states: Sequence[Any]) -> Any:
        """Go on from `get_states`; None for an agent that begins anew."""


@runtime_checkable
class Stored(Protocol):
    """A part of one lifetime that writes most of its state into a folder."""

    def save(self, folder: Path) -> Any:
        """Write what is new, and give the state that `load` goes on from."""

    def load(self, folder: Path, state: Any) -> None:
        """Go on from a state that `save` gave."""

    def tidy(self, folder: Path, state: Any) -> None:
        """Remove the files that a state does not need."""


# What a checkpoint can hold: the above, what has `get_state` and `set_state`, generators of NumPy,
# or a list with one of these for each agent that is in training. One part at most is `Stored`: it
# has the folder to itself.
Part = Any


class Attributes:
    """A part that consists of attributes of an object: counters and the like.

    Args:
        owner: the object.
        names: of the attributes.
    """

    def __init__(self, owner: object, *names: str) -> None:
        self._owner, self._names = owner, names

    def get_state(self) -> dict[str, Any]:
        """Their values, by name."""
        return {name: getattr(self._owner, name) for name in self._names}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `get_state`."""
        for name in self._names:
            setattr(self._owner, name, state[name])


def save_parts(
    paths: Sequence[str | None],
    specs: Sequence[LifetimeSpec],
    settings: Sequence[Settings],
    parts: Mapping[str, Part],
    steps: Sequence[int],
) -> None:
    """Write a checkpoint for each agent that is in training.

    A full disk costs the checkpoint and not the training: the one before is still whole.

    Args:
        paths: of each agent's file; None for an agent without.
        specs, settings: of each.
        parts: by name; each covers these agents, in this order.
        steps: that each has taken.
    """
    agents = _by_agent(parts, len(specs))
    for path, spec, setting, mine, taken in zip(paths, specs, settings, agents, steps, strict=True):
        if path is None:
            continue
        try:
            state = {"settings": asdict(setting)}
            for name, part in mine.items():
                stored = isinstance(part, Stored)
                state[name] = part.save(beside(path)) if stored else _get_state(part)
            save_checkpoint(path, spec, state, taken)
            # What only the state before needs goes when the new one is safe.
            for name, part in mine.items():
                if isinstance(part, Stored):
                    part.tidy(beside(path), state[name])
        except OSError as e:
            _log.warning("no checkpoint written: %s", e)
            return


def restore_parts(
    paths: Sequence[str | None],
    specs: Sequence[LifetimeSpec],
    settings: Sequence[Settings],
    parts: Mapping[str, Part],
) -> list[bool]:
    """Take up each agent that has a checkpoint where it was written; arguments as in `save_parts`.

    A checkpoint that does not fit is set aside, and its agent begins anew.

    Returns:
        Whether an agent was taken up, for each.
    """
    names = frozenset({"settings", *parts})
    shared = {name: part for name, part in parts.items() if isinstance(part, CohortStateful)}
    own = {name: part for name, part in parts.items() if name not in shared}
    agents = _by_agent(own, len(specs))
    states: list[dict[str, Any] | None] = []
    for path, spec, setting, mine in zip(paths, specs, settings, agents, strict=True):
        state = load_checkpoint(path, spec, names)
        if path is not None and state is not None:
            if state["settings"] != asdict(setting):
                why = "the learner's defaults have changed since"
            else:
                why = _load_stored(mine, beside(path), state)
            if why:
                set_aside(path, why)
                state = None
        states.append(state)
        if state is not None:
            for name, part in mine.items():
                if not isinstance(part, Stored):
                    _set_state(part, state[name])
    if any(state is not None for state in states):
        for name, part in shared.items():
            part.set_states([None if state is None else state[name] for state in states])
    return [state is not None for state in states]


def _by_agent(parts: Mapping[str, Part], n: int) -> list[dict[str, Any]]:
    """Each agent's parts, by name."""
    agents: list[dict[str, Any]] = [{} for _ in range(n)]
    for name, part in parts.items():
        if isinstance(part, CohortStateful):
            rows: list[Any] = [_State(state) for state in part.get_states()]
        else:
            rows = part if isinstance(part, list) else [part]
        for agent, row in zip(agents, rows, strict=True):
            agent[name] = row
    return agents


class _State:
    """An agent's state in a part that its cohort shares."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def get_state(self) -> Any:
        return self._state


def _get_state(part: Any) -> Any:
    random = isinstance(part, np.random.Generator)
    return part.bit_generator.state if random else part.get_state()


def _set_state(part: Any, state: Any) -> None:
    if isinstance(part, np.random.Generator):
        part.bit_generator.state = state
    else:
        part.set_state(state)


def _load_stored(parts: Mapping[str, Any], folder: Path, state: Mapping[str, Any]) -> str:
    """Load what lies beside a checkpoint; why that cannot be done, or an empty string."""
    for name, part in parts.items():
        if isinstance(part, Stored):
            try:
                part.load(folder, state[name])
            except Exception as e:  # whatever a damaged file makes NumPy raise
                return f"its {name} cannot be read ({type(e).__name__}: {e})"
    return ""


def save_checkpoint(path: str, spec: LifetimeSpec, state: dict[str, Any], steps: int) -> None:
    """Write a lifetime's checkpoint after so many steps; a file of this name is always a whole
    one.
    """
    content = {"format": FORMAT, "spec": to_json(spec), "versions": versions(), "state": state}

    def write(part: str) -> None:
        with open(part, "wb") as file:
            file.write(pickle.dumps(content, protocol=5))
            file.write(b"\nsteps %d by %s\n" % (steps, _writer()))

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), write)


def checkpoint_steps(path: str) -> int:
    """Steps that a lifetime had taken when its checkpoint was written; 0 without a checkpoint, for
    one of another format or of other libraries, which is not taken up, and for one of an earlier
    version, which does not tell. Only the end of the file is read.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _LAST_LINE))
            told = re.search(rb"\nsteps ([0-9]+) by ([0-9a-f]+)\n\Z", file.read())
    except OSError:
        return 0
    return 0 if told is None or told[2] != _writer() else int(told[1])


def _writer() -> bytes:
    """What stands for the format and the versions of a checkpoint that this process writes."""
    text = json.dumps([FORMAT, versions()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16].encode()


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
        set_aside(path, _unreadable(e))
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
        # The state last: after a kill in between it is where it was, and is moved after its folder
        # the next time.
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


def read_checkpoint(path: str) -> dict[str, bytes]:
    """Contents of all files of a checkpoint, by path; none if there is no checkpoint, or if it
    cannot be read: then it is set aside.
    """
    try:
        return {str(file): read_patiently(file) for file in checkpoint_files(path)}
    except OSError as e:
        set_aside(path, _unreadable(e))
        return {}


def _unreadable(error: Exception) -> str:
    return f"it cannot be read ({type(error).__name__}: {error})"


def remove_checkpoint(path: str) -> None:
    """Remove a checkpoint, if there is one, what was set aside of earlier ones, and what a killed
    process was writing. What cannot be removed costs a warning.
    """
    file = Path(path)
    try:
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
    except OSError as e:
        _log.warning("a checkpoint stays that is not needed any more: %s", e)
