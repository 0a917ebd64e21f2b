"""Pruning: trials that look worse than those of earlier generations are ended early, by Optuna's
pruners.

At each tenth of their lives (`record.POINTS`) the mean of a trial's lifetimes is compared, as
soon as all of them have passed it. A pruner sees finished trials of earlier generations only, never
those that run at the same time. What it says then depends on the trial's lifetimes and on those,
not on which worker was faster: an evolution prunes the same trials at the same points however many
workers it has, and interrupted or not. Nothing waits for anything either.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, WilcoxonPruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from erl.errors import UserError
from erl.lifetimes.record import POINTS, LifetimeRecord
from erl.worlds.specification import LifetimeSpec

# Begins the system attributes in which Optuna's Hyperband notes what a trial reached.
RUNG = "completed_rung_"
P_THRESHOLD = 0.1  # Optuna's for the signed-rank test
# What a trial has reached at the first points says little of its end: benchmarks/pruning.py
# measures it.
MEDIAN_FROM, HYPERBAND_FROM = 3, 2


@dataclass(frozen=True)
class Pruning:
    """How an evolution prunes.

    Attributes:
        pruner: one of `choices.PRUNERS`.
        popsize: trials of a generation; trials number k * popsize to (k + 1) * popsize - 1 are one.
    """

    pruner: str
    popsize: int


@dataclass(frozen=True)
class Pruned:
    """That a trial was pruned.

    Attributes:
        point: the tenth of its life at which it was, 1 to 9.
        value: what it had reached there.
    """

    point: int
    value: float


@dataclass
class Comparison:
    """What comparing a trial with earlier ones gave.

    Attributes:
        values: point -> mean of the lifetimes there.
        notes: the pruner's, to be kept with the trial.
        pruned: set if the trial shall end.
    """

    values: dict[int, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    pruned: Pruned | None = None


def check_pruner(pruner: str, lifetimes: int) -> None:
    """Refuse the signed-rank test where it has too few pairs to ever say anything.

    Raises:
        UserError: all of n lifetimes are worse with probability 2^-n by chance alone, and that is
            not below the threshold.
    """
    if pruner == "wilcoxon" and 2.0**-lifetimes >= P_THRESHOLD:
        raise UserError(
            f"--pruner wilcoxon compares seed by seed and needs at least 4 lifetimes "
            f"per trial, not {lifetimes}: use --nb_seeds 4"
        )


def values_at_points(
    specs: Sequence[LifetimeSpec],
    records: Mapping[int, LifetimeRecord],
    reports: Mapping[int, np.ndarray],
    score: Callable[[LifetimeSpec, float], float],
) -> np.ndarray:
    """What a trial's lifetimes have reached, float64 (lifetimes, POINTS): NaN before a point, -inf
    where no episode had ended.

    Args:
        specs: the lifetimes.
        records: of those that have ended, by index.
        reports: of others, by index, as they stand on the board.
        score: from a lifetime's return to what it contributes to the mean.
    """
    values = np.full((len(specs), POINTS), np.nan)
    for index, row in reports.items():
        values[index] = row
    for index, record in records.items():
        for point, value in enumerate(record.reports):
            values[index, point] = -np.inf if value is None else value
    for index, point in np.argwhere(np.isfinite(values)):
        values[index, point] = score(specs[index], float(values[index, point]))
    return values


class TrialReporter:
    """Says what a trial has reached at each point, as soon as all its lifetimes have passed it."""

    def __init__(self) -> None:
        self._passed = 0

    def compare(self, values: np.ndarray) -> Comparison:
        """What there is to say of the points that are new.

        Args:
            values: the trial's `values_at_points`. A point counts when all lifetimes have passed it
                and those before.
        """
        found = Comparison()
        for point in range(self._passed + 1, POINTS + 1):
            column = values[:, point - 1]
            if np.isnan(column).any():
                break
            self._passed = point
            # A lifetime had no episode yet: there is nothing to compare.
            if not np.isfinite(column).all():
                continue
            value = float(column.mean())
            found.values[point] = value
            if self._prunes(point, value, column) and point < POINTS:  # at its end it has a fitness
                found.pruned = Pruned(point, value)
                break
        if found.values:
            found.notes = self._notes()
        return found

    def _prunes(self, point: int, value: float, column: np.ndarray) -> bool:
        return False

    def _notes(self) -> dict[str, Any]:
        return {}


class TrialPruner(TrialReporter):
    """Compares one running trial with finished ones, point by point.

    Optuna's pruners read a study; each running trial has one in memory, with the trials that it may
    be compared with.

    - `median`: prunes, from point 3 on, a trial whose best value so far lies below the median of
      the completed trials at this point, once 5 have completed (Golovin et al., 2017, "Google
      Vizier", sec. 3.2).
    - `hyperband`: promotes a third at points 2 and 6, in two brackets that differ in where they
      begin (Li et al., 2018, JMLR 18:185; asynchronously, arXiv 1810.05934). A third rung would lie
      where nothing is left to save.
    - `wilcoxon`: a signed-rank test against the best completed trial, p below 0.1. Lifetimes of the
      same seed and environment are its pairs, each at the point that this trial has just passed:
      values of different points would be neither comparable nor independent. It is tested anew at
      each point, and the best trial is a lucky one. So a trial as good as the best is pruned in a
      quarter to a half of all cases (simulated, 4 and 5 lifetimes).

    Args:
        pruner: one of `choices.PRUNERS`, not `none`.
        study_name: Hyperband draws brackets from it and the trial's number.
        number: the trial's.
        earlier: finished trials that it is compared with, in order.
        lived: a finished trial's `values_at_points`.
    """

    def __init__(
        self,
        pruner: str,
        study_name: str,
        number: int,
        earlier: Sequence[FrozenTrial],
        lived: Callable[[FrozenTrial], np.ndarray],
    ) -> None:
        super().__init__()
        self._pruner, self._study_name = pruner, study_name
        if pruner == "wilcoxon":
            complete = [t for t in earlier if t.state == TrialState.COMPLETE]
            best = max(complete, key=lambda t: (t.value, -t.number)) if complete else None
            self._best = None if best is None or best.value is None else (best.value, lived(best))
            return
        by_number = {t.number: t for t in earlier}
        study = self._study(
            MedianPruner(n_warmup_steps=MEDIAN_FROM)
            if pruner == "median"
            else HyperbandPruner(HYPERBAND_FROM, POINTS)
        )
        for n in range(number):
            trial = by_number.get(n)
            # A trial that does not count leaves its number to a failed one, which no pruner looks
            # at.
            study.add_trial(
                create_trial(state=TrialState.FAIL)
                if trial is None or trial.value is None
                else create_trial(
                    state=trial.state,
                    value=trial.value,
                    intermediate_values=trial.intermediate_values,
                    system_attrs={
                        k: v for k, v in trial.system_attrs.items() if k.startswith(RUNG)
                    },
                )
            )
        self._trial = study.ask()

    def _study(self, pruner: BasePruner) -> optuna.Study:
        return optuna.create_study(
            study_name=self._study_name,
            direction="maximize",
            sampler=RandomSampler(),
            pruner=pruner,
        )

    def _prunes(self, point: int, value: float, column: np.ndarray) -> bool:
        if self._pruner == "wilcoxon":
            return self._prune_pairs(point, column)
        self._trial.report(value, point)
        return self._trial.should_prune()

    def _notes(self) -> dict[str, Any]:
        if self._pruner == "wilcoxon":
            return {}
        return self._trial.study.get_trials(deepcopy=False)[-1].system_attrs

    def _prune_pairs(self, point: int, column: np.ndarray) -> bool:
        if self._best is None or not np.isfinite(self._best[1][:, point - 1]).all():
            return False
        with warnings.catch_warnings(action="ignore"):  # that it is experimental
            study = self._study(WilcoxonPruner(p_threshold=P_THRESHOLD))
        value, lived = self._best
        pairs = dict(enumerate(lived[:, point - 1].tolist()))
        study.add_trial(
            create_trial(state=TrialState.COMPLETE, value=value, intermediate_values=pairs)
        )
        trial = study.ask()
        for instance, reached in enumerate(column.tolist()):
            trial.report(reached, instance)
        return trial.should_prune()
