"""CMA-ES for results that come one by one, late and noisy: overlapping populations, and restarts.

The update is that of the `cmaes` package (Hansen, 2016, arXiv 1604.00772). What differs is which
results each update uses. After as many results as a generation has, the update is told a population
of the best among the latest results, older ones included:

- The population grows with the length of a run, from one generation to several (`GROWTH`). Each
  result then takes part in several populations, and a noisy rank is averaged over them. To learn as
  much from a result as before, the learning rates c_1, c_mu, c_c and c_sigma are divided by the
  number of generations in a population.
- With many workers most results come from distributions of long ago. The population is then about
  a quarter of the number of trials in flight, though five generations at most, the best of a window
  of half that number: what is old and bad is left out, what is old and good pulls the mean to it.

A run of few workers begins as plain generational CMA-ES: its first populations are its generations.
`benchmarks/sampler.py` compares this with other ways to tell late results.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cmaes import CMA, get_warm_start_mgd

# m ± 3 sigma is the unit cube: the optimum should lie in there (Hansen, 2016, app. A).
SIGMA = 1 / 6

# A run that began with `SIGMA` ends where its standard deviations are below this share of the range
# in every parameter (others in proportion): for a spectral radius between 1e-4 and 1e2 that is 4 %,
# less than noisy returns could show.
TOLERANCE = 3e-3

# The population is one generation larger from each of these generations on: whenever the run has
# doubled its length.
GROWTH = (10, 20, 40, 80)


@dataclass(frozen=True)
class Start:
    """A distribution to begin with, in the unit cube.

    Attributes:
        mean: (dim,).
        sigma: standard deviation.
        cov: (dim, dim), positive definite; the distribution's covariance is sigma² cov.
    """

    mean: np.ndarray
    sigma: float
    cov: np.ndarray


@dataclass(frozen=True)
class Result:
    """A finished trial.

    Attributes:
        number: the trial's; orders equal results.
        run: the run that it was drawn in.
        x: in the unit cube, (dim,).
        value: lower is better.
        pruned_at: the step at which it was given up, -1 if before the first; None if it was
            completed. `value` is then what it had reached.
    """

    number: int
    run: int
    x: np.ndarray
    value: float
    pruned_at: int | None = None

    @property
    def rank(self) -> tuple[bool, int, float, int]:
        """Sorts results, the best first: pruned ones come after all completed ones, the
        longest-lived first.
        """
        return self.pruned_at is not None, -(self.pruned_at or 0), self.value, self.number


@dataclass(frozen=True)
class _Plan:
    """What a run begins with: results of one generation, sigma, and how many results it has at
    most.
    """

    popsize: int
    sigma: float
    large: bool
    limit: float


class AsynchronousCMA:
    """Runs of CMA-ES in the unit cube, minimising. It draws no random number that its arguments do
    not determine.

    Where a run has converged (`TOLERANCE`), stagnated or degenerated (`should_stop` of `cmaes`),
    the next one begins around a point drawn uniformly from the cube, with another population:

    - ipop: twice the one before (Auger and Hansen, CEC 2005);
    - bipop: either twice the largest so far, or a small one of popsize (large / (2 popsize))^(u²)
      members with the initial sigma times 10^(-2u'), u and u' uniform in [0, 1], and half of the
      results of the latest large run, to the end of a population. The one that had fewer results
      in all goes next, the large one first; the first run counts for neither (Hansen, GECCO BBOB
      2009);
    - none: the first run goes on for ever.

    Results that were drawn before a restart are not told after it, for they would lead the new run
    to the old optimum.

    Args:
        dim: number of parameters, at least 1.
        popsize: results of a generation before the first restart, at least 4.
        seed: not negative.
        restarts: one of `RESTARTS`.
        start: distribution that the first run begins with; by default the cube's centre and
            `SIGMA`.
    """

    def __init__(
        self, dim: int, popsize: int, seed: int, restarts: str = "ipop", start: Start | None = None
    ) -> None:
        self._dim, self._popsize, self._seed, self._restarts = dim, popsize, seed, restarts
        self._plans: list[_Plan] = []
        self._spent: list[int] = []  # results of each run
        self._cma: CMA
        self.ranked = 0  # results that were in the window of some population
        self._told: set[int] = set()
        self._begin(_Plan(popsize, SIGMA, True, math.inf), start)

    @property
    def run(self) -> int:
        """Index of the current run, 0 before the first restart."""
        return len(self._plans) - 1

    @property
    def told(self) -> int:
        """How many results the distribution has learned from: those in some population, the best of
        a window.
        """
        return len(self._told)

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (dim,) and covariance (dim, dim) that the next trial is drawn with."""
        return self._cma.mean.copy(), self._cma._sigma**2 * self._cma._C

    def ask(self, number: int) -> np.ndarray:
        """Draw the trial of this number from the current distribution, (dim,). It does not change
        the distribution.

        What lies outside the cube is drawn again, and clipped after 100 attempts.
        """
        self._cma.reseed_rng(draw_seed(self._seed, "trial", number))
        return self._cma.ask()

    def tell(self, result: Result, in_flight: int) -> None:
        """Take the next result, in the order in which they came.

        Args:
            result: of an earlier run it is passed over.
            in_flight: trials that were running when it came, itself included.
        """
        if result.run < self.run:
            return
        self._results.append(result)
        self._spent[-1] += 1
        plan = self._plans[-1]
        if self._spent[-1] % plan.popsize:
            return
        grown = 1 + sum(self._spent[-1] >= g * plan.popsize for g in GROWTH)
        overlap = min(max(grown, round(in_flight / (4 * plan.popsize))), 1 + len(GROWTH))
        if overlap * plan.popsize > self._cma.population_size:
            # The package has learning rates for one size of population: its paths begin anew, the
            # distribution stays.
            self._cma._eigen_decomposition()  # as drawing would have done: it rounds the covariance
            cov, sigma = self._cma._C, float(self._cma._sigma)
            self._cma = self._make(np.clip(self._cma.mean, 0.0, 1.0), sigma, cov, overlap)
        if len(self._results) < self._cma.population_size:
            return
        self._update(max(self._cma.population_size, in_flight // 2))
        deviations = self._cma._sigma * np.sqrt(np.diag(self._cma._C))
        stop = self._cma.should_stop() or bool(np.all(deviations < TOLERANCE * plan.sigma / SIGMA))
        if (stop or self._spent[-1] >= plan.limit) and self._restarts != "none":
            mean = np.random.default_rng(draw_seed(self._seed, "restart", self.run + 1)).random(
                self._dim
            )
            plan = self._next_plan()
            self._begin(plan, Start(mean, plan.sigma, np.eye(self._dim)))

    def _begin(self, plan: _Plan, start: Start | None) -> None:
        start = start or Start(np.full(self._dim, 0.5), plan.sigma, np.eye(self._dim))
        self._plans.append(plan)
        self._spent.append(0)
        self._results: list[Result] = []
        self._seen = 0  # how many of them have been in a window
        self._cma = self._make(start.mean, start.sigma, start.cov, 1)

    def _make(self, mean: np.ndarray, sigma: float, cov: np.ndarray, overlap: int) -> CMA:
        bounds = np.tile([0.0, 1.0], (self._dim, 1))
        cma = CMA(mean, sigma, bounds, population_size=overlap * self._plans[-1].popsize, cov=cov)
        for rate in ("_c1", "_cmu", "_cc", "_c_sigma"):
            setattr(cma, rate, getattr(cma, rate) / overlap)
        return cma

    def _update(self, window: int) -> None:
        """Tell the best of the latest results, `window` of them or as many as there are."""
        latest = self._results[-window:]
        self.ranked += min(len(latest), len(self._results) - self._seen)
        self._seen = len(self._results)
        best = sorted(latest, key=lambda r: r.rank)[: self._cma.population_size]
        self._told |= {result.number for result in best}
        # The package sorts by value, and keeps the order of equals: pruned ones get the worst value
        # that is known.
        worst = max((r.value for r in best if r.pruned_at is None), default=0.0)
        self._cma.tell([(r.x, r.value if r.pruned_at is None else worst) for r in best])

    def _next_plan(self) -> _Plan:
        runs = list(zip(self._plans, self._spent))[1:]
        large = [(plan, spent) for plan, spent in runs if plan.large]
        doubled = _Plan(self._popsize * 2 ** (len(large) + 1), SIGMA, True, math.inf)
        if self._restarts == "ipop" or not large:
            return doubled
        if sum(spent for _, spent in large) <= sum(spent for plan, spent in runs if not plan.large):
            return doubled
        u, v = np.random.default_rng(draw_seed(self._seed, "regime", self.run + 1)).random(2)
        plan, spent = large[-1]
        popsize = math.floor(self._popsize * (plan.popsize / (2 * self._popsize)) ** (u**2))
        return _Plan(popsize, SIGMA * 10 ** (-2 * v), False, spent / 2)


def draw_seed(seed: int, role: str, index: int, param_name: str = "") -> int:
    """A 32-bit seed that belongs to one draw: of a trial ("trial", its number) or for a run
    ("restart", its index).
    """
    words = [zlib.crc32(word.encode()) for word in (role, param_name)]
    return int(np.random.SeedSequence([seed, *words, index]).generate_state(1)[0])


def promising(solutions: Sequence[tuple[np.ndarray, float]]) -> Start:
    """The distribution of the best solutions of a similar problem (Nomura et al., AAAI 2021, arXiv
    2012.06932).

    It is fitted to the best tenth, or to dim + 1 solutions if those are more (though not to more
    than half of all).

    Args:
        solutions: points of the unit cube, (dim,), and values, lower is better; at least two.
    """
    n, dim = len(solutions), len(solutions[0][0])
    best = max(1, n // 10, min(n // 2, dim + 1))
    # The package rounds the number down again.
    mean, sigma, cov = get_warm_start_mgd(list(solutions), gamma=(best + 0.5) / n)
    return Start(np.clip(mean, 0.0, 1.0), float(sigma), cov)
