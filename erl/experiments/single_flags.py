"""Flags of `python -m erl`. Nothing here needs a library that takes long to load."""

import re
from dataclasses import dataclass

from erl.cli import option
from erl.errors import UserError
from erl.experiments.flags import (
    MAX_SEED,
    AgentFlags,
    check_count,
    check_name,
    check_seeds,
    env_kwargs_option,
    seed_indices,
)
from erl.learners import ENGINES, canonical_name


@dataclass(frozen=True)
class SingleConfig(AgentFlags):
    """Flags of `python -m erl`."""

    learner: str = option(
        "ERL-Re2", "algorithm: ERL-Re2, PPO, or any other of Stable-Baselines3 or sb3-contrib"
    )
    env_id: str = option("HalfCheetah-v4", "Gymnasium environment")
    steps: int = option(
        1_000_000,
        "environment steps of one lifetime",
        "--training_steps",
        "--training_timesteps",
        "--training-timesteps",
    )
    h_test: str = option("single", "name of the experiment, part of the study's name")
    nb_seeds: int = option(
        1, "lifetimes, each with its own seeds; in a SLURM array the index is the seed"
    )
    seeds: str | None = option(
        None, "numbers of the seeds, comma-separated, instead of the first --nb_seeds"
    )
    seed: int = option(0, "root of all seeds")
    learner_config: str | None = option(
        None, "YAML or JSON file with its settings (files of the SB3 Zoo work)"
    )
    set: str | None = option(None, "settings of the learner, NAME=VALUE,…; they override the file")
    engine: str = option(
        "auto",
        "code that trains: cohort (agents side by side), sb3 (one at a time), auto (cohort where "
        "there is one)",
        choices=ENGINES,
    )
    del_obs: bool = option(
        False,
        "delete velocities from the observation (CartPole, Pendulum, MountainCar, LunarLander and "
        "their continuous variants)",
    )
    env_kwargs: str | None = env_kwargs_option()
    ep_eval: int = option(10, "episodes over which returns are averaged")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.h_test)
        for name in ("steps", "nb_seeds", "ep_eval"):
            check_count(name, getattr(self, name))
        check_seeds(self.seed, self.nb_seeds)

    def subject(self) -> str:
        """Environment and learner."""
        return f"{self.env_id}_{canonical_name(self.learner)}"

    def indices(self) -> list[int]:
        """Numbers of the seeds.

        Raises:
            UserError: some are no numbers from 0, or a SLURM array's index is none.
        """
        if self.seeds is None:
            return seed_indices(self.nb_seeds)
        words = [word.strip() for word in self.seeds.split(",")]
        if not all(re.fullmatch("[0-9]{1,7}", word) and int(word) <= MAX_SEED for word in words):
            raise UserError(
                f"--seeds must be whole numbers from 0 to {MAX_SEED}, comma-separated, not "
                f"{self.seeds!r}"
            )
        return list(dict.fromkeys(int(word) for word in words))
