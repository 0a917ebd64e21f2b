"""Evolutions without reservoirs: settings of the learner alone."""

from pathlib import Path

import pytest

from erl.errors import UserError
from erl.experiments.comparison import ComparisonConfig, MultiComparisonConfig, compare
from erl.experiments.evolution import (
    EvolutionConfig,
    GeneralizationConfig,
    MultiEvolutionConfig,
    evolve,
)
from erl.studies.data import evolved_reservoirs, read_study
from erl.studies.records import records
from erl.studies.storage import DEFAULT_STORAGE
from erl.studies.study import Study
from erl.worlds.specification import LifetimeSpec, from_json

EVOLVE = "learner.learning_rate=1e-4:1e-2:log,learner.ent_coef=0.0:0.1"
NAME = "CartPole-v1_0_main_0.064k_steps"


def flags(kind, quick, **options):
    settings = {
        "env_id": "CartPole-v1",
        "nb_res": 0,
        "evolve": EVOLVE,
        "training_steps": 64,
        "nb_trials": 2,
        "nb_seeds": 1,
        "learner_config": quick,
        "workers": 1,
    }
    return kind(**settings | options)


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("kind", [EvolutionConfig, MultiEvolutionConfig])
def test_settings_are_evolved_and_tested_against_those_of_the_study(kind, quick, sink):
    assert evolve(flags(kind, quick), sink) == 0
    study = Study(DEFAULT_STORAGE, NAME)
    assert study.config.title == "evolution, settings"
    best = study.best()
    assert set(best.params) == {"learner.learning_rate", "learner.ent_coef"}
    for trial in study.trials():
        spec = from_json(LifetimeSpec, trial.system_attrs["lifetime:0"]["spec"])
        assert spec.context is None
        assert spec.learner.config["learning_rate"] == trial.params["learner.learning_rate"]
    assert f"erl test-multi --study {NAME}" in sink.lines[-1]

    test = {"training_steps": 64, "nb_seeds": 1, "workers": 1, "controls": True}
    test |= {"HP_training_steps": 64}
    config = (
        ComparisonConfig(study=NAME, **test)
        if kind is EvolutionConfig
        else MultiComparisonConfig(env_id="CartPole-v1", nb_res=0, **test)
    )
    assert compare(config, sink) == 0
    frame = records(DEFAULT_STORAGE, f"{NAME}_trial_{best.number}_test_0.064k_steps")
    assert list(frame.arm) == ["PPO", "EVOLVED_PPO", "RANDOM_PPO"]
    assert frame.seed_learner.nunique() == 1
    plain, evolved, random = (
        from_json(LifetimeSpec, t.system_attrs["lifetime:0"]["spec"])
        for t in Study(DEFAULT_STORAGE, f"{NAME}_trial_{best.number}_test_0.064k_steps").trials()
    )
    assert plain.context is evolved.context is random.context is None
    usual = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
    assert plain.learner.config == usual
    settings = {k.removeprefix("learner."): v for k, v in best.params.items()}
    assert evolved.learner.config == usual | settings
    assert random.learner.config.keys() == evolved.learner.config.keys()
    assert random.learner.config != evolved.learner.config
    with pytest.raises(UserError, match=r"unknown agent 'RES_PPO'.*: PPO, EVOLVED_PPO, RANDOM"):
        compare(ComparisonConfig(study=NAME, arms="RES_PPO", **test), sink)
    with pytest.raises(UserError, match="did not evolve a reservoir"):
        evolved_reservoirs(read_study(NAME))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evolve": None}, "--nb_res 0 evolves settings of the learner and nothing else"),
        ({"evolve": f"units,{EVOLVE}"}, "and nothing else: .* not units"),
        ({"units": 50}, "--units is for reservoirs, and --nb_res 0 has none"),
        ({"max_sr": 2.0}, "--max_sr is for reservoirs"),
        ({"skip_c": True}, "--skip_c is for reservoirs"),
        ({"nb_res": -1}, "--nb_res"),
    ],
)
@pytest.mark.parametrize("kind", [EvolutionConfig, MultiEvolutionConfig, GeneralizationConfig])
def test_what_means_nothing_without_a_reservoir_is_refused(kind, options, message, quick):
    more = {"env_id": None} if kind is GeneralizationConfig else {}
    given = {"nb_res": 0, "evolve": EVOLVE, "env_id": "CartPole-v1", **more, **options}
    with pytest.raises(UserError, match=message):
        kind(**{k: v for k, v in given.items() if not (k == "env_id" and v is None)})
    assert not [p for p in Path().iterdir() if p.name != quick]


def test_several_need_their_own_script():
    with pytest.raises(
        UserError, match=r"must be 1 or 0 here, not 2; this evolves several: .*evolve-multi"
    ):
        EvolutionConfig(nb_res=2)
