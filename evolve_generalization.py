"""Evolve reservoirs over a set of environments, for agents that will learn in others (ER-MRL)."""

from dataclasses import dataclass

from erl.cli import main
from erl.experiments.evolution_flags import GeneralizationConfig


@dataclass(frozen=True)
class Config(GeneralizationConfig):
    """Flags of this script: several reservoirs, a set of environments."""


if __name__ == "__main__":
    main("erl.experiments.evolution:evolve", Config, __doc__)
