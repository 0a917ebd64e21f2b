"""Workers inside a lifetime as processes: what they share and count, and what becomes of those that
die.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from counting_bench import BrokenBench, CountingBench, ForgetfulBench, Sum

from erl.errors import UserError
from erl.executors.concurrent_workers import ConcurrentWorkers
from erl.executors.jobs import WorkerLost
from erl.executors.virtual_clock import WorkerJob
from erl.executors.worker_processes import ProcessHost


@pytest.fixture
def hosts():
    """Makes hosts of two workers, and closes them."""
    made = []

    def make(bench=CountingBench):
        made.append(ProcessHost(2, bench))
        return made[-1]

    yield make
    for host in made:
        host.close()
        assert not host.folder.exists()


def run(host, jobs, backlog=tuple, state=None, max_retries=2):
    """Results in the order in which they came, by what the jobs are about; and the workers."""
    waiting, results = list(jobs), []

    def next_job(worker, ended):
        if ended is not None:
            results.append((ended.data.about, ended.data.result))
        return waiting.pop(0) if waiting else None

    workers = ConcurrentWorkers(2, host, next_job, backlog, max_retries)
    if state is not None:
        workers.set_state(state)
    while workers.advance():
        pass
    return dict(results), workers


def test_jobs_are_done_by_processes_that_share_and_count(hosts):
    host = hosts()
    about = object()
    jobs = [
        WorkerJob("sum", Sum(about), 130),
        WorkerJob("play", Sum("b")),
        WorkerJob("sum", Sum("c"), 1),
    ]
    results, workers = run(host, jobs, lambda: [5, 7])
    assert results[about][:2] == (12, [64, 64, 2])
    assert results["b"][:2] == (12, [64, 64, 64])
    assert results["c"][:2] == (12, [1])
    pids = {pid for _, _, pid in results.values()}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert workers.counted == host.counted == 130 + 192 + 1
    # Items that are shared later reach all, also in the midst of a job.
    workers.share(1)
    second = [WorkerJob("sum", Sum(k, seconds=0.06), 640) for k in range(2)]
    waiting = list(second)
    workers._next_job = lambda worker, ended: waiting.pop(0) if waiting else None
    workers.advance()
    workers.share(100)
    while workers.advance():
        pass
    assert [job.data.result[0] for job in second] == [113, 113]
    # What all have read is removed.
    workers.share(1)
    assert [p.name for p in (host.folder / "items").iterdir()] == ["2"]


def test_a_worker_that_dies_is_replaced_and_its_job_is_asked_again(hosts, tmp_path):
    host = hosts()
    deadly = Sum("a", fault="die", file=str(tmp_path / "died"))
    jobs = [
        WorkerJob("sum", deadly, 64),
        WorkerJob("sum", Sum("b"), 64),
        WorkerJob("sum", Sum("c"), 64),
    ]
    with pytest.warns(match="a worker of a lifetime died .*; its job is begun again"):
        results, workers = run(host, jobs, lambda: [3])
    assert {about: result[:2] for about, result in results.items()} == {
        "a": (3, [64]),
        "b": (3, [64]),
        "c": (3, [64]),
    }
    assert workers.lost == 1
    assert workers.counted == 192


def test_signals_to_all_processes_of_a_run_end_no_worker(hosts):
    """As SLURM and a terminal send them: the lifetime hears of them, and asks for its end."""
    host = hosts()
    _, workers = run(host, [WorkerJob("sum", Sum(k), 1) for k in "ab"])
    forker, pids = psutil.Process(host.pids[0]).ppid(), set(host.pids.values())
    assert len(pids) == 2
    for number in (signal.SIGINT, signal.SIGTERM):
        for pid in (forker, *pids):
            os.kill(pid, number)
    jobs = [WorkerJob("sum", Sum(k), 1) for k in "cd"]
    waiting = list(jobs)
    workers._next_job = lambda worker, ended: waiting.pop(0) if waiting else None
    while workers.advance():
        pass
    assert {job.data.result[-1] for job in jobs} <= pids
    assert workers.lost == 0
    assert alive(forker)


def test_what_a_job_raises_is_raised(hosts):
    with pytest.raises(ValueError, match="the job failed"):
        run(hosts(), [WorkerJob("sum", Sum("a", fault="raise"), 1)])


def test_an_exception_that_cannot_travel_is_told_in_words(hosts):
    with pytest.raises(RuntimeError, match="Odd: the job failed oddly"):
        run(hosts(), [WorkerJob("sum", Sum("a", fault="raise odd"), 1)])


def test_a_result_that_has_no_place_is_said_to_have_none(hosts):
    """It is no death of a worker, and another one would find no place either."""
    host = hosts()
    with pytest.raises(UserError, match=r"result-\d+-1 cannot be written: File too large"):
        run(host, [WorkerJob("sum", Sum("a", fault="fill"), 1)])
    assert sorted(p.name for p in host.folder.iterdir()) == ["cells", "items"]


def test_without_place_for_a_folder_none_is_left(hosts, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("erl.executors.worker_processes._MEMORY", tmp_path)
    monkeypatch.setattr(np, "memmap", full)
    with pytest.raises(UserError, match=f"{tmp_path}/erl-.* cannot be written: No space left"):
        hosts()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bench", "message"),
    [(BrokenBench, "has no licence"), (ForgetfulBench, "the item does not fit")],
)
def test_why_a_worker_cannot_begin_is_raised_at_once(hosts, bench, message):
    """It did not die, and another one would fail in the same way."""
    host = hosts(bench)
    begun, start = [], host.start
    host.start = lambda worker, backlog: (begun.append(worker), start(worker, backlog))
    with pytest.raises(ValueError, match=message):
        run(host, [WorkerJob("sum", Sum("a"), 1)], lambda: [3])
    assert begun == [0]


def test_a_worker_that_dies_without_a_job_is_replaced_when_there_is_one(hosts):
    host = hosts()
    jobs, results = [WorkerJob("sum", Sum(k), 1) for k in "ab"], {}

    def next_job(worker, ended):
        if ended is not None:
            results[ended.data.about] = ended.data.result
        return jobs.pop(0) if jobs and (worker == 0 or not idle) else None

    idle = False
    workers = ConcurrentWorkers(2, host, next_job)
    while len(results) < 2:
        workers.advance()
    idle = True
    jobs += [WorkerJob("sum", Sum("long", seconds=0.5), 1)]
    workers.advance()
    os.kill(host.pids[1], signal.SIGKILL)
    while workers.lost == 0:
        assert workers.advance()
    idle = False
    jobs += [WorkerJob("sum", Sum(k), 1) for k in "cd"]
    while workers.advance():
        pass
    assert results.keys() == {"a", "b", "long", "c", "d"}
    assert workers.lost == 1
    assert workers.counted == 5


def test_a_job_whose_workers_die_again_and_again_is_given_up(hosts):
    with pytest.raises(WorkerLost, match="of one job died 2 times"):
        run(hosts(), [WorkerJob("sum", Sum("a", fault="die always"), 1)], max_retries=1)


def test_jobs_in_flight_are_asked_again(hosts):
    one = hosts()
    jobs = [WorkerJob("sum", Sum("a", seconds=30), 64), WorkerJob("sum", Sum("b"), 64)]
    waiting, ended = list(jobs), []

    def next_job(worker, job):
        ended.extend([job.data.about] if job is not None else [])
        return waiting.pop(0) if waiting else None

    workers = ConcurrentWorkers(2, one, next_job)
    while not ended:
        workers.advance()
    state = workers.get_state()
    assert ended == ["b"]
    assert [job and job.data.about for job in state["jobs"]] == ["a", None]
    jobs[0].data.seconds = 0.0
    results, again = run(hosts(), [], state=state)
    assert results["a"][:2] == (0, [64])
    assert again.counted == 128
    with pytest.raises(ValueError, match="a state of 2 workers does not fit 1"):
        ConcurrentWorkers(1, one, next_job).set_state(state)


ORPHANS = """
from counting_bench import CountingBench, Sum
from erl.errors import UserError
from erl.executors.concurrent_workers import ConcurrentWorkers
from erl.executors.virtual_clock import WorkerJob
from erl.executors.worker_processes import ProcessHost
host = ProcessHost(1, CountingBench)
jobs = [WorkerJob("sum", Sum("a"), 1), WorkerJob("sum", Sum("b", seconds=60), 1)]
ended = []
def next_job(worker, job):
    ended.append(job)
    return jobs.pop(0) if jobs else None
workers = ConcurrentWorkers(1, host, next_job)
while len(ended) < 2:
    workers.advance()
print(host.folder, host.pids[0], flush=True)
workers.advance()
import time; time.sleep(60)
"""


@pytest.mark.parametrize("children_too", [False, True], ids=["alone", "with its children"])
def test_workers_end_with_a_parent_that_is_killed(children_too):
    """At once, in the midst of a job, and nothing is left in shared memory; also where it is killed
    as executors do it.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, env=environment
    )
    folder, pid = parent.stdout.readline().split()
    assert Path(folder).exists()
    children = psutil.Process(parent.pid).children(recursive=True) if children_too else []
    for process in (*reversed(children), parent):
        process.kill()
    parent.wait()
    until = time.monotonic() + 20
    while time.monotonic() < until and (Path(folder).exists() or alive(int(pid))):
        time.sleep(0.05)
    assert not Path(folder).exists()
    assert not alive(int(pid))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
