import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

import pytest
from torch import nn

from erl.errors import UserError
from erl.files import parse_json, parse_yaml
from erl.learners.core.sb3_settings import annotations
from erl.learners.core.settings import (
    Count,
    LinearSchedule,
    NotNegative,
    Positive,
    Schedule,
    Settings,
    Share,
    convert,
    expected,
)
from erl.learners.core.settings_file import activation, load_settings, parse_value
from erl.learners.erl_re2.settings import Re2Settings
from erl.learners.ppo.settings import PPOSettings
from erl.learners.sb3 import algorithms

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
    assert load_settings(write("a.yaml", yaml), "Any-v0") == (settings, {}, ())
    assert load_settings(write("a.json", json.dumps(settings)), "Any-v0") == (settings, {}, ())
    assert load_settings(write("empty.yaml", ""), "Any-v0") == ({}, {}, ())


def test_policy_kwargs_alone_are_no_section():
    assert load_settings(write("a.yaml", "policy_kwargs: {net_arch: [8]}"), "Any-v0")[0] == {
        "policy_kwargs": {"net_arch": [8]}
    }


def test_the_zoos_files_sections_anchors_and_keys_that_do_not_apply():
    settings, env_kwargs, notes = load_settings(write("ppo.yml", ZOO), "HalfCheetah-v4")
    assert notes == (
        "ppo.yml: these settings do not apply here and are ignored: env_wrapper, n_timesteps",
    )
    assert env_kwargs == {}
    assert settings["normalize"] is True
    assert settings["batch_size"] == 64
    assert parse_value(settings["policy_kwargs"]) == {
        "log_std_init": -2,
        "ortho_init": False,
        "activation_fn": nn.ReLU,
        "net_arch": {"pi": [256, 256], "vf": [256, 256]},
    }
    assert load_settings("ppo.yml", "CartPole-v1") == ({"n_envs": 8}, {}, ())
    with pytest.raises(
        UserError, match=r"no section for HalfCheetah-v5; did you mean HalfCheetah-v4"
    ):
        load_settings("ppo.yml", "HalfCheetah-v5")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.yml", "gamma: 0.5"), ("a.JSON", '{"gamma": 0.5}'), ("a.toml", "gamma = 0.5")],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_end_of_the_name_says_the_format_and_editors_may_mark_it(name, text, mark):
    """Some editors begin a file with a mark of its byte order."""
    Path(name).write_bytes(mark + text.encode())
    assert load_settings(name, "Any-v0").settings == {"gamma": 0.5}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: [1", "a.yaml is not valid"),
        ("a.json", "{'a': 1}", "a.json is not valid"),
        ("a.yaml", "- 1\n- 2", "not a list"),
        ("a.yaml", "just words", "not a str"),
        ("a.yaml", "x: 2020-01-01", "a.yaml"),
        ("a.yaml", "x: !!python/object/apply:os.system ['touch hacked']", "a.yaml is not valid"),
        ("a.yaml", "\x00", "a.yaml"),
    ],
)
def test_files_that_hold_no_settings(name, text, message):
    with pytest.raises(UserError, match=message):
        load_settings(write(name, text), "Any-v0")
    assert not Path("hacked").exists()


def test_whose_section_it_is():
    """The full name's, the name's without its module, or `default`."""
    text = "Limited-v0: {gamma: 0.5}\n'other:Limited-v0': {gamma: 0.6}\ndefault: {gamma: 0.7}\n"
    path = write("lim.yml", text)
    assert load_settings(path, "Limited-v0").settings == {"gamma": 0.5}
    assert load_settings(path, "module:Limited-v0").settings == {"gamma": 0.5}
    assert load_settings(path, "other:Limited-v0").settings == {"gamma": 0.6}
    settings, _, notes = load_settings(path, "Hopper-v5")
    assert settings == {"gamma": 0.7}
    assert notes == ("lim.yml has no section for Hopper-v5: its section default is taken",)


def test_arguments_of_the_environment_are_handed_on():
    text = "Hopper-v5:\n  gamma: 0.5\n  env_kwargs: {forward_reward_weight: 5e-1}\n"
    settings, env_kwargs, notes = load_settings(write("a.yml", text), "Hopper-v5")
    assert (settings, env_kwargs, notes) == ({"gamma": 0.5}, {"forward_reward_weight": 0.5}, ())
    text = "env_kwargs: dict(a=1, b='x')"
    assert load_settings(write("a.yml", text), "Any-v0").env_kwargs == {"a": 1, "b": "x"}
    with pytest.raises(UserError, match="env_kwargs must be names and values, not 3"):
        load_settings(write("a.yml", "env_kwargs: 3"), "Any-v0")


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("a.yaml", "gamma: 1\ngamma: 2", "gamma"),
        ("a.yaml", "Any-v0: {gamma: 1}\nAny-v0: {tau: 1}", "Any-v0"),
        ("a.yaml", "policy_kwargs: {a: 1, b: {c: 1, c: 1}}", "c"),
        ("a.json", '{"gamma": 1, "gamma": 1}', "gamma"),
        ("a.json", '{"policy_kwargs": {"a": 1, "a": 2}}', "a"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(name, text, key):
    with pytest.raises(UserError, match=f"{name} is not valid: '{key}' is given twice"):
        load_settings(write(name, text), "Any-v0")


def test_what_is_merged_may_be_given_again():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n"
    assert parse_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-3", 0.005),
        ("1e6", 1e6),
        ("-2.5E+3", -2500.0),
        (".5e1", 5.0),
        ("!!float 1e6", 1e6),
        ("7", 7),
        ("lin_5e-3", "lin_5e-3"),
        ("'5e-3'", "5e-3"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1.2.3e4", "1.2.3e4"),
    ],
)
def test_numbers_in_yaml(text, value):
    found = parse_yaml(f"x: {text}")["x"]
    assert (found, type(found)) == (value, type(value))
    assert parse_json('{"x": 5e-3}') == {"x": 0.005}


@pytest.mark.parametrize(
    "text", ["!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "&a [*a]", "{a: &b {c: *b}}"]
)
def test_values_that_are_none_are_a_value_error(text):
    with pytest.raises(ValueError, match=r"not what its tag says|holds itself"):
        parse_yaml(f"x: {text}")
    assert parse_yaml("a: &x [1]\nb: [*x, *x]") == {"a": [1], "b": [[1], [1]]}


def test_files_that_cannot_be_read():
    Path("folder.yaml").mkdir()
    for path in ("missing.yaml", "folder.yaml", "a\0.yaml"):
        with pytest.raises(UserError, match="cannot read the learner's settings"):
            load_settings(path, "Any-v0")
    with pytest.raises(UserError, match="must end in"):
        load_settings("settings.ini", "Any-v0")
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


# What an annotation asks for


@pytest.mark.parametrize(
    ("annotation", "words", "taken", "refused"),
    [
        (bool, "true or false", [(True, True)], [1, "true", None]),
        (
            Count,
            "a whole number from 1",
            [(3, 3), (1e6, 1_000_000), ("1e3", 1000)],
            [0, 2.5, True, "many", None, float("inf"), [1]],
        ),
        (float, "a number", [(3, 3.0), (-0.5, -0.5), ("5e-3", 0.005)], ["x", False, float("nan")]),
        (Share, "a number from 0 to 1", [(0, 0.0), (1, 1.0)], [-0.1, 1.1]),
        (Positive, "a number above 0", [(1e-9, 1e-9)], [0, -1]),
        (NotNegative | None, "a number from 0 or null", [(None, None), (0, 0.0)], [-1, "null"]),
        (
            Positive | Schedule,
            "a number above 0 or a schedule lin_NUMBER",
            [("lin_0.2", LinearSchedule(0.2)), ("3e-4", 3e-4)],
            ["lin_0", "lin_", "lin", "cos_0.1", 0, "lin_x"],
        ),
        (Literal["TD3", "DDPG"], "TD3 or DDPG", [("DDPG", "DDPG")], ["SAC", 1]),
        (Literal[0, 1], "0 or 1", [(0, 0), (1.0, 1)], [True, 2]),
        (Count | Literal[-1], "a whole number from 1 or -1", [(-1, -1), (2, 2)], [0, -2]),
        (
            tuple[Count, ...],
            "a list, each a whole number from 1",
            [([3], (3,)), ([], ())],
            [3, [0]],
        ),
        (
            Count | tuple[Count, Literal["step", "episode"]],
            "a whole number from 1, or a list of 2 (a whole number from 1, step or episode)",
            [(2, 2), ([1, "episode"], (1, "episode"))],
            [[1], [1, "day"], ["episode", 1]],
        ),
        (dict[str, Any] | None, "names and values or null", [({"a": 1}, {"a": 1})], ["a", [1]]),
        (str | float, "a text or a number", [("auto", "auto"), ("0.1", 0.1)], [None, True]),
    ],
    ids=str,
)
def test_values_are_checked_by_their_annotation(annotation, words, taken, refused):
    assert expected(annotation) == words
    for value, form in taken:
        converted = convert("Mine", "x", annotation, value)
        assert (converted, type(converted)) == (form, type(form))
    for value in refused:
        with pytest.raises(UserError) as e:
            convert("Mine", "x", annotation, value)
        assert str(e.value) == f"Mine's x must be {words}, not {value!r}"


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(UserError) as e:
        convert("Mine", "x", float, ["a"] * 10_000)
    assert len(str(e.value)) < 300


@dataclass(frozen=True)
class Mine(Settings):
    learner = "Mine"
    spelled: ClassVar = {"beta": "kwargs beta"}
    defaults = Path(__file__).with_name("defaults.toml")
    alpha: Share
    beta: Count = 3

    def _check(self):
        if self.beta > 5:
            raise self._wrong("beta", "at most 5")


def test_settings_of_a_learner(monkeypatch, tmp_path):
    toml = tmp_path / "defaults.toml"
    toml.write_text('[Ant]\nalpha = 0.5\nsource = "here"\n[default]\nalpha = 1\n')
    monkeypatch.setattr(Mine, "defaults", toml)
    assert Mine.from_learner_config({}, "module:Ant-v5") == Mine(0.5, 3)
    assert Mine.from_learner_config({"beta": 4.0}, "Bee-v0") == Mine(1.0, 4)
    assert type(Mine(1).alpha) is float
    for config, message in (
        ({"alpa": 1}, "Mine has no setting 'alpa'; did you mean alpha"),
        ({1: 2}, "Mine has no setting 1"),
        ({"alpha": "x"}, "Mine's alpha must be a number from 0 to 1, not 'x'"),
        ({"beta": 0}, "Mine's kwargs beta must be a whole number from 1, not 0"),
        ({"beta": 6}, "Mine's kwargs beta must be at most 5, not 6"),
    ):
        with pytest.raises(UserError) as e:
            Mine.from_learner_config(config, "Ant-v5")
        assert str(e.value).startswith(message)


def test_schedules_fall_to_zero():
    linear = convert("Mine", "x", Positive | Schedule, "lin_0.2")
    assert [linear(x) for x in (1.0, 0.5, 0.0)] == [0.2, 0.1, 0.0]


def test_the_cohort_asks_for_what_stable_baselines3s_ppo_asks_for():
    theirs = annotations(algorithms()["PPO"])
    ours = get_type_hints(PPOSettings, include_extras=True)
    shared = ours.keys() & theirs.keys()
    assert len(shared) == 16
    for name in shared:
        assert expected(ours[name]) == expected(theirs[name]), name


@pytest.mark.parametrize("kind", [PPOSettings, Re2Settings])
def test_every_setting_has_an_annotation_that_can_be_checked(kind):
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        if name not in ("learner", "spelled", "defaults", "kept"):
            words = expected(annotation)
            assert words != "null", name
            with pytest.raises(UserError, match=re.escape(f"must be {words}, not")):
                convert("Mine", name, annotation, object())


def test_every_setting_of_stable_baselines3_has_one():
    for name, algorithm in algorithms().items():
        for setting, annotation in annotations(algorithm).items():
            assert expected(annotation) != "null", (name, setting)
            with pytest.raises(UserError):
                convert(name, setting, annotation, object())
