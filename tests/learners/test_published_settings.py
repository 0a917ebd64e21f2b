"""ER-MRL's settings as its paper and public code have them, row by row: what this project does when
nothing else is said.
"""

import inspect
from dataclasses import replace

import gymnasium as gym
import numpy as np
import optuna
import pytest
from stable_baselines3 import PPO

from erl.experiments.arms import arm_lifetime, arm_names
from erl.experiments.comparison import (
    ComparisonConfig,
    GeneralizationComparisonConfig,
    MultiComparisonConfig,
)
from erl.experiments.evolution import EvolutionConfig, GeneralizationConfig, MultiEvolutionConfig
from erl.experiments.evolution_study import lifetimes, study_config
from erl.experiments.flags import study_name
from erl.learners.ppo.settings import PPOSettings
from erl.lifetimes.living import Cohort, live
from erl.search.samplers import SAMPLERS
from erl.search.space import Range, search_space
from erl.studies.configuration import TestStudy
from erl.worlds.reservoirs import ReservoirBank
from erl.worlds.task_sets import TaskSet, load_task_set, references
from erl.worlds.tasks import VELOCITIES, Task, make_env

MUJOCO = {"Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Swimmer-v4", "Walker2d-v4"}
VALUES = {"sr": 0.9, "lr": 0.5, "iss": 1.43}


def numbered(n, values=VALUES):
    return {f"{name}_{i + 1}": value for i in range(n) for name, value in values.items()}


@pytest.fixture
def stored(sink):
    return {
        "single": study_config(EvolutionConfig(), sink),
        "multi": study_config(MultiEvolutionConfig(), sink),
        "set": study_config(GeneralizationConfig(), sink),
    }


def test_the_inner_learner_is_stable_baselines3s_ppo_with_its_defaults_in_one_environment(stored):
    for config in stored.values():
        assert (config.learner, config.learner_config, config.engine) == ("PPO", {}, "cohort")
    ours = vars(PPOSettings())
    theirs = {k: p.default for k, p in inspect.signature(PPO.__init__).parameters.items()}
    shared = ours.keys() & theirs.keys()
    assert len(shared) == 13
    for key in shared:
        assert ours[key] == theirs[key], key
    assert ours["n_envs"] == 1
    assert not ours["norm_obs"]
    assert not ours["norm_reward"]
    policy = PPO("MlpPolicy", "Pendulum-v1").policy
    assert {"pi": list(ours["pi"]), "vf": list(ours["vf"])} == {"pi": [64, 64], "vf": [64, 64]}
    assert [
        m.out_features for m in policy.mlp_extractor.policy_net if hasattr(m, "out_features")
    ] == [64, 64]


def test_a_reservoir_has_100_units_and_the_policy_sees_its_state_only(stored):
    spec = lifetimes(stored["single"], VALUES)[0]
    assert [r.units for r in spec.context.reservoirs] == [100]
    assert not spec.context.skip_c
    assert spec.context.reset_res
    assert spec.make_env().observation_space.shape == (100,)


def test_skip_c_appends_observation_action_and_reward(sink):
    spec = lifetimes(
        study_config(EvolutionConfig(env_id="Pendulum-v1", skip_c=True), sink), VALUES
    )[0]
    env = spec.make_env()
    env.reset(seed=0)
    action = np.array([0.5], dtype=np.float32)
    seen, reward, *_ = env.step(action)
    plain = make_env(Task("Pendulum-v1"))
    plain.reset(seed=0)
    observation, same_reward, *_ = plain.step(action)
    assert reward == same_reward
    np.testing.assert_allclose(seen[100:], [*observation, *action, reward], rtol=1e-6)


def test_the_searched_parameters_are_log_uniform_in_er_mrls_ranges(stored, sink):
    ranges = {"sr": Range(1e-4, 1e2), "lr": Range(1e-2, 1.0), "iss": Range(1e-1, 10.0)}
    assert all(r.log for r in ranges.values())
    assert search_space(stored["single"]) == {
        k: ranges[k] for k in ("sr", "lr")
    }  # input scaling is fixed to 1 here ...
    assert lifetimes(stored["single"], {"sr": 1, "lr": 1})[0].context.reservoirs[0].iss == 1.0
    free = study_config(EvolutionConfig(fixed_iss=False), sink)
    assert search_space(free) == ranges  # ... unless told otherwise
    for kind, n in (("multi", 3), ("set", 2)):
        assert search_space(stored[kind]) == {
            f"{k}_{i + 1}": r for i in range(n) for k, r in ranges.items()
        }


def test_several_reservoirs_stand_side_by_side_each_with_a_seed_of_its_own(stored):
    spec = lifetimes(stored["multi"], numbered(3))[0]
    assert len(spec.context.reservoirs) == 3
    assert spec.make_env().observation_space.shape == (300,)
    seed = spec.seeds.reservoir
    n_inputs = 17 + 6 + 1
    together = ReservoirBank([spec.context.reservoirs], [seed], n_inputs)
    inputs = np.random.default_rng(0).normal(size=(1, n_inputs))
    states = np.concatenate(
        [
            ReservoirBank([(r,)], [seed + i], n_inputs).step(inputs)
            for i, r in enumerate(spec.context.reservoirs)
        ],
        axis=None,
    )
    np.testing.assert_array_equal(np.ravel(together.step(inputs)), states)
    assert len(lifetimes(stored["set"], numbered(2))[0].context.reservoirs) == 2


def test_the_samplers_are_er_mrls():
    assert set(SAMPLERS) == {"Random", "Tpe", "Cmaes"}
    assert EvolutionConfig().sampler == "Cmaes"


def test_a_trial_is_three_seeds_of_300000_steps_judged_by_the_last_ten_training_episodes(
    stored, sink
):
    specs = lifetimes(stored["single"], VALUES)
    assert len(specs) == 3
    assert len({s.seeds for s in specs}) == 3
    assert {(s.steps, s.ep_eval, s.fitness) for s in specs} == {(300_000, 10, "training")}
    assert EvolutionConfig().nb_trials == 100
    config = study_config(
        EvolutionConfig(env_id="CartPole-v1", training_steps=600, nb_seeds=1, units=5), sink
    )
    (record,) = live(Cohort(tuple(lifetimes(config, VALUES))))
    assert record.episodes > 10
    assert record.episodes_averaged == 10
    assert record.fitness == record.training_return == config.score(record.spec, record.fitness)
    assert record.training_return != pytest.approx(np.mean([value for _, value in record.curve]))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (EvolutionConfig(env_id="Ant-v4", h_test="x"), "Ant-v4_x_300k_steps"),
        (MultiEvolutionConfig(env_id="Ant-v4", h_test="x", nb_res=3), "Ant-v4_3_x_300k_steps"),
        (
            GeneralizationConfig(env_type="Ant_Swimmer", h_test="x", nb_res=2),
            "Ant_Swimmer_2_x_300k_steps",
        ),
    ],
)
def test_studies_have_er_mrls_names(config, name):
    assert study_name(config.subject(), config.h_test, config.training_steps) == name


def test_er_mrls_tests_train_three_agents_for_ten_million_steps(stored):
    for kind in (ComparisonConfig, MultiComparisonConfig, GeneralizationComparisonConfig):
        assert (kind().training_steps, kind().nb_seeds) == (10_000_000, 5)
    base = ["PPO", "RES_PPO_0.0003", "RES_PPO_0.0001"]
    more = [*base, "RES_PPO_0.00005"]
    assert arm_names(stored["single"], VALUES) == base
    assert arm_names(replace(stored["single"], del_obs=True), VALUES) == more
    assert arm_names(stored["multi"], numbered(3)) == more
    test = TestStudy(stored["single"], VALUES, training_steps=1000, engine="cohort")
    assert arm_lifetime("PPO", 0, test, VALUES).learner.config.get("learning_rate", 3e-4) == 3e-4
    assert [arm_lifetime(a, 0, test, VALUES).learner.config["learning_rate"] for a in base[1:]] == [
        3e-4,
        1e-4,
    ]


def test_hidden_velocities_are_er_mrls():
    expected = {
        "CartPole": (1, 3),
        "Pendulum": (2,),
        "MountainCar": (1,),
        "MountainCarContinuous": (1,),
        "LunarLander": (2, 3, 5),
        "LunarLanderContinuous": (2, 3, 5),
    }
    assert {
        name.partition("-v")[0]: tuple(indices) for name, indices in VELOCITIES.items()
    } == expected
    for env_id, indices in VELOCITIES.items():
        if env_id in gym.registry:
            full, hidden = gym.make(env_id), make_env(Task(env_id, del_obs=True))
            kept = np.delete(full.reset(seed=3)[0], indices)
            np.testing.assert_array_equal(hidden.reset(seed=3)[0], kept)


def test_a_partial_context_is_the_first_neurons_of_a_larger_reservoir(sink):
    whole, part = (
        lifetimes(study_config(EvolutionConfig(env_id="Pendulum-v1", obs_units=k), sink), VALUES)[
            0
        ].make_env()
        for k in (None, 30)
    )
    for env in (whole, part):
        env.reset(seed=0)
    for _ in range(3):
        action = np.array([0.3], dtype=np.float32)
        np.testing.assert_array_equal(part.step(action)[0], whole.step(action)[0][:30])


def test_sets_of_environments_are_er_mrls():
    ids = {
        "Ant": "Ant-v4",
        "Cheetah": "HalfCheetah-v4",
        "Swimmer": "Swimmer-v4",
        "Hopper": "Hopper-v4",
        "Walker": "Walker2d-v4",
    }
    sets = {
        f"{a}_{b}": {ids[a], ids[b]}
        for a, b in (("Ant", "Swimmer"), ("Ant", "Cheetah"), ("Cheetah", "Swimmer"))
    }
    sets |= {f"{name}_4_tr_envs": MUJOCO - {env_id} for name, env_id in ids.items()} | {
        "forward_mujoco": MUJOCO
    }
    for name, env_ids in sets.items():
        assert set(load_task_set(name).env_ids) == env_ids, name
    assert GeneralizationConfig().task_set().name == "Ant_Swimmer"


def test_generalisation_fitness_runs_from_random_to_er_mrls_targets(stored):
    targets = {
        "Ant": 125,
        "HalfCheetah": 750,
        "Swimmer": 60,
        "Hopper": 1250,
        "Walker2d": 800,
        "Humanoid": 375,
    }
    given = references(TaskSet("all", tuple(f"{name}-v4" for name in targets)))
    assert [target for _, target in given.values()] == [*targets.values()]
    config = stored["set"]
    assert [s.task.env_id for s in lifetimes(config, numbered(2))] == ["Ant-v4"] * 3 + [
        "Swimmer-v4"
    ] * 3
    for env_id, (random, target) in config.references.items():
        spec = next(s for s in lifetimes(config, numbered(2)) if s.task.env_id == env_id)
        for value, expected in ((random, 0.0), (target, 1.0), ((random + target) / 2, 0.5)):
            assert config.score(spec, value) == pytest.approx(expected)


@pytest.mark.slow
def test_a_journal_on_a_shared_disk_opens_under_er_mrls_name(sink):
    from erl.experiments.evolution import evolve

    small = {
        "training_steps": 64,
        "nb_trials": 1,
        "nb_seeds": 1,
        "units": 5,
        "popsize": 4,
        "ep_eval": 1,
        "workers": 1,
    }
    address = "optuna-journal_CartPole-v1_main_0.064k_steps.log"
    assert evolve(EvolutionConfig(env_id="CartPole-v1", storage=address, **small), sink) == 0
    backend = optuna.storages.journal.JournalFileBackend(address)
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    assert study.study_name == "CartPole-v1_main_0.064k_steps"
