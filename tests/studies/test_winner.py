"""What an evolution hands over, as studies store and show it."""

from told_lifetimes import NAME, make, study

from erl.cli import figure
from erl.experiments.evolution import evolve
from erl.figures.report import _what_was_run
from erl.studies.commands import (
    CopyConfig,
    ListConfig,
    ShowConfig,
    copy_study,
    list_studies,
    show_study,
)
from erl.studies.data import evolved_reservoirs, read_study
from erl.studies.storage import DEFAULT_STORAGE, open_storage, study_names
from erl.studies.study import Study
from erl.studies.winner import WINNER, Choice, Finalist, choose, chosen, proposed_by, without_finals
from erl.worlds.specification import from_json, to_json

TRIAL = Finalist(7, None, {"sr": 1.0}, 436.0, (430.0, 442.0), (290.0, 300.0, 313.0))
MEAN = Finalist(None, 30, {"sr": 1.1}, None, (), (200.0, 201.0, 199.0))


def test_what_a_finalist_reached_is_said_with_intervals_and_seeds():
    choice = choose([MEAN, TRIAL], 30)
    assert choice.winner.trial == 7
    said = choice.winner.reached
    assert said.startswith("fitness 436.00 [359.76, 512.24] when proposed (2 seeds), 301.00 [272.3")
    assert "lived again (3 seeds)" in said
    assert said.endswith("expected on new seeds")
    assert choice.finalists[1].reached.startswith("fitness 200.00 [197.52, 202.48] lived again")
    assert (TRIAL.slug, MEAN.slug) == ("trial_7", "mean_30")
    assert Finalist(3, None, {}, 5.0, (5.0,)).reached == "fitness 5 when proposed (1 seed)"
    assert Finalist(3, None, {}, 5.0).reached == "fitness 5 when proposed"


def test_a_choice_is_stored_without_loss():
    choice = choose([MEAN, TRIAL], 30)
    assert from_json(Choice, to_json(choice)) == choice
    assert choose([], 30) is None


def test_of_equals_the_earlier_trial_wins():
    equals = [Finalist(k, None, {"sr": float(k)}, 1.0, (1.0,), (1.0, 1.0)) for k in (5, 2, 9)]
    assert choose(equals, 10).winner.trial == 2


def test_finals_are_part_of_their_evolution_where_a_study_is_meant():
    assert without_finals(["a", "a_finals", "b_finals"]) == ["a", "b_finals"]


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
    assert f"  winner's fitness {figure(choice.winner.expected)}  " in rows[NAME]
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


def test_a_copy_has_the_finals_too(told, sink):
    evolve(make(), sink)
    assert copy_study(CopyConfig(to="sqlite:///copy.db", to_name="other"), sink) == 0
    names = study_names(open_storage("sqlite:///copy.db"))
    assert sorted(names) == ["other", "other_finals"]
    assert chosen(Study("sqlite:///copy.db", "other")) == chosen(study())


def test_scores_that_another_version_stored_are_not_known(told, sink):
    evolve(make(finalists=0, nb_trials=1), sink)
    trial = study().best()
    other = trial.system_attrs["lifetime:0"] | {"unknown": 1}
    trial.system_attrs = trial.system_attrs | {"lifetime:0": other}
    finalist = proposed_by(trial, study().config.score)
    assert (finalist.trial, finalist.fitness, finalist.proposed) == (0, trial.value, ())
