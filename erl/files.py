"""Files that are written completely or not at all, reads that are tried again, and YAML, TOML and
JSON as users write them.
"""

import errno
import json
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from erl.errors import UserError, one_line

# Seconds between the attempts at a file that cannot be read.
WAITS = (0.5, 1.0, 2.0, 4.0)
# How names of files end that hold names and values.
DATA_ENDINGS = (".yaml", ".yml", ".toml", ".json")


def read_patiently(path: Path) -> bytes:
    """A file's content. A read that fails is tried again.

    Raises:
        OSError: there is no such file, or it still cannot be read.
    """
    for wait in WAITS:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError:
            time.sleep(wait)
    return path.read_bytes()


def check_writable(folder: str) -> None:
    """Raise an OSError if a folder cannot be made or written. Leaves nothing behind."""
    if not folder:
        raise OSError("the name is empty")
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    with tempfile.TemporaryDirectory(dir=nearest, prefix=".erl-"):
        pass


def write_whole(path: Path, write: Callable[[str], Any]) -> None:
    """Let `write` fill a file beside `path`, then move it there: a file of this name is always
    complete.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        part = Path(folder) / path.name
        write(str(part))
        part.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file: see `write_whole`."""
    write_whole(path, lambda part: Path(part).write_text(text, encoding="utf-8"))


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Within it, an OSError is for the user: `what` cannot be written.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    except OSError as e:
        raise UserError(unwritable(what, e)) from e


def unwritable(what: object, error: OSError) -> str:
    """That `what` cannot be written, and why, as a line."""
    return f"{what} cannot be written: {error.strerror or error}"


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Within it, an OSError is for the user: `what` cannot be read.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    except OSError as e:
        raise UserError(f"{what} cannot be read: {e.strerror or e}") from e


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder of this name, or a link to one. A name that is too long has none.

    Raises:
        UserError: it cannot be known, since a folder above is closed.
    """
    with reading(path):
        try:
            return Path(path).is_dir()
        except OSError as e:
            if e.errno == errno.ENAMETOOLONG:
                return False
            raise


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and in those below it, sorted; none where there is no such folder.
    Links to folders are not followed.

    Raises:
        UserError: one of the folders cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    with reading(folder):
        walked = os.walk(folder, onerror=refuse)
        paths = [Path(above, name) for above, _, names in walked for name in names]
        return sorted(path for path in paths if path.is_file())


def check_new_file(path: Path, overwrite: bool) -> None:
    """Raise a UserError if a file cannot be written there; leaves nothing behind.

    Args:
        path: of the file.
        overwrite: whether one that is there may be replaced.
    """
    with writing(path):
        # A folder or a device, such as /dev/stdout, is never replaced.
        if path.exists() and not (overwrite and path.is_file()):
            raise UserError(
                f"{path} exists"
                + ("; --overwrite replaces it" if path.is_file() else " and is not a file")
            )
        check_writable(str(path.parent))


def is_data_file(path: str | Path) -> bool:
    """Whether this is a name for `read_mapping`."""
    return Path(path).suffix.casefold() in DATA_ENDINGS


def read_mapping(path: str | Path, what: str, written: bool = False) -> dict[Any, Any]:
    """The names and values in a user's file: YAML, TOML or JSON, as the end of its name says. An
    empty file has none.

    Args:
        path: of the file.
        what: what it is for, in messages.
        written: whether numbers of YAML keep their spelling, see `parse_yaml`.

    Raises:
        UserError: its name ends otherwise, it cannot be read, or holds something else.
    """
    if not is_data_file(path):
        endings = ", ".join(DATA_ENDINGS)
        raise UserError(f"{what} {path}: the name of the file must end in {endings}")
    ending = Path(path).suffix.casefold()
    special: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": parse_json}
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as e:  # a name that no file can have; a file that is no text
        raise UserError(f"cannot read {what} {path}: {getattr(e, 'strerror', None) or e}") from e
    try:
        data = special[ending](text) if ending in special else parse_yaml(text, written)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid: {one_line(e)}") from e
    if not isinstance(data, dict | None):
        raise UserError(f"{path} must hold names and values, not a {type(data).__name__}")
    return data or {}


def to_yaml(data: Any) -> str:
    """Plain data as YAML, which every reader of YAML takes for the same."""
    import yaml

    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


class WrittenInt(int):
    """A whole number with the text that stood for it, `010`."""

    text: str


class WrittenFloat(float):
    """A number with the text that stood for it, `1.10`."""

    text: str


def spelling(number: float) -> str:
    """A number as it was written, as far as that is known."""
    return number.text if isinstance(number, WrittenInt | WrittenFloat) else str(number)


def parse_yaml(text: str, written: bool = False) -> Any:
    """What a YAML text holds. Unlike PyYAML alone, it takes `5e-3` and `1e6` for numbers, `010` for
    ten and `1:30` for text, as YAML 1.2 does, and refuses a key that is given twice.

    Args:
        text: the YAML.
        written: whether numbers keep their spelling, as `WrittenInt` and `WrittenFloat`.

    Raises:
        ValueError: the text is no YAML, or holds more than plain data; in one line.
    """
    import yaml

    try:
        loader = _yaml_loader(written)(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, set(), set())
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        reason = getattr(e, "problem", None) or str(e) or type(e).__name__
        mark = getattr(e, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(one_line(reason) + where) from e
    except (LookupError, AttributeError, TypeError) as e:  # of PyYAML's own conversions
        raise ValueError("a value is not what its tag says") from e


@cache
def _yaml_loader(written: bool) -> Any:
    """PyYAML's safe loader, which here reads numbers as YAML 1.2 has them, and keeps their spelling
    if it is asked to.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def whole(loader: Any, node: Any) -> int:
        text = loader.construct_scalar(node).replace("_", "")
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError as e:
            raise TypeError(e) from e

    # PyYAML's own take `010` for 8 and `1:30` for 90.
    forms = {
        "tag:yaml.org,2002:int": r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+",
        "tag:yaml.org,2002:float": r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)"
        r"(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    }
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag not in forms]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, form in forms.items():
        Loader.add_implicit_resolver(tag, re.compile(f"^(?:{form})$"), [*"-+.0123456789"])
    Loader.add_constructor("tag:yaml.org,2002:int", whole)
    if written:
        for tag, kind, read in (
            ("int", WrittenInt, whole),
            ("float", WrittenFloat, Loader.construct_yaml_float),
        ):

            def construct(loader: Any, node: Any, kind: Any = kind, read: Any = read) -> Any:
                number = kind(read(loader, node))
                number.text = node.value
                return number

            Loader.add_constructor(f"tag:yaml.org,2002:{tag}", construct)
    return Loader


def _check_node(node: Any, above: set[int], checked: set[int]) -> None:
    """Raise a ValueError where a mapping at or below this YAML node names a key twice, or something
    holds itself. A key that `<<` brings and that is then given again is meant to be replaced.

    Args:
        node: of PyYAML's.
        above: identities of the nodes that hold it.
        checked: identities of nodes that were checked, to which this and those below it are added.
    """
    import yaml

    if id(node) in above:
        raise ValueError(f"a value holds itself (line {node.start_mark.line + 1})")
    if id(node) in checked:
        return
    below: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if (key.tag, key.value) in keys:
                    line = key.start_mark.line + 1
                    raise ValueError(f"{key.value!r} is given twice (line {line})")
                keys.add((key.tag, key.value))
            below += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    for each in below:
        _check_node(each, above | {id(node)}, checked)
    checked.add(id(node))


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: the text is no JSON, or gives a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def folder_name(study: str) -> str:
    """A study's name as a folder: environments of a module or a namespace have signs in theirs that
    paths cannot have.
    """
    return study.replace("/", "_").replace(":", "_")
