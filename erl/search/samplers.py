"""Samplers of the outer evolution: random search, TPE, a CMA-ES with restarts that uses every
finished trial, and any sampler of Optuna or of the user's.

All of them are stateless: what they propose for a trial follows from the study's trials, the seed
and the trial's number alone. Any process can therefore continue a study, many can share one, and
two workers that were given the same seed do not propose the same parameters.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna import Study
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from erl.errors import UserError, nearest
from erl.search.asynchronous_cma import (
    SIGMA,
    AsynchronousCMA,
    Result,
    Start,
    promising,
)
from erl.search.choices import RESTARTS, SAMPLERS, check_choice
from erl.search.seeded_samplers import OwnSampler, SeededSampler, contains, own_kind

# cmaes divides by the learning rate of its rank-mu update, which is zero with a single parent.
MIN_POPSIZE = 4

# A warm start is fitted to the best tenth of the source's trials: fewer than this have none.
MIN_SOURCE = 10

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_BEGUN = "cmaes:begun"  # system attribute: how many trials had begun when this one ended
# system attribute: the restart that a trial was drawn in, absent before the first
_RUN = "cmaes:restart"


def make_sampler(
    name: str,
    search_space: dict[str, BaseDistribution],
    seed: int,
    popsize: int | None = None,
    restarts: str = "ipop",
    use_pruned: bool = True,
    start: dict[str, Any] | None = None,
) -> BaseSampler:
    """The sampler of this name; see `sampler_name`.

    Args:
        name: "Random", "Tpe" or "Cmaes", whatever the case of its letters, or `MODULE:CLASS`.
        search_space: parameter -> distribution; only CMA-ES needs to know it beforehand.
        seed: not negative.
        popsize: CMA-ES' generation before its first restart; `generation_size` gives the default.
        restarts: CMA-ES', one of `RESTARTS`.
        use_pruned: whether CMA-ES is told of pruned trials.
        start: what CMA-ES begins with, from `warm_start`.

    Raises:
        UserError: for a name that `sampler_name` refuses, a population too small for CMA-ES, an
            unknown way to restart, or another sampler than CMA-ES with a `start`.
    """
    name = sampler_name(name)
    if name == "Cmaes":
        return CmaesSampler(search_space, seed, popsize, restarts, use_pruned, start)
    if start is not None:
        raise UserError(f"{name} cannot start from another study; only Cmaes can")
    if ":" in name:
        return OwnSampler(name, seed)
    kinds: dict[str, type[RandomSampler] | type[TPESampler]]
    kinds = {"Random": RandomSampler, "Tpe": TPESampler}
    return SeededSampler(kinds[name], seed)


def sampler_name(name: str) -> str:
    """A sampler's name as it is stored: that of `SAMPLERS`, whatever the case of its letters, or
    `MODULE:CLASS`, a class of the user's.

    Raises:
        UserError: an unknown name; or the class cannot be imported or made, or is no sampler.
    """
    if ":" in name:
        own_kind(name)
        return name
    by_fold = {known.casefold(): known for known in SAMPLERS}
    if name.casefold() not in by_fold:
        raise UserError(
            f"unknown sampler {name!r}{nearest(name, SAMPLERS)} (known: {', '.join(SAMPLERS)}; "
            f"MODULE:CLASS names one of yours)"
        )
    return by_fold[name.casefold()]


def generation_size(
    name: str, search_space: dict[str, BaseDistribution], popsize: int | None = None
) -> int:
    """Number of trials to ask for before any of their results is needed.

    It is the population of CMA-ES, by default 4 + floor(3 ln d) for d numerical parameters (Hansen,
    2016, arXiv 1604.00772, eq. 48), and the same number for the other samplers. A population that
    restarts have doubled is filled by several such generations.

    Raises:
        UserError: for a name that `sampler_name` refuses or a population too small.
    """
    smallest = MIN_POPSIZE if sampler_name(name) == "Cmaes" else 1
    if popsize is None:
        return 4 + math.floor(3 * math.log(max(1, len(_numerical(search_space)))))
    if popsize < smallest:
        raise UserError(f"--popsize must be at least {smallest} with {name}, not {popsize}")
    return popsize


class Used(NamedTuple):
    """Trials that CMA-ES has used.

    Attributes:
        ranked: those that were ranked for a population.
        told: those of them that were in one. With many workers a population is the best of those
            ranked.
    """

    ranked: int
    told: int


class CmaesSampler(BaseSampler):
    """CMA-ES for any number of workers, with restarts: `AsynchronousCMA` told of a study's trials.

    Every ask replays the study: its finished trials are told in the order in which they ended, and
    the trial is drawn from the distribution that results. The order is (trials begun when it
    ended, number): see `note_end`. Solutions that some other source proposed (a queue, another
    sampler) are told likewise; those of other samplers count as drawn before the first restart. The
    latest replay is kept, and continued where new results come after those that were told. This
    changes no proposal.

    The search space is Optuna's transformed one (logarithms where a distribution asks for them,
    half a step of margin around stepped values), scaled to [0, 1] per parameter. Stepped values are
    told as rounded.

    A pruned trial ranks below every completed one, and the later it was pruned the higher: what a
    trial had reached when it was given up cannot be compared with what others reached at their end,
    but that it was given up, and when, says that it was worse. Not told are failed and running
    trials, and those that lack a parameter or left its range. Categorical parameters, and those
    outside of the search space, are drawn uniformly and independently.

    Args:
        search_space: parameter -> distribution.
        seed: not negative.
        popsize: trials of a generation before the first restart, at least `MIN_POPSIZE`;
            `generation_size` gives the default.
        restarts: one of `RESTARTS`, see `AsynchronousCMA`.
        use_pruned: whether pruned trials are told.
        start: what `warm_start` gave, to begin with.

    Raises:
        UserError: for a population too small or an unknown way to restart.
    """

    def __init__(
        self,
        search_space: dict[str, BaseDistribution],
        seed: int,
        popsize: int | None = None,
        restarts: str = "ipop",
        use_pruned: bool = True,
        start: dict[str, Any] | None = None,
    ) -> None:
        check_choice("restarts", restarts, RESTARTS)
        self._space = _numerical(search_space)
        self._popsize = generation_size("Cmaes", search_space, popsize)
        self._restarts, self._use_pruned, self._start = restarts, use_pruned, start
        self._seed = seed
        self._independent = SeededSampler(RandomSampler, seed)
        self._transform = (
            _SearchSpaceTransform(self._space, transform_0_1=True) if self._space else None
        )
        self._lock = threading.Lock()
        self._source: tuple[BaseStorage, int] | None = None  # the study that was replayed
        self._forget()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The numerical parameters of the given search space that can take more than one value."""
        return dict(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a trial's numerical parameters from the current distribution."""
        if self._transform is None:
            return {}
        with self._lock:
            self._replay(study)
            solution, run = self._cma.ask(trial.number), self._cma.run
        if run:
            study._storage.set_trial_system_attr(trial._trial_id, _RUN, run)
        return self._transform.untransform(solution)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter uniformly (in the logarithm, where its distribution says so)."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Note a result's place in the order of results, where Optuna ends the trial."""
        note_end(study, trial._trial_id)

    def used(self, study: Study) -> Used:
        """How many trials of a study CMA-ES has used."""
        with self._lock:
            self._replay(study)
            return Used(self._cma.ranked, self._cma.told) if self._space else Used(0, 0)

    def path(self, trials: Sequence[FrozenTrial]) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
        """How the distribution moved with each result: for plots, proposes nothing.

        Args:
            trials: of a study, whose values are maximised.

        Returns:
            For each finished trial, in the order in which they were told: its number, and then the
            restart (0 before the first), the mean (dim,) and the covariance (dim, dim) in the unit
            cube, of the distribution that the next trial would have been drawn from.
        """
        rows = []
        with self._lock:
            self._forget()
            for trial in sorted((t for t in trials if t.state in _ENDED), key=_place):
                self._tell(trial, -1.0)
                if self._space:
                    rows.append((trial.number, self._cma.run, *self._cma.distribution()))
            self._source = None  # the next proposal replays its own study
        return rows

    def mean(self, trials: Sequence[FrozenTrial], run: int) -> tuple[int, dict[str, Any]] | None:
        """The mean of a run's last distribution, as parameters of a trial.

        Args:
            trials: of a study, whose values are maximised.
            run: 0 before the first restart; see `run_of`.

        Returns:
            How many trials had ended when the distribution came to this mean, and the numerical
            parameters. None while no population was complete: the run is then where it began. (The
            update after which a run ends is not part of it.)
        """
        if self._transform is None:
            return None
        path = self.path(trials)
        # What a run begins with is where the first result found it: told, it moves with the last
        # one of a population.
        means = [(n + 1, mean) for n, (_, r, mean, _) in enumerate(path) if r == run]
        moved = [i for i in range(1, len(means)) if np.any(means[i][1] != means[i - 1][1])]
        if not moved:
            return None
        ended, mean = means[moved[-1]]
        params = self._transform.untransform(np.clip(mean, 0.0, 1.0))
        return ended, {
            name: round(params[name]) if isinstance(d, IntDistribution) else float(params[name])
            for name, d in self._space.items()
        }

    @staticmethod
    def run_of(trial: FrozenTrial) -> int:
        """The run that a trial was drawn in: 0 before the first restart."""
        return trial.system_attrs.get(_RUN, 0)

    @property
    def parameters(self) -> list[str]:
        """The searched parameters, in the order of the unit cube's dimensions."""
        return list(self._space)

    def _forget(self) -> None:
        self._ended: set[int] = set()  # identifiers of the trials that were told or passed over
        self._last = (0, -1)  # place of the latest of them
        self._before = 0  # how many of them had ended when fewer trials had begun
        if self._space:
            s = self._start
            start = Start(np.array(s["mean"]), s["sigma"], np.array(s["cov"])) if s else None
            self._cma = AsynchronousCMA(
                len(self._space), self._popsize, self._seed, self._restarts, start
            )

    def _replay(self, study: Study) -> None:
        """Tell the study's finished trials, from the first or from where the previous replay
        ended.
        """
        source = (study._storage, study._study_id)
        if source != self._source:
            self._forget()
            self._source = source
        # What has ended does not change any more: an identifier is enough to know it again.
        ended = study.get_trials(deepcopy=False, states=_ENDED)
        new = sorted((t for t in ended if t._trial_id not in self._ended), key=_place)
        if len(ended) - len(new) != len(self._ended) or (new and _place(new[0]) < self._last):
            self._forget()
            new = sorted(ended, key=_place)
        sign = 1.0 if study.direction.name == "MINIMIZE" else -1.0
        for trial in new:
            self._tell(trial, sign)

    def _tell(self, trial: FrozenTrial, sign: float) -> None:
        """Tell the next finished trial, in the order of `_place`."""
        place = _place(trial)
        if place[0] > self._last[0]:
            self._before = len(self._ended)
        self._last = place
        self._ended.add(trial._trial_id)
        result = self._result(trial, sign)
        if result is not None:
            self._cma.tell(result, in_flight=place[0] - self._before)

    def _result(self, trial: FrozenTrial, sign: float) -> Result | None:
        """What CMA-ES is told of a trial; None if nothing."""
        pruned = trial.state == TrialState.PRUNED
        if (
            trial.state == TrialState.FAIL
            or (pruned and not self._use_pruned)
            or not _within(trial, self._space)
        ):
            return None
        if self._transform is None:
            return None
        x = self._transform.transform({name: trial.params[name] for name in self._space})
        step = trial.last_step if pruned else None
        value = (
            trial.value
            if not pruned
            else trial.intermediate_values.get(-1 if step is None else step)
        )
        bounded = math.inf if value is None or math.isnan(value) else _bounded(sign * value)
        return Result(
            trial.number,
            trial.system_attrs.get(_RUN, 0),
            x,
            bounded,
            (-1 if step is None else step) if pruned else None,
        )


def note_end(study: Study, trial_id: int) -> None:
    """Note, with a trial that is about to end, how many trials have begun by now: its place in the
    order of results.

    Clocks of many machines are no order, and neither is the number of results: trials of one
    generation, all begun before any of them ends, are to have the same place whatever the number of
    workers. Trials of one place are ordered by their numbers. Every proposal begins a trial, so
    that what ends after a proposal was made comes after all that the proposal knew of, and what was
    told stays told. (Should another process propose between this note and the trial's end, the
    order holds all the same, and the next proposal replays the study.)

    Raises:
        UpdateFinishedTrialError: the trial had ended already.
    """
    study._storage.set_trial_system_attr(
        trial_id, _BEGUN, study._storage.get_n_trials(study._study_id)
    )


def warm_start(study: Study, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
    """What CMA-ES is to begin with, from the completed trials of another study.

    `promising` fits a normal distribution to the best trials that have the shared parameters within
    their ranges here; parameters that the source does not have keep the default mean and standard
    deviation.

    Returns:
        `parameters`, those that the source has; `trials`, how many there were; `mean` (dim),
        `sigma` and `cov` (dim x dim) in the unit cube. It can be stored as JSON without loss.

    Raises:
        UserError: no shared parameter, or fewer than `MIN_SOURCE` such trials.
    """
    space = _numerical(search_space)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    known = {name for trial in complete for name in trial.params}
    shared = {name: d for name, d in space.items() if name in known}
    if complete and not shared:
        raise UserError(
            f"study {study.study_name!r} has none of the searched parameters {', '.join(space)}; "
            f"it has {', '.join(sorted(known))}"
        )
    usable = [t for t in complete if _within(t, shared)]
    if len(usable) < MIN_SOURCE:
        raise UserError(
            f"--warm_start needs at least {MIN_SOURCE} finished trials within the searched "
            f"ranges; study {study.study_name!r} has {len(usable)}"
        )
    transform = _SearchSpaceTransform(shared, transform_0_1=True)
    sign = 1.0 if study.direction.name == "MINIMIZE" else -1.0
    source = promising(
        [
            (
                transform.transform({n: t.params[n] for n in shared}),
                _bounded(sign * (t.value or 0.0)),
            )
            for t in usable
        ]
    )
    mean, cov = np.full(len(space), 0.5), np.eye(len(space)) * (SIGMA / source.sigma) ** 2
    at = [i for i, name in enumerate(space) if name in shared]
    mean[at] = source.mean
    cov[np.ix_(at, at)] = source.cov
    return {
        "parameters": list(shared),
        "trials": len(usable),
        "mean": mean.tolist(),
        "sigma": source.sigma,
        "cov": cov.tolist(),
    }


def _numerical(search_space: dict[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    return {
        n: d
        for n, d in search_space.items()
        if not isinstance(d, CategoricalDistribution) and not d.single()
    }


def _within(trial: FrozenTrial, space: dict[str, BaseDistribution]) -> bool:
    """Whether a trial has all these parameters, and numbers in their ranges."""
    return all(
        name in trial.params and _is_number(trial.params[name]) and contains(d, trial.params[name])
        for name, d in space.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(trial: FrozenTrial) -> tuple[int, int]:
    # A trial without this note counts as ended before the next one began.
    return trial.system_attrs.get(_BEGUN, trial.number + 1), trial.number


def _bounded(value: float) -> float:
    return min(max(value, -1e300), 1e300)  # the range of a population's values has to be a number
