"""Evolve the hyperparameters of a reservoir for a learning agent (ER-MRL)."""

from dataclasses import dataclass

from erl.cli import main
from erl.experiments.evolution_flags import EvolutionConfig


@dataclass(frozen=True)
class Config(EvolutionConfig):
    """Flags of this script: one reservoir, one environment."""


if __name__ == "__main__":
    main("erl.experiments.evolution:evolve", Config, __doc__)
