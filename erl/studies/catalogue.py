"""The catalogue of what this project has evolved and tested, which is used without an evolution.

`evolved.toml` has an entry for each evolution. It says what was evolved and how, which
hyperparameters came of it, and what agents with them reached on seeds that the evolution never saw.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from erl.errors import UserError, nearest
from erl.search.space import make_context
from erl.studies.configuration import EvolutionStudy
from erl.studies.winner import Finalist
from erl.worlds.specification import from_json
from erl.worlds.tasks import bare_name

CATALOGUE = Path(__file__).with_name("evolved.toml")
ANY = "evolved"  # the value of --reservoir that means the environment's own entry
# Fields of a winner that an entry need not have.
_UNKNOWN = {"trial": None, "mean": None, "fitness": None}


@dataclass(frozen=True)
class Tested:
    """What agents reached in a test.

    Attributes:
        arm: what they are called there.
        seeds: how many there were, each with a seed of its own.
        steps: environment steps of one lifetime.
        training: interquartile mean of the last training episodes' returns, and the lower and
            the upper bound of its 95 % bootstrap interval.
        final: the same of the final policy without exploration; None where it is not known.
        env_id: the environment; None for that of the evolution.
    """

    arm: str
    seeds: int
    steps: int
    training: tuple[float, float, float]
    final: tuple[float, float, float] | None = None
    env_id: str | None = None


@dataclass(frozen=True)
class Evolved:
    """An entry.

    Attributes:
        name: of the entry.
        evolution: what was evolved, and how.
        winner: what the evolution handed over.
        tested: what agents reached with it, and others beside them.
        commands: of the evolution and of the test.
        commit: of the project when it was evolved; None where nobody knows.
        remark: what else a user should know.
    """

    name: str
    evolution: EvolutionStudy
    winner: Finalist
    tested: tuple[Tested, ...]
    commands: tuple[str, ...]
    commit: str | None = None
    remark: str = ""

    @property
    def where(self) -> str:
        """The environments, in words."""
        names = ", ".join(self.evolution.environments)
        return f"{names} without velocities" if self.evolution.del_obs else names

    @property
    def line(self) -> str:
        """What it is, in a line."""
        return f"{self.name} ({self.where}, {self.evolution.learner})"

    @property
    def title(self) -> str:
        """What its hyperparameters are called in a line."""
        return f"{self.name} of the catalogue"


def read_catalogue(path: Path = CATALOGUE) -> tuple[Evolved, ...]:
    """All entries, in the order in which they are preferred.

    Raises:
        UserError: an entry that this version does not understand.
    """
    with path.open("rb") as file:
        entries = [_entry(data) for data in tomllib.load(file)["evolved"]]
    names = [entry.name for entry in entries]
    if len({*names}) < len(names):
        raise UserError(f"{path} has two entries of one name: {', '.join(sorted(names))}")
    return tuple(entries)


def _entry(data: dict[str, Any]) -> Evolved:
    try:
        entry: Evolved = from_json(Evolved, data | {"winner": _UNKNOWN | data["winner"]})
        make_context(entry.evolution, entry.winner.params)
    except (KeyError, TypeError) as e:
        raise UserError(f"the catalogue's entry {data.get('name')!r} lacks something: {e}") from e
    return entry


@cache
def catalogue() -> tuple[Evolved, ...]:
    """All entries of this version; see `read_catalogue`."""
    return read_catalogue()


def find_evolved(
    name: str,
    env_id: str | None = None,
    learner: str | None = None,
    flag: str = "--reservoir",
    with_reservoirs: bool = False,
) -> Evolved:
    """An entry of the catalogue.

    Args:
        name: of the entry, or `ANY` for the first one of the environment.
        env_id: the environment, or the name of a set of environments.
        learner: its name in the registry, for whom it was evolved; None for anyone.
        flag: which names an entry, for messages.
        with_reservoirs: whether an environment's own entry must have reservoirs; others evolved
            settings of the learner alone.

    Raises:
        UserError: there is none; with those that there are.
    """
    entries = catalogue()
    if name != ANY:
        for entry in entries:
            if entry.name == name:
                return entry
        names = [entry.name for entry in entries]
        raise UserError(
            f"{flag}: the catalogue has nothing of the name {name!r}{nearest(name, names)}; it has "
            f"{_listed(entries)}"
        )
    fit = [
        e
        for e in entries
        if (e.evolution.nb_res != 0 or not with_reservoirs)
        and learner in (None, e.evolution.learner)
    ]
    for entry in fit:
        if env_id in (entry.evolution.env_id, entry.evolution.env_type):
            return entry
    bare = bare_name(env_id or "")
    alike = [e for e in fit if e.evolution.env_id and bare_name(e.evolution.env_id) == bare]
    for_whom = "" if learner is None else f" and {learner}"
    which = "; for another version of it" if alike else ";"
    raise UserError(
        f"nothing was evolved yet for {env_id}{for_whom}{which} the catalogue has "
        f"{_listed(alike or entries)}; {flag} NAME takes one of them"
    )


def _listed(entries: Sequence[Evolved]) -> str:
    """All names, by task and learner."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(f"{entry.where}, {entry.evolution.learner}", []).append(entry.name)
    return "; ".join(f"{', '.join(of)} ({what})" for what, of in names.items())
