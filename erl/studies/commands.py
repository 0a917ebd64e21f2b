"""Manage existing studies: list, show, export. `copying` copies, `deletion` deletes, and `push`
uploads.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from erl.cli import Sink, params_text, plural, score_text
from erl.errors import UserError, nearest
from erl.files import check_new_file, write_text, write_whole, writing
from erl.statistics import interquartile_mean, number_text
from erl.studies.configuration import FinalsStudy, SingleStudy, TestStudy, from_stored
from erl.studies.flags import DOCUMENTS, ExportConfig, ListConfig, ShowConfig
from erl.studies.records import generations, records, trial_rows
from erl.studies.storage import MissingError, names_text, open_storage, shown
from erl.studies.study import COMMAND, COPY, Study
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
from erl.studies.trials import lifetime_records, states_text, times_lost, why_failed
from erl.studies.winner import (
    TESTED,
    Choice,
    Finalist,
    chosen,
    reached_in_tests,
    readable_choice,
    stored_choice,
    unfinished_finals,
    without_finals,
)

INCOMPLETE = "incomplete copy"
COLUMNS = ("study", "kind", "trials", "result", "last change")


def study_of(storage: BaseStorage, config: Any) -> Any:
    """The one of a storage's studies that is meant.

    Raises:
        UserError: there is no such study, or it is not named, and there are several.
    """
    studies = {s.study_name: s for s in storage.get_all_studies()}
    names = list(studies)
    if config.study is None and len(meant := {*without_finals(storage)} & studies.keys()) == 1:
        return studies[meant.pop()]
    if config.study is None:
        missing = "--study is missing; " * bool(names)
        raise UserError(f"{missing}{shown(config.storage)} {names_text(names)}")
    if config.study not in names:
        raise UserError(
            f"no study {config.study!r} in {shown(config.storage)}{nearest(config.study, names)}"
        )
    return studies[config.study]


def name_of(storage: BaseStorage, config: Any) -> str:
    """The name of the study that is meant, see `study_of`."""
    return study_of(storage, config).study_name


def trials_of(storage: BaseStorage, study: Any, deepcopy: bool = False) -> list[FrozenTrial]:
    """The trials of one of a storage's studies.

    Args:
        storage: that has it.
        study: as the storage told it.
        deepcopy: whether they may be changed.

    Raises:
        MissingError: it was deleted meanwhile.
    """
    try:
        return storage.get_all_trials(study._study_id, deepcopy=deepcopy)
    except KeyError:
        raise MissingError(f"study {study.study_name!r} was deleted meanwhile") from None


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


def is_kind(kind: Any, study: Any) -> bool:
    """Whether one of a storage's studies is of this kind, as its configuration says."""
    with suppress(UserError, KeyError):
        return isinstance(from_stored(study.user_attrs["config"]), kind)
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
    rows: list[tuple[str, ...]] = [COLUMNS]
    for study in storage.get_all_studies():
        with suppress(MissingError):  # it was deleted meanwhile
            rows.append(_row(config.storage, storage, study))
    if len(rows) == 1:
        sink.line(f"{shown(config.storage)} has no study yet")
        return 0
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        sink.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


def _row(address: str, storage: BaseStorage, study: Any) -> tuple[str, ...]:
    """What the list says of one of a storage's studies, by `COLUMNS`.

    Raises:
        MissingError: it was deleted meanwhile.
    """
    trials, kind = trials_of(storage, study), kind_of(study)
    ranked = _ranked(trials, study.directions)
    result = f"best fitness {score_text(ranked[0].value)}" if ranked else "-"
    choice = readable_choice(study.user_attrs)
    if kind == INCOMPLETE:
        result = "-"
    elif ranked and is_kind(TestStudy | SingleStudy, study):
        result = _agents(Study(address, study.study_name))
    elif choice is not None:
        result = f"winner's fitness {score_text(choice.winner.expected)}"
    elif kind == FinalsStudy.title:
        result = "-"
    return study.study_name, kind, states_text(trials), result, _last_change(trials)


def show_study(config: ShowConfig, sink: Sink) -> int:
    """What a study is, its best trials, and why others failed; or one trial."""
    storage = open_storage(config.storage)
    study = study_of(storage, config)
    name, trials, kind = study.study_name, trials_of(storage, study), kind_of(study)
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
    if is_kind(TestStudy | SingleStudy, study):
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
    lost = {t.number: n for t in trials if (n := times_lost(t))}
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
    """What each finalist reached when it was trained again, the best one first."""
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
    with writing(path):
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
                f"study {name!r} has no inner generations: no learner with a population ended one"
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
    with writing(path):
        if document is None:
            write_whole(path, lambda part: with_json(frame).to_csv(part, index=False))
        else:
            write_text(path, document)
    count = frame.arm.nunique() if config.rows == "arms" else len(frame)
    sink.line(f"{path}: {count} {config.rows} of {name}")
    if remark:
        sink.line(remark)
    return 0
