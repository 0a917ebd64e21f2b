"""Errors that a user can repair, and those that end one lifetime."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# What an environment may raise: it fails its own lifetime and nothing else.
RAISED = (Exception, SystemExit)


class UserError(Exception):
    """Bad input: scripts print its message as one line on stderr and exit with code 2."""


class EnvironmentFault(RuntimeError):
    """An environment raised, or returned what it had not declared or what is not finite."""


class Stopped(Exception):
    """The lifetime was stopped; a learner returns this instead of an agent."""


class Interrupted(Stopped):
    """The lifetime ended because its command was interrupted; its checkpoint, if it can have one,
    is written.
    """


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """`known` names closest to `name`, as the end of a message ("; did you mean A, B?"), or an
    empty string. Initials count as close: `lr` is `learning_rate`.
    """
    by_fold = {k.casefold(): k for k in known}
    folded = str(name).casefold()  # files may have keys of another type
    close = [k for k in by_fold if "_" in k and folded == "".join(p[:1] for p in k.split("_"))]
    close = close[:n] or get_close_matches(folded, by_fold, n=n, cutoff=0.5)
    return f"; did you mean {', '.join(by_fold[c] for c in close)}?" if close else ""


def one_line(text: object, longest: int | None = None) -> str:
    """Text as one line, without the colours of a terminal; what is longer than `longest` ends in
    dots.
    """
    line = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(text)).split())
    return line if longest is None or len(line) <= longest else f"{line[: longest - 3]}..."


def describe(error: BaseException) -> str:
    """An exception as one line; faults of environments and users speak for themselves, others name
    their type.
    """
    text = one_line(error)
    plain = isinstance(error, EnvironmentFault | UserError)
    return text if plain else f"{type(error).__name__}: {text}"
