"""Sets of environments for reservoirs that generalise, and the returns that put their scores on one
scale.

The sets, the targets and the scale are those of ER-MRL (Léger et al., 2024, arXiv 2312.06695): the
fitness of a reservoir is the mean over a set of (R - R_random) / (R_target - R_random). Sets and
targets are declared in `task_sets.toml` beside this file, and users' files have the same form. What
random actions earn was measured by `benchmarks/random_returns.py`. Environments are known here by
name only: none is made.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from erl.errors import UserError, nearest
from erl.files import read_mapping

TASK_SETS = Path(__file__).parent / "task_sets.toml"
RANDOM_RETURNS = Path(__file__).parent / "random_returns.json"

_TABLES = ("sets", "target_returns", "random_returns")


@dataclass(frozen=True)
class TaskSet:
    """Environments over which one reservoir is evolved.

    Attributes:
        name: becomes part of a study's name.
        env_ids: Gymnasium's names, or `module:name`; at least one, all different.
        target_returns: environment -> return that scores 1, where a user's file declares it.
        random_returns: environment -> return of random actions, likewise.

    Raises:
        UserError: no environments, one that is not named or one that comes twice.
    """

    name: str
    env_ids: tuple[str, ...]
    target_returns: dict[str, float] = field(default_factory=dict)
    random_returns: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.env_ids:
            raise UserError(f"the set {self.name!r} holds no environments")
        for env_id in self.env_ids:
            _check_env_id(env_id, f"the set {self.name!r}")
        twice = sorted({i for i in self.env_ids if self.env_ids.count(i) > 1})
        if twice:
            raise UserError(f"the set {self.name!r} holds {', '.join(twice)} more than once")


@dataclass(frozen=True)
class Declarations:
    """What one file declares.

    Attributes:
        sets: name -> environments.
        target_returns: environment -> return that scores 1.
        random_returns: environment -> mean return of an episode of random actions.
    """

    sets: dict[str, tuple[str, ...]]
    target_returns: dict[str, float]
    random_returns: dict[str, float]


@dataclass(frozen=True)
class RandomReturn:
    """What uniformly random actions earned in one environment.

    Attributes:
        return_mean: mean over episodes of the sum of an episode's rewards.
        return_standard_error: of that mean.
        reward_mean: mean over the steps of all episodes.
        length_mean: steps per episode.
        episodes: number of episodes.
        seed: root seed of their measurement.
        gymnasium: version.
        mujoco: version.
    """

    return_mean: float
    return_standard_error: float
    reward_mean: float
    length_mean: float
    episodes: int
    seed: int
    gymnasium: str
    mujoco: str


# -- sets --


def load_task_set(name: str, path: str | Path | None = None) -> TaskSet:
    """The set of this name: one of ER-MRL's, or one that a user's file declares.

    Args:
        name: ER-MRL's `env_type`, such as `Ant_Swimmer` (v4 environments), or the user's own.
        path: the user's file, whose returns also apply to ER-MRL's sets; None for ER-MRL's sets
            alone.

    Raises:
        UserError: no such set, a user's set with the name of one of ER-MRL's, or a file that
            `load_task_sets` refuses.
    """
    shipped, declared = _shipped().sets, _declared(path)
    taken = next((n for n in declared.sets if n in shipped), None)
    if taken is not None:
        raise UserError(f"{path}: ER-MRL already has a set {taken!r}; give yours another name")
    sets = {**shipped, **declared.sets}
    if name not in sets:
        hint = nearest(name, sets) or f"; known are {', '.join(sets)}"
        if re.search(r"-v[0-9]+$", name):
            hint = f", but an environment: use --env_ids {name}"
        raise UserError(f"unknown set of environments {name!r}{hint}")
    return _with_returns(name, sets[name], declared)


def task_set_from_ids(env_ids: str, path: str | Path | None = None) -> TaskSet:
    """A set from comma-separated names, `Ant-v4,Swimmer-v4`; it is called `Ant-v4+Swimmer-v4`.

    Args:
        env_ids: the environments; spaces around commas are allowed.
        path: a user's file with returns of these environments, or None.

    Raises:
        UserError: no environments, one that is not named or that comes twice, or a file that
            `load_task_sets` refuses.
    """
    listed = tuple(i.strip() for i in env_ids.split(","))
    if not any(listed):
        raise UserError(
            f"{env_ids!r} names no environments; expected names with commas between them, "
            f"Ant-v4,Swimmer-v4"
        )
    return _with_returns("+".join(listed), listed, _declared(path))


def load_task_sets(path: str | Path) -> Declarations:
    """Read a file that declares sets, target returns and random returns; `task_sets.toml`,
    beside this file, is an example.

    Args:
        path: a file (see `read_mapping`) with the tables `sets` (name = list of environments),
            `target_returns` and `random_returns` (environment = sum of an episode's rewards), each
            of them optional.

    Raises:
        UserError: the file cannot be read or declares nothing; unknown tables, wrong types, names
            that come twice, empty sets, or returns that are not finite.
    """
    path = Path(path)
    data = read_mapping(path, "the sets of environments")
    if not data:
        raise UserError(f"{path} is empty: it needs one of the tables {', '.join(_TABLES)}")
    for key, table in data.items():
        if key not in _TABLES:
            hint = nearest(str(key), _TABLES) or f"; known are {', '.join(_TABLES)}"
            raise UserError(f"{path}: unknown table {_shown(key)}{hint}")
        if not isinstance(table, dict):
            raise UserError(
                f"{path}: {key} must be a table of names and values, not {_shown(table)}"
            )
    sets = {_set_name(n, path): _env_ids(n, ids, path) for n, ids in data.get("sets", {}).items()}
    targets, randoms = (
        {
            _check_env_id(i, f"{path}: {key}"): _return(key, i, r, path)
            for i, r in data.get(key, {}).items()
        }
        for key in ("target_returns", "random_returns")
    )
    if not (sets or targets or randoms):
        raise UserError(f"{path} has no values: its tables are empty")
    return Declarations(sets, targets, randoms)


def _with_returns(name: str, env_ids: tuple[str, ...], declared: Declarations) -> TaskSet:
    """The set, with what the user's file says of its environments: it can then be stored without
    the file.
    """
    targets, randoms = (
        {i: returns[i] for i in env_ids if i in returns}
        for returns in (declared.target_returns, declared.random_returns)
    )
    return TaskSet(name, env_ids, targets, randoms)


def _declared(path: str | Path | None) -> Declarations:
    return load_task_sets(path) if path is not None else Declarations({}, {}, {})


@cache
def _shipped() -> Declarations:
    return load_task_sets(TASK_SETS)


# -- what a file declares --


def _set_name(name: Any, path: Path) -> str:
    # It becomes part of the names of studies and folders.
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}", name)
        or ".." in name
    ):
        raise UserError(
            f"{path}: {name!r} is not a valid name of a set: use at most 100 letters, digits and _ "
            f". + = -"
        )
    return name


def _env_ids(name: str, env_ids: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(env_ids, list):
        raise UserError(
            f"{path}: the set {name!r} must be a list of environments, not {_shown(env_ids)}"
        )
    try:
        return TaskSet(name, tuple(env_ids)).env_ids
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def _check_env_id(env_id: Any, where: str) -> str:
    if not isinstance(env_id, str) or not env_id or any(c.isspace() or c == "," for c in env_id):
        raise UserError(f"{where}: {_shown(env_id)} is not a name of an environment")
    return env_id


def _return(key: str, env_id: str, value: Any, path: Path) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or abs(value) > 1e300 or not math.isfinite(value):
        raise UserError(f"{path}: {key} of {env_id} must be a finite number, not {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number too long to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- returns --


@cache
def measured_random_returns() -> Mapping[str, RandomReturn]:
    """Environment -> what `benchmarks/random_returns.py` measured."""
    return {
        i: RandomReturn(**figures)
        for i, figures in json.loads(RANDOM_RETURNS.read_text(encoding="utf-8")).items()
    }


def references(task_set: TaskSet, published: bool = False) -> dict[str, list[float]]:
    """Environment -> the two returns between which its score runs from 0 to 1: mean sum of an
    episode's rewards under uniformly random actions, and the sum that scores 1.

    Args:
        task_set: whose own returns go before ER-MRL's targets and what was measured.
        published: take the mean reward of one random *step* for the random return, as ER-MRL's
            published code does. Random returns that were declared are then not used.

    Raises:
        UserError: a return is missing, or the target does not lie above the random return.
    """
    targets = {**_shipped().target_returns, **task_set.target_returns}
    randoms = {
        i: r.reward_mean if published else r.return_mean
        for i, r in measured_random_returns().items()
    } | ({} if published else task_set.random_returns)
    _refuse_missing(
        [env_id for env_id in task_set.env_ids if env_id not in randoms],
        [env_id for env_id in task_set.env_ids if env_id not in targets],
        published,
    )
    for env_id in task_set.env_ids:
        if targets[env_id] <= randoms[env_id]:
            raise UserError(
                f"the target return of {env_id} ({targets[env_id]:g}) must be above the return of "
                f"random actions ({randoms[env_id]:g}): declare a higher one "
                f"{_lines('target_returns', [env_id])}"
            )
    return {env_id: [randoms[env_id], targets[env_id]] for env_id in task_set.env_ids}


def _refuse_missing(randoms: Sequence[str], targets: Sequence[str], published: bool) -> None:
    """Refuse environments of which a random or a target return is missing, all in one message."""
    said = []
    if randoms:
        what = "reward of random steps" if published else "random return"
        measure = f"python benchmarks/random_returns.py --env_ids {','.join(randoms)}"
        said.append(f"no {what} is known for {', '.join(randoms)}: measure it with {measure}")
        if not published:
            said[-1] += f", or declare it {_lines('random_returns', randoms)}"
    if targets:
        said.append(
            f"no target return is known for {', '.join(targets)}: declare it "
            f"{_lines('target_returns', targets)}"
        )
    if said:
        raise UserError("; ".join(said))


def _lines(table: str, env_ids: Sequence[str]) -> str:
    """What to write into a TOML file, in words that fit on one line."""
    lines = " and ".join(f'"{env_id}" = NUMBER' for env_id in env_ids)
    line = "line" if len(env_ids) == 1 else "lines"
    return f"in a TOML file that --sets names: under the heading [{table}] the {line} {lines}"
