"""What stepping many environments on one core costs beside the physics itself.

Prints microseconds per environment step, resets included, and in brackets the ratio to raw physics
(mj_step on separate mjData, controls written, nothing read), for Lockstep and for the environments
of gym.make in a loop. All three live through the same episodes:

    OMP_NUM_THREADS=1 python benchmarks/environments.py
    OMP_NUM_THREADS=1 python benchmarks/environments.py --env Ant-v5 --slots 1 21
"""

import time
import warnings
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from rows import environment, make_parser

from erl.cli import exit_after
from erl.worlds.lockstep import Lockstep


class Raw:
    """Physics alone, and resets at the times at which they were needed with the same actions
    before.
    """

    def __init__(self, envs: list[gym.Env], ends: list[list[int]]) -> None:
        self.envs: list[Any] = [e.unwrapped for e in envs]
        self.ends = ends

    def begin(self) -> None:
        for i, env in enumerate(self.envs):
            env.reset(seed=i)

    def run(self, actions: np.ndarray) -> None:
        bodies = [(e.model, e.data, e.data.ctrl, e.frame_skip) for e in self.envs]
        for row, ended in zip(actions, self.ends):
            for (model, data, ctrl, frame_skip), action in zip(bodies, row):
                ctrl[:] = action
                mujoco.mj_step(model, data, frame_skip)
            for i in ended:
                self.envs[i].reset()


class Together:
    def __init__(self, envs: list[gym.Env]) -> None:
        self.lockstep = Lockstep(envs)

    def begin(self) -> None:
        for i in range(self.lockstep.n):
            self.lockstep.reset(i, seed=i)

    def run(self, actions: np.ndarray) -> list[list[int]]:
        ends = []
        for row in actions:
            _, _, terminated, truncated = self.lockstep.step(row)
            ends.append(np.flatnonzero(terminated | truncated).tolist())
            for i in ends[-1]:
                self.lockstep.reset(i)
        return ends


class OneByOne:
    def __init__(self, envs: list[gym.Env]) -> None:
        self.envs = envs

    def begin(self) -> None:
        for i, env in enumerate(self.envs):
            env.reset(seed=i)

    def run(self, actions: np.ndarray) -> None:
        discrete = isinstance(self.envs[0].action_space, spaces.Discrete)
        for row in actions:
            for env, action in zip(self.envs, row.tolist() if discrete else row):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()


def microseconds(
    contenders: dict[str, Raw | Together | OneByOne], actions: np.ndarray, rounds: int
) -> dict[str, float]:
    """Median time per environment step over `actions` (steps, n, ...).

    Turns are taken, since a shared machine's speed wanders.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.begin()
            start = time.perf_counter()
            contender.run(actions)
            taken[name].append(
                (time.perf_counter() - start) / (actions.shape[0] * actions.shape[1]) * 1e6
            )
    return {name: float(np.median(t)) for name, t in taken.items()}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--env", nargs="+", type=environment, default=["HalfCheetah-v4"], help="Gymnasium ids"
    )
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 3, 6, 12, 21, 42])
    parser.add_argument("--env-steps", type=int, default=2000, help="environment steps of one turn")
    parser.add_argument("--rounds", type=int, default=9, help="turns, of which the median counts")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'environment':28}{'slots':>6}{'raw physics':>14}{'Lockstep':>18}{'gym.make loop':>18}")
    for env_id in args.env:
        for n in args.slots:
            steps = max(1, args.env_steps // n)
            space: Any = gym.make(env_id).action_space
            rng = np.random.default_rng(0)
            if isinstance(space, spaces.Box):
                actions = rng.uniform(space.low, space.high, (steps, n, *space.shape)).astype(
                    space.dtype
                )
            else:
                actions = rng.integers(space.n, size=(steps, n))
            sets = [[gym.make(env_id) for _ in range(n)] for _ in range(3)]
            contenders: dict[str, Raw | Together | OneByOne] = {
                "together": Together(sets[0]),
                "loop": OneByOne(sets[1]),
            }
            contenders["together"].begin()
            ends = contenders["together"].run(actions)
            if ends is not None and hasattr(sets[2][0].unwrapped, "model"):
                contenders["raw"] = Raw(sets[2], ends)
            us = microseconds(contenders, actions, args.rounds)
            raw = us.get("raw")
            cells = [
                f"{us[k]:9.1f}" + (f" ({us[k] / raw:4.2f})" if raw else "")
                for k in ("together", "loop")
            ]
            print(
                f"{env_id:28}{n:6d}{f'{raw:.1f}' if raw else '-':>14}{cells[0]:>18}{cells[1]:>18}",
                flush=True,
            )


if __name__ == "__main__":
    exit_after(main)
