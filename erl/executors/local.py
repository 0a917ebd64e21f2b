"""Jobs in processes of this machine: joblib's loky processes, with one thread each."""

import multiprocessing.resource_tracker
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.backend import resource_tracker
from joblib.externals.loky.process_executor import BrokenProcessPool

from erl.errors import UserError, describe
from erl.executors.jobs import (
    ENDING,
    HERE,
    ONE_THREAD,
    Columns,
    Job,
    OnInterrupt,
    Result,
    Rows,
    WorkerLost,
    end_with,
    first_rows,
    leave_signals_to_coordinator,
    new_rows,
)
from erl.executors.warned import Received, send, to_stderr
from erl.files import unwritable

# loky's process that tidies up warns of what an end at once leaves behind, which it then removes.
_QUIET = "ignore:resource_tracker"


class Board:
    """A board that worker processes share: each column is a small file, mapped into memory.

    Args:
        columns: of the board.
        n: rows.

    Raises:
        UserError: there is no place for the files.
    """

    def __init__(self, columns: Columns, n: int) -> None:
        self._columns, self.path = columns, ""
        try:
            self.path = tempfile.mkdtemp(prefix="erl-")
            for name, array in new_rows(columns, n).items():
                # Written before it is mapped: a page without place would kill this process.
                (Path(self.path) / name).write_bytes(array.tobytes())
            self.rows = self.part(self.path, columns, 0, n)
        except OSError as e:
            self.close()
            folder = f"the folder of temporary files, {tempfile.tempdir or 'TMPDIR'},"
            raise UserError(
                f"{unwritable(folder, e)}; make room there, or set TMPDIR to another folder, and "
                f"run the command again"
            ) from e

    def reset(self, first: int, end: int) -> None:
        """Set what jobs write, in these rows, to what it is before a job begins."""
        for name, column in self._columns.items():
            if not column.from_coordinator:
                self.rows[name][first:end] = column.initial

    @staticmethod
    def part(path: str, columns: Columns, first: int, n: int) -> Rows:
        """N rows from `first` on, of the board at `path`."""
        rows = new_rows(columns, n)
        if n:  # files of no bytes cannot be mapped
            for name, array in rows.items():
                offset = first * array[0].nbytes
                rows[name] = np.memmap(Path(path) / name, array.dtype, "r+", offset, array.shape)
        return rows

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.path, ignore_errors=True)


def _prepare_worker(coordinator: int) -> None:
    """One thread, and an end when the coordinator is gone."""
    import torch

    leave_signals_to_coordinator()
    torch.set_num_threads(1)
    end_with(coordinator)


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM are heard when the block has ended, with whatever handlers there are.

    Workers that are started within inherit that both are blocked, until they leave them to the
    coordinator.
    """
    if _QUIET not in os.environ.get("PYTHONWARNINGS", ""):
        others = os.environ.get("PYTHONWARNINGS")
        os.environ["PYTHONWARNINGS"] = f"{others},{_QUIET}" if others else _QUIET
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for tracker in (resource_tracker, multiprocessing.resource_tracker):
        tracker.ensure_running()  # as it starts, it unblocks what is blocked
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in ENDING}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in before.items():
            # None is one that Python did not install.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


def _work(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    path: str,
    columns: Columns,
    first: int,
    n: int,
) -> Any:
    """In the worker: run a job that has n rows of the board, from `first` on."""
    send(path)
    try:
        rows = Board.part(path, columns, first, n)
    except OSError:
        # The coordinator's files cannot be seen from here. What the job reports is lost, and that
        # it shall stop.
        rows = new_rows(columns, n)
    return function(rows, HERE, *arguments)


class LocalExecutor:
    """Worker processes on this machine, each in a pool of its own, so that one that dies takes no
    other's job along.

    Args:
        workers: how many; each uses one thread.
        max_retries: how often a job is begun again after the worker that had it died.

    Attributes:
        note: is given each warning of a library in a worker, once, as one line.
    """

    def __init__(self, workers: int, max_retries: int = 2) -> None:
        self.workers, self.max_retries = workers, max_retries
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self.note: Callable[[str], Any] = to_stderr
        self._warned: set[str] = set()

    def run(
        self,
        jobs: Sequence[Job],
        columns: Columns,
        tick: Callable[[Rows], Any],
        every: float = 0.5,
        on_interrupt: OnInterrupt | None = None,
    ) -> Generator[Result, None, None]:
        """Run all jobs: see `jobs.Executor`."""
        if not jobs:
            return
        first = first_rows(jobs)
        board = Board(columns, first[-1])
        received = Received(board.path, self._warned, lambda line: self.note(line))
        deaths = [0] * len(jobs)
        pending, idle = deque(range(len(jobs))), list(range(self.workers))
        running: dict[Future, tuple[int, int]] = {}  # -> job, worker
        try:
            while pending or running:
                while pending and idle:
                    index, worker = pending[0], idle.pop()
                    job, row = jobs[index], first[index]
                    board.reset(row, row + job.rows)
                    work = (job.function, job.arguments, board.path, columns, row, job.rows)
                    try:
                        with _interrupted_later():
                            running[self._submit(worker, _work, *work)] = index, worker
                        pending.popleft()
                    except (OSError, RuntimeError) as e:  # there are too many processes
                        self._note_missing(worker, e, bool(running or idle))
                done, _ = wait(running, timeout=every, return_when=FIRST_COMPLETED)
                received.look()
                tick(board.rows)
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
                            self.note(
                                "a worker process died (killed, or out of memory); its job is "
                                "begun again"
                            )
                            continue
                        error = WorkerLost(
                            f"the worker process died {deaths[index]} times (killed, or out of "
                            f"memory)"
                        )
                    elif not isinstance(error, Exception):
                        # sys.exit() in an environment is no reason to exit here.
                        error = WorkerLost(f"the job ended its process: {error!r}")
                    yield Result(index, None, error)
        except KeyboardInterrupt as e:
            if on_interrupt is not None:
                seconds = on_interrupt(board.rows, e)
                with suppress(TimeoutError):
                    for future in as_completed(running, seconds):
                        index, _ = running.pop(future)
                        if future.exception() is None:
                            yield Result(index, future.result())
                received.look()  # such as why there is no checkpoint
            raise
        finally:
            board.close()
            if running:
                self.close()

    def _submit(self, worker: int, function: Callable[..., Any], *arguments: Any) -> Future:
        for _ in range(2):
            if worker not in self._pools:
                self._pools[worker] = ProcessPoolExecutor(
                    1, env=ONE_THREAD, initializer=_prepare_worker, initargs=(os.getpid(),)
                )
            try:
                return self._pools[worker].submit(function, *arguments)
            except BrokenProcessPool:  # it died while it was idle
                self._end(worker)
        raise WorkerLost("it died at once")

    def _note_missing(self, worker: int, error: Exception, others: bool) -> None:
        """A worker cannot be started: others do its jobs.

        Raises:
            UserError: there are none.
        """
        if worker in self._pools:
            self._end(worker)
        why = f"process can be started ({describe(error)})"
        if not others:
            raise UserError(f"no worker {why}; end other programs, and run it again") from error
        line = f"not every worker {why}; the others do its jobs"
        if line not in self._warned:
            self._warned.add(line)
            self.note(line)

    def _end(self, worker: int) -> None:
        self._pools.pop(worker).shutdown(wait=False, kill_workers=True)

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""
        for worker in list(self._pools):
            self._end(worker)
