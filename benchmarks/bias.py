"""What is ReservoirPy 0.3's bias worth? Evolutions of reservoirs without a bias and with one of 1
on a tenth of the neurons, and tests of their best trials.

    python benchmarks/bias.py run --folder bias --out bias.jsonl
    python benchmarks/bias.py table bias.jsonl

`run` starts evolve_res.py and test.py for each environment, root seed and bias. Both evolutions of
a root seed share the seeds of their lifetimes, and so do both tests. It can be interrupted and
started again: the scripts go on in their database, and what is in the file is kept.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rows import add_row, check_settings, make_parser, names, read_rows, rows_so_far

from erl.cli import exit_after
from erl.errors import UserError
from erl.experiments.flags import study_name, thousands
from erl.search.space import ER_MRL_BIAS
from erl.statistics import bootstrap_interval
from erl.studies.records import records
from erl.studies.study import Study

ROOT = Path(__file__).resolve().parent.parent
# Name -> further flags of the evolution.
ENVIRONMENTS = {
    "HalfCheetah-v4": [],
    "Swimmer-v4": [],
    "CartPole-v1": ["--del_obs"],
}
BIASES = {"none": {"bias": 0.0}, "tenth": ER_MRL_BIAS}
ARM = "RES_PPO_0.0003"
MEASURES = ("training_return", "final_return")


def run(arguments: argparse.Namespace) -> None:
    """Evolve and test what is not in the file yet."""
    env_ids = names(arguments.env_ids, ENVIRONMENTS, "environment")
    out, folder = Path(arguments.out), Path(arguments.folder).resolve()
    there = rows_so_far(out)
    check_settings(out, there, asked(arguments), {"nb_trials": 30, "tests": 20})
    folder.mkdir(parents=True, exist_ok=True)
    done = {(r["env_id"], r["bias"], r["seed"]) for r in there}
    for seed in range(arguments.first, arguments.first + arguments.roots):
        for env_id in env_ids:
            for bias in BIASES:
                if (env_id, bias, seed) in done:
                    continue
                row = outcome(arguments, folder, env_id, bias, seed)
                add_row(out, row)


def asked(arguments: argparse.Namespace) -> dict[str, int]:
    """What all rows of a file share."""
    return {
        "steps": arguments.steps,
        "nb_seeds": arguments.nb_seeds,
        "nb_trials": arguments.trials,
        "tests": arguments.tests,
    }


def outcome(
    arguments: argparse.Namespace, folder: Path, env_id: str, bias: str, seed: int
) -> dict[str, Any]:
    """One evolution and its test: what they reached."""
    storage, h_test = f"sqlite:///{folder}/bias.db", f"bias_{bias}_{seed}"
    name = study_name(env_id, h_test, arguments.steps)
    places = ["--storage", storage, "--workers", str(arguments.workers)]
    places += ["--runs", str(folder / "runs")]
    steps = ["--training_steps", str(arguments.steps)]
    evolve = ["--env_id", env_id, *ENVIRONMENTS[env_id], "--h_test", h_test, "--seed", str(seed)]
    evolve += ["--nb_trials", str(arguments.trials), "--nb_seeds", str(arguments.nb_seeds)]
    for flag, value in BIASES[bias].items():
        evolve += [f"--{flag}", str(value)]
    start("evolve_res.py", *evolve, *steps, *places)
    test = ["--study", name, "--arms", ARM, "--nb_seeds", str(arguments.tests)]
    test += ["--logs", str(folder / "logs"), "--models", str(folder / "models")]
    start("test.py", *test, *steps, *places)

    study = Study(storage, name)
    best, trials = study.best(), study.trials("COMPLETE")
    if best is None:
        raise UserError(f"{name} has no finished trial")
    tested = records(storage, f"{name}_trial_{best.number}_test_{thousands(arguments.steps)}_steps")
    tested = tested[tested.state == "COMPLETE"].drop_duplicates("seed").sort_values("seed")
    return {
        "env_id": env_id,
        "bias": bias,
        "seed": seed,
        **asked(arguments),
        "fitness": best.value,
        "params": best.params,
        "trials": [t.value for t in trials],
        **{measure: tested[measure].astype(float).tolist() for measure in MEASURES},
        "commit": study.optuna.user_attrs.get("commit"),
    }


def start(script: str, *flags: str) -> None:
    """Run one of the project's scripts and wait for it; end with its code if it fails."""
    print(f"python {script} {' '.join(flags)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / script), *flags], check=False).returncode
    if code:
        raise SystemExit(code)


def table(arguments: argparse.Namespace) -> None:
    """Print what both reach, and the difference of the test lifetimes of the same root and test
    seed, with its 95 % bootstrap interval.
    """
    rows = read_rows(arguments.file)
    for measure in MEASURES:
        print(f"| environment | root seeds | {measure}, none | with bias | bias - none, paired |")
        print("|---|---|---|---|---|")
        for env_id in dict.fromkeys(r["env_id"] for r in rows):
            with_bias, without = paired(rows, env_id, measure)
            difference = with_bias - without
            roots = len({r["seed"] for r in rows if r["env_id"] == env_id})
            print(
                f"| {env_id} | {roots} | {shown(without)} | {shown(with_bias)} | "
                f"{shown(difference)} |"
            )
        print()
    seeds = sorted({r["seed"] for r in rows})
    columns = [f"{measure}, root seed {seed}" for measure in MEASURES for seed in seeds]
    print(f"bias - none, paired:\n\n| environment | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for env_id in dict.fromkeys(r["env_id"] for r in rows):
        cells = [
            shown(np.subtract(*paired([r for r in rows if r["seed"] == seed], env_id, measure)))
            for measure in MEASURES
            for seed in seeds
        ]
        print(f"| {env_id} | {' | '.join(cells)} |")
    print()
    print("| environment | best fitness of each evolution, none | with bias | mean of all trials |")
    print("|---|---|---|---|")
    for env_id in dict.fromkeys(r["env_id"] for r in rows):
        of = {b: [r for r in rows if (r["env_id"], r["bias"]) == (env_id, b)] for b in BIASES}
        best = [", ".join(f"{r['fitness']:.1f}" for r in of[b]) for b in BIASES]
        means = [f"{np.mean([v for r in of[b] for v in r['trials']]):.1f}" for b in BIASES]
        print(f"| {env_id} | {best[0]} | {best[1]} | {means[0]}, with bias {means[1]} |")


def paired(rows: list[dict[str, Any]], env_id: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Test returns with and without a bias, of the same root and test seeds, arrays (n,)."""
    found: dict[str, list[float]] = {bias: [] for bias in BIASES}
    of = {(r["bias"], r["seed"]): r[measure] for r in rows if r["env_id"] == env_id}
    for seed in sorted({seed for _, seed in of}):
        both = [of.get((bias, seed)) for bias in BIASES]
        if all(both):
            n = min(map(len, both))  # type: ignore[arg-type]
            for bias, returns in zip(BIASES, both):
                found[bias] += returns[:n]  # type: ignore[index]
    return np.array(found["tenth"]), np.array(found["none"])


def shown(values: np.ndarray) -> str:
    """Mean and its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values, np.mean, n_resamples=10_000)
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    part = commands.add_parser("run")
    part.add_argument("--env_ids", default=",".join(ENVIRONMENTS))
    part.add_argument("--first", type=int, default=901, help="first root seed")
    part.add_argument("--roots", type=int, default=2, help="root seeds")
    part.add_argument("--trials", type=int, default=30)
    part.add_argument("--nb_seeds", type=int, default=1, help="lifetimes of a trial")
    part.add_argument("--steps", type=int, default=50_000)
    part.add_argument("--tests", type=int, default=20, help="test seeds")
    part.add_argument("--workers", type=int, default=1)
    part.add_argument("--folder", default="bias")
    part.add_argument("--out", required=True)
    part.set_defaults(call=run)
    part = commands.add_parser("table")
    part.add_argument("file")
    part.set_defaults(call=table)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    exit_after(main)
