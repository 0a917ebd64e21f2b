"""Figures and tables that compare agents: probability of improvement, performance profiles, tests
with Holm's correction, generalisation.

All functions take lifetimes of a test, a row each (`erl.study.records`, with the column `arm`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from erl.cli import plural
from erl.errors import UserError, nearest
from erl.figures.learning import (
    RETURNS,
    arm_looks,
    arms_of,
    episodes_of,
    failed_seeds,
    few_seeds_of,
    finished,
    lacking_values,
    left_out,
    measured,
    one_seed_of,
    seeds_of,
    seeds_text,
    sentence,
    steps_to_thresholds,
    threshold_names,
)
from erl.figures.style import (
    LETTERS_AN_INCH,
    WIDTH,
    band,
    caption,
    curve,
    legend_above,
    new,
    some_alike,
    styled,
    ticks_below,
    ticks_beside,
    wrapped,
)
from erl.files import write_text, writing
from erl.statistics import (
    Compared,
    compare,
    interval_text,
    number_text,
    performance_profile,
    profile_band,
)
from erl.studies.tables import few_seeds, to_latex, to_markdown

ALPHA = 0.05
CELL_WIDTH = 0.95  # inches: of a cell of the matrix of generalisation, at least


def family(
    lifetimes: pd.DataFrame,
    baseline: str | None = None,
    column: str = "training_return",
    order: Sequence[str] = (),
) -> pd.DataFrame:
    """Every arm against the baseline: one family of tests, corrected by Holm's method.

    Args:
        lifetimes: of a test.
        baseline: an arm; by default the first one.
        column: what is compared, `training_return` or `final_return`.
        order: of the arms.

    Returns:
        A row for each arm: `arm`, `seeds`, `iqm`, `iqm_low`, `iqm_high` (95 % bootstrap), and
        against the baseline, NaN in its own row: `probability` of improvement with `low` and
        `high`, `p` (Mann and Whitney, two-sided) and `p_holm`.

    Raises:
        UserError: no finished lifetime, one arm only, or an unknown baseline.
    """
    found, baseline = _compared(lifetimes, baseline, column, order)
    if len(found) < 2:
        raise UserError(f"there is one arm only, {baseline}: nothing to compare it with")
    rows = [
        {
            "arm": each.name,
            "seeds": each.seeds,
            "iqm": each.iqm,
            "iqm_low": each.interval[0],
            "iqm_high": each.interval[1],
            "probability": each.probability,
            "low": each.probability_interval[0],
            "high": each.probability_interval[1],
            "p": each.p,
            "p_holm": each.p_holm,
        }
        for each in found
    ]
    table = pd.DataFrame(rows)
    table.attrs["baseline"] = baseline
    return table


def _said_of_p(comparisons: int, column: str, selected: str | None) -> str:
    """The test behind p-values, its sides and its family; or why there are none."""
    if selected is not None and selected != column:
        return f"No p: the evolution selected for the {RETURNS[selected]}."
    return (
        "p: Mann and Whitney's test, two-sided, corrected by Holm's method for "
        f"{plural(comparisons, 'comparison')}."
    )


def _compared(
    lifetimes: pd.DataFrame, baseline: str | None, column: str, order: Sequence[str]
) -> tuple[list[Compared], str]:
    """Every arm against the baseline, and its name; arguments and errors as those of `family`."""
    frame = finished(lifetimes, column)
    arms = arms_of(frame, order)
    if baseline is not None and baseline not in arms:
        if baseline in set(lifetimes.arm):
            raise UserError(f"no finished lifetime of {baseline}, with which others are compared")
        raise UserError(f"no arm is called {baseline!r}{nearest(baseline, arms)}")
    scores = {arm: frame[frame.arm == arm][column].to_numpy(dtype=float) for arm in arms}
    return compare(scores, baseline or arms[0]), baseline or arms[0]


@styled
def improvement(
    lifetimes: pd.DataFrame,
    baseline: str | None = None,
    column: str = "training_return",
    order: Sequence[str] = (),
    about: str = "",
    selected: str | None = None,
) -> Figure:
    """Probability that each arm does better than the baseline, with 95 % bootstrap intervals and
    p-values after Holm's correction. `selected` is that of `results_table`: figures of another
    column have no p-values.
    """
    table = family(lifetimes, baseline, column, order)
    baseline = table.attrs["baseline"]
    rows = table[table.arm != baseline].reset_index(drop=True)
    tested = selected in (None, column)
    frame = finished(lifetimes, column)
    looks = arm_looks(lifetimes, frame, order)
    figure, axes = new(height=1.0 + 0.42 * len(rows))
    for i, row in enumerate(rows.itertuples()):
        look = looks[row.arm]
        axes.plot([row.low, row.high], [i, i], color=look.colour, linewidth=3)
        axes.plot(
            row.probability,
            i,
            look.marker,
            color="black",
            markersize=6,
            markeredgecolor="white",
            clip_on=False,
            zorder=3,
        )
        if tested:
            said = f"p = {row.p_holm:.2g}" + (" *" if row.p_holm <= ALPHA else "")
            axes.text(1.03, i, said, va="center", fontsize=8)
    axes.axvline(0.5, color="0.4", linestyle="--", linewidth=1)
    ticks_beside(axes, rows.arm)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(wrapped(f"P(arm > {baseline}), {measured(frame, column)}", 56))
    without = ", ".join(rows.arm[rows.low.isna()])
    return caption(
        figure,
        f"Probability of improvement over {baseline}, and 95 % bootstrap interval, "
        f"{seeds_of(frame)}.",
        _said_of_p(len(rows), column, selected) + f" * at most {ALPHA}." * tested,
        f"One seed, of the agent or of {baseline}, hence no interval: {without}."
        if without
        else "",
        "An interval without width says only that no pair of these seeds went the other way."
        if any(rows.low == rows.high)
        else "",
        few_seeds_of(frame),
        left_out(lifetimes, frame),
        episodes_of(frame),
        about,
    )


@styled
def performance_profiles(
    lifetimes: pd.DataFrame,
    column: str = "training_return",
    order: Sequence[str] = (),
    about: str = "",
) -> Figure:
    """Share of seeds of each arm above every return, with pointwise 95 % bootstrap bands."""
    frame = finished(lifetimes, column)
    values = frame[column].to_numpy(dtype=float)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, 300)
    figure, axes = new(height=3.2)
    arms, drawn = arm_looks(lifetimes, frame, order), {}
    for arm, look in arms.items():
        scores = frame[frame.arm == arm][column].to_numpy(dtype=float)
        shares = performance_profile(scores, thresholds)
        drawn[arm] = curve(axes, thresholds, shares, look, label=arm)
        if len(scores) > 1:
            band(axes, thresholds, *profile_band(scores, thresholds), look, strength=0.13)
    axes.set_xlabel(f"τ, {measured(frame, column)}")
    axes.set_ylabel("share of seeds above τ")
    axes.set_ylim(-0.02, 1.02)
    legend_above(figure, drawn)
    return caption(
        figure,
        f"Performance profiles over {seeds_of(frame)}, with pointwise 95 % bootstrap bands: a "
        "higher curve is better, and curves that cross have no order.",
        some_alike(arms),
        one_seed_of(frame, "band"),
        few_seeds_of(frame),
        left_out(lifetimes, frame),
        episodes_of(frame),
        about,
    )


# -- generalisation --


def generalisation(
    tests: Mapping[tuple[str, str], tuple[pd.DataFrame, str, str]],
    column: str = "training_return",
) -> pd.DataFrame:
    """How an arm with reservoirs evolved in one place does in another, against the learner alone.

    Args:
        tests: by (evolved on, tested on): the test's lifetimes, its baseline, and the arm.
        column: what is compared.

    Returns:
        Columns `evolved_on`, `tested_on`, `arm`, `seeds`, `iqm`, `baseline_seeds`,
        `baseline_iqm`, `probability` of improvement over the baseline, and the ends of its 95 %
        bootstrap interval, `low` and `high`. A test in which one of the two has no finished
        lifetime has no row. `attrs["measured"]` is what was compared, and `attrs["remarks"]` says
        what was left out.

    Raises:
        UserError: no test has finished lifetimes of both.
    """
    rows, without, failures, lacking, measures = [], [], [], [], set()
    for (evolved, tested), (lifetimes, baseline, arm) in tests.items():
        ended = lifetimes[lifetimes.state == "COMPLETE"] if len(lifetimes) else lifetimes
        done = set(ended.dropna(subset=[column]).arm) if column in ended else set()
        missing = [each for each in (arm, baseline) if each not in done]
        if missing:
            without.append((evolved, tested, f"no finished lifetime of {missing[0]}"))
            continue
        both = lifetimes[lifetimes.arm.isin((arm, baseline))]
        found = {each.name: each for each in _compared(both, baseline, column, ())[0]}
        one, other = found[arm], found[baseline]
        measures.add(measured(both, column))
        if seeds := failed_seeds(both):
            failures.append(f"{seeds} on {tested}")
        if seeds := lacking_values(both, finished(both, column)):
            lacking.append(f"{seeds} on {tested}")
        low, high = one.probability_interval
        rows.append(
            {
                "evolved_on": evolved,
                "tested_on": tested,
                "arm": arm,
                "seeds": one.seeds,
                "iqm": one.iqm,
                "baseline_seeds": other.seeds,
                "baseline_iqm": other.iqm,
                "probability": one.probability,
                "low": low,
                "high": high,
            }
        )
    if not rows:
        _, tested, why = without[0]
        raise UserError(f"the test on {tested} has {why}")
    matrix = pd.DataFrame(rows)
    matrix.attrs["measured"] = measures.pop() if len(measures) == 1 else RETURNS[column]
    matrix.attrs["remarks"] = [
        "; ".join(f"Left out: evolved on {e}, tested on {t}, {why}" for e, t, why in without),
        "; ".join(f"Failed and left out: {each}" for each in failures),
        "; ".join(f"Without such values: {each}" for each in lacking),
    ]
    return matrix


@styled
def generalisation_matrix(matrix: pd.DataFrame, about: str = "") -> Figure:
    """Probability of improvement over the learner alone: evolved on (rows) x tested on (columns).

    Args:
        matrix: from `generalisation`.
        about: for the caption.
    """
    rows = list(dict.fromkeys(matrix.evolved_on))
    columns = list(dict.fromkeys(matrix.tested_on))
    values = np.full((len(rows), len(columns)), np.nan)
    figure, axes = new(
        height=1.5 + 0.72 * len(rows), width=max(WIDTH, 3.1 + CELL_WIDTH * len(columns))
    )
    for cell in matrix.itertuples():
        i, j = rows.index(cell.evolved_on), columns.index(cell.tested_on)
        values[i, j] = cell.probability
        dark = abs(cell.probability - 0.5) > 0.3
        axes.text(
            j,
            i,
            f"{cell.probability:.2f}\n{interval_text((cell.low, cell.high), '{:.2f}')}\n"
            f"{number_text(cell.iqm)}\n({number_text(cell.baseline_iqm)})",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    shown = axes.imshow(values, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
    letters = int(LETTERS_AN_INCH * max(3.4, CELL_WIDTH * len(columns)))
    ticks_below(axes, columns, letters)
    axes.set_yticks(range(len(rows)), [wrapped(name, 30) for name in rows])
    axes.set_xlabel("tested on")
    axes.set_ylabel("reservoir")
    axes.grid(False)
    figure.colorbar(shown, ax=axes, label="P(agent >\nlearner alone)", pad=0.02)
    numbers = [*matrix.seeds, *matrix.baseline_seeds]
    return caption(
        figure,
        "Generalisation: probability that an agent with a reservoir, which is called by what it "
        "was evolved on, does better than the learner alone; below it the 95 % bootstrap "
        "interval, then the interquartile mean of the "
        f"{matrix.attrs['measured']}, and the learner's in brackets. "
        f"{seeds_text(numbers)} of each agent.",
        "No interval where one of them has one seed." if 1 in numbers else "",
        sentence(few_seeds(numbers)),
        *(f"{remark}." for remark in matrix.attrs["remarks"] if remark),
        about,
    )


# -- tables --


def results_table(
    lifetimes: pd.DataFrame,
    baseline: str | None = None,
    column: str = "training_return",
    order: Sequence[str] = (),
    thresholds: Sequence[float] | None = None,
    selected: str | None = None,
) -> pd.DataFrame:
    """The table of a paper: arm, seeds, IQM, probability of improvement, p, steps to a threshold.

    All cells are text, with "-" where a value does not exist.

    Args:
        lifetimes: of a test or of single runs.
        baseline: an arm; by default the first one.
        column: what is shown, `training_return` or `final_return`.
        order: of the arms.
        thresholds: returns, by default `learning.usual_thresholds`. They are of training: a table
            of final policies has no steps to them.
        selected: the column that the evolution selected for, which was the measure before the test
            began. The table of the other one has no p-values. None without an evolution.

    Returns:
        A row for each arm. `attrs["remark"]` says what the columns are, which seeds failed, and
        what intervals over few seeds are worth.

    Raises:
        UserError: no finished lifetime, or none of the baseline.
    """
    frame = finished(lifetimes, column)
    found, baseline = _compared(lifetimes, baseline, column, order)
    needed, names = None, {}
    if column == "training_return" and "curve" in lifetimes and lifetimes.curve.map(len).any():
        needed = steps_to_thresholds(lifetimes, thresholds)
        names = threshold_names(needed.threshold)
    rows = []
    for each in found:
        row = {
            "arm": each.name,
            "seeds": str(each.seeds),
            "IQM": number_text(each.iqm),
            "95 % interval": interval_text(each.interval),
        }
        if len(found) > 1:
            row[f"P(arm > {baseline})"] = number_text(each.probability, "{:.2f}")
            row["95 % interval of P"] = interval_text(each.probability_interval, "{:.2f}")
        if len(found) > 1 and selected in (None, column):
            row["p (Holm)"] = number_text(each.p_holm, "{:.2g}")
        if needed is not None:
            for t, name in names.items():
                steps = needed[(needed.arm == each.name) & (needed.threshold == t)].steps
                row[f"median steps to {name}"] = _steps(steps)
        rows.append(row)
    shown = pd.DataFrame(rows)
    remarks = [
        f"IQM: interquartile mean of the {measured(frame, column)}.",
        "Intervals: 95 % percentile bootstrap over seeds.",
        f"P: probability that a seed of an agent does better than one of {baseline}. "
        + _said_of_p(len(found) - 1, column, selected)
        if len(found) > 1
        else "",
        "Steps: median over seeds, of curves as in the figures of learning; in brackets how many "
        "seeds got there. Seeds that failed or ended early count as those that did not."
        if needed is not None
        else "",
        left_out(lifetimes, frame),
        episodes_of(frame),
        few_seeds_of(frame),
    ]
    shown.attrs["remark"] = " ".join(filter(None, remarks))
    return shown


def _steps(steps: pd.Series) -> str:
    """Median, and how many seeds got there; "-" without a curve."""
    if not len(steps):
        return "-"
    # NumPy's interpolation between a number and infinity gives NaN.
    middle = float(np.mean([np.quantile(steps, 0.5, method=m) for m in ("lower", "higher")]))
    reached = f"{int(np.isfinite(steps).sum())}/{len(steps)}"
    return f"{middle:,.0f} ({reached})" if np.isfinite(middle) else f"- ({reached})"


def write_tables(table: pd.DataFrame, folder: str | Path, name: str, text: str = "") -> list[Path]:
    """Write a table as CSV, Markdown and LaTeX, each file whole or not at all.

    Args:
        table: of text cells. A remark on it (`attrs["remark"]`) stands below it in Markdown, and in
            the caption in LaTeX; a CSV file holds cells only.
        folder: of the files.
        name: of the files.
        text: the caption in LaTeX.

    Returns:
        Their paths.

    Raises:
        UserError: the folder cannot be written.
    """
    remark = table.attrs.get("remark", "")
    contents = {
        "csv": table.to_csv(index=False),
        "md": to_markdown(table) + (f"\n{remark}\n" if remark else ""),
        "tex": to_latex(table, " ".join(filter(None, [text, remark])), f"tab:{name}"),
    }
    paths = []
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for ending, content in contents.items():
            path = Path(folder) / f"{name}.{ending}"
            write_text(path, content)
            paths.append(path)
    return paths
