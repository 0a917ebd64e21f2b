"""What do trained policies earn with their exploration, and what without it?

    python benchmarks/exploration.py models/STUDY/RES_PPO --episodes 8

Every agent in the folder plays episodes of the same seeds twice, through Stable-Baselines3's
evaluation: with the actions that its policy prefers, and with actions drawn from its policy.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from erl.cli import exit_after
from erl.errors import UserError
from erl.lifetimes.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of saved agents of one kind")
    parser.add_argument("--episodes", type=int, default=8, help="of each agent, each way")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn actions")
    args = parser.parse_args()
    files = sorted(Path(args.folder).glob("*.zip"))
    if not files:
        raise UserError(f"{args.folder} has no saved agents")
    torch.set_num_threads(1)
    rows: list[list[float]] = []
    print("| agent | without exploration | with exploration |")
    print("|---|---|---|")
    for file in files:
        spec, agent = load_model(file)
        torch.manual_seed(args.seed)
        rows.append([])
        for deterministic in (True, False):
            env = DummyVecEnv([spec.make_env])
            env.seed(spec.seeds.evaluation)
            mean, _ = evaluate_policy(agent, env, args.episodes, deterministic, warn=False)
            env.close()
            rows[-1].append(float(np.mean(mean)))
        print(f"| {file.stem} | {rows[-1][0]:,.1f} | {rows[-1][1]:,.1f} |", flush=True)
    means, stds = np.mean(rows, axis=0), np.std(rows, axis=0)
    print(f"| mean ± std | {' | '.join(f'{m:,.1f} ± {s:,.1f}' for m, s in zip(means, stds))} |")


if __name__ == "__main__":
    exit_after(main)
