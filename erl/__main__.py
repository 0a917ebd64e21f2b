"""Train one learner on one task, without evolving anything around it."""

import sys

from erl.cli import main
from erl.experiments.single_flags import SingleConfig

if __name__ == "__main__":
    sys.argv[0] = "python -m erl"
    main("erl.experiments.single:run", SingleConfig, __doc__)
