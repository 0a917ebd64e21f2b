"""What a study is: its configuration, as it is stored with it.

There are four kinds of studies: evolutions, their finals, tests of what was evolved, and the
training of one learner. A stored configuration says of which kind it is.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

from erl.errors import UserError, nearest
from erl.search.space import SearchConfig
from erl.statistics import normalised_score
from erl.worlds.reservoirs import Context
from erl.worlds.specification import LifetimeSpec, from_json, to_json

# Keys of what is stored that are no fields; version 0.2.0 stored the second.
_NO_FIELDS = {"kind", "config_version"}
# What agents have beside their learner: reservoirs, a context of the user's own, or evolved
# settings.
Part = Literal["RES", "CONTEXT", "EVOLVED"]


def agent_name(learner: str, part: Part | None) -> str:
    """What agents are called in tables and figures; part is None for the learner alone."""
    return learner if part is None else f"{part}_{learner}"


def evolved_arm(arms: Iterable[str]) -> str | None:
    """The first of these agents that has what was evolved; None if none has."""
    beginnings = tuple(f"{part}_" for part in get_args(Part))
    return next((arm for arm in arms if arm.startswith(beginnings)), None)


@dataclass(frozen=True)
class EvolutionStudy(SearchConfig):
    """An evolution. A default is what a study is that was made before the field was.

    Attributes:
        env_id: its environment; None for a set of environments.
        env_type: name of the set.
        env_ids: environments of the set.
        env_kwargs: arguments of the environment, or of each of the set.
        references: of each environment of the set, random and target return, as they were when the
            study began.
        learner: its name in the registry.
        engine: which implementation trains it.
        popsize: trials of a generation.
        warm_start: the study that CMA-ES began from, as it was named.
        start: what CMA-ES began with.
    """

    kind: ClassVar[str] = "evolution"
    # What may change when a study is continued.
    may_change: ClassVar[frozenset[str]] = frozenset({"nb_trials", "start"})

    env_id: str | None = None
    env_type: str | None = None
    env_ids: tuple[str, ...] | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    references: dict[str, Any] | None = None
    del_obs: bool = False
    learner: str = "PPO"
    engine: str = "auto"
    training_steps: int = 300_000
    nb_trials: int = 100
    nb_seeds: int = 3
    ep_eval: int = 10
    fitness: str = "training"
    seed: int = 0
    sampler: str = "Cmaes"
    popsize: int | None = None
    restarts: str = "ipop"
    use_pruned: bool = True
    pruner: str = "none"
    warm_start: str | None = None
    start: dict[str, Any] | None = None

    @property
    def environments(self) -> tuple[str, ...]:
        """All environments that selection sees."""
        if self.env_ids is not None:
            return self.env_ids
        return () if self.env_id is None else (self.env_id,)

    @property
    def title(self) -> str:
        """What a list of studies calls it."""
        if self.env_ids is not None:
            return "evolution, set"
        if self.nb_res == 0:
            return "evolution, settings"
        return "evolution" if self.nb_res is None else "evolution, several"

    def score(self, spec: LifetimeSpec, value: float) -> float:
        """What a lifetime's return contributes to its trial's: itself, on a set of environments on
        the scale from random to target return.
        """
        if self.references is None:
            return value
        return float(normalised_score(value, *self.references[spec.task.env_id]))


@dataclass(frozen=True)
class FinalsStudy:
    """The finals of an evolution: its best trials, trained again on fresh seeds.

    Attributes:
        evolution: configuration of the evolution.
    """

    kind: ClassVar[str] = "finals"
    may_change: ClassVar[frozenset[str]] = frozenset()
    title: ClassVar[str] = "finals"

    evolution: EvolutionStudy

    @property
    def environments(self) -> tuple[str, ...]:
        """Those of the evolution."""
        return self.evolution.environments


@dataclass(frozen=True)
class TestStudy:
    """A test of what was evolved.

    Attributes:
        evolution: configuration of the study that was evolved.
        params: its best hyperparameters.
        training_steps: environment steps of one lifetime.
        engine: which implementation trains the learner.
        env_id: of a test of generalisation, an environment that the evolution did not see.
        env_kwargs: arguments of that environment; the evolution's are in its configuration.
        del_obs: whether velocities are deleted there; None: as in the evolution.
    """

    __test__: ClassVar[bool] = False  # for pytest: this is no test of the project
    kind: ClassVar[str] = "test"
    may_change: ClassVar[frozenset[str]] = frozenset()

    evolution: EvolutionStudy
    params: dict[str, float]
    training_steps: int
    engine: str
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    # Left out of what is stored where it is None, as before there was such a field.
    del_obs: bool | None = field(default=None, metadata={"omit_default": True})

    @property
    def environments(self) -> tuple[str, ...]:
        """Those that its agents are trained in."""
        return self.evolution.environments if self.env_id is None else (self.env_id,)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of these environments."""
        return self.evolution.env_kwargs if self.env_id is None else self.env_kwargs

    @property
    def hides_velocities(self) -> bool:
        """Whether its agents see no velocities."""
        return self.evolution.del_obs if self.del_obs is None else self.del_obs

    @property
    def title(self) -> str:
        """What a list of studies calls it."""
        return "test" if self.env_id is None else "test of generalisation"


@dataclass(frozen=True)
class SingleStudy:
    """The training of one learner on one task.

    Attributes:
        steps: environment steps of one lifetime.
        engine: which implementation trains the learner.
        env_kwargs: arguments of the environment.
        reservoir: the entry of the catalogue whose reservoirs the agent has; None without any.
        context: these reservoirs, or a context of the user's own; None for an agent on the
            observations alone.
    """

    kind: ClassVar[str] = "single"
    may_change: ClassVar[frozenset[str]] = frozenset()
    title: ClassVar[str] = "single run"

    learner: str
    env_id: str
    steps: int
    seed: int = 0
    learner_config: dict[str, Any] = field(default_factory=dict)
    engine: str = "auto"
    del_obs: bool = False
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    ep_eval: int = 10
    published_code: bool = False
    # Left out of what is stored where there are none, as before there were any.
    reservoir: str | None = field(default=None, metadata={"omit_default": True})
    context: Context | None = field(default=None, metadata={"omit_default": True})

    @property
    def arm(self) -> str:
        """What its agents are called in tables and figures."""
        if self.context is None:
            return self.learner
        return agent_name(self.learner, "RES" if self.context.own is None else "CONTEXT")

    @property
    def environments(self) -> tuple[str, ...]:
        """Its environment."""
        return (self.env_id,)


StudyConfig = EvolutionStudy | FinalsStudy | TestStudy | SingleStudy
_KINDS: dict[str, type[StudyConfig]] = {
    kind.kind: kind for kind in (EvolutionStudy, FinalsStudy, TestStudy, SingleStudy)
}


def to_stored(config: StudyConfig) -> dict[str, Any]:
    """A configuration as it is stored: plain JSON."""
    return json.loads(json.dumps({"kind": config.kind, **to_json(config)}))


def from_stored(stored: Any) -> StudyConfig:
    """The configuration that was stored, by this version or an earlier one.

    Raises:
        UserError: a later version stored it, or another program.
    """
    kind = stored.get("kind") if isinstance(stored, Mapping) else None
    if not isinstance(kind, str):
        raise UserError("the stored configuration cannot be read: it says no kind of study")
    if kind not in _KINDS:
        raise UserError(
            f"this version does not know studies of the kind {kind!r}{nearest(kind, _KINDS)}"
        )
    try:
        known = _fields(stored)
        if "evolution" in known:
            known["evolution"] = _fields(known["evolution"])
        return from_json(_KINDS[kind], known)
    except (TypeError, AttributeError) as e:
        raise UserError(f"the stored configuration cannot be read: {e}") from None


def _fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in stored.items() if k not in _NO_FIELDS}


def differences(there: StudyConfig, here: StudyConfig) -> list[str]:
    """In which ways a stored configuration is not the one at hand, but for what may change."""
    if there.kind != here.kind:
        return [f"kind is {there.kind!r} there and {here.kind!r} here"]
    return sorted(_differences(there, here))


def _differences(there: Any, here: Any, prefix: str = "") -> Iterator[str]:
    for name in (f.name for f in fields(here) if f.name not in here.may_change):
        a, b = getattr(there, name), getattr(here, name)
        if isinstance(b, EvolutionStudy):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif to_json(a) != to_json(b):
            yield f"{prefix}{name} is {to_json(a)!r} there and {to_json(b)!r} here"
