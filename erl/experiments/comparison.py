"""The test phase: agents with the best evolved reservoirs against agents without, on seeds that
selection never saw.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from erl.cli import Sink, command, plural
from erl.errors import UserError
from erl.experiments.arms import arm_lifetime, arm_names, control_names
from erl.experiments.campaign import (
    Campaign,
    GivenTrials,
    Progress,
    agent_cohort,
    make_executor,
    outcome,
    say_where,
    steps_in_checkpoints,
)
from erl.experiments.comparison_flags import (
    DEFAULT_STEPS,
    UNITS,
    ComparisonConfig,
    ComparisonFlags,
    GeneralizationComparisonConfig,
    MultiComparisonConfig,
)
from erl.experiments.display import DashboardNotes
from erl.experiments.evolution import test_command
from erl.experiments.films import film_agents, film_commands, model_name, say_film
from erl.experiments.flags import MAX_SEED, more_seeds, seed_indices, study_name, thousands
from erl.experiments.forecast import (
    Outlook,
    Pace,
    announce,
    check_at_once,
    dry_run,
    pace_of,
    steps_of,
)
from erl.experiments.trials import Member
from erl.files import folder_name
from erl.learners import canonical_name, get_learner, published_settings, resolve_engine
from erl.lifetimes.living import Cohort, check
from erl.search.space import ER_MRL_BIAS, LEARNER, NO_BIAS, is_searched, make_context
from erl.studies.catalogue import ANY, find_evolved
from erl.studies.configuration import EvolutionStudy, FinalsStudy, TestStudy, evolved_arm
from erl.studies.distributions import categorical, integer
from erl.studies.storage import DEFAULT_STORAGE, open_storage, shown, study_names
from erl.studies.study import Study, check_study, stored_config
from erl.studies.tables import agent_tables, lines
from erl.studies.trials import RunningTrial, why_failed
from erl.studies.winner import Finalist, chosen, reached_by, store_tested
from erl.worlds.arguments import Arguments, parse_arguments
from erl.worlds.specification import LifetimeSpec
from erl.worlds.task_sets import TASK_SETS, load_task_set, load_task_sets
from erl.worlds.tasks import bare_name

__all__ = [
    "ComparisonConfig",
    "GeneralizationComparisonConfig",
    "MultiComparisonConfig",
    "compare",
]


# Characters of arguments in a name, which becomes the name of folders too.
MAX_SLUG = 60


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
    best = load_evolved(flags, sink) if flags.evolved else load_study(flags, sink)
    if flags.learner is not None:
        best = for_learner(best, flags.learner, flags.engine, sink)
    if flags.published_code:
        settings = published_settings(best.evolution.learner) | best.evolution.learner_config
        evolution = replace(best.evolution, published_code=True, learner_config=settings)
        best = replace(best, evolution=evolution)
    return best


def for_learner(best: Best, name: str, engine: str | None, sink: Sink) -> Best:
    """The same reservoirs for another learner, which has its own settings.

    Args:
        best: what is tested.
        name: of the learner.
        engine: that the flags ask for.
        sink: where a line goes.

    Raises:
        UserError: no such learner, or there are no reservoirs.
    """
    learner, evolution = canonical_name(name), best.evolution
    if learner == evolution.learner:
        return best
    if evolution.nb_res == 0:
        raise UserError(
            f"--learner: {best.name} evolved settings of {evolution.learner}, which mean nothing "
            f"to {learner}"
        )
    get_learner(learner, "auto" if engine is None else engine)  # there is one
    sink.line(f"agents of {learner}, with what was evolved for {evolution.learner}")
    evolution = replace(
        evolution,
        learner=learner,
        learner_config={},
        engine=resolve_engine(learner, engine or "auto", {}, sink.line),
    )
    params = {k: v for k, v in best.winner.params.items() if not k.startswith(LEARNER)}
    winner = replace(best.winner, params=params)
    return replace(best, stem=f"{best.stem}_for_{learner}", evolution=evolution, winner=winner)


def load_evolved(flags: ComparisonFlags, sink: Sink) -> Best:
    """An entry of the catalogue.

    Raises:
        UserError: there is none, or it was evolved with other arguments of the environment.
    """
    entry = find_evolved(flags.study or ANY, flags.evolved_in, flag="--study")
    evolution = replace(entry.evolution, published_code=flags.published_code)
    name = f"{ANY}_{entry.name}"
    evolution = _with_env_kwargs(flags, name, evolution, guessed=False)
    _check_stored(flags, name, evolution)
    _say_reservoirs(flags, name, evolution, False, sink)
    values = ", ".join(f"{k} {v:.6g}" for k, v in entry.winner.params.items())
    sink.line(f"{entry.title}: evolved in {entry.where}, {entry.winner.reached}, {values}")
    if entry.remark:
        sink.line(f"note: {entry.remark}")
    return Best(name, name, entry.title, evolution, entry.winner)


def load_study(flags: ComparisonFlags, sink: Sink) -> Best:
    """What an evolution hands over.

    Raises:
        UserError: no such study, or none of its trials succeeded.
    """
    name = flags.study or study_name(flags.subject(), flags.h_test, flags.HP_training_steps)
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
    values = ", ".join(f"{k} {v:.6g}" for k, v in params.items())
    of = f"winner of {len(choice.finalists)} finalists" if choice.finalists else "best"
    sink.line(f"{name}: {of} of {trials} trials is {winner.title}, {winner.reached}, {values}")
    if (more := study.open()) and not guessed:
        sink.line(f"{name} has not ended: {plural(more, 'trial')} more may be better")
    stem = f"{name}_{winner.slug}"
    winner = replace(winner, params=params)
    return Best(name, stem, winner.title, evolution, winner, None if guessed else study)


def _check_stored(flags: ComparisonFlags, name: str, evolution: EvolutionStudy) -> None:
    """Refuse flags that say something else of the evolution than what is stored of it."""
    names = ["units", "skip_c"]
    if not isinstance(flags, GeneralizationComparisonConfig):
        names += ["del_obs", "env_id"]
    for flag in names:
        given, stored = getattr(flags, flag, None), getattr(evolution, flag)
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
    if flags.storage != DEFAULT_STORAGE or not Path(journal).exists():
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
    several = [k for k in params if re.fullmatch(r"sr_[0-9]+", k)]
    evolution = EvolutionStudy(
        env_id=env_id,
        units=UNITS if flags.units is None else flags.units,
        del_obs=bool(flags.del_obs),
        skip_c=bool(flags.skip_c),
        fixed_iss=not any(k.startswith("iss") for k in params),
        nb_res=len(several) or None,
        bias=ER_MRL_BIAS["bias"],
        bias_connectivity=ER_MRL_BIAS["bias_connectivity"],
    ).settled()
    if isinstance(flags, GeneralizationComparisonConfig) and not named:
        sets = load_task_sets(TASK_SETS).sets
        evolved = next((s for s in sets if re.match(rf"{s}_[0-9]+_", name)), flags.HP_env_type)
        evolution = replace(evolution, env_ids=load_task_set(evolved).env_ids)
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


def _check_unseen(env_id: str, evolution: EvolutionStudy, allow_seen: bool) -> None:
    """Refuse an environment that selection saw, in whatever version and from whatever module."""
    seen = evolution.environments
    if not allow_seen and bare_name(env_id) in map(bare_name, seen):
        raise UserError(
            f"the evolution used {env_id} (as {', '.join(seen)}), so this is no test of "
            f"generalisation; --allow_seen allows it"
        )


def _slug(env_kwargs: Mapping[str, Any]) -> str:
    """Arguments in the name of a study: `gravity_5`."""
    text = "_".join(f"{name}_{json.dumps(env_kwargs[name])}" for name in sorted(env_kwargs))
    slug = re.sub(r"[^\w.+-]+", "_", text).strip("_")
    if len(slug) <= MAX_SLUG:
        return slug
    return f"{slug[:MAX_SLUG]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _the_test(flags: ComparisonFlags, best: Best, sink: Sink) -> tuple[str, TestStudy]:
    """Name and configuration of the test's study.

    Raises:
        UserError: the evolution is for another script, or saw the environment.
    """
    name, evolution = best.name, best.evolution
    env_id, where = None, ""
    env_kwargs: dict[str, Any] = {}
    del_obs = None
    if isinstance(flags, GeneralizationComparisonConfig):
        if flags.del_obs != evolution.del_obs:
            del_obs = flags.del_obs
        env_kwargs = dict(parse_arguments(flags.env_kwargs or ""))
        _check_unseen(flags.env_id, evolution, flags.allow_seen)
        env_id, where = flags.env_id, f"_on_{flags.env_id}"
    elif evolution.env_ids is not None:
        raise UserError(
            f"{name!r} was evolved on {', '.join(evolution.env_ids)}: test it with "
            f"{command('test-generalization')}"
        )
    # An evolution that went on and found better has a test of its own.
    where += f"_with_{_slug(env_kwargs)}" * bool(env_kwargs)
    where += "" if del_obs is None else f"_{'without' if del_obs else 'with'}_velocities"
    test_name = f"{best.stem}{where}_test_{thousands(flags.training_steps)}_steps"
    test_name += "_published" * flags.published_code
    stored = stored_config(flags.results, test_name)
    guessed = best.study is None and not flags.evolved
    # Journals were once taken for reservoirs without a bias.
    if isinstance(stored, TestStudy) and guessed:
        same = {name: getattr(stored.evolution, name) for name in NO_BIAS}
        evolution = replace(evolution, **same)
    engine = _engine(flags, evolution, stored, sink)
    params, steps = best.winner.params, flags.training_steps
    return test_name, TestStudy(evolution, params, steps, engine, env_id, env_kwargs, del_obs)


def compare(flags: ComparisonFlags, sink: Sink) -> int:
    """Train every agent on every test seed, store the curves in the sibling study, and print the
    table.

    Returns:
        Exit code: 0, or 1 if a lifetime failed.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    best = load_best(flags, sink)
    test_name, config = _the_test(flags, best, sink)
    folder = folder_name(test_name)
    evolution, params = config.evolution, best.winner.params
    arms = arm_names(evolution, params) + control_names(evolution, params)
    asked = _asked(flags, evolution, params)
    for arm in asked:
        try:
            check(arm_lifetime(arm, 0, config, params))
        except UserError as e:
            raise UserError(
                f"the agent {arm} cannot be trained, and --arms chooses others: {e}"
            ) from e
    seeds = seed_indices(flags.nb_seeds)
    wanted: list[dict[str, Any]] = [{"arm": a, "seed": seed} for a in asked for seed in seeds]
    there = _finished(flags.results, test_name)
    todo = [w for w in wanted if (w["arm"], w["seed"]) not in there]
    specs = [arm_lifetime(w["arm"], w["seed"], config, params) for w in todo or wanted[:1]]
    outlook = _outlook(flags, test_name, asked, seeds, specs, len(todo))
    check_at_once(flags, outlook)
    check_study(flags.results, test_name, config, Path(flags.models) / folder)
    sink.line(f"{test_name} in {shown(flags.results)}")
    if flags.dry_run:
        return dry_run(flags, outlook, sink, make_executor)
    campaign = Campaign(flags, test_name, config, sink, outlook.specs[0], flags.results)
    study = campaign.study
    space = {"arm": categorical(arms), "seed": integer(0, MAX_SEED)}

    def plan(proposed: dict[str, Any]) -> list[LifetimeSpec]:
        return [arm_lifetime(proposed["arm"], proposed["seed"], config, params)]

    def make_cohort(members: Sequence[Member]) -> Cohort:
        specs = [trial.specs[index] for trial, index in members]
        names = [model_name(t.params) for t, _ in members]
        return agent_cohort(flags, specs, folder, names)

    if todo:
        announce(outlook, campaign.executor, sink)
    else:
        sink.line(f"{len(wanted)} of {len(wanted)} lifetimes are there{more_seeds()}")
    source = GivenTrials(study, wanted, space, plan, flags.max_retries)
    progress = ComparisonProgress(sink, pace_of(outlook.specs, campaign.executor.workers))

    def commands(name: str, trial: RunningTrial | None) -> list[str]:
        return film_commands(flags, folder, trial)

    if not campaign.run(source, make_cohort, progress, commands=commands):
        done = len(study.trials("COMPLETE"))
        sink.line(
            f"interrupted: {done} lifetimes are finished and stored; run the same command "
            f"again to continue"
        )
        return 130
    failed = _say_missing(study, sink)
    report(study, sink)
    arm = evolved_arm(arms)
    _say_winner(study, arm, best, config, sink)
    say_where(campaign, flags, flags.results, folder)
    say_film(study, flags, folder, arm, sink)
    if flags.video:
        film_agents(study, flags, folder, sink)
    return 1 if any((w["arm"], w["seed"]) in failed for w in wanted) else 0


def _say_missing(study: Study, sink: Sink) -> set[tuple[str, int]]:
    """Say which lifetimes are not in the tables: those that failed, and those that others train.

    Returns:
        Agents and seeds of those that failed, in whatever command.
    """
    complete = {_key(t) for t in study.trials("COMPLETE")}
    failed = {_key(t): t for t in study.trials("FAIL") if _key(t) not in complete}
    for (arm, seed), trial in failed.items():
        sink.line(f"failed: {arm} seed {seed}: {why_failed(trial)}")
    elsewhere = len(study.trials("RUNNING"))
    if elsewhere:
        sink.line(
            f"{plural(elsewhere, 'lifetime')} of this test {'is' if elsewhere == 1 else 'are'} "
            f"running in other processes and not in the tables"
        )
    return set(failed)


def _finished(storage: str, name: str) -> set[tuple[str, int]]:
    """Agents and seeds of a test that have ended; none if there is no such test yet."""
    if not isinstance(stored_config(storage, name), TestStudy):
        return set()
    return {_key(t) for t in Study(storage, name).trials("COMPLETE")}


def _outlook(
    flags: ComparisonFlags,
    name: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    specs: Sequence[LifetimeSpec],
    left: int,
) -> Outlook:
    """What is left of a test.

    Args:
        flags: of the command.
        name: of the test.
        arms: its agents.
        seeds: of each.
        specs: lifetimes that are left, or one where none is left.
        left: how many are left.
    """
    notes = []
    steps = flags.training_steps
    if steps == DEFAULT_STEPS and left * specs[0].steps > DEFAULT_STEPS:
        notes.append(
            f"--training_steps is {steps:,}, ER-MRL's number: {left * steps:,} steps in all. "
            f"--training_steps 1000000 takes a tenth of the time"
        )
    counts = (
        f"{plural(len(arms), 'agent')} x {plural(len(seeds), 'seed')} x {steps:,} steps, "
        f"{plural(left, 'lifetime')} to train"
    )
    taken = steps_in_checkpoints(flags.runs, name, specs)
    return Outlook(counts, specs, left, tuple(notes), taken)


def _engine(flags: ComparisonFlags, evolution: EvolutionStudy, stored: Any, sink: Sink) -> str:
    """The engine of a test: the evolution's, unless the flags say otherwise; `auto` is that of the
    test if it is stored already.
    """
    if flags.engine is None:
        return evolution.engine
    if flags.engine == "auto" and isinstance(stored, TestStudy):
        return stored.engine
    settings = evolution.learner_config
    return resolve_engine(evolution.learner, flags.engine, settings, sink.line)


def _asked(
    flags: ComparisonFlags, evolution: EvolutionStudy, params: dict[str, float]
) -> list[str]:
    """The agents that the flags ask for.

    Raises:
        UserError: there is no such agent.
    """
    usual, controls = arm_names(evolution, params), control_names(evolution, params)
    asked = list(usual)
    if flags.arms is not None:
        asked = list(dict.fromkeys(a.strip() for a in flags.arms.split(",")))
    asked += [c for c in controls if flags.controls and c not in asked]
    for arm in asked:
        if arm not in usual + controls:
            known = ", ".join(usual + controls)
            raise UserError(f"unknown agent {arm!r} in --arms (known: {known})")
    return asked


def _key(trial: Any) -> tuple[str, int]:
    return trial.params["arm"], trial.params["seed"]


def report(study: Study, sink: Sink) -> None:
    """Print the tables of a test: what training reached, and what the final policies reach."""
    tables = agent_tables(study)
    for line in lines(tables) if tables else ["no lifetime has finished yet"]:
        sink.line(line)


def _say_winner(study: Study, arm: str, best: Best, config: TestStudy, sink: Sink) -> None:
    """Say what the evolved agent reached: when proposed, lived again, and on the seeds of the test.
    The last is stored with the evolution too.

    Args:
        study: of the test.
        arm: the agent with the settings that it was evolved with.
        best: what is tested.
        config: of the test.
        sink: where the line goes.
    """
    records = {
        t.params["seed"]: study.lifetimes(t)[0]
        for t in study.trials("COMPLETE")
        if t.params["arm"] == arm
    }
    if best.evolution.fitness == "training":
        scores = [r.training_return for _, r in sorted(records.items())]
    else:
        scores = [float(np.mean(r.final_returns)) for _, r in sorted(records.items())]
    known = [s for s in scores if s is not None]
    if not known:
        return
    found = reached_by(best.winner, arm, config, known)
    sink.line(f"evolved:  {best.title}, {best.winner.reached}; {found.line}")
    evolution = best.study
    if evolution is None:
        return

    def commands(name: str, trial: RunningTrial | None) -> list[str]:
        return [test_command(best.evolution, name, evolution.address)] if trial is None else []

    # The evolution may have been deleted meanwhile, or its storage may not be written to.
    with suppress(UserError, KeyError):
        store_tested(evolution, study.name_now(), found)
        DashboardNotes(evolution, False, commands).study()


class ComparisonProgress(Progress):
    """Says how far a test is.

    Args:
        sink: where the lines go.
        pace: see `Progress`.
    """

    def __init__(self, sink: Sink, pace: Pace) -> None:
        super().__init__(sink, pace=pace)
        self._n = 0
        self._width = 0

    def begin(self, trials: Sequence[RunningTrial]) -> None:
        """These lifetimes begin."""
        super().begin(trials)
        self._n += len(trials)
        self._width = max([self._width, *(len(t.params["arm"]) for t in trials)])
        self.budget += sum(steps_of(t.specs[0]) for t in trials)

    def trial_line(self, trial: RunningTrial, value: float | None) -> str:
        """See `Progress`."""
        agent = f"{trial.params['arm']:{self._width}s} seed {trial.params['seed']:3d}"
        return f"{agent}  {outcome(trial, value)}"

    def status_line(self, steps: int, pace: str) -> str:
        """See `Progress`."""
        return f"lifetimes {self.done}/{self._n}  {steps:,} of {self.budget:,} steps  {pace}"
