"""What figures of learning draw is what they were given."""

import math

import numpy as np
import pandas as pd
import pytest
from figure_fixtures import lifetimes

from erl.errors import UserError
from erl.figures import learning
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
    assert len(usual) == 3
    assert usual == sorted(usual)


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
    for frame in (pd.DataFrame(), lifetimes[lifetimes.state == "FAIL"], lifetimes[["state"]]):
        with pytest.raises(UserError, match=said):
            draw(frame)


def test_curves_without_common_steps(lifetimes):
    two = lifetimes.head(2).copy()
    two.at[0, "curve"] = ((1, 0.0), (2, 0.0))
    two.at[1, "curve"] = ((5, 0.0), (6, 0.0))
    with pytest.raises(UserError, match="no range of steps in common"):
        learning.learning_curves(two)
