"""Running lifetimes: from specifications to the records of what the agents reached."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from erl.errors import Interrupted, Stopped, UserError, describe
from erl.executors.jobs import HERE, Column, Job, Rows, under
from erl.files import unwritable
from erl.learners import Agent, Outputs, get_learner
from erl.learners.core.checkpoints import read_checkpoint, remove_checkpoint
from erl.lifetimes.models import save_model
from erl.lifetimes.record import (
    POINTS,
    LifetimeRecord,
    learning_curve,
    points_passed,
    reports_of,
    return_at,
)
from erl.worlds.evaluation import evaluate_afresh
from erl.worlds.ledger import Ledger, shared_seconds
from erl.worlds.specification import LifetimeSpec, commit, versions

# What a running lifetime and its coordinator write on the board, a row for each lifetime:
# environment steps so far, and how many of them were taken before it went on from a checkpoint;
# `return_at` each tenth of the budget, NaN before it is passed and -inf where no episode had ended;
# whether the lifetime shall end now; whether the command was interrupted, so that the lifetime
# shall write its checkpoint and end.
COLUMNS = {
    "steps": Column(np.int64),
    "earlier": Column(np.int64),
    "reports": Column(np.float64, (POINTS,), np.nan),
    "stop": Column(np.bool_, from_coordinator=True),
    "save": Column(np.bool_, from_coordinator=True),
}


@dataclass(frozen=True)
class Cohort:
    """Lifetimes that are trained side by side by one worker, and what is to be written of them.

    Attributes:
        specs: the lifetimes; their cohort keys agree.
        outputs: of each, while it is trained.
        models: path without ending of each one's trained model; None for none.
        evaluate: whether final policies are evaluated on fresh episodes whatever the fitness is.
    """

    specs: tuple[LifetimeSpec, ...]
    outputs: tuple[Outputs, ...] = ()
    models: tuple[str | None, ...] = ()
    evaluate: bool = False

    def job(self) -> Job:
        """As a job for an executor, whose value is a list of records; its board has `COLUMNS`."""
        files = partial(_checkpoints, self.outputs)
        without = partial(_without_models, self.models)
        return Job(_live_as_job, (self,), len(self.specs), files, without)

    def below(self, folder: str) -> "Cohort":
        """The same, with everything that it writes below a folder, at its path there."""

        def moved(path: str | None) -> str | None:
            return None if path is None else under(folder, path)

        outputs = tuple(
            replace(
                o,
                tensorboard=moved(o.tensorboard),
                checkpoint=moved(o.checkpoint),
                status=moved(o.status),
            )
            for o in self.outputs
        )
        return replace(self, outputs=outputs, models=tuple(moved(m) for m in self.models))


def check(spec: LifetimeSpec) -> None:
    """Raise a UserError if this lifetime cannot be lived."""
    try:
        get_learner(spec.learner.name, spec.learner.engine).check(spec)
    except MemoryError as e:
        raise UserError(f"a lifetime in {spec.task.env_id} does not fit into memory: {e}") from e


def check_together(cohorts: Sequence[Sequence[LifetimeSpec]]) -> None:
    """Raise a UserError if these cohorts cannot be trained at the same time on this machine."""
    by_learner: dict[tuple[str, str], list[Sequence[LifetimeSpec]]] = {}
    for cohort in cohorts:
        learner = cohort[0].learner
        by_learner.setdefault((learner.name, learner.engine), []).append(cohort)
    for (name, engine), theirs in by_learner.items():
        own: Callable[..., None] | None = getattr(get_learner(name, engine), "check_together", None)
        if own is not None:
            own(theirs)


def cohort_key(spec: LifetimeSpec) -> Hashable | None:
    """Lifetimes with equal keys may be trained side by side; None: each on its own."""
    return get_learner(spec.learner.name, spec.learner.engine).cohort_key(spec)


def live(cohort: Cohort, rows: Rows | None = None) -> list[LifetimeRecord]:
    """Live the lifetimes of a cohort side by side.

    Args:
        cohort: the lifetimes.
        rows: their part of a board with `COLUMNS`; by default they do not report.

    Returns:
        A record for each. A lifetime that fails says so in its record and hurts no other.
    """
    specs = cohort.specs
    learner = get_learner(specs[0].learner.name, specs[0].learner.engine)
    ledgers = [Ledger() for _ in specs]
    if rows is not None:
        for i, (spec, ledger) in enumerate(zip(specs, ledgers)):
            _report(rows, i, spec, ledger)
    outputs = cohort.outputs or (Outputs(),) * len(specs)
    models = cohort.models or (None,) * len(specs)
    start = time.perf_counter()
    with _denormals_flushed():
        try:
            agents = learner.train(specs, ledgers, outputs)
            if len(agents) != len(specs):
                raise ValueError(
                    f"the learner gave {len(agents)} agents for {len(specs)} lifetimes"
                )
        except Exception as e:  # the learner itself failed: so did every lifetime in its hands
            agents = [e] * len(specs)
        seconds = shared_seconds(ledgers, time.perf_counter() - start)
        return [
            _conclude(spec, ledger, agent, model, part, cohort.evaluate)
            for spec, ledger, agent, model, part in zip(specs, ledgers, agents, models, seconds)
        ]


def _live_as_job(rows: Rows, folder: str, cohort: Cohort) -> list[LifetimeRecord]:
    """`live`, as an executor's worker calls it."""
    if folder == HERE:
        return live(cohort, rows)
    moved = cohort.below(folder)
    records = live(moved, rows)
    for output, record in zip(moved.outputs, records):
        # Files below the folder are sent back. This one is not needed any more, and may be large.
        if output.checkpoint is not None and record.error is None:
            remove_checkpoint(output.checkpoint)
    return records


def _checkpoints(outputs: Sequence[Outputs]) -> dict[str, bytes]:
    """Files of the checkpoints that there are, by path."""
    paths = [os.path.abspath(o.checkpoint) for o in outputs if o.checkpoint is not None]
    return {name: file for path in paths for name, file in read_checkpoint(path).items()}


def _without_models(
    models: Sequence[str | None],
    records: Sequence[LifetimeRecord],
    unwritten: Mapping[str, OSError],
) -> list[LifetimeRecord]:
    """Records, when these files of another machine could not be written here: a lifetime without
    its model fails, as it does where it saves the model itself.
    """
    found = []
    for record, model in zip(records, models or (None,) * len(records)):
        why = [e for path, e in unwritten.items() if model and path.startswith(f"{model}.")]
        if why:
            inner = None if record.inner is None else {**record.inner, "final_returns": {}}
            error = unwritable(model, why[0])
            record = replace(record, fitness=None, final_returns=(), inner=inner, error=error)
        found.append(record)
    return found


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Count numbers too small for full precision, below 1e-38 in single precision, as zero.

    Adam's second moments of a unit that has died fade through such numbers for thousands of steps,
    and processors are many times slower with them. Beside Adam's epsilon, 1e-8, they are nothing.
    """
    import torch

    before = sys.float_info.min / 2.0 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _report(rows: Rows, i: int, spec: LifetimeSpec, ledger: Ledger) -> None:
    """Have a ledger report on the board how far its lifetime is, and read whether it shall stop."""
    steps, earlier, reports, stop, save = (
        rows[name] for name in ("steps", "earlier", "reports", "stop", "save")
    )
    reported = 0

    def on_step(taken: int) -> None:
        nonlocal reported
        # One that goes on from a checkpoint passes several points at once, from the episodes that
        # it had before. The last point is its end, which its record tells.
        while reported < min(points_passed(spec, taken), POINTS - 1):
            reported += 1
            value = return_at(spec, ledger, reported)
            reports[i, reported - 1] = -np.inf if value is None else value
        earlier[i], steps[i] = ledger.earlier[0], taken

    ledger.on_step = on_step
    ledger.should_stop = lambda: bool(stop[i])
    ledger.should_save = lambda: bool(save[i])


def _conclude(
    spec: LifetimeSpec,
    ledger: Ledger,
    agent: Agent | Exception,
    model: str | None,
    seconds: float,
    also_evaluate: bool,
) -> LifetimeRecord:
    """Evaluate and save a trained agent and write its record."""
    last = [r for _, r, _ in ledger.episodes[-spec.ep_eval :]]
    training_return = float(np.mean(last)) if last else None
    returns: tuple[float, ...] = ()
    evaluation_steps = 0
    companion_returns: dict[str, list[float]] = {}
    notes = ledger.notes() if ledger.notes is not None else None
    fitness, note, error, trace = None, None, None, None
    try:
        if isinstance(agent, Exception):
            raise agent
        policies = {"": agent, **getattr(agent, "companions", {})}
        if any(policy.diverged() for policy in policies.values()):
            raise FloatingPointError(
                f"the policy's weights are not finite after {ledger.steps} steps"
            )
        if model is not None:
            save_model(Path(model), spec, agent)
        if spec.fitness == "final_eval" or also_evaluate:
            results = evaluate_afresh(policies, spec, spec.ep_eval, spec.seeds.evaluation)
            evaluation_steps = sum(result.steps for result in results.values())
            returns = results.pop("").returns
            companion_returns = {name: list(result.returns) for name, result in results.items()}
        if spec.fitness == "final_eval":
            fitness = float(np.mean(returns))
        elif training_return is None:
            error = f"no episode was finished within {ledger.steps} steps"
        else:
            fitness = training_return
            if len(last) < spec.ep_eval:
                note = (
                    f"only {len(last)} of {spec.ep_eval} episodes were finished "
                    f"within {ledger.steps} steps"
                )
        if fitness is not None and not np.isfinite(fitness):
            fitness, error = None, f"the fitness is not finite: {fitness}"
    except Interrupted:
        error = "interrupted"
    except Stopped:
        note = f"pruned after {ledger.steps} of {spec.steps} steps"
    except Exception as e:
        fitness, error = None, describe(e)
        trace = "".join(traceback.format_exception(e))
    return LifetimeRecord(
        spec=spec,
        fitness=fitness,
        training_return=training_return,
        episodes_averaged=len(last),
        episodes=len(ledger.episodes),
        steps=ledger.steps,
        seconds=round(seconds, 3),
        final_returns=returns,
        evaluation_steps=evaluation_steps,
        curve=learning_curve(ledger.episodes, max(spec.steps, ledger.steps)),
        reports=reports_of(spec, ledger, training_return),
        note=note,
        error=error,
        traceback=trace,
        inner=None if notes is None else {**notes, "final_returns": companion_returns},
        versions=versions(),
        commit=commit(),
    )
