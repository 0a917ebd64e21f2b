"""Do cohort agents learn as Stable-Baselines3's do? Returns of many seeds under both engines, and
tests of their difference.

    python benchmarks/same_learning.py run --engine sb3 --out sb3.jsonl
    python benchmarks/same_learning.py run --engine cohort --seeds 24 --out cohort.jsonl
    python benchmarks/same_learning.py compare sb3.jsonl cohort.jsonl

    python benchmarks/same_learning.py run --learner TD3 --settings small --engine sb3 --seeds 10 \
        --env_ids Pendulum-v1,Hopper-v4 --steps 30000 --out td3_sb3.jsonl

PPO has its defaults; `--settings small` are networks and minibatches of 64, with which off-policy
learners reach something in 30,000 steps.

A run can be interrupted and continued: finished lifetimes are kept. The engines use seeds that do
not overlap.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from erl.lifetimes.living import Cohort, live
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1", "Hopper-v4")
SMALL = {"batch_size": 64, "learning_starts": 1000, "policy_kwargs": {"net_arch": [64, 64]}}
NOISE = {"noise_type": "normal", "noise_std": 0.1}
# Name -> learner -> settings.
SETTINGS: dict[str, dict[str, dict]] = {
    "default": {},
    "small": {"TD3": {**SMALL, **NOISE}, "DDPG": {**SMALL, **NOISE}, "SAC": SMALL},
}


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    out = Path(arguments.out)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    first = 0 if arguments.engine == "sb3" else 1000
    for env_id in arguments.env_ids.split(","):
        have = {d["seed"] for d in done if d["env_id"] == env_id}
        seeds = [s for s in range(first, first + arguments.seeds) if s not in have]
        specs = [
            LifetimeSpec(
                Task(env_id),
                LearnerSpec(
                    arguments.learner,
                    SETTINGS[arguments.settings].get(arguments.learner, {}),
                    arguments.engine,
                ),
                arguments.steps,
                Seeds.derive(0, "single", s),
            )
            for s in seeds
        ]
        size = 1 if arguments.engine == "sb3" else len(specs)
        for k in range(0, len(specs), max(1, size)):
            records = live(Cohort(tuple(specs[k : k + size]), evaluate=True))
            for seed, record in zip(seeds[k : k + size], records):
                assert record.fitness is not None, record.error
                row = {
                    "env_id": env_id,
                    "engine": arguments.engine,
                    "seed": seed,
                    "last 10 episodes": record.fitness,
                    "whole training": float(np.mean([r for _, r in record.curve])),
                    "10 fresh episodes": float(np.mean(record.final_returns)),
                    "seconds": record.seconds,
                    "commit": record.commit,
                }
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def compare(arguments: argparse.Namespace) -> None:
    rows = [
        json.loads(line) for file in arguments.files for line in Path(file).read_text().splitlines()
    ]
    print(
        "mean return [95 % bootstrap interval]; difference cohort - sb3; two-sided p of "
        "Mann-Whitney and Kolmogorov-Smirnov"
    )
    rng = np.random.default_rng(0)
    for env_id in dict.fromkeys(r["env_id"] for r in rows):
        for measure in ("last 10 episodes", "whole training", "10 fresh episodes"):
            cohort, sb3 = (
                np.array(
                    [r[measure] for r in rows if r["env_id"] == env_id and r["engine"] == engine]
                )
                for engine in ("cohort", "sb3")
            )
            draws = [
                rng.choice(cohort, len(cohort)).mean() - rng.choice(sb3, len(sb3)).mean()
                for _ in range(10_000)
            ]
            low, high = np.quantile(draws, [0.025, 0.975])
            print(
                f"{env_id:14s} {measure:17s} cohort {cohort.mean():9.1f} (n {len(cohort)}, sd "
                f"{cohort.std(ddof=1):.1f})  "
                f"sb3 {sb3.mean():9.1f} (n {len(sb3)}, sd {sb3.std(ddof=1):.1f})  "
                f"difference {cohort.mean() - sb3.mean():8.1f} [{low:.1f}, {high:.1f}]  "
                f"p {stats.mannwhitneyu(cohort, sb3).pvalue:.2f} "
                f"{stats.ks_2samp(cohort, sb3).pvalue:.2f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    part = commands.add_parser("run")
    part.add_argument("--engine", choices=("cohort", "sb3"), required=True)
    part.add_argument("--learner", default="PPO")
    part.add_argument("--settings", choices=tuple(SETTINGS), default="default")
    part.add_argument("--env_ids", default=",".join(ENVIRONMENTS))
    part.add_argument("--steps", type=int, default=100_000)
    part.add_argument("--seeds", type=int, default=12)
    part.add_argument("--out", required=True)
    part.set_defaults(call=run)
    part = commands.add_parser("compare")
    part.add_argument("files", nargs="+")
    part.set_defaults(call=compare)
    chosen = parser.parse_args()
    chosen.call(chosen)
