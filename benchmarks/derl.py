"""Environment steps per second of DERL's population, beside the same policies one at a time and
beside the environments alone, in one run on one core.

    python benchmarks/derl.py [--env_ids CartPole-v1 Pendulum-v1] [--rounds 9]

A population of 50 perturbed policies plays an episode each, as in an iteration of DERL: `lockstep`.
`one at a time` plays the same episodes with the same code, one policy after the other; `predict`
does so with one policy as a model of Stable-Baselines3, as a script with Gymnasium does.
`environments` steps 50 environments with actions that were drawn before, episode after episode: no
policy at all. CartPole is measured twice, with policies that fall over at once and with policies
that mostly balance: the longer episodes last, the more policies play at a time. The contenders take
turns, so that the machine's load meets all of them; the figure of each is the median over the
rounds, by the process's own time on one core.
"""

import math
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from erl.cli import exit_after

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy starts its threads

import numpy as np
import torch
from rows import environment, make_parser

from erl.learners import Outputs
from erl.learners.core.episodes import Stage
from erl.learners.core.run import Run
from erl.learners.derl.learner import BlendedPolicy
from erl.learners.derl.settings import DERLSettings
from erl.networks.policies import Policies
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task, make_bare_env

POPULATION, SIGMA = 50, 0.1


def balancing(derl: BlendedPolicy) -> np.ndarray:
    """A policy (dim,) for CartPole that pushes to where the pole leans: two hidden units, one for
    each direction, are carried through the layers.
    """
    sizes, theta = derl.sizes, np.zeros_like(derl.theta)
    network = Policies(sizes, theta[None])
    weights = [weight[0] for weight, _ in network.layers]
    weights[0][:, :2] = np.array([[0.1], [0.5], [2.0], [1.0]]) * [1.0, -1.0]
    for weight in weights[1:-1]:
        weight[:2, :2] = np.eye(2)
    weights[-1][:2] = 3.0 * np.eye(2)[::-1]
    return theta


def lockstep(derl: BlendedPolicy, rows: np.ndarray) -> Callable[[], int]:
    """An episode of each policy, all side by side."""
    policies = Policies(derl.sizes, rows)

    def act(who: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return derl.greedy(policies(seen[:, None], who)[:, 0])

    return lambda: sum(len(e.rewards) for e in derl.stage.play(act, len(rows)))


def one_at_a_time(derl: BlendedPolicy, rows: np.ndarray) -> Callable[[], int]:
    """An episode of each policy, one after the other."""
    stage = Stage(derl.spec, derl.ledger, 1)

    def run() -> int:
        steps = 0
        for row in rows:
            policy = Policies(derl.sizes, row[None])

            def act(who: np.ndarray, seen: np.ndarray, policy: Policies = policy) -> np.ndarray:
                return derl.greedy(policy(seen[:, None])[:, 0])

            steps += len(stage.play(act)[0].rewards)
        return steps

    return run


def predicting(derl: BlendedPolicy) -> Callable[[], int]:
    """Episodes of a model of Stable-Baselines3."""
    model, env = derl.agent().model, derl.spec.make_env()

    def run() -> int:
        steps = 0
        for episode in range(5):
            seen, _ = env.reset(seed=None if episode else 0)
            over = False
            while not over:
                action, _ = model.predict(seen, deterministic=True)
                seen, _, terminated, truncated, _ = env.step(action)
                steps, over = steps + 1, terminated or truncated
        return steps

    return run


def environments(env_id: str, lengths: int) -> Callable[[], int]:
    """As many environments, with actions that were drawn before. Episodes are seeded as those of
    the population are, and take `lengths` steps: poles would fall sooner under such actions.
    """
    envs: list[Any] = [make_bare_env(Task(env_id))[0].unwrapped for _ in range(POPULATION)]
    for env in envs:
        for limit in ("theta_threshold_radians", "x_threshold"):
            if hasattr(env, limit):
                setattr(env, limit, math.inf)
    space = envs[0].action_space
    space.seed(0)
    actions = np.array([space.sample() for _ in range(1000)])
    rows = actions.tolist() if actions.ndim == 1 else list(actions)

    def run() -> int:
        for seed, env in enumerate(envs):
            env.reset(seed=seed)
        for t in range(lengths):
            for env in envs:
                env.step(rows[t])
        return lengths * POPULATION

    return run


def rates(contenders: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Steps per second of each in each round, the first round left out."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(rounds + 1):
        for name, run in contenders.items():
            begun = time.process_time()
            steps = run()
            if k:
                found[name].append(steps / (time.process_time() - begun))
    return found


def measure(env_id: str, balanced: bool, rounds: int) -> None:
    """Print a table for one environment."""
    settings: dict[str, Any] = {"population_size": POPULATION, "sigma": SIGMA}
    spec = LifetimeSpec(
        Task(env_id), LearnerSpec("DERL", settings), 10**12, Seeds.derive(0, "single", 0)
    )
    derl = BlendedPolicy(Run([spec], [Ledger()], [Outputs()], [DERLSettings(**settings)]))
    if balanced:
        derl.gradient.theta = balancing(derl)
    derl.es.mean = derl.theta
    rows = derl.es.ask(POPULATION)
    side_by_side = lockstep(derl, rows)
    mean_length = side_by_side() / POPULATION
    contenders = {
        "lockstep": side_by_side,
        "one at a time": one_at_a_time(derl, rows),
        "predict": predicting(derl),
        "environments": environments(env_id, round(mean_length)),
    }
    found = rates(contenders, rounds)
    middle = {name: median(values) for name, values in found.items()}
    print(f"{env_id}, {POPULATION} policies, {mean_length:.0f} steps an episode")
    for name, rate in middle.items():
        spread = f"{min(found[name]):,.0f} to {max(found[name]):,.0f}"
        print(f"  {name:14} {rate:9,.0f} steps/s ({spread})")
    print(
        f"  lockstep is {middle['lockstep'] / middle['one at a time']:.1f} x one at a time, "
        f"{middle['lockstep'] / middle['predict']:.1f} x predict, "
        f"{middle['lockstep'] / middle['environments']:.2f} of the environments alone"
    )
    derl.close()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--env_ids", nargs="+", type=environment, default=["CartPole-v1", "Pendulum-v1"]
    )
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for env_id in args.env_ids:
        measure(env_id, False, args.rounds)
        if env_id == "CartPole-v1":
            measure(env_id, True, args.rounds)


if __name__ == "__main__":
    exit_after(main)
