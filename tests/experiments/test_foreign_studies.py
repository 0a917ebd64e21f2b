"""Studies and files that others made: served, or refused in one clear line."""

import dataclasses
from pathlib import Path

import optuna
import pytest
import toy_environments
from conftest import STORAGE
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from erl.errors import UserError
from erl.experiments.comparison import ComparisonConfig, MultiComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.search.space import NO_BIAS
from erl.studies.data import read_study
from erl.studies.records import records
from erl.studies.storage import DEFAULT_STORAGE, open_storage, study_names
from erl.studies.study import Study
from erl.studies.trials import lifetime_records

NAME = "CartPole-v1_main_0.064k_steps"
TEST = {
    "storage": STORAGE,
    "training_steps": 32,
    "nb_seeds": 1,
    "units": 5,
    "engine": "sb3",
    "workers": 1,
}


def evolution(quick, **options):
    settings = {
        "storage": STORAGE,
        "env_id": "CartPole-v1",
        "training_steps": 64,
        "nb_trials": 2,
        "nb_seeds": 1,
        "units": 5,
        "sampler": "Random",
        "learner_config": quick,
        "engine": "sb3",
        "workers": 1,
    }
    return EvolutionConfig(**settings | options)


def foreign(trials, storage=STORAGE, name=NAME, direction="maximize"):
    """Another program's study: parameters and value of each trial; values of a tuple are one of
    several.
    """
    storage = open_storage(storage, create=True)
    study = optuna.create_study(study_name=name, storage=storage, direction=direction)
    for params, value in trials:
        distributions = {
            k: CategoricalDistribution((v, "other")) if k.startswith("c_") else None
            for k, v in params.items()
        }
        distributions |= {
            k: CategoricalDistribution(v) if isinstance(v, tuple) else FloatDistribution(0, 100)
            for k, v in params.items()
            if distributions[k] is None
        }
        chosen = {k: v[0] if isinstance(v, tuple) else v for k, v in params.items()}
        study.add_trial(create_trial(params=chosen, distributions=distributions, value=value))
    return study


@pytest.mark.usefixtures("inline")
def test_a_study_that_is_minimised_is_refused(quick, sink):
    """Optuna's own default, where somebody creates the study first."""
    optuna.create_study(study_name=NAME, storage=open_storage(STORAGE, create=True))
    with pytest.raises(UserError, match=r"is minimised, which is Optuna's default .*'maximize'"):
        evolve(evolution(quick), sink)
    foreign([({"sr": 1.0, "lr": 0.5}, 1.0)], name="other", direction="minimize")
    with pytest.raises(UserError, match="'other' is minimised"):
        compare(ComparisonConfig(study="other", **TEST), sink)
    with pytest.raises(UserError, match="'other' is minimised"):  # figures rank and accumulate
        read_study("other", STORAGE)
    assert not Study(STORAGE, NAME).trials()


@pytest.mark.usefixtures("inline")
def test_an_agent_that_cannot_be_trained_is_named_before_any_is(quick, sink):
    Path(quick).write_text("n_steps: 33\nbatch_size: 32\nn_epochs: 1\n")
    assert evolve(evolution(quick), sink) == 0
    test = ComparisonConfig(study=NAME, controls=True, **TEST)
    with pytest.raises(UserError, match=r"RecurrentPPO cannot be .* --arms chooses .* single step"):
        compare(test, sink)
    best = Study(STORAGE, NAME).best().number
    assert f"{NAME}_trial_{best}_test_0.032k_steps" not in study_names(open_storage(STORAGE))


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_parameters_that_are_one_of_several_values(sink):
    foreign([({"sr": (1.0, 2.0), "lr": (0.5,), "c_note": "words"}, 1.0)])
    test = ComparisonConfig(study=NAME, arms="RES_PPO_0.0003", **TEST)
    assert compare(test, sink) == 0
    assert "sr 1, lr 0.5" in str(sink)
    foreign([({"sr": ("much", "little"), "lr": 0.5}, 1.0)], name="words")
    with pytest.raises(UserError, match="study 'words' has sr = 'much', which is not a number"):
        compare(dataclasses.replace(test, study="words"), sink)


@pytest.mark.usefixtures("inline")
def test_a_source_whose_parameters_are_one_of_several_values(quick, sink):
    """Numbers are taken, words are not."""
    for name, values in (("words", ("much", "little")), ("numbers", (1.0, 2.0))):
        foreign([({"sr": values, "lr": 0.1 * k}, float(k)) for k in range(1, 11)], name=name)
    flags = evolution(quick, sampler="Cmaes", warm_start="words")
    with pytest.raises(UserError, match=r"at least 10 finished trials .* 'words' has 0"):
        evolve(flags, sink)
    assert evolve(dataclasses.replace(flags, warm_start="numbers"), sink) == 0
    assert Study(STORAGE, NAME).stored["start"]["trials"] == 10


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_a_study_in_which_only_failures_are_stored_is_tried_again(quick, sink, monkeypatch):
    """Parameters are the same, and lifetimes that had succeeded are not trained again."""
    flags = evolution(
        quick,
        env_id="toy_environments:Lottery-v0",
        training_steps=320,
        nb_trials=5,
        nb_seeds=4,
        popsize=4,
    )
    name = "toy_environments:Lottery-v0_main_0.32k_steps"
    assert evolve(flags, sink) == 1
    assert "no trial succeeded: lifetime" in str(sink)
    failed = Study(flags.storage, name).trials()
    assert [t.state.name for t in failed] == ["FAIL"] * 5
    before = records(flags.storage, name)
    good = before[before.error.isna()]
    assert 0 < len(good) < len(before)

    lottery = toy_environments.Lottery.__init__
    monkeypatch.setattr(
        toy_environments.Lottery, "__init__", lambda self: lottery(self, good=10**9)
    )
    assert evolve(flags, sink) == 0
    trials = Study(flags.storage, name).trials()
    assert [t.state.name for t in trials] == ["FAIL"] * 5 + ["COMPLETE"] * 5
    assert [t.params for t in trials[5:]] == [t.params for t in failed]
    assert [t.user_attrs["retry_of"] for t in trials[5:]] == list(range(5))
    assert [t.user_attrs["generation"] for t in trials] == [0] * 4 + [1] + [0] * 4 + [1]
    for old, new in zip(failed, trials[5:]):
        kept = [k for k, r in lifetime_records(old).items() if r.error is None]
        assert kept
        # To the last bit, the seconds that it took included.
        assert all(
            new.system_attrs[f"lifetime:{k}"] == old.system_attrs[f"lifetime:{k}"] for k in kept
        )
    study = Study(flags.storage, name)
    assert study.finished() == 5
    assert not study.failed_alone()
    # Failures beside successes stay, and a longer study goes on behind them.
    assert evolve(dataclasses.replace(flags, nb_trials=6), sink) == 0
    trials = Study(flags.storage, name).trials()
    assert [t.state.name for t in trials[10:]] == ["COMPLETE"]
    assert trials[10].params not in [t.params for t in failed]
    assert evolve(dataclasses.replace(flags, nb_trials=6), sink) == 0
    assert len(Study(flags.storage, name).trials()) == 11


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_results_go_elsewhere_and_the_evolved_studys_file_stays_as_it_was(quick, sink):
    journal = "optuna-journal_CartPole-v1_main_300k_steps.log"
    foreign(
        [({"sr": 1.0, "lr": 0.5}, 1.0)],
        storage=journal,
        name="CartPole-v1_main_300k_steps",
    )
    before = Path(journal).read_bytes(), Path(journal).stat().st_mtime_ns
    test = ComparisonConfig(
        env_id="CartPole-v1",
        arms="PPO",
        results_storage="sqlite:///results.db",
        **TEST | {"storage": journal},
    )
    assert compare(test, sink) == 0
    assert (Path(journal).read_bytes(), Path(journal).stat().st_mtime_ns) == before
    name = "CartPole-v1_main_300k_steps_trial_0_test_0.032k_steps"
    assert len(records("sqlite:///results.db", name)) == 1
    assert f"curves:   study {name} in sqlite:///results.db" in str(sink)
    assert compare(test, sink) == 0
    assert "lifetimes are there; raise --nb_seeds" in str(sink)
    assert (Path(journal).read_bytes(), Path(journal).stat().st_mtime_ns) == before
    # By default the journal is found, and the results lie in the usual storage; then too, when that
    # exists.
    usual = dataclasses.replace(
        test, storage=DEFAULT_STORAGE, results_storage=None, models="others"
    )
    for _ in range(2):
        assert compare(usual, sink) == 0
        assert f"reading ER-MRL's journal {journal}" in str(sink)
    assert (Path(journal).read_bytes(), Path(journal).stat().st_mtime_ns) == before


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_a_test_that_exists_keeps_the_bias_that_its_journal_was_taken_to_have(sink, monkeypatch):
    foreign([({"sr": 1.0, "lr": 0.5}, 1.0)])
    test = ComparisonConfig(study=NAME, arms="RES_PPO_0.0003", env_id="CartPole-v1", **TEST)
    with monkeypatch.context() as before:
        before.setattr("erl.experiments.tested.ER_MRL_BIAS", NO_BIAS)
        assert compare(test, sink) == 0
    assert compare(test, sink) == 0
    assert "lifetimes are there; raise --nb_seeds" in str(sink)


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_a_journal_has_no_configuration_that_could_say_something(sink):
    foreign([({"sr_1": 1.0, "lr_1": 0.5, "sr_2": 1.0, "lr_2": 0.5}, 1.0)])
    test = MultiComparisonConfig(study=NAME, arms="PPO", env_id="CartPole-v1", **TEST)
    assert compare(test, sink) == 0
    assert f"{NAME} has 2 reservoirs, as its parameters say" in sink.lines
    assert "configuration says" not in str(sink)


def test_folders_in_printed_commands_are_quoted(quick, sink, inline):
    flags = evolution(quick, storage="sqlite:///my studies.db", nb_trials=1)
    assert evolve(flags, sink) == 0
    assert sink.lines[-1].endswith("--storage 'sqlite:///my studies.db'")
    test = ComparisonConfig(
        study=NAME,
        arms="PPO",
        logs="my logs",
        models="my models",
        **TEST | {"storage": flags.storage},
    )
    assert compare(test, sink) == 0
    [line] = [line for line in sink.lines if line.startswith("logs:")]
    assert "tensorboard --logdir '/" in line
    assert "/my logs/" in line
    assert line.endswith("'")
    [line] = [line for line in sink.lines if line.startswith("figures:")]
    assert line.endswith("--models 'my models' --storage 'sqlite:///my studies.db'")
