"""The evidence behind `docs/results.md`: experiments at the scale of the papers, their rows and
their tables.

    python benchmarks/evidence.py plan
    python benchmarks/evidence.py run --folder evidence [--parts memory] [--names swimmer_0]
    python benchmarks/evidence.py table [--small small]
    python benchmarks/evidence.py cost
    python benchmarks/evidence.py run --folder small --small

`benchmarks/evidence.toml` lists the experiments: an evolution and its tests, as commands of the
public scripts. `run` goes through them, those that take least first. Interrupted, it goes on where
it was: the scripts continue in their database, and experiments that have their rows are left out.
When an experiment ends, its rows are in `benchmarks/results/evidence/`: every lifetime of the
tests, and every trial of the evolution. `table` prints their tables. `--small` runs all of them at
a small budget, with the rows in the folder; `table --small FOLDER` prints both side by side.
`cost` prints what everything took, or is planned to take, beside the published codes.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from erl.errors import UserError
from erl.figures.comparison import results_table, to_markdown
from erl.files import write_whole
from erl.studies.configuration import EvolutionStudy, TestStudy
from erl.studies.records import records
from erl.studies.storage import open_storage, study_names
from erl.studies.study import Study
from erl.worlds.task_sets import load_task_set

HERE = Path(__file__).resolve().parent
ROWS = HERE / "results" / "evidence"
LIFETIME = ["env_id", "arm", "seed", "state", "training_return", "final_return", "steps", "seconds"]
# Of a flag that is given twice the last one counts. Final policies play two episodes, and not ten.
SMALL_EVOLUTION = (
    "--nb_trials 4 --nb_seeds 1 --training_steps {steps} --ep_eval 2 "
    "--finalists 1 --finalist_seeds 1"
)
SMALL_TEST = "--HP_training_steps {steps} --training_steps {steps} --nb_seeds 2"


# Environment steps a second of published codes on one core. ER-MRL's: HalfCheetah-v4, cohort.md.
# ERL-Re2's: updates, of which it does one a step, on another core, erl_re2.md.
PUBLISHED = {"PPO": 1220, "ERL-Re2": 18}
# Other results whose steps are stored: name of the page and of the rows, the arm (None for all),
# and whose published code takes such steps.
OTHERS = (
    ("learning_curves", None, ""),
    ("learning_curves", "ERL-Re2", "ERL-Re2"),
    ("derl", None, ""),
    ("pruning", None, "PPO"),
)


@dataclass(frozen=True)
class Experiment:
    """An evolution and its tests.

    Attributes:
        name: of its files.
        part: of the page of results.
        minutes: of one core, estimated.
        evolve: the command of the evolution.
        tests: the commands of its tests.
        baseline: the arm that others are compared with.
        small_steps: of a lifetime, at a small budget.
    """

    name: str
    part: str
    minutes: int
    evolve: str
    tests: tuple[str, ...]
    baseline: str = "PPO"
    small_steps: int = 4_096

    @property
    def learner(self) -> str:
        """Whom its reservoirs are evolved for."""
        return str(flag(self.evolve, "learner", "PPO"))

    def steps(self) -> int:
        """Environment steps at full size, with finals of six finalists, as planned."""
        env_type = flag(self.evolve, "env_type", None)
        sets = flag(self.evolve, "sets", None)
        path = None if sets is None else str(HERE.parent / sets)
        envs = 1 if env_type is None else len(load_task_set(env_type, path).env_ids)
        lifetimes = int(flag(self.evolve, "nb_trials", 100)) * int(flag(self.evolve, "nb_seeds", 3))
        total = (lifetimes + 6 * 5) * envs * int(flag(self.evolve, "training_steps", 300_000))
        for test in self.tests:
            # Without --arms: with and without reservoirs, or with settings evolved and drawn.
            arms = len(str(flag(test, "arms", "")).split(",")) if "--arms" in test else 2
            arms += "--controls" in test
            total += arms * int(flag(test, "nb_seeds", 5)) * int(flag(test, "training_steps", 0))
        return total

    def commands(self, small: bool) -> list[str]:
        """What is run, in this order."""
        evolve, tests = self.evolve, list(self.tests)
        if small:
            evolve = f"{evolve} {SMALL_EVOLUTION.format(steps=self.small_steps)}"
            tests = [f"{test} {SMALL_TEST.format(steps=self.small_steps)}" for test in tests]
        return [evolve, *tests]


def flag(command: str, name: str, default: Any) -> Any:
    """The value of a flag in a command."""
    words = shlex.split(command)
    return words[words.index(f"--{name}") + 1] if f"--{name}" in words else default


def experiments() -> list[Experiment]:
    """All of them, those that take least first."""
    with (HERE / "evidence.toml").open("rb") as file:
        entries = tomllib.load(file)["experiment"]
    made = [Experiment(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    return sorted(made, key=lambda e: e.minutes)


def chosen(args: argparse.Namespace) -> list[Experiment]:
    """Those that the flags name."""
    every = experiments()
    for flag, known in (("parts", {e.part for e in every}), ("names", {e.name for e in every})):
        unknown = set(filter(None, (getattr(args, flag) or "").split(","))) - known
        if unknown:
            raise SystemExit(f"no {flag[:-1]} is called {', '.join(sorted(unknown))}")
    parts, names = ((args.parts or "").split(","), (args.names or "").split(","))
    return [
        e
        for e in every
        if (not args.parts or e.part in parts) and (not args.names or e.name in names)
    ]


def run(args: argparse.Namespace) -> None:
    """Run what has no rows yet."""
    folder = Path(args.folder)
    rows = folder if args.small else ROWS
    for each in chosen(args):
        if (rows / f"{each.name}.csv").exists():
            continue
        place = folder / each.name
        place.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{place.resolve()}/studies.db"
        begun = time.monotonic()
        for command in each.commands(args.small):
            script, *flags = shlex.split(command)
            print(f"{each.name}: python {command}", flush=True)
            # Of files in this folder too: the command runs in another one.
            flags = [str(HERE.parent / f) if f.startswith("benchmarks/") else f for f in flags]
            flags += ["--storage", storage, "--workers", str(args.workers)]
            code = subprocess.run(
                [sys.executable, str(HERE.parent / script), *flags], cwd=place
            ).returncode
            if code:
                raise SystemExit(f"{each.name}: the command ended with exit code {code}")
        collect(each, storage, rows, time.monotonic() - begun)


def collect(each: Experiment, storage: str, folder: Path, seconds: float) -> None:
    """Write the rows of an experiment: trials first, since its lifetimes say that it is done."""
    lifetimes, trials = [], []
    for name in sorted(study_names(open_storage(storage))):
        config = Study(storage, name).config
        frame = records(storage, name)
        if isinstance(config, TestStudy):
            frame = frame[frame.state == "COMPLETE"]
            lifetimes.append(frame[LIFETIME].assign(study=name))
        elif isinstance(config, EvolutionStudy):
            searched = sorted({k for t in Study(storage, name).trials() for k in t.params})
            by_trial = frame.groupby("trial")
            table = by_trial[["state", *searched]].first()
            table["fitness"] = by_trial.fitness.mean()
            table[["steps", "seconds"]] = by_trial[["steps", "seconds"]].sum()
            trials.append(table.reset_index().assign(study=name))
    folder.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    for suffix, frames in (("_trials", trials), ("", lifetimes)):
        rows = pd.concat(frames).assign(commit=commit, wall_seconds=round(seconds))
        text = rows.to_csv(index=False, float_format="%.6g")
        _write(folder / f"{each.name}{suffix}.csv", text)


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda beside: Path(beside).write_text(text, encoding="utf-8"))


def table(args: argparse.Namespace) -> None:
    """Print the table of every experiment that has rows."""
    for each in chosen(args):
        for title, folder in (("", ROWS), (", small", args.small and Path(args.small))):
            file = folder and folder / f"{each.name}.csv"
            if not file or not file.exists():
                continue
            rows, trials = pd.read_csv(file), pd.read_csv(folder / f"{each.name}_trials.csv")
            print(f"\n### {each.name}{title}\n")
            for command in each.commands(bool(title)):
                print(f"    python {command}")
            steps = rows.steps.sum() + trials.steps.sum()
            print(
                f"\n{trials.trial.nunique()} trials; {steps / 1e6:,.1f} million steps in "
                f"{rows.wall_seconds.iloc[0] / 60:,.0f} minutes; commit {rows.commit.iloc[0]}\n"
            )
            for study, part in rows.groupby("study"):
                for column in ("training_return", "final_return"):
                    baseline = each.baseline if each.baseline in set(part.arm) else None
                    try:
                        print(f"{study}, {column}\n")
                        print(to_markdown(results_table(part, baseline, column)))
                    except UserError as e:
                        print(e)


def cost(args: argparse.Namespace) -> None:
    """Print what the experiments of each part took and what the others are planned to take, and
    what other results took whose steps are stored. Beside it what the published code would take for
    as many steps on one core.
    """
    print("| what | million steps | core-hours | wall time, h | published code, core-hours |")
    print("|---|---|---|---|---|")
    every = chosen(args)
    for part in dict.fromkeys(e.part for e in every):
        of_part = [e for e in every if e.part == part]
        ended = [e for e in of_part if (ROWS / f"{e.name}.csv").exists()]
        if ended:
            cost_row(f"{part}, {len(ended)} of {len(of_part)} experiments", *map(taken, ended))
        if left := [e for e in of_part if e not in ended]:
            title = f"{part}, {len(left)} experiments, not run yet: estimates"
            cost_row(title, *(Cost(e.steps(), e.minutes * 60, None, e.learner) for e in left))
    if args.parts or args.names:
        return
    for name, arm, learner in OTHERS:
        lines = (HERE / "results" / f"{name}.jsonl").read_text().splitlines()
        frame = pd.DataFrame([json.loads(line) for line in lines])
        frame = frame if arm is None else frame[frame.arm == arm]
        title = (
            f"{name}.md, {len(frame)} runs" if arm is None else f"of these {len(frame)} of {arm}"
        )
        seconds = frame.seconds.sum() if "seconds" in frame else None
        cost_row(title, Cost(frame.steps.sum(), seconds, None, learner))


@dataclass(frozen=True)
class Cost:
    """What something took: environment steps, seconds of cores and of the clock; None where nobody
    measured it; and whose steps they were.
    """

    steps: float
    seconds: float | None
    wall: float | None
    learner: str

    @property
    def published(self) -> float | None:
        """Seconds of one core in which the published code would take these steps."""
        speed = PUBLISHED.get(self.learner)
        return None if speed is None else self.steps / speed


def taken(each: Experiment) -> Cost:
    """What an experiment took, of its rows."""
    rows, trials = (pd.read_csv(ROWS / f"{each.name}{end}.csv") for end in ("", "_trials"))
    return Cost(
        rows.steps.sum() + trials.steps.sum(),
        rows.seconds.sum() + trials.seconds.sum(),
        rows.wall_seconds.iloc[0],
        each.learner,
    )


def cost_row(title: str, *costs: Cost) -> None:
    """Print the sum of some costs as a row of the table; a dash where one is unknown."""

    def hours(values: list[float | None]) -> str:
        known = [v for v in values if v is not None]
        return f"{sum(known) / 3600:,.1f}" if len(known) == len(values) else "-"

    columns = [[c.seconds for c in costs], [c.wall for c in costs], [c.published for c in costs]]
    steps = sum(c.steps for c in costs) / 1e6
    print(f"| {title} | {steps:,.1f} | {' | '.join(map(hours, columns))} |")


def plan(args: argparse.Namespace) -> None:
    """Print what there is and what is done."""
    for each in chosen(args):
        done = "done" if (ROWS / f"{each.name}.csv").exists() else ""
        print(f"{each.name:28} {each.part:14} {each.minutes:5d} core-minutes  {done}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, function in (("plan", plan), ("run", run), ("table", table), ("cost", cost)):
        sub = commands.add_parser(name)
        sub.set_defaults(function=function)
        sub.add_argument("--parts", help="comma-separated; by default all")
        sub.add_argument("--names", help="of experiments, comma-separated; by default all")
        if name == "run":
            sub.add_argument("--folder", default="evidence", help="of databases, logs and models")
            sub.add_argument("--workers", type=int, default=1)
            sub.add_argument("--small", action="store_true", help="at a small budget")
        if name == "table":
            sub.add_argument("--small", help="folder of a small run, to print beside")
    args = parser.parse_args()
    args.function(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
