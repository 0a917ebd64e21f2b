"""Data frames as studies give them, small and with everything in them that occurs."""

from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import InlineExecutor, Lines

from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.studies.configuration import EvolutionStudy, TestStudy
from erl.studies.data import Axis, StudyData
from erl.studies.storage import open_storage, study_names


@pytest.fixture
def space():
    return {"sr": Axis(1e-4, 1e2, log=True), "lr": Axis(1e-2, 1.0, log=True)}


@pytest.fixture
def trials():
    """Twelve trials in generations of four: nine completed, one pruned, one failed, one running."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "trial": range(12),
            "state": ["COMPLETE"] * 12,
            "sr": 10 ** rng.uniform(-4, 2, 12),
            "lr": 10 ** rng.uniform(-2, 0, 12),
            "fitness": rng.normal(100, 20, 12),
            "generation": np.repeat([0, 1, 2], 4),
        }
    )
    frame.loc[3, ["state", "fitness"]] = ["FAIL", None]
    frame.loc[6, "state"] = "PRUNED"
    frame.loc[11, ["state", "fitness"]] = ["RUNNING", None]
    return frame


@pytest.fixture
def evolved(trials):
    """The lifetimes of those trials, two each, with curves that rise to the trial's fitness."""
    rows = []
    for row in trials[trials.state == "COMPLETE"].itertuples():
        for lifetime in range(2):
            steps = np.arange(1, 41) * 25
            curve = tuple(zip(steps.tolist(), (row.fitness * steps / 1000 + lifetime).tolist()))
            rows.append(
                {"trial": row.trial, "state": "COMPLETE", "lifetime": lifetime, "curve": curve}
            )
    return pd.DataFrame(rows)


@pytest.fixture
def lifetimes():
    """A test: three arms of six seeds, one lifetime failed."""
    rng = np.random.default_rng(1)
    rows = []
    for arm, height in (("PPO", 50.0), ("RES_PPO", 90.0), ("STACK_PPO", 55.0)):
        for seed in range(6):
            end = height + rng.normal(0, 8)
            steps = np.arange(1, 101) * 100
            curve = tuple(zip(steps.tolist(), (end * steps / steps[-1]).tolist()))
            rows.append(
                {
                    "trial": len(rows),
                    "state": "COMPLETE",
                    "lifetime": 0,
                    "arm": arm,
                    "seed": seed,
                    "training_return": end,
                    "final_return": end + 1.0,
                    "curve": curve,
                }
            )
    rows[-1] |= {"state": "FAIL", "training_return": None, "final_return": None, "curve": ()}
    return pd.DataFrame(rows)


def conditional(n, name="conditional"):
    """A study of another program: every second trial has one parameter and the others another one;
    the trial that runs has a third. All have `all`.
    """
    storage = "sqlite:///foreign.db"
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    for k in range(n):
        trial = study.ask()
        x = trial.suggest_float("all", 0.0, 1.0)
        x += trial.suggest_float("even" if k % 2 == 0 else "odd", 0.0, 1.0)
        study.tell(trial, x)
    study.ask().suggest_float("running", 0.0, 1.0)
    return f"{storage}#{name}"


def a_test(name, lifetimes, evolved=None, params=None, **changes):
    """A test of an evolution in Swimmer-v4, without a database."""
    evolution = EvolutionStudy(**{"env_id": "Swimmer-v4", **(evolved or {})})
    config = TestStudy(evolution, params or {"sr": 1.0}, 1000, "cohort", **changes)
    nothing = pd.DataFrame()
    return StudyData(name, "a.db", "test", config, {}, None, {}, nothing, lifetimes, nothing)


def make_runs(folder):
    """A real evolution of six trials and its test on three seeds: addresses and models."""
    (folder / "quick.yaml").write_text("n_steps: 200\nbatch_size: 100\nn_epochs: 1\n")
    storage = f"sqlite:///{folder}/studies.db"
    places = {"storage": storage, "workers": 1, "runs": str(folder / "runs")}
    config = EvolutionConfig(
        env_id="Pendulum-v1",
        training_steps=800,
        nb_trials=6,
        nb_seeds=1,
        units=8,
        popsize=4,
        learner_config=str(folder / "quick.yaml"),
        **places,
    )
    study, sink = "Pendulum-v1_main_0.8k_steps", Lines()
    test = ComparisonConfig(
        study=study,
        arms="PPO,RES_PPO_0.0003",
        training_steps=800,
        nb_seeds=3,
        models=str(folder / "models"),
        logs=str(folder / "logs"),
        **places,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erl.executors.local.LocalExecutor", InlineExecutor)
        assert evolve(config, sink) == 0
        assert compare(test, sink) == 0
    (name,) = (n for n in study_names(open_storage(storage)) if "_test_" in n)
    return SimpleNamespace(
        evolution=f"{storage}#{study}",
        test=f"{storage}#{name}",
        models=str(folder / "models"),
        model=str(folder / "models" / name / "RES_PPO_0.0003" / "seed_1"),
        logs=str(folder / "logs" / name),
    )
