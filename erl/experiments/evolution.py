"""Evolution over development: an outer optimiser proposes reservoirs, lifetimes show how well
agents learn with them.

Trials are proposed in whole generations, whose size does not depend on the number of workers, so
that a study is the same whatever machine it runs on. All trials share their seeds: two trials
differ in their hyperparameters only.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from erl.cli import Sink, command, plural, score_text
from erl.errors import UserError
from erl.experiments.campaign import (
    Campaign,
    Progress,
    checkpoint_cohort,
    make_executor,
    steps_in_checkpoints,
)
from erl.experiments.display import DashboardNotes, EvolutionLog
from erl.experiments.evolution_flags import (
    EvolutionConfig,
    EvolutionFlags,
    GeneralizationConfig,
    MultiEvolutionConfig,
)
from erl.experiments.finals import (
    finalists_of,
    left_of_finals,
    live_finals,
    sampler_of,
    trials_at_once,
)
from erl.experiments.flags import number, parse_settings, read_settings, study_name
from erl.experiments.forecast import (
    Outlook,
    Pace,
    announce,
    check_at_once,
    dry_run,
    local_workers,
    pace_of,
    steps_of,
)
from erl.experiments.luck import Luck
from erl.files import folder_name
from erl.learners import canonical_name, published_settings, resolve_engine
from erl.lifetimes.living import check
from erl.lifetimes.record import POINTS
from erl.search.choices import SAMPLERS
from erl.search.pruning import Pruning, check_pruner
from erl.search.samplers import generation_size, warm_start
from erl.search.space import (
    ER_MRL_BIAS,
    NO_BIAS,
    learner_settings,
    make_context,
    parse_evolve,
    search_space,
)
from erl.studies.configuration import EvolutionStudy, differences
from erl.studies.distributions import SearchSpace, distributions
from erl.studies.storage import DEFAULT_STORAGE, shown
from erl.studies.study import Study, check_study, stored_config
from erl.studies.trials import Plan, RunningTrial, key_of
from erl.studies.winner import (
    Choice,
    chosen,
    reached_in_tests,
    store_choice,
    stored_choice,
    unfinished_finals,
)
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Phase, Seeds
from erl.worlds.task_sets import load_task_set
from erl.worlds.tasks import Task, bare_name

# Finalists that lines of advice name.
RECOMMENDED = 5
# Where in a range a value is tried that no rule about bounds expects: the golden section.
INSIDE = 0.6180339887498949

__all__ = ["EvolutionConfig", "GeneralizationConfig", "MultiEvolutionConfig", "evolve"]


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
            seeds=Seeds.published(i)
            if config.published_code
            else Seeds.derive(config.seed, phase, i),
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
        storage, _, name = source.rpartition("#")
        source = f"{shown(storage)}#{name}"  # a password has no place in a study
    space = distributions(search_space(config))
    popsize = generation_size(flags.sampler, space, flags.popsize)
    return replace(
        config,
        learner_config=settings,
        popsize=popsize,
        sampler=next(s for s in SAMPLERS if s.casefold() == flags.sampler.casefold()),
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
    flags: EvolutionFlags, name: str, config: EvolutionStudy, space: SearchSpace
) -> EvolutionStudy:
    """The configuration as it is if the study exists already: with its engine and its bias, unless
    the flags name one, and its warm start.

    Raises:
        UserError: a warm start that cannot be, or a new study with flags that would change nothing.
    """
    if flags.warm_start is not None and config.sampler != "Cmaes":
        raise UserError(f"--warm_start works only with --sampler Cmaes, not with {config.sampler}")
    stored = stored_config(flags.storage, name)
    if isinstance(stored, EvolutionStudy):
        engine = stored.engine if flags.engine == "auto" else config.engine
        # What was made when another bias was the default keeps it.
        same = {name: getattr(stored, name) for name in NO_BIAS if getattr(flags, name) is None}
        return replace(config, engine=engine, start=stored.start, **same)
    # A study that an earlier version began with them goes on.
    _refuse_idle(flags, config)
    if flags.warm_start is None:
        return config
    storage, _, source = flags.warm_start.rpartition("#")
    if not source:
        raise UserError(
            f"--warm_start {flags.warm_start!r} names no study: write STUDY or STORAGE#STUDY"
        )
    start = warm_start(Study(storage or flags.storage, source).optuna, space)
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


class Generations:
    """Trials of an evolution: those that wait to be taken up, and new ones in whole generations.

    Args:
        study: of the evolution.
        sampler: proposes parameters.
        space: their distributions.
        plan: from parameters to lifetimes.
        popsize: trials of a generation.
        nb_trials: in all.
        max_retries: see `Study.reclaim`.
        wait: whether to wait for trials that other coordinators run, and to take over what they
            lose.
    """

    def __init__(
        self,
        study: Study,
        sampler: Any,
        space: SearchSpace,
        plan: Plan,
        popsize: int,
        nb_trials: int,
        max_retries: int,
        wait: bool = False,
    ) -> None:
        self._study, self._sampler, self._space, self._plan = study, sampler, space, plan
        self._popsize, self._nb_trials, self._max_retries = popsize, nb_trials, max_retries
        self._first, self._wait = True, wait

    def next_trials(self) -> list[RunningTrial] | None:
        """See `TrialSource`."""
        study = self._study
        if self._first:
            self._first = False
            failed = study.failed_alone()[: self._nb_trials]
            if failed:
                plan, sampler, space = self._plan, self._sampler, self._space
                return [study.retry(trial, plan, sampler, space) for trial in failed]
        # Failed trials in whose place there is another one do not count.
        again = len(study.tried_again())
        limit = self._nb_trials + again
        reclaimed = study.reclaim(self._max_retries)
        waiting = [t for t in reclaimed if t.number < limit]
        begun = len(study.trials()) - again
        # A generation that an earlier run left incomplete is filled up; waiting trials of a
        # complete one come first.
        new = -begun % self._popsize or (0 if waiting else self._popsize)
        new = min(new, max(0, self._nb_trials - begun))
        if not (waiting or new):
            if self._wait and any(t.number < limit for t in study.trials("RUNNING")):
                study.pause()
                return []
            return None
        resumed = [study.take_up(t, self._plan, self._sampler, self._space) for t in waiting]
        trials = [t for t in resumed if t is not None]
        generation = begun // self._popsize
        return trials + study.propose(
            new, self._sampler, self._space, self._plan, generation, limit
        )


def evolve(flags: EvolutionFlags, sink: Sink) -> int:
    """Evolve reservoirs until the study has its trials.

    Returns:
        Exit code: 0, or 1 if no trial succeeded.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    config = study_config(flags, sink)
    space = distributions(search_space(config))
    name = flags.study or study_name(flags.subject(), flags.h_test, flags.training_steps)
    if flags.study is not None:
        Study(flags.storage, name)  # it exists
    config = continued(flags, name, config, space)
    check_lifetimes(config)
    done = finished(flags.storage, name)
    outlook = outlook_of(flags, config, space, name, done)
    check_at_once(flags, outlook)
    check_study(flags.storage, name, config)
    complete = f"{done} of {flags.nb_trials} trials are there; raise --nb_trials for more"
    if flags.dry_run:
        _say_what(name, config, space, flags.storage, sink)
        if not outlook.left:
            sink.line(complete)
            return 0
        return dry_run(flags, outlook, sink, make_executor)
    campaign = Campaign(flags, name, config, sink, outlook.specs[0])
    study = campaign.study
    popsize = config.popsize or generation_size(config.sampler, space)
    sampler = sampler_of(config, space)
    _say_what(name, config, space, flags.storage, sink)
    if outlook.left:
        if done:
            left = ", finals are left" * (done >= flags.nb_trials)
            sink.line(f"goes on: {done} of {plural(flags.nb_trials, 'trial')} are there{left}")
        announce(outlook, campaign.executor, sink)
    else:
        sink.line(complete)

    def plan(params: dict[str, Any]) -> list[LifetimeSpec]:
        return lifetimes(config, params)

    pace = pace_of(outlook.specs, campaign.executor.workers)
    progress = EvolutionProgress(
        study, config, flags.nb_trials, sink, steps_of(outlook.specs[0]), pace
    )
    finals = bool(flags.finalists)
    retries = flags.max_retries
    source = Generations(study, sampler, space, plan, popsize, flags.nb_trials, retries, finals)
    pruning = None if config.pruner == "none" else Pruning(config.pruner, popsize)
    make_cohort = checkpoint_cohort(flags, name)

    def commands(name: str, trial: RunningTrial | None) -> list[str]:
        return [test_command(config, name, flags.storage)] if trial is None else []

    log = EvolutionLog(study, f"{flags.logs}/{folder_name(name)}/evolution")
    if not campaign.run(source, make_cohort, progress, config.score, pruning, commands, log):
        sink.line(
            f"interrupted: {study.finished()} of {flags.nb_trials} trials are finished and "
            f"stored in {shown(flags.storage)}; "
            "run the same command again to continue"
        )
        _say_best(study, sink)
        return 130
    # Asked first: what ends meanwhile is then among the finished.
    elsewhere = len(study.trials("RUNNING"))
    if flags.finalists == 0:
        store_choice(study, None)
    elif finals and not elsewhere and not _finals(flags, study, config, space, sampler, sink):
        _say_best(study, sink)
        return 130
    no_finals = stored_choice(study.optuna.user_attrs) is None
    progress.say_luck(advise=flags.finalists is None and no_finals)
    if _say_winner(study, elsewhere, progress.last_error, sink) is None:
        return 0 if elsewhere else 1
    sink.line(f"test them:       {test_command(config, study.name_now(), flags.storage)}")
    DashboardNotes(study, flags.artifacts, commands).study()
    return 0


def _say_winner(study: Study, elsewhere: int, last_error: str | None, sink: Sink) -> Choice | None:
    """Say whom an evolution hands over, or why nobody.

    Args:
        study: whose trials have ended, but for those that run in other processes.
        elsewhere: number of the latter.
        last_error: why a trial failed last, in this process.
        sink: for lines.
    """
    choice = _say_best(study, sink)
    unfinished = unfinished_finals(study.optuna.user_attrs)
    if unfinished is not None:
        sink.line(f"finals:          {unfinished}")
    if elsewhere:
        sink.line(
            f"{plural(elsewhere, 'trial')} of this study {'is' if elsewhere == 1 else 'are'} "
            f"running in other processes"
        )
    elif choice is None:
        reasons = f"{command('studies', 'show', '--study', study.name_now())} lists the reasons"
        sink.line(f"no trial succeeded: {last_error or reasons}")
    return choice


def _finals(
    flags: EvolutionFlags,
    study: Study,
    config: EvolutionStudy,
    space: SearchSpace,
    sampler: Any,
    sink: Sink,
) -> bool:
    """Live the finals, if there is something to choose from; False if they were interrupted."""
    finalists = finalists_of(study, config, space, sampler, flags.finalists or 0)
    if len(finalists) < 2:
        for one in finalists:
            others = len({key_of(t.params) for t in study.trials("COMPLETE")}) > 1
            why = "no other hyperparameters have a fitness"
            if others and flags.finalists == 1:
                why = "--finalists is 1"
            sink.line(f"no finals:       {one.title} is the only finalist, as {why}")
        return True

    def lives_of(params: dict[str, Any], seed: int) -> list[LifetimeSpec]:
        return lifetimes(config, params, "finals", [seed])

    return live_finals(flags, study, config, finalists, lives_of, sink)


def test_command(config: EvolutionStudy, name: str, storage: str) -> str:
    """The command that tests what was evolved."""
    kind = "test" if config.nb_res is None else "test-multi"
    if config.env_ids is not None:
        kind = "test-generalization"
    words = ["--study", name, "--training_steps", str(config.training_steps)]
    if config.env_ids is not None:
        seen = set(map(bare_name, config.env_ids))
        known = load_task_set("forward_mujoco").env_ids
        unseen = [e for e in known if bare_name(e) not in seen]
        words += ["--env_id", unseen[0] if unseen else "Humanoid-v4"]
    if storage != DEFAULT_STORAGE:
        words += ["--storage", shown(storage)]
    return command(kind, *words)


def finished(storage: str, name: str) -> int:
    """How many trials of a study have ended; 0 if there is no such study yet."""
    return 0 if stored_config(storage, name) is None else Study(storage, name).finished()


def outlook_of(
    flags: EvolutionFlags, config: EvolutionStudy, space: SearchSpace, name: str, done: int
) -> Outlook:
    """What is left of an evolution and its finals.

    Args:
        flags: how many trials and finalists.
        config: of the evolution.
        space: what is searched.
        name: of the study.
        done: how many of its trials have ended.
    """
    # The largest reservoirs that may be proposed, so that the time is an upper one.
    largest = {k: r.high for k, r in search_space(config).items()}
    of_a_trial = lifetimes(config, largest)
    trials = max(0, flags.nb_trials - done)
    finals = left_of_finals(flags, config, space, name, trials)
    environments = "" if config.env_ids is None else f"{len(config.env_ids)} environments x "
    steps = f"{config.training_steps:,} steps"
    counts = f"finals: {plural(finals, 'lifetime')} x {steps}"
    if trials:
        counts = (
            f"{plural(trials, 'trial')} x {environments}{plural(config.nb_seeds, 'seed')} x {steps}"
        )
        counts += f" and up to {finals} lifetimes in finals" * (finals > 0)
    together = trials or -(-finals // len(of_a_trial))
    at_once = trials_at_once(config, local_workers(flags, of_a_trial[0]))
    seeds = range(min(at_once, finals // len(config.environments)))
    return Outlook(
        counts,
        of_a_trial * min(max(1, together), config.popsize or 1),
        trials * len(of_a_trial) + finals,
        tuple(_of_array(flags, config) if trials else ()),
        taken=_taken(flags, config, name, trials),
        finals=lifetimes(config, largest, "finals", seeds),
    )


def _of_array(flags: EvolutionFlags, config: EvolutionStudy) -> Iterator[str]:
    """A note if a SLURM array has so many coordinators that the sampler learns little."""
    tasks = os.environ.get("SLURM_ARRAY_TASK_COUNT", "")
    count = int(tasks) if tasks.isdecimal() else 1
    begun = min(count * (config.popsize or 1), flags.nb_trials)
    if count > 1 and 2 * begun > flags.nb_trials and config.sampler != "Random":
        yield (
            f"the {count} tasks of this array begin {begun} of {flags.nb_trials} trials before any "
            f"has ended, so {config.sampler} learns little: fewer tasks, or a larger --nb_trials"
        )


def _taken(flags: EvolutionFlags, config: EvolutionStudy, name: str, left: int) -> int:
    """Steps of trials that have not ended, so many of which go on: of lifetimes that are stored,
    and in checkpoints of the others.
    """
    if stored_config(flags.storage, name) is None:
        return 0
    study = Study(flags.storage, name)
    if study.config is None or differences(study.config, config):
        return 0  # it will be refused
    taken, names = 0, search_space(config).keys()
    for trial in study.trials("RUNNING", "WAITING")[:left]:
        if not names <= trial.params.keys():
            continue  # another command proposes it now, or ended before it had
        # What failed is lived again.
        records = {i: r for i, r in study.lifetimes(trial).items() if r.error is None}
        others = [s for i, s in enumerate(lifetimes(config, trial.params)) if i not in records]
        taken += sum(record.steps for record in records.values())
        taken += steps_in_checkpoints(flags.runs, name, others)
    return taken


def _say_what(
    name: str, config: EvolutionStudy, space: SearchSpace, storage: str, sink: Sink
) -> None:
    """Say what is evolved."""
    sink.line(f"{name} in {shown(storage)}")
    searched = [parameter for parameter, values in space.items() if not values.single()]
    if searched:
        over = ", ".join(searched)
        sink.line(f"{config.sampler} over {over}, generations of {config.popsize}")
    else:
        sink.line("every range is a single value: nothing is searched, and all trials are equal")
    if config.start is not None:
        sink.line(
            f"warm start from {config.warm_start}: {', '.join(config.start['parameters'])} of "
            f"{config.start['trials']} trials"
        )


def _say_best(study: Study, sink: Sink) -> Choice | None:
    """Say what was found, and where it is stored."""
    best, choice = study.best(), chosen(study)
    if best is None or choice is None:
        return None
    ended, more = len(study.trials("COMPLETE", "PRUNED", "FAIL")), study.open()
    trials = f"{ended}{f' ({more} more have not ended)' if more else ''}"
    sink.line(f"best trial:      {best.number} of {trials}, fitness {score_text(best.value)}")
    winner = choice.winner
    if choice.finalists:
        sink.line(f"winner:          {winner.title}, {winner.reached}")
        if ended > choice.ended:
            sink.line(
                f"                 chosen when {choice.ended} of {ended} trials had ended; "
                f"--finalists {RECOMMENDED} holds finals with the later ones"
            )
    for test in reached_in_tests(study.optuna.user_attrs, winner).values():
        sink.line(f"tested:          {winner.title}, {test.line}")
    params = ", ".join(f"{k} {number(v)}" for k, v in winner.params.items())
    sink.line(f"hyperparameters: {params}")
    where = shown(study.address)
    path = where.removeprefix("sqlite:///").partition("?")[0]
    sink.line(
        f"study database:  {where}"
        + (f" ({os.path.abspath(path)})" if where.startswith("sqlite") else "")
    )
    return choice


class EvolutionProgress(Progress):
    """Counts trials and steps, and says how far an evolution is."""

    def __init__(
        self,
        study: Study,
        config: EvolutionStudy,
        nb_trials: int,
        sink: Sink,
        steps: int,
        pace: Pace | None = None,
    ) -> None:
        done = study.finished()
        lifetimes_of_a_trial = len(config.environments) * config.nb_seeds
        super().__init__(sink, (nb_trials - done) * lifetimes_of_a_trial * steps, pace)
        self.done = done
        self.last_error: str | None = None
        self._nb_trials = nb_trials
        best = study.best()
        self._best = None if best is None else (float(best.value or 0.0), best.number)
        self._generation: Any = 0
        self._running = 0
        self._luck = Luck(study, config)
        self._hinted = False

    def begin(self, trials: Sequence[RunningTrial]) -> None:
        """A generation begins."""
        super().begin(trials)
        # Of trials that are taken up again some lifetimes may be stored.
        self.budget -= sum(steps_of(t.specs[i]) for t in trials for i in t.records)
        if trials:
            self._running = len(trials)
            self._generation = trials[0].attrs.get("generation", 0)
            self._luck.look()
            if self._luck.hint is not None and not self._hinted:
                self._hinted = True
                self.sink.line(f"luck: {self._luck.line}")
            self.tick(0)

    def end(self, trial: RunningTrial, value: float | None) -> None:
        """A trial has ended."""
        self._running -= 1
        if value is None:
            self.last_error = trial.error[0] if trial.error is not None else None
        elif trial.pruned is not None:
            self.budget -= sum(max(0, r.spec.steps - r.steps) for r in trial.records.values())
        elif self._best is None or value > self._best[0]:
            self._best = (value, trial.number)
        super().end(trial, value)

    def say_luck(self, advise: bool) -> None:
        """Say how much of the fitness is luck.

        Args:
            advise: whether to name finals, if it is much.
        """
        self._luck.look()
        if self._luck.line is not None:
            advice = (
                f"; --finalists {RECOMMENDED} estimates what the best one reaches on other seeds"
            )
            told = advise and self._luck.hint is not None
            self.sink.line(f"luck:            {self._luck.line}{advice * told}")

    def trial_line(self, trial: RunningTrial, value: float | None) -> str:
        """See `Progress`."""
        params = "  ".join(f"{k} {number(v, 4):<9s}" for k, v in trial.params.items())
        generation = trial.attrs.get("generation", self._generation)
        head = f"trial {trial.number:4d}  gen {generation:3d}  {params}  "
        if value is None:
            return f"{head}failed: {self.last_error}"
        if trial.pruned is not None:
            point = f"at {trial.pruned.point}/{POINTS}"
            return f"{head}pruned  {score_text(trial.pruned.value):>10s}  {point}"
        best = score_text(self._best[0] if self._best is not None else None)
        notes = sorted({r.note for r in trial.records.values() if r.note})
        return f"{head}fitness {score_text(value):>8s}  best {best:>8s}" + "".join(
            f"  ({note})" for note in notes
        )

    def status_line(self, steps: int, pace: str) -> str:
        """See `Progress`."""
        best = "none yet"
        if self._best is not None:
            best = f"{score_text(self._best[0])} (trial {self._best[1]})"
        luck = "" if self._luck.share is None else f"luck {self._luck.share:.0%}  "
        return (
            f"generation {self._generation}  trials {self.done}/{self._nb_trials} "
            f"({self._running} running)  best {best}  {luck}{pace}"
        )
