"""Evolve the hyperparameters of a reservoir for a learning agent (ER-MRL)."""

from erl.cli import main
from erl.experiments.evolution_flags import EvolutionConfig as Config

if __name__ == "__main__":
    main("erl.experiments.evolution:evolve", Config, __doc__)
