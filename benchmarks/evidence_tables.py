"""The tables and figures of `evidence.py`, as functions of the stored rows of experiments."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from evidence_plan import Comparison, Member
from matplotlib.figure import Figure
from scipy import stats

from erl.errors import UserError
from erl.experiments.arms import arm_lifetime
from erl.figures.comparison import generalisation, results_table
from erl.figures.style import caption, legend_above, looks, new, styled, ticks_beside
from erl.statistics import (
    bootstrap_interval,
    holm,
    interquartile_mean,
    interval_text,
    mann_whitney,
    number_text,
    probability_of_improvement,
)
from erl.studies.configuration import EvolutionStudy, TestStudy
from erl.worlds.reservoirs import memory_profile
from erl.worlds.specification import from_json, to_json

# Chosen before anything ran: what the evolutions select for. The final policy is shown beside it,
# without tests.
PRIMARY, SECONDARY = "training_return", "final_return"
LAGS = 64  # the longest lag of a memory capacity, in steps
# Of a stored evolution that an entry of the catalogue leaves out.
NOT_LISTED = ("config_version", "start", "warm_start", "popsize", "references")


def matching(member: Member, group: str, names: Sequence[str]) -> list[str]:
    """The experiments of a member in a group."""
    pattern = member.experiments.format(group=group)
    return [name for name in names if fnmatchcase(name, pattern)]


def scores_of(
    member: Member,
    group: str,
    rows: Mapping[str, pd.DataFrame],
    roots: Mapping[str, int],
) -> dict[str, pd.Series]:
    """By environment: the scores of a member, indexed by (root seed, test seed).

    Args:
        rows: of each experiment.
        roots: the root seed of each experiment, from which its test seeds are drawn.
    """
    found: dict[str, list[pd.Series]] = {}
    for name in matching(member, group, [*rows]):
        frame = rows[name]
        frame = frame[
            (frame.arm == member.arm) & frame.study.str.contains(member.study, regex=False)
        ]
        for env_id, part in frame.dropna(subset=[PRIMARY]).groupby("env_id"):
            places = pd.MultiIndex.from_arrays([[roots[name]] * len(part), part.seed])
            series = pd.Series(part[PRIMARY].to_numpy(dtype=float), index=places)
            found.setdefault(str(env_id), []).append(series)
    return {env_id: pd.concat(parts) for env_id, parts in found.items()}


def compared(
    comparison: Comparison,
    rows: Mapping[str, pd.DataFrame],
    roots: Mapping[str, int],
) -> pd.DataFrame:
    """Each member against the baseline within each group: one family, corrected by Holm's method.
    Tests that are planned and have not all of their scores yet count with p = 1, so that a p-value
    does not grow when they come.

    Args:
        rows: of each experiment that has them.
        roots: the root seed of each experiment that is planned.

    Returns:
        Columns `group`, `env_id`, `member`, `seeds`, `iqm`, `low`, `high` (95 % bootstrap), and in
        rows of other members than the baseline `pairs`, `difference` (of paired scores, or NaN)
        with `difference_low`, `difference_high` and `by_root`, `probability` of improvement, `p`
        and `p_holm`, which are NaN while an experiment of the test has no rows. Empty without
        scores.
    """
    cells: dict[tuple[str, str], dict[str, pd.Series]] = {}
    for group in comparison.groups:
        for member in comparison.members:
            found = scores_of(member, group, rows, roots)
            for env_id, scores in found.items():
                cells.setdefault((group, env_id), {})[member.label] = scores
    if comparison.averaged:
        cells = averaged(comparison, cells)
    lines = []
    for (group, env_id), of in cells.items():
        for label, scores in of.items():
            low, high = bootstrap_interval(scores.to_numpy(), interquartile_mean)
            line = {
                "group": group,
                "env_id": env_id,
                "member": label,
                "seeds": len(scores),
                "iqm": interquartile_mean(scores.to_numpy()),
                "low": low,
                "high": high,
            }
            if label != comparison.baseline and comparison.baseline in of:
                line |= against(scores, of[comparison.baseline], comparison.paired)
                groups = comparison.groups if comparison.averaged else (group,)
                if lacking(comparison, label, groups, rows, roots):
                    line["p"] = np.nan
            lines.append(line)
    table = pd.DataFrame(lines)
    if "p" in table:
        p = table.p[table.p.notna()]
        missing = np.ones(max(0, comparison.tests - len(p)))
        table.loc[p.index, "p_holm"] = holm(np.concatenate([p, missing]))[: len(p)]
    return table


def lacking(
    comparison: Comparison,
    label: str,
    groups: Sequence[str],
    rows: Mapping[str, pd.DataFrame],
    planned: Mapping[str, int],
) -> list[str]:
    """The experiments of a member and of the baseline in these groups that have no rows yet."""
    members = [m for m in comparison.members if m.label in (label, comparison.baseline)]
    names = [n for group in groups for m in members for n in matching(m, group, [*planned])]
    return [name for name in names if name not in rows]


def averaged(
    comparison: Comparison, cells: Mapping[tuple[str, str], Mapping[str, pd.Series]]
) -> dict[tuple[str, str], dict[str, pd.Series]]:
    """The mean over all groups that have the baseline, for each seed that all of them have."""
    there = [of for of in cells.values() if comparison.baseline in of]
    means = {}
    for member in comparison.members:
        if there and all(member.label in of for of in there):
            side_by_side = pd.concat([of[member.label] for of in there], axis=1).dropna()
            if len(side_by_side):
                means[member.label] = side_by_side.mean(axis=1)
    return {(f"mean of {len(there)}", "-"): means} if means else {}


def against(scores: pd.Series, baseline: pd.Series, paired: bool) -> dict[str, Any]:
    """One member against the baseline."""
    result: dict[str, Any] = {
        "probability": probability_of_improvement(scores.to_numpy(), baseline.to_numpy())
    }
    if not paired:
        return result | {"p": mann_whitney(scores.to_numpy(), baseline.to_numpy())}
    difference = (scores - baseline).dropna()
    result["pairs"] = len(difference)
    if not len(difference):
        return result
    values = difference.to_numpy()
    low, high = bootstrap_interval(values, np.mean)
    by_root = difference.groupby(level=0).mean()
    return result | {
        "difference": values.mean(),
        "difference_low": low,
        "difference_high": high,
        "difference_median": np.median(values),
        "by_root": ", ".join(f"{root}: {signed(value)}" for root, value in by_root.items()),
        # Without any difference there is nothing to rank.
        "p": float(stats.wilcoxon(values).pvalue) if values.any() else 1.0,
    }


def shown(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    """A table of `compared` as text."""
    out = pd.DataFrame(
        {
            "experiments": table.group,
            "environment": table.env_id,
            "arm": table.member,
            "seeds": table.seeds.astype(str),
            "IQM": numbers(table.iqm),
            "95 % interval": interval(table, "low", "high"),
        }
    )
    if "p" not in table:
        return out
    base = comparison.baseline
    if "difference" in table:
        out["pairs"] = ["-" if np.isnan(x) else f"{x:.0f}" for x in table.pairs]
        out[f"mean of arm - {base}"] = [signed(x) for x in table.difference]
        out["95 % interval of it"] = interval(table, "difference_low", "difference_high")
        out["median"] = [signed(x) for x in table.difference_median]
        if table.by_root.str.contains(",").any():
            out["by root seed"] = table.by_root.fillna("-")
    else:
        out[f"P(arm > {base})"] = numbers(table.probability, "{:.2f}")
    out["p"], out["p (Holm)"] = numbers(table.p, "{:.2g}"), numbers(table.p_holm, "{:.2g}")
    return out


def numbers(column: pd.Series, form: str | None = None) -> list[str]:
    """A column as text."""
    return [number_text(x, form) for x in column]


def signed(value: float) -> str:
    """A difference as text."""
    return "+" * (value >= 0) + number_text(value)


def interval(table: pd.DataFrame, low: str, high: str) -> list[str]:
    """Two columns as intervals."""
    return [interval_text(ends) for ends in zip(table[low], table[high])]


def said(comparison: Comparison, table: pd.DataFrame) -> str:
    """What a reader of the table must know."""
    there = int(table.p.notna().sum()) if "p" in table else 0
    left = comparison.tests - there
    to_come = f", {left} of them to come" * (left > 0)
    how = "Mann and Whitney's test of all seeds"
    if comparison.paired:
        how = "Wilcoxon's signed-rank test of pairs of equal root and test seed"
    return (
        f"{comparison.question} Mean return of the last training episodes, the measure that was "
        f"chosen in advance. p: {how}, two-sided; Holm's correction for the {comparison.tests} "
        f"comparisons with {comparison.baseline} that were planned{to_come}. Intervals are over "
        "test seeds: they do not contain the luck of the evolution."
    )


def of_experiment(rows: pd.DataFrame, baseline: str, column: str) -> pd.DataFrame:
    """The table of one test, without p-values: these are in the comparisons, each in one family."""
    table = results_table(rows, baseline if baseline in set(rows.arm) else None, column)
    return table.drop(columns="p (Holm)", errors="ignore")


# -- generalisation --


def matrix(evolved: Mapping[str, tuple[str, pd.DataFrame]], arm: str) -> pd.DataFrame | None:
    """Evolved on x tested on, with the reservoirs that were not evolved and those with W = 0, each
    against PPO alone. None without rows. Experiments that evolved on the same have their names in
    the rows; tests of one experiment in the same environment have theirs in the columns.

    Args:
        evolved: by experiment: what it evolved on, and the rows of its tests.
        arm: with evolved reservoirs.
    """
    arms = {"": arm, ", not evolved": f"RANDOM_{arm}", ", W = 0": f"NOREC_{arm}"}
    tests = {}
    times = Counter(on for on, rows in evolved.values() if set(arms.values()) & set(rows.arm))
    for name, (on, rows) in evolved.items():
        row = on if times[on] == 1 else f"{on} ({name})"
        for (env_id, study), part in rows.groupby(["env_id", "study"]):
            alone = rows.study[rows.env_id == env_id].nunique() == 1
            column = str(env_id) if alone else f"{env_id} ({study})"
            for title, each in arms.items():
                if {each, "PPO"} <= set(part.arm):
                    tests[f"{row}{title}", column] = (part, "PPO", each)
    return generalisation(tests, PRIMARY) if tests else None


def matrix_shown(table: pd.DataFrame) -> pd.DataFrame:
    """A matrix as text: the probability of improvement over PPO, its interval, and both IQMs."""
    cells = [
        f"{r.probability:.2f} {interval_text((r.low, r.high), '{:.2f}')}; "
        f"{number_text(r.iqm)} ({number_text(r.baseline_iqm)})"
        for r in table.itertuples()
    ]
    wide = table.assign(cell=cells).pivot(index="evolved_on", columns="tested_on", values="cell")
    return wide.fillna("-").rename_axis("evolved on").reset_index()


# -- the memory benchmark --


@styled
def memory_figure(table: pd.DataFrame, agents: Sequence[str], about: str) -> Figure:
    """The means of all agents in all tasks of the memory benchmark.

    Args:
        table: in long form: `environment`, `agent`, `mean`, `low`, `high`; the two ends are NaN for
            published results.
        agents: from top to bottom within a task.
        about: for the caption.
    """
    tasks, look = list(table.environment.unique()), looks(agents)
    shown = [agent for agent in agents if agent in set(table.agent)]
    figure, axes = new(height=0.9 + 0.5 * len(tasks))
    drawn = {}
    for place, agent in enumerate(shown):
        of = table[table.agent == agent]
        y = np.array([tasks.index(task) for task in of.environment])
        y = y + 0.7 * ((place + 0.5) / len(shown) - 0.5)
        ours = of.low.notna().any()
        colour = look[agent].colour if ours else "0.35"
        axes.hlines(y, of.low, of.high, color=colour, linewidth=1)
        [drawn[agent]] = axes.plot(
            of["mean"],
            y,
            color=colour,
            marker=look[agent].marker,
            fillstyle="full" if ours else "none",
            markersize=4,
            linewidth=0,
            label=agent,
        )
    for border in np.arange(len(tasks) - 1) + 0.5:
        axes.axhline(border, color="0.85", linewidth=0.5)
    ticks_beside(axes, tasks)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mean return of the last training episodes")
    legend_above(figure, drawn)
    return caption(figure, f"Tasks of the memory benchmark POPGym. {about}")


# -- what reservoirs remember --


def memory_capacities(
    name: str, story: Mapping[str, Any], rows: pd.DataFrame, arms: Sequence[str]
) -> pd.DataFrame:
    """Memory capacity of the very reservoirs that an experiment tested: a row of text for each arm.

    Each reservoir has the seed of its agent. Its input is one random number a step, which every
    neuron with an input sees (`memory_profile`), and not what its task would show.

    Args:
        name: of the experiment.
        story: what is stored of it beside its rows.
        rows: lifetimes of its tests.
        arms: with reservoirs.
    """
    (evolved,) = story["evolutions"].values()
    params = evolved["winner"]["params"]
    test = TestStudy(from_json(EvolutionStudy, evolved["config"]), params, 1, "cohort")
    lines = []
    for arm in arms:
        specs = [arm_lifetime(arm, i, test, params) for i in sorted(rows[rows.arm == arm].seed)]
        drawn = [(s.context.reservoirs[0], s.seeds.reservoir) for s in specs if s.context]
        if not drawn:
            continue
        profiles = np.array([memory_profile(*each, LAGS) for each in drawn])
        low, middle, high = np.quantile(profiles.sum(axis=1), [0.25, 0.5, 0.75])
        lines.append(
            {
                "experiment": name,
                "arm": arm,
                "reservoirs": len(drawn),
                "sr": spread([params.sr for params, _ in drawn]),
                "lr": spread([params.lr for params, _ in drawn]),
                "memory capacity, median [quartiles]": f"{middle:.2f} "
                + interval_text((low, high), "{:.2f}"),
                "recall after 1 step": f"{np.median(profiles[:, 0]):.2f}",
                "after 4 steps": f"{np.median(profiles[:, 3]):.2f}",
                "after 31 steps": f"{np.median(profiles[:, 30]):.2f}",
            }
        )
    return pd.DataFrame(lines)


def spread(values: Sequence[float]) -> str:
    """A value that all share, or the least and the greatest."""
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


# -- the catalogue --


def toml(value: Any) -> str:
    """Plain data as TOML, tables in one line; what is None is left out."""
    if isinstance(value, Mapping):
        items = [f"{k} = {toml(v)}" for k, v in value.items() if v is not None]
        return "{ " + ", ".join(items) + " }" if items else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def catalogue_entries(name: str, story: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """What an experiment evolved, as entries for `erl/studies/evolved.toml`.

    Args:
        name: of the experiment.
        story: what is stored of it beside its rows.
        rows: lifetimes of its tests.
    """
    usual = to_json(EvolutionStudy())
    texts: list[str] = []
    for study, evolved in story["evolutions"].items():
        if evolved["winner"] is None:
            raise UserError(f"{name}: no trial of {study} has succeeded")
        config = {
            k: v for k, v in evolved["config"].items() if k not in NOT_LISTED and v != usual.get(k)
        }
        winner = {k: v for k, v in evolved["winner"].items() if v is not None and v != []}
        tests = [part for key, part in rows.groupby("study") if str(key).startswith(f"{study}_")]
        tested = []
        for part in tests:
            for (arm, env_id), lived in part.groupby(["arm", "env_id"], sort=False):
                seen = env_id == evolved["config"].get("env_id")
                tested.append(
                    {
                        "arm": arm,
                        "env_id": None if seen else env_id,
                        "seeds": len(lived),
                        "steps": int(lived.steps.max()),
                        "training": estimate(lived.training_return),
                        "final": estimate(lived.final_return),
                    }
                )
        title = name if len(story["evolutions"]) == 1 else f"{name}_{len(texts) + 1}"
        lines = ["[[evolved]]", f"name = {toml(title)}"]
        if len(evolved["commits"]) > 1:
            of = ", ".join(evolved["commits"])
            lines.append(f"remark = {toml(f'Its lifetimes ran under the commits {of}.')}")
        lines.append("commands = [")
        lines += [f"  {toml(f'python {command}')}," for command in story["commands"]]
        lines += ["]", *(f"commit = {toml(c)}" for c in evolved["commits"][:1])]
        lines += [f"evolution = {toml(config)}", f"winner = {toml(winner)}", "tested = ["]
        lines += [*(f"  {toml(t)}," for t in tested), "]"]
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def estimate(values: pd.Series) -> list[float] | None:
    """Interquartile mean and its 95 % bootstrap interval, with four digits; None without values."""
    known = values.dropna().to_numpy(dtype=float)
    if not len(known):
        return None
    ends = bootstrap_interval(known, interquartile_mean)
    ends = (interquartile_mean(known),) * 2 if np.isnan(ends[0]) else ends
    return [float(f"{x:.4g}") for x in (interquartile_mean(known), *ends)]
