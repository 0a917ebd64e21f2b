"""Figures of learning: how fast agents learn and what they reach, over seeds.

All functions take lifetimes, a row each (`erl.study.records`), with the column `arm` for the kind
of agent, and draw intervals over seeds.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from erl.cli import plural
from erl.errors import UserError
from erl.figures.style import (
    Look,
    agent_looks,
    band,
    caption,
    curve,
    labelled,
    legend_above,
    looks,
    new,
    some_alike,
    steps_axis,
    styled,
    ticks_beside,
)
from erl.statistics import (
    SMOOTHING,
    align,
    bands,
    bootstrap_interval,
    interquartile_mean,
    number_text,
    share_reached,
    smoothed,
    steps_to,
)
from erl.studies.tables import few_seeds

RETURNS = {
    "training_return": "return of the last training episodes",
    "final_return": "return of the final policy (no exploration)",
}
# Curves of one budget end with their last episodes: not at quite the same step.
SAME_BUDGET = 0.95


def finished(lifetimes: pd.DataFrame, column: str) -> pd.DataFrame:
    """Finished lifetimes that have a value in this column, one for each arm and seed: arms in the
    order of `lifetimes`, whichever of their seeds have finished, and each by seed.

    Raises:
        UserError: there are none, they are of an evolution, or an arm has a seed twice, with
            different values.
    """
    frame = lifetimes
    if len(frame) and "arm" not in frame:
        raise UserError(
            "these lifetimes name no agents (column `arm`): of an evolution, name its test; of a "
            "training, take the lifetimes of `read_study`"
        )
    if len(frame) and column in frame:
        frame = frame[frame.state == "COMPLETE"]
        has = frame[column].map(len) > 0 if column == "curve" else frame[column].notna()
        frame = frame[has]
        for (arm, seed), part in frame[frame.duplicated(["arm", "seed"], False)].groupby(
            ["arm", "seed"]
        ):
            if any(value != part[column].iloc[0] for value in part[column]):
                raise UserError(
                    f"{arm} has several lifetimes of seed {seed}, with different values: give "
                    f"agents of several studies names of their own"
                )
        frame = frame.drop_duplicates(["arm", "seed"])
        if len(frame):
            places = {arm: i for i, arm in enumerate(dict.fromkeys(lifetimes.arm))}
            frame = frame.sort_values("seed", kind="stable")
            return frame.sort_values("arm", key=lambda arms: arms.map(places), kind="stable")
    what = "a learning curve" if column == "curve" else f"a {column.replace('_', ' ')}"
    raise UserError(f"no finished lifetime of this study has {what}")


def failed(lifetimes: pd.DataFrame) -> pd.DataFrame:
    """Lifetimes that failed and were not trained again with success: one for each arm and seed."""
    done = lifetimes[lifetimes.state == "COMPLETE"]
    gone = lifetimes[lifetimes.state == "FAIL"].drop_duplicates(["arm", "seed"])
    again = set(zip(done.arm, done.seed))
    return gone[np.array([of not in again for of in zip(gone.arm, gone.seed)], dtype=bool)]


def failed_seeds(lifetimes: pd.DataFrame) -> str:
    """`PPO 2 of 5 seeds, RES_PPO 1 of 5 seeds`: those that failed, and all that have ended."""
    gone = failed(lifetimes).groupby("arm", sort=False).seed.nunique()
    ended = lifetimes[lifetimes.state.isin(("COMPLETE", "FAIL"))].groupby("arm").seed.nunique()
    return ", ".join(f"{arm} {n} of {plural(int(ended[arm]), 'seed')}" for arm, n in gone.items())


def left_out(lifetimes: pd.DataFrame, frame: pd.DataFrame) -> str:
    """Sentences on what a figure or a table does not have; empty where it has all that ended.

    Args:
        lifetimes: of the study.
        frame: of those that are shown. A log has no final policies, so that its agents may lack.
    """
    seeds = failed_seeds(lifetimes)
    failures = f"Failed and left out: {seeds}." if seeds else ""
    return " ".join(filter(None, [failures, sentence_on_lacking(lifetimes, frame)]))


def sentence_on_lacking(lifetimes: pd.DataFrame, frame: pd.DataFrame) -> str:
    """A sentence on agents, or some of their seeds, that finished without a value; arguments as
    those of `left_out`.
    """
    if lacking := lacking_values(lifetimes, frame):
        return f"Without such values: {lacking}."
    return ""


def lacking_values(lifetimes: pd.DataFrame, frame: pd.DataFrame) -> str:
    """`PPO, RES_PPO 1 of 5 seeds`: agents all of whose finished seeds lack what is shown, or some;
    arguments as those of `left_out`.
    """
    done = lifetimes[lifetimes.state == "COMPLETE"].groupby("arm", sort=False).seed.nunique()
    shown = frame.groupby("arm").seed.nunique().reindex(done.index, fill_value=0)
    return ", ".join(
        arm if not shown[arm] else f"{arm} {n - shown[arm]} of {plural(int(n), 'seed')}"
        for arm, n in done.items()
        if shown[arm] < n
    )


def measured(frame: pd.DataFrame, column: str) -> str:
    """What a column is, for axes and captions: with the number of training episodes where all arms
    have the same.
    """
    numbers = _episodes(frame)
    if column == "training_return" and len(set(numbers.values())) == 1:
        [n] = set(numbers.values())
        return "return of the last " + (f"{n} training episodes" if n > 1 else "training episode")
    return RETURNS.get(column, column)


def episodes_of(frame: pd.DataFrame) -> str:
    """A sentence on arms whose returns are means over different numbers of episodes; else empty."""
    numbers = _episodes(frame)
    if len(set(numbers.values())) < 2:
        return ""
    each = ", ".join(f"{arm} {n}" for arm, n in numbers.items())
    return f"Returns are means over different numbers of episodes: {each}."


def _episodes(frame: pd.DataFrame) -> dict[str, int]:
    """Of each arm the episodes in whose mean a return is, where they are known."""
    if "ep_eval" not in frame:
        return {}
    known = frame.dropna(subset=["ep_eval"]).groupby("arm", sort=False).ep_eval
    return {str(arm): int(n) for arm, n in known.first().items()}


def _logged_means(frame: pd.DataFrame) -> str:
    """A sentence on arms whose curves are means over episodes before they are averaged here."""
    if "curve_over" not in frame:
        return ""
    over = frame[frame.curve_over > 1].groupby("arm", sort=False).curve_over.first()
    each = ", ".join(f"{arm} {int(n)}" for arm, n in over.items())
    return f"Points of a log are means of so many episodes before: {each}." if each else ""


def best_known(lifetimes: pd.DataFrame) -> str:
    """The column that says what agents reached: of final policies where those of all agents were
    evaluated, of training otherwise (TensorBoard logs).
    """
    done = lifetimes[lifetimes.state == "COMPLETE"] if len(lifetimes) else lifetimes
    if not len(done) or "final_return" not in done:
        return "training_return"
    known = done.final_return.notna().groupby(done.arm).any()
    return "final_return" if known.all() else "training_return"


def arms_of(frame: pd.DataFrame, order: Sequence[str] = ()) -> list[str]:
    """The arms of a frame: those of `order` first."""
    there = list(dict.fromkeys(frame.arm))
    return [a for a in order if a in there] + [a for a in there if a not in order]


def arm_looks(
    lifetimes: pd.DataFrame, frame: pd.DataFrame, order: Sequence[str] = ()
) -> dict[str, Look]:
    """How the arms of a frame are drawn, in their order.

    Args:
        lifetimes: of the study. All its arms have a look, so that one that is missing in a figure
            does not change the others.
        frame: of the figure.
        order: of the arms; those of it that are not there keep their looks too.
    """
    known = agent_looks([*order, *lifetimes.arm])
    return {arm: known[arm] for arm in arms_of(frame, order)}


def seeds_of(frame: pd.DataFrame) -> str:
    """`10 seeds`, or `3 to 10 seeds` where arms differ."""
    return seeds_text(frame.groupby("arm").seed.nunique())


def seeds_text(numbers: Collection[int]) -> str:
    """The least and the greatest of these numbers of seeds."""
    low, high = min(numbers), max(numbers)
    return plural(high, "seed") if low == high else f"{low} to {high} seeds"


def one_seed_of(frame: pd.DataFrame, missing: str) -> str:
    """A sentence on arms with one seed, which have no interval or band (`missing`); empty where all
    have more.
    """
    seeds = frame.groupby("arm", sort=False).seed.nunique()
    alone = ", ".join(seeds.index[seeds == 1])
    return f"One seed, hence no {missing}: {alone}." if alone else ""


def few_seeds_of(frame: pd.DataFrame) -> str:
    """A sentence on intervals over few seeds; empty where there are enough."""
    return sentence(few_seeds(frame.groupby("arm").seed.nunique()))


def sentence(words: str) -> str:
    """Words as a sentence of a caption; nothing where there are none."""
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _ends(frame: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Steps at which the shortest and the longest curve of each arm end, of one budget the same."""
    ends = {}
    for arm, curves in frame.groupby("arm", sort=False).curve:
        last = [c[-1][0] for c in curves]
        ends[str(arm)] = (min(last), max(last))
        if min(last) >= SAME_BUDGET * max(last):
            ends[str(arm)] = (max(last), max(last))
    return ends


def _cut_short(frame: pd.DataFrame) -> str:
    """A sentence on arms that have a curve which ends early, such as of an interrupted run."""
    cut = [
        f"{arm} at {short:,.0f} of {long:,.0f} steps"
        for arm, (short, long) in _ends(frame).items()
        if short < long
    ]
    return f"Drawn up to the end of the shortest run: {', '.join(cut)}." if cut else ""


def averaged(curves: Iterable[Sequence[Any]]) -> str:
    """Over how many points these curves are averaged: `10 points`, or fewer where they are short.

    Args:
        curves: as they are stored; those without points are not shown.
    """
    windows = {min(SMOOTHING, len(each)) for each in curves if len(each)} or {SMOOTHING}
    low, high = min(windows), max(windows)
    return plural(high, "point") if low == high else f"{low} to {high} points"


@styled
def learning_curves(lifetimes: pd.DataFrame, order: Sequence[str] = (), about: str = "") -> Figure:
    """Interquartile mean over seeds of each arm's learning curves, with 95 % bootstrap bands.

    Args:
        lifetimes: of a test, of single runs, or of TensorBoard logs.
        order: of the arms.
        about: for the caption.
    """
    frame = finished(lifetimes, "curve")
    figure, axes = new(height=3.6)
    arms, drawn = arm_looks(lifetimes, frame, order), {}
    plain: list[str] = []
    apart: list[str] = []
    for arm, look in arms.items():
        curves = list(frame[frame.arm == arm].curve)
        steps, values = align([smoothed(c) for c in curves])
        if not len(steps):  # short curves, whose averages are of their ends
            steps, values = align(curves)
            (plain if len(steps) else apart).append(arm)
        if not len(steps):
            continue
        centre, low, high = bands(values)
        drawn[arm] = curve(axes, steps, centre, look, label=arm)
        if len(curves) > 1:
            band(axes, steps, low, high, look)
    if not drawn:
        raise UserError(f"the curves of {', '.join(apart)} have no range of steps in common")
    steps_axis(axes)
    axes.set_ylabel("return of training episodes")
    legend_above(figure, drawn)
    return caption(
        figure,
        f"Learning curves over {seeds_of(frame)}: interquartile mean and pointwise 95 % bootstrap "
        f"band; each curve, of at most 200 points, averaged over {averaged(frame.curve)}.",
        f"Not averaged, since they are short: {', '.join(plain)}." if plain else "",
        f"Left out, since their curves share no steps: {', '.join(apart)}." if apart else "",
        some_alike(arms),
        one_seed_of(frame, "band"),
        few_seeds_of(frame),
        left_out(lifetimes, frame),
        _logged_means(frame),
        _cut_short(frame),
        about,
    )


@styled
def lifetime_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The learning curve of each lifetime of a trial.

    Args:
        curves: by the name of the lifetime, points (steps, return).
    """
    figure, axes = new(height=2.8)
    for name, look in looks(curves).items():
        steps, returns = zip(*smoothed(curves[name]))
        curve(axes, steps, returns, look, label=name)
    steps_axis(axes)
    axes.set_ylabel("return of training episodes")
    if 1 < len(curves) <= 10:
        legend_above(figure, labelled(axes))
    over = averaged(curves.values())
    return caption(
        figure,
        f"Learning curves of {plural(len(curves), 'lifetime')}, of at most 200 points, averaged "
        f"over {over}.",
    )


@styled
def interquartile_means(
    lifetimes: pd.DataFrame,
    column: str = "training_return",
    order: Sequence[str] = (),
    about: str = "",
) -> Figure:
    """What each arm reached: every seed, interquartile mean, 95 % bootstrap interval.

    Args:
        lifetimes: of a test or of single runs.
        column: `training_return` or `final_return`.
        order: of the arms, from above.
        about: for the caption.
    """
    frame = finished(lifetimes, column)
    arms = arm_looks(lifetimes, frame, order)
    figure, axes = new(height=0.9 + 0.42 * len(arms))
    for row, (arm, look) in enumerate(arms.items()):
        values = frame[frame.arm == arm][column].to_numpy(dtype=float)
        axes.plot(
            values,
            row + np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [row],
            look.marker,
            color=look.colour,
            alpha=0.45,
            markersize=3.5,
        )
        low, high = bootstrap_interval(values, interquartile_mean)
        axes.plot([low, high], [row, row], color=look.colour, linewidth=3, solid_capstyle="butt")
        axes.plot(
            interquartile_mean(values),
            row,
            "|",
            color="black",
            markersize=14,
            markeredgewidth=2,
        )
    ticks_beside(axes, arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(measured(frame, column))
    return caption(
        figure,
        f"Interquartile mean (black) and its 95 % bootstrap interval (bar) over "
        f"{seeds_of(frame)}; each seed is a small mark.",
        one_seed_of(frame, "interval"),
        few_seeds_of(frame),
        left_out(lifetimes, frame),
        episodes_of(frame),
        about,
    )


def usual_thresholds(lifetimes: pd.DataFrame) -> list[float]:
    """Three returns that are worth reaching: evenly between the lowest interquartile mean that an
    arm begins with and the highest that one ends with.
    """
    frame = finished(lifetimes, "curve")
    curves = frame.curve.map(smoothed)
    begins, ends = (
        curves.map(lambda c, i=i: c[i][1]).groupby(frame.arm).apply(interquartile_mean)
        for i in (0, -1)
    )
    low, high = begins.min(), ends.max()
    return [float(low + (high - low) * quarter / 4) for quarter in (1, 2, 3)]


def threshold_names(thresholds: Sequence[float]) -> dict[float, str]:
    """Each threshold as text: as other numbers, or with so many digits that all differ."""
    values = list(dict.fromkeys(thresholds))
    names = {t: number_text(t) for t in values}
    digits = 4
    while len(set(names.values())) < len(values) and digits < 18:
        names = {t: f"{t:,.{digits}g}" for t in values}
        digits += 1
    return names


def steps_to_thresholds(
    lifetimes: pd.DataFrame, thresholds: Sequence[float] | None = None
) -> pd.DataFrame:
    """Steps that each lifetime needed for each return.

    Args:
        lifetimes: with curves.
        thresholds: returns; by default `usual_thresholds`.

    Returns:
        Columns `arm`, `seed`, `threshold`, `steps` (infinity where it was never reached). A seed
        that failed has not reached it, where others of its arm have a curve.
    """
    frame = finished(lifetimes, "curve")
    wanted = usual_thresholds(lifetimes) if thresholds is None else thresholds
    wanted = list(dict.fromkeys(wanted))  # one that is given twice counts once
    rows = [
        (row.arm, row.seed, t, steps_to(row.curve, t)) for t in wanted for row in frame.itertuples()
    ]
    gone = failed(lifetimes)
    gone = gone[gone.arm.isin(frame.arm)]
    rows += [(row.arm, row.seed, t, math.inf) for t in wanted for row in gone.itertuples()]
    return pd.DataFrame(rows, columns=["arm", "seed", "threshold", "steps"])


@styled
def sample_efficiency(
    lifetimes: pd.DataFrame,
    thresholds: Sequence[float] | None = None,
    order: Sequence[str] = (),
    about: str = "",
) -> Figure:
    """Share of seeds that have reached a return, over steps: how many samples it takes.

    Seeds that never reach it, also those that failed, keep the curve below 1: nothing has to be
    assumed about them, unlike with a mean of steps. The line of an arm ends with its budget, since
    nobody knows what follows.

    Args:
        lifetimes: with curves.
        thresholds: returns, a panel each; by default `usual_thresholds`.
        order: of the arms.
        about: for the caption.
    """
    needed = steps_to_thresholds(lifetimes, thresholds)
    frame = finished(lifetimes, "curve")
    wanted = threshold_names(needed.threshold)
    ends = _ends(frame)
    arms, drawn = arm_looks(lifetimes, frame, order), {}
    figure, row = new(1, len(wanted), height=2.8, sharey=True, squeeze=False)
    for axes, (threshold, name) in zip(row[0], wanted.items()):
        for arm, look in arms.items():
            part = needed[(needed.arm == arm) & (needed.threshold == threshold)].steps
            end = ends[arm][0]
            at = np.array([0.0, *np.sort(part[part <= end]), end])
            shares = share_reached(part, at)
            drawn[arm] = curve(axes, at, shares, look, drawstyle="steps-post", label=arm)
        axes.set_title(f"return {name}")
        axes.set_ylim(-0.02, 1.02)
        steps_axis(axes, "steps")
    row[0, 0].set_ylabel("share of seeds")
    legend_above(figure, drawn)
    seeds = failed_seeds(lifetimes)
    return caption(
        figure,
        f"Sample efficiency: share of {seeds_of(needed)} whose training return, averaged over "
        f"{averaged(frame.curve)} of the curve, has reached the return above each panel. Each line "
        "ends with the budget of its agent.",
        some_alike(arms),
        f"Failed, and counted as never reaching it: {seeds}." if seeds else "",
        sentence_on_lacking(lifetimes, frame),
        _logged_means(frame),
        _cut_short(frame),
        about,
    )
