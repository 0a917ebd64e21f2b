"""What notebooks import: `records` and `generations`, a study as data frames."""

from erl.studies.records import generations, records

__all__ = ["generations", "records"]
