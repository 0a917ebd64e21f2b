"""The trial loop: cohorts of lifetimes to an executor, records to the study, and back what a pruner
says.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from erl.errors import describe
from erl.executors.jobs import Executor, Result, Rows
from erl.experiments.display import DashboardNotes
from erl.learners.core.checkpoints import checkpoint_files, remove_checkpoint
from erl.lifetimes.living import COLUMNS, Cohort, cohort_key
from erl.lifetimes.record import LifetimeRecord
from erl.search.pruning import Pruning, TrialPruner, values_at_points
from erl.studies.study import Study
from erl.studies.trials import RunningTrial, Score, lifetime_records
from erl.worlds.specification import LifetimeSpec

# Seconds that running lifetimes have for their checkpoints after Ctrl-C; after SIGTERM they are
# few, since a batch system kills soon after it.
PATIENCE = 300.0
PATIENCE_AT_SIGTERM = 20.0

# A trial, and the index of one of its lifetimes.
Member = tuple[RunningTrial, int]
# From members that may be trained side by side.
MakeCohort = Callable[[Sequence[Member]], Cohort]


class Listener(Protocol):
    """Told what happens in a trial loop."""

    def end(self, trial: RunningTrial, value: float | None) -> None:
        """A trial has ended, with its fitness or the value that it was pruned at; None: it
        failed.
        """

    def tick(self, steps: int, earlier: int) -> None:
        """So many environment steps were taken so far by the lifetimes of this loop, `earlier` of
        them before these went on from checkpoints.
        """

    def ending(self) -> None:
        """The command was interrupted, and running lifetimes write their checkpoints."""

    def ended_early(self, saved: int, running: int) -> None:
        """So many of the lifetimes that ran have a checkpoint, after an interruption."""


def own_return(spec: LifetimeSpec, value: float) -> float:
    """The score of a lifetime that is its return."""
    return value


class Writer:
    """Writes to a storage in a thread of its own, in order, so that workers go on while the storage
    is away. What follows a write is done by the thread that collects.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._writes: deque[tuple[Future, Callable[[], Any] | None]] = deque()

    def write(
        self, then: Callable[[], Any] | None, function: Callable[..., Any], *args: Any
    ) -> None:
        """Call `function` with these arguments in the writer's thread, and later, in the thread
        that collects, `then`.
        """
        self._writes.append((self._thread.submit(function, *args), then))

    def collect(self, wait: bool = False) -> None:
        """Do what follows the writes that have ended; raise what they raised.

        Args:
            wait: for those that have not.
        """
        while self._writes and (wait or self._writes[0][0].done()):
            future, then = self._writes.popleft()
            future.result()
            if then is not None:
                then()

    def finish(self) -> None:
        """Wait for all writes, whatever some of them raise."""
        while self._writes:
            with suppress(Exception):
                self.collect(wait=True)

    def close(self) -> None:
        """End the thread; what was not begun is not written."""
        self._thread.shutdown(cancel_futures=True)


class TrialLoop:
    """Lives the lifetimes of some trials, and ends each trial when its last lifetime has ended.

    The thread that calls `run` alone changes trials and this object. A `Writer` writes to the
    storage.

    Args:
        study: theirs, entered.
        trials: begun or taken up.
        executor: where lifetimes are lived.
        make_cohort: builds a cohort from members that may be trained side by side.
        listener: is told what happens.
        score: what a lifetime's return contributes to its trial's fitness, their mean.
        pruning: ends trials early; by default none.
        display: writes notes and files of trials; by default there are none.
    """

    def __init__(
        self,
        study: Study,
        trials: Sequence[RunningTrial],
        executor: Executor,
        make_cohort: MakeCohort,
        listener: Listener,
        score: Score = own_return,
        pruning: Pruning | None = None,
        display: DashboardNotes | None = None,
    ) -> None:
        self._study, self._executor, self._make_cohort = study, executor, make_cohort
        self._listener, self._score, self._pruning = listener, score, pruning
        self._open = {t.trial_id: t for t in trials}
        self._writer, self._display = Writer(), display
        self._models: dict[int, dict[int, str]] = {}  # trial -> lifetime -> its saved model
        self._groups: list[list[Member]] = []
        self._cohorts: list[Cohort] = []
        self._steps = np.zeros(0, dtype=np.int64)  # of each row
        self._rows: dict[int, dict[int, int]] = {}  # trial -> lifetime -> its row of the board
        self._interrupted = False

    def run(self) -> None:
        """Live them all.

        A KeyboardInterrupt leaves what has ended stored, also what ends within the seconds that
        follow; leaving the study lets the other trials wait for the next run.
        """
        try:
            self._begin()
            jobs = [cohort.job() for cohort in self._cohorts]
            results = self._executor.run(jobs, COLUMNS, self._tick, on_interrupt=self._interrupt)
            try:
                for result in results:
                    self._take(result)
                    # A storage that fails must not end lifetimes that write their checkpoints.
                    if not self._interrupted:
                        self._writer.collect()
            except KeyboardInterrupt as e:
                with suppress(KeyboardInterrupt):  # if it came while a result was taken
                    for result in chain([results.throw(e)], results):
                        self._take(result)
                raise
            self._writer.collect(wait=True)
        except BaseException:
            self._executor.close()
            self._study.storage.stop_retrying()
            self._writer.finish()  # what has ended is stored all the same, if it can be
            if self._interrupted:
                self._say_saved()
            raise
        finally:
            self._writer.close()

    def _begin(self) -> None:
        """Compare and end what can be ended at once, and make cohorts of the rest."""
        trials = list(self._open.values())
        if self._pruning is not None:
            _set_pruners(self._study, trials, self._pruning, self._score)
        for trial in trials:
            self._compare(trial)
            # A trial that was pruned before trains no further lifetimes.
            if trial.complete or trial.pruned is not None:
                self._end(trial)
        self._groups = group(list(self._open.values()), self._executor.workers)
        self._cohorts = [self._make_cohort(members) for members in self._groups]
        members = (member for members in self._groups for member in members)
        for row, (trial, index) in enumerate(members):
            self._rows.setdefault(trial.trial_id, {})[index] = row
        self._steps = np.zeros(sum(map(len, self._groups)), dtype=np.int64)

    def _tick(self, board: Rows) -> None:
        """The executor calls this with the board from time to time."""
        self._writer.collect()
        for trial in self._open.values():
            rows = self._rows[trial.trial_id]
            self._compare(trial, {index: board["reports"][row] for index, row in rows.items()})
            if trial.pruned is not None:
                board["stop"][list(rows.values())] = True
        self._steps = np.array(board["steps"])
        self._listener.tick(int(self._steps.sum()), int(board["earlier"].sum()))

    def _interrupt(self, board: Rows, signal: KeyboardInterrupt) -> float:
        """Ask all lifetimes to write their checkpoints and to end; the seconds that they have."""
        self._interrupted = True
        self._listener.ending()
        board["save"][:] = True
        return PATIENCE_AT_SIGTERM if signal.args == ("SIGTERM",) else PATIENCE

    def _say_saved(self) -> None:
        """Tell the listener which lifetimes were taken up and will continue where they stopped."""
        left = [
            cohort.outputs[k].checkpoint if cohort.outputs else None
            for members, cohort in zip(self._groups, self._cohorts)
            for k, (trial, index) in enumerate(members)
            if index not in trial.records and self._steps[self._rows[trial.trial_id][index]]
        ]
        saved = sum(path is not None and bool(checkpoint_files(path)) for path in left)
        self._listener.ended_early(saved, len(left))

    def _take(self, result: Result) -> None:
        """A cohort has ended."""
        for k, (trial, index) in enumerate(self._groups[result.index]):
            if result.error is None:
                record = result.value[k]
                if self._interrupted and record.error is not None:
                    # It ended for its checkpoint, or the signal reached what it works with too.
                    continue
                trial.add(index, record)
                model = next(iter(self._cohorts[result.index].models[k : k + 1]), None)
                if model is not None and record.error is None:
                    self._models.setdefault(trial.trial_id, {})[index] = model
                # A lifetime that failed may be repaired and continued: it keeps its checkpoint.
                then = (
                    partial(_remove_checkpoint, self._cohorts[result.index], k)
                    if record.error is None
                    else None
                )
                self._writer.write(then, self._study.store_record, trial.trial_id, index, record)
            else:
                trial.error = trial.error or (describe(result.error), None)
                trial.records[index] = _no_record(trial.specs[index], result.error)
            self._compare(trial)
            if trial.complete:
                self._end(trial)

    def _compare(
        self, trial: RunningTrial, reports: Mapping[int, np.ndarray] = MappingProxyType({})
    ) -> None:
        """Report what a trial has reached at points that all its lifetimes have passed, and compare
        it: it may be pruned.
        """
        if trial.pruned is not None:
            return
        values = values_at_points(trial.specs, trial.records, reports, self._score)
        found = trial.reporter.compare(values)
        trial.pruned = found.pruned
        if found.values or found.notes or found.pruned is not None:
            self._writer.write(None, self._study.store_comparison, trial.trial_id, found)

    def _end(self, trial: RunningTrial) -> None:
        """A trial has ended: store it, and tell the listener when it is stored."""
        if self._open.pop(trial.trial_id, None) is None:
            return
        value = trial.value(self._score)
        state = "COMPLETE"
        if trial.pruned is not None:
            state = "PRUNED"
        elif value is None:
            state = "FAIL"

        def stored() -> None:
            self._study.let_go(trial.trial_id)
            self._listener.end(trial, value)

        if self._display is not None:
            models = self._models.pop(trial.trial_id, {})
            self._writer.write(None, self._display.trial, trial, state, value, models)
        end = (trial.trial_id, state, value, trial.error)
        self._writer.write(stored, self._study.store_end, *end)


def _set_pruners(
    study: Study, trials: Sequence[RunningTrial], pruning: Pruning, score: Score
) -> None:
    """Have trials compared with those of earlier generations: which ones of its own have ended
    depends on the workers.
    """
    finished = study.trials("COMPLETE", "PRUNED", "FAIL")

    def values(trial: Any) -> np.ndarray:
        records = lifetime_records(trial)
        return values_at_points([records[i].spec for i in sorted(records)], records, {}, score)

    def generation(number: int, attrs: Mapping[str, Any]) -> int:
        return attrs.get("generation", number // pruning.popsize)

    for trial in trials:
        mine = generation(trial.number, trial.attrs)
        earlier = [t for t in finished if generation(t.number, t.user_attrs) < mine]
        trial.reporter = TrialPruner(pruning.pruner, study.name, trial.number, earlier, values)


def _remove_checkpoint(cohort: Cohort, k: int) -> None:
    """A lifetime whose record is stored needs its checkpoint no more."""
    checkpoint = cohort.outputs[k].checkpoint if cohort.outputs else None
    if checkpoint is not None:
        remove_checkpoint(checkpoint)


def _no_record(spec: LifetimeSpec, error: Exception) -> LifetimeRecord:
    return LifetimeRecord(spec, None, None, 0, 0, 0, 0.0, error=describe(error))


def group(trials: Sequence[RunningTrial], workers: int) -> list[list[Member]]:
    """Lifetimes that have not ended, in groups that are trained side by side: cohorts spread evenly
    over the workers, or each lifetime on its own.
    """
    members = [
        (trial, index)
        for trial in trials
        for index in range(len(trial.specs))
        if index not in trial.records
    ]
    parts = groups([trial.specs[index] for trial, index in members], workers)
    return [[members[i] for i in part] for part in parts]


def groups(specs: Sequence[LifetimeSpec], workers: int) -> list[list[int]]:
    """Indices of lifetimes, in groups: see `group`."""
    alone: list[list[int]] = []
    cohorts: dict[Any, list[int]] = {}
    for i, spec in enumerate(specs):
        try:
            key = cohort_key(spec)
        except Exception:  # its training says why, and no other lifetime is hurt
            key = None
        if key is None:
            alone.append([i])
        else:
            cohorts.setdefault(key, []).append(i)
    for members in cohorts.values():
        alone += [part.tolist() for part in np.array_split(members, min(workers, len(members)))]
    return alone
