"""What episodes of a population cost: environments and reservoirs in lockstep, against
environments with a wrapper for each reservoir, stepped one after the other.

    OMP_NUM_THREADS=1 python benchmarks/rollouts.py
    OMP_NUM_THREADS=1 python benchmarks/rollouts.py --env Hopper-v4 --heads 5 --units 0

Both play the same episodes with the same seeds (the script checks that their returns are equal), so
that only the way to step differs. Policies are linear heads on what they see. Turns are taken in
pairs, the first of a pair in turns too. Prints microseconds per environment step of each, and the
ratio of the two with a 95 % bootstrap interval over the pairs (geometric mean).
"""

import time
import warnings

import numpy as np
from gymnasium import spaces
from rows import environment, make_parser

from erl.cli import exit_after
from erl.learners.core.episodes import Stage
from erl.statistics import bootstrap_interval
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task


class Heads:
    """Linear policies, all in one product."""

    def __init__(self, n: int, features: int, actions: int) -> None:
        rng = np.random.default_rng(0)
        self._weights = 0.3 * rng.normal(size=(n, features, actions)).astype(np.float32)

    def __call__(self, who: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return np.tanh((seen[:, None] @ self._weights[who])[:, 0])


def one_by_one(
    envs: list, rng: np.random.Generator, heads: Heads, limit: int | None
) -> tuple[int, list[float]]:
    """Steps taken, and each head's return: every environment through all of its wrappers."""
    space = envs[0].action_space
    n = len(envs)
    seeds = [int(rng.integers(2**31)) for _ in range(n)]
    now = np.stack(
        [e.reset(seed=s)[0].astype(np.float32) for e, s in zip(envs, seeds, strict=True)]
    )
    rows: list[list[np.ndarray]] = [[row] for row in now]
    rewards: list[list[float]] = [[] for _ in range(n)]
    playing = list(range(n))
    while playing:
        chosen = heads(np.array(playing), now)
        going = []
        for i, action in zip(playing, chosen, strict=True):
            executed = space.low + 0.5 * (action + 1.0) * (space.high - space.low)
            seen, reward, terminated, truncated, _ = envs[i].step(executed.astype(space.dtype))
            rows[i].append(seen.astype(np.float32))
            rewards[i].append(float(reward))
            if not (terminated or truncated) and len(rewards[i]) != limit:
                going.append(i)
        playing = going
        if playing:
            now = np.stack([rows[i][-1] for i in playing])
    return sum(map(len, rewards)), [float(np.sum(r)) for r in rewards]


def interval(log_ratios: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean, and the ends of its 95 % bootstrap interval."""
    low, high = bootstrap_interval(log_ratios, np.mean, n_resamples=10_000)
    return float(np.exp(log_ratios.mean())), float(np.exp(low)), float(np.exp(high))


def compare(env_id: str, n: int, units: int, pairs: int, limit: int) -> str:
    context = Context((ReservoirParams(units=units, sr=0.9, lr=0.5),)) if units else None
    spec = LifetimeSpec(Task(env_id), LearnerSpec(), 1 << 60, Seeds(1, 2, 3, 4), context)
    observation_space, action_space = spec.spaces()
    assert isinstance(action_space, spaces.Box)
    heads = Heads(n, int(observation_space.shape[0]), int(np.prod(action_space.shape)))
    stage, envs = Stage(spec, Ledger(), n), [spec.make_env() for _ in range(n)]
    rng = np.random.default_rng(spec.seeds.environment)
    taken = np.empty((pairs, 2))
    for pair in range(-1, pairs):  # the first warms up
        results = {}
        for which in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            if which == 0:
                steps, returns = one_by_one(envs, rng, heads, limit)
            else:
                episodes = stage.play(heads, n, limit)
                steps, returns = sum(len(e.rewards) for e in episodes), [e.total for e in episodes]
            results[which] = returns
            if pair >= 0:
                taken[pair, which] = (time.perf_counter() - start) / steps * 1e6
        if results[0] != results[1]:
            raise SystemExit(f"returns differ: {results}")
    stage.close()
    for env in envs:
        env.close()
    ratio, low, high = interval(np.log(taken[:, 0] / taken[:, 1]))
    old, new = np.median(taken, axis=0)
    return (
        f"{env_id:18}{n:6d}{units:7d}{old:14.1f}{new:11.1f}   {ratio:.2f} ({low:.2f} to {high:.2f})"
    )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--env", nargs="+", type=environment, default=["HalfCheetah-v4"], help="Gymnasium ids"
    )
    parser.add_argument("--heads", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--units", type=int, default=100, help="of a reservoir; 0: none")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300, help="of an episode, at most")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'environment':18}{'heads':>6}{'units':>7}{'one by one':>14}{'lockstep':>11}   ratio")
    for env_id in args.env:
        for n in args.heads:
            print(compare(env_id, n, args.units, args.pairs, args.steps), flush=True)


if __name__ == "__main__":
    exit_after(main)
