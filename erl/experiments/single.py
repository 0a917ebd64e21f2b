"""One learner on one task, without an outer evolution: some seeds, stored, continued and reported
like any test.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from erl.cli import Sink, plural
from erl.errors import UserError
from erl.experiments.campaign import (
    Campaign,
    GivenTrials,
    Progress,
    agent_cohort,
    make_executor,
    outcome,
    say_where,
    status_path,
    steps_in_checkpoints,
)
from erl.experiments.films import film_agents, film_commands, model_name, say_film
from erl.experiments.flags import (
    MAX_SEED,
    more_seeds,
    parse_settings,
    read_settings,
    study_name,
)
from erl.experiments.forecast import (
    Outlook,
    Pace,
    announce,
    check_at_once,
    dry_run,
    pace_of,
    steps_of,
)
from erl.experiments.single_flags import DEFAULT_LEARNER, SingleConfig
from erl.experiments.trials import Member
from erl.files import folder_name
from erl.learners import canonical_name, published_settings, resolve_engine
from erl.lifetimes.living import Cohort, check
from erl.search.space import learner_settings, make_context
from erl.studies.catalogue import Evolved, find_evolved
from erl.studies.configuration import SingleStudy
from erl.studies.distributions import integer
from erl.studies.storage import shown
from erl.studies.study import Study, check_study, stored_config
from erl.studies.tables import agent_tables, lines
from erl.studies.trials import RunningTrial, why_failed
from erl.worlds.own_context import OwnContext
from erl.worlds.reservoirs import Context
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task


def lifetime(config: SingleStudy, index: int) -> LifetimeSpec:
    """The lifetime with the index-th seeds; config is the study's."""
    return LifetimeSpec(
        task=Task(config.env_id, config.del_obs, kwargs=config.env_kwargs),
        learner=LearnerSpec(config.learner, config.learner_config, config.engine),
        steps=config.steps,
        seeds=Seeds.published(index)
        if config.published_code
        else Seeds.derive(config.seed, "single", index),
        context=config.context,
        ep_eval=config.ep_eval,
    )


def evolved_for(flags: SingleConfig, sink: Sink) -> Evolved | None:
    """The entry of the catalogue that the flags ask for; None without `--reservoir`.

    Raises:
        UserError: there is none, or it is for a task of which the agent sees more, or less.
    """
    if flags.reservoir is None:
        return None
    learner = None if flags.learner is None else canonical_name(flags.learner)
    entry = find_evolved(flags.reservoir, flags.env_id, learner, with_reservoirs=True)
    evolution = entry.evolution
    if evolution.nb_res == 0:
        raise UserError(
            f"--reservoir: {entry.line} has no reservoir: settings of {evolution.learner} were "
            f"evolved"
        )
    if flags.env_id in evolution.environments and flags.del_obs != evolution.del_obs:
        hidden = "without" if flags.del_obs else "with"
        raise UserError(
            f"--reservoir: {entry.line} is not for {flags.env_id} {hidden} velocities; "
            f"--del_obs {evolution.del_obs} is what it was evolved with"
        )
    values = ", ".join(f"{k} {v:.6g}" for k, v in entry.winner.params.items())
    sink.line(f"reservoir:       {entry.line}, {entry.winner.reached}, {values}")
    if entry.remark:
        sink.line(f"note: {entry.remark}")
    return entry


def study_config(flags: SingleConfig, sink: Sink, entry: Evolved | None = None) -> SingleStudy:
    """What the flags ask for, as a study stores it.

    Args:
        flags: of the command.
        sink: where lines go.
        entry: of the catalogue, whose reservoirs the agent has.
    """
    usual = DEFAULT_LEARNER if entry is None else entry.evolution.learner
    learner = canonical_name(flags.learner or usual)
    further = further_settings(flags, learner, sink.line)
    settings, env_kwargs = read_settings(
        flags.learner_config, flags.env_kwargs, [flags.env_id], sink.line, learner, further
    )
    if "mean_update" in further and "mean_update_param" in settings.keys() - further.keys():
        r, before = settings["mean_update_param"], settings.get("mean_update", "baseline-relative")
        if further["mean_update"] != before:
            sink.line(
                f"{flags.learner_config}: mean_update_param {r} is kept for "
                f"{further['mean_update']}, though the file has it for {before}; in AES-RL's paper "
                f"it is negative for baseline-absolute, and positive for the others"
            )
    settings = settings | further
    context = None
    if flags.context is not None:
        own = OwnContext(flags.context, parse_settings(flags.context_set, "--context_set"))
        context = Context((), feed_action=not flags.published_code, own=own)
    if entry is not None:
        evolution = replace(entry.evolution, published_code=flags.published_code)
        context = make_context(evolution, entry.winner.params)
        if learner == evolution.learner:
            evolved = learner_settings(evolution, entry.winner.params)
            settings = evolved | settings
            if evolved:
                sink.line(f"its settings:    {json.dumps(evolved)}")
    if flags.published_code:
        settings = published_settings(learner) | settings
    if flags.redis_password is not None:
        sink.line("--redis_password does not apply here and is left out")
    return SingleStudy(
        learner=learner,
        env_id=flags.env_id,
        env_kwargs=env_kwargs,
        steps=flags.steps,
        seed=flags.seed,
        learner_config=settings,
        engine=resolve_engine(learner, flags.engine, settings, sink.line),
        del_obs=flags.del_obs,
        ep_eval=flags.ep_eval,
        published_code=flags.published_code,
        reservoir=None if entry is None else entry.name,
        context=context,
    )


def further_settings(
    flags: SingleConfig, learner: str, note: Callable[[str], None]
) -> dict[str, Any]:
    """Settings from `--set` and from flags of their own.

    Args:
        flags: of the command.
        learner: whom they are for.
        note: is given a line where flags do not apply to it.

    Raises:
        UserError: one is given by both.
    """
    by_set, by_flag = parse_settings(flags.set), flags.settings()
    for name in by_flag.keys() & by_set.keys():
        raise UserError(f"{name} is given by --set and by --{name}")
    if learner == "TD3":
        # The commands of AES-RL's published code have them for every algorithm.
        if by_flag.get("ray_address") is not None and flags.actor_executor is None:
            del by_flag["actor_executor"]
        published = ("ray_address", "actor_workers", "critic_workers")
        if left_out := [name for name in published if by_flag.pop(name, None) is not None]:
            names = " and ".join(f"--{name}" for name in left_out)
            note(f"{names}: TD3 has no such workers, and they are left out")
    return by_set | by_flag


def continued(flags: SingleConfig, name: str, config: SingleStudy) -> tuple[SingleStudy, set[int]]:
    """The configuration as it is if the study exists already, with its engine unless the flags name
    one, and the seeds that it has.

    Raises:
        UserError: a new study would have a root seed that nothing uses.
    """
    stored = stored_config(flags.storage, name)
    if isinstance(stored, SingleStudy):
        there = {t.params["seed"] for t in Study(flags.storage, name).trials("COMPLETE")}
        engine = stored.engine if flags.engine == "auto" else config.engine
        return replace(config, engine=engine), there
    # A study that an earlier version began so goes on.
    if flags.published_code and flags.seed != SingleConfig.seed:
        raise UserError(
            f"--seed {flags.seed} would change nothing: with --published_code the number of a "
            f"lifetime is its seed, and --seeds or --nb_seeds choose them"
        )
    return config, set()


def run(flags: SingleConfig, sink: Sink) -> int:
    """Train the learner on every seed, store the records, and say what was reached.

    Returns:
        Exit code: 0, or 1 if a lifetime failed.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    indices = flags.indices()
    entry = evolved_for(flags, sink)
    config = study_config(flags, sink, entry)
    flags = replace(flags, learner=config.learner)
    name = flags.study or study_name(flags.subject(), flags.h_test, flags.steps)
    if flags.study is not None:
        Study(flags.storage, name)  # it exists
    folder = folder_name(name)
    config, there = continued(flags, name, config)
    check(lifetime(config, indices[0]))
    todo = [seed for seed in indices if seed not in there]
    specs = [lifetime(config, seed) for seed in todo or indices[:1]]
    counts = f"{plural(len(indices), 'seed')} x {flags.steps:,} steps, {len(todo)} to train"
    taken = steps_in_checkpoints(flags.runs, name, specs)
    outlook = Outlook(counts, specs, len(todo), taken=taken)
    check_at_once(flags, outlook)
    check_study(flags.storage, name, config, Path(flags.models) / folder)
    sink.line(f"{name} in {shown(flags.storage)}")
    if flags.dry_run:
        return dry_run(flags, outlook, sink, make_executor)
    campaign = Campaign(flags, name, config, sink, specs[0])
    study = campaign.study

    def plan(params: dict[str, Any]) -> list[LifetimeSpec]:
        return [lifetime(config, params["seed"])]

    def make_cohort(members: Sequence[Member]) -> Cohort:
        specs = [trial.specs[index] for trial, index in members]
        names = [model_name(trial.params) for trial, _ in members]
        return agent_cohort(flags, specs, folder, names, status=True)

    wanted = [{"seed": seed} for seed in indices]
    source = GivenTrials(study, wanted, {"seed": integer(0, MAX_SEED)}, plan, flags.max_retries)
    if todo:
        announce(outlook, campaign.executor, sink)
    else:
        more = more_seeds() if flags.seeds is None else "; --seeds names others"
        sink.line(f"{len(indices)} of {len(indices)} seeds are there{more}")
    pace = pace_of(specs, campaign.executor.workers)

    def commands(name: str, trial: RunningTrial | None) -> list[str]:
        return film_commands(flags, folder, trial)

    progress = TrainingProgress(campaign, flags, pace)
    if not campaign.run(source, make_cohort, progress, commands=commands):
        sink.line("interrupted: run the same command again to continue")
        return 130
    complete = {t.params["seed"] for t in study.trials("COMPLETE")}
    failed = {t.params["seed"]: t for t in study.trials("FAIL") if t.params["seed"] not in complete}
    for seed, trial in failed.items():
        sink.line(f"failed: seed {seed}: {why_failed(trial)}")
    elsewhere = [seed for seed in indices if seed not in complete | failed.keys()]
    if elsewhere:
        sink.line(
            f"another process trains seed{'s' * (len(elsewhere) > 1)} "
            f"{', '.join(map(str, elsewhere))}: run the same command later to see the results"
        )
    for line in lines(agent_tables(study)):
        sink.line(line)
    say_where(campaign, flags, flags.storage, folder)
    say_film(study, flags, folder, None, sink)
    if flags.video:
        film_agents(study, flags, folder, sink)
    return 1 if failed.keys() & set(indices) else 0


class TrainingProgress(Progress):
    """Says how far the lifetimes are, and what their learners say of themselves.

    Args:
        campaign: theirs.
        flags: theirs.
        pace: see `Progress`.
    """

    def __init__(self, campaign: Campaign, flags: SingleConfig, pace: Pace | None = None) -> None:
        super().__init__(campaign.sink, pace=pace)
        self._campaign, self._flags = campaign, flags
        self._status: dict[int, Path] = {}  # seed -> file of its learner

    def begin(self, trials: Sequence[RunningTrial]) -> None:
        """These lifetimes begin."""
        super().begin(trials)
        name = self._campaign.name
        self.budget += sum(steps_of(t.specs[0]) for t in trials)
        self._status |= {
            t.params["seed"]: Path(status_path(self._flags.runs, name, t.specs[0])) for t in trials
        }

    def end(self, trial: RunningTrial, value: float | None) -> None:
        """A lifetime has ended."""
        self._status.pop(trial.params["seed"]).unlink(missing_ok=True)
        super().end(trial, value)

    def trial_line(self, trial: RunningTrial, value: float | None) -> str:
        """See `Progress`."""
        return f"seed {trial.params['seed']:3d}  {outcome(trial, value)}"

    def status_line(self, steps: int, pace: str) -> str:
        """See `Progress`."""
        parts = [f"{steps:,} of {self.budget:,} steps  {pace}".rstrip()]
        for seed, path in self._status.items():
            try:
                status = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # nothing was written yet
                continue
            parts.append(f"seed {seed}: " + ", ".join(f"{k} {v:,.1f}" for k, v in status.items()))
        return "  |  ".join(parts)
