"""Evolve reservoirs over a set of environments, for agents that will learn in others (ER-MRL)."""

from erl.cli import main
from erl.experiments.evolution_flags import GeneralizationConfig as Config

if __name__ == "__main__":
    main("erl.experiments.evolution:evolve", Config, __doc__)
