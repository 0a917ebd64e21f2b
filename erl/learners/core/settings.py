"""Settings of every learner: declared by annotations, checked in one place, refused in the same
words.

A learner declares a frozen dataclass below `Settings`, whose annotations say what a value is:

    @dataclass(frozen=True)
    class Mine(Settings):
        learner = "Mine"
        gamma: Share = 0.99                                  # a number from 0 to 1
        batch_size: Count = 64                               # a whole number from 1
        clip_range: Annotated[float, Range(above=0)] | Schedule = 0.2
        algorithm: Literal["TD3", "DDPG"] = "TD3"

Algorithms of Stable-Baselines3 declare theirs in the signatures of their constructors; `convert`
reads those annotations too.
"""

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from gymnasium import spaces

from erl.errors import UserError, nearest
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import bare_name

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Range:
    """Bounds of a number, in an annotation.

    Attributes:
        low, high: the least and the greatest value that is taken.
        above: in place of `low`, a value that is too small itself.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
        )

    def __str__(self) -> str:
        low = f" from {self.low:g}" if self.low is not None else ""
        if self.above is not None:
            low = f" above {self.above:g}"
        if self.high is None:
            return low
        return f"{low} {'to' if self.low is not None else 'up to'} {self.high:g}"


Count = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]


@dataclass(frozen=True)
class LinearSchedule:
    """`start` times the remaining progress. Stable-Baselines3's goes below 0 in a rollout that
    exceeds the budget; no rate does.
    """

    start: float

    def __call__(self, progress_remaining: float) -> float:
        """Value at this remaining progress, 1 at the start and 0 at the end."""
        return self.start * max(0.0, progress_remaining)


class _Misfit(Exception):
    """A value is not what its annotation asks for."""


def convert(learner: str, name: str, annotation: Any, value: Any) -> Any:
    """A setting's value in the form that its annotation asks for: 3 for `3.0` where a whole number
    is asked for, 0.005 for the text `5e-3`, a `LinearSchedule` for `lin_0.2`.

    Raises:
        UserError: the value does not fit: "LEARNER's NAME must be a number from 0 to 1, not 'x'".
    """
    try:
        return _converted(annotation, value)
    except _Misfit:
        text = repr(value)
        text = text if len(text) <= 200 else f"{text[:200]}…"
        raise UserError(f"{learner}'s {name} must be {expected(annotation)}, not {text}") from None


def _converted(annotation: Any, value: Any) -> Any:
    bounds, annotation = _bounded(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, UnionType):
        return _first_that_fits(arguments, value)
    if annotation in (int, float):
        return _number(annotation, bounds, value)
    if _is_schedule(annotation):
        return _schedule(bounds, value)
    if origin is Literal:
        for known in arguments:
            if value == known and isinstance(value, bool) == isinstance(known, bool):
                return known
    elif origin is tuple and isinstance(value, list | tuple):
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) == len(value):
            return tuple(_converted(a, v) for a, v in zip(each, value))
    elif annotation is NoneType:
        if value is None:
            return None
    elif (origin or annotation) in (bool, str, dict) and isinstance(value, origin or annotation):
        return value
    raise _Misfit


def _first_that_fits(alternatives: Iterable[Any], value: Any) -> Any:
    # Numbers first: a text that spells one is meant as one, also where other texts are taken. Their
    # bounds are those of a schedule's start.
    alternatives = sorted(alternatives, key=lambda a: _bounded(a)[1] not in (int, float))
    bounds, _ = _bounded(alternatives[0])
    for annotation in alternatives:
        try:
            if _is_schedule(annotation):
                return _schedule(bounds, value)
            return _converted(annotation, value)
        except _Misfit:
            continue
    raise _Misfit


def _bounded(annotation: Any) -> tuple[Range | None, Any]:
    """The bounds in an annotation, and the annotation without them."""
    if get_origin(annotation) is not Annotated:
        return None, annotation
    bare, *metadata = get_args(annotation)
    return next((m for m in metadata if isinstance(m, Range)), None), bare


def _is_schedule(annotation: Any) -> bool:
    return (get_origin(annotation) or annotation) is Callable


def _number(kind: type, bounds: Range | None, value: Any) -> int | float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _Misfit from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Misfit
    if kind is int and value != int(value):
        raise _Misfit
    if bounds is not None and value not in bounds:
        raise _Misfit
    return kind(value)


def _schedule(bounds: Range | None, value: Any) -> Schedule:
    if callable(value):
        return value
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(_number(float, bounds, value.removeprefix("lin_"))))
    raise _Misfit


def expected(annotation: Any) -> str:
    """What an annotation asks for, in words: "a number above 0 or null"."""
    bounds, annotation = _bounded(annotation)
    if bounds is not None:
        return f"{expected(annotation)}{bounds}"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        words = [expected(a) for a in arguments]
        words = list(dict.fromkeys(w for w in words if w != "null"))
        if NoneType in arguments:
            words.append("null")
        if len(words) == 1:
            return words[0]
        last = f", or {words[-1]}" if any(" or " in w for w in words) else f" or {words[-1]}"
        return ", ".join(words[:-1]) + last
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each {expected(arguments[0])}"
        return f"a list of {len(arguments)} ({', '.join(map(expected, arguments))})"
    words_of = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if annotation in words_of:
        return words_of[annotation]
    if (origin or annotation) is dict:
        return "names and values"
    return "a schedule lin_NUMBER" if _is_schedule(annotation) else "null"


def refuse_unknown(learner: str, config: Iterable[str], known: Iterable[str]) -> None:
    """Raise a UserError for the first setting that the learner does not have."""
    known = list(known)
    for name in config:
        if name not in known:
            raise UserError(f"{learner} has no setting {name!r}{nearest(name, known)}")


@dataclass(frozen=True)
class Settings:
    """Settings of a learner. Those of an instance fit their annotations, have the form that these
    ask for, and fit one another.

    Class attributes:
        learner: its name, for messages.
        spelled: names that users know a field by, where that is not its own.
        defaults: a TOML file of defaults by environment; None for none.
    """

    learner: ClassVar[str] = "the learner"
    spelled: ClassVar[Mapping[str, str]] = {}
    defaults: ClassVar[Path | None] = None

    def __post_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            spelled = self.spelled.get(name, name)
            value = convert(self.learner, spelled, annotation, getattr(self, name))
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        """Raise a UserError for settings that do not fit one another."""

    def _wrong(self, name: str, what: str) -> UserError:
        """For `_check`: "LEARNER's NAME must be WHAT, not VALUE"."""
        spelled = self.spelled.get(name, name)
        return UserError(f"{self.learner}'s {spelled} must be {what}, not {getattr(self, name)!r}")

    @classmethod
    def from_learner_config(cls, config: Mapping[str, Any], env_id: str = "") -> Self:
        """Settings from a learner's configuration; what it does not name is the environment's
        default, or the field's.

        Raises:
            UserError: an unknown setting, or a value that cannot be.
        """
        refuse_unknown(cls.learner, config, _annotations(cls))
        return cls(**{**cls.environment_defaults(env_id), **config})

    @classmethod
    def environment_defaults(cls, env_id: str) -> dict[str, Any]:
        """Defaults that depend on the environment, whatever its version and module: the section of
        its name in the file `defaults`, or the section `default`.
        """
        if cls.defaults is None:
            return {}
        sections = _toml(cls.defaults)
        section = sections.get(bare_name(env_id), sections["default"])
        return {key: value for key, value in section.items() if key != "source"}


def _annotations(kind: type[Settings]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


@cache
def _toml(path: Path) -> dict[str, dict[str, Any]]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """How often a lifetime is evaluated on the way; a setting of every learner.

    Attributes:
        eval_freq: steps between two evaluations that are only reported and not counted; 0: none.
        eval_episodes: episodes of each policy in such an evaluation.
    """

    # Rows of an evolution that a record keeps at most, and numbers in all of them.
    kept: ClassVar[tuple[int, int]] = 200, 4000

    eval_freq: Annotated[int, Range(0)] = 0
    eval_episodes: Count = 5


def check_budget(
    learner: str,
    spec: LifetimeSpec,
    starts: Mapping[str, int],
    cost: int = 1,
    of: str = "",
    then: int = 1,
    most: int | None = None,
) -> None:
    """Raise a UserError if a lifetime ends before its learner learns anything: that is certain, or
    with a `cost` what is to be expected.

    Args:
        learner: its name, for the message.
        spec: of the lifetime.
        starts: settings that let it begin to learn, once that many steps were taken, by name.
        cost: steps that are counted, about, for each of these.
        of: what makes it more than 1, in words.
        then: further steps, at least, of what it learns from first.
        most: steps that the lifetime takes at most, where its last ones exceed the budget.
    """
    budget = spec.steps if most is None else most
    late = {name: n for name, n in starts.items() if n * cost + then > budget}
    if late:
        names = sorted(late, key=late.__getitem__, reverse=True)  # the least budget comes first
        steps = " and ".join(f"{name} = {late[name]:,} steps" for name in names)
        counted = f", which count as about {late[names[0]] * cost:,} with {of}" if cost > 1 else ""
        further = f", from at least {then:,} more" if then > 1 else ""
        raise UserError(
            f"{learner} starts to learn after {steps}{counted}{further}, but a "
            f"lifetime has only {spec.steps:,}; lower {' and '.join(names)} or raise the steps"
        )


def check_learned(learned: bool, steps: int) -> None:
    """Raise a RuntimeError if a lifetime of so many steps ended before its learner learned."""
    if not learned:
        raise RuntimeError(f"nothing was learned within {steps} steps: it needs more of them")


def check_actions(learner: str, action_space: spaces.Space, *kinds: type[spaces.Space]) -> None:
    """Raise a UserError for actions that are of none of these kinds."""
    if not isinstance(action_space, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        needed = "continuous (Box)" if kinds == (spaces.Box,) else names
        raise UserError(f"{learner} needs {needed} actions, not {type(action_space).__name__}")


def check_device(learner: str, device: str) -> None:
    """Raise a UserError for a device that PyTorch does not know, or that this machine has not."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as e:
        raise UserError(f"{learner} knows no device {device!r}") from e
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            f"this machine has no device {device!r} for {learner}; device cpu works everywhere"
        )
