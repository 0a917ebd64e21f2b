"""Flags of evaluations. Nothing here needs a library that takes long to load."""

from dataclasses import dataclass

from erl.cli import option
from erl.errors import UserError

# Spawned seeds are random numbers of 31 bits, and those of ER-MRL's published code count from 0.
FRESH_SEED = 2_000_000_000


@dataclass(frozen=True)
class EvaluationConfig:
    """Flags of `erl eval`."""

    model: str | None = option(None, "required: saved model, with or without .zip")
    episodes: int = option(100, "whole episodes that the agent plays")
    seed: int = option(
        FRESH_SEED,
        "seed of the first episode, from which the others follow; by default one that trainings, "
        "their evaluations and tests do not use",
    )
    out: str | None = option(None, "file to write, .csv, with a row for each episode")
    overwrite: bool = option(False, "replace the file if it exists")

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("--model is missing: which saved model to evaluate")
        if self.episodes < 1:
            raise UserError(f"--episodes must be at least 1, not {self.episodes}")
        if self.seed < 0:
            raise UserError(f"--seed must be at least 0, not {self.seed}")
        if self.out is not None and not self.out.casefold().endswith(".csv"):
            raise UserError(f"--out {self.out} must end in .csv")
