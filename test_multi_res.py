"""Test the best evolved reservoirs on unseen seeds: agents with them against agents without
(ER-MRL).
"""

from dataclasses import dataclass

from erl.cli import main
from erl.experiments.comparison_flags import MultiComparisonConfig


@dataclass(frozen=True)
class Config(MultiComparisonConfig):
    """Flags of this script: several reservoirs, one environment."""


if __name__ == "__main__":
    main("erl.experiments.comparison:compare", Config, __doc__)
