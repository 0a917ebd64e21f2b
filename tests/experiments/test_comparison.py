"""The test phase of several reservoirs and of sets of environments, and evolution over them,
without processes.
"""

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import STORAGE
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from stable_baselines3 import PPO

from erl.cli import command
from erl.errors import UserError
from erl.experiments.arms import known_names
from erl.experiments.comparison import (
    ComparisonConfig,
    GeneralizationComparisonConfig,
    MultiComparisonConfig,
    compare,
)
from erl.experiments.evolution import (
    EvolutionConfig,
    GeneralizationConfig,
    MultiEvolutionConfig,
    evolve,
)
from erl.experiments.evolution import test_command as shown_command
from erl.experiments.evolution_study import lifetimes
from erl.experiments.tested import load_best
from erl.figures.report import describe
from erl.search.space import make_context
from erl.studies.commands import show_study
from erl.studies.configuration import EvolutionStudy
from erl.studies.data import read_study
from erl.studies.flags import ShowConfig
from erl.studies.following import UID
from erl.studies.records import records
from erl.studies.storage import DEFAULT_STORAGE, open_storage, study_names
from erl.studies.study import Study, existing
from erl.studies.trials import lifetime_records
from erl.worlds.reservoirs import ReservoirBank
from erl.worlds.specification import LifetimeSpec, Seeds, from_json
from erl.worlds.task_sets import measured_random_returns

SETS = """
[sets]
Toys = ["toy_environments:Steady-v0", "CartPole-v1"]

[target_returns]
"toy_environments:Steady-v0" = 20
CartPole-v1 = 500
Pendulum-v1 = 0
"toy_environments:Recall-v0" = 1

[random_returns]
"toy_environments:Steady-v0" = 5
"toy_environments:Recall-v0" = 0
"""


@pytest.fixture
def tiny(quick):
    """The smallest budget, and a file that declares a set of two toys."""
    Path("sets.toml").write_text(SETS, encoding="utf-8")
    settings = {
        "storage": STORAGE,
        "training_steps": 64,
        "nb_trials": 2,
        "nb_seeds": 2,
        "units": 5,
        "popsize": 4,
        "ep_eval": 3,
        "workers": 1,
    }
    return settings | {"learner_config": quick}


def evolve_set(tiny, sink, **options):
    assert (
        evolve(
            GeneralizationConfig(**({"env_type": "Toys", "sets": "sets.toml"} | tiny | options)),
            sink,
        )
        == 0
    )


def stored(name, storage=STORAGE):
    """Lifetimes of a study's trials: [trial][lifetime] -> record as it was stored."""
    return [
        [
            t.system_attrs[f"lifetime:{k}"]
            for k in range(sum(a.startswith("lifetime:") for a in t.system_attrs))
        ]
        for t in Study(storage, name).trials()
    ]


def spec_of(record):
    return from_json(LifetimeSpec, record["spec"])


TEST = {
    "storage": STORAGE,
    "HP_training_steps": 64,
    "training_steps": 64,
    "nb_seeds": 1,
    "workers": 1,
}


# -- another learner --


def test_reservoirs_are_tested_with_another_learner(tiny, inline, sink):
    assert evolve(EvolutionConfig(env_id="CartPole-v1", **tiny), sink) == 0
    test = ComparisonConfig(env_id="CartPole-v1", learner="a2c", arms="RES_A2C", **TEST)
    assert compare(test, sink) == 0
    evolution = Study(STORAGE, "CartPole-v1_main_0.064k_steps")
    number = evolution.best().number
    name = f"{evolution.name}_trial_{number}_for_A2C_test_0.064k_steps"
    study = Study(STORAGE, name)
    (trial,) = study.trials("COMPLETE")
    spec = lifetime_records(trial)[0].spec
    # Its own settings, the evolved reservoir, and the seeds of the test of PPO.
    assert (spec.learner.name, spec.learner.config) == ("A2C", {})
    assert spec.context == make_context(evolution.config, evolution.best().params)
    assert spec.seeds == Seeds.derive(evolution.config.seed, "test", 0)
    assert study.config.evolution.learner == "A2C"
    assert "agents of A2C, with what was evolved for PPO" in sink.lines
    # The evolution keeps whose result it is.
    show_study(ShowConfig(storage=STORAGE, study=evolution.name), sink)
    assert sink.lines[-1].endswith(f" as RES_A2C on test seeds (1 seed, after 65 steps): {name}")
    with pytest.raises(UserError, match=r"^unknown learner 'A3C'; did you mean"):
        compare(dataclasses.replace(test, learner="A3C"), sink)
    assert "A3C" not in str(sink)


def test_another_learner_has_the_settings_of_a_file(tiny, inline, sink):
    assert evolve(EvolutionConfig(env_id="CartPole-v1", **tiny), sink) == 0
    Path("a2c.yaml").write_text("n_steps: 4\n", encoding="utf-8")
    test = ComparisonConfig(
        env_id="CartPole-v1", learner="A2C", learner_config="a2c.yaml", arms="RES_A2C,A2C", **TEST
    )
    assert compare(test, sink) == 0
    (name,) = [n for n in study_names(open_storage(STORAGE)) if "_for_A2C_" in n]
    for trial in Study(STORAGE, name).trials("COMPLETE"):
        assert lifetime_records(trial)[0].spec.learner.config == {"n_steps": 4}
    # What is stored is not mixed with other settings.
    with pytest.raises(UserError, match=r"learner_config.*n_steps"):
        compare(dataclasses.replace(test, learner_config=None), sink)
    with pytest.raises(UserError, match=r"evolved with PPO, and its test has the settings of the"):
        compare(dataclasses.replace(test, learner="ppo"), sink)
    Path("a2c.yaml").write_text("env_kwargs: {max_episode_steps: 9}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a2c\.yaml has env_kwargs, and a test takes none"):
        compare(test, sink)


def test_a_file_of_settings_has_a_section_for_the_environment_of_the_test(tiny, inline, sink):
    config = GeneralizationConfig(env_type="Toys", sets="sets.toml", nb_res=1, **tiny)
    assert evolve(config, sink) == 0
    Path("a2c.yaml").write_text("CartPole-v1: {n_steps: 4}\n", encoding="utf-8")
    test = GeneralizationComparisonConfig(
        HP_env_type="Toys",
        nb_res=1,
        env_id="CartPole-v1",
        allow_seen=True,
        learner="A2C",
        learner_config="a2c.yaml",
        arms="RES_A2C",
        **TEST,
    )
    assert compare(test, sink) == 0
    (name,) = [n for n in study_names(open_storage(STORAGE)) if "_for_A2C_" in n]
    (trial,) = Study(STORAGE, name).trials("COMPLETE")
    assert lifetime_records(trial)[0].spec.learner.config == {"n_steps": 4}


# -- several reservoirs --


@pytest.mark.parametrize("engine", ["cohort", "sb3"])
def test_several_reservoirs_stand_side_by_side(engine, tiny, inline, sink):
    config = MultiEvolutionConfig(env_id="CartPole-v1", nb_res=3, engine=engine, **tiny)
    assert evolve(config, sink) == 0
    [trial, _] = Study(STORAGE, "CartPole-v1_3_main_0.064k_steps").trials()
    assert list(trial.params) == [f"{p}_{k}" for k in (1, 2, 3) for p in ("sr", "lr", "iss")]
    spec = spec_of(trial.system_attrs["lifetime:1"])
    own = [(r.sr, r.lr, r.iss, r.units) for r in spec.context.reservoirs]
    assert own == [(*(trial.params[f"{p}_{k}"] for p in ("sr", "lr", "iss")), 5) for k in (1, 2, 3)]
    # What the policy sees is what three reservoirs show that are drawn from seed, seed + 1, seed +
    # 2.
    env = spec.make_env()
    shown = env.reset(seed=0)[0]
    inputs = np.concatenate([env.env.reset(seed=0)[0], np.zeros(3)])
    for k, params in enumerate(spec.context.reservoirs):
        alone = ReservoirBank([[params]], [spec.seeds.reservoir + k], input_dim=7).step(
            inputs[None]
        )[0]
        assert np.array_equal(shown[5 * k : 5 * k + 5], alone.astype(np.float32))
    assert shown.shape == (15,)
    assert (
        f"test them:       {command('test-multi', '--study', 'CartPole-v1_3_main_0.064k_steps')}"
        in str(sink)
    )


def test_one_of_several_is_the_single_reservoir(tiny, inline, sink):
    assert evolve(EvolutionConfig(env_id="CartPole-v1", fixed_iss=False, **tiny), sink) == 0
    assert evolve(MultiEvolutionConfig(env_id="CartPole-v1", nb_res=1, **tiny), sink) == 0
    one, several = (
        Study(STORAGE, f"CartPole-v1{n}_main_0.064k_steps").trials() for n in ("", "_1")
    )
    for a, b in zip(one, several, strict=True):
        assert {f"{name}_1": value for name, value in a.params.items()} == b.params
        assert a.value == b.value
        for k in (0, 1):
            x, y = a.system_attrs[f"lifetime:{k}"], b.system_attrs[f"lifetime:{k}"]
            assert {k: v for k, v in x.items() if k != "seconds"} == {
                k: v for k, v in y.items() if k != "seconds"
            }
    test = MultiComparisonConfig(study="CartPole-v1_1_main_0.064k_steps", arms="PPO", **TEST)
    assert compare(dataclasses.replace(test, nb_res=1), sink) == 0
    assert compare(ComparisonConfig(study=test.study, arms="PPO", **TEST), sink) == 0
    assert "as its own configuration says" not in str(sink)


def test_the_studys_number_of_reservoirs_goes_before_the_commands(tiny, inline, sink):
    evolve(MultiEvolutionConfig(env_id="CartPole-v1", nb_res=2, **tiny), sink)
    name = "CartPole-v1_2_main_0.064k_steps"
    assert (
        compare(
            MultiComparisonConfig(env_id="CartPole-v1", nb_res=4, arms="RES_PPO_0.0003", **TEST),
            sink,
        )
        == 0
    )
    assert f"{name} has 2 reservoirs, as its own configuration says, and not 4" in sink.lines
    test = f"{name}_trial_{Study(STORAGE, name).best().number}_test_0.064k_steps"
    [[record]] = stored(test)
    assert len(spec_of(record).context.reservoirs) == 2
    # With --study, the number may be the flag's default.
    assert compare(MultiComparisonConfig(study=name, arms="RES_PPO_0.0003", **TEST), sink) == 0
    assert sink.lines.count(f"{name} has 2 reservoirs, as its own configuration says") == 1
    evolve(MultiEvolutionConfig(env_id="CartPole-v1", nb_res=3, **tiny), sink)
    with pytest.raises(
        UserError, match="no study 'CartPole-v1_4_main"
    ):  # there are two that it could be
        compare(MultiComparisonConfig(env_id="CartPole-v1", nb_res=4, **TEST), sink)


def test_everything_that_a_study_sets_is_there_in_its_test(tiny, inline, sink):
    evolved = MultiEvolutionConfig(
        env_id="CartPole-v1",
        nb_res=2,
        del_obs=True,
        skip_c=True,
        reset_res=False,
        obs_units=7,
        evolve="units=6:7,bias,learner.learning_rate=1e-4:1e-2:log",
        **tiny | {"units": 100},
    )
    assert evolve(evolved, sink) == 0
    assert (
        compare(MultiComparisonConfig(env_id="CartPole-v1", nb_res=2, controls=True, **TEST), sink)
        == 0
    )
    study = Study(STORAGE, "CartPole-v1_2_main_0.064k_steps")
    best = study.best()
    assert all(6 <= best.params[f"units_{k}"] <= 7 for k in (1, 2))
    frame = records(STORAGE, test := f"{study.name}_trial_{best.number}_test_0.064k_steps")
    assert set(frame.arm) == {
        "PPO",
        "RES_PPO",
        "EVOLVED_PPO",
        "STACK_PPO",
        "INPUTS_PPO",
        "RANDOM_RES_PPO",
        "NOREC_RES_PPO",
        "RecurrentPPO",
    }
    then = spec_of(stored(study.name)[best.number][0])
    for arm, [record] in zip(frame.arm, stored(test)):
        spec = spec_of(record)
        assert spec.task.del_obs
        if arm == "RES_PPO":
            assert (spec.context, spec.learner.config) == (then.context, then.learner.config)
        if spec.context is not None and spec.context.reservoirs:
            assert (spec.context.skip_c, spec.context.reset_res, spec.context.obs_units) == (
                True,
                False,
                7,
            )
            assert spec.learner.config["learning_rate"] == best.params["learner.learning_rate"]
            zipped = PPO.load(f"models/{test}/{arm}/seed_0.zip")
            assert zipped.observation_space.shape == (7 + 2 + 2 + 1,)
            assert zipped.learning_rate == best.params["learner.learning_rate"]


@pytest.mark.slow
def test_all_controls(tiny, inline, sink):
    env_id = "Pendulum-v1"
    evolve(
        EvolutionConfig(
            env_id=env_id, del_obs=True, **tiny | {"training_steps": 256, "nb_trials": 1}
        ),
        sink,
    )
    test = ComparisonConfig(
        env_id=env_id, controls=True, **TEST | {"HP_training_steps": 256, "training_steps": 256}
    )
    assert compare(test, sink) == 0
    frame = records(STORAGE, f"{env_id}_main_0.256k_steps_trial_0_test_0.256k_steps").set_index(
        "arm"
    )
    usual = ["PPO", "RES_PPO_0.0003", "RES_PPO_0.0001", "RES_PPO_0.00005"]
    controls = [
        "STACK_PPO",
        "INPUTS_PPO",
        "RANDOM_RES_PPO_0.0003",
        "NOREC_RES_PPO_0.0003",
        "RecurrentPPO",
    ]
    assert sorted(frame.index) == sorted(usual + controls)
    assert (
        len({str(seeds) for seeds in frame[[c for c in frame if c.startswith("seed_")]].values})
        == 1
    )
    assert frame.learner["RecurrentPPO"] == "RecurrentPPO"
    shown = [
        line
        for line in str(sink).splitlines()
        if line.startswith(tuple(usual + controls)) and " seed " not in line
    ]
    assert [line.split()[0] for line in shown] == (usual + controls) * 2
    # Agents that shared a cohort have no steps per second of their own.
    speeds = {line.split()[0]: line.split()[-1] for line in shown}
    assert speeds["RES_PPO_0.0003"] == "-"
    assert float(speeds["RecurrentPPO"].replace(",", "")) > 0


def test_a_control_can_be_asked_for_by_name(tiny, inline, sink):
    evolve(EvolutionConfig(env_id="CartPole-v1", **tiny), sink)
    assert compare(ComparisonConfig(env_id="CartPole-v1", arms="PPO,STACK_PPO", **TEST), sink) == 0
    with pytest.raises(UserError, match=r"unknown agent 'STACK_DQN' .*STACK_PPO.*RecurrentPPO"):
        compare(ComparisonConfig(env_id="CartPole-v1", arms="STACK_DQN", **TEST), sink)


@pytest.mark.parametrize("storage", [STORAGE, "sqlite:///studies.db"])
def test_a_test_of_an_earlier_version_goes_on(storage, tiny, inline, sink, monkeypatch):
    """Databases keep the agents that tests could have when it was begun."""
    assert evolve(EvolutionConfig(env_id="CartPole-v1", **tiny | {"storage": storage}), sink) == 0
    test = ComparisonConfig(env_id="CartPole-v1", arms="PPO", **TEST | {"storage": storage})
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "erl.experiments.comparison.known_names",
            lambda *args: [name for name in known_names(*args) if "INPUTS" not in name],
        )
        assert compare(test, sink) == 0
    assert compare(dataclasses.replace(test, nb_seeds=2), sink) == 0
    more = dataclasses.replace(test, arms="PPO,INPUTS_PPO")
    if storage == STORAGE:
        assert compare(more, sink) == 0
        return
    with pytest.raises(UserError, match=r"had no agent INPUTS_PPO, .* --results_storage and"):
        compare(more, sink)
    elsewhere = {"results_storage": "sqlite:///more.db", "models": "more"}
    assert compare(dataclasses.replace(more, **elsewhere), sink) == 0


@pytest.mark.parametrize("earlier", [False, True])
def test_an_evolution_of_the_published_code_has_one_test(earlier, tiny, inline, sink, monkeypatch):
    evolve(EvolutionConfig(env_id="CartPole-v1", published_code=True, **tiny), sink)
    test = ComparisonConfig(env_id="CartPole-v1", arms="PPO", **TEST)
    if earlier:  # commands with the flag had a test of their own

        def named(flags, best, name):
            name += "_published"
            uid = best.study.optuna.user_attrs[UID]
            return name, existing(flags.results, name), uid + name.removeprefix(best.name)

        with monkeypatch.context() as patch:
            patch.setattr("erl.experiments.comparison._stored_test", named)
            assert compare(dataclasses.replace(test, published_code=True), sink) == 0
    for published in (False, True):
        assert compare(dataclasses.replace(test, published_code=published), sink) == 0
    assert len(study_names(open_storage(STORAGE))) == 2


def test_one_output_names_one_number_of_steps(tiny, inline, sink):
    evolve(EvolutionConfig(env_id="CartPole-v1", **tiny), sink)
    test = TEST | {"training_steps": 70, "arms": "RES_PPO_0.0003"}
    assert compare(ComparisonConfig(env_id="CartPole-v1", **test), sink) == 0
    assert any(line.endswith(", 96 steps") for line in sink.lines), "rollouts of 32 steps"
    (line,) = [line for line in sink.lines if line.startswith("evolved:")]
    assert line.endswith("(1 seed, after 96 steps)")


# -- sets of environments --


def test_fitness_is_the_mean_normalised_score_over_the_set(tiny, inline, sink):
    evolve_set(tiny, sink)
    study = Study(STORAGE, "Toys_2_main_0.064k_steps")
    random = measured_random_returns()["CartPole-v1"].return_mean
    assert study.stored["env_ids"] == ["toy_environments:Steady-v0", "CartPole-v1"]
    assert study.stored["references"] == {
        "toy_environments:Steady-v0": [5.0, 20.0],
        "CartPole-v1": [random, 500.0],
    }
    assert study.stored["env_type"] == "Toys"
    assert study.stored["nb_res"] == 2
    assert "sets" not in study.stored  # nothing of the file is needed again
    for trial, lived in zip(study.trials(), stored(study.name)):
        assert [spec_of(r).task.env_id for r in lived] == ["toy_environments:Steady-v0"] * 2 + [
            "CartPole-v1"
        ] * 2
        steady, pole = [r["fitness"] for r in lived[:2]], [r["fitness"] for r in lived[2:]]
        assert steady == [10.0, 10.0]
        by_hand = (2 * (10 - 5) / (20 - 5) + sum((r - random) / (500 - random) for r in pole)) / 4
        assert trial.value == pytest.approx(by_hand, abs=1e-12)
        # Seeds are those of a trial's lifetimes, the same in each environment; weights have the
        # environment's sizes.
        assert [spec_of(r).seeds for r in lived[:2]] == [spec_of(r).seeds for r in lived[2:]]
        assert [spec_of(r).context for r in lived] == [spec_of(lived[0]).context] * 4
    assert study.best().value == max(t.value for t in study.trials())
    read = read_study(study.name, STORAGE)
    assert read.trials[read.trials.trial >= 0].attrs == {"fitness": "mean normalised score"}


def test_published_code_normalises_by_rewards_of_single_steps(tiny, inline, sink):
    evolve(
        GeneralizationConfig(env_ids="CartPole-v1", sets="sets.toml", published_code=True, **tiny),
        sink,
    )
    study = Study(STORAGE, "CartPole-v1_2_main_0.064k_steps")
    assert study.stored["references"] == {
        "CartPole-v1": [1.0, 500.0]
    }  # each step of CartPole pays 1
    for trial, lived in zip(study.trials(), stored(study.name)):
        assert [set(r["spec"]["seeds"].values()) for r in lived] == [{0}, {1}]
        assert trial.value == pytest.approx(np.mean([(r["fitness"] - 1) / 499 for r in lived]))


def test_the_same_command_goes_on_and_another_set_is_refused(tiny, inline, sink):
    evolve_set(tiny, sink, h_test="whole", nb_trials=4)
    evolve_set(tiny, sink)
    Path("sets.toml").rename(
        "moved.toml"
    )  # where the returns stand does not matter, but what they are
    evolve_set(tiny, sink, nb_trials=4, sets="moved.toml")
    whole, pieces = (Study(STORAGE, f"Toys_2_{n}_0.064k_steps").trials() for n in ("whole", "main"))
    assert [(t.params, t.value) for t in whole] == [(t.params, t.value) for t in pieces]
    Path("moved.toml").write_text(SETS.replace("= 20", "= 30"), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"another configuration: references is .*20.* there and .*30.* here"
    ):
        evolve_set(tiny, sink, sets="moved.toml")


@pytest.mark.parametrize("env_id", ["CartPole-v1", "CartPole-v0", "toy_environments:CartPole-v1"])
def test_environments_that_were_seen_are_refused_in_any_version(env_id, tiny, inline, sink):
    evolve_set(tiny, sink, nb_trials=1)
    test = GeneralizationComparisonConfig(
        HP_env_type="Toys", env_id=env_id, arms="RES_PPO_0.0003", **TEST
    )
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=f"the evolution used {env_id} .*--allow_seen"):
        compare(test, sink)
    assert sorted(Path().rglob("*")) == before
    if env_id == "CartPole-v1":
        assert compare(dataclasses.replace(test, allow_seen=True), sink) == 0


def test_reservoirs_are_rebuilt_for_the_sizes_of_an_unseen_environment(tiny, inline, sink):
    evolve_set(tiny, sink)
    best = Study(STORAGE, "Toys_2_main_0.064k_steps").best()
    pendulum = GeneralizationComparisonConfig(
        HP_env_type="Toys", env_id="Pendulum-v1", **TEST | {"training_steps": 256}
    )
    assert compare(dataclasses.replace(pendulum, arms="PPO,RES_PPO_0.0003"), sink) == 0
    name = f"Toys_2_main_0.064k_steps_trial_{best.number}_on_Pendulum-v1_test_0.256k_steps"
    (plain,), (reservoir,) = stored(name)
    assert {spec_of(r).task.env_id for r in (plain, reservoir)} == {"Pendulum-v1"}
    spec = spec_of(reservoir)
    assert (
        spec.context
        == lifetimes(Study(STORAGE, "Toys_2_main_0.064k_steps").config, best.params)[0].context
    )
    assert spec.make_env().encoder.bank.input_dim == 3 + 1 + 1
    assert plain["training_return"] < 0  # a return, not a score: it has no target
    # An unseen environment of discrete actions has a test of its own beside it.
    recall = dataclasses.replace(
        pendulum, env_id="toy_environments:Recall-v0", arms="RES_PPO_0.0001", nb_res=5
    )
    assert compare(recall, sink) == 0
    assert (
        "Toys_2_main_0.064k_steps has 2 reservoirs, as its own configuration says, and not 5"
        in sink.lines
    )
    [[record]] = stored(name.replace("Pendulum-v1", "toy_environments:Recall-v0"))
    assert spec_of(record).make_env().encoder.bank.input_dim == 1 + 2 + 1


def test_the_command_that_is_printed_names_an_unseen_environment(tiny, inline, sink):
    tiny |= {"storage": DEFAULT_STORAGE}
    evolve_set(tiny, sink, nb_trials=1)
    evolve(
        GeneralizationConfig(
            **tiny
            | {"nb_trials": 1, "nb_seeds": 1, "env_type": "Ant_Cheetah", "training_steps": 1024}
        ),
        sink,
    )
    commands = [line for line in sink.lines if line.startswith("test them:")]
    assert [c.split()[-1] for c in commands] == ["Ant-v4", "Hopper-v4"]
    assert all("erl test-generalization" in c for c in commands)
    seen = ("gymnasium.envs.mujoco:Ant-v4", "Hopper-v5")
    config = EvolutionStudy(env_ids=seen)
    assert shown_command(config, "name", DEFAULT_STORAGE).split()[-1] == "HalfCheetah-v4"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"del_obs": True}, "Pendulum-v1"),  # velocities of Ant-v4 are not known
        ({"learner": "DQN"}, "MountainCar-v0"),  # actions of Ant-v4 are no choice of one
        ({"learner": "unknown_module:Learner"}, "ENVIRONMENT"),
    ],
)
def test_the_command_that_is_printed_can_be_run(options, named):
    config = EvolutionStudy(env_ids=("CartPole-v1", "Acrobot-v1"), **options)
    assert shown_command(config, "name", DEFAULT_STORAGE).split()[-1] == named


def test_other_agents_are_named_where_they_help(tiny, inline, sink):
    evolve(EvolutionConfig(env_id="CartPole-v1", del_obs=True, **tiny), sink)
    test = GeneralizationComparisonConfig(
        study="CartPole-v1_main_0.064k_steps", env_id="Ant-v4", **TEST
    )
    with pytest.raises(UserError, match="the agent PPO cannot be trained: --del_obs does not"):
        compare(test, sink)


def test_a_study_of_one_environment_can_be_tested_in_another(tiny, inline, sink):
    evolve(EvolutionConfig(env_id="CartPole-v1", **tiny), sink)
    test = GeneralizationComparisonConfig(
        study="CartPole-v1_main_0.064k_steps", arms="RES_PPO_0.0003", **TEST
    )
    with pytest.raises(UserError, match="the evolution used CartPole-v0"):
        compare(dataclasses.replace(test, env_id="CartPole-v0"), sink)
    assert compare(dataclasses.replace(test, env_id="toy_environments:Steady-v0"), sink) == 0
    where = "on test seeds in toy_environments:Steady-v0 (1 seed, after 64 steps)"
    assert any(line.startswith("evolved:  ") and line.endswith(where) for line in sink.lines)
    other = dataclasses.replace(
        test, env_id="toy_environments:Steady-v0", env_kwargs="{max_episode_steps: 20}"
    )
    assert compare(other, sink) == 0
    where = where.replace(" (", ' with {"max_episode_steps": 20} (')
    assert any(line.endswith(where) for line in sink.lines)


def test_flags_that_contradict_the_study_are_refused(tiny, inline, sink):
    evolve(EvolutionConfig(env_id="CartPole-v1", **tiny), sink)
    name = "CartPole-v1_main_0.064k_steps"
    test = ComparisonConfig(study=name, arms="RES_PPO_0.0003", **TEST)
    before = sorted(Path().rglob("*"))
    others = {"units": 40, "skip_c": True, "del_obs": True, "env_id": "Acrobot-v1"}
    others |= {"HP_training_steps": 300_000}
    for flag, value in others.items():
        with pytest.raises(UserError, match=rf"was evolved with {flag} .*, not {value}$"):
            compare(dataclasses.replace(test, **{flag: value}), sink)
    of_catalogue = ComparisonConfig(evolved=True, env_id="HalfCheetah-v4", workers=1)
    for flag, value, said in (
        ("del_obs", True, "evolved with del_obs False"),
        ("HP_training_steps", 1000, "evolved with HP_training_steps .*, not 1000$"),
        ("h_test", "mine", "--h_test mine names an evolution of yours"),
    ):
        with pytest.raises(UserError, match=said):
            compare(dataclasses.replace(of_catalogue, **{flag: value}), sink)
    assert sorted(Path().rglob("*")) == before
    same = {"units": tiny["units"], "skip_c": False, "del_obs": False, "env_id": "CartPole-v1"}
    assert compare(dataclasses.replace(test, **same), sink) == 0
    assert "has not ended" not in str(sink)
    Study(STORAGE, name).optuna.enqueue_trial({"sr": 1.0, "lr": 0.5})
    assert compare(dataclasses.replace(test, nb_seeds=2), sink) == 0
    assert f"{name} has not ended: 1 trial more may be better" in sink.lines


def test_a_number_of_neurons_that_was_searched_is_no_flag_of_the_test(tiny, inline, sink):
    evolve(EvolutionConfig(env_id="CartPole-v1", evolve="units=4:6", **tiny | {"units": 100}), sink)
    test = ComparisonConfig(env_id="CartPole-v1", units=100, arms="PPO", **TEST)
    with pytest.raises(UserError, match="searched units, and its test has what was found, not 100"):
        compare(test, sink)


def test_a_name_that_is_too_long_for_a_file_is_no_journal(sink):
    with pytest.raises(UserError, match="there is no study database"):
        load_best(ComparisonConfig(study="x" * 300), sink)


def test_velocities_of_an_unseen_environment_are_deleted_or_not(tiny, inline, sink):
    """As the flag says; by default as in the evolution."""
    evolve(EvolutionConfig(env_id="CartPole-v1", del_obs=True, **tiny), sink)
    test = GeneralizationComparisonConfig(
        study="CartPole-v1_main_0.064k_steps", arms="RES_PPO_0.0003", **TEST
    )
    with pytest.raises(UserError, match="--del_obs does not know the velocities"):
        compare(dataclasses.replace(test, env_id="toy_environments:Steady-v0"), sink)
    assert (
        compare(dataclasses.replace(test, env_id="toy_environments:Steady-v0", del_obs=False), sink)
        == 0
    )
    pendulum = dataclasses.replace(test, env_id="Pendulum-v1", training_steps=256)
    for flag, end, seen in ((None, "", 2), (True, "", 2), (False, "_with_velocities", 3)):
        assert compare(dataclasses.replace(pendulum, del_obs=flag), sink) == 0
        best = Study(STORAGE, test.study).best().number
        [[record]] = stored(f"{test.study}_trial_{best}_on_Pendulum-v1{end}_test_0.256k_steps")
        assert spec_of(record).make_env().unwrapped.observation_space.shape == (3,)
        assert spec_of(record).task.del_obs == (seen == 2)
    reached = [line for line in sink.lines if line.startswith("evolved: ")]
    assert [" with velocities (" in line for line in reached[-3:]] == [False, False, True]
    names = study_names(open_storage(STORAGE))
    tests = [read_study(name, STORAGE) for name in names if "Pendulum" in name]
    assert [" with hidden velocities" in describe(data) for data in tests] == [True, False]


@pytest.mark.parametrize("kind", [ComparisonConfig, MultiComparisonConfig])
def test_a_study_of_a_set_needs_its_own_script(kind, tiny, inline, sink):
    evolve_set(tiny, sink, nb_trials=1)
    with pytest.raises(
        UserError,
        match=r"evolved on .*Steady-v0, CartPole-v1: test it with .*test-generalization",
    ):
        compare(kind(study="Toys_2_main_0.064k_steps", **TEST), sink)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"env_type": "Toy"}, "unknown set of environments 'Toy'; did you mean Toys"),
        ({"sets": "missing.toml"}, "cannot read the sets"),
        ({"sets": "quick.yaml"}, "unknown table"),
        ({"env_type": "Toys", "env_ids": "CartPole-v1"}, "both name environments: leave one out"),
        ({"env_ids": ","}, "names no environments"),
        ({"env_ids": "CartPole-v1,CartPole-v1"}, "more than once"),
        ({"env_ids": "CartPole-v1,Cartpol-v1"}, "unknown environment 'Cartpol-v1'"),
        ({"env_ids": "MountainCar-v0"}, r'no target return .* --sets .*"MountainCar-v0" = NUMBER'),
        ({"env_ids": "HumanoidStandup-v4"}, "must be above the return of random"),
        (
            {
                "env_ids": "Pendulum-v1,CartPole-v1",
                "learner": "SAC",
                "learner_config": None,
                "training_steps": 200,
            },
            "SAC needs continuous .Box. actions, not Discrete",
        ),
        (
            {
                "env_ids": "CartPole-v1,Pendulum-v1",
                "learner": "DQN",
                "learner_config": None,
                "training_steps": 200,
            },
            "DQN does not take the Box",
        ),
        (
            {"published_code": True},
            "no reward of random steps is known for toy_environments:Steady-v0",
        ),
        ({"del_obs": True}, "--del_obs does not know the velocities of"),
        ({"obs_units": 11}, "1 to 10 of 10 neurons, not 11"),
        ({"nb_res": -1}, "--nb_res"),
        ({"nb_res": 0}, "--nb_res 0 evolves settings of the learner and nothing else"),
        ({"obs_units": 0}, "--obs_units must be at least 1"),
        ({"units": 2}, "at least 3 units"),
        ({"evolve": "units=5:9", "units": 100, "obs_units": 12}, "1 to 10 of 10 neurons"),
        ({"evolve": ","}, "--evolve ',' names nothing: leave it out"),
        ({"evolve": " , "}, "--evolve ' , ' names nothing"),
        ({"evolve": "learner.gama=0:1"}, "PPO has no setting 'gama'"),
        ({"evolve": "learner.lr=0:1"}, "no setting 'lr'; did you mean learning_rate.$"),
        ({"learner_config": "two.yaml"}, "different settings for"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(options, said, tiny, inline, sink):
    Path("two.yaml").write_text(
        "CartPole-v1: {n_steps: 32}\ntoy_environments:Steady-v0: {n_steps: 64}\n"
    )
    before = sorted(Path().rglob("*"))
    env_type = None if "env_ids" in options else "Toys"
    settings = {"env_type": env_type, "sets": "sets.toml"} | tiny | options
    with pytest.raises(UserError, match=said):
        evolve(GeneralizationConfig(**settings), sink)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("options", [{"nb_res": -1}, {"nb_seeds": 0}, {"h_test": "../x"}])
@pytest.mark.parametrize("kind", [MultiComparisonConfig, GeneralizationComparisonConfig])
def test_bad_flags_of_a_test(kind, options):
    with pytest.raises(UserError, match=next(iter(options))):
        kind(**options)


# -- ER-MRL's journals --


def er_mrl_journal(name, nb_res):
    """A study of several reservoirs as ER-MRL's scripts leave it."""
    journal = JournalStorage(JournalFileBackend(f"optuna-journal_{name}.log"))
    study = optuna.create_study(study_name=name, storage=journal, direction="maximize")

    def objective(trial):
        for k in range(1, nb_res + 1):
            trial.suggest_float(f"sr_{k}", 1e-4, 1e2, log=True)
            trial.suggest_float(f"lr_{k}", 1e-2, 1, log=True)
            trial.suggest_float(f"iss_{k}", 1e-1, 10, log=True)
        return trial.params["sr_1"]

    study.optimize(objective, n_trials=2)
    return study.best_trial


@pytest.mark.slow
def test_a_journal_of_several_reservoirs_opens(tiny, inline, sink):
    best = er_mrl_journal("CartPole-v1_2_main_300k_steps", 2)
    arms = "RES_PPO_0.00005,RANDOM_RES_PPO_0.0003"
    test = MultiComparisonConfig(
        env_id="CartPole-v1",
        nb_res=2,
        training_steps=32,
        nb_seeds=1,
        units=5,
        engine="sb3",
        arms=arms,
        workers=1,
    )
    assert compare(test, sink) == 0
    assert "reading ER-MRL's journal" in str(sink)
    [evolved], [random] = stored(
        f"CartPole-v1_2_main_300k_steps_trial_{best.number}_test_0.032k_steps", DEFAULT_STORAGE
    )
    own = [(r.sr, r.lr, r.iss, r.units) for r in spec_of(evolved).context.reservoirs]
    assert own == [(*(best.params[f"{p}_{k}"] for p in ("sr", "lr", "iss")), 5) for k in (1, 2)]
    drawn = spec_of(random).context.reservoirs
    assert len({r.iss for r in drawn}) == 2  # its search space held input scalings too
    # ReservoirPy gave all of them a bias then.
    reservoirs = [*spec_of(evolved).context.reservoirs, *drawn]
    assert {(r.bias, r.bias_connectivity) for r in reservoirs} == {(1.0, 0.1)}
    # Its code fed no action.
    assert not spec_of(evolved).context.feed_action
    assert not spec_of(random).context.feed_action


def test_a_journal_of_an_environment_that_is_gone(inline, sink):
    name = "LunarLander-v2_main_300k_steps"
    er_mrl_journal(name, 1)
    words = {"study": name, "storage": f"optuna-journal_{name}.log", "nb_seeds": 1}
    for given, taken in ((None, 2), ("LunarLander-v3", 3), ("CartPole-v1", 2)):
        best = load_best(MultiComparisonConfig(**words, env_id=given), sink)
        assert best.evolution.env_id == f"LunarLander-v{taken}"
    # There it is the environment of the test.
    best = load_best(GeneralizationComparisonConfig(**words, env_id="LunarLander-v3"), sink)
    assert best.evolution.env_id == "LunarLander-v2"


def test_fixed_iss_of_er_mrls_commands_is_compared(inline, sink):
    name = "CartPole-v1_2_main_300k_steps"
    er_mrl_journal(name, 2)
    words = {"study": name, "storage": f"optuna-journal_{name}.log", "nb_seeds": 1}
    best = load_best(MultiComparisonConfig(**words, fixed_iss=False), sink)
    assert not best.evolution.fixed_iss
    with pytest.raises(UserError, match="searched the input scaling, and --fixed_iss True"):
        load_best(MultiComparisonConfig(**words, fixed_iss=True), sink)


@pytest.mark.parametrize("env_type", ["Ant_Swimmer", "Ant_4_tr_envs"])
@pytest.mark.parametrize("named", [False, True])
def test_a_journal_of_a_set_knows_what_was_seen(env_type, named, inline, sink):
    name = f"{env_type}_2_try_3_x_300k_steps"
    er_mrl_journal(name, 2)
    flags = {"study": name} if named else {"HP_env_type": env_type, "h_test": "try_3_x"}
    test = GeneralizationComparisonConfig(
        **flags, env_id="Swimmer-v5", nb_res=2, units=5, workers=1
    )
    with pytest.raises(UserError, match="the evolution used Swimmer-v5"):
        compare(test, sink)
    unseen = "HalfCheetah-v4" if env_type == "Ant_Swimmer" else "Ant-v4"
    with pytest.raises(UserError, match="unknown agent 'none'"):  # it came past the refusal
        compare(dataclasses.replace(test, env_id=unseen, arms="none"), sink)


def test_a_model_that_cannot_be_saved_fails_its_lifetime_and_keeps_the_checkpoint(
    tiny, inline, sink, monkeypatch
):
    assert evolve(EvolutionConfig(env_id="CartPole-v1", **tiny), sink) == 0
    config = ComparisonConfig(
        env_id="CartPole-v1",
        **{**TEST, "training_steps": 96, "arms": "PPO", "checkpoint_minutes": 0.0},
    )

    def full(self, folder, name):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("erl.learners.sb3.SB3Agent.save", full)
        assert compare(config, sink) == 1
    assert "No space left" in str(sink)
    assert len(list(Path("runs").rglob("*.pkl"))) == 1
    assert compare(config, sink) == 0
    assert not list(Path("runs").rglob("*.pkl"))
    assert len(list(Path("models").rglob("*.zip"))) == 1
