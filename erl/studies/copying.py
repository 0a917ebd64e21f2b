"""Copying a study with all that it has, within a storage or to another one."""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from datetime import datetime
from typing import Any

from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from erl.cli import Sink
from erl.errors import UserError
from erl.studies.artefacts import copy_files, files_of, identities_in, renamed, unnamed
from erl.studies.commands import INCOMPLETE, study_of, trials_of
from erl.studies.deletion import finals_of, remove
from erl.studies.flags import CopyConfig
from erl.studies.following import UID
from erl.studies.leases import PLACE, check_unused
from erl.studies.storage import open_storage, shown, study_names
from erl.studies.study import COPY, TRACKED, Study
from erl.studies.trials import states_text
from erl.studies.winner import FINALS_OF, finals_name, link_finals


def copy_study(config: CopyConfig, sink: Sink) -> int:
    """Copy a study to another storage, or under another name; what is not whole says so, and is
    removed if it can be.

    The copy bears the mark `incomplete` until all of it was read back and found equal.
    """
    source = open_storage(config.storage)
    original = study_of(source, config)
    name = original.study_name
    target_name = config.to_name or name
    to = config.to or ""
    if original.system_attrs.get(COPY) == "incomplete":
        raise UserError(f"study {name!r} is an incomplete copy itself")
    target = open_storage(to, create=True)
    there = {s.study_name: s for s in target.get_all_studies()}
    finals, copied_finals = finals_name(source, name), finals_name(target, target_name)
    has_finals = finals in study_names(source)  # the copy itself may get this name
    # Read before anything is deleted. They are copies, which may be changed.
    trials = sorted(
        map(_of_nobody, trials_of(source, original, deepcopy=True)), key=lambda t: t.number
    )
    files = identities_in(config.storage, to, files_of(original, trials))
    original = copy(original)
    original.system_attrs = renamed(original.system_attrs, files)
    for trial in trials:
        trial.system_attrs = renamed(trial.system_attrs, files)
    if target_name in there:
        if target_name == name and (to == config.storage or _is_same(source, target)):
            raise UserError(f"{name!r} cannot be copied onto itself; --to_name names the copy")
        if not config.overwrite:
            mark = (
                f"an {INCOMPLETE}"
                if there[target_name].system_attrs.get(COPY) == "incomplete"
                else "a study"
            )
            raise UserError(
                f"{shown(to)} has {mark} {target_name!r}; --overwrite replaces it, "
                f"--to_name names the copy"
            )
        for each in {target_name, copied_finals} & there.keys():
            check_unused(target, each, there[each]._study_id, True, sink)
        # Finals of the original replace those of the study that is replaced.
        orphans = [] if has_finals else finals_of(target, target_name, there)
        if name in orphans and (to == config.storage or _is_same(source, target)):
            orphans = []  # these finals are copied to the place of their evolution
        replaced = [there[each] for each in (*orphans, target_name)]
        names = [study.study_name for study in replaced]
        # Their files go first: if this is interrupted, the same command finds what is left.
        for study in replaced:
            named = files_of(study, trials_of(target, study))
            for path in unnamed(to, target, named, but=names):
                remove(path, sink)
        for study in replaced:
            target.delete_study(study._study_id)
        for each in orphans:
            sink.line(f"{each} in {shown(to)}, the finals of what is replaced, is deleted")
    try:
        study_id = target.create_new_study(original.directions, target_name)
    except DuplicatedStudyError:
        raise UserError(
            f"another process is creating the study {target_name!r} in {shown(to)}"
        ) from None
    try:
        target.set_study_system_attr(study_id, COPY, "incomplete")
        ids = {}
        for done, trial in enumerate(trials):
            sink.status(f"copying {name}: {done} of {len(trials)} trials")
            ids[trial._trial_id] = target.create_new_trial(study_id, template_trial=trial)
        for key, value in _system_attrs(original, ids).items():
            target.set_study_system_attr(study_id, key, value)
        for key, value in _user_attrs(original).items():
            target.set_study_user_attr(study_id, key, value)
        missing = _copy_files(config.storage, to, files)
        _compare(original, trials, open_storage(to), target_name)
        target.set_study_system_attr(study_id, COPY, "whole")
    except BaseException:
        with suppress(Exception):  # the mark stays where the storage is gone
            target.delete_study(study_id)
            for path in unnamed(to, target, set(files.values())):
                remove(path, sink)
        if target_name in there:
            sink.line(f"{target_name} in {shown(to)}, which was to be replaced, is deleted")
        raise
    finally:
        sink.close()
    if missing:
        source_name = shown(config.storage)
        sink.line(f"{len(missing)} of its files are missing: they are not beside {source_name}")
    sink.line(f"{target_name} in {shown(to)}: {len(trials)} trials copied ({states_text(trials)})")
    if has_finals:
        copy_study(replace(config, study=finals, to_name=copied_finals), sink)
        link_finals(Study(to, copied_finals), Study(to, target_name))
    return 0


def _of_nobody(trial: FrozenTrial) -> FrozenTrial:
    """A trial as a copy has it: a running one is not that of the original's coordinator."""
    if trial.state == TrialState.RUNNING:
        trial.system_attrs = {k: v for k, v in trial.system_attrs.items() if k != "owner"}
        trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != "owner"}
    return trial


def _is_same(storage: BaseStorage, other: BaseStorage) -> bool:
    """Whether two storages are one, whatever their addresses: a new study in the one is seen in the
    other.
    """
    name = f"comparing_{uuid.uuid4().hex}"
    study_id = other.create_new_study([StudyDirection.MAXIMIZE], name)
    try:
        return name in study_names(storage)
    finally:
        other.delete_study(study_id)


def _user_attrs(study: Any) -> dict[str, Any]:
    """What a copy takes along: no leases, and not what the original, or the evolution of finals,
    is known by.
    """
    attrs = study.user_attrs
    left = (UID, FINALS_OF)
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


def _compare(original: Any, trials: Sequence[FrozenTrial], target: BaseStorage, name: str) -> None:
    """Raise a UserError unless a copy, read anew, has all that the original has."""
    made = next(s for s in target.get_all_studies() if s.study_name == name)
    copies = target.get_all_trials(made._study_id, deepcopy=False)
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
