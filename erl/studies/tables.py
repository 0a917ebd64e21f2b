"""What tests and single trainings reached: tables of agents over seeds, in text, as data frames, in
Markdown and in LaTeX.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from erl.lifetimes.living import cohort_key
from erl.lifetimes.record import LifetimeRecord
from erl.search.space import learner_settings
from erl.statistics import (
    Arm,
    compare,
    interval_text,
    number_text,
    table,
)
from erl.studies.configuration import SingleStudy, StudyConfig, TestStudy
from erl.studies.study import Study
from erl.studies.trials import lifetime_records

if TYPE_CHECKING:
    import pandas as pd

# Seeds from which on an interval is worth reading.
ENOUGH = 5
# Agent -> the records of its seeds, in their order.
Records = dict[str, list[LifetimeRecord]]


@dataclass(frozen=True)
class AgentTable:
    """Agents that are compared by one score.

    Attributes:
        score: name of a column of `records`: `training_return` or `final_return`.
        title: what the score is.
        arms: the agents, the baseline first.
        side_by_side: whether some trained in one cohort, so that their speeds are the cohort's.
        untuned: agents without a reservoir, where the others have evolved settings of the learner.
    """

    score: str
    title: str
    arms: tuple[Arm, ...]
    side_by_side: bool
    untuned: tuple[str, ...] = ()


def agent_tables(study: Study) -> list[AgentTable]:
    """The tables of a test or of a single training; none for other studies, or while nothing has
    ended.
    """
    records = agent_records(study)
    if not records:
        return []
    some = next(iter(records.values()))[0]
    ep_eval, taken = some.spec.ep_eval, [r.steps for rows in records.values() for r in rows]
    steps = " to ".join(f"{n:,}" for n in sorted({min(taken), max(taken)}))
    speeds, shared = _speeds(records)
    without = untuned(study.config, records)
    training = {
        name: [r.training_return for r in rows if r.training_return is not None]
        for name, rows in records.items()
    }
    final: dict[str, list[float]] = {}
    for name, rows in records.items():
        for record in rows:
            for policy, returns in _final_returns(record).items():
                title = f"{name} ({policy})" if policy else name
                speeds.setdefault(title, speeds[name])
                final.setdefault(title, []).append(float(np.mean(returns)))
    what = {
        "training_return": (training, f"return of the last {ep_eval} training episodes"),
        "final_return": (
            final,
            f"return of the final policy, deterministic, {ep_eval} fresh episodes",
        ),
    }
    return [
        AgentTable(
            score,
            f"{title}, {steps} steps",
            tuple(Arm(name, tuple(v), speeds[name]) for name, v in values.items() if v),
            shared,
            without,
        )
        for score, (values, title) in what.items()
        if any(values.values())
    ]


def agent_records(study: Study) -> Records:
    """The finished lifetimes of each agent of a test, or of the learner of a single training."""
    config = study.config
    if not isinstance(config, TestStudy | SingleStudy):
        return {}
    found: dict[str, dict[int, LifetimeRecord]] = {}
    for trial in study.trials("COMPLETE"):
        if isinstance(config, SingleStudy):
            name = config.arm
        else:
            name = trial.params["arm"]
            for arm in getattr(trial.distributions["arm"], "choices", ()):
                found.setdefault(str(arm), {})
        found.setdefault(name, {}).setdefault(trial.params["seed"], lifetime_records(trial)[0])
    return {name: [rows[s] for s in sorted(rows)] for name, rows in found.items() if rows}


def _final_returns(record: LifetimeRecord) -> dict[str, Any]:
    """Returns of the policy that was handed over, under an empty name, and of those beside it."""
    own = {"": record.final_returns} if record.final_returns else {}
    return own | ((record.inner or {}).get("final_returns") or {})


def _speeds(records: Records) -> tuple[dict[str, float | None], bool]:
    """Steps per second of each agent, and whether some have none: a cohort's time is shared by its
    members, so that agents which trained side by side have one speed.
    """
    keys: dict[str, Any] = {}
    for name, rows in records.items():
        with suppress(Exception):  # the environment need not exist where a study is shown
            keys[name] = cohort_key(rows[0].spec)
    times = Counter(key for key in keys.values() if key is not None)
    speeds: dict[str, float | None] = {}
    for name, rows in records.items():
        alone = times[keys.get(name)] < 2
        seconds = sum(r.seconds for r in rows)
        speeds[name] = sum(r.steps for r in rows) / max(seconds, 1e-9) if alone else None
    return speeds, any(count > 1 for count in times.values())


def lines(tables: Sequence[AgentTable]) -> list[str]:
    """Tables as text, with what a reader should know of them."""
    found = []
    for each in tables:
        found += ["", each.title, *table(each.arms).splitlines()]
    if not tables:
        return found
    if said := few_seeds_of(tables):
        found.append(said)
    if any(each.side_by_side for each in tables):
        found.append("no steps/s: these agents trained side by side and share their time")
    if said := said_of_untuned(name for each in tables for name in each.untuned):
        found.append(said)
    return [*found, ""]


def said_of_untuned(agents: Iterable[str]) -> str:
    """What to know of agents without the evolved settings of the learner; empty without any."""
    names = ", ".join(dict.fromkeys(agents))
    return names and (
        f"the evolved settings of the learner are not those of {names}: what they lack is more "
        "than a reservoir"
    )


def untuned(config: StudyConfig | None, records: Records) -> tuple[str, ...]:
    """Agents of a test that lack evolved settings of the learner, which the others have."""
    if not isinstance(config, TestStudy) or config.evolution.nb_res == 0:
        return ()
    plain = config.evolution.learner_config
    evolved = {
        name: value
        for name, value in learner_settings(config.evolution, config.params).items()
        if name not in plain or plain[name] != value
    }
    learners = {name: rows[0].spec.learner.config for name, rows in records.items()}
    return tuple(
        name for name, has in learners.items() if any(has.get(k) != v for k, v in evolved.items())
    )


def few_seeds(numbers: Iterable[int]) -> str:
    """What to know of intervals over few seeds; empty if there are `ENOUGH`.

    Args:
        numbers: of the seeds of each agent. One seed has no interval, and does not count.
    """
    fewest = min((n for n in numbers if n > 1), default=ENOUGH)
    if fewest >= ENOUGH:
        return ""
    if fewest == 2:
        return "with 2 seeds the intervals mean nothing; 10 is a good number"
    return f"with {fewest} seeds the intervals are rough; 10 are better"


def few_seeds_of(tables: Sequence[AgentTable]) -> str:
    """What to know of the intervals in tables; empty where no agent has few seeds."""
    return few_seeds(len(arm.scores) for each in tables for arm in each.arms)


def to_frame(tables: Sequence[AgentTable]) -> pd.DataFrame:
    """A row for each agent and score: `score`, `arm`, `seeds`, `IQM`, `low`, `high`, `P` (that it
    beats the baseline, the first row), `P_low`, `P_high`, `steps/s`.
    """
    import pandas as pd

    rows = []
    for each in tables:
        baseline = each.arms[0].name
        compared = compare({arm.name: arm.scores for arm in each.arms}, baseline)
        for arm, of in zip(each.arms, compared):
            row = {
                "score": each.score,
                "arm": arm.name,
                "seeds": of.seeds,
                "IQM": of.iqm,
                "low": of.interval[0],
                "high": of.interval[1],
            }
            if arm.name != baseline:
                row["P"] = of.probability
                row["P_low"], row["P_high"] = of.probability_interval
            rows.append(row | {"steps/s": arm.steps_per_second})
    return pd.DataFrame(rows)


def to_text_frame(tables: Sequence[AgentTable]) -> pd.DataFrame:
    """The same for a document: text, with intervals in brackets."""
    import pandas as pd

    frame = to_frame(tables)
    shown = {
        "score": frame.score.str.replace("_", " "),
        "arm": frame.arm,
        "seeds": frame.seeds.map(str),
        "IQM": frame.IQM.map(number_text),
        "95 % interval": [interval_text(ends) for ends in zip(frame.low, frame.high)],
    }
    if "P" in frame:
        of_p = zip(frame.P_low, frame.P_high)
        shown["P(arm > baseline)"] = [number_text(p, "{:.2f}") for p in frame.P]
        shown["95 % interval of P"] = [interval_text(ends, "{:.2f}") for ends in of_p]
    return pd.DataFrame(shown)


# -- documents --


def to_markdown(table: pd.DataFrame) -> str:
    """A table in GitHub's Markdown, numbers to the right."""
    cells = [[str(c).replace("|", "\\|") for c in table.columns]]
    cells += [[str(v).replace("|", "\\|") for v in row] for row in table.itertuples(index=False)]
    head, *body = ["| " + " | ".join(row) + " |" for row in cells]
    rule = "|" + "|".join(["---", *["---:"] * (len(table.columns) - 1)]) + "|"
    return "\n".join([head, rule, *body]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    ">": r"$>$",
    "<": r"$<$",
    "²": r"$^2$",
}


def _escaped(value: Any) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda m: _LATEX[m.group()], str(value))


def to_latex(table: pd.DataFrame, text: str = "", reference: str = "") -> str:
    """A table for LaTeX, with the rules of the package booktabs.

    Args:
        table: of text cells.
        text: its caption.
        reference: its label.
    """
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in table.itertuples(index=False)]
    head = " & ".join(map(_escaped, table.columns)) + r" \\"
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_escaped(text)}}}"] if text else []),
            *([rf"\label{{{reference}}}"] if reference else []),
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
