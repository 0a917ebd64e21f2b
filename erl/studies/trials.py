"""Running trials, and the records of lifetimes that trials hold."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from erl.lifetimes.record import LifetimeRecord
from erl.search.pruning import Pruned, TrialReporter
from erl.worlds.specification import LifetimeSpec, from_json

# From proposed parameters to the lifetimes of the trial.
Plan = Callable[[dict[str, Any]], list[LifetimeSpec]]
# Attribute of a trial with the record of its lifetime of this number.
RECORD = "lifetime:"
# Attribute with a column of the table of generations in that record, or a piece of it, where the
# table is a long one.
COLUMN = "kept:"
# Characters of a record, or of a piece of a column, in one attribute: MySQL's have 65,535 bytes.
LONGEST = 40_000
# What a lifetime's return contributes to its trial's fitness, their mean.
Score = Callable[[LifetimeSpec, float], float]


@dataclass
class RunningTrial:
    """A trial that this coordinator holds.

    Attributes:
        number: Optuna's.
        params: proposed hyperparameters.
        attrs: user attributes.
        specs: its lifetimes.
        records: of the lifetimes that have ended, by their index.
        error: why the trial cannot succeed any more: reason and traceback.
        pruned: where and at which value it was pruned.
        reporter: says what it has reached on the way, and compares it with earlier trials.
    """

    number: int
    trial_id: int
    params: dict[str, Any]
    attrs: dict[str, Any]
    specs: list[LifetimeSpec]
    records: dict[int, LifetimeRecord]
    error: tuple[str, str | None] | None = None
    pruned: Pruned | None = None
    reporter: TrialReporter = field(default_factory=TrialReporter)

    def add(self, index: int, record: LifetimeRecord) -> None:
        """A lifetime has ended; one that failed is why the trial fails."""
        self.records[index] = record
        if record.error is not None and self.error is None:
            self.error = (f"lifetime {index}: {record.error}", record.traceback)

    @property
    def complete(self) -> bool:
        """Whether all lifetimes have ended."""
        return len(self.records) == len(self.specs)

    def value(self, score: Score) -> float | None:
        """Its fitness, or the value that it was pruned at, when it has ended; None if it failed."""
        if self.pruned is not None:
            return self.pruned.value
        if self.error is not None:
            return None
        fitness = [self.records[i].fitness for i in range(len(self.specs))]
        return float(
            np.mean([score(spec, f) for spec, f in zip(self.specs, fitness) if f is not None])
        )


def key_of(params: dict[str, Any]) -> str:
    """Parameters as the key of a dictionary."""
    return json.dumps(params, sort_keys=True)


def attribute(trial: FrozenTrial, key: str) -> Any:
    """One of a trial's own attributes: `owner`, `error`, `lifetime:0`; None if it has none.

    They are system attributes, which dashboards do not show: a page of lines of 4,000 characters
    cannot be read. Version 0.2.0 and earlier stored them as user attributes.
    """
    return trial.system_attrs.get(key, trial.user_attrs.get(key))


def why_failed(trial: FrozenTrial) -> str | None:
    """The reason of a failure; None if none is stored."""
    return (attribute(trial, "error") or {}).get("reason")


def stored_records(trial: FrozenTrial) -> dict[int, Any]:
    """The records that a trial holds as they are stored, by the index of the lifetime."""
    attrs = trial.user_attrs | trial.system_attrs
    found = {int(k.removeprefix(RECORD)): v for k, v in attrs.items() if k.startswith(RECORD)}
    for index, record in found.items():
        inner = record.get("inner") or {}
        if isinstance(names := inner.get("kept"), list):
            kept: dict[str, list[Any]] = {}
            for name in names:
                kept.setdefault(name.partition(":")[0], []).extend(attrs[f"{COLUMN}{index}:{name}"])
            found[index] = {**record, "inner": {**inner, "kept": kept}}
    return found


def record_attributes(index: int, record: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a trial that hold a record, in the order in which they are to be written.

    A long table of generations has an attribute for each column, or several for a long column, and
    the record has their names: `fitness`, `fitness:1`, `fitness:2`, …

    Args:
        index: of the lifetime.
        record: as `stored_records` gives it.
    """
    inner = record.get("inner") or {}
    kept = inner.get("kept")
    if not kept or len(json.dumps(record)) <= LONGEST:
        return {f"{RECORD}{index}": record}
    pieces = {
        f"{name}:{k}" if k else name: piece
        for name, values in kept.items()
        for k, piece in enumerate(_pieces(values))
    }
    return {
        **{f"{COLUMN}{index}:{name}": piece for name, piece in pieces.items()},
        f"{RECORD}{index}": {**record, "inner": {**inner, "kept": list(pieces)}},
    }


def _pieces(values: Sequence[Any]) -> list[Sequence[Any]]:
    """Values in as many parts as it takes for each to be of `LONGEST` characters at most."""
    if len(values) < 2 or len(json.dumps(values)) <= LONGEST:
        return [values]
    middle = len(values) // 2
    return [*_pieces(values[:middle]), *_pieces(values[middle:])]


def lifetime_records(trial: FrozenTrial) -> dict[int, LifetimeRecord]:
    """The records that a trial holds, by the index of the lifetime."""
    return {index: from_json(LifetimeRecord, r) for index, r in stored_records(trial).items()}
