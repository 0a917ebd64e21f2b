"""The example scripts run, and their files hold what the harness takes too."""

import re
import runpy
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import ROOT
from documents import blocks

from erl.files import DATA_ENDINGS, parse_yaml
from erl.learners import DERL, get_learner
from erl.learners.aes_rl import AESRLSettings
from erl.learners.core.settings_file import load_settings
from erl.learners.derl.settings import DERLSettings
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

FOLDER = ROOT / "examples"
SMALL = "hidden: [8]\npopulation_size: 3\nupdates_per_step: 0.01\nlearning_starts: 100\n"


@pytest.fixture
def short(monkeypatch):
    """Short episodes."""
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        monkeypatch.setattr(gym.spec(env_id), "max_episode_steps", 40)


@pytest.mark.parametrize("name", ["derl_cartpole", "derl_pendulum"])
def test_derl(name, short, tmp_path, monkeypatch, capsys):
    config, saved = tmp_path / "small.yaml", tmp_path / "agent.derl"
    config.write_text(SMALL)
    words = f"--num_iterations 5 --config {config} --save {saved} --tensorboard {tmp_path / 'log'}"
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert e.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("iteration 5 ")
    assert re.fullmatch(r"[\d,]+ steps; 10 fresh episodes: -?[\d.]+ ± [\d.]+", lines[-1])
    assert saved.stat().st_size > 0
    assert [*(tmp_path / "log").glob("events.*")]


@pytest.mark.parametrize("name", ["derl_cartpole", "derl_pendulum"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--config nope.yaml", "nope.yaml"),
        ("--config other.yaml", "other.yaml is for Acrobot-v1, and this example for "),
        ("--num_iterations 1.5", "argument --num_iterations: invalid int value: '1.5'"),
        ("--num_iterations 0", "num_iterations must be a whole number from 1, not 0"),
        ("--num_iterations -1", "num_iterations must be a whole number from 1, not -1"),
        ("--num_iteration 1", "unrecognized arguments: --num_iteration 1"),
        ("--save folder", "folder is a folder: name a file"),
        (
            "--save other.yaml/agent.derl",
            "agent.derl cannot be written: Not a directory",
        ),
        ("--seed -1", "DERL's seed must be a whole number from 0, not -1"),
    ],
)
def test_bad_input_is_one_line(name, words, said, tmp_path, monkeypatch, capsys):
    """And nothing is trained or written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("env_name: Acrobot-v1\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(DERL, "save", lambda *_: pytest.fail("saved"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words.split()])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert e.value.code == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(f"{name}.py: error: ")
    assert said in line
    assert out == ""
    assert {p.name for p in tmp_path.iterdir()} == {"other.yaml", "folder"}
    assert [*(tmp_path / "folder").iterdir()] == []


@pytest.mark.parametrize(
    ("name", "env_id"),
    [("derl_cartpole.yaml", "CartPole-v1"), ("derl_pendulum.yaml", "Pendulum-v1")],
)
def test_files_of_settings_of_derl(name, env_id):
    """They are for the class and for `--learner_config` alike."""
    file = load_settings(str(FOLDER / name), env_id)
    assert not file.notes
    settings = DERLSettings.from_learner_config(file.settings, env_id)
    assert settings.rates(1.0) == (1e-3, 2e-3)
    assert settings.rates(0.0) == (0.0, 0.0)
    assert settings.population_replay


@pytest.mark.parametrize(
    ("name", "learner", "env_id", "page"),
    [
        ("swimmer.yml", "PPO", "Swimmer-v4", None),
        ("pendulum.yml", "PPO", "Pendulum-v1", "benchmarks/memory.md"),
        ("sac_pendulum.yaml", "SAC", "Pendulum-v1", "benchmarks/memory.md"),
    ],
)
def test_files_of_settings(name, learner, env_id, page):
    """They are read whole, a cohort learns with them, and pages show what is in them."""
    file = load_settings(str(FOLDER / name), env_id)
    assert not file.notes
    spec = LifetimeSpec(
        Task(env_id), LearnerSpec(learner, file.settings), 10_000, Seeds.derive(0, "test", 0)
    )
    get_learner(learner, "cohort").check(spec)
    if page:
        assert file.settings in [parse_yaml(block) for block in blocks(page, "yaml")]


def test_the_file_of_settings_of_aes_rl():
    """Its mean_update_param is the default, and it learns within the budget of an evolution."""
    file = load_settings(str(FOLDER / "aes_rl_halfcheetah.yaml"), "HalfCheetah-v4")
    assert not file.notes
    learner = LearnerSpec("AES-RL", file.settings)
    spec = LifetimeSpec(Task("HalfCheetah-v4"), learner, 300_000, Seeds.derive(0, "test", 0))
    get_learner("AES-RL").check(spec)
    defaults = AESRLSettings.from_learner_config({}, "HalfCheetah-v4")
    assert file.settings["mean_update_param"] == defaults.mean_update_param
    assert file.settings["mean_evaluations"] == 1


def test_every_file_of_settings_is_tested():
    named = {p.name for p in FOLDER.iterdir() if p.suffix in DATA_ENDINGS}
    assert all(f'"{name}"' in Path(__file__).read_text() for name in named)
