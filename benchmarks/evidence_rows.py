"""The rows of the experiments of `evidence.toml`: where they lie, how they are made of the
databases of an experiment, and how they are read.
"""

import argparse
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from evidence_plan import HERE, Experiment

from erl.errors import UserError
from erl.files import write_text
from erl.studies.configuration import EvolutionStudy, FinalsStudy, TestStudy
from erl.studies.records import Lived, decoded, lifetime_rows
from erl.studies.storage import open_storage, study_names
from erl.studies.study import Study
from erl.studies.winner import chosen as choice_of
from erl.worlds.specification import commit, to_json

ROWS = HERE / "results" / "evidence"
LIFETIME = ["env_id", "arm", "seed", "state", "training_return", "final_return", "steps", "seconds"]
FINAL = ["env_id", "of_trial", "mean", *LIFETIME[2:], "fitness"]


def rows_of(args: argparse.Namespace) -> Path:
    """The folder of the rows: that of `--rows`, else that of a small run, else the project's."""
    small_run = "folder" in args and args.small
    return Path(args.rows or (args.folder if small_run else ROWS))


def stored_rows(args: argparse.Namespace) -> Path:
    """The folder of rows that a command reads.

    Raises:
        UserError: there is none.
    """
    if not (folder := rows_of(args)).is_dir():
        raise UserError(f"there is no folder {folder}")
    return folder


def has_rows(each: Experiment, rows: Path, small: bool) -> bool:
    """Whether an experiment has its rows. A small run of other commands, or of another commit, has
    not.
    """
    file = rows / f"{each.name}.json"
    if not small or not file.exists():
        return file.exists()
    story, now = json.loads(file.read_text()), commit() or "-dirty"
    same = story["commands"] == each.commands(small) and story["started_at"] == now
    return same and not now.endswith("-dirty")


def read_tables(each: Experiment, folder: Path) -> list[pd.DataFrame]:
    """Lifetimes of the tests, trials, and lifetimes of the finals; empty where there are none."""
    files = [folder / f"{each.name}{end}.csv" for end in ("", "_trials", "_finals")]
    none = pd.DataFrame(columns=[*FINAL, "commit", "study"])
    return [pd.read_csv(file) if file.exists() else none for file in files]


def wall_of(story: dict[str, Any], frames: Iterable[pd.DataFrame]) -> float:
    """Seconds of the clock that an experiment took, at least. Of a run that was killed, the clock
    since its last note is lost.
    """
    return max(story["wall_seconds"], sum(f.seconds.sum() for f in frames) / story["workers"])


def collect(
    each: Experiment, storage: str, folder: Path, place: Path, args: argparse.Namespace
) -> None:
    """Write the rows of an experiment, and last what says that they are complete."""
    frames: dict[str, list[pd.DataFrame]] = {"_trials": [], "_finals": [], "": []}
    evolutions, failed = {}, dict.fromkeys(("trials", "finals", "tests"), 0)
    commits: list[str] = []
    versions: list[dict[str, str]] = []
    for name in sorted(study_names(open_storage(storage))):
        study = Study(storage, name)
        lived = decoded(study.trials())
        for record in (r for _, of in lived for r in of.values()):
            commits += [c for c in [str(record.commit)] if c not in commits]
            versions += [v for v in [record.versions] if v not in versions]
        if isinstance(study.config, TestStudy):
            frames[""].append(with_commits(lived, name, [*LIFETIME, "commit"]))
            failed["tests"] += failures_of(study)
        elif isinstance(study.config, FinalsStudy):
            frames["_finals"].append(with_commits(lived, name, [*FINAL, "commit"]))
            failed["finals"] += failures_of(study)
        elif isinstance(study.config, EvolutionStudy):
            frames["_trials"].append(trial_rows(lived, name))
            failed["trials"] += failures_of(study)
            choice = choice_of(study)
            evolutions[name] = {
                "config": to_json(study.config),
                "winner": None if choice is None else to_json(choice.winner),
                "finalists": [] if choice is None else to_json(choice.finalists),
                "commits": sorted({str(r.commit) for _, of in lived for r in of.values()}),
            }
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, parts in frames.items():
        if not parts:
            if suffix == "" or (suffix == "_trials" and each.evolutions):
                what = "evolution" if suffix else "test"
                raise UserError(f"there is no study of the {what} to collect")
            continue
        made = pd.concat(parts)
        # As many digits as a hyperparameter needs to be drawn from again.
        text = made.to_csv(index=False, float_format="%.10g")
        write_text(folder / f"{each.name}{suffix}.csv", text)
    story = json.loads((place / "begun.json").read_text()) | {
        "commits": commits,
        "versions": versions,
        "processor": processor(),
        "workers": args.workers,
        "wall_seconds": round(seconds_in(place / "seconds")),
        "failed": failed,
        "evolutions": evolutions,
    }
    write_text(folder / f"{each.name}.json", json.dumps(story, indent=1) + "\n")


def with_commits(lived: Lived, study: str, columns: list[str]) -> pd.DataFrame:
    """The finished lifetimes of a study, each with the commit under which it ran."""
    rows = with_all(lived).assign(study=study)
    if len(rows):
        rows = rows[rows.state == "COMPLETE"]
    return rows.reindex(columns=[*columns, "study"])


def trial_rows(lived: Lived, study: str) -> pd.DataFrame:
    """The trials of an evolution: their hyperparameters, fitness, steps, seconds and commit."""
    searched = sorted({k for trial, _ in lived for k in trial.params})
    rows = with_all(lived)
    if not len(rows):
        raise UserError(f"no lifetime of {study} has ended")
    by_trial = rows.groupby("trial")
    table = by_trial[["state", *searched]].first()
    table["fitness"] = pd.Series({t.number: t.value for t, _ in lived}, dtype=float)
    table[["steps", "seconds"]] = by_trial[["steps", "seconds"]].sum()
    table["commit"] = by_trial.commit.first()
    return table.reset_index().assign(study=study)


def with_all(lived: Lived) -> pd.DataFrame:
    """Every lifetime of a study, of whatever state, with its commit."""
    return lifetime_rows(lived).assign(
        commit=[record.commit for _, of in lived for record in of.values()]
    )


def failures_of(study: Study) -> int:
    """Trials that failed and that no later attempt made good."""
    done = [t.params for t in study.trials("COMPLETE")]
    return sum(t.params not in done for t in study.trials("FAIL"))


def seconds_in(file: Path) -> float:
    """What `timed` has noted."""
    return float(file.read_text()) if file.exists() else 0.0


def processor() -> str:
    """The model of the processor and the number of cores of this machine."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {max(1, len(names))} cores"
