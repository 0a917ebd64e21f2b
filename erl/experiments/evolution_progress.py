"""How far an evolution is, and how much of its fitness is luck, told while it runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from erl.cli import Sink, score_text, value_text
from erl.experiments.campaign import Progress
from erl.experiments.forecast import Pace, steps_of
from erl.lifetimes.record import POINTS
from erl.search.noise import MOST_SEEDS, luck_share, seeds_for_half
from erl.studies.configuration import EvolutionStudy
from erl.studies.study import Study
from erl.studies.trials import RunningTrial
from erl.studies.winner import score_table

# Finalists that lines of advice name.
RECOMMENDED = 5
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


class EvolutionProgress(Progress):
    """Counts trials and steps, and says how far an evolution is."""

    def __init__(
        self,
        study: Study,
        config: EvolutionStudy,
        nb_trials: int,
        sink: Sink,
        steps: int,
        pace: Pace,
    ) -> None:
        self._study, self._nb_trials = study, nb_trials
        self._steps_of_trial = len(config.environments) * config.nb_seeds * steps
        super().__init__(sink, pace=pace)
        self.last_error: str | None = None
        self._best: tuple[float, int] | None = None
        self._look()
        self._generation: Any = 0
        self._running = 0
        self._luck = Luck(study, config)
        self._hinted = False

    def _look(self) -> None:
        """Take in what has ended, also with other coordinators."""
        self.done = self._study.finished()
        best = self._study.best()
        self._best = None if best is None else (float(best.value or 0.0), best.number)

    def begin(self, trials: Sequence[RunningTrial]) -> None:
        """A generation begins."""
        super().begin(trials)
        self._look()
        # This one's share: its trials, and a part of those that nobody has begun.
        running = len(self._study.trials("RUNNING"))
        to_come = max(0, self._nb_trials - self.done - running) / self._study.coordinators()
        self.budget = self._before + round((len(trials) + to_come) * self._steps_of_trial)
        # Of trials that are taken up again some lifetimes may be stored.
        self.budget -= sum(steps_of(t.specs[i]) for t in trials for i in t.records)
        if trials:
            self._running = len(trials)
            self._generation = trials[0].attrs.get("generation", 0)
            self._luck.look()
            if self._luck.hint is not None and not self._hinted:
                self._hinted = True
                self.sink.line(f"luck: {self._luck.line}")
            self.tick(0)

    def end(self, trial: RunningTrial, value: float | None) -> None:
        """A trial has ended."""
        self._running -= 1
        if value is None:
            self.last_error = trial.error[0] if trial.error is not None else None
        elif trial.pruned is not None:
            self.budget -= sum(max(0, r.spec.steps - r.steps) for r in trial.records.values())
        elif self._best is None or value > self._best[0]:
            self._best = (value, trial.number)
        super().end(trial, value)

    def say_luck(self, advise: bool) -> None:
        """Say how much of the fitness is luck.

        Args:
            advise: whether to name finals, if it is much.
        """
        self._luck.look()
        if self._luck.line is not None:
            advice = (
                f"; --finalists {RECOMMENDED} estimates what the best one reaches on other seeds"
            )
            told = advise and self._luck.hint is not None
            self.sink.line(f"luck:            {self._luck.line}{advice * told}")

    def trial_line(self, trial: RunningTrial, value: float | None) -> str:
        """See `Progress`."""
        params = "  ".join(f"{k} {value_text(v, 4):<9s}" for k, v in trial.params.items())
        generation = trial.attrs.get("generation", self._generation)
        head = f"trial {trial.number:4d}  gen {generation:3d}  {params}  "
        if value is None:
            return f"{head}failed: {self.last_error}"
        if trial.pruned is not None:
            point = f"at {trial.pruned.point}/{POINTS}"
            return f"{head}pruned  {score_text(trial.pruned.value):>10s}  {point}"
        best = score_text(self._best[0] if self._best is not None else None)
        notes = sorted({r.note for r in trial.records.values() if r.note})
        return f"{head}fitness {score_text(value):>8s}  best {best:>8s}" + "".join(
            f"  ({note})" for note in notes
        )

    def status_line(self, steps: int, pace: str) -> str:
        """See `Progress`."""
        best = "none yet"
        if self._best is not None:
            best = f"{score_text(self._best[0])} (trial {self._best[1]})"
        luck = "" if self._luck.share is None else f"luck {self._luck.share:.0%}  "
        return (
            f"generation {self._generation}  trials {self.done}/{self._nb_trials} "
            f"({self._running} running)  best {best}  {luck}{pace}"
        )
