"""Addresses of clusters, what the scripts say of those that are not there, and the executor that
they choose.
"""

import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from joblib.externals.loky import ProcessPoolExecutor

from erl.cli import Interruptible
from erl.errors import UserError
from erl.executors.jobs import HERE, Column, Job
from erl.executors.local import LocalExecutor
from erl.executors.machines import check_cluster, default_workers, memory_limits
from erl.experiments.comparison import ComparisonConfig
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.workers import make_executor
from erl.studies.study import Study
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task


@pytest.mark.parametrize(
    "address", ["ray", "ray:node1:6379", "ray://node1:10001", "ray://192.0.2.1:10001"]
)
def test_addresses_of_clusters(address):
    check_cluster(address)
    assert EvolutionConfig(cluster=address).cluster == address


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "Ray",
            "dask",
            "dask://node1:8786",
            "rays",
            "slurm",
            "ray:",
            "ray://",
            "ray:node1",
            "ray://node1",
        ),
        *(
            "ray://:10001",
            "ray://node1:port",
            "ray://node1:0",
            "ray://node1:65536",
            "ray:/node1:6379",
            "ray://a:1/x",
        ),
    ],
)
@pytest.mark.parametrize("config", [EvolutionConfig, ComparisonConfig])
def test_other_addresses_are_refused(config, address):
    with pytest.raises(UserError, match=r"ray://HOST:PORT"):
        config(cluster=address)


def test_without_a_cluster_lifetimes_run_in_processes_here():
    spec = LifetimeSpec(Task("CartPole-v1"), LearnerSpec("PPO"), 64, Seeds.derive(0, "single", 0))
    executor = make_executor(EvolutionConfig(), spec)
    assert isinstance(executor, LocalExecutor)
    assert executor.workers == default_workers()
    assert make_executor(EvolutionConfig(workers=3), spec).workers == 3


@pytest.mark.parametrize("variable", ["SLURM_CPUS_PER_TASK", "NCPUS", "NSLOTS"])
def test_a_job_has_its_cores(variable, monkeypatch):
    monkeypatch.setattr("joblib.externals.loky.cpu_count", lambda: 8)
    for cores, workers in (("3", 3), ("30", 8), ("", 8)):
        monkeypatch.setenv(variable, cores)
        assert default_workers() == workers
    monkeypatch.delenv(variable)
    assert default_workers() == 8


def test_a_process_has_the_cores_that_it_is_bound_to(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(3)), raising=False)
    assert default_workers() == 3


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/job/step", {"job/memory.max": "1000", "job/step/memory.max": "max"}, [1000]),
        ("0::/not/seen/here", {"memory.max": "1000"}, [1000]),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": "1000"}, [1000]),
        ("3:cpu:/job\n0::/", {"memory/job/memory.limit_in_bytes": "1000"}, []),
        (None, {}, []),
    ],
)
def test_limits_of_memory(groups, files, limits, monkeypatch, tmp_path):
    texts = {f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}
    if groups is not None:
        texts["proc/self/cgroup"] = f"{groups}\n"
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for megabytes, of_job in (("", []), ("0", []), ("2", [2 << 20])):
        monkeypatch.setenv("SLURM_MEM_PER_NODE", megabytes)
        assert memory_limits(tmp_path) == of_job + limits
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "3")
    for cores, megabytes in (("", 3), ("4", 12)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", cores)
        assert memory_limits(tmp_path) == [2 << 20, megabytes << 20, *limits]


@pytest.mark.parametrize(("cores", "workers"), [(12, 2), (13, 2), (5, 1)])
def test_as_many_lifetimes_as_fit_with_all_that_they_keep_busy(monkeypatch, cores, workers):
    """Five workers for actors and one for critics, in processes: six cores each."""
    monkeypatch.setattr("erl.experiments.workers.default_workers", lambda: cores)
    inside = {"actor_executor": "processes", "actor_workers": 5}
    learner = LearnerSpec("AES-RL", inside)
    task = Task("toy_environments:Reach-v0")
    spec = LifetimeSpec(task, learner, 10**6, Seeds.derive(0, "single", 0))
    assert make_executor(EvolutionConfig(), spec).workers == workers
    assert make_executor(EvolutionConfig(workers=3), spec).workers == 3
    alone = replace(spec, learner=LearnerSpec("AES-RL"))
    assert make_executor(EvolutionConfig(), alone).workers == cores


def test_workers_on_a_cluster_belong_to_lifetimes_here(monkeypatch):
    learner = LearnerSpec("AES-RL", {"actor_executor": "ray"})
    task = Task("toy_environments:Reach-v0")
    spec = LifetimeSpec(task, learner, 10**6, Seeds.derive(0, "single", 0))
    with pytest.raises(UserError, match="--cluster or actor_executor ray, not both"):
        make_executor(EvolutionConfig(cluster="ray"), spec)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["ray:", "ray://"])
def test_a_cluster_that_does_not_answer_is_refused_and_nothing_written(scheme, sink, monkeypatch):
    monkeypatch.setattr("erl.executors.ray_cluster.CONNECT_SECONDS", 1.0)
    with pytest.raises(UserError, match="no Ray cluster answers at 127"):
        evolve(
            EvolutionConfig(env_id="CartPole-v1", cluster=f"{scheme}127.0.0.1:{free_port()}"), sink
        )
    assert not list(Path().iterdir())


def test_a_cluster_that_runs_no_more_is_refused(sink, monkeypatch, tmp_path):
    """Ray notes the last cluster of a machine in a file, which outlives a cluster that was
    killed.
    """
    monkeypatch.setattr("erl.executors.ray_cluster.CONNECT_SECONDS", 1.0)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    config = EvolutionConfig(env_id="CartPole-v1", cluster="ray")
    with pytest.raises(
        UserError, match="no Ray cluster runs on this machine: start one with ray start"
    ):
        evolve(config, sink)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="no Ray cluster answers at 127"):
        evolve(config, sink)


def test_a_server_of_another_kind_is_refused(sink, monkeypatch):
    monkeypatch.setattr("erl.executors.ray_cluster.CONNECT_SECONDS", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(UserError, match="no Ray cluster answers"),
    ):
        evolve(
            EvolutionConfig(
                env_id="CartPole-v1", cluster=f"ray:127.0.0.1:{silent.getsockname()[1]}"
            ),
            sink,
        )


def test_without_ray_the_message_says_how_to_install_it(sink, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "erl.executors.ray_cluster", raising=False)
    with pytest.raises(UserError, match=r"--cluster needs Ray .*pip install"):
        evolve(EvolutionConfig(env_id="CartPole-v1", cluster="ray"), sink)
    assert not list(Path().iterdir())


def test_where_a_study_is_computed_is_no_part_of_it(quick, inline, sink, monkeypatch):
    """It may be continued on a cluster, and its configuration does not name one."""
    monkeypatch.setattr("erl.executors.ray_cluster.CONNECT_SECONDS", 1.0)
    config = EvolutionConfig(
        env_id="CartPole-v1",
        training_steps=64,
        nb_trials=1,
        nb_seeds=1,
        learner_config=quick,
        engine="sb3",
    )
    assert evolve(config, sink) == 0
    study = Study(config.storage, "CartPole-v1_main_0.064k_steps")
    assert "cluster" not in study.stored
    with pytest.raises(
        UserError, match="no Ray cluster answers"
    ):  # and not that the study is another one
        evolve(dataclasses.replace(config, cluster=f"ray:127.0.0.1:{free_port()}"), sink)


# -- jobs of any kind --


COLUMNS = {
    "done": Column(np.int64),
    "seen": Column(np.float64, (2,), np.nan),
    "limit": Column(np.int64, from_coordinator=True),
}


def count(rows, folder, name):
    """Counts up until the coordinator has written a limit."""
    assert folder == HERE
    assert np.isnan(rows["seen"]).all()
    while rows["done"][0] < 10**9 and not (0 < rows["limit"][0] <= rows["done"][0]):
        rows["done"] += 1
        time.sleep(0.001)
    rows["seen"][1] = 1.0, 2.0
    return name, rows["limit"].tolist()


@pytest.mark.slow
def test_an_executor_runs_any_function_and_its_board_goes_both_ways(lasting):
    executor, boards = lasting(2), []

    def tick(board):
        boards.append({name: array.copy() for name, array in board.items()})
        board["limit"][:] = [5, 5, 7, 7]

    jobs = [Job(count, (name,), rows=2) for name in ("a", "b")]
    try:
        results = {r.index: r.value for r in executor.run(jobs, COLUMNS, tick, every=0.05)}
    finally:
        executor.close()
    assert results == {0: ("a", [5, 5]), 1: ("b", [7, 7])}
    last = boards[-1]
    assert (last["done"] >= [5, 5, 7, 7]).all()
    assert np.isnan(last["seen"][[0, 2]]).all()
    assert last["seen"][[1, 3]].tolist() == [[1.0, 2.0]] * 2


def dies_once(rows, folder, path):
    rows["done"] += 7
    if not Path(path).exists():
        Path(path).touch()
        os._exit(1)
    return rows["done"].tolist()


@pytest.mark.slow
def test_a_job_that_is_begun_again_finds_its_rows_as_at_first(tmp_path, lasting):
    executor = lasting(1)
    notes = []
    executor.note = notes.append
    try:
        [result] = executor.run([Job(dies_once, (str(tmp_path / "x"),))], COLUMNS, lambda _: None)
    finally:
        executor.close()
    assert result.value == [7]
    [note] = notes
    assert "died (killed, or out of memory); its job is begun again" in note


def add(rows, folder, a, b):
    if a < 0:
        raise ValueError("negative")
    return a + b


def test_jobs_without_a_board(lasting):
    executor = lasting(1)
    try:
        jobs = [Job(add, (a, 2), rows=0) for a in (1, -1)]
        good, bad = sorted(executor.run(jobs, {}, lambda _: None), key=lambda r: r.index)
    finally:
        executor.close()
    assert (good.value, good.error) == (3, None)
    assert isinstance(bad.error, ValueError)


def test_a_full_folder_of_temporary_files_is_said_to_be_full(tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", full)
    executor = LocalExecutor(1)
    with pytest.raises(UserError, match=rf"files, {tmp_path}, cannot .*: No space .*TMPDIR"):
        list(executor.run([Job(add, (1, 2))], COLUMNS, lambda _: None))
    assert not list(tmp_path.iterdir())


def test_jobs_of_a_worker_that_cannot_be_started_are_done_by_others(monkeypatch):
    """There may be a limit for a user's processes. Without any worker the command ends."""
    submit, can, notes = ProcessPoolExecutor.submit, [], []

    def submitted(self, *arguments):
        if self not in can[:1]:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return submit(self, *arguments)

    make = ProcessPoolExecutor.__init__
    monkeypatch.setattr(
        ProcessPoolExecutor,
        "__init__",
        lambda self, *a, **k: (make(self, *a, **k), can.append(self))[0],
    )
    monkeypatch.setattr(ProcessPoolExecutor, "submit", submitted)
    executor = LocalExecutor(3)
    executor.note = notes.append
    jobs = [Job(add, (k, 2), rows=0) for k in range(4)]
    try:
        found = {r.index: r.value for r in executor.run(jobs, {}, lambda _: None, every=0.05)}
        assert found == {0: 2, 1: 3, 2: 4, 3: 5}
        [line] = notes
        assert "not every worker process can be started (BlockingIOError" in line
        can.clear()
        executor.close()
        can.append(None)
        with pytest.raises(UserError, match=r"no worker process can be started .*unavailable"):
            list(executor.run(jobs, {}, lambda _: None))
    finally:
        executor.close()


# -- interruptions --


def ends_when_told(rows, folder, how):
    """Begins, and ends in this way when the coordinator has written a limit."""
    rows["done"] += 1
    while not rows["limit"][0]:
        time.sleep(0.01)
    if how == "fails":
        raise ConnectionError("the simulator was interrupted")
    if how == "lingers":
        time.sleep(1000)
    return how


def let_end(board, interruption):
    """All jobs may end, within these seconds."""
    assert interruption.args == ("SIGINT",)
    board["limit"][:] = 1
    return 3.0


@pytest.mark.slow
def test_after_an_interruption_jobs_that_return_in_time_have_results(lasting):
    executor, results = lasting(3), []

    def tick(board):
        assert not board["limit"].any(), "called after the interruption"
        if board["done"][:3].all():
            raise KeyboardInterrupt("SIGINT")

    ways = ("fails", "returns", "lingers", "never begins")
    jobs = [Job(ends_when_told, (how,)) for how in ways]
    run = executor.run(jobs, COLUMNS, tick, every=0.05, on_interrupt=let_end)
    try:
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            results.extend(run)
    finally:
        executor.close()
    assert [(r.index, r.value) for r in results] == [(1, "returns")]


def test_an_interruption_while_a_result_is_taken(lasting):
    executor = lasting(2)

    def tick(board):
        board["limit"][0] = board["done"].all()

    jobs = [Job(ends_when_told, (how,)) for how in ("first", "second")]
    run = executor.run(jobs, COLUMNS, tick, every=0.05, on_interrupt=let_end)
    results = []
    try:
        results.append(next(run))
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            results.extend(chain([run.throw(KeyboardInterrupt("SIGINT"))], run))
    finally:
        executor.close()
    assert [r.value for r in results] == ["first", "second"]


def masked(rows, folder):
    """Live through both signals; what is blocked, and how a program ends that gets SIGTERM."""
    rows["done"] += 1
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    while not rows["limit"][0]:
        time.sleep(0.01)
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()), program.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_worker_starts_is_heard_when_it_has_started(number, monkeypatch):
    submit = ProcessPoolExecutor.submit

    def submitted(self, *arguments):
        os.kill(os.getpid(), number)
        return submit(self, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submitted)
    executor, results = LocalExecutor(1, max_retries=0), []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def let_end(board, interruption):
        board["limit"][:] = 1
        return 60.0

    try:
        with pytest.raises(KeyboardInterrupt, match=number.name), Interruptible():
            results.extend(executor.run([Job(masked, ())], COLUMNS, lambda _: None, 0.05, let_end))
    finally:
        executor.close()
    assert [r.value for r in results] == [(set(), -signal.SIGTERM)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.slow
def test_an_error_of_the_coordinator_ends_what_runs_and_the_executor_goes_on(lasting):
    executor = lasting(1)

    def tick(board):
        if board["count"][0]:
            raise ZeroDivisionError

    begun, columns = time.monotonic(), {"count": Column(np.int64)}
    with pytest.raises(ZeroDivisionError):
        list(executor.run([Job(sleeps)], columns, tick, every=0.01))
    assert [r.value for r in executor.run([Job(add, (1, 2), 0)], {}, lambda board: None)] == [3]
    assert time.monotonic() - begun < 900


def sleeps(rows, folder):
    """A job that is never asked to end."""
    rows["count"][:] = 1
    time.sleep(1000)


@pytest.mark.slow
def test_another_interruption_ends_at_once(lasting):
    # Whoever starts the tests in the background may have it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    executor = lasting(1)

    def tick(board):
        if board["done"][0]:
            raise KeyboardInterrupt

    def again(board, first):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return 1000.0

    run = executor.run([Job(ends_when_told, ("x",))], COLUMNS, tick, 0.05, again)
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(run)
    finally:
        executor.close()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 100
