"""Agents that are trained and kept: what there is to do, and what is said meanwhile."""

import json
from pathlib import Path

import pytest

from erl.experiments.agents import AgentProgress, missing, status_path
from erl.experiments.flags import MAX_SEED
from erl.experiments.forecast import Pace
from erl.experiments.single import SingleConfig, lifetime, study_config
from erl.studies.configuration import EvolutionStudy
from erl.studies.distributions import categorical, integer
from erl.studies.study import Study
from erl.studies.trials import RunningTrial

SPACE = {"arm": categorical(["PPO", "RES_PPO"]), "seed": integer(0, MAX_SEED)}


@pytest.fixture
def spec(sink):
    flags = SingleConfig(env_id="CartPole-v1", learner="PPO", steps=1000, set="n_steps=50")
    return lifetime(study_config(flags, sink), 0)


def running(params, spec):
    return [RunningTrial(k, k, p, {}, [spec], {}) for k, p in enumerate(params)]


def test_what_has_no_complete_trial_is_missing():
    wanted = [{"arm": arm, "seed": seed} for arm in ("PPO", "RES_PPO") for seed in (0, 1)]
    assert missing(None, wanted) == wanted
    study = Study("sqlite:///studies.db", "x", EvolutionStudy(env_id="CartPole-v1"))
    for params, state in zip(wanted, ("COMPLETE", "FAIL", "PRUNED")):
        trial = study.create(params, SPACE, lambda params: [])
        study.store_end(trial.trial_id, state, 1.0, ("why", None))
    assert missing(study, wanted) == wanted[1:]


def test_what_the_learner_of_a_single_agent_says_is_shown(sink, spec):
    trials = running([{"seed": seed} for seed in range(3)], spec)
    progress = AgentProgress(sink, Pace(), "runs", "x")
    progress.begin(trials[:1])
    path = Path(status_path("runs", "x", spec))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"rl": 1234.5, "updates/s": 90.0}))
    progress.tick(100)
    said = "lifetimes 0/1  100 of 1,000 steps  |  seed 0: rl 1,234.5, updates/s 90.0"
    assert sink.statuses == [said]
    progress.end(trials[0], 7.0)
    assert sink.lines[-1] == "seed   0  return 7"
    assert not path.exists()


def test_several_agents_are_told_apart(sink, spec):
    progress = AgentProgress(sink, Pace(), None, "x")
    trials = running([{"arm": arm, "seed": 3} for arm in ("PPO", "RES_PPO")], spec)
    progress.begin(trials)
    progress.tick(100)
    assert sink.statuses == ["lifetimes 0/2  100 of 2,000 steps"]
    for trial in trials:
        progress.end(trial, 7.0)
    assert sink.lines[-2:] == ["PPO     seed   3  return 7", "RES_PPO seed   3  return 7"]
