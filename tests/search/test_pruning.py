"""Pruning: what lifetimes report and when they stop, what pruners see, and that it prunes the same
whoever is faster.
"""

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import STORAGE, InlineExecutor, Lines, TickingExecutor, observed
from optuna.pruners import HyperbandPruner, MedianPruner
from optuna.trial import TrialState, create_trial
from scipy.stats import wilcoxon

from erl.errors import UserError
from erl.executors.jobs import new_rows
from erl.experiments.evolution import EvolutionConfig, GeneralizationConfig, evolve
from erl.experiments.evolution_study import study_config
from erl.experiments.flags import study_name
from erl.learners import Outputs, get_learner
from erl.lifetimes.living import COLUMNS, Cohort, live
from erl.lifetimes.record import POINTS, points_passed
from erl.search.pruning import P_THRESHOLD, Comparison, TrialPruner, check_pruner, values_at_points
from erl.studies.records import records
from erl.studies.study import Study
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, to_json
from erl.worlds.tasks import Task

ENV = "toy_environments:Recall-v0"
SETTINGS = {"n_steps": 64, "batch_size": 32, "n_epochs": 1}


def lifetime(i=0, env_id=ENV, steps=2048, name="PPO", engine="cohort", config=SETTINGS, **more):
    context = Context((ReservoirParams(units=5, sr=0.9, lr=0.5),))
    learner = LearnerSpec(name, config, engine)
    return LifetimeSpec(
        Task(env_id), learner, steps, Seeds.derive(0, "single", i), context, ep_eval=5, **more
    )


def essence(record):
    return dataclasses.replace(record, seconds=0.0, commit=None)


def new_board(n):
    return new_rows(COLUMNS, n)


def stopping(n, stop_at):
    """A board that tells lifetimes to stop when they report these points."""
    rows = new_board(n)

    def after(key, value):
        i, place = key
        if stop_at.get(i) == place + 1:
            rows["stop"][i] = True

    return observed(rows, "reports", after)


# -- what a lifetime reports --


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cohort", "sb3"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_reports_are_means_of_the_last_episodes_at_tenths_of_the_budget(engine, n_envs):
    specs = [
        lifetime(i, engine=engine, steps=2000 + 7 * i, config=SETTINGS | {"n_envs": n_envs})
        for i in range(2)
    ]
    for spec in specs if engine == "sb3" else specs[:1]:
        ledger = Ledger()
        get_learner("PPO", engine).train([spec], [ledger], [Outputs()])
        expected = []
        for k in range(1, 10):
            ended = [total for end, total, _ in ledger.episodes if end <= k * spec.steps / 10]
            expected.append(np.mean(ended[-5:]))
        expected.append(np.mean([total for _, total, _ in ledger.episodes[-5:]]))
        rows = new_board(1)
        (record,) = live(Cohort((spec,)), rows)
        assert list(record.reports) == expected
        assert record.reports[-1] == record.fitness
        # Live, the last point is left to the record.
        np.testing.assert_array_equal(rows["reports"][0, :9], expected[:9])
        assert np.isnan(rows["reports"][0, 9])
        assert rows["steps"][0] >> 8 == record.steps >> 8


def test_what_is_reported_does_not_change_with_later_episodes():
    """A point is passed when the step after it is counted: an episode that ends with the point's
    own step is in the ledger then.
    """
    seen = []

    specs = [lifetime(i) for i in range(3)]
    rows = observed(new_board(3), "reports", lambda key, value: seen.append((*key, value)))
    done = live(Cohort(tuple(specs)), rows)
    assert len(seen) == 27
    for i, place, value in seen:
        assert value == done[i].reports[place]


@pytest.mark.parametrize("steps", [1, 3, 10, 64, 1000, 1001])
def test_points_passed(steps):
    spec = lifetime(steps=steps)
    for taken in range(2 * steps + 1):
        assert min(points_passed(spec, taken), 9) == sum(
            taken * 10 > k * steps for k in range(1, 10)
        )


def test_where_no_episode_ends_there_is_nothing_to_report():
    rows = new_board(1)
    (record,) = live(Cohort((lifetime(env_id="toy_environments:Endless-v0"),)), rows)
    assert (rows["reports"][0, :9] == -np.inf).all()
    assert record.reports == (None,) * 10


def test_a_lifetime_that_goes_on_from_a_checkpoint_reports_what_it_had_passed(tmp_path):
    spec = lifetime(steps=4096)
    outputs = (Outputs(checkpoint=str(tmp_path / "c.pkl"), checkpoint_seconds=0.0),)
    whole = new_board(1)
    (expected,) = live(Cohort((spec,)), whole)
    live(Cohort((spec,), outputs), stopping(1, {0: 4}))
    assert (tmp_path / "c.pkl").exists()
    seen = []

    rows = observed(new_board(1), "reports", lambda key, value: seen.append(key[1] + 1))
    (record,) = live(Cohort((spec,), outputs), rows)
    assert essence(record) == essence(expected)
    assert seen == list(range(1, 10))
    np.testing.assert_array_equal(rows["reports"], whole["reports"])


# -- how a lifetime stops --


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_those_that_stop_change_nothing_for_the_others_to_the_last_bit(env_id, n_envs):
    specs = [
        lifetime(i, env_id, config=SETTINGS | {"n_envs": n_envs, "normalize": True})
        for i in range(5)
    ]
    alone = live(Cohort(tuple(specs)))
    pruned = live(Cohort(tuple(specs)), stopping(5, {0: 6, 2: 3, 3: 6}))
    for i in (1, 4):
        assert essence(pruned[i]) == essence(alone[i])
    for i, point in ((0, 6), (2, 3), (3, 6)):
        record = pruned[i]
        passed = min(s for s in range(0, 2049, 64 * n_envs) if s * 10 > point * 2048)
        # The ledger tells of every 256th step, and the rollout that is running then is the last.
        assert passed <= record.steps <= passed + 256 + 64 * n_envs
        assert record.steps % (64 * n_envs) == 0
        assert (record.fitness, record.error) == (None, None)
        assert record.note == f"pruned after {record.steps} of 2048 steps"
        assert record.reports == alone[i].reports[: len(record.reports)]
        assert point <= len(record.reports) < 10
        assert record.curve[-1][0] <= record.steps


def test_all_may_stop():
    first, second = live(Cohort((lifetime(0), lifetime(1))), stopping(2, {0: 2, 1: 2}))
    assert first.steps == second.steps < 2048 / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "env_id", "config"),
    [
        ("PPO", ENV, SETTINGS),
        ("DQN", ENV, {"learning_starts": 10}),
        ("SAC", "toy_environments:Steady-v0", {"learning_starts": 2000}),
        ("ARS", ENV, {"n_delta": 2}),
    ],
)
def test_stable_baselines3_stops(name, env_id, config):
    specs = tuple(lifetime(i, env_id, name=name, engine="sb3", config=config) for i in range(2))
    stopped, whole = live(Cohort(specs), stopping(2, {0: 3}))
    assert stopped.note == f"pruned after {stopped.steps} of 2048 steps"
    assert stopped.error is None
    assert 0.3 * 2048 < stopped.steps <= 0.3 * 2048 + 256 + 1
    assert whole.note is None
    assert whole.steps >= 2048
    (plain,) = live(Cohort(specs[1:]))
    assert essence(whole) == essence(plain)


@pytest.mark.parametrize("engine", ["cohort", "sb3"])
def test_who_has_lived_its_steps_is_not_stopped(engine):
    spec = lifetime(engine=engine)
    ledger = Ledger()
    ledger.should_stop = lambda: ledger.steps >= 2048
    (agent,) = get_learner("PPO", engine).train([spec], [ledger], [Outputs()])
    assert not isinstance(agent, Exception)
    assert ledger.steps >= 2048


# -- what pruners say --


def curves(n, lifetimes=3, seed=0):
    """Tables of n trials that differ in how fast and how far they rise."""
    rng = np.random.default_rng(seed)
    height = rng.uniform(0, 10, (n, 1, 1))
    return height * np.linspace(0.1, 1, POINTS) + rng.normal(0, 1, (n, lifetimes, POINTS))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "pruner"),
    [
        ("median", lambda: MedianPruner(n_warmup_steps=3)),
        ("hyperband", lambda: HyperbandPruner(2, 10)),
    ],
)
def test_one_trial_after_the_other_is_optunas_own_study(name, pruner, seed):
    tables = curves(40, seed=seed)
    study = optuna.create_study(direction="maximize", pruner=pruner(), study_name="s")
    finished, ends = [], []
    for number, values in enumerate(tables):
        trial, expected = study.ask(), None
        means = [float(column.mean()) for column in values.T]
        for point in range(1, 11):
            trial.report(means[point - 1], point)
            if point < 10 and trial.should_prune():
                expected = point
                break
        study.tell(
            trial,
            *(() if expected else (means[-1],)),
            state=TrialState.PRUNED if expected else None,
        )
        pruner = TrialPruner(name, "s", number, finished, lambda t: tables[t.number])
        news = pruner.compare(values)
        assert (news.pruned and news.pruned.point) == expected
        frozen = study.trials[-1]
        assert news.values == frozen.intermediate_values
        assert news.notes == frozen.system_attrs
        if expected:
            assert news.pruned.value == frozen.value
        finished.append(frozen)
        ends.append(expected)
    assert 8 < sum(e is not None for e in ends) < 36


def completed(values, numbers):
    trials = []
    for number in numbers:
        trial = create_trial(state=TrialState.COMPLETE, value=float(values[number][:, -1].mean()))
        trial.number = number
        trials.append(trial)
    return trials


def test_the_signed_rank_test_pairs_lifetimes_at_the_same_point():
    tables = curves(30, lifetimes=6)
    earlier = completed(tables, range(12))
    best = max(earlier, key=lambda t: t.value)
    pruned = 0
    for number in range(12, 30):
        news = TrialPruner("wilcoxon", "s", number, earlier, lambda t: tables[t.number]).compare(
            tables[number]
        )
        expected = None
        for point in range(1, 10):
            ours, theirs = tables[number][:, point - 1], tables[best.number][:, point - 1]
            if (
                wilcoxon(ours - theirs, alternative="less").pvalue < P_THRESHOLD
                and ours.mean() < theirs.mean()
            ):
                expected = point
                break
        assert (news.pruned and news.pruned.point) == expected
        pruned += expected is not None
    assert pruned > 0


def test_points_are_told_once_in_order_and_only_when_all_lifetimes_have_passed_them():
    (values,) = curves(1)
    pruner = TrialPruner("median", "s", 0, [], lambda t: values)
    now = np.full_like(values, np.nan)
    assert pruner.compare(now).values == {}
    now[:2] = values[:2]
    now[2, 1] = values[2, 1]  # a point cannot count before the one before it
    assert pruner.compare(now).values == {}
    now[2, 0] = values[2, 0]
    assert list(pruner.compare(now).values) == [1, 2]
    assert pruner.compare(now) == Comparison()
    now[:, 2] = values[:, 2]
    now[1, 3] = -np.inf  # no episode: this point says nothing, and the next one counts
    now[:, 4] = values[:, 4]
    now[[0, 2], 3] = values[[0, 2], 3]
    assert pruner.compare(now).values == {3: values[:, 2].mean(), 5: values[:, 4].mean()}


def test_trials_that_are_missing_keep_their_numbers():
    """Hyperband draws brackets by number, so gaps (trials that run elsewhere) must not shift it."""
    tables = curves(20)
    earlier = completed(tables, [0, 1, 5, 7])
    pruner = TrialPruner("hyperband", "s", 19, earlier, lambda t: tables[t.number])
    assert pruner._trial.number == 19
    assert [t.number for t in pruner._trial.study.trials if t.state == TrialState.COMPLETE] == [
        0,
        1,
        5,
        7,
    ]


def test_too_few_lifetimes_for_the_signed_rank_test(quick, sink):
    check_pruner("wilcoxon", 4)
    check_pruner("median", 1)
    worst = [wilcoxon([-1.0, -2.0, -3.0, -4.0][:n], alternative="less").pvalue for n in (3, 4)]
    assert worst[0] >= P_THRESHOLD > worst[1]
    with pytest.raises(
        UserError, match=r"needs at least 4 lifetimes per trial, not .*: use --nb_seeds 4"
    ):
        evolve(make(quick, pruner="wilcoxon", nb_seeds=3), sink)


# -- evolutions --


def make(quick, **options):
    settings = {
        "storage": STORAGE,
        "env_id": "toy_environments:Push-v0",
        "training_steps": 960,
        "evolve": "learner.learning_rate=1e-7:1e-1:log",  # trials that differ at once
        "nb_trials": 12,
        "nb_seeds": 2,
        "units": 5,
        "popsize": 4,
        "sampler": "Random",
        "learner_config": quick,
        "workers": 1,
        "pruner": "median",
    }
    return EvolutionConfig(**(settings | options))


def study_of(config):
    return Study(config.storage, study_name(config.subject(), config.h_test, config.training_steps))


def found(config):
    return [
        (
            t.number,
            t.state.name,
            t.params,
            t.value,
            t.intermediate_values,
            t.user_attrs.get("pruned"),
        )
        for t in study_of(config).trials()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["median", "hyperband", "wilcoxon"])
def test_whatever_the_workers_and_whenever_somebody_looks_the_same_trials_are_pruned(
    pruner, quick, sink, monkeypatch, lasting
):
    seeds = 4 if pruner == "wilcoxon" else 2
    configs = {
        name: make(quick, h_test=name, pruner=pruner, nb_seeds=seeds)
        for name in ("late", "live", "two")
    }
    configs["two"] = dataclasses.replace(configs["two"], workers=2)
    kinds = {"late": InlineExecutor, "live": TickingExecutor, "two": lasting}
    if pruner == "hyperband":  # its brackets are drawn by the study's name
        configs = {
            k: dataclasses.replace(c, h_test="x", storage=f"journal:{k}.log")
            for k, c in configs.items()
        }
    for name, kind in kinds.items():
        monkeypatch.setattr("erl.executors.local.LocalExecutor", kind)
        assert evolve(configs[name], sink) == 0
    assert found(configs["late"]) == found(configs["live"]) == found(configs["two"])
    states = [t.state.name for t in study_of(configs["late"]).trials()]
    assert states[:4] == ["COMPLETE"] * 4  # nothing to compare with
    assert 2 <= states.count("PRUNED") <= 8
    assert states.count("PRUNED") + states.count("COMPLETE") == 12
    for trial in study_of(configs["live"]).trials("PRUNED"):
        point = trial.user_attrs["pruned"]["point"]
        assert (
            trial.value == trial.user_attrs["pruned"]["value"] == trial.intermediate_values[point]
        )
        assert max(trial.intermediate_values) == point
    for trial in study_of(configs["live"]).trials("COMPLETE"):
        assert list(trial.intermediate_values) == list(range(1, 11))
        assert trial.intermediate_values[10] == trial.value


@pytest.mark.slow
def test_pruned_trials_cost_fewer_steps_count_and_are_never_the_best(quick, sink, monkeypatch):
    monkeypatch.setattr("erl.executors.local.LocalExecutor", TickingExecutor)
    config = make(quick, training_steps=3200)
    plain = dataclasses.replace(config, pruner="none", h_test="plain")
    assert evolve(config, sink) == 0
    text = str(sink)
    assert evolve(plain, sink) == 0
    study, frame = study_of(config), records(config.storage, study_of(config).name)
    whole = records(config.storage, study_of(plain).name)
    pruned = frame[frame.state == "PRUNED"]
    assert len(pruned) >= 2
    assert study.finished() == len(study.trials()) == 12
    assert text.count("  pruned  ") == len(pruned) / 2
    for row in pruned.itertuples():
        point = study.trials()[row.trial].user_attrs["pruned"]["point"]
        # Until the next word to the ledger, and then to the end of the rollout.
        assert point * 320 < row.steps <= point * 320 + 256 + 32
        assert row.note == f"pruned after {row.steps} of 3200 steps"
        assert np.isnan(row.fitness)
    # Random search proposes the same to both: what is not pruned is the same to the last bit.
    kept = frame[frame.state == "COMPLETE"]
    same = whole[whole.trial.isin(kept.trial)]
    assert kept[["trial", "sr", "fitness", "steps"]].values.tolist() == (
        same[["trial", "sr", "fitness", "steps"]].values.tolist()
    )
    # What trials reach on the way is reported without a pruner too, and is the same.
    reported = {t.number: t.intermediate_values for t in study_of(plain).trials()}
    assert all(len(values) == 10 for values in reported.values())
    for trial in study.trials("COMPLETE", "PRUNED"):
        assert trial.intermediate_values.items() <= reported[trial.number].items()
    # A pruned trial may have had a high value where it ended.
    study.optuna.add_trial(create_trial(state=TrialState.PRUNED, value=1e6))
    assert study.best().state == TrialState.COMPLETE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruner", "where"), [("median", "store_record"), ("hyperband", "store_end")]
)
def test_interrupted_or_not(pruner, where, quick, sink, monkeypatch):
    """The coordinator dies over and over, its storage untouched since, as after a SIGKILL."""
    monkeypatch.setattr("erl.executors.local.LocalExecutor", TickingExecutor)
    whole, torn = (
        make(quick, pruner=pruner, h_test="x", storage=f"journal:{s}.log")
        for s in ("whole", "torn")
    )
    evolve(whole, sink)
    calls, real = [], getattr(Study, where)

    def dies(self, *rest):
        calls.append(1)
        if len(calls) % 7 == 5:
            raise SystemError("the end")
        return real(self, *rest)

    deaths = 0
    with monkeypatch.context() as patch:
        patch.setattr(Study, where, dies)
        patch.setattr(Study, "_release", lambda self, trial_id: None)
        while True:
            try:
                evolve(torn, sink)
                break
            except SystemError:
                deaths += 1
            for trial in study_of(torn).trials("RUNNING"):
                gone = {**trial.system_attrs["owner"], "id": "gone", "started": 1.0}
                study_of(torn).storage.set_trial_system_attr(trial._trial_id, "owner", gone)
                study_of(torn).storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    assert deaths >= 2
    assert found(torn) == found(whole)
    assert "PRUNED" in [t.state.name for t in study_of(torn).trials()]


def test_a_trial_that_was_told_to_stop_by_a_coordinator_that_died_ends_pruned(
    quick, sink, monkeypatch
):
    monkeypatch.setattr("erl.executors.local.LocalExecutor", TickingExecutor)
    config = make(quick, nb_trials=4)
    evolve(config, sink)
    study = study_of(config)
    template = study.trials()[0]
    study.storage.create_new_trial(
        study._id,
        create_trial(
            state=TrialState.WAITING,
            params=template.params,
            distributions=template.distributions,
            user_attrs={"pruned": {"point": 3, "value": -0.5}, "generation": 1},
        ),
    )
    monkeypatch.setattr("erl.lifetimes.living.live", None)  # nothing of it is trained again
    evolve(dataclasses.replace(config, nb_trials=5), sink)
    assert [t.state.name for t in study_of(config).trials()] == ["COMPLETE"] * 4 + ["PRUNED"]
    assert study_of(config).trials()[4].value == -0.5


@pytest.mark.slow
def test_pruning_in_pieces_is_pruning_as_a_whole(quick, sink, monkeypatch):
    monkeypatch.setattr("erl.executors.local.LocalExecutor", TickingExecutor)
    whole, pieces = make(quick, h_test="whole"), make(quick, h_test="pieces")
    evolve(whole, sink)
    for n in (3, 8, 10, 12):
        evolve(dataclasses.replace(pieces, nb_trials=n), sink)
        assert study_of(pieces).finished() == n
    assert found(whole) == found(pieces)


def test_a_trial_that_fails_after_a_point_where_it_was_pruned_is_pruned_whoever_looked(
    quick, sink, monkeypatch
):
    config = make(quick, env_id="toy_environments:Lottery-v0")
    for name, kind in (("late", InlineExecutor), ("live", TickingExecutor)):
        monkeypatch.setattr("erl.executors.local.LocalExecutor", kind)
        evolve(dataclasses.replace(config, h_test=name), sink)
    late, now = (found(dataclasses.replace(config, h_test=name)) for name in ("late", "live"))
    assert late == now


def test_studies_from_before_pruning_are_none(quick, inline, sink):
    config = make(quick, pruner="none", nb_trials=2)
    evolve(config, sink)
    study = study_of(config)
    stored = dict(study.stored)
    assert stored.pop("pruner") == "none"
    study.optuna.set_user_attr("config", stored)
    assert evolve(dataclasses.replace(config, nb_trials=3), sink) == 0
    with pytest.raises(UserError, match="pruner is 'none' there and 'median' here"):
        evolve(dataclasses.replace(config, pruner="median"), sink)
    assert study_config(dataclasses.replace(config, pruner="median"), Lines()).pruner == "median"


def test_an_unknown_pruner(quick):
    with pytest.raises(
        UserError, match=r"unknown pruner 'medain'; did you mean median\? \(known: none, median"
    ):
        make(quick, pruner="medain")


def test_sets_of_environments_are_compared_by_their_scores(quick, sink, monkeypatch):
    monkeypatch.setattr("erl.executors.local.LocalExecutor", TickingExecutor)
    Path("sets.toml").write_text(
        '[target_returns]\n"InvertedPendulum-v5" = 950.0\n"InvertedDoublePendulum-v5" = 8000.0\n'
        '[random_returns]\n"InvertedPendulum-v5" = 7.0\n"InvertedDoublePendulum-v5" = 60.0\n'
    )
    config = GeneralizationConfig(
        storage=STORAGE,
        env_ids="InvertedPendulum-v5,InvertedDoublePendulum-v5",
        sets="sets.toml",
        nb_res=1,
        training_steps=640,
        nb_trials=4,
        nb_seeds=2,
        units=5,
        popsize=4,
        sampler="Random",
        learner_config=quick,
        workers=1,
        pruner="median",
    )
    assert evolve(config, sink) == 0
    study = study_of(config)
    references = study.stored["references"]
    for trial in study.trials():
        lived = [trial.system_attrs[f"lifetime:{i}"] for i in range(4)]
        for point in range(1, 11):
            scores = []
            for record in lived:
                low, high = references[record["spec"]["task"]["env_id"]]
                scores.append((record["reports"][point - 1] - low) / (high - low))
            assert trial.intermediate_values[point] == pytest.approx(np.mean(scores), rel=1e-12)
        assert trial.value == trial.intermediate_values[10]


def test_records_and_the_board_make_the_same_table():
    specs = [lifetime(i) for i in range(3)]
    rows = new_board(3)
    done = dict(enumerate(live(Cohort(tuple(specs)), rows)))

    def score(spec, value):
        return 2 * value

    stored = values_at_points(specs, done, {}, score)
    board = values_at_points(specs, {}, dict(enumerate(rows["reports"])), score)
    np.testing.assert_array_equal(stored[:, :9], board[:, :9])
    assert np.isnan(board[:, 9]).all()
    assert stored[1, 4] == 2 * done[1].reports[4]
    some = values_at_points(specs, {0: done[0]}, {2: rows["reports"][2]}, score)
    assert np.isnan(some[1]).all()
    assert to_json(done[0])["reports"][0] == done[0].reports[0]
