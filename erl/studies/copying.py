"""Copying a study with all that it has, within a storage or to another one."""

import itertools
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from erl.cli import Sink
from erl.errors import UserError
from erl.studies.artefacts import copy_files, files_of, identities_in, renamed, unnamed
from erl.studies.commands import INCOMPLETE, study_of, trials_of
from erl.studies.dashboard import database_of, rename
from erl.studies.deletion import finals_of, remove
from erl.studies.distributions import categorical, choices
from erl.studies.flags import CopyConfig
from erl.studies.following import UID
from erl.studies.leases import PLACE, check_unused
from erl.studies.retries import OUTAGE_SECONDS, RetryingStorage
from erl.studies.storage import MissingError, open_storage, shown, study_names
from erl.studies.study import COPY, TRACKED, Study
from erl.studies.trials import states_text
from erl.studies.winner import FINALS_OF, TEST_OF, finals_name, link_finals


class _Place(NamedTuple):
    """A storage and its address."""

    address: str
    storage: RetryingStorage

    def study(self, name: str) -> Any:
        """The storage's study of this name.

        Raises:
            MissingError: it was deleted meanwhile.
        """
        for study in self.storage.get_all_studies():
            if study.study_name == name:
                return study
        raise MissingError(f"study {name!r} was deleted meanwhile")

    def delete(self, name: str, sink: Sink) -> None:
        """Delete the files that only this study names, and then the study: if it is interrupted,
        there is still a name for what is left.
        """
        study = self.study(name)
        files = files_of(study, trials_of(self.storage, study))
        for path in unnamed(self.address, self.storage, files, but=[name]):
            remove(path, sink)
        with suppress(KeyError):  # it was deleted, and only the answer was lost
            self.storage.delete_study(study._study_id)


def copy_study(config: CopyConfig, sink: Sink) -> int:
    """Copy a study to another storage, or under another name; what is not whole says so, and is
    removed if it can be.

    The copy bears the mark `incomplete` until all of it was read back and found equal. What it
    replaces is deleted after that.
    """
    source = _open(config.storage)
    original = study_of(source.storage, config)
    name = original.study_name
    target_name = config.to_name or name
    if _is_incomplete(original):
        raise UserError(f"study {name!r} is an incomplete copy itself")
    target = _open(config.to or "", create=True)
    here, to = target.storage, shown(target.address)
    there = {s.study_name: s for s in here.get_all_studies()}
    finals, copied_finals = finals_name(source.storage, name), finals_name(here, target_name)
    has_finals = finals in study_names(source.storage)  # the copy itself may get this name
    replaced, first_name = [], target_name
    if target_name in there:
        if target_name == name and _is_same(source, target):
            raise UserError(f"{name!r} cannot be copied onto itself; --to_name names the copy")
        if not config.overwrite:
            mark = f"an {INCOMPLETE}" if _is_incomplete(there[target_name]) else "a study"
            raise UserError(
                f"{to} has {mark} {target_name!r}; --overwrite replaces it, "
                f"--to_name names the copy"
            )
        for each in {target_name, copied_finals} & there.keys():
            check_unused(here, each, there[each]._study_id, True, sink)
        # Finals of the original replace those of the study that is replaced.
        orphans = [] if has_finals else finals_of(here, target_name, there)
        if name in orphans and _is_same(source, target):
            orphans = []  # these finals are copied to the place of their evolution
        replaced = [*orphans, target_name]
        beside = (f"{target_name}_copy{n or ''}" for n in itertools.count())
        first_name = next(n for n in beside if n not in there or _is_incomplete(there[n]))
        if first_name in there:  # an earlier copy, whose process was killed
            target.delete(first_name, sink)
    trials, missing = _copy(source, name, target, first_name, sink)
    if replaced:
        sink.line(f"{first_name} in {to} is whole, and takes the place of {target_name}")
        _replace(target, replaced, first_name, sink)
    if missing:
        source_name = shown(source.address)
        sink.line(f"{len(missing)} of its files are missing: they are not beside {source_name}")
    sink.line(f"{target_name} in {to}: {len(trials)} trials copied ({states_text(trials)})")
    if has_finals:
        copy_study(replace(config, study=finals, to_name=copied_finals), sink)
        link_finals(Study(target.address, copied_finals), Study(target.address, target_name))
    return 0


def _open(address: str, create: bool = False) -> _Place:
    """Open a storage whose operations are tried again from now on."""
    storage = open_storage(address, create)
    storage.retry_seconds = OUTAGE_SECONDS
    return _Place(address, storage)


def _is_incomplete(study: Any) -> bool:
    """Whether one of a storage's studies is a copy that did not come to its end."""
    return study.system_attrs.get(COPY) == "incomplete"


def _copy(
    source: _Place, name: str, target: _Place, to_name: str, sink: Sink
) -> tuple[list[FrozenTrial], list[str]]:
    """Make a copy under a name that is free, or leave none.

    Returns:
        Its trials, and the identities of files that are missing.
    """
    # Copies, which may be changed.
    original = copy(source.study(name))
    trials = sorted(
        map(_of_nobody, trials_of(source.storage, original, deepcopy=True)), key=lambda t: t.number
    )
    _unite_choices(trials)
    files = identities_in(source.address, target.address, files_of(original, trials))
    original.system_attrs = renamed(original.system_attrs, files)
    for trial in trials:
        trial.system_attrs = renamed(trial.system_attrs, files)
    storage, reader = target.storage, _open(target.address)
    try:
        study_id = storage.create_new_study(original.directions, to_name)
    except DuplicatedStudyError:
        raise _taken(target, to_name) from None
    try:
        storage.set_study_system_attr(study_id, COPY, "incomplete")
        ids = {}
        for done, trial in enumerate(trials):
            sink.status(f"copying {name}: {done} of {len(trials)} trials")
            ids[trial._trial_id] = storage.create_new_trial(study_id, template_trial=trial)
        for key, value in _system_attrs(original, ids).items():
            storage.set_study_system_attr(study_id, key, value)
        for key, value in _user_attrs(original).items():
            storage.set_study_user_attr(study_id, key, value)
        missing = _copy_files(source.address, target.address, files)
        _compare(original, trials, reader, to_name)
        storage.set_study_system_attr(study_id, COPY, "whole")
    except BaseException:
        storage.stop_retrying()
        with suppress(Exception):  # the mark stays where the storage is gone
            target.delete(to_name, sink)
        raise
    finally:
        sink.close()
    return trials, missing


def _unite_choices(trials: Sequence[FrozenTrial]) -> None:
    """Give a parameter that is one of several values the same ones in all trials. In a journal
    several versions may have had others, which a database refuses.
    """
    found: dict[str, dict[Any, None]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            found.setdefault(name, {}).update(dict.fromkeys(choices(distribution) or ()))
    for trial in trials:
        trial.distributions = {
            name: categorical(tuple(found[name])) if choices(distribution) else distribution
            for name, distribution in trial.distributions.items()
        }


def _replace(target: _Place, replaced: Sequence[str], name: str, sink: Sink) -> None:
    """Delete studies, and give the name of the last of them to the study `name`.

    Where a storage cannot rename in place, the study is copied once more. So at every moment it is
    whole under one of the two names.
    """
    storage, to_name = target.storage, replaced[-1]
    for each in replaced:  # the copying took its time
        check_unused(storage, each, target.study(each)._study_id, True, sink)
    for each in replaced:
        target.delete(each, sink)
        if each != to_name:
            sink.line(
                f"{each} in {shown(target.address)}, the finals of what is replaced, is deleted"
            )
    database = database_of(storage)
    if database is None:
        _copy(target, name, target, to_name, sink)
        target.delete(name, sink)
    elif not storage.repeated(rename, database, target.study(name)._study_id, to_name):
        raise _taken(target, to_name)


def _taken(place: _Place, name: str) -> UserError:
    """That a name that was free is not any more."""
    return UserError(f"another process is creating the study {name!r} in {shown(place.address)}")


def _of_nobody(trial: FrozenTrial) -> FrozenTrial:
    """A trial as a copy has it: a running one is not that of the original's coordinator."""
    if trial.state == TrialState.RUNNING:
        trial.system_attrs = {k: v for k, v in trial.system_attrs.items() if k != "owner"}
        trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != "owner"}
    return trial


def _is_same(one: _Place, other: _Place) -> bool:
    """Whether two storages are one, whatever their addresses: a new study in the one is seen in the
    other.
    """
    if one.address == other.address:
        return True
    name = f"comparing_{uuid.uuid4().hex}"
    study_id = other.storage.create_new_study([StudyDirection.MAXIMIZE], name)
    try:
        return name in study_names(one.storage)
    finally:
        other.storage.delete_study(study_id)


def _user_attrs(study: Any) -> dict[str, Any]:
    """What a copy takes along: no leases, and not what the original, or the evolution of finals
    or a test, is known by.
    """
    attrs = study.user_attrs
    left = (UID, FINALS_OF, TEST_OF)
    return {k: v for k, v in attrs.items() if k not in left and not k.startswith(PLACE)}


def _system_attrs(study: Any, ids: Mapping[int, int]) -> dict[str, Any]:
    """What a copy takes along: no leases, and no runs in other services, which are the original's.
    Notes and files of trials are named by their ids, which are others in the copy.
    """
    attrs = {}
    for key, value in study.system_attrs.items():
        if key == COPY or key.startswith((PLACE, TRACKED)):
            continue
        of_trial = re.match(r"(dashboard:(?:artifacts:)?)(\d+)(:.*)", key)
        if of_trial is not None:
            trial_id = ids.get(int(of_trial[2]))
            if trial_id is None:
                continue
            key = f"{of_trial[1]}{trial_id}{of_trial[3]}"
        attrs[key] = value
    return attrs


def _copy_files(source: str, target: str, files: Mapping[str, str]) -> list[str]:
    """Copy the files of a study and its trials; those that are missing."""
    try:
        return copy_files(source, target, files)
    except OSError as e:
        raise UserError(f"the files of the study cannot be copied: {e.strerror or e}") from e


def _compare(original: Any, trials: Sequence[FrozenTrial], reader: _Place, name: str) -> None:
    """Raise a UserError unless a copy, read anew, has all that the original has."""
    made = reader.study(name)
    copies = trials_of(reader.storage, made)
    ids = {t._trial_id: c._trial_id for t, c in zip(trials, copies)}
    same = made.directions == original.directions and made.user_attrs == _user_attrs(original)
    there = {k: v for k, v in made.system_attrs.items() if k != COPY}
    same &= there == _system_attrs(original, ids)
    if not same or len(copies) != len(trials):
        raise UserError(f"the copy {name!r} differed from the original and was removed")
    for before, after in zip(trials, copies):
        times = (
            (before.datetime_start, after.datetime_start),
            (before.datetime_complete, after.datetime_complete),
        )
        if _content(before) != _content(after) or any(_apart(*pair) for pair in times):
            raise UserError(
                f"trial {before.number} of the copy {name!r} differed from the original; the copy "
                f"was removed"
            )


def _content(trial: FrozenTrial) -> tuple[Any, ...]:
    """All that a trial holds, but for its number in the storage and its times; NaN equals
    itself.
    """
    values = trial.values and list(trial.values)
    attrs = (trial.user_attrs, trial.system_attrs, sorted(trial.intermediate_values.items()))
    return (
        trial.number,
        trial.state,
        values,
        trial.params,
        trial.distributions,
        json.dumps(attrs, sort_keys=True),
    )


def _apart(one: datetime | None, other: datetime | None) -> bool:
    """Whether two times differ by more than a database rounds them."""
    return (
        one != other if one is None or other is None else abs((one - other).total_seconds()) > 1.0
    )
