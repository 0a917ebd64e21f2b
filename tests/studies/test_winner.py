"""What an evolution hands over, as studies store and show it."""

import itertools
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
import told_lifetimes
from conftest import Lines
from optuna_dashboard import get_note
from test_following import copied
from told_lifetimes import NAME, Told

from erl.cli import score_text
from erl.errors import UserError
from erl.experiments.display import DashboardNotes
from erl.experiments.evolution import evolve
from erl.figures.page import _what_was_run
from erl.search.noise import Expected
from erl.studies.artefacts import folder_of
from erl.studies.commands import ListConfig, ShowConfig, list_studies, show_study
from erl.studies.copying import CopyConfig, copy_study
from erl.studies.data import evolved_reservoirs, read_study
from erl.studies.following import UID
from erl.studies.notes import _plain
from erl.studies.storage import DEFAULT_STORAGE, open_storage, study_names
from erl.studies.study import Study
from erl.studies.winner import (
    FINALS_OF,
    TESTED,
    WINNER,
    Choice,
    Finalist,
    choose,
    chosen,
    finals_name,
    proposed_by,
    reached_in_tests,
    without_finals,
)
from erl.worlds.specification import Seeds, from_json, to_json

make, study = (
    partial(f, storage=DEFAULT_STORAGE) for f in (told_lifetimes.make, told_lifetimes.study)
)
TRIAL = Finalist(7, None, {"sr": 1.0}, 436.0, (430.0, 442.0), (290.0, 300.0, 313.0))
MEAN = Finalist(None, 30, {"sr": 1.1}, None, (), (200.0, 201.0, 199.0))


def test_what_a_finalist_reached_is_said_with_intervals_and_seeds():
    choice = choose([MEAN, TRIAL], 30)
    assert choice.winner.trial == 7
    said = choice.winner.reached
    assert said.startswith("fitness 436.00 when proposed (2 seeds), 301.00 [272.3")
    assert "trained again (3 seeds)" in said
    assert said.endswith("expected on new seeds")
    assert choice.finalists[1].reached.startswith("fitness 200.00 [197.52, 202.48] trained again")
    assert (TRIAL.slug, MEAN.slug) == ("trial_7", "mean_30")
    assert Finalist(3, None, {}, 5.0, (5.0,)).reached == "fitness 5 when proposed (1 seed)"
    assert Finalist(3, None, {}, 5.0).reached == "fitness 5 when proposed"
    # The highest fitness of many has no interval of its own seeds.
    best = Finalist(3, None, {}, 5.0, (4.0, 5.0, 6.0))
    assert best.reached == "fitness 5 when proposed (3 seeds)"


def test_two_seeds_are_said_without_an_interval():
    pairs = [replace(TRIAL, again=(290.0, 300.0)), replace(MEAN, again=(200.0, 210.0))]
    winner = choose(pairs, 30).winner
    assert winner.interval is None
    assert winner.reached == (
        f"fitness 436.00 when proposed (2 seeds), 295.00 trained again (2 seeds), "
        f"{score_text(winner.expected)} expected on new seeds"
    )


def test_gaps_are_no_scores():
    again = [[float("nan"), 290.0, 300.0], [200.0, 201.0, 199.0]]
    choice = choose([replace(TRIAL, again=(290.0, 300.0)), MEAN], 30, again)
    assert "295.00 trained again (2 seeds)" in choice.winner.reached
    json.dumps(to_json(choice), allow_nan=False)
    assert from_json(Choice, to_json(choice)) == choice


def test_a_choice_is_stored_without_loss():
    choice = choose([MEAN, TRIAL], 30)
    assert from_json(Choice, to_json(choice)) == choice
    assert choose([], 30) is None


def test_of_equals_the_earlier_trial_wins():
    equals = [Finalist(k, None, {"sr": float(k)}, 1.0, (1.0,), (1.0, 1.0)) for k in (5, 2, 9)]
    assert choose(equals, 10).winner.trial == 2


def test_a_processors_rounding_decides_nothing(monkeypatch):
    three = [Finalist(k, None, {"sr": 1.0}, 1.0, (1.0,), (1.0, 1.0)) for k in (5, 2, 9)]
    nothing = np.full(3, np.nan)
    found = Expected(np.array([0.7 + 1e-15, 0.7, 0.7 - 1e-9]), nothing, nothing)
    monkeypatch.setattr("erl.studies.winner.expect", lambda *_: found)
    assert [f.trial for f in choose(three, 10).finalists] == [2, 5, 9]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A small evolution and its finals."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("evolved")
        patch.chdir(folder)
        patch.setattr("erl.executors.local.LocalExecutor", Told)
        assert evolve(small(), Lines()) == 0
    return folder / "studies.db"


def small(**options):
    return make(**({"nb_trials": 4, "finalist_seeds": 2} | options))


@pytest.fixture
def evolved(told, database):
    """That evolution, to go on with."""
    shutil.copy(database, "studies.db")
    return told


def named(**uids):
    """An empty database with studies of these names, known by these."""
    storage = open_storage("sqlite:///named.db", create=True)
    for name, attrs in uids.items():
        optuna.create_study(storage=storage, study_name=name)
        study_id = storage.get_study_id_from_name(name)
        for key, value in attrs.items():
            storage.set_study_user_attr(study_id, key, value)
    return storage


def test_finals_are_part_of_their_evolution_where_a_study_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    link = {FINALS_OF: "1"}
    old = {"config": {"kind": "finals"}}
    storage = named(a={}, a_finals=old, b_finals=old, c={UID: "1"}, old_finals=link | old)
    assert without_finals(storage) == ["a", "b_finals", "c"]
    assert finals_name(storage, "a") == "a_finals"  # of an older version, by their name
    assert finals_name(storage, "c") == "old_finals"
    # Another evolution that has the old name now has finals of its own.
    assert finals_name(storage, "old") == "old_finals_2"
    storage.delete_study(storage.get_study_id_from_name("c"))
    assert without_finals(storage) == ["a", "b_finals", "old_finals"]


def test_another_study_with_the_name_of_finals_is_none(evolved, sink):
    """An evolution that was copied to that name."""
    Study(DEFAULT_STORAGE, f"{NAME}_finals").storage.delete_study(study(f"{NAME}_finals")._id)
    study().optuna.set_user_attr(WINNER, None)
    target = {"to": DEFAULT_STORAGE, "to_name": f"{NAME}_finals"}
    assert copy_study(CopyConfig(study=NAME, **target), sink) == 0
    storage = open_storage(DEFAULT_STORAGE)
    assert sorted(without_finals(storage)) == [NAME, f"{NAME}_finals"]
    assert finals_name(storage, NAME) == f"{NAME}_finals_2"
    assert evolve(small(), sink) == 0
    assert len(chosen(study()).finalists) == 3
    assert sorted(without_finals(storage)) == [NAME, f"{NAME}_finals"]
    assert finals_name(storage, f"{NAME}_finals") == f"{NAME}_finals_finals"


@pytest.mark.slow
@pytest.mark.parametrize("renamed", [NAME, f"{NAME}_finals"])
def test_a_renamed_evolution_and_renamed_finals_find_each_other(renamed, evolved, sink):
    first = chosen(study())
    copied(DEFAULT_STORAGE, renamed, "new")
    name = "new" if renamed == NAME else NAME
    evolved.before = staticmethod(lambda spec: pytest.fail("lived once more"))
    assert evolve(small(study=name), sink) == 0
    assert chosen(study(name)) == first
    assert len(study_names(open_storage(DEFAULT_STORAGE))) == 2
    assert show_study(ShowConfig(), sink) == 0  # finals are no second study
    assert copy_study(CopyConfig(study=name, to="sqlite:///copy.db", to_name="other"), sink) == 0
    target = open_storage("sqlite:///copy.db")
    assert sorted(study_names(target)) == ["other", "other_finals"]
    copied("sqlite:///copy.db", "other", "another")  # a copy and its finals are linked too
    assert finals_name(target, "another") == "other_finals"
    assert without_finals(target) == ["another"]


def test_an_evolution_that_is_renamed_during_its_finals_keeps_them(told, sink):
    calls = itertools.count()

    def rename(spec):
        if spec.seeds.reservoir == Seeds.derive(0, "finals", 1).reservoir and not next(calls):
            copied(DEFAULT_STORAGE, NAME, "new")

    told.before = staticmethod(rename)
    assert evolve(small(), sink) == 0
    choice = chosen(study("new"))
    assert len(choice.finalists) == 3
    told.before = staticmethod(lambda spec: pytest.fail("lived once more"))
    assert evolve(small(study="new"), sink) == 0
    assert chosen(study("new")) == choice


def test_interrupted_finals_name_the_evolution_that_was_renamed(told, sink):
    def interrupt(spec):
        if spec.seeds.reservoir == Seeds.derive(0, "finals", 1).reservoir:
            copied(DEFAULT_STORAGE, NAME, "new")
            raise KeyboardInterrupt

    told.before = staticmethod(interrupt)
    assert evolve(small(), sink) == 130
    [said] = [line for line in sink.lines if " of the finals are finished" in line]
    assert said.endswith("; run the command again with --study new to continue")


def test_a_new_evolution_under_the_name_of_a_renamed_one_has_finals_of_its_own(evolved, sink):
    first = chosen(study())
    copied(DEFAULT_STORAGE, NAME, "new")
    evolve(small(seed=1), sink)
    assert chosen(study()) not in (None, first)
    assert chosen(study("new")) == first
    assert {t.state.name for t in study(f"{NAME}_finals_2").trials()} == {"COMPLETE"}


def test_notes_say_who_won_and_go_on_saying_it(evolved, sink):

    def note():
        return get_note(optuna.load_study(study_name=NAME, storage=DEFAULT_STORAGE))

    winner = chosen(study()).winner
    line = f"- **winner**: {_plain(f'{winner.title}, {winner.reached}')}\n"
    assert line in note()
    before = note()
    evolve(small(), sink)  # nothing is left to do
    assert note() == before
    DashboardNotes(study(), False, lambda name, trial: ()).study()  # the note while a command runs
    assert line in note()
    evolve(make(finalists=0, nb_trials=4), sink)
    assert "winner" not in note()
    assert "4 complete" in note()


def test_what_another_version_stored_of_a_winner_hides_no_study(evolved, sink):
    attrs = study().optuna.user_attrs
    later = {"winner": attrs[WINNER]["winner"] | {"new": 1}}
    study().optuna.set_user_attr(WINNER, attrs[WINNER] | later)
    study().optuna.set_user_attr(f"{TESTED}x", {"new": 1})
    assert list_studies(ListConfig(), sink) == 0
    assert sum(line.startswith(NAME) for line in sink.lines) == 2
    DashboardNotes(study(), False, lambda name, trial: ()).study()  # of an evolution that runs
    with pytest.raises(UserError, match="stored by another version"):
        chosen(study())
    assert reached_in_tests(study().optuna.user_attrs, TRIAL) == {}


def test_commands_and_figures_show_the_winner(told, sink):
    evolve(make(), sink)
    choice = chosen(study())
    assert show_study(ShowConfig(), sink) == 0  # finals are no second study
    (line,) = [line for line in sink.lines if line.startswith("winner of the finals")]
    assert line == "winner of the finals, after 8 of 8 trials:"
    for finalist in choice.finalists:
        assert f"  {finalist.title}, {finalist.reached}" in sink.lines
    assert list_studies(ListConfig(), sink) == 0
    rows = {line.split()[0]: line for line in sink.lines[-2:]}
    assert f"  winner's fitness {score_text(choice.winner.expected)}  " in rows[NAME]
    assert " finals " in rows[f"{NAME}_finals"]
    assert "fitness" not in rows[f"{NAME}_finals"]
    stored = study().optuna.user_attrs[WINNER]
    mean = next(f for f in stored["finalists"] if f["trial"] is None)
    study().optuna.set_user_attr(WINNER, stored | {"winner": mean})
    data = read_study(DEFAULT_STORAGE)
    assert data.choice.winner.mean == 8
    (reservoir,) = evolved_reservoirs(data)
    assert (reservoir.sr, reservoir.lr) == (mean["params"]["sr"], mean["params"]["lr"])
    assert "mean of the search after 8 trials, fitness" in "".join(_what_was_run(data))


@pytest.mark.slow
def test_a_copy_has_the_finals_too(told, sink):
    evolve(make(), sink)
    assert copy_study(CopyConfig(to="sqlite:///copy.db", to_name="other"), sink) == 0
    names = study_names(open_storage("sqlite:///copy.db"))
    assert sorted(names) == ["other", "other_finals"]
    assert chosen(Study("sqlite:///copy.db", "other")) == chosen(study())


def test_finals_of_an_evolution_that_is_replaced_by_one_without_go_too(evolved, sink):
    """Their files also; other studies stay, and finals that are copied there themselves."""
    Path("notes.txt").write_text("of finals")
    study(f"{NAME}_finals").attach("notes.txt")
    target = "sqlite:///copy.db"
    assert copy_study(CopyConfig(study=NAME, to=target), sink) == 0
    assert copy_study(CopyConfig(study=NAME, to=target, to_name="other"), sink) == 0
    replace_with_finals = CopyConfig(study=NAME, to=target, overwrite=True)
    assert copy_study(replace_with_finals, sink) == 0
    everything = [NAME, f"{NAME}_finals", "other", "other_finals"]
    assert sorted(study_names(open_storage(target))) == everything
    assert "is deleted" not in str(sink)
    finals = study(f"{NAME}_finals")
    finals.storage.delete_study(finals._id)
    assert copy_study(replace_with_finals, sink) == 0
    assert sorted(study_names(open_storage(target))) == [NAME, "other", "other_finals"]
    assert f"{NAME}_finals in {target}, the finals of what is replaced, is deleted" in sink.lines
    assert len(list(folder_of(target).iterdir())) == 1  # that of other_finals
    itself = CopyConfig(storage=target, study="other_finals", to=target, to_name="other")
    assert copy_study(replace(itself, overwrite=True), sink) == 0
    assert sorted(study_names(open_storage(target))) == [NAME, "other", "other_finals"]


def test_scores_that_another_version_stored_are_not_known(told, sink):
    evolve(make(finalists=None, nb_trials=1), sink)
    trial = study().best()
    other = trial.system_attrs["lifetime:0"] | {"unknown": 1}
    trial.system_attrs = trial.system_attrs | {"lifetime:0": other}
    finalist = proposed_by(trial, study().config.score)
    assert (finalist.trial, finalist.fitness, finalist.proposed) == (0, trial.value, ())
