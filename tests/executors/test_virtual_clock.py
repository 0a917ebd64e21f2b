"""Workers on a virtual clock: the order of events is that of a plain discrete-event simulation."""

import heapq
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

from erl.executors.virtual_clock import LockstepWorkers, Open, Timed, WorkerJob

TRAIN, CRITIC = 2.4, 0.7  # ticks of a unit


class System:
    """A learner in miniature: actors train and play, worker 0 trains what they read, and a worker
    waits from time to time. All that happens is a function of what was read before.
    """

    def __init__(self, seed, end=400):
        self.rng = np.random.default_rng(seed)
        self.end = end
        self.version, self.stored, self.begun = 0, 0, 0
        self.trace = []

    def next_job(self, worker, ended, now):
        if ended is not None:
            self.trace.append((now, worker, ended.kind, ended.data["read"], self.version))
            if ended.kind == "critic":
                self.version += 1 + ended.data["read"] % 3
            elif ended.kind == "play":
                self.stored += ended.data["length"]
        if now >= self.end:
            return None
        if worker == 0:
            # It waits until there is more than it has seen.
            if self.version > self.stored:
                return None
            return WorkerJob("critic", {"read": 0, "worker": worker}, int(self.rng.integers(0, 20)))
        self.begun += 1
        kind = ("train", "play")[int(self.rng.integers(2))] if ended else "play"
        length = int(self.rng.geometric(0.1))
        data = {"read": self.version, "length": length, "taken": 0, "worker": worker}
        return WorkerJob(kind, data, int(self.rng.integers(0, 12)) if kind == "train" else None)

    def unit(self, job):
        """A unit of training reads what is shared."""
        job.data["read"] = (31 * job.data["read"] + 7 * self.version + self.stored) % 100_003

    # -- as functions that compute many jobs at once --

    def train(self, jobs, counts):
        for job, count in zip(jobs, counts):
            for _ in range(count):
                self.unit(job)

    def play(self, jobs, most):
        ticks = min(job.data["length"] - job.data["taken"] for job in jobs)
        ticks = ticks if most is None else min(ticks, most)
        for job in jobs:
            job.data["taken"] += ticks
        return ticks, [job.data["taken"] == job.data["length"] for job in jobs]


def lockstep(system, n):
    workers = LockstepWorkers(
        n,
        {
            "train": Timed(system.train, TRAIN),
            "critic": Timed(system.train, CRITIC),
            "play": Open(system.play),
        },
        lambda worker, ended: system.next_job(worker, ended, workers.clock),
    )
    return workers


def simulate(system, n):
    """The same, plainly: every unit and every end is an event of its own in a queue.

    Its time comes first; then those of jobs that began at an earlier tick; then units before ends;
    then the number of the worker.
    """
    events, waiting, busy, order = [], set(range(n)), [0] * n, 0
    cost = {"train": Fraction("2.4"), "critic": Fraction("0.7")}

    def give(worker, ended, now, turn):
        nonlocal order
        waiting.discard(worker)
        job = system.next_job(worker, ended, now)
        if job is None:
            waiting.add(worker)
            return
        length = job.data["length"] if job.units is None else job.units * cost[job.kind]
        for k in range(job.units or 0):
            at = now + math.ceil((k + 1) * cost[job.kind])
            heapq.heappush(events, (at, 0, "", worker, order, job))
            order += 1
        end = now + math.ceil(length)
        busy[worker] += end - now
        heapq.heappush(events, (end, turn + 1 if end == now else 0, "end", worker, order, job))
        order += 1

    now, turn = 0, 0
    for worker in sorted(waiting):
        give(worker, None, 0, -1)
    while events:
        now, turn = events[0][:2]
        ends = []
        while events and events[0][:2] == (now, turn):
            *_, what, worker, _, job = heapq.heappop(events)
            if what == "end":
                ends.append((worker, job))
            else:
                system.unit(job)
        for worker, job in ends:
            give(worker, job, now, turn)
        for worker in sorted(waiting):
            give(worker, None, now, turn)
    return now, busy


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_events_is_that_of_a_plain_simulation(n, seed):
    plain, batched = System(seed), System(seed)
    end, busy = simulate(plain, n)
    workers = lockstep(batched, n)
    while workers.advance():
        pass
    assert batched.trace == plain.trace
    assert (batched.version, batched.stored, batched.begun) == (
        plain.version,
        plain.stored,
        plain.begun,
    )
    assert workers.clock == end
    assert workers.busy == busy
    if n > 1:
        assert len({w for _, w, *_ in plain.trace}) == n
        assert {kind for _, _, kind, *_ in plain.trace} == {"critic", "train", "play"}


def test_a_state_goes_on_bit_for_bit():
    """System and workers in one pickle at any moment, as a checkpoint holds them."""
    whole = System(3)
    workers = lockstep(whole, 4)
    while workers.advance():
        pass
    for stop in (1, 10, 37):
        part = System(3)
        before = lockstep(part, 4)
        for _ in range(stop):
            before.advance()
        part, state = pickle.loads(pickle.dumps((part, before.get_state())))
        after = lockstep(part, 4)
        after.set_state(state)
        while after.advance():
            pass
        assert part.trace == whole.trace
        assert (after.clock, after.busy) == (workers.clock, workers.busy)


def test_those_at_work_together_are_computed_together():
    """Three train for 100 units, one after 5 ticks: two batches with all of them but for the ends
    of the first and the last.
    """
    calls = []

    def train(jobs, counts):
        calls.append(counts)

    begun = [0, 0, 0, 0]

    def next_job(worker, ended):
        begun[worker] += 1
        if begun[worker] > 1 + (worker == 2):
            return None
        if worker == 3:
            return WorkerJob("play", 60)
        return WorkerJob("train", None, (100, 10, 20)[worker])

    def play(jobs, most):
        ticks = min(jobs[0].data, most)
        jobs[0].data -= ticks
        return ticks, [jobs[0].data == 0]

    workers = LockstepWorkers(4, {"train": Timed(train, 1.0), "play": Open(play)}, next_job)
    while workers.advance():
        pass
    assert calls == [[10, 10, 10], [10, 10], [20, 20], [20], [40]]
    assert workers.clock == 100
    assert workers.busy == [100, 10, 40, 60]


def test_an_update_that_costs_nothing_takes_no_time():
    done = []
    jobs = iter(
        [WorkerJob("train", "a", 5), WorkerJob("train", "b", 0), WorkerJob("train", "c", 3)]
    )
    workers = LockstepWorkers(
        1,
        {"train": Timed(lambda jobs, counts: done.append((jobs[0].data, counts)), 0.0)},
        lambda worker, ended: next(jobs, None),
    )
    while workers.advance():
        pass
    assert done == [("a", [5]), ("c", [3])]
    assert workers.clock == 0


@pytest.mark.parametrize("cost", [0.1, 0.3, 1 / 3, 2.5, 7.0, 1e-9, 12345.6])
def test_units_are_done_when_their_cost_has_passed(cost):
    """The number done is right at every tick: no rounding loses or adds one."""
    activity, exact = Timed(lambda jobs, counts: None, cost), Fraction(str(cost))
    for units in (1, 7, 1000):
        length = activity.length(units)
        assert units * exact <= length < units * exact + 1
        assert activity.done(length, units) == units
        for ticks in range(1, min(length, 500)):
            done = activity.done(ticks, units)
            assert done <= units
            assert done * exact <= ticks
            assert done == units or (done + 1) * exact > ticks


def test_what_cannot_be_is_refused():
    nothing = Timed(lambda jobs, counts: None, 1.0)
    opened = Open(lambda jobs, most: (1, [True] * len(jobs)))
    for cost in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="a unit costs 0 ticks or more"):
            Timed(lambda jobs, counts: None, cost)
    with pytest.raises(ValueError, match="at least one worker"):
        LockstepWorkers(0, {}, lambda worker, ended: None)
    with pytest.raises(ValueError, match="at most one activity is open"):
        LockstepWorkers(1, {"a": opened, "b": opened}, lambda worker, ended: None)
    for job in (WorkerJob("timed", None), WorkerJob("timed", None, -1), WorkerJob("open", None, 3)):
        workers = LockstepWorkers(
            1, {"timed": nothing, "open": opened}, lambda worker, ended, job=job: job
        )
        with pytest.raises(ValueError, match="cannot have units"):
            workers.advance()
    workers = LockstepWorkers(1, {"timed": nothing}, lambda worker, ended: None)
    with pytest.raises(ValueError, match="a state of 2 workers does not fit 1"):
        workers.set_state(LockstepWorkers(2, {}, lambda worker, ended: None).get_state())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((0, [False]), "took 0 ticks"),
        ((9, [True]), "took 9 ticks where it had 1 to 8"),
        ((3, [False]), "stopped after 3 ticks, and no job ended"),
    ],
)
def test_an_activity_that_breaks_its_rule_is_named(result, message):
    workers = LockstepWorkers(
        2,
        {"open": Open(lambda jobs, most: result), "timed": Timed(lambda jobs, counts: None, 2.0)},
        lambda worker, ended: WorkerJob("timed", None, 4) if worker else WorkerJob("open", None),
    )
    with pytest.raises(RuntimeError, match=message):
        workers.advance()


def test_all_wait():
    workers = LockstepWorkers(3, {}, lambda worker, ended: None)
    assert not workers.advance()
    assert workers.clock == 0
