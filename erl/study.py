"""The study database: opening any Optuna storage, studies that know their configuration, leases of running trials, and
the trial loop that both evolution and test use.

A trial's lifetimes hang on it as user attributes `lifetime:0`, `lifetime:1`, …, each written when that lifetime ends, so
that a trial which is taken up again goes on where it stood. A running trial belongs to a coordinator that holds a lease;
a trial whose coordinator is gone is marked failed (`lost`) and its parameters are proposed again as a new trial.
"""

import json
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from erl.errors import UserError, nearest
from erl.executors import LocalExecutor
from erl.learners import get_learner
from erl.lifetime import Job, LifetimeRecord, commit, describe, versions
from erl.spec import LifetimeSpec, from_json, to_json

DEFAULT_STORAGE = "sqlite:///studies.db"
LEASE_SECONDS = 120.0

optuna.logging.set_verbosity(optuna.logging.WARNING)


# -- storage ----------------------------------------------------------------------------------------------------------


def shown(storage: str) -> str:
    """A storage address fit for output and records: without its password."""
    try:
        return make_url(storage).render_as_string(hide_password=True) if "://" in storage else storage
    except SQLAlchemyError:
        return "***"


def _refused(storage: str, error: BaseException) -> UserError:
    """Why a storage cannot be used, without its password."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    try:
        password = make_url(storage).password
    except SQLAlchemyError:
        password = None
    if password:
        text = text.replace(password, "***")
    return UserError(f"cannot use the storage {shown(storage)}: {text or type(error).__name__}")


def _check_sqlite(storage: str, create: bool) -> None:
    """Refuse a file that is missing (unless it may be created), no SQLite database, or another program's."""
    name = make_url(storage).database
    if not name or name == ":memory:":
        raise UserError(f"{shown(storage)} lives in memory only; name a file, as in {DEFAULT_STORAGE}")
    path = Path(name)
    if not path.exists():
        if not create:
            raise UserError(f"there is no study database {path}")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"cannot create the study database {path}: its folder does not exist or is not writable")
        return
    if create and not os.access(path, os.W_OK):
        raise UserError(f"the study database {path} is not writable")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error as e:
        raise UserError(f"{path} is not a study database: {e}") from e
    if tables and not {"studies", "trials", "version_info"} <= tables:
        raise UserError(f"{path} is another program's database (tables {', '.join(sorted(tables)[:4])}), not a study database")  # fmt: skip


def open_storage(storage: str, create: bool = False) -> BaseStorage:
    """Open a study database.

    Args:
        storage: any Optuna address: `sqlite:///file`, `postgresql+psycopg://…`, `mysql+pymysql://…`, `grpc://host:port`,
            or the path of a journal file (`journal:path` or `*.log`).
        create: whether a missing file is created.

    Raises:
        UserError: it cannot be used; the message has no password.
    """
    try:
        if storage.startswith("journal:") or storage.endswith(".log"):
            path = Path(storage.removeprefix("journal:"))
            if not path.exists() and not create:
                raise UserError(f"there is no journal file {path}")
            if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
                raise UserError(f"cannot write the journal file {path}")
            return JournalStorage(JournalFileBackend(str(path)))
        if storage.startswith("grpc://"):
            from optuna.storages import GrpcStorageProxy

            host, _, port = storage.removeprefix("grpc://").rstrip("/").partition(":")
            if not port.isdigit():
                raise UserError(f"{storage} needs a port, as in grpc://localhost:13000")
            return GrpcStorageProxy(host=host, port=int(port))
        if "://" not in storage:
            raise UserError(f"{storage!r} is no storage address; sqlite:///{storage} would be one")
        sqlite = make_url(storage).get_backend_name() == "sqlite"
        if sqlite:
            _check_sqlite(storage, create)
        # SQLite's writers wait for one another; a server's connections are tested before use.
        settings: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
        return RDBStorage(storage, engine_kwargs=settings, skip_compatibility_check=False)
    except UserError:
        raise
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError, sqlite3.Error, json.JSONDecodeError) as e:
        raise _refused(storage, e) from None


def study_names(storage: BaseStorage) -> list[str]:
    """Names of all studies, the newest last."""
    return [s.study_name for s in storage.get_all_studies()]


# -- a study ----------------------------------------------------------------------------------------------------------


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
            self._id = self.storage.get_study_id_from_name(name)
            if config is not None:
                self._settle(config, set(volatile))
        except (SQLAlchemyError, OSError) as e:
            raise _refused(storage, e) from None
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
            raise UserError(f"study {self.name!r} exists with another configuration: {'; '.join(differ)}; choose another --h_test")  # fmt: skip

    @property
    def config(self) -> dict[str, Any] | None:
        """The stored configuration; None for a study that another program made."""
        return self.optuna.user_attrs.get("config")

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in these states (all by default), in order."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def counted(self) -> list[FrozenTrial]:
        """Trials that count towards a number of trials: all but those that were lost and are proposed again."""
        return [t for t in self.trials() if not t.user_attrs.get("lost")]

    def best(self) -> FrozenTrial | None:
        """The trial with the highest fitness; None without any."""
        done = [t for t in self.trials(TrialState.COMPLETE) if t.value is not None]
        return max(done, key=lambda t: (t.value, -t.number)) if done else None

    # -- leases --

    def __enter__(self) -> "Study":
        self._renew()
        self._renewer = threading.Thread(target=self._keep_renewing, daemon=True)
        self._renewer.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()

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

    def reclaim(self) -> int:
        """Mark the trials of coordinators that are gone as lost; how many."""
        leases = self.storage.get_study_user_attrs(self._id)
        found = 0
        for trial in self.trials(TrialState.RUNNING):
            owner = trial.user_attrs.get("owner")
            if owner is not None and self._is_gone(owner, leases):
                found += self._lose(trial._trial_id)
        return found

    def _lose(self, trial_id: int) -> bool:
        """Mark a running trial as lost, so that it is proposed again; False if somebody else ended it first."""
        try:
            self.storage.set_trial_user_attr(trial_id, "lost", True)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True

    def orphans(self) -> list[FrozenTrial]:
        """Lost trials that nobody has taken up again."""
        trials = self.trials()
        taken_up = {t.user_attrs.get("continues") for t in trials}
        return [t for t in trials if t.user_attrs.get("lost") and t.number not in taken_up]

    # -- taking and ending trials --

    def take_up(self, lost: FrozenTrial, plan: Callable[[dict[str, Any], dict[str, Any]], list[LifetimeSpec]]) -> Taken:
        """Go on with a lost trial under a new number: same parameters, and the lifetimes that had ended are kept."""
        attrs = {k: v for k, v in lost.user_attrs.items() if k not in ("lost", "owner")}
        attrs |= {"continues": lost.number, "owner": self._owner}
        template = create_trial(
            state=TrialState.RUNNING,
            params=lost.params,
            distributions=lost.distributions,
            user_attrs=attrs,
            system_attrs=lost.system_attrs,
        )
        return self._taken(self.storage.create_new_trial(self._id, template_trial=template), plan)

    def create(
        self,
        params: dict[str, Any],
        distributions: dict[str, BaseDistribution],
        plan: Callable[[dict[str, Any], dict[str, Any]], list[LifetimeSpec]],
        **attrs: Any,
    ) -> Taken:
        """Begin a trial with given parameters."""
        template = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=distributions,
            user_attrs={**attrs, "owner": self._owner},
        )
        return self._taken(self.storage.create_new_trial(self._id, template_trial=template), plan)

    def propose(
        self,
        n: int,
        sampler: BaseSampler,
        space: dict[str, BaseDistribution],
        plan: Callable[[dict[str, Any], dict[str, Any]], list[LifetimeSpec]],
        **attrs: Any,
    ) -> list[Taken]:
        """Begin `n` trials with parameters that the sampler proposes, all before any of them is known."""
        self.optuna.sampler = sampler
        taken = []
        for _ in range(n):
            trial = self.optuna.ask()
            trial.set_user_attr("owner", self._owner)
            for key, value in attrs.items():
                trial.set_user_attr(key, value)
            for name, distribution in space.items():
                _suggest(trial, name, distribution)
            taken.append(self._taken(trial._trial_id, plan))
        return taken

    def _taken(self, trial_id: int, plan: Callable[[dict[str, Any], dict[str, Any]], list[LifetimeSpec]]) -> Taken:
        trial = self.storage.get_trial(trial_id)
        return Taken(
            number=trial.number,
            trial_id=trial_id,
            params=trial.params,
            attrs=trial.user_attrs,
            specs=plan(trial.params, trial.user_attrs),
            records={i: r for i, r in _records(trial).items() if r.error is None},
        )

    def _note(self, taken: Taken, index: int, record: LifetimeRecord) -> None:
        taken.records[index] = record
        self.storage.set_trial_user_attr(taken.trial_id, f"lifetime:{index}", to_json(record))
        if record.error is not None and taken.error is None:
            taken.error = (f"lifetime {index}: {record.error}", record.traceback)

    def _end(self, taken: Taken) -> float | None:
        """Tell a trial whose lifetimes have all ended; its fitness, None if it failed."""
        value = None
        if taken.error is None:
            value = float(np.mean([taken.records[i].fitness for i in range(len(taken.specs))]))  # type: ignore[arg-type]
            self.storage.set_trial_state_values(taken.trial_id, TrialState.COMPLETE, [value])
        else:
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
    ) -> None:
        """Live the lifetimes of these trials, and tell each trial when its last lifetime has ended.

        Args:
            trials: taken or proposed.
            executor: where.
            make_job: builds a job from (trial, index of the lifetime) pairs that may be trained side by side.
            on_end: called with a trial and its fitness (None: it failed).
            on_tick: called from time to time with the environment steps taken so far in this call.

        A KeyboardInterrupt leaves finished trials told and the others marked as lost, to be taken up by the next run.
        """
        open_trials = {t.trial_id: t for t in trials}
        try:
            for taken in trials:
                if len(taken.records) == len(taken.specs):
                    on_end(open_trials.pop(taken.trial_id), self._end(taken))
            groups = _group(list(open_trials.values()), executor.workers)
            for result in executor.run([make_job(g) for g in groups], lambda steps: on_tick(int(steps.sum()))):
                for k, (taken, index) in enumerate(groups[result.index]):
                    if result.records is not None:
                        self._note(taken, index, result.records[k])
                    elif taken.error is None:
                        assert result.error is not None
                        taken.error = (describe(result.error), None)
                        taken.records.setdefault(index, _no_record(taken.specs[index], result.error))
                    if taken.trial_id in open_trials and len(taken.records) == len(taken.specs):
                        on_end(open_trials.pop(taken.trial_id), self._end(taken))
        except BaseException:
            executor.close()
            for trial_id in open_trials:
                self._lose(trial_id)
            raise


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
    cohorts: dict[Any, list[tuple[Taken, int]]] = {}
    for taken in trials:
        for index, spec in enumerate(taken.specs):
            if index not in taken.records:
                key = get_learner(spec.learner.name, spec.learner.engine).cohort_key(spec)
                cohorts.setdefault((taken.trial_id, index) if key is None else (key,), []).append((taken, index))
    groups: list[list[tuple[Taken, int]]] = []
    for key, members in cohorts.items():
        n = 1 if len(key) == 2 else min(workers, len(members))
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
