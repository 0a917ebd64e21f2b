"""Every kind of value that the SB3 Zoo's files have for environments that run here is taken, and
trains.

Of each file the settings of its sections for Gymnasium's environments, each with the values that it
has anywhere, written out from version 2.9 of the Zoo.
"""

import json

import pytest

from erl.errors import UserError
from erl.learners.core.settings_file import load_settings
from erl.learners.sb3 import algorithms
from erl.lifetimes.living import Cohort, check, live
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

VALUES = {
    "A2C": {
        "n_envs": [8, 16, 4, 32],
        "policy": ["MlpPolicy"],
        "ent_coef": [0.0, 1e-05, 0.001],
        "gamma": [0.995, 0.9, 0.99, 0.9999],
        "n_steps": [5, 8, 100],
        "learning_rate": ["lin_0.00083", "lin_7e-4", "lin_0.00096", "lin_0.0008"],
        "normalize": [True],
        "max_grad_norm": [0.5],
        "gae_lambda": [0.9],
        "vf_coef": [0.4],
        "use_rms_prop": [True],
        "normalize_advantage": [False],
        "use_sde": [True],
        "policy_kwargs": [
            "dict(log_std_init=-2, ortho_init=False)",
            "dict(log_std_init=0.0, ortho_init=False)",
        ],
        "sde_sample_freq": [16],
    },
    "ARS": {
        "n_envs": [1],
        "policy": ["LinearPolicy", "MlpPolicy"],
        "n_delta": [2, 4, 6, 8, 1, 32, 40, 60, 256, 64],
        "normalize": ["dict(norm_obs=True, norm_reward=False)"],
        "learning_rate": [0.018, 0.02, 0.01, 0.03, 0.015],
        "n_top": [1, 4, 30, 20, 256, 32],
        "delta_std": [0.1, 0.2, 0.01, 0.025, 0.03, 0.0075],
        "policy_kwargs": ["dict(net_arch=[16])"],
        "zero_policy": [False],
        "alive_bonus_offset": [0, -1, -5, -0.1],
    },
    "CrossQ": {
        "policy": ["MlpPolicy"],
        "learning_rate": [0.0007, 0.001],
        "buffer_size": [50000, 1000000, 300000],
        "train_freq": [32],
        "gradient_steps": [32],
        "gamma": [0.9999, 0.98, 0.999],
        "learning_starts": [100, 10000, 5000],
        "use_sde": [True],
        "policy_delay": [2, 3],
        "policy_kwargs": [
            "dict(use_expln=True, log_std_init=-1, net_arch=[64, 64])",
            "dict(net_arch=[256, 256])",
            "dict(net_arch=dict(pi=[256, 256], qf=[1024, 1024]))",
            "dict(net_arch=dict(pi=[256, 256], qf=[2048, 2048]))",
        ],
    },
    "DDPG": {
        "policy": ["MlpPolicy"],
        "noise_type": ["ornstein-uhlenbeck", "normal"],
        "noise_std": [0.5, 0.1],
        "gradient_steps": [1],
        "train_freq": [1],
        "learning_rate": [0.001, "lin_7e-4"],
        "batch_size": [256],
        "policy_kwargs": ["dict(net_arch=[400, 300])"],
        "gamma": [0.98, 0.99, 0.9999],
        "buffer_size": [200000, 1000000],
        "learning_starts": [10000],
    },
    "DQN": {
        "policy": ["MlpPolicy"],
        "learning_rate": [0.0023, 0.004, 0.00063],
        "batch_size": [64, 128],
        "buffer_size": [100000, 10000, 50000],
        "learning_starts": [1000, 0],
        "gamma": [0.99, 0.98],
        "target_update_interval": [10, 600, 250],
        "train_freq": [256, 16, 4],
        "gradient_steps": [128, 8, -1],
        "exploration_fraction": [0.16, 0.2, 0.12],
        "exploration_final_eps": [0.04, 0.07, 0.1],
        "policy_kwargs": ["dict(net_arch=[256, 256])"],
    },
    "PPO": {
        "n_envs": [4, 8, 16, 1, 32],
        "policy": ["MlpPolicy"],
        "n_steps": [1024, 32, 16, 8, 256, 2048, 512],
        "gae_lambda": [0.95, 0.8, 0.98, 0.9, 0.94, 0.92, 0.99],
        "gamma": [0.9, 0.98, 0.99, 0.9999, 0.999, 0.95],
        "n_epochs": [10, 20, 4, 5],
        "ent_coef": [0.0, 0.00429, 0.001, 0.01, 0.000401762, 0.00229519, 0.00238306, 0.000585045],
        "learning_rate": [
            0.001,
            "lin_0.001",
            7.77e-05,
            0.0003,
            "lin_2.5e-4",
            0.0006,
            2.0633e-05,
            9.80828e-05,
            3.56987e-05,
            5.05041e-05,
        ],
        "clip_range": [0.2, "lin_0.2", 0.1, 0.18, 0.3],
        "use_sde": [True],
        "sde_sample_freq": [4],
        "batch_size": [256, 64, 32],
        "normalize": [True],
        "max_grad_norm": [5, 0.8, 0.7, 2, 1],
        "vf_coef": [0.19, 0.58096, 0.835671, 0.431892, 0.871923],
        "policy_kwargs": [
            "dict(log_std_init=-3.29, ortho_init=False)",
            "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, "
            "net_arch=dict(pi=[256, 256], vf=[256, 256]))",
        ],
    },
    "RecurrentPPO": {
        "normalize": [True],
        "n_envs": [16, 32, 4, 1],
        "policy": ["MlpLstmPolicy"],
        "n_steps": [256, 1024, 512],
        "gae_lambda": [0.94, 0.95, 0.98, 0.92, 0.99, 0.9],
        "gamma": [0.99, 0.999, 0.9999, 0.98, 0.95],
        "n_epochs": [4, 10, 20, 5],
        "ent_coef": [0.0, 0.001, 0.000401762, 0.00229519, 0.00238306, 0.000585045],
        "batch_size": [256, 64, 32],
        "learning_rate": [
            0.0003,
            "lin_3e-4",
            0.0006,
            2.0633e-05,
            9.80828e-05,
            3.56987e-05,
            5.05041e-05,
        ],
        "clip_range": [0.18, "lin_0.2", 0.1, 0.2, 0.3],
        "policy_kwargs": [
            "dict(ortho_init=False, activation_fn=nn.ReLU, lstm_hidden_size=64, "
            "enable_critic_lstm=True, net_arch=dict(pi=[64], vf=[64]))",
            "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, "
            "net_arch=dict(pi=[256, 256], vf=[256, 256]))",
        ],
        "max_grad_norm": [0.8, 0.7, 2, 1],
        "vf_coef": [0.58096, 0.835671, 0.431892, 0.871923],
    },
    "QRDQN": {
        "policy": ["MlpPolicy"],
        "learning_rate": [0.0023, 0.004, "lin_1.5e-3", 0.00063],
        "batch_size": [64, 128],
        "buffer_size": [100000, 10000, 50000],
        "learning_starts": [1000, 10000, 0],
        "gamma": [0.99, 0.98, 0.995],
        "target_update_interval": [10, 600, 1, 250],
        "train_freq": [256, 16, 4],
        "gradient_steps": [128, 8, -1],
        "exploration_fraction": [0.16, 0.2, 0.24, 0.12],
        "exploration_final_eps": [0.04, 0.07, 0.18, 0.1],
        "policy_kwargs": [
            "dict(net_arch=[256, 256], n_quantiles=10)",
            "dict(net_arch=[256, 256], n_quantiles=25)",
            "dict(net_arch=[256, 256], n_quantiles=170)",
        ],
    },
    "SAC": {
        "policy": ["MlpPolicy"],
        "learning_rate": [0.0003, 0.001, "lin_7.3e-4", 0.00073],
        "buffer_size": [50000, 1000000, 300000],
        "batch_size": [512, 256],
        "ent_coef": [0.1, "auto", 0.005],
        "train_freq": [32, 1, 64],
        "gradient_steps": [32, 1, 64],
        "gamma": [0.9999, 0.99, 0.98, 0.999],
        "tau": [0.01, 0.02],
        "learning_starts": [0, 10000],
        "use_sde": [True],
        "policy_kwargs": [
            "dict(log_std_init=-3.67, net_arch=[64, 64])",
            "dict(net_arch=[400, 300])",
            "dict(log_std_init=-3, net_arch=[400, 300])",
        ],
    },
    "TD3": {
        "policy": ["MlpPolicy"],
        "noise_type": ["ornstein-uhlenbeck", "normal"],
        "noise_std": [0.5, 0.1],
        "gradient_steps": [1],
        "train_freq": [1],
        "learning_rate": [0.001, "lin_7e-4"],
        "batch_size": [256],
        "policy_kwargs": ["dict(net_arch=[400, 300])"],
        "gamma": [0.98, 0.99, 0.9999],
        "buffer_size": [200000, 1000000],
        "learning_starts": [10000],
    },
    "TQC": {
        "policy": ["MlpPolicy"],
        "learning_rate": [0.0003, 0.001, "lin_7.3e-4", 0.00073],
        "buffer_size": [50000, 1000000, 300000],
        "batch_size": [512, 256],
        "ent_coef": [0.1, "auto"],
        "train_freq": [32, 1, 64],
        "gradient_steps": [32, 1, 64],
        "gamma": [0.9999, 0.99, 0.98, 0.999],
        "tau": [0.01, 0.02],
        "learning_starts": [0, 10000],
        "use_sde": [True],
        "policy_kwargs": [
            "dict(log_std_init=-3.67, net_arch=[64, 64])",
            "dict(net_arch=[400, 300])",
            "dict(log_std_init=-3, net_arch=[400, 300])",
        ],
        "top_quantiles_to_drop_per_net": [5],
    },
    "TRPO": {
        "n_envs": [2],
        "policy": ["MlpPolicy"],
        "n_steps": [512, 1024],
        "batch_size": [512, 128],
        "cg_damping": [0.001, 0.01, 0.1],
        "gae_lambda": [0.98, 0.95],
        "gamma": [0.99, 0.9, 0.9999],
        "learning_rate": [0.001],
        "n_critic_updates": [20, 15],
        "use_sde": [True],
        "sde_sample_freq": [4],
        "normalize": [True],
        "sub_sampling_factor": [1],
        "cg_max_steps": [25],
        "target_kl": [0.04],
    },
}

# Small enough for a test.
QUICK = {
    "batch_size": 16,
    "buffer_size": 500,
    "gradient_steps": 1,
    "learning_starts": 20,
    "n_delta": 2,
    "n_envs": 2,
    "n_epochs": 2,
    "n_steps": 32,
    "n_top": 1,
    "target_update_interval": 10,
    "train_freq": 4,
}
DISCRETE, CONTINUOUS = "toy_environments:Recall-v0", "toy_environments:Steady-v0"


def lifetime(name, config, steps=10**6):
    env_id = DISCRETE if name in ("DQN", "QRDQN") else CONTINUOUS
    learner = LearnerSpec(name, config, "sb3")
    return LifetimeSpec(Task(env_id), learner, steps, Seeds.derive(0, "single", 0), ep_eval=2)


def test_all_algorithms_are_there():
    assert VALUES.keys() == algorithms().keys()


# What else a value needs beside it.
BESIDE = {
    "n_top": {"n_delta": 512},
    "noise_type": {"noise_std": 0.1},
    "noise_std": {"noise_type": "normal"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_every_value_is_taken(name):
    for setting, values in VALUES[name].items():
        for value in values:
            check(lifetime(name, {setting: value} | BESIDE.get(setting, {})))


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("name", VALUES)
def test_the_values_train(name, which):
    config = {setting: values[which] for setting, values in VALUES[name].items()}
    config |= {k: v for k, v in QUICK.items() if k in config}
    if config["policy"] == "LinearPolicy":
        del config["policy_kwargs"]
    if "policy_kwargs" in config and "net_arch" in config["policy_kwargs"]:
        config["policy_kwargs"] = (
            config["policy_kwargs"].replace("1024", "16").replace("2048", "16")
        )
    spec = lifetime(name, config, 100)
    check(spec)
    (record,) = live(Cohort((spec,)))
    assert record.error is None, record.traceback
    assert record.fitness is not None


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DQN", {"max_grad_norm": 0.5}),
        ("RecurrentPPO", {"batch_size": None}),
        ("ARS", {"delta_std": "lin_0.05"}),
        ("ARS", {"alive_bonus_offset": -0.1}),
        ("ARS", {"n_top": None}),
        ("SAC", {"buffer_size": 1e6, "target_entropy": "auto", "ent_coef": "auto_0.1"}),
        ("SAC", {"ent_coef": "5e-3", "target_entropy": -1}),
        ("TD3", {"train_freq": [1, "episode"], "gradient_steps": -1}),
        ("PPO", {"learning_rate": "5e-3", "n_steps": "64", "gamma": 1}),
        ("TRPO", {"cg_damping": 0, "sde_sample_freq": -1}),
    ],
    ids=str,
)
def test_what_annotations_allow_and_defaults_do_not_show(name, config):
    check(lifetime(name, config))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        # A lone step in the last minibatch, whose advantage would be NaN.
        ("RecurrentPPO", {"n_steps": 33, "batch_size": 32}, "single step"),
        ("RecurrentPPO", {"n_steps": 1, "batch_size": None}, "single step"),
        ("A2C", {"n_steps": 1, "normalize_advantage": True}, "single step"),
        ("TRPO", {"n_steps": 1}, "single step"),
        ("PPO", {"batch_size": 1}, "single step"),
        ("SAC", {"train_freq": [1, "episode"], "n_envs": 2}, "counts episodes.*n_envs 1, not 2"),
        ("TD3", {"policy_delay": 0}, "policy_delay must be a whole number from 1, not 0"),
        (
            "DQN",
            {"target_update_interval": 0},
            "target_update_interval must be a whole number from 1",
        ),
        ("DQN", {"train_freq": 0}, "train_freq must be a whole number from 1"),
        ("DQN", {"train_freq": [0, "episode"]}, "train_freq must be a whole number from 1"),
        ("DQN", {"train_freq": [1, "episodes"]}, "step or episode"),
        ("DQN", {"train_freq": [1, "step", 2]}, "a list of 2"),
        ("DQN", {"gradient_steps": 0}, "gradient_steps must be a whole number from 1 or -1, not 0"),
        ("DQN", {"exploration_fraction": 0}, "above 0 up to 1"),
        ("DQN", {"buffer_size": 1e6 + 0.5}, "buffer_size must be a whole number from 1"),
        ("DQN", {"policy": "CnnPolicy"}, "policy must be MlpPolicy, not 'CnnPolicy'"),
        ("SAC", {"ent_coef": "much"}, "auto or auto_NUMBER"),
        ("SAC", {"ent_coef": "auto_0"}, "auto or auto_NUMBER"),
        ("SAC", {"learning_rate": 0}, "learning_rate must be a number above 0"),
        ("SAC", {"learning_rate": "lin_0"}, "learning_rate must be a number above 0"),
        (
            "SAC",
            {"replay_buffer_class": "HerReplayBuffer"},
            "has a value that settings cannot name",
        ),
        ("TQC", {"top_quantiles_to_drop_per_net": 25}, "leaves none of 25"),
        ("TRPO", {"n_critic_updates": 0}, "whole number from 1"),
    ],
    ids=str,
)
def test_what_the_constructor_takes_and_training_fails_over(name, config, message):
    with pytest.raises(UserError, match=message) as e:
        check(lifetime(name, config))
    assert str(e.value).startswith(name)
    assert "\n" not in str(e.value)


def test_a_lone_step_is_refused_where_it_harms_only():
    check(lifetime("PPO", {"n_steps": 33, "batch_size": 32}))  # PPO leaves it as it is
    check(lifetime("RecurrentPPO", {"n_steps": 33, "batch_size": 32, "normalize_advantage": False}))
    check(lifetime("RecurrentPPO", {"n_steps": 34, "batch_size": 32}))
    check(lifetime("RecurrentPPO", {"n_steps": 33, "batch_size": 32, "n_envs": 2}))
    check(lifetime("A2C", {"n_steps": 1, "normalize_advantage": True, "n_envs": 2}))


def test_a_section_of_the_zoo_as_its_file_has_it(tmp_path):
    path = tmp_path / "a2c.yml"
    path.write_text(
        "CartPole-v1:\n"
        "  n_envs: 8\n"
        "  n_timesteps: !!float 5e5\n"
        "  policy: 'MlpPolicy'\n"
        "  ent_coef: 0.0\n"
        "  max_grad_norm: !!float 1\n"
        "  n_steps: !!float 8\n"
    )
    file = load_settings(str(path), "CartPole-v1")
    assert file.notes == (f"{path}: these settings do not apply here and are ignored: n_timesteps",)
    json.dumps(file.settings)
    check(lifetime("A2C", file.settings))
