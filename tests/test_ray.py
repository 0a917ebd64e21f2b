"""Lifetimes on a real Ray cluster of two nodes on this machine, one of which is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from stable_baselines3 import PPO

from erl.errors import UserError
from erl.evolution import EvolutionConfig, evolve
from erl.executors import LocalExecutor, WorkerLost
from erl.learners import Outputs
from erl.lifetime import Job
from erl.ray_executor import RayExecutor, _Board, _Changes, _checkpoints, _moved
from erl.spec import LearnerSpec, LifetimeSpec, Seeds, to_json
from erl.study import Study, records
from erl.tasks import Task

SETTINGS = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
# Small stores, no dashboard, no statistics sent; workers that do not make way for everything else on the machine.
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_health_check_period_ms": "500"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without CPUs: all lifetimes run on nodes that the tests add."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_TMPDIR", str(Path("/tmp") / f"erl{os.getpid()}"))  # paths of sockets are short
        started = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
        started.add_node(**NODE)
        yield started
        started.shutdown()


@pytest.fixture
def address(cluster):
    return f"ray:{cluster.address}"


@pytest.fixture
def executor(address):
    executor = RayExecutor(address, max_retries=1)
    yield executor
    executor.close()


def lifetime(env_id="toy_environments:Steady-v0", steps=64, engine="cohort", seed=4):
    return LifetimeSpec(Task(env_id), LearnerSpec("PPO", SETTINGS, engine), steps, Seeds(1, 2, 3, seed))


def plain(record):
    """A record without its timing."""
    return {k: v for k, v in to_json(record).items() if k != "seconds"}
