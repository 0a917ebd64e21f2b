"""What an evolution is: its configuration, as the flags ask for it, and the lifetimes of a trial.

All trials share their seeds: two trials differ in their hyperparameters only.
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from erl.cli import Sink
from erl.errors import UserError
from erl.experiments.evolution_flags import EvolutionConfig, EvolutionFlags
from erl.experiments.flags import parse_settings, read_settings
from erl.learners import canonical_name, published_settings, resolve_engine
from erl.lifetimes.living import check
from erl.search.pruning import check_pruner
from erl.search.samplers import generation_size, sampler_name, warm_start
from erl.search.space import (
    ER_MRL_BIAS,
    NO_BIAS,
    learner_settings,
    make_context,
    parse_evolve,
    search_space,
)
from erl.studies.configuration import EvolutionStudy
from erl.studies.distributions import SearchSpace, distributions
from erl.studies.storage import place_of, shown
from erl.studies.study import Study
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Phase, Seeds
from erl.worlds.tasks import Task

# Where in each range a value is tried too, beside both ends: a point inside of it that is no whole
# number, at the golden section.
INSIDE = 0.6180339887498949


def lifetimes(
    config: EvolutionStudy,
    params: dict[str, float],
    phase: Phase = "evolution",
    seeds: Iterable[int] | None = None,
) -> list[LifetimeSpec]:
    """The lifetimes of a trial: one for each environment and seed.

    Args:
        config: of the evolution.
        params: the trial's.
        phase: whose seeds they have.
        seeds: their indices; by default those of the evolution.
    """
    learner = LearnerSpec(config.learner, learner_settings(config, params), config.engine)
    indices = tuple(range(config.nb_seeds) if seeds is None else seeds)
    return [
        LifetimeSpec(
            task=Task(env_id, config.del_obs, kwargs=config.env_kwargs),
            learner=learner,
            steps=config.training_steps,
            seeds=Seeds.derive(config.seed, phase, i, config.published_code),
            context=make_context(config, params),
            ep_eval=config.ep_eval,
            fitness=config.fitness,
        )
        for env_id in config.environments
        for i in indices
    ]


def study_config(flags: EvolutionFlags, sink: Sink) -> EvolutionStudy:
    """What the flags ask for, as a study stores it: names in their proper spelling, the learner's
    settings in full, `auto` resolved.
    """
    known = {f.name for f in fields(EvolutionStudy)}
    asked: dict[str, Any] = {k: v for k, v in vars(flags).items() if k in known}
    asked |= {"learner": canonical_name(flags.learner), "learner_config": {}}
    settings, env_kwargs = read_settings(
        flags.learner_config,
        flags.env_kwargs,
        flags.environments(),
        sink.line,
        asked["learner"],
    )
    if flags.published_code:
        settings = published_settings(asked["learner"]) | settings
    asked |= {"nb_res": flags.reservoirs(), **bias(flags), **flags.tasks(env_kwargs)}
    if isinstance(flags, EvolutionConfig):
        asked["context_settings"] = parse_settings(flags.context_set, "--context_set") or None
    config = EvolutionStudy(**asked)
    if env_kwargs and config.references is not None:
        sink.line(
            "scores use the random and target returns of environments without env_kwargs, unless "
            "--sets declares others"
        )
    source = flags.warm_start
    if source is not None and "#" in source:
        _, name = place_of(source, flags.storage)
        if name != source:  # a password has no place in a study
            source = f"{shown(source.removesuffix(f'#{name}'))}#{name}"
    space = distributions(search_space(config))
    popsize = generation_size(flags.sampler, space, flags.popsize)
    return replace(
        config,
        learner_config=settings,
        popsize=popsize,
        sampler=sampler_name(flags.sampler),
        warm_start=source,
        engine=resolve_engine(config.learner, config.engine, settings, sink.line),
    )


def bias(flags: EvolutionFlags) -> dict[str, float]:
    """The bias of all reservoirs, where it is not searched: fields of `EvolutionStudy`.

    Raises:
        UserError: a bias that is given and searched, or only the share of neurons that have one.
    """
    default = ER_MRL_BIAS if flags.published_code else NO_BIAS
    given = {name: getattr(flags, name) for name in default}
    found = {name: default[name] if value is None else value for name, value in given.items()}
    searched = parse_evolve(flags.evolve)
    for name, value in given.items():
        if name in searched and value is not None:
            raise UserError(f"--{name} {value} is one value, but --evolve {name} searches it")
    share = given["bias_connectivity"] is not None or "bias_connectivity" in searched
    if share and "bias" not in searched and found["bias"] == 0:
        raise UserError("a bias_connectivity needs a bias: --bias SCALE, or --evolve bias")
    return found


def _refuse_idle(flags: EvolutionFlags, config: EvolutionStudy) -> None:
    """Refuse flags of the search that would change nothing."""
    idle: dict[str, str] = {}
    if config.fixed_iss:
        why = "the input scaling is 1, unless --fixed_iss False searches it"
        idle |= {"min_iss": why, "max_iss": why}
    if "units" in parse_evolve(config.evolve):
        idle["units"] = "--evolve units searches them"
    if config.pruner == "none":
        idle["use_pruned"] = "nothing is pruned without --pruner"
    if config.sampler != "Cmaes":
        why = f"it is for --sampler Cmaes, not for {config.sampler}"
        idle |= {"restarts": why, "use_pruned": why}
    for field in fields(flags):
        value = getattr(flags, field.name)
        if field.name in idle and value != field.default:
            raise UserError(f"--{field.name} {value} would change nothing: {idle[field.name]}")


def continued(
    flags: EvolutionFlags, before: Study | None, config: EvolutionStudy, space: SearchSpace
) -> EvolutionStudy:
    """The configuration as it is if the study exists already: with its engine and its bias, unless
    the flags name one, and its warm start.

    Args:
        flags: of the command.
        before: the study as it is; None for a new one.
        config: that the flags ask for.
        space: what is searched.

    Raises:
        UserError: a warm start that cannot be, or a new study with flags that would change nothing.
    """
    if flags.warm_start is not None and config.sampler != "Cmaes":
        raise UserError(f"--warm_start works only with --sampler Cmaes, not with {config.sampler}")
    stored = None if before is None else before.config
    if isinstance(stored, EvolutionStudy):
        # Another learner is refused, and need not know this engine.
        same_engine = flags.engine == "auto" and stored.learner == config.learner
        engine = stored.engine if same_engine else config.engine
        # What was made when another bias was the default keeps it.
        same = {name: getattr(stored, name) for name in NO_BIAS if getattr(flags, name) is None}
        if config.nb_res == 0:  # it means nothing there, and the scripts have different defaults
            same["fixed_iss"] = stored.fixed_iss
        return replace(config, engine=engine, start=stored.start, **same)
    # A study that an earlier version began with them goes on.
    _refuse_idle(flags, config)
    if flags.warm_start is None:
        return config
    storage, source = place_of(flags.warm_start, flags.storage)
    if not source:
        raise UserError(
            f"--warm_start {flags.warm_start!r} names no study: write STUDY or STORAGE#STUDY"
        )
    start = warm_start(Study(storage, source).optuna, space)
    return replace(config, start=start)


def check_lifetimes(config: EvolutionStudy) -> None:
    """A trial run of the constructors, at both ends of every range, and inside of those that are
    not of whole numbers: complaints come before anything is written.
    """
    ranges = search_space(config)
    _check_trial(config, {name: r.low for name, r in ranges.items()})
    _check_trial(config, {name: r.high for name, r in ranges.items()})
    # Bounds of 1e2 and 1e3 suit a whole number, and what is proposed between them does not.
    inside = {
        name: r.low if r.integer else r.low + (r.high - r.low) * INSIDE
        for name, r in ranges.items()
    }
    try:
        _check_trial(config, inside)
    except UserError as e:
        if "whole number" not in str(e):
            raise
        raise UserError(
            f"{e}; --evolve searches whole numbers where both bounds are digits alone, as in 64:512"
        ) from e


def _check_trial(config: EvolutionStudy, params: dict[str, float]) -> None:
    """Raise a UserError if a trial of these parameters cannot be lived."""
    specs = lifetimes(config, params)
    check_pruner(config.pruner, len(specs))
    for spec in specs[:: config.nb_seeds]:
        check(spec)
