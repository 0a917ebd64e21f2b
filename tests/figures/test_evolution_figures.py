"""What figures of an evolution draw is what they were given."""

import itertools

import numpy as np
import pandas as pd
import pytest
from figure_fixtures import evolved, space, trials

from erl.errors import UserError
from erl.figures import evolution
from erl.figures.style import caption_of, save
from erl.figures.two_levels import two_levels
from erl.studies.data import Axis
from erl.studies.winner import Finalist


def line(axes, label):
    (found,) = [x for x in axes.lines if x.get_label() == label]
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def test_the_history_shows_every_trial_and_the_best_so_far(trials):
    figure = evolution.optimisation_history(trials, "Toy, 2 seeds.")
    axes = figure.axes[0]
    done = trials[trials.state == "COMPLETE"]
    x, y = line(axes, "completed")
    assert list(x) == list(done.trial)
    assert list(y) == list(done.fitness)
    assert list(line(axes, "pruned, at its last value")[1]) == [trials.fitness[6]]
    assert list(line(axes, "failed")[0]) == [3]
    x, y = line(axes, "best so far")
    expected = [max(done.fitness[done.trial <= t]) for t in done.trial]
    assert list(y[:-1]) == expected
    assert (x[-1], y[-1]) == (11, expected[-1])
    assert "9 complete, 1 fail, 1 pruned, 1 running" in caption_of(figure)
    assert caption_of(figure).endswith("Toy, 2 seeds.")
    # A legend within the axes would lie on trials.
    assert axes.get_legend() is None
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["completed", "pruned, at its last value", "failed", "best so far"]


def test_the_winner_of_finals_is_marked_in_the_history_and_on_the_map(trials, space):
    row = trials[trials.state == "COMPLETE"].iloc[2]
    values = {"sr": row.sr, "lr": row.lr}
    winner = Finalist(int(row.trial), None, values, row.fitness, expected=12.345)
    label = "winner of the finals: 12.35 expected on new seeds"
    figure = evolution.optimisation_history(trials, winner=winner)
    assert [*map(list, line(figure.axes[0], label))] == [[row.trial], [row.fitness]]
    mean = Finalist(None, 4, {"sr": 0.1, "lr": 0.3}, None, expected=12.345)
    label = "winner of the finals, the mean of the search: 12.35 expected on new seeds"
    figure = evolution.optimisation_history(trials, winner=mean)
    assert [*map(list, line(figure.axes[0], label))] == [[3.5], [12.345]]
    for one in (winner, mean):
        figure = evolution.search_map(trials, space, path(), winner=one)
        place = [[one.params["sr"]], [one.params["lr"]]]
        assert [*map(list, line(figure.axes[0], "winner of the finals"))] == place
    for figure in (
        evolution.optimisation_history(trials),
        evolution.search_map(trials, space, path()),
    ):
        assert not [x for x in figure.axes[0].lines if "winner" in str(x.get_label())]


def test_parallel_coordinates_are_the_trials_with_the_best_on_top(trials, space):
    figure = evolution.parallel_coordinates(trials, space)
    axes = figure.axes[0]
    done = trials[trials.state == "COMPLETE"].sort_values("fitness")
    segments = np.array(axes.collections[0].get_segments())
    assert segments.shape == (9, 3, 2)
    assert segments[:, 0, 1] == pytest.approx((np.log10(done.sr) + 4) / 6)
    assert segments[:, 1, 1] == pytest.approx((np.log10(done.lr) + 2) / 2)
    assert list(axes.collections[0].get_array()) == list(done.fitness)
    assert line(axes, "best trial")[1] == pytest.approx(segments[-1, :, 1])
    shown = [t.get_text() for t in axes.texts]
    assert shown[:4] == ["0.0001", "100", "0.01", "1"]


def test_slices_show_fitness_over_each_parameter(trials, space):
    figure = evolution.slices(trials, space)
    done = trials[trials.state == "COMPLETE"]
    for axes, name in zip(figure.axes, ("sr", "lr")):
        points = axes.collections[0]
        assert np.array(points.get_offsets()) == pytest.approx(done[[name, "fitness"]].to_numpy())
        assert list(points.get_array()) == list(done.trial)
        assert axes.get_xscale() == "log"
    assert figure.axes[0].get_xlabel() == "spectral radius (sr)"


def test_long_names_of_neighbours_do_not_overlap(trials):
    names = ("rc_connectivity", "input_connectivity", "bias_connectivity")
    frame = trials.assign(**{name: np.linspace(0.1, 0.9, 12) for name in names})
    figure = evolution.slices(frame, {name: Axis(0, 1) for name in names})
    figure.draw_without_rendering()
    extents = [axes.xaxis.label.get_window_extent() for axes in figure.axes[:3]]
    for one, other in itertools.pairwise(extents):
        assert one.x1 < other.x0
    assert extents[-1].x1 < figure.bbox.x1


def test_choices_and_whole_numbers_have_axes_too(trials):
    space = {"units": Axis(20, 400, log=True), "kind": Axis(0, 1, choices=("a", "b"))}
    frame = trials.assign(units=np.arange(20, 32), kind=["a", "b"] * 6)
    figure = evolution.slices(frame, space)
    assert [t.get_text() for t in figure.axes[1].get_xticklabels()] == ["a", "b"]
    done = frame[frame.state == "COMPLETE"]
    places = np.array(figure.axes[1].collections[0].get_offsets())[:, 0]
    assert list(places) == [float(k == "b") for k in done.kind]
    assert evolution.parallel_coordinates(frame, space).axes
    with pytest.raises(UserError, match="two searched numbers; this study has units"):
        evolution.contours(frame, space)


def test_an_interpolation_goes_through_its_points_and_stays_in_their_hull():
    x, y = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])
    grid, values = evolution.interpolated(x, y, 3 * x + 2 * y + 1, points=11)
    expected = 3 * grid[None, :] + 2 * grid[:, None] + 1
    assert values == pytest.approx(expected)
    _, values = evolution.interpolated(x[:3], y[:3], x[:3], points=11)
    assert np.isnan(values[-1, -1])
    assert values[0, 0] == 0
    assert evolution.interpolated(x[:2], y[:2], x[:2]) is None
    assert evolution.interpolated(x, x, x) is None


@pytest.mark.parametrize("n", [1, 2, 9])
def test_contours_show_the_trials_however_few(n, trials, space):
    done = trials[trials.state == "COMPLETE"].head(n)
    axes = evolution.contours(done, space).axes[0]
    points = axes.collections[-1]
    assert np.array(points.get_offsets()) == pytest.approx(done[["sr", "lr"]].to_numpy())
    assert list(points.get_array()) == list(done.fitness)


def test_contours_have_a_panel_for_each_pair(trials):
    space = {name: Axis(0, 1) for name in "abc"}
    rng = np.random.default_rng(0)
    frame = trials.assign(**{name: rng.random(12) for name in "abc"})
    shown = [a for a in evolution.contours(frame, space).axes if a.get_visible() and a.get_ylabel()]
    pairs = {(a.get_xlabel(), a.get_ylabel()) for a in shown}
    assert pairs >= {("a", "b"), ("a", "c"), ("b", "c")}


@pytest.fixture
def conditional(trials, space):
    """Trials without `lr` where their number is odd, and without `iss` where it is even; a trial
    that runs has `bias`.
    """
    odd = trials.trial % 2 == 1
    frame = trials.assign(lr=trials.lr.mask(odd), iss=trials.lr.where(odd), bias=np.nan)
    frame.loc[11, "bias"] = 0.5
    return frame, space | {"iss": space["lr"], "bias": Axis(0.0, 1.0)}


def test_parameters_that_not_all_trials_have_are_shown_where_they_are(conditional):
    frame, space = conditional
    done = frame[frame.state == "COMPLETE"]
    figure = evolution.parallel_coordinates(frame, space)
    names = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert [" ".join(n.split()).split(" (")[0] for n in names] == [
        "spectral radius",
        "leak rate",
        "input scaling",
        "fitness",
    ]
    segments = np.array([p.vertices for p in figure.axes[0].collections[0].get_paths()])
    best_last = done.sort_values("fitness")
    assert np.isnan(segments[:, 1, 1]).tolist() == best_last.lr.isna().tolist()
    assert "has gaps where its trial does not have a parameter" in caption_of(figure)
    panels = [a for a in evolution.slices(frame, space).axes if a.collections and a.get_xlabel()]
    shown = [np.array(a.collections[0].get_offsets()) for a in panels]
    assert [len(points) for points in shown] == [9, done.lr.count(), done.iss.count()]
    figure = evolution.contours(frame, space)
    panels = {
        (a.get_xlabel(), a.get_ylabel()): len(a.collections[-1].get_offsets())
        for a in figure.axes
        if a.get_visible() and a.get_ylabel() and a.get_xlabel()
    }
    sr, lr, iss = "spectral radius (sr)", "leak rate (lr)", "input scaling (iss)"
    assert panels == {(sr, lr): done.lr.count(), (sr, iss): done.iss.count(), (lr, iss): 0}
    assert "Fitness of 9 completed trials" in caption_of(figure)


@pytest.mark.parametrize("n", [12, 1])
def test_panels_share_the_colours_of_the_bar(n, conditional):
    frame, space = conditional
    frame = frame.head(n)
    done = frame[frame.state == "COMPLETE"]
    for draw, shown in ((evolution.slices, done.trial), (evolution.contours, done.fitness)):
        *panels, bar = [a for a in draw(frame, space).axes if a.get_visible()]
        ends = shown.min(), shown.max() if n > 1 else shown.min() + 1
        norms = [a.collections[-1].norm for a in panels]
        assert {(norm.vmin, norm.vmax) for norm in norms} == {ends}
        assert bar.get_ylim() == pytest.approx(ends)


def test_studies_of_which_no_completed_trial_has_a_parameter(conditional):
    frame, space = conditional
    space = {"bias": space["bias"]}
    for draw in (evolution.parallel_coordinates, evolution.slices, evolution.contours):
        with pytest.raises(UserError, match="no completed trial has one"):
            draw(frame, space)
    apart = {name: Axis(1e-2, 1.0, log=True) for name in ("lr", "iss")}
    with pytest.raises(UserError, match="no completed trial has two of the parameters lr, iss"):
        evolution.contours(frame, apart)


def test_a_choice_that_only_some_trials_have(trials):
    space = {"kind": Axis(0, 1, choices=("a", "b"))}
    frame = trials.assign(kind=["a", None, "b", np.nan] * 3)
    points = evolution.slices(frame, space).axes[0].collections[0].get_offsets()
    kinds = frame.kind[(frame.state == "COMPLETE") & frame.kind.notna()]
    assert np.array(points)[:, 0].tolist() == [float(k == "b") for k in kinds]
    lines = evolution.parallel_coordinates(frame, space).axes[0].collections[0].get_paths()
    assert sum(np.isnan(line.vertices[0, 1]) for line in lines) == len(lines) - len(kinds) > 0


def test_importances_are_means_with_their_range():
    frame = pd.DataFrame(
        [
            ("sr", "fANOVA", 0, 0.6),
            ("sr", "fANOVA", 1, 0.8),
            ("lr", "fANOVA", 0, 0.4),
            ("lr", "fANOVA", 1, 0.2),
            ("sr", "PED-ANOVA", 0, 0.9),
            ("lr", "PED-ANOVA", 0, 0.1),
        ],
        columns=["parameter", "method", "repeat", "importance"],
    )
    frame.attrs |= {"trials": 20, "best": 2}
    figure = evolution.importances(frame)
    axes = figure.axes[0]
    assert axes.get_legend() is None  # it would lie on bars
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["fANOVA", "PED-ANOVA"]
    assert [p.get_width() for p in axes.patches] == pytest.approx([0.3, 0.7, 0.1, 0.9])
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "leak rate (lr)",
        "spectral radius (sr)",
    ]
    (ends,) = [c.get_segments() for c in axes.collections][:1]
    assert np.array(ends)[0, :, 0] == pytest.approx([0.2, 0.4])


def test_an_ellipse_is_one_standard_deviation():
    mean, cov = np.array([0.3, 0.6]), np.array([[0.04, 0.01], [0.01, 0.02]])
    away = evolution.ellipse(mean, cov) - mean
    assert np.einsum("ni,ij,nj->n", away, np.linalg.inv(cov), away) == pytest.approx(1.0)


def path(source="CMA-ES"):
    rows = [
        (0, source, 0, np.array([0.5, 0.5]), np.eye(2) / 36, ["sr", "lr"]),
        (1, source, 0, np.array([0.6, 0.4]), np.eye(2) / 64, ["sr", "lr"]),
        (2, source, 1, np.array([0.1, 0.9]), np.eye(2) / 36, ["sr", "lr"]),
    ]
    return pd.DataFrame(
        rows, columns=["generation", "source", "restart", "mean", "cov", "parameters"]
    )


def test_the_map_shows_where_the_distribution_went(trials, space):
    figure = evolution.search_map(trials, space, path())
    axes = figure.axes[0]
    assert np.array(axes.lines[0].get_xydata()) == pytest.approx(
        np.array([[1e-1, 1e-1], [10**-0.4, 10**-1.2]])
    )
    assert line(axes, "restart")[0] == pytest.approx([10 ** (-4 + 0.6)])
    outline = np.stack(line(axes, "one standard deviation"), 1)
    unit = np.stack([(np.log10(outline[:, 0]) + 4) / 6, (np.log10(outline[:, 1]) + 2) / 2], 1)
    assert np.linalg.norm(unit - [0.1, 0.9], axis=1) == pytest.approx(1 / 6)
    assert "CMA-ES would have drawn from" in caption_of(figure)
    other = evolution.search_map(trials, space, path("trials"), x="lr", y="sr")
    assert "this sampler has no normal distribution" in caption_of(other)
    assert other.axes[0].get_xlabel() == "leak rate (lr)"
    with pytest.raises(UserError, match="'iss' was not searched"):
        evolution.search_map(trials, space, path(), x="iss")
    with pytest.raises(UserError, match="no generation"):
        evolution.search_map(trials, space, path().head(0))


def test_studies_side_by_side(trials):
    figure = evolution.side_by_side({"one": trials, "two": trials.head(6)})
    left, right = figure.axes
    for drawn, frame in zip(left.lines, (trials, trials.head(6)), strict=True):
        best = evolution.best_so_far(frame)
        assert list(drawn.get_ydata()) == list(best.best)
    assert len(right.lines[2].get_ydata()) == 5
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["1  one", "2  two"]
    assert "2 studies side by side" in caption_of(figure)
    with pytest.raises(UserError, match="at least two"):
        evolution.side_by_side({"one": trials})


def test_a_study_without_completed_trials_leaves_the_others_side_by_side(trials):
    failed = trials[trials.state == "FAIL"]
    figure = evolution.side_by_side({"none": failed, "one": trials, "two": trials.head(6)})
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["1  one", "2  two"]
    assert "2 studies side by side" in caption_of(figure)
    assert "Left out, without a completed trial: none." in caption_of(figure)
    every = evolution.side_by_side({"none": trials, "one": trials, "two": trials.head(6)})
    assert figure.axes[0].lines[0].get_color() == every.axes[0].lines[1].get_color()


def test_a_summary_is_of_completed_trials(trials, space):
    done = trials[trials.state == "COMPLETE"]
    table = evolution.summary(trials, space)
    assert table.fitness["count"] == 9
    assert table.fitness["max"] == done.fitness.max()


def test_a_summary_leaves_out_numbers_of_trials_and_times(trials, space):
    begun = pd.date_range("2026-01-01", periods=len(trials), freq="min")
    table = evolution.summary(trials.assign(generation=0, begun=begun), space)
    assert list(table.columns) == ["fitness", *space]
    assert list(table.index) == ["count", "mean", "std", "min", "25%", "50%", "75%", "max"]


def test_names_below_parallel_coordinates_have_room(trials):
    columns = ["sr", "lr", "iss", "units", "rc_connectivity"]
    space = {name: Axis(0.0, 1.0) for name in columns}
    rng = np.random.default_rng(0)
    figure = evolution.parallel_coordinates(
        trials.assign(**{c: rng.random(12) for c in columns}), space
    )
    axes = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in axes.get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
    assert axes.bbox.height > 2.0 * figure.dpi  # upright names make the figure longer
    four = evolution.parallel_coordinates(
        trials.assign(**{c: rng.random(12) for c in columns}), dict([*space.items()][:4])
    )
    four.draw_without_rendering()
    boxes = [t.get_window_extent() for t in four.axes[0].get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))


def test_the_fitness_of_a_set_is_no_mean_return(trials):
    plain = evolution.optimisation_history(trials)
    assert plain.axes[0].get_ylabel() == "fitness (mean return)"
    of_set = trials.copy()
    of_set.attrs["fitness"] = "mean normalised score"
    drawn = evolution.optimisation_history(of_set)
    assert drawn.axes[0].get_ylabel() == "fitness (mean normalised score)"
    both = evolution.side_by_side({"a": trials, "b": of_set})
    assert both.axes[0].get_ylabel() == "fitness"


@pytest.mark.parametrize("state", ["empty", "failed"])
def test_studies_without_a_fitness_are_answered_by_a_sentence(state, trials, evolved, space):
    none = trials.head(0) if state == "empty" else trials[trials.state == "FAIL"]
    has = "none" if state == "empty" else "1 fail"
    for draw in (
        lambda: evolution.optimisation_history(none),
        lambda: evolution.parallel_coordinates(none, space),
        lambda: evolution.slices(none, space),
        lambda: evolution.contours(none, space),
        lambda: evolution.search_map(none, space, path()),
        lambda: evolution.side_by_side({"a": none, "b": none}),
        lambda: two_levels(none, evolved, pd.DataFrame()),
    ):
        with pytest.raises(UserError, match=f"at least 1 trial with a fitness; trials: {has}"):
            draw()
    with pytest.raises(UserError, match="no completed trial of this study stores its lifetimes"):
        two_levels(trials, pd.DataFrame(), pd.DataFrame())


@pytest.mark.slow
def test_one_trial_is_enough(trials, evolved, space, tmp_path):
    one = trials.head(1)
    figures = [
        evolution.optimisation_history(one),
        evolution.parallel_coordinates(one, space),
        evolution.slices(one, space),
        evolution.contours(one, space),
        two_levels(one, evolved, pd.DataFrame()),
    ]
    for i, figure in enumerate(figures):
        for file in save(figure, tmp_path, f"figure_{i}"):
            assert file.stat().st_size > 1000


def test_files_are_the_same_twice_and_formats_are_checked(trials, tmp_path):
    for folder in "ab":
        save(evolution.optimisation_history(trials), tmp_path / folder, "history")
    for ending in ("png", "pdf", "svg"):
        one, two = ((tmp_path / f / f"history.{ending}").read_bytes() for f in "ab")
        assert one == two
    with pytest.raises(UserError, match="unknown format 'jpg'"):
        save(evolution.optimisation_history(trials), tmp_path, "history", ["jpg"])
    with pytest.raises(UserError, match="cannot be written"):
        save(evolution.optimisation_history(trials), "/proc/figures", "history")


def test_the_map_of_another_programs_study_is_of_tens(trials, space):
    tens = path().assign(source="tens")
    said = caption_of(evolution.search_map(trials, space, tens))
    assert "mean and covariance of each ten trials (the study does not say what its" in said
    assert said.endswith("numbers are tens, 0 for the first.")
    said = caption_of(evolution.search_map(trials, space, path().assign(source="trials")))
    assert "of each generation (this sampler has no normal distribution)" in said
    assert said.endswith("numbers are generations.")


def test_parallel_coordinates_show_yes_and_no(trials):
    axis = {"plain": Axis(0, 1, choices=(False, True))}
    drawn = trials.assign(plain=[k % 2 == 0 for k in range(len(trials))])
    texts = [t.get_text() for t in evolution.parallel_coordinates(drawn, axis).axes[0].texts]
    assert texts[:2] == ["False", "True"]


def test_a_single_trial_is_seen_side_by_side(trials):
    figure = evolution.side_by_side({"a": trials, "b": trials.head(1)})
    assert [x.get_marker() for x in figure.axes[0].lines] == ["None", "s"]
