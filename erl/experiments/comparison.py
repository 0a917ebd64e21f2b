"""The test phase: agents with the best evolved reservoirs against agents without, on seeds that
selection never saw.
"""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erl.cli import duration, figure, option
from erl.errors import UserError
from erl.experiments.arms import arm_lifetime, arm_names, control_names
from erl.experiments.evolution import (
    MAX_SEED,
    VOLATILE,
    EvolutionConfig,
    RunConfig,
    check_count,
    check_name,
    make_executor,
    seed_indices,
    study_name,
    thousands,
)
from erl.experiments.trials import fill
from erl.learners import Outputs
from erl.lifetimes.lifetime import Job, check, checkpoint_path, file_name
from erl.search.space import make_context
from erl.statistics import Arm, table
from erl.studies.storage import DEFAULT_STORAGE, open_storage, shown, study_names
from erl.studies.study import Sink, Study, Taken, choice, records, whole
from erl.worlds.specification import LifetimeSpec
from erl.worlds.task_sets import TASK_SETS, load_task_set, load_task_sets


@dataclass(frozen=True)
class CommonConfig(RunConfig):
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
        choices=("auto", "cohort", "sb3"),
    )
    logs: str = option("logs", "folder of TensorBoard logs")
    models: str = option("models", "folder of trained models")
    units: int = option(100, "neurons, where the study does not say (ER-MRL's journals)")
    del_obs: bool = option(False, "velocities deleted, where the study does not say")
    skip_c: bool = option(False, "skip connection, where the study does not say")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.h_test)
        for name in ("HP_training_steps", "training_steps", "nb_seeds", "units"):
            check_count(name, getattr(self, name))
        if self.nb_seeds > MAX_SEED:
            raise UserError(f"--nb_seeds is at most {MAX_SEED}, not {self.nb_seeds}")


@dataclass(frozen=True)
class ComparisonConfig(CommonConfig):
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
        check_count("nb_res", self.nb_res)

    def subject(self) -> str:
        """Environment and number of reservoirs."""
        return f"{self.env_id}_{self.nb_res}"


@dataclass(frozen=True)
class GeneralizationComparisonConfig(CommonConfig):
    """A test in an environment that the evolution did not see."""

    HP_env_type: str = option(
        "Ant_Swimmer", "set of environments of the study, unless --study names it"
    )
    nb_res: int = option(2, "reservoirs of the study, unless --study names it")
    env_id: str = option("HalfCheetah-v4", "environment of the test")
    allow_seen: bool = option(False, "test even in an environment that the evolution saw")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("nb_res", self.nb_res)

    def subject(self) -> str:
        """Set and number of reservoirs."""
        return f"{self.HP_env_type}_{self.nb_res}"


def load_best(
    config: CommonConfig, sink: Sink
) -> tuple[str, dict[str, Any], int, dict[str, float]]:
    """The evolved study's name, its configuration, and number and hyperparameters of its best
    trial.

    Raises:
        UserError: no such study, or none of its trials succeeded.
    """
    name = config.study or study_name(config.subject(), config.h_test, config.HP_training_steps)
    journal = f"optuna-journal_{name}.log"
    address = config.storage
    if address == DEFAULT_STORAGE and not Path("studies.db").exists() and Path(journal).exists():
        address = journal
        sink.line(f"reading ER-MRL's journal {journal}")
    study = Study(address, _same_but_reservoirs(address, name, config))
    name = study.name
    best = study.best()
    if best is None:
        raise UserError(f"study {name!r} has no finished trial yet")
    evolution = study.config
    if evolution is None:
        sink.line(
            f"{name} stores no configuration (ER-MRL's own study): the flags of this command and "
            f"ER-MRL's defaults stand in for it"
        )
        named = re.match(r".+?-v\d+(?=_)", name)
        env_id = (
            named.group() if config.study is not None and named else getattr(config, "env_id", "")
        )
        defaults = EvolutionConfig(
            env_id=env_id, units=config.units, del_obs=config.del_obs, skip_c=config.skip_c
        )
        evolution = {
            k: getattr(defaults, k)
            for k in EvolutionConfig.__dataclass_fields__
            if k not in VOLATILE
        }
        evolution |= {"learner_config": {}, "published_code": False}
        evolution["fixed_iss"] = not any(k.startswith("iss") for k in best.params)
        several = [k for k in best.params if re.fullmatch(r"sr_[0-9]+", k)]
        if several:
            evolution["nb_res"] = len(several)
        if isinstance(config, GeneralizationComparisonConfig) and not named:
            sets = load_task_sets(TASK_SETS).sets
            evolved = next((s for s in sets if re.match(rf"{s}_[0-9]+_", name)), config.HP_env_type)
            evolution["env_ids"] = list(load_task_set(evolved).env_ids)
    elif "evolution" in evolution:
        raise UserError(f"{name!r} is a test itself; name the study that was evolved")
    if config.published_code:
        evolution = {**evolution, "published_code": True}
    params = dict(best.params)
    try:
        make_context(evolution, params)
    except KeyError:
        raise UserError(
            f"study {name!r} did not evolve a reservoir: its parameters are "
            f"{', '.join(params) or 'none'}"
        ) from None
    has, asked = evolution.get("nb_res") or 1, getattr(config, "nb_res", 1)
    if has != asked:
        # Beside --study the number may be no more than the flag's default.
        instead = f", and not {asked}" if config.study is None else ""
        sink.line(
            f"{name} has {has} reservoir{'s' * (has > 1)}, as its own configuration says{instead}"
        )
    sink.line(
        f"{name}: best of {len(study.trials())} trials is {best.number}, fitness "
        f"{figure(best.value)}, " + ", ".join(f"{k} {v:.6g}" for k, v in params.items())
    )
    return name, evolution, best.number, params


def _same_but_reservoirs(address: str, name: str, config: CommonConfig) -> str:
    """The study's name; where there is none of this name, that of the one which differs in the
    number of reservoirs alone.
    """
    nb_res = getattr(config, "nb_res", None)
    if config.study is not None or nb_res is None:
        return name
    names = study_names(open_storage(address))
    head, _, tail = name.rpartition(f"_{nb_res}_{config.h_test}_")
    similar = [
        n
        for n in names
        if re.fullmatch(f"{re.escape(head)}_[0-9]+_{re.escape(config.h_test)}_{re.escape(tail)}", n)
    ]
    return similar[0] if name not in names and len(similar) == 1 else name


def _check_unseen(env_id: str, evolution: dict[str, Any], allow_seen: bool) -> None:
    """Refuse an environment that selection saw, in whatever version and from whatever module."""
    seen = evolution.get("env_ids") or [evolution["env_id"]]
    if not allow_seen and _unversioned(env_id) in map(_unversioned, seen):
        raise UserError(
            f"the evolution saw {env_id} (it used {', '.join(seen)}): no test of generalisation; "
            f"--allow_seen insists"
        )


def _unversioned(env_id: str) -> str:
    return re.sub(r"-v[0-9]+$", "", env_id.rpartition(":")[2])


def compare(config: CommonConfig, sink: Sink) -> int:
    """Train every agent on every test seed, store the curves in the sibling study, and print the
    table.

    Returns:
        Exit code: 0, or 1 if a lifetime failed.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    name, evolution, number, params = load_best(config, sink)
    stored = {
        "evolution": evolution,
        "params": params,
        "training_steps": config.training_steps,
        "engine": config.engine if config.engine is not None else evolution["engine"],
    }
    where = ""
    if isinstance(config, GeneralizationComparisonConfig):
        _check_unseen(config.env_id, evolution, config.allow_seen)
        stored["env_id"], where = config.env_id, f"_on_{config.env_id}"
    elif "env_ids" in evolution:
        raise UserError(
            f"{name!r} was evolved on {', '.join(evolution['env_ids'])}: test it with "
            f"test_generalization.py"
        )
    usual, controls = arm_names(evolution, params), control_names(evolution, params)
    arms = usual + controls
    chosen = (
        list(dict.fromkeys(a.strip() for a in config.arms.split(",")))
        if config.arms is not None
        else list(usual)
    )
    chosen += [c for c in controls if config.controls and c not in chosen]
    for arm in chosen:
        if arm not in arms:
            raise UserError(f"unknown agent {arm!r} in --arms (known: {', '.join(arms)})")
    for arm in chosen:
        check(arm_lifetime(arm, 0, stored, params))
    seeds = seed_indices(config.nb_seeds)

    # An evolution that went on and found better has a test of its own.
    test_name = f"{name}_trial_{number}{where}_test_{thousands(config.training_steps)}_steps"
    test_name += "_published" * config.published_code
    executor = make_executor(config)
    try:
        study = Study(config.storage, test_name, stored, ("config_version",))
    except BaseException:
        executor.close()
        raise
    space = {"arm": choice(arms), "seed": whole(0, MAX_SEED)}
    folder = file_name(test_name)
    workers = executor.workers

    def plan(proposed: dict[str, Any]) -> list[LifetimeSpec]:
        return [arm_lifetime(proposed["arm"], proposed["seed"], stored, params)]

    def job(members: Sequence[tuple[Taken, int]]) -> Job:
        files = [f"{folder}/{t.params['arm']}/seed_{t.params['seed']}" for t, _ in members]
        return Job(
            specs=tuple(taken.specs[index] for taken, index in members),
            outputs=tuple(
                Outputs(
                    tensorboard=os.path.abspath(f"{config.logs}/{f}"),
                    checkpoint=checkpoint_path(config.runs, folder, taken.specs[index]),
                    checkpoint_seconds=config.checkpoint_minutes * 60,
                )
                for f, (taken, index) in zip(files, members)
            ),
            models=tuple(os.path.abspath(f"{config.models}/{f}") for f in files),
            evaluate=True,
        )

    def watch(taken: list[Taken]) -> tuple[Any, Any]:
        sink.line(
            f"{test_name}: {', '.join(chosen)} x {len(seeds)} seeds x {config.training_steps:,} "
            f"steps, {len(taken)} lifetimes to live, {workers} worker{'s' * (workers > 1)}"
        )
        progress = _Progress(taken, config.training_steps, sink)
        return progress.end, progress.tick

    wanted = [{"arm": arm, "seed": seed} for arm in chosen for seed in seeds]
    try:
        with study:
            fill(study, wanted, space, plan, executor, job, watch, config.max_retries)
    except KeyboardInterrupt:
        sink.close()
        done = len(study.trials("COMPLETE"))
        sink.line(
            f"interrupted: {done} lifetimes are finished and stored; the same command goes on "
            f"from there"
        )
        return 130
    finally:
        executor.close()
        sink.close()
    complete = {_key(t) for t in study.trials("COMPLETE")}
    failed = {_key(t): t for t in study.trials("FAIL") if _key(t) not in complete}.values()
    for trial in failed:
        reason = trial.user_attrs.get("error", {}).get("reason")
        sink.line(f"failed: {trial.params['arm']} seed {trial.params['seed']}: {reason}")
    elsewhere = len(study.trials("RUNNING"))
    if elsewhere:
        sink.line(
            f"{elsewhere} lifetime{'s' * (elsewhere > 1)} of this test still run elsewhere, and "
            f"are not in the tables"
        )
    report(study, arms, sink)
    sink.line(f"curves:   study {test_name} in {shown(config.storage)}")
    sink.line(f"models:   {os.path.abspath(config.models)}/{folder}")
    sink.line(f"logs:     tensorboard --logdir {os.path.abspath(config.logs)}/{folder}")
    return 1 if failed else 0


def _key(trial: Any) -> tuple[str, int]:
    return trial.params["arm"], trial.params["seed"]


def report(study: Study, arms: Sequence[str], sink: Sink) -> None:
    """Print the tables of a test: what training reached, and what the final policies reach."""
    frame = records(study.address, study.name)
    frame = frame[frame.state == "COMPLETE"] if len(frame) else frame
    if not len(frame):
        sink.line("no lifetime has finished yet")
        return
    ep_eval = (study.config or {})["evolution"]["ep_eval"]
    for column, title in (
        ("training_return", f"return of the last {ep_eval} training episodes"),
        ("final_return", f"return of the final policy, deterministic, {ep_eval} fresh episodes"),
    ):
        rows = []
        for arm in arms:
            part = frame[frame.arm == arm].drop_duplicates("seed").sort_values("seed")
            if len(part):
                speed = float(part.steps.sum() / part.seconds.sum())
                rows.append(Arm(arm, tuple(part[column].astype(float)), speed))
        sink.line("")
        sink.line(f"{title}, {int(frame.steps.max()):,} steps")
        sink.line(table(rows))
    sink.line("")


class _Progress:
    """Says how far a test is."""

    def __init__(self, taken: Sequence[Taken], steps: int, sink: Sink) -> None:
        self._start = time.monotonic()
        self._n, self._done, self._budget, self.sink = len(taken), 0, len(taken) * steps, sink
        self._width = max((len(t.params["arm"]) for t in taken), default=0)

    def end(self, taken: Taken, value: float | None) -> None:
        """A lifetime has ended."""
        self._done += 1
        said = (
            f"return {figure(value)}"
            if value is not None
            else f"failed: {taken.error[0] if taken.error else ''}"
        )
        self.sink.line(
            f"{taken.params['arm']:{self._width}s} seed {taken.params['seed']:3d}  {said}"
        )

    def tick(self, steps: int) -> None:
        """Show the status line."""
        elapsed = time.monotonic() - self._start
        rate = steps / elapsed if elapsed > 1 else 0.0
        left = duration(max(0, self._budget - steps) / rate) if rate else "-"
        self.sink.status(
            f"lifetimes {self._done}/{self._n}  {steps:,} of {self._budget:,} steps  {rate:,.0f} "
            f"steps/s  {left} left"
        )
