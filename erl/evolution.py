"""Evolution over development: an outer optimiser proposes reservoirs, lifetimes tell how well agents learn with them.

Trials are proposed in whole generations, whose size does not depend on the number of workers, so that a study is the same
whatever machine it runs on. All trials share their seeds: two trials differ in their hyperparameters only.
"""

import math
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from erl.cli import duration, option
from erl.errors import UserError, nearest
from erl.executors import LocalExecutor, default_workers
from erl.learners import Outputs, canonical_name
from erl.learners.settings import load_settings
from erl.lifetime import Job, check, checkpoint_path
from erl.reservoirs import Context, ReservoirParams
from erl.samplers import SAMPLERS, generation_size, make_sampler
from erl.spec import LearnerSpec, LifetimeSpec, Seeds
from erl.study import DEFAULT_STORAGE, SearchSpace, Sink, Study, Taken, log_range, shown
from erl.tasks import Task

FITNESSES = ("training", "final_eval")
# What may change when a study is continued: how much of it, and how it is computed, but not what it is.
VOLATILE = ("nb_trials", "workers", "storage", "max_retries", "checkpoint_minutes", "runs", "config_version")
CONFIG_VERSION = 1


@dataclass(frozen=True)
class EvolutionConfig:
    """Flags that every evolution takes. Defaults are ER-MRL's."""

    env_id: str = option("HalfCheetah-v4", "Gymnasium environment")
    h_test: str = option("main", "name of the experiment, part of the study's name")
    training_steps: int = option(
        300_000, "environment steps of one lifetime", "--training_timesteps", "--training-timesteps"
    )
    nb_trials: int = option(100, "trials in all; running the command again goes on up to this number")
    sampler: str = option("Cmaes", "optimiser of the hyperparameters", choices=SAMPLERS)
    del_obs: bool = option(False, "delete velocities from the observation")
    nb_seeds: int = option(3, "lifetimes of one trial, each with a reservoir of its own")
    ep_eval: int = option(10, "episodes over which a fitness is averaged")
    units: int = option(100, "neurons of one reservoir")
    skip_c: bool = option(False, "the policy also sees observation, action and reward")
    fixed_iss: bool = option(True, "input scaling is 1 and not searched")
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
    learner_config: str | None = option(None, "YAML or JSON file of its keyword arguments (SB3 Zoo's files work)")
    engine: str = option("auto", "how lifetimes are trained", choices=("auto", "cohort", "sb3"))
    seed: int = option(0, "root of all seeds")
    popsize: int | None = option(None, "trials of one generation; by default 4 + 3 ln(number of searched parameters)")
    storage: str = option(DEFAULT_STORAGE, "study database: any Optuna address")
    workers: int | None = option(None, "local worker processes; by default one for each core")
    max_retries: int = option(2, "how often lifetimes are begun again after their worker process died")
    checkpoint_minutes: float = option(5.0, "minutes between the checkpoints of a cohort")
    runs: str = option("runs", "folder of checkpoints")
    published_code: bool = option(
        False, "behave as ER-MRL's published code: no action in the reservoir, seeds 0, 1, 2, …"
    )

    def __post_init__(self) -> None:
        check_name(self.h_test)
        for name in ("training_steps", "nb_trials", "nb_seeds", "ep_eval", "units"):
            check_count(name, getattr(self, name))
        for name in ("workers", "popsize"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("seed", "max_retries"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is not negative: {getattr(self, name)}")
        if not self.checkpoint_minutes >= 0:
            raise UserError(f"--checkpoint_minutes is not negative: {self.checkpoint_minutes}")
        if self.popsize is not None and self.popsize < 2:
            raise UserError(f"a generation has at least 2 trials: --popsize {self.popsize}")
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
                f"unknown fitness {self.fitness!r}{nearest(self.fitness, FITNESSES)} (known: {', '.join(FITNESSES)})"
            )


def check_name(name: str) -> None:
    """Refuse a name that could lead out of the run folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}", name) or ".." in name:
        raise UserError(f"--h_test {name!r} is no name: letters, digits and _ . + = - only, at most 100")


def check_count(name: str, value: int) -> None:
    """Refuse zero and negative counts."""
    if value < 1:
        raise UserError(f"--{name} is at least 1, not {value}")


def study_name(env_id: str, h_test: str, training_steps: int) -> str:
    """ER-MRL's: `{env_id}_{h_test}_{thousands of steps}k_steps`."""
    return f"{env_id}_{h_test}_{thousands(training_steps)}_steps"


def thousands(steps: int) -> str:
    """`300k`; ER-MRL rounds down, which says nothing below one thousand."""
    return f"{steps // 1000}k" if steps >= 1000 else f"{steps / 1000:g}k"


def search_space(config: EvolutionConfig) -> SearchSpace:
    """The hyperparameters that are searched, all on a log scale."""
    names = ["sr", "lr"] if config.fixed_iss else ["sr", "lr", "iss"]
    return {n: log_range(getattr(config, f"min_{n}"), getattr(config, f"max_{n}")) for n in names}


def make_context(config: dict[str, Any], params: dict[str, float]) -> Context:
    """The reservoir that hyperparameters describe.

    Args:
        config: of the study.
        params: proposed hyperparameters, ER-MRL's names.
    """
    reservoir = ReservoirParams(units=config["units"], sr=params["sr"], lr=params["lr"], iss=params.get("iss", 1.0))
    return Context(
        reservoirs=(reservoir,),
        skip_c=config["skip_c"],
        reset_res=config["reset_res"],
        feed_action=not config["published_code"],
    )


def lifetimes(config: dict[str, Any], params: dict[str, float]) -> list[LifetimeSpec]:
    """The lifetimes of a trial: one for each seed."""
    return [
        LifetimeSpec(
            task=Task(config["env_id"], config["del_obs"]),
            learner=LearnerSpec(config["learner"], config["learner_config"], config["engine"]),
            steps=config["training_steps"],
            seeds=Seeds.published(i) if config["published_code"] else Seeds.derive(config["seed"], "evolution", i),
            context=make_context(config, params),
            ep_eval=config["ep_eval"],
            fitness=config["fitness"],
        )
        for i in range(config["nb_seeds"])
    ]


def stored_config(config: EvolutionConfig, sink: Sink) -> dict[str, Any]:
    """The configuration as a study stores it: names in their proper spelling, the learner's settings in full."""
    stored = {f.name: getattr(config, f.name) for f in fields(config)}
    del stored["h_test"]
    stored["learner"] = canonical_name(config.learner)
    stored["learner_config"], left_out = (
        load_settings(config.learner_config, config.env_id) if config.learner_config else ({}, [])
    )
    if left_out:
        sink.line(f"{config.learner_config}: {', '.join(left_out)} do not apply here and are left out")
    stored["popsize"] = generation_size(config.sampler, search_space(config), config.popsize)
    stored["sampler"] = next(s for s in SAMPLERS if s.casefold() == config.sampler.casefold())
    # Where and by how many hands is no part of what a study is; a password has no place in it.
    for key in ("storage", "workers", "max_retries", "checkpoint_minutes", "runs"):
        del stored[key]
    return stored | {"config_version": CONFIG_VERSION}


def evolve(config: EvolutionConfig, sink: Sink) -> int:
    """Evolve reservoirs until the study has its trials.

    Returns:
        Exit code: 0, or 1 if no trial succeeded.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    stored = stored_config(config, sink)
    space = search_space(config)
    name = study_name(config.env_id, config.h_test, config.training_steps)
    lowest = {n: getattr(config, f"min_{n}") for n in space}
    # A trial run of the constructors: every complaint comes before anything is written.
    check(lifetimes(stored, lowest)[0])
    study = Study(config.storage, name, stored, VOLATILE)
    workers = config.workers or default_workers()
    executor = LocalExecutor(workers, config.max_retries)
    sampler = make_sampler(stored["sampler"], space, config.seed, stored["popsize"])
    progress = Progress(study, config, sink)
    sink.line(
        f"{name} in {shown(config.storage)}: {stored['sampler']} over {', '.join(space)}, generations of {stored['popsize']}, "
        f"{config.nb_seeds} seeds x {config.training_steps:,} steps, {workers} worker{'s' * (workers > 1)}"
    )

    def plan(params: dict[str, Any]) -> list[LifetimeSpec]:
        return lifetimes(stored, params)

    def job(members: Sequence[tuple[Taken, int]]) -> Job:
        specs = tuple(taken.specs[index] for taken, index in members)
        seconds = config.checkpoint_minutes * 60
        return Job(specs, tuple(Outputs(None, checkpoint_path(config.runs, name, s), seconds) for s in specs))

    popsize = stored["popsize"]
    try:
        with study:
            while True:
                waiting = sum(t.number < config.nb_trials for t in study.reclaim())
                begun = len(study.trials())
                # A generation that an earlier run left incomplete is filled up; waiting trials of a complete one come first.
                new = -begun % popsize or (0 if waiting else popsize)
                new = min(new, max(0, config.nb_trials - begun))
                if not waiting + new:
                    break
                taken = study.propose(waiting, new, sampler, space, plan, generation=begun // popsize)
                progress.begin(taken)
                study.run(taken, executor, job, progress.end, progress.tick)
    except KeyboardInterrupt:
        sink.close()
        sink.line(
            f"interrupted: {study.finished()} of {config.nb_trials} trials are finished and stored in {shown(config.storage)}; "
            "the same command goes on from there"
        )
        _say_best(study, sink)
        return 130
    finally:
        executor.close()
        sink.close()
    best = _say_best(study, sink)
    if best is None:
        sink.line(f"no trial succeeded: {progress.last_error or 'see the trials'}")
        return 1
    elsewhere = len(study.trials("RUNNING"))
    if elsewhere:
        sink.line(f"{elsewhere} trial{'s' * (elsewhere > 1)} of this study still run elsewhere")
    command = ["python", "test.py", "--study", name, "--training_steps", str(config.training_steps)]
    if config.storage != DEFAULT_STORAGE:
        command += ["--storage", shown(config.storage)]
    sink.line(f"test them:       {shlex.join(command)}")
    return 0


def _say_best(study: Study, sink: Sink) -> Any:
    best = study.best()
    if best is not None:
        params = ", ".join(f"{k} {v:.6g}" for k, v in best.params.items())
        sink.line(f"best trial:      {best.number} of {len(study.trials())}, fitness {best.value:.2f}")
        sink.line(f"hyperparameters: {params}")
        where = shown(study.address)
        path = where.removeprefix("sqlite:///").partition("?")[0]
        sink.line(f"study database:  {where}" + (f" ({os.path.abspath(path)})" if where.startswith("sqlite") else ""))
    return best


class Progress:
    """Counts trials and steps, and says how far an evolution is."""

    def __init__(self, study: Study, config: EvolutionConfig, sink: Sink) -> None:
        self.study, self.config, self.sink = study, config, sink
        self._start = time.monotonic()
        self._steps_before, self._steps_now = 0, 0
        self._done = study.finished()
        self._budget = (config.nb_trials - self._done) * config.nb_seeds * config.training_steps
        best = study.best()
        self._best = (float(best.value), best.number) if best is not None and best.value is not None else None
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
                f"trial {taken.number:4d}  generation {self._generation:3d}  {params}  failed: {self.last_error}"
            )
            return
        if self._best is None or value > self._best[0]:
            self._best = (value, taken.number)
        notes = {r.note for r in taken.records.values() if r.note}
        self.sink.line(
            f"trial {taken.number:4d}  generation {self._generation:3d}  {params}  fitness {value:10.2f}  "
            f"best {self._best[0]:10.2f}" + "".join(f"  ({n})" for n in sorted(notes))
        )

    def tick(self, steps: int) -> None:
        """Show the status line; `steps` were taken in this generation."""
        self._steps_now = steps
        elapsed = time.monotonic() - self._start
        rate = (self._steps_before + steps) / elapsed if elapsed > 1 else 0.0
        left = max(0, self._budget - self._steps_before - steps)
        best = "-" if self._best is None else f"{self._best[0]:.2f} (trial {self._best[1]})"
        remaining = duration(left / rate) if rate else "-"
        self.sink.status(
            f"generation {self._generation}  trials {self._done}/{self.config.nb_trials} ({self._running} running)  "
            f"best {best}  {rate:,.0f} steps/s  {remaining} left"
        )
