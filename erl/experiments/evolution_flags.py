"""Flags of evolutions. Nothing here needs a library that takes long to load."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from erl.cli import command, option
from erl.errors import UserError
from erl.experiments.flags import (
    MAX_SEED,
    RunFlags,
    check_context,
    check_count,
    check_name,
    check_number,
    check_seeds,
    context_option,
    context_set_option,
    env_kwargs_option,
)
from erl.learners import ENGINES
from erl.search.choices import FITNESSES, PRUNERS, RESTARTS, SAMPLERS, check_choice

if TYPE_CHECKING:
    from erl.worlds.task_sets import TaskSet

# Flags that say how reservoirs are, and nothing where there are none.
RESERVOIR_FLAGS = frozenset(
    {
        "units",
        "skip_c",
        "fixed_iss",
        "feed_action",
        "obs_units",
        "reset_res",
        "bias",
        "bias_connectivity",
    }
    | {f"{bound}_{name}" for bound in ("min", "max") for name in ("sr", "lr", "iss")}
)

# Those of them that a context of the user's own has too.
CONTEXT_FLAGS = frozenset({"skip_c", "feed_action", "reset_res"})

FINALIST_SEEDS = 5

_SET = "Ant_Swimmer"  # what is evolved for by default
_SEARCH_MORE = (
    "search more: units, rc_connectivity, input_connectivity, bias, bias_connectivity, "
    "learner.SETTING=low:high[:log]"
)


@dataclass(frozen=True)
class EvolutionFlags(RunFlags):
    """Flags that every evolution takes. Defaults are ER-MRL's."""

    h_test: str = option("main", "name of the experiment, part of the study's name")
    study: str | None = option(
        None,
        "name of a study to go on with, whatever its flags would call it; --h_test is not used",
    )
    training_steps: int = option(
        300_000, "environment steps of one lifetime", "--training_timesteps", "--training-timesteps"
    )
    nb_trials: int = option(
        100, "trials of the study in all; a larger number continues a finished study"
    )
    sampler: str = option(
        "Cmaes",
        "optimiser of the hyperparameters, or MODULE:CLASS, a sampler of yours or of Optuna's",
        choices=SAMPLERS,
    )
    del_obs: bool = option(
        False,
        "delete velocities from the observation (CartPole, Pendulum, MountainCar, LunarLander and "
        "their continuous variants)",
    )
    env_kwargs: str | None = env_kwargs_option()
    nb_seeds: int = option(3, "lifetimes of one trial; each draws its own reservoir")
    ep_eval: int = option(10, "episodes over which a fitness is averaged")
    finalists: int | None = option(
        None,
        "best trials that are trained again at the end, with the mean of CMA-ES, to choose the "
        "winner; by default none, and the winner of earlier finals stands; 0 takes it back",
    )
    finalist_seeds: int = option(
        FINALIST_SEEDS, "fresh seeds on which each finalist is trained; only with --finalists"
    )
    units: int = option(100, "neurons of one reservoir")
    skip_c: bool = option(
        False, "the policy also sees the observation, the last action and the last reward"
    )
    feed_action: bool = option(
        True,
        "the last action reaches the reservoir, and with --skip_c the policy; never with "
        "--published_code",
    )
    fixed_iss: bool = option(True, "the input scaling is 1; False searches it too")
    evolve: str | None = option(None, _SEARCH_MORE, holds="list")
    bias: float | None = option(
        None, "scale of the neurons' bias; by default 0, with --published_code 1"
    )
    bias_connectivity: float | None = option(
        None, "share of neurons that have a bias; by default 1, with --published_code 0.1"
    )
    obs_units: int | None = option(
        None, "number of neurons that the policy sees, the first ones; by default all"
    )
    min_sr: float = option(1e-4, "lowest spectral radius")
    max_sr: float = option(1e2, "highest spectral radius")
    min_lr: float = option(1e-2, "lowest leak rate")
    max_lr: float = option(1.0, "highest leak rate")
    min_iss: float = option(1e-1, "lowest input scaling; with --fixed_iss False")
    max_iss: float = option(10.0, "highest input scaling; with --fixed_iss False")
    reset_res: bool = option(True, "the state of a reservoir is zero at the start of each episode")
    fitness: str = option(
        "training",
        "mean return of the last training episodes, or of fresh episodes of the final policy",
        choices=FITNESSES,
    )
    learner: str = option(
        "PPO",
        "algorithm: PPO, one of this project, any other of Stable-Baselines3 and sb3-contrib, or "
        "MODULE:CLASS, one of yours",
    )
    learner_config: str | None = option(
        None, "YAML, TOML or JSON file with its settings (files of the SB3 Zoo work)"
    )
    engine: str = option(
        "auto",
        "code that trains: cohort, many agents side by side; sb3, one at a time; auto, side by "
        "side where that is possible",
        choices=ENGINES,
    )
    seed: int = option(0, "root of all seeds")
    pruner: str = option(
        "none",
        "end bad trials early with this pruner of Optuna",
        choices=PRUNERS,
    )
    popsize: int | None = option(
        None, "trials of one generation; by default 4 + 3 ln(number of searched parameters)"
    )
    restarts: str = option(
        "ipop", "how CMA-ES starts again when it has converged", choices=RESTARTS
    )
    use_pruned: bool = option(
        True, "CMA-ES ranks pruned trials below all completed ones; False ignores them"
    )
    warm_start: str | None = option(
        None, "study from whose best trials CMA-ES starts: STUDY, or STORAGE#STUDY"
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
        if self.obs_units is not None:
            check_count("obs_units", self.obs_units)
        check_seeds(self.seed, self.nb_seeds)
        self._check_finals()
        self._check_reservoirs()
        if self.evolve is not None and not self.evolve.replace(",", "").strip():
            raise UserError(
                f"--evolve {self.evolve!r} names nothing: leave it out, or name what to search, "
                "as in --evolve units"
            )
        check_choice("restarts", self.restarts, RESTARTS)
        check_choice("fitness", self.fitness, FITNESSES)
        check_choice("pruner", self.pruner, PRUNERS)
        for what in ("sr", "lr", "iss"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if not (math.isfinite(low) and math.isfinite(high) and low > 0):
                raise UserError(
                    f"--min_{what} and --max_{what} must be above 0, not {low} and {high}"
                )
            if low > high:
                raise UserError(f"--min_{what} {low} is greater than --max_{what} {high}")
        if self.max_lr > 1:
            raise UserError(f"--max_lr must be at most 1, not {self.max_lr}")
        if self.bias is not None and not 0 <= self.bias < math.inf:
            raise UserError(f"--bias must be a number from 0, not {self.bias}")
        share = self.bias_connectivity
        if share is not None and not 0 < share <= 1:
            raise UserError(f"--bias_connectivity must be above 0 and at most 1, not {share}")

    def reservoirs(self) -> int | None:
        """Number of reservoirs as `SearchConfig.nb_res` has it: None for a single one."""
        raise NotImplementedError

    def _check_finals(self) -> None:
        """Refuse finals that cannot be, and flags of finals where there are none."""
        check_number("finalists", self.finalists or 0)
        if self.finalist_seeds > MAX_SEED:
            raise UserError(
                f"--finalist_seeds must be at most {MAX_SEED}, not {self.finalist_seeds}"
            )
        if not self.finalists and self.finalist_seeds != FINALIST_SEEDS:
            raise UserError(
                f"--finalist_seeds {self.finalist_seeds} is for finals, which need --finalists of "
                "at least 1"
            )
        if self.finalists and self.published_code:
            raise UserError(
                f"--finalists {self.finalists} holds finals, and --published_code has none"
            )

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

    def environments(self) -> tuple[str, ...]:
        """The names of all environments."""
        raise NotImplementedError

    def tasks(self, env_kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the study stores of its environments: fields of `EvolutionStudy`.

        Args:
            env_kwargs: arguments of the environments.

        Raises:
            UserError: an environment cannot be used.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class EvolutionConfig(EvolutionFlags):
    """One reservoir for one environment."""

    env_id: str = option("HalfCheetah-v4", "Gymnasium environment")
    nb_res: int = option(1, "0 evolves the learner's settings alone, without a reservoir")
    evolve: str | None = option(
        None, f"{_SEARCH_MORE}, context.SETTING=low:high[:log]", holds="list"
    )
    context: str | None = context_option()
    context_set: str | None = context_set_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_context(self.context, self.context_set)
        if self.context is not None:
            self._refuse_reservoirs()
        if self.nb_res not in (0, 1):
            raise UserError(
                f"--nb_res must be 1 or 0 here, not {self.nb_res}; this evolves several: "
                f"{command('evolve-multi')}"
            )

    def _refuse_reservoirs(self) -> None:
        """Refuse flags that say how reservoirs are: a context stands in their place."""
        if self.nb_res == 0:
            raise UserError("--nb_res 0 evolves without a context, and --context names one")
        for field in fields(self):
            own = field.name in RESERVOIR_FLAGS - CONTEXT_FLAGS
            if own and getattr(self, field.name) != field.default:
                raise UserError(f"--{field.name} is for reservoirs, and --context stands for them")

    def subject(self) -> str:
        """The environment."""
        return self.env_id if self.nb_res else f"{self.env_id}_0"

    def reservoirs(self) -> int | None:
        """See `EvolutionFlags`."""
        return None if self.nb_res else 0

    def environments(self) -> tuple[str, ...]:
        """See `EvolutionFlags`."""
        return (self.env_id,)

    def tasks(self, env_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The environment."""
        return _task(self.env_id, self.del_obs, env_kwargs)


@dataclass(frozen=True)
class MultiEvolutionConfig(EvolutionFlags):
    """Several reservoirs for one environment."""

    env_id: str = option("HalfCheetah-v4", "Gymnasium environment")
    nb_res: int = option(
        3, "reservoirs, side by side; 0 evolves the learner's settings alone, without any"
    )
    fixed_iss: bool = option(False, "the input scaling is 1; False searches it too")

    def subject(self) -> str:
        """Environment and number of reservoirs."""
        return f"{self.env_id}_{self.nb_res}"

    def reservoirs(self) -> int | None:
        """See `EvolutionFlags`."""
        return self.nb_res

    def environments(self) -> tuple[str, ...]:
        """See `EvolutionFlags`."""
        return (self.env_id,)

    def tasks(self, env_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The environment."""
        return _task(self.env_id, self.del_obs, env_kwargs)


@dataclass(frozen=True)
class GeneralizationConfig(EvolutionFlags):
    """Reservoirs for a set of environments."""

    env_type: str | None = option(
        None, f"set of environments: {_SET} by default, ER-MRL's, or one that --sets declares"
    )
    env_ids: str | None = option(
        None, "environments instead of a set, comma-separated", holds="list"
    )
    env_kwargs: str | None = env_kwargs_option(", the same for all environments")
    sets: str | None = option(
        None, "YAML, TOML or JSON file that declares sets, target and random returns"
    )
    nb_res: int = option(
        2, "reservoirs, side by side; 0 evolves the learner's settings alone, without any"
    )
    fixed_iss: bool = option(False, "the input scaling is 1; False searches it too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.env_type is not None and self.env_ids is not None:
            raise UserError(
                f"--env_type {self.env_type} and --env_ids {self.env_ids} both name environments: "
                f"leave one out"
            )

    def reservoirs(self) -> int | None:
        """See `EvolutionFlags`."""
        return self.nb_res

    def task_set(self) -> "TaskSet":
        """The environments that are evolved for."""
        from erl.worlds.task_sets import load_task_set, task_set_from_ids

        return (
            task_set_from_ids(self.env_ids, self.sets)
            if self.env_ids
            else load_task_set(self.env_type or _SET, self.sets)
        )

    def subject(self) -> str:
        """Set and number of reservoirs."""
        return f"{self.task_set().name}_{self.nb_res}"

    def environments(self) -> tuple[str, ...]:
        """See `EvolutionFlags`."""
        return self.task_set().env_ids

    def tasks(self, env_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The environments and the returns that normalise their scores, so that a test needs no
        file.
        """
        from erl.worlds.task_sets import references
        from erl.worlds.tasks import Task, check_task

        task_set = self.task_set()
        for env_id in task_set.env_ids:
            check_task(Task(env_id, self.del_obs, kwargs=env_kwargs))
        return {
            "env_type": task_set.name,
            "env_ids": task_set.env_ids,
            "env_kwargs": env_kwargs,
            "references": references(task_set, self.published_code),
        }


def _task(env_id: str, del_obs: bool, env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """A single environment, checked, as `EvolutionStudy` stores it."""
    from erl.worlds.tasks import Task, check_task

    check_task(Task(env_id, del_obs, kwargs=env_kwargs))
    return {"env_id": env_id, "env_kwargs": env_kwargs}
