"""The agents that a test compares: the learner alone, with the evolved reservoir, and the controls
that show what made the difference.

| agent | what it is |
|---|---|
| `PPO` | the learner (whatever its name) on the observation: the baseline |
| `RES_PPO_0.0003` … | with the evolved reservoirs, at ER-MRL's learning rates |
| `RES_PPO` | the same, with the study's learning rate; other learners (`RES_SAC`) keep theirs |
| `STACK_PPO` | the last four observations in place of a reservoir: memory without recurrence |
| `INPUTS_PPO` | the last four inputs of a reservoir: observations, actions and rewards |
| `RecurrentPPO` | sb3-contrib's LSTM on observations: memory that is trained |
| `INPUTS_RecurrentPPO` | the LSTM on the last input; it takes long, so `--arms` has to name it |
| `RANDOM_RES_PPO…` | reservoirs that were not evolved, drawn from the search space |
| `NOREC_RES_PPO…` | the evolved reservoirs with W = 0 (a leak below 1 still remembers) |

With a context of the user's own in place of reservoirs, `CONTEXT_` stands for `RES_`, and there is
no `NOREC_`. Where settings of the learner were evolved beside it, `EVOLVED_PPO` is the learner
alone with them. Where no reservoir was evolved, but settings of the learner alone:

| agent | what it is |
|---|---|
| `PPO` | the learner with the study's settings |
| `EVOLVED_PPO` | with the evolved settings |
| `RANDOM_PPO` | with settings drawn from the search space |
"""

import inspect
from typing import Any

import numpy as np

from erl.search.space import (
    LEARNER,
    draw_from,
    feeds_action,
    learner_settings,
    make_context,
    search_space,
)
from erl.studies.configuration import EvolutionStudy, TestStudy, agent_name
from erl.worlds.own_context import DelayLine, OwnContext
from erl.worlds.reservoirs import Context
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

RATES = (0.0003, 0.0001)
# ER-MRL tests this learning rate too where velocities are hidden, and with several reservoirs in
# one environment. Here also after an evolution over a set of environments.
MORE_RATES = (0.00005,)
FRAME_STACK = 4
LSTM = "RecurrentPPO"
LSTM_ON_INPUTS = f"INPUTS_{LSTM}"
# Learners that are tested at these rates. Reservoirs of other learners were evolved with rates that
# may be far from them.
RATED = ("PPO", LSTM)


def arm_names(evolution: EvolutionStudy, params: dict[str, float]) -> list[str]:
    """ER-MRL's agents, the learner alone first; and the learner alone with its evolved settings,
    where there are any.

    Args:
        evolution: configuration of the study that was evolved.
        params: its best hyperparameters.
    """
    learner = evolution.learner
    if evolution.nb_res == 0:
        return [learner, agent_name(learner, "EVOLVED")]
    evolved = agent_name(learner, "RES" if evolution.context is None else "CONTEXT")
    # What evolved settings of the learner add is not the reservoir's doing.
    alone = [agent_name(learner, "EVOLVED")] * any(name.startswith(LEARNER) for name in params)
    if learner not in RATED or "learning_rate" in learner_settings(evolution, params):
        return [learner, evolved, *alone]
    rates = RATES + (MORE_RATES if evolution.del_obs or evolution.nb_res else ())
    return [learner, *(f"{evolved}_{rate:.10f}".rstrip("0") for rate in rates), *alone]


def control_names(evolution: EvolutionStudy, params: dict[str, float]) -> list[str]:
    """Agents with other memories, or with reservoirs that lack one property of the evolved ones."""
    if evolution.nb_res == 0:
        return [f"RANDOM_{evolution.learner}"]
    reservoir = arm_names(evolution, params)[1]
    controls = [f"{seen}_{evolution.learner}" for seen in ("STACK", "INPUTS")]
    if any(
        r.low != r.high and not k.startswith(LEARNER) for k, r in search_space(evolution).items()
    ):
        controls += [f"RANDOM_{reservoir}"]
    controls += [f"NOREC_{reservoir}"] * (evolution.context is None)
    return controls if evolution.learner == LSTM else [*controls, LSTM]


def known_names(evolution: EvolutionStudy, params: dict[str, float]) -> list[str]:
    """All agents: those of `arm_names` and `control_names`, and the LSTM on the inputs of a
    reservoir, which takes as long as all others together and is trained only where it is named.
    """
    known = arm_names(evolution, params) + control_names(evolution, params)
    return known + [LSTM_ON_INPUTS] * (evolution.nb_res != 0 and LSTM_ON_INPUTS not in known)


def arm_lifetime(arm: str, index: int, config: TestStudy, params: dict[str, float]) -> LifetimeSpec:
    """A test lifetime.

    Args:
        arm: one of `known_names`.
        index: of the test seed.
        config: of the test.
        params: evolved hyperparameters.
    """
    evolution = config.evolution
    learner, settings, engine = evolution.learner, dict(evolution.learner_config), config.engine
    context, frame_stack = None, 1
    if arm in (LSTM, LSTM_ON_INPUTS) and learner != LSTM:
        learner, settings, engine = LSTM, _lstm_settings(learner, settings), "sb3"
    if arm.startswith("STACK_"):
        frame_stack = FRAME_STACK
    elif arm.startswith("INPUTS_"):
        context = _inputs(evolution, 1 if learner == LSTM else FRAME_STACK)
    elif arm != learner:
        if evolution.nb_res == 0 and arm.startswith("RANDOM_"):
            params = draw(evolution, index)
        elif arm.startswith("RANDOM_"):
            # The learner's own settings stay as evolved: reservoirs are what this agent lacks.
            params = params | {
                k: v for k, v in draw(evolution, index).items() if not k.startswith(LEARNER)
            }
        elif arm.startswith("NOREC_"):
            params = {k: 0.0 if k.startswith("sr") else v for k, v in params.items()}
        settings = learner_settings(evolution, params)
        _, rated, rate = arm.rpartition(f"_{learner}_")
        if rated:
            settings["learning_rate"] = float(rate)
        if arm != agent_name(learner, "EVOLVED"):
            context = make_context(evolution, params)
    return LifetimeSpec(
        task=Task(config.environments[0], config.hides_velocities, frame_stack, config.arguments),
        learner=LearnerSpec(learner, settings, engine),
        steps=config.training_steps,
        seeds=Seeds.derive(evolution.seed, "test", index, evolution.published_code),
        context=context,
        ep_eval=evolution.ep_eval,
    )


def _inputs(evolution: EvolutionStudy, length: int) -> Context:
    """The last inputs that the evolved reservoirs would have, as they are."""
    return Context(
        reservoirs=(),
        reset_res=evolution.reset_res,
        feed_action=feeds_action(evolution),
        own=OwnContext(f"{DelayLine.__module__}:{DelayLine.__name__}", {"length": length}),
    )


def _lstm_settings(learner: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What of PPO's settings RecurrentPPO takes too; another learner's mean nothing to it."""
    if learner != "PPO":
        return {}
    from sb3_contrib import RecurrentPPO

    taken = set(inspect.signature(RecurrentPPO.__init__).parameters) | {"n_envs", "normalize"}
    return {k: v for k, v in settings.items() if k in taken and k != "policy"}


def draw(evolution: EvolutionStudy, index: int) -> dict[str, float]:
    """Hyperparameters drawn from a study's search space, uniformly on each parameter's scale; for
    each test seed others.
    """
    rng = np.random.default_rng(np.random.SeedSequence(evolution.seed, spawn_key=(3, index)))
    return draw_from(search_space(evolution), rng)
