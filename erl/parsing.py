"""From the words of a command to its configuration: flags made of a dataclass, grouped help, and
files of flags.
"""

import argparse
import dataclasses
import json
import re
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import UnionType
from typing import Any, Literal

from erl import __version__
from erl.errors import UserError, nearest
from erl.files import read_mapping, spelling

# Columns of help: no line is longer, also on wide terminals.
WIDTH = 80
OTHER = "other flags"


# What a flag holds: one value, of which the last one counts where the flag is repeated; values with
# commas between them, or settings NAME=VALUE,…, which join where it is repeated; or one mapping of
# names and values, which is given once. Files of flags have lists for lists, and tables for
# settings and mappings.
Holds = Literal["one", "list", "settings", "mapping"]
_JOINED = ("list", "settings")


def option(
    default: Any,
    text: str,
    *aliases: str,
    choices: Sequence[str] | None = None,
    holds: Holds = "one",
) -> Any:
    """A field of a configuration dataclass that becomes a flag.

    Args:
        default: its value when the flag is absent; its field's type decides how words are read.
        text: the help line.
        aliases: further spellings, with their dashes.
        choices: for the help line; the configuration checks the value itself.
        holds: how much it takes, see `Holds`; all but "one" are for texts.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": text, "aliases": aliases, "choices": choices, "holds": holds},
    )


def parse(
    kind: type,
    argv: Sequence[str] | None = None,
    program: str | None = None,
    description: str | None = None,
    example: str | None = None,
) -> Any:
    """An instance of a configuration dataclass from command-line flags.

    Booleans are read both as flags (`--del_obs`, `--no-del_obs`) and as words (`--del_obs True`).
    `--config FILE` names a file of flags; flags of the command line override it. What a repeated
    flag means is in `Holds`.

    Args:
        kind: the dataclass. Its `GROUPS`, if it has them, are the sections of the help: title ->
            names of fields.
        argv: the words; None for those of this process.
        program, description, example: for the help.

    Raises:
        UserError: unknown flags or values that cannot be read.
    """
    parser = make_parser(kind, program, description, example)
    found, rest = parser.parse_known_args(argv)
    if rest:
        raise _unknown(parser, rest)
    fields = {"config": "mapping"} | {f.name: _holds(f) for f in dataclasses.fields(kind)}
    given = {name: _one(name, words, fields[name]) for name, words in vars(found).items()}
    config = given.pop("config", None)
    return kind(**(({} if config is None else read_flags(config, kind)) | given))


def _holds(field: "dataclasses.Field[Any]") -> Holds:
    return field.metadata.get("holds", "one")


def _one(name: str, words: Any, holds: str) -> Any:
    """What a flag was given in all. The words of one that means something else when it is repeated
    are a list.
    """
    if holds == "one":
        return words
    if len(words) > 1 and holds not in _JOINED:
        raise UserError(f"--{name} is given {len(words)} times: give it once")
    return ",".join(words)


def make_parser(
    kind: type,
    program: str | None = None,
    description: str | None = None,
    example: str | None = None,
) -> argparse.ArgumentParser:
    """The parser of a configuration dataclass; see `parse`."""
    parser = _Parser(
        prog=program,
        usage=f"{program or '%(prog)s'} [flags]",
        description=description,
        epilog=None if example is None else "example:\n" + "\n".join(_lines(example)),
        formatter_class=_Help,
        allow_abbrev=False,
        add_help=False,
    )
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    groups: Mapping[str, Sequence[str]] = getattr(kind, "GROUPS", {"flags": tuple(fields)})
    grouped = {name for names in groups.values() for name in names}
    rest = [name for name in fields if name not in grouped]
    for title, names in [*groups.items(), (OTHER, rest)]:
        group = parser.add_argument_group(title)
        for name in names:
            if name in fields:
                _add(group, fields[name], _plain(hints[name]))
    general = parser.add_argument_group("general")
    general.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=argparse.SUPPRESS,
        help="YAML, TOML or JSON file of these flags; flags override it",
    )
    general.add_argument("-h", "--help", action="help", help="show this and exit")
    general.add_argument(
        "--version",
        action="version",
        version=f"erl {__version__}",
        help="show the version and exit",
    )
    return parser


def spellings(field: "dataclasses.Field[Any]") -> list[str]:
    """All names of a flag, with their dashes, the usual one first."""
    names = [f"--{field.name}", *field.metadata.get("aliases", ())]
    if "_" in field.name:
        names.append(f"--{field.name.replace('_', '-')}")
    return names


def _add(group: Any, field: "dataclasses.Field[Any]", plain: Any) -> None:
    """Add the flag of a field to a group of the help."""
    names = spellings(field)
    text, notes = field.metadata.get("help", ""), []
    if field.metadata.get("choices"):
        notes.append(", ".join(field.metadata["choices"]))
    if field.default is not None:
        notes.append(f"default: {field.default}")
    if notes:
        text += f" ({'; '.join(notes)})"
    # The dataclass has the defaults.
    settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    settings["help"] = text.replace("%", "%%")
    if _holds(field) != "one":
        settings["action"] = "append"
    if plain is bool:
        group.add_argument(
            *names, type=_boolean, nargs="?", const=True, metavar="True|False", **settings
        )
        group.add_argument(
            *(name.replace("--", "--no-", 1) for name in names),
            dest=field.name,
            action="store_false",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    else:
        group.add_argument(*names, type=_READ[plain], metavar=_METAVARS[plain], **settings)


def _lines(command: str) -> list[str]:
    """A command in lines of 80 columns, as a shell takes them; flags stay beside their values."""
    together = re.sub(r"(--\S+) (?!--)", "\\1\0", command)
    lines = textwrap.wrap(
        together,
        WIDTH - 2,
        initial_indent="  ",
        subsequent_indent="      ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace("\0", " ") + " \\" * (line is not lines[-1]) for line in lines]


class _Help(argparse.HelpFormatter):
    """Help within 80 columns: each flag under its usual name, with its default if it has one."""

    def __init__(self, prog: str) -> None:
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        super().__init__(prog, max_help_position=26, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example:"):
            return text
        return super()._fill_text(text, width, indent)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return ", ".join(action.option_strings)
        shown = action.metavar if action.nargs is None else f"[{action.metavar}]"
        return f"{action.option_strings[0]} {shown}"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # What begins so is a value: -1e-3 and -500,-200 too, which argparse takes for flags.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> typing.NoReturn:
        missing = re.fullmatch(r"argument (--\w+).*: expected one argument", message)
        raise UserError(f"{missing[1]} needs a value" if missing else message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Errors name the flag as a user types it."""
        try:
            return super()._get_values(action, arg_strings)
        except argparse.ArgumentError as e:
            raise UserError(f"{action.option_strings[0]} {e.message}") from None


def _unknown(parser: argparse.ArgumentParser, words: Sequence[str]) -> UserError:
    """For words that no flag takes; values of unknown flags may be secret, and are not shown."""
    flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    if flag is None:
        return UserError(f"unexpected word {words[0]!r}: values follow the name of a flag")
    known = parser._option_string_actions
    return UserError(f"unknown flag {flag}{nearest(flag, known, 1)}")


def _plain(hint: Any) -> Any:
    """The type within an optional one."""
    if typing.get_origin(hint) in (UnionType, typing.Union):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _boolean(word: str) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    if word.casefold() not in known:
        raise argparse.ArgumentTypeError(f"must be True or False, not {word!r}")
    return known[word.casefold()]


def _whole(word: str) -> int:
    """A whole number, also as `1e6`."""
    with suppress(ValueError):
        return int(word)
    with suppress(ValueError):
        if (number := float(word)).is_integer() and abs(number) < 2**53:
            return int(number)
    raise argparse.ArgumentTypeError(f"must be a whole number, not {word!r}")


def _real(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {word!r}") from None


def _text(word: str) -> str:
    """An empty text is a variable of a shell that is not set."""
    if not word:
        raise argparse.ArgumentTypeError("is empty")
    return word


_READ: dict[Any, Any] = {int: _whole, float: _real, str: _text, bool: _boolean}
_METAVARS = {int: "N", float: "X", str: "TEXT"}


# -- files of flags --


def read_flags(path: str, kind: type) -> dict[str, Any]:
    """Values of flags from a file (`read_mapping`): field -> value.

    A list stands for values with commas between them, a table for its JSON. Nothing else than text
    becomes text, but for numbers that stay as they are written.

    Args:
        path: of the file.
        kind: the configuration dataclass whose flags they are.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    data = read_mapping(path, "--config", written=True)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    names = {
        flag.removeprefix("--").replace("-", "_"): field.name
        for field in fields.values()
        for flag in spellings(field)
    }
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = names.get(str(key).removeprefix("--").replace("-", "_"))
        if name is None:
            theirs = "; a file of settings is for --learner_config" if key == "algorithm" else ""
            raise UserError(f"{path}: unknown flag {key!r}{theirs or nearest(str(key), names, 1)}")
        if name in values:
            raise UserError(f"{path}: {name} is given twice")
        if value is None:
            continue
        plain = _plain(hints[name])
        try:
            word = _text_of(value, _holds(fields[name])) if plain is str else _as_word(value)
            values[name] = _READ[plain](word)
        except argparse.ArgumentTypeError as e:
            raise UserError(f"{path}: {name} {e}") from None
    return values


def _text_of(value: Any, holds: Holds) -> str:
    """The text of a flag in a file.

    Raises:
        ArgumentTypeError: YAML takes what was written for something else, or it holds several
            things where the flag does not.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and holds in _JOINED:
        return ",".join(_text_of(each, holds) for each in value)
    if isinstance(value, dict) and holds in ("settings", "mapping"):
        return _as_word(value)
    if isinstance(value, list | dict):
        what = "list" if isinstance(value, list) else "mapping"
        raise argparse.ArgumentTypeError(f"must be text, not a {what}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (holds == "list" or isinstance(value, int)):
        text = spelling(value)
        if holds == "list" or text == f"{value:d}":
            return text
    raise argparse.ArgumentTypeError("must be text: write it in quotes")


def _as_word(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return ",".join(map(_as_word, value))
    if isinstance(value, dict):
        try:
            return json.dumps(value, default=str)
        except TypeError:  # a date, for one
            raise argparse.ArgumentTypeError(
                "has a name that is no text: write it in quotes"
            ) from None
    return str(value)
