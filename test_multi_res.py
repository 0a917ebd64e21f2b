"""Test the best evolved reservoirs on unseen seeds: agents with them against agents without
(ER-MRL).
"""

from erl.cli import main
from erl.experiments.comparison_flags import MultiComparisonConfig as Config

if __name__ == "__main__":
    main("erl.experiments.comparison:compare", Config, __doc__)
