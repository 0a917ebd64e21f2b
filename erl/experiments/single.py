"""One learner on one task, without an outer evolution: some seeds, stored, continued and reported
like any test.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from erl.cli import duration, figure, option
from erl.errors import UserError
from erl.experiments.evolution import (
    CONFIG_VERSION,
    MAX_SEED,
    VOLATILE,
    RunConfig,
    check_count,
    check_name,
    make_executor,
    seed_indices,
    study_name,
)
from erl.experiments.trials import fill
from erl.learners import Outputs, canonical_name
from erl.learners.core.settings_file import load_settings
from erl.lifetimes.lifetime import Job, LifetimeRecord, check, checkpoint_path, file_name
from erl.statistics import Arm, table
from erl.studies.storage import shown
from erl.studies.study import Sink, Study, Taken, whole
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task


@dataclass(frozen=True)
class SingleConfig(RunConfig):
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
    engine: str = option("auto", "how lifetimes are trained", choices=("auto", "cohort", "sb3"))
    del_obs: bool = option(False, "delete velocities from the observation")
    ep_eval: int = option(10, "episodes over which returns are averaged")
    logs: str = option("logs", "folder of TensorBoard logs")
    models: str = option("models", "folder of trained models")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.h_test)
        for name in ("steps", "nb_seeds", "ep_eval"):
            check_count(name, getattr(self, name))
        if self.seed < 0:
            raise UserError(f"--seed is not negative: {self.seed}")
        if self.nb_seeds > MAX_SEED:
            raise UserError(f"--nb_seeds is at most {MAX_SEED}, not {self.nb_seeds}")

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


def parse_settings(text: str | None) -> dict[str, Any]:
    """Settings as `--set` spells them: `NAME=VALUE,NAME=VALUE`, values as in YAML; commas in
    brackets and quotes belong to a value.

    Raises:
        UserError: something has no name or two values, or a value cannot be read.
    """
    settings: dict[str, Any] = {}
    for part in _parts(text or ""):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name.isidentifier():
            raise UserError(f"--set takes NAME=VALUE,NAME=VALUE, and cannot understand {part!r}")
        if name in settings:
            raise UserError(f"--set gives {name} twice")
        try:
            parsed = yaml.safe_load(value)
            json.dumps(parsed)  # what cannot be stored (dates, aliases of themselves) is no setting
        except (yaml.YAMLError, TypeError, ValueError, AttributeError, RecursionError) as e:
            said = getattr(e, "problem", None) or e
            raise UserError(
                f"--set cannot understand the value of {part!r}: {' '.join(str(said).split())}"
            ) from e
        if isinstance(parsed, str) and not value.startswith(("'", '"')):
            with suppress(ValueError):  # YAML takes 1e-3 for a word
                parsed = float(parsed)
        settings[name] = parsed
    return settings


def _parts(text: str) -> list[str]:
    """Cut a text at its commas, but for those within brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def lifetime(config: dict[str, Any], index: int) -> LifetimeSpec:
    """The lifetime with the index-th seeds; config is the study's."""
    published = config["published_code"]
    return LifetimeSpec(
        task=Task(config["env_id"], config["del_obs"]),
        learner=LearnerSpec(config["learner"], config["learner_config"], config["engine"]),
        steps=config["steps"],
        seeds=Seeds.published(index)
        if published
        else Seeds.derive(config["seed"], "single", index),
        ep_eval=config["ep_eval"],
    )


def run(config: SingleConfig, sink: Sink) -> int:
    """Train the learner on every seed, store the records, and say what was reached.

    Returns:
        Exit code: 0, or 1 if a lifetime failed.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    indices = config.indices()
    volatile = {*VOLATILE, "logs", "models", "nb_seeds", "seeds", "h_test", "set"}
    stored = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in volatile}
    stored["learner"] = canonical_name(config.learner)
    file = load_settings(config.learner_config, config.env_id)
    stored["learner_config"] = file.settings | parse_settings(config.set)
    stored["config_version"] = CONFIG_VERSION
    check(lifetime(stored, indices[0]))
    for note in file.notes:
        sink.line(note)
    if file.env_kwargs:
        sink.line(f"{config.learner_config}: env_kwargs do not apply here and are left out")

    name = study_name(config.subject(), config.h_test, config.steps)
    folder = file_name(name)
    executor = make_executor(config)
    try:
        study = Study(config.storage, name, stored, ("config_version",))
    except BaseException:
        executor.close()
        raise

    def plan(proposed: dict[str, Any]) -> list[LifetimeSpec]:
        return [lifetime(stored, proposed["seed"])]

    def outputs(taken: Taken, index: int) -> Outputs:
        checkpoint = checkpoint_path(config.runs, folder, taken.specs[index])
        return Outputs(
            tensorboard=os.path.abspath(f"{config.logs}/{folder}/seed_{taken.params['seed']}"),
            checkpoint=checkpoint,
            checkpoint_seconds=config.checkpoint_minutes * 60,
            status=f"{checkpoint}.status.json",
        )

    def job(members: Sequence[tuple[Taken, int]]) -> Job:
        return Job(
            specs=tuple(taken.specs[index] for taken, index in members),
            outputs=tuple(outputs(taken, index) for taken, index in members),
            models=tuple(
                os.path.abspath(f"{config.models}/{folder}/seed_{t.params['seed']}")
                for t, _ in members
            ),
            evaluate=True,
        )

    def watch(taken: list[Taken]) -> tuple[Any, Any]:
        sink.line(
            f"{name} in {shown(config.storage)}: {len(indices)} seed{'s' * (len(indices) > 1)} x "
            f"{config.steps:,} steps, {len(taken)} to live, {executor.workers} "
            f"worker{'s' * (executor.workers > 1)}"
        )
        progress = _Progress(
            config.steps, {t.params["seed"]: outputs(t, 0).status for t in taken}, sink
        )
        return progress.end, progress.tick

    try:
        with study:
            wanted = [{"seed": seed} for seed in indices]
            fill(
                study,
                wanted,
                {"seed": whole(0, MAX_SEED)},
                plan,
                executor,
                job,
                watch,
                config.max_retries,
            )
    except KeyboardInterrupt:
        sink.close()
        sink.line("interrupted: the same command goes on from the last checkpoints")
        return 130
    finally:
        executor.close()
        sink.close()
    complete = {t.params["seed"] for t in study.trials("COMPLETE")}
    failed = {t.params["seed"]: t for t in study.trials("FAIL") if t.params["seed"] not in complete}
    for seed, trial in failed.items():
        sink.line(f"failed: seed {seed}: {trial.user_attrs.get('error', {}).get('reason')}")
    elsewhere = [seed for seed in indices if seed not in complete | failed.keys()]
    if elsewhere:
        sink.line(
            f"another process trains seed{'s' * (len(elsewhere) > 1)} "
            f"{', '.join(map(str, elsewhere))}: the same command tells later what came of it"
        )
    report(study, stored["learner"], sink)
    sink.line(f"curves:   study {name} in {shown(config.storage)}")
    sink.line(f"models:   {os.path.abspath(config.models)}/{folder}")
    sink.line(f"logs:     tensorboard --logdir {os.path.abspath(config.logs)}/{folder}")
    return 1 if failed else 0


def report(study: Study, learner: str, sink: Sink) -> None:
    """Print what training and the final policies reached; agents that a learner tells apart have a
    line each.
    """
    finished = {t.params["seed"]: study.lifetimes(t)[0] for t in study.trials("COMPLETE")}
    records = [finished[seed] for seed in sorted(finished)]
    if not records:
        return
    ep_eval = records[0].spec.ep_eval
    speed = sum(r.steps for r in records) / max(1e-9, sum(r.seconds for r in records))
    returns = [r.training_return for r in records]
    arms = {
        f"return of the last {ep_eval} training episodes": {
            learner: [x for x in returns if x is not None]
        },
        f"return of the final policy, deterministic, {ep_eval} fresh episodes": _final(
            records, learner
        ),
    }
    for title, rows in arms.items():
        sink.line("")
        sink.line(title)
        sink.line(
            table([Arm(name, tuple(values), speed) for name, values in rows.items() if values])
        )
    sink.line("")


def _final(records: Sequence[LifetimeRecord], learner: str) -> dict[str, list[float]]:
    """Mean final returns of each lifetime: of the policy handed over, and of those beside it."""
    rows = {learner: [float(np.mean(r.final_returns)) for r in records if r.final_returns]}
    for record in records:
        for name, returns in ((record.inner or {}).get("final_returns") or {}).items():
            rows.setdefault(f"{learner} ({name})", []).append(float(np.mean(returns)))
    return rows


class _Progress:
    """Says how far the lifetimes are, and what their learners say of themselves."""

    def __init__(self, steps: int, says: dict[int, str | None], sink: Sink) -> None:
        self._start, self._done, self._sink = time.monotonic(), 0, sink
        self._says, self._budget = says, steps * len(says)
        self._first: int | None = None

    def end(self, taken: Taken, value: float | None) -> None:
        """A lifetime has ended."""
        self._done += 1
        seed = taken.params["seed"]
        status = self._says.pop(seed, None)
        if status is not None:
            Path(status).unlink(missing_ok=True)
        said = (
            f"return {figure(value)}"
            if value is not None
            else f"failed: {taken.error[0] if taken.error else ''}"
        )
        self._sink.line(f"seed {seed:3d}  {said}")

    def tick(self, steps: int) -> None:
        """Show the status line."""
        # The first count may hold what checkpoints brought along.
        if self._first is None and steps:
            self._first, self._start = steps, time.monotonic()
        elapsed = time.monotonic() - self._start
        rate = (steps - (self._first or 0)) / elapsed if elapsed > 1 else 0.0
        left = duration(max(0, self._budget - steps) / rate) if rate else "-"
        parts = [f"{steps:,} of {self._budget:,} frames  {rate:,.0f} frames/s  {left} left"]
        for seed, path in self._says.items():
            try:
                said = json.loads(Path(path or "").read_text(encoding="utf-8"))
            except (OSError, ValueError):  # nothing said yet
                continue
            parts.append(f"seed {seed}: " + ", ".join(f"{k} {v:,.1f}" for k, v in said.items()))
        self._sink.status("  |  ".join(parts))
