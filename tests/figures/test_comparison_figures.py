"""What comparisons draw and write is what they were given."""

import csv
import itertools

import numpy as np
import pandas as pd
import pytest
from figure_fixtures import lifetimes

from erl.errors import UserError
from erl.figures import comparison, learning
from erl.figures.style import caption_of
from erl.statistics import (
    bootstrap_interval,
    holm,
    improvement_interval,
    interquartile_mean,
    mann_whitney,
    probability_of_improvement,
)


def scores(lifetimes, arm):
    frame = lifetimes[(lifetimes.arm == arm) & (lifetimes.state == "COMPLETE")]
    return frame.training_return.to_numpy(float)


def test_a_family_is_every_arm_against_the_baseline(lifetimes):
    table = comparison.family(lifetimes)
    assert list(table.arm) == ["PPO", "RES_PPO", "STACK_PPO"]
    assert list(table.seeds) == [6, 6, 5]
    res = table.iloc[1]
    x, y = scores(lifetimes, "RES_PPO"), scores(lifetimes, "PPO")
    assert res.iqm == interquartile_mean(x)
    assert (res.iqm_low, res.iqm_high) == bootstrap_interval(x, interquartile_mean)
    assert res.probability == probability_of_improvement(x, y) == 1.0
    assert (res.low, res.high) == improvement_interval(x, y)
    ps = [mann_whitney(scores(lifetimes, a), y) for a in ("RES_PPO", "STACK_PPO")]
    assert list(table.p[1:]) == ps
    assert list(table.p_holm[1:]) == list(holm(ps))
    assert table.iloc[0][["probability", "p", "p_holm"]].isna().all()
    other = comparison.family(lifetimes, "RES_PPO")
    assert other.probability[0] == 0.0
    with pytest.raises(UserError, match=r"no arm is called 'RES_PP'; did you mean RES_PPO"):
        comparison.family(lifetimes, "RES_PP")
    failed = lifetimes.assign(state=lifetimes.state.where(lifetimes.arm != "PPO", "FAIL"))
    with pytest.raises(UserError, match="no finished lifetime of PPO, with which others are"):
        comparison.family(failed, "PPO")
    with pytest.raises(UserError, match="one arm only, PPO"):
        comparison.family(lifetimes[lifetimes.arm == "PPO"])


def test_the_probability_of_improvement(lifetimes):
    figure = comparison.improvement(lifetimes)
    axes = figure.axes[0]
    table = comparison.family(lifetimes)
    assert list(axes.lines[1].get_xdata()) == [table.probability[1]]
    assert list(axes.lines[2].get_xdata()) == [table.low[2], table.high[2]]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["RES_PPO", "STACK_PPO"]
    assert axes.texts[0].get_text() == f"p = {table.p_holm[1]:.2g} *"
    assert "Holm's method for 2 comparisons" in caption_of(figure)
    lines = learning.learning_curves(lifetimes).axes[0].lines
    colours = {x.get_label(): x.get_color() for x in lines}
    drawn = [x.get_color() for x in axes.lines[:4:2]]
    assert drawn == [colours["RES_PPO"], colours["STACK_PPO"]]
    (mark,) = (x for x in axes.lines if list(x.get_xdata()) == [1.0])  # RES_PPO wins in every pair
    assert not mark.get_clip_on()
    assert mark.get_markeredgecolor() == "white"


def test_what_an_interval_of_improvement_is_worth_is_said_where_there_is_one(lifetimes):
    without = "One seed, of the agent or of PPO, hence no interval: "
    no_width = "An interval without width says only"
    said = caption_of(comparison.improvement(lifetimes))  # RES_PPO wins in every pair
    assert no_width in said
    assert without not in said
    one = lifetimes[(lifetimes.seed == 0) | (lifetimes.arm != "RES_PPO")]
    said = caption_of(comparison.improvement(one))
    assert f"{without}RES_PPO." in said
    assert no_width not in said
    said = caption_of(comparison.improvement(one[one.arm != "STACK_PPO"]))
    assert "Holm's method for 1 comparison." in said
    one = lifetimes[(lifetimes.seed == 0) | (lifetimes.arm != "PPO")]
    assert f"{without}RES_PPO, STACK_PPO." in caption_of(comparison.improvement(one))


def test_performance_profiles(lifetimes):
    axes = comparison.performance_profiles(lifetimes).axes[0]
    assert [x.get_label() for x in axes.lines] == ["PPO", "RES_PPO", "STACK_PPO"]
    for drawn in axes.lines:
        values = scores(lifetimes, drawn.get_label())
        shares = [np.mean(values > t) for t in drawn.get_xdata()]
        assert list(drawn.get_ydata()) == shares


def test_generalisation(lifetimes):
    swapped = lifetimes.replace({"arm": {"PPO": "RES_PPO", "RES_PPO": "PPO"}})
    tests = {
        ("Ant+Swimmer", "HalfCheetah"): (lifetimes, "PPO", "RES_PPO"),
        ("Ant+Swimmer", "Hopper"): (swapped, "PPO", "RES_PPO"),
        ("Ant", "Hopper"): (lifetimes, "PPO", "STACK_PPO"),
    }
    matrix = comparison.generalisation(tests)
    assert list(matrix.probability[:2]) == [1.0, 0.0]
    assert matrix.iqm[1] == interquartile_mean(scores(lifetimes, "PPO"))
    figure = comparison.generalisation_matrix(matrix)
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (2, 2)
    assert list(drawn[0]) == [1.0, 0.0]
    assert np.ma.filled(drawn, np.nan)[1, 1] == matrix.probability[2]
    assert np.isnan(np.ma.filled(drawn, np.nan)[1, 0])
    row = matrix.iloc[2]
    assert (row.seeds, row.baseline_seeds) == (5, 6)
    assert (row.low, row.high) == improvement_interval(
        scores(lifetimes, "STACK_PPO"), scores(lifetimes, "PPO")
    )
    interval = f"[{row.low:.2f}, {row.high:.2f}]"
    assert figure.axes[0].texts[2].get_text().splitlines()[:2] == [
        f"{row.probability:.2f}",
        interval,
    ]
    assert "the interquartile mean of the return of the last training episodes" in caption_of(
        figure
    )
    assert figure.axes[0].get_ylabel() == "reservoir"  # it may be one that was not evolved
    assert [" ".join(a.get_ylabel().split()) for a in figure.axes[1:]] == [
        "P(agent > learner alone)"
    ]
    assert "5 to 6 seeds of each agent." in caption_of(figure)
    assert "one seed" not in caption_of(figure)
    long = matrix.assign(tested_on=["A-v0 with hidden velocities", "B-v0, 300,000 steps", "B-v0"])
    axes = comparison.generalisation_matrix(long).axes[0]
    names = [t.get_text() for t in axes.get_xticklabels()]
    assert names == ["A-v0 with hidden\nvelocities", "B-v0, 300,000\nsteps", "B-v0"]
    tests = {("Ant", "Hopper"): (lifetimes, "PPO", "RES_SAC")}
    with pytest.raises(UserError, match="the test on Hopper has no finished lifetime of RES_SAC"):
        comparison.generalisation(tests)


@pytest.mark.parametrize("columns", [4, 6])
@pytest.mark.parametrize("name", ["Env{}", "popgym-NoisyPositionOnlyCartPoleMedium-v{}"])
def test_texts_of_a_wide_matrix_do_not_overlap(lifetimes, columns, name):
    big = lifetimes.assign(training_return=lifetimes.training_return - 1_234_567)
    one = comparison.generalisation({("A", "B"): (big, "PPO", "STACK_PPO")})
    many = pd.concat([one.assign(tested_on=name.format(k)) for k in range(columns)])
    many.attrs = one.attrs
    figure = comparison.generalisation_matrix(many)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for texts in (axes.texts, axes.get_xticklabels()):
        boxes = [text.get_window_extent() for text in texts]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert all(t.get_window_extent().height < axes.bbox.height for t in axes.texts)


def test_a_matrix_says_what_few_seeds_are_worth(lifetimes):
    few = lifetimes[lifetimes.seed < 2]
    one = lifetimes[(lifetimes.seed == 0) | (lifetimes.arm == "PPO")]
    matrix = comparison.generalisation(
        {("A", "B"): (few, "PPO", "RES_PPO"), ("A", "C"): (one, "PPO", "RES_PPO")}
    )
    figure = comparison.generalisation_matrix(matrix)
    assert [t.get_text().splitlines()[1] for t in figure.axes[0].texts] == ["[1.00, 1.00]", "-"]
    said = caption_of(figure)
    assert "1 to 6 seeds of each agent. No interval where one of them has one seed." in said
    assert "With 2 seeds the intervals mean nothing" in said


def test_tables_say_the_same_in_every_form(lifetimes, tmp_path):
    table = comparison.results_table(lifetimes, thresholds=[70.0])
    family = comparison.family(lifetimes)
    assert list(table["IQM"]) == [f"{x:,.4g}" for x in family.iqm]
    assert table["P(arm > PPO)"][0] == "-"
    assert table["P(arm > PPO)"][1] == "1.00"
    assert table["median steps to 70"][0] == "- (0/6)"
    assert table["median steps to 70"][1].endswith(" (6/6)")
    files = comparison.write_tables(table, tmp_path / "tables", "results", "50 % better_")
    assert [f.name for f in files] == ["results.csv", "results.md", "results.tex"]
    rows = list(csv.reader(files[0].open()))
    assert rows[0] == list(table.columns)
    assert rows[2] == list(table.iloc[1])
    markdown = files[1].read_text().splitlines()
    assert len(markdown) == 7
    assert markdown[-1] == table.attrs["remark"]
    assert markdown[3].split(" | ")[2] == table["IQM"][1]
    latex = files[2].read_text()
    assert r"RES\_PPO & 6 & " in latex
    assert r"\caption{50 \% better\_ IQM: interquartile mean of the return" in latex
    assert r"P(arm $>$ PPO)" in latex
    assert latex.count(r"\\") == 4


def test_a_remark_on_few_seeds_is_below_a_table(lifetimes, tmp_path):
    table = comparison.results_table(lifetimes[lifetimes.seed < 3])
    _, markdown, latex = comparison.write_tables(table, tmp_path, "results", "Returns.")
    said = "With 3 seeds the intervals are rough; 10 are better."
    assert markdown.read_text().endswith(f" {said}\n")
    assert "With 3 seeds the intervals are rough" in latex.read_text()


def test_a_table_says_what_its_columns_are(lifetimes):
    said = comparison.results_table(lifetimes.assign(ep_eval=10)).attrs["remark"]
    for words in (
        "IQM: interquartile mean of the return of the last 10 training episodes.",
        "Intervals: 95 % percentile bootstrap over seeds.",
        "P: probability that a seed of an agent does better than one of PPO.",
        "Mann and Whitney's test, two-sided, corrected by Holm's method for 2 comparisons.",
        "Failed and left out: STACK_PPO 1 of 6 seeds.",
    ):
        assert words in said


def test_p_values_are_of_the_measure_that_the_evolution_selected_for(lifetimes):
    no_p = "No p: the evolution selected for the return of the last training episodes."
    for column in ("training_return", "final_return"):
        of = {"column": column, "selected": "training_return"}
        tested = column == "training_return"
        table = comparison.results_table(lifetimes, **of)
        assert ("p (Holm)" in table) == tested
        assert (no_p in table.attrs["remark"]) != tested
        figure = comparison.improvement(lifetimes, **of)
        assert bool(figure.axes[0].texts) == tested
        assert (no_p in caption_of(figure)) != tested
    assert "p (Holm)" in comparison.results_table(lifetimes, column="final_return")


def test_a_test_without_one_of_both_agents_leaves_the_matrix_to_the_others(lifetimes):
    alone = lifetimes[lifetimes.arm != "PPO"]
    tests = {
        ("Ant", "Hopper"): (lifetimes, "PPO", "STACK_PPO"),
        ("Ant", "Swimmer"): (alone, "PPO", "RES_PPO"),
        ("Ant", "Walker"): (pd.DataFrame(), "PPO", "RES_PPO"),
    }
    matrix = comparison.generalisation(tests)
    assert list(matrix.tested_on) == ["Hopper"]
    said = caption_of(comparison.generalisation_matrix(matrix))
    assert "Left out: evolved on Ant, tested on Swimmer, no finished lifetime of PPO; " in said
    assert "tested on Walker, no finished lifetime of RES_PPO." in said
    assert "Failed and left out: STACK_PPO 1 of 6 seeds on Hopper." in said


def test_thresholds_of_training_are_in_tables_of_training_only(lifetimes):
    table = comparison.results_table(lifetimes, thresholds=[70.01, 70.02])
    assert [c for c in table if "median" in c] == ["median steps to 70.01", "median steps to 70.02"]
    for thresholds in (None, [70.0]):
        table = comparison.results_table(lifetimes, None, "final_return", (), thresholds)
        assert not [c for c in table if "median" in c]


def test_an_arm_without_curves_has_no_steps_to_a_threshold(lifetimes):
    lifetimes["curve"] = [
        () if arm == "STACK_PPO" else c for arm, c in zip(lifetimes.arm, lifetimes.curve)
    ]
    table = comparison.results_table(lifetimes, thresholds=[70.0])
    assert table["median steps to 70"].map(lambda text: text == "-").tolist() == [
        False,
        False,
        True,
    ]


def test_a_table_refuses_a_baseline_that_is_not_there(lifetimes):
    with pytest.raises(UserError, match="no arm is called 'RES_PP'"):
        comparison.results_table(lifetimes, "RES_PP")
    with pytest.raises(UserError, match="no arm is called 'RES_PPO'"):
        comparison.results_table(lifetimes[lifetimes.arm == "PPO"], "RES_PPO")


def test_a_table_of_one_arm_has_no_comparison(lifetimes):
    table = comparison.results_table(lifetimes[lifetimes.arm == "PPO"].assign(curve=[()] * 6))
    assert list(table.columns) == ["arm", "seeds", "IQM", "95 % interval"]


def test_special_characters_of_latex():
    table = pd.DataFrame({"a": [r"x_1 & \y {50 %} #~^$"]})
    body = comparison.to_latex(table)
    escaped = r"x\_1 \& \textbackslash{}y \{50 \%\} \#\textasciitilde{}\textasciicircum{}\$ \\"
    assert escaped in body


def test_tables_that_cannot_be_written(lifetimes):
    with pytest.raises(UserError, match="cannot be written"):
        comparison.write_tables(comparison.results_table(lifetimes), "/proc/x", "t")
