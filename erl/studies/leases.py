"""Who is still about: processes of this machine by their beginning, others by signs that they give,
never by a clock of theirs.

A coordinator elsewhere counts its renewals up. It is gone if the count stood still for
LEASE_SECONDS of *this* process's monotonic clock, so that no two machines' clocks are compared, and
a clock that is set forward or back changes nothing. The price: who comes new has to watch for so
long before it takes another machine's trial up.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

LEASE_SECONDS = 120.0


def machine() -> str:
    """What processes that can see one another have in common, and others not: two containers may
    share a name.
    """
    parts = [socket.gethostname()]
    for read in (
        Path("/proc/sys/kernel/random/boot_id").read_text,
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read().strip())
        except OSError:  # not Linux: the name has to do
            continue
    return " ".join(parts)


def begun(pid: int) -> float | None:
    """When a process of this machine began, on a scale that does not move with the clock; None if
    it has ended.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (
            None if after_name[0] in "ZX" else float(after_name[19])
        )  # ticks since the machine's start
    except OSError:
        pass
    try:
        return None if os.path.isdir("/proc/self") else psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def myself() -> dict[str, Any]:
    """This process, as others may look for it."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": begun(os.getpid()),
    }


def is_here(owner: dict[str, Any]) -> bool:
    """Whether a process runs, or ran, where this one can see it."""
    return owner.get("machine") == machine()


# Identities of this process's own coordinators that are at work: one of a notebook may have ended,
# and the process not.
at_work: set[str] = set()


def lives(owner: dict[str, Any]) -> bool:
    """Whether a coordinator of this machine is still at work: its process runs, and not another one
    with its number.
    """
    here = owner["pid"] == os.getpid()
    return begun(owner["pid"]) == owner["started"] and (not here or owner.get("id") in at_work)


class Watch:
    """When values last changed, as this process saw it."""

    def __init__(self) -> None:
        self._seen: dict[
            str, tuple[Any, float, bool]
        ] = {}  # -> value, since when, whether it ever changed

    def note(self, key: str, value: Any) -> None:
        """Look at a value."""
        before = self._seen.get(key)
        if before is None or before[0] != value:
            self._seen[key] = value, time.monotonic(), before is not None

    def alive(self, key: str) -> bool | None:
        """Whether the value changed within LEASE_SECONDS; None if it was not watched for so long
        and never changed.
        """
        if key not in self._seen:
            self.note(key, None)
        _, since, changed = self._seen[key]
        if time.monotonic() - since >= LEASE_SECONDS:
            return False
        return True if changed else None
