"""Names that flags take: samplers, ways to restart, pruners, fitnesses. They stand here, apart from
what they name, so that flags are read without loading it.
"""

from collections.abc import Sequence

from erl.errors import UserError, nearest

SAMPLERS = ("Random", "Tpe", "Cmaes")
RESTARTS = ("ipop", "bipop", "none")
PRUNERS = ("none", "median", "hyperband", "wilcoxon")
FITNESSES = ("training", "final_eval")


def check_choice(what: str, name: str, known: Sequence[str]) -> None:
    """Refuse a name that is none of those that are known.

    Raises:
        UserError: with the nearest ones.
    """
    if name not in known:
        raise UserError(
            f"unknown {what} {name!r}{nearest(name, known)} (known: {', '.join(known)})"
        )
