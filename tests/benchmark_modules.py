"""The modules of `benchmarks/`, for their tests."""

import importlib
import sys

from conftest import ROOT


def load(name):
    """The module of this name."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)  # after the modules of tests, of which one has the same name
    return importlib.import_module(name)
