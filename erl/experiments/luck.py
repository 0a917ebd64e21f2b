"""How much of the fitness is luck, told while an evolution runs."""

import math
from typing import Any

import numpy as np

from erl.search.noise import MOST_SEEDS, luck_share, seeds_for_half
from erl.studies.configuration import EvolutionStudy
from erl.studies.study import Study
from erl.studies.winner import score_table

# The latest trials say where the search is now, and fewer than some say nothing.
LATEST, LEAST = 30, 10
LARGE = 0.5


class Luck:
    """The share of the fitness' variance that comes from the seeds of trials.

    Args:
        study: of the evolution.
        config: its configuration.

    Attributes:
        share: in [0, 1], over the latest completed trials; None while it is not known.
        trials: over how many.
    """

    def __init__(self, study: Study, config: EvolutionStudy) -> None:
        self._study, self._config = study, config
        self._tables: dict[int, np.ndarray] = {}
        self.share: float | None = None
        self.trials = 0
        self.look()

    def look(self) -> None:
        """Take in the trials that have ended meanwhile."""
        if self._config.nb_seeds < 2:
            return
        latest = self._study.trials("COMPLETE")[-LATEST:]
        tables = [self._table(t) for t in latest]
        whole = (len(self._config.environments), self._config.nb_seeds)
        tables = [t for t in tables if t.shape == whole]
        self.trials = len(tables)
        self.share = luck_share(np.stack(tables)) if len(tables) >= LEAST else None

    def _table(self, trial: Any) -> np.ndarray:
        if trial.number not in self._tables:
            self._tables[trial.number] = score_table(trial, self._config.score)
        return self._tables[trial.number]

    @property
    def hint(self) -> str | None:
        """What to do about it, where it is large."""
        if self.share is None or self.share <= LARGE:
            return None
        seeds = seeds_for_half(self.share, self._config.nb_seeds)
        if seeds is None:
            return f"even {MOST_SEEDS} seeds a trial would not bring it to 50 %"
        return f"with --nb_seeds {max(seeds, self._config.nb_seeds + 1)} it would be about 50 %"

    @property
    def line(self) -> str | None:
        """What is known of it; None while nothing is."""
        if self._config.nb_seeds < 2:
            return "unknown: with --nb_seeds 1 it cannot be measured; it takes 2 or more"
        if self.share is None:
            return None
        hint = "" if self.hint is None else f"; {self.hint}"
        return (
            f"{math.floor(100 * self.share + 0.5)} % of the variance of the fitness of the latest "
            f"{self.trials} trials comes from their seeds{hint}"
        )
