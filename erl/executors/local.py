"""Where lifetimes are lived: one interface over workers, whatever they run on.

`Executor.run` takes jobs and yields their results as they finish. Local workers are joblib's loky
processes with one thread each; `ray_executor` has those of a cluster.
"""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from erl.errors import UserError
from erl.lifetimes.lifetime import Job, LifetimeRecord, Slots, live

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


class WorkerLost(RuntimeError):
    """A worker process died: it was killed, or memory ran out."""


@dataclass(frozen=True)
class Result:
    """What became of a job: records, or the exception of a worker that died with it once too
    often.
    """

    index: int
    records: list[LifetimeRecord] | None
    error: Exception | None = None


class Executor(Protocol):
    """Workers.

    Attributes:
        workers: how many jobs are lived at a time; each uses one thread.
    """

    workers: int

    def run(
        self, jobs: Sequence[Job], tick: Callable[[Slots], Any], every: float = 0.5
    ) -> Iterator[Result]:
        """Live all jobs.

        Args:
            jobs: what to do; the lifetimes of a job stay together. One whose worker is lost is
                begun again.
            tick: called every `every` seconds, and before a result is given, with the rows of all
                lifetimes, in order.
            every: seconds.

        Yields:
            One result for each job, in the order in which they finish.
        """

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""


class Board(Slots):
    """Slots of the lifetimes of all jobs, in order, shared with worker processes through small
    mapped files.
    """

    def __init__(self, n: int) -> None:
        self.path = tempfile.mkdtemp(prefix="erl-")
        shared = {
            name: np.memmap(Path(self.path) / name, dtype=array.dtype, mode="w+", shape=array.shape)
            for name, array in vars(Slots.empty(n)).items()
        }
        super().__init__(**shared)
        self.reports[:] = np.nan

    @staticmethod
    def part(path: str, first: int, n: int) -> Slots:
        """In a worker: n lifetimes from `first` on, of the board at `path`."""
        shared = {
            name: np.memmap(
                Path(path) / name, array.dtype, "r+", first * array[0].nbytes, (n, *array.shape[1:])
            )
            for name, array in vars(Slots.empty(n)).items()
        }
        return Slots(**shared)

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.path, ignore_errors=True)


def _prepare_worker(coordinator: int) -> None:
    """One thread, and an end when the coordinator is gone: a killed one cannot end its workers."""
    import torch

    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == coordinator:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: Job, board: str, first: int) -> list[LifetimeRecord]:
    """In the worker: live a job whose lifetimes have the board's rows from `first` on."""
    try:
        slots = Board.part(board, first, len(job.specs))
    # the coordinator's files cannot be seen from here: progress is lost, and what pruning would
    # save
    except OSError:
        return live(job)
    return live(job, slots)


class LocalExecutor:
    """Worker processes on this machine, each in a pool of its own, so that one that dies takes no
    other's job along.

    Args:
        workers: how many; each uses one thread.
        max_retries: how often a job is handed out again after the worker that had it died.
    """

    def __init__(self, workers: int, max_retries: int = 2) -> None:
        self.workers, self.max_retries = workers, max_retries
        self._pools: dict[int, ProcessPoolExecutor] = {}

    def run(
        self, jobs: Sequence[Job], tick: Callable[[Slots], Any], every: float = 0.5
    ) -> Iterator[Result]:
        """Live all jobs: see `Executor`."""
        if not jobs:
            return
        offsets = np.cumsum([0] + [len(j.specs) for j in jobs])
        board = Board(int(offsets[-1]))
        deaths = dict.fromkeys(range(len(jobs)), 0)
        pending, idle = deque(range(len(jobs))), list(range(self.workers))
        running: dict[Future, tuple[int, int]] = {}  # -> job, worker
        try:
            while pending or running:
                while pending and idle:
                    index, worker = pending.popleft(), idle.pop()
                    board.steps[offsets[index] : offsets[index + 1]] = 0
                    future = self._submit(
                        worker, _work, jobs[index], board.path, int(offsets[index])
                    )
                    running[future] = index, worker
                done, _ = wait(running, timeout=every, return_when=FIRST_COMPLETED)
                tick(board)
                for future in done:
                    index, worker = running.pop(future)
                    idle.append(worker)
                    error = future.exception()
                    if error is None:
                        yield Result(index, future.result())
                        continue
                    if isinstance(error, BrokenProcessPool):
                        self._end(worker)
                        deaths[index] += 1
                        if deaths[index] <= self.max_retries:
                            pending.appendleft(index)
                            continue
                        error = WorkerLost(
                            f"the worker process died {deaths[index]} times (killed, or out of "
                            f"memory)"
                        )
                    elif not isinstance(
                        error, Exception
                    ):  # sys.exit() in an environment is no reason to exit here
                        error = WorkerLost(f"the lifetime ended its process: {error!r}")
                    yield Result(index, None, error)
        finally:
            board.close()
            if running:
                self.close()

    def _submit(self, worker: int, function: Callable[..., Any], *arguments: Any) -> Future:
        # Workers inherit what is blocked: Ctrl-C is the coordinator's business, from a worker's
        # first moment on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(2):
                if worker not in self._pools:
                    self._pools[worker] = ProcessPoolExecutor(
                        1, env=_ONE_THREAD, initializer=_prepare_worker, initargs=(os.getpid(),)
                    )
                try:
                    return self._pools[worker].submit(function, *arguments)
                except BrokenProcessPool:  # it died while it was idle
                    self._end(worker)
            raise WorkerLost("no worker process can be started")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _end(self, worker: int) -> None:
        self._pools.pop(worker).shutdown(wait=False, kill_workers=True)

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""
        for worker in list(self._pools):
            self._end(worker)


def check_cluster(cluster: str) -> None:
    """Raise a UserError if this is no address of a cluster, by its form alone."""
    if cluster == "ray":
        return
    scheme, _, rest = cluster.partition(":")
    host, _, port = rest.removeprefix("//").rpartition(":")
    if (
        scheme != "ray"
        or not host
        or "/" in host
        or not port.isdigit()
        or not 0 < int(port) < 65536
    ):
        raise UserError(
            f"--cluster {cluster!r} is no cluster: ray (the one that runs on this machine), "
            f"ray:HOST:PORT "
            "(one that this machine is part of) or ray://HOST:PORT (Ray client)"
        )


def default_workers() -> int:
    """The cores that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    )
