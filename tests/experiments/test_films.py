from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from erl.experiments import films
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.films import film_agents, say_film
from erl.experiments.single import run
from erl.experiments.single_flags import SingleConfig
from erl.studies.artefacts import listed, of_trial
from erl.studies.records import middle_lifetimes, records
from erl.studies.storage import DEFAULT_STORAGE
from erl.studies.study import Study

TOY = "toy_environments:Recall-v0"


def files_of(study, trial):
    late = study.storage.get_study_system_attrs(study._id)
    return {a.name for a in listed(late, of_trial(trial._trial_id))}


@pytest.mark.slow
def test_video_films_the_middle_agent_of_each_kind_and_attaches_it(quick, inline, sink):
    env = "CartPole-v1"
    search = {"training_steps": 256, "nb_trials": 2, "nb_seeds": 1, "units": 5}
    more = {"sampler": "Random", "learner_config": quick, "engine": "sb3", "workers": 1}
    evolve(EvolutionConfig(env_id=env, **search, **more), sink)
    name = f"{env}_main_0.256k_steps"
    best = Study(DEFAULT_STORAGE, name).best().number
    arms = ("PPO", "RES_PPO_0.0003")
    flags = ComparisonConfig(
        study=name,
        training_steps=256,
        nb_seeds=3,
        arms=",".join(arms),
        workers=1,
        video=True,
    )
    assert compare(flags, sink) == 0
    test = f"{name}_trial_{best}_test_0.256k_steps"
    study, frame = Study(DEFAULT_STORAGE, test), records(DEFAULT_STORAGE, test)
    middle = middle_lifetimes(frame)
    assert tuple(middle.arm) == arms
    films = {str(p.relative_to("models")) for p in Path("models").rglob("*.mp4")}
    assert films == {f"{test}/{row.arm}/seed_{row.seed}.mp4" for row in middle.itertuples()}
    for row in middle.itertuples():
        part = frame[frame.arm == row.arm]
        assert row.training_return == part.training_return.median()
        assert files_of(study, study.trials()[row.trial]) == {f"seed_{row.seed}.mp4"}
        assert f"film:     models/{test}/{row.arm}/seed_{row.seed}.mp4, return" in str(sink)


def test_what_cannot_be_filmed_is_said_and_costs_nothing(inline, sink):
    """Nor is a film that was made just now offered."""
    flags = {"learner": "PPO", "engine": "sb3", "set": "n_steps=32,batch_size=32,n_epochs=1"}
    config = SingleConfig(env_id=TOY, steps=64, workers=1, video=True, **flags)
    assert run(config, sink) == 0
    assert "no film of trial 0, seed_0: toy_environments:Recall-v0 cannot be" in str(sink)
    assert "film it:" not in str(sink)
    assert run(replace(config, video=False), sink) == 0
    assert "film it:" in str(sink)
    study = Study(DEFAULT_STORAGE, f"{TOY}_PPO_single_0.064k_steps")
    assert files_of(study, study.trials()[0]) == set()
    Path(f"models/{study.name.replace(':', '_')}/seed_0.zip").unlink()
    assert run(config, sink) == 0
    assert "no film of trial 0, seed_0: no model models/" in str(sink)


def test_a_trial_that_ends_elsewhere_meanwhile_is_filmed_or_not_and_no_error(
    inline, sink, monkeypatch
):
    flags = {"learner": "PPO", "engine": "sb3", "set": "n_steps=32,batch_size=32,n_epochs=1"}
    config = SingleConfig(env_id=TOY, steps=64, workers=1, video=True, **flags)
    assert run(config, sink) == 0
    name = f"{TOY}_PPO_single_0.064k_steps"

    def records_after_an_end(address, name):
        study = Study(address, name).optuna
        [first] = study.trials
        study.add_trial(first)
        return records(address, name).assign(training_return=lambda frame: -frame.trial)

    monkeypatch.setattr("erl.studies.records.records", records_after_an_end)
    film_agents(Study(DEFAULT_STORAGE, name), config, "nowhere", sink)
    assert "no film of trial 1" in str(sink)


def test_no_film_is_offered_where_no_model_can_be(sink, monkeypatch):
    seeds = [SimpleNamespace(params={"seed": 0})]
    monkeypatch.setattr(films, "middle_trials", lambda study: seeds)
    Path("models/short").mkdir(parents=True)
    Path("models/short/seed_0.zip").touch()
    for name in ("x" * 300, "missing", "short"):
        say_film(None, SimpleNamespace(models="models"), name, None, sink)
    (line,) = sink.lines
    assert "models/short/seed_0" in line
