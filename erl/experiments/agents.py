"""Agents that are trained and kept: a study with one trial for each agent and seed. Tests, and the
training of one learner, are such studies.
"""

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erl.cli import Sink, command, installed, plural
from erl.errors import UserError
from erl.experiments.campaign import (
    Campaign,
    GivenTrials,
    Progress,
    checkpoint_path,
    outcome,
    say_interrupted,
    steps_in_checkpoints,
)
from erl.experiments.films import film_agents, film_command, model_name, say_film
from erl.experiments.flags import MAX_SEED, AgentFlags
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
from erl.learners import Outputs
from erl.lifetimes.living import Cohort
from erl.studies.configuration import StudyConfig, evolved_arm
from erl.studies.distributions import SearchSpace, categorical, choices, integer
from erl.studies.storage import journal_file, shown, storage_words
from erl.studies.study import Study
from erl.studies.tables import agent_tables, lines
from erl.studies.trial_report import traceback_command
from erl.studies.trials import RunningTrial, key_of, why_failed
from erl.worlds.specification import LifetimeSpec


@dataclass(frozen=True)
class Agents:
    """What a command trains.

    Attributes:
        name: of the study.
        storage: of the study, with its password.
        config: of the study.
        wanted: parameters of the trials: `seed`, and `arm` where the study has several agents.
        todo: those of them that have no complete trial, see `missing`.
        lifetime: from such parameters to the lifetime.
        counts: agents, seeds and steps, in words.
        more: how to get more of them, as the end of a line.
        notes: what should be known before.
        arms: names of all agents that the study may have; empty for a study of one agent, whose
            learner then says how far it is.
        attrs: user attributes that the study gets if it has none of these names.
    """

    name: str
    storage: str
    config: StudyConfig
    wanted: Sequence[dict[str, Any]]
    todo: Sequence[dict[str, Any]]
    lifetime: Callable[[dict[str, Any]], LifetimeSpec]
    counts: str
    more: str
    notes: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


def missing(study: Study | None, wanted: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of these parameters of which a study has no complete trial; None is a new study."""
    done = {key_of(t.params) for t in study.trials("COMPLETE")} if study is not None else set()
    return [params for params in wanted if key_of(params) not in done]


def train_agents(
    flags: AgentFlags,
    agents: Agents,
    before: Study | None,
    sink: Sink,
    say: Callable[[Study], None] = lambda study: None,
) -> int:
    """Train agents, store their records, and print the tables.

    Args:
        flags: where and how.
        agents: which.
        before: the study as it is; None for a new one.
        sink: where lines go.
        say: says more, below the tables.

    Returns:
        Exit code: 0, 1 if a lifetime that was asked for failed, or 130 after an interruption.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    folder = folder_name(agents.name)
    outlook = _outlook(flags, agents)
    check_at_once(flags, outlook)
    _check_study(flags, agents, before, folder)
    space = _space(agents, before)
    sink.line(f"{agents.name} in {shown(agents.storage)}")
    if flags.dry_run:
        return dry_run(flags, outlook, sink)
    spec = outlook.specs[0]
    campaign = Campaign(flags, agents.name, agents.config, sink, spec, agents.storage)
    study, status, count = campaign.study, not agents.arms, len(agents.wanted)
    for key in agents.attrs.keys() - study.optuna.user_attrs.keys():
        study.optuna.set_user_attr(key, agents.attrs[key])

    def plan(params: dict[str, Any]) -> list[LifetimeSpec]:
        return [agents.lifetime(params)]

    def make_cohort(members: Sequence[Member]) -> Cohort:
        return _cohort(flags, folder, members, status)

    def commands(name: str, trial: RunningTrial | None) -> list[str]:
        return [] if trial is None else [film_command(flags, folder, trial.params)]

    if agents.todo:
        announce(outlook, campaign.executor, sink)
    else:
        sink.line(f"{count} of {count} lifetimes are there{agents.more}")
    source = GivenTrials(study, agents.wanted, space, plan, flags.max_retries)
    pace = pace_of(outlook.specs, campaign.executor.workers)
    progress = AgentProgress(sink, pace, flags.runs if status else None, folder)
    if not campaign.run(source, make_cohort, progress, commands=commands):
        return say_interrupted(study, sink, lambda: _say_how_far(agents, study, sink))
    failed = _say_missing(study, sink)
    tables = agent_tables(study)
    for line in lines(tables) if tables else ["no lifetime has finished yet"]:
        sink.line(line)
    say(study)
    _say_where(campaign, flags, agents.storage, folder, figures=bool(tables))
    if flags.video:
        film_agents(study, flags, folder, sink)
    else:
        say_film(study, flags, folder, evolved_arm(agents.arms), sink)
    return 1 if any(key_of(params) in failed for params in agents.wanted) else 0


def _say_how_far(agents: Agents, study: Study, sink: Sink) -> None:
    """Say how far an interrupted training is."""
    count = len(agents.wanted)
    done = count - len(missing(study, agents.wanted))
    sink.line(f"interrupted: {done} of {count} lifetimes are finished and stored; {study.again}")


def _outlook(flags: AgentFlags, agents: Agents) -> Outlook:
    """What is left to do; where nothing is, for one lifetime."""
    specs = [agents.lifetime(params) for params in agents.todo or agents.wanted[:1]]
    counts = f"{agents.counts}, {plural(len(agents.todo), 'lifetime')} to train"
    taken = steps_in_checkpoints(flags.runs, agents.name, specs)
    return Outlook(counts, specs, len(agents.todo), agents.notes, taken)


def _check_study(flags: AgentFlags, agents: Agents, before: Study | None, folder: str) -> None:
    """Refuse a name that belongs to another study.

    Raises:
        UserError: see `Study.check_same`; or the study would be new, and replace agents of one with
            the same name, whose database was another.
    """
    models = Path(flags.models) / folder
    if before is not None:
        before.check_same(agents.config)
    elif any(models.rglob("*.zip")):
        raise UserError(
            f"{models} holds agents of a study called {agents.name!r} that is not, or no more, in "
            f"{shown(agents.storage)}: name another folder with --models, or remove this one"
        )


def _space(agents: Agents, before: Study | None) -> SearchSpace:
    """Distributions of the parameters of the study's trials.

    Raises:
        UserError: the study was begun when there was no such agent. Only journals take it then: in
            a database the choices of a parameter are those of the first trial for ever.
    """
    space: SearchSpace = {"seed": integer(0, MAX_SEED)}
    if not agents.arms:
        return space
    space["arm"] = categorical(agents.arms)
    if before is None or journal_file(agents.storage) is not None:
        return space
    for trial in before.trials():
        if (stored := choices(trial.distributions.get("arm"))) is not None:
            space["arm"] = categorical(stored)
            asked = dict.fromkeys(params["arm"] for params in agents.wanted)
            if unknown := [arm for arm in asked if arm not in stored]:
                raise UserError(
                    f"{agents.name} was begun when tests had no agent {', '.join(unknown)}, and "
                    f"its database takes no other: name agents without with --arms, or test "
                    f"elsewhere, with --results_storage and --models"
                )
            break
    return space


def _cohort(flags: AgentFlags, folder: str, members: Sequence[Member], status: bool) -> Cohort:
    """Lifetimes whose agents are kept, with their logs, models and checkpoints.

    Args:
        flags: name the folders of logs, models and checkpoints.
        folder: the study's, below those.
        members: trials of the study.
        status: whether learners write how far they are; see `status_path`.
    """
    specs = tuple(trial.specs[index] for trial, index in members)
    names = [model_name(trial.params) for trial, _ in members]
    outputs = tuple(
        Outputs(
            tensorboard=os.path.abspath(f"{flags.logs}/{folder}/{name}"),
            checkpoint=checkpoint_path(flags.runs, folder, spec),
            checkpoint_seconds=flags.checkpoint_minutes * 60,
            status=status_path(flags.runs, folder, spec) if status else None,
        )
        for spec, name in zip(specs, names)
    )
    models = tuple(os.path.abspath(f"{flags.models}/{folder}/{name}") for name in names)
    return Cohort(specs, outputs, models, evaluate=True)


def status_path(runs: str, study: str, spec: LifetimeSpec) -> str:
    """The file in which a learner writes how far it is."""
    return f"{checkpoint_path(runs, study, spec)}.status.json"


def _title(params: dict[str, Any], width: int = 0, digits: int = 0) -> str:
    """A lifetime in a line: its agent, where the study has several, and its seed."""
    arm = f"{params['arm']:{width}s} " if "arm" in params else ""
    return f"{arm}seed {params['seed']:{digits}d}"


def _say_missing(study: Study, sink: Sink) -> set[str]:
    """Say which lifetimes are not in the tables: those that failed, and those of others that this
    command was not asked for.

    Returns:
        Parameters of those that failed, in whatever command; see `key_of`.
    """
    complete = {key_of(t.params) for t in study.trials("COMPLETE")}
    failed = {key_of(t.params): t for t in study.trials("FAIL")}
    failed = {key: trial for key, trial in failed.items() if key not in complete}
    for trial in failed.values():
        sink.line(f"failed: {_title(trial.params)}: {why_failed(trial)}")
    if failed:
        sink.line(traceback_command(study, list(failed.values())))
    elsewhere = len(study.trials("RUNNING"))
    if elsewhere:
        sink.line(
            f"{plural(elsewhere, 'lifetime')} of this study that this command did not ask for "
            f"{'is' if elsewhere == 1 else 'are'} running in other processes and not in the tables"
        )
    return set(failed)


def _say_where(
    campaign: Campaign, flags: AgentFlags, storage: str, folder: str, figures: bool
) -> None:
    """Say where curves, models and logs are, if there are any.

    Args:
        campaign: theirs.
        flags: name the folders.
        storage: of the study, with its password.
        folder: the study's, below those of the flags.
        figures: whether there is something to draw.
    """
    say = campaign.sink.line
    say(f"curves:   study {campaign.name} in {shown(storage)}")
    models, logs = (f"{os.path.abspath(path)}/{folder}" for path in (flags.models, flags.logs))
    if os.path.isdir(models):
        say(f"models:   {models}")
    if os.path.isdir(logs):
        say(f"logs:     {shlex.join([installed('tensorboard'), '--logdir', logs])}")
    if not figures:
        return
    name = campaign.study.name_now()
    words = ["plot", "--study", name, "--folder", f"reports/{folder_name(name)}"]
    words += ["--models", flags.models] * (flags.models != AgentFlags.models)
    say(f"figures:  {command(*words, *storage_words(storage))}")


class AgentProgress(Progress):
    """Says how far the lifetimes are, and what their learners say of themselves.

    Args:
        sink: where lines go.
        pace: see `Progress`.
        runs: folder of the learners' files, see `status_path`; None where they write none.
        study: the study's name.
    """

    def __init__(self, sink: Sink, pace: Pace, runs: str | None, study: str) -> None:
        super().__init__(sink, pace=pace)
        self._runs, self._study = runs, study
        self._count = self._width = 0
        self._status: dict[str, Path] = {}  # from the title of a lifetime to its learner's file

    def begin(self, trials: Sequence[RunningTrial]) -> None:
        """These lifetimes begin."""
        super().begin(trials)
        self._count += len(trials)
        self._width = max([self._width, *(len(t.params.get("arm", "")) for t in trials)])
        self.budget += sum(steps_of(t.specs[0]) for t in trials)
        if self._runs is not None:
            for trial in trials:
                path = status_path(self._runs, self._study, trial.specs[0])
                self._status[_title(trial.params)] = Path(path)

    def end(self, trial: RunningTrial, value: float | None) -> None:
        """A lifetime has ended."""
        path = self._status.pop(_title(trial.params), None)
        if path is not None:
            path.unlink(missing_ok=True)
        super().end(trial, value)

    def trial_line(self, trial: RunningTrial, value: float | None) -> str:
        """See `Progress`."""
        return f"{_title(trial.params, self._width, 3)}  {outcome(trial, value)}"

    def status_line(self, steps: int, pace: str) -> str:
        """See `Progress`."""
        taken = f"{steps:,} of {self.budget:,} steps  {pace}".rstrip()
        parts = [f"lifetimes {self.done}/{self._count}  {taken}"]
        for title, path in self._status.items():
            try:
                status = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # nothing was written yet
                continue
            parts.append(f"{title}: " + ", ".join(f"{k} {v:,.1f}" for k, v in status.items()))
        return "  |  ".join(parts)
