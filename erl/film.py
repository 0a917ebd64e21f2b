"""`python -m erl.film`: the command line that films a saved agent."""

from erl.lifetimes.film import FilmConfig, command_line, film

__all__ = ["FilmConfig", "film"]

if __name__ == "__main__":
    command_line()
