"""`python -m erl.film`: the command `erl film`."""

from erl.commands import COMMANDS, start
from erl.lifetimes.film import FilmConfig, film

__all__ = ["FilmConfig", "film"]

if __name__ == "__main__":
    start(COMMANDS["film"], "python -m erl.film")
