"""What each agent of a test is: how its lifetime differs from its neighbours', and in nothing
else.
"""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from conftest import Lines

from erl.experiments.arms import arm_lifetime, arm_names, control_names, draw, known_names
from erl.experiments.evolution import EvolutionConfig, MultiEvolutionConfig
from erl.experiments.evolution_study import study_config
from erl.learners.sb3 import algorithms
from erl.lifetimes.living import check
from erl.search.space import make_context, search_space
from erl.studies.configuration import EvolutionStudy, TestStudy
from erl.worlds.context import ContextEncoder
from erl.worlds.own_context import OwnContext
from erl.worlds.reservoirs import ReservoirBank
from erl.worlds.specification import Seeds
from erl.worlds.tasks import check_task, make_env

PARAMS = {"sr": 1.2, "lr": 0.4, "iss": 2.0}
SEVERAL = {"sr_1": 1.2, "lr_1": 0.4, "iss_1": 2.0, "sr_2": 0.3, "lr_2": 1.0, "iss_2": 0.5}


def of_a_study(kind=EvolutionConfig, settings=None, **options):
    """A test's configuration, of a study of this kind."""
    evolution = study_config(
        kind(env_id="CartPole-v1", units=6, fixed_iss=False, **options), Lines()
    )
    evolution = replace(evolution, learner_config=settings or {})
    return TestStudy(evolution, {}, training_steps=123, engine=evolution.engine)


# -- names --


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (of_a_study(), ["PPO", "RES_PPO_0.0003", "RES_PPO_0.0001"]),
        (of_a_study(del_obs=True), ["PPO", "RES_PPO_0.0003", "RES_PPO_0.0001", "RES_PPO_0.00005"]),
        (
            of_a_study(MultiEvolutionConfig),
            ["PPO", "RES_PPO_0.0003", "RES_PPO_0.0001", "RES_PPO_0.00005"],
        ),
        (of_a_study(settings={"learning_rate": 1e-3}), ["PPO", "RES_PPO"]),
        (of_a_study(learner="dqn"), ["DQN", "RES_DQN"]),
    ],
)
def test_er_mrls_agents(config, names):
    assert arm_names(config.evolution, PARAMS) == names


def test_an_evolved_learning_rate_leaves_one_agent():
    assert arm_names(of_a_study().evolution, PARAMS | {"learner.learning_rate": 0.01}) == [
        "PPO",
        "RES_PPO",
        "EVOLVED_PPO",
    ]


def test_the_learner_alone_with_its_evolved_settings():
    config, params = of_a_study(settings={"n_steps": 64}), PARAMS | {"learner.gamma": 0.9}
    names = arm_names(config.evolution, params)
    assert names == ["PPO", "RES_PPO_0.0003", "RES_PPO_0.0001", "EVOLVED_PPO"]
    plain, evolved = (arm_lifetime(arm, 2, config, params) for arm in ("PPO", "EVOLVED_PPO"))
    assert plain.learner.config == {"n_steps": 64}
    settings = replace(plain.learner, config={"n_steps": 64, "gamma": 0.9})
    assert evolved == replace(plain, learner=settings)


def test_controls():
    evolution = of_a_study().evolution
    expected = [
        "STACK_PPO",
        "INPUTS_PPO",
        "RANDOM_RES_PPO_0.0003",
        "NOREC_RES_PPO_0.0003",
        "RecurrentPPO",
    ]
    assert control_names(evolution, PARAMS) == expected
    assert known_names(evolution, PARAMS)[-1] == "INPUTS_RecurrentPPO"
    rated = of_a_study(settings={"learning_rate": 1.0}).evolution
    assert "RANDOM_RES_PPO" in control_names(rated, PARAMS)
    # Where the LSTM is the learner, it is the baseline already.
    lstm = of_a_study(learner="RecurrentPPO").evolution
    assert "RecurrentPPO" not in control_names(lstm, PARAMS)
    assert known_names(lstm, PARAMS).count("INPUTS_RecurrentPPO") == 1


def test_where_no_reservoir_was_searched_there_is_none_that_was_not_evolved():
    """It would be the evolved one."""
    evolution = of_a_study().evolution
    one = {"fixed_iss": True, "min_sr": 0.9, "max_sr": 0.9, "min_lr": 0.5, "max_lr": 0.5}
    of_learner = {"evolve": "learner.gamma=0.9:0.99"}
    assert "RANDOM_RES_PPO_0.0003" in control_names(replace(evolution, **of_learner), PARAMS)
    for searched in (one | of_learner, {"context": "my:Context", **of_learner}):
        names = control_names(replace(evolution, **searched), PARAMS)
        assert "INPUTS_PPO" in names
        assert not any(name.startswith("RANDOM") for name in names)


@pytest.mark.parametrize("learner", ["PPO", "DQN", "RecurrentPPO"])
@pytest.mark.parametrize("settings", [None, {"learning_rate": 0.001}])
def test_every_agent_can_be_trained(learner, settings):
    config = of_a_study(learner=learner, settings=settings)
    arms = known_names(config.evolution, PARAMS | {"learner.gamma": 0.9})
    assert len(set(arms)) == len(arms)
    for arm in arms:
        check(arm_lifetime(arm, 0, config, PARAMS | {"learner.gamma": 0.9}))


# -- lifetimes --


@pytest.mark.parametrize(
    ("kind", "params"), [(EvolutionConfig, PARAMS), (MultiEvolutionConfig, SEVERAL)]
)
def test_each_agent_differs_in_what_its_name_says_and_in_nothing_else(kind, params):
    several = {"nb_res": 2} if kind is MultiEvolutionConfig else {}
    config = of_a_study(
        kind,
        {"n_steps": 64, "gamma": 0.9},
        seed=5,
        ep_eval=3,
        skip_c=True,
        reset_res=False,
        **several,
    )
    plain, fast, slow, stack, norec, lstm = (
        arm_lifetime(arm, 2, config, params)
        for arm in (
            "PPO",
            "RES_PPO_0.0003",
            "RES_PPO_0.0001",
            "STACK_PPO",
            "NOREC_RES_PPO_0.0003",
            "RecurrentPPO",
        )
    )
    assert plain.context is None
    assert plain.learner.config == {"n_steps": 64, "gamma": 0.9}
    assert (plain.steps, plain.ep_eval, plain.task.env_id) == (123, 3, "CartPole-v1")
    assert plain.seeds == Seeds.derive(5, "test", 2)
    rated = replace(plain.learner, config={**plain.learner.config, "learning_rate": 0.0003})
    context = make_context(config.evolution, params)
    assert fast == replace(plain, context=context, learner=rated)
    rated = replace(rated, config={**plain.learner.config, "learning_rate": 0.0001})
    assert slow == replace(fast, learner=rated)
    assert stack == replace(plain, task=replace(plain.task, frame_stack=4))
    assert norec == replace(
        fast,
        context=replace(context, reservoirs=tuple(replace(r, sr=0.0) for r in context.reservoirs)),
    )
    assert lstm == replace(plain, learner=replace(plain.learner, name="RecurrentPPO", engine="sb3"))


def test_what_the_study_set_is_tested_as_it_was_evolved():
    config = of_a_study(
        del_obs=True,
        skip_c=True,
        reset_res=False,
        obs_units=3,
        evolve="units=4:8,learner.gamma=0.5:0.9",
    )
    params = PARAMS | {"units": 8, "learner.gamma": 0.7}
    arms = arm_names(config.evolution, params)
    for arm in arms + control_names(config.evolution, params):
        assert arm_lifetime(arm, 0, config, params).task.del_obs
    spec = arm_lifetime(arms[1], 0, config, params)
    assert spec.learner.config == {"gamma": 0.7, "learning_rate": 0.0003}
    assert spec.context.reservoirs[0].units == 8
    assert (spec.context.skip_c, spec.context.reset_res, spec.context.obs_units) == (True, False, 3)
    observation, _ = spec.make_env().reset(seed=0)
    assert observation.shape == (
        3 + 2 + 2 + 1,
    )  # neurons, observation without velocities, one-hot action, reward


def test_the_agent_without_a_reservoir_has_the_studys_settings_not_the_proposed_ones():
    config = of_a_study(settings={"gamma": 0.9}, evolve="learner.gamma=0.5:0.8")
    params = PARAMS | {"learner.gamma": 0.6}
    assert arm_lifetime("PPO", 0, config, params).learner.config == {"gamma": 0.9}
    assert arm_lifetime("STACK_PPO", 0, config, params).learner.config == {"gamma": 0.9}


def test_published_code_uses_the_index_for_a_seed_and_feeds_no_action():
    config = of_a_study(published_code=True)
    spec = arm_lifetime("RANDOM_RES_PPO_0.0003", 3, config, PARAMS)
    assert spec.seeds == Seeds.published(3)
    assert not spec.context.feed_action


def test_settings_with_a_learning_rate_keep_it():
    config = of_a_study(settings={"learning_rate": "lin_0.002"})
    assert arm_lifetime("RES_PPO", 0, config, PARAMS).learner.config == {
        "learning_rate": "lin_0.002"
    }
    evolved = PARAMS | {"learner.learning_rate": 0.004}
    assert arm_lifetime("RES_PPO", 0, config, evolved).learner.config == {"learning_rate": 0.004}
    assert arm_lifetime("NOREC_RES_PPO", 0, config, evolved).learner.config == {
        "learning_rate": 0.004
    }
    assert arm_lifetime("RANDOM_RES_PPO", 0, config, evolved).learner.config == {
        "learning_rate": 0.004
    }


# -- RANDOM --


@pytest.mark.parametrize(
    ("kind", "evolved"), [(EvolutionConfig, PARAMS), (MultiEvolutionConfig, SEVERAL)]
)
def test_draws_lie_in_the_search_space_and_follow_from_the_seed(kind, evolved):
    several = {"nb_res": 2} if kind is MultiEvolutionConfig else {}
    evolution = of_a_study(
        kind, evolve="units=4:8,bias=0:1", min_sr=0.5, max_sr=2.0, **several
    ).evolution
    space = search_space(evolution)
    draws = [draw(evolution, i) for i in range(300)]
    for params in draws:
        assert params.keys() == space.keys()
        assert all(space[name].low <= value <= space[name].high for name, value in params.items())
    suffix = "_1" if several else ""
    assert {params[f"units{suffix}"] for params in draws} == {4, 5, 6, 7, 8}
    assert len({params[f"sr{suffix}"] for params in draws}) == 300
    assert np.mean([params[f"sr{suffix}"] < 1.0 for params in draws]) == pytest.approx(
        0.5, abs=0.1
    )  # log scale
    assert draws[7] == draw(evolution, 7)
    assert draws[7] != draw(replace(evolution, seed=1), 7)


def test_bounds_that_coincide_are_drawn():
    evolution = of_a_study(
        min_sr=0.3, max_sr=0.3, min_lr=0.7, max_lr=0.7, min_iss=1.1, max_iss=1.1
    ).evolution
    assert draw(evolution, 0) == {"sr": 0.3, "lr": 0.7, "iss": 1.1}


def test_random_reservoirs_differ_from_the_evolved_ones_in_their_hyperparameters_only():
    config = of_a_study(evolve="bias,learner.gamma=0.5:0.9")
    params = PARAMS | {"bias": 0.5, "learner.gamma": 0.7}
    for index in (0, 1):
        evolved = arm_lifetime("RES_PPO_0.0003", index, config, params)
        random = arm_lifetime("RANDOM_RES_PPO_0.0003", index, config, params)
        drawn = {
            k: v for k, v in draw(config.evolution, index).items() if not k.startswith("learner.")
        }
        assert random.context == make_context(config.evolution, drawn)
        assert random.context != evolved.context
        assert replace(random, context=evolved.context) == evolved
    first, second = (
        arm_lifetime("RANDOM_RES_PPO_0.0003", i, config, params).context for i in (0, 1)
    )
    assert first != second


# -- NOREC --


@pytest.mark.parametrize(
    ("kind", "params"), [(EvolutionConfig, PARAMS), (MultiEvolutionConfig, SEVERAL)]
)
def test_no_recurrent_weight_is_left(kind, params):
    several = {"nb_res": 2} if kind is MultiEvolutionConfig else {}
    spec = arm_lifetime("NOREC_RES_PPO_0.0003", 0, of_a_study(kind, **several), params)
    [weights] = ReservoirBank([spec.context.reservoirs], [0], input_dim=7)._weights
    units = sum(r.units for r in spec.context.reservoirs)
    assert np.abs(weights[:, :units]).max() == 0.0
    assert np.abs(weights[:, units:]).max() > 0.0


@pytest.mark.parametrize(
    ("lr", "arm", "forgets"), [(1.0, "NOREC_", True), (1.0, "", False), (0.5, "NOREC_", False)]
)
def test_without_recurrence_and_leak_the_state_is_the_last_inputs(lr, arm, forgets):
    config = of_a_study()
    config = replace(config, evolution=replace(config.evolution, units=40))
    spec = arm_lifetime(f"{arm}RES_PPO_0.0003", 0, config, PARAMS | {"lr": lr})
    spaces = check_task(spec.task)
    seen = []
    for past in (0.5, -0.5):
        encoder = ContextEncoder([spec.context], [spec.seeds.reservoir], *spaces)
        encoder.reset(0, np.full(4, past))
        seen.append(encoder.step(np.full((1, 4), 0.1), np.array([1]), np.array([1.0])).copy())
    assert np.array_equal(*seen) is forgets


# -- what memories see: STACK, INPUTS and the LSTM --


class Deaf(gym.Env):
    """Its observations and rewards do not depend on actions."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.ones(2, np.float32), 0.5, False, False, {}


@pytest.mark.parametrize(
    ("arm", "sees"),
    [
        ("PPO", False),
        ("STACK_PPO", False),
        ("RecurrentPPO", False),
        ("INPUTS_PPO", True),
        ("INPUTS_RecurrentPPO", True),
        ("RES_PPO_0.0003", True),
        ("RANDOM_RES_PPO_0.0003", True),
        ("NOREC_RES_PPO_0.0003", True),
    ],
)
@pytest.mark.parametrize("feed_action", [True, False])
def test_which_agents_see_their_last_action(arm, sees, feed_action):
    spec = arm_lifetime(arm, 0, of_a_study(feed_action=feed_action), PARAMS)
    shown = []
    for actions in ((0, 1, 2), (0, 2, 2)):
        env = spec.wrap_env(Deaf())
        env.reset(seed=1)
        shown.append(np.stack([env.step(action)[0] for action in actions]))
    assert np.array_equal(*shown) is not (sees and feed_action)


@pytest.mark.parametrize(("arm", "length"), [("INPUTS_PPO", 4), ("INPUTS_RecurrentPPO", 1)])
def test_a_control_has_the_last_inputs_of_the_reservoir_as_they_are(arm, length):
    config = of_a_study(del_obs=True)
    spec, of_reservoir = (arm_lifetime(a, 0, config, PARAMS) for a in (arm, "RES_PPO_0.0003"))
    env, driven = spec.make_env(), of_reservoir.make_env()
    shown, fed = [env.reset(seed=3)[0]], []
    driven.reset(seed=3)
    fed.append(driven.encoder.inputs[0].copy())
    for action in (0, 1, 1, 0, 1):
        shown.append(env.step(action)[0])
        driven.step(action)
        fed.append(driven.encoder.inputs[0].copy())
    before = [np.zeros_like(fed[0])] * length
    for t, seen in enumerate(shown):
        latest = [*before, *fed[: t + 1]][: -length - 1 : -1]
        assert np.array_equal(seen, np.concatenate(latest).astype(np.float32))


def test_the_stack_holds_the_last_four_observations():
    spec = arm_lifetime("STACK_PPO", 0, of_a_study(del_obs=True), PARAMS)
    stacked, plain = spec.make_env(), make_env(replace(spec.task, frame_stack=1))
    shown, seen = [stacked.reset(seed=3)[0]], [plain.reset(seed=3)[0]]
    assert stacked.observation_space.shape == shown[0].shape == (8,)
    for action in (0, 1, 1, 0, 1):
        shown.append(stacked.step(action)[0])
        seen.append(plain.step(action)[0])
    assert np.array_equal(shown[0], np.concatenate([np.zeros(6), seen[0]]))
    assert np.array_equal(shown[5], np.concatenate(seen[2:6]))


def test_the_lstm_takes_what_it_knows_of_ppos_settings():
    settings = {
        "policy": "MlpPolicy",
        "n_steps": 64,
        "learning_rate": 0.001,
        "n_envs": 2,
        "normalize": True,
        "policy_kwargs": {"net_arch": [32]},
        "rollout_buffer_class": None,
    }
    spec = arm_lifetime("RecurrentPPO", 0, of_a_study(settings=settings), PARAMS)
    assert spec.learner.config == {
        k: v for k, v in settings.items() if k not in ("policy", "rollout_buffer_class")
    }
    check(spec)
    # Settings of another algorithm mean nothing to it.
    spec = arm_lifetime(
        "RecurrentPPO", 0, of_a_study(learner="DQN", settings={"learning_rate": 0.5}), PARAMS
    )
    assert (spec.learner.name, spec.learner.config) == ("RecurrentPPO", {})


def test_the_lstm_as_the_studys_learner_keeps_all_its_settings():
    config = of_a_study(learner="RecurrentPPO", settings={"n_steps": 32, "policy": "MlpLstmPolicy"})
    assert "RecurrentPPO" in algorithms()
    spec = arm_lifetime("RecurrentPPO", 0, config, PARAMS)
    assert spec.learner.config == {"n_steps": 32, "policy": "MlpLstmPolicy"}
    assert arm_lifetime("RES_RecurrentPPO_0.0003", 0, config, PARAMS).context is not None


def test_agents_with_a_context_of_ones_own():
    params = {"context.length": 3, "context.gain": 0.5}
    evolution = EvolutionStudy(
        env_id="CartPole-v1",
        engine="cohort",
        context="mine:Line",
        context_settings={"kind": "slow"},
        evolve="context.length=1:9,context.gain=0.1:1:log",
    )
    names = arm_names(evolution, params)
    assert names == ["PPO", "CONTEXT_PPO_0.0003", "CONTEXT_PPO_0.0001"]
    controls = control_names(evolution, params)
    assert controls == ["STACK_PPO", "INPUTS_PPO", "RANDOM_CONTEXT_PPO_0.0003", "RecurrentPPO"]
    config = TestStudy(evolution, params, 123, "cohort")
    own, drawn = (arm_lifetime(a, 2, config, params).context.own for a in (names[1], controls[2]))
    assert own == OwnContext("mine:Line", {"kind": "slow", "length": 3, "gain": 0.5})
    assert drawn.name == own.name
    assert drawn.settings["kind"] == "slow"
    assert isinstance(drawn.settings["length"], int)
    assert drawn.settings["gain"] != 0.5
    assert arm_lifetime("PPO", 2, config, params).context is None


@pytest.mark.parametrize("nb_res", [None, 0])
def test_agents_with_a_learner_of_ones_own_whose_name_has_underscores(nb_res):
    evolution = EvolutionStudy(
        env_id="CartPole-v1",
        learner="my_learner:Random_Search",
        nb_res=nb_res,
        learner_config={"noise": 0.3},
        evolve="learner.noise=0.1:0.5",
    )
    params = {"learner.noise": 0.2} | (PARAMS if nb_res is None else {})
    arms = arm_names(evolution, params)
    controls = [a for a in control_names(evolution, params) if a != "RecurrentPPO"]
    config = TestStudy(evolution, params, 123, "auto")
    for arm in arms + controls:
        learner = arm_lifetime(arm, 0, config, params).learner
        assert learner.name == "my_learner:Random_Search"
        assert learner.config.keys() == {"noise"}
