"""Test the best evolved reservoir on unseen seeds: agents with it against agents without
(ER-MRL).
"""

from dataclasses import dataclass

from erl.cli import main
from erl.experiments.comparison_flags import ComparisonConfig


@dataclass(frozen=True)
class Config(ComparisonConfig):
    """Flags of this script: one reservoir, one environment."""


if __name__ == "__main__":
    main("erl.experiments.comparison:compare", Config, __doc__)
