"""Test reservoirs that were evolved over a set of environments in one that the evolution did not
see (ER-MRL).
"""

from dataclasses import dataclass

from erl.cli import main
from erl.experiments.comparison_flags import GeneralizationComparisonConfig


@dataclass(frozen=True)
class Config(GeneralizationComparisonConfig):
    """Flags of this script: several reservoirs, an unseen environment."""


if __name__ == "__main__":
    main("erl.experiments.comparison:compare", Config, __doc__)
