"""What a command is about to do: how much, how long it will take by a short measurement, and what
should be known before.
"""

import inspect
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from erl.cli import Sink, duration, plural
from erl.executors.jobs import Executor, Rows
from erl.experiments.flags import RunFlags
from erl.experiments.trials import groups
from erl.experiments.workers import local_workers, make_executor
from erl.learners import OWN, SB3_ALGORITHMS, canonical_name
from erl.lifetimes.living import COLUMNS, Cohort, check_together
from erl.worlds.specification import LifetimeSpec

# Steps in all from which on a run is worth a measurement before it starts.
WORTH_MEASURING = 1_000_000
# Seconds of a measurement, and those after which it is given up.
MEASURED, GIVEN_UP = 4.0, 20.0


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
    """

    counts: str
    specs: Sequence[LifetimeSpec]
    left: int
    notes: tuple[str, ...] = ()
    taken: int = 0
    finals: Sequence[LifetimeSpec] = ()


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
    updates = updates_of(outlook.specs[0])
    if updates is not None:
        parts.append(f"{plural(updates, 'update')} each")
    parts.append(plural(executor.workers, "worker"))
    if outlook.taken:
        parts.append(f"{outlook.taken:,} steps were taken before")
    steps = outlook.left * steps_of(outlook.specs[0]) - outlook.taken
    notes = [*outlook.notes, *cautions(outlook.specs[0])]
    bursts = in_bursts(outlook.specs[0])
    if bursts and outlook.left and measure:
        notes.append(
            f"{canonical_name(outlook.specs[0].learner.name)} updates thousands of times between "
            f"two episodes, so a short measurement cannot say how long it takes"
        )
    if outlook.left and not bursts and (measure or steps >= WORTH_MEASURING):
        sink.status("measuring the speed")
        speed = measured_speed(outlook.specs, executor)
        if speed is not None:
            parts.append(f"about {duration(steps / speed)}")
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


def cautions(spec: LifetimeSpec) -> list[str]:
    """What makes a lifetime useless."""
    rollout = rollout_of(spec)
    if rollout is None or spec.steps > rollout or spec.fitness != "training":
        return []
    return [
        f"a lifetime of {spec.steps:,} steps has one rollout of {rollout:,} steps: nothing is "
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


def measured_speed(specs: Sequence[LifetimeSpec], executor: Executor) -> float | None:
    """Steps per second of all workers together, from the beginning of these lifetimes, which end
    then; None if they did not begin to learn within `GIVEN_UP` seconds.
    """
    cohorts = [Cohort(tuple(specs[i] for i in part)) for part in groups(specs, executor.workers)]
    cohorts = cohorts[: executor.workers]
    rollout = rollout_of(specs[0]) or 1
    needed = learning_starts(specs[0]) + rollout
    marks: list[tuple[float, int]] = []
    first = time.monotonic()

    def tick(board: Rows) -> None:
        nonlocal first
        now, steps = time.monotonic(), board["steps"]
        if not steps.any():
            first = now  # workers are still starting
        if (steps >= min(needed - rollout + 1, specs[0].steps)).all():
            marks.append((now, int(steps.sum())))
        learned = marks and (steps >= needed).all() and now - marks[0][0] >= MEASURED
        if learned or now - first > GIVEN_UP:
            board["save"][:] = board["stop"][:] = True

    for _ in executor.run([cohort.job() for cohort in cohorts], COLUMNS, tick, every=0.05):
        pass
    if len(marks) < 2 or marks[-1][1] == marks[0][1]:
        return None
    (begun, before), (ended, after) = marks[0], marks[-1]
    # Fewer cohorts than workers: more cannot be used at once.
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

    def mark(self, steps: int) -> None:
        """So many steps were taken so far."""
        now = self._clock()
        if steps <= self._skip:
            return
        self._marks.append((now, steps))
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
