"""Notes of studies and trials, as Optuna's dashboard shows them: what something is, what came of
it, and the command that comes next.

A note is Markdown. The dashboard keeps it in system attributes of the study, cut into pieces. What
a user writes below the line that ends a note stays when the note is written again, also by several
coordinators at the same time.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from erl.cli import duration, params_text, plural, score_text
from erl.errors import one_line
from erl.lifetimes.record import LifetimeRecord
from erl.studies.configuration import (
    EvolutionStudy,
    FinalsStudy,
    SingleStudy,
    StudyConfig,
    TestStudy,
)
from erl.studies.trials import RunningTrial, states_text, stored_records, tried_again
from erl.worlds.specification import to_json

# Characters of a note above its line: MySQL's attributes have 65,535 bytes.
LONGEST = 10_000
LINE = "*What you write below this line stays.*"
# A note names so many agents, seeds or parameters at most.
SHOWN = 12


def _prefix(trial_id: int | None) -> str:
    return "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"


def read_note(attrs: Mapping[str, Any], trial_id: int | None = None) -> str:
    """A note.

    Args:
        attrs: system attributes of the study.
        trial_id: of the trial; None for the study's own.
    """
    return "".join(_pieces(attrs, trial_id).values())


def _pieces(attrs: Mapping[str, Any], trial_id: int | None) -> dict[int, str]:
    """The pieces of a note by their numbers, in order."""
    prefix = f"{_prefix(trial_id)}note_str:"
    found = {int(k.removeprefix(prefix)): v for k, v in attrs.items() if k.startswith(prefix)}
    return dict(sorted(found.items()))


def write_note(storage: BaseStorage, study_id: int, text: str, trial_id: int | None = None) -> None:
    """Write a note, above what a user wrote; nothing is written where it is there already.

    Other coordinators may write the same note meanwhile. So it is written into the piece in which
    the line ends; what follows the line there stays, and so do the pieces behind it. Before and
    after each single write, whoever reads the note finds all that the user wrote.

    Args:
        storage: of the study.
        study_id: its number.
        text: Markdown; it is cut after `LONGEST` characters.
        trial_id: of the trial; None for the study's own.
    """
    attrs = storage.get_study_system_attrs(study_id)
    pieces = _pieces(attrs, trial_id) or {0: ""}
    before = "".join(pieces.values())
    if LINE in before:
        own = before.index(LINE) + len(LINE)
        ends = dict(zip(pieces, accumulate(map(len, pieces.values()))))
        last = next(number for number, end in ends.items() if end >= own)
        kept = before[own : ends[last]]
    else:
        last, kept = 0, before and f"\n\n{pieces[0]}"
    changed = {last: f"{text[:LONGEST].rstrip()}\n\n{LINE}{kept}"}
    changed |= {number: "" for number in pieces if number < last}
    changed = {number: piece for number, piece in changed.items() if piece != pieces[number]}
    if not changed:
        return
    prefix = _prefix(trial_id)
    for number, piece in changed.items():
        storage.set_study_system_attr(study_id, f"{prefix}note_str:{number}", piece)
    version = int(attrs.get(f"{prefix}note_ver", 0)) + 1
    storage.set_study_system_attr(study_id, f"{prefix}note_ver", version)


# -- what notes say --


def study_note(
    config: StudyConfig,
    trials: Sequence[FrozenTrial],
    commit: str | None,
    commands: Sequence[str] = (),
    winner: str | None = None,
) -> str:
    """What a study is and what came of it so far.

    Args:
        config: what it is.
        trials: all of them.
        commit: of the project, when it began.
        commands: what to run next.
        winner: what an evolution hands over, and what it reached; None without finals and tests.
    """
    rows = {"what": _what(config), **_how(config)}
    rows["trials"] = states_text(trials)
    rows |= _reached(config, trials)
    if winner is not None:
        rows["winner"] = winner
    again = tried_again(trials)
    lived = [r for t in trials if t.number not in again for r in stored_records(t).values()]
    steps, seconds = sum(r["steps"] for r in lived), sum(r["seconds"] for r in lived)
    if lived:
        rows["so far"] = f"{steps:,} steps in {duration(seconds)} of training"
    rows["commit"] = commit or "not stored"
    return _text(rows, commands)


def trial_note(
    trial: RunningTrial,
    state: str,
    value: float | None,
    commands: Sequence[str] = (),
) -> str:
    """What a trial was and what came of it.

    Args:
        trial: it has ended.
        state: `COMPLETE`, `PRUNED` or `FAIL`.
        value: its fitness, or the value that it was pruned at.
        commands: what to run next.
    """
    records = [trial.records[i] for i in sorted(trial.records)]
    rows = {"parameters": _named(trial.params)}
    if state == "FAIL":
        rows["failed"] = one_line(trial.error[0] if trial.error else "no reason is known", 500)
    elif trial.pruned is not None:
        rows["pruned"] = f"at {trial.pruned.point}/10 of its life, with {score_text(value)}"
    else:
        many = f", mean of {len(records)} lifetimes" if len(records) > 1 else ""
        rows["fitness"] = f"{score_text(value)}{many}"
    for index in sorted(trial.records)[:SHOWN]:
        number = f" {index}" if len(trial.specs) > 1 else ""
        rows[f"lifetime{number}"] = of_lifetime(trial.records[index])
        rows[f"its seeds{number}"] = seeds_of(trial.records[index])
    commits = sorted({r.commit for r in records if r.commit})
    rows["commit"] = ", ".join(commits) or "not stored"
    return _text(rows, commands)


def of_lifetime(record: LifetimeRecord) -> str:
    """What became of a lifetime, in a line."""
    if record.error is not None:
        return f"failed after {record.steps:,} steps"
    parts = [record.spec.task.env_id]
    if record.training_return is not None:
        parts.append(f"training return {score_text(record.training_return)}")
    if record.final_returns:
        mean = sum(record.final_returns) / len(record.final_returns)
        parts.append(f"final policy {score_text(mean)}")
    parts += [f"{record.episodes:,} episodes", f"{record.steps:,} steps"]
    parts.append(f"{record.seconds:,.1f} s of training")
    return ", ".join([*parts, *([record.note] if record.note else [])])


def seeds_of(record: LifetimeRecord) -> str:
    """The seeds of a lifetime, in a line."""
    return ", ".join(f"{role} {seed}" for role, seed in to_json(record.spec.seeds).items())


def _what(config: StudyConfig) -> str:
    """In a few words."""
    if isinstance(config, SingleStudy):
        return f"training of {config.learner} in {config.env_id}"
    if isinstance(config, TestStudy):
        where = ", ".join(config.environments)
        return f"{config.title} in {where}, of {_named(config.params)}"
    if isinstance(config, FinalsStudy):
        return f"{config.title} of an {_what(config.evolution)}"
    return f"{config.title}: {config.learner} in {', '.join(config.environments)}"


def _how(config: StudyConfig) -> dict[str, str]:
    """How many steps and seeds, and what is searched."""
    if isinstance(config, SingleStudy):
        return {"a trial": f"{config.steps:,} steps, root seed {config.seed}"}
    if isinstance(config, TestStudy):
        seed = config.evolution.seed
        return {"a trial": f"{config.training_steps:,} steps, test seeds of root seed {seed}"}
    if isinstance(config, FinalsStudy):
        evolution = config.evolution
        steps, seed = evolution.training_steps, evolution.seed
        return {"a trial": f"{steps:,} steps, a seed of the finals of root seed {seed}"}
    sets = f"{len(config.environments)} environments x " if config.env_ids else ""
    what = "episodes of the final policy"
    if config.fitness == "training":
        what = f"the last {config.ep_eval} training episodes"
    seeds = plural(config.nb_seeds, "seed")
    return {
        "a trial": f"{sets}{seeds} x {config.training_steps:,} steps, root seed {config.seed}",
        "sampler": f"{config.sampler}, generations of {config.popsize}"
        + ("" if config.pruner == "none" else f", pruned by {config.pruner}"),
        "fitness": f"mean return of {what}"
        + (" on the scale from random to target" if config.references else ""),
    }


def _reached(config: StudyConfig, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """The best trial of an evolution; mean returns of a test's agents."""
    done = [t for t in trials if t.state.name == "COMPLETE" and t.value is not None]
    if not done:
        return {}
    if isinstance(config, EvolutionStudy):
        best = max(done, key=lambda t: (t.value, -t.number))
        return {"best": f"trial {best.number}, {score_text(best.value)}: {_named(best.params)}"}
    groups: dict[str, list[float]] = {}
    for trial in done:
        name = _group(config, trial)
        groups.setdefault(name, []).append(float(trial.value or 0.0))
    return {
        name: f"{score_text(sum(v) / len(v))}, mean of {plural(len(v), 'seed')}"
        for name, v in list(groups.items())[:SHOWN]
    }


def _group(config: StudyConfig, trial: FrozenTrial) -> str:
    """What a trial's value is a value of: an agent of a test, a finalist."""
    if isinstance(config, FinalsStudy):
        finalist = {k: v for k, v in trial.params.items() if k != "seed"}
        return ", ".join(f"{name} {number}" for name, number in finalist.items())
    return str(trial.params.get("arm", "return"))


def _named(params: Mapping[str, Any]) -> str:
    return params_text(params, 4) or "none"


def _text(rows: Mapping[str, str], commands: Sequence[str]) -> str:
    """Rows as a list, since cells of a table break no lines; commands as code."""
    lines = [f"- **{_plain(name)}**: {_plain(value)}" for name, value in rows.items()]
    for command in commands:
        lines += ["", f"`{command}`"]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text in which Markdown finds no signs of its own."""
    return "".join(f"\\{c}" if c in "\\`*_#|<>[]$~" else c for c in text)
