"""What a command is about to do: how much, how long it will take by a short measurement, and what
should be known before.
"""

import inspect
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from erl.cli import Sink, duration, plural
from erl.errors import one_line
from erl.executors.jobs import Executor, Rows
from erl.experiments.flags import RunFlags
from erl.experiments.trials import groups
from erl.experiments.workers import local_workers, make_executor
from erl.learners import OWN, SB3_ALGORITHMS, canonical_name
from erl.lifetimes.living import COLUMNS, Cohort, check_together
from erl.worlds.specification import LifetimeSpec

# Steps in all from which on a run is worth a measurement before it starts.
WORTH_MEASURING = 1_000_000
# Seconds of a measurement, and those after which it is given up: before a run, and where the time
# is what was asked for.
MEASURED, GIVEN_UP, GIVEN_UP_ASKED = 4.0, 20.0, 60.0
# Seconds within which workers take their first steps, and those that lifetimes have to end when
# the measurement is over. Not every learner asks whether it shall.
STARTED, ENDED = 60.0, 5.0


@dataclass(frozen=True)
class Outlook:
    """What is left to do.

    Attributes:
        counts: trials, lifetimes and steps, in words.
        specs: lifetimes that would train at the same time.
        left: how many lifetimes are left.
        notes: what should be known before.
        taken: steps of these lifetimes that were taken before an interruption.
        finals: lifetimes that would train at the same time in finals.
        lowest: a lifetime with the lowest values of what is searched, where `specs` have the
            highest; None without a search.
    """

    counts: str
    specs: Sequence[LifetimeSpec]
    left: int
    notes: tuple[str, ...] = ()
    taken: int = 0
    finals: Sequence[LifetimeSpec] = ()
    lowest: LifetimeSpec | None = None


def check_at_once(flags: RunFlags, outlook: Outlook) -> None:
    """Raise a UserError if the lifetimes that would train at the same time do not fit into this
    machine's memory together. What a cluster's machines have is not known here: there, the
    worker refuses.
    """
    if flags.cluster is None and outlook.left:
        workers = local_workers(flags, outlook.specs[0])
        for specs in filter(None, (outlook.specs, outlook.finals)):
            parts = groups(specs, workers)[:workers]
            check_together([[specs[i] for i in part] for part in parts])


def announce(outlook: Outlook, executor: Executor, sink: Sink, measure: bool = False) -> None:
    """Say in one line how much there is to do, and how long it will take, and then what should be
    known.

    Args:
        outlook: what there is to do.
        executor: what will do it.
        sink: where the lines go.
        measure: whether the time is measured also where the run is short.
    """
    parts = [outlook.counts]
    ends = [outlook.specs[0], *([] if outlook.lowest is None else [outlook.lowest])]
    updates = sorted({n for n in map(updates_of, ends) if n is not None})
    if updates:
        least = f"{updates[0]} to " * (len(updates) > 1)
        parts.append(f"{least}{plural(updates[-1], 'update')} each")
    parts.append(plural(executor.workers, "worker"))
    if outlook.taken:
        parts.append(f"{outlook.taken:,} steps were taken before")
    steps = outlook.left * steps_of(outlook.specs[0]) - outlook.taken
    notes = [*outlook.notes, *cautions(*ends)]
    bursts = in_bursts(outlook.specs[0])
    if bursts and outlook.left and measure:
        notes.append(
            f"{canonical_name(outlook.specs[0].learner.name)} updates thousands of times between "
            f"two episodes, so a short measurement cannot say how long it takes"
        )
    if outlook.left and not bursts and (measure or steps >= WORTH_MEASURING):
        sink.status("measuring the speed")
        limit = GIVEN_UP_ASKED if measure else GIVEN_UP
        measured = measured_speed(outlook.specs, executor, limit)
        if measured.speed is None:
            notes.append(f"how long it takes could not be measured: {measured.why}")
        else:
            parts.append(f"about {duration(steps / measured.speed)}")
    sink.line(", ".join(parts))
    for note in notes:
        sink.line(f"note: {note}")


def dry_run(flags: RunFlags, outlook: Outlook, sink: Sink) -> int:
    """What `--dry_run` does: announce, with the workers of the command, and store nothing."""
    executor = make_executor(flags, outlook.specs[0])
    try:
        announce(outlook, executor, sink, measure=True)
    finally:
        executor.close()
        sink.close()
    sink.line("dry run: nothing was trained or stored")
    return 0


def cautions(*specs: LifetimeSpec) -> list[str]:
    """What makes lifetimes useless: all, or those with some of the values that are searched."""
    steps, fitness = specs[0].steps, specs[0].fitness
    rollouts = [r for r in map(rollout_of, specs) if r is not None]
    if not rollouts or steps > max(rollouts) or fitness != "training":
        return []
    which = (
        "a lifetime" if steps <= min(rollouts) else "with some of the searched values, a lifetime"
    )
    return [
        f"{which} of {steps:,} steps has one rollout of {max(rollouts):,} steps: nothing is "
        f"learned before it ends, and the fitness shows no learning; take more steps"
    ]


# -- settings of learners that say how much is learned --


def setting(spec: LifetimeSpec, name: str) -> Any:
    """A setting of a lifetime's learner, as given or by default; None if it has no such one."""
    learner = canonical_name(spec.learner.name)
    if name in spec.learner.config:
        return spec.learner.config[name]
    if learner in SB3_ALGORITHMS and "preset" not in spec.learner.config:
        from erl.learners.sb3 import algorithms

        found = inspect.signature(algorithms()[learner].__init__).parameters.get(name)
        return None if found is None else found.default
    if learner not in OWN:
        return None
    settings = OWN[learner].load().settings
    return getattr(settings.from_learner_config(spec.learner.config, spec.task.env_id), name, None)


def rollout_of(spec: LifetimeSpec) -> int | None:
    """Steps of a rollout, of a learner that learns from whole rollouts."""
    n_steps = setting(spec, "n_steps")
    if not isinstance(n_steps, int) or setting(spec, "buffer_size") is not None:
        return None
    return n_steps * int(spec.learner.config.get("n_envs", 1))


def steps_of(spec: LifetimeSpec) -> int:
    """Steps that a lifetime takes: its budget, and what is left of its last rollout."""
    rollout = rollout_of(spec) or 1
    return -(-spec.steps // rollout) * rollout


def learning_starts(spec: LifetimeSpec) -> int:
    """Counted steps of a lifetime before its learner learns."""
    found = [setting(spec, name) for name in ("learning_starts", "init_steps")]
    cost = setting(spec, "counted_per_step") or 1
    return cost * max([int(n) for n in found if isinstance(n, int)], default=0)


def in_bursts(spec: LifetimeSpec) -> bool:
    """Whether a learner takes no step for minutes, in which it learns."""
    return bool(setting(spec, "updates_in_bursts"))


def updates_of(spec: LifetimeSpec) -> int | None:
    """Times that a lifetime's learner learns: rollouts, or gradient steps from a replay buffer;
    None where its settings do not say.
    """
    rollout = rollout_of(spec)
    if rollout is not None:
        return -(-spec.steps // rollout)
    every, steps = setting(spec, "train_freq"), setting(spec, "gradient_steps")
    if not isinstance(every, int) or not isinstance(steps, int):
        return None
    each = every if steps == -1 else steps
    return max(0, spec.steps - learning_starts(spec)) // every * each


# -- speed --


@dataclass(frozen=True)
class Measured:
    """What a measurement found.

    Attributes:
        speed: steps per second of all lifetimes together; None where that is not known.
        why: in words, why it is not.
    """

    speed: float | None
    why: str = ""


def measured_speed(
    specs: Sequence[LifetimeSpec], executor: Executor, limit: float = GIVEN_UP
) -> Measured:
    """The speed of these lifetimes on all workers together, from their beginning. They end then.

    Args:
        specs: lifetimes that would train at the same time.
        executor: what trains them.
        limit: seconds after which the measurement is given up.
    """
    cohorts = [Cohort(tuple(specs[i] for i in part)) for part in groups(specs, executor.workers)]
    cohorts = cohorts[: executor.workers]
    rollout = rollout_of(specs[0]) or 1
    starts = learning_starts(specs[0])
    begins, needed = min(starts + 1, specs[0].steps), starts + rollout + 1
    # Fewer cohorts than workers: more cannot be used at once.
    measurement = Measurement(sum(len(c.specs) for c in cohorts), begins, needed, limit)
    asked: float | None = None  # when they were asked to end

    def tick(board: Rows) -> None:
        nonlocal asked
        now = time.monotonic()
        if measurement.see(now, board["steps"]):
            board["save"][:] = board["stop"][:] = True
            asked = now if asked is None else asked
            if now - asked > ENDED:
                raise _GoOn

    errors: list[str] = []  # of those that end by themselves
    jobs = [cohort.job() for cohort in cohorts]
    with suppress(_GoOn):
        for result in executor.run(jobs, COLUMNS, tick, every=0.05):
            failed = [result.error] if result.error else [r.error for r in result.value or ()]
            if not measurement.over:
                errors += [
                    one_line(str(error)) or type(error).__name__ for error in failed if error
                ]
    return measurement.result(canonical_name(specs[0].learner.name), errors)


class _GoOn(Exception):
    """Lifetimes that train though they were asked to end. The executor ends their workers."""


class Measurement:
    """The speed of lifetimes side by side, of which is known from time to time how many steps each
    has taken.

    Some learners take steps for a second and then none for half a minute, in which they learn. Of
    these the speed is taken over whole cycles, from the beginning of a pause to that of another.

    Args:
        lifetimes: how many there are.
        begins: steps from which on a lifetime is measured: it learns, or fills its first rollout.
        needed: steps that a lifetime has when it has learned for the first time.
        limit: seconds from the first step after which it is given up.
    """

    def __init__(self, lifetimes: int, begins: int, needed: int, limit: float) -> None:
        self._begins, self._needed, self._limit = begins, needed, limit
        self._first: float | None = None  # when there was nothing yet, then when steps were taken
        self._started = False
        self._now = 0.0
        self._steps = np.zeros(lifetimes, int)
        # Of each lifetime, when its number of steps changed, and to what.
        self._points: list[list[tuple[float, int]]] = [[] for _ in range(lifetimes)]
        self._given_up = self._enough = False

    def see(self, now: float, steps: np.ndarray) -> bool:
        """Note how many steps each lifetime has taken; whether that is all that is wanted."""
        if self.over:
            return True
        if self._first is None or (steps.any() and not self._started):
            self._first, self._started = now, bool(steps.any())
        all_begun = all(self._points)
        for points, before, taken in zip(self._points, self._steps, steps):
            if taken != before and taken >= self._begins:
                if not all_begun:
                    points.clear()  # faster, while others do not learn yet
                points.append((now, int(taken)))
        self._now, self._steps = now, steps.copy()
        self._enough = bool((steps >= self._needed).all()) and all(
            now - points[0][0] >= MEASURED and self._speed(points, 1 / 8) is not None
            for points in self._points
        )
        self._given_up = now - self._first > (self._limit if self._started else STARTED)
        return self.over

    @property
    def over(self) -> bool:
        """Whether enough was seen, or the limit was reached."""
        return self._enough or self._given_up

    def result(self, learner: str, errors: Sequence[str] = ()) -> Measured:
        """What was found.

        Args:
            learner: its name.
            errors: of lifetimes that ended by themselves.
        """
        speeds = [self._speed(points, 1 / 4 if self.over else 1.0) for points in self._points]
        if all(speed is not None for speed in speeds):
            return Measured(sum(speed for speed in speeds if speed is not None))
        if errors or not self.over:
            return Measured(None, errors[0] if errors else "the run ended too soon")
        if not self._started:
            return Measured(None, f"no step was taken within {duration(STARTED)}")
        if not all(self._points):
            within = f"within {duration(self._limit)}"
            taken = f"{int(self._steps.min()):,} of {self._begins:,} steps"
            return Measured(None, f"{learner} did not begin to learn {within} ({taken})")
        pause = duration(max(self._gaps(points).max() for points in self._points))
        said = f"{learner} learns for {pause} or more without a step"
        return Measured(None, f"{said}, and a measurement ends after {duration(self._limit)}")

    def _gaps(self, points: Sequence[tuple[float, int]]) -> np.ndarray:
        """Seconds without a step between these points, and since the last."""
        return np.diff([*(seconds for seconds, _ in points), self._now])

    def _speed(self, points: Sequence[tuple[float, int]], share: float) -> float | None:
        """Steps per second of a lifetime; None while that is not known.

        Args:
            points: when its number of steps changed, and to what.
            share: of the time, that a pause may have where the speed is not taken over whole
                cycles.
        """
        if len(points) < 2:
            return None
        gaps = self._gaps(points)
        longest = gaps.max()
        first, last = 0, len(points) - 1
        if longest > share * (self._now - points[0][0]):
            pauses = np.flatnonzero(gaps >= longest / 4)
            first, last = int(pauses[0]), int(pauses[-1])
        if first == last:
            return None
        (begun, before), (ended, after) = points[first], points[last]
        return (after - before) / (ended - begun)


class Pace:
    """Recent speed, and the time that is left at it.

    Args:
        skip: steps before learning begins, which are faster than the rest.
        clock: seconds.
        window, shortest: seconds over which the speed is taken, and those after which it is known.
    """

    def __init__(
        self,
        skip: int = 0,
        clock: Callable[[], float] = time.monotonic,
        window: float = 30.0,
        shortest: float = 3.0,
    ) -> None:
        self._skip, self._clock = skip, clock
        self._window, self._shortest = window, shortest
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, steps: int, earlier: int = 0) -> None:
        """So many steps were taken so far, `earlier` of them before they were watched."""
        now = self._clock()
        if steps <= self._skip:
            return
        self._marks.append((now, steps - earlier))
        while len(self._marks) > 2 and now - self._marks[1][0] >= self._window:
            self._marks.popleft()

    @property
    def speed(self) -> float | None:
        """Steps per second of the last `window`; None while that is not known."""
        if len(self._marks) < 2:
            return None
        (begun, before), (now, after) = self._marks[0], self._marks[-1]
        if now - begun < self._shortest or after <= before:
            return None
        return (after - before) / (now - begun)

    def text(self, left: int) -> str:
        """Speed and the time that so many steps take; empty while that is not known."""
        speed = self.speed
        if speed is None:
            return ""
        return f"{speed:,.0f} steps/s  {duration(max(0, left) / speed)} left"


def pace_of(specs: Sequence[LifetimeSpec], workers: int) -> Pace:
    """A pace for lifetimes that train at the same time, on so many workers."""
    skip = learning_starts(specs[0]) * min(workers, len(specs))
    if in_bursts(specs[0]):
        return Pace(skip, window=600.0, shortest=120.0)
    return Pace(skip)
