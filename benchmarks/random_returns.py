"""What uniformly random actions earn: the returns that a normalised score counts from.

Writes `erl/worlds/random_returns.json`, which `erl.worlds.task_sets` reads. Environments that are
not measured keep their entries. The first command measures every MuJoCo v4 and v5 task, and those
with known velocities:

    python benchmarks/random_returns.py
    python benchmarks/random_returns.py --env_ids Ant-v4,Swimmer-v4 --episodes 1000

An episode is reset and its actions are drawn with seeds that depend on `--seed`, the environment
and the episode's number alone, so that a figure does not depend on what else is measured, nor on
how many episodes run side by side.
"""

import json
import math
import sys
import time
import zlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np

from erl.cli import Display, duration, main, option
from erl.errors import UserError
from erl.files import write_text
from erl.worlds.lockstep import Lockstep
from erl.worlds.task_sets import RANDOM_RETURNS, RandomReturn, task_set_from_ids
from erl.worlds.tasks import VELOCITIES, Task, make_bare_env

SLOTS = 20
LONGEST = 100_000  # steps; an episode that has not ended by then is taken for endless
# It asks for MuJoCo 2, whatever Gymnasium registers.
IMPOSSIBLE = ("Pusher-v4",)


@dataclass(frozen=True)
class Config:
    env_ids: str | None = option(
        None, "environments, comma-separated; by default all MuJoCo v4 and v5 and some more"
    )
    episodes: int = option(100, "episodes of each, at least 2")
    seed: int = option(0, "root of all seeds")
    output: str = option(str(RANDOM_RETURNS), "JSON file that takes the numbers")

    def __post_init__(self) -> None:
        if self.episodes < 2:
            raise UserError(
                f"--episodes has to be at least 2 for a standard error, not {self.episodes}"
            )
        if self.seed < 0:
            raise UserError(f"--seed has to be 0 or more, not {self.seed}")


def default_env_ids() -> list[str]:
    """Every MuJoCo v4 and v5 environment that can be made, and the tasks whose velocities can be
    hidden.
    """
    of_mujoco = [
        i
        for i, s in gym.registry.items()
        if "envs.mujoco" in str(s.entry_point) and s.version in (4, 5)
    ]
    return [i for i in of_mujoco if i not in IMPOSSIBLE] + list(VELOCITIES)


def random_episodes(
    env_id: str, episodes: int, seed: int, slots: int = SLOTS
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths (episodes,) of episodes under uniformly random actions, in the order of
    their seeds.

    Raises:
        UserError: the environment cannot be made, breaks, or does not end its episodes.
    """
    lockstep = Lockstep([make_bare_env(Task(env_id))[0] for _ in range(min(slots, episodes))])
    spaces = [deepcopy(lockstep.action_space) for _ in range(lockstep.n)]
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    playing = np.arange(lockstep.n)  # the episode of each slot
    upcoming = iter(range(lockstep.n, episodes))

    def begin(slot: int) -> None:
        root = np.random.SeedSequence([seed, zlib.crc32(env_id.encode()), int(playing[slot])])
        reset_seed, action_seed = (int(s) >> 1 for s in root.generate_state(2))
        spaces[slot].seed(action_seed)
        lockstep.reset(slot, seed=reset_seed)

    for slot in range(lockstep.n):
        begin(slot)
    while lockstep.n:
        _, rewards, terminated, truncated = lockstep.step([space.sample() for space in spaces])
        if lockstep.faults:
            raise UserError(f"{env_id}: {next(iter(lockstep.faults.values())).reason}")
        returns[playing] += rewards
        lengths[playing] += 1
        if lengths[playing].max() >= LONGEST:
            raise UserError(f"{env_id}: an episode has not ended after {LONGEST:,} steps")
        done = np.flatnonzero(terminated | truncated)
        if not done.size:
            continue
        idle = set()
        for slot in done.tolist():
            playing[slot] = next(upcoming, -1)
            if playing[slot] < 0:
                idle.add(slot)
            else:
                begin(slot)
        if idle:
            busy = [slot for slot in range(lockstep.n) if slot not in idle]
            lockstep.keep(busy)
            spaces, playing = [spaces[slot] for slot in busy], playing[busy]
    return returns, lengths


def measure(env_id: str, episodes: int, seed: int) -> RandomReturn:
    """The numbers of one environment, rounded to 7 digits: more than any number of episodes can
    mean.
    """
    returns, lengths = random_episodes(env_id, episodes, seed)

    def rounded(x: float) -> float:
        return float(f"{x:.7g}")

    return RandomReturn(
        return_mean=rounded(returns.mean()),
        return_standard_error=rounded(returns.std(ddof=1) / math.sqrt(episodes)),
        reward_mean=rounded(returns.sum() / lengths.sum()),
        length_mean=rounded(lengths.mean()),
        episodes=episodes,
        seed=seed,
        gymnasium=gym.__version__,
        mujoco=mujoco.__version__,
    )


def save(path: Path, new: dict[str, RandomReturn]) -> None:
    """Put numbers of some environments into the file; the others keep theirs."""
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(known, dict):
            raise ValueError("it holds something else")
        known |= {i: asdict(figures) for i, figures in new.items()}
        text = json.dumps(dict(sorted(known.items())), indent=1) + "\n"
        write_text(path, text)
    except (OSError, ValueError) as e:
        raise UserError(f"cannot keep the numbers in {path}: {e}") from e


def run(config: Config, display: Display) -> int:
    env_ids: Sequence[str] = (
        task_set_from_ids(config.env_ids).env_ids
        if config.env_ids is not None
        else default_env_ids()
    )
    output = Path(config.output)
    save(output, {})  # a file that cannot be written is better known at once
    display.line(f"{'environment':28}{'return':>12}{'± s.e.':>10}{'per step':>11}{'length':>9}")
    failed = 0
    for env_id in env_ids:
        start = time.monotonic()
        try:
            found = measure(env_id, config.episodes, config.seed)
        except UserError as e:
            if len(env_ids) == 1:
                raise
            print(e, file=sys.stderr)
            failed += 1
            continue
        save(output, {env_id: found})
        display.line(
            f"{env_id:28}{found.return_mean:12.2f}{found.return_standard_error:10.2f}"
            f"{found.reward_mean:11.4f}{found.length_mean:9.1f}   "
            f"{duration(time.monotonic() - start)}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    main(run, Config, "Returns of uniformly random actions")
