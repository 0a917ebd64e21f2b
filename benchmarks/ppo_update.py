"""Time of PPO's update, and of drawing actions, in µs per agent and step: a cohort against
Stable-Baselines3, in turns on one core; the fastest of the repeats.

    python benchmarks/ppo_update.py [--agents 1 3 6 12 21] [--repeats 5]

Shapes are those of a default PPO on 100 reservoir units: 100 inputs, 6 actions, two hidden layers
of 64 twice, 2,048 steps, 10 epochs of minibatches of 64. Machines and their load differ: compare
the ratios.
"""

import argparse
import os
import time
from collections.abc import Callable

from erl.cli import exit_after

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = (
    "1"  # before NumPy and PyTorch start their threads
)

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from erl.learners.ppo.algorithm import CohortPPO
from erl.learners.ppo.settings import PPOSettings

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (100,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (6,), np.float32)


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def sb3_update() -> Callable[[], float]:
    """Measures the seconds of Stable-Baselines3's update, per step."""
    env = gym.Env()
    env.observation_space, env.action_space = OBSERVATIONS, ACTIONS
    model = PPO("MlpPolicy", env, device="cpu", seed=0)
    model.set_logger(configure(None, []))
    rng, buffer = np.random.default_rng(0), model.rollout_buffer
    for array in (
        buffer.observations,
        buffer.actions,
        buffer.advantages,
        buffer.returns,
        buffer.values,
    ):
        array[:] = rng.normal(size=array.shape)
    with torch.no_grad():
        _, log_prob, _ = model.policy.evaluate_actions(
            torch.from_numpy(buffer.observations[:, 0]), torch.from_numpy(buffer.actions[:, 0])
        )
    buffer.log_probs[:, 0], buffer.full = log_prob, True
    return lambda: seconds(model.train) / model.n_steps


def cohort(n: int) -> Callable[[], tuple[float, float]]:
    """Measures seconds per agent and step of the update and of an action, the latter with noting
    the step's outcome.
    """
    agents = CohortPPO([PPOSettings()] * n, list(range(n)), OBSERVATIONS, ACTIONS)
    n_steps, rng = agents.settings[0].n_steps, np.random.default_rng(0)
    obs = rng.normal(size=(64, n, 1, 100)).astype(np.float32)
    rewards, ends = rng.normal(size=(n, 1)).astype(np.float32), np.zeros((n, 1), bool)
    agents.start(obs[0])

    def rollout() -> None:
        for t in range(n_steps):
            agents.act()
            agents.record(obs[t % 64], rewards, ends)

    def measure() -> tuple[float, float]:
        act = seconds(rollout)
        return seconds(lambda: agents.update(1.0)) / n_steps / n, act / n_steps / n

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 3, 6, 12, 21])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sb3, cohorts = sb3_update(), {n: cohort(n) for n in args.agents}
    references: list[float] = []
    times: dict[int, list[tuple[float, float]]] = {n: [] for n in cohorts}
    for _ in range(args.repeats):
        references.append(sb3())
        for n, measure in cohorts.items():
            times[n].append(measure())
    reference = min(references)
    print(f"Stable-Baselines3: update {reference * 1e6:6.1f} µs per step")
    for n, pairs in times.items():
        update, act = map(min, zip(*pairs))
        print(
            f"{n:3} agents: update {update * 1e6:6.1f} µs ({reference / update:4.1f} times "
            f"faster), act {act * 1e6:5.2f} µs"
        )


if __name__ == "__main__":
    exit_after(main)
