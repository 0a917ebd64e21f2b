"""The study database: studies that store their configuration, and trials that this process holds.

The records of a trial's lifetimes are its system attributes `lifetime:0`, `lifetime:1`, …. Each is
written when that lifetime ends, so a trial that is continued lives only the lifetimes that are
missing. A running trial belongs to a coordinator with a lease. When the coordinator is gone, the
trial waits for another one and keeps its number. Samplers draw by number and order, so an
interrupted evolution proposes what it would have proposed without the interruption.
"""

import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from erl.cli import this_command
from erl.errors import UserError, nearest, one_line
from erl.lifetimes.record import LifetimeRecord
from erl.search.pruning import Comparison, Pruned
from erl.search.samplers import note_end
from erl.studies import leases
from erl.studies.artefacts import attach
from erl.studies.configuration import StudyConfig, differences, from_stored, to_stored
from erl.studies.distributions import SearchSpace
from erl.studies.following import UID, FollowingStorage
from erl.studies.notes import study_note, trial_note, write_note
from erl.studies.retries import MOMENT_SECONDS, OUTAGE_SECONDS
from erl.studies.storage import (
    GoneError,
    MissingError,
    StorageError,
    names_text,
    open_storage,
    refused,
    shown,
    study_names,
)
from erl.studies.trials import (
    Plan,
    RunningTrial,
    attribute,
    key_of,
    lifetime_records,
    record_attributes,
    stored_records,
    tried_again,
)
from erl.worlds.specification import code_of, commit, to_json, versions

METRIC = "fitness"  # what the value of a trial is called
COMMAND = "command"  # user attribute of a study: the command that began it
CODE = "code"  # user attribute of a study: digests of the user's modules that it names
TRACKED = "track:"  # system attributes of a study that name its runs in other services
LOST = "lost:"  # system attributes of a trial: coordinators that ended without giving it back
COPY = "copy"  # system attribute of a study that was copied: `incomplete`, then `whole`

# A process that created a study stores its configuration at once.
SETTLE_SECONDS = 5.0


class Study:
    """An Optuna study that stores its whole configuration, and trials that this process holds.

    Args:
        storage: an address, see `open_storage`.
        name: of the study.
        config: what the study is: stored when it is created, compared when it is continued. None
            loads a study that exists.

    Attributes:
        lease: this coordinator's.

    Raises:
        UserError: the study exists with another configuration, or does not exist.
    """

    def __init__(self, storage: str, name: str, config: StudyConfig | None = None) -> None:
        self.address, self.name = storage, name
        self._latest_name = name
        self.storage = FollowingStorage(open_storage(storage, create=config is not None))
        self.storage.retry_seconds = MOMENT_SECONDS  # it answers; other processes may lock it
        try:
            names = study_names(self.storage)
            if config is None and name not in names:
                raise MissingError(
                    f"no study {name!r} in {shown(storage)}{nearest(name, names, 1)}; it "
                    f"{names_text(names)}"
                )
            created = name not in names and self._create(name)
            self.optuna = optuna.load_study(study_name=name, storage=self.storage)
            if len(self.optuna.directions) > 1:
                raise UserError(
                    f"study {name!r} has several objectives: it was not made by this project"
                )
            self._id = self.storage.get_study_id_from_name(name)
            if (there := self.storage.get_study_name_from_id(self._id)) != name:
                raise UserError(  # as MySQL does
                    f"the database takes {name!r} for its study {there!r}, since it does not tell "
                    f"capital letters apart: choose another name"
                )
            if self.storage.get_study_system_attrs(self._id).get(COPY) == "incomplete":
                raise UserError(
                    f"study {name!r} is an incomplete copy: copy it again, with --overwrite"
                )
            if config is not None:
                self._settle(config, created)
        except (SQLAlchemyError, StorageInternalError, OSError) as e:
            raise refused(storage, e) from None
        self.storage.follow(self._id, name, self.optuna.user_attrs.get(UID))
        self._asked = config
        self.lease = leases.Lease(self.storage, self._id)
        self._held: set[int] = set()  # ids of the trials that this coordinator holds
        self._records: dict[int, dict[int, LifetimeRecord]] = {}  # of open trials, as stored

    def check_same(self, config: StudyConfig) -> None:
        """Refuse this study for a command that would continue it with `config`. Nothing is written.

        Raises:
            UserError: it has another configuration, was not made by this project, or is minimised.
        """
        self.check_maximised()
        if self.stored is not None:
            self._compare(config)
        elif self.optuna.get_trials(deepcopy=False):
            raise UserError(
                f"study {self.name!r} was not made by this project: it stores no "
                f"configuration; choose another name with --h_test, without --study"
            )

    def check_maximised(self) -> None:
        """Refuse a study that is minimised: its best trial would be the worst.

        Raises:
            UserError: it is.
        """
        if self.optuna.direction.name != "MAXIMIZE":
            raise UserError(
                f"study {self.name!r} is minimised, which is Optuna's default for a study that was "
                f"made by hand; returns are maximised here: make it with direction='maximize', or "
                f"choose another study"
            )

    def _create(self, name: str) -> bool:
        """Create the study, unless another process is faster: whether it was this one."""
        try:
            self.storage.create_new_study([StudyDirection.MAXIMIZE], name)
        except DuplicatedStudyError:
            return False
        return True

    def _settle(self, config: StudyConfig, created: bool) -> None:
        """Store the configuration of a new study; refuse a study with another configuration.

        Of several processes at once, the one that created the study stores its configuration, and
        the others compare theirs with it.
        """
        if not created:
            end = time.monotonic() + SETTLE_SECONDS
            while self.stored is None and time.monotonic() < end:
                if self.optuna.get_trials(deepcopy=False):
                    break
                time.sleep(0.05)
        self.check_same(config)
        if self.stored is None:  # this process made it; or its creator was killed, or a hand did
            # Before what other processes wait for: they take the same. A new study that has name
            # and number of a deleted one is another one.
            if created:
                self.optuna.set_user_attr(UID, uuid.uuid4().hex)
            self.known_by()
            self.optuna.set_user_attr("config", to_stored(config))
            self.optuna.set_user_attr("versions", versions())
            self.optuna.set_user_attr("commit", commit())
            self.optuna.set_user_attr(CODE, code_of(to_stored(config)))
            if (command := this_command()) is not None:
                self.optuna.set_user_attr(COMMAND, command)

    def _compare(self, config: StudyConfig) -> None:
        """Refuse a configuration that is not the stored one."""
        differ = differences(from_stored(self.stored), from_stored(to_stored(config)))
        if differ:
            other = "another name with --h_test, without --study"
            if config.kind == "test":  # its name comes from the evolution's
                other = "another database and folder with --results_storage and --models"
            command = self.optuna.user_attrs.get(COMMAND)
            begun = f"; it was begun by: {command}" if command else ""
            raise UserError(
                f"study {self.name!r} exists with another configuration: {'; '.join(differ)}; "
                f"use its flags, or {other}{begun}"
            )

    @property
    def stored(self) -> dict[str, Any] | None:
        """The configuration as it is stored; None for a study that another program made."""
        return self.optuna.user_attrs.get("config")

    @property
    def config(self) -> StudyConfig | None:
        """The configuration; None for a study that another program made.

        Raises:
            UserError: it cannot be read.
        """
        stored = self.stored
        return None if stored is None else from_stored(stored)

    def trials(self, *states: str) -> list[FrozenTrial]:
        """Trials in these of Optuna's states, `WAITING`, `RUNNING`, `COMPLETE`, `PRUNED` and `FAIL`
        (all by default), in order.
        """
        return self.optuna.get_trials(
            deepcopy=False, states=tuple(TrialState[s] for s in states) or None
        )

    def open(self) -> int:
        """How many trials run or wait."""
        return len(self.trials("RUNNING", "WAITING"))

    def finished(self) -> int:
        """How many trials have ended: with a fitness, pruned, or with a failure. Failed trials that
        are tried again do not count.
        """
        again = self.tried_again() | {t.number for t in self.failed_alone()}
        return sum(t.number not in again for t in self.trials("COMPLETE", "PRUNED", "FAIL"))

    def failed_alone(self) -> list[FrozenTrial]:
        """Failed trials that are tried again when the command is run again: those of a study in
        which every trial failed. The user has probably repaired what was wrong.
        """
        trials = self.trials()
        if any(t.state != TrialState.FAIL for t in trials):
            return []
        again = self.tried_again()
        return [t for t in trials if t.number not in again]

    def tried_again(self) -> set[int]:
        """Numbers of failed trials that another trial replaces."""
        return tried_again(self.trials())

    def name_now(self) -> str:
        """Its name, which may have been changed since it was opened."""
        self._latest_name = self.storage.name_now() or self.name
        return self._latest_name

    @property
    def again(self) -> str:
        """How the command that works on it is continued, in words, from what `name_now` gave last:
        the storage may be away. Commands of finals and tests name another study.
        """
        asked = self._asked
        if self._latest_name == self.name or asked is None or asked.kind in ("finals", "test"):
            return "run the same command again to continue"
        return f"run the command again with --study {quote(self._latest_name)} to continue"

    def known_by(self) -> str:
        """What it is known by, whatever it is called; stored when it is first asked for."""
        if UID not in self.optuna.user_attrs:
            # Several coordinators may find none at once, and shall store the same.
            made = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.name} {self._id}")
            self.optuna.set_user_attr(UID, made.hex)
        return self.optuna.user_attrs[UID]

    def best(self) -> FrozenTrial | None:
        """The trial with the highest fitness, none that was pruned; None without any."""
        done = [t for t in self.trials("COMPLETE") if t.value is not None]
        return max(done, key=lambda t: (t.value, -t.number)) if done else None

    # -- leases --

    def __enter__(self) -> "Study":
        self.storage.retry_seconds = OUTAGE_SECONDS
        self.storage.follow(self._id, self.name, self.known_by(), self._renamed)
        if self._asked is not None and self.stored is not None:
            self._compare(self._asked)  # another process may have stored its own at the same time
        self._name_metric()
        self.lease.start()
        return self

    def _renamed(self) -> None:
        """Write again what may have been lost while the study was renamed."""
        self._name_metric()
        for trial_id, records in list(self._records.items()):
            for index, record in list(records.items()):
                self.store_record(trial_id, index, record)

    def _name_metric(self) -> None:
        """Say what the values of trials are."""
        if self.optuna.metric_names is None:
            with warnings.catch_warnings(action="ignore"):  # that it is experimental
                self.optuna.set_metric_names([METRIC])

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self.storage.stop_retrying()
        self.lease.stop()
        for trial_id in list(self._held):
            with suppress(Exception):  # if the storage is what failed, the lease ends by itself
                self._release(trial_id, self.lease.owner)
        if isinstance(error, SQLAlchemyError | StorageInternalError):
            error = refused(self.address, error)
        if isinstance(error, GoneError):
            raise error
        if isinstance(error, StorageError):
            raise UserError(f"{error}; finished lifetimes are stored; {self.again}")

    def others_run(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether one of these trials is run by another coordinator, as far as is known."""
        return any(
            t.state == TrialState.RUNNING
            and not self._holds(t)
            and self._owner_lives(t) is not False
            for t in trials
        )

    def coordinators(self) -> int:
        """How many coordinators run trials now, this one included."""
        others = {
            owner.get("id")
            for t in self.trials("RUNNING")
            if not self._holds(t) and (owner := attribute(t, "owner")) is not None
        }
        return 1 + len(others)

    def _holds(self, trial: FrozenTrial) -> bool:
        """Whether this coordinator runs a trial."""
        return trial._trial_id in map(self.storage.id_now, self._held)

    def _owner_lives(self, trial: FrozenTrial) -> bool | None:
        """Whether the coordinator of a running trial is alive; None while that is not known."""
        return self.lease.owner_lives(trial, self._holds(trial))

    def reclaim(self, max_retries: int = 2) -> list[FrozenTrial]:
        """Set the trials of coordinators that are gone to waiting.

        Args:
            max_retries: how often a trial may be lost with its coordinator before it fails.

        Returns:
            All trials that wait.
        """
        self.lease.look()
        for trial in self.trials("RUNNING"):
            if self._owner_lives(trial) is False:
                owner = attribute(trial, "owner")
                # A trial without a coordinator was not lost: the storage's answer was, or the
                # coordinator ended while it took the trial up.
                lost = (
                    owner is not None
                    and not owner.get("let_go")
                    and owner.get("id") != self.lease.owner["id"]
                )
                self._release(trial._trial_id, owner, max_retries if lost else None)
        return self.trials("WAITING")

    def in_doubt(self) -> bool:
        """Whether there are running trials of which it is not known that their coordinators are
        alive. If so, this waits a moment first.

        One that is known to be gone was not when `reclaim` looked. Its trial is to be taken up.
        """
        doubt = any(self._owner_lives(t) is not True for t in self.trials("RUNNING"))
        if doubt:
            self.pause()
        return doubt

    def pause(self) -> None:
        """Wait a moment for other coordinators."""
        self.lease.wait(min(1.0, leases.LEASE_SECONDS / 8))

    def _release(
        self, trial_id: int, owner: dict[str, Any] | None, max_retries: int | None = None
    ) -> None:
        """Set a trial to waiting, unless it belongs to another owner by now.

        With `max_retries` it was lost with its coordinator, which is counted.
        """
        self._held.discard(trial_id)
        with suppress(UpdateFinishedTrialError):  # another coordinator took it up and ended it
            trial = self.storage.get_trial(trial_id)
            if trial.state != TrialState.RUNNING or attribute(trial, "owner") != owner:
                return
            if max_retries is not None:
                # Several coordinators may see the same loss: it is noted under the owner's id.
                self.storage.set_trial_system_attr(
                    trial_id, f"{LOST}{(owner or {}).get('id')}", True
                )
                attrs = self.storage.get_trial(trial_id).system_attrs
                lost = sum(key.startswith(LOST) for key in attrs)
                self.storage.set_trial_user_attr(trial_id, "lost", lost)
                if lost > max_retries:
                    reason = (
                        f"lost {lost} times: the process that ran it ended "
                        "(killed, out of memory, or its machine went down)"
                    )
                    self.storage.set_trial_system_attr(
                        trial_id, "error", {"reason": reason, "traceback": None}
                    )
                    self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                    return
            # If this process ends between these two lines, others see that its owner has ended.
            self.storage.set_trial_system_attr(
                trial_id, "owner", {**self.lease.owner, "let_go": True}
            )
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    # -- taking and ending trials --

    def take_up(
        self,
        trial: FrozenTrial,
        plan: Plan,
        sampler: BaseSampler | None = None,
        space: SearchSpace | None = None,
    ) -> RunningTrial | None:
        """Continue a waiting trial; the lifetimes that had ended are kept. None if another
        coordinator was faster.

        Args:
            trial: one of those that `reclaim` gives.
            plan: from its parameters to its lifetimes.
            sampler: proposes parameters that the trial does not have yet.
            space: all its parameters.
        """
        with suppress(UpdateFinishedTrialError):
            if self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                self._held.add(trial._trial_id)
                self.storage.set_trial_system_attr(trial._trial_id, "owner", self.lease.owner)
                if sampler is not None:
                    self._sample(trial._trial_id, sampler, space or {})
                return self._in_hand(trial._trial_id, plan)
        return None

    def create(
        self,
        params: dict[str, Any],
        space: SearchSpace,
        plan: Plan,
        attrs: dict[str, Any] | None = None,
    ) -> RunningTrial:
        """Begin a trial with given parameters, and user attributes beside them."""
        named = {name: space[name] for name in params}
        return self._in_hand(self._begin(attrs or {}, params, named), plan)

    def retry(
        self, failed: FrozenTrial, plan: Plan, sampler: BaseSampler, space: SearchSpace
    ) -> RunningTrial:
        """Begin a trial that replaces a failed one: with its parameters, and the records of its
        lifetimes that had succeeded.
        """
        kept = {i: r for i, r in stored_records(failed).items() if r["error"] is None}
        attrs = {"generation": failed.user_attrs.get("generation", 0), "retry_of": failed.number}
        trial_id = self._begin(attrs, failed.params, failed.distributions, kept)
        self._sample(trial_id, sampler, space)
        return self._in_hand(trial_id, plan)

    def propose(
        self,
        new: int,
        sampler: BaseSampler,
        space: SearchSpace,
        plan: Plan,
        generation: int,
        limit: int,
    ) -> list[RunningTrial]:
        """Begin new trials of a generation, before the result of any of them is known.

        If several coordinators begin trials at once, some get numbers of `limit` or more. Those
        wait, and do not count until the study is made longer.
        """
        trials = []
        for _ in range(new):
            trial_id = self._begin({"generation": generation})
            if self.storage.get_trial(trial_id).number >= limit:
                self._release(trial_id, self.lease.owner)
                break
            self._sample(trial_id, sampler, space)
            trials.append(self._in_hand(trial_id, plan))
        return trials

    def withdraw(self, trial: RunningTrial) -> None:
        """Withdraw a trial because another coordinator began the same one at the same moment. It
        does not count.
        """
        self.storage.set_trial_state_values(trial.trial_id, TrialState.PRUNED)
        self._held.discard(trial.trial_id)

    def first(self) -> dict[str, int]:
        """The number of the one trial that counts for each set of parameters, failed ones aside."""
        first = {
            key_of(t.params): t.number
            for t in reversed(self.trials("COMPLETE", "RUNNING", "WAITING"))
        }
        return first | {key_of(t.params): t.number for t in reversed(self.trials("COMPLETE"))}

    def _begin(
        self,
        attrs: dict[str, Any],
        params: Any = None,
        space: SearchSpace | None = None,
        records: Mapping[int, Any] = MappingProxyType({}),
    ) -> int:
        """A new trial that is this coordinator's from its first moment; its id."""
        template = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=space,
            user_attrs=attrs,
            system_attrs={
                "owner": self.lease.owner,
                **{
                    key: value
                    for index, record in records.items()
                    for key, value in record_attributes(index, record).items()
                },
            },
        )
        trial_id = self.storage.create_new_trial(self._id, template_trial=template)
        self._held.add(trial_id)
        return trial_id

    def _sample(self, trial_id: int, sampler: BaseSampler, space: SearchSpace) -> None:
        """Let a trial have those parameters that it has not."""
        # Optuna's study remembers the trials that it saw, and this one shall see all that have
        # finished.
        study = optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler)
        trial = optuna.Trial(study, self.storage.id_now(trial_id))
        for name, distribution in space.items():
            trial._suggest(name, distribution)  # as Optuna's `Study.ask` does

    def _in_hand(self, trial_id: int, plan: Plan) -> RunningTrial:
        trial = self.storage.get_trial(trial_id)
        return RunningTrial(
            number=trial.number,
            trial_id=trial_id,
            params=trial.params,
            attrs=trial.user_attrs,
            specs=plan(trial.params),
            records={i: r for i, r in lifetime_records(trial).items() if r.error is None},
            pruned=Pruned(**trial.user_attrs["pruned"]) if "pruned" in trial.user_attrs else None,
        )

    # -- writing: these write to the storage and change nothing else, in whatever thread --

    def store_record(self, trial_id: int, index: int, record: LifetimeRecord) -> None:
        """Store a lifetime's record."""
        with suppress(UpdateFinishedTrialError):
            self._records.setdefault(trial_id, {})[index] = record
            for key, value in record_attributes(index, to_json(record)).items():
                self.storage.set_trial_system_attr(trial_id, key, value)

    def store_comparison(self, trial_id: int, comparison: Comparison) -> None:
        """Store what a compared trial has reached, and that it is pruned.

        It is written before the records of the lifetimes that it stops, so that a coordinator which
        continues the trial knows that it is pruned.
        """
        with suppress(UpdateFinishedTrialError):
            for point, value in comparison.values.items():
                self.storage.set_trial_intermediate_value(trial_id, point, value)
            for key, note in comparison.notes.items():
                self.storage.set_trial_system_attr(trial_id, key, note)
            if comparison.pruned is not None:
                self.storage.set_trial_user_attr(trial_id, "pruned", to_json(comparison.pruned))

    def store_end(self, trial_id: int, state: str, value: float | None, error: Any = None) -> None:
        """End a trial.

        Args:
            trial_id: of the trial.
            state: `COMPLETE`, `PRUNED` or `FAIL`.
            value: its fitness, or the value that it was pruned at.
            error: reason and traceback of a failure.
        """
        # Another coordinator may have taken the trial over and ended it, with the same result.
        with suppress(UpdateFinishedTrialError):
            note_end(self.optuna, self.storage.id_now(trial_id))
            if state == "FAIL":
                reason, trace = error
                # MySQL takes 65,535 bytes, and JSON six for some characters. Of a traceback the
                # end says most.
                error = {
                    "reason": one_line(reason, 2_000),
                    "traceback": trace and trace[-8_000:],
                }
                self.storage.set_trial_system_attr(trial_id, "error", error)
            values = None if value is None else [value]
            self.storage.set_trial_state_values(trial_id, TrialState[state], values)

    def note_trial(
        self, trial: RunningTrial, state: str, value: float | None, commands: Sequence[str] = ()
    ) -> None:
        """Write what came of a trial as its note; see `notes.trial_note`."""
        text = trial_note(trial, state, value, commands)
        write_note(self.storage, self._id, text, self.storage.id_now(trial.trial_id))

    def note(self, commands: Sequence[str] = (), winner: str | None = None) -> None:
        """Write what the study is, and what came of it so far, as its note.

        Args:
            commands: what to run next.
            winner: see `study_note`.
        """
        config = self.config
        if config is not None:
            begun = self.optuna.user_attrs.get("commit")
            text = study_note(config, self.trials(), begun, commands, winner)
            write_note(self.storage, self._id, text)

    def attach(
        self, path: str | Path, name: str | None = None, trial_id: int | None = None
    ) -> None:
        """Add a file to the study or to a trial of it; see `artefacts.attach`."""
        trial = None if trial_id is None else self.storage.id_now(trial_id)
        attach(self.address, self.storage, self._id, path, name, trial)

    def tracked(self, service: str, name: str) -> dict[str, Any] | None:
        """What is stored of a run in another service, such as its id there."""
        attrs = self.storage.get_study_system_attrs(self._id)
        return attrs.get(f"{TRACKED}{service}:{name}")

    def store_tracked(self, service: str, name: str, note: Mapping[str, Any]) -> None:
        """Store what `tracked` gives."""
        key = f"{TRACKED}{service}:{name}"
        self.storage.set_study_system_attr(self._id, key, dict(note))

    def let_go(self, trial_id: int) -> None:
        """A trial has ended; this coordinator holds it no longer."""
        self._held.discard(trial_id)
        self._records.pop(trial_id, None)


def existing(storage: str, name: str) -> Study | None:
    """The study of this name; None if there is none yet.

    Raises:
        UserError: it, or its storage, cannot be opened.
    """
    with suppress(MissingError):
        return Study(storage, name)
    return None
