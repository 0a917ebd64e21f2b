"""What figures of both levels draw is what they were given."""

import numpy as np
import pandas as pd
import pytest
from figure_fixtures import evolved, space, trials
from test_evolution_figures import line

from erl.errors import UserError
from erl.figures import evolution, learning, two_levels
from erl.figures.style import caption_of


def test_both_levels_with_learning_curves(trials, evolved):
    figure = two_levels.two_levels(trials, evolved, pd.DataFrame())
    done = trials[trials.state == "COMPLETE"].sort_values("fitness")
    titles = [a.get_title() for a in figure.axes[1:]]
    best, middle, worst = (int(done.trial.iloc[i]) for i in (-1, 4, 0))
    assert titles == [f"best: trial {best}", f"middle: trial {middle}", f"worst: trial {worst}"]
    generation, mean = line(figure.axes[0], "mean of the generation")
    assert list(generation) == [0, 1, 2]
    assert mean == pytest.approx(done.groupby("generation").fitness.mean())
    curve = np.array(evolved[evolved.trial == best].curve.iloc[0])
    drawn = figure.axes[1].lines[0].get_xydata()
    assert drawn[-1] == pytest.approx([1000, curve[-10:, 1].mean()])
    assert "2 seeds each" in caption_of(figure)


def test_of_equal_trials_the_first_is_the_best(trials, space):
    level = trials.assign(fitness=trials.fitness.where(trials.fitness.isna(), 1.0))
    assert two_levels.chosen_trials(level, level.trial)["best"] == 0
    axes = evolution.parallel_coordinates(level, space).axes[0]
    assert line(axes, "best trial")[1][0] == pytest.approx(space["sr"].unit(level.sr)[0])


def test_both_levels_with_an_evolution_inside(trials, evolved):
    inner = pd.DataFrame(
        {
            "trial": [0, 0, 0],
            "lifetime": [0, 0, 0],
            "steps": [10, 20, 30],
            "fitness": [[1.0, 2.0, 6.0], [2.0, None, 4.0], None],
            "champion_return": [None, 5.0, 7.0],
        }
    )
    figure = two_levels.two_levels(trials, evolved, inner, chosen={"this": 0})
    below = figure.axes[1]
    assert line(below, "champion")[1].tolist() == [5.0, 7.0]
    spread = two_levels.population_range(inner)
    assert spread.values.tolist() == [[10, 1, 6, 2], [20, 2, 4, 3]]
    corners = below.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == 6
    with pytest.raises(UserError, match="trial 3 has no fitness"):
        two_levels.two_levels(trials, evolved, inner, chosen={"failed": 3})


def test_both_levels_choose_among_trials_with_an_evolution_inside(trials, evolved):
    done = trials[trials.state == "COMPLETE"].sort_values("fitness")
    with_generations = done.trial.iloc[1:4]
    rows = {"trial": with_generations, "lifetime": 0, "steps": 10, "fitness": [[1.0, 2.0]] * 3}
    inner = pd.DataFrame(rows | {"champion_return": 1.5})
    figure = two_levels.two_levels(trials, evolved, inner)
    low, middle, high = with_generations
    assert [a.get_title() for a in figure.axes[1:]] == [
        f"best: trial {high}",
        f"middle: trial {middle}",
        f"worst: trial {low}",
    ]


def test_both_levels_show_learning_curves_where_no_generation_was_judged(trials, evolved):
    done = trials[trials.state == "COMPLETE"]
    inner = pd.DataFrame({"trial": done.trial, "lifetime": 0, "steps": 10, "fitness": None})
    figure = two_levels.two_levels(trials, evolved, inner.assign(champion_return=None))
    assert "learning curves of its lifetimes" in caption_of(figure)
    judged = inner.assign(fitness=[[1.0, 2.0]] * len(done), champion_return=None)
    [legend] = two_levels.two_levels(trials, evolved, judged).legends
    assert [t.get_text() for t in legend.get_texts()] == ["population"]
    # Individuals that come one by one have no range.
    single = inner.assign(fitness=[[1.5]] * len(done), champion_return=None)
    figure = two_levels.two_levels(trials, evolved, single)
    assert line(figure.axes[1], "individual")[1].tolist() == [1.5]
    assert "of the inner evolution (individual)" in caption_of(figure)


def test_both_levels_say_which_trials_are_above(trials, evolved):
    figure = two_levels.two_levels(trials, evolved, pd.DataFrame())
    counts = trials.state.value_counts()
    assert counts["FAIL"] == 1
    said = f"Above are the completed ones of {counts['COMPLETE']} complete, "
    assert said in caption_of(figure)
    whole = trials[trials.state == "COMPLETE"]
    assert "Above are" not in caption_of(two_levels.two_levels(whole, evolved, pd.DataFrame()))


def test_both_levels_of_a_test_name_agents_and_no_evolution_above(trials, evolved):
    agents = trials.drop(columns=["generation"]).assign(arm=["PPO", "ERL-Re2"] * 6)
    lived = evolved[evolved.lifetime == 0]
    lived = lived.assign(arm=lived.trial.map(dict(zip(agents.trial, agents.arm))))
    figure = two_levels.two_levels(agents, lived, pd.DataFrame())
    named = dict(zip(agents.trial, agents.arm))
    usual = learning.arm_looks(lived, lived)
    marks = figure.axes[0].lines[-3:]
    assert len({mark.get_marker() for mark in marks}) == 3
    for axes, title in zip(figure.axes[1:], ("best", "middle", "worst"), strict=True):
        first, agent = axes.get_title().split("\n")
        number = int(first.removeprefix(f"{title}: trial "))
        assert agent == named[number]
        look = usual[agent]
        assert {axes.title.get_color(), axes.lines[0].get_color()} == {look.colour}
        assert axes.lines[0].get_linestyle() == look.line
        [mark] = [m for m in marks if m.get_ydata()[0] == agents.fitness[number]]
        assert mark.get_color() == look.colour
    assert "Evolution over development" not in caption_of(figure)
    assert caption_of(figure).startswith("Fitness of trials (above) and development within 3")
    assert "best" not in [x.get_label() for x in figure.axes[0].lines]
    assert figure.axes[0].get_xlabel() == "trial"


def test_both_levels_count_the_seeds_of_each_environment(trials, evolved):
    places = [evolved.assign(env_id=name) for name in ("toys:A-v0", "B-v0", "C-v0")]
    figure = two_levels.two_levels(trials, pd.concat(places), pd.DataFrame())
    assert (
        ": learning curves of its lifetimes (mean of 10 points), 2 seeds each in 3 environments."
        in caption_of(figure)
    )
    lines = {x.get_label(): x.get_linestyle() for x in figure.axes[1].lines}
    assert {"A-v0", "B-v0", "C-v0"} <= {*lines}
    assert len({lines[name] for name in ("A-v0", "B-v0", "C-v0")}) == 3


def test_long_names_of_environments_leave_the_panels_their_room(trials, evolved):
    ids = ["popgym:popgym-NoisyPositionOnlyCartPoleMedium-v0", "popgym:popgym-CountRecallEasy-v0"]
    places = pd.concat([evolved.assign(env_id=name) for name in ids])
    figure = two_levels.two_levels(trials, places, pd.DataFrame())
    figure.draw_without_rendering()
    assert all(axes.bbox.width > 1.5 * figure.dpi for axes in figure.axes[1:])
    [legend] = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [name.split(":")[1] for name in ids]
    assert {handle.get_color() for handle in legend.legend_handles} == {"black"}
    assert not two_levels.two_levels(trials, evolved, pd.DataFrame()).legends


def test_a_chosen_trial_without_lifetimes_is_named(trials, evolved):
    """Above, its fitness is known."""
    said = "^trial 0 stores no lifetimes: it cannot be shown$"
    for stored in (evolved[evolved.trial != 0], pd.DataFrame()):
        with pytest.raises(UserError, match=said):
            two_levels.two_levels(trials, stored, pd.DataFrame(), chosen={"this": 0})
    row = {"trial": [1], "lifetime": [0], "steps": [10], "fitness": [[1.0, 2.0]]}
    with pytest.raises(UserError, match="trial 0 stores no generations of an inner evolution"):
        two_levels.two_levels(trials, evolved, pd.DataFrame(row), chosen={"this": 0})


def test_a_single_point_is_seen(trials, evolved):
    short = evolved.assign(curve=evolved.curve.map(lambda c: c[:3]))
    figure = two_levels.two_levels(trials.assign(generation=0), short, pd.DataFrame())
    assert line(figure.axes[0], "mean of the generation")[0].tolist() == [0]
    for axes in figure.axes:
        for drawn in axes.lines:
            if len(drawn.get_xdata()) == 1 and drawn.get_label() != "best":
                assert drawn.get_marker() != "None"
    assert "(mean of 3 points)" in caption_of(figure)
    row = {"trial": [0], "lifetime": [0], "steps": [10], "fitness": [[1.0, 2.0]]}
    inner = pd.DataFrame(row | {"champion_return": [1.5]})
    below = two_levels.two_levels(trials, evolved, inner, chosen={"this": 0}).axes[1]
    assert below.lines[0].get_marker() == "o"
    assert below.collections[0].get_segments()[0][:, 1].tolist() == [1.0, 2.0]
