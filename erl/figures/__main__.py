"""`python -m erl.figures`: the command `erl plot`."""

from erl.commands import COMMANDS, start

if __name__ == "__main__":
    start(COMMANDS["plot"], "python -m erl.figures")
