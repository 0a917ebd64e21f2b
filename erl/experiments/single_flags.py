"""Flags of `python -m erl`. Nothing here needs a library that takes long to load."""

import re
from dataclasses import dataclass
from typing import Any

from erl.cli import option
from erl.errors import UserError
from erl.executors.machines import check_cluster
from erl.experiments.flags import (
    MAX_SEED,
    AgentFlags,
    check_context,
    check_count,
    check_name,
    check_seeds,
    context_option,
    context_set_option,
    env_kwargs_option,
    seed_indices,
)
from erl.learners import ENGINES, canonical_name

DEFAULT_LEARNER = "ERL-Re2"
# Settings of learners that have a flag each.
SETTINGS = (
    "actor_workers",
    "critic_workers",
    "mean_update",
    "mean_update_param",
    "var_update",
    "fixed_var_n",
    "rl_ratio",
    "mean_evaluations",
    "ray_address",
    "actor_executor",
)


@dataclass(frozen=True)
class SingleConfig(AgentFlags):
    """Flags of `python -m erl`."""

    learner: str | None = option(
        None,
        "algorithm: ERL-Re2, one of this project, any other of Stable-Baselines3 and sb3-contrib, "
        "or MODULE:CLASS, one of yours; by default ERL-Re2, or the one of --reservoir",
    )
    reservoir: str | None = option(
        None,
        "reservoirs of the catalogue: evolved, those that were evolved for --env_id, or a name "
        "there; with them the settings with which they were evolved",
    )
    env_id: str = option("HalfCheetah-v4", "Gymnasium environment", "--env_name")
    steps: int = option(
        1_000_000,
        "environment steps of one lifetime",
        "--training_steps",
        "--training_timesteps",
        "--training-timesteps",
        "--max_timestep",
    )
    h_test: str = option("single", "name of the experiment, part of the study's name")
    study: str | None = option(
        None,
        "name of a study to go on with, whatever its flags would call it; --h_test is not used",
    )
    nb_seeds: int = option(
        1, "lifetimes, each with its own seeds; in a SLURM array the index is the seed"
    )
    seeds: str | None = option(
        None,
        "numbers of the seeds, comma-separated, instead of the first --nb_seeds",
        holds="list",
    )
    seed: int = option(0, "root of all seeds; not with --published_code")
    learner_config: str | None = option(
        None,
        "YAML, TOML or JSON file with its settings (files of the SB3 Zoo and of AES-RL's code "
        "work)",
    )
    set: str | None = option(
        None, "settings of the learner, NAME=VALUE,…; they override the file", holds="settings"
    )
    engine: str = option(
        "auto",
        "code that trains: cohort, many agents side by side; sb3, one at a time; auto, side by "
        "side where that is possible",
        choices=ENGINES,
    )
    del_obs: bool = option(
        False,
        "delete velocities from the observation (CartPole, Pendulum, MountainCar, LunarLander and "
        "their continuous variants)",
    )
    context: str | None = context_option()
    context_set: str | None = context_set_option()
    env_kwargs: str | None = env_kwargs_option()
    ep_eval: int = option(10, "episodes over which returns are averaged")
    actor_workers: int | None = option(
        None, "setting: workers that train and play individuals", "--num_actor_worker"
    )
    critic_workers: int | None = option(
        None,
        "setting: workers that train critics, 0 or 1; of P-CEM-RL 1 with --parallel_critic only",
        "--num_critic_worker",
    )
    parallel_critic: bool = option(
        False, "P-CEM-RL: one worker trains the critics beside the generations"
    )
    mean_update: str | None = option(
        None,
        "setting of AES-RL: how far the mean goes, such as baseline-relative",
        "--aesrl_mean_update",
    )
    mean_update_param: float | None = option(
        None, "setting of AES-RL: parameter of --mean_update", "--aesrl_mean_update_param"
    )
    var_update: str | None = option(
        None, "setting of AES-RL: how the variance changes, fixed or adaptive", "--aesrl_var_update"
    )
    fixed_var_n: float | None = option(
        None, "setting of AES-RL: parameter of --var_update fixed", "--aesrl_fixed_var_n"
    )
    rl_ratio: float | None = option(
        None, "setting: share of individuals that learn", "--aesrl_rl_ratio"
    )
    mean_evaluations: int | None = option(None, "setting: episodes of the mean for each individual")
    actor_executor: str | None = option(
        None, "setting: how workers inside a lifetime work: lockstep, processes or ray"
    )
    ray_address: str | None = option(
        None, "setting: their Ray cluster, as --cluster takes it, or HOST with --ray_port"
    )
    ray_port: int | None = option(None, "port of that cluster")
    redis_password: str | None = option(None, "of no use here; taken for old commands")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.h_test)
        for name in ("steps", "nb_seeds", "ep_eval"):
            check_count(name, getattr(self, name))
        check_seeds(self.seed, self.nb_seeds)
        check_context(self.context, self.context_set)
        if self.context is not None and self.reservoir is not None:
            raise UserError("an agent has --reservoir or --context, not both")

    def settings(self) -> dict[str, Any]:
        """Settings of the learner that have a flag of their own, as far as they were given.

        Raises:
            UserError: flags that contradict one another, or an address that cannot be.
        """
        given = {name: getattr(self, name) for name in SETTINGS}
        if self.parallel_critic:
            if given["critic_workers"] == 0:
                raise UserError(
                    "--parallel_critic asks for a critic worker, --critic_workers 0 not"
                )
            given["critic_workers"] = given["critic_workers"] or 1
        if self.ray_port is not None:
            if self.ray_address is None:
                raise UserError("--ray_port needs --ray_address")
            given["ray_address"] = f"ray:{self.ray_address}:{self.ray_port}"
        if given["ray_address"] is not None:
            check_cluster(given["ray_address"], "--ray_address")
            given["actor_executor"] = given["actor_executor"] or "ray"
        return {name: value for name, value in given.items() if value is not None}

    def typed(self, setting: str) -> str:
        """The flag that gave a setting of `settings`."""
        others = {"critic_workers": "parallel_critic", "actor_executor": "ray_address"}
        return f"--{setting if getattr(self, setting) is not None else others[setting]}"

    def subject(self) -> str:
        """Environment and learner, and whether it has a reservoir or a context of its own."""
        from erl.studies.configuration import Part, agent_name

        part: Part | None
        part = "RES" if self.reservoir is not None else "CONTEXT" if self.context else None
        learner = canonical_name(self.learner or DEFAULT_LEARNER)
        return f"{self.env_id}_{agent_name(learner, part)}"

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
