"""A study as data frames, for users' own analyses: `records` and `generations`."""

from erl.studies.records import generations, records

__all__ = ["generations", "records"]
