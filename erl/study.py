"""The study database: studies that know their configuration, leases of running trials, and
the trial loop that both evolution and test use.

A trial's lifetimes hang on it as user attributes `lifetime:0`, `lifetime:1`, …, each written when that lifetime ends, so
that a trial which is taken up again goes on where it stood. A running trial belongs to a coordinator that holds a lease;
a trial whose coordinator is gone waits for another one, under its own number: samplers draw by number and order, so an
evolution that was interrupted proposes what it would have proposed without.
"""

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from erl.errors import UserError, nearest
from erl.executors import LocalExecutor
from erl.learners import get_learner
from erl.lifetime import Job, LifetimeRecord, describe
from erl.search import Range
from erl.spec import LifetimeSpec, commit, from_json, to_json, versions
from erl.storage import open_storage, refused, shown, study_names

LEASE_SECONDS = 120.0

# -- a study ----------------------------------------------------------------------------------------------------------


SearchSpace = dict[str, BaseDistribution]
Plan = Callable[[dict[str, Any]], list[LifetimeSpec]]  # from proposed parameters to the lifetimes of the trial


def distributions(space: dict[str, Range]) -> SearchSpace:
    """A search space as Optuna understands it."""
    return {
        name: IntDistribution(int(r.low), int(r.high), log=r.log)
        if r.whole
        else FloatDistribution(float(r.low), float(r.high), log=r.log)
        for name, r in space.items()
    }


def choice(values: Sequence[Any]) -> BaseDistribution:
    """A parameter that is one of these values."""
    return CategoricalDistribution(tuple(values))


def whole(low: int, high: int) -> BaseDistribution:
    """A parameter that is a whole number."""
    return IntDistribution(low, high)


class Sink(Protocol):
    """Where lines and the status go: `cli.Display` is one."""

    def line(self, text: str) -> None:
        """Print a line that stays."""

    def status(self, text: str) -> None:
        """Show how far things are."""

    def close(self) -> None:
        """Take the status away."""


@dataclass
class Taken:
    """A trial in this coordinator's hands.

    Attributes:
        number: Optuna's.
        params: proposed hyperparameters.
        attrs: user attributes.
        specs: its lifetimes.
        records: of the lifetimes that have ended, by their index.
        error: why the trial cannot succeed any more.
    """

    number: int
    trial_id: int
    params: dict[str, Any]
    attrs: dict[str, Any]
    specs: list[LifetimeSpec]
    records: dict[int, LifetimeRecord]
    error: tuple[str, str | None] | None = None


class Study:
    """An Optuna study that stores its whole configuration, and this process's lease on trials in it.

    Args:
        storage: an address, see `open_storage`.
        name: of the study.
        config: what the study is: stored when it is created, compared when it is continued. None loads a study that exists.
        volatile: keys of the configuration that may change between runs.

    Raises:
        UserError: the study exists with another configuration, or does not exist.
    """

    def __init__(
        self, storage: str, name: str, config: dict[str, Any] | None = None, volatile: Iterable[str] = ()
    ) -> None:
        self.address, self.name = storage, name
        self.storage = open_storage(storage, create=config is not None)
        try:
            names = study_names(self.storage)
            if config is None and name not in names:
                has = f"it has {', '.join(sorted(names)[:12])}" if names else "it has no study yet"
                raise UserError(f"no study {name!r} in {shown(storage)}{nearest(name, names, 1)}; {has}")
            if name in names or config is None:
                self.optuna = optuna.load_study(study_name=name, storage=self.storage)
            else:
                self.optuna = optuna.create_study(
                    study_name=name, storage=self.storage, direction="maximize", load_if_exists=True
                )
            if len(self.optuna.directions) > 1:
                raise UserError(f"study {name!r} has several objectives: it was not made by this project")
            self._id = self.storage.get_study_id_from_name(name)
            if config is not None:
                self._settle(config, set(volatile))
        except (SQLAlchemyError, OSError) as e:
            raise refused(storage, e) from None
        self._owner = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None

    def _settle(self, config: dict[str, Any], volatile: set[str]) -> None:
        """Store the configuration of a new study; refuse to continue one that is something else."""
        config = json.loads(json.dumps(to_json(config)))
        stored = self.optuna.user_attrs.get("config")
        if stored is None:
            if self.optuna.get_trials(deepcopy=False):
                raise UserError(
                    f"study {self.name!r} was not made by this project: it stores no configuration; choose another name"
                )
            self.optuna.set_user_attr("config", config)
            self.optuna.set_user_attr("versions", versions())
            self.optuna.set_user_attr("commit", commit())
            return
        differ = [
            f"{k} is {stored.get(k)!r} there and {config.get(k)!r} here"
            for k in sorted(config.keys() | stored.keys())
            if k not in volatile and stored.get(k) != config.get(k)
        ]
        if differ:
            raise UserError(f"study {self.name!r} exists with another configuration: {'; '.join(differ)}; use its flags or another name")  # fmt: skip

    @property
    def config(self) -> dict[str, Any] | None:
        """The stored configuration; None for a study that another program made."""
        return self.optuna.user_attrs.get("config")

    def trials(self, *states: str) -> list[FrozenTrial]:
        """Trials in these of Optuna's states, `WAITING`, `RUNNING`, `COMPLETE` and `FAIL` (all by default), in order."""
        return self.optuna.get_trials(deepcopy=False, states=tuple(TrialState[s] for s in states) or None)

    def finished(self) -> int:
        """How many trials have ended, with a fitness or a failure."""
        return len(self.trials("COMPLETE", "FAIL"))

    def best(self) -> FrozenTrial | None:
        """The trial with the highest fitness; None without any."""
        done = [t for t in self.trials("COMPLETE") if t.value is not None]
        return max(done, key=lambda t: (t.value, -t.number)) if done else None

    @staticmethod
    def lifetimes(trial: FrozenTrial) -> dict[int, LifetimeRecord]:
        """The records of a trial's lifetimes that have ended, by their index."""
        return _records(trial)

    # -- leases --

    def __enter__(self) -> "Study":
        self._renew()
        self._renewer = threading.Thread(target=self._keep_renewing, daemon=True)
        self._renewer.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stop.set()
        if isinstance(error, SQLAlchemyError | optuna.exceptions.StorageInternalError):
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            said = refused(self.address, cause or error)
            raise UserError(
                f"{said}; what had finished before is stored, and the same command goes on from there"
            ) from error

    def _renew(self) -> None:
        self.storage.set_study_user_attr(self._id, f"lease:{self._owner['id']}", time.time() + LEASE_SECONDS)

    def _keep_renewing(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            try:
                self._renew()
            except Exception:  # the database may be back before the lease ends
                continue

    def _is_gone(self, owner: dict[str, Any], leases: dict[str, Any]) -> bool:
        """Whether the coordinator that owns a trial has ended."""
        if owner.get("id") == self._owner["id"]:
            return False
        if owner.get("host") == self._owner["host"]:
            try:
                return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) > 1.0
            except psutil.NoSuchProcess:
                return True
        return float(leases.get(f"lease:{owner.get('id')}", 0.0)) < time.time()

    def reclaim(self) -> list[FrozenTrial]:
        """Let the trials of coordinators that are gone wait for somebody to take them up; all that wait."""
        leases = self.storage.get_study_user_attrs(self._id)
        for trial in self.trials("RUNNING"):
            owner = trial.user_attrs.get("owner")
            if self._is_gone(owner, leases) if owner is not None else _is_old(trial):
                self._release(trial._trial_id)
        return self.trials("WAITING")

    def _release(self, trial_id: int) -> None:
        with suppress(UpdateFinishedTrialError):  # somebody else took it up and ended it
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    # -- taking and ending trials --

    def take_up(
        self, trial: FrozenTrial, plan: Plan, sampler: BaseSampler | None = None, space: SearchSpace | None = None
    ) -> Taken | None:
        """Go on with a waiting trial; the lifetimes that had ended are kept. None if somebody else was faster.

        Args:
            trial: one of those that `reclaim` gives.
            plan: from its parameters to its lifetimes.
            sampler: proposes parameters that it was not given before whoever began it ended.
            space: all its parameters.
        """
        with suppress(UpdateFinishedTrialError):
            if self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                self.storage.set_trial_user_attr(trial._trial_id, "owner", self._owner)
                if sampler is not None:
                    self.optuna.sampler = sampler
                    mine = optuna.Trial(self.optuna, trial._trial_id)
                    for name, distribution in (space or {}).items():
                        _suggest(mine, name, distribution)
                return self._taken(trial._trial_id, plan)
        return None

    def create(self, params: dict[str, Any], space: SearchSpace, plan: Plan) -> Taken:
        """Begin a trial with given parameters."""
        template = create_trial(
            state=TrialState.RUNNING, params=params, distributions=space, user_attrs={"owner": self._owner}
        )
        return self._taken(self.storage.create_new_trial(self._id, template_trial=template), plan)

    def propose(
        self,
        new: int,
        sampler: BaseSampler,
        space: SearchSpace,
        plan: Plan,
        generation: int,
        limit: int,
    ) -> list[Taken]:
        """Begin new trials of a generation, all before any of them is known.

        Where several coordinators begin trials at once, some get numbers of `limit` or more: those wait, and count for
        nothing until the study is made longer.
        """
        self.optuna.sampler = sampler
        taken = []
        for _ in range(new):
            trial = self.optuna.ask()
            if trial.number >= limit:
                self._release(trial._trial_id)
                break
            trial.set_user_attr("owner", self._owner)
            trial.set_user_attr("generation", generation)
            for name, distribution in space.items():
                _suggest(trial, name, distribution)
            taken.append(self._taken(trial._trial_id, plan))
        return taken

    def _taken(self, trial_id: int, plan: Plan) -> Taken:
        trial = self.storage.get_trial(trial_id)
        return Taken(
            number=trial.number,
            trial_id=trial_id,
            params=trial.params,
            attrs=trial.user_attrs,
            specs=plan(trial.params),
            records={i: r for i, r in _records(trial).items() if r.error is None},
        )

    def _note(self, taken: Taken, index: int, record: LifetimeRecord) -> None:
        taken.records[index] = record
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(taken.trial_id, f"lifetime:{index}", to_json(record))
        if record.error is not None and taken.error is None:
            taken.error = (f"lifetime {index}: {record.error}", record.traceback)

    def _end(self, taken: Taken, score: Callable[[LifetimeRecord], float] | None) -> float | None:
        """Tell a trial whose lifetimes have all ended; its fitness, None if it failed."""
        value = None
        if taken.error is None:
            records = [taken.records[i] for i in range(len(taken.specs))]
            value = float(np.mean([r.fitness if score is None else score(r) for r in records]))
        # This coordinator may have been taken for dead, and the trial ended by another: with the same result.
        with suppress(UpdateFinishedTrialError):
            if value is not None:
                self.storage.set_trial_state_values(taken.trial_id, TrialState.COMPLETE, [value])
            elif taken.error is not None:
                reason, trace = taken.error
                self.storage.set_trial_user_attr(taken.trial_id, "error", {"reason": reason, "traceback": trace})
                self.storage.set_trial_state_values(taken.trial_id, TrialState.FAIL)
        return value

    def run(
        self,
        trials: Sequence[Taken],
        executor: LocalExecutor,
        make_job: Callable[[Sequence[tuple[Taken, int]]], Job],
        on_end: Callable[[Taken, float | None], Any],
        on_tick: Callable[[int], Any],
        score: Callable[[LifetimeRecord], float] | None = None,
    ) -> None:
        """Live the lifetimes of these trials, and tell each trial when its last lifetime has ended.

        Args:
            trials: taken or proposed.
            executor: where.
            make_job: builds a job from (trial, index of the lifetime) pairs that may be trained side by side.
            on_end: called with a trial and its fitness (None: it failed).
            on_tick: called from time to time with the environment steps taken so far in this call.
            score: what a lifetime contributes to its trial's fitness, their mean; by default its own fitness.

        A KeyboardInterrupt leaves finished trials told and the others waiting, to be taken up by the next run.
        """
        open_trials = {t.trial_id: t for t in trials}
        try:
            for taken in trials:
                if len(taken.records) == len(taken.specs):
                    on_end(open_trials.pop(taken.trial_id), self._end(taken, score))
            groups = _group(list(open_trials.values()), executor.workers)
            jobs = [make_job(group) for group in groups]
            for result in executor.run(jobs, lambda steps: on_tick(int(steps.sum()))):
                for k, (taken, index) in enumerate(groups[result.index]):
                    if result.records is not None:
                        self._note(taken, index, result.records[k])
                        if result.records[k].error is None:  # what failed may be mended and taken up again
                            _forget_checkpoint(jobs[result.index], k)
                    else:
                        assert result.error is not None
                        taken.records[index] = _no_record(taken.specs[index], result.error)
                        taken.error = taken.error or (describe(result.error), None)
                    if taken.trial_id in open_trials and len(taken.records) == len(taken.specs):
                        on_end(open_trials.pop(taken.trial_id), self._end(taken, score))
        except BaseException:
            executor.close()
            for trial_id in open_trials:
                with suppress(Exception):  # the storage itself may be what failed; its lease will tell
                    self._release(trial_id)
            raise


def _is_old(trial: FrozenTrial) -> bool:
    """Whether a trial without an owner was begun so long ago that whoever began it has ended."""
    begun = trial.datetime_start
    return begun is None or (datetime.now() - begun).total_seconds() > LEASE_SECONDS


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case _:
            raise ValueError(f"no parameter is proposed from a {type(distribution).__name__}")


def _forget_checkpoint(job: Job, k: int) -> None:
    """A lifetime whose record is stored needs its checkpoint no more."""
    checkpoint = job.outputs[k].checkpoint if job.outputs else None
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
        shutil.rmtree(f"{checkpoint}.buffer", ignore_errors=True)


def _no_record(spec: LifetimeSpec, error: Exception) -> LifetimeRecord:
    return LifetimeRecord(spec, None, None, 0, 0, 0, 0.0, error=describe(error))


def _records(trial: FrozenTrial) -> dict[int, LifetimeRecord]:
    return {
        int(key.partition(":")[2]): from_json(LifetimeRecord, value)
        for key, value in trial.user_attrs.items()
        if key.startswith("lifetime:")
    }


def _group(trials: Sequence[Taken], workers: int) -> list[list[tuple[Taken, int]]]:
    """Lifetimes that have not ended, as jobs: cohorts spread evenly over the workers, or each on its own."""
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
        groups += [[members[i] for i in part] for part in np.array_split(np.arange(len(members)), n)]
    return groups


# -- reading ----------------------------------------------------------------------------------------------------------


def records(storage: str, name: str) -> pd.DataFrame:
    """Every lifetime of a study, one row each.

    Returns:
        Columns: `trial`, `state`, `lifetime`, the trial's parameters, `fitness`, `training_return`, `final_return`,
        `episodes`, `steps`, `seconds`, `curve` (list of (steps, return)), `note`, `error`, `env_id`, `learner`, and the seeds.
    """
    rows = []
    for trial in Study(storage, name).trials():
        for index, record in sorted(_records(trial).items()):
            rows.append(
                {
                    "trial": trial.number,
                    "state": trial.state.name,
                    "lifetime": index,
                    **trial.params,
                    "fitness": record.fitness,
                    "training_return": record.training_return,
                    "final_return": float(np.mean(record.final_returns)) if record.final_returns else None,
                    "episodes": record.episodes,
                    "steps": record.steps,
                    "seconds": record.seconds,
                    "curve": record.curve,
                    "note": record.note,
                    "error": record.error,
                    "env_id": record.spec.task.env_id,
                    "learner": record.spec.learner.name,
                    **{f"seed_{k}": v for k, v in to_json(record.spec.seeds).items()},
                }
            )
    return pd.DataFrame(rows)
