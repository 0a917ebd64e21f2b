"""Evolution over development: an outer optimiser proposes reservoirs, lifetimes tell how well
agents learn with them.

Trials are proposed in whole generations, whose size does not depend on the number of workers, so
that a study is the same whatever machine it runs on. All trials share their seeds: two trials
differ in their hyperparameters only.
"""

import math
import os
import re
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from erl.cli import duration, figure, option
from erl.errors import UserError, nearest
from erl.executors.local import Executor, LocalExecutor, check_cluster, default_workers
from erl.experiments.trials import run
from erl.files import check_writable
from erl.learners import Outputs, canonical_name
from erl.learners.core.settings_file import load_settings
from erl.lifetimes.lifetime import POINTS, Job, check, checkpoint_path
from erl.search.pruning import PRUNERS, Pruning, check_pruner
from erl.search.samplers import (
    RESTARTS,
    SAMPLERS,
    check_restarts,
    generation_size,
    make_sampler,
    warm_start,
)
from erl.search.space import learner_settings, make_context, search_space
from erl.statistics import normalised_score
from erl.studies.storage import DEFAULT_STORAGE, shown
from erl.studies.study import SearchSpace, Sink, Study, Taken, distributions
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.task_sets import References, TaskSet, load_task_set, task_set_from_ids
from erl.worlds.tasks import Task, check_task

FITNESSES = ("training", "final_eval")
# What may change when a study is continued: how much of it, and how it is computed, but not what it
# is.
VOLATILE = (
    "nb_trials",
    "workers",
    "cluster",
    "storage",
    "max_retries",
    "checkpoint_minutes",
    "runs",
    "config_version",
    "start",
)
# What studies are that were made before these flags were.
ADDED = {"pruner": "none", "restarts": "ipop", "use_pruned": True, "warm_start": None}
CONFIG_VERSION = 1
MAX_SEED = 10**6


@dataclass(frozen=True)
class RunConfig:
    """Flags that evolutions and tests share: where they store, and how they are computed."""

    storage: str = option(DEFAULT_STORAGE, "study database: any Optuna address, or a journal file")
    workers: int | None = option(
        None, "lifetimes or cohorts at a time, on one core each; by default all cores"
    )
    cluster: str | None = option(
        None,
        "where they run, in place of processes on this machine: ray, ray:HOST:PORT or ray://HOST:PORT",
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
        for name in ("runs", "logs", "models"):
            folder = getattr(self, name, None)
            if folder is not None:
                try:
                    check_writable(folder)
                except OSError as e:
                    raise UserError(
                        f"--{name} {folder!r} cannot be written: {e.strerror or e}"
                    ) from e

    def subject(self) -> str:
        """What the study's name begins with."""
        raise NotImplementedError


@dataclass(frozen=True)
class CommonConfig(RunConfig):
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
    engine: str = option("auto", "how lifetimes are trained", choices=("auto", "cohort", "sb3"))
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
        if self.seed < 0:
            raise UserError(f"--seed is not negative: {self.seed}")
        if self.popsize is not None and self.popsize < 2:
            raise UserError(f"a generation has at least 2 trials: --popsize {self.popsize}")
        check_restarts(self.restarts)
        for what in ("sr", "lr", "iss"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if not (math.isfinite(low) and math.isfinite(high) and low > 0):
                raise UserError(f"--min_{what} and --max_{what} are above 0: {low} and {high}")
            if low > high:
                raise UserError(f"--min_{what} {low} lies above --max_{what} {high}")
        if self.max_lr > 1:
            raise UserError(f"a leak rate is at most 1: --max_lr {self.max_lr}")
        if self.fitness not in FITNESSES:
            raise UserError(
                f"unknown fitness {self.fitness!r}{nearest(self.fitness, FITNESSES)} (known: "
                f"{', '.join(FITNESSES)})"
            )

        if self.pruner not in PRUNERS:
            raise UserError(
                f"unknown pruner {self.pruner!r}{nearest(self.pruner, PRUNERS)} (known: "
                f"{', '.join(PRUNERS)})"
            )

    def settings(self) -> dict[str, Any]:
        """What the study stores beside the flags."""
        return {}


@dataclass(frozen=True)
class EvolutionConfig(CommonConfig):
    """One reservoir for one environment."""

    env_id: str = option("HalfCheetah-v4", "Gymnasium environment")

    def subject(self) -> str:
        """The environment."""
        return self.env_id


@dataclass(frozen=True)
class MultiEvolutionConfig(EvolutionConfig):
    """Several reservoirs for one environment."""

    nb_res: int = option(3, "reservoirs, side by side")
    fixed_iss: bool = option(False, "input scaling is 1 and not searched")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("nb_res", self.nb_res)

    def subject(self) -> str:
        """Environment and number of reservoirs."""
        return f"{self.env_id}_{self.nb_res}"


@dataclass(frozen=True)
class GeneralizationConfig(CommonConfig):
    """Reservoirs for a set of environments."""

    env_type: str = option(
        "Ant_Swimmer", "set of environments: ER-MRL's, or one that --sets declares"
    )
    env_ids: str | None = option(None, "environments in place of a set, comma-separated")
    sets: str | None = option(
        None, "TOML or YAML file that declares sets, target and random returns"
    )
    nb_res: int = option(2, "reservoirs, side by side")
    fixed_iss: bool = option(False, "input scaling is 1 and not searched")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("nb_res", self.nb_res)

    def task_set(self) -> TaskSet:
        """The environments that are evolved for."""
        return (
            task_set_from_ids(self.env_ids, self.sets)
            if self.env_ids
            else load_task_set(self.env_type, self.sets)
        )

    def subject(self) -> str:
        """Set and number of reservoirs."""
        return f"{self.task_set().name}_{self.nb_res}"

    def settings(self) -> dict[str, Any]:
        """The environments and the returns that normalise their scores, so that a test needs no
        file.
        """
        task_set = self.task_set()
        for env_id in task_set.env_ids:
            check_task(Task(env_id, self.del_obs))
        references = References.of(task_set, published=self.published_code)
        references.check(task_set.env_ids)
        returns = {
            e: [references.random_return(e), references.target_return(e)] for e in task_set.env_ids
        }
        return {
            "env_type": task_set.name,
            "env_ids": list(task_set.env_ids),
            "references": returns,
            "sets": None,
        }


def make_executor(config: RunConfig) -> Executor:
    """The workers that a configuration asks for.

    Raises:
        UserError: there is no such cluster, or it cannot be used.
    """
    if config.cluster is not None:
        try:
            from erl.executors.ray_cluster import RayExecutor
        except ImportError as e:
            raise UserError(f'--cluster needs Ray ({e}): pip install "ray[client]"') from None
        return RayExecutor(config.cluster, config.workers, config.max_retries)
    return LocalExecutor(config.workers or default_workers(), config.max_retries)


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


def lifetimes(config: dict[str, Any], params: dict[str, float]) -> list[LifetimeSpec]:
    """The lifetimes of a trial: one for each environment and seed."""
    return [
        LifetimeSpec(
            task=Task(env_id, config["del_obs"]),
            learner=LearnerSpec(
                config["learner"], learner_settings(config, params), config["engine"]
            ),
            steps=config["training_steps"],
            seeds=Seeds.published(i)
            if config["published_code"]
            else Seeds.derive(config["seed"], "evolution", i),
            context=make_context(config, params),
            ep_eval=config["ep_eval"],
            fitness=config["fitness"],
        )
        for env_id in config.get("env_ids") or [config["env_id"]]
        for i in range(config["nb_seeds"])
    ]


def score(config: dict[str, Any], spec: LifetimeSpec, value: float) -> float:
    """What a lifetime's return contributes to its trial's: itself, on a set of environments on the
    scale from random to target return.
    """
    if "references" not in config:
        return value
    return float(normalised_score(value, *config["references"][spec.task.env_id]))


def stored_config(config: CommonConfig, sink: Sink) -> dict[str, Any]:
    """The configuration as a study stores it: names in their proper spelling, the learner's
    settings in full.
    """
    stored = {f.name: getattr(config, f.name) for f in fields(config)}
    del stored["h_test"]
    stored |= config.settings()
    stored["learner"] = canonical_name(config.learner)
    envs = stored.get("env_ids") or [stored["env_id"]]
    read = [load_settings(config.learner_config, env_id) for env_id in envs]
    if any(file.settings != read[0].settings for file in read):
        raise UserError(
            f"{config.learner_config} has different settings for {', '.join(envs)}; a trial has "
            f"one learner"
        )
    stored["learner_config"] = read[0].settings
    for note in dict.fromkeys(note for file in read for note in file.notes):
        sink.line(note)
    if any(file.env_kwargs for file in read):
        sink.line(f"{config.learner_config}: env_kwargs do not apply here and are left out")
    stored["popsize"] = generation_size(
        config.sampler, distributions(search_space(stored)), config.popsize
    )
    stored["sampler"] = next(s for s in SAMPLERS if s.casefold() == config.sampler.casefold())
    if config.warm_start is not None and "#" in config.warm_start:
        storage, _, source = config.warm_start.rpartition("#")
        stored["warm_start"] = f"{shown(storage)}#{source}"
    # Where and by how many hands is no part of what a study is; a password has no place in it.
    for key in ("storage", "workers", "cluster", "max_retries", "checkpoint_minutes", "runs"):
        del stored[key]
    return stored | {"config_version": CONFIG_VERSION}


def warm(config: CommonConfig, name: str, space: SearchSpace) -> dict[str, Any] | None:
    """What a warm start begins with: as the study stores it, so that its source is asked only
    once.
    """
    assert config.warm_start is not None
    if config.sampler.casefold() != "cmaes":
        raise UserError(
            f"--warm_start is for --sampler Cmaes; {config.sampler} begins from nothing but its "
            f"own trials"
        )
    with suppress(UserError):  # there is no such study yet, or else its creation says what is wrong
        known = Study(config.storage, name).config
        if known is not None:
            return known.get("start")
    storage, _, source = config.warm_start.rpartition("#")
    if not source:
        raise UserError(
            f"--warm_start {config.warm_start!r} names no study: STUDY, or STORAGE#STUDY"
        )
    return warm_start(Study(storage or config.storage, source).optuna, space)


def evolve(config: CommonConfig, sink: Sink) -> int:
    """Evolve reservoirs until the study has its trials.

    Returns:
        Exit code: 0, or 1 if no trial succeeded.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    stored = stored_config(config, sink)
    ranges = search_space(stored)
    space = distributions(ranges)
    name = study_name(config.subject(), config.h_test, config.training_steps)
    # A trial run of the constructors, at both ends of every range: complaints come before anything
    # is written.
    for end in ("low", "high"):
        extreme = {n: getattr(r, end) for n, r in ranges.items()}
        specs = lifetimes(stored, extreme)
        check_pruner(stored["pruner"], len(specs))
        for spec in specs[:: config.nb_seeds]:
            check(spec)
    if config.warm_start is not None:
        stored["start"] = warm(config, name, space)
    executor = make_executor(config)
    try:
        study = Study(config.storage, name, stored, VOLATILE, ADDED)
    except BaseException:
        executor.close()
        raise
    workers = executor.workers
    assert study.config is not None
    start = study.config.get("start")
    sampler = make_sampler(
        stored["sampler"],
        space,
        config.seed,
        stored["popsize"],
        stored["restarts"],
        stored["use_pruned"],
        start,
    )
    progress = Progress(study, config, len(stored.get("env_ids", [0])), sink)
    sink.line(
        f"{name} in {shown(config.storage)}: {stored['sampler']} over {', '.join(space)}, "
        f"generations of {stored['popsize']}, "
        + (f"{len(stored['env_ids'])} environments x " if "env_ids" in stored else "")
        + f"{config.nb_seeds} seeds x {config.training_steps:,} steps, "
        + f"{workers} worker{'s' * (workers > 1)}"
    )
    if start is not None:
        sink.line(
            f"warm start from {stored['warm_start']}: {', '.join(start['parameters'])} of "
            f"{start['trials']} trials"
        )

    def plan(params: dict[str, Any]) -> list[LifetimeSpec]:
        return lifetimes(stored, params)

    def job(members: Sequence[tuple[Taken, int]]) -> Job:
        specs = tuple(taken.specs[index] for taken, index in members)
        seconds = config.checkpoint_minutes * 60
        return Job(
            specs,
            tuple(Outputs(None, checkpoint_path(config.runs, name, s), seconds) for s in specs),
        )

    popsize = stored["popsize"]
    pruning = None if config.pruner == "none" else Pruning(config.pruner, popsize)
    try:
        with study:
            while True:
                waiting = [
                    t for t in study.reclaim(config.max_retries) if t.number < config.nb_trials
                ]
                begun = len(study.trials())
                # A generation that an earlier run left incomplete is filled up; waiting trials of a
                # complete one come first.
                new = -begun % popsize or (0 if waiting else popsize)
                new = min(new, max(0, config.nb_trials - begun))
                if not (waiting or new):
                    if not study.in_doubt():
                        break
                    sink.status("waiting for a sign of who is about the trials that still run")
                    continue
                resumed = [study.take_up(t, plan, sampler, space) for t in waiting]
                taken = [t for t in resumed if t is not None]
                taken += study.propose(
                    new, sampler, space, plan, begun // popsize, config.nb_trials
                )
                if not taken:  # other coordinators were faster
                    continue
                progress.begin(taken)
                run(
                    study,
                    taken,
                    executor,
                    job,
                    progress.end,
                    progress.tick,
                    partial(score, stored),
                    pruning,
                )
    except KeyboardInterrupt:
        sink.close()
        sink.line(
            f"interrupted: {study.finished()} of {config.nb_trials} trials are finished and "
            f"stored in {shown(config.storage)}; "
            "the same command goes on from there"
        )
        _say_best(study, sink)
        return 130
    finally:
        executor.close()
        sink.close()
    elsewhere = len(
        study.trials("RUNNING")
    )  # asked first: what ends meanwhile is then among the finished
    best = _say_best(study, sink)
    if elsewhere:
        sink.line(f"{elsewhere} trial{'s' * (elsewhere > 1)} of this study still run elsewhere")
    if best is None:
        if elsewhere:
            return 0
        sink.line(f"no trial succeeded: {progress.last_error or 'see the trials'}")
        return 1
    script = (
        "test_generalization.py"
        if "env_ids" in stored
        else "test_multi_res.py"
        if "nb_res" in stored
        else "test.py"
    )
    command = ["python", script, "--study", name, "--training_steps", str(config.training_steps)]
    if "env_ids" in stored:
        seen = {e.rpartition("-v")[0] for e in stored["env_ids"]}
        others = [
            e for e in load_task_set("forward_mujoco").env_ids if e.rpartition("-v")[0] not in seen
        ]
        command += ["--env_id", others[0] if others else "Humanoid-v4"]
    if config.storage != DEFAULT_STORAGE:
        command += ["--storage", shown(config.storage)]
    sink.line(f"test them:       {shlex.join(command)}")
    return 0


def _say_best(study: Study, sink: Sink) -> Any:
    best = study.best()
    if best is not None:
        params = ", ".join(f"{k} {v:.6g}" for k, v in best.params.items())
        sink.line(
            f"best trial:      {best.number} of {len(study.trials())}, fitness {figure(best.value)}"
        )
        sink.line(f"hyperparameters: {params}")
        where = shown(study.address)
        path = where.removeprefix("sqlite:///").partition("?")[0]
        sink.line(
            f"study database:  {where}"
            + (f" ({os.path.abspath(path)})" if where.startswith("sqlite") else "")
        )
    return best


class Progress:
    """Counts trials and steps, and says how far an evolution is."""

    def __init__(self, study: Study, config: CommonConfig, nb_envs: int, sink: Sink) -> None:
        self.study, self.config, self.sink = study, config, sink
        self._start = time.monotonic()
        self._steps_before, self._steps_now = 0, 0
        self._done = study.finished()
        self._budget = (
            (config.nb_trials - self._done) * nb_envs * config.nb_seeds * config.training_steps
        )
        best = study.best()
        self._best = (
            (float(best.value), best.number)
            if best is not None and best.value is not None
            else None
        )
        self._generation: Any = 0
        self._running = 0
        self.last_error: str | None = None

    def begin(self, trials: Sequence[Taken]) -> None:
        """A generation begins."""
        self._steps_before += self._steps_now
        self._steps_now = 0
        self._running = len(trials)
        self._generation = trials[0].attrs.get("generation", 0)
        self.tick(0)

    def end(self, taken: Taken, value: float | None) -> None:
        """A trial has ended."""
        self._done += 1
        self._running -= 1
        params = "  ".join(f"{k} {v:<10.4g}" for k, v in taken.params.items())
        if value is None:
            assert taken.error is not None
            self.last_error = taken.error[0]
            self.sink.line(
                f"trial {taken.number:4d}  generation {self._generation:3d}  {params}  failed: "
                f"{self.last_error}"
            )
            return
        if taken.pruned is not None:
            self._budget -= sum(max(0, r.spec.steps - r.steps) for r in taken.records.values())
            self.sink.line(
                f"trial {taken.number:4d}  generation {self._generation:3d}  {params}  "
                f"pruned  {figure(taken.pruned.value):>10s}  at {taken.pruned.point}/{POINTS}"
            )
            return
        if self._best is None or value > self._best[0]:
            self._best = (value, taken.number)
        notes = {r.note for r in taken.records.values() if r.note}
        self.sink.line(
            f"trial {taken.number:4d}  generation {self._generation:3d}  {params}  fitness "
            f"{figure(value):>10s}  "
            f"best {figure(self._best[0]):>10s}" + "".join(f"  ({n})" for n in sorted(notes))
        )

    def tick(self, steps: int) -> None:
        """Show the status line; `steps` were taken in this generation."""
        self._steps_now = steps
        elapsed = time.monotonic() - self._start
        rate = (self._steps_before + steps) / elapsed if elapsed > 1 else 0.0
        left = max(0, self._budget - self._steps_before - steps)
        best = "-" if self._best is None else f"{figure(self._best[0])} (trial {self._best[1]})"
        remaining = duration(left / rate) if rate else "-"
        self.sink.status(
            f"generation {self._generation}  trials {self._done}/{self.config.nb_trials} "
            f"({self._running} running)  "
            f"best {best}  {rate:,.0f} steps/s  {remaining} left"
        )
