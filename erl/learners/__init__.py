"""Learners: the protocol that each follows, and the registry.

One algorithm is one file, or one folder. A learner trains a cohort, one or many lifetimes, and
returns agents whose `predict` is Stable-Baselines3's, so that `evaluate_policy` and every tool for
its models serve all.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from erl.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np

    from erl.learners.core.settings import Settings
    from erl.worlds.ledger import Ledger
    from erl.worlds.specification import LifetimeSpec

ENGINES = ("auto", "cohort", "sb3")

# Algorithms of Stable-Baselines3 and sb3-contrib; `sb3.algorithms` has their classes.
SB3_ALGORITHMS = (
    "A2C",
    "DDPG",
    "DQN",
    "PPO",
    "SAC",
    "TD3",
    "ARS",
    "CrossQ",
    "QRDQN",
    "RecurrentPPO",
    "TQC",
    "TRPO",
)


@dataclass(frozen=True)
class Implementation:
    """A learner that this project implements itself.

    Attributes:
        module, learner: where its class is.
        saved_as: the algorithm of Stable-Baselines3 as whose models its agents are saved; where
            that depends on the kind of actions, one for each.
        cohort: whether it is the engine `cohort`, many lifetimes side by side; else it trains one
            after the other, and there is no other engine.
        noted: all that it can note of a generation of its population, by name, beside `generation`
            and `steps`; empty without a population.
    """

    module: str
    learner: str
    saved_as: str | Mapping[str, str]
    cohort: bool = False
    noted: tuple[str, ...] = ()

    def load(self) -> "OwnLearner":
        """The learner."""
        return getattr(import_module(self.module), self.learner)()


# What populations note, see `erl.study.generations`.
_OF_HEADS = (
    "whole",
    "fitness",
    "champion_return",
    "surrogate",
    "champion",
    "rl_head",
    "rl_fate",
    "rl_return",
)
_OF_HALVES = ("fitness", "policy_return", "es_length", "rl_length", "cosine")
_OF_GENERATIONS = ("uncounted_steps", "individuals", "fitness", "kind", "var", "rl_share")
_OF_INDIVIDUALS = (*_OF_GENERATIONS, "individual", "age", "mean_return")
_OF_STEPS_TO_ONE = (*_OF_INDIVIDUALS, "p")
OWN = {
    "PPO": Implementation("erl.learners.ppo.learner", "CohortPPOLearner", "PPO", cohort=True),
    "TD3": Implementation("erl.learners.td3", "TD3Learner", "TD3", cohort=True),
    "DDPG": Implementation("erl.learners.td3", "DDPGLearner", "DDPG", cohort=True),
    "SAC": Implementation("erl.learners.sac", "SACLearner", "SAC", cohort=True),
    "ERL-Re2": Implementation("erl.learners.erl_re2.learner", "Re2Learner", "TD3", noted=_OF_HEADS),
    "DERL": Implementation(
        "erl.learners.derl.learner",
        "DERLLearner",
        {"Box": "TD3", "Discrete": "PPO"},
        noted=_OF_HALVES,
    ),
    "CEM-RL": Implementation("erl.learners.cem_rl", "CEMRLLearner", "TD3", noted=_OF_GENERATIONS),
    "P-CEM-RL": Implementation(
        "erl.learners.cem_rl", "PCEMRLLearner", "TD3", noted=_OF_GENERATIONS
    ),
    "ACEM-RL": Implementation("erl.learners.aes_rl", "ACEMRLLearner", "TD3", noted=_OF_INDIVIDUALS),
    "(1+1)-ES": Implementation(
        "erl.learners.aes_rl", "OnePlusOneESLearner", "TD3", noted=_OF_STEPS_TO_ONE
    ),
    "AES-RL": Implementation("erl.learners.aes_rl", "AESRLLearner", "TD3", noted=_OF_STEPS_TO_ONE),
}
# Learners whose settings may be a file of AES-RL's published code.
AES_RL_FILES = ("TD3", "CEM-RL", "P-CEM-RL", "ACEM-RL", "(1+1)-ES", "AES-RL")


class Unsupported(UserError):
    """What this project's own implementation of a learner does not know and Stable-Baselines3
    does.

    Args:
        learner: its name.
        what: the setting.

    """

    def __init__(self, learner: str, what: str) -> None:
        super().__init__(learner, what)

    @property
    def reason(self) -> str:
        """Without what to do."""
        learner, what = self.args
        return f"the cohort engine of {learner} does not know {what}"

    def __str__(self) -> str:
        return f"{self.reason}: use --engine sb3"


class Agent(Protocol):
    """A trained agent."""

    def predict(
        self,
        observation: "np.ndarray | dict[str, np.ndarray]",
        state: "tuple[np.ndarray, ...] | None" = None,
        episode_start: "np.ndarray | None" = None,
        deterministic: bool = False,
    ) -> "tuple[np.ndarray, tuple[np.ndarray, ...] | None]":
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
        status: file that shows how it is doing, beyond its steps, renewed from time to time: a JSON
            object of names and numbers. None for none; learners with nothing to add write none.
    """

    tensorboard: str | None = None
    checkpoint: str | None = None
    checkpoint_seconds: float = 300.0
    status: str | None = None


class Learner(Protocol):
    """An algorithm."""

    def check_settings(self, config: Mapping[str, Any]) -> None:
        """Raise a UserError if these settings cannot be, whatever the lifetime; `Unsupported` if
        Stable-Baselines3 has them.
        """

    def check(self, spec: "LifetimeSpec") -> None:
        """Raise a UserError if the learner cannot train this lifetime: wrong action space, unknown
        settings, a budget that ends before it learns.
        """

    def cohort_key(self, spec: "LifetimeSpec") -> Hashable | None:
        """Lifetimes with equal keys can be trained side by side; None: each on its own."""

    def train(
        self,
        cohort: Sequence["LifetimeSpec"],
        ledgers: Sequence["Ledger"],
        outputs: Sequence[Outputs],
    ) -> list[Agent | Exception]:
        """Train one agent for each lifetime; an agent that fails gives its exception, and the
        others go on.

        One whose ledger is `stopped` ends soon, and gives `Stopped`.
        """


class OwnLearner(Learner, Protocol):
    """An algorithm of this project."""

    settings: "type[Settings]"


def one_by_one(
    train: Callable[["LifetimeSpec", "Ledger", Outputs], Agent | Exception],
    cohort: Sequence["LifetimeSpec"],
    ledgers: Sequence["Ledger"],
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
    return list(dict.fromkeys([*SB3_ALGORITHMS, *OWN]))


def canonical_name(name: str) -> str:
    """The registry's spelling of a learner's name, whatever its case."""
    return next((n for n in learner_names() if n.casefold() == name.casefold()), name)


def get_learner(name: str, engine: str = "auto") -> "Learner":
    """The learner of this name, whatever its case.

    Args:
        name: of the learner.
        engine: one of `ENGINES`. `auto` is this project's implementation where it has one: the
            cohort of PPO, TD3, DDPG and SAC. Studies store the engine that `resolve_engine` chose,
            which looks at the settings too.

    Raises:
        UserError: unknown name or engine, or the engine does not have the learner.
    """
    if ":" in name:
        if engine != "auto":
            raise UserError(f"--engine {engine} is not for {name}: your learners have no engines")
        return _of_user(name)
    known, name = learner_names(), canonical_name(name)
    if name not in known:
        raise UserError(
            f"unknown learner {name!r}{nearest(name, known)} (known: {', '.join(known)}; "
            f"MODULE:CLASS names one of yours)"
        )
    if engine not in ENGINES:
        raise UserError(
            f"unknown engine {engine!r}{nearest(engine, ENGINES)} (known: {', '.join(ENGINES)})"
        )
    own = OWN.get(name)
    if engine == "cohort" and not (own and own.cohort):
        cohorts = ", ".join(n for n, implementation in OWN.items() if implementation.cohort)
        raise UserError(f"--engine cohort exists for {cohorts} only; use --engine auto for {name}")
    if engine == "sb3" and name not in SB3_ALGORITHMS:
        raise UserError(f"{name} is not an algorithm of Stable-Baselines3; use --engine auto")
    if own and engine != "sb3":
        return own.load()
    from erl.learners.sb3 import SB3Learner

    return SB3Learner(name)


def _of_user(name: str) -> "Learner":
    """An instance of a user's class, `MODULE:CLASS`, which follows the protocol `Learner`.

    Raises:
        UserError: it cannot be imported or made, or lacks a method.
    """
    from erl.worlds.own_context import class_of_user

    try:
        learner = class_of_user(name, "learner")()
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"the learner {name} cannot be made: {type(e).__name__}: {e}") from e
    methods = ("check_settings", "check", "cohort_key", "train")
    missing = [method for method in methods if not callable(getattr(learner, method, None))]
    if missing:
        raise UserError(f"the learner {name} has no method {', '.join(missing)}")
    return learner


def resolve_engine(
    name: str,
    engine: str,
    config: Mapping[str, Any] | None = None,
    note: Callable[[str], None] | None = None,
) -> str:
    """The engine that a new study stores where this one was asked for, so that no later version
    goes on with another one: what `auto` stands for.

    It stays `auto` for a learner with one implementation, this project's own.

    Args:
        name: of the learner.
        engine: one of `ENGINES`.
        config: settings of the learner.
        note: is given a line where `auto` takes Stable-Baselines3 because the cohort does not know
            a setting.

    Raises:
        UserError: `auto`, and settings that no engine knows together.
    """
    own = OWN.get(canonical_name(name))
    if engine != "auto" or ":" in name or (own and not own.cohort):
        return engine
    if own is None:
        return "sb3"
    try:
        own.load().check_settings(config or {})
    except Unsupported as e:
        if only := sorted(set(config or {}) & cohort_settings(name)):
            raise UserError(
                f"{name}'s {' and '.join(only)} needs the cohort engine, but {e.reason}: leave one "
                f"of them out"
            ) from None
        if note is not None:
            note(
                f"{name} is trained by Stable-Baselines3, one lifetime at a time: {e.reason}. "
                f"Without it lifetimes would train side by side, several times as fast"
            )
        return "sb3"
    except UserError:
        pass  # `Learner.check` refuses it
    return "cohort"


def cohort_settings(name: str) -> frozenset[str]:
    """Names of the settings that a learner's engine `cohort` has and Stable-Baselines3 has not."""
    own = OWN.get(canonical_name(name))
    return frozenset(getattr(own.load().settings, "own", ()) if own and own.cohort else ())


def setting_names(name: str) -> list[str]:
    """Names of the settings of a learner that this project implements itself."""
    return [field.name for field in fields(OWN[name].load().settings)]


def published_settings(name: str) -> dict[str, Any]:
    """What `--published_code` means for a learner: the settings in which its published code
    differs from the defaults.
    """
    own = OWN.get(name)
    return {} if own is None else dict(getattr(own.load(), "published", {}))


def cores(spec: "LifetimeSpec") -> int:
    """How many cores a lifetime keeps busy."""
    learner = get_learner(spec.learner.name, spec.learner.engine)
    own: Callable[[LifetimeSpec], int] | None = getattr(learner, "cores", None)
    return 1 if own is None else own(spec)


def load_agent(spec: "LifetimeSpec", path: Path) -> "Agent":
    """The agent that its `save` wrote to `{path}.zip` after this lifetime.

    Its `predict` takes what `spec.make_env()` shows.
    """
    from erl.learners import sb3

    name = canonical_name(spec.learner.name)
    if ":" in name:
        learner = _of_user(name)
        load: Callable[[LifetimeSpec, Path], Agent] | None = getattr(learner, "load", None)
        if load is None:
            raise UserError(f"the learner {name} has no method load, which reads its saved agents")
        return load(spec, path)
    return sb3.load(_saved_as(spec), path, spec)


def _saved_as(spec: "LifetimeSpec") -> str:
    """The algorithm of Stable-Baselines3 or sb3-contrib as whose models a lifetime's are saved."""
    name = canonical_name(spec.learner.name)
    saved_as = OWN[name].saved_as if name in OWN else name
    if not isinstance(saved_as, str):
        _, action_space = spec.spaces()
        saved_as = saved_as[type(action_space).__name__]
    return saved_as


def zoo_name(spec: "LifetimeSpec") -> str:
    """What the RL Baselines3 Zoo calls the algorithm as whose models a lifetime's are saved.

    Raises:
        UserError: the agents of this learner are no models of Stable-Baselines3.
    """
    if ":" in spec.learner.name:
        raise UserError(f"the Zoo cannot open agents of {spec.learner.name}, a learner of yours")
    saved_as = _saved_as(spec)
    return {"RecurrentPPO": "ppo_lstm"}.get(saved_as, saved_as.lower())


def __getattr__(name: str) -> Any:
    """`DERL`, a class for scripts, loaded when it is asked for."""
    if name == "DERL":
        return import_module("erl.learners.derl.api").DERL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AES_RL_FILES",
    "ENGINES",
    "Agent",
    "Implementation",
    "Learner",
    "Outputs",
    "Unsupported",
    "canonical_name",
    "cohort_settings",
    "cores",
    "get_learner",
    "learner_names",
    "load_agent",
    "one_by_one",
    "published_settings",
    "resolve_engine",
    "setting_names",
    "zoo_name",
]
