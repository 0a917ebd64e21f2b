"""Flags that are settings of a learner, and files and flags of AES-RL's published code."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import TD3

from erl.cli import parse
from erl.errors import UserError
from erl.experiments.single import SingleConfig, run, study_config
from erl.learners import get_learner, published_settings
from erl.learners.core.export import PlainPolicy
from erl.learners.td3 import TD3Settings
from erl.lifetimes.models import load_model
from erl.studies.records import generations

# The published file for AES-RL on Swimmer, in another order.
SWIMMER = {
    "algorithm": "AES-RL",
    "env_name": "Swimmer-v2",
    "hidden": [400, 300],
    "lr": 1e-3,
    "batch_size": 256,
    "population_size": 0,
    "replay_size": 2e5,
    "aesrl_rl_ratio": 0.1,
    "expl_noise": 0.2,
    "policy_noise": 0.2,
    "noise_clip": 0.5,
    "max_timestep": 1e6,
    "aesrl_mean_update_param": 48,
    "aesrl_mean_update": "baseline-relative",
    "aesrl_var_update": "adaptive",
}


@pytest.fixture
def asked(sink):
    """The settings that a command stores; notes are in the sink."""

    def asked(words, settings=None):
        if settings is not None:
            with open("file.json", "w", encoding="utf-8") as file:
                json.dump(settings, file)
            words += " --learner_config file.json"
        config = study_config(parse(SingleConfig, words.split()), sink)
        learner = get_learner(config.learner, config.engine)
        learner.check_settings(config.learner_config)
        return config.learner_config

    return asked


def test_flags_are_settings(asked):
    words = "--learner AES-RL --actor_workers 3 --mean_update fixed-linear --rl_ratio 0.2"
    expected = {"actor_workers": 3, "mean_update": "fixed-linear", "rl_ratio": 0.2}
    assert asked(words) == expected
    assert asked(
        "--learner aes-rl --set actor_workers=3,mean_update=fixed-linear,rl_ratio=0.2"
    ) == (expected)


def test_flags_of_the_published_code(asked, sink):
    words = (
        "--learner AES-RL --num_critic_worker 1 --num_actor_worker 4 --aesrl_mean_update "
        "fixed-sigmoid --aesrl_mean_update_param 7 --aesrl_var_update fixed --aesrl_fixed_var_n 5 "
        "--aesrl_rl_ratio 0.3 --redis_password secret"
    )
    assert asked(words) == {
        "critic_workers": 1,
        "actor_workers": 4,
        "mean_update": "fixed-sigmoid",
        "mean_update_param": 7.0,
        "var_update": "fixed",
        "fixed_var_n": 5.0,
        "rl_ratio": 0.3,
    }
    assert "--redis_password does not apply here" in str(sink)
    assert "secret" not in str(sink)
    assert asked("--learner P-CEM-RL --parallel_critic") == {"critic_workers": 1}


def test_a_published_file(asked, sink):
    settings = asked("--learner AES-RL --env_id Swimmer-v4", SWIMMER)
    kind = get_learner("AES-RL").settings
    mine = kind.from_learner_config(settings, "Swimmer-v4")
    # All else is the default of Swimmer, but for the discount and the number of workers.
    there = {"gamma": 0.99, "actor_workers": 1}
    assert mine == kind.from_learner_config(there, "Swimmer-v4")
    assert "published code: discount 0.99, num_actor_worker 1" in str(sink)
    for name in ("env_name (--env_id)", "expl_noise", "max_timestep (--steps)"):
        assert name in str(sink)
    assert "lr" not in str(sink).split("file.json: ")[1].split()[0]


def test_what_a_file_does_not_say_is_what_the_published_code_takes(asked):
    settings = asked("--learner TD3", {"algorithm": "TD3"})
    assert settings["policy_kwargs"] == {"net_arch": [400, 300]}
    assert settings["learning_rate"] == 1e-3
    assert "actor_workers" not in settings
    settings = asked("--learner AES-RL --env_id Humanoid-v4", {"algorithm": "AES-RL"})
    assert (settings["hidden"], settings["actor_workers"]) == ([400, 300], 1)


def test_what_a_flag_gives_is_not_said_to_be_a_default(asked, sink):
    words = "--learner AES-RL --env_id Humanoid-v4 --num_actor_worker 5"
    assert asked(words, {"algorithm": "AES-RL"})["actor_workers"] == 5
    assert "num_actor_worker 1" not in str(sink)
    assert "as in the published code: discount 0.99" in str(sink)


def test_a_baseline_of_zero_and_a_number_of_critic_workers_are_not_lost(asked, sink):
    file = {"algorithm": "AES-RL", "aesrl_mean_update_param": 0, "num_critic_worker": 3}
    settings = asked("--learner AES-RL", {**file, "aesrl_mean_update": "baseline-absolute"})
    assert settings["mean_update_param"] == 0
    assert "critic_workers" not in settings
    assert "num_critic_worker 3 do not apply here" in str(sink)
    assert "mean_update_param" not in asked("--learner AES-RL", file)  # not given


def test_without_its_switch_p_cem_rl_has_no_critic_worker(asked, sink):
    file = {"algorithm": "P-CEM-RL", "num_critic_worker": 1, "parallel_critic": False}
    assert "critic_workers" not in asked("--learner P-CEM-RL", file)
    assert "num_critic_worker 1 (parallel_critic is not true) do not apply" in str(sink)


def test_ray_flags_of_a_published_command_do_not_apply_to_td3(asked, sink):
    words = "--learner TD3 --ray_address 10.0.0.1 --ray_port 12345 --redis_password 12345"
    settings = asked(words, {"algorithm": "TD3", "hidden": [256, 256], "lr": 3e-4})
    assert not {"ray_address", "actor_executor"} & settings.keys()
    assert "--ray_address: TD3 has no such workers" in str(sink)
    settings = asked(f"{words} --num_actor_worker 1 --num_critic_worker 0", {"algorithm": "TD3"})
    assert not {"actor_workers", "critic_workers"} & settings.keys()
    assert "--ray_address and --actor_workers and --critic_workers: TD3 has no" in str(sink)
    asked("--learner TD3 --parallel_critic")
    assert "--parallel_critic: TD3 has no such workers" in str(sink)
    settings = asked(words.replace("TD3", "AES-RL"))
    assert settings == {"ray_address": "ray:10.0.0.1:12345", "actor_executor": "ray"}


def test_a_parameter_of_the_file_for_an_update_of_a_flag_is_named(asked, sink):
    """For baseline-absolute the paper has the other sign."""
    words = "--learner AES-RL --aesrl_mean_update baseline-absolute"
    settings = asked(words, SWIMMER)
    assert settings["mean_update_param"] == 48
    assert "mean_update_param 48 is kept for baseline-absolute" in str(sink)
    before = len(sink.lines)
    asked(f"{words} --mean_update_param -48", SWIMMER)
    asked("--learner AES-RL --mean_update baseline-relative", SWIMMER)
    assert not any("is kept" in line for line in sink.lines[before:])


def test_a_flag_wins_over_the_file_also_where_it_is_the_default(asked):
    file = SWIMMER | {"aesrl_mean_update": "fixed-linear", "num_actor_worker": 9}
    settings = asked("--learner AES-RL", file)
    assert (settings["mean_update"], settings["actor_workers"]) == ("fixed-linear", 9)
    words = "--learner AES-RL --aesrl_mean_update baseline-relative --num_actor_worker 5"
    settings = asked(words, file)
    assert (settings["mean_update"], settings["actor_workers"]) == ("baseline-relative", 5)


@pytest.mark.parametrize(
    ("learner", "more", "expected"),
    [
        ("CEM-RL", {"cemrl_rl_population": 5, "population_size": 10}, {"rl_population": 5}),
        ("CEM-RL", {"cemrl_no_antithetic": True, "num_critic_worker": 0}, {"antithetic": False}),
        ("P-CEM-RL", {"parallel_critic": True, "cemrl_tau": 0.8}, {"damp_tau": 0.8}),
        ("P-CEM-RL", {"parallel_critic": True}, {"critic_workers": 1}),
        ("P-CEM-RL", {"parallel_critic": True, "num_critic_worker": 1}, {"critic_workers": 1}),
        ("ACEM-RL", {"population_size": 10}, {"population_size": 10}),
        ("(1+1)-ES", {"aesrl_one_plus_one_success_rate": 0.3}, {"success_rate": 0.3}),
        ("TD3", {"hidden": [256, 256], "expl_noise": 0.1}, {"noise_std": 0.1, "preset": "aes_td3"}),
    ],
)
def test_files_of_the_others(asked, learner, more, expected):
    settings = asked(f"--learner {learner}", {"algorithm": learner, "lr": 0.01, **more})
    assert expected.items() <= settings.items()
    assert settings["learning_rate"] == 0.01
    assert (settings["batch_size"], settings["gamma"]) == (100, 0.99)  # its defaults


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ("--learner AES-RL", {"algorithm": "TD3"}, "are for TD3: add --learner TD3, in place of"),
        ("", SWIMMER, "are for AES-RL: add --learner AES-RL, in place of ERL-Re2"),
        ("--learner SAC", SWIMMER, "are for AES-RL: add --learner AES-RL, in place of SAC"),
        ("--learner A2C", SWIMMER, "are for AES-RL: add --learner AES-RL, in place of A2C"),
        ("--learner PPO --ray_address ray", None, "PPO has no setting 'ray_address'"),
        ("--learner AES-RL", SWIMMER | {"lrr": 1}, "has no setting 'lrr'; did you mean lr"),
        ("--learner AES-RL", SWIMMER | {"actor_activation": "relu"}, "activation is tanh here"),
        ("--learner AES-RL --rl_ratio 0.1 --set rl_ratio=0.2", None, "by --set and by --rl_ratio"),
        (
            "--learner P-CEM-RL --parallel_critic --set critic_workers=0",
            None,
            "critic_workers is given by --set and by --parallel_critic",
        ),
        (
            "--learner AES-RL --ray_address ray --set actor_executor=ray",
            None,
            "actor_executor is given by --set and by --ray_address",
        ),
        ("--learner P-CEM-RL --parallel_critic --critic_workers 0", None, "--critic_workers 0 not"),
        ("--learner P-CEM-RL --num_critic_worker 1", None, "with --parallel_critic only: add it"),
        ("--learner AES-RL --ray_port 7", None, "--ray_port needs --ray_address"),
        ("--learner AES-RL --ray_address a --ray_port 99999", None, "--ray_address must be ray"),
        ("--learner PPO --rl_ratio 0.5", None, "PPO has no setting 'rl_ratio'"),
        ("--learner TD3 --set preset=fast", None, "TD3 has no preset 'fast': TD3 has aes_td3"),
        ("--learner TD3 --set preset=[1]", None, r"TD3 has no preset \[1\]: TD3 has aes_td3"),
        ("--learner DDPG --set preset=aes_td3", None, "DDPG has no preset 'aes_td3'"),
        (
            "--learner TD3 --set preset=aes_td3,policy_kwargs=dict(activation_fn=nn.ReLU)",
            None,
            "activations of its own",
        ),
        (
            "--learner TD3 --set preset=aes_td3,policy_kwargs=foo",
            None,
            "policy_kwargs must be names and values or null, not 'foo'",
        ),
    ],
)
def test_what_cannot_be_is_refused(asked, words, settings, message):
    with pytest.raises(UserError, match=message):
        asked(words, settings)


def test_published_code_leaves_the_mean_out_of_the_budget(sink, inline):
    config = SingleConfig(
        learner="AES-RL",
        env_id="toy_environments:Reach-v0",
        steps=400,
        actor_workers=1,
        set="hidden=[8],batch_size=8,learning_starts=60,mean_update_param=3,actor_update_cost=0.1",
        published_code=True,
        ep_eval=2,
        workers=1,
    )
    assert run(config, sink) == 0
    table = generations(config.storage, "toy_environments:Reach-v0_AES-RL_single_0.4k_steps")
    assert (table["steps"] == table["uncounted_steps"]).all()
    assert set(table["kind"]) == {"ES", "RL"}


def test_published_settings_of_acem_rl():
    """There the mean plays its episodes too, outside of the budget."""
    expected = {"gamma": 0.99, "charge_mean": False, "mean_evaluations": 5}
    assert published_settings("ACEM-RL") == expected
    assert published_settings("AES-RL") == {"gamma": 0.99, "charge_mean": False}


def test_the_preset_of_td3(sink, inline, tmp_path):
    """Tanh and leaky ReLU, in training and in the file."""
    settings = TD3Settings.from_learner_config({"preset": "aes_td3", "batch_size": 32})
    assert settings.activations == ("Tanh", "LeakyReLU")
    assert (settings.pi, settings.learning_rate, settings.noise_std) == ((256, 256), 3e-4, 0.1)
    assert settings.batch_size == 32
    config = SingleConfig(
        learner="TD3",
        env_id="toy_environments:Reach-v0",
        steps=120,
        set="preset=aes_td3,learning_starts=40,batch_size=16,policy_kwargs={net_arch: [8, 8]}",
        ep_eval=2,
        workers=1,
    )
    assert run(config, sink) == 0
    (zip_file,) = tmp_path.glob("models/*/*.zip")
    model = TD3.load(zip_file, gym.make("toy_environments:Reach-v0"))
    assert isinstance(model.policy, PlainPolicy)
    assert isinstance(model.actor.mu[1], torch.nn.Tanh)
    assert isinstance(model.critic.q_networks[0][1], torch.nn.LeakyReLU)
    _, agent = load_model(zip_file.with_suffix(""))
    seen = np.zeros((1, 3), np.float32)
    assert np.array_equal(agent.predict(seen)[0], model.predict(seen)[0])
