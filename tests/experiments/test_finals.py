"""Finals: who takes part, what is stored when, and who wins."""

import dataclasses
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import faults
import numpy as np
import pytest
from conftest import STORAGE, InlineExecutor, Lines
from optuna_dashboard import get_note
from told_lifetimes import NAME, Told, make, sr_of, study

from erl.cli import command
from erl.errors import UserError
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import GeneralizationConfig, evolve
from erl.experiments.evolution_study import study_config
from erl.experiments.finals import finalists_of, left_of_finals
from erl.search.space import search_space
from erl.studies.commands import ShowConfig, show_study
from erl.studies.configuration import EvolutionStudy, TestStudy
from erl.studies.distributions import distributions
from erl.studies.notes import _plain
from erl.studies.records import records
from erl.studies.storage import DEFAULT_STORAGE, open_storage, study_names
from erl.studies.study import Study
from erl.studies.trials import lifetime_records
from erl.studies.winner import (
    WINNER,
    Finalist,
    Reached,
    choose,
    chosen,
    reached_by,
    reached_in_tests,
    with_interval,
)
from erl.worlds.specification import Seeds, from_json, to_json


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An evolution of eight trials without finals."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("evolved")
        patch.chdir(folder)
        patch.setattr("erl.executors.local.LocalExecutor", Told)
        assert evolve(make(finalists=None), Lines()) == 0
    return folder / "studies.log"


@pytest.fixture
def evolved(told, database):
    """That evolution, to go on with."""
    shutil.copy(database, "studies.log")
    return told


def final_trials():
    return study(f"{NAME}_finals").trials()


def found():
    return [(t.number, t.state.name, t.params, t.value) for t in study().trials()]


def is_final(spec):
    """Whether a lifetime is one of the finals."""
    return spec.seeds in [Seeds.derive(0, "finals", i) for i in range(10)]


def test_the_best_trials_and_the_mean_are_lived_on_seeds_of_their_own(evolved, sink):
    assert chosen(study()).winner.trial == study().best().number  # an older study has ER-MRL's
    assert evolve(make(dry_run=True), sink) == 0
    announced = "finals: 9 lifetimes x 128 steps, 1 update each, 1 worker"
    assert announced in sink.lines
    assert sink.lines[-1] == "dry run: nothing was trained or stored"
    sink.lines.clear()
    assert evolve(make(), sink) == 0
    assert "goes on: 8 of 8 trials are there, finals are left" in sink.lines
    assert announced in sink.lines
    choice = chosen(study())
    assert len(choice.finalists) == 3
    best = sorted(study().trials("COMPLETE"), key=lambda t: -t.value)[:2]
    assert {f.trial for f in choice.finalists} == {t.number for t in best} | {None}
    (mean,) = [f for f in choice.finalists if f.trial is None]
    assert mean.mean == 8
    assert mean.params.keys() == best[0].params.keys()
    assert mean.proposed == ()
    assert choice.winner == choice.finalists[0]
    assert choice.winner.expected == max(f.expected for f in choice.finalists)
    assert all(len(f.again) == 3 for f in choice.finalists)
    lived = [lifetime_records(t)[0].spec.seeds for t in final_trials()]
    assert set(lived) == {Seeds.derive(0, "finals", i) for i in range(3)}
    others = {Seeds.derive(0, phase, i) for phase in ("evolution", "test") for i in range(100)}
    assert not {s.reservoir for s in lived} & {s.reservoir for s in others}
    table = records(STORAGE, f"{NAME}_finals")
    assert set(table.trial) == {t.number for t in final_trials()}
    assert set(table.of_trial.dropna()) == {t.number for t in best}
    for trial in best:
        (one,) = [f for f in choice.finalists if f.trial == trial.number]
        assert np.mean(one.proposed) == pytest.approx(trial.value)
    assert "winner:          " in str(sink)
    said = "finals:          9 lifetimes, 1,152 steps beside those of the evolution"
    assert said in sink.lines
    evolve(make(), sink)
    assert f"{said}; none of them new" in sink.lines
    assert "8 of 8 trials are there; raise --nb_trials above 8 for more" in sink.lines


@pytest.mark.slow
def test_an_evolution_does_not_notice_its_finals(told, sink):
    evolve(make(finalists=None, nb_trials=12), sink)
    without = found()
    shutil.move("studies.log", "without.log")
    for n in (5, 12):
        evolve(make(nb_trials=n, finalist_seeds=1), sink)
    assert found() == without
    assert study().finished() == 12


def test_without_the_flag_there_are_no_finals_and_an_earlier_winner_stands(evolved, sink):
    assert evolve(make(finalists=None), sink) == 0
    assert study_names(open_storage(STORAGE)) == [NAME]
    assert chosen(study()).finalists == ()
    assert "finals" not in str(sink)
    evolve(make(), sink)
    before, again = chosen(study()), Lines()
    assert evolve(make(finalists=None), again) == 0
    assert "finals" not in str(again)
    evolved.before = staticmethod(
        lambda spec: pytest.fail("trained again") if is_final(spec) else 0
    )
    assert evolve(make(finalists=None, nb_trials=12), again) == 0
    assert chosen(study()) == before
    winner = f"winner:          {before.winner.title}, {before.winner.reached}"
    line = "chosen when 8 of 12 trials had ended; --finalists 5 holds finals with the later ones"
    assert f"{winner}\n                 {line}\n" in str(again)


@pytest.mark.slow
def test_zero_finalists_take_the_choice_back_and_finals_return_without_new_lifetimes(evolved, sink):
    evolve(make(), sink)
    first = chosen(study())
    evolve(make(finalists=0), sink)
    assert chosen(study()).finalists == ()
    evolved.before = staticmethod(lambda spec: pytest.fail("lived once more"))
    evolve(make(), sink)
    assert chosen(study()) == first


def test_a_study_that_goes_on_has_new_finals_and_keeps_the_old_lifetimes(evolved, sink):
    evolve(make(nb_trials=8), sink)
    before = chosen(study())
    evolved.before = staticmethod(_once(final_trials()))
    evolve(make(nb_trials=12), sink)
    after = chosen(study())
    assert after.ended == 12
    old = {(f.trial, f.mean) for f in before.finalists}
    assert old <= {(f.trial, f.mean) for f in after.finalists}
    best = sorted(study().trials("COMPLETE"), key=lambda t: -t.value)[:2]
    assert {t.number for t in best} <= {f.trial for f in after.finalists}


def _once(trials):
    """Fails a test in which a lifetime of these trials is trained again."""
    known = {(sr_of(r.spec), r.spec.seeds) for t in trials for r in lifetime_records(t).values()}

    def check(spec):
        assert (sr_of(spec), spec.seeds) not in known
        known.add((sr_of(spec), spec.seeds))

    return check


@pytest.mark.slow
def test_more_seeds_add_to_those_that_were_lived(evolved, sink):
    evolve(make(finalist_seeds=2), sink)
    evolved.before = staticmethod(_once(final_trials()))
    evolve(make(finalist_seeds=5), sink)
    assert {len(f.again) for f in chosen(study()).finalists} == {5}
    evolve(make(finalist_seeds=3), sink)  # what is known is used
    assert {len(f.again) for f in chosen(study()).finalists} == {5}


def test_a_former_finalist_keeps_its_scores_at_their_seeds(evolved, sink, monkeypatch):
    evolve(make(finalist_seeds=5), sink)
    left_out = min(f.trial for f in chosen(study()).finalists if f.trial is not None)
    finals, given = study(f"{NAME}_finals"), []

    def trials(self, *states):  # finals that were interrupted while workers lived other seeds
        gap = {"trial": left_out, "seed": 2}
        return [t for t in all_trials(self, *states) if t.params != gap or self.name != finals.name]

    def seen(finalists, ended, again):
        given.append(again)
        return choose(finalists, ended, again)

    all_trials = Study.trials
    monkeypatch.setattr(Study, "trials", trials)
    monkeypatch.setattr("erl.experiments.finals.choose", seen)
    monkeypatch.setattr("erl.experiments.evolution.finalists_of", _others(left_out))
    assert evolve(make(finalist_seeds=5), sink) == 0
    (one,) = [f for f in chosen(study()).finalists if f.trial == left_out]
    of_seeds = {
        t.params["seed"]: t.value for t in final_trials() if t.params.get("trial") == left_out
    }
    assert one.again == tuple(of_seeds[k] for k in (0, 1, 3, 4))
    gap = [[k for k, v in enumerate(scores) if np.isnan(v)] for scores in given[0]]
    assert sorted(gap) == [[], [], [2]]


def _others(left_out):
    """Finalists but for this trial."""
    return lambda *args: [f for f in finalists_of(*args) if f.trial != left_out]


# -- ends at every stage --


def stopped(told, sink, at, then=lambda: None, **options):
    """The command, interrupted before the `at`-th lifetime that it would live in finals; `then`
    happens at this moment.
    """
    lived = []

    def stop(spec):
        if is_final(spec):
            lived.append(spec)
            if len(lived) > at:
                then()
                raise KeyboardInterrupt

    told.before = staticmethod(stop)
    code = evolve(make(**options), sink)
    told.before = staticmethod(Told.before)
    return code


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 4, 8])
def test_interrupted_finals_go_on_where_they_stood(at, evolved, sink):
    shutil.copy("studies.log", "before.log")
    evolve(make(), sink)
    whole, trials = chosen(study()), found()
    shutil.move("before.log", "studies.log")
    assert stopped(evolved, sink, at, workers=2) == 130
    assert "lifetimes of the finals are finished and stored" in str(sink)
    assert chosen(study()).finalists == ()
    evolved.before = staticmethod(_once(t for t in final_trials() if t.state.name == "COMPLETE"))
    assert evolve(make(), sink) == 0
    assert (chosen(study()), found()) == (whole, trials)


def test_interrupted_finals_do_not_wait_for_a_storage_that_is_away(evolved, sink, away):
    assert stopped(evolved, sink, 1, away, storage=DEFAULT_STORAGE) == 130
    assert sink.lines[-1].startswith(f"interrupted: cannot use the storage {DEFAULT_STORAGE}")
    assert "of the finals are finished" not in str(sink)


@pytest.mark.slow
@pytest.mark.parametrize("ends", [{}, {"finalists": 0}])
def test_without_the_flag_interrupted_finals_do_not_go_on_and_are_named(ends, evolved, sink):
    assert stopped(evolved, sink, 4) == 130
    line = "begun and not finished; --finalists 2 --finalist_seeds 3 goes on with them"
    assert line not in str(sink)
    number = len(final_trials())
    evolved.before = staticmethod(lambda spec: pytest.fail("lived"))
    assert evolve(make(finalists=None), sink) == 0
    assert len(final_trials()) == number
    assert chosen(study()).finalists == ()
    assert f"finals:          {line}" in sink.lines
    assert show_study(ShowConfig(storage=STORAGE), sink) == 0
    assert f"finals: {line}" in sink.lines
    evolved.before = staticmethod(Told.before)
    assert evolve(make(**ends), sink) == 0
    assert len(chosen(study()).finalists) == (0 if ends else 3)
    after = Lines()
    assert evolve(make(finalists=None), after) == 0
    assert line not in str(after)


def test_an_end_before_the_choice_is_stored_costs_nothing(evolved, sink, monkeypatch):
    def dies(*_):
        raise SystemError("the end")

    with monkeypatch.context() as patch:
        patch.setattr("erl.experiments.finals.store_choice", dies)
        with pytest.raises(SystemError):
            evolve(make(), sink)
    evolved.before = staticmethod(lambda spec: pytest.fail("lived once more"))
    assert evolve(make(), sink) == 0
    assert len(chosen(study()).finalists) == 3


@pytest.mark.slow
def test_while_a_study_goes_on_the_earlier_winner_stands_and_says_so(evolved, sink):
    evolve(make(nb_trials=8), sink)
    before = chosen(study())
    assert stopped(evolved, sink, 0, nb_trials=12) == 130
    assert chosen(study()) == before
    assert "chosen when 8 of 12 trials had ended" in str(sink)


def test_two_coordinators_that_reach_the_finals_together_share_them(evolved):
    both = threading.Barrier(2, timeout=60)
    evolved.before = staticmethod(_once([]))
    codes = []

    class Together(evolved):
        met = False

        def run(self, jobs, columns, tick, every=0.0, on_interrupt=None):
            if not self.met:  # each of the two has lifetimes in hand
                both.wait()
                self.met = True
            yield from super().run(jobs, columns, tick, every, on_interrupt)

    def coordinator():
        both.wait()
        codes.append(evolve(make(finalist_seeds=8), Lines()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erl.executors.local.LocalExecutor", Together)
        threads = [threading.Thread(target=coordinator) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    assert codes == [0, 0]
    complete = [t.params for t in final_trials() if t.state.name == "COMPLETE"]
    assert len(complete) == len({str(p) for p in complete}) == 24
    owners = {t.system_attrs["owner"]["id"] for t in final_trials() if t.state.name == "COMPLETE"}
    assert len(owners) == 2
    assert len(chosen(study()).finalists) == 3


def test_finals_wait_for_trials_that_run_elsewhere(evolved, sink, monkeypatch):
    other = study()
    pauses = []
    with other:
        trial = other.storage.create_new_trial(other._id)
        other._held.add(trial)
        other.storage.set_trial_user_attr(trial, "owner", other.lease.owner)

        def ends(self):
            pauses.append(len(study_names(open_storage(STORAGE))))
            if len(pauses) == 3:
                other.storage.set_trial_state_values(trial, other.trials()[0].state, [1.0])

        monkeypatch.setattr(Study, "pause", ends)
        assert evolve(make(nb_trials=9), sink) == 0
    assert pauses == [1, 1, 1]  # the finals had not begun
    assert chosen(study()).ended == 9


def test_no_finals_while_a_longer_run_goes_on_elsewhere(evolved, sink):
    other = study()
    with other:
        trial = other.storage.create_new_trial(other._id)
        other._held.add(trial)
        other.storage.set_trial_user_attr(trial, "owner", other.lease.owner)
        assert evolve(make(nb_trials=8), sink) == 0
    assert f"{NAME}_finals" not in study_names(open_storage(STORAGE))
    assert "1 trial of this study is running in other processes" in str(sink)
    assert "larger --nb_trials; no finals are held meanwhile" in str(sink)


def waits_after_the_first_final():
    """A patch for a coordinator: it stores one lifetime of the finals, and no second."""
    store = Study.store_record

    def waiting(self, *record):
        store(self, *record)
        if self.name == f"{NAME}_finals":
            Path("stored").touch()
            time.sleep(1000)

    Study.store_record = waiting


@pytest.mark.slow
def test_finals_go_on_after_a_kill(quick, sink, lasting, monkeypatch):
    """Real lifetimes and processes: killed in the finals, and continued with two workers."""
    config = make(nb_trials=4, nb_seeds=1, learner_config=quick, engine="sb3", finalists=2)
    process = faults.start(config, before=waits_after_the_first_final)
    deadline = time.monotonic() + 200
    while not Path("stored").exists():
        assert process.is_alive(), "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert len(lifetime_records(final_trials()[0])) == 1
    monkeypatch.setattr("erl.executors.local.LocalExecutor", lasting)
    assert evolve(dataclasses.replace(config, workers=2), sink) == 0
    after_kill = chosen(study())
    trials = [t for t in final_trials() if t.state.name == "COMPLETE"]
    assert len(trials) == len({str(t.params) for t in trials}) == 9
    Path("studies.log").rename("killed.log")
    monkeypatch.setattr("erl.executors.local.LocalExecutor", InlineExecutor)
    assert evolve(config, sink) == 0
    assert chosen(study()) == after_kill


# -- who takes part --


def test_one_trial_has_no_finals(told, sink):
    assert evolve(make(nb_trials=1), sink) == 0
    assert study_names(open_storage(STORAGE)) == [NAME]
    assert chosen(study()).winner.trial == 0
    line = (
        "no finals:       trial 0 is the only finalist, as no other hyperparameters have a fitness"
    )
    assert line in sink.lines
    assert "in finals" not in str(sink)


def test_one_finalist_without_a_mean_has_no_finals(told, sink):
    assert evolve(make(sampler="Random", finalists=1, nb_trials=4), sink) == 0
    assert study_names(open_storage(STORAGE)) == [NAME]
    best = study().best().number
    line = f"no finals:       trial {best} is the only finalist, as --finalists is 1"
    assert line in sink.lines
    assert "in finals" not in str(sink)


@pytest.mark.parametrize(
    ("options", "lifetimes"),
    [
        ({"nb_trials": 8}, 9),
        ({"nb_trials": 3}, 6),  # no whole generation, no mean
        ({"nb_trials": 3, "finalists": 1}, 0),
        ({"nb_trials": 4, "finalists": 1}, 6),
        ({"sampler": "Random", "finalists": 1}, 0),
        ({"sampler": "Random"}, 6),
        ({"min_sr": 1.0, "max_sr": 1.0, "min_lr": 0.5, "max_lr": 0.5}, 6),
    ],
)
def test_announced_finals_are_those_that_there_will_be(options, lifetimes, told, sink):
    config = study_config(make(**options), sink)
    space = distributions(search_space(config))
    assert left_of_finals(make(**options), config, space, NAME, 1) == lifetimes


def test_more_finalists_than_trials(told, sink):
    evolve(make(nb_trials=3, finalists=50), sink)
    assert {f.trial for f in chosen(study()).finalists} == {0, 1, 2}  # no mean: no generation


def test_samplers_without_a_distribution_have_no_mean(told, sink):
    evolve(make(sampler="Random"), sink)
    assert None not in {f.trial for f in chosen(study()).finalists}


def test_trials_with_the_same_hyperparameters_are_one(told, sink):
    evolve(make(min_sr=1.0, max_sr=1.0, min_lr=0.5, max_lr=0.5), sink)
    assert study_names(open_storage(STORAGE)) == [NAME]


def test_a_mean_has_every_parameter_and_whole_numbers_where_they_are(told, sink):
    evolve(make(evolve="units=5:9", units=100, min_lr=0.5, max_lr=0.5), sink)
    (mean,) = [f for f in chosen(study()).finalists if f.trial is None]
    assert mean.params.keys() == {"sr", "lr", "units"}
    assert mean.params["lr"] == 0.5
    assert isinstance(mean.params["units"], int)
    assert 5 <= mean.params["units"] <= 9


def test_every_failed_trial_and_no_finals(told, sink):
    told.error = staticmethod(lambda spec: "broken")
    assert evolve(make(), sink) == 1
    assert study_names(open_storage(STORAGE)) == [NAME]


def test_failed_and_pruned_trials_are_no_finalists(told, sink):
    told.error = staticmethod(lambda spec: "broken" if sr_of(spec) > 0.1 else None)
    assert evolve(make(pruner="median", nb_trials=12), sink) == 0
    states = {t.number: t.state.name for t in study().trials()}
    assert set(states.values()) >= {"COMPLETE", "FAIL"}
    for finalist in chosen(study()).finalists:
        assert finalist.trial is None or states[finalist.trial] == "COMPLETE"


def test_a_finalist_that_fails_on_a_seed_is_out_and_tried_again_by_the_next_command(evolved, sink):
    best = study().best()
    bad = Seeds.derive(0, "finals", 2)

    def broken(spec):
        return "broken" if spec.seeds == bad and sr_of(spec) == best.params["sr"] else None

    evolved.error = staticmethod(broken)
    assert evolve(make(), sink) == 0
    assert best.number not in {f.trial for f in chosen(study()).finalists}
    assert f"failed: trial {best.number} seed 2: lifetime 0: broken" in str(sink)
    evolved.error = staticmethod(Told.error)
    evolve(make(), sink)
    assert best.number in {f.trial for f in chosen(study()).finalists}


def test_where_all_finalists_fail_the_highest_fitness_stands(evolved, sink):
    evolved.error = staticmethod(lambda spec: "broken" if is_final(spec) else None)
    assert evolve(make(), sink) == 0
    assert chosen(study()).finalists == ()
    assert "no finalist could be trained again" in str(sink)


@pytest.mark.slow
def test_scores_of_a_set_of_environments_are_normalised(told, sink):
    Path("sets.toml").write_text(
        '[sets]\nToys = ["CartPole-v1", "Acrobot-v1"]\n'
        "[target_returns]\nCartPole-v1 = 300.0\nAcrobot-v1 = 1000.0\n"
        "[random_returns]\nCartPole-v1 = 20.0\nAcrobot-v1 = -500.0\n"
    )
    settings = dataclasses.asdict(make()) | {"env_type": "Toys", "sets": "sets.toml", "nb_res": 1}
    for name in ("env_id", "context", "context_set"):
        del settings[name]
    assert evolve(GeneralizationConfig(**settings), sink) == 0
    assert "8 trials x 2 environments x 2 seeds x 128 steps and up to 18 lifetimes in finals" in (
        str(sink)
    )
    title = "finals: 3 finalists x 2 environments x 3 fresh seeds x 128 steps, 1 worker"
    assert title in sink.lines
    assert any(re.match(r"trial \d+ +seed +0  score -?[\d.]+$", line) for line in sink.lines)
    evolved = study("Toys_1_main_0.128k_steps")
    trials = study(f"{evolved.name}_finals").trials("COMPLETE")
    for trial in trials:
        records = lifetime_records(trial)
        tasks = [records[i].spec.task.env_id for i in sorted(records)]
        assert tasks == ["CartPole-v1", "Acrobot-v1"]
        expected = [(records[0].fitness - 20) / 280, (records[1].fitness + 500) / 1500]
        assert trial.value == pytest.approx(np.mean(expected))
    best = evolved.best()
    (one,) = [f for f in chosen(evolved).finalists if f.trial == best.number]
    assert np.mean(one.proposed) == pytest.approx(best.value)
    assert len(one.proposed) == 2


def test_flags_that_cannot_be(told):
    with pytest.raises(UserError, match="--finalists must be at least 0"):
        make(finalists=-1)
    with pytest.raises(UserError, match="--finalist_seeds must be at least 1"):
        make(finalist_seeds=0)
    with pytest.raises(UserError, match="--finalist_seeds must be at most"):
        make(finalist_seeds=10**7)
    for finalists in (None, 0):
        with pytest.raises(UserError, match="--finalist_seeds 3 is for finals, which need"):
            make(finalists=finalists, finalist_seeds=3)
    with pytest.raises(UserError, match="--finalists 2 holds finals, and --published_code has"):
        make(published_code=True)
    assert make(finalists=0, published_code=True).finalists == 0


# -- what takes the winner --


def won_by(trial):
    """Have the finals won by the mean, or by a trial."""
    stored = study().optuna.user_attrs[WINNER]
    (winner,) = [f for f in stored["finalists"] if f["trial"] == trial]
    study().optuna.set_user_attr(WINNER, stored | {"winner": winner})
    return chosen(study()).winner


@pytest.mark.parametrize("mean", [False, True])
def test_a_test_takes_the_winner(mean, told, quick, sink, monkeypatch):
    evolve(make(learner_config=quick, engine="sb3", finalist_seeds=1), sink)
    others = {f.trial for f in chosen(study()).finalists} - {study().best().number, None}
    winner = won_by(None if mean else others.pop())
    monkeypatch.setattr("erl.executors.local.LocalExecutor", InlineExecutor)
    test = ComparisonConfig(
        storage=STORAGE,
        env_id="CartPole-v1",
        HP_training_steps=128,
        training_steps=64,
        nb_seeds=2,
        arms="RES_PPO_0.0003",
        workers=1,
    )
    assert compare(test, sink) == 0
    name = f"{NAME}_{winner.slug}_test_0.064k_steps"
    assert winner.slug == ("mean_8" if mean else f"trial_{winner.trial}")
    assert Study(STORAGE, name).config.params == winner.params
    line = next(line for line in sink.lines if line.startswith("evolved:"))
    assert line.startswith(f"evolved:  {winner.title}, {winner.reached}; return ")
    assert line.endswith(" as RES_PPO_0.0003 on test seeds (2 seeds, after 64 steps)")
    (found,) = reached_in_tests(study().optuna.user_attrs, winner).values()
    assert line.endswith(f"; {found.line}")
    assert (found.seeds, found.steps, found.env_id, found.interval) == (2, 64, None, None)
    # The evolution says it too: in `studies show`, in its note, and when it is run again.
    shown = Lines()
    assert show_study(ShowConfig(storage=STORAGE, study=NAME), shown) == 0
    assert shown.lines[shown.lines.index(f"tests of {winner.title}:") + 1] == (
        f"  {found.line}: {name}"
    )
    # Finals say what each finalist reached in them.
    assert show_study(ShowConfig(storage=STORAGE, study=f"{NAME}_finals"), shown) == 0
    again = f"fitness {with_interval(winner.again)} trained again (1 seed)"
    assert f"  {winner.title}, {again}" in shown.lines
    note = get_note(study().optuna)
    assert _plain(f"{winner.reached}; {found.line}") in note
    assert command("test", "--study", NAME) in note
    # Another winner has not been tested.
    assert reached_in_tests(study().optuna.user_attrs, replace(winner, trial=77, mean=None)) == {}


def test_a_test_in_another_environment_is_told_apart():
    one = Finalist(3, None, {}, 5.0)
    test = TestStudy(EvolutionStudy(env_id="Swimmer-v4"), {}, 1000, "sb3", env_id="Ant-v4")
    found = reached_by(one, "RES_PPO", test, [1.0, 2.0, 3.0], 1000)
    assert from_json(Reached, to_json(found)) == found
    assert found.line == (
        "return 2 [-0.4841, 4.484] as RES_PPO on test seeds in Ant-v4 (3 seeds, after 1,000 steps)"
    )
    other = replace(test, env_kwargs={"ctrl_cost_weight": 0.1})
    other = reached_by(one, "RES_PPO", other, [2.0], 1000)
    assert other.line == (
        'return 2 as RES_PPO on test seeds in Ant-v4 with {"ctrl_cost_weight": 0.1} (1 seed, after '
        "1,000 steps)"
    )
