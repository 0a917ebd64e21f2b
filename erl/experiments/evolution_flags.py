"""Flags of evolutions. Nothing here needs a library that takes long to load."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from erl.cli import option
from erl.errors import UserError
from erl.experiments.flags import (
    MAX_SEED,
    RunFlags,
    check_count,
    check_name,
    check_number,
    check_seeds,
)
from erl.learners import ENGINES
from erl.search.choices import FITNESSES, PRUNERS, RESTARTS, SAMPLERS, check_choice

if TYPE_CHECKING:
    from erl.worlds.task_sets import TaskSet

# Flags that say how reservoirs are, and nothing where there are none.
RESERVOIR_FLAGS = frozenset(
    {"units", "skip_c", "fixed_iss", "obs_units", "reset_res"}
    | {f"{bound}_{name}" for bound in ("min", "max") for name in ("sr", "lr", "iss")}
)


@dataclass(frozen=True)
class EvolutionFlags(RunFlags):
    """Flags that every evolution takes. Defaults are ER-MRL's."""

    h_test: str = option("main", "name of the experiment, part of the study's name")
    training_steps: int = option(
        300_000, "environment steps of one lifetime", "--training_timesteps", "--training-timesteps"
    )
    nb_trials: int = option(
        100, "trials in all; running the command again goes on up to this number"
    )
    sampler: str = option("Cmaes", "optimiser of the hyperparameters", choices=SAMPLERS)
    del_obs: bool = option(False, "delete velocities from the observation")
    nb_seeds: int = option(3, "lifetimes of one trial, each with a reservoir of its own")
    ep_eval: int = option(10, "episodes over which a fitness is averaged")
    finalists: int = option(
        5,
        "best trials that are lived again, with the mean of the search, to choose the winner; 0 "
        "takes the highest fitness",
    )
    finalist_seeds: int = option(5, "fresh seeds on which each finalist is lived")
    units: int = option(100, "neurons of one reservoir")
    skip_c: bool = option(False, "the policy also sees observation, action and reward")
    fixed_iss: bool = option(True, "input scaling is 1 and not searched")
    evolve: str | None = option(
        None,
        "what else is searched: units, rc_connectivity, input_connectivity, bias, "
        "learner.SETTING=low:high[:log]",
    )
    obs_units: int | None = option(None, "neurons that the policy sees; by default all")
    min_sr: float = option(1e-4, "lowest spectral radius")
    max_sr: float = option(1e2, "highest spectral radius")
    min_lr: float = option(1e-2, "lowest leak rate")
    max_lr: float = option(1.0, "highest leak rate")
    min_iss: float = option(1e-1, "lowest input scaling")
    max_iss: float = option(10.0, "highest input scaling")
    reset_res: bool = option(True, "reservoir states go to zero at the start of an episode")
    fitness: str = option(
        "training",
        "mean return of the last training episodes, or of fresh episodes of the final policy",
        choices=FITNESSES,
    )
    learner: str = option("PPO", "algorithm of Stable-Baselines3 or sb3-contrib")
    learner_config: str | None = option(
        None, "YAML or JSON file of its keyword arguments (SB3 Zoo's files work)"
    )
    engine: str = option("auto", "how lifetimes are trained", choices=ENGINES)
    seed: int = option(0, "root of all seeds")
    pruner: str = option(
        "none",
        "Optuna's pruner that ends trials early by what they reached so far",
        choices=PRUNERS,
    )
    popsize: int | None = option(
        None, "trials of one generation; by default 4 + 3 ln(number of searched parameters)"
    )
    restarts: str = option(
        "ipop", "how CMA-ES begins anew where it has converged", choices=RESTARTS
    )
    use_pruned: bool = option(True, "CMA-ES ranks pruned trials, below all completed ones")
    warm_start: str | None = option(
        None, "study whose trials CMA-ES begins from: STUDY, or STORAGE#STUDY"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.h_test)
        for name in (
            "training_steps",
            "nb_trials",
            "nb_seeds",
            "ep_eval",
            "units",
            "finalist_seeds",
        ):
            check_count(name, getattr(self, name))
        for name in ("popsize", "obs_units"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_number("finalists", self.finalists)
        check_seeds(self.seed, self.nb_seeds)
        if self.finalist_seeds > MAX_SEED:
            raise UserError(f"--finalist_seeds is at most {MAX_SEED}, not {self.finalist_seeds}")
        if self.popsize is not None and self.popsize < 2:
            raise UserError(f"a generation has at least 2 trials: --popsize {self.popsize}")
        self._check_reservoirs()
        check_choice("restarts", self.restarts, RESTARTS)
        check_choice("fitness", self.fitness, FITNESSES)
        check_choice("pruner", self.pruner, PRUNERS)
        for what in ("sr", "lr", "iss"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if not (math.isfinite(low) and math.isfinite(high) and low > 0):
                raise UserError(f"--min_{what} and --max_{what} are above 0: {low} and {high}")
            if low > high:
                raise UserError(f"--min_{what} {low} lies above --max_{what} {high}")
        if self.max_lr > 1:
            raise UserError(f"a leak rate is at most 1: --max_lr {self.max_lr}")

    def reservoirs(self) -> int | None:
        """Number of reservoirs as `SearchConfig.nb_res` has it: None for a single one."""
        raise NotImplementedError

    def _check_reservoirs(self) -> None:
        """Refuse a negative number of reservoirs, and flags of reservoirs where there are none."""
        number = self.reservoirs()
        check_number("nb_res", number or 0)
        if number != 0:
            return
        searched = [item.partition("=")[0].strip() for item in (self.evolve or "").split(",")]
        others = [name for name in searched if name and not name.startswith("learner.")]
        if others or not any(searched):
            raise UserError(
                "--nb_res 0 evolves settings of the learner and nothing else: "
                "--evolve learner.SETTING=low:high" + (f", not {others[0]}" if others else "")
            )
        for field in fields(self):
            if field.name in RESERVOIR_FLAGS and getattr(self, field.name) != field.default:
                raise UserError(f"--{field.name} is for reservoirs, and --nb_res 0 has none")

    def tasks(self) -> dict[str, Any]:
        """What the study stores of its environments: fields of `EvolutionStudy`.

        Raises:
            UserError: an environment cannot be used.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class EvolutionConfig(EvolutionFlags):
    """One reservoir for one environment."""

    env_id: str = option("HalfCheetah-v4", "Gymnasium environment")
    nb_res: int = option(1, "0 evolves the learner's settings alone, without a reservoir")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nb_res not in (0, 1):
            raise UserError(
                f"--nb_res is 1 or 0 here, not {self.nb_res}: evolve_multi_res.py evolves several"
            )

    def subject(self) -> str:
        """The environment."""
        return self.env_id if self.nb_res else f"{self.env_id}_0"

    def reservoirs(self) -> int | None:
        """See `EvolutionFlags`."""
        return None if self.nb_res else 0

    def tasks(self) -> dict[str, Any]:
        """The environment."""
        return _task(self.env_id, self.del_obs)


@dataclass(frozen=True)
class MultiEvolutionConfig(EvolutionFlags):
    """Several reservoirs for one environment."""

    env_id: str = option("HalfCheetah-v4", "Gymnasium environment")
    nb_res: int = option(
        3, "reservoirs, side by side; 0 evolves the learner's settings alone, without any"
    )
    fixed_iss: bool = option(False, "input scaling is 1 and not searched")

    def subject(self) -> str:
        """Environment and number of reservoirs."""
        return f"{self.env_id}_{self.nb_res}"

    def reservoirs(self) -> int | None:
        """See `EvolutionFlags`."""
        return self.nb_res

    def tasks(self) -> dict[str, Any]:
        """The environment."""
        return _task(self.env_id, self.del_obs)


@dataclass(frozen=True)
class GeneralizationConfig(EvolutionFlags):
    """Reservoirs for a set of environments."""

    env_type: str = option(
        "Ant_Swimmer", "set of environments: ER-MRL's, or one that --sets declares"
    )
    env_ids: str | None = option(None, "environments in place of a set, comma-separated")
    sets: str | None = option(
        None, "TOML or YAML file that declares sets, target and random returns"
    )
    nb_res: int = option(
        2, "reservoirs, side by side; 0 evolves the learner's settings alone, without any"
    )
    fixed_iss: bool = option(False, "input scaling is 1 and not searched")

    def reservoirs(self) -> int | None:
        """See `EvolutionFlags`."""
        return self.nb_res

    def task_set(self) -> "TaskSet":
        """The environments that are evolved for."""
        from erl.worlds.task_sets import load_task_set, task_set_from_ids

        return (
            task_set_from_ids(self.env_ids, self.sets)
            if self.env_ids
            else load_task_set(self.env_type, self.sets)
        )

    def subject(self) -> str:
        """Set and number of reservoirs."""
        return f"{self.task_set().name}_{self.nb_res}"

    def tasks(self) -> dict[str, Any]:
        """The environments and the returns that normalise their scores, so that a test needs no
        file.
        """
        from erl.worlds.task_sets import References
        from erl.worlds.tasks import Task, check_task

        task_set = self.task_set()
        for env_id in task_set.env_ids:
            check_task(Task(env_id, self.del_obs))
        references = References.of(task_set, published=self.published_code)
        references.check(task_set.env_ids)
        return {
            "env_type": task_set.name,
            "env_ids": task_set.env_ids,
            "references": {
                e: [references.random_return(e), references.target_return(e)]
                for e in task_set.env_ids
            },
        }


def _task(env_id: str, del_obs: bool) -> dict[str, Any]:
    """A single environment, checked, as `EvolutionStudy` stores it."""
    from erl.worlds.tasks import Task, check_task

    check_task(Task(env_id, del_obs))
    return {"env_id": env_id}
