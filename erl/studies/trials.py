"""Running trials, and the records of lifetimes that trials hold."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
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
# Attribute with a piece of that record's text, where the record is a long one.
PIECE = "piece:"
# Characters of a record, or of a piece, in one attribute. MySQL's have 65,535 bytes, and JSON
# writes a character of a text with two at most where the text is JSON itself.
LONGEST = 30_000
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


def states_text(trials: Iterable[FrozenTrial]) -> str:
    """`12 complete, 1 fail`."""
    count = Counter(t.state.name.lower() for t in trials)
    return ", ".join(f"{n} {state}" for state, n in count.most_common()) or "none yet"


def attribute(trial: FrozenTrial, key: str) -> Any:
    """One of a trial's own attributes: `owner`, `error`, `lifetime:0`; None if it has none.

    They are system attributes, which dashboards do not show: a page of lines of 4,000 characters
    cannot be read. Version 0.2.0 and earlier stored them as user attributes, which may also be
    another program's.
    """
    old = trial.user_attrs.get(key)
    return trial.system_attrs.get(key, old if isinstance(old, dict) else None)


def why_failed(trial: FrozenTrial) -> str | None:
    """The reason of a failure; None if none is stored."""
    return (attribute(trial, "error") or {}).get("reason")


def pruned_at(trial: FrozenTrial) -> int | None:
    """The point of comparison at which a trial was pruned; None if none is stored."""
    pruned = trial.user_attrs.get("pruned")
    return pruned.get("point") if isinstance(pruned, dict) else None


def times_lost(trial: FrozenTrial) -> int:
    """How often a trial's process ended without giving it back."""
    lost = trial.user_attrs.get("lost")
    return lost if isinstance(lost, int) else 0


def tried_again(trials: Iterable[FrozenTrial]) -> set[int]:
    """Numbers of failed trials that another one of these replaces. It has their records too."""
    return {t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs}


def stored_records(trial: FrozenTrial) -> dict[int, Any]:
    """The records that a trial holds as they were given, by the index of the lifetime."""
    attrs = trial.user_attrs | trial.system_attrs
    found = {
        int(number): v
        for k, v in attrs.items()
        if k.startswith(RECORD) and (number := k.removeprefix(RECORD)).isdecimal()
    }
    for index, record in found.items():
        if "pieces" in record:
            # Version 0.2.0 and earlier named pieces by the lifetime alone.
            of = f"{index}:{record['digest']}" if "digest" in record else index
            pieces = [attrs[f"{PIECE}{of}:{k}"] for k in range(record["pieces"])]
            found[index] = json.loads("".join(pieces))
    return found


def record_attributes(index: int, record: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a trial that hold a record, in the order in which they are to be written.

    A long record is stored as text in several pieces, and its own attribute, which comes last, has
    their number. The pieces bear a digest of the text, so that the record of a lifetime that is
    trained again never mixes with an earlier one's, wherever the writing stops.

    Args:
        index: of the lifetime.
        record: as `stored_records` gives it.
    """
    text = json.dumps(record)
    if len(text) <= LONGEST:
        return {f"{RECORD}{index}": record}
    pieces = [text[k : k + LONGEST] for k in range(0, len(text), LONGEST)]
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {
        **{f"{PIECE}{index}:{digest}:{k}": piece for k, piece in enumerate(pieces)},
        f"{RECORD}{index}": {"pieces": len(pieces), "digest": digest},
    }


def lifetime_records(trial: FrozenTrial) -> dict[int, LifetimeRecord]:
    """The records that a trial holds, by the index of the lifetime."""
    return {index: from_json(LifetimeRecord, r) for index, r in stored_records(trial).items()}
