"""Samplers of the outer evolution: random search, TPE, and a CMA-ES with restarts that uses every finished trial.

All of them are stateless: what they propose for a trial follows from the study's trials, the seed and the trial's
number alone. Any process can therefore continue a study, many can share one, and two workers that were given the
same seed do not propose the same parameters.
"""

import math
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from cmaes import CMA
from optuna import Study
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from erl.errors import UserError, nearest

SAMPLERS = ("Random", "Tpe", "Cmaes")

SIGMA = 1 / 6  # m ± 3 sigma is the unit cube: the optimum should lie in there (Hansen, 2016, arXiv 1604.00772, app. A)

# cmaes divides by the learning rate of its rank-mu update, which is zero with a single parent.
MIN_POPSIZE = 4

_FINISHED = "cmaes:finished"  # system attribute: a finished trial's place in the order of results
_RESTART = "cmaes:restart"  # system attribute: the restart that a trial was drawn in, absent before the first


def make_sampler(
    name: str, search_space: dict[str, BaseDistribution], seed: int, popsize: int | None = None
) -> BaseSampler:
    """The sampler called `name` in `SAMPLERS`, whatever the case of its letters.

    Args:
        name: "Random", "Tpe" or "Cmaes".
        search_space: parameter -> distribution; only CMA-ES needs to know it beforehand.
        seed: not negative.
        popsize: CMA-ES' population before its first restart; `generation_size` gives the default.

    Raises:
        UserError: for an unknown name or a population too small for CMA-ES.
    """
    name = _canonical(name)
    if name == "Cmaes":
        return CmaesSampler(search_space, seed, popsize)
    return SeededSampler(RandomSampler if name == "Random" else TPESampler, seed)


def generation_size(name: str, search_space: dict[str, BaseDistribution], popsize: int | None = None) -> int:
    """Number of trials to ask for before any of their results is needed.

    It is the population of CMA-ES, by default 4 + floor(3 ln d) for d numerical parameters (Hansen, 2016,
    arXiv 1604.00772, eq. 48), and the same number for the other samplers. A population that restarts have doubled is
    filled by several such generations.

    Raises:
        UserError: for an unknown name or a population too small.
    """
    smallest = MIN_POPSIZE if _canonical(name) == "Cmaes" else 1
    if popsize is None:
        return 4 + math.floor(3 * math.log(max(1, len(_numerical(search_space)))))
    if popsize < smallest:
        raise UserError(f"a population of {name} has at least {smallest} members, not {popsize}")
    return popsize


class SeededSampler(BaseSampler):
    """One of Optuna's samplers, with the random numbers of a trial drawn from the seed and the trial's number.

    Optuna's own keep a generator in the object: a second process with the same seed would propose the first one's
    trials again.

    Args:
        kind: a sampler class whose constructor takes `seed` and which keeps nothing else that matters.
        seed: not negative.
    """

    def __init__(self, kind: type[RandomSampler] | type[TPESampler], seed: int) -> None:
        self._kind, self._seed = kind, seed

    def _sampler(self, trial: FrozenTrial, param_name: str = "") -> BaseSampler:
        return self._kind(seed=draw_seed(self._seed, "trial", trial.number, param_name))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna's sampler infers it."""
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna's sampler does."""
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As Optuna's sampler does."""
        return self._sampler(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As Optuna's sampler does."""
        self._sampler(trial).after_trial(study, trial, state, values)


class CmaesSampler(BaseSampler):
    """CMA-ES (Hansen, 2016, arXiv 1604.00772) with IPOP restarts (Auger and Hansen, CEC 2005), any number of workers.

    Every ask replays the study: its COMPLETE trials, in the order in which they finished, are told to the `cmaes`
    package in chunks of the population size, and the trial is drawn from the distribution that results. If each
    generation is told before the next one is asked for, this is plain generational CMA-ES. With asynchronous workers
    a chunk also holds solutions from earlier distributions. They are told as they are: where they rank among the best
    they pull the mean to themselves and widen the distribution, and the negative weights of the worst are bounded by
    their Mahalanobis length (eq. 46), however far away they lie. Solutions that some other source proposed (a queue,
    another sampler) are told likewise; those of other samplers count as drawn before the first restart.

    Where `should_stop` of `cmaes` says that a run has converged or degenerated, the next one starts with twice the
    population, around a point drawn uniformly from the search space. Solutions drawn before a restart are not told
    after it, for they would lead the new run back to the old one's optimum.

    The search space is Optuna's transformed one (logarithms where a distribution asks for them, half a step of margin
    around stepped values), scaled to [0, 1] per parameter. The first mean is its centre, the first standard deviation
    `SIGMA`; solutions outside are drawn again, and clipped after 100 attempts. Stepped values are told as rounded.

    Not told are failed, pruned and running trials, and those that lack a parameter or left its range. Categorical
    parameters, and those outside of the search space, are drawn uniformly and independently.

    Args:
        search_space: parameter -> distribution.
        seed: not negative.
        popsize: population before the first restart, at least `MIN_POPSIZE`; `generation_size` gives the default.
        cache: keep the latest replay in the object and continue it where the study still begins with the trials that
            were told. It changes no proposal.

    Raises:
        UserError: for a population too small.
    """

    def __init__(
        self, search_space: dict[str, BaseDistribution], seed: int, popsize: int | None = None, cache: bool = True
    ) -> None:
        self._space = _numerical(search_space)
        self._popsize = generation_size("Cmaes", search_space, popsize)
        self._seed, self._cache = seed, cache
        self._independent = SeededSampler(RandomSampler, seed)
        self._transform = _SearchSpaceTransform(self._space, transform_0_1=True) if self._space else None
        self._lock = threading.Lock()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        # A pickled CMA differs from the original in its last bits, so a copy replays for itself.
        return {
            "search_space": self._space,
            "seed": self._seed,
            "popsize": self._popsize,
            "cache": self._cache,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
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
            self._cma.reseed_rng(draw_seed(self._seed, "trial", trial.number))
            solution, restart = self._cma.ask(), self._restart
        if restart:
            study._storage.set_trial_system_attr(trial._trial_id, _RESTART, restart)
        return self._transform.untransform(solution)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter uniformly (in the logarithm, where its distribution says so)."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Note a result's place in the order of results: the clocks of many machines are no order."""
        if state == TrialState.COMPLETE:
            place = 1 + max((_place(t) for t in _complete(study)), default=-1)
            study._storage.set_trial_system_attr(trial._trial_id, _FINISHED, place)

    def _forget(self) -> None:
        self._told: list[tuple] = []  # the trials that were told or passed over, as `_replay` identifies them
        self._begin(restart=0)

    def _begin(self, restart: int) -> None:
        dim = len(self._space)
        mean = np.full(dim, 0.5)
        if restart:
            mean = np.random.default_rng(draw_seed(self._seed, "restart", restart)).random(dim)
        self._restart = restart
        if dim:
            self._cma = CMA(
                mean=mean,
                sigma=SIGMA,
                bounds=np.tile([0.0, 1.0], (dim, 1)),
                population_size=self._popsize * 2**restart,
            )

    def _replay(self, study: Study) -> None:
        """Tell the study's finished trials, from the first or from where the previous replay ended."""
        sign = 1.0 if study.direction.name == "MINIMIZE" else -1.0
        trials = sorted(_complete(study), key=lambda t: (_place(t), t.number))
        keys = [(t.number, sign * _value(t), tuple(t.params.items())) for t in trials]
        if not self._cache or keys[: len(self._told)] != self._told:
            self._forget()
        chunk: list[tuple[int, np.ndarray, float]] = []
        for i in range(len(self._told), len(trials)):
            if not self._tellable(trials[i]):
                continue
            assert self._transform is not None
            chunk.append((trials[i].number, self._transform.transform(trials[i].params), keys[i][1]))
            if len(chunk) == self._cma.population_size:
                # Sorted, so that a generation's ties do not depend on which worker was faster.
                self._cma.tell([(x, y) for _, x, y in sorted(chunk, key=lambda c: c[0])])
                chunk, self._told = [], keys[: i + 1]
                if self._cma.should_stop():
                    self._begin(self._restart + 1)

    def _tellable(self, trial: FrozenTrial) -> bool:
        return trial.system_attrs.get(_RESTART, 0) >= self._restart and all(
            name in trial.params and d._contains(d.to_internal_repr(trial.params[name]))
            for name, d in self._space.items()
        )


def draw_seed(seed: int, role: str, index: int, param_name: str = "") -> int:
    """A 32-bit seed that belongs to one draw: of a trial ("trial", its number) or a mean ("restart", its index)."""
    words = [zlib.crc32(word.encode()) for word in (role, param_name)]
    return int(np.random.SeedSequence([seed, *words, index]).generate_state(1)[0])


def _canonical(name: str) -> str:
    by_fold = {known.casefold(): known for known in SAMPLERS}
    if name.casefold() not in by_fold:
        raise UserError(f"no sampler is called {name!r} (known: {', '.join(SAMPLERS)}){nearest(name, SAMPLERS)}")
    return by_fold[name.casefold()]


def _numerical(search_space: dict[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    return {n: d for n, d in search_space.items() if not isinstance(d, CategoricalDistribution) and not d.single()}


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _place(trial: FrozenTrial) -> int:
    # A trial that another sampler or an older program finished has only its number.
    return trial.system_attrs.get(_FINISHED, trial.number)


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return min(max(trial.value, -1e300), 1e300)  # the range of a population's values has to be a number
