"""Workers inside a lifetime. Learners use them through this module alone, whatever their kind."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from erl.errors import UserError
from erl.executors.concurrent_workers import Bench, ConcurrentWorkers, MakeBench
from erl.executors.virtual_clock import LockstepWorkers, NextJob, WorkerJob


class InnerWorkers(Protocol):
    """What `LockstepWorkers` and `ConcurrentWorkers` have in common.

    Attributes:
        counted: units that workers elsewhere have counted; None where they count here.
        elsewhere: jobs that workers elsewhere have not given back.
    """

    @property
    def elsewhere(self) -> Sequence[WorkerJob]:
        """See above."""

    @property
    def counted(self) -> int | None:
        """See above."""

    def advance(self) -> bool:
        """Go on to the next end of a job, or for a moment; whether there is something to do."""

    def share(self, item: Any) -> None:
        """Give all workers elsewhere an item."""

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on, with the jobs in flight."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""

    def close(self) -> None:
        """End the workers."""


def inner_workers(
    kind: str,
    n: int,
    next_job: NextJob,
    bench: Bench,
    make: MakeBench,
    backlog: Callable[[], Sequence[Any]],
    address: str = "ray",
) -> InnerWorkers:
    """Workers of a kind.

    Args:
        kind: `lockstep`, `processes` or `ray`.
        n: how many.
        next_job: see `virtual_clock`.
        bench: for all of them, where they work in this process.
        make: makes the bench of each that works elsewhere.
        backlog: gives the items that such a worker begins with.
        address: of the Ray cluster.

    Raises:
        UserError: no such cluster, or no Ray.
    """
    if kind == "lockstep":
        return LockstepWorkers(n, bench.activities, next_job)
    if kind == "processes":
        from erl.executors.worker_processes import ProcessHost

        return ConcurrentWorkers(n, ProcessHost(n, make), next_job, backlog)
    try:
        from erl.executors.ray_workers import RayHost
    except ImportError as e:
        raise UserError(f'actor_executor ray needs Ray ({e}): pip install "ray[client]"') from None
    return ConcurrentWorkers(n, RayHost(n, make, address), next_job, backlog)
