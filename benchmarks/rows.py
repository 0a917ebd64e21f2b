"""What benchmarks share: names in their flags, and rows of results, one JSON object a line."""

import argparse
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from erl.errors import UserError, nearest
from erl.files import write_text
from erl.worlds.tasks import find


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser of flags whose help begins with this text, as it is written."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def names(text: str, known: Iterable[str], what: str) -> list[str]:
    """Comma-separated names of a flag.

    Raises:
        UserError: one is not known.
    """
    every, given = list(known), text.split(",")
    for name in given:
        if name not in every:
            raise UserError(f"no {what} is called {name!r}{nearest(name, every)}")
    return given


def environment(env_id: str) -> str:
    """An environment's name, as a type for `argparse`.

    Raises:
        UserError: there is no such environment.
    """
    find(env_id)
    return env_id


def read_rows(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a file, in order. Lines whose end is missing are left out: a run was killed while
    it wrote them.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise UserError(f"cannot read rows from {file}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"cannot read rows from {file}: it is no text") from e
    rows = []
    for line in lines:
        if not line.startswith("{"):
            raise UserError(f"{file} holds no rows: each line has to be a JSON object")
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def rows_so_far(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a file that may not be there yet."""
    return read_rows(file) if Path(file).exists() else []


def check_settings(
    file: str | Path,
    rows: Iterable[Mapping[str, Any]],
    asked: Mapping[str, Any],
    published: Mapping[str, Any],
) -> None:
    """See that the rows of a file were made with the settings that are asked for.

    Args:
        published: settings of earlier rows, which do not name them. What is missing here too may
            be anything.

    Raises:
        UserError: a row was made with other settings.
    """
    for row in rows:
        for name, value in asked.items():
            had = row.get(name, published.get(name, value))
            if had != value:
                raise UserError(
                    f"{file} has rows with {name} {had}, and not {value}: name another file"
                )


def add_row(file: str | Path, row: Mapping[str, Any]) -> None:
    """Write a row at the end of a file, which is made if it is not there. Other processes may do
    so too.
    """
    with Path(file).open("a+b", buffering=0) as out:
        unfinished = out.seek(0, os.SEEK_END) and out.seek(-1, os.SEEK_END) and out.read() != b"\n"
        out.write(b"\n" * bool(unfinished) + json.dumps(row).encode() + b"\n")


def write_rows(file: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file anew, all of it or nothing."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_text(Path(file), text)
