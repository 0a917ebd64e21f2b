"""The experiments of `evidence.toml`: what is run, and what is compared."""

import argparse
import re
import shlex
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erl.errors import UserError
from erl.worlds.task_sets import TaskSet, load_task_set

HERE = Path(__file__).resolve().parent
RES = "RES_PPO_0.0003"
# Of a flag that is given twice the last one counts. Final policies play two episodes, and not ten.
SMALL_EVOLUTION = "--nb_trials 4 --nb_seeds 1 --training_steps {steps} --ep_eval 2"
SMALL_FINALS = "--finalists 2 --finalist_seeds 1"
SMALL_TEST = "--training_steps {steps} --nb_seeds 2"
OF_SMALL_EVOLUTION = "--HP_training_steps {steps}"


@dataclass(frozen=True)
class Experiment:
    """Evolutions and their tests.

    Attributes:
        name: of its files.
        part: of the page of results.
        minutes: of one core, estimated.
        evolve: the command of the evolution; empty where an entry of the catalogue is tested.
        tests: the commands of its tests.
        controls: commands of evolutions that are tested beside it.
        baseline: the arm that others are compared with: the evolved one.
        small_steps: of a lifetime, at a small budget.
    """

    name: str
    part: str
    minutes: int
    evolve: str
    tests: tuple[str, ...]
    controls: tuple[str, ...] = ()
    baseline: str = RES
    small_steps: int = 4_096

    @property
    def root(self) -> int:
        """The root seed of the evolution, from which the test seeds are drawn."""
        return int(flag(self.evolve, "seed", 0))

    @property
    def evolved_on(self) -> str:
        """The environment, or the set of environments, of the evolution."""
        command = self.evolve or self.tests[0]
        return str(flag(command, "env_type", None) or flag(command, "env_id", ""))

    @property
    def evolutions(self) -> list[str]:
        """The commands of its evolutions."""
        return [command for command in (self.evolve, *self.controls) if command]

    def steps(self) -> dict[str, int]:
        """Environment steps of each learner at full size, with finals where they are held, as
        planned.
        """
        total: Counter[str] = Counter()
        evolved_for = {}
        for command in self.evolutions:
            learner = str(flag(command, "learner", "PPO"))
            evolved_for[flag(command, "h_test", "")] = learner
            total[learner] += evolution_steps(command)
        for test in self.tests:
            if "--arms" in test:
                learners = [learner_of(arm) for arm in str(flag(test, "arms", "")).split(",")]
            else:  # with and without reservoirs, or with settings evolved and drawn
                learners = [evolved_for[flag(test, "h_test", "")]] * (2 + ("--controls" in test))
            steps = int(flag(test, "nb_seeds", 5)) * int(flag(test, "training_steps", 0))
            for learner in learners:
                total[learner] += steps
        return dict(total)

    def commands(self, small: bool) -> list[str]:
        """What is run, in this order."""
        evolutions, tests = self.evolutions, list(self.tests)
        if small:
            of_evolution = SMALL_EVOLUTION.format(steps=self.small_steps)
            evolutions = [
                f"{command} {of_evolution}"
                + f" {SMALL_FINALS}" * (flag(command, "finalists", None) is not None)
                for command in evolutions
            ]
            flags = f"{SMALL_TEST} {OF_SMALL_EVOLUTION}" if evolutions else SMALL_TEST
            tests = [f"{test} {flags.format(steps=self.small_steps)}" for test in tests]
        return [*evolutions, *tests]


@dataclass(frozen=True)
class Member:
    """What a comparison compares.

    Attributes:
        label: in the table.
        experiments: a pattern of names; `{group}` stands for the group.
        arm: of their tests.
        study: which the names of the tests' studies contain.
    """

    label: str
    experiments: str
    arm: str
    study: str = ""


@dataclass(frozen=True)
class Comparison:
    """A question over several experiments: one family of tests.

    Attributes:
        name: of the table.
        part: whose experiments it compares.
        question: that it answers.
        groups: within which members are compared, such as environments.
        members: what is compared.
        baseline: the label of the member that each other one is compared with.
        tests: of members against the baseline that are planned, in all groups.
        paired: by root and test seed, with Wilcoxon's signed-rank test; otherwise Mann and
            Whitney's test of all seeds.
        averaged: over the groups, for each seed, before the comparison.
    """

    name: str
    part: str
    question: str
    groups: tuple[str, ...]
    members: tuple[Member, ...]
    baseline: str
    tests: int
    paired: bool = False
    averaged: bool = False


def flag(command: str, name: str, default: Any) -> Any:
    """The value of a flag in a command."""
    words = shlex.split(command)
    return words[words.index(f"--{name}") + 1] if f"--{name}" in words else default


def learner_of(arm: str) -> str:
    """The learner of an arm such as RANDOM_RES_PPO_0.0003."""
    return re.sub(r"^((RANDOM|NOREC|RES|STACK|INPUTS|EVOLVED)_)+|_[0-9.]+$", "", arm)


def evolution_steps(command: str) -> int:
    """Environment steps of an evolution and its finals, if it has any: of the finalists and the
    mean of the search.
    """
    of_set = task_set(command)
    envs = 1 if of_set is None else len(of_set.env_ids)
    lifetimes = int(flag(command, "nb_trials", 100)) * int(flag(command, "nb_seeds", 3))
    finalists = int(flag(command, "finalists", 0))
    finals = (finalists + 1) * int(flag(command, "finalist_seeds", 5)) if finalists else 0
    return (lifetimes + finals) * envs * int(flag(command, "training_steps", 300_000))


def task_set(command: str) -> TaskSet | None:
    """The set of environments that a command names; None without one."""
    env_type, sets = flag(command, "env_type", None), flag(command, "sets", None)
    path = None if sets is None else HERE.parent / str(sets)
    return None if env_type is None else load_task_set(str(env_type), path)


def listed() -> dict[str, Any]:
    """What `evidence.toml` says."""
    with (HERE / "evidence.toml").open("rb") as file:
        return tomllib.load(file)


def experiments() -> list[Experiment]:
    """All of them, those that take least first. An entry with `roots` is one experiment for each
    root seed, which stands for `{root}`.
    """
    made = []
    for entry in listed()["experiment"]:
        for root in entry.pop("roots", [None]):
            each = entry if root is None else with_root(entry, str(root))
            lists = {k: tuple(each.get(k, ())) for k in ("tests", "controls")}
            made.append(Experiment(**({"evolve": ""} | each | lists)))
    return sorted(made, key=lambda e: e.minutes)


def with_root(value: Any, root: str) -> Any:
    """An entry with a root seed in place of `{root}`."""
    if isinstance(value, dict):
        return {k: with_root(v, root) for k, v in value.items()}
    if isinstance(value, list):
        return [with_root(v, root) for v in value]
    return value.replace("{root}", root) if isinstance(value, str) else value


def comparisons() -> list[Comparison]:
    """The questions over several experiments."""
    return [
        Comparison(
            **entry
            | {
                "groups": tuple(entry["groups"]),
                "members": tuple(Member(**m) for m in entry["members"]),
            }
        )
        for entry in listed()["comparison"]
    ]


def chosen(args: argparse.Namespace) -> list[Experiment]:
    """Those that the flags name."""
    every = experiments()
    for of, known in (("parts", {e.part for e in every}), ("names", {e.name for e in every})):
        unknown = set(filter(None, (getattr(args, of) or "").split(","))) - known
        if unknown:
            what = {"parts": "part", "names": "experiment"}[of]
            raise UserError(f"no {what} is called {', '.join(sorted(unknown))}")
    parts, names = ((args.parts or "").split(","), (args.names or "").split(","))
    return [
        e
        for e in every
        if (not args.parts or e.part in parts) and (not args.names or e.name in names)
    ]
