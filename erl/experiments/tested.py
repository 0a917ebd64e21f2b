"""What a test tests: the winner of an evolution's study, an entry of the catalogue, or the best
trial of a journal of ER-MRL. `load_best` finds it.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erl.cli import Sink, command, params_text, plural
from erl.errors import UserError
from erl.experiments.comparison_flags import (
    UNITS,
    ComparisonConfig,
    ComparisonFlags,
    GeneralizationComparisonConfig,
)
from erl.experiments.flags import read_settings
from erl.learners import canonical_name, get_learner, published_settings, resolve_engine
from erl.search.space import ER_MRL_BIAS, LEARNER, is_searched, make_context, parse_evolve
from erl.studies.catalogue import ANY, find_evolved
from erl.studies.configuration import EvolutionStudy, FinalsStudy
from erl.studies.storage import DEFAULT_STORAGE, open_storage, study_names
from erl.studies.study import Study
from erl.studies.winner import Finalist, chosen
from erl.worlds.arguments import Arguments, parse_arguments
from erl.worlds.task_sets import TASK_SETS, load_task_set, load_task_sets
from erl.worlds.tasks import bare_name


@dataclass(frozen=True)
class Best:
    """What is tested.

    Attributes:
        name: of the evolution's study, or what the catalogue calls it.
        stem: what the names of its tests begin with.
        title: what its hyperparameters are called in a line.
        evolution: the configuration.
        winner: what the evolution hands over, see `chosen`; its parameters are numbers.
        study: the evolution's; None for the catalogue, and for what another program made.
    """

    name: str
    stem: str
    title: str
    evolution: EvolutionStudy
    winner: Finalist
    study: Study | None = None


def load_best(flags: ComparisonFlags, sink: Sink) -> Best:
    """What the flags ask for.

    Raises:
        UserError: no such study, or none of its trials succeeded.
    """
    best = _load_evolved(flags, sink) if flags.evolved else _load_study(flags, sink)
    if flags.learner is not None:
        best = _for_learner(best, flags.learner, flags, sink)
    # What was evolved with it keeps the settings that it had.
    if flags.published_code and not best.evolution.published_code:
        settings = published_settings(best.evolution.learner) | best.evolution.learner_config
        evolution = replace(best.evolution, published_code=True, learner_config=settings)
        best = replace(best, evolution=evolution)
    return best


def _for_learner(best: Best, name: str, flags: ComparisonFlags, sink: Sink) -> Best:
    """The same reservoirs for another learner, which has its own settings, or those of a file.

    Args:
        best: what is tested.
        name: of the learner.
        flags: of the test, which may name its engine and a file of its settings.
        sink: where lines go.

    Raises:
        UserError: no such learner, there are no reservoirs, or the file cannot be used.
    """
    learner, evolution = canonical_name(name), best.evolution
    if learner == evolution.learner:
        if flags.learner_config is not None:
            raise UserError(
                f"--learner_config: {best.name} was evolved with {learner}, and its test has the "
                f"settings of the evolution"
            )
        return best
    if evolution.nb_res == 0:
        raise UserError(
            f"--learner: {best.name} evolved settings of {evolution.learner}, which mean nothing "
            f"to {learner}"
        )
    engine = flags.engine or "auto"
    get_learner(learner, engine)  # refuses an unknown one
    sink.line(f"agents of {learner}, with what was evolved for {evolution.learner}")
    env_ids = evolution.environments
    if isinstance(flags, GeneralizationComparisonConfig):
        env_ids = (flags.env_id,)
    settings, env_kwargs = read_settings(flags.learner_config, None, env_ids, sink.line, learner)
    if env_kwargs:
        raise UserError(
            f"{flags.learner_config} has env_kwargs, and a test takes none from a file: leave "
            f"them out"
        )
    evolution = replace(
        evolution,
        learner=learner,
        learner_config=settings,
        engine=resolve_engine(learner, engine, settings, sink.line),
    )
    params = {k: v for k, v in best.winner.params.items() if not k.startswith(LEARNER)}
    winner = replace(best.winner, params=params)
    return replace(best, stem=f"{best.stem}_for_{learner}", evolution=evolution, winner=winner)


def _load_evolved(flags: ComparisonFlags, sink: Sink) -> Best:
    """An entry of the catalogue.

    Raises:
        UserError: there is none, or flags say something else of its evolution.
    """
    if flags.h_test != ComparisonFlags.h_test:
        raise UserError(
            f"--h_test {flags.h_test} names an evolution of yours, and --evolved takes one of the "
            f"catalogue: leave one out"
        )
    entry = find_evolved(flags.study or ANY, flags.evolved_in, flag="--study")
    evolution = replace(entry.evolution, published_code=flags.published_code)
    name = f"{ANY}_{entry.name}"
    evolution = _with_env_kwargs(flags, name, evolution, guessed=False)
    _check_stored(flags, name, evolution)
    _say_reservoirs(flags, name, evolution, False, sink)
    values = params_text(entry.winner.params)
    sink.line(f"{entry.title}: evolved in {entry.where}, {entry.winner.reached}, {values}")
    if entry.remark:
        sink.line(f"note: {entry.remark}")
    return Best(name, name, entry.title, evolution, entry.winner)


def _load_study(flags: ComparisonFlags, sink: Sink) -> Best:
    """What an evolution hands over.

    Raises:
        UserError: no such study, or none of its trials succeeded.
    """
    name = flags.evolution_name
    address = _address(flags, name, sink)
    study = Study(address, _same_but_reservoirs(address, name, flags))
    name = study.name
    study.check_maximised()
    evolution = study.config
    if evolution is not None and not isinstance(evolution, EvolutionStudy):
        kind = "the finals" if isinstance(evolution, FinalsStudy) else f"a {evolution.title}"
        raise UserError(f"{name!r} is {kind}; name the study of the evolution")
    choice = chosen(study)
    if choice is None:
        raise UserError(f"study {name!r} has no successful trial yet")
    winner = choice.winner
    params = _numbers(name, winner.params)
    guessed = evolution is None
    if evolution is None:
        sink.line(
            f"{name} stores no configuration (it is a study of ER-MRL): the flags of this command "
            f"and the defaults of ER-MRL are used"
        )
        evolution = _guess_config(flags, name, params)
    else:
        _check_stored(flags, name, evolution)
    evolution = _with_env_kwargs(flags, name, evolution, guessed)
    try:
        make_context(evolution, params)
    except KeyError:
        raise UserError(
            f"study {name!r} did not evolve a reservoir: its parameters are "
            f"{', '.join(winner.params) or 'none'}"
        ) from None
    _say_reservoirs(flags, name, evolution, guessed, sink)
    trials = len(study.trials("COMPLETE", "PRUNED", "FAIL"))
    values = params_text(params)
    of = f"winner of {len(choice.finalists)} finalists" if choice.finalists else "best"
    sink.line(f"{name}: {of} of {trials} trials is {winner.title}, {winner.reached}, {values}")
    if (more := study.open()) and not guessed:
        sink.line(f"{name} has not ended: {plural(more, 'trial')} more may be better")
    stem = f"{name}_{winner.slug}"
    winner = replace(winner, params=params)
    return Best(name, stem, winner.title, evolution, winner, None if guessed else study)


def _check_fixed_iss(flags: ComparisonFlags, name: str, evolution: EvolutionStudy) -> None:
    """Refuse a flag that says something else of the input scaling than what was searched."""
    if flags.fixed_iss not in (None, evolution.fixed_iss):
        searched = "did not search" if evolution.fixed_iss else "searched"
        raise UserError(
            f"{name} {searched} the input scaling, and --fixed_iss {flags.fixed_iss} contradicts it"
        )


def _check_stored(flags: ComparisonFlags, name: str, evolution: EvolutionStudy) -> None:
    """Refuse flags that say something else of the evolution than what is stored of it."""
    _check_fixed_iss(flags, name, evolution)
    names = {"units": "units", "skip_c": "skip_c", "HP_training_steps": "training_steps"}
    if not isinstance(flags, GeneralizationComparisonConfig):
        names |= {"del_obs": "del_obs", "env_id": "env_id"}
    for flag, name_stored in names.items():
        given, stored = getattr(flags, flag, None), getattr(evolution, name_stored)
        if given is not None and flag in parse_evolve(evolution.evolve):
            raise UserError(f"{name} searched {flag}, and its test has what was found, not {given}")
        if given is not None and stored is not None and given != stored:
            raise UserError(
                f"{name} was evolved with {flag} {stored}, and its test uses the same, not {given}"
            )


def _with_env_kwargs(
    flags: ComparisonFlags, name: str, evolution: EvolutionStudy, guessed: bool
) -> EvolutionStudy:
    """A configuration with the arguments of the environment that the flags give, where it was
    guessed. A test of generalisation has arguments of its own.

    Raises:
        UserError: it is stored, and has others.
    """
    if isinstance(flags, GeneralizationComparisonConfig) or flags.env_kwargs is None:
        return evolution
    given = parse_arguments(flags.env_kwargs)
    if not guessed and given != evolution.env_kwargs:
        raise UserError(
            f"{name} was evolved with env_kwargs {Arguments(evolution.env_kwargs)}, and its test "
            f"uses the same, not {given}: {command('test-generalization')} tests others"
        )
    return replace(evolution, env_kwargs=dict(given))


def _address(flags: ComparisonFlags, name: str, sink: Sink) -> str:
    """The storage of the evolved study: ER-MRL's journal of this name, where the default storage
    has no such study.
    """
    journal = f"optuna-journal_{name}.log"
    if flags.storage != DEFAULT_STORAGE or not os.path.exists(journal):
        return flags.storage
    if Path("studies.db").exists() and name in study_names(open_storage(DEFAULT_STORAGE)):
        return flags.storage
    sink.line(f"reading ER-MRL's journal {journal}")
    return journal


def _numbers(name: str, params: dict[str, Any]) -> dict[str, float]:
    """Hyperparameters of a trial that are numbers, of whatever distribution.

    Raises:
        UserError: one that describes a reservoir or a setting is none.
    """
    numbers = {}
    for key, value in params.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[key] = value
        elif is_searched(key):
            raise UserError(f"study {name!r} has {key} = {value!r}, which is not a number")
    return numbers


def _guess_config(flags: ComparisonFlags, name: str, params: dict[str, float]) -> EvolutionStudy:
    """The configuration of a study that stores none, from the flags, its name and the parameters
    of a trial.
    """
    # ER-MRL's names of studies begin with the environment, or with a set of environments.
    named = re.match(r".+?-v\d+(?=_)", name)
    env_id = named.group() if flags.study is not None and named else flags.evolved_in
    # Its version may be gone, as LunarLander-v2 is: then the flag names another one. In a test of
    # generalisation it names the environment of the test.
    if isinstance(flags, ComparisonConfig) and bare_name(flags.env_id or "") == bare_name(env_id):
        env_id = flags.evolved_in
    several = [k for k in params if re.fullmatch(r"sr_[0-9]+", k)]
    evolution = EvolutionStudy(
        env_id=env_id,
        engine="cohort",
        units=UNITS if flags.units is None else flags.units,
        del_obs=bool(flags.del_obs),
        skip_c=bool(flags.skip_c),
        feed_action=False,  # its code never did
        fixed_iss=not any(k.startswith("iss") for k in params),
        nb_res=len(several) or None,
        bias=ER_MRL_BIAS["bias"],
        bias_connectivity=ER_MRL_BIAS["bias_connectivity"],
    )
    if isinstance(flags, GeneralizationComparisonConfig) and not named:
        sets = load_task_sets(TASK_SETS).sets
        evolved = next((s for s in sets if re.match(rf"{s}_[0-9]+_", name)), flags.HP_env_type)
        evolution = replace(evolution, env_ids=load_task_set(evolved).env_ids)
    _check_fixed_iss(flags, name, evolution)
    return evolution


def _say_reservoirs(
    flags: ComparisonFlags, name: str, evolution: EvolutionStudy, guessed: bool, sink: Sink
) -> None:
    """Say that the study has another number of reservoirs than the command."""
    has = 1 if evolution.nb_res is None else evolution.nb_res
    asked = 1 if flags.reservoirs is None else flags.reservoirs
    if has != asked:
        # Beside --study the number may be no more than the flag's default.
        instead = f", and not {asked}" if flags.study is None else ""
        source = "its parameters say" if guessed else "its own configuration says"
        sink.line(f"{name} has {plural(has, 'reservoir')}, as {source}{instead}")


def _same_but_reservoirs(address: str, name: str, flags: ComparisonFlags) -> str:
    """The study's name; where there is none of this name, that of the one which differs in the
    number of reservoirs alone.
    """
    if flags.study is not None or flags.reservoirs is None:
        return name
    names = study_names(open_storage(address))
    head, _, tail = name.rpartition(f"_{flags.reservoirs}_{flags.h_test}_")
    similar = [
        n
        for n in names
        if re.fullmatch(f"{re.escape(head)}_[0-9]+_{re.escape(flags.h_test)}_{re.escape(tail)}", n)
    ]
    return similar[0] if name not in names and len(similar) == 1 else name
