"""What the experiments of `evidence.toml` cost, beside the published codes."""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from evidence_plan import HERE, Experiment, chosen, learner_of
from evidence_rows import read_tables, rows_of, wall_of
from rows import read_rows

# Environment steps a second of published codes on one core. ER-MRL's: HalfCheetah-v4, cohort.md.
# ERL-Re2's: updates, of which it does one a step, on another core, erl_re2.md. Nobody measured
# RecurrentPPO, which is slower than PPO: its steps count at PPO's speed.
PUBLISHED = {"PPO": 1220, "RecurrentPPO": 1220, "ERL-Re2": 18}
# Other results whose steps are stored: name of the page and of the rows, the arm (None for all),
# and whose published code takes such steps.
OTHERS = (
    ("learning_curves", None, ""),
    ("learning_curves", "ERL-Re2", "ERL-Re2"),
    ("aes_rl", None, ""),
    ("inner_learners", None, ""),
    ("derl", None, ""),
    ("pruning", None, "PPO"),
)


def cost(args: argparse.Namespace) -> None:
    """Print what the experiments of each part took and what the others are planned to take. Without
    `--rows`, print what other results took whose steps are stored, too. Beside it stands what the
    published code would take for as many steps on one core.
    """
    published = "published code, core-hours, extrapolated"
    print(f"| what | million steps | core-hours | wall time, h | {published} |")
    print("|---|---|---|---|---|")
    every, folder = chosen(args), rows_of(args)
    for part in dict.fromkeys(e.part for e in every):
        of_part = [e for e in every if e.part == part]
        ended = [e for e in of_part if (folder / f"{e.name}.json").exists()]
        if ended:
            costs = [taken(e, folder) for e in ended]
            cost_row(f"{part}, {len(ended)} of {len(of_part)} experiments", *costs)
        if left := [e for e in of_part if e not in ended]:
            title = f"{part}, {len(left)} experiments, not run yet: estimates"
            cost_row(title, *(Cost(e.steps(), e.minutes * 60, None) for e in left))
    if args.parts or args.names or args.rows:
        return
    for name, arm, learner in OTHERS:
        frame = pd.DataFrame(read_rows(HERE / "results" / f"{name}.jsonl"))
        frame = frame if arm is None else frame[frame.arm == arm]
        title = (
            f"{name}.jsonl, {len(frame)} runs" if arm is None else f"of these {len(frame)} of {arm}"
        )
        seconds = frame.seconds.sum() if "seconds" in frame else None
        cost_row(title, Cost({learner: frame.steps.sum()}, seconds, None))


@dataclass(frozen=True)
class Cost:
    """What something took: environment steps of each learner, seconds of cores and of the clock;
    None where nobody measured it.
    """

    steps: Mapping[str, float]
    seconds: float | None
    wall: float | None

    @property
    def published(self) -> float | None:
        """Seconds of one core in which the published code would take these steps."""
        if not self.steps.keys() <= PUBLISHED.keys():
            return None
        return sum(steps / PUBLISHED[learner] for learner, steps in self.steps.items())


def taken(each: Experiment, folder: Path) -> Cost:
    """What an experiment took, of its rows."""
    tests, *evolved = frames = read_tables(each, folder)
    story = json.loads((folder / f"{each.name}.json").read_text())
    steps: Counter[str] = Counter()
    for arm, n in tests.groupby("arm").steps.sum().items():
        steps[learner_of(str(arm))] += n
    for frame in evolved:
        for name, evolution in story["evolutions"].items():
            # Finals have the name of their evolution, and more.
            of_it = frame.study.astype(str).str.startswith(name)
            steps[evolution["config"]["learner"]] += frame[of_it].steps.sum()
    seconds = sum(frame.seconds.sum() for frame in frames)
    return Cost(steps, seconds, wall_of(story, frames))


def cost_row(title: str, *costs: Cost) -> None:
    """Print the sum of some costs as a row of the table; a dash where one is unknown."""

    def hours(values: list[float | None]) -> str:
        known = [v for v in values if v is not None]
        return f"{sum(known) / 3600:,.1f}" if len(known) == len(values) else "-"

    columns = [[c.seconds for c in costs], [c.wall for c in costs], [c.published for c in costs]]
    steps = sum(sum(c.steps.values()) for c in costs) / 1e6
    print(f"| {title} | {steps:,.1f} | {' | '.join(map(hours, columns))} |")
