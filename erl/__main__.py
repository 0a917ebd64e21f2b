"""`python -m erl`: the command `erl`; flags without a subcommand are those of `train`."""

from erl.commands import main

if __name__ == "__main__":
    main(program="python -m erl")
