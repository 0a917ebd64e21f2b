"""Which coordinators are alive: on this machine by their process, elsewhere by a counter that they
increase. No clocks are compared.

A coordinator on another machine counts its renewals up. It is gone if the count did not change for
LEASE_SECONDS of *this* process's monotonic clock. So no two machines' clocks are compared, and a
clock that is set forward or back changes nothing. Time in which the storage did not answer does not
count, since nobody could renew then. The price: a new coordinator has to observe for so long before
it takes up a trial of another machine.
"""

import itertools
import os
import random
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from erl.cli import Sink
from erl.errors import UserError
from erl.studies.trials import attribute

LEASE_SECONDS = 120.0
# What the places of leases begin with, among the system attributes of a study.
PLACE = "lease:"
# Shares of LEASE_SECONDS: until the next look, whether the place is settled or not.
_PAUSES = {False: (0.005, 0.025), True: (0.2, 0.25)}
# Two machines may have seeded their generators alike.
_BY_CHANCE = random.SystemRandom()


def machine() -> str:
    """What processes that can see one another have in common, and others not: two containers may
    share a name.
    """
    # Where /proc hides the processes of others, a user cannot see that another one's still runs.
    parts = [socket.gethostname(), str(os.getuid())]
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
        # In ticks since the machine's start.
        return None if after_name[0] in "ZX" else float(after_name[19])
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


# Identities of the coordinators of this process that are at work. One of a notebook may have ended
# while the process goes on.
at_work: set[str] = set()


def lives(owner: dict[str, Any]) -> bool:
    """Whether a coordinator of this machine is still at work: its process runs, and not another one
    with its number.
    """
    here = owner["pid"] == os.getpid()
    return begun(owner["pid"]) == owner["started"] and (not here or owner.get("id") in at_work)


class Changes:
    """When values last changed, as this process saw it."""

    def __init__(self) -> None:
        # -> value, since when, whether it ever changed
        self._seen: dict[str, tuple[Any, float, bool]] = {}
        self._watched = 0.0  # seconds in which values could be seen
        self._looked = time.monotonic()

    def look(self) -> None:
        """Take notice that values could be seen just now. This process looks every quarter of
        LEASE_SECONDS. So of a longer time since the last look most is an outage.
        """
        now = time.monotonic()
        self._watched += min(now - self._looked, LEASE_SECONDS / 2)
        self._looked = now

    def observe(self, key: str, value: Any) -> None:
        """Take notice of a value."""
        before = self._seen.get(key)
        if before is None or before[0] != value:
            self._seen[key] = value, self._watched, before is not None

    def recent(self, key: str) -> bool | None:
        """Whether the value changed within LEASE_SECONDS; None if it was not observed for so long
        and never changed.
        """
        if key not in self._seen:
            self.observe(key, None)
        _, since, changed = self._seen[key]
        if self._watched - since >= LEASE_SECONDS:
            return False
        return True if changed else None


class Lease:
    """This coordinator's identity, its lease, and what it knows of others.

    Leases lie in the study's system attributes `lease:0`, `lease:1`, …. Optuna cannot remove an
    attribute. So a place is free again when its lease has ended. Of those that take one place at
    the same moment the last one has it. All look again a moment later, and who has none takes one
    by chance: a free one, or one of some that nobody had, twice as many of them each time. So a
    hundred that begin at once soon have theirs.

    Args:
        storage: of the study.
        study_id: its number there.

    Attributes:
        owner: what the trials of this coordinator say whose they are.
    """

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self._storage, self._study_id = storage, study_id
        self.owner = {"id": uuid.uuid4().hex, **myself()}
        self._changes = Changes()
        self._renewals = 0
        self._place: str | None = None
        self._missed = 0  # how often in a row the place was another one's
        self._stop = threading.Event()

    def start(self) -> None:
        """Renew the lease from now on, in a thread."""
        at_work.add(self.owner["id"])
        self._renew()
        threading.Thread(target=self._keep_renewing, daemon=True).start()

    def stop(self) -> None:
        """Renew it no more, and free its place if the storage answers."""
        self._stop.set()
        at_work.discard(self.owner["id"])
        with suppress(Exception):
            if self._place is not None and self._is_mine(self._leases().get(self._place)):
                self._storage.set_study_system_attr(self._study_id, self._place, None)

    def wait(self, seconds: float) -> None:
        """Wait, and then see which leases were renewed."""
        self._stop.wait(seconds)
        self.look()

    def look(self) -> dict[str, Any]:
        """See whose leases were renewed.

        Returns:
            All leases, by their places; None in a place that is free.
        """
        leases = self._leases()
        self._changes.look()
        for lease in leases.values():
            if lease is not None:
                self._changes.observe(PLACE + lease["owner"]["id"], lease["renewals"])
        return leases

    def holders(self) -> list[tuple[dict[str, Any], bool | None]]:
        """The owners of the leases that are not known to have ended, and whether they are known to
        be at work; None while that is not known. `look` comes before.
        """
        owners = [lease["owner"] for lease in self._leases().values() if lease is not None]
        return [(o, works) for o in owners if (works := self._works(o)) is not False]

    def _works(self, owner: dict[str, Any]) -> bool | None:
        """Whether a coordinator is at work; None while that is not known."""
        return lives(owner) if is_here(owner) else self._changes.recent(f"{PLACE}{owner.get('id')}")

    def _leases(self) -> dict[str, Any]:
        attrs = self._storage.get_study_system_attrs(self._study_id)
        return {k: v for k, v in attrs.items() if k.startswith(PLACE)}

    def _is_mine(self, lease: Any) -> bool:
        return lease is not None and lease["owner"]["id"] == self.owner["id"]

    def _renew(self) -> bool:
        """Write the lease; whether its place was this one's before, and not only now."""
        self._renewals += 1
        leases = self.look()
        if self._stop.is_set():
            return True
        mine = self._place is not None and self._is_mine(leases.get(self._place))
        if mine:
            self._missed = 0
        else:
            self._missed += self._place is not None
            self._place = self._another(leases)
        assert self._place is not None
        lease: Any = {"owner": self.owner, "renewals": self._renewals}
        self._storage.set_study_system_attr(self._study_id, self._place, lease)
        for place, other in leases.items():
            if place != self._place and other and self._works(other["owner"]) is False:
                self._storage.set_study_system_attr(self._study_id, place, None)
        return mine

    def _another(self, leases: dict[str, Any]) -> str:
        """A place whose lease has ended, or that nobody had: at first the lowest one, and then by
        chance among more and more.
        """
        free = [k for k, x in leases.items() if x is None or self._works(x["owner"]) is False]
        unused = (k for i in itertools.count() if (k := f"{PLACE}{i}") not in leases)
        if self._place in free:
            return self._place
        if not self._missed:
            return free[0] if free else next(unused)
        further = 4 << min(self._missed, 6)
        return _BY_CHANCE.choice(free + list(itertools.islice(unused, further)))

    def _keep_renewing(self) -> None:
        settled = False
        # A part of each pause is by chance: those that began at once do not go on at once.
        while not self._stop.wait(LEASE_SECONDS * _BY_CHANCE.uniform(*_PAUSES[settled])):
            try:
                settled = self._renew()
            except Exception:  # the database may be back before the lease ends
                continue

    def owner_lives(self, trial: FrozenTrial, held: bool) -> bool | None:
        """Whether the coordinator of a running trial is alive; None while that is not known.

        Args:
            trial: of the study.
            held: whether this coordinator itself holds it.
        """
        owner = attribute(trial, "owner")
        mine = owner is not None and owner.get("id") == self.owner["id"]
        if mine and held:
            return True
        if owner is None or (mine and owner.get("let_go")):
            # Another program's trial; or a coordinator took it up a moment ago and has not written
            # its name yet.
            key = f"trial:{trial._trial_id}"
            self._changes.observe(key, str(trial.datetime_start))
            return self._changes.recent(key)
        # Mine and not held: begun twice, since the first answer was lost, and no one runs it.
        return False if mine else self._works(owner)


def check_unused(storage: BaseStorage, name: str, study_id: int, wait: bool, sink: Sink) -> None:
    """Refuse a study on which a command works.

    Args:
        storage: of the study.
        name: its name.
        study_id: its number.
        wait: whether to wait until it is known: a coordinator on another machine is gone if it did
            not renew its lease for LEASE_SECONDS.
        sink: where it is said.

    Raises:
        UserError: one does.
    """
    lease, told = Lease(storage, study_id), False
    while True:
        lease.look()
        holders = lease.holders()
        for owner, works in holders:
            if works:
                raise UserError(
                    f"a command works on study {name!r}, process {owner.get('pid')} on "
                    f"{owner.get('host')}: stop it first"
                )
        if not (holders and wait):
            return
        if not told:
            told = True
            sink.line(
                f"waiting for up to {LEASE_SECONDS:.0f} s to see whether the command on "
                f"{holders[0][0].get('host')} that worked on {name} still does"
            )
        lease.wait(min(1.0, LEASE_SECONDS / 8))
