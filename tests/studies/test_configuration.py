"""Configurations of studies: what is stored, what earlier versions stored, and what may change."""

import json
from dataclasses import fields, replace

import pytest
from conftest import Lines

from erl.errors import UserError
from erl.experiments.comparison import (
    ComparisonConfig,
    GeneralizationComparisonConfig,
    compare,
)
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.evolution_study import study_config
from erl.experiments.single import SingleConfig, run
from erl.studies.configuration import (
    EvolutionStudy,
    FinalsStudy,
    SingleStudy,
    TestStudy,
    agent_name,
    differences,
    evolved_arm,
    from_stored,
    to_stored,
)
from erl.studies.storage import DEFAULT_STORAGE
from erl.studies.study import Study

# As version 0.2.0 stored them.
EVOLUTION = {
    **{"published_code": False, "training_steps": 64, "nb_trials": 2, "sampler": "Random"},
    **{"del_obs": False, "nb_seeds": 1, "ep_eval": 10, "units": 5, "skip_c": False},
    **{"fixed_iss": True, "evolve": None, "obs_units": None, "min_sr": 0.0001, "max_sr": 100.0},
    **{"min_lr": 0.01, "max_lr": 1.0, "min_iss": 0.1, "max_iss": 10.0, "reset_res": True},
    **{"fitness": "training", "learner": "PPO", "engine": "cohort", "seed": 0, "pruner": "none"},
    **{"popsize": 4, "restarts": "ipop", "use_pruned": True, "warm_start": None},
    **{"learner_config": {"n_steps": 32, "batch_size": 32, "n_epochs": 1}},
    **{"env_id": "CartPole-v1", "kind": "evolution", "config_version": 1},
}
SEVERAL = {**EVOLUTION, "nb_res": 2, "fixed_iss": False}
SET = {
    **{k: v for k, v in SEVERAL.items() if k != "env_id"},
    **{"env_type": "CartPole-v1+Pendulum-v1", "env_ids": ["CartPole-v1", "Pendulum-v1"]},
    **{"references": {"CartPole-v1": [21.78, 500.0], "Pendulum-v1": [-1184.76, 0.0]}},
}
TEST = {
    **{"evolution": EVOLUTION, "params": {"sr": 1.0}, "training_steps": 64, "engine": "cohort"},
    **{"kind": "test", "config_version": 1},
}
TRAINING = {
    **{"published_code": False, "learner": "ERL-Re2", "env_id": "Pendulum-v1", "steps": 1000},
    **{"seed": 0, "learner_config": {"pr": 8}, "engine": "auto", "del_obs": False, "ep_eval": 10},
    **{"kind": "single", "config_version": 1},
}


@pytest.mark.parametrize("part", ["RES", "CONTEXT", "EVOLVED"])
def test_the_evolved_agent_is_found_by_its_name(part):
    name = agent_name("SAC", part)
    assert name == f"{part}_SAC"
    others = [agent_name("SAC", None), "STACK_SAC", f"RANDOM_{name}"]
    assert evolved_arm([*others, name, f"{name}_0.1"]) == name
    assert evolved_arm(others) is None


@pytest.mark.parametrize(
    ("stored", "kind", "title"),
    [
        (EVOLUTION, EvolutionStudy, "evolution"),
        (SEVERAL, EvolutionStudy, "evolution, several"),
        (SET, EvolutionStudy, "evolution, set"),
        (TEST, TestStudy, "test"),
        ({**TEST, "env_id": "Pendulum-v1"}, TestStudy, "test of generalisation"),
        (TRAINING, SingleStudy, "single run"),
    ],
)
def test_what_earlier_versions_stored_is_read(stored, kind, title):
    config = from_stored(stored)
    assert type(config) is kind
    assert config.title == title
    again = to_stored(config)
    assert again["kind"] == kind.kind
    assert from_stored(json.loads(json.dumps(again))) == config
    assert differences(config, from_stored(again)) == []
    kept = {k: v for k, v in stored.items() if k not in ("evolution", "config_version")}
    assert {k: again[k] for k in kept} == kept


@pytest.mark.parametrize("learner", ["DERL", "ERL-Re2", "CEM-RL"])
def test_a_learner_with_one_implementation_keeps_it(learner):
    """It is stored as `auto`, and is no algorithm of Stable-Baselines3."""
    one = {"learner": learner, "engine": "auto"}
    evolution = {**EVOLUTION, **one}
    test = {**TEST, "evolution": evolution, "engine": "auto"}
    for stored in (evolution, test, {**TRAINING, **one}):
        assert from_stored(stored).engine == "auto"


# What an evolution was before there was the flag.
BEFORE = {
    **{"published_code": False, "nb_trials": 100, "sampler": "Cmaes", "del_obs": False},
    **{"nb_seeds": 3, "ep_eval": 10, "units": 100, "skip_c": False, "fixed_iss": True},
    **{"evolve": None, "obs_units": None, "min_sr": 0.0001, "max_sr": 100.0, "min_lr": 0.01},
    **{"max_lr": 1.0, "min_iss": 0.1, "max_iss": 10.0, "reset_res": True, "fitness": "training"},
    **{"learner": "PPO", "engine": "auto", "seed": 0, "pruner": "none", "popsize": None},
    **{"restarts": "ipop", "use_pruned": True, "warm_start": None, "learner_config": {}},
    **{"nb_res": None, "feed_action": True, "bias": 0.0, "bias_connectivity": 1.0},
    **{"env_kwargs": {}, "context": None, "context_settings": None},
}


def test_a_study_that_is_older_than_a_flag_is_what_it_was():
    """Whatever the flag's default is by now. A new flag, too, has a value before it."""
    always = {"training_steps", "env_id", "env_type", "env_ids"}
    set_by_no_flag = {"references", "start"}
    assert BEFORE.keys() == {f.name for f in fields(EvolutionStudy)} - always - set_by_no_flag
    for flag, value in BEFORE.items():
        older = {k: v for k, v in EVOLUTION.items() if k != flag}
        assert from_stored(older) == from_stored({**older, flag: value}), flag


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({**EVOLUTION, "telepathy": True}, r"stored by another version .*'telepathy'"),
        ({**EVOLUTION, "kind": "evolutoin"}, "'evolutoin'; did you mean evolution"),
        ({"steps": 3}, "cannot be read"),
        ("words", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(stored, message):
    with pytest.raises(UserError, match=message):
        from_stored(stored)


def test_differences_name_what_is_there_and_here():
    there, here = from_stored(EVOLUTION), from_stored({**EVOLUTION, "units": 6, "nb_trials": 9})
    assert differences(there, here) == ["units is 5 there and 6 here"]
    test, other = from_stored(TEST), from_stored({**TEST, "evolution": {**EVOLUTION, "seed": 3}})
    assert differences(test, other) == ["evolution.seed is 0 there and 3 here"]
    assert differences(there, test) == ["kind is 'evolution' there and 'test' here"]


@pytest.mark.usefixtures("inline")
def test_auto_goes_on_with_the_engine_that_a_study_has(quick, sink):
    """Whatever `auto` means by then: the first run chose Stable-Baselines3."""
    flags = EvolutionConfig(
        env_id="CartPole-v1",
        training_steps=64,
        nb_trials=1,
        nb_seeds=1,
        units=5,
        learner_config=quick,
        engine="sb3",
        workers=1,
    )
    assert evolve(flags, sink) == 0
    assert evolve(replace(flags, nb_trials=2, engine="auto"), sink) == 0
    trials = Study(flags.storage, "CartPole-v1_main_0.064k_steps").trials()
    engines = [t.system_attrs["lifetime:0"]["spec"]["learner"]["engine"] for t in trials]
    assert engines == ["sb3", "sb3"]


def test_auto_is_resolved_when_a_study_is_created():
    assert study_config(EvolutionConfig(env_id="CartPole-v1"), Lines()).engine == "cohort"
    assert study_config(EvolutionConfig(env_id="CartPole-v1", learner="dqn"), Lines()).engine == (
        "sb3"
    )


def test_a_test_is_not_evolved_further(sink, quick, inline):
    flags = EvolutionConfig(
        env_id="CartPole-v1",
        training_steps=64,
        nb_trials=1,
        nb_seeds=1,
        units=5,
        workers=1,
        learner_config=quick,
    )
    assert evolve(flags, sink) == 0
    name = "CartPole-v1_main_0.064k_steps"
    test = ComparisonConfig(study=name, training_steps=64, nb_seeds=1, workers=1, arms="PPO")
    assert compare(test, sink) == 0
    with pytest.raises(UserError, match="is a test; name the study of the evolution"):
        compare(replace(test, study=f"{name}_trial_0_test_0.064k_steps"), sink)
    Study(DEFAULT_STORAGE, f"{name}_finals", FinalsStudy(Study(DEFAULT_STORAGE, name).config))
    with pytest.raises(UserError, match="is the finals; name the study of the evolution"):
        compare(replace(test, study=f"{name}_finals"), sink)
    single = SingleConfig(learner="PPO", env_id="CartPole-v1", steps=64, learner_config=quick)
    assert run(single, sink) == 0
    other = GeneralizationComparisonConfig(
        study="CartPole-v1_PPO_single_0.064k_steps", env_id="Pendulum-v1"
    )
    with pytest.raises(UserError, match="is a single run; name the study of the evolution"):
        compare(other, sink)
