"""PPO with a reservoir on every environment of POPGym (Morad et al., ICLR 2023): that each runs,
and how fast.

    pip install popgym mazelib cython
    OMP_NUM_THREADS=1 python benchmarks/memory_tasks.py
    python benchmarks/memory_tasks.py --counting 400 --match RepeatPrevious

Prints a table in Markdown: what the environment observes and takes, the length of the vector that
agents see of it without a reservoir, environment steps in a second of processor time
(updates included, one agent on one core), episodes, and the mean return of the last 100 of them.
Training is short: the returns say that episodes end and are counted, not what can be learned.

`--counting` prints what it earns to name the symbol that came most often so far, which takes no
memory of any single step: mean return over so many episodes, and its standard error.
"""

import argparse
import time
import warnings
from importlib.util import find_spec

import gymnasium as gym
import numpy as np

from erl.cli import exit_after
from erl.errors import UserError
from erl.learners import Outputs, get_learner
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task, check_task

CONTEXT = Context((ReservoirParams(units=100, sr=1.0, lr=0.5),))


def name_of(space: gym.Space) -> str:
    """A space in a few words."""
    if isinstance(space, gym.spaces.Tuple):
        return ", ".join(map(name_of, space.spaces))
    if isinstance(space, gym.spaces.MultiDiscrete):
        values, n = np.unique(space.nvec, return_counts=True)
        parts = ", ".join(f"{k} of {v}" for v, k in zip(values, n, strict=True))
        return f"MultiDiscrete, {parts}"
    if isinstance(space, gym.spaces.Discrete):
        return f"Discrete({space.n})"
    return f"{type(space).__name__}, {space.shape[0]}" if space.shape else type(space).__name__


def train(env_id: str, steps: int) -> str:
    """A row of the table."""
    task = Task(f"popgym:{env_id}")
    learner = get_learner("PPO", "cohort")
    settings, seeds = LearnerSpec("PPO", {}, "cohort"), Seeds.derive(0, "single", 0)
    spec = LifetimeSpec(task, settings, steps, seeds, CONTEXT)
    ledger, start = Ledger(), time.process_time()
    (agent,) = learner.train([spec], [ledger], [Outputs()])
    if isinstance(agent, Exception):
        raise agent
    rate = ledger.steps / (time.process_time() - start)
    env = gym.make(env_id, disable_env_checker=True)
    returns = [r for _, r, _ in ledger.episodes[-100:]]
    cells = [
        env_id,
        name_of(env.observation_space),
        str(check_task(task)[0].shape[0]),
        name_of(env.action_space),
        f"{rate:,.0f}",
        f"{len(ledger.episodes):,}",
        f"{np.mean(returns):.2f}" if returns else "",
    ]
    env.close()
    return f"| {' | '.join(cells)} |"


def counting(env: gym.Env, episodes: int) -> np.ndarray:
    """Returns of the policy that names the symbol that came most often so far.

    Args:
        env: whose observations and actions are symbols of one alphabet.
        episodes: with the seeds 0, 1, ….
    """
    assert isinstance(env.action_space, gym.spaces.Discrete)
    returns = np.zeros(episodes)
    for seed in range(episodes):
        symbol, _ = env.reset(seed=seed)
        counts, ended = np.zeros(env.action_space.n), False
        while not ended:
            counts[symbol] += 1
            symbol, reward, terminated, truncated, _ = env.step(int(counts.argmax()))
            returns[seed] += float(reward)
            ended = terminated or truncated
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--match", default="", help="only environments with this in their names")
    parser.add_argument("--counting", type=int, metavar="EPISODES", help="of the counting policy")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if find_spec("popgym") is None:
        raise UserError('popgym is missing: pip install -e ".[popgym]"')
    import popgym  # noqa: F401  (registers its environments)

    names = sorted(i for i in gym.registry if i.startswith("popgym") and args.match in i)
    if args.counting is not None:
        for env_id in names:
            env = gym.make(env_id, disable_env_checker=True)
            if not isinstance(env.action_space, gym.spaces.Discrete) or (
                env.observation_space != env.action_space
            ):
                raise UserError(f"{env_id} does not have the same symbols to see and to name")
            returns = counting(env, args.counting)
            error = returns.std(ddof=1) / np.sqrt(len(returns))
            print(f"{env_id}: {returns.mean():.3f} ± {error:.3f}", flush=True)
        return
    print(
        "| environment | observes | seen as | takes | steps/s | episodes | return |\n"
        "|---|---|---:|---|---:|---:|---:|"
    )
    for env_id in names[:1]:
        train(env_id, args.steps)  # what the first one loads is not counted
    for env_id in names:
        print(train(env_id, args.steps), flush=True)


if __name__ == "__main__":
    exit_after(main)
