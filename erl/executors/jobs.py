"""What all executors share: jobs, their results, and the board on which running jobs report.

The board is a set of named arrays. Each job has some rows of its own in all of them. Most columns
are written by the job and read by the coordinator (how far the job is); some are written by the
coordinator and read by the job (that it shall stop). A board that arrives late, or never, changes
no result.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# The folder below which a job on this machine finds and writes its files: every path is itself.
HERE = "/"

# Signals that ask for an end. A terminal and SLURM send them to a coordinator and to its workers
# alike. Only the coordinator handles them: it asks the workers for checkpoints.
ENDING = frozenset({signal.SIGINT, signal.SIGTERM})

# Environment of a worker: libraries compute with one thread.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)

# Arrays by the name of their column; a board's, or the part of one job.
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Column:
    """One array of a board.

    Attributes:
        dtype: of its entries.
        shape: of one row; `()` for a number.
        initial: what entries are before a job begins.
        from_coordinator: whether the coordinator writes it and jobs read it; by default jobs write
            it and the coordinator reads it.
    """

    dtype: type
    shape: tuple[int, ...] = ()
    initial: float = 0
    from_coordinator: bool = False


Columns = Mapping[str, Column]
# From the board and the interruption to the seconds that running jobs have to come to an end.
OnInterrupt = Callable[[Rows, KeyboardInterrupt], float]


def end_with(parent: int) -> None:
    """In a worker: end when the process that started it is gone. A killed one cannot end it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def leave_signals_to_coordinator() -> None:
    """In a worker, which was started while these signals were blocked: do nothing when they come.

    Processes that an environment starts of its own ignore Ctrl-C too, and SIGTERM ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # no program inherits a handler
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def new_rows(columns: Columns, n: int) -> Rows:
    """Arrays of n rows, as before the jobs begin."""
    return {
        name: np.full((n, *column.shape), column.initial, column.dtype)
        for name, column in columns.items()
    }


@dataclass(frozen=True)
class Job:
    """A unit of work for one worker.

    Attributes:
        function: called in the worker as `function(rows, folder, *arguments)`. `rows` are the job's
            part of the board. `folder` is where the job's files lie: a file that belongs to
            `/a/b` on the coordinator's machine is read and written at `under(folder, "/a/b")`,
            and comes back if that is another machine. On this machine `folder` is `HERE`, and
            `/a/b` is itself.
        arguments: what can be pickled.
        rows: how many rows of the board the job has.
        files: asked, each time that the job begins on another machine, which files of the
            coordinator's machine it needs there: contents by absolute path.
        without: given what the function returned on another machine, and, by path, why files that
            came with it could not be written here; gives the value of the job. By default they
            cost it nothing.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    rows: int = 1
    files: Callable[[], Mapping[str, bytes]] = dict
    without: Callable[[Any, Mapping[str, OSError]], Any] = lambda value, unwritten: value


@dataclass(frozen=True)
class Result:
    """What became of a job: its function's value, or an exception.

    Attributes:
        index: of the job.
        value: what the function returned.
        error: what it raised, or `WorkerLost`; None if it returned.
    """

    index: int
    value: Any
    error: Exception | None = None


class WorkerLost(RuntimeError):
    """A worker process died: it was killed, or memory ran out."""


class Executor(Protocol):
    """Workers.

    Attributes:
        workers: how many jobs run at a time; each uses one thread.
        note: is given each warning of a library in a worker, once, as one line, if the executor
            knows of it.
    """

    workers: int
    note: Callable[[str], Any]

    def run(
        self,
        jobs: Sequence[Job],
        columns: Columns,
        tick: Callable[[Rows], Any],
        every: float = 0.5,
        on_interrupt: OnInterrupt | None = None,
    ) -> Generator[Result, None, None]:
        """Run all jobs.

        Args:
            jobs: what to do. A job whose worker is lost is begun again.
            columns: of the board.
            tick: called every `every` seconds, and before a result is given, with the whole board:
                the rows of all jobs, in order. After a KeyboardInterrupt it is not called. An
                exception of its own leaves the generator, and running jobs are ended at once.
            every: seconds.
            on_interrupt: called at a KeyboardInterrupt, also one that is thrown into the generator,
                with the whole board, on which it may ask jobs to end; gives the seconds within
                which they should. By default none.

        Yields:
            One result for each job, in the order in which they finish. After a KeyboardInterrupt
            these are results of jobs that return within those seconds, and then it is raised. What
            fails meanwhile has no result: the signal may have reached what the job works with.
        """

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""


def first_rows(jobs: Sequence[Job]) -> list[int]:
    """The first row of each job on the board, and the number of rows in all."""
    return [0, *np.cumsum([job.rows for job in jobs]).tolist()]


def under(folder: str, path: str) -> str:
    """Where an absolute path of the coordinator's machine lies for a job whose files lie below
    `folder`.
    """
    return folder.rstrip("/") + path
