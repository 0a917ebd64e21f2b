"""Flags of all scripts, and what their values mean.

Nothing here needs a library that takes long to load: `--help`, and flags that cannot be, are
answered at once.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from erl.cli import option
from erl.errors import UserError
from erl.executors.machines import check_cluster
from erl.files import check_writable
from erl.learners import ENGINES, canonical_name
from erl.search.choices import FITNESSES, PRUNERS, RESTARTS, SAMPLERS, check_choice
from erl.studies import DEFAULT_STORAGE

if TYPE_CHECKING:
    from erl.worlds.task_sets import TaskSet

MAX_SEED = 10**6
# Flags that say how reservoirs are, and nothing where there are none.
RESERVOIR_FLAGS = frozenset(
    {"units", "skip_c", "fixed_iss", "obs_units", "reset_res"}
    | {f"{bound}_{name}" for bound in ("min", "max") for name in ("sr", "lr", "iss")}
)


@dataclass(frozen=True)
class RunFlags:
    """Flags that every script takes: where its study is stored, and how it is computed."""

    storage: str = option(DEFAULT_STORAGE, "study database: any Optuna address, or a journal file")
    workers: int | None = option(
        None, "lifetimes or cohorts at a time, on one core each; by default all cores"
    )
    cluster: str | None = option(
        None,
        "where they run, in place of processes on this machine: ray, ray:HOST:PORT or "
        "ray://HOST:PORT",
    )
    max_retries: int = option(
        2, "how often lifetimes are begun again after their worker process died"
    )
    checkpoint_minutes: float = option(5.0, "minutes between the checkpoints of a lifetime")
    runs: str = option("runs", "folder of checkpoints")
    published_code: bool = option(
        False, "behave as ER-MRL's published code: no action in the reservoir, seeds 0, 1, 2, …"
    )

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_count("workers", self.workers)
        if self.cluster is not None:
            check_cluster(self.cluster)
        if self.max_retries < 0:
            raise UserError(f"--max_retries is not negative: {self.max_retries}")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise UserError(f"--checkpoint_minutes is a number from 0: {self.checkpoint_minutes}")
        check_folder("runs", self.runs)

    def subject(self) -> str:
        """What the study's name begins with."""
        raise NotImplementedError


@dataclass(frozen=True)
class AgentFlags(RunFlags):
    """Flags of scripts whose trained agents are kept."""

    logs: str = option("logs", "folder of TensorBoard logs")
    models: str = option("models", "folder of trained models")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder("logs", self.logs)
        check_folder("models", self.models)


# -- evolutions --


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
        for name in ("training_steps", "nb_trials", "nb_seeds", "ep_eval", "units"):
            check_count(name, getattr(self, name))
        for name in ("popsize", "obs_units"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_seeds(self.seed, self.nb_seeds)
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


# -- tests --


@dataclass(frozen=True)
class ComparisonFlags(AgentFlags):
    """Flags that every test takes."""

    h_test: str = option("main", "name of the experiment that was evolved")
    study: str | None = option(
        None, "name of the study, in place of the flags that make up its name"
    )
    HP_training_steps: int = option(300_000, "environment steps of one lifetime in the evolution")
    training_steps: int = option(
        10_000_000,
        "environment steps of one test lifetime",
        "--training_timesteps",
        "--training-timesteps",
    )
    nb_seeds: int = option(5, "test lifetimes of each agent; a SLURM array index picks one instead")
    controls: bool = option(
        False,
        "also LSTM, frame stacking, reservoirs not evolved, and reservoirs without recurrence",
    )
    arms: str | None = option(
        None, "agents to compare, comma-separated; by default all of ER-MRL's"
    )
    engine: str | None = option(
        None,
        "how lifetimes are trained; by default as in the evolution",
        choices=ENGINES,
    )
    results_storage: str | None = option(
        None, "study database of the test; by default that of the evolution, --storage"
    )
    units: int = option(100, "neurons, where the study does not say (ER-MRL's journals)")
    del_obs: bool = option(False, "velocities deleted, where the study does not say")
    skip_c: bool = option(False, "skip connection, where the study does not say")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.h_test)
        for name in ("HP_training_steps", "training_steps", "nb_seeds", "units"):
            check_count(name, getattr(self, name))
        check_seeds(None, self.nb_seeds)

    @property
    def results(self) -> str:
        """The study database of the test."""
        return self.storage if self.results_storage is None else self.results_storage

    @property
    def reservoirs(self) -> int | None:
        """The number of reservoirs that the command names; None for a script of a single one."""
        return None


@dataclass(frozen=True)
class ComparisonConfig(ComparisonFlags):
    """A test in the environment of the evolution, with one reservoir."""

    env_id: str = option("HalfCheetah-v4", "environment of the study, unless --study names it")

    def subject(self) -> str:
        """The environment."""
        return self.env_id


@dataclass(frozen=True)
class MultiComparisonConfig(ComparisonConfig):
    """A test in the environment of the evolution, with several reservoirs."""

    nb_res: int = option(3, "reservoirs of the study, unless --study names it")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("nb_res", self.nb_res)

    def subject(self) -> str:
        """Environment and number of reservoirs."""
        return f"{self.env_id}_{self.nb_res}"

    @property
    def reservoirs(self) -> int:
        """See `ComparisonFlags`."""
        return self.nb_res


@dataclass(frozen=True)
class GeneralizationComparisonConfig(ComparisonFlags):
    """A test in an environment that the evolution did not see."""

    HP_env_type: str = option(
        "Ant_Swimmer", "set of environments of the study, unless --study names it"
    )
    nb_res: int = option(2, "reservoirs of the study, unless --study names it")
    env_id: str = option("HalfCheetah-v4", "environment of the test")
    allow_seen: bool = option(False, "test even in an environment that the evolution saw")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("nb_res", self.nb_res)

    def subject(self) -> str:
        """Set and number of reservoirs."""
        return f"{self.HP_env_type}_{self.nb_res}"

    @property
    def reservoirs(self) -> int:
        """See `ComparisonFlags`."""
        return self.nb_res


# -- single runs --


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
        1, "lifetimes, each with seeds of its own; a SLURM array index picks one instead"
    )
    seeds: str | None = option(
        None, "numbers of the seeds, comma-separated, instead of the first --nb_seeds"
    )
    seed: int = option(0, "root of all seeds")
    learner_config: str | None = option(
        None, "YAML or JSON file of the learner's settings (SB3 Zoo's files work)"
    )
    set: str | None = option(
        None, "further settings of the learner, NAME=VALUE,…, over those of the file"
    )
    engine: str = option("auto", "how lifetimes are trained", choices=ENGINES)
    del_obs: bool = option(False, "delete velocities from the observation")
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
                f"--seeds are whole numbers from 0 to {MAX_SEED}, comma-separated, not "
                f"{self.seeds!r}"
            )
        return list(dict.fromkeys(int(word) for word in words))


# -- values --


def _task(env_id: str, del_obs: bool) -> dict[str, Any]:
    """A single environment, checked, as `EvolutionStudy` stores it."""
    from erl.worlds.tasks import Task, check_task

    check_task(Task(env_id, del_obs))
    return {"env_id": env_id}


def check_folder(name: str, folder: str) -> None:
    """Refuse a folder that cannot be written."""
    try:
        check_writable(folder)
    except OSError as e:
        raise UserError(f"--{name} {folder!r} cannot be written: {e.strerror or e}") from e


def check_name(name: str) -> None:
    """Refuse a name that could lead out of the run folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}", name) or ".." in name:
        raise UserError(
            f"--h_test {name!r} is no name: letters, digits and _ . + = - only, at most 100"
        )


def check_count(name: str, value: int) -> None:
    """Refuse zero and negative counts."""
    if value < 1:
        raise UserError(f"--{name} is at least 1, not {value}")


def check_number(name: str, value: int) -> None:
    """Refuse negative numbers."""
    if value < 0:
        raise UserError(f"--{name} is not negative: {value}")


def check_seeds(seed: int | None, nb_seeds: int) -> None:
    """Refuse a negative root seed, and more seeds than have numbers."""
    if seed is not None and seed < 0:
        raise UserError(f"--seed is not negative: {seed}")
    if nb_seeds > MAX_SEED:
        raise UserError(f"--nb_seeds is at most {MAX_SEED}, not {nb_seeds}")


def seed_indices(nb_seeds: int) -> list[int]:
    """Numbers of the seeds of a command that repeats lifetimes: in a SLURM array the task's own,
    else the first so many.

    Raises:
        UserError: the array's index is no such number.
    """
    task_id = os.environ.get("SLURM_ARRAY_TASK_ID")
    if task_id is None:
        return list(range(nb_seeds))
    if not (re.fullmatch("[0-9]{1,7}", task_id) and int(task_id) <= MAX_SEED):
        raise UserError(f"SLURM_ARRAY_TASK_ID is no seed index from 0 to {MAX_SEED}: {task_id!r}")
    return [int(task_id)]


def study_name(subject: str, h_test: str, training_steps: int) -> str:
    """ER-MRL's: `{env_id}_{h_test}_{thousands of steps}k_steps`, with the number of reservoirs
    behind the environment or set.
    """
    return f"{subject}_{h_test}_{thousands(training_steps)}_steps"


def thousands(steps: int) -> str:
    """`300k`; ER-MRL rounds down, which says nothing below one thousand."""
    return f"{steps // 1000}k" if steps >= 1000 else f"{steps / 1000:g}k"


def plural(n: int, word: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{n} {word}{'s' * (n != 1)}"


def number(value: Any, digits: int = 6) -> str:
    """A hyperparameter in a line; of other programs' studies they need not be numbers."""
    return f"{value:.{digits}g}" if isinstance(value, int | float) else str(value)


def read_settings(
    path: str | None, env_ids: Sequence[str], note: Callable[[str], None]
) -> dict[str, Any]:
    """The learner's settings from `--learner_config`.

    Args:
        path: of the file; None for no settings.
        env_ids: the environments that they are for.
        note: is given a line for each thing that a user should know.

    Raises:
        UserError: the file cannot be read, or has different settings for these environments.
    """
    from erl.learners.core.settings_file import load_settings

    files = [load_settings(path, env_id) for env_id in env_ids]
    if any(file.settings != files[0].settings for file in files):
        raise UserError(
            f"{path} has different settings for {', '.join(env_ids)}; a trial has one learner"
        )
    for line in dict.fromkeys(line for file in files for line in file.notes):
        note(line)
    if any(file.env_kwargs for file in files):
        note(f"{path}: env_kwargs do not apply here and are left out")
    return files[0].settings
