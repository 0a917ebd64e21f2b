"""What does pruning save, and what does it cost? Evolutions with each pruner from the same root
seeds, and tests of their best trials.

    python benchmarks/pruning.py run --seeds 5 --folder pruning --out pruning.jsonl
    python benchmarks/pruning.py show pruning.jsonl
    python benchmarks/pruning.py collect --folder pruning --out pruning_trials.jsonl
    python benchmarks/pruning.py replay pruning_trials.jsonl

`collect` keeps what the trials of evolutions without pruning had reached at each point; `replay`
asks what each pruner would have done to their trials: exact where proposals do not depend on
results (--sampler Random), and for CMA-ES what it does to one and the same sequence of trials.

Memory is asked for: CartPole-v1 without velocities. A run can be interrupted and continued:
evolutions go on in their databases, and what is in the file is kept. An evolution's best trial is
tested on seeds that no evolution saw, the reservoir's agent alone, with the learning rate that it
was evolved with; evolutions of one root seed share the test's seeds.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rows import add_row, check_settings, make_parser, names, read_rows, rows_so_far, write_rows
from scipy import stats

from erl.cli import Display, exit_after
from erl.errors import UserError
from erl.experiments.arms import arm_lifetime
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.flags import study_name
from erl.lifetimes.living import Cohort, live
from erl.search.choices import PRUNERS
from erl.search.pruning import TrialPruner
from erl.statistics import bootstrap_interval, interval_text
from erl.studies.configuration import EvolutionStudy, TestStudy
from erl.studies.records import records
from erl.studies.storage import open_storage, study_names
from erl.studies.study import Study


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    pruners = names(arguments.pruners, PRUNERS, "pruner")
    out, folder = Path(arguments.out), Path(arguments.folder).resolve()
    done = rows_so_far(out)
    asked = {"training_steps": arguments.steps, "sampler": arguments.sampler}
    asked |= {"nb_trials": arguments.trials, "tests": arguments.tests}
    check_settings(out, done, asked, {"nb_trials": 30, "tests": 10})
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for pruner in pruners:
            if any(
                (d["pruner"], d["seed"], d["nb_seeds"]) == (pruner, seed, arguments.nb_seeds)
                for d in done
            ):
                continue
            config = EvolutionConfig(
                env_id="CartPole-v1",
                del_obs=True,
                training_steps=arguments.steps,
                nb_trials=arguments.trials,
                finalists=0,
                nb_seeds=arguments.nb_seeds,
                sampler=arguments.sampler,
                seed=seed,
                pruner=pruner,
                h_test=pruner,
                workers=1,
                runs=str(folder / "runs"),
                storage=f"sqlite:///{folder}/{pruner}_{seed}.db",
            )
            code = evolve(config, Display())
            if code:
                raise SystemExit(code)
            row = outcome(config, arguments.tests)
            add_row(out, row)
            print(
                row["pruner"],
                row["seed"],
                row["steps"],
                row["fitness"],
                np.mean(row["test"]),
                flush=True,
            )


def outcome(config: EvolutionConfig, tests: int) -> dict[str, Any]:
    """What an evolution cost and found."""
    name = study_name(config.subject(), config.h_test, config.training_steps)
    study, frame = Study(config.storage, name), records(config.storage, name)
    steps, best = frame.groupby("trial").steps.sum(), study.best()
    evolution = study.config
    if best is None or not isinstance(evolution, EvolutionStudy):
        raise UserError(f"{name} is no evolution with a finished trial")
    test = TestStudy(evolution, best.params, config.training_steps, evolution.engine)
    lived = live(
        Cohort(tuple(arm_lifetime("RES_PPO_0.0003", i, test, best.params) for i in range(tests)))
    )
    return {
        "pruner": config.pruner,
        "seed": config.seed,
        "nb_seeds": config.nb_seeds,
        "sampler": config.sampler,
        "training_steps": config.training_steps,
        "nb_trials": config.nb_trials,
        "tests": tests,
        "steps": int(steps.sum()),
        "best": best.number,
        "fitness": best.value,
        "test": [r.fitness for r in lived],
        "trials": [
            {
                "state": t.state.name,
                "value": t.value,
                "steps": int(steps[t.number]),
                "points": len(t.intermediate_values),
                # A trial's mean at each tenth of its life.
                "means": [t.intermediate_values[k] for k in sorted(t.intermediate_values)]
                or frame[frame.trial == t.number]
                .reports.map(list)
                .pipe(lambda r: np.mean(r.tolist(), axis=0).tolist()),
                "params": t.params,
            }
            for t in study.trials()
        ],
        "commit": study.optuna.user_attrs.get("commit"),
    }


def replay(arguments: argparse.Namespace) -> None:
    print(
        "mean [95 % bootstrap interval] over evolutions without pruning; points are tenths of a "
        "lifetime"
    )
    evolutions = read_rows(arguments.file)
    for e in evolutions:
        tables = np.array(e["tables"], dtype=float)
        e["tables"] = np.where(np.isnan(tables), -np.inf, tables)
    print(f"{len(evolutions)} evolutions of {len(evolutions[0]['tables'])} trials")
    rank = [
        [stats.spearmanr(e["tables"].mean(axis=1)[:, k], e["fitness"])[0] for e in evolutions]
        for k in range(9)
    ]
    for k, rs in enumerate(rank, 1):
        print(
            f"    rank correlation of a trial's mean at point {k} with its fitness: "
            f"{interval(np.array(rs))}"
        )
    for pruner in names(arguments.pruners, PRUNERS, "pruner"):
        outcomes = [pruned_points(pruner, e) for e in evolutions]
        share, lost, loss, to = [], [], [], []
        for e, points in zip(evolutions, outcomes):
            whole, rollout = e["steps"], e["rollout"]
            # A lifetime stops at the end of the rollout in which the point is passed.
            cost = [
                whole if p is None else -(-p * e["budget"] // (10 * rollout)) * rollout
                for p in points
            ]
            kept = [f for f, p in zip(e["fitness"], points) if p is None]
            share.append(sum(cost) / (whole * len(points)))
            lost.append(points[int(np.argmax(e["fitness"]))] is not None)
            loss.append(max(e["fitness"]) - max(kept))
            # Both searches, until they have what the pruned one finds in the end.
            first = next(
                i
                for i, (f, p) in enumerate(zip(e["fitness"], points))
                if p is None and f == max(kept)
            )
            plain = next(i for i, f in enumerate(e["fitness"]) if f >= max(kept))
            to.append(sum(cost[: first + 1]) / (whole * (plain + 1)))
        print(f"{pruner}")
        print(
            f"    trials pruned         "
            f"{interval(np.array([sum(p is not None for p in o) for o in outcomes], float))}"
        )
        print(f"    steps / none          {interval(np.array(share))}")
        print(f"    best trial pruned     in {sum(lost)} of {len(lost)}")
        print(f"    best fitness lost     {interval(np.array(loss))}")
        print(f"    steps to its best / none's to the same  {interval(np.array(to))}")
        print(
            f"    where                 "
            f"{np.bincount([p for o in outcomes for p in o if p is not None], minlength=10)[1:]}"
        )


def collect(arguments: argparse.Namespace) -> None:
    paths = sorted(Path(arguments.folder).glob("none_*.db"))
    write_rows(arguments.out, (replayable(f"sqlite:///{path.resolve()}") for path in paths))


def replayable(address: str) -> dict[str, Any]:
    """Of an evolution: what all its trials had reached at each point."""
    (name,) = study_names(open_storage(address))
    study, frame = Study(address, name), records(address, name)
    config = study.config
    if not isinstance(config, EvolutionStudy):
        raise UserError(f"{name} is no evolution")
    return {
        "name": name,
        "seed": config.seed,
        "tables": [rows.reports.tolist() for _, rows in frame.groupby("trial")],
        "fitness": [float(t.value) for t in study.trials("COMPLETE") if t.value is not None],
        "popsize": config.popsize,
        "budget": config.training_steps,
        "steps": int(frame.steps.iloc[0]),
        "rollout": config.learner_config.get("n_steps", 2048),
    }


def pruned_points(pruner: str, evolution: dict[str, Any]) -> list[int | None]:
    """Where each trial would have been pruned."""
    tables, popsize = evolution["tables"], evolution["popsize"]
    finished: list[Any] = []
    points: list[int | None] = []
    for number, table in enumerate(tables):
        earlier = [t for t in finished if t.number < number - number % popsize]
        found = TrialPruner(
            pruner, evolution["name"], number, earlier, lambda t: tables[t.number]
        ).compare(table)
        state = (
            optuna.trial.TrialState.COMPLETE
            if found.pruned is None
            else optuna.trial.TrialState.PRUNED
        )
        value = evolution["fitness"][number] if found.pruned is None else found.pruned.value
        trial = optuna.trial.create_trial(
            state=state, value=value, intermediate_values=found.values, system_attrs=found.notes
        )
        trial.number = number
        finished.append(trial)
        points.append(None if found.pruned is None else found.pruned.point)
    return points


def interval(values: np.ndarray) -> str:
    """Mean and its 95 % bootstrap interval."""
    ends = bootstrap_interval(values, np.mean, n_resamples=10_000)
    return f"{values.mean():8.3f} {interval_text(ends, '{:.3f}')}"


def steps_to(row: dict[str, Any], target: float) -> float:
    """Environment steps until a trial completed with at least this fitness; infinite if none
    did.
    """
    ends = np.cumsum([t["steps"] for t in row["trials"]])
    reached = [
        e for e, t in zip(ends, row["trials"]) if t["state"] == "COMPLETE" and t["value"] >= target
    ]
    return float(min(reached, default=np.inf))


def show(arguments: argparse.Namespace) -> None:
    rows = read_rows(arguments.file)
    plain = {(r["seed"], r["nb_seeds"]): r for r in rows if r["pruner"] == "none"}
    print(
        "mean [95 % bootstrap interval] over root seeds; ratios and differences to no pruning "
        "from the same root seed"
    )
    for pruner in dict.fromkeys(r["pruner"] for r in rows):
        mine = [r for r in rows if r["pruner"] == pruner and (r["seed"], r["nb_seeds"]) in plain]
        pairs = [(r, plain[r["seed"], r["nb_seeds"]]) for r in mine]
        print(f"{pruner}, {len(pairs)} root seeds")
        for what, values in (
            ("million steps", [r["steps"] / 1e6 for r in mine]),
            ("steps / none", [r["steps"] / p["steps"] for r, p in pairs]),
            ("trials pruned", [sum(t["state"] == "PRUNED" for t in r["trials"]) for r in mine]),
            ("best fitness", [r["fitness"] for r in mine]),
            ("test return", [np.mean(r["test"]) for r in mine]),
            ("test - none", [np.mean(r["test"]) - np.mean(p["test"]) for r, p in pairs]),
        ):
            print(f"    {what:16s} {interval(np.array(values, dtype=float))}")
        for share in (0.8, 0.9, 1.0):
            to = [
                (steps_to(r, share * p["fitness"]), steps_to(p, share * p["fitness"]))
                for r, p in pairs
            ]
            ratios = [a / b for a, b in to if np.isfinite(a)]
            text = interval(np.array(ratios)) if ratios else "-"
            print(
                f"    steps to {share:.0%} of none's best fitness / none's: {text}, reached by "
                f"{len(ratios)} of {len(to)}"
            )


def main() -> None:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    part = commands.add_parser("run")
    part.add_argument("--pruners", default="none,median,hyperband")
    part.add_argument("--first", type=int, default=0)
    part.add_argument("--seeds", type=int, default=5)
    part.add_argument("--nb_seeds", type=int, default=3)
    part.add_argument("--trials", type=int, default=30)
    part.add_argument("--steps", type=int, default=50_000)
    part.add_argument("--tests", type=int, default=5)
    part.add_argument("--sampler", default="Cmaes")
    part.add_argument("--folder", default="pruning")
    part.add_argument("--out", required=True)
    part.set_defaults(call=run)
    part = commands.add_parser("replay")
    part.add_argument("file")
    part.add_argument("--pruners", default="median,hyperband")
    part.set_defaults(call=replay)
    part = commands.add_parser("collect")
    part.add_argument("--folder", default="pruning")
    part.add_argument("--out", required=True)
    part.set_defaults(call=collect)
    part = commands.add_parser("show")
    part.add_argument("file")
    part.set_defaults(call=show)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    exit_after(main)
