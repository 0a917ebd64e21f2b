"""Files that are whole or not there."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[str], Any]) -> None:
    """Let `write` fill a file beside `path`, then move it there: a file of this name is always complete."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        part = Path(folder) / path.name
        write(str(part))
        part.replace(path)
