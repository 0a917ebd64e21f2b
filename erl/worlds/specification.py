"""What a lifetime is before it runs: task, context, learner, budget, seeds.

Frozen, JSON-serialisable, versioned.
"""

import dataclasses
import hashlib
import json
import platform
import re
import subprocess
import typing
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from erl.errors import UserError
from erl.worlds.actions import Actions
from erl.worlds.context import ReservoirWrapper, cohort_part, context_space
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context
from erl.worlds.tasks import Task, check_task, make_env, wrap_env
from erl.worlds.wrappers import closing_on_error

SPEC_VERSION = 1
_PACKAGES = (
    "erl",
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "stable-baselines3",
    "sb3-contrib",
    "reservoirpy",
    "optuna",
    "cmaes",
)

# The roots from which the seeds of a phase are spawned; phases never share a seed.
# 3 are the reservoirs that a test draws.
_PHASES = {"evolution": 0, "test": 1, "single": 2, "finals": 4}
Phase = Literal["evolution", "test", "single", "finals"]


@dataclass(frozen=True)
class Seeds:
    """One lifetime's seeds, one for each role."""

    reservoir: int
    learner: int
    environment: int
    evaluation: int

    @classmethod
    def derive(cls, root: int, phase: Phase, index: int, published: bool = False) -> "Seeds":
        """The seeds of the `index`-th lifetime of a phase, spawned from one root seed; those of the
        published code instead, where it is asked for.
        """
        if published:
            return cls.published(index)
        sequence = np.random.SeedSequence(root, spawn_key=(_PHASES[phase], index))
        # 31 bits: what every library takes for a seed, with room to add small numbers.
        return cls(*(int(s) >> 1 for s in sequence.generate_state(4)))

    @classmethod
    def published(cls, index: int) -> "Seeds":
        """ER-MRL's published code: the index itself, for every role, in evolution and test
        alike.
        """
        return cls(index, index, index, index)


@dataclass(frozen=True)
class LearnerSpec:
    """An algorithm and its settings.

    Attributes:
        name: in the registry of learners.
        config: keyword arguments, as Stable-Baselines3 or the SB3 Zoo's files spell them.
        engine: `cohort` (many lifetimes side by side), `sb3`, or `auto` (the cohort where the
            learner has one).
    """

    name: str = "PPO"
    config: dict[str, Any] = field(default_factory=dict)
    engine: str = "auto"


@dataclass(frozen=True)
class LifetimeSpec:
    """One training run.

    Attributes:
        task: environment and what is visible of it.
        learner: algorithm and settings.
        steps: environment steps at least; the learner ends the batch of steps that reaches this
            number.
        seeds: one for each role.
        context: reservoirs between environment and policy; None for the observation itself.
        ep_eval: episodes over which the fitness is averaged.
        fitness: `training` (the last `ep_eval` episodes of training, as in ER-MRL) or `final_eval`
            (`ep_eval` fresh episodes of the final policy).
        version: of this format.
    """

    task: Task
    learner: LearnerSpec
    steps: int
    seeds: Seeds
    context: Context | None = None
    ep_eval: int = 10
    fitness: str = "training"
    version: int = SPEC_VERSION

    def spaces(self) -> tuple[spaces.Box, spaces.Space]:
        """Of what the policy sees, and of what it chooses. Nothing is drawn for it."""
        observation_space, action_space = check_task(self.task)
        if self.context is None:
            return observation_space, action_space
        return context_space(self.context, observation_space, action_space), action_space

    def context_shape(self) -> Hashable:
        """In what the contexts of lifetimes that are trained side by side agree."""
        observation_space, action_space = check_task(self.task)
        input_dim = int(observation_space.shape[0]) + Actions(action_space).size + 1
        return cohort_part(self.context, input_dim)

    def make_env(self, ledger: Ledger | None = None, render_mode: str | None = None) -> gym.Env:
        """The environment as the policy sees it; steps are entered in `ledger`."""
        with closing_on_error() as opened:
            env = make_env(self.task, ledger, render_mode)
            opened.callback(env.close)
            return self._within_context(env)

    def wrap_env(self, env: gym.Env) -> gym.Env:
        """Gymnasium's environment of this task, made elsewhere, as the policy sees it."""
        return self._within_context(wrap_env(env, self.task))

    def _within_context(self, env: gym.Env) -> gym.Env:
        return (
            env
            if self.context is None
            else ReservoirWrapper(env, self.context, self.seeds.reservoir)
        )


def to_json(value: Any) -> Any:
    """Dataclasses as plain dictionaries and lists.

    A field whose metadata say `omit_default` is left out where it has its default: it came later,
    and what was stored before has the same form as ever.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_json(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.metadata.get("omit_default") and getattr(value, f.name) == f.default)
        }
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(kind: Any, data: Any) -> Any:
    """The inverse of `to_json` for a type made of dataclasses, tuples, optional fields and plain
    values.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        return (
            None
            if data is None
            else from_json(next(a for a in arguments if a is not type(None)), data)
        )
    if origin is tuple:
        each = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
        kinds = [each] * len(data) if each else arguments
        return tuple(from_json(k, d) for k, d in zip(kinds, data))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if data.get("version", SPEC_VERSION) != SPEC_VERSION:
            raise UserError(
                f"stored in version {data['version']} of the format, but this project reads "
                f"version {SPEC_VERSION}"
            )
        hints = typing.get_type_hints(kind)
        unknown = set(data) - set(hints)
        if unknown:
            raise UserError(
                f"stored by another version of this project: {kind.__name__} has no "
                f"{sorted(unknown)}"
            )
        return kind(**{k: from_json(hints[k], v) for k, v in data.items()})
    return data


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a lifetime becomes."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package == "erl":
                from erl import __version__

                found[package] = __version__
    return found


def code_of(config: Any) -> dict[str, str]:
    """Digests of the modules that a stored configuration names, as in `my_env:Mine-v0`: a learner,
    a context or environments of the user's.
    """
    found = {}
    for module in sorted(set(re.findall(r'"([A-Za-z_][\w.]*):[\w./-]+"', json.dumps(config)))):
        with suppress(ImportError, ValueError, OSError):
            spec = find_spec(module)
            if spec is not None and spec.origin is not None:
                digest = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
                found[module] = digest[:16]
    return found


@cache
def commit() -> str | None:
    """The commit of this project's checkout, with `-dirty` if tracked files differ from it; None
    outside one.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parents[2]:
            return None  # installed inside of another checkout
        head = git("rev-parse", "HEAD")
        return head + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
