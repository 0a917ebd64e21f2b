"""What a storage tries again, and how long it waits between its tries."""

import grpc
import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import PendingRollbackError, ProgrammingError

from erl.studies import retries
from erl.studies.retries import RetryingStorage, is_away


class Refused(grpc.RpcError):
    """An answer of a proxy."""

    def __init__(self, name):
        self.code = lambda: grpc.StatusCode[name]


def wrapped(error):
    """As Optuna raises it."""
    outer = StorageInternalError("...")
    outer.__cause__ = error
    return outer


def lost(invalidated):
    cause = Exception("server closed the connection")
    return ProgrammingError("SELECT", {}, cause, connection_invalidated=invalidated)


@pytest.mark.parametrize(
    "error",
    [
        PendingRollbackError("the session's connection was lost in the midst of a transaction"),
        StorageInternalError("..."),
        OSError(28, "No space left on device"),
        lost(invalidated=True),
        wrapped(lost(invalidated=True)),
        *map(Refused, ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"]),
        *map(Refused, ["INTERNAL", "UNKNOWN"]),
    ],
    ids=lambda error: str(error).partition("\n")[0],
)
def test_what_may_pass(error):
    assert is_away(error)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("no such study"),
        ProgrammingError("SELECT", {}, Exception("no such table")),
        wrapped(lost(invalidated=False)),
        *map(Refused, ["NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED", "PERMISSION_DENIED"]),
    ],
    ids=lambda error: str(error).partition("\n")[0],
)
def test_what_no_repetition_mends(error):
    assert not is_away(error)


class Clock:
    """What `time.monotonic` and waiting share."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


class Away:
    """A backend that does not answer before a time."""

    def __init__(self, clock, until):
        self.clock, self.until = clock, until

    def get_all_studies(self):
        if self.clock.now < self.until:
            raise OSError("no answer")
        return ["a study"]


@pytest.fixture
def make_away(monkeypatch):
    """Makes a storage that is away until a time, and its clock."""
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)

    def make(until, seconds):
        storage = RetryingStorage(Away(clock, until), lambda e: RuntimeError(f"away: {e}"))
        storage.retry_seconds = seconds
        storage._stopped = clock
        return storage, clock

    return make


def test_pauses_double_up_to_ten_seconds(make_away, monkeypatch):
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: high)
    away, clock = make_away(until=100.0, seconds=600.0)
    assert away.get_all_studies() == ["a study"]
    doubling = [0.1 * 2**k for k in range(7)]
    assert clock.pauses == pytest.approx(doubling + [10.0] * 9)


def test_pauses_are_of_chance_so_that_coordinators_do_not_come_together(make_away):
    away, clock = make_away(until=100.0, seconds=600.0)
    away.get_all_studies()
    shares = [p / min(0.1 * 2**k, 10.0) for k, p in enumerate(clock.pauses)]
    assert 0.5 <= min(shares) < 0.75 < max(shares) <= 1.0


def test_what_stays_away_is_explained_after_the_seconds_that_it_has(make_away, caplog):
    away, clock = make_away(until=1e9, seconds=30.0)
    with pytest.raises(RuntimeError, match="away: no answer"):
        away.get_all_studies()
    assert 30.0 <= clock.now <= 40.0
    assert caplog.text.count("it is tried again for 30 s") == 1


def test_at_first_nothing_is_tried_again(make_away):
    away, clock = make_away(until=1.0, seconds=0.0)
    with pytest.raises(RuntimeError):
        away.get_all_studies()
    assert clock.pauses == []
    assert RetryingStorage(None, None).retry_seconds == 0.0
