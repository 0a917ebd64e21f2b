"""Train one learner on one task, without evolving anything around it."""

import sys

from erl.cli import main
from erl.experiments.single import SingleConfig, run

if __name__ == "__main__":
    sys.argv[0] = "python -m erl"
    main(run, SingleConfig, __doc__)
