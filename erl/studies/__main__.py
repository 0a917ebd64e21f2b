"""`python -m erl.studies`: the command `erl studies`."""

from erl.commands import studies

if __name__ == "__main__":
    studies()
