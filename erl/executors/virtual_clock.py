"""Workers inside a lifetime, computed in one process on a virtual clock.

A learner with asynchronous workers (actors that play and train, a critic that trains) is here a
discrete-event simulation of itself: each worker has one job at a time, a job takes a number of
ticks, and jobs end in the order of the clock. That order is a function of the jobs alone, so a run
is reproducible bit for bit, and what is shared (a replay buffer, a distribution) is read and
written at the moments at which real workers would.

Jobs that run at the same time are computed together. From one end of a job to the next nothing
that is shared changes, so the jobs of one kind can take that stretch in one batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass
class WorkerJob:
    """What a worker does until it is asked again.

    Attributes:
        kind: the activity that computes it.
        data: whatever the activity needs; it may change it.
        units: how much there is to do, of an activity with a cost; None for an open one.
    """

    kind: str
    data: Any
    units: int | None = None


# A worker, and the job that it has ended (None at first, and while it waits) -> its next job, or
# None to wait.
NextJob = Callable[[int, WorkerJob | None], WorkerJob | None]


class Timed:
    """An activity whose jobs say how much there is to do, such as training for n updates.

    A job of n units ends ceil(n cost) ticks after its beginning, and has done floor(t / cost) of
    them t ticks after it. Jobs of no length end at the tick at which they begin.

    Args:
        work: called with jobs, and with how many units each of them does now (at least one, and in
            one call for all that run at the same time): the k-th units of all may be one batch.
        cost: ticks of a unit, 0 or more.

    Raises:
        ValueError: a cost that cannot be.
    """

    def __init__(self, work: Callable[[list[WorkerJob], list[int]], None], cost: float) -> None:
        if not (math.isfinite(cost) and cost >= 0):
            raise ValueError(f"a unit costs 0 ticks or more, not {cost!r}")
        self.work = work
        # Exact, as the number is written: rounding would move ends by a tick.
        self._cost = Fraction(str(cost))

    def length(self, units: int) -> int:
        """Ticks that so many units take."""
        return math.ceil(units * self._cost)

    def done(self, ticks: int, units: int) -> int:
        """Units of a job of `units` that are done after so many ticks."""
        return min(units, math.floor(ticks / self._cost)) if self._cost else units


class Open:
    """An activity that finds out when its jobs end, such as playing an episode.

    Args:
        work: called with all jobs that run at the same time, and with the ticks after which it has
            to stop at the latest (None for no limit). It goes on with all of them tick by tick, and
            stops after the first tick in which some end. It gives the ticks that it took, at least
            one, and whether each job has ended.
    """

    def __init__(
        self, work: Callable[[list[WorkerJob], int | None], tuple[int, Sequence[bool]]]
    ) -> None:
        self.work = work


def check_number(state: dict[str, Any], n: int) -> None:
    """Raise a ValueError if a state of workers is not that of so many."""
    if len(state["jobs"]) != n:
        raise ValueError(f"a state of {len(state['jobs'])} workers does not fit {n}")


class LockstepWorkers:
    """Workers on one virtual clock.

    Of jobs that end at the same tick, that of the worker with the lowest number ends first; the
    worker gets its next job before the next one ends. Then those that wait are asked in turn. A
    unit of work that is finished in the tick at whose end something changes does not see the
    change.

    Args:
        n: number of workers.
        activities: by the kind of jobs; at most one is open.
        next_job: asked for a worker's next job, when it has none, or has ended one. It takes the
            result from the job's data.

    Attributes:
        clock: ticks since the beginning.
        busy: ticks that each worker had a job.

    Raises:
        ValueError: no workers, or several open activities.
    """

    def __init__(self, n: int, activities: Mapping[str, Timed | Open], next_job: NextJob) -> None:
        if n < 1:
            raise ValueError(f"at least one worker, not {n}")
        if sum(isinstance(a, Open) for a in activities.values()) > 1:
            raise ValueError(
                "at most one activity is open: no other can say when the next job ends"
            )
        self._activities, self._next_job = dict(activities), next_job
        self._jobs: list[WorkerJob | None] = [None] * n
        self._begun = [0] * n
        self.clock = 0
        self.busy = [0] * n
        # As of workers elsewhere: see `inner_workers`.
        self.counted = None
        self.elsewhere: Sequence[WorkerJob] = ()

    def share(self, item: Any) -> None:
        """No workers in other processes."""

    def close(self) -> None:
        """There is nothing to end."""

    def advance(self) -> bool:
        """Go on to the next tick at which jobs end, and hand out the next ones.

        Between two calls all jobs are at the same tick.

        Returns:
            Whether there was something to do; False where all workers wait.
        """
        for worker, job in enumerate(self._jobs):
            if job is None:
                self._give(worker, None)
        running = [worker for worker, job in enumerate(self._jobs) if job is not None]
        if not running:
            return False
        ticks, ended = self._run_open(running)
        for kind, activity in self._activities.items():
            if isinstance(activity, Timed):
                ended |= self._run_timed(kind, activity, ticks)
        self.clock += ticks
        for worker in running:
            self.busy[worker] += ticks
        for worker in sorted(ended):
            self._give(worker, self._jobs[worker])
        return True

    def _give(self, worker: int, ended: WorkerJob | None) -> None:
        self._jobs[worker] = None
        job = self._next_job(worker, ended)
        if job is None:
            return
        activity = self._activities[job.kind]
        if isinstance(activity, Timed) != (job.units is not None) or (job.units or 0) < 0:
            raise ValueError(f"a job of {job.kind!r} cannot have units={job.units!r}")
        self._jobs[worker], self._begun[worker] = job, self.clock

    def _of(self, kind: str) -> list[tuple[int, WorkerJob]]:
        """Workers that have a job of this kind, with the job."""
        return [
            (w, job) for w, job in enumerate(self._jobs) if job is not None and job.kind == kind
        ]

    def _run_open(self, running: Sequence[int]) -> tuple[int, set[int]]:
        """Compute open jobs up to the next end of any job: ticks until then, and whose ended."""
        limits = []
        for worker in running:
            job = self._jobs[worker]
            assert job is not None
            activity = self._activities[job.kind]
            if isinstance(activity, Timed):
                assert job.units is not None
                limits.append(activity.length(job.units) - (self.clock - self._begun[worker]))
        most = min(limits) if limits else None
        if most == 0:
            return 0, set()
        for kind, activity in self._activities.items():
            if isinstance(activity, Open) and (own := self._of(kind)):
                ticks, ends = activity.work([job for _, job in own], most)
                if ticks < 1 or (most is not None and ticks > most):
                    raise RuntimeError(
                        f"{kind!r} took {ticks} ticks where it had 1 to {most or 'any number'}"
                    )
                if ticks != most and not any(ends):
                    raise RuntimeError(f"{kind!r} stopped after {ticks} ticks, and no job ended")
                return ticks, {worker for (worker, _), end in zip(own, ends, strict=True) if end}
        assert most is not None
        return most, set()

    def _run_timed(self, kind: str, activity: Timed, ticks: int) -> set[int]:
        """Compute the jobs of one kind for so many ticks: whose ended."""
        jobs, counts, ended = [], [], set()
        for worker, job in self._of(kind):
            assert job.units is not None
            before = self.clock - self._begun[worker]
            done = activity.done(before, job.units) if before else 0
            count = activity.done(before + ticks, job.units) - done
            if count:
                jobs.append(job)
                counts.append(count)
            if before + ticks == activity.length(job.units):
                ended.add(worker)
        if jobs:
            activity.work(jobs, counts)
        return ended

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on: clock, and the jobs in flight. The jobs are no copies: pickle
        the state before going on.
        """
        return {
            "clock": self.clock,
            "busy": list(self.busy),
            "jobs": list(self._jobs),
            "begun": list(self._begun),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`.

        Raises:
            ValueError: the state is of another number of workers.
        """
        check_number(state, len(self._jobs))
        self.clock = state["clock"]
        self.busy, self._jobs, self._begun = (
            list(state[name]) for name in ("busy", "jobs", "begun")
        )
