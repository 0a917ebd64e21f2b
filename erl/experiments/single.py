"""One learner on one task, without an outer evolution: some seeds, stored, continued and reported
like any test.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from erl.cli import Sink, params_text, plural
from erl.errors import UserError
from erl.experiments.agents import Agents, missing, train_agents
from erl.experiments.flags import more_seeds, parse_settings, read_settings, study_name
from erl.experiments.single_flags import DEFAULT_LEARNER, SingleConfig
from erl.learners import canonical_name, published_settings, resolve_engine
from erl.lifetimes.living import check
from erl.search.space import learner_settings, make_context
from erl.studies.catalogue import Evolved, find_evolved
from erl.studies.configuration import SingleStudy
from erl.studies.study import Study, existing
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
        seeds=Seeds.derive(config.seed, "single", index, config.published_code),
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
    values = params_text(entry.winner.params)
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
    if learner == "P-CEM-RL" and flags.critic_workers and not flags.parallel_critic:
        # Commands of the published code name it also where critics train between generations.
        raise UserError(
            "P-CEM-RL has a critic worker with --parallel_critic only: add it, or leave out "
            "--num_critic_worker (--critic_workers)"
        )
    for name in by_flag.keys() & by_set.keys():
        raise UserError(f"{name} is given by --set and by {flags.typed(name)}")
    if learner == "TD3":
        # The commands of AES-RL's published code have them for every algorithm.
        if by_flag.get("ray_address") is not None and flags.actor_executor is None:
            del by_flag["actor_executor"]
        published = ("ray_address", "actor_workers", "critic_workers")
        if left_out := [name for name in published if by_flag.pop(name, None) is not None]:
            names = " and ".join(map(flags.typed, left_out))
            note(f"{names}: TD3 has no such workers, and they are left out")
    return by_set | by_flag


def continued(flags: SingleConfig, before: Study | None, config: SingleStudy) -> SingleStudy:
    """The configuration as it is if the study exists already: with its engine, unless the flags
    name one.

    Args:
        flags: of the command.
        before: the study as it is; None for a new one.
        config: that the flags ask for.

    Raises:
        UserError: a new study would have a root seed that nothing uses.
    """
    stored = None if before is None else before.config
    if isinstance(stored, SingleStudy):
        # Another learner is refused, and need not know this engine.
        same_engine = flags.engine == "auto" and stored.learner == config.learner
        engine = stored.engine if same_engine else config.engine
        return replace(config, engine=engine)
    # A study that an earlier version began so goes on.
    if flags.published_code and flags.seed != SingleConfig.seed:
        raise UserError(
            f"--seed {flags.seed} would change nothing: with --published_code the number of a "
            f"lifetime is its seed, and --seeds or --nb_seeds choose them"
        )
    return config


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
    before = existing(flags.storage, name) if flags.study is None else Study(flags.storage, name)
    config = continued(flags, before, config)

    def of_seed(params: dict[str, Any]) -> LifetimeSpec:
        return lifetime(config, params["seed"])

    check(lifetime(config, indices[0]))
    wanted = [{"seed": seed} for seed in indices]
    todo = missing(before, wanted)
    counts = f"{plural(len(indices), 'seed')} x {flags.steps:,} steps"
    more = more_seeds() if flags.seeds is None else "; --seeds names others"
    agents = Agents(
        name=name,
        storage=flags.storage,
        config=config,
        wanted=wanted,
        todo=todo,
        lifetime=of_seed,
        counts=counts,
        more=more,
    )
    return train_agents(flags, agents, before, sink)
