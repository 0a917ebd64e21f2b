"""`python -m erl.figures --study NAME --folder out`: figures, tables, film and a report.

Several studies are comma-separated, or `--study` is repeated.
"""

import sys
from collections.abc import Sequence

from erl import cli
from erl.figures.report import FigureConfig, report


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `--study` may be repeated."""
    cli.main(
        report,
        FigureConfig,
        "Figures, tables, film and one page that shows them, of one or several studies.",
        joined(sys.argv[1:] if argv is None else argv),
        program="erl.figures",
    )


def joined(argv: Sequence[str]) -> list[str]:
    """Arguments in which several `--study` are one, comma-separated."""
    rest: list[str] = []
    studies: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("--study="):
            studies.append(word.partition("=")[2])
        elif word == "--study":
            following = next(words, None)
            if following is None:
                return [*argv]  # the parser says what is missing
            studies.append(following)
        else:
            rest.append(word)
    return [*rest, "--study", ",".join(studies)] if studies else rest


if __name__ == "__main__":
    main()
