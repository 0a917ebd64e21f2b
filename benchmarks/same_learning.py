"""Do cohort agents learn as Stable-Baselines3's do? Returns of many seeds under both engines, and
tests of their difference.

    python benchmarks/same_learning.py run --engine sb3 --out sb3.jsonl
    python benchmarks/same_learning.py run --engine cohort --seeds 24 --out cohort.jsonl
    python benchmarks/same_learning.py compare sb3.jsonl cohort.jsonl

    python benchmarks/same_learning.py run --learner TD3 --settings small --engine sb3 --seeds 10 \
        --env_ids Pendulum-v1,Hopper-v4 --steps 30000 --out td3_sb3.jsonl

PPO has its defaults; `--settings small` are networks and minibatches of 64, with which off-policy
learners reach something in 30,000 steps. `wide` are networks of 256 and minibatches of 256, and
`wide_bf16` the same in bfloat16: `compare` shows what that costs in return.

    python benchmarks/same_learning.py compare wide.jsonl wide_bf16.jsonl

A run can be interrupted and continued: finished lifetimes are kept. The engines use seeds that do
not overlap.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rows import add_row, check_settings, environment, make_parser, read_rows, rows_so_far
from scipy import stats

from erl.cli import exit_after
from erl.errors import UserError
from erl.lifetimes.living import Cohort, live
from erl.statistics import mann_whitney
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1", "Hopper-v4")
SMALL = {"batch_size": 64, "learning_starts": 1000, "policy_kwargs": {"net_arch": [64, 64]}}
WIDE = {"batch_size": 256, "learning_starts": 1000}
BF16 = {"precision": "bf16"}
NOISE = {"noise_type": "normal", "noise_std": 0.1}
# Name -> learner -> settings.
SETTINGS: dict[str, dict[str, dict]] = {
    "default": {},
    "small": {"TD3": {**SMALL, **NOISE}, "DDPG": {**SMALL, **NOISE}, "SAC": SMALL},
    "wide": {"TD3": {**WIDE, **NOISE}, "SAC": WIDE},
    "wide_bf16": {"TD3": {**WIDE, **NOISE, **BF16}, "SAC": {**WIDE, **BF16}},
}


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if arguments.settings != "default" and arguments.learner not in SETTINGS[arguments.settings]:
        raise UserError(f"--settings {arguments.settings} has none for {arguments.learner}")
    out = Path(arguments.out)
    done = rows_so_far(out)
    asked = {name: getattr(arguments, name) for name in ("engine", "learner", "settings", "steps")}
    check_settings(out, done, asked, {})
    first = 0 if arguments.engine == "sb3" else 1000
    have = {(d["env_id"], d["seed"]) for d in done}
    missing = {
        env_id: [s for s in range(first, first + arguments.seeds) if (env_id, s) not in have]
        for env_id in map(environment, arguments.env_ids.split(","))
    }
    if not any(missing.values()):
        print(f"{out} has all of these rows")
    elif any("learner" not in d for d in done):
        raise UserError(f"{out} has rows that do not name their learner: name another file")
    for env_id, seeds in missing.items():
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
                if record.fitness is None:
                    raise SystemExit(f"{env_id}, seed {seed}: {record.error}")
                row = {
                    "env_id": env_id,
                    **asked,
                    "seed": seed,
                    "last 10 episodes": record.fitness,
                    "whole training": float(np.mean([r for _, r in record.curve])),
                    "10 fresh episodes": float(np.mean(record.final_returns)),
                    "seconds": record.seconds,
                    "commit": record.commit,
                }
                add_row(out, row)
                print(row, flush=True)


def compare(arguments: argparse.Namespace) -> None:
    files = [Path(arguments.first), Path(arguments.second)]
    groups = [read_rows(file) for file in files]
    print(
        f"mean return [95 % bootstrap interval]; difference {files[1].stem} - {files[0].stem}; "
        "two-sided p of Mann-Whitney and Kolmogorov-Smirnov"
    )
    rng = np.random.default_rng(0)
    for env_id in dict.fromkeys(row["env_id"] for row in groups[0]):
        for measure in ("last 10 episodes", "whole training", "10 fresh episodes"):
            if not all(measure in row for rows in groups for row in rows):
                continue  # rows from before it was measured
            first, second = (
                np.array([row[measure] for row in rows if row["env_id"] == env_id])
                for rows in groups
            )
            draws = [
                rng.choice(second, len(second)).mean() - rng.choice(first, len(first)).mean()
                for _ in range(10_000)
            ]
            low, high = np.quantile(draws, [0.025, 0.975])
            means = "  ".join(
                f"{file.stem} {x.mean():9.1f} (n {len(x)}, sd {x.std(ddof=1):.1f})"
                for file, x in zip(files, (first, second))
            )
            print(
                f"{env_id:14s} {measure:17s} {means}  "
                f"difference {second.mean() - first.mean():8.1f} [{low:.1f}, {high:.1f}]  "
                f"p {mann_whitney(first, second):.2f} "
                f"{stats.ks_2samp(first, second).pvalue:.2f}"
            )


def main() -> None:
    parser = make_parser(__doc__)
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
    part.add_argument("first")
    part.add_argument("second")
    part.set_defaults(call=compare)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    exit_after(main)
