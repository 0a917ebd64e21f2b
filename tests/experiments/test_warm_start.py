"""Evolutions that begin from the trials of another study, and those that were begun before there
were such flags.
"""

import json
import shutil

import optuna
import pytest
from conftest import STORAGE, Lines
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from test_evolution import ENV, make, study_of

from erl.errors import UserError
from erl.experiments.evolution import evolve
from erl.studies.storage import open_storage
from erl.studies.study import Study

SPACE = {"sr": FloatDistribution(1e-4, 1e2, log=True), "lr": FloatDistribution(1e-2, 1.0, log=True)}


def add_source(storage=STORAGE, name="source", n=40, names=("sr", "lr"), shift=0.0):
    """A study of another program, whose best trials have high values of everything."""
    storage = open_storage(storage, create=True)
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    for i in range(n):
        share = 0.5 + 0.5 * (i + shift) / n
        params = {f"{k}": d.low * (d.high / d.low) ** share for k, d in zip(names, SPACE.values())}
        study.add_trial(
            create_trial(params=params, distributions=dict(zip(names, SPACE.values())), value=share)
        )
    return study


def first(config):
    return [t.params for t in study_of(config).trials()[:4]]


@pytest.mark.slow
def test_a_warm_start_goes_on_without_its_source(quick, told):
    add_source()
    sink = Lines()
    config = make(quick, warm_start="source", nb_trials=4, nb_seeds=1, h_test="warm")
    assert evolve(config, sink) == 0
    assert "warm start from source: sr, lr of 40 trials" in str(sink)
    stored = study_of(config).stored
    assert stored["warm_start"] == "source"
    assert min(stored["start"]["mean"]) > 0.85
    assert all(p["sr"] > 1 for p in first(config))
    shutil.copy("studies.log", "whole.log")
    whole = make(
        quick,
        warm_start="source",
        nb_trials=8,
        nb_seeds=1,
        h_test="warm",
        storage="journal:whole.log",
    )
    assert evolve(whole, sink) == 0
    optuna.delete_study(study_name="source", storage=open_storage(STORAGE))
    longer = make(quick, warm_start="source", nb_trials=8, nb_seeds=1, h_test="warm")
    assert evolve(longer, sink) == 0
    assert [t.params for t in study_of(longer).trials()] == [
        t.params for t in study_of(whole).trials()
    ]
    with pytest.raises(UserError, match="warm_start is 'source' there and None here"):
        evolve(make(quick, nb_trials=8, nb_seeds=1, h_test="warm"), sink)


def test_a_source_in_another_storage(quick, told, sink):
    add_source("journal:elsewhere.log")
    add_source(shift=-20.0)  # of the same name, and it says something else
    here, there = (
        make(quick, warm_start=address, nb_trials=4, nb_seeds=1, h_test=name)
        for address, name in (("source", "here"), ("journal:elsewhere.log#source", "there"))
    )
    for config in (here, there):
        assert evolve(config, sink) == 0
    assert first(here) != first(there)
    assert study_of(there).stored["warm_start"] == "journal:elsewhere.log#source"


@pytest.mark.parametrize("address", ["run #2", f"{STORAGE}#run #2"])
def test_a_source_with_a_number_sign_in_its_name(address, quick, told, sink):
    add_source(name="run #2")
    config = make(quick, warm_start=address, nb_trials=4, nb_seeds=1)
    assert evolve(config, sink) == 0
    assert study_of(config).stored["warm_start"] == address
    assert "warm start from " in str(sink)


def test_an_evolution_as_a_source(quick, told, sink):
    cold = make(quick, nb_trials=10, nb_seeds=1)
    assert evolve(cold, sink) == 0
    warm = make(quick, nb_trials=4, nb_seeds=1, h_test="warm", warm_start=study_of(cold).name)
    assert evolve(warm, sink) == 0
    assert study_of(warm).stored["start"]["trials"] == 10
    assert first(warm) != first(cold)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"warm_start": "sorce"},
            f"no study 'sorce' in {STORAGE}; did you mean source|no study 'sorce'",
        ),
        ({"warm_start": "sqlite:///nowhere.db#source"}, "there is no study database /.*nowhere.db"),
        ({"warm_start": f"{STORAGE}#"}, "names no study: write STUDY or STORAGE#STUDY"),
        ({"warm_start": ""}, "names no study"),
        ({"warm_start": "few"}, "at least 10 finished trials .* has 9"),
        ({"warm_start": "stranger"}, "none of the searched parameters sr, lr; it has a, b"),
        ({"warm_start": "source", "sampler": "Tpe"}, "only with --sampler Cmaes, not with Tpe"),
        (
            {"warm_start": "source", "sampler": "Random"},
            "only with --sampler Cmaes, not with Random",
        ),
        ({"warm_start": "source", "sampler": "Cmes"}, "did you mean Cmaes"),
        ({"restarts": "ipob"}, "unknown restarts 'ipob'; did you mean ipop"),
    ],
)
def test_sources_that_cannot_be_used_are_refused_before_anything_is_written(
    options, message, quick, told, sink
):
    add_source()
    add_source(name="few", n=9)
    add_source(name="stranger", names=("a", "b"))
    with pytest.raises(UserError, match=message) as refusal:
        evolve(make(quick, **options), sink)
    assert "\n" not in str(refusal.value)
    assert optuna.get_all_study_names(open_storage(STORAGE)) == ["source", "few", "stranger"]


def test_passwords_of_sources_are_not_stored(quick, told, sink, monkeypatch):
    source = add_source()
    real = Study

    class Elsewhere(Study):
        def __init__(self, storage, *arguments):
            if "secret" in storage:
                assert storage == "postgresql+psycopg://me:secret@host/db"
                storage = STORAGE
            super().__init__(storage, *arguments)

    monkeypatch.setattr("erl.experiments.evolution_study.Study", Elsewhere)
    address = f"postgresql+psycopg://me:secret@host/db#{source.study_name}"
    config = make(quick, nb_trials=4, nb_seeds=1, warm_start=address)
    assert evolve(config, sink) == 0
    stored = real(config.storage, study_of(config).name).stored
    assert "secret" not in json.dumps(stored)
    assert stored["warm_start"].endswith("@host/db#source")
    assert evolve(make(quick, nb_trials=8, nb_seeds=1, warm_start=address), sink) == 0


def test_studies_from_before_these_flags_go_on(quick, told, sink):
    config = make(quick, nb_trials=4, nb_seeds=1)
    assert evolve(config, sink) == 0
    study = study_of(config).optuna
    stored = study.user_attrs["config"]
    assert (stored["restarts"], stored["use_pruned"], stored["warm_start"]) == ("ipop", True, None)
    study.set_user_attr(
        "config",
        {k: v for k, v in stored.items() if k not in ("restarts", "use_pruned", "warm_start")},
    )
    assert evolve(make(quick, nb_trials=8, nb_seeds=1), sink) == 0
    assert len(study_of(config).trials("COMPLETE")) == 8
    with pytest.raises(UserError, match="restarts is 'ipop' there and 'bipop' here"):
        evolve(make(quick, nb_trials=8, nb_seeds=1, restarts="bipop"), sink)


def test_every_end_has_its_place(quick, inline, sink):
    """Whole generations, failures included, end in one place: what is proposed does not depend on
    who was faster.
    """
    config = make(quick, nb_trials=10, nb_seeds=1)
    assert evolve(config, sink) == 0
    places = [t.system_attrs["cmaes:begun"] for t in study_of(config).trials()]
    assert places == [4] * 4 + [8] * 4 + [10] * 2
    failing = make(
        quick, env_id=ENV.replace("Recall", "Faulty-raise"), nb_trials=4, nb_seeds=1, popsize=4
    )
    assert evolve(failing, sink) == 1
    assert [t.system_attrs["cmaes:begun"] for t in study_of(failing).trials("FAIL")] == [4] * 4
