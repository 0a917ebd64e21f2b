"""Keyword arguments of environments: hashable, and read from text or files."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from erl.errors import UserError, one_line
from erl.files import is_data_file, parse_yaml, read_mapping


class Arguments(Mapping[str, Any]):
    """Keyword arguments that do not change and can be compared, hashed, pickled and stored as JSON.

    Args:
        values: name -> what JSON holds: numbers, words, true, false, null, lists and mappings of
            these.

    Raises:
        UserError: other names or values.
    """

    __slots__ = ("_text",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        values = dict(values or {})
        for name, value in values.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise UserError(f"{name!r} is not a name of an argument")
            _refuse(name, value)
        # Text cannot be changed by an environment that changes what it is given.
        self._text = json.dumps(values, sort_keys=True)

    def __getitem__(self, name: str) -> Any:
        return json.loads(self._text)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(self._text))

    def __len__(self) -> int:
        return len(json.loads(self._text))

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Arguments):
            return self._text == other._text
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return self._text

    def __reduce__(self) -> Any:
        return Arguments, (json.loads(self._text),)


def parse_arguments(text: str) -> Arguments:
    """Keyword arguments from the command line: a mapping in YAML or JSON
    (`{max_episode_steps: 100}`), or the path of a file that holds one.

    Raises:
        UserError: no mapping, no such file, values that cannot be stored, or a `render_mode`.
    """
    if is_data_file(text):
        arguments = Arguments(read_mapping(text, "the environment's arguments"))
        refuse_rendering(arguments)
        return arguments
    try:
        values = parse_yaml(text.strip())
    except ValueError as e:
        raise UserError(f"the environment's arguments {_shown(text)} cannot be read: {e}") from e
    if values is None:
        return Arguments()
    if not isinstance(values, Mapping):
        raise UserError(
            f"the environment's arguments are a mapping of names and values, such as "
            f"'{{max_episode_steps: 100}}', or a .yaml, .toml or .json file that holds one, not "
            f"{_shown(text)}"
        )
    arguments = Arguments(values)
    refuse_rendering(arguments)
    return arguments


def refuse_rendering(arguments: Mapping[str, Any]) -> None:
    """Raise a UserError for arguments with which an environment would draw what happens in it."""
    if "render_mode" in arguments:
        raise UserError(
            "the environment's arguments have render_mode, which draws every step and makes "
            "training many times slower: leave it out; --video films a trained agent at the end, "
            "and erl film a saved one"
        )


def _refuse(name: str, value: Any) -> None:
    """Raise a UserError for what JSON cannot hold."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not isinstance(key, str):
                raise UserError(f"the argument {name} has the name {key!r}, which is no word")
            _refuse(name, each)
    elif isinstance(value, list | tuple):
        for each in value:
            _refuse(name, each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"the argument {name} is not finite: {value}")
    elif not isinstance(value, str | int | float | bool | None):
        raise UserError(
            f"the argument {name} is {value!r}, a {type(value).__name__}, which "
            f"cannot be stored: numbers, words, true, false, null, lists and mappings can"
        )


def _shown(text: str) -> str:
    return one_line(text, 60)
