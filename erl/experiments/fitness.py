"""Hyperparameters in, fitness out: for an optimiser that has a loop of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from erl.cli import Sink, params_text
from erl.errors import UserError
from erl.experiments.evolution_flags import EvolutionFlags
from erl.experiments.evolution_study import check_lifetimes, lifetimes, study_config
from erl.experiments.trials import group
from erl.experiments.workers import make_executor
from erl.lifetimes.living import COLUMNS, Cohort
from erl.search.space import search_space
from erl.studies.trials import RunningTrial


class Fitness:
    """The fitness of hyperparameters, as the trials of an evolution have it. Nothing is stored.

    Its worker processes start with the first call, and end with the block that it is used in:
    `with Fitness(flags, Display()) as fitness`.

    Args:
        flags: of the evolution, and its workers; those of trials, sampler and storage have no
            meaning.
        sink: where lines go: notes on the settings, and why lifetimes failed.

    Attributes:
        config: what the flags ask for.
        space: range of each searched parameter, by its name.

    Raises:
        UserError: the flags ask for what cannot be.
    """

    def __init__(self, flags: EvolutionFlags, sink: Sink) -> None:
        self.config = study_config(flags, sink)
        self.space = search_space(self.config)
        check_lifetimes(self.config)
        self._sink = sink
        (spec, *_) = lifetimes(self.config, {name: r.high for name, r in self.space.items()})
        self._executor = make_executor(flags, spec)
        self._executor.note = lambda line: sink.line(f"warning: {line}")

    def __enter__(self) -> "Fitness":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._executor.close()

    def params(self, point: Sequence[float]) -> dict[str, float]:
        """Parameters at a point of the unit cube (d,), in the order of `space`; a coordinate
        outside of 0 to 1 counts as the nearer end.
        """
        return {name: r.at(u) for (name, r), u in zip(self.space.items(), point, strict=True)}

    def __call__(self, population: Sequence[Mapping[str, float]]) -> list[float | None]:
        """Live the lifetimes of some trials, side by side.

        Args:
            population: the parameters of each trial, by their names.

        Returns:
            Of each trial its fitness, the mean over its lifetimes; None if one failed.

        Raises:
            UserError: parameters that are not those of `space`.
        """
        population = list(population)
        for params in population:
            if not isinstance(params, Mapping):
                raise UserError(f"a population is a list of parameters by name, not of {params!r}")
            if params.keys() != self.space.keys():
                raise UserError(
                    f"the searched parameters are {', '.join(self.space)}, not {', '.join(params)}"
                )
        trials = [
            RunningTrial(n, n, dict(params), {}, lifetimes(self.config, dict(params)), {})
            for n, params in enumerate(population)
        ]
        groups = group(trials, self._executor.workers)
        jobs = [Cohort(tuple(t.specs[i] for t, i in members)).job() for members in groups]
        for result in self._executor.run(jobs, COLUMNS, lambda board: None):
            if result.error is not None:
                raise result.error
            for (trial, index), record in zip(groups[result.index], result.value):
                trial.add(index, record)
        for trial in trials:
            if trial.error is not None:
                self._sink.line(f"{params_text(trial.params)} failed: {trial.error[0]}")
        return [trial.value(self.config.score) for trial in trials]
