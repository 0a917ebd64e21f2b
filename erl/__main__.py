"""`python -m erl`: the command `erl`; flags without a subcommand are those of `train`."""

import os
import sys

if not __package__:
    # Started as a file, as scripts of clusters do: Python looks into the file's folder first, where
    # modules have names of the standard library and of users.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from erl.commands import main

if __name__ == "__main__":
    main(program="python -m erl")
