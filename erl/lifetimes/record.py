"""The record of a lifetime: what an agent reached, and what it had reached on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from erl.learners import OWN, canonical_name
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LifetimeSpec

CURVE_POINTS = 200
# Tenths of a lifetime, at which trials are compared while they run.
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

    @property
    def generations(self) -> dict[str, list[Any]]:
        """The kept generations of an evolution inside, as columns of equal length: all that the
        learner can note, None where it did not. No column without a population.
        """
        kept: dict[str, list[Any]] = (self.inner or {}).get("kept", {})
        own = OWN.get(canonical_name(self.spec.learner.name))
        names = ("generation", "steps", *own.noted) if own and own.noted else ()
        rows = len(kept.get("generation", ()))
        return {name: kept.get(name, [None] * rows) for name in dict.fromkeys([*names, *kept])}


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


def reports_of(
    spec: LifetimeSpec, ledger: Ledger, training_return: float | None
) -> tuple[float | None, ...]:
    """`LifetimeRecord.reports` of a lifetime that has ended."""
    passed = min(points_passed(spec, ledger.steps), POINTS - 1)
    reports = [return_at(spec, ledger, point) for point in range(1, passed + 1)]
    return (*reports, training_return) if ledger.steps >= spec.steps else tuple(reports)


def points_passed(spec: LifetimeSpec, steps: int) -> int:
    """How many tenths of its budget a lifetime has left behind after so many steps; an episode may
    end with the last step of one.
    """
    return max(0, steps * POINTS - 1) // spec.steps


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
