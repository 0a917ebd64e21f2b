"""Test reservoirs that were evolved over a set of environments in one that the evolution did not
see (ER-MRL).
"""

from erl.cli import main
from erl.experiments.comparison_flags import GeneralizationComparisonConfig as Config

if __name__ == "__main__":
    main("erl.experiments.comparison:compare", Config, __doc__)
