"""Studies as plain data: what was stored, what Optuna computes, and what other programs left."""

import copy
import dataclasses

import numpy as np
import optuna
import pytest
from er_mrl_journals import journal
from figure_fixtures import conditional
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from erl.errors import UserError
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.single import SingleConfig
from erl.experiments.single import run as run_single
from erl.figures.evolution import importances as show_importances
from erl.figures.learning import left_out
from erl.figures.style import caption_of
from erl.search.samplers import make_sampler
from erl.studies import data as studies
from erl.studies.data import Axis, importances, read_study, read_tensorboard, sampler_path
from erl.studies.records import generations, records
from erl.studies.study import Study

ENV = "toy_environments:Recall-v0"
NAME = f"{ENV}_main_0.064k_steps"


@pytest.fixture
def config(quick, inline):
    return EvolutionConfig(
        env_id=ENV,
        training_steps=64,
        nb_trials=8,
        nb_seeds=1,
        units=5,
        popsize=4,
        learner_config=quick,
        engine="sb3",
        workers=1,
    )


def test_an_evolution_and_its_test_are_read_as_they_are_stored(config, quick, sink):
    evolve(config, sink)
    data = read_study(NAME)
    study = Study("sqlite:///studies.db", NAME)
    assert data.kind == "evolution"
    assert data.config == study.config
    assert data.address == "sqlite:///studies.db"
    assert list(data.trials.fitness) == [t.value for t in study.trials()]
    assert list(data.trials.sr) == [t.params["sr"] for t in study.trials()]
    assert list(data.trials.generation) == [0] * 4 + [1] * 4
    assert data.space == {"sr": Axis(1e-4, 1e2, True), "lr": Axis(1e-2, 1.0, True)}
    assert data.lifetimes.equals(records("sqlite:///studies.db", NAME))
    assert data.generations.equals(generations("sqlite:///studies.db", NAME))
    assert "torch" in data.versions
    assert read_study(f"sqlite:///studies.db#{NAME}").trials.equals(data.trials)

    test = ComparisonConfig(study=NAME, training_steps=64, nb_seeds=1, workers=1, arms="PPO")
    assert compare(test, sink) == 0
    with pytest.raises(UserError, match=r"which study of sqlite:///studies\.db"):
        read_study("sqlite:///studies.db")
    (name,) = {
        n.strip(":,")
        for n in str(sink).split()
        if n.strip(":,").endswith("_steps") and "_test_" in n and "/" not in n
    }
    tested = read_study(name.rstrip(":"))
    assert (tested.kind, tested.evolution.units) == ("test", 5)
    assert list(tested.lifetimes.arm) == ["PPO"]


def test_a_single_run_has_its_learner_for_an_arm(quick, inline, sink):
    single = SingleConfig(
        learner="PPO", env_id=ENV, steps=64, learner_config=quick, engine="sb3", workers=1
    )
    assert run_single(single, sink) == 0
    data = read_study("sqlite:///studies.db")
    assert data.kind == "single"
    assert list(data.lifetimes.arm) == ["PPO"]


def test_the_path_is_the_distribution_that_the_sampler_drew_from(config, sink, monkeypatch):
    """Each generation was drawn from the distribution that the path has after the one before."""
    drawn = {}
    config = dataclasses.replace(config, nb_trials=12)

    def spy(*arguments):
        sampler = make_sampler(*arguments)
        sample = sampler.sample_relative

        def sample_relative(study, trial, space):
            found = sample(study, trial, space)
            drawn[trial.number] = sampler._cma.distribution()
            return found

        sampler.sample_relative = sample_relative
        return sampler

    monkeypatch.setattr("erl.studies.distributions.make_sampler", spy)
    evolve(config, sink)
    path = sampler_path(read_study(NAME))
    assert list(path.generation) == [0, 1, 2]
    assert set(path.source) == {"CMA-ES"}
    assert path.parameters[0] == ["sr", "lr"]
    for generation in (1, 2):
        mean, cov = drawn[4 * generation]
        assert path["mean"][generation - 1] == pytest.approx(mean)
        assert path["cov"][generation - 1] == pytest.approx(cov)


def test_the_order_in_which_a_storage_has_parameters_moves_no_distribution(config, sink):
    """Storages on other machines give them in any order."""
    evolve(config, sink)
    data = read_study(NAME)
    mixed = []
    for trial in data._frozen:
        other = copy.copy(trial)
        other._distributions = dict(reversed(trial.distributions.items()))
        assert [*other.distributions] == ["lr", "sr"]
        mixed.append(other)
    path = sampler_path(dataclasses.replace(data, _frozen=tuple(mixed)))
    expected = sampler_path(data)
    assert path.parameters[0] == expected.parameters[0] == ["sr", "lr"]
    assert np.array_equal(np.stack(path["mean"]), np.stack(expected["mean"]))


@pytest.mark.parametrize(
    "space",
    [IntDistribution(1, 4), IntDistribution(1, 4, log=True), FloatDistribution(1e-4, 2.0)],
)
def test_the_samplers_cube_on_the_scale_of_an_axis(space):
    """Optuna's own transformation says where a value lies in the cube."""
    transform = _SearchSpaceTransform({"x": space}, transform_0_1=True)
    slope, offset = studies._from_cube(space)
    axis = Axis(space.low, space.high, space.log)
    for value in (space.low, space.high, 2):
        at = transform.transform({"x": value})[0]
        assert slope * at + offset == pytest.approx(axis.unit([value])[0])


def test_other_samplers_have_the_mean_of_their_trials(config, sink):
    evolve(dataclasses.replace(config, sampler="Random"), sink)
    data = read_study(NAME)
    path = sampler_path(data)
    assert set(path.source) == {"trials"}
    units = np.stack([data.space[n].unit(data.trials[n][:4]) for n in ("sr", "lr")])
    assert path["mean"][0] == pytest.approx(units.mean(1))
    assert path["cov"][0] == pytest.approx(np.cov(units))


def test_a_journal_of_er_mrls_opens():
    data = read_study(journal(12))
    assert (data.kind, data.name, len(data.trials)) == ("journal", "Toy-v0_main_1k_steps", 12)
    assert not len(data.lifetimes)
    assert not len(data.generations)
    assert list(sampler_path(data).source) == ["tens", "tens"]


def test_importances_find_what_matters():
    frame = importances(read_study(journal(40)), repeats=3)
    assert set(frame.method) == {"fANOVA", "PED-ANOVA"}
    means = frame.groupby(["method", "parameter"]).importance.mean()
    assert all(means[method]["sr"] > 0.6 for method in ("fANOVA", "PED-ANOVA"))
    assert means["PED-ANOVA"].sum() == pytest.approx(1.0)
    assert frame[frame.method == "fANOVA"]["repeat"].nunique() == 3
    assert frame.attrs == {"trials": 40, "best": 4}


def test_trials_as_good_as_the_last_of_the_best_tenth_are_among_it():
    study = optuna.create_study(
        study_name="ties", storage="sqlite:///ties.db", direction="maximize"
    )
    rng = np.random.default_rng(0)
    unit = {name: FloatDistribution(0.0, 1.0) for name in "ab"}
    for k, (a, b) in enumerate(rng.random((20, 2))):
        study.add_trial(
            create_trial(params={"a": a, "b": b}, distributions=unit, value=float(k < 7))
        )
    frame = importances(read_study("sqlite:///ties.db#ties"), repeats=1)
    assert frame.attrs == {"trials": 20, "best": 7}
    said = caption_of(show_importances(frame))
    assert "Importance of the searched parameters in 20 completed trials, on the scale" in said
    assert "the best tenth of the trials (7 with those of equal fitness) from all" in said


def test_what_parameters_do_together_is_in_no_share(recwarn):
    study = optuna.create_study(
        study_name="both", storage="sqlite:///both.db", direction="maximize"
    )
    rng = np.random.default_rng(0)
    unit = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in "ab"}
    for a, b in rng.random((60, 2)):
        fitness = (a - 0.5) * (b - 0.5)  # neither does anything alone
        study.add_trial(
            optuna.create_trial(params={"a": a, "b": b}, distributions=unit, value=fitness)
        )
    frame = importances(read_study("sqlite:///both.db#both"), repeats=2)
    shares = frame[frame.method == "fANOVA"].groupby("repeat").importance.sum()
    assert all(shares < 0.6)
    assert not [w for w in recwarn if "normalize" in str(w.message)]


@pytest.mark.parametrize(
    ("n", "fail", "said"), [(3, False, "has 3 trials with a fitness"), (5, True, "has 0 trials")]
)
def test_too_few_trials_for_importances(n, fail, said):
    with pytest.raises(UserError, match=said):
        importances(read_study(journal(n, fail=fail)))


def test_studies_without_trials():
    data = read_study(journal(0))
    assert not len(data.trials)
    assert "fitness" in data.trials
    with pytest.raises(UserError, match="no trials from which a sampler"):
        sampler_path(data)
    with pytest.raises(UserError, match="searches 0 parameters"):
        importances(data)
    with pytest.raises(UserError, match=r"no journal file /.*missing\.log"):
        read_study("missing.log#x")


def test_an_axis_and_its_inverse():
    for axis in (Axis(1e-4, 1e2, True), Axis(-2.0, 3.0)):
        units = np.linspace(0, 1, 5)
        assert axis.unit(axis.value(units)) == pytest.approx(units)
        assert axis.value([0, 1]) == pytest.approx([axis.low, axis.high])
    assert Axis(0, 2, choices=("a", "b", "c")).unit(["c", "a"]).tolist() == [1.0, 0.0]
    assert Axis(3.0, 3.0).unit([3.0]).tolist() == [0.5]


def log(folder, values, tag="rollout/ep_rew_mean"):
    logger = Logger(str(folder), [TensorBoardOutputFormat(str(folder))])
    for step, value in values:
        logger.record(tag, value)
        logger.dump(step)
    logger.close()


def test_tensorboard_folders_are_arms_and_seeds(tmp_path):
    root = tmp_path / "logs" / "Toy"
    log(root / "PPO" / "seed_0", [(10, 1.0), (20, 2.0)])
    log(root / "PPO" / "seed_1" / "PPO_1", [(10, 3.0)])
    log(root / "RES_PPO_0.0003" / "4", [(10, 4.0), (20, float("nan"))])
    log(root / "other", [(10, 5.0)], "charts/episodic_return")
    log(root / "empty", [(10, 5.0)], "train/loss")
    data = read_study(str(root))
    assert data.kind == "tensorboard"
    found = {(r.arm, r.seed): r.curve for r in data.lifetimes.itertuples()}
    assert found == {
        ("PPO", 0): ((10, 1.0), (20, 2.0)),
        ("PPO", 1): ((10, 3.0),),
        ("RES_PPO_0.0003", 4): ((10, 4.0),),
        ("other", 0): ((10, 5.0),),
    }
    assert read_tensorboard(root / "PPO" / "seed_0").lifetimes.arm[0] == "seed_0"


def test_a_run_that_went_on_is_one_curve(tmp_path):
    log(tmp_path / "PPO" / "seed_0", [(10, 1.0)])
    log(tmp_path / "PPO" / "seed_0", [(20, 2.0)])
    assert read_tensorboard(tmp_path).lifetimes.curve[0] == ((10, 1.0), (20, 2.0))


def test_a_log_with_a_point_for_each_episode_reaches_the_mean_of_the_last_ones(tmp_path):
    returns = [float(k % 7) for k in range(1000)]
    log(tmp_path / "a", [(10 * (k + 1), r) for k, r in enumerate(returns)], studies.OF_EPISODES)
    (row,) = read_tensorboard(tmp_path).lifetimes.itertuples()
    assert row.training_return == row.fitness == np.mean(returns[-10:])
    assert row.steps == 10_000
    assert len(row.curve) == 200
    assert row.curve[-1] == (10_000, np.mean(returns[-5:]))
    assert (row.ep_eval, row.curve_over) == (10, 1)


def test_a_log_of_stable_baselines3_is_of_the_last_100_episodes(tmp_path):
    log(tmp_path / "a", [(10, 1.0)])
    (row,) = read_tensorboard(tmp_path).lifetimes.itertuples()
    assert (row.ep_eval, row.curve_over) == (100, 100)


def test_a_trial_that_failed_at_once_has_a_row_among_the_lifetimes(quick, inline, sink):
    single = SingleConfig(
        learner="PPO", env_id=ENV, steps=64, learner_config=quick, engine="sb3", workers=1
    )
    assert run_single(single, sink) == 0
    before = read_study("sqlite:///studies.db")
    study = optuna.load_study(study_name=before.name, storage="sqlite:///studies.db")
    study.add_trial(
        create_trial(
            params={"seed": 7},
            distributions={"seed": IntDistribution(0, 10)},
            state=TrialState.FAIL,
        )
    )
    frame = read_study("sqlite:///studies.db").lifetimes
    assert list(zip(frame.arm, frame.seed, frame.state)) == [
        ("PPO", 0, "COMPLETE"),
        ("PPO", 7, "FAIL"),
    ]
    assert frame.seed_environment[0] == before.lifetimes.seed_environment[0]
    assert frame.curve[1] == ()
    assert left_out(frame, frame) == "Failed and left out: PPO 1 of 2 seeds."


def test_episodes_that_end_at_one_step_all_count(tmp_path):
    log(tmp_path / "a", [(10, 1.0), (10, 3.0), (20, 5.0)], studies.OF_EPISODES)
    (row,) = read_tensorboard(tmp_path).lifetimes.itertuples()
    assert row.curve == ((10, 2.0), (20, 5.0))
    assert row.training_return == 3.0


def test_a_long_log_has_as_many_points_as_a_lifetime(tmp_path):
    log(tmp_path / "a", [(step, float(step)) for step in range(1, 401)])
    (row,) = read_tensorboard(tmp_path).lifetimes.itertuples()
    assert row.curve == tuple((step, step - 0.5) for step in range(2, 401, 2))
    assert row.training_return == 400.0


def test_two_runs_of_one_arm_and_seed_are_refused(tmp_path):
    for name in ("PPO_1", "PPO_2"):
        log(tmp_path / "PPO" / "seed_1" / name, [(10, 1.0)])
    with pytest.raises(UserError, match=r"PPO_1 and .*PPO_2 are both seed 1 of PPO: move one"):
        read_tensorboard(tmp_path)


def test_a_run_without_a_seed_takes_one_that_is_free(tmp_path):
    log(tmp_path / "PPO", [(10, 1.0)])
    log(tmp_path / "PPO" / "seed_0", [(10, 2.0)])
    frame = read_tensorboard(tmp_path).lifetimes
    assert list(zip(frame.arm, frame.seed, frame.training_return)) == [
        ("PPO", 1, 1.0),
        ("PPO", 0, 2.0),
    ]


def test_a_folder_with_the_name_of_a_study_does_not_hide_it(tmp_path):
    log(tmp_path / "same" / "seed_0", [(10, 1.0)])
    assert read_study("same").kind == "tensorboard"
    optuna.create_study(study_name="same", storage="sqlite:///studies.db", direction="maximize")
    assert read_study("same").kind == "journal"
    assert read_study("same", "sqlite:///other.db").kind == "tensorboard"
    assert read_study("./same").kind == "tensorboard"


@pytest.mark.parametrize(
    "name", ["run #2", "#2", "a#b#c", "final.log", "journal:x", "a://b", "a, b"]
)
def test_a_name_that_looks_like_an_address_is_a_study_where_there_is_one(name):
    storage = "sqlite:///studies.db"
    for other in (name, "2"):
        optuna.create_study(study_name=other, storage=storage, direction="maximize")
    assert read_study(name).name == name
    assert read_study(f"{storage}#{name}", "sqlite:///other.db").name == name
    with pytest.raises(UserError):
        read_study(name, "sqlite:///other.db")


def test_importances_are_those_of_parameters_that_all_trials_have():
    data = read_study(conditional(12))
    with pytest.raises(UserError, match="searches 1 parameter in all of its trials"):
        importances(data)
    assert sampler_path(data).parameters[0] == ["all"]


def test_a_missing_value_has_no_place_on_an_axis():
    nan = float("nan")
    for axis in (Axis(0, 2, choices=("a", "b", "c")), Axis(0.1, 1.0, True), Axis(3.0, 3.0)):
        value = "b" if axis.choices else axis.low
        assert np.isnan(axis.unit([value, nan])).tolist() == [False, True]


def test_folders_that_tell_nothing(tmp_path):
    with pytest.raises(UserError, match="no TensorBoard log below"):
        read_tensorboard(tmp_path)
    log(tmp_path / "a", [(1, 1.0)], "train/loss")
    with pytest.raises(UserError, match="has one of the scalars"):
        read_tensorboard(tmp_path)
