"""Search spaces as Optuna understands them."""

from collections.abc import Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from erl.search.samplers import make_sampler
from erl.search.space import Range
from erl.studies.configuration import EvolutionStudy

SearchSpace = dict[str, BaseDistribution]


def distributions(space: dict[str, Range]) -> SearchSpace:
    """A search space as Optuna understands it."""
    return {
        name: IntDistribution(int(r.low), int(r.high), log=r.log)
        if r.integer
        else FloatDistribution(float(r.low), float(r.high), log=r.log)
        for name, r in space.items()
    }


def categorical(values: Sequence[Any]) -> BaseDistribution:
    """A parameter that is one of these values."""
    return CategoricalDistribution(tuple(values))


def choices(distribution: BaseDistribution | None) -> tuple[Any, ...] | None:
    """The values of a parameter that is one of some; None for another one, or for none."""
    return getattr(distribution, "choices", None)


def integer(low: int, high: int) -> BaseDistribution:
    """A parameter that is a whole number."""
    return IntDistribution(low, high)


def sampler_of(config: EvolutionStudy, space: SearchSpace) -> Any:
    """The sampler of an evolution."""
    return make_sampler(
        config.sampler,
        space,
        config.seed,
        config.popsize,
        config.restarts,
        config.use_pruned,
        config.start,
    )
