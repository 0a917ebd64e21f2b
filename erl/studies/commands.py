"""Manage existing studies: list, show, export, copy. `deletion` deletes, and `push` uploads."""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from erl.cli import Sink, params_text, plural, score_text
from erl.errors import UserError, nearest
from erl.files import check_new_file, write_text, write_whole
from erl.statistics import interquartile_mean, number_text
from erl.studies.artefacts import copy_files, identities_in, listed, of_trial, renamed
from erl.studies.configuration import FinalsStudy, SingleStudy, TestStudy, from_stored
from erl.studies.flags import DOCUMENTS, CopyConfig, ExportConfig, ListConfig, ShowConfig
from erl.studies.following import UID
from erl.studies.leases import PLACE
from erl.studies.records import generations, records, trial_rows
from erl.studies.storage import names_text, open_storage, shown, study_names
from erl.studies.study import COMMAND, COPY, TRACKED, Study
from erl.studies.tables import (
    agent_tables,
    few_seeds_of,
    to_frame,
    to_latex,
    to_markdown,
    to_text_frame,
)
from erl.studies.tables import lines as table_lines
from erl.studies.trial_report import find_trial, trial_lines
from erl.studies.trials import lifetime_records, states_text, why_failed
from erl.studies.winner import (
    FINALS_OF,
    TESTED,
    Choice,
    Finalist,
    chosen,
    finals_name,
    link_finals,
    reached_in_tests,
    stored_choice,
    unfinished_finals,
    without_finals,
)

INCOMPLETE = "incomplete copy"
COLUMNS = ("study", "kind", "trials", "result", "last change")


def name_of(storage: BaseStorage, config: Any) -> str:
    """The study that is meant."""
    names = [s.study_name for s in storage.get_all_studies()]
    if config.study is None and len(meant := without_finals(storage)) == 1:
        return meant[0]
    if config.study is None:
        missing = "--study is missing; " * bool(names)
        raise UserError(f"{missing}{shown(config.storage)} {names_text(names)}")
    if config.study not in names:
        raise UserError(
            f"no study {config.study!r} in {shown(config.storage)}{nearest(config.study, names)}"
        )
    return config.study


def kind_of(study: Any) -> str:
    """What one of a storage's studies is, in words."""
    if study.system_attrs.get(COPY) == "incomplete":
        return INCOMPLETE
    config = study.user_attrs.get("config")
    if config is None:
        return "another program's"
    try:
        return from_stored(config).title
    except UserError:
        return "another version's"


def _ranked(trials: Sequence[FrozenTrial], directions: Sequence[Any]) -> list[FrozenTrial]:
    """Finished trials of a study with one objective, the best first, the earlier first among
    equals.
    """
    if len(directions) != 1:
        return []
    sign = -1.0 if directions[0].name == "MAXIMIZE" else 1.0
    done = [t for t in trials if t.state.name == "COMPLETE" and t.value is not None]
    return sorted(done, key=lambda t: (sign * t.value, t.number))  # type: ignore[operator]


def _has_agents(attrs: dict[str, Any]) -> bool:
    """Whether a study is a test or a single training, which have tables and no fitness."""
    try:
        return isinstance(from_stored(attrs["config"]), TestStudy | SingleStudy)
    except (KeyError, UserError):
        return False


def _agents(study: Study) -> str:
    """What the first two agents of a test reached: `PPO 51.2, RES_PPO_0.0003 271`. The best one of
    all would be a maximum over noisy means.
    """
    tables = agent_tables(study)
    if not tables:
        return "-"
    shown = [(arm.name, interquartile_mean(arm.scores)) for arm in tables[0].arms[:2]]
    return "training IQM " + ", ".join(f"{name} {number_text(value)}" for name, value in shown)


def _last_change(trials: Sequence[FrozenTrial]) -> str:
    times = [m for t in trials for m in (t.datetime_start, t.datetime_complete) if m is not None]
    return f"{max(times):%Y-%m-%d %H:%M}" if times else "-"


def list_studies(config: ListConfig, sink: Sink) -> int:
    """A line for each study of a storage."""
    storage = open_storage(config.storage)
    rows = [COLUMNS]
    for study in storage.get_all_studies():
        trials = storage.get_all_trials(study._study_id, deepcopy=False)
        ranked = _ranked(trials, study.directions)
        kind = kind_of(study)
        result = f"best fitness {score_text(ranked[0].value)}" if ranked else "-"
        choice = stored_choice(study.user_attrs)
        if kind == INCOMPLETE:
            result = "-"
        elif ranked and _has_agents(study.user_attrs):
            result = _agents(Study(config.storage, study.study_name))
        elif choice is not None:
            result = f"winner's fitness {score_text(choice.winner.expected)}"
        elif kind == FinalsStudy.title:
            result = "-"
        rows.append(
            (
                study.study_name,
                kind,
                states_text(trials),
                result,
                _last_change(trials),
            )
        )
    if len(rows) == 1:
        sink.line(f"{shown(config.storage)} has no study yet")
        return 0
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        sink.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


def show_study(config: ShowConfig, sink: Sink) -> int:
    """What a study is, its best trials, and why others failed; or one trial."""
    storage = open_storage(config.storage)
    name = name_of(storage, config)
    study = next(s for s in storage.get_all_studies() if s.study_name == name)
    trials = storage.get_all_trials(study._study_id, deepcopy=False)
    kind = kind_of(study)
    if config.trial is not None:
        one = find_trial(trials, config.trial, name)
        sink.line(f"trial {one.number} of {name} in {shown(config.storage)}: {kind}")
        for line in trial_lines(one):
            sink.line(line)
        return 0
    sink.line(f"{name} in {shown(config.storage)}: {kind}")
    sink.line(f"trials: {states_text(trials)}; last change {_last_change(trials)}")
    if kind == INCOMPLETE:
        sink.line("copy it again, with --overwrite")
        return 0
    if study.user_attrs.get("commit"):
        sink.line(f"created with commit {study.user_attrs['commit']}")
    if study.user_attrs.get(COMMAND):
        sink.line(f"begun by: {study.user_attrs[COMMAND]}")
    stored = study.user_attrs.get("config")
    if isinstance(stored, Mapping):
        sink.line("configuration:")
        for key, value in stored.items():
            sink.line(f"  {key}: {json.dumps(value)}")
    ranked = _ranked(trials, study.directions)
    if _has_agents(study.user_attrs):
        for line in table_lines(agent_tables(Study(config.storage, name))):
            sink.line(line)
    elif ranked and kind == FinalsStudy.title:
        _show_finals(ranked, sink)
    elif ranked:
        sink.line("best trials:")
        for trial in ranked[: config.best]:
            params = params_text(trial.params, between="  ")
            sink.line(f"  {trial.number:5d}  fitness {score_text(trial.value):>10s}  {params}")
        for index, record in sorted(lifetime_records(ranked[0]).items()):
            if record.inner is not None and record.inner.get("totals"):
                totals = ", ".join(f"{k} {v:,.0f}" for k, v in record.inner["totals"].items())
                sink.line(
                    f"evolution inside trial {ranked[0].number}, lifetime {index}: "
                    f"{record.inner['generations']} generations; {totals}"
                )
    choice = stored_choice(study.user_attrs)
    if choice is not None:
        _show_choice(choice, trials, sink)
    unfinished = unfinished_finals(study.user_attrs)
    if unfinished is not None:
        sink.line(f"finals: {unfinished}")
    if any(key.startswith(TESTED) for key in study.user_attrs):
        _show_tests(Study(config.storage, name), sink)
    failed = [t for t in trials if t.state.name == "FAIL"]
    if failed:
        sink.line("failed trials:")
        for trial in failed:
            sink.line(f"  {trial.number:5d}  {why_failed(trial) or 'no reason stored'}")
        sink.line(f"  --trial {failed[0].number} shows its traceback")
    lost = {t.number: t.user_attrs["lost"] for t in trials if t.user_attrs.get("lost")}
    if lost:
        sink.line(
            "lost when their process died, and continued: "
            + ", ".join(f"trial {k} ({plural(n, 'time')})" for k, n in lost.items())
        )
    return 0


def _show_choice(choice: Choice, trials: Sequence[FrozenTrial], sink: Sink) -> None:
    """The winner of an evolution's finals, and all finalists."""
    ended = sum(t.state.is_finished() for t in trials)
    sink.line(f"winner of the finals, after {choice.ended} of {ended} trials:")
    sink.line(f"  {choice.winner.title}, {choice.winner.reached}")
    sink.line("finalists:")
    for finalist in choice.finalists:
        sink.line(f"  {finalist.title}, {finalist.reached}")


def _show_finals(trials: Sequence[FrozenTrial], sink: Sink) -> None:
    """What each finalist reached when it was lived again, the best one first."""
    sink.line("finalists (their evolution's study says what is expected of them on new seeds):")
    found: dict[tuple[int | None, int | None], list[float]] = {}
    for trial in trials:
        who = trial.params.get("trial"), trial.params.get("mean")
        found.setdefault(who, []).append(trial.values[0])
    for (number, mean), scores in sorted(found.items(), key=lambda item: -fmean(item[1])):
        finalist = Finalist(number, mean, {}, None, again=tuple(scores))
        sink.line(f"  {finalist.title}, {finalist.reached}")


def _show_tests(study: Study, sink: Sink) -> None:
    """What tests of an evolution's winner found."""
    choice = chosen(study)
    tests = {} if choice is None else reached_in_tests(study.optuna.user_attrs, choice.winner)
    if choice is not None and tests:
        sink.line(f"tests of {choice.winner.title}:")
        for name, test in tests.items():
            sink.line(f"  {test.line}: {name}")


def with_json(table: pd.DataFrame) -> pd.DataFrame:
    """Lifetimes or generations for a file: lists and dictionaries as JSON."""

    def text(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, list | tuple | dict) else value

    return table.assign(**{c: table[c].map(text) for c in table if table[c].dtype == object})


def export_study(config: ExportConfig, sink: Sink) -> int:
    """Write a study as a table, whole or not at all; lists, such as curves, are JSON."""
    path, document, remark = Path(config.file or ""), None, ""
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: its folder does not exist")
    check_new_file(path, config.overwrite)
    name = name_of(open_storage(config.storage), config)
    if config.rows == "trials":
        frame = trial_rows(Study(config.storage, name).trials())
    elif config.rows == "generations":
        frame = generations(config.storage, name)
        if not len(frame):
            raise UserError(
                f"study {name!r} has no inner generations: its learner is not a population"
            )
    elif config.rows == "arms":
        tables = agent_tables(Study(config.storage, name))
        if not tables:
            raise UserError(f"study {name!r} has no agents to compare: it is no test, or is empty")
        remark = few_seeds_of(tables)
        suffix = path.suffix.casefold()
        if suffix in DOCUMENTS:
            frame = to_text_frame(tables)
            about = "; ".join(f"{t.score.replace('_', ' ')}: {t.title}" for t in tables)
            about = f"{name}. {about}. P is over {tables[0].arms[0].name}. {remark}".strip()
            document = f"{to_markdown(frame)}\n{about}\n" if suffix == ".md" else ""
            document = document or to_latex(frame, about)
        else:
            frame = to_frame(tables)
    else:
        frame = records(config.storage, name)
        if not len(frame):
            raise UserError(f"study {name!r} stores no lifetimes; --rows trials exports its trials")
    try:
        if document is None:
            write_whole(path, lambda part: with_json(frame).to_csv(part, index=False))
        else:
            write_text(path, document)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e
    count = frame.arm.nunique() if config.rows == "arms" else len(frame)
    sink.line(f"{path}: {count} {config.rows} of {name}")
    if remark:
        sink.line(remark)
    return 0


def copy_study(config: CopyConfig, sink: Sink) -> int:
    """Copy a study to another storage, or under another name; what is not whole says so, and is
    removed if it can be.

    The copy bears the mark `incomplete` until all of it was read back and found equal.
    """
    source = open_storage(config.storage)
    name = name_of(source, config)
    target_name = config.to_name or name
    to = config.to or ""
    original = next(s for s in source.get_all_studies() if s.study_name == name)
    if original.system_attrs.get(COPY) == "incomplete":
        raise UserError(f"study {name!r} is an incomplete copy itself")
    target = open_storage(to, create=True)
    there = {s.study_name: s for s in target.get_all_studies()}
    finals, copied_finals = finals_name(source, name), finals_name(target, target_name)
    has_finals = finals in study_names(source)  # the copy itself may get this name
    # Read before anything is deleted. They are copies, which may be changed.
    trials = sorted(
        map(_of_nobody, source.get_all_trials(original._study_id)), key=lambda t: t.number
    )
    files = identities_in(config.storage, to, identities(original, trials))
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
        target.delete_study(there[target_name]._study_id)
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


def identities(study: Any, trials: Sequence[FrozenTrial]) -> list[str]:
    """The identities of the files of a study and its trials."""
    files = listed(study.system_attrs)
    for trial in trials:
        files += listed(trial.system_attrs)
        files += listed(study.system_attrs, of_trial(trial._trial_id))
    return [f.id for f in files]


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
