"""Search spaces as Optuna understands them."""

from collections.abc import Sequence
from typing import Any

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from erl.search.space import Range

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


def integer(low: int, high: int) -> BaseDistribution:
    """A parameter that is a whole number."""
    return IntDistribution(low, high)


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """A parameter's value, which the trial's sampler proposes unless the trial has one."""
    match distribution:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case _:
            raise ValueError(f"no parameter is proposed from a {type(distribution).__name__}")
