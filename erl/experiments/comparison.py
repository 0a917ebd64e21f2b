"""The test phase: agents with the best evolved reservoirs against agents without, on seeds that
selection never saw.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from erl.cli import Sink, command, plural
from erl.errors import UserError
from erl.experiments.agents import Agents, missing, train_agents
from erl.experiments.arms import arm_lifetime, arm_names, control_names, known_names
from erl.experiments.comparison_flags import (
    DEFAULT_STEPS,
    ComparisonConfig,
    ComparisonFlags,
    GeneralizationComparisonConfig,
    MultiComparisonConfig,
)
from erl.experiments.display import DashboardNotes
from erl.experiments.evolution import note_commands
from erl.experiments.flags import more_seeds, seed_indices, thousands
from erl.experiments.tested import Best, load_best
from erl.learners import resolve_engine
from erl.lifetimes.living import check
from erl.search.space import NO_BIAS
from erl.studies.configuration import EvolutionStudy, TestStudy, evolved_arm
from erl.studies.following import UID
from erl.studies.study import Study, existing
from erl.studies.trials import lifetime_records
from erl.studies.winner import TEST_OF, linked_test, reached_by, store_tested
from erl.worlds.arguments import parse_arguments
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import bare_name

__all__ = [
    "ComparisonConfig",
    "GeneralizationComparisonConfig",
    "MultiComparisonConfig",
    "compare",
]

# Characters of arguments in a name, which becomes the name of folders too.
MAX_SLUG = 60


def compare(flags: ComparisonFlags, sink: Sink) -> int:
    """Train every agent on every test seed, store the curves in the sibling study, and print the
    table.

    Returns:
        Exit code: 0, or 1 if a lifetime failed.

    Raises:
        UserError: bad input; nothing has been written then.
    """
    best = load_best(flags, sink)
    name, config, before, link = _the_test(flags, best, sink)
    evolution, evolved = config.evolution, best.winner.params

    def lifetime(params: dict[str, Any]) -> LifetimeSpec:
        return arm_lifetime(params["arm"], params["seed"], config, evolved)

    arms = known_names(evolution, evolved)
    asked, seeds = _asked(flags, evolution, evolved), seed_indices(flags.nb_seeds)
    for arm in asked:
        try:
            check(lifetime({"arm": arm, "seed": 0}))
        except UserError as e:
            others = "" if arm == evolution.learner else ", and --arms chooses others"
            raise UserError(f"the agent {arm} cannot be trained{others}: {e}") from e
    wanted = [{"arm": arm, "seed": seed} for arm in asked for seed in seeds]
    todo = missing(before, wanted)
    counts = (
        f"{plural(len(asked), 'agent')} x {plural(len(seeds), 'seed')} x "
        f"{flags.training_steps:,} steps"
    )
    agents = Agents(
        name=name,
        storage=flags.results,
        config=config,
        wanted=wanted,
        todo=todo,
        lifetime=lifetime,
        counts=counts,
        more=more_seeds(),
        notes=_notes(flags.training_steps, len(todo)),
        arms=tuple(arms),
        attrs={} if link is None else {TEST_OF: link},
    )

    def say(study: Study) -> None:
        _say_winner(study, evolved_arm(arms), best, config, sink)

    return train_agents(flags, agents, before, sink, say)


def _notes(steps: int, left: int) -> tuple[str, ...]:
    """A note if so many lifetimes of ER-MRL's number of steps are left that they take long."""
    if steps != DEFAULT_STEPS or left < 2:
        return ()
    return (
        f"--training_steps is {steps:,}, ER-MRL's number: {left * steps:,} steps in all. "
        f"--training_steps 1000000 takes a tenth of the time",
    )


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


def _the_test(
    flags: ComparisonFlags, best: Best, sink: Sink
) -> tuple[str, TestStudy, Study | None, str | None]:
    """The study of a test. It is known by its evolution, or else by its name.

    Returns:
        Its name and configuration, the study as it is (None for a new one), and its `TEST_OF` (None
        where the evolution has no `UID`).

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
    test_name, before, link = _stored_test(flags, best, test_name)
    stored = None if before is None else before.config
    guessed = best.study is None and not flags.evolved
    # Journals were once taken for reservoirs without a bias, with the last action, and for a set of
    # environments the test's own stood beside them, where nothing reads it.
    if isinstance(stored, TestStudy) and guessed:
        kept = (*NO_BIAS, "feed_action", *(["env_id"] if evolution.env_ids else []))
        same = {name: getattr(stored.evolution, name) for name in kept}
        evolution = replace(evolution, **same)
    engine = _engine(flags, evolution, stored, sink)
    params, steps = best.winner.params, flags.training_steps
    config = TestStudy(evolution, params, steps, engine, env_id, env_kwargs, del_obs)
    return test_name, config, before, link


def _stored_test(
    flags: ComparisonFlags, best: Best, test_name: str
) -> tuple[str, Study | None, str | None]:
    """The test as it is stored, whatever it and its evolution are called by now.

    Returns:
        Its name, its study if there is one, and its link (None where the evolution has no `UID`).
    """
    names = [f"{test_name}{'_published' * flags.published_code}"]
    if best.study is not None and getattr(best.study.config, "published_code", False):
        # Its tests have --published_code in any case. Those with the flag had a name of their own.
        names = [test_name, f"{test_name}_published"]
    uid = None if best.study is None else best.study.optuna.user_attrs.get(UID)
    links = [None if uid is None else uid + name.removeprefix(best.name) for name in names]
    for name, link in zip(names, links):
        name = (link and linked_test(flags.results, link)) or name
        if (before := existing(flags.results, name)) is not None:
            return name, before, link
    return names[0], None, links[0]


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
    asked, known = arm_names(evolution, params), known_names(evolution, params)
    if flags.arms is not None:
        asked = list(dict.fromkeys(a.strip() for a in flags.arms.split(",")))
    if flags.controls:
        asked += [c for c in control_names(evolution, params) if c not in asked]
    for arm in asked:
        if arm not in known:
            raise UserError(f"unknown agent {arm!r} in --arms (known: {', '.join(known)})")
    return asked


def _say_winner(study: Study, arm: str | None, best: Best, config: TestStudy, sink: Sink) -> None:
    """Say what the evolved agent reached: when proposed, trained again, and on the test seeds. The
    last is stored with the evolution too.

    Args:
        study: of the test.
        arm: the agent with the settings that it was evolved with.
        best: what is tested.
        config: of the test.
        sink: where the line goes.
    """
    records = {
        t.params["seed"]: lifetime_records(t)[0]
        for t in study.trials("COMPLETE")
        if t.params["arm"] == arm
    }
    if best.evolution.fitness == "training":
        scores = [r.training_return for _, r in sorted(records.items())]
    else:
        scores = [float(np.mean(r.final_returns)) for _, r in sorted(records.items())]
    known = [s for s in scores if s is not None]
    if arm is None or not known:
        return
    steps = max(r.steps for r in records.values())
    found = reached_by(best.winner, arm, config, known, steps)
    sink.line(f"evolved:  {best.title}, {best.winner.reached}; {found.line}")
    evolution = best.study
    if evolution is None:
        return
    # The evolution may have been deleted meanwhile, or its storage may not be written to.
    with suppress(UserError, KeyError):
        store_tested(evolution, study.name_now(), found)
        commands = note_commands(best.evolution, evolution.address)
        DashboardNotes(evolution, False, commands).study()
