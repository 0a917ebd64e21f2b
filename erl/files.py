"""Files that are written completely or not at all, and reads that are tried again."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Seconds between the attempts at a file that cannot be read.
WAITS = (0.5, 1.0, 2.0, 4.0)


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
