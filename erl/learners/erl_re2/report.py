"""What ERL-Re² reports of a generation."""

from collections.abc import Mapping
from typing import Any

from scipy import stats

from erl.populations.genetic import Variation

# What becomes of the RL head's copy in the population.
FATES = ("elites", "selected", "discarded")


def evolution_row(variation: Variation, rl_copy: int | None) -> dict[str, Any]:
    """What evolution did, for the row of its generation.

    Args:
        variation: what it did.
        rl_copy: index of the RL head's copy among the heads that were evaluated; None for none.
    """
    row: dict[str, Any] = {"champion": variation.elites[0]}
    if rl_copy is not None:
        row["rl_head"] = rl_copy
        row["rl_fate"] = next(fate for fate in FATES if rl_copy in getattr(variation, fate))
    return row


def evolution_totals(variation: Variation, row: Mapping[str, Any]) -> dict[str, float]:
    """What is summed up over all generations."""
    totals: dict[str, float] = {
        "whole": row["whole"],
        "surrogate": 1 - row["whole"],
        "crossovers": len(variation.crossovers),
        "swaps": variation.swaps,
        "mutated": len(variation.mutated),
        **{f"rows_{name}": n for name, n in variation.operators.items()},
    }
    if "rl_fate" in row:
        totals[f"rl_{row['rl_fate']}"] = 1
    return totals


def evolution_scalars(row: Mapping[str, Any], totals: Mapping[str, float]) -> dict[str, float]:
    """For TensorBoard: how well the surrogate ranks the heads, and the shares of the fates.

    Args:
        row: of the generation.
        totals: over all generations, this one included.
    """
    scalars: dict[str, float] = {}
    if "fitness" in row:
        scalars["evolution/whole_episodes"] = row["whole"]
    if len({*row.get("surrogate", ())}) > 1 and len({*row["fitness"]}) > 1:
        rho = stats.spearmanr(row["surrogate"], row["fitness"]).statistic
        scalars["evolution/surrogate_rank_correlation"] = rho
    fates = {fate: totals.get(f"rl_{fate}", 0) for fate in FATES}
    if copies := sum(fates.values()):
        scalars |= {f"evolution/rl_{fate}": n / copies for fate, n in fates.items()}
    return scalars
