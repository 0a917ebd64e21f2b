"""Evolution over development: an outer optimiser proposes reservoirs, lifetimes show how well
agents learn with them.

Trials are proposed in whole generations, whose size does not depend on the number of workers, so
that a study is the same whatever machine it runs on.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from erl.cli import Sink, command, params_text, plural, score_text
from erl.errors import UserError
from erl.experiments.campaign import (
    Campaign,
    checkpoint_cohort,
    say_interrupted,
    steps_in_checkpoints,
)
from erl.experiments.display import Commands, DashboardNotes, EvolutionLog
from erl.experiments.evolution_flags import (
    EvolutionConfig,
    EvolutionFlags,
    GeneralizationConfig,
    MultiEvolutionConfig,
)
from erl.experiments.evolution_progress import RECOMMENDED, EvolutionProgress
from erl.experiments.evolution_study import check_lifetimes, continued, lifetimes, study_config
from erl.experiments.finals import (
    finalists_of,
    left_of_finals,
    live_finals,
    sampler_of,
    trials_at_once,
)
from erl.experiments.flags import study_name
from erl.experiments.forecast import Outlook, announce, check_at_once, dry_run, pace_of, steps_of
from erl.experiments.workers import local_workers
from erl.files import folder_name
from erl.lifetimes.living import check
from erl.search.pruning import Pruning
from erl.search.samplers import generation_size
from erl.search.space import search_space
from erl.studies.configuration import EvolutionStudy, differences
from erl.studies.distributions import SearchSpace, distributions
from erl.studies.storage import shown, sqlite_file, storage_words
from erl.studies.study import Study, existing
from erl.studies.trial_report import traceback_command
from erl.studies.trials import Plan, RunningTrial, key_of, lifetime_records
from erl.studies.winner import (
    Choice,
    chosen,
    reached_in_tests,
    store_choice,
    stored_choice,
    unfinished_finals,
)
from erl.worlds.specification import LifetimeSpec
from erl.worlds.task_sets import load_task_set
from erl.worlds.tasks import VELOCITIES, bare_name

__all__ = ["EvolutionConfig", "GeneralizationConfig", "MultiEvolutionConfig", "evolve"]


class Generations:
    """Trials of an evolution: those that wait to be taken up, and new ones in whole generations.
    Those that other coordinators run are waited for, and what these lose is taken over.

    Args:
        study: of the evolution.
        sampler: proposes parameters.
        space: their distributions.
        plan: from parameters to lifetimes.
        popsize: trials of a generation.
        nb_trials: in all.
        max_retries: see `Study.reclaim`.
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
    ) -> None:
        self._study, self._sampler, self._space, self._plan = study, sampler, space, plan
        self._popsize, self._nb_trials, self._max_retries = popsize, nb_trials, max_retries
        self._first = True

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
        there = study.trials()
        begun = len(there) - again
        generation = begun // self._popsize
        # A generation that an earlier run left incomplete is filled up, and not one that another
        # coordinator is proposing; waiting trials of a complete one come first.
        incomplete = begun % self._popsize
        if incomplete and study.others_run(there[-incomplete:]):
            incomplete = 0
            latest = [t.user_attrs.get("generation") for t in there[-self._popsize :]]
            generation = max([generation, *(g + 1 for g in latest if g is not None)])
        new = self._popsize - incomplete if incomplete or not waiting else 0
        new = min(new, max(0, self._nb_trials - begun))
        if not (waiting or new):
            if any(t.number < limit for t in study.trials("RUNNING")):
                study.pause()
                return []
            return None
        resumed = [study.take_up(t, self._plan, self._sampler, self._space) for t in waiting]
        trials = [t for t in resumed if t is not None]
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
    name, config, space, done, outlook = _prepared(flags, sink)
    there = f"{done} of {plural(max(done, flags.nb_trials), 'trial')} are there"
    complete = f"{there}; raise --nb_trials above {done} for more"
    if flags.dry_run:
        _say_what(name, config, space, flags.storage, sink)
        if not outlook.left:
            sink.line(complete)
            return 0
        return dry_run(flags, outlook, sink)
    campaign = Campaign(flags, name, config, sink, outlook.specs[0])
    study = campaign.study
    popsize = config.popsize or generation_size(config.sampler, space)
    sampler = sampler_of(config, space)
    _say_what(name, config, space, flags.storage, sink)
    if outlook.left:
        if done:
            left = ", finals are left" * (done >= flags.nb_trials)
            sink.line(f"goes on: {there}{left}")
        announce(outlook, campaign.executor, sink)
    else:
        sink.line(complete)

    def plan(params: dict[str, Any]) -> list[LifetimeSpec]:
        return lifetimes(config, params)

    pace = pace_of(outlook.specs, campaign.executor.workers)
    progress = EvolutionProgress(
        study, config, flags.nb_trials, sink, steps_of(outlook.specs[0]), pace
    )
    source = Generations(study, sampler, space, plan, popsize, flags.nb_trials, flags.max_retries)
    pruning = None if config.pruner == "none" else Pruning(config.pruner, popsize)
    make_cohort = checkpoint_cohort(flags, name)
    commands = note_commands(config, flags.storage)
    log = EvolutionLog(study, f"{flags.logs}/{folder_name(name)}/evolution")
    if not campaign.run(source, make_cohort, progress, config.score, pruning, commands, log):
        return say_interrupted(study, sink, lambda: _say_how_far(flags, study, sink))
    return _hand_over(flags, study, config, space, sampler, progress, sink)


def _prepared(
    flags: EvolutionFlags, sink: Sink
) -> tuple[str, EvolutionStudy, SearchSpace, int, Outlook]:
    """What the flags ask for, checked; nothing is written.

    Returns:
        Name and configuration of the study, what is searched, how many trials have ended, and what
        is left.
    """
    config = study_config(flags, sink)
    space = distributions(search_space(config))
    if flags.study is None:
        name = study_name(flags.subject(), flags.h_test, flags.training_steps)
        before = existing(flags.storage, name)
    else:
        name = flags.study
        before = Study(flags.storage, name)
    config = continued(flags, before, config, space)
    check_lifetimes(config)
    done = 0 if before is None else before.finished()
    outlook = outlook_of(flags, config, space, before, done)
    check_at_once(flags, outlook)
    if before is not None:
        before.check_same(config)
    return name, config, space, done, outlook


def _say_how_far(flags: EvolutionFlags, study: Study, sink: Sink) -> None:
    """Say how far an interrupted evolution is."""
    sink.line(
        f"interrupted: {study.finished()} of {flags.nb_trials} trials are finished and "
        f"stored in {shown(flags.storage)}; {study.again}"
    )
    _say_best(study, sink)


def _hand_over(
    flags: EvolutionFlags,
    study: Study,
    config: EvolutionStudy,
    space: SearchSpace,
    sampler: Any,
    progress: EvolutionProgress,
    sink: Sink,
) -> int:
    """Hold finals, if they are asked for, and say what an evolution hands over.

    Returns:
        Exit code: 0, 1 if no trial succeeded, or 130 if the finals were interrupted.
    """
    # Asked first: what ends meanwhile is then among the finished.
    elsewhere = len(study.trials("RUNNING"))
    if flags.finalists == 0:
        store_choice(study, None)
    hold = bool(flags.finalists) and not elsewhere
    if hold and not _finals(flags, study, config, space, sampler, sink):
        return say_interrupted(study, sink, lambda: _say_best(study, sink))
    no_finals = stored_choice(study.optuna.user_attrs) is None
    progress.say_luck(advise=flags.finalists is None and no_finals)
    if _say_winner(flags, study, elsewhere, progress.last_error, sink) is None:
        return 1
    sink.line(f"test them:       {test_command(config, study.name_now(), flags.storage)}")
    DashboardNotes(study, flags.artifacts, note_commands(config, flags.storage)).study()
    return 0


def _say_winner(
    flags: EvolutionFlags, study: Study, elsewhere: int, last_error: str | None, sink: Sink
) -> Choice | None:
    """Say what an evolution hands over, or why nothing.

    Args:
        flags: whether finals are asked for.
        study: whose trials have ended, but for those of a longer run.
        elsewhere: how many of the latter run in other processes.
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
            f"running in other processes, of a run with a larger --nb_trials"
            + "; no finals are held meanwhile"
            * bool(flags.finalists)
        )
    if choice is None:
        sink.line("no trial succeeded" + (f": {last_error}" if last_error else ""))
        if failed := study.trials("FAIL"):
            sink.line(traceback_command(study, failed[-1:]))
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
        words += ["--env_id", _unseen(config, config.env_ids)]
    return command(kind, *words, *storage_words(storage))


def _unseen(config: EvolutionStudy, seen: Iterable[str]) -> str:
    """An environment that an evolution did not see, and in which its agents can be trained; where
    none is known, the word in whose place a name belongs.
    """
    known = (*load_task_set("forward_mujoco").env_ids, "Humanoid-v4", *VELOCITIES)
    lowest = {k: r.low for k, r in search_space(config).items()}
    names = set(map(bare_name, seen))
    for env_id in known:
        there = replace(config, env_ids=None, env_id=env_id, env_kwargs={})
        with suppress(UserError):
            if bare_name(env_id) not in names:
                check(lifetimes(there, lowest)[0])
                return env_id
    return "ENVIRONMENT"


def note_commands(config: EvolutionStudy, storage: str) -> Commands:
    """The commands that the notes of an evolution name: its test."""

    def commands(name: str, trial: RunningTrial | None) -> list[str]:
        return [test_command(config, name, storage)] if trial is None else []

    return commands


def outlook_of(
    flags: EvolutionFlags,
    config: EvolutionStudy,
    space: SearchSpace,
    before: Study | None,
    done: int,
) -> Outlook:
    """What is left of an evolution and its finals.

    Args:
        flags: how many trials and finalists.
        config: of the evolution.
        space: what is searched.
        before: the study as it is; None for a new one.
        done: how many of its trials have ended.
    """
    # The largest reservoirs that may be proposed, so that the time is an upper one.
    ranges = search_space(config)
    largest = {k: r.high for k, r in ranges.items()}
    of_a_trial = lifetimes(config, largest)
    lowest, *_ = lifetimes(config, {k: r.low for k, r in ranges.items()})
    trials = max(0, flags.nb_trials - done)
    finals = left_of_finals(flags, config, space, before, trials)
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
        taken=0 if before is None else _taken(flags, config, before, trials),
        lowest=lowest,
        finals=lifetimes(config, largest, "finals", seeds),
    )


def _of_array(flags: EvolutionFlags, config: EvolutionStudy) -> Iterator[str]:
    """A note if a SLURM array has so many coordinators that the sampler learns little."""
    tasks = os.environ.get("SLURM_ARRAY_TASK_COUNT", "")
    count = int(tasks) if tasks.isdecimal() else 1
    begun = min(count * (config.popsize or 1), flags.nb_trials)
    if count > 1 and 2 * begun > flags.nb_trials and config.sampler != "Random":
        yield (
            f"if the {count} tasks of this array run at once, they begin {begun} of "
            f"{flags.nb_trials} trials before any has ended, and {config.sampler} learns little: "
            f"fewer at a time, or a larger --nb_trials"
        )


def _taken(flags: EvolutionFlags, config: EvolutionStudy, study: Study, left: int) -> int:
    """Steps of trials that have not ended, so many of which go on: of lifetimes that are stored,
    and in checkpoints of the others.
    """
    if study.config is None or differences(study.config, config):
        return 0  # it will be refused
    taken, names = 0, search_space(config).keys()
    for trial in study.trials("RUNNING", "WAITING")[:left]:
        if not names <= trial.params.keys():
            continue  # another command proposes it now, or ended before it had
        # What failed is trained again.
        records = {i: r for i, r in lifetime_records(trial).items() if r.error is None}
        others = [s for i, s in enumerate(lifetimes(config, trial.params)) if i not in records]
        taken += sum(record.steps for record in records.values())
        taken += steps_in_checkpoints(flags.runs, study.name, others)
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
    sink.line(f"hyperparameters: {params_text(winner.params)}")
    file = sqlite_file(study.address)
    sink.line(
        f"study database:  {shown(study.address)}" + (f" ({os.path.abspath(file)})" if file else "")
    )
    return choice
