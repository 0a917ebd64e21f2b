"""The catalogue of what was evolved, and its use without an evolution."""

import dataclasses
from pathlib import Path

import pytest
from conftest import ROOT

from erl.errors import UserError
from erl.experiments.arms import arm_names
from erl.experiments.comparison import (
    ComparisonConfig,
    GeneralizationComparisonConfig,
    compare,
)
from erl.experiments.single import SingleConfig, evolved_for, lifetime, run, study_config
from erl.search.space import learner_settings, make_context
from erl.studies.catalogue import CATALOGUE, catalogue, find_evolved, read_catalogue
from erl.studies.configuration import EvolutionStudy
from erl.studies.data import evolved_reservoirs, read_study
from erl.studies.storage import DEFAULT_STORAGE, open_storage, study_names
from erl.studies.study import Study
from erl.studies.trials import lifetime_records
from erl.worlds.own_context import OwnContext
from erl.worlds.reservoirs import Context

CARTPOLE = next(e for e in catalogue() if e.evolution.env_id == "CartPole-v1")
PENDULUM = next(e for e in catalogue() if e.name == "pendulum")


@pytest.mark.parametrize("entry", catalogue(), ids=lambda e: e.name)
def test_an_entry_is_whole(entry):
    assert make_context(entry.evolution, entry.winner.params).reservoirs
    assert entry.evolution.engine != "auto"
    evolved = arm_names(entry.evolution, entry.winner.params)[1]
    assert evolved in [t.arm for t in entry.tested]
    for tested in entry.tested:
        assert tested.seeds >= (3 if tested.arm == "RecurrentPPO" else 8)  # the LSTM is slow
        assert tested.steps >= 50_000
        for mean, low, high in filter(None, (tested.training, tested.final)):
            assert low <= mean <= high
    assert entry.commands
    for script in (words.split()[1] for words in entry.commands):
        assert (ROOT / script).is_file()
    page = (ROOT / "docs" / "evolution.md").read_text(encoding="utf-8")
    assert f"`{entry.name}`" in page


def test_the_first_entry_of_an_environment_is_the_one_whose_evolution_cost_most():
    def cost(entry):
        e = entry.evolution
        return len(entry.winner.again) > 0, e.nb_trials * e.nb_seeds * e.training_steps

    by_env = {}
    for entry in catalogue():
        key = (entry.evolution.env_id, entry.evolution.env_type, entry.evolution.learner)
        by_env.setdefault(key, []).append(cost(entry))
    assert all(costs == sorted(costs, reverse=True) for costs in by_env.values())


def test_the_catalogue_is_among_the_packages_data():
    # `pyproject.toml` ships *.toml of every package.
    assert CATALOGUE.parent == Path(ROOT, "erl", "studies")
    assert '"*" = ["*.json", "*.toml"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_an_environment_a_learner_or_a_name_without_an_entry():
    with pytest.raises(UserError, match=r"nothing was evolved yet for Hopper-v4; .*pendulum \(Pen"):
        find_evolved("evolved", "Hopper-v4")
    with pytest.raises(UserError) as e:
        find_evolved("evolved", "HalfCheetah-v5", "PPO")
    start = "nothing was evolved yet for HalfCheetah-v5 and PPO; for another version of it the "
    assert str(e.value).startswith(f"{start}catalogue has halfcheetah_0, halfcheetah_plain_10, ")
    assert str(e.value).endswith(" (HalfCheetah-v4, PPO); --reservoir NAME takes one of them")
    assert "pendulum" not in str(e.value)
    with pytest.raises(UserError, match="nothing was evolved yet for Swimmer-v4 and SAC"):
        find_evolved("evolved", "Swimmer-v4", "SAC")
    with pytest.raises(UserError, match=r"'pendulun'; did you mean pendulum\?"):
        find_evolved("pendulun", "Swimmer-v4")
    assert find_evolved("pendulum", "Swimmer-v4", "SAC") is PENDULUM


def test_entries_that_cannot_be_read(tmp_path):
    path = tmp_path / "evolved.toml"
    head = 'name = "a"\ncommands = []\ntested = []\nevolution = { env_id = "CartPole-v1" }\n'
    path.write_text(f"[[evolved]]\n{head}winner = {{ params = {{ sr = 1.0 }} }}\n")
    with pytest.raises(UserError, match="entry 'a' lacks something: 'lr'"):
        read_catalogue(path)
    entry = f"[[evolved]]\n{head}winner = {{ params = {{ sr = 1.0, lr = 1.0 }} }}\n"
    path.write_text(entry * 2)
    with pytest.raises(UserError, match="two entries of one name"):
        read_catalogue(path)


def flags(**more):
    settings = {"env_id": "CartPole-v1", "del_obs": True, "steps": 64, "reservoir": "evolved"}
    return SingleConfig(**(settings | {"workers": 1} | more))


def test_one_learner_with_an_evolved_reservoir(quick, inline, sink):
    assert run(flags(learner_config=quick), sink) == 0
    study = Study(DEFAULT_STORAGE, "CartPole-v1_RES_PPO_single_0.064k_steps")
    assert study.config.reservoir == CARTPOLE.name
    assert study.config.learner == "PPO"  # whom it was evolved for, and not the usual learner
    (trial,) = study.trials()
    spec = lifetime_records(trial)[0].spec
    assert (
        spec.context
        == study.config.context
        == make_context(CARTPOLE.evolution, CARTPOLE.winner.params)
    )
    assert spec.learner.config["n_steps"] == 32
    assert CARTPOLE.name in sink.lines[0]
    data = read_study(study.name)
    assert set(data.lifetimes.arm) == {"RES_PPO"}
    assert evolved_reservoirs(data) == spec.context.reservoirs
    assert run(flags(learner_config=quick, nb_seeds=2), sink) == 0  # it goes on
    assert len(study.trials("COMPLETE")) == 2


def test_settings_of_an_entry_come_first_and_flags_go_before(sink):
    pendulum = {"env_id": "Pendulum-v1", "set": "gamma=0.5"}
    config = study_config(flags(**pendulum), sink, PENDULUM)
    expected = learner_settings(PENDULUM.evolution, PENDULUM.winner.params) | {"gamma": 0.5}
    assert lifetime(config, 0).learner.config == expected
    other = study_config(flags(**pendulum, learner="A2C"), sink, PENDULUM)
    assert other.learner_config == {"gamma": 0.5}  # the rest is PPO's
    assert (config.arm, other.arm) == ("RES_PPO", "RES_A2C")
    own = dataclasses.replace(config, context=Context((), own=OwnContext("module:Class", {})))
    assert own.arm == "CONTEXT_PPO"


def test_a_study_without_a_reservoir_is_stored_as_it_ever_was(quick, inline, sink):
    single = flags(reservoir=None, learner="PPO", learner_config=quick)
    assert run(single, sink) == 0
    stored = Study(DEFAULT_STORAGE, "CartPole-v1_PPO_single_0.064k_steps").stored
    assert not {"reservoir", "context"} & stored.keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"del_obs": False}, "is not for CartPole-v1 with velocities; --del_obs True is"),
        ({"env_id": "Swimmer-v4"}, "is not for Swimmer-v4 without velocities; --del_obs False"),
        ({"env_id": "Hopper-v4"}, "nothing was evolved yet for Hopper-v4"),
        ({"reservoir": "nothing"}, "the catalogue has nothing of the name 'nothing'"),
        ({"learner": "TD3"}, "nothing was evolved yet for CartPole-v1 and TD3"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(options, said, sink):
    with pytest.raises(UserError, match=said):
        run(flags(**options), sink)
    assert not Path("studies.db").exists()


def test_evolved_settings_of_a_learner_are_no_reservoir(sink, monkeypatch):
    evolution = EvolutionStudy(env_id="CartPole-v1", del_obs=True, nb_res=0)
    alone = dataclasses.replace(CARTPOLE, name="alone", evolution=evolution)
    monkeypatch.setattr("erl.studies.catalogue.catalogue", lambda: (alone, CARTPOLE))
    assert evolved_for(flags(), sink) is CARTPOLE
    assert find_evolved("evolved", "CartPole-v1") is alone  # a test takes it
    with pytest.raises(UserError, match=r"alone .* has no reservoir: settings of PPO were evolved"):
        run(flags(reservoir="alone"), sink)
    assert not Path("studies.db").exists()


def test_what_a_winner_reached_is_said_where_it_is_used(sink, monkeypatch):
    again = dataclasses.replace(CARTPOLE.winner, again=(1.0, 2.0, 3.0), expected=1.5)
    entry = dataclasses.replace(CARTPOLE, winner=again, remark="A small budget.")
    monkeypatch.setattr("erl.studies.catalogue.catalogue", lambda: (entry,))
    evolved_for(flags(), sink)
    assert "trained again (3 seeds), 1.5 expected on new seeds" in sink.lines[-2]
    assert sink.lines[-1] == "note: A small budget."
    with pytest.raises(UserError, match="unknown agent 'nobody'"):
        compare(ComparisonConfig(evolved=True, env_id="CartPole-v1", arms="nobody"), sink)
    assert sink.lines[-1] == "note: A small budget."


def test_a_test_without_an_evolution(quick, inline, sink, monkeypatch):
    small = dataclasses.replace(
        CARTPOLE,
        evolution=dataclasses.replace(CARTPOLE.evolution, learner_config=SMALL),
    )
    monkeypatch.setattr("erl.studies.catalogue.catalogue", lambda: (small,))
    test = {"evolved": True, "training_steps": 64, "nb_seeds": 2, "workers": 1}
    config = ComparisonConfig(env_id="CartPole-v1", arms="RES_PPO_0.0003", **test)
    assert compare(config, sink) == 0
    name = f"evolved_{CARTPOLE.name}_test_0.064k_steps"
    assert study_names(open_storage(DEFAULT_STORAGE)) == [name]
    study = Study(DEFAULT_STORAGE, name)
    assert (study.config.evolution, study.config.params) == (small.evolution, small.winner.params)
    assert any(line.startswith(f"evolved:  {CARTPOLE.name} of the") for line in sink.lines)
    with pytest.raises(UserError, match=r"nothing was evolved yet for Ant_Swimmer; .*--study NAME"):
        compare(GeneralizationComparisonConfig(**test), sink)
    with pytest.raises(UserError, match=r"was evolved with env_kwargs .* test-generalization"):
        compare(dataclasses.replace(config, env_kwargs="{gravity: 5}"), sink)
    unseen = GeneralizationComparisonConfig(
        study=CARTPOLE.name, env_id="Acrobot-v1", arms="RES_PPO_0.0003", **test
    )
    with pytest.raises(UserError, match="velocities"):  # that are hidden in one of them
        compare(unseen, sink)


SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
