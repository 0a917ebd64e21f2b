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
import fcntl
import json
import platform
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evidence_tables import (
    PRIMARY,
    SECONDARY,
    Comparison,
    Member,
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
from rows import make_parser, read_rows

from erl.cli import duration, exit_after, plural
from erl.errors import UserError
from erl.figures.comparison import generalisation_matrix
from erl.figures.style import save
from erl.files import write_text, write_whole
from erl.statistics import bootstrap_interval, interval_text
from erl.studies.configuration import EvolutionStudy, FinalsStudy, TestStudy
from erl.studies.records import Lived, decoded, lifetime_rows
from erl.studies.storage import open_storage, study_names
from erl.studies.study import Study
from erl.studies.tables import to_markdown
from erl.studies.winner import chosen as choice_of
from erl.worlds.specification import commit, to_json
from erl.worlds.task_sets import TaskSet, load_task_set

HERE = Path(__file__).resolve().parent
ROWS = HERE / "results" / "evidence"
ROWS_HELP = "folder of rows of one's own; by default the project's, benchmarks/results/evidence"
LIFETIME = ["env_id", "arm", "seed", "state", "training_return", "final_return", "steps", "seconds"]
FINAL = ["env_id", "of_trial", "mean", *LIFETIME[2:], "fitness"]
RES = "RES_PPO_0.0003"
# Of a flag that is given twice the last one counts. Final policies play two episodes, and not ten.
SMALL_EVOLUTION = "--nb_trials 4 --nb_seeds 1 --training_steps {steps} --ep_eval 2"
SMALL_FINALS = "--finalists 2 --finalist_seeds 1"
SMALL_TEST = "--training_steps {steps} --nb_seeds 2"
OF_SMALL_EVOLUTION = "--HP_training_steps {steps}"

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

# Exit codes of a command that somebody stopped: after Ctrl-C or SIGTERM, the first or the second.
STOPS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = {130, *(128 + s for s in STOPS), *(-s for s in STOPS)}

# Environment steps a second of published codes on one core. ER-MRL's: HalfCheetah-v4, cohort.md.
# ERL-Re2's: updates, of which it does one a step, on another core, erl_re2.md. Nobody measured
# RecurrentPPO, which is slower than PPO: its steps count at PPO's speed.
PUBLISHED = {"PPO": 1220, "RecurrentPPO": 1220, "ERL-Re2": 18}
# Other results whose steps are stored: name of the page and of the rows, the arm (None for all),
# and whose published code takes such steps.
OTHERS = (
    ("learning_curves", None, ""),
    ("learning_curves", "ERL-Re2", "ERL-Re2"),
    ("aes_rl", None, ""),
    ("inner_learners", None, ""),
    ("derl", None, ""),
    ("pruning", None, "PPO"),
)


@dataclass(frozen=True)
class Experiment:
    """Evolutions and their tests.

    Attributes:
        name: of its files.
        part: of the page of results.
        minutes: of one core, estimated.
        evolve: the command of the evolution; empty where an entry of the catalogue is tested.
        tests: the commands of its tests.
        controls: commands of evolutions that are tested beside it.
        baseline: the arm that others are compared with: the evolved one.
        small_steps: of a lifetime, at a small budget.
    """

    name: str
    part: str
    minutes: int
    evolve: str
    tests: tuple[str, ...]
    controls: tuple[str, ...] = ()
    baseline: str = RES
    small_steps: int = 4_096

    @property
    def root(self) -> int:
        """The root seed of the evolution, from which the test seeds are drawn."""
        return int(flag(self.evolve, "seed", 0))

    @property
    def evolved_on(self) -> str:
        """The environment, or the set of environments, of the evolution."""
        command = self.evolve or self.tests[0]
        return str(flag(command, "env_type", None) or flag(command, "env_id", ""))

    @property
    def evolutions(self) -> list[str]:
        """The commands of its evolutions."""
        return [command for command in (self.evolve, *self.controls) if command]

    def steps(self) -> dict[str, int]:
        """Environment steps of each learner at full size, with finals where they are held, as
        planned.
        """
        total: Counter[str] = Counter()
        evolved_for = {}
        for command in self.evolutions:
            learner = str(flag(command, "learner", "PPO"))
            evolved_for[flag(command, "h_test", "")] = learner
            total[learner] += evolution_steps(command)
        for test in self.tests:
            if "--arms" in test:
                learners = [learner_of(arm) for arm in str(flag(test, "arms", "")).split(",")]
            else:  # with and without reservoirs, or with settings evolved and drawn
                learners = [evolved_for[flag(test, "h_test", "")]] * (2 + ("--controls" in test))
            steps = int(flag(test, "nb_seeds", 5)) * int(flag(test, "training_steps", 0))
            for learner in learners:
                total[learner] += steps
        return dict(total)

    def commands(self, small: bool) -> list[str]:
        """What is run, in this order."""
        evolutions, tests = self.evolutions, list(self.tests)
        if small:
            of_evolution = SMALL_EVOLUTION.format(steps=self.small_steps)
            evolutions = [
                f"{command} {of_evolution}"
                + f" {SMALL_FINALS}" * (flag(command, "finalists", None) is not None)
                for command in evolutions
            ]
            flags = f"{SMALL_TEST} {OF_SMALL_EVOLUTION}" if evolutions else SMALL_TEST
            tests = [f"{test} {flags.format(steps=self.small_steps)}" for test in tests]
        return [*evolutions, *tests]


def flag(command: str, name: str, default: Any) -> Any:
    """The value of a flag in a command."""
    words = shlex.split(command)
    return words[words.index(f"--{name}") + 1] if f"--{name}" in words else default


def learner_of(arm: str) -> str:
    """The learner of an arm such as RANDOM_RES_PPO_0.0003."""
    return re.sub(r"^((RANDOM|NOREC|RES|STACK|INPUTS|EVOLVED)_)+|_[0-9.]+$", "", arm)


def evolution_steps(command: str) -> int:
    """Environment steps of an evolution and its finals, if it has any: of the finalists and the
    mean of the search.
    """
    of_set = task_set(command)
    envs = 1 if of_set is None else len(of_set.env_ids)
    lifetimes = int(flag(command, "nb_trials", 100)) * int(flag(command, "nb_seeds", 3))
    finalists = int(flag(command, "finalists", 0))
    finals = (finalists + 1) * int(flag(command, "finalist_seeds", 5)) if finalists else 0
    return (lifetimes + finals) * envs * int(flag(command, "training_steps", 300_000))


def task_set(command: str) -> TaskSet | None:
    """The set of environments that a command names; None without one."""
    env_type, sets = flag(command, "env_type", None), flag(command, "sets", None)
    path = None if sets is None else HERE.parent / str(sets)
    return None if env_type is None else load_task_set(str(env_type), path)


def listed() -> dict[str, Any]:
    """What `evidence.toml` says."""
    with (HERE / "evidence.toml").open("rb") as file:
        return tomllib.load(file)


def experiments() -> list[Experiment]:
    """All of them, those that take least first. An entry with `roots` is one experiment for each
    root seed, which stands for `{root}`.
    """
    made = []
    for entry in listed()["experiment"]:
        for root in entry.pop("roots", [None]):
            each = entry if root is None else with_root(entry, str(root))
            lists = {k: tuple(each.get(k, ())) for k in ("tests", "controls")}
            made.append(Experiment(**({"evolve": ""} | each | lists)))
    return sorted(made, key=lambda e: e.minutes)


def with_root(value: Any, root: str) -> Any:
    """An entry with a root seed in place of `{root}`."""
    if isinstance(value, dict):
        return {k: with_root(v, root) for k, v in value.items()}
    if isinstance(value, list):
        return [with_root(v, root) for v in value]
    return value.replace("{root}", root) if isinstance(value, str) else value


def comparisons() -> list[Comparison]:
    """The questions over several experiments."""
    return [
        Comparison(
            **entry
            | {
                "groups": tuple(entry["groups"]),
                "members": tuple(Member(**m) for m in entry["members"]),
            }
        )
        for entry in listed()["comparison"]
    ]


def chosen(args: argparse.Namespace) -> list[Experiment]:
    """Those that the flags name."""
    every = experiments()
    for of, known in (("parts", {e.part for e in every}), ("names", {e.name for e in every})):
        unknown = set(filter(None, (getattr(args, of) or "").split(","))) - known
        if unknown:
            what = {"parts": "part", "names": "experiment"}[of]
            raise UserError(f"no {what} is called {', '.join(sorted(unknown))}")
    parts, names = ((args.parts or "").split(","), (args.names or "").split(","))
    return [
        e
        for e in every
        if (not args.parts or e.part in parts) and (not args.names or e.name in names)
    ]


# -- run --


def run(args: argparse.Namespace) -> int:
    """Run what has no rows yet. What fails does not stop the others.

    Returns:
        Exit code: 0, or 1 if something failed, or 2 if a package is missing.
    """
    folder, rows = Path(args.folder), rows_of(args)
    failures = []
    if not args.small:
        for each in chosen(args):
            if rows == ROWS and not has_rows(each, rows, args.small):
                take_unfinished(each, folder / each.name)
            check_commands(each, folder / each.name, rows)
    missing = [each for each in chosen(args) if not has_rows(each, rows, args.small)]
    say_left_out(len(chosen(args)), len(missing), args)
    if (
        any("popgym" in c for each in missing for c in each.commands(False))
        and find_spec("popgym") is None
    ):
        print('the memory tasks need another package: pip install -e ".[popgym]"', file=sys.stderr)
        return 2
    for each in missing:
        place = folder / each.name
        place.mkdir(parents=True, exist_ok=True)
        with claimed(place) as lock:
            if lock is None:
                print(f"{each.name}: another process runs it")
            elif not has_rows(each, rows, args.small):  # another process may just have made them
                failure = run_one(each, place, args, lock)
                if failure:
                    failures.append(f"{each.name}: {failure}")
                    print(failures[-1], flush=True)
    if missing:
        print("\n".join([f"{len(failures)} failed", *failures] if failures else ["nothing failed"]))
    return 1 if failures else 0


def archive_of(each: Experiment) -> Path:
    """Where an experiment is kept that has no rows yet."""
    return ROWS / "unfinished" / f"{each.name}.tar.xz"


def take_unfinished(each: Experiment, place: Path) -> None:
    """Go on with what is kept of an experiment, if it was not begun here.

    Raises:
        UserError: it was begun with other commands than those listed now.
    """
    archive = archive_of(each)
    if archive.exists() and not (place / "begun.json").exists():
        with tarfile.open(archive) as tar:
            note = tar.extractfile("begun.json")
            if note is None or json.load(note)["commands"] != each.commands(False):
                raise UserError(
                    f"{each.name} was begun with other commands than those listed now: "
                    f"remove {archive} to run it anew"
                )
            place.mkdir(parents=True, exist_ok=True)
            tar.extractall(place, filter="data")
        print(f"{each.name}: goes on with what is kept in {archive}", flush=True)


def keep(args: argparse.Namespace) -> None:
    """Keep what experiments without rows have done so far. They may be at work."""
    for each in chosen(args):
        place = Path(args.folder) / each.name
        if not (place / "studies.db").exists() or has_rows(each, ROWS, False):
            continue
        archive_of(each).parent.mkdir(parents=True, exist_ok=True)
        write_whole(archive_of(each), partial(pack, place))
        print(f"{each.name}: kept in {archive_of(each)}")


def pack(place: Path, archive: str) -> None:
    """Write what an experiment needs to go on: its database, whole also while others write there,
    with what it began and how long it took.
    """
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(archive, "w:xz") as tar:
        copy = Path(temporary) / "studies.db"
        with (
            closing(sqlite3.connect(place / copy.name)) as database,
            closing(sqlite3.connect(copy)) as copied,
        ):
            database.backup(copied)
        tar.add(copy, copy.name)
        for name in ("begun.json", "seconds"):
            if (place / name).exists():  # the clock is noted only now and then
                tar.add(place / name, name)


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


def say_left_out(every: int, missing: int, args: argparse.Namespace) -> None:
    """Say how many experiments are not run since they have rows, and what runs them."""
    if every == missing:
        return
    counted = f"{every - missing} of {plural(every, 'experiment')}"
    if args.rows or args.small:
        print(f"{counted} have rows in {rows_of(args)} and were left out", flush=True)
    else:
        print(
            f"{counted} have stored rows and were left out; --rows FOLDER runs them anew",
            flush=True,
        )


@contextmanager
def claimed(place: Path) -> Iterator[int | None]:
    """Hold an experiment's lock, or get None if another process holds it. The system releases it
    when the process and the commands that it started have ended, in whatever way.
    """
    with (place / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


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


def check_commands(each: Experiment, place: Path, rows: Path) -> None:
    """Say so where an experiment at full size has rows of other commands than those listed.

    Raises:
        UserError: it has no rows yet, and was begun with other commands: its database would mix
            both.
    """
    file, begun, listed_now = rows / f"{each.name}.json", place / "begun.json", each.commands(False)
    if file.exists():
        if json.loads(file.read_text())["commands"] != listed_now:
            print(
                f"{each.name}: its rows are of other commands; "
                f"without {file} and {place} it is run again"
            )
    elif begun.exists() and json.loads(begun.read_text())["commands"] != listed_now:
        raise UserError(
            f"{each.name} was begun with other commands than those listed now: "
            f"remove {place} to run it anew"
        )


def run_one(each: Experiment, place: Path, args: argparse.Namespace, lock: int) -> str | None:
    """Run an experiment and write its rows.

    Returns:
        What failed; None if nothing did.
    """
    begin(each, place, args.small)
    storage = f"sqlite:///{place.resolve()}/studies.db"
    failure = None
    for command in each.commands(args.small):
        script, *flags = shlex.split(command)
        print(f"{each.name}: python {command}", flush=True)
        # Of files in this folder too: the command runs in another one.
        flags = [str(HERE.parent / f) if f.startswith("benchmarks/") else f for f in flags]
        flags += ["--storage", storage, "--workers", str(args.workers)]
        words = [sys.executable, str(HERE.parent / script), *flags]
        code = timed(subprocess.Popen(words, cwd=place, pass_fds=(lock,)), place / "seconds")
        if code in INTERRUPTED:
            print(f"{each.name}: interrupted; the same command goes on", file=sys.stderr)
            raise SystemExit(130)
        if code:
            how = f"with exit code {code}" if code > 0 else f"by signal {-code}"
            failure = f"{script} ended {how}"
        if code not in (0, 1):  # nothing to go on with; 1 says that a lifetime failed
            return failure
    try:
        collect(each, storage, rows_of(args), place, args)
    except UserError as e:
        return str(e)
    if rows_of(args) == ROWS:
        archive_of(each).unlink(missing_ok=True)
    return failure


def begin(each: Experiment, place: Path, small: bool) -> None:
    """Note with what an experiment begins. A small run that began otherwise begins anew."""
    note = place / "begun.json"
    begun = {"commands": each.commands(small), "started_at": commit()}
    if note.exists() and json.loads(note.read_text()) != begun and small:
        for path in place.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not note.exists():
        write_text(note, json.dumps(begun, indent=1) + "\n")


def timed(process: "subprocess.Popen[bytes]", file: Path) -> int:
    """Wait for a command, and add its seconds to those in a file, now and then: they count what
    was done before an interruption.

    Returns:
        Its exit code.
    """
    before, begun = seconds_in(file), time.monotonic()
    code = None
    while code is None:
        try:
            code = process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:  # the command got it too, and stores what it has
            print("waiting for the command to end", flush=True)
        write_text(file, f"{before + time.monotonic() - begun:.1f}\n")
    return code


def seconds_in(file: Path) -> float:
    """What `timed` has noted."""
    return float(file.read_text()) if file.exists() else 0.0


def processor() -> str:
    """The model of the processor and the number of cores of this machine."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {max(1, len(names))} cores"


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


# -- tables --


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
            for e in experiments()
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


def read_tables(each: Experiment, folder: Path) -> list[pd.DataFrame]:
    """Lifetimes of the tests, trials, and lifetimes of the finals; empty where there are none."""
    files = [folder / f"{each.name}{end}.csv" for end in ("", "_trials", "_finals")]
    none = pd.DataFrame(columns=[*FINAL, "commit", "study"])
    return [pd.read_csv(file) if file.exists() else none for file in files]


def print_comparisons(rows: dict[str, pd.DataFrame], parts: set[str], title: str) -> None:
    """Print the comparisons of these parts of which there are rows."""
    roots = {e.name: e.root for e in experiments()}
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
    of = {e.name: e for e in experiments()}
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
    for each in sorted(experiments(), key=lambda e: not e.evolutions):
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


# -- cost --


def cost(args: argparse.Namespace) -> None:
    """Print what the experiments of each part took and what the others are planned to take. Without
    `--rows`, print what other results took whose steps are stored, too. Beside it stands what the
    published code would take for as many steps on one core.
    """
    published = "published code, core-hours, extrapolated"
    print(f"| what | million steps | core-hours | wall time, h | {published} |")
    print("|---|---|---|---|---|")
    every, folder = chosen(args), rows_of(args)
    for part in dict.fromkeys(e.part for e in every):
        of_part = [e for e in every if e.part == part]
        ended = [e for e in of_part if (folder / f"{e.name}.json").exists()]
        if ended:
            costs = [taken(e, folder) for e in ended]
            cost_row(f"{part}, {len(ended)} of {len(of_part)} experiments", *costs)
        if left := [e for e in of_part if e not in ended]:
            title = f"{part}, {len(left)} experiments, not run yet: estimates"
            cost_row(title, *(Cost(e.steps(), e.minutes * 60, None) for e in left))
    if args.parts or args.names or args.rows:
        return
    for name, arm, learner in OTHERS:
        frame = pd.DataFrame(read_rows(HERE / "results" / f"{name}.jsonl"))
        frame = frame if arm is None else frame[frame.arm == arm]
        title = (
            f"{name}.jsonl, {len(frame)} runs" if arm is None else f"of these {len(frame)} of {arm}"
        )
        seconds = frame.seconds.sum() if "seconds" in frame else None
        cost_row(title, Cost({learner: frame.steps.sum()}, seconds, None))


@dataclass(frozen=True)
class Cost:
    """What something took: environment steps of each learner, seconds of cores and of the clock;
    None where nobody measured it.
    """

    steps: Mapping[str, float]
    seconds: float | None
    wall: float | None

    @property
    def published(self) -> float | None:
        """Seconds of one core in which the published code would take these steps."""
        if not self.steps.keys() <= PUBLISHED.keys():
            return None
        return sum(steps / PUBLISHED[learner] for learner, steps in self.steps.items())


def taken(each: Experiment, folder: Path) -> Cost:
    """What an experiment took, of its rows."""
    tests, *evolved = frames = read_tables(each, folder)
    story = json.loads((folder / f"{each.name}.json").read_text())
    steps: Counter[str] = Counter()
    for arm, n in tests.groupby("arm").steps.sum().items():
        steps[learner_of(str(arm))] += n
    for frame in evolved:
        for name, evolution in story["evolutions"].items():
            # Finals have the name of their evolution, and more.
            of_it = frame.study.astype(str).str.startswith(name)
            steps[evolution["config"]["learner"]] += frame[of_it].steps.sum()
    seconds = sum(frame.seconds.sum() for frame in frames)
    return Cost(steps, seconds, wall_of(story, frames))


def wall_of(story: dict[str, Any], frames: Iterable[pd.DataFrame]) -> float:
    """Seconds of the clock that an experiment took, at least. Of a run that was killed, the clock
    since its last note is lost.
    """
    return max(story["wall_seconds"], sum(f.seconds.sum() for f in frames) / story["workers"])


def cost_row(title: str, *costs: Cost) -> None:
    """Print the sum of some costs as a row of the table; a dash where one is unknown."""

    def hours(values: list[float | None]) -> str:
        known = [v for v in values if v is not None]
        return f"{sum(known) / 3600:,.1f}" if len(known) == len(values) else "-"

    columns = [[c.seconds for c in costs], [c.wall for c in costs], [c.published for c in costs]]
    steps = sum(sum(c.steps.values()) for c in costs) / 1e6
    print(f"| {title} | {steps:,.1f} | {' | '.join(map(hours, columns))} |")


def plan(args: argparse.Namespace) -> None:
    """Print what there is and what is done."""
    for each in chosen(args):
        done = "done" if (rows_of(args) / f"{each.name}.json").exists() else ""
        long = "more than 2 h" if each.minutes > 120 else ""
        print(f"{each.name:36} {each.part:14} {each.minutes:5d} core-minutes  {long:13}  {done}")


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
