"""Every test runs on one thread, finds the toy environments, and writes into a folder of its
own.
"""

import os
import sys
import uuid
from pathlib import Path

import pytest
import servers
import torch

from erl.executors.local import Result
from erl.lifetimes.lifetime import Slots, live

TESTS = Path(__file__).parent
ROOT = TESTS.parent

torch.set_num_threads(1)
# Worker processes and scripts under test import the toy environments too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)
sys.path.insert(0, str(TESTS))


class InlineExecutor:
    """`LocalExecutor`'s interface without processes."""

    def __init__(self, workers=1, max_retries=0):
        self.workers = workers

    def run(self, jobs, tick, every=0.0):
        nothing = Slots.empty(sum(len(job.specs) for job in jobs))
        for index, job in enumerate(jobs):
            yield Result(index, live(job))
            tick(nothing)

    def close(self):
        pass


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


@pytest.fixture
def sink():
    return Lines()


@pytest.fixture
def inline(monkeypatch):
    """Evolutions and comparisons without worker processes, for tests that are about something
    else.
    """
    monkeypatch.setattr("erl.experiments.evolution.LocalExecutor", InlineExecutor)
    return InlineExecutor


@pytest.fixture
def quick(tmp_path):
    """PPO settings for the smallest budgets."""
    path = tmp_path / "quick.yaml"
    path.write_text("n_steps: 32\nbatch_size: 32\nn_epochs: 1\n")
    return path.name


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)


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
