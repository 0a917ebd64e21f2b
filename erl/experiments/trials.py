"""The trial loop that evolutions, tests and single runs share: jobs to an executor, records to the
study, verdicts of a pruner back.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from erl.executors.local import Executor
from erl.learners import get_learner
from erl.learners.core.checkpoints import remove_checkpoint
from erl.lifetimes.lifetime import Job, LifetimeRecord, Slots, describe
from erl.search.pruning import Pruning, Watch, table
from erl.studies.study import Plan, Score, SearchSpace, Study, Taken, key_of
from erl.worlds.specification import LifetimeSpec

# From (trial, index of the lifetime) pairs that may be trained side by side.
MakeJob = Callable[[Sequence[tuple[Taken, int]]], Job]


def plain(spec: LifetimeSpec, value: float) -> float:
    """A lifetime's own return."""
    return value


def run(
    study: Study,
    trials: Sequence[Taken],
    executor: Executor,
    make_job: MakeJob,
    on_end: Callable[[Taken, float | None], Any],
    on_tick: Callable[[int], Any],
    score: Score = plain,
    pruning: Pruning | None = None,
) -> None:
    """Live the lifetimes of these trials, and tell each trial when its last lifetime has ended.

    Args:
        study: theirs, entered.
        trials: taken or proposed.
        executor: where.
        make_job: builds a job from (trial, index of the lifetime) pairs that may be trained side by
            side.
        on_end: called with a trial and its fitness (None: it failed), or the value that it was
            pruned at.
        on_tick: called from time to time with the environment steps taken so far in this call.
        score: what a lifetime's return contributes to its trial's, their mean; by default itself.
        pruning: ends trials early; by default none.

    A KeyboardInterrupt leaves finished trials told; leaving the study lets the others wait for the
    next run. What is written is written in a thread of its own, in order, so that workers go on
    while the storage is away.
    """
    writer = ThreadPoolExecutor(1)
    writes: deque[tuple[Future, Callable[[Any], Any]]] = deque()

    def write(then: Callable[[Any], Any], what: Callable[..., Any], *args: Any) -> None:
        writes.append((writer.submit(what, *args), then))

    def collect(wait: bool = False) -> None:
        while writes and (wait or writes[0][0].done()):
            future, then = writes.popleft()
            then(future.result())

    def look(taken: Taken, reports: Mapping[int, np.ndarray] = MappingProxyType({})) -> None:
        """See what a watched trial has reached at points that all its lifetimes have passed, and
        whether it is pruned.
        """
        if taken.watch is not None and taken.pruned is None:
            news = taken.watch.look(table(taken.specs, taken.records, reports, score))
            taken.pruned = news.pruned
            if news.values or news.notes or news.pruned is not None:
                write(_nothing, study.note_news, taken, news)

    def end_if_over(taken: Taken, over: bool = False) -> None:
        if taken.trial_id in open_trials and (over or len(taken.records) == len(taken.specs)):
            write(partial(on_end, open_trials.pop(taken.trial_id)), study.end, taken, score)

    open_trials = {t.trial_id: t for t in trials}
    try:
        if pruning is not None:
            _set_watches(study, trials, pruning, score)
        for taken in trials:
            look(taken)
            end_if_over(
                taken, taken.pruned is not None
            )  # of a trial that was pruned before nothing more is lived
        groups = _group(list(open_trials.values()), executor.workers)
        rows: dict[int, dict[int, int]] = {}  # trial -> lifetime -> its row of the board
        for row, (taken, index) in enumerate(member for group in groups for member in group):
            rows.setdefault(taken.trial_id, {})[index] = row

        def tick(board: Slots) -> None:
            collect()
            for taken in open_trials.values():
                mine = rows[taken.trial_id]
                look(taken, {index: board.reports[row] for index, row in mine.items()})
                if taken.pruned is not None:
                    board.stop[list(mine.values())] = True
            on_tick(int(board.steps.sum()))

        jobs = [make_job(group) for group in groups]
        for result in executor.run(jobs, tick):
            for k, (taken, index) in enumerate(groups[result.index]):
                if result.records is not None:
                    record = result.records[k]
                    taken.records[index] = record
                    # What failed may be mended and taken up again, and keeps its checkpoint.
                    after = (
                        partial(_forget_checkpoint, jobs[result.index], k)
                        if record.error is None
                        else _nothing
                    )
                    write(after, study.note, taken, index, record)
                else:
                    assert result.error is not None
                    taken.records[index] = _no_record(taken.specs[index], result.error)
                    taken.error = taken.error or (describe(result.error), None)
                look(taken)
                end_if_over(taken)
            collect()
        collect(wait=True)
    except BaseException:
        executor.close()
        study.storage.hurry()
        with suppress(Exception):  # what has ended is stored all the same, if it can be
            collect(wait=True)
        raise
    finally:
        writer.shutdown(cancel_futures=True)


def fill(
    study: Study,
    wanted: Sequence[dict[str, Any]],
    space: SearchSpace,
    plan: Plan,
    executor: Executor,
    make_job: MakeJob,
    watch: Callable[
        [list[Taken]], tuple[Callable[[Taken, float | None], Any], Callable[[int], Any]]
    ],
    max_retries: int = 2,
) -> None:
    """Live a trial for each of these parameters that has none yet, whoever else is about it, and
    those that failed again.

    Args:
        study: of these trials, entered.
        wanted: parameters of the trials.
        space: their distributions.
        plan: from parameters to lifetimes.
        executor: see `run`, likewise `make_job`.
        watch: called with the trials that are begun or taken up; gives `run` its `on_end` and
            `on_tick`.
        max_retries: see `reclaim`.
    """
    # What failed is tried again: whoever calls again has done something about it.
    begun = {key_of(t.params) for t in study.trials("COMPLETE", "RUNNING", "WAITING")}
    taken = [study.create(params, space, plan) for params in wanted if key_of(params) not in begun]
    first = study.first()
    for double in [t for t in taken if first[key_of(t.params)] != t.number]:
        # Another coordinator began it too, at the same moment.
        study.withdraw(double)
        taken.remove(double)
    keys, watched = {key_of(params) for params in wanted}, False
    while True:
        first = study.first()
        waiting = [
            t
            for t in study.reclaim(max_retries)
            if key_of(t.params) in keys and first[key_of(t.params)] == t.number
        ]
        taken += [t for t in (study.take_up(w, plan) for w in waiting) if t is not None]
        if taken or not watched:
            on_end, on_tick = watch(taken)
            watched = True
        if taken:
            run(study, taken, executor, make_job, on_end, on_tick)
            taken = []
        elif not study.in_doubt():
            break


def _set_watches(study: Study, trials: Sequence[Taken], pruning: Pruning, score: Score) -> None:
    """Have trials compared with those of earlier generations: which ones of its own have ended
    depends on the workers.
    """
    finished = study.trials("COMPLETE", "PRUNED", "FAIL")

    def lived(trial: Any) -> np.ndarray:
        records = study.lifetimes(trial)
        return table([records[i].spec for i in sorted(records)], records, {}, score)

    for taken in trials:
        first = taken.number - taken.number % pruning.popsize  # of its generation
        earlier = [t for t in finished if t.number < first]
        taken.watch = Watch(pruning.pruner, study.name, taken.number, earlier, lived)


def _nothing(_: Any) -> None:
    """What follows a write after which nothing is to be done."""


def _forget_checkpoint(job: Job, k: int, _: Any = None) -> None:
    """A lifetime whose record is stored needs its checkpoint no more."""
    checkpoint = job.outputs[k].checkpoint if job.outputs else None
    if checkpoint is not None:
        remove_checkpoint(checkpoint)


def _no_record(spec: LifetimeSpec, error: Exception) -> LifetimeRecord:
    return LifetimeRecord(spec, None, None, 0, 0, 0, 0.0, error=describe(error))


def _group(trials: Sequence[Taken], workers: int) -> list[list[tuple[Taken, int]]]:
    """Lifetimes that have not ended, as jobs: cohorts spread evenly over the workers, or each on
    its own.
    """
    groups: list[list[tuple[Taken, int]]] = []
    cohorts: dict[Any, list[tuple[Taken, int]]] = {}
    for taken in trials:
        for index, spec in enumerate(taken.specs):
            if index not in taken.records:
                key = get_learner(spec.learner.name, spec.learner.engine).cohort_key(spec)
                if key is None:
                    groups.append([(taken, index)])
                else:
                    cohorts.setdefault(key, []).append((taken, index))
    for members in cohorts.values():
        n = min(workers, len(members))
        groups += [
            [members[i] for i in part] for part in np.array_split(np.arange(len(members)), n)
        ]
    return groups
