"""Workers inside a lifetime. Learners use them through this module alone, whatever their kind."""

from collections.abc import Callable, Sequence
from typing import Any

from erl.errors import UserError
from erl.executors.concurrent_workers import Bench, ConcurrentWorkers, MakeBench
from erl.executors.virtual_clock import LockstepWorkers, NextJob


def inner_workers(
    kind: str,
    n: int,
    next_job: NextJob,
    bench: Bench,
    make: MakeBench,
    backlog: Callable[[], Sequence[Any]],
    address: str = "ray",
) -> LockstepWorkers | ConcurrentWorkers:
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
