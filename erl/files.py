"""Files that are whole or not there."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def check_writable(folder: str) -> None:
    """Raise an OSError if a folder cannot be made or written. Leaves nothing behind."""
    if not folder:
        raise OSError("it has no name")
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    with tempfile.TemporaryDirectory(dir=nearest, prefix=".erl-"):
        pass


def write_whole(path: Path, write: Callable[[str], Any]) -> None:
    """Let `write` fill a file beside `path`, then move it there: a file of this name is always complete."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        part = Path(folder) / path.name
        write(str(part))
        part.replace(path)
