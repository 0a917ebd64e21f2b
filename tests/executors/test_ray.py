"""Lifetimes on a real Ray cluster of two nodes on this machine, one of which is killed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import evolved
import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from stable_baselines3 import PPO

from erl.errors import UserError
from erl.executors.jobs import Column, Job, WorkerLost, new_rows
from erl.executors.ray_cluster import (
    RayExecutor,
    _Board,
    _Changes,
    _Correspondence,
    _Fetched,
    _write,
)
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.files import write_whole, writing
from erl.learners import Outputs
from erl.lifetimes.living import COLUMNS, Cohort, live
from erl.lifetimes.record import LifetimeRecord
from erl.studies.records import records
from erl.studies.study import Study
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, to_json
from erl.worlds.tasks import Task

SETTINGS = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
# Small stores, no dashboard, no statistics sent; workers that do not make way for everything else
# on the machine. A node that was killed is missed after two seconds, and not after fifteen.
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs: all lifetimes run on nodes that the tests add."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as ending:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        # Paths of sockets are short.
        folder = ending.enter_context(
            tempfile.TemporaryDirectory(prefix="erl", dir="/tmp", ignore_cleanup_errors=True)
        )
        patch.setenv("RAY_TMPDIR", folder)
        started = Cluster()
        ending.callback(started.shutdown)
        add_node(started, num_cpus=0)  # the first is the head
        add_node(started)
        yield started


def add_node(cluster, **more):
    """A node that has joined. On a busy machine Ray gives up a node whose own helpers have not
    started within 15 seconds: then another one is tried.
    """
    for tries_left in (3, 2, 1, 0):
        before = nodes_of(cluster)
        try:
            return cluster.add_node(**NODE | more)
        except Exception:  # of several kinds, by what was waited for
            if not tries_left:
                raise
            for node in nodes_of(cluster) - before:
                cluster.remove_node(node, allow_graceful=False)
    return None


def nodes_of(cluster):
    return {cluster.head_node, *cluster.worker_nodes} - {None}


@pytest.fixture
def address(cluster):
    return f"ray:{cluster.address}"


@pytest.fixture
def executor(address):
    executor = RayExecutor(address, max_retries=1)
    yield executor
    executor.close()


def lifetime(env_id="toy_environments:Steady-v0", steps=64, engine="cohort", seed=4):
    return LifetimeSpec(
        Task(env_id), LearnerSpec("PPO", SETTINGS, engine), steps, Seeds(1, 2, 3, seed)
    )


def plain(record):
    """A record without its timing."""
    return {k: v for k, v in to_json(record).items() if k != "seconds"}


@pytest.mark.slow
def test_records_are_those_of_local_processes_and_files_come_back(executor):
    specs = [lifetime(seed=k, steps=640) for k in range(3)] + [
        lifetime("toy_environments:Faulty-raise-v0", engine="sb3")
    ]
    where = [Path(f"here/{k}").absolute() for k in range(4)]
    outputs = [Outputs(str(w / "log"), str(w / "checkpoint.pkl"), 0.0) for w in where]
    models = [str(w / "model") for w in where]
    cohorts = [
        Cohort(tuple(specs[a:b]), tuple(outputs[a:b]), tuple(models[a:b]))
        for a, b in ((0, 2), (2, 3), (3, 4))
    ]
    where[2].mkdir(parents=True)
    (where[2] / "checkpoint.pkl").write_bytes(b"damaged")
    last, noted = [], []
    executor.note = noted.append
    jobs = [cohort.job() for cohort in cohorts]
    results = {
        r.index: r
        for r in executor.run(
            jobs, COLUMNS, lambda board: last.append(board["steps"].copy()), every=0.1
        )
    }
    for k in range(3):
        expected = live(Cohort(cohorts[k].specs))
        assert [plain(r) for r in results[k].value] == [plain(r) for r in expected]
    assert "the simulator exploded" in results[2].value[0].error
    (said,) = [line for line in noted if "begins anew" in line]
    assert "checkpoint.pkl" in said
    assert last[-1][:3].max() >= 256
    assert all((a <= b).all() for a, b in pairwise(last))
    for k in range(3):
        assert PPO.load(models[k]).observation_space.shape == (2,)
        assert from_disk(where[k] / "model.json") == to_json(specs[k])
        assert list((where[k] / "log").glob("events.*"))
    assert not list(Path("here").rglob(".*"))


def from_disk(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_lifetime_that_kills_its_worker_fails_alone(executor):
    dying = lifetime("toy_environments:Faulty-die-v0", engine="sb3")
    jobs = [Cohort((spec,)).job() for spec in (dying, lifetime())]
    results = {r.index: r for r in executor.run(jobs, COLUMNS, lambda board: None)}
    assert isinstance(results[0].error, WorkerLost)
    assert "lost 2 times" in str(results[0].error)
    assert results[1].value[0].steps == 64


@pytest.mark.slow
def test_an_evolution_loses_a_node_and_nothing_else(cluster, address, quick, sink, inline):
    """Another node is there when the one that has lifetimes dies in the middle of them."""
    spare = add_node(cluster)
    config = EvolutionConfig(
        env_id="toy_environments:Steady-v0",
        training_steps=6000,
        nb_trials=4,
        nb_seeds=2,
        units=5,
        popsize=4,
        learner_config=quick,
        sampler="Random",
        cluster=address,
    )
    killed = threading.Event()
    over = threading.Event()

    def kill():
        while not (busy(spare) or over.is_set()):
            time.sleep(0.05)
        if not over.wait(0.5):  # in the middle of a lifetime
            killed.set()
            cluster.remove_node(spare, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        assert evolve(config, sink) == 0
    finally:
        over.set()
        thread.join()
    assert killed.is_set()
    assert any("2 workers" in line for line in sink.lines)
    here = replace(config, cluster=None, workers=1, h_test="here")
    assert evolve(here, sink) == 0
    name = "toy_environments:Steady-v0_{}_6k_steps"
    study = Study(config.storage, name.format("main"))
    assert [t.state.name for t in study.trials()] == ["COMPLETE"] * 4
    columns = ["trial", "lifetime", "fitness", "steps", "curve"]
    there, local = (records(config.storage, name.format(h))[columns] for h in ("main", "here"))
    assert len(there) == 8
    assert there.equals(local)


def busy(node):
    """Whether a lifetime runs on a node: Ray names its workers' processes after what they do."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in raylet.children():
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "ray::_work" in process.name() + str(process.cmdline()):
                return True
    return False


def steps_of(checkpoint):
    """How far a lifetime was when its checkpoint was written; 0 without one."""
    if not checkpoint.exists():
        return 0
    return pickle.loads(checkpoint.read_bytes())["state"]["ledger"][0]


def noting_its_begin(job, path):
    """The same job, which writes into a file of this machine with how many steps it begins, each
    time.
    """

    def begin(rows, folder, *arguments):
        from erl.learners.core import run

        def noting(paths, specs, settings, parts):
            restore(paths, specs, settings, parts)
            with path.open("a") as file:
                file.write(f"{parts['ledger'][0].get_state()[0]}\n")

        restore, run.restore_parts = run.restore_parts, noting
        try:
            return job.function(rows, folder, *arguments)
        finally:
            run.restore_parts = restore

    return replace(job, function=begin)


# Its checkpoint has a replay buffer beside it.
RE2 = {
    "init_steps": 100,
    "learning_starts": 50,
    "batch_size": 16,
    "pr": 8,
    "frac_frames_train": 0.02,
    "eval_freq": 0,
}


@pytest.mark.slow
def test_a_job_goes_on_elsewhere_from_its_checkpoint(cluster, address):
    """Its node dies after the first checkpoint has come to the coordinator; the next attempt takes
    it along.
    """
    learner = LearnerSpec("ERL-Re2", RE2)
    # Its first thousand steps are in a checkpoint that comes at most 5,000 steps later.
    spec = replace(lifetime("toy_environments:Slow-v0", steps=7_000), learner=learner)
    checkpoint = Path("runs/one.pkl").absolute()
    job = Cohort((spec,), (Outputs(None, str(checkpoint), 0.2),)).job()
    job = noting_its_begin(job, begun := Path("begun.txt").absolute())
    executor = RayExecutor(address, workers=1, max_retries=1)
    saved, notes = [], []
    executor.note = notes.append

    def tick(board):
        if not saved and steps_of(checkpoint) >= 1000:
            [node] = [n for n in cluster.worker_nodes if busy(n)]
            saved.append(steps_of(checkpoint))
            cluster.remove_node(node, allow_graceful=False)
            add_node(cluster)

    try:
        [result] = executor.run([job], COLUMNS, tick, every=0.1)
    finally:
        executor.close()
    assert result.error is None
    assert "a Ray worker or machine was lost; its job is begun again" in notes
    first, second = map(int, begun.read_text().split())
    assert first == 0
    assert second >= saved[0], "it began anew"
    [expected] = live(Cohort((replace(lifetime(steps=spec.steps), learner=learner),)))
    assert plain(result.value[0])["curve"] == plain(expected)["curve"]


@pytest.mark.slow
def test_workers_inside_a_lifetime_outlive_a_machine(cluster, address):
    """Individuals, or critics, that were there are asked again; every step was counted."""
    spare = add_node(cluster, num_cpus=3)
    spec = evolved.lifetime(
        "AES-RL", 10**6, actor_executor="ray", ray_address=address, actor_workers=2
    )
    work = evolved.at_work(spec)
    told, tell = [], work.tell
    work.tell = lambda verdict: (told.append(verdict.individual.number), tell(verdict))
    try:
        evolved.until(work, 8)
        before = work.critic_updates
        cluster.remove_node(spare, allow_graceful=False)
        add_node(cluster)
        # Individuals, critics, and Ray has missed the machine.
        while work.told < 20 or work.critic_updates < before + 100 or not work.workers.lost:
            work.iterate()
        assert len(set(told)) == len(told)
        assert len(set(range(max(told))) - set(told)) <= 2  # at work
        assert min(work.stored_steps, 2000) == len(work.bench.buffer)
        assert work.ledger.steps >= 2 * 20 * len(told)
    finally:
        work.close()
    assert not ray.is_initialized()


def test_a_cluster_that_is_too_small_for_the_workers_of_a_lifetime(address):
    spec = evolved.lifetime("AES-RL", actor_executor="ray", ray_address=address, actor_workers=90)
    with pytest.raises(UserError, match="CPUs, and the workers of a lifetime take 91"):
        evolved.at_work(spec)
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_ctrl_c_and_errors_of_the_coordinator_end_the_tasks(error, cluster, executor):
    job = Cohort((lifetime(steps=10**9),)).job()
    ticks = []

    def tick(board):
        ticks.append(int(board["steps"][0]))
        if ticks[-1] > 0:
            raise error

    with pytest.raises(error):
        list(executor.run([job], COLUMNS, tick, every=0.1))
    deadline = time.monotonic() + 60
    while any(busy(node) for node in cluster.worker_nodes):
        assert time.monotonic() < deadline, "a task still runs"
        time.sleep(0.1)
    # The executor can be used again.
    [result] = executor.run([Cohort((lifetime(),)).job()], COLUMNS, lambda board: None)
    assert result.error is None


@pytest.mark.slow
def test_after_ctrl_c_what_returns_in_time_has_a_result_and_its_files(executor):
    checkpoint, results = Path("runs/one.pkl").absolute(), []
    job = Cohort((lifetime(steps=10**9),), (Outputs(None, str(checkpoint), 1000.0),)).job()

    def tick(board):
        if board["steps"][0] > 0:
            raise KeyboardInterrupt("SIGINT")

    def on_interrupt(board, interruption):
        board["save"][:] = True
        return 60.0

    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        results.extend(executor.run([job], COLUMNS, tick, 0.1, on_interrupt))
    [result] = results
    [record] = result.value
    assert record.error == "interrupted"
    assert steps_of(checkpoint) == record.steps > 0


@pytest.mark.slow
def test_workers_are_the_clusters_cpus_unless_said_and_sigterm_means_what_it_meant(address):
    before = signal.getsignal(signal.SIGTERM)
    executor = RayExecutor(address)
    assert executor.workers == ray.cluster_resources()["CPU"]
    executor.close()
    assert signal.getsignal(signal.SIGTERM) is before
    more = RayExecutor(address, 7)
    more.close()
    assert more.workers == 7


@pytest.mark.slow
def test_a_job_takes_the_cpus_that_it_keeps_busy_or_a_whole_machine(cluster, address):
    spare = add_node(cluster, num_cpus=5)
    try:
        executor = RayExecutor(address, cores=2)
        executor.close()
        assert executor.workers == 2
        executor = RayExecutor(address, cores=9)
        assert executor.workers == 1
        [result] = executor.run([Cohort((lifetime(),)).job()], COLUMNS, lambda _: None)
        executor.close()
        assert result.error is None
    finally:
        cluster.remove_node(spare, allow_graceful=False)


@pytest.mark.slow
def test_of_two_lifetimes_without_room_for_both_one_waits(cluster, address, monkeypatch):
    """Each would otherwise have a part of its workers, and wait for the other part for ever."""
    monkeypatch.setattr("erl.executors.ray_workers.WARN_SECONDS", 0.5)
    script = WAITING.format(tests=str(Path(__file__).parents[1]), address=address)
    said = Path("said.txt")
    with ExitStack() as ending:
        spare = add_node(cluster, num_cpus=3)
        ending.callback(cluster.remove_node, spare, allow_graceful=False)
        spec = evolved.lifetime(
            "AES-RL", 10**6, actor_executor="ray", ray_address=address, actor_workers=2
        )
        first = evolved.at_work(spec)
        ending.callback(first.close)
        evolved.until(first, 2)
        with said.open("w") as stderr:
            second = subprocess.Popen([sys.executable, "-c", script], stderr=stderr)
        ending.callback(second.wait)
        ending.callback(second.kill)
        deadline = time.monotonic() + 120
        while "a lifetime waits for 3 free CPUs" not in said.read_text():
            assert second.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        evolved.until(first, 6)
        assert second.poll() is None
        first.close()
        assert second.wait(120) == 0, said.read_text()


WAITING = """
import sys
sys.path.insert(0, {tests!r})
import evolved
import erl.executors.ray_workers as ray_workers
ray_workers.WARN_SECONDS = 0.5
spec = evolved.lifetime(
    "AES-RL", 10**6, actor_executor="ray", ray_address={address!r}, actor_workers=2
)
work = evolved.at_work(spec)
evolved.until(work, 2)
work.close()
"""


@pytest.mark.slow
def test_a_node_where_the_project_is_another_is_refused(address):
    here = os.getpid()

    def identify():
        return {"python": "3.0" if os.getpid() == here else "3.1"}

    with pytest.raises(UserError, match=r"python is 3\.1 there and 3\.0 here"):
        RayExecutor(address, identify=identify)
    assert not ray.is_initialized()


# -- the parts, without a cluster --


def test_the_board_carries_any_rows_both_ways():
    columns = {
        "steps": Column(np.int64),
        "reports": Column(np.float64, (2,), np.nan),
        "stop": Column(np.bool_, from_coordinator=True),
    }
    board = _Board(columns, 4)
    said = {"steps": np.array([7, 8]), "reports": np.array([[1.0, np.nan], [2.0, 3.0]])}
    identity, told = board.exchange(1, 2, said, {"/a": b"1"})
    assert not told["stop"].any()
    board.exchange(1, 2, {}, {"/a": b"2", "/b": b"3"})
    looks, rows, files = board.look({"stop": np.array([False, False, True, True])}, 0)
    assert rows.keys() == {"steps", "reports"}
    assert rows["steps"].tolist() == [0, 7, 8, 0]
    np.testing.assert_array_equal(rows["reports"][1:3], said["reports"])
    assert files == {1: {"/a": b"2", "/b": b"3"}}
    assert board.exchange(1, 2, said, {"/b": b"4"})[1]["stop"].tolist() == [False, True]
    # The answer was lost on the way: the files come again, with newer ones.
    assert board.look({}, 0)[2] == {1: {"/a": b"2", "/b": b"4"}}
    looks, _, files = board.look({}, 0)
    assert files == {1: {"/a": b"2", "/b": b"4"}}
    board.exchange(3, 1, {}, {"/c": b"5"})
    looks, _, files = board.look({}, looks)
    assert files == {3: {"/c": b"5"}}
    assert board.look({}, looks)[2] == {}
    assert _Board({}, 0).exchange(0, 0, {}, {})[0] != identity


def test_files_are_fetched_when_they_changed_and_are_whole(tmp_path):
    changes = _Changes(str(tmp_path))
    assert changes.fetch() == {}
    (tmp_path / "a/.part").mkdir(parents=True)
    (tmp_path / "a/one").write_bytes(b"1")
    (tmp_path / "a/.part/two").write_bytes(b"2")
    assert changes.fetch() == {"/a/one": b"1"}
    assert changes.fetch() == {"/a/one": b"1"}  # it may have been lost on the way
    changes.arrived()
    assert changes.fetch() == {}
    (tmp_path / "a/one").write_bytes(b"11")
    (tmp_path / "a/.part/two").rename(tmp_path / "a/two")
    assert changes.fetch() == {"/a/one": b"11", "/a/two": b"2"}
    changes.arrived()
    # A checkpoint that is written while others are read is read again, with what it needs.
    (tmp_path / "a/x.pkl").write_bytes(b"3")
    (tmp_path / "a/b").write_bytes(b"4")
    read = Path.read_bytes

    def read_late(path):
        content = read(path)
        if not (tmp_path / "a/c").exists():
            (tmp_path / "a/c").write_bytes(b"5")
            (tmp_path / "a/x.pkl").write_bytes(b"33")
        return content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_late)
        assert changes.fetch() == {"/a/x.pkl": b"33", "/a/b": b"4", "/a/c": b"5"}
        changes.arrived()
    # What is gone there goes here too.
    (tmp_path / "a/b").unlink()
    assert changes.fetch() == {"/a/b": None}
    changes.arrived()
    assert changes.fetch() == {}


def test_what_cannot_be_written_is_not_forgotten(tmp_path, monkeypatch):
    """A part of a replay buffer is sent once, and a full disk may have place again later."""
    executor, path, other = (
        object.__new__(RayExecutor),
        str(tmp_path / "0-2.npy"),
        str(tmp_path / "0-1.npy"),
    )
    answers = [
        (1, {}, {0: {other: b"3", path: b"1"}, 4: {"/gone": b"2"}}),
        (2, {}, {}),
        (3, {}, {}),
    ]
    monkeypatch.setattr("ray.get", lambda *_, **__: answers.pop(0))
    board = SimpleNamespace(look=SimpleNamespace(remote=lambda *_: None))
    written = []

    def full(path, fill):
        if str(path) == path_of_the_large:
            raise OSError("no space left")
        written.append(str(path))

    fetched, path_of_the_large = _Fetched(), path
    with monkeypatch.context() as patch:
        patch.setattr("erl.executors.ray_cluster.write_whole", full)
        executor._look(board, new_rows(COLUMNS, 1), COLUMNS, {0}, fetched)
        executor._look(board, new_rows(COLUMNS, 1), COLUMNS, {0}, fetched)
    assert written == [other]
    assert fetched.unwritten == {0: {path: b"1"}}
    executor._look(board, new_rows(COLUMNS, 1), COLUMNS, {0}, fetched)
    assert not fetched.unwritten
    assert Path(path).read_bytes() == b"1"


def test_warnings_of_workers_are_noted_once_and_are_no_files(monkeypatch):
    executor, noted = object.__new__(RayExecutor), []
    executor.note, executor._noted = noted.append, set()
    came = {"/warnings": b"no space left\nslow\n"}
    monkeypatch.setattr("ray.get", lambda *_, **__: (1, {}, {0: dict(came)}))
    board = SimpleNamespace(look=SimpleNamespace(remote=lambda *_: None))
    fetched = _Fetched()
    for _ in range(2):
        executor._look(board, new_rows(COLUMNS, 1), COLUMNS, {0}, fetched)
    assert noted == ["no space left", "slow"]
    monkeypatch.setattr("ray.get", lambda *_, **__: (5, {"/warnings": b"the last\n"}))
    assert executor._result_of(None, 0, Job(print)).value == 5
    assert noted[2:] == ["the last"]
    assert not Path("/warnings").exists()


def test_what_does_not_reach_the_board_is_sent_again(tmp_path, monkeypatch):
    """An exchange that fails, and a board that was begun anew: nothing is missing in the end."""
    monkeypatch.setattr("erl.executors.ray_cluster.EXCHANGE_SECONDS", 0.01)
    monkeypatch.setattr("erl.executors.ray_cluster.FILES_SECONDS", 0.01)
    (tmp_path / "one").write_bytes(b"1")
    sent = []

    def exchange(first, n, said, files):
        sent.append(files)
        if len(sent) == 1:
            raise TimeoutError
        return b"a" if len(sent) < 5 else b"b", {}

    board = SimpleNamespace(exchange=SimpleNamespace(remote=exchange))
    monkeypatch.setattr("ray.get", lambda answer, **_: answer)
    columns = {"steps": Column(np.int64)}
    changes = _Changes(str(tmp_path))
    with _Correspondence(board, 0, new_rows(columns, 1), columns, changes):
        deadline = time.monotonic() + 30
        while len(sent) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert sent[:8] == [{"/one": b"1"}, {"/one": b"1"}, {}, {}, {}, {"/one": b"1"}, {}, {}]


def test_a_file_without_place_costs_no_more_than_it_does_here(tmp_path, monkeypatch):
    """Logs cost a warning, a model its own lifetime, and what the others reached is kept."""
    executor, noted = object.__new__(RayExecutor), []
    executor.note, executor._noted = noted.append, set()
    models = [str(tmp_path / f"models/seed_{k}") for k in (1, 10)]
    specs = (lifetime(seed=1), lifetime(seed=10))
    job = Cohort(specs, (Outputs(), Outputs()), tuple(models)).job()
    records = [LifetimeRecord(s, 3.0, 2.0, 1, 1, 64, 1.0, final_returns=(3.0,)) for s in specs]
    (tmp_path / "logs").write_text("in the way")
    (tmp_path / "models/seed_1.zip").mkdir(parents=True)
    logs, status = str(tmp_path / "logs/0/events"), str(tmp_path / "status")
    files = {logs: b"1", status: b"2"} | {f"{m}.{end}": b"3" for m in models for end in ENDINGS}
    monkeypatch.setattr("ray.get", lambda *_, **__: (records, files))
    result = executor._result_of(None, 0, job)
    assert result.error is None
    missed, kept = result.value
    assert kept is records[1]
    assert (missed.fitness, missed.final_returns, missed.steps) == (None, (), 64)
    assert missed.error == f"{models[0]} cannot be written: Is a directory"
    assert sorted(noted) == [
        f"a file in {tmp_path}/logs/0 cannot be written: Not a directory",
        f"a file in {tmp_path}/models cannot be written: Is a directory",
    ]
    written = [status, *(f"{models[1]}.{end}" for end in ENDINGS)]
    assert all(Path(path).is_file() for path in written)
    monkeypatch.setattr("erl.lifetimes.living.save_model", lambda path, *_: fails(path))
    [here] = live(Cohort(specs[:1], (Outputs(),), (models[0],)))
    assert (here.fitness, here.final_returns, here.error) == (None, (), missed.error)


ENDINGS = ("json", "zip")


def fails(path):
    with writing(path):
        raise IsADirectoryError(21, "Is a directory")


def test_a_checkpoint_that_cannot_be_read_is_set_aside_and_its_job_begins(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("erl.files.WAITS", (0.0,))
    executor, begun = object.__new__(RayExecutor), []
    executor.cores = 1
    paths = [tmp_path / f"{k}.pkl" for k in range(3)]
    paths[0].mkdir()  # reads fail
    paths[1].write_bytes(b"1")
    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *w: begun.append(w)))
    monkeypatch.setattr("ray.remote", lambda _: task)
    outputs = tuple(Outputs(checkpoint=str(path)) for path in paths)
    executor._start(Cohort((lifetime(),) * 3, outputs).job(), None, COLUMNS, 0)
    [(*_, files)] = begun
    assert files == {str(paths[1]): b"1"}
    assert "begins anew" in caplog.text
    assert "it cannot be read (IsADirectoryError" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.pkl.aside1", "1.pkl"]


def test_there_is_a_whole_state_at_any_moment(tmp_path, monkeypatch):
    """A checkpoint is written after what it needs, and before what only the one before needed is
    removed.
    """
    state, old, new = (
        str(tmp_path / name) for name in ("a.pkl", "a.pkl.buffer/0-1.npy", "a.pkl.buffer/0-2.npy")
    )
    _write({state: b"1", old: b"1"})
    files = {state: b"2", old: None, new: b"2"}
    for kind, left in (
        (".npy", [b"1", b"1", None]),
        (".pkl", [b"1", b"1", b"2"]),
        ("none", [b"2", None, b"2"]),
    ):

        def write(path, fill, kind=kind, write=write_whole):
            if path.suffix == kind:
                raise OSError("no space left")
            write(path, fill)

        with monkeypatch.context() as patch:
            patch.setattr("erl.executors.ray_cluster.write_whole", write)
            assert {Path(name).suffix for name in _write(files)} == {kind} - {"none"}
        assert [
            Path(p).read_bytes() if Path(p).exists() else None for p in (state, old, new)
        ] == left


def test_lifetimes_on_another_machine_write_below_a_folder():
    cohort = Cohort(
        (lifetime(),), (Outputs("/x/log", "/y/checkpoint.pkl", 9.0, "/y/status"),), ("/x/model",)
    )
    assert cohort.below("/tmp/here") == replace(
        cohort,
        outputs=(
            Outputs("/tmp/here/x/log", "/tmp/here/y/checkpoint.pkl", 9.0, "/tmp/here/y/status"),
        ),
        models=("/tmp/here/x/model",),
    )
    nothing = Cohort((lifetime(),), (Outputs(),), (None,))
    assert nothing.below("/tmp/here") == nothing
