"""Looks of agents are told apart, and stay; names and powers of ten are shown as they are."""

import random

import pandas as pd
import pytest
from figure_fixtures import lifetimes, space, trials

from erl.experiments.arms import known_names
from erl.figures import evolution, learning
from erl.figures.style import (
    COLOURS,
    LOOKS,
    agent_looks,
    caption,
    caption_of,
    logarithmic,
    looks,
    new,
    save,
    styled,
)
from erl.studies.configuration import EvolutionStudy

SETTINGS = {"sr": 1.0, "learner.gamma": 0.9}


@pytest.mark.parametrize(
    ("evolved", "params"),
    [
        ({}, SETTINGS),
        ({"del_obs": True}, SETTINGS),  # three learning rates
        ({}, {"sr": 1.0, "learner.learning_rate": 0.001}),
        ({"learner": "SAC"}, {"sr": 1.0}),
        ({"learner": "RecurrentPPO"}, {"sr": 1.0}),
        ({"context": "module:Class", "evolve": "context.rate=0.1:1.0"}, SETTINGS),
        ({"nb_res": 0}, SETTINGS),
    ],
)
def test_agents_of_a_test_are_told_apart_alike_in_every_figure(evolved, params):
    names = known_names(EvolutionStudy(env_id="Swimmer-v4", **evolved), params)
    found = agent_looks(names)
    for seen in ("colour", "marker"):
        assert len({(getattr(look, seen), look.line) for look in found.values()}) == len(names)
    assert all(look.colour in COLOURS for look in found.values())
    for k in range(len(names)):
        some = random.Random(k).sample(names, k + 1)
        assert agent_looks(some) == {name: found[name] for name in some}


def test_agents_of_one_colour_are_of_one_kind():
    names = known_names(EvolutionStudy(env_id="Swimmer-v4", del_obs=True), SETTINGS)
    by_colour = {}
    for name, look in agent_looks(names).items():
        by_colour.setdefault(look.colour, []).append(name)
    assert [each for each in by_colour.values() if len(each) > 1] == [
        ["RES_PPO_0.0001", "RES_PPO_0.00005"],
        ["STACK_PPO", "INPUTS_PPO"],
        ["RecurrentPPO", "INPUTS_RecurrentPPO"],
    ]


def test_other_agents_take_what_is_free():
    names = ["RES_PPO", "RES_PPO_0.0003", *(f"log {k}" for k in range(40))]
    found = agent_looks(names)
    assert [*found] == names
    assert len({(look.colour, look.line) for look in found.values()}) == len(names)
    assert len({found[name].colour for name in names[:8]}) == 8


def test_names_are_in_legends_as_they_are(lifetimes, tmp_path):
    """Matplotlib leaves out those that begin with `_`, and reads dollars as mathematics."""
    names = {"PPO": "_old", "RES_PPO": "$x_$a", "STACK_PPO": "_new"}
    named = lifetimes.assign(arm=lifetimes.arm.map(names))
    for draw in (learning.learning_curves, learning.sample_efficiency):
        figure = draw(named, about="With arguments {a: '$x_y$'}.")
        [shown] = figure.legends
        assert [text.get_text() for text in shown.get_texts()] == [*names.values()]
        assert caption_of(figure).endswith("{a: '$x_y$'}.")
        assert not any(text.get_parse_math() for text in shown.get_texts())
        save(figure, tmp_path, "figure", ["png"])
    figure = learning.interquartile_means(named)
    save(figure, tmp_path, "means", ["png"])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [*names.values()]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (1e-4, 1e2, ["10⁻⁴", "10⁻²", "10⁰", "10²"]),
        (0.3, 0.9, ["3×10⁻¹", "4×10⁻¹", "6×10⁻¹"]),
    ],
)
def test_powers_of_ten_are_no_mathematics(low, high, texts):
    @styled
    def draw():
        figure, axes = new()
        axes.plot([low, high], [low, high])
        for which in ("x", "y"):
            logarithmic(axes, which)
        return figure

    figure = draw()
    figure.draw_without_rendering()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        found = [label.get_text() for label in axis.get_ticklabels(which="both")]
        assert {*texts} <= {*found}
        assert not [text for text in found if set(text) & set("$\\{}^")]


def test_every_logarithmic_axis_has_plain_powers(trials, space):
    for figure in (evolution.slices(trials, space), evolution.contours(trials, space)):
        figure.draw_without_rendering()
        found = [t.get_text() for t in figure.axes[0].get_xticklabels()]
        assert "10⁻²" in found


def test_a_legend_leaves_the_axes_their_height(lifetimes):
    heights = []
    for n in (3, 32):
        some = lifetimes[lifetimes.arm == "PPO"]
        many = [some.assign(arm=f"agent_{k}_lr_0.0003") for k in range(n)]
        figure = learning.learning_curves(pd.concat(many))
        figure.draw_without_rendering()
        axes = figure.axes[0].get_window_extent().height / figure.dpi
        heights.append(axes)
        [legend] = figure.legends
        assert legend.get_window_extent().y0 >= figure.axes[0].get_window_extent().y1
    assert heights[1] == pytest.approx(heights[0], abs=0.2)
    assert heights[1] > 2.5


def test_a_caption_says_that_of_more_than_128_agents_some_look_alike(lifetimes):
    one = lifetimes[(lifetimes.arm == "PPO") & (lifetimes.seed < 1)]
    for n, said in ((128, False), (130, True)):
        many = pd.concat([one.assign(arm=f"agent {k}") for k in range(n)])
        caption = caption_of(learning.learning_curves(many))
        assert ("Some look alike: 130 are drawn in 128 ways." in caption) == said


def test_a_caption_stays_on_the_page():
    figure = styled(new)()[0]
    styled(caption)(figure, *["RANDOM_RES_PPO 1 OF 10 SEEDS, NOREC_RES_PPO WITHOUT W."] * 5)
    figure.draw_without_rendering()
    written, axes = figure._supxlabel.get_window_extent(), figure.axes[0].bbox
    assert figure.bbox.x0 <= written.x0 < 0.9 * figure.bbox.x1 < written.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= written.y0 < written.y1 < axes.y0
    assert axes.height > 2.5 * figure.dpi


@pytest.mark.parametrize("seen", ["colour", "marker"])
def test_no_two_of_all_looks_are_equal(seen):
    found = looks(range(LOOKS)).values()
    assert len({(getattr(look, seen), look.line) for look in found}) == LOOKS
