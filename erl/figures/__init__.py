"""Figures for papers, reports and notebooks: functions from data frames to Matplotlib figures, a
file a theme, and the report of a study.

What a figure shows is computed here or in `erl.statistics`, and tested on its data. Nothing here
trains an agent, or writes to a study other than the files of `--attach`. Scripts load this room
only when they are asked for figures.
"""

from importlib import import_module
from typing import Any

__all__ = ["attempt", "caption_of", "save"]


def __getattr__(name: str) -> Any:
    """What notebooks import, loaded when it is asked for: flags of figures need no Matplotlib."""
    if name in __all__:
        return getattr(import_module("erl.figures.style"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
