"""Train DERL on CartPole-v1, save it, load it again, and play.

python examples/derl_cartpole.py [--num_iterations 25] [--seed 0]
    [--config FILE] [--save cartpole.derl] [--tensorboard FOLDER]
"""

import argparse
from pathlib import Path
from typing import NoReturn

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy

from erl.cli import exit_after
from erl.errors import UserError
from erl.files import read_mapping
from erl.learners import DERL

ENV_ID = "CartPole-v1"


class Flags(argparse.ArgumentParser):
    """The flags, without their usage where one is wrong."""

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong."""
        raise UserError(message)


def main() -> None:
    """Train, save, load and play."""
    parser = Flags(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--num_iterations", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--save", default="cartpole.derl")
    parser.add_argument("--tensorboard")
    args = parser.parse_args()

    # What would fail after the training fails before it.
    DERL.check_save(args.save)
    named = read_mapping(args.config, "the settings of DERL").get("env_name", ENV_ID)
    if named != ENV_ID:
        raise UserError(f"{args.config} is for {named}, and this example for {ENV_ID}")
    agent = DERL.from_config(
        args.config,
        env_name=ENV_ID,
        state_dim=4,
        action_dim=2,
        seed=args.seed,
        tensorboard=args.tensorboard,
    )
    agent.train(args.num_iterations, num_episodes_per_iter=10, batch_size=256, log_interval=5)
    agent.save(args.save)

    agent = DERL.from_config(args.config, env_name=ENV_ID).load(args.save)
    mean, std = evaluate_policy(agent, gym.make(ENV_ID), n_eval_episodes=10, warn=False)
    print(f"{agent.steps:,} steps; 10 fresh episodes: {mean:.1f} ± {std:.1f}")


if __name__ == "__main__":
    exit_after(main)  # bad input is one line and exit code 2
