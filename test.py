"""Test the best evolved reservoir on unseen seeds: agents with it against agents without
(ER-MRL).
"""

from erl.cli import main
from erl.experiments.comparison_flags import ComparisonConfig as Config

if __name__ == "__main__":
    main("erl.experiments.comparison:compare", Config, __doc__)
