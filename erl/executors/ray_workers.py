"""Workers inside a lifetime as actors of a Ray cluster.

An item is put into Ray's object store once, and fetched once by each machine.
"""

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from erl.errors import UserError
from erl.executors.concurrent_workers import Bench, MakeBench, work
from erl.executors.jobs import WorkerLost
from erl.executors.machines import ONE_CLUSTER
from erl.executors.ray_cluster import connect
from erl.executors.virtual_clock import WorkerJob

_remote: Any = ray.remote  # its types have no groups of methods
# Between two exchanges of counts and items.
EXCHANGE_SECONDS = 0.25
# How long CPUs are waited for before a warning says so.
WARN_SECONDS = 10.0


class _Worker:
    """A Ray actor that does jobs in one thread, and exchanges in another.

    Args:
        make: makes its bench.
        backlog: items that it begins with.
        others: what the others have counted by now.
    """

    def __init__(self, make: MakeBench, backlog: Sequence[Any], others: int) -> None:
        self._own, self._others = 0, others
        self._items: list[Any] = list(backlog)
        self._make = make
        self._bench: Bench | None = None

    def _count(self, units: int) -> int:
        self._own += units
        return self._own + self._others

    def _drain(self) -> list[Any]:
        items = []
        while self._items:
            items.append(self._items.pop(0))
        return items

    def work(self, job: WorkerJob, items: Sequence[Any]) -> tuple[Any, int]:
        """Do a job; its result, and what was counted so far."""
        self._items += ray.get(list(items))
        if self._bench is None:  # in the thread that will use it
            self._bench = self._make(self._count)
        return work(self._bench, job, self._drain), self._own

    @ray.method(concurrency_group="exchange")
    def exchange(self, items: Sequence[Any], others: int) -> int:
        """Take items, and what the others have counted; what was counted here."""
        self._items += ray.get(list(items))
        self._others = others
        return self._own


class RayHost:
    """Actors of a Ray cluster as workers. Their CPUs are reserved together: where there are too few
    for several lifetimes, some wait until another has ended, and none has a part of its workers.

    Args:
        n: number of workers, each on one CPU.
        make: makes the bench of each, there.
        cluster: see `machines.check_cluster`.

    Raises:
        UserError: no such cluster, or one with too few CPUs, or this is a process of a cluster.
    """

    def __init__(self, n: int, make: MakeBench, cluster: str) -> None:
        if ray.is_initialized():
            raise UserError(ONE_CLUSTER)
        self._make = make
        connect(cluster)
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < n:
            ray.shutdown()
            raise UserError(
                f"the cluster {cluster} has {cpus} CPUs, and the workers of a lifetime take {n}"
            )
        self._reserved = placement_group([{"CPU": 1}] * n)
        try:
            self._await_cpus(n, cluster)
        except BaseException:
            ray.shutdown()  # with it goes what was reserved
            raise
        self.actors: dict[int, Any] = {}
        self._running: dict[Any, int] = {}  # task -> worker
        self._exchanging: dict[Any, int] = {}
        self._unsent: dict[int, list[Any]] = {}
        self._counts: dict[int, int] = {}
        self._counted_before = 0
        self._exchanged = time.monotonic()

    def _await_cpus(self, n: int, cluster: str) -> None:
        """Until the CPUs of all workers are free."""
        if not self._reserved.wait(WARN_SECONDS):
            warnings.warn(
                f"a lifetime waits for {n} free CPUs of the cluster {cluster}", stacklevel=2
            )
            while not self._reserved.wait(WARN_SECONDS):
                pass

    @property
    def counted(self) -> int:
        """What all workers have counted, as far as is known."""
        return self._counted_before + sum(self._counts.values())

    @counted.setter
    def counted(self, units: int) -> None:
        self._counted_before = units - sum(self._counts.values())

    def start(self, worker: int, backlog: Sequence[Any]) -> None:
        """Begin a worker, or replace one that died: see `Host`."""
        replaced = worker in self.actors
        self._counted_before += self._counts.pop(worker, 0)
        self._exchanging = {task: w for task, w in self._exchanging.items() if w != worker}
        # A replacement finds a place even where the machine is gone whose CPU was counted on.
        options: dict[str, Any] = {"num_cpus": 0, "concurrency_groups": {"exchange": 1}}
        if not replaced:
            options["num_cpus"] = 1
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._reserved)
        actor = _remote(**options)(_Worker)
        self.actors[worker] = actor.remote(self._make, list(backlog), self.counted)
        self._unsent[worker], self._counts[worker] = [], 0

    def submit(self, worker: int, job: WorkerJob) -> None:
        """Give a worker a job, and the items that it does not have yet."""
        items, self._unsent[worker] = self._unsent[worker], []
        self._running[self.actors[worker].work.remote(job, items)] = worker

    def share(self, item: Any) -> None:
        """Give all workers an item."""
        reference = ray.put(item)
        for unsent in self._unsent.values():
            unsent.append(reference)

    def wait(self, seconds: float) -> list[tuple[int, Any]]:
        """What has ended: see `Host`."""
        done, _ = ray.wait(list(self._running), timeout=seconds)
        self._exchange()
        results: list[tuple[int, Any]] = []
        for task in done:
            worker = self._running.pop(task)
            try:
                result, self._counts[worker] = ray.get(task)
            except RayTaskError as e:
                result = e.cause if isinstance(e.cause, Exception) else e
            except RayError as e:
                result = WorkerLost(f"its Ray worker or machine was lost: {type(e).__name__}")
            results.append((worker, result))
        return sorted(results, key=lambda pair: pair[0])

    def _exchange(self) -> None:
        """Take counts that have come, and, if it is time, ask for others."""
        if self._exchanging:
            done, _ = ray.wait(list(self._exchanging), num_returns=len(self._exchanging), timeout=0)
            for task in done:
                worker = self._exchanging.pop(task)
                with suppress(RayError):  # `wait` will say so
                    self._counts[worker] = max(self._counts[worker], ray.get(task))
        if time.monotonic() - self._exchanged < EXCHANGE_SECONDS:
            return
        self._exchanged = time.monotonic()
        for worker in set(self._running.values()) - set(self._exchanging.values()):
            items, self._unsent[worker] = self._unsent[worker], []
            others = self.counted - self._counts[worker]
            task = self.actors[worker].exchange.remote(items, others)
            self._exchanging[task] = worker

    def close(self) -> None:
        """End the workers at once."""
        for actor in self.actors.values():
            with suppress(Exception):  # Ray may be gone
                ray.kill(actor)
        self.actors = {}
        ray.shutdown()  # with it goes what was reserved
