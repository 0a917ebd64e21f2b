"""Warnings of libraries in worker processes: one line each, brought to the coordinator, which shows
each once.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erl.errors import one_line

NAME = "warnings"  # the file, in the folder of the board
LONGEST = 300


def send(folder: str) -> None:
    """In a worker: write what Python and libraries warn of into a file of this folder."""

    def write(message: object) -> None:
        try:
            file = os.open(Path(folder) / NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                os.write(file, f"{one_line(message, LONGEST)}\n".encode())
            finally:
                os.close(file)
        except OSError:  # the folder is gone, and no process reads it any more
            pass

    def show(message: Any, *_: Any, **__: Any) -> None:
        write(message)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            write(record.getMessage())

    warnings.showwarning = show
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "sends", False)]:
        root.removeHandler(handler)
    handler = Handler(logging.WARNING)
    handler.sends = True  # type: ignore[attr-defined]
    root.addHandler(handler)


def to_stderr(line: str) -> None:
    """Where warnings go unless an executor's owner takes them."""
    print(f"warning: {line}", file=sys.stderr)


class Received:
    """In the coordinator: the lines of a folder's workers.

    Args:
        folder: of the board.
        seen: lines that were shown before; new ones are added.
        note: is given each new line.
    """

    def __init__(self, folder: str, seen: set[str], note: Callable[[str], Any]) -> None:
        self._path, self._seen, self._note = Path(folder) / NAME, seen, note
        self._read = 0

    def look(self) -> None:
        """Give what is new."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except OSError:  # no worker has warned
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if line not in self._seen:
                self._seen.add(line)
                self._note(line)
