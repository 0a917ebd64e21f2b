"""What scripts of users import: `load_model`."""

from erl.lifetimes.models import load_model

__all__ = ["load_model"]
