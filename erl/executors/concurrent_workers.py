"""Workers inside a lifetime that really work at the same time: what all kinds of them share.

The same jobs and the same `next_job` as in `virtual_clock`, where the order of events is a function
of the jobs. Here it is that of the clock on the wall, and cannot be reproduced. Each worker has a
bench of its own, made where it works. A job holds all that it depends on, but for the items that
all workers share (say, episodes). So a worker that dies is replaced, and its job is asked again.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from erl.executors.jobs import WorkerLost
from erl.executors.virtual_clock import NextJob, Open, Timed, WorkerJob, check_number

# Units of work, or ticks, between two looks for new items.
CHUNK = 64
# How long an end of a job is waited for at a time.
WAIT_SECONDS = 0.25


class Bench(Protocol):
    """What a worker works with.

    Attributes:
        activities: by the kind of jobs, as for `LockstepWorkers`.
    """

    activities: Mapping[str, Timed | Open]

    def receive(self, item: Any) -> None:
        """Take an item that all workers share."""

    def close(self) -> None:
        """The end."""


# Counts n units (steps) of this worker, and tells how many all workers have counted together.
Count = Callable[[int], int]
# Makes a worker's bench, where it works: picklable.
MakeBench = Callable[[Count], Bench]


class Host(Protocol):
    """Where workers are.

    Attributes:
        counted: units that all workers have counted.
    """

    counted: int

    def start(self, worker: int, backlog: Sequence[Any]) -> None:
        """Begin a worker, or replace one that died, and give it these items."""

    def submit(self, worker: int, job: WorkerJob) -> None:
        """Give a worker a job."""

    def share(self, item: Any) -> None:
        """Give all workers an item."""

    def wait(self, seconds: float) -> list[tuple[int, Any]]:
        """Results of jobs that have ended meanwhile, by worker; an exception where a job failed or
        a worker could not begin, a `WorkerLost` where a worker died, with a job or without one.
        """

    def close(self) -> None:
        """End the workers at once."""


def work(bench: Bench, job: WorkerJob, drain: Callable[[], Sequence[Any]]) -> Any:
    """In a worker: do a job, and take new items from time to time.

    Args:
        bench: of the worker.
        job: its data has `result`, and `shipped()` gives what a worker needs of it.
        drain: gives the items that came since it was asked last.
    """

    def receive() -> None:
        for item in drain():
            bench.receive(item)

    receive()
    activity = bench.activities[job.kind]
    if isinstance(activity, Timed):
        assert job.units is not None
        for begin in range(0, job.units, CHUNK):
            activity.work([job], [min(CHUNK, job.units - begin)])
            receive()
    else:
        ended = False
        while not ended:
            _, (ended,) = activity.work([job], CHUNK)
            receive()
    return job.data.result


class ConcurrentWorkers:
    """Workers of a host, with the interface of `LockstepWorkers`.

    Args:
        n: number of workers.
        host: where they are.
        next_job: see `virtual_clock`.
        backlog: gives the items that a worker gets which begins, or replaces one that died.
        max_retries: how often one job is asked again after its worker died.

    Attributes:
        busy: seconds that each worker had a job.
        lost: workers that died.
        clock: seconds since the beginning.
    """

    def __init__(
        self,
        n: int,
        host: Host,
        next_job: NextJob,
        backlog: Callable[[], Sequence[Any]] = tuple,
        max_retries: int = 2,
    ) -> None:
        self._host, self._next_job, self._backlog = host, next_job, backlog
        self._max_retries = max_retries
        self._jobs: list[WorkerJob | None] = [None] * n
        self._retries = [0] * n
        self._since = [0.0] * n
        self._started: set[int] = set()
        self._begun = time.monotonic()
        self.busy, self.lost = [0.0] * n, 0

    @property
    def clock(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    @property
    def counted(self) -> int:
        """Units that all workers have counted."""
        return self._host.counted

    @property
    def elsewhere(self) -> Sequence[WorkerJob]:
        """The jobs that have not been given back."""
        return [job for job in self._jobs if job is not None]

    def share(self, item: Any) -> None:
        """Give all workers an item."""
        self._host.share(item)

    def advance(self) -> bool:
        """Give jobs to those that wait, and take what has ended within a moment.

        Returns:
            Whether there is something to do.

        Raises:
            WorkerLost: the workers of one job died too often.
            Exception: what a job raised, or the making of a bench.
        """
        for worker, job in enumerate(self._jobs):
            if job is None:
                self._give(worker, None)
            elif worker not in self._started:  # of a state that was taken up
                self._submit(worker, job)
        if not any(self._jobs):
            return False
        for worker, result in self._host.wait(WAIT_SECONDS):
            ended = self._jobs[worker]
            if isinstance(result, WorkerLost):
                self._lose(worker, ended, result)
            elif isinstance(result, BaseException):
                raise result
            else:
                assert ended is not None
                self.busy[worker] += time.monotonic() - self._since[worker]
                self._retries[worker] = 0
                ended.data.result = result
                self._give(worker, ended)
        return True

    def _give(self, worker: int, ended: WorkerJob | None) -> None:
        self._jobs[worker] = None
        job = self._next_job(worker, ended)
        if job is not None:
            self._jobs[worker] = job
            self._submit(worker, job)

    def _submit(self, worker: int, job: WorkerJob) -> None:
        if worker not in self._started:
            self._host.start(worker, self._backlog())
            self._started.add(worker)
        self._since[worker] = time.monotonic()
        self._host.submit(worker, replace(job, data=job.data.shipped()))

    def _lose(self, worker: int, job: WorkerJob | None, loss: WorkerLost) -> None:
        """A worker died: ask its job again, of another one that begins now. Where it had none, the
        other one begins with the next job.
        """
        self.lost += 1
        self._started.discard(worker)
        if job is None:
            return
        self._retries[worker] += 1
        if self._retries[worker] > self._max_retries:
            raise WorkerLost(
                f"the worker of one job died {self._retries[worker]} times ({loss})"
            ) from loss
        warnings.warn(f"a worker of a lifetime died ({loss}); its job is begun again", stacklevel=2)
        self._submit(worker, job)

    def get_state(self) -> dict[str, Any]:
        """The jobs in flight, which are asked again. They are no copies: pickle the state before
        going on.
        """
        return {
            "jobs": list(self._jobs),
            "busy": list(self.busy),
            "lost": self.lost,
            "counted": self.counted,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`.

        Raises:
            ValueError: the state is of another number of workers.
        """
        check_number(state, len(self._jobs))
        self._jobs, self.busy = list(state["jobs"]), list(state["busy"])
        self.lost, self._host.counted = state["lost"], state["counted"]

    def close(self) -> None:
        """End the workers at once."""
        self._host.close()
