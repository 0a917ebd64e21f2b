"""Living: from a specification to the record of what an agent reached."""

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from erl.errors import Stopped, UserError
from erl.files import write_whole
from erl.learners import Agent, Outputs, get_learner, load_agent
from erl.worlds.evaluation import evaluate_afresh
from erl.worlds.specification import LifetimeSpec, commit, from_json, to_json, versions
from erl.worlds.tasks import Ledger, shared_seconds

CURVE_POINTS = 200
# Tenths of a lifetime, at which trials are compared while they are lived.
POINTS = 10


@dataclass(frozen=True)
class LifetimeRecord:
    """What became of a lifetime.

    Attributes:
        spec: what was asked for.
        fitness: see `LifetimeSpec.fitness`; None if the lifetime failed, or was told to stop.
        training_return: mean return of the last `episodes_averaged` training episodes; None without
            any.
        episodes_averaged: how many training episodes that is: fewer than `spec.ep_eval` if fewer
            were finished.
        episodes: training episodes finished.
        steps: environment steps of training.
        final_returns: of the evaluation episodes of the final policy, if there were any.
        evaluation_steps: environment steps of that evaluation.
        seconds: wall-clock time of training without what is only reported, a cohort's shared by its
            members.
        inner: what the lifetime noted on the way, bounded in size; None for nothing. Of an
            evolution inside it, `generations`: how many; `totals`: sums over all; `kept`: columns
                of a thinned table of generations. Of any, `evaluations`: scores that were only
            reported; `final_returns`: of the agents beside the one handed over, by name, on the
            same fresh episodes as its own.
        curve: at most 200 points (steps, mean return of the episodes that ended since the point
            before).
        reports: `return_at` each tenth of the budget, as far as the lifetime came; None where no
            episode had ended. The last is `training_return`.
        note: what a reader should know of the fitness.
        error: the reason for a failure.
        traceback: its traceback.
        versions: of Python and libraries.
        commit: of this project.
    """

    spec: LifetimeSpec
    fitness: float | None
    training_return: float | None
    episodes_averaged: int
    episodes: int
    steps: int
    seconds: float
    final_returns: tuple[float, ...] = ()
    evaluation_steps: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    reports: tuple[float | None, ...] = ()
    note: str | None = None
    error: str | None = None
    traceback: str | None = None
    inner: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None


@dataclass(frozen=True)
class Job:
    """Lifetimes for one worker, trained as one cohort, and what is to be written of them.

    Attributes:
        specs: the lifetimes.
        outputs: of each, while it is trained.
        models: path without ending of each one's trained model; None for none.
        evaluate: whether final policies are evaluated on fresh episodes whatever the fitness is.
    """

    specs: tuple[LifetimeSpec, ...]
    outputs: tuple[Outputs, ...] = ()
    models: tuple[str | None, ...] = ()
    evaluate: bool = False


def checkpoint_path(folder: str, study: str, spec: LifetimeSpec) -> str:
    """Where a lifetime's checkpoint lies: named after what the lifetime is, so that whoever takes
    it up again finds it.
    """
    digest = hashlib.sha256(json.dumps(to_json(spec), sort_keys=True).encode()).hexdigest()[:20]
    return os.path.abspath(f"{folder}/{file_name(study)}/checkpoints/{digest}.pkl")


def file_name(study: str) -> str:
    """A study's name as a folder: environments of a module or a namespace have signs in theirs that
    paths cannot have.
    """
    return study.replace("/", "_").replace(":", "_")


def check(spec: LifetimeSpec) -> None:
    """Raise a UserError if this lifetime cannot be lived."""
    get_learner(spec.learner.name, spec.learner.engine).check(spec)


@dataclass
class Slots:
    """What the lifetimes of a job and its coordinator tell one another while they are lived, a row
    for each lifetime.

    Attributes:
        steps: int64 (n,), steps so far.
        reports: float64 (n, POINTS), `return_at` each tenth of the budget: NaN before it is passed,
            -inf where no episode had ended.
        stop: bool (n,), whether a lifetime shall end now.
    """

    steps: np.ndarray
    reports: np.ndarray
    stop: np.ndarray

    @classmethod
    def empty(cls, n: int) -> "Slots":
        """Of n lifetimes that have not begun."""
        return cls(np.zeros(n, np.int64), np.full((n, POINTS), np.nan), np.zeros(n, bool))

    def step(self, i: int, steps: int) -> None:
        """Lifetime i has taken so many steps."""
        self.steps[i] = steps

    def report(self, i: int, point: int, value: float | None) -> None:
        """Lifetime i has passed a tenth of its budget, 1 to 10, the first one first."""
        self.reports[i, point - 1] = -np.inf if value is None else value

    def should_stop(self, i: int) -> bool:
        """Whether lifetime i shall end."""
        return bool(self.stop[i])


def live(job: Job, slots: Slots | None = None) -> list[LifetimeRecord]:
    """Live the lifetimes of a job side by side.

    Args:
        job: the lifetimes; their cohort keys agree.
        slots: a row for each lifetime; by default nobody watches.

    Returns:
        A record for each. A lifetime that fails says so in its record and hurts no other.
    """
    first = job.specs[0]
    learner = get_learner(first.learner.name, first.learner.engine)
    ledgers = [Ledger() for _ in job.specs]
    if slots is not None:
        for i, (spec, ledger) in enumerate(zip(job.specs, ledgers)):
            _watch(slots, i, spec, ledger)
    outputs = job.outputs or (Outputs(),) * len(job.specs)
    models = job.models or (None,) * len(job.specs)
    start = time.perf_counter()
    with _denormals_flushed():
        try:
            agents = learner.train(job.specs, ledgers, outputs)
        except Exception as e:  # the learner itself failed: so did every lifetime in its hands
            agents = [e] * len(job.specs)
        seconds = shared_seconds(ledgers, time.perf_counter() - start)
        return [
            _conclude(spec, ledger, agent, model, part, job.evaluate)
            for spec, ledger, agent, model, part in zip(job.specs, ledgers, agents, models, seconds)
        ]


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


def _watch(slots: Slots, i: int, spec: LifetimeSpec, ledger: Ledger) -> None:
    """Have a ledger tell the coordinator how far its lifetime is, and ask whether it shall stop."""
    reported = 0

    def on_step(steps: int) -> None:
        nonlocal reported
        # One that goes on from a checkpoint passes several points at once, from the episodes that
        # it had before. The last point is its end, which its record tells.
        while reported < min(points_passed(spec, steps), POINTS - 1):
            reported += 1
            slots.report(i, reported, return_at(spec, ledger, reported))
        slots.step(i, steps)

    ledger.on_step = on_step
    ledger.should_stop = lambda: slots.should_stop(i)


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
    beside: dict[str, list[float]] = {}
    inner = ledger.notes() if ledger.notes is not None else None
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
            path = Path(model)
            agent.save(path.parent, path.name)
            text = json.dumps(to_json(spec), indent=1)
            write_whole(
                path.parent / f"{path.name}.json",
                lambda part: Path(part).write_text(text, encoding="utf-8"),
            )
        if spec.fitness == "final_eval" or also_evaluate:
            results = evaluate_afresh(policies, spec, spec.ep_eval, spec.seeds.evaluation)
            evaluation_steps = sum(result.steps for result in results.values())
            returns = results.pop("").returns
            beside = {name: list(result.returns) for name, result in results.items()}
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
        reports=_reports(spec, ledger, training_return),
        note=note,
        error=error,
        traceback=trace,
        inner=inner if inner is None else {**inner, "final_returns": beside},
        versions=versions(),
        commit=commit(),
    )


def load_model(path: str | Path) -> tuple[LifetimeSpec, Agent]:
    """A saved agent, and the specification of its lifetime, which makes its environment:
    `spec.make_env()`.

    Args:
        path: of the model, with or without `.zip`; the specification lies beside it.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    stem = str(path).removesuffix(".zip")
    # Agents that were saved beside another have its specification: seed_0.rl.zip, seed_0.json.
    beside = [Path(f"{s}.json") for s in (stem, stem.rpartition(".")[0])]
    described = next((p for p in beside if p.is_file()), None)
    if described is None or not Path(f"{stem}.zip").is_file():
        raise UserError(f"no model {stem}.zip with its specification {beside[0].name} beside it")
    try:
        spec = from_json(LifetimeSpec, json.loads(described.read_text(encoding="utf-8")))
        return spec, load_agent(spec, Path(stem))
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"the model {stem}.zip cannot be read: {' '.join(str(e).split())}") from e


def return_at(spec: LifetimeSpec, ledger: Ledger, point: int) -> float | None:
    """Mean return of the last `ep_eval` training episodes that had ended by a tenth of the budget;
    None without any.

    It is what the fitness is at the end. It depends on the episodes alone, so that it does not
    matter when it is asked for.

    Args:
        point: 1 to 9; the ledger has passed it.
    """
    ended = [r for steps, r, _ in ledger.episodes if steps * POINTS <= point * spec.steps]
    return float(np.mean(ended[-spec.ep_eval :])) if ended else None


def _reports(
    spec: LifetimeSpec, ledger: Ledger, training_return: float | None
) -> tuple[float | None, ...]:
    passed = min(points_passed(spec, ledger.steps), POINTS - 1)
    reports = [return_at(spec, ledger, point) for point in range(1, passed + 1)]
    return (*reports, training_return) if ledger.steps >= spec.steps else tuple(reports)


def points_passed(spec: LifetimeSpec, steps: int) -> int:
    """How many tenths of its budget a lifetime has left behind after so many steps; an episode may
    end with the last step of one.
    """
    return max(0, steps * POINTS - 1) // spec.steps


def describe(error: BaseException) -> str:
    """An exception as one line; faults of environments and users speak for themselves, others name
    their type.
    """
    text = " ".join(str(error).split())
    plain = type(error).__name__ in ("EnvironmentFault", "UserError")
    return text if plain else f"{type(error).__name__}: {text}"


def learning_curve(
    episodes: Sequence[tuple[int, float, int]], steps: int
) -> tuple[tuple[int, float], ...]:
    """Mean returns over equal stretches of the budget.

    Args:
        episodes: (steps at its end, return, length) of each.
        steps: the whole budget.

    Returns:
        At most 200 points (steps at the end of the stretch, mean return of the episodes that ended
        in it); stretches in which no episode ended are left out.
    """
    if not episodes:
        return ()
    ends = np.array([e[0] for e in episodes])
    returns = np.array([e[1] for e in episodes])
    width = steps / CURVE_POINTS
    bins = np.minimum(np.ceil(ends / width).astype(int), CURVE_POINTS)
    return tuple((round(b * width), float(returns[bins == b].mean())) for b in np.unique(bins))
