"""The study database: studies that know their configuration, leases of running trials, and
the trial loop that both evolution and test use.

A trial's lifetimes hang on it as user attributes `lifetime:0`, `lifetime:1`, …, each written when
that lifetime ends, so that a trial which is taken up again goes on where it stood. A running trial
belongs to a coordinator that holds a lease; a trial whose coordinator is gone waits for another
one, under its own number: samplers draw by number and order, so an evolution that was interrupted
proposes what it would have proposed without.
"""

import json
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from erl.errors import UserError, nearest
from erl.lifetimes.lifetime import LifetimeRecord
from erl.search.pruning import News, Pruned, Watch
from erl.search.samplers import note_end
from erl.search.space import Range
from erl.studies import leases
from erl.studies.retries import MOMENT_SECONDS, OUTAGE_SECONDS
from erl.studies.storage import StorageError, open_storage, refused, shown, study_names
from erl.worlds.specification import LifetimeSpec, commit, from_json, to_json, versions

COPY = "copy"  # system attribute of a study that was copied: `incomplete`, then `whole`

# -- a study --


SearchSpace = dict[str, BaseDistribution]
Plan = Callable[
    [dict[str, Any]], list[LifetimeSpec]
]  # from proposed parameters to the lifetimes of the trial
Score = Callable[
    [LifetimeSpec, float], float
]  # what a lifetime's return contributes to its trial's, their mean


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
        pruned: where and at which value it was pruned.
        watch: compares it with earlier trials; None if nobody does.
    """

    number: int
    trial_id: int
    params: dict[str, Any]
    attrs: dict[str, Any]
    specs: list[LifetimeSpec]
    records: dict[int, LifetimeRecord]
    error: tuple[str, str | None] | None = None
    pruned: Pruned | None = None
    watch: Watch | None = None


class Study:
    """An Optuna study that stores its whole configuration, and this process's lease on trials in
    it.

    Args:
        storage: an address, see `open_storage`.
        name: of the study.
        config: what the study is: stored when it is created, compared when it is continued. None
            loads a study that exists.
        volatile: keys of the configuration that may change between runs.
        added: keys that studies may lack, and what they are then.

    Raises:
        UserError: the study exists with another configuration, or does not exist.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        config: dict[str, Any] | None = None,
        volatile: Iterable[str] = (),
        added: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.address, self.name = storage, name
        self.storage = open_storage(storage, create=config is not None)
        self.storage.patience = MOMENT_SECONDS  # it answers; others may be in its way
        try:
            names = study_names(self.storage)
            if config is None and name not in names:
                has = f"it has {', '.join(sorted(names)[:12])}" if names else "it has no study yet"
                raise UserError(
                    f"no study {name!r} in {shown(storage)}{nearest(name, names, 1)}; {has}"
                )
            if name in names or config is None:
                self.optuna = optuna.load_study(study_name=name, storage=self.storage)
            else:
                self.optuna = optuna.create_study(
                    study_name=name, storage=self.storage, direction="maximize", load_if_exists=True
                )
            if len(self.optuna.directions) > 1:
                raise UserError(
                    f"study {name!r} has several objectives: it was not made by this project"
                )
            self._id = self.storage.get_study_id_from_name(name)
            if self.storage.get_study_system_attrs(self._id).get(COPY) == "incomplete":
                raise UserError(
                    f"study {name!r} is an incomplete copy: copy it again, with --overwrite"
                )
            if config is not None:
                self._settle(config, set(volatile), added)
        except (SQLAlchemyError, StorageInternalError, OSError) as e:
            raise refused(storage, e) from None
        self._owner = {"id": uuid.uuid4().hex, **leases.myself()}
        self._hands: set[int] = set()  # ids of the trials that this coordinator is about
        self._watch = leases.Watch()
        self._renewals = 0
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None

    def _settle(self, config: dict[str, Any], volatile: set[str], added: Mapping[str, Any]) -> None:
        """Store the configuration of a new study; refuse to continue one that is something else."""
        config = json.loads(json.dumps(to_json(config)))
        stored = self.optuna.user_attrs.get("config")
        if stored is None:
            if self.optuna.get_trials(deepcopy=False):
                raise UserError(
                    f"study {self.name!r} was not made by this project: it stores no "
                    f"configuration; choose another name"
                )
            self.optuna.set_user_attr("config", config)
            self.optuna.set_user_attr("versions", versions())
            self.optuna.set_user_attr("commit", commit())
            return
        stored = {**added, **stored}
        differ = [
            f"{k} is {stored.get(k)!r} there and {config.get(k)!r} here"
            for k in sorted(config.keys() | stored.keys())
            if k not in volatile and stored.get(k) != config.get(k)
        ]
        if differ:
            raise UserError(
                f"study {self.name!r} exists with another configuration: {'; '.join(differ)}; "
                f"use its flags or another name"
            )

    @property
    def config(self) -> dict[str, Any] | None:
        """The stored configuration; None for a study that another program made."""
        return self.optuna.user_attrs.get("config")

    def trials(self, *states: str) -> list[FrozenTrial]:
        """Trials in these of Optuna's states, `WAITING`, `RUNNING`, `COMPLETE`, `PRUNED` and `FAIL`
        (all by default), in order.
        """
        return self.optuna.get_trials(
            deepcopy=False, states=tuple(TrialState[s] for s in states) or None
        )

    def finished(self) -> int:
        """How many trials have ended: with a fitness, pruned, or with a failure."""
        return len(self.trials("COMPLETE", "PRUNED", "FAIL"))

    def best(self) -> FrozenTrial | None:
        """The trial with the highest fitness, none that was pruned; None without any."""
        done = [t for t in self.trials("COMPLETE") if t.value is not None]
        return max(done, key=lambda t: (t.value, -t.number)) if done else None

    @staticmethod
    def lifetimes(trial: FrozenTrial) -> dict[int, LifetimeRecord]:
        """The records of a trial's lifetimes that have ended, by their index."""
        return lifetime_records(trial)

    # -- leases --

    def __enter__(self) -> "Study":
        self.storage.patience = OUTAGE_SECONDS
        leases.at_work.add(self._owner["id"])
        self._renew()
        self._renewer = threading.Thread(target=self._keep_renewing, daemon=True)
        self._renewer.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stop.set()
        leases.at_work.discard(self._owner["id"])
        if error is not None:
            self.storage.hurry()
        for trial_id in list(self._hands):
            with suppress(Exception):  # the storage itself may be what failed; the lease will tell
                self._release(trial_id, self._owner)
        if isinstance(error, SQLAlchemyError | StorageInternalError):
            error = refused(self.address, error)
        if isinstance(error, StorageError):
            raise UserError(
                f"{error}; what had finished before is stored, and the same command goes on from "
                f"there"
            )

    def _renew(self) -> None:
        """Show that this coordinator lives, and look who else does."""
        self._renewals += 1
        self.storage.set_study_user_attr(self._id, f"lease:{self._owner['id']}", self._renewals)
        self._look()

    def _look(self) -> None:
        for key, value in self.storage.get_study_user_attrs(self._id).items():
            if key.startswith("lease:"):
                self._watch.note(key, value)

    def _keep_renewing(self) -> None:
        while not self._stop.wait(leases.LEASE_SECONDS / 4):
            try:
                self._renew()
            except Exception:  # the database may be back before the lease ends
                continue

    def _owner_lives(self, trial: FrozenTrial) -> bool | None:
        """Whether somebody is about a running trial; None while that is not known."""
        owner = trial.user_attrs.get("owner")
        mine = owner is not None and owner.get("id") == self._owner["id"]
        if mine and trial._trial_id in self._hands:
            return True
        if owner is None or (
            mine and owner.get("let_go")
        ):  # another program's; or somebody took it up a moment ago
            key = f"trial:{trial._trial_id}"
            self._watch.note(key, str(trial.datetime_start))
        elif mine:  # begun twice, where the first answer was lost: nobody is about it
            return False
        elif leases.is_here(owner):
            return leases.lives(owner)
        else:
            key = f"lease:{owner.get('id')}"
        return self._watch.alive(key)

    def reclaim(self, max_retries: int = 2) -> list[FrozenTrial]:
        """Let the trials of coordinators that are gone wait for somebody to take them up; all that
        wait.

        Args:
            max_retries: how often a trial may be lost so; once more, and it fails.
        """
        self._look()
        for trial in self.trials("RUNNING"):
            if self._owner_lives(trial) is False:
                owner = trial.user_attrs.get("owner")
                # One that nobody was about yet was not lost: an answer was, or whoever took it
                # ended at once.
                lost = (
                    owner is not None
                    and not owner.get("let_go")
                    and owner.get("id") != self._owner["id"]
                )
                self._release(trial._trial_id, owner, max_retries if lost else None)
        return self.trials("WAITING")

    def in_doubt(self) -> bool:
        """Wait a moment for signs of those who are about running trials; False if it is known of
        all whether they live.
        """
        doubt = any(self._owner_lives(t) is None for t in self.trials("RUNNING"))
        if doubt:
            self._stop.wait(min(1.0, leases.LEASE_SECONDS / 8))
            self._look()
        return doubt

    def _release(
        self, trial_id: int, owner: dict[str, Any] | None, max_retries: int | None = None
    ) -> None:
        """Let a trial wait, unless it is no longer this owner's.

        With `max_retries` it was lost, which is counted.
        """
        self._hands.discard(trial_id)
        with suppress(UpdateFinishedTrialError):  # somebody else took it up and ended it
            trial = self.storage.get_trial(trial_id)
            if trial.state != TrialState.RUNNING or trial.user_attrs.get("owner") != owner:
                return
            if max_retries is not None:
                lost = trial.user_attrs.get("lost", 0) + 1
                self.storage.set_trial_user_attr(trial_id, "lost", lost)
                if lost > max_retries:
                    reason = (
                        f"lost {lost} times: the process that was about it ended "
                        "(killed, out of memory, or its machine went down)"
                    )
                    self.storage.set_trial_user_attr(
                        trial_id, "error", {"reason": reason, "traceback": None}
                    )
                    self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                    return
            # Whoever ends between this and the next line, or between taking it up and saying so, is
            # seen to have ended.
            self.storage.set_trial_user_attr(trial_id, "owner", {**self._owner, "let_go": True})
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    # -- taking and ending trials --

    def take_up(
        self,
        trial: FrozenTrial,
        plan: Plan,
        sampler: BaseSampler | None = None,
        space: SearchSpace | None = None,
    ) -> Taken | None:
        """Go on with a waiting trial; the lifetimes that had ended are kept. None if somebody else
        was faster.

        Args:
            trial: one of those that `reclaim` gives.
            plan: from its parameters to its lifetimes.
            sampler: proposes parameters that it was not given before whoever began it ended.
            space: all its parameters.
        """
        with suppress(UpdateFinishedTrialError):
            if self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                self._hands.add(trial._trial_id)
                self.storage.set_trial_user_attr(trial._trial_id, "owner", self._owner)
                if sampler is not None:
                    self._sample(trial._trial_id, sampler, space or {})
                return self._taken(trial._trial_id, plan)
        return None

    def create(self, params: dict[str, Any], space: SearchSpace, plan: Plan) -> Taken:
        """Begin a trial with given parameters."""
        return self._taken(self._begin({}, params, space), plan)

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

        Where several coordinators begin trials at once, some get numbers of `limit` or more: those
        wait, and count for nothing until the study is made longer.
        """
        taken = []
        for _ in range(new):
            trial_id = self._begin({"generation": generation})
            if self.storage.get_trial(trial_id).number >= limit:
                self._release(trial_id, self._owner)
                break
            self._sample(trial_id, sampler, space)
            taken.append(self._taken(trial_id, plan))
        return taken

    def withdraw(self, taken: Taken) -> None:
        """Take back a trial that another coordinator began too, at the same moment: it counts for
        nothing.
        """
        self.storage.set_trial_state_values(taken.trial_id, TrialState.PRUNED)
        self._hands.discard(taken.trial_id)

    def first(self) -> dict[str, int]:
        """The number of the one trial that counts for each set of parameters, failed ones aside."""
        first = {
            key_of(t.params): t.number
            for t in reversed(self.trials("COMPLETE", "RUNNING", "WAITING"))
        }
        return first | {key_of(t.params): t.number for t in reversed(self.trials("COMPLETE"))}

    def _begin(
        self, attrs: dict[str, Any], params: Any = None, space: SearchSpace | None = None
    ) -> int:
        """A new trial that is this coordinator's from its first moment; its id."""
        attrs = {"owner": self._owner, **attrs}
        template = create_trial(
            state=TrialState.RUNNING, params=params, distributions=space, user_attrs=attrs
        )
        trial_id = self.storage.create_new_trial(self._id, template_trial=template)
        self._hands.add(trial_id)
        return trial_id

    def _sample(self, trial_id: int, sampler: BaseSampler, space: SearchSpace) -> None:
        """Let a trial have those parameters that it has not."""
        # Optuna's study remembers the trials that it saw, and this one shall see all that have
        # finished.
        study = optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler)
        trial = optuna.Trial(study, trial_id)
        for name, distribution in space.items():
            _suggest(trial, name, distribution)

    def _taken(self, trial_id: int, plan: Plan) -> Taken:
        trial = self.storage.get_trial(trial_id)
        return Taken(
            number=trial.number,
            trial_id=trial_id,
            params=trial.params,
            attrs=trial.user_attrs,
            specs=plan(trial.params),
            records={i: r for i, r in lifetime_records(trial).items() if r.error is None},
            pruned=Pruned(**trial.user_attrs["pruned"]) if "pruned" in trial.user_attrs else None,
        )

    def note(self, taken: Taken, index: int, record: LifetimeRecord) -> None:
        """Store a lifetime's record; one that failed is why its trial fails."""
        taken.records[index] = record
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(taken.trial_id, f"lifetime:{index}", to_json(record))
        if record.error is not None and taken.error is None:
            taken.error = (f"lifetime {index}: {record.error}", record.traceback)

    def end(self, taken: Taken, score: Score) -> float | None:
        """Tell a trial whose lifetimes have all ended; its fitness or the value that it was pruned
        at, None if it failed.
        """
        value = None
        if taken.pruned is not None:
            value = taken.pruned.value
        elif taken.error is None:
            fitness = [taken.records[i].fitness for i in range(len(taken.specs))]
            value = float(
                np.mean([score(spec, f) for spec, f in zip(taken.specs, fitness) if f is not None])
            )
        # This coordinator may have been taken for dead, and the trial ended by another: with the
        # same result.
        with suppress(UpdateFinishedTrialError):
            note_end(self.optuna, taken.trial_id)
            if taken.pruned is not None:
                self.storage.set_trial_state_values(
                    taken.trial_id, TrialState.PRUNED, [taken.pruned.value]
                )
            elif value is not None:
                self.storage.set_trial_state_values(taken.trial_id, TrialState.COMPLETE, [value])
            elif taken.error is not None:
                reason, trace = taken.error
                self.storage.set_trial_user_attr(
                    taken.trial_id, "error", {"reason": reason, "traceback": trace}
                )
                self.storage.set_trial_state_values(taken.trial_id, TrialState.FAIL)
        self._hands.discard(taken.trial_id)
        return value

    def note_news(self, taken: Taken, news: News) -> None:
        """Store what a watched trial has reached, and that it is pruned.

        It comes before the records of the lifetimes that stop therefore: whoever takes the trial up
        after this process has to end it.
        """
        with suppress(UpdateFinishedTrialError):
            for point, value in news.values.items():
                self.storage.set_trial_intermediate_value(taken.trial_id, point, value)
            for key, note in news.notes.items():
                self.storage.set_trial_system_attr(taken.trial_id, key, note)
            if news.pruned is not None:
                self.storage.set_trial_user_attr(taken.trial_id, "pruned", to_json(news.pruned))


def key_of(params: dict[str, Any]) -> str:
    """Parameters as the key of a dictionary."""
    return json.dumps(params, sort_keys=True)


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


def lifetime_records(trial: FrozenTrial) -> dict[int, LifetimeRecord]:
    """The records that a trial holds, by the index of the lifetime."""
    return {
        int(key.partition(":")[2]): from_json(LifetimeRecord, value)
        for key, value in trial.user_attrs.items()
        if key.startswith("lifetime:")
    }


# -- reading --


def records(storage: str, name: str) -> pd.DataFrame:
    """Every lifetime of a study, one row each.

    Returns:
        Columns: `trial`, `state`, `lifetime`, the trial's parameters, `fitness`, `training_return`,
            `final_return`,
        `episodes`, `steps`, `seconds`, `curve` (list of (steps, return)), `reports` (at tenths of
        the budget), `inner` (dictionary, see `LifetimeRecord`, or None), `note`, `error`, `env_id`,
        `learner`, and the seeds.
    """
    rows = []
    for trial in Study(storage, name).trials():
        for index, record in sorted(lifetime_records(trial).items()):
            rows.append(
                {
                    "trial": trial.number,
                    "state": trial.state.name,
                    "lifetime": index,
                    **trial.params,
                    "fitness": record.fitness,
                    "training_return": record.training_return,
                    "final_return": float(np.mean(record.final_returns))
                    if record.final_returns
                    else None,
                    "episodes": record.episodes,
                    "steps": record.steps,
                    "seconds": record.seconds,
                    "curve": record.curve,
                    "reports": record.reports,
                    "inner": record.inner,
                    "note": record.note,
                    "error": record.error,
                    "env_id": record.spec.task.env_id,
                    "learner": record.spec.learner.name,
                    **{f"seed_{k}": v for k, v in to_json(record.spec.seeds).items()},
                }
            )
    return pd.DataFrame(rows)


def generations(storage: str, name: str) -> pd.DataFrame:
    """What the learners' own populations did: the kept generations of every lifetime of a study,
    one row each.

    Returns:
        Columns: `trial`, `lifetime`, the trial's parameters, `env_id`, `learner`, `generation`,
            `steps` (taken when it ended), and what the learner noted, None where it did not.
            ERL-Re²: `whole` (1 if
        judged by whole episodes), `fitness` and `surrogate` (lists, of every head), `champion`
        (place of the best), `champion_return` (of the champion of the generation before, in whole
        episodes played after it was chosen), `rl_return`, `rl_head` (place of the RL head's copy)
        and `rl_fate` (of that copy: elites, selected, discarded). Empty for other learners.
    """
    frames = []
    for trial in Study(storage, name).trials():
        for index, record in sorted(lifetime_records(trial).items()):
            kept = pd.DataFrame((record.inner or {}).get("kept", {}))
            spec = record.spec
            known = {
                "trial": trial.number,
                "lifetime": index,
                **trial.params,
                "env_id": spec.task.env_id,
                "learner": spec.learner.name,
            }
            for place, (column, value) in enumerate(known.items()):
                kept.insert(place, column, value)
            frames.append(kept)
    return (
        pd.concat([f for f in frames if len(f)], ignore_index=True)
        if any(map(len, frames))
        else pd.DataFrame()
    )
