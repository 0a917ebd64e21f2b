import json
from pathlib import Path

import pytest
from torch import nn

from erl.errors import UserError
from erl.learners.core.settings import activation, load_settings, parse_value, schedule

# In the manner of the SB3 Zoo's files.
ZOO = """
mujoco-defaults: &mujoco-defaults
  normalize: true
  n_timesteps: !!float 1e6
  policy: 'MlpPolicy'
HalfCheetah-v4:
  <<: *mujoco-defaults
  batch_size: 64
  learning_rate: lin_2.0633e-05
  clip_range: lin_0.1
  env_wrapper: "gymnasium.wrappers.TimeLimit"
  policy_kwargs: "dict(
                    log_std_init=-2,
                    ortho_init=False,
                    activation_fn=nn.ReLU,
                    net_arch=dict(pi=[256, 256], vf=[256, 256])
                  )"
CartPole-v1:
  n_envs: 8
"""


def write(name, text):
    Path(name).write_text(text)
    return name


def test_plain_yaml_and_json_say_the_same():
    settings = {"n_steps": 64, "gamma": 0.9, "policy_kwargs": {"net_arch": [8, 8]}}
    yaml = "n_steps: 64\ngamma: 0.9\npolicy_kwargs:\n  net_arch: [8, 8]\n"
    assert load_settings(write("a.yaml", yaml), "Any-v0") == (settings, [])
    assert load_settings(write("a.json", json.dumps(settings)), "Any-v0") == (settings, [])
    assert load_settings(write("empty.yaml", ""), "Any-v0") == ({}, [])


def test_policy_kwargs_alone_are_no_section():
    assert load_settings(write("a.yaml", "policy_kwargs: {net_arch: [8]}"), "Any-v0")[0] == {
        "policy_kwargs": {"net_arch": [8]}
    }


def test_the_zoos_files_sections_anchors_and_keys_that_do_not_apply():
    settings, left_out = load_settings(write("ppo.yml", ZOO), "HalfCheetah-v4")
    assert left_out == ["env_wrapper", "n_timesteps"]
    assert settings["normalize"] is True
    assert settings["batch_size"] == 64
    assert parse_value(settings["policy_kwargs"]) == {
        "log_std_init": -2,
        "ortho_init": False,
        "activation_fn": nn.ReLU,
        "net_arch": {"pi": [256, 256], "vf": [256, 256]},
    }
    assert load_settings("ppo.yml", "CartPole-v1") == ({"n_envs": 8}, [])
    with pytest.raises(
        UserError, match=r"no section for HalfCheetah-v5; did you mean HalfCheetah-v4"
    ):
        load_settings("ppo.yml", "HalfCheetah-v5")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: [1", "a.yaml is not valid"),
        ("a.json", "{'a': 1}", "a.json is not valid"),
        ("a.yaml", "- 1\n- 2", "found a list"),
        ("a.yaml", "just words", "found a str"),
        ("a.yaml", "x: 2020-01-01", "a.yaml"),
        ("a.yaml", "x: !!python/object/apply:os.system ['touch hacked']", "a.yaml is not valid"),
        ("a.yaml", "\x00", "a.yaml"),
    ],
)
def test_files_that_hold_no_settings(name, text, message):
    with pytest.raises(UserError, match=message):
        load_settings(write(name, text), "Any-v0")
    assert not Path("hacked").exists()


def test_files_that_cannot_be_read():
    for path in ("missing.yaml", "."):
        with pytest.raises(UserError, match="cannot read"):
            load_settings(path, "Any-v0")
    Path("latin.yaml").write_bytes(b"x: \xff")
    with pytest.raises(UserError, match="cannot read"):
        load_settings("latin.yaml", "Any-v0")


@pytest.mark.parametrize(
    "expression",
    [
        "dict(a=__import__('os').system('touch hacked'))",
        "dict(a=open('hacked', 'w'))",
        "[x for x in (1, 2)]",
        "dict(a=(lambda: 1)())",
        "list(map(print, [1]))",
        "nn.functional.torch.os.system('touch hacked')",
        "nn.__loader__",
        "nn.NoSuchActivation",
        "list(5)",
        "{[]: 1}",
        "dict(**{'a': 1})",
        "dict([('a', 1)])",
        "dict(a=",
        "dict(a=" * 5000 + ")" * 5000,
        "[" * 200000,
        "dict(a=1).update",
        "dict(f'{open}'=1)",
    ],
)
def test_hostile_expressions_are_refused_and_nothing_is_executed(expression):
    with pytest.raises(UserError) as e:
        parse_value(expression)
    assert len(str(e.value)) < 1000
    assert not Path("hacked").exists()


def test_other_values_stay():
    for value in (1, 0.5, True, None, "auto", "MlpPolicy", [1, 2], {"a": "dict"}):
        assert parse_value(value) == value
    assert parse_value("{'norm_obs': True, 'norm_reward': False}") == {
        "norm_obs": True,
        "norm_reward": False,
    }
    assert parse_value("[1, (2, 'episode')]") == [1, [2, "episode"]]


def test_schedules():
    assert schedule(3e-4) == 3e-4
    assert schedule("3e-4") == 3e-4
    linear = schedule("lin_0.2")
    assert [linear(x) for x in (1.0, 0.5, 0.0)] == [0.2, 0.1, 0.0]
    for bad in ("cos_0.1", "lin_", "lin", "fast"):
        with pytest.raises(UserError):
            schedule(bad)


def test_activations():
    assert (
        activation("tanh")
        is activation("nn.Tanh")
        is activation("torch.nn.Tanh")
        is activation(nn.Tanh)
        is nn.Tanh
    )
    with pytest.raises(UserError, match="ReLU"):
        activation("ReLuu")
