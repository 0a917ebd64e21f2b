"""A learner of a user's, as the page shows it: `--learner MODULE:CLASS`."""

import re
from pathlib import Path

import numpy as np
import pytest
from documents import text

from erl.cli import parse
from erl.commands import COMMANDS
from erl.errors import UserError
from erl.executors.jobs import new_rows
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.single import SingleConfig, run
from erl.learners import get_learner, resolve_engine
from erl.lifetimes.living import COLUMNS, Cohort, live
from erl.lifetimes.models import load_model
from erl.studies.records import records
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

NAME = "my_learner:RandomSearch"
PAGE = "docs/learners/your_own.md"


@pytest.fixture
def module(monkeypatch):
    """The page's module, in the working folder."""
    [code] = re.findall(r"^```python\n(# my_learner\.py\n.*?)^```", text(PAGE), re.M | re.S)
    Path("my_learner.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(__import__("sys").modules, "my_learner", raising=False)


def flags(**more):
    settings = {"learner": NAME, "env_id": "CartPole-v1", "steps": 3000, "workers": 1}
    return SingleConfig(**{**settings, "ep_eval": 3, **more})


def test_it_learns_is_stored_and_its_agents_are_read(module, inline, sink):
    assert run(flags(nb_seeds=2), sink) == 0
    frame = records("sqlite:///studies.db", f"CartPole-v1_{NAME}_single_3k_steps")
    assert set(frame.learner) == {NAME}
    assert (frame.steps == 3000).all()
    assert frame.final_return.min() > 40  # random actions reach 22
    spec, agent = load_model("models/CartPole-v1_my_learner_RandomSearch_single_3k_steps/seed_0")
    env = spec.make_env()
    action, _ = agent.predict(env.reset(seed=0)[0])
    assert action in (0, 1)
    again = run(flags(h_test="again"), sink)
    same = records("sqlite:///studies.db", f"CartPole-v1_{NAME}_again_3k_steps")
    assert again == 0
    assert same.curve[0] == frame[frame.seed == 0].curve.iloc[0]


def test_an_evolution_trains_it_with_a_reservoir(module, inline, sink):
    config = EvolutionConfig(
        learner=NAME,
        env_id="CartPole-v1",
        training_steps=400,
        nb_trials=2,
        nb_seeds=1,
        units=5,
        workers=1,
    )
    assert evolve(config, sink) == 0
    frame = records("sqlite:///studies.db", "CartPole-v1_main_0.4k_steps")
    assert np.isfinite(frame.fitness).all()


def test_it_ends_when_it_is_told_to(module):
    seeds = Seeds.derive(0, "single", 0)
    cohort = Cohort((LifetimeSpec(Task("CartPole-v1"), LearnerSpec(NAME), 10**9, seeds),))
    rows = new_rows(COLUMNS, 1)
    rows["stop"][:] = True
    [record] = live(cohort, rows)
    assert record.note.startswith("pruned after")


def test_worker_processes_find_it(module, lasting, sink):
    assert run(flags(steps=300, ep_eval=1), sink) == 0


@pytest.mark.parametrize(
    ("name", "engine", "message"),
    [
        ("no_such_module:Thing", "auto", "no_such_module:Thing cannot be made: ModuleNotFound"),
        ("my_learner:Nothing", "auto", "AttributeError"),
        ("my_learner:Linear", "auto", "cannot be made: TypeError"),
        ("pathlib:Path", "auto", "has no method check_settings, check, cohort_key, train"),
        (NAME, "cohort", "--engine cohort is not for my_learner:RandomSearch"),
        ("Random", "auto", "MODULE:CLASS names one of yours"),
    ],
)
def test_what_cannot_be(module, name, engine, message):
    with pytest.raises(UserError, match=re.escape(message)):
        get_learner(name, engine)


def test_its_own_refusals_are_lines(module, inline, sink):
    with pytest.raises(UserError, match="has no setting 'nois'"):
        run(flags(set="nois=3"), sink)
    with pytest.raises(UserError, match="needs Discrete actions"):
        run(flags(env_id="Pendulum-v1"), sink)
    assert resolve_engine(NAME, "auto") == "auto"
    assert parse(COMMANDS["train"].kind(), ["--learner", NAME]).learner == NAME


def test_one_that_gives_too_few_agents_fails(module, inline, sink, monkeypatch):
    monkeypatch.setattr(type(get_learner(NAME, "auto")), "train", lambda *_: [])
    assert run(flags(steps=300), sink) == 1
    assert "failed: seed 0: lifetime 0: ValueError: the learner gave 0 agents for 1" in str(sink)
