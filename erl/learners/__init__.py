"""Inner learners: the protocol that each follows, and the registry.

One algorithm is one file. A learner trains a cohort, one or many lifetimes, and returns agents
whose `predict` is Stable-Baselines3's, so that `evaluate_policy` and every tool for its models
serve all.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from erl.errors import UserError, nearest
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import Ledger

ENGINES = ("auto", "cohort", "sb3")
# This project's own beside PPO's cohorts: name -> module, class, and the algorithm of
# Stable-Baselines3 as whose models its agents are saved.
_OWN = {"ERL-Re2": ("erl.learners.erl_re2.learner", "Re2Learner", "TD3")}


class Unsupported(UserError):
    """What this project's own implementation of a learner does not know and Stable-Baselines3
    does.
    """


class Agent(Protocol):
    """A trained agent."""

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Action and recurrent state for an observation, as in Stable-Baselines3."""

    def diverged(self) -> bool:
        """Whether a weight is not finite."""

    def save(self, folder: Path, name: str) -> None:
        """Write `{folder}/{name}.zip` in Stable-Baselines3's format, with what else belongs to it
        beside it.
        """


@dataclass(frozen=True)
class Outputs:
    """Where a lifetime writes while it runs.

    Attributes:
        tensorboard: folder of its TensorBoard log; None for no log.
        checkpoint: file of its checkpoint; None for no checkpoints. Learners that cannot go on from
            one write none.
        checkpoint_seconds: time between two checkpoints.
        status: file in which it says from time to time how far it is, beyond its steps: a JSON
            object of names and numbers. None for none; learners with nothing to add write none.
    """

    tensorboard: str | None = None
    checkpoint: str | None = None
    checkpoint_seconds: float = 300.0
    status: str | None = None


class Learner(Protocol):
    """An algorithm."""

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError if the learner cannot train this lifetime: wrong action space, unknown
        settings, a budget that ends before it learns.
        """

    def cohort_key(self, spec: LifetimeSpec) -> Hashable | None:
        """Lifetimes with equal keys can be trained side by side; None: each on its own."""

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train one agent for each lifetime; an agent that fails gives its exception, and the
        others go on.

        One whose ledger says `stopped` ends soon, and gives `Stopped`.
        """


def one_by_one(
    train: Callable[[LifetimeSpec, Ledger, Outputs], Agent | Exception],
    cohort: Sequence[LifetimeSpec],
    ledgers: Sequence[Ledger],
    outputs: Sequence[Outputs],
) -> list[Agent | Exception]:
    """`Learner.train` of a learner that trains lifetimes one after the other."""
    agents: list[Agent | Exception] = []
    for lifetime in zip(cohort, ledgers, outputs):
        try:
            agents.append(train(*lifetime))
        except Exception as e:
            agents.append(e)
    return agents


def learner_names() -> list[str]:
    """Names that `get_learner` knows."""
    from erl.learners import sb3

    return [*sb3.algorithms(), *_OWN]


def get_learner(name: str, engine: str = "auto") -> Learner:
    """The learner of this name.

    Raises:
        UserError: unknown name or engine, or the engine does not have the learner.
    """
    from erl.learners import sb3

    known = {n.casefold(): n for n in learner_names()}
    if name.casefold() not in known:
        raise UserError(
            f"unknown learner {name!r}{nearest(name, known.values())} (known: "
            f"{', '.join(known.values())})"
        )
    if engine not in ENGINES:
        raise UserError(
            f"unknown engine {engine!r}{nearest(engine, ENGINES)} (known: {', '.join(ENGINES)})"
        )
    name = known[name.casefold()]
    if name == "PPO" and engine != "sb3":
        from erl.learners.ppo.learner import CohortPPOLearner

        return CohortPPOLearner()
    if engine == "cohort":
        raise UserError(
            f"{name} has no cohort engine; PPO has one, and --engine auto trains {name}"
        )
    if name not in _OWN:
        return sb3.SB3Learner(name)
    if engine == "sb3":
        raise UserError(f"{name} is no algorithm of Stable-Baselines3; --engine auto trains it")
    module, learner, _ = _OWN[name]
    return getattr(import_module(module), learner)()


def load_agent(spec: LifetimeSpec, path: Path) -> Agent:
    """The agent that its `save` wrote to `{path}.zip` after this lifetime.

    Its `predict` takes what `spec.make_env()` shows.
    """
    from erl.learners import sb3

    name = canonical_name(spec.learner.name)
    return sb3.load(_OWN[name][2] if name in _OWN else name, path, spec)


def canonical_name(name: str) -> str:
    """The registry's spelling of a learner's name, whatever its case."""
    return next((n for n in learner_names() if n.casefold() == name.casefold()), name)


__all__ = [
    "Agent",
    "Learner",
    "Outputs",
    "canonical_name",
    "get_learner",
    "learner_names",
    "load_agent",
    "one_by_one",
]
