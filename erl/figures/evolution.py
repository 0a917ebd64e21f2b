"""Figures of an evolution: what was tried, where, and what came of it.

All functions take the data frames of `erl.studies.data.StudyData`: `trials`, `space`, `lifetimes`,
`generations`. `about` is a sentence for the caption: what was run, with which seeds
(`report.describe`). Where data do not allow a figure, the function raises a `UserError` that says
what is missing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.interpolate import griddata
from scipy.spatial import QhullError

from erl.cli import plural, score_text
from erl.errors import UserError
from erl.figures.style import (
    COLOURS,
    SEQUENTIAL,
    caption,
    curve,
    label,
    labelled,
    legend_above,
    logarithmic,
    looks,
    new,
    styled,
    ticks_below,
    wrapped,
)
from erl.studies.data import Axis
from erl.studies.winner import Finalist

Space = Mapping[str, Axis]
PANEL_LETTERS = 24  # of a name that have room beside one of three panels


def fitness_label(trials: pd.DataFrame) -> str:
    """What the fitness of these trials is, for an axis."""
    return f"fitness ({trials.attrs.get('fitness', 'mean return')})"


def completed(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that have a fitness.

    Raises:
        UserError: there is none.
    """
    done = trials[(trials.state == "COMPLETE") & trials.fitness.notna()] if len(trials) else trials
    if not len(done):
        states = trials.state.value_counts() if len(trials) else {}
        has = ", ".join(f"{n} {state.lower()}" for state, n in states.items()) or "none"
        raise UserError(f"this figure needs at least 1 trial with a fitness; trials: {has}")
    return done.sort_values("trial")


def summary(trials: pd.DataFrame, space: Space) -> pd.DataFrame:
    """Count, mean, spread and quartiles over the completed trials, of the fitness and of each
    searched number.
    """
    return completed(trials)[["fitness", *(n for n in space if n in trials)]].describe()


def best_so_far(trials: pd.DataFrame) -> pd.DataFrame:
    """The highest fitness up to each completed trial: columns `trial`, `best`."""
    done = completed(trials)
    return pd.DataFrame({"trial": done.trial, "best": done.fitness.cummax()})


def states(trials: pd.DataFrame) -> str:
    """How many trials are in which state: `12 complete, 1 fail.`"""
    counts = trials.state.value_counts()
    return ", ".join(f"{n} {state.lower()}" for state, n in counts.items()) + "."


def _numbers(axis: Axis, values: Any) -> np.ndarray:
    """Values as an axis shows them: numbers, or places among the choices."""
    return axis.unit(values) * (axis.high - axis.low) if axis.choices else np.asarray(values, float)


def _scale(axes: Axes, name: str, axis: Axis, which: str = "x") -> None:
    """Set scale, limits and label of a searched parameter."""
    low, high = axis.value([-0.03, 1.03]) if axis.choices is None else (-0.2, axis.high + 0.2)
    getattr(axes, f"set_{which}label")(wrapped(label(name), PANEL_LETTERS, within=False))
    if axis.log:
        logarithmic(axes, which)
    if axis.choices is not None:
        getattr(axes, f"set_{which}ticks")(range(len(axis.choices)), [str(c) for c in axis.choices])
    if low < high:
        getattr(axes, f"set_{which}lim")(low, high)


# -- one study --


def _mark_winner(axes: Axes, x: float, y: float, said: str = "") -> None:
    """Mark the winner of the finals.

    Args:
        axes: drawn on.
        x, y: where it is.
        said: of it, in the legend.
    """
    axes.plot(
        [x],
        [y],
        "o",
        markersize=10,
        markerfacecolor="none",
        markeredgewidth=1.8,
        color=COLOURS[2],
        zorder=7,
        label=f"winner of the finals{said}",
    )


@styled
def optimisation_history(
    trials: pd.DataFrame, about: str = "", winner: Finalist | None = None
) -> Figure:
    """Fitness of every trial in the order of their beginning, and the best so far.

    Pruned trials stand at the value that they had when they ended; failed ones at the lower edge.
    A ring marks the winner of the finals: a trial at its fitness, a mean of the search at what is
    expected of it on new seeds, behind the trials that had ended.

    Args:
        trials: of a study.
        about: for the caption.
        winner: of its finals; None without finals.
    """
    done = completed(trials)
    best = best_so_far(trials)
    figure, axes = new()
    axes.plot(done.trial, done.fitness, "o", color=COLOURS[0], label="completed")
    pruned = trials[(trials.state == "PRUNED") & trials.fitness.notna()]
    if len(pruned):
        axes.plot(
            pruned.trial, pruned.fitness, "x", color=COLOURS[3], label="pruned, at its last value"
        )
    failed = trials[trials.state == "FAIL"]
    if len(failed):
        axes.plot(
            failed.trial,
            np.full(len(failed), 0.02),
            "v",
            color=COLOURS[6],
            transform=axes.get_xaxis_transform(),
            label="failed",
        )
    end = float(trials.trial.max())
    axes.step(
        [*best.trial, end],
        [*best.best, best.best.iloc[-1]],
        where="post",
        color=COLOURS[1],
        label="best so far",
    )
    if winner is not None:
        expected = f"{score_text(winner.expected)} expected on new seeds"
        if winner.mean is not None and winner.expected is not None:
            said = f", the mean of the search: {expected}"
            _mark_winner(axes, winner.mean - 0.5, winner.expected, said)
        for row in done[done.trial == winner.trial].itertuples():
            _mark_winner(axes, row.trial, row.fitness, f": {expected}")
    axes.set_xlabel("trial")
    axes.set_ylabel(fitness_label(trials))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(figure, labelled(axes))
    return caption(
        figure,
        f"Optimisation history: {states(trials)}",
        "The best so far is a maximum over noisy values, and no estimate of what the best "
        "hyperparameters reach: the test on other seeds is.",
        about,
    )


@styled
def parallel_coordinates(trials: pd.DataFrame, space: Space, about: str = "") -> Figure:
    """Every completed trial as a line over its parameters and its fitness, the best on top. Where a
    trial does not have a parameter, its line has a gap.
    """
    done = completed(trials).sort_values(["fitness", "trial"], ascending=[True, False])
    names = _searched(space, done)
    low, high = float(done.fitness.min()), float(done.fitness.max())
    ends = Axis(low, high)
    columns = [space[n].unit(done[n]) for n in names] + [ends.unit(done.fitness)]
    lines = np.stack(
        [np.tile(np.arange(len(columns), dtype=float), (len(done), 1)), np.stack(columns, axis=1)],
        axis=2,
    )
    figure, axes = new(height=3.4)
    collection = LineCollection(list(lines), cmap=SEQUENTIAL, linewidths=1.2, alpha=0.85)
    collection.set_array(done.fitness.to_numpy(dtype=float))
    collection.set_norm(_shades(done.fitness))
    axes.add_collection(collection)
    axes.plot(np.arange(len(columns)), lines[-1, :, 1], "o--", color=COLOURS[1], label="best trial")
    axes.set_xlim(-0.05, len(columns) - 0.95)
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    for i in range(len(columns)):
        axes.axvline(i, color="0.6", linewidth=0.8, zorder=0)
    for i, axis in enumerate([*(space[n] for n in names), ends]):
        bottom, top = (axis.choices[0], axis.choices[-1]) if axis.choices else (axis.low, axis.high)
        for y, value, side in ((-0.05, bottom, "top"), (1.05, top, "bottom")):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            text = f"{value:.4g}" if number else str(value)
            axes.text(i, y, text, ha="center", va=side, fontsize=7)
    names_shown = [label(n) + (" (log)" if space[n].log else "") for n in names]
    ticks_below(axes, [*names_shown, fitness_label(trials)])
    axes.tick_params(axis="x", pad=14, length=0)
    figure.colorbar(collection, ax=axes, label=fitness_label(trials), pad=0.02)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 1.2))
    return caption(
        figure,
        f"Parallel coordinates of {plural(len(done), 'completed trial')}, each parameter over the "
        "range that was searched.",
        "A line has gaps where its trial does not have a parameter."
        if np.isnan(lines).any()
        else "",
        about,
    )


def _searched(space: Space, trials: pd.DataFrame) -> list[str]:
    """The searched parameters that some of these trials have."""
    names = [n for n in space if n in trials and np.isfinite(space[n].unit(trials[n])).any()]
    if not names:
        raise UserError("this figure needs a searched parameter, and no completed trial has one")
    return names


def _shades(values: pd.Series) -> Normalize:
    """One scale of colours for all panels; a single value lies at its lower end."""
    low, high = float(values.min()), float(values.max())
    return Normalize(low, high if high > low else low + 1)


@styled
def slices(trials: pd.DataFrame, space: Space, about: str = "") -> Figure:
    """Fitness against each parameter, darker for later trials."""
    done = completed(trials)
    names = _searched(space, done)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, grid = new(rows, columns, height=0.4 + 2.4 * rows, sharey=True, squeeze=False)
    shown: Any = None
    shades = _shades(done.trial)
    for i, axes in enumerate(grid.ravel()):
        if i >= len(names):
            axes.set_visible(False)
            continue
        axis = space[names[i]]
        part = done[np.isfinite(axis.unit(done[names[i]]))]
        shown = axes.scatter(
            _numbers(axis, part[names[i]]),
            part.fitness,
            c=part.trial,
            cmap=f"{SEQUENTIAL}_r",
            norm=shades,
            s=18,
            edgecolors="0.3",
            linewidths=0.4,
        )
        _scale(axes, names[i], axis)
        if i % columns == 0:
            axes.set_ylabel(fitness_label(trials))
    bar = figure.colorbar(shown, ax=grid, label="trial", pad=0.02)
    bar.locator = MaxNLocator(integer=True)
    return caption(
        figure,
        f"Fitness of {plural(len(done), 'completed trial')} against each searched parameter; the "
        "colour is the number of the trial.",
        about,
    )


def interpolated(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, points: int = 200
) -> tuple[np.ndarray, np.ndarray] | None:
    """Linear interpolation of values between points of the unit square.

    Args:
        x, y: arrays (n,), coordinates.
        z: array (n,), values.
        points: of the grid, in each direction.

    Returns:
        The grid's coordinates (points,), the same in both directions, and values (points, points)
        by [y, x], NaN outside of the points' hull. None where there is no hull: fewer than three
        points, or all on a line.
    """
    grid = np.linspace(0.0, 1.0, points)
    try:
        values = griddata((x, y), z, tuple(np.meshgrid(grid, grid)), method="linear")
    except (QhullError, ValueError):
        return None
    return grid, values


@styled
def contours(
    trials: pd.DataFrame,
    space: Space,
    parameters: Sequence[str] | None = None,
    about: str = "",
) -> Figure:
    """Fitness over each pair of parameters, interpolated linearly between trials.

    Args:
        trials: of a study.
        space: its searched parameters.
        parameters: which ones; by default the first four that are numbers.
        about: for the caption.
    """
    done = completed(trials)
    numeric = [n for n in _searched(space, done) if space[n].choices is None]
    names = list(parameters) if parameters is not None else numeric[:4]
    unknown = [n for n in names if n not in numeric]
    if unknown or len(names) < 2:
        raise UserError(
            f"contours need two searched numbers; this study has {', '.join(numeric) or 'none'}"
        )
    pairs = [(x, y) for i, y in enumerate(names) for x in names[:i]]
    drawn = pd.concat([done[done[[x, y]].notna().all(axis=1)] for x, y in pairs])
    done = done.loc[drawn.index.unique()]
    if not len(done):
        raise UserError(f"no completed trial has two of the parameters {', '.join(names)}")
    n = len(names) - 1
    figure, grid = new(n, n, height=3.4 if n == 1 else 2.2 * n, squeeze=False)
    low, high = float(done.fitness.min()), float(done.fitness.max())
    levels = np.linspace(low, high, 12) if high > low else np.array([low - 0.5, low + 0.5])
    shown: Any = None
    shades = _shades(done.fitness)
    for row in range(n):
        for column in range(n):
            axes, x, y = grid[row, column], names[column], names[row + 1]
            if column > row:
                axes.set_visible(False)
                continue
            part = done[done[[x, y]].notna().all(axis=1)]
            units = space[x].unit(part[x]), space[y].unit(part[y])
            made = interpolated(*units, part.fitness.to_numpy(dtype=float))
            if made is not None:
                at = space[x].value(made[0]), space[y].value(made[0])
                axes.contourf(*at, made[1], levels=levels, cmap=SEQUENTIAL, norm=shades, alpha=0.8)
            shown = axes.scatter(
                part[x],
                part[y],
                c=part.fitness,
                cmap=SEQUENTIAL,
                norm=shades,
                s=18,
                edgecolors="white",
                linewidths=0.7,
            )
            _scale(axes, x, space[x])
            _scale(axes, y, space[y], "y")
    figure.colorbar(shown, ax=grid, label=fitness_label(trials), pad=0.02)
    return caption(
        figure,
        f"Fitness of {plural(len(done), 'completed trial')} (points), interpolated linearly "
        "between them on the scale of the search; nothing is shown outside of their hull.",
        about,
    )


@styled
def importances(frame: pd.DataFrame, about: str = "") -> Figure:
    """How much each parameter matters, by fANOVA and PED-ANOVA (`erl.studies.data.importances`)."""
    methods = list(frame.method.unique())
    order = list(
        frame[frame.method == methods[0]].groupby("parameter").importance.mean().sort_values().index
    )
    figure, axes = new(height=0.9 + 0.45 * len(order))
    height = 0.8 / len(methods)
    for m, (method, look) in enumerate(looks(methods).items()):
        for row, name in enumerate(order):
            part = frame[(frame.method == method) & (frame.parameter == name)].importance
            mean = float(part.mean())
            spread = [[mean - float(part.min())], [float(part.max()) - mean]]
            axes.barh(
                row - (m - (len(methods) - 1) / 2) * height,
                mean,
                height * 0.9,
                xerr=spread if len(part) > 1 else None,
                color=look.colour,
                hatch=("", "///", "...")[m % 3],
                edgecolor="white",
                error_kw={"linewidth": 1.2, "ecolor": "0.2"},
                label=method if row == 0 else None,
            )
    axes.set_yticks(range(len(order)), [label(n) for n in order])
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance (share)")
    axes.grid(axis="y", visible=False)
    legend_above(figure, labelled(axes))
    repeats = int(frame.groupby("method").repeat.nunique().max())
    best, n = frame.attrs["best"], frame.attrs["trials"]
    tied = " with those of equal fitness" * (best > math.ceil(n / 10))
    return caption(
        figure,
        f"Importance of the searched parameters in {plural(n, 'completed trial')}, on the scale of "
        "the search. fANOVA: share of a "
        "random forest's variance that a parameter explains alone, without interactions; mean and "
        f"range over {plural(repeats, 'forest')}. PED-ANOVA: what tells the best tenth of the "
        f"trials ({best}{tied}) from all, as a share of the sum. Few trials make both "
        "uncertain.",
        about,
    )


def ellipse(mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """The points at one standard deviation of a normal distribution of two dimensions: (73, 2).

    Its contour of Mahalanobis distance 1, which holds 39 % of the mass.
    """
    values, vectors = np.linalg.eigh(cov)
    angles = np.linspace(0, 2 * np.pi, 73)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    return (mean[:, None] + vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * circle)).T


def _draw_path(
    axes: Axes, path: pd.DataFrame, names: tuple[str, str], at: Sequence[int], space: Space
) -> None:
    """Mean and one standard deviation of the sampler's distribution, generation by generation.

    Args:
        axes: drawn on.
        path: from `erl.studies.data.sampler_path`.
        names: of the two parameters.
        at: their places in the distribution.
        space: the searched parameters.
    """
    means = np.stack([space[n].value(np.stack(path["mean"])[:, i]) for n, i in zip(names, at)], 1)
    for restart, part in path.reset_index(drop=True).groupby("restart"):
        rows = part.index.to_numpy()
        axes.plot(
            *means[rows].T,
            "-",
            marker="D",
            color=COLOURS[1],
            markersize=4,
            zorder=4,
            label="mean" if restart == path.restart.iloc[0] else None,
        )
    if path.restart.nunique() > 1:
        firsts = path.reset_index(drop=True).groupby("restart").head(1).index.to_numpy()[1:]
        axes.plot(*means[firsts].T, "*", color=COLOURS[6], markersize=11, zorder=5, label="restart")
    strength = np.linspace(0.9, 0.25, len(path))[::-1]  # the latest one is the strongest
    for i, (mean, cov) in enumerate(zip(path["mean"], path["cov"])):
        outline = ellipse(np.asarray(mean)[at], np.asarray(cov)[np.ix_(at, at)])
        axes.plot(
            space[names[0]].value(outline[:, 0]),
            space[names[1]].value(outline[:, 1]),
            color=COLOURS[1],
            alpha=float(strength[i]),
            linewidth=1.0,
            label="one standard deviation" if i == len(path) - 1 else None,
        )
    for i in sorted({0, len(path) - 1}):
        axes.annotate(
            str(path.generation.iloc[i]),
            means[i],
            textcoords="offset points",
            xytext=(5, 5),
            fontsize=8,
            zorder=6,
        )


@styled
def search_map(
    trials: pd.DataFrame,
    space: Space,
    path: pd.DataFrame,
    x: str | None = None,
    y: str | None = None,
    about: str = "",
    winner: Finalist | None = None,
) -> Figure:
    """Two parameters of all trials, and where the sampler's distribution went.

    Args:
        trials: of a study.
        space: its searched parameters.
        path: from `erl.studies.data.sampler_path`.
        x, y: which parameters; by default the first two.
        about: for the caption.
        winner: of the study's finals; None without finals.
    """
    done = completed(trials)
    if not len(path):
        raise UserError("no generation of this study has ended: there is no path to show")
    names = list(path.parameters.iloc[0])
    if len(names) < 2:
        raise UserError(f"a map needs two searched numbers; this study has {', '.join(names)}")
    x, y = x or names[0], y or names[1]
    for name in (x, y):
        if name not in names:
            raise UserError(f"{name!r} was not searched (searched: {', '.join(names)})")
    at = [names.index(x), names.index(y)]
    figure, axes = new(height=4.2)
    shown = axes.scatter(
        done[x],
        done[y],
        c=done.fitness,
        cmap=SEQUENTIAL,
        norm=_shades(done.fitness),
        s=28,
        edgecolors="0.25",
        linewidths=0.5,
        zorder=3,
    )
    _draw_path(axes, path, (x, y), at, space)
    if winner is not None and {x, y} <= winner.params.keys():
        _mark_winner(axes, winner.params[x], winner.params[y])
    _scale(axes, x, space[x])
    _scale(axes, y, space[y], "y")
    figure.colorbar(shown, ax=axes, label=fitness_label(trials), pad=0.02)
    axes.legend(loc="best")
    what = {
        "CMA-ES": "the distribution that CMA-ES would have drawn from after each generation",
        "trials": "mean and covariance of the trials of each generation (this sampler has no "
        "normal distribution)",
        "tens": "mean and covariance of each ten trials (the study does not say what its sampler "
        "was)",
    }[path.source.iloc[0]]
    numbers = "tens, 0 for the first" if path.source.iloc[0] == "tens" else "generations"
    return caption(
        figure,
        f"{plural(len(done), 'completed trial')}, and {what}: means are joined, outlines are one "
        f"standard deviation, fainter for earlier ones; numbers are {numbers}.",
        about,
    )


# -- several studies --


@styled
def side_by_side(studies: Mapping[str, pd.DataFrame], about: str = "") -> Figure:
    """Several evolutions: the best so far of each, and all fitnesses.

    Args:
        studies: the trials of each, by the name that the figure shows.
        about: for the caption.
    """
    if len(studies) < 2:
        raise UserError("studies side by side: at least two are needed")
    colours, shown, drawn, left_out = looks(studies), {}, {}, []
    for name, trials in studies.items():
        try:
            completed(trials)
        except UserError as e:
            left_out.append((name, e))
        else:
            shown[name] = trials
    if not shown:
        raise left_out[0][1]
    figure, (left, right) = new(1, 2, height=3.3, sharey=True, width_ratios=(2, 1))
    rng = np.random.default_rng(0)
    for place, (name, trials) in enumerate(shown.items()):
        best, look = best_so_far(trials), colours[name]
        line = curve(left, best.trial, best.best, look, drawstyle="steps-post", label=name)
        drawn[f"{place + 1}  {name}"] = line
        done = completed(trials)
        jitter = rng.uniform(-0.18, 0.18, len(done))
        right.plot(
            place + jitter, done.fitness, look.marker, color=look.colour, alpha=0.6, markersize=3
        )
        right.plot([place - 0.3, place + 0.3], [done.fitness.median()] * 2, color="black")
    left.set_xlabel("trial")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    labels = {fitness_label(trials) for trials in shown.values()}
    left.set_ylabel(labels.pop() if len(labels) == 1 else "fitness")
    left.set_title("best so far")
    right.set_title("completed, and the median")
    right.set_xticks(range(len(shown)), [str(i + 1) for i in range(len(shown))])
    right.set_xlabel("study")
    right.set_xlim(-0.6, len(shown) - 0.4)
    legend_above(figure, drawn)
    return caption(
        figure,
        f"{plural(len(shown), 'study', 'studies')} side by side, of "
        f"{plural(sum(len(completed(trials)) for trials in shown.values()), 'completed trial')}. "
        "Fitnesses of different tasks or budgets share no scale.",
        "The best so far is a maximum over noisy values.",
        f"Left out, without a completed trial: {', '.join(name for name, _ in left_out)}."
        if left_out
        else "",
        about,
    )
