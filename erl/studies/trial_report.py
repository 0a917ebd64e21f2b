"""One trial of a study in full: what was proposed, what its lifetimes returned, why it failed."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial

from erl.cli import command, score_text, value_text
from erl.errors import UserError, one_line
from erl.lifetimes.record import LifetimeRecord
from erl.studies.notes import of_lifetime, seeds_of
from erl.studies.storage import storage_words
from erl.studies.study import Study
from erl.studies.trials import attribute, lifetime_records, pruned_at, times_lost


def traceback_command(study: Study, failed: Sequence[FrozenTrial]) -> str:
    """A line that says how to see why trials failed.

    Args:
        study: theirs.
        failed: at least one.
    """
    first, *others = sorted(trial.number for trial in failed)
    words = ["studies", "show", "--study", study.name_now(), "--trial", str(first)]
    words += storage_words(study.address)
    more = f" (and --trial {', '.join(map(str, others))})" if others else ""
    return f"{'tracebacks' if others else 'its traceback'}: {command(*words)}{more}"


def find_trial(trials: Sequence[FrozenTrial], number: int, study: str) -> FrozenTrial:
    """The trial with this number.

    Raises:
        UserError: there is none.
    """
    for trial in trials:
        if trial.number == number:
            return trial
    there = "it has none yet"
    if trials:
        last = max(t.number for t in trials)
        there = f"it has {f'0 to {last}' if last else 'trial 0 only'}"
    raise UserError(f"study {study!r} has no trial {number}: {there}")


def trial_lines(trial: FrozenTrial) -> Iterator[str]:
    """All that a reader may want to know of a trial, whoever made it."""
    yield from _state(trial)
    yield "parameters:" if trial.params else "parameters: none"
    for name, value in trial.params.items():
        yield f"  {name}: {value_text(value)}"
    records: Mapping[int, LifetimeRecord] = {}
    try:
        records = lifetime_records(trial)
    except UserError as e:
        yield f"its lifetimes cannot be read: {e}"
    else:
        yield "lifetimes:" if records else "lifetimes: none stored"
    for index, record in sorted(records.items()):
        yield f"  {index}: {of_lifetime(record)}"
        yield f"     seeds: {seeds_of(record)}"
    yield from _failures(trial, records)


def _state(trial: FrozenTrial) -> Iterator[str]:
    """Its state, its value, and when it was begun."""
    attrs = trial.user_attrs
    state = trial.state.name.lower()  # as in `states_text`
    owner = attribute(trial, "owner")
    if state == "running" and owner is not None:
        state += f" in process {owner.get('pid')} of {owner.get('host')}"
    generation = f", generation {attrs['generation']}" if "generation" in attrs else ""
    yield f"state: {state}{generation}"
    times = {"begun": trial.datetime_start, "ended": trial.datetime_complete}
    said = [f"{what} {_time(when)}" for what, when in times.items() if when is not None]
    if said:
        yield ", ".join(said)
    if "retry_of" in attrs:
        yield f"takes the place of trial {attrs['retry_of']}, which had failed"
    if lost := times_lost(trial):
        yield f"lost with its process, and continued: {lost}"
    values = ", ".join(score_text(value) for value in trial.values or ())
    if trial.state.name == "PRUNED":
        point = pruned_at(trial)
        at = "" if point is None else f" at {point}/10 of its life"
        yield f"pruned{at}, with {values or '-'}"
    else:
        yield f"fitness: {values or '-'}"


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}"


def _failures(trial: FrozenTrial, records: Mapping[int, LifetimeRecord]) -> Iterator[str]:
    """Reasons and tracebacks of all that failed."""
    error: Any = attribute(trial, "error") or {}
    found = {
        f"lifetime {index}: {record.error}": record.traceback
        for index, record in sorted(records.items())
        if record.error is not None
    }
    reason = error.get("reason")
    # The trial has the first reason of its lifetimes, perhaps shortened; see `Study.store_end`.
    if reason is not None and reason not in {one_line(said, 2_000) for said in found}:
        found[reason] = error.get("traceback")
    if not found and trial.state.name == "FAIL":
        yield "failed: no reason is stored"
    for said, trace in found.items():
        yield f"failed: {one_line(said)}"
        if trace is None:
            yield "  no traceback is stored"
        for line in (trace or "").splitlines():
            yield f"  {line}"
