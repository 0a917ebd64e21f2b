"""What figures of learning draw is what they were given."""

import math

import numpy as np
import pandas as pd
import pytest
from figure_fixtures import lifetimes

from erl.errors import UserError
from erl.figures import comparison, learning
from erl.figures.style import caption_of
from erl.statistics import bootstrap_interval, interquartile_mean, smoothed


def line(axes, label):
    (found,) = [x for x in axes.lines if x.get_label() == label]
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def test_learning_curves_are_interquartile_means_with_bands(lifetimes):
    figure = learning.learning_curves(lifetimes, order=["RES_PPO"])
    axes = figure.axes[0]
    assert [x.get_label() for x in axes.lines] == ["RES_PPO", "PPO", "STACK_PPO"]
    steps, values = line(axes, "PPO")
    part = lifetimes[lifetimes.arm == "PPO"]
    ends = [smoothed(c)[-1][1] for c in part.curve]
    assert steps[-1] == 10_000
    assert values[-1] == pytest.approx(interquartile_mean(ends))
    band = axes.collections[1].get_paths()[0].vertices
    low, high = bootstrap_interval(ends, interquartile_mean)
    at_end = band[band[:, 0] == steps[-1], 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((low, high), rel=0.02)
    assert "5 to 6 seeds" in caption_of(figure)


def test_one_seed_has_a_curve_and_no_band(lifetimes):
    one = lifetimes[lifetimes.seed == 0]
    figure = learning.learning_curves(one)
    assert not figure.axes[0].collections
    assert "One seed, hence no band: PPO, RES_PPO, STACK_PPO." in caption_of(figure)


def test_captions_say_which_agents_have_no_interval(lifetimes):
    one = lifetimes[(lifetimes.seed == 0) | (lifetimes.arm == "PPO")]
    for draw, missing in (
        (learning.learning_curves, "band"),
        (comparison.performance_profiles, "band"),
        (learning.interquartile_means, "interval"),
    ):
        assert f"One seed, hence no {missing}: RES_PPO, STACK_PPO." in caption_of(draw(one))
        assert "One seed" not in caption_of(draw(lifetimes))


def test_an_interrupted_run_is_said_to_cut_its_curve(lifetimes):
    lifetimes.at[7, "curve"] = lifetimes.curve[7][:40]
    for draw in (learning.learning_curves, learning.sample_efficiency):
        figure = draw(lifetimes)
        said = "Drawn up to the end of the shortest run: RES_PPO at 4,000 of 10,000 steps."
        assert said in caption_of(figure)
        assert line(figure.axes[0], "RES_PPO")[0][-1] == 4000
        assert line(figure.axes[0], "PPO")[0][-1] == 10_000
    lifetimes.at[7, "curve"] = lifetimes.curve[8][:98]
    assert "shortest" not in caption_of(learning.learning_curves(lifetimes))


def test_an_arm_has_the_same_look_whichever_others_are_there(lifetimes):
    def colours(figure):
        drawn = [x for x in figure.axes[0].lines if x.get_label() in set(lifetimes.arm)]
        return {x.get_label(): x.get_color() for x in drawn}

    every = colours(learning.learning_curves(lifetimes))
    assert len(set(every.values())) == 3
    some = lifetimes.copy()
    some.loc[some.arm == "PPO", "state"] = "FAIL"
    some = colours(learning.learning_curves(some))
    assert some == {arm: every[arm] for arm in ("RES_PPO", "STACK_PPO")}
    alone = learning.learning_curves(lifetimes[lifetimes.arm == "STACK_PPO"], list(every))
    assert colours(alone) == {"STACK_PPO": every["STACK_PPO"]}


def test_the_order_of_arms_is_that_of_the_study_whichever_seed_failed(lifetimes):
    lifetimes.loc[0, "state"] = "FAIL"
    assert learning.arms_of(learning.finished(lifetimes, "curve")) == [
        "PPO",
        "RES_PPO",
        "STACK_PPO",
    ]
    assert comparison.family(lifetimes).attrs["baseline"] == "PPO"


def test_lifetimes_of_one_arm_and_seed_are_one_or_an_error(lifetimes):
    twice = pd.concat([lifetimes, lifetimes.head(2)], ignore_index=True)
    for column in ("training_return", "curve"):
        once = learning.finished(lifetimes, column)
        assert learning.finished(twice, column)[column].tolist() == once[column].tolist()
    twice.loc[18, "training_return"] += 1.0
    said = "PPO has several lifetimes of seed 0, with different values: give agents of several stud"
    with pytest.raises(UserError, match=said):
        learning.finished(twice, "training_return")


def test_agents_of_several_tests_share_a_figure_under_names_of_their_own(lifetimes):
    again = lifetimes.assign(training_return=lifetimes.training_return + 1.0)
    frames = [f.assign(arm=f"{name}: " + f.arm) for name, f in (("a", lifetimes), ("b", again))]
    both = pd.concat(frames, ignore_index=True)
    axes = learning.learning_curves(both).axes[0]
    assert [x.get_label() for x in axes.lines] == [*both.arm.unique()]
    axes = comparison.improvement(both, "a: PPO").axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [*both.arm.unique()[1:]]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(2, "With 2 seeds the intervals mean nothing; 10 is a good number."), (6, "")],
)
def test_captions_say_what_few_seeds_are_worth(seeds, said, lifetimes):
    few = lifetimes[lifetimes.seed < seeds]
    for draw in (
        learning.learning_curves,
        learning.interquartile_means,
        comparison.improvement,
        comparison.performance_profiles,
    ):
        assert ("intervals mean nothing" in caption_of(draw(few))) == bool(said)
        assert said in caption_of(draw(few))
    assert comparison.results_table(few).attrs["remark"].endswith(said)


def test_interquartile_means_show_every_seed(lifetimes):
    axes = learning.interquartile_means(lifetimes, "final_return").axes[0]
    part = lifetimes[(lifetimes.arm == "RES_PPO")].final_return
    seeds, interval, mean = axes.lines[3:6]
    assert sorted(seeds.get_xdata()) == sorted(part)
    assert list(mean.get_xdata()) == [interquartile_mean(part)]
    assert list(interval.get_xdata()) == list(bootstrap_interval(part, interquartile_mean))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["PPO", "RES_PPO", "STACK_PPO"]


def test_steps_to_thresholds(lifetimes):
    needed = learning.steps_to_thresholds(lifetimes, [10.0, 70.0])
    ppo = needed[(needed.arm == "PPO") & (needed.threshold == 70)].steps
    assert np.isinf(ppo).all()
    first = lifetimes.iloc[0]
    (steps,) = needed[(needed.arm == "PPO") & (needed.seed == 0) & (needed.threshold == 10)].steps
    # The curve is end * steps / 10,000, and its mean over 10 points lags 450 steps behind.
    assert steps == math.ceil((10 / first.training_return * 10_000 + 450) / 100) * 100
    usual = learning.usual_thresholds(lifetimes)
    frame = learning.finished(lifetimes, "curve")
    smooth = frame.curve.map(smoothed)
    low, high = (
        [interquartile_mean([c[i][1] for c in smooth[frame.arm == arm]]) for arm in set(frame.arm)]
        for i in (0, -1)
    )
    assert usual == pytest.approx(np.linspace(min(low), max(high), 5)[1:-1])


def test_thresholds_are_told_apart():
    assert learning.threshold_names([1000, 2000.0, 1000]) == {1000: "1,000", 2000: "2,000"}
    assert learning.threshold_names([-751512.3]) == {-751512.3: "-751,512"}  # as in tables
    names = learning.threshold_names([1000.1, 1000.2])
    assert list(names.values()) == ["1,000.1", "1,000.2"]


def test_sample_efficiency_counts_those_that_never_got_there(lifetimes):
    figure = learning.sample_efficiency(lifetimes, [10.0, 70.0])
    easy, hard = figure.axes
    assert line(easy, "PPO")[1][-1] == 1.0
    assert line(hard, "PPO")[1].tolist() == [0.0, 0.0]
    needed = learning.steps_to_thresholds(lifetimes, [70.0])
    reached = np.sort(needed[needed.arm == "RES_PPO"].steps)
    x, y = line(hard, "RES_PPO")
    assert x[1:-1].tolist() == reached.tolist()
    assert y[1:-1] == pytest.approx([np.mean(reached <= steps) for steps in reached])
    assert hard.get_title() == "return 70"


def test_lines_of_sample_efficiency_end_with_their_budgets(lifetimes):
    lifetimes["curve"] = [
        curve[:50] if arm == "PPO" else curve for arm, curve in zip(lifetimes.arm, lifetimes.curve)
    ]
    figure = learning.sample_efficiency(lifetimes, [10.0])
    ends = {arm: line(figure.axes[0], arm)[0][-1] for arm in ("PPO", "RES_PPO")}
    assert ends == {"PPO": 5000, "RES_PPO": 10_000}
    assert "Each line ends with the budget of its agent." in caption_of(figure)


@pytest.mark.parametrize(
    ("draw", "what"),
    [
        (learning.learning_curves, "a learning curve"),
        (learning.interquartile_means, "a training return"),
        (learning.sample_efficiency, "a learning curve"),
    ],
)
def test_without_data_there_is_a_sentence(draw, what, lifetimes):
    said = f"no finished lifetime of this study has {what}"
    failed = lifetimes[lifetimes.state == "FAIL"]
    for frame in (pd.DataFrame(), failed, lifetimes[["state", "arm"]]):
        with pytest.raises(UserError, match=said):
            draw(frame)
    with pytest.raises(
        UserError, match=r"these lifetimes name no agents .* of an evolution, name its test"
    ):
        draw(lifetimes.drop(columns=["arm", "seed"]))


def test_curves_without_common_steps(lifetimes):
    two = lifetimes.head(2).copy()
    two.at[0, "curve"] = ((1, 0.0), (2, 0.0))
    two.at[1, "curve"] = ((5, 0.0), (6, 0.0))
    with pytest.raises(UserError, match="no range of steps in common"):
        learning.learning_curves(two)
    # Other agents are drawn all the same.
    figure = learning.learning_curves(pd.concat([two.assign(arm="apart"), lifetimes]))
    assert "Left out, since their curves share no steps: apart." in caption_of(figure)
    assert {x.get_label() for x in figure.axes[0].lines} >= {*lifetimes.arm}


def test_short_curves_that_end_at_different_steps_are_not_averaged(lifetimes):
    """The average of each would be one point, at its own end."""
    two = lifetimes.head(2).copy()
    two.at[0, "curve"] = ((100, 1.0), (300, 3.0), (400, 4.0))
    two.at[1, "curve"] = ((200, 2.0), (500, 5.0))
    figure = learning.learning_curves(two)
    steps, returns = line(figure.axes[0], two.arm[0])
    assert (steps[0], steps[-1]) == (200, 400)
    assert returns == pytest.approx(steps / 100)
    assert f"Not averaged, since they are short: {two.arm[0]}." in caption_of(figure)


def test_seeds_that_failed_are_named_and_reach_nothing(lifetimes):
    said = "Failed and left out: STACK_PPO 1 of 6 seeds."
    for draw in (
        learning.learning_curves,
        learning.interquartile_means,
        comparison.improvement,
        comparison.performance_profiles,
    ):
        assert said in caption_of(draw(lifetimes))
        assert "Failed" not in caption_of(draw(lifetimes[lifetimes.state == "COMPLETE"]))
    needed = learning.steps_to_thresholds(lifetimes, [10.0])
    steps = needed[needed.arm == "STACK_PPO"].steps
    assert (len(steps), np.isinf(steps).sum()) == (6, 1)
    table = comparison.results_table(lifetimes, thresholds=[10.0])
    assert table["median steps to 10"][2].endswith(" (5/6)")
    figure = learning.sample_efficiency(lifetimes, [10.0])
    assert line(figure.axes[0], "STACK_PPO")[1][-1] == pytest.approx(5 / 6)
    assert "share of 6 seeds whose" in caption_of(figure)
    assert "Failed, and counted as never reaching it: STACK_PPO 1 of 6" in caption_of(figure)
    again = lifetimes.tail(1).assign(state="COMPLETE", training_return=1.0, curve=[((1, 1.0),)])
    lived = pd.concat([lifetimes, again], ignore_index=True)
    assert not learning.left_out(lived, lived)


def test_agents_of_logs_are_named_where_final_policies_are_compared(lifetimes):
    assert learning.best_known(lifetimes) == "final_return"
    logged = lifetimes.assign(final_return=lifetimes.final_return.where(lifetimes.arm != "PPO"))
    assert learning.best_known(logged) == "training_return"
    for draw in (learning.interquartile_means, comparison.performance_profiles):
        assert "Without such values: PPO." in caption_of(draw(logged, "final_return"))
        assert "Without such values" not in caption_of(draw(logged))
    table = comparison.results_table(logged, column="final_return")
    assert "Without such values: PPO." in table.attrs["remark"]


def test_means_over_different_numbers_of_episodes_are_named(lifetimes):
    over = lifetimes.arm.map({"PPO": 100, "RES_PPO": 10, "STACK_PPO": 10})
    said = "Returns are means over different numbers of episodes: PPO 100, RES_PPO 10, STACK_PPO 10"
    draws = (
        learning.interquartile_means,
        comparison.improvement,
        comparison.performance_profiles,
    )
    for draw in draws:
        figure = draw(lifetimes.assign(ep_eval=over))
        assert said in caption_of(figure)
        assert "return of the last training episodes" in figure.axes[0].get_xlabel()
        figure = draw(lifetimes.assign(ep_eval=10))
        assert "Returns are means" not in caption_of(figure)
        assert "return of the last 10 training episodes" in figure.axes[0].get_xlabel()
    assert said in comparison.results_table(lifetimes.assign(ep_eval=over)).attrs["remark"]
    logged = lifetimes.assign(curve_over=over.where(over > 10))
    for draw in (learning.learning_curves, learning.sample_efficiency):
        said = "Points of a log are means of so many episodes before: PPO 100."
        assert said in caption_of(draw(logged))
        assert "Points of a log" not in caption_of(draw(lifetimes))


@pytest.mark.parametrize(("points", "said"), [(1, "1 point"), (7, "7 points"), (10, "10 points")])
def test_short_curves_are_marks_with_error_bars(points, said, lifetimes):
    short = lifetimes.assign(curve=lifetimes.curve.map(lambda c: c[:points]))
    figure = learning.learning_curves(short)
    assert figure.axes[0].lines
    for drawn in figure.axes[0].lines:
        assert len(drawn.get_xdata()) == 1
        assert drawn.get_marker() not in ("None", "", None)
    part = short[(short.arm == "PPO")].curve.map(smoothed)
    ends = [c[0][1] for c in part]
    bar = figure.axes[0].collections[0].get_segments()[0]
    assert bar[:, 1] == pytest.approx(bootstrap_interval(ends, interquartile_mean), rel=0.05)
    assert f"averaged over {said}." in caption_of(figure)
    assert f"averaged over {said} of" in caption_of(learning.sample_efficiency(short))
    figure = learning.lifetime_curves({"lifetime 0": short.curve[0]})
    assert caption_of(figure).startswith("Learning curves of 1 lifetime, of")
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert caption_of(figure).endswith(f"averaged over {said}.")


def test_long_curves_are_lines_without_marks(lifetimes):
    figure = learning.learning_curves(lifetimes)
    assert {x.get_marker() for x in figure.axes[0].lines} == {"None"}
    assert "averaged over 10 points." in caption_of(figure)
    lifetimes.at[0, "curve"] = lifetimes.curve[0][:3]
    short = lifetimes[(lifetimes.arm != "PPO") | (lifetimes.seed == 0)]
    assert "averaged over 3 to 10 points." in caption_of(learning.learning_curves(short))


def test_captions_count_finished_seeds_without_a_value(lifetimes):
    lifetimes.loc[lifetimes.index[0], "final_return"] = None
    lifetimes.loc[lifetimes.arm == "RES_PPO", "final_return"] = None
    said = "Without such values: PPO 1 of 6 seeds, RES_PPO."
    assert said in caption_of(learning.interquartile_means(lifetimes, "final_return"))
    assert said in comparison.results_table(lifetimes, "PPO", "final_return").attrs["remark"]
    assert "Without such values" not in caption_of(learning.interquartile_means(lifetimes))
    lifetimes.at[1, "curve"] = ()
    for draw in (learning.learning_curves, learning.sample_efficiency):
        assert "Without such values: PPO 1 of 6 seeds." in caption_of(draw(lifetimes))
    tests = {("A", "B"): (lifetimes, "PPO", "STACK_PPO")}
    matrix = comparison.generalisation(tests, "final_return")
    assert "Without such values: PPO 1 of 6 seeds on B" in matrix.attrs["remarks"]


def test_a_threshold_that_is_given_twice_counts_once(lifetimes):
    once = learning.steps_to_thresholds(lifetimes, [50.0])
    assert len(learning.steps_to_thresholds(lifetimes, [50.0, 50.0])) == len(once)
    tables = [comparison.results_table(lifetimes, thresholds=t) for t in ([50], [50, 50])]
    assert tables[0].equals(tables[1])
