"""The evidence behind `docs/results.md`: experiments at the scale of the papers, their rows and
their tables.

    python benchmarks/evidence.py plan
    python benchmarks/evidence.py run --folder evidence --rows evidence/rows
        [--parts memory] [--names swimmer_0]
    python benchmarks/evidence.py table [--rows evidence/rows] [--small small]
    python benchmarks/evidence.py catalogue NAME
    python benchmarks/evidence.py cost
    python benchmarks/evidence.py capacities
    python benchmarks/evidence.py keep --folder evidence
    python benchmarks/evidence.py run --folder small --small

`benchmarks/evidence.toml` lists the experiments: evolutions and their tests, as commands of the
public scripts, and the comparisons across them. `run` goes through the experiments, those that take
least first. Interrupted, it goes on where it was: the scripts continue in their database, and
experiments that have their rows are left out. Several processes may run at once. An experiment that
fails does not stop the others; the exit code is 1 then.

`keep` stores what interrupted experiments have done so far, beside the stored rows: a `run` of the
project's rows goes on with it, also on another machine.

When an experiment ends, its rows are in the folder of `--rows`: every lifetime of the tests
(`NAME.csv`), every trial (`NAME_trials.csv`), every lifetime of the finals (`NAME_finals.csv`), and
in `NAME.json` the commands, winners, commits, versions, processor and wall time. `table` prints
their tables, then the comparisons. `catalogue` prints entries for `erl/studies/evolved.toml`.
Without `--rows`, every command takes the stored rows of the project, in
`benchmarks/results/evidence/`: what has rows there is not run again.
`--small` runs all of them at a small budget, with the rows in the folder; a later commit or other
commands begin anew. `table --small FOLDER` prints both side by side. `cost` prints what everything
took, or is planned to take, beside the published codes. `capacities` prints how much the tested
reservoirs of the memory benchmark remember.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evidence_plan
import numpy as np
import pandas as pd
from evidence_cost import cost
from evidence_plan import RES, Experiment, chosen, comparisons, listed, task_set
from evidence_rows import read_tables, rows_of, stored_rows, wall_of
from evidence_run import keep, run
from evidence_tables import (
    PRIMARY,
    SECONDARY,
    catalogue_entries,
    compared,
    matrix,
    matrix_shown,
    memory_capacities,
    memory_figure,
    of_experiment,
    said,
    shown,
)
from rows import make_parser

from erl.cli import duration, exit_after, plural
from erl.errors import UserError
from erl.figures.comparison import generalisation_matrix
from erl.figures.style import save
from erl.statistics import bootstrap_interval, interval_text
from erl.studies.tables import to_markdown

ROWS_HELP = "folder of rows of one's own; by default the project's, benchmarks/results/evidence"
# Agents of the memory benchmark, and published ones beside them, by their keys in evidence.toml.
OF_MEMORY = {
    "evolved reservoir": RES,
    "not evolved": f"RANDOM_{RES}",
    "W = 0": f"NOREC_{RES}",
    "four inputs": "INPUTS_PPO",
    "four frames": "STACK_PPO",
    "LSTM": "RecurrentPPO",
    "PPO": "PPO",
}
THEIRS = {"GRU, published": "gru", "best of 13, published": "best_of_13"}


def plan(args: argparse.Namespace) -> None:
    """Print what there is and what is done."""
    for each in chosen(args):
        done = "done" if (rows_of(args) / f"{each.name}.json").exists() else ""
        long = "more than 2 h" if each.minutes > 120 else ""
        print(f"{each.name:36} {each.part:14} {each.minutes:5d} core-minutes  {long:13}  {done}")


def table(args: argparse.Namespace) -> None:
    """Print the table of every experiment that has rows, then the comparisons of their parts, over
    all experiments.
    """
    parts = {each.part for each in chosen(args)}
    if args.small and not Path(args.small).is_dir():
        raise UserError(f"there is no folder {args.small}")
    places = [("", stored_rows(args)), *([(", small", Path(args.small))] if args.small else [])]
    for each in chosen(args):
        for title, folder in places:
            if (folder / f"{each.name}.json").exists():
                print_experiment(each, title, folder)
    for title, folder in places:
        rows = {
            e.name: pd.read_csv(folder / f"{e.name}.csv")
            for e in evidence_plan.experiments()
            if (folder / f"{e.name}.json").exists()
        }
        print_comparisons(rows, parts, title)
        if "generalisation" in parts:
            print_matrix(rows, folder, title)
        if "memory" in parts:
            print_published(rows, folder, title)


def print_experiment(each: Experiment, title: str, folder: Path) -> None:
    """Print how an experiment was run, and the tables of its tests."""
    rows, trials, finals = read_tables(each, folder)
    story = json.loads((folder / f"{each.name}.json").read_text())
    print(f"\n### {each.name}{title}\n")
    for command in story["commands"]:
        print(f"    python {command}")
    steps = rows.steps.sum() + trials.steps.sum() + finals.steps.sum()
    failed = ", ".join(f"{n} {of}" for of, n in story["failed"].items() if n) or "nothing"
    print(
        f"\n{plural(len(trials), 'trial')}, {plural(len(finals), 'lifetime')} of finals; "
        f"{steps:,} steps in {duration(wall_of(story, (rows, trials, finals)))} with "
        f"{plural(story['workers'], 'worker')}; failed: {failed}. Processor: {story['processor']}. "
        f"Commits: {', '.join(story['commits'])}.\n"
    )
    for versions in story["versions"]:
        print(f"Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.\n")
    for study, part in rows.groupby("study"):
        for column in (PRIMARY, SECONDARY):
            print(f"{study}, {column}\n")
            print(to_markdown(of_experiment(part, each.baseline, column)))


def print_comparisons(rows: dict[str, pd.DataFrame], parts: set[str], title: str) -> None:
    """Print the comparisons of these parts of which there are rows."""
    roots = {e.name: e.root for e in evidence_plan.experiments()}
    for comparison in comparisons():
        if comparison.part not in parts:
            continue
        made = compared(comparison, rows, roots)
        if not len(made):
            continue
        print(f"\n### {comparison.name}{title}\n")
        print(to_markdown(shown(comparison, made)))
        print(f"{said(comparison, made)}\n")


def print_matrix(rows: dict[str, pd.DataFrame], folder: Path, title: str) -> None:
    """Print the matrix of generalisation and draw it beside the rows."""
    of = {e.name: e for e in evidence_plan.experiments()}
    seen = {name: (of[name].evolved_on, frame) for name, frame in rows.items()}
    tested_on = {
        env_id
        for name, (_, frame) in seen.items()
        if of[name].part == "generalisation"
        for env_id in frame.env_id
    }
    # Beside them what was evolved in the environment of the test itself.
    places = {
        name: (task_name(place[0]), place[1].assign(env_id=place[1].env_id.map(task_name)))
        for name, place in seen.items()
        if of[name].part == "generalisation"
        or (place[0] in tested_on and of[name].part in ("locomotion", "memory"))
    }
    made = matrix(places, RES) if tested_on else None
    if made is None:
        return
    print(f"\n### Evolved on (rows) x tested on (columns){title}\n")
    print(to_markdown(matrix_shown(made)))
    print("P(arm > PPO) with its 95 % bootstrap interval; IQM of the return (of PPO's).\n")
    about = (
        "Not evolved: reservoirs drawn from the search space, others for each seed. "
        "W = 0: evolved ones without recurrent connections."
    )
    for name in places:
        if (of_set := task_set(of[name].evolve)) is not None:
            env_ids = " and ".join(map(task_name, of_set.env_ids))
            about += f" {of_set.name}: evolved on {env_ids}."
    save(generalisation_matrix(made, about), folder, "generalisation", ["svg"])


def print_published(rows: dict[str, pd.DataFrame], folder: Path, title: str) -> None:
    """Print our agents, evolved in the environment itself, beside published results, and draw them
    beside the rows.
    """
    published = listed()["published"]
    made = of_memory(rows, published["rows"])
    if not len(made):
        return
    wide = made.assign(text=[mean_shown(*cell) for cell in made[["mean", "low", "high"]].values])
    wide = wide.pivot(index="environment", columns="agent", values="text").fillna("-")
    wide = wide.reindex(index=made.environment.unique(), columns=[*OF_MEMORY, *THEIRS])
    print(f"\n### Beside published results{title}\n")
    print(to_markdown(wide.fillna("-").rename_axis(None, axis=1).reset_index()))
    print(f"{published['caption']}\n")
    save(
        memory_figure(made, [*OF_MEMORY, *THEIRS], published["caption"]), folder, "memory", ["svg"]
    )


def task_name(env_id: str) -> str:
    """An environment's name as the benchmark of its tasks has it; POPGym's ids say POPGym twice."""
    prefix = "popgym:popgym-"
    return env_id.removeprefix(prefix).removesuffix("-v0") if env_id.startswith(prefix) else env_id


def of_memory(
    rows: dict[str, pd.DataFrame], published: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """The agents of the memory benchmark, ours and published ones, in long form: `environment`,
    `agent`, `mean`, and `low` and `high` of its 95 % bootstrap interval, NaN where nobody has it.
    """
    theirs = {entry["env_id"]: entry for entry in published}
    of_task: dict[str, list[pd.DataFrame]] = {}
    for each in sorted(evidence_plan.experiments(), key=lambda e: not e.evolutions):
        if each.part == "memory" and each.name in rows:
            of_task.setdefault(each.evolved_on, []).append(rows[each.name])
    lines: list[tuple[Any, ...]] = []
    for env_id, frames in of_task.items():
        task, frame = task_name(env_id), pd.concat(frames)
        for agent, arm in OF_MEMORY.items():
            scores = frame[frame.arm == arm][PRIMARY].dropna().to_numpy(dtype=float)
            if len(scores):
                lines.append((task, agent, scores.mean(), *bootstrap_interval(scores, np.mean)))
        entry = theirs.get(env_id, {})
        lines += [(task, k, entry[v], np.nan, np.nan) for k, v in THEIRS.items() if v in entry]
    return pd.DataFrame(lines, columns=["environment", "agent", "mean", "low", "high"])


def mean_shown(mean: float, low: float, high: float) -> str:
    """A mean, with its interval where there is one."""
    return f"{mean:.3f}" + ("" if np.isnan(low) else f" {interval_text((low, high), '{:.2f}')}")


def capacities(args: argparse.Namespace) -> None:
    """Print the memory capacities of the reservoirs that the memory benchmark tested."""
    arms, frames = [arm for arm in OF_MEMORY.values() if RES in arm], []
    folder = stored_rows(args)
    for each in chosen(args):
        if each.part == "memory" and each.evolutions and (folder / f"{each.name}.json").exists():
            story = json.loads((folder / f"{each.name}.json").read_text())
            rows = pd.read_csv(folder / f"{each.name}.csv")
            frames.append(memory_capacities(each.name, story, rows, arms))
    if not frames:
        raise UserError(f"no experiment of the memory benchmark has rows in {folder}")
    print(to_markdown(named_once(pd.concat(frames, ignore_index=True))))


def named_once(frame: pd.DataFrame) -> pd.DataFrame:
    """Capacities with one row for what all experiments share: tests of equal root seeds have the
    same reservoirs that were not evolved.
    """
    count = frame.experiment.nunique()
    if count == 1:
        return frame
    shared = frame.groupby(list(frame.columns[1:])).experiment.transform("count") == count
    return frame.assign(experiment=frame.experiment.mask(shared, f"all {count}")).drop_duplicates()


def catalogue(args: argparse.Namespace) -> None:
    """Print entries for `erl/studies/evolved.toml`."""
    folder = stored_rows(args)
    if not (folder / f"{args.name}.json").exists():
        raise UserError(f"{args.name} has no rows in {folder}")
    story = json.loads((folder / f"{args.name}.json").read_text())
    print(catalogue_entries(args.name, story, pd.read_csv(folder / f"{args.name}.csv")))


def main() -> int:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    for function in (plan, run, keep, table, cost, capacities):
        name = function.__name__
        sub = commands.add_parser(name)
        sub.set_defaults(function=function)
        sub.add_argument("--parts", help="comma-separated; by default all")
        sub.add_argument("--names", help="of experiments, comma-separated; by default all")
        if name != "keep":  # what it keeps is for the project's rows
            sub.add_argument("--rows", help=ROWS_HELP)
        if name in ("run", "keep"):
            sub.add_argument("--folder", default="evidence", help="of databases, logs and models")
        if name == "run":
            sub.add_argument("--workers", type=int, default=1)
            sub.add_argument("--small", action="store_true", help="at a small budget")
        if name == "table":
            sub.add_argument("--small", help="folder of a small run, to print beside")
    sub = commands.add_parser("catalogue")
    sub.set_defaults(function=catalogue)
    sub.add_argument("name", help="of an experiment")
    sub.add_argument("--rows", help=ROWS_HELP)
    args = parser.parse_args()
    return args.function(args) or 0


if __name__ == "__main__":
    exit_after(main)
