"""`erl eval`: what a saved agent reaches in whole episodes."""

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from documents import text
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from erl.cli import parse
from erl.commands import main
from erl.errors import UserError
from erl.lifetimes.evaluating import evaluate_model, summary
from erl.lifetimes.evaluating_flags import FRESH_SEED, EvaluationConfig
from erl.lifetimes.living import Cohort, live
from erl.lifetimes.models import load_model
from erl.worlds.evaluation import Evaluation
from erl.worlds.own_context import OwnContext
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

RESERVOIR = Context((ReservoirParams(units=8, sr=0.9, lr=0.5),))
OWN_CONTEXT = '''
import numpy as np

class Last:
    """The last input, as a state."""

    def __init__(self, input_dim, seed):
        self.units = input_dim

    def step(self, state, inputs):
        return np.tanh(inputs)

    def output(self, state):
        return state
'''


def trained(task, learner="PPO", context=RESERVOIR, **config):
    """A model, saved as `seed_0`."""
    config = {"n_steps": 64, "batch_size": 64, "n_epochs": 1} | config
    seeds = Seeds.derive(1, "single", 0)
    spec = LifetimeSpec(task, LearnerSpec(learner, config), 128, seeds, context, 1, "final_eval")
    (record,) = live(Cohort((spec,), models=("seed_0",)))
    assert record.error is None, record.traceback
    return spec


def by_stable_baselines3(spec, agent, episodes, seed):
    """Returns and lengths of the same episodes."""
    env = DummyVecEnv([lambda: Monitor(spec.make_env())])
    env.seed(seed)
    return evaluate_policy(agent, env, episodes, return_episode_rewards=True)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("task", "context"),
    [
        (Task("CartPole-v1", del_obs=True), RESERVOIR),
        (Task("CartPole-v1", del_obs=True), None),
        (Task("CartPole-v1", frame_stack=3), RESERVOIR),
        (Task("Pendulum-v1"), RESERVOIR),
    ],
)
def test_it_equals_stable_baselines3(task, context, sink):
    trained(task, context=context)
    flags = EvaluationConfig(model="seed_0.zip", episodes=3, seed=7, out="new/a.csv")
    assert evaluate_model(flags, sink) == 0
    spec, agent = load_model("seed_0")
    returns, lengths = by_stable_baselines3(spec, agent, 3, 7)
    written = rows("new/a.csv")
    assert [int(row["episode"]) for row in written] == [1, 2, 3]
    # Monitor rounds to six decimals.
    assert [float(row["return"]) for row in written] == pytest.approx(returns, abs=1e-5)
    assert [int(row["length"]) for row in written] == lengths
    said, file = sink.lines
    assert said == f"{summary(Evaluation(tuple(returns), tuple(lengths), sum(lengths)))}, seed 7"
    assert file == "new/a.csv: 3 rows"
    assert sink.statuses[-1] == "evaluating: 3 of 3 episodes"


def test_running_statistics_are_those_of_the_training(sink):
    trained(Task("Pendulum-v1"), normalize=True)
    assert evaluate_model(EvaluationConfig(model="seed_0", episodes=2, out="a.csv"), sink) == 0
    assert Path("seed_0.vecnormalize.pkl").is_file()
    returns, _ = by_stable_baselines3(*load_model("seed_0"), 2, FRESH_SEED)
    assert [float(row["return"]) for row in rows("a.csv")] == pytest.approx(returns, abs=1e-5)


def test_a_learner_and_a_context_of_the_users(sink, monkeypatch):
    """The learner is the one that its page shows."""
    page = text("docs/learners/your_own.md")
    [learner] = re.findall(r"^```python\n# my_learner\.py\n(.*?)^```", page, re.M | re.S)
    Path("evaluated_code.py").write_text(learner + OWN_CONTEXT)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "evaluated_code", raising=False)
    context = Context((), own=OwnContext("evaluated_code:Last"))
    task = Task("CartPole-v1", del_obs=True)
    seeds = Seeds.derive(1, "single", 0)
    learner = LearnerSpec("evaluated_code:RandomSearch")
    spec = LifetimeSpec(task, learner, 300, seeds, context, 3, "final_eval")
    (record,) = live(Cohort((spec,), models=("seed_0",)))
    flags = EvaluationConfig(model="seed_0", episodes=3, seed=spec.seeds.evaluation, out="a.csv")
    assert evaluate_model(flags, sink) == 0
    assert tuple(float(row["return"]) for row in rows("a.csv")) == record.final_returns


def test_the_line():
    found = Evaluation((1.0, 2.0, 3.0, 10.0), (5, 5, 6, 8), 24)
    assert summary(found).startswith(
        "mean return 4, standard deviation 3.536, 95 % interval of the"
    )
    assert summary(found).endswith(
        "], median 2.5, least 1, greatest 10, mean length 6; 4 episodes, 24 steps"
    )
    assert "interval of the mean -, median 2" in summary(Evaluation((2.0,), (1,), 1))
    returns = np.random.default_rng(0).normal(50, 5, 100)
    line = summary(Evaluation(tuple(returns), (1,) * 100, 100))
    low, high = map(float, line.split("[")[1].split("]")[0].split(","))
    # The standard error of the mean is half a unit.
    assert returns.mean() - low == pytest.approx(1.0, abs=0.2)
    assert high - returns.mean() == pytest.approx(1.0, abs=0.2)


def test_the_seed_by_default_is_fresh():
    """And the same for every agent, so that all begin the same episodes."""
    assert EvaluationConfig(model="a").seed == FRESH_SEED
    used = {
        seed
        for phase in ("evolution", "test", "single", "finals")
        for index in range(100)
        for published in (False, True)
        for seed in vars(Seeds.derive(0, phase, index, published)).values()
    }
    assert FRESH_SEED not in used


def test_bad_input_and_what_it_leaves(sink, monkeypatch):
    with pytest.raises(UserError, match="--model is missing"):
        parse(EvaluationConfig, [])
    with pytest.raises(UserError, match="--episodes must be at least 1, not 0"):
        EvaluationConfig(model="a", episodes=0)
    with pytest.raises(UserError, match="--seed must be at least 0"):
        EvaluationConfig(model="a", seed=-1)
    with pytest.raises(UserError, match=r"--out a.txt must end in .csv"):
        EvaluationConfig(model="a", out="a.txt")
    with pytest.raises(UserError, match=r"no model none.zip"):
        evaluate_model(EvaluationConfig(model="none"), sink)
    trained(Task("toy_environments:Recall-v0"))
    flags = EvaluationConfig(model="seed_0", episodes=2)
    with pytest.raises(UserError, match=r"is a folder; --model takes one of \S*seed_0$"):
        evaluate_model(replace(flags, model="."), sink)
    # A file that cannot be written is refused before an episode is played.
    with monkeypatch.context() as patch:
        patch.setattr("erl.lifetimes.evaluating.evaluate_afresh", None)
        Path("old.csv").write_text("kept")
        Path("folder.csv").mkdir()
        for out, said in (
            ("/proc/a.csv", "cannot be written"),
            ("old.csv", "--overwrite replaces it"),
            ("folder.csv", "is not a file"),
        ):
            with pytest.raises(UserError, match=said):
                evaluate_model(replace(flags, out=out), sink)
    # Nothing is written of an evaluation that failed.
    before = sorted(Path().rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr("toy_environments.Recall.step", lambda *_: 1 / 0)
        with pytest.raises(UserError, match=r"seed_0 cannot be evaluated in toy_.*ZeroDivision"):
            evaluate_model(replace(flags, out="old.csv", overwrite=True), sink)
    assert sorted(Path().rglob("*")) == before
    assert Path("old.csv").read_text() == "kept"
    assert evaluate_model(replace(flags, out="old.csv", overwrite=True), sink) == 0
    assert len(rows("old.csv")) == 2


def test_the_command(capsys):
    with pytest.raises(SystemExit) as e:
        main(["eval", "--model", "nowhere", "--episodes", "3"])
    assert e.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    trained(Task("toy_environments:Recall-v0"))
    with pytest.raises(SystemExit) as e:
        main(["eval", "--model", "seed_0", "--episodes", "3"])
    assert e.value.code == 0
    [line] = capsys.readouterr().out.splitlines()
    assert "; 3 episodes, " in line
