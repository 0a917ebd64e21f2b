"""Every test runs on one thread, finds the toy environments, and writes into a folder of its
own.
"""

import errno
import os
import random
import shutil
import sys
import uuid
from pathlib import Path

# Before NumPy and torch start their threads: here, and in all processes that tests start. Two
# processes of tests with two threads each would wait for one another on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import pytest
import servers
import torch
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.storage import _VersionManager
from sqlalchemy.exc import OperationalError

from erl.executors.jobs import HERE, Result, first_rows, new_rows
from erl.executors.local import LocalExecutor

TESTS = Path(__file__).parent
ROOT = TESTS.parent

torch.set_num_threads(1)
# Worker processes and scripts under test import the toy environments too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)
sys.path.insert(0, str(TESTS))
# Databases wait for the disk after each of thousands of commits. Memory, where there is enough of
# it, does not keep them waiting.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Where tests that are about something else than databases keep their studies: an evolution stores
# there in a fraction of the time that it takes with SQLite.
STORAGE = "journal:studies.log"


# Optuna reads its migrations anew whenever a database is opened, a tenth of the time of a short
# evolution. They are the same for all.
read_migrations, MIGRATIONS = _VersionManager._create_alembic_script, []


def _migrations(self):
    if not MIGRATIONS:
        MIGRATIONS.append(read_migrations(self))
    return MIGRATIONS[0]


_VersionManager._create_alembic_script = _migrations


class InlineExecutor:
    """`LocalExecutor`'s interface without processes."""

    def __init__(self, workers=1, max_retries=0):
        self.workers = workers
        self.note = print

    def run(self, jobs, columns, tick, every=0.0, on_interrupt=None):
        nothing = new_rows(columns, sum(job.rows for job in jobs))
        for index, job in enumerate(jobs):
            rows = new_rows(columns, job.rows)
            yield Result(index, job.function(rows, HERE, *job.arguments))
            tick(nothing)

    def close(self):
        pass


class Observed(np.ndarray):
    """A column of a board that calls `after(key, value)` when something was written."""

    def __array_finalize__(self, other):
        self.after = getattr(other, "after", None)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        if self.after is not None:
            self.after(key, value)


def observed(rows, column, after):
    """The same rows, and `after` is called when this column is written."""
    array = rows[column].view(Observed)
    array.after = after
    return rows | {column: array}


class TickingExecutor(InlineExecutor):
    """Without processes, and the coordinator looks at the board whenever a lifetime writes
    there.
    """

    def run(self, jobs, columns, tick, every=0.0, on_interrupt=None):
        first = first_rows(jobs)
        everything = new_rows(columns, first[-1])
        for index, job in enumerate(jobs):
            mine = {k: v[first[index] : first[index + 1]] for k, v in everything.items()}
            rows = observed(mine, "steps", lambda *_: tick(everything))
            yield Result(index, job.function(rows, HERE, *job.arguments))
            tick(everything)


# Idle workers of `LastingExecutor`.
POOLS: dict = {}


class LastingExecutor(LocalExecutor):
    """`LocalExecutor` whose idle workers are there for the next test too: a process that imports
    everything takes seconds to start.
    """

    def __init__(self, workers, max_retries=2):
        super().__init__(workers, max_retries)
        self._pools, self._idle = POOLS, True

    def run(self, jobs, columns, tick, every=0.5, on_interrupt=None):
        self._idle = False
        yield from super().run(jobs, columns, tick, every, on_interrupt)
        self._idle = True

    def close(self):
        if not self._idle:
            self.end()

    def end(self):
        super().close()


class Lines:
    """A sink that keeps what it is told."""

    def __init__(self):
        self.lines, self.statuses = [], []

    def line(self, text):
        self.lines.append(text)

    def status(self, text):
        self.statuses.append(text)

    def close(self):
        pass

    def __str__(self):
        return "\n".join(self.lines)


# -- the order of tests --

# What is started or computed once for many tests, by its fixture: these tests run in one process
# of tests, and first, since they take longest.
STARTED = {
    "cluster": "ray",
    "lasting": "workers",
    "undisturbed": "interrupted",
    "postgresql": "servers",
    "mariadb": "servers",
    "kernel": "notebooks",
    "runs": "notebooks",
}
SERVED = {"postgresql": "postgresql", "grpc": "postgresql", "mysql": "mariadb"}


def _group(item):
    used = [*getattr(item, "fixturenames", ())]
    if "storage" in used:  # it asks for its server when it runs
        used.append(SERVED.get(item.callspec.params["storage"]))
    return next((group for fixture, group in STARTED.items() if fixture in used), None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    order = [*STARTED.values(), "slow"]

    def rank(item):
        group = groups[item] or ("slow" if item.get_closest_marker("slow") else None)
        return order.index(group) if group else len(order)

    items.sort(key=rank)
    result = yield
    if config.getoption("loadgroup", False):  # in a process of tests, with `--dist loadgroup`
        for item in items:
            _name_group(item)
    return result


def _name_group(item):
    """The group behind the test's name, where the scheduler looks for it. xdist 3.8 writes it where
    pytest 9.2 does not read it (pytest-xdist issue 1386); where it arrives, this changes nothing.
    """
    mark = item.get_closest_marker("xdist_group")
    if mark is None:
        return
    ending = f"@{mark.args[0]}"
    if not item.nodeid.endswith(ending):
        item._id = type(item.id).parse(item.nodeid + ending)
    if not item.nodeid.endswith(ending):
        raise RuntimeError(f"{item.nodeid} is not in its group: see `STARTED` in tests/conftest.py")


@pytest.fixture
def sink():
    return Lines()


@pytest.fixture
def inline(monkeypatch):
    """Evolutions and comparisons without worker processes, for tests that are about something
    else.
    """
    monkeypatch.setattr("erl.executors.local.LocalExecutor", InlineExecutor)
    return InlineExecutor


@pytest.fixture
def told(monkeypatch):
    """Evolutions whose lifetimes are not lived; see `told_lifetimes`."""
    from told_lifetimes import Told

    executor = type("Told", (Told,), {})
    monkeypatch.setattr("erl.executors.local.LocalExecutor", executor)
    return executor


@pytest.fixture
def away(monkeypatch):
    """Called, it has every SQL database answer no more."""

    def gone(*_, **__):
        raise OperationalError("SELECT", None, Exception("it went away"))

    return lambda: monkeypatch.setattr(_CachedStorage, "get_all_trials", gone)


@pytest.fixture(scope="session")
def lasting():
    """`LastingExecutor`, whose workers end with the tests."""
    yield LastingExecutor
    LastingExecutor(1).end()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A real evolution and its test, for figures; see `figure_fixtures.make_runs`."""
    from figure_fixtures import make_runs

    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def quick(tmp_path):
    """PPO settings for the smallest budgets."""
    path = tmp_path / "quick.yaml"
    path.write_text("n_steps: 32\nbatch_size: 32\nn_epochs: 1\n")
    return path.name


@pytest.fixture(autouse=True)
def _own_environment():
    """What a test changes in the environment is gone after it. `monkeypatch.delenv` of a variable
    that is not set does not undo what the code under test sets then.
    """
    before = dict(os.environ)
    yield
    for name in {*os.environ, *before}:
        if name.startswith("PYTEST_"):
            continue
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


def begin_luck(patch):
    """What is drawn without a seed from now on is the same each time: NumPy, and with it Optuna and
    Gymnasium, asks the operating system for seeds by this function.
    """
    patch.setattr(np.random.bit_generator, "randbits", random.Random(0).getrandbits)
    np.random.seed(0)  # noqa: NPY002 (some libraries draw there)
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_luck(monkeypatch):
    begin_luck(monkeypatch)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)


@pytest.fixture
def closed(monkeypatch):
    """The folder `closed` of somebody else, into which nobody can look. Tests may run as root, for
    whom every folder is open.
    """
    Path("closed").mkdir()

    def refuse(name, inside):
        real = getattr(os, name)

        def call(path=".", *args, **named):
            parts = () if isinstance(path, int) else Path(os.fsdecode(path)).parts
            if "closed" in (parts[:-1] if inside else parts):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path, *args, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "lstat", "mkdir"):
        refuse(name, inside=True)
    for name in ("scandir", "listdir"):
        refuse(name, inside=False)


# -- real servers --


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server, started once for each process of tests."""
    if servers.find("initdb") is None:
        servers.missing("PostgreSQL")
    server = servers.PostgreSQL()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def mariadb():
    """A MariaDB server, started once for each process of tests."""
    if servers.find("mariadbd") is None or servers.find("mariadb-install-db") is None:
        servers.missing("MariaDB")
    server = servers.MariaDB()
    yield server
    server.remove()


@pytest.fixture
def storage(request):
    """The address of a new storage of the kind that the test is parametrised with (indirectly)."""
    name = f"t{uuid.uuid4().hex}"
    match request.param:
        case "sqlite":
            yield f"sqlite:///{name}.db"
        case "journal":
            yield f"journal:{name}.log"
        case "postgresql":
            yield request.getfixturevalue("postgresql").create(name)
        case "mysql":
            yield request.getfixturevalue("mariadb").create(name)
        case "grpc":
            proxy = servers.Proxy(request.getfixturevalue("postgresql").create(name))
            yield proxy.address
            proxy.stop()
