"""Figures of both levels of evolution: the trials, and what happened within the lifetimes of some.

Data frames and `about` are those of `erl.figures.evolution`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from erl.cli import plural
from erl.errors import UserError
from erl.figures.evolution import completed, fitness_label, states
from erl.figures.learning import arm_looks, averaged
from erl.figures.style import (
    Look,
    band,
    caption,
    curve,
    environment_names,
    legend_above,
    looks,
    new,
    steps_axis,
    styled,
    wrapped,
)
from erl.statistics import smoothed


def chosen_trials(trials: pd.DataFrame, with_lifetimes: Sequence[int]) -> dict[str, int]:
    """The best, a middle and the worst completed trial of those that have lifetimes. Of equals the
    one with the lowest number is the best, as in `Study.best`.
    """
    done = completed(trials)
    done = done[done.trial.isin(list(with_lifetimes))]
    done = done.sort_values(["fitness", "trial"], ascending=[True, False])
    if not len(done):
        raise UserError("no completed trial of this study stores its lifetimes")
    picks = {"best": len(done) - 1, "middle": (len(done) - 1) // 2, "worst": 0}
    chosen: dict[str, int] = {}
    for name, i in picks.items():
        number = int(done.trial.iloc[i])
        if number not in chosen.values():
            chosen[name] = number
    return chosen


@styled
def two_levels(
    trials: pd.DataFrame,
    lifetimes: pd.DataFrame,
    generations: pd.DataFrame,
    chosen: Mapping[str, int] | None = None,
    about: str = "",
    order: Sequence[str] = (),
) -> Figure:
    """Evolution over development above, and development within chosen trials below.

    Above, the fitness of all trials, of an evolution by generation. Below, for chosen trials, what
    happened within their lifetimes: the inner evolution's generations where the learner is a
    population, learning curves otherwise.

    Args:
        trials: of an evolution, or of agents: a test, or single runs.
        lifetimes: its records; those of agents have the column `arm`.
        generations: of the inner evolutions; may be empty.
        chosen: numbers of trials by their title; by default the best, a middle and the worst one,
            of those that have such generations if there are any.
        about: for the caption.
        order: of agents, which have the colours of other figures with this order.
    """
    done = completed(trials)
    inner = "fitness" in generations and bool(generations.fitness.notna().any())
    told = generations if inner else lifetimes
    picks = (
        dict(chosen)
        if chosen is not None
        else chosen_trials(trials, told.trial.unique() if len(told) else [])
    )
    missing = [n for n in picks.values() if n not in set(done.trial)]
    if missing:
        raise UserError(f"trial {missing[0]} has no fitness: it cannot be shown")
    stored = set(told.trial) if len(told) else set()
    missing = [n for n in picks.values() if n not in stored]
    if missing:
        what = "generations of an inner evolution" if inner else "lifetimes"
        raise UserError(f"trial {missing[0]} stores no {what}: it cannot be shown")
    shown = lifetimes[lifetimes.trial.isin(picks.values())]
    agents = dict(zip(shown.trial, shown.arm)) if "arm" in shown else {}
    marks = {name: replace(look, line="-") for name, look in looks(picks).items()}
    if agents:
        known = arm_looks(lifetimes, shown, order)
        marks = {
            name: replace(known[agents[number]], marker=marks[name].marker)
            for name, number in picks.items()
        }
    figure = new(height=4.8)[0]
    figure.clear()
    grid = figure.add_gridspec(2, len(picks), height_ratios=(1, 1.1))
    top = figure.add_subplot(grid[0, :])
    _all_trials(top, done, picks, marks, bool(agents))
    places = [*dict.fromkeys(shown.env_id)] if "env_id" in shown else []
    drawn: dict[str, Any] = {}
    below: Any = None
    for i, (name, number) in enumerate(picks.items()):
        below = figure.add_subplot(grid[1, i], sharey=below)
        if inner:
            _inner_generations(below, generations[generations.trial == number], marks[name])
        else:
            _curves(below, lifetimes[lifetimes.trial == number], marks[name], places)
        drawn |= {what: handle for handle, what in zip(*below.get_legend_handles_labels())}
        agent = f"\n{agents[number]}" if agents else ""
        below.set_title(
            f"{name}: trial {number}{agent}",
            color=marks[name].colour,
            fontsize=7 if agents else None,
        )
        steps_axis(below, "steps within a lifetime")
        if i == 0:
            below.set_ylabel("return")
    # What differs below are lines; their colours are those of the trials.
    legend_above(figure, drawn, "within a lifetime (below)", "black")
    what = (
        f"generations of the inner evolution ({' and '.join(drawn)})"
        if inner
        else f"learning curves of its lifetimes (mean of {averaged(shown.curve)})"
    )
    above = "Fitness of trials" if agents else "Evolution over development"
    remark = "" if agents else "The best is a maximum over noisy values."
    return caption(
        figure,
        f"{above} (above) and development within {plural(len(picks), 'trial')} (below): {what}, "
        f"{_lived(shown)}.",
        f"Above are the completed ones of {states(trials)}" if len(done) < len(trials) else "",
        remark,
        about,
    )


def _all_trials(
    axes: Axes,
    done: pd.DataFrame,
    picks: Mapping[str, int],
    marks: Mapping[str, Look],
    agents: bool,
) -> None:
    """The fitness of all trials, with marks on those that are picked.

    Args:
        axes: to draw in.
        done: the trials.
        picks: numbers of trials by their title.
        marks: how each looks, by the same titles.
        agents: whether trials are agents, which are not tried one after the other to find the best.
    """
    by_generation = "generation" in done and bool(done.generation.notna().all())
    outer = done.generation if by_generation else done.trial
    axes.plot(outer, done.fitness, "o", color="0.6", label="trial")
    if by_generation:
        mean = done.groupby("generation").fitness.mean()
        plain = Look("black", "_", "-")
        curve(axes, mean.index, mean, plain, markersize=12, label="mean of the generation")
    if not agents:
        best = done.assign(outer=outer).groupby("outer").fitness.max().cummax()
        axes.step(best.index, best, where="post", color="black", linestyle=":", label="best")
    for name, number in picks.items():
        row = done[done.trial == number].iloc[0]
        axes.plot(
            outer[row.name],
            row.fitness,
            marker=marks[name].marker,
            markersize=9,
            markerfacecolor="none",
            markeredgewidth=2,
            color=marks[name].colour,
            linestyle="none",
        )
    axes.set_xlabel("generation of the outer evolution" if by_generation else "trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(wrapped(fitness_label(done), 22))
    axes.margins(y=0.12)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _lived(lifetimes: pd.DataFrame) -> str:
    """How many lifetimes a trial has: `3 seeds each`, or `3 seeds each in 2 environments`."""
    places = lifetimes.env_id.nunique() if "env_id" in lifetimes else 1
    by = ["trial", "env_id"] if places > 1 else ["trial"]
    seeds = plural(int(lifetimes.groupby(by).size().max()), "seed")
    return f"{seeds} each in {places} environments" if places > 1 else f"{seeds} each"


def _curves(axes: Axes, records: pd.DataFrame, look: Look, places: Sequence[str]) -> None:
    """A line for each lifetime; of several environments (`places`) each has its style and name."""
    several = len(places) > 1
    lines = {place: each.line if several else look.line for place, each in looks(places).items()}
    names = environment_names(places)
    for place, points in zip(records.get("env_id", [""] * len(records)), records.curve):
        if len(points):
            steps, returns = zip(*smoothed(points))
            curve(
                axes,
                steps,
                returns,
                replace(look, line=lines.get(place, look.line)),
                alpha=0.8,
                linewidth=1.0,
                label=names[place] if several else None,
            )


def population_range(generations: pd.DataFrame) -> pd.DataFrame:
    """What a population reached in each kept generation of a lifetime: columns `steps`, `low`,
    `high`, `middle` (of its members' fitness).
    """
    rows = []
    for steps, fitness in zip(generations.steps, generations.fitness):
        values = np.asarray(
            [f for f in fitness if f is not None] if isinstance(fitness, list | tuple) else [],
            dtype=float,
        )
        values = values[np.isfinite(values)]
        if len(values):
            rows.append((steps, values.min(), values.max(), float(np.median(values))))
    return pd.DataFrame(rows, columns=["steps", "low", "high", "middle"])


def _inner_generations(axes: Axes, generations: pd.DataFrame, look: Look) -> None:
    for _, part in generations.groupby("lifetime"):
        spread = population_range(part)
        if len(spread) and (spread.low == spread.high).all():  # they come one by one
            axes.plot(spread.steps, spread.low, ".", color=look.colour, markersize=3)
            axes.lines[-1].set_label("individual")
        elif len(spread):
            drawn = band(axes, spread.steps, spread.low, spread.high, look, strength=0.2)
            drawn.set_label("population")
        if "champion_return" in part and part.champion_return.notna().any():
            champion = part.dropna(subset=["champion_return"])
            curve(
                axes,
                champion.steps,
                champion.champion_return,
                look,
                label="champion",
            )
