"""Where lifetimes are lived: one interface over worker processes, whatever they run on.

`Executor.run` takes jobs and yields their results as they finish. Local workers are joblib's loky processes with one thread each.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from erl.lifetime import Job, LifetimeRecord, live

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


class WorkerLost(RuntimeError):
    """A worker process died: it was killed, or memory ran out."""


@dataclass(frozen=True)
class Result:
    """What became of a job: records, or the exception of a worker that died with it once too often."""

    index: int
    records: list[LifetimeRecord] | None
    error: Exception | None = None


class Board:
    """Step counts of running lifetimes, shared with worker processes through a small mapped file."""

    def __init__(self, n: int) -> None:
        self._folder = tempfile.mkdtemp(prefix="erl-")
        self.path = str(Path(self._folder) / "steps")
        self.steps = np.memmap(self.path, dtype=np.int64, mode="w+", shape=(n,))

    def close(self) -> None:
        """Remove the file."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _prepare_worker() -> None:
    """One thread; Ctrl-C is the coordinator's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)


def _work(job: Job, board: str, first: int) -> list[LifetimeRecord]:
    """In the worker: live a job, noting its lifetimes' steps on the board from slot `first` on."""
    try:
        steps = np.memmap(board, dtype=np.int64, mode="r+")
    except OSError:  # the coordinator's file cannot be seen from here: progress is lost, nothing else
        return live(job)

    def progress(i: int, n: int) -> None:
        steps[first + i] = n

    return live(job, progress)


class LocalExecutor:
    """Worker processes on this machine.

    Args:
        workers: how many; each uses one thread.
        max_retries: how often a job is handed out again after the worker that had it died.
    """

    def __init__(self, workers: int, max_retries: int = 2) -> None:
        self.workers, self.max_retries = workers, max_retries
        self._pool: ProcessPoolExecutor | None = None

    def run(self, jobs: Sequence[Job], tick: Callable[[np.ndarray], Any], every: float = 0.5) -> Iterator[Result]:
        """Live all jobs.

        Args:
            jobs: what to do; the lifetimes of a job stay together.
            tick: called every `every` seconds with the steps so far of all lifetimes, in order.
            every: seconds.

        Yields:
            One result for each job, in the order in which they finish.
        """
        offsets = np.cumsum([0] + [len(j.specs) for j in jobs])
        board = Board(int(offsets[-1]))
        tries = dict.fromkeys(range(len(jobs)), 0)
        running: dict[Future, int] = {}

        def submit(index: int) -> None:
            board.steps[offsets[index] : offsets[index + 1]] = 0
            future = self._start().submit(_work, jobs[index], board.path, int(offsets[index]))
            running[future] = index

        try:
            for index in range(len(jobs)):
                submit(index)
            while running:
                done, _ = wait(running, timeout=every, return_when=FIRST_COMPLETED)
                tick(board.steps)
                broken = [f for f in done if isinstance(f.exception(), BrokenProcessPool)]
                for future in done:
                    if future not in broken:
                        index = running.pop(future)
                        error = future.exception()
                        yield Result(index, None, error) if isinstance(error, Exception) else Result(index, future.result())  # fmt: skip
                if broken:
                    # One death breaks the whole pool: every unfinished job starts anew in a new one.
                    lost = sorted(running.values())
                    running.clear()
                    self.close()
                    for index in lost:
                        tries[index] += 1
                        if tries[index] <= self.max_retries:
                            submit(index)
                        else:
                            yield Result(index, None, WorkerLost(f"the worker process died {tries[index]} times (killed, or out of memory)"))  # fmt: skip
        finally:
            board.close()
            if running:
                self.close()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers, env={**_ONE_THREAD, "PYTHONUNBUFFERED": "1"}, initializer=_prepare_worker
            )
        return self._pool

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = None


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
