"""Samplers of Optuna's and of users', made anew for each trial, so that what they propose follows
from the study's trials, the seed and the trial's number alone.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from erl.errors import RAISED, UserError
from erl.search.asynchronous_cma import draw_seed
from erl.worlds.own_context import class_of_user


class SeededSampler(BaseSampler):
    """One of Optuna's samplers, with the random numbers of a trial drawn from the seed and the
    trial's number.

    Optuna's own keep a generator in the object: a second process with the same seed would propose
    the first one's trials again.

    Args:
        kind: a sampler class whose constructor takes `seed` and which keeps nothing else that
            matters.
        seed: not negative.
    """

    def __init__(self, kind: Callable[..., BaseSampler], seed: int) -> None:
        self._kind, self._seed = kind, seed

    def _ask(
        self, trial: FrozenTrial, question: Callable[[BaseSampler], Any], param_name: str = ""
    ) -> Any:
        """What the sampler of a trial, or of one of its parameters, answers."""
        seed = draw_seed(self._seed, "trial", trial.number, param_name)
        return question(self._kind(seed=seed))

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As the sampler infers it."""
        return self._ask(trial, lambda s: s.infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return self._ask(trial, lambda s: s.sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """As the sampler does."""
        wanted = (study, trial, param_name, param_distribution)
        return self._ask(trial, lambda s: s.sample_independent(*wanted), param_name)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler does."""
        self._ask(trial, lambda s: s.after_trial(study, trial, state, values))


class OwnSampler(SeededSampler):
    """A sampler class of the user's, or another one of Optuna's.

    Each trial is proposed by an object of its own, which Optuna asks as usual: `before_trial`,
    `infer_relative_search_space` and `sample_relative`, then `sample_independent` for each
    parameter that is left. What the class remembers is therefore in the study.

    Args:
        name: `MODULE:CLASS`.
        seed: not negative; an object's own seed follows from it and the trial's number.

    Raises:
        UserError: see `sampler_name`; or the class fails, or proposes a parameter out of its range.
    """

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(own_kind(name), seed)
        self._name = name
        self._made: tuple[int, BaseSampler] | None = None  # number of a trial, and its object

    def _ask(
        self, trial: FrozenTrial, question: Callable[[BaseSampler], Any], param_name: str = ""
    ) -> Any:
        """The same, of one object for all parameters of a trial. What it raises is for the user."""
        try:
            if self._made is None or self._made[0] != trial.number:
                seed = draw_seed(self._seed, "trial", trial.number, "")
                self._made = trial.number, self._kind(seed=seed)
            return question(self._made[1])
        except RAISED as e:
            raise UserError(
                f"the sampler {self._name} failed to propose: {type(e).__name__}: {e}"
            ) from e

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the trial's sampler, and let it begin."""
        self._made = None  # one that is proposed again is proposed the same
        self._ask(trial, lambda s: s.before_trial(study, trial))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the user's sampler does. Optuna itself would draw a number that is out of range anew,
        by `sample_independent`.
        """
        found = super().sample_relative(study, trial, search_space)
        if not isinstance(found, Mapping) or not found.keys() <= search_space.keys():
            raise UserError(
                f"the sampler {self._name} proposed {found}, where values of "
                f"{', '.join(search_space) or 'no parameter'} were asked for"
            )
        return {name: self._valid(name, search_space[name], value) for name, value in found.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """As the user's sampler does. Optuna itself would store a number out of range."""
        value = super().sample_independent(study, trial, param_name, param_distribution)
        return self._valid(param_name, param_distribution, value)

    def _valid(self, param_name: str, distribution: BaseDistribution, value: Any) -> Any:
        """The value, or the end of the range where rounding put it beyond that."""
        if contains(distribution, value):
            return value
        for name in ("low", "high"):
            end = getattr(distribution, name, None)
            if isinstance(value, Real) and end is not None and math.isclose(value, end):
                return end
        raise UserError(
            f"the sampler {self._name} proposed {param_name} = {value}, which is not in "
            f"{distribution}"
        )


def own_kind(name: str) -> Callable[..., BaseSampler]:
    """What makes samplers of a user's class, `MODULE:CLASS`, and takes `seed`.

    Raises:
        UserError: the class cannot be imported or made, or is no sampler.
    """
    kind = class_of_user(name, "sampler")
    if not (isinstance(kind, type) and issubclass(kind, BaseSampler)):
        raise UserError(
            f"the sampler {name} is no sampler of Optuna: it must be a class that is derived from "
            f"optuna.samplers.BaseSampler"
        )
    try:
        parameters = inspect.signature(kind).parameters.values()
        seeded = any(p.name == "seed" or p.kind == p.VAR_KEYWORD for p in parameters)
        make: Callable[..., BaseSampler] = kind if seeded else lambda seed: kind()
        make(seed=0)
    except RAISED as e:
        raise UserError(
            f"the sampler {name} cannot be made: {type(e).__name__}: {e}; its constructor is given "
            f"nothing but a seed"
        ) from e
    return make


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution has this value."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):  # no number, NaN, or zero on a logarithmic scale
        return False
