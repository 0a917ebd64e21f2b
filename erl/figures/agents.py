"""Agents of studies: which are compared with one another, and what they are called in figures."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from erl.cli import plural
from erl.errors import UserError
from erl.figures.learning import SAME_BUDGET, best_known, sentence
from erl.figures.page import describe
from erl.figures.style import environment_names
from erl.files import folder_name
from erl.studies.configuration import (
    EvolutionStudy,
    SingleStudy,
    TestStudy,
    differences,
    evolved_arm,
)
from erl.studies.data import StudyData
from erl.studies.tables import said_of_untuned
from erl.worlds.arguments import Arguments

JOINT = "Studies side by side"
# Kinds of studies in which agents are compared.
AGENTS = ("test", "single", "tensorboard")
# Those whose agents are compared with those of other studies.
JOINED = ("single", "tensorboard")


@dataclass(frozen=True)
class Agents:
    """Agents that are compared.

    Attributes:
        lifetimes: theirs.
        baseline: one of them; None for the first.
        order: in which figures show them.
        about: what was run, for captions, and which agents lack evolved settings of the learner.
        selected: the column that their evolution selected for, `training_return` or `final_return`;
            None without an evolution.
    """

    lifetimes: pd.DataFrame
    baseline: str | None
    order: list[str]
    about: str
    selected: str | None = None

    @property
    def measure(self) -> str:
        """The column to compare by: what the evolution selected for. Without one it is the final
        policy where policies were evaluated, since training episodes are of different policies in
        different learners.
        """
        return self.selected or best_known(self.lifetimes)


def compared(studies: Sequence[StudyData], baseline: str | None = None) -> Agents:
    """The agents of the first study, or of all single runs and logs if it is one of several.

    Args:
        studies: of a report.
        baseline: an agent; by default the learner alone, or the first one.

    Raises:
        UserError: single runs and logs are of different tasks.
    """
    data = studies[0]
    if data.kind in JOINED and sum(d.kind in JOINED for d in studies) > 1:
        return joined(studies, baseline)
    first = baseline or baseline_of(data)
    evolution = data.config.evolution if isinstance(data.config, TestStudy) else None
    selected = None
    if evolution is not None:
        selected = "final_return" if evolution.fitness == "final_eval" else "training_return"
    steps = _steps_of_logs(data.lifetimes) if data.kind == "tensorboard" else ""
    parts = [describe(data), sentence(said_of_untuned(data.untuned)), steps]
    about = " ".join(filter(None, parts))
    return Agents(data.lifetimes, first, agents_of([data], first), about, selected)


def joined(studies: Sequence[StudyData], baseline: str | None = None) -> Agents:
    """The agents of the single runs and logs among several studies; arguments and errors as those
    of `compared`. Where several studies have an agent of the baseline's name, it is the first's.
    """
    lifetimes, runs = join(studies), sum(d.kind in JOINED for d in studies)
    arms = list(dict.fromkeys(lifetimes.get("arm", [])))
    first = next((a for a in arms if baseline in (a, a.rpartition(": ")[2])), baseline)
    of_task = "".join(f" in {task}" for task in _tasks(studies))
    about = f"{plural(runs, 'study', 'studies')}{of_task}. {budgets(studies)}".strip()
    return Agents(lifetimes, first, [*agents_of(studies, baseline), *arms], about)


def baseline_of(data: StudyData) -> str | None:
    """The learner alone, if it is among the arms that have a finished lifetime."""
    learner = None if data.setting is None else data.setting.learner
    frame = data.lifetimes
    arms = set(frame.arm[frame.state == "COMPLETE"]) if "arm" in frame else set()
    return next((a for a in (learner, "PPO") if a in arms), None)


def agents_of(studies: Sequence[StudyData], baseline: str | None = None) -> list[str]:
    """The agents of all tests, single runs and logs: the baseline first, then study by study. It is
    the order in figures, and gives each agent its colour.

    Args:
        studies: of a report.
        baseline: one of the agents; by default the first study's learner alone.
    """
    compared = [d for d in studies if d.kind in AGENTS]
    names = [baseline or baseline_of(d) for d in compared[:1]]
    for data in compared:
        names += [*data.lifetimes.get("arm", [])]
    return [name for name in dict.fromkeys(names) if name]


def titles(studies: Sequence[StudyData]) -> list[str]:
    """A name for each study that no other has: its own, or with its storage where several have the
    same, or with a number where it is one study several times. So are folders of these names.
    """
    names = [d.name for d in studies]
    folders = Counter([folder_name(JOINT), *map(folder_name, names)])
    shown = [
        d.name
        if folders[folder_name(d.name)] == 1
        else d.address
        if d.kind == "tensorboard"
        else f"{d.address}#{d.name}"
        for d in studies
    ]
    found: list[str] = []
    taken: set[str] = {folder_name(JOINT)}
    for title in shown:
        each, n = title, 1
        while folder_name(each) in taken:
            n += 1
            each = f"{title} ({n})"
        taken.add(folder_name(each))
        found.append(each)
    return found


def task_of(env_id: str, del_obs: bool, env_kwargs: Mapping[str, Any]) -> str:
    """An environment in words: with hidden velocities and its arguments, if there are any."""
    hidden = " with hidden velocities" if del_obs else ""
    return f"{env_id}{hidden}" + (f" {Arguments(env_kwargs)}" if env_kwargs else "")


def join(studies: Sequence[StudyData]) -> pd.DataFrame:
    """Lifetimes of the single runs and logs among several studies in one frame; arms are called
    after the study (`titles`) where several studies have one of the same name.

    Raises:
        UserError: they are of different tasks, whose returns share no scale.
    """
    runs = [(t, d) for t, d in zip(titles(studies), studies) if d.kind in JOINED]
    if len(tasks := _tasks(studies)) > 1:
        raise UserError(f"returns in {', '.join(tasks)} share no scale: show them one by one")
    names = [a for _, d in runs for a in dict.fromkeys(d.lifetimes.get("arm", []))]
    frames = []
    for title, data in runs:
        frame = data.lifetimes
        if len(frame):
            arm = frame.arm.map(lambda a, t=title: a if names.count(a) == 1 else f"{t}: {a}")
            frames.append(frame.assign(arm=arm))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _tasks(studies: Sequence[StudyData]) -> list[str]:
    """The tasks of the single runs and logs among several studies, where they are known."""
    tasks = set()
    for data in studies:
        known = data.config if isinstance(data.config, SingleStudy) else None
        if data.kind in JOINED and "env_id" in data.lifetimes:
            for env_id in set(data.lifetimes.env_id.dropna()):
                tasks.add(task_of(env_id, known.del_obs, known.env_kwargs) if known else env_id)
    return sorted(tasks)


def _steps_of_logs(lifetimes: pd.DataFrame) -> str:
    """A sentence on the steps of the runs in a folder of logs, where they differ."""
    spans = lifetimes.groupby("arm", sort=False).steps.agg(["min", "max"])
    if not len(spans) or spans["min"].min() >= SAME_BUDGET * spans["max"].max():
        return ""
    said = [
        f"{arm} {f'{low:,.0f} to ' * (low < high)}{high:,.0f} steps"
        for arm, low, high in spans.itertuples()
    ]
    return f"Budgets differ: {', '.join(said)}."


def budgets(studies: Sequence[StudyData]) -> str:
    """A sentence on the steps of single runs and logs, where they differ; else nothing."""
    steps = {
        title: data.config.steps
        if isinstance(data.config, SingleStudy)
        else int(data.lifetimes.steps.max())
        for title, data in zip(titles(studies), studies)
        if data.kind in JOINED and len(data.lifetimes)
    }
    if len(set(steps.values())) < 2:
        return ""
    return f"Budgets differ: {', '.join(f'{t} {n:,} steps' for t, n in steps.items())}."


def told_apart(names: Sequence[str]) -> list[str]:
    """What tells names apart: each without the words with which all of them end or begin. Words
    stand between `_`, `#` and `/`, and at least one of each name remains.

    Args:
        names: at least two, all different.
    """
    # Every second piece is what stands between two words.
    pieces = [re.split("([_#/]+)", name) for name in names]
    for begins in (False, True):
        shared = 0
        for n in range(2, min(map(len, pieces)), 2):
            if len({"".join(p[:n] if begins else p[-n:]) for p in pieces}) == 1:
                shared = n
        pieces = [p[shared:] if begins else p[: len(p) - shared] for p in pieces]
    return ["".join(p) for p in pieces]


def _names_of_evolutions(tests: Sequence[str]) -> list[str]:
    """What tells evolutions, or their winners, apart: the shortest part of the names of their
    tests, without the winner if the evolutions alone differ.

    Args:
        tests: the title of a test of each.
    """
    evolutions = [re.split(r"_(?:trial|mean)_[0-9]+", title)[0] for title in tests]
    return told_apart(evolutions if len(set(evolutions)) == len(tests) else tests)


def generalisation_tests(
    tests: Sequence[StudyData],
) -> dict[tuple[str, str], tuple[pd.DataFrame, str, str]]:
    """Tests by (evolved on, tested on), for `comparison.generalisation`: environments with their
    arguments, with steps where the tests differ in them, and with a part of the studies' names
    where several evolutions or winners are of one task.

    Raises:
        UserError: two tests are of the same reservoirs, in the same task, or one has no
            evolved agent.
    """
    all_of_them = zip(titles(tests), tests)
    shown = [(t, d, d.config) for t, d in all_of_them if isinstance(d.config, TestStudy)]
    configs = [config for _, _, config in shown]
    env_ids = [e for c in configs for e in (*c.evolution.environments, *c.environments)]
    names = environment_names(env_ids)
    evolved_steps = {c.evolution.training_steps for c in configs}
    tested_steps = {c.training_steps for c in configs}
    # By task the evolutions with the hyperparameters of a winner, and the title of the first test.
    known: dict[str, list[tuple[EvolutionStudy, dict[str, float], str]]] = {}
    places: list[tuple[str, int, str]] = []
    for title, _, config in shown:
        source = config.evolution
        where = "+".join(names[env_id] for env_id in source.environments)
        evolved = task_of(where, source.del_obs, source.env_kwargs)
        where = names[config.environments[0]]
        tested = task_of(where, config.hides_velocities, config.arguments)
        evolved += f", {source.training_steps:,} steps" * (len(evolved_steps) > 1)
        tested += f", {config.training_steps:,} steps" * (len(tested_steps) > 1)
        same = known.setdefault(evolved, [])
        equal = (p == config.params and not differences(e, source) for e, p, _ in same)
        place = next((i for i, is_this in enumerate(equal) if is_this), len(same))
        if place == len(same):
            same.append((source, config.params, title))
        places.append((evolved, place, tested))
    apart = {
        evolved: _names_of_evolutions([title for _, _, title in same])
        for evolved, same in known.items()
        if len(same) > 1
    }
    found: dict[tuple[str, str], tuple[pd.DataFrame, str, str]] = {}
    for (title, data, config), (evolved, place, tested) in zip(shown, places):
        if evolved in apart:
            evolved += f" ({apart[evolved][place]})"
        if (evolved, tested) in found:
            raise UserError(f"{title} is another test of the same reservoirs in {tested}: omit it")
        arms = list(dict.fromkeys(data.lifetimes.arm)) if len(data.lifetimes) else []
        arm = evolved_arm(arms)
        if arm is None:
            raise UserError(f"{title} has no evolved agent: omit it")
        found[evolved, tested] = (data.lifetimes, config.evolution.learner, arm)
    return found
