"""A campaign: trials of one study, lived by one executor.

Evolving, comparing and training one learner are campaigns with different trials. A `TrialSource`
says which trials are next, and a `Progress` prints what happens to them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from erl.cli import Sink, plural, score_text
from erl.experiments.display import Commands, DashboardNotes, EvolutionLog
from erl.experiments.flags import RunFlags
from erl.experiments.forecast import Pace
from erl.experiments.trials import MakeCohort, Member, TrialLoop, own_return
from erl.experiments.workers import identify, make_executor
from erl.files import folder_name
from erl.learners import Outputs
from erl.learners.core.checkpoints import checkpoint_steps
from erl.lifetimes.living import Cohort
from erl.search.pruning import Pruning
from erl.studies.configuration import StudyConfig
from erl.studies.distributions import SearchSpace
from erl.studies.storage import GoneError, StorageError
from erl.studies.study import CODE, Study
from erl.studies.trials import Plan, RunningTrial, Score, key_of
from erl.worlds.specification import LifetimeSpec, code_of, to_json


class TrialSource(Protocol):
    """Which trials of a study are to be lived."""

    def next_trials(self) -> list[RunningTrial] | None:
        """Trials to live now, begun or continued. An empty list if other coordinators were faster
        and there may be more; None if there is nothing left to do.
        """


class Progress:
    """Prints how far a campaign is: a line for each trial that has ended, and a status line.

    Args:
        sink: where the lines go.
        budget: environment steps that are to be taken in all.
        pace: by which the time left is judged.
    """

    def __init__(self, sink: Sink, budget: int = 0, pace: Pace | None = None) -> None:
        self.sink, self.budget = sink, budget
        self.done = 0
        self._pace = pace or Pace()
        self._before, self._now = 0, 0
        self._earlier_before, self._earlier_now = 0, 0

    def begin(self, trials: Sequence[RunningTrial]) -> None:
        """These trials begin."""
        self._before += self._now
        self._earlier_before += self._earlier_now
        self._now = self._earlier_now = 0

    def end(self, trial: RunningTrial, value: float | None) -> None:
        """A trial has ended, with this value, or failed."""
        self.done += 1
        self.sink.line(self.trial_line(trial, value))

    def tick(self, steps: int, earlier: int = 0) -> None:
        """So many steps were taken by the trials that began last, `earlier` of them before they
        went on from checkpoints: these are done, but say nothing of the pace.
        """
        self._now, self._earlier_now = steps, earlier
        taken = self._before + steps
        self._pace.mark(taken, self._earlier_before + earlier)
        pace = self._pace.text(self.budget - taken)
        self.sink.status(self.status_line(taken, pace).rstrip())

    def ending(self) -> None:
        """See `Listener`."""
        self.sink.line("interrupted: writing checkpoints (Ctrl-C again ends at once)")

    def ended_early(self, saved: int, running: int) -> None:
        """See `Listener`."""
        if running:
            lost = running - saved
            if saved:
                who = "the other one starts" if lost == 1 else "the others start"
            else:
                who = "it starts" if lost == 1 else "they start"
            again = f"; {who} again" if lost else ""
            self.sink.line(f"checkpoints: {saved} of {plural(running, 'running lifetime')}{again}")

    def trial_line(self, trial: RunningTrial, value: float | None) -> str:
        """The line of a trial that has ended."""
        raise NotImplementedError

    def status_line(self, steps: int, pace: str) -> str:
        """The status line, from steps taken, and the pace in words; empty while it is unknown."""
        raise NotImplementedError


def outcome(trial: RunningTrial, value: float | None, what: str = "return") -> str:
    """What a trial reached, or why it failed; `what` is what its value is."""
    if value is not None:
        return f"{what} {score_text(value)}"
    return f"failed: {trial.error[0] if trial.error else ''}"


def say_interrupted(study: Study, sink: Sink, say: Callable[[], Any]) -> int:
    """Say how far an interrupted command is, or that its storage does not answer, which is not
    waited for: a batch system kills soon after its signal.

    Returns:
        The exit code of an interruption.

    Raises:
        GoneError: there is nothing that could be continued.
    """
    study.storage.stop_retrying()
    try:
        study.name_now()
        say()
    except GoneError:
        raise
    except StorageError as e:
        sink.line(f"interrupted: {e}; {study.again}")
    return 130


def changed_code(attrs: Mapping[str, Any]) -> str | None:
    """That a study was begun with other code, by its user attributes; None if it was not, or if it
    stores nothing of that.
    """
    before = {**attrs.get("versions", {}), "the commit": attrs.get("commit"), **attrs.get(CODE, {})}
    now = {**identify(), **code_of(attrs.get("config"))}
    changed = [k for k, v in before.items() if v is not None and now.get(k) not in (None, v)]
    if not changed:
        return None
    return f"this study was begun with other code ({', '.join(changed)}): its results are of both"


class Campaign:
    """A study and the executor that lives its trials.

    Args:
        flags: where and how.
        name: of the study.
        config: of the study.
        sink: where lines go.
        spec: a lifetime of it, see `make_executor`.
        storage: of the study; by default that of the flags.

    Raises:
        UserError: the storage, the cluster or the service of `--track` cannot be used, or the study
            is something else.
    """

    def __init__(
        self,
        flags: RunFlags,
        name: str,
        config: StudyConfig,
        sink: Sink,
        spec: LifetimeSpec,
        storage: str | None = None,
    ) -> None:
        self.name, self.sink = name, sink
        self._artifacts = flags.artifacts
        self._service = None
        if flags.track is not None:
            from erl.experiments.tracking import connect

            self._service = connect(flags.track)
        self._logs = f"{flags.logs}/{folder_name(name)}"
        self.executor = make_executor(flags, spec)
        self.executor.note = lambda line: sink.line(f"warning: {line}")
        try:
            self.study = Study(storage or flags.storage, name, config)
        except BaseException:
            self.executor.close()
            raise
        if said := changed_code(self.study.optuna.user_attrs):
            sink.line(f"warning: {said}")

    @property
    def workers(self) -> str:
        """How many, in words."""
        return plural(self.executor.workers, "worker")

    def run(
        self,
        source: TrialSource,
        make_cohort: MakeCohort,
        progress: Progress,
        score: Score = own_return,
        pruning: Pruning | None = None,
        commands: Commands = lambda name, trial: (),
        log: EvolutionLog | None = None,
    ) -> bool:
        """Live trials until there is nothing left to do.

        Args:
            source: which trials.
            make_cohort: from (trial, index of the lifetime) pairs that may be trained side by side.
            progress: is told what happens.
            score: what a lifetime's return contributes to its trial's fitness.
            pruning: ends trials early; by default none.
            commands: that the notes of study and trials name.
            log: of an evolution in TensorBoard.

        Returns:
            False if it was interrupted. What has ended is stored; the other trials wait for the
            next run.
        """
        display = DashboardNotes(self.study, self._artifacts, commands)
        try:
            with self._tracking(), self.study:
                first, waits = True, False
                while True:
                    display.study()
                    if log is not None:
                        log.update()
                    trials = source.next_trials()
                    if trials or first:
                        progress.begin(trials or [])
                        first = False
                    if trials:
                        TrialLoop(
                            self.study,
                            trials,
                            self.executor,
                            make_cohort,
                            progress,
                            score,
                            pruning,
                            display,
                        ).run()
                    elif trials is None:
                        if not self.study.in_doubt():
                            break
                        self.sink.status(
                            "waiting to see whether the coordinators of running trials are alive"
                        )
                    else:
                        waits = self._say_waiting(waits)
        except KeyboardInterrupt:
            return False
        finally:
            self.executor.close()
            self.sink.close()
            if log is not None:
                log.close()
        return True

    def _say_waiting(self, waits: bool) -> bool:
        """Say that other coordinators run what is left.

        Args:
            waits: whether this was said before.

        Returns:
            Whether it is said now.
        """
        running = len(self.study.trials("RUNNING"))
        if running and not waits:
            waits = True
            self.sink.line(
                f"waiting for {plural(running, 'trial')} that other processes run; Ctrl-C does not "
                f"stop them"
            )
        self.sink.status("waiting for trials that other processes run")
        return waits

    @contextmanager
    def _tracking(self) -> Iterator[None]:
        """Meanwhile, send logs to the service that `--track` names."""
        if self._service is None:
            yield
            return
        from erl.experiments.tracking import Tracker

        tracker = Tracker(self._service, self.study, self._logs, self.sink.line)
        tracker.start()
        try:
            yield
        finally:
            tracker.close()


class GivenTrials:
    """A trial for each of some parameters: for those that have no trial yet, of any coordinator,
    and for those whose last trial failed before this command. Those that other coordinators have
    are waited for, and what these lose is taken over.

    Args:
        study: of these trials.
        wanted: parameters of the trials.
        space: their distributions.
        plan: from parameters to lifetimes.
        max_retries: see `Study.reclaim`.
        at_once: how many are begun at a time, so that other coordinators have a share; by default
            all.
        notes: from parameters to user attributes that the trial has beside them.
    """

    def __init__(
        self,
        study: Study,
        wanted: Sequence[dict[str, Any]],
        space: SearchSpace,
        plan: Plan,
        max_retries: int,
        at_once: int | None = None,
        notes: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._study, self._wanted, self._space = study, wanted, space
        self._plan, self._max_retries = plan, max_retries
        self._at_once, self._notes = at_once, notes
        self._failed: set[int] | None = None  # numbers of trials that had failed before

    def next_trials(self) -> list[RunningTrial] | None:
        """See `TrialSource`."""
        study = self._study
        if self._failed is None:
            self._failed = {t.number for t in study.trials("FAIL")}
        trials = self._begin(self._failed)
        keys, first = {key_of(params) for params in self._wanted}, study.first()
        for waiting in study.reclaim(self._max_retries):
            key = key_of(waiting.params)
            if key in keys and first.get(key) == waiting.number:
                trial = study.take_up(waiting, self._plan)
                trials += [] if trial is None else [trial]
        if trials:
            return trials
        first = study.first()
        open_trials = {t.number: key_of(t.params) for t in study.trials("RUNNING", "WAITING")}
        if not any(k in keys and first.get(k) == number for number, k in open_trials.items()):
            return None
        study.pause()
        return []

    def _begin(self, failed: set[int]) -> list[RunningTrial]:
        """Begin what is missing. What had failed before is tried again, since the user has probably
        repaired what was wrong.
        """
        study = self._study
        begun = {
            key_of(t.params)
            for t in study.trials("COMPLETE", "RUNNING", "WAITING", "FAIL")
            if t.number not in failed
        }
        missing = [params for params in self._wanted if key_of(params) not in begun]
        notes = self._notes or (lambda params: {})
        trials = [
            study.create(params, self._space, self._plan, notes(params))
            for params in missing[: self._at_once]
        ]
        first = study.first()
        for double in [t for t in trials if first[key_of(t.params)] != t.number]:
            # Another coordinator began it too, at the same moment.
            study.withdraw(double)
            trials.remove(double)
        return trials


# -- files --


def checkpoint_cohort(flags: RunFlags, name: str) -> MakeCohort:
    """Cohorts of lifetimes of which nothing but checkpoints is kept, in the folder of a study."""

    def make_cohort(members: Sequence[Member]) -> Cohort:
        specs = tuple(trial.specs[index] for trial, index in members)
        seconds = flags.checkpoint_minutes * 60
        return Cohort(
            specs,
            tuple(Outputs(None, checkpoint_path(flags.runs, name, s), seconds) for s in specs),
        )

    return make_cohort


def steps_in_checkpoints(runs: str, study: str, specs: Sequence[LifetimeSpec]) -> int:
    """Steps that lifetimes of a study had taken when they were interrupted, and need not take
    again.

    Args:
        runs: folder of the checkpoints.
        study: its name.
        specs: of lifetimes that have not ended.
    """
    return sum(checkpoint_steps(checkpoint_path(runs, study, spec)) for spec in specs)


def checkpoint_path(folder: str, study: str, spec: LifetimeSpec) -> str:
    """Where a lifetime's checkpoint lies: named after what the lifetime is, so that it is found
    when the lifetime is continued.
    """
    digest = hashlib.sha256(json.dumps(to_json(spec), sort_keys=True).encode()).hexdigest()[:20]
    return os.path.abspath(f"{folder}/{folder_name(study)}/checkpoints/{digest}.pkl")
