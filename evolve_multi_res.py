"""Evolve the hyperparameters of several reservoirs, side by side, for a learning agent (ER-MRL)."""

from dataclasses import dataclass

from erl.cli import main
from erl.experiments.evolution_flags import MultiEvolutionConfig


@dataclass(frozen=True)
class Config(MultiEvolutionConfig):
    """Flags of this script: several reservoirs, one environment."""


if __name__ == "__main__":
    main("erl.experiments.evolution:evolve", Config, __doc__)
