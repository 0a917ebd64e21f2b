"""Finals, where `--finalists` asks for them: the best trials of an evolution, and the mean of its
search, are trained again on fresh seeds. The winner is the one with the highest expected score.

The trial with the highest of many noisy fitnesses is partly the luckiest one. Its fitness on the
seeds that chose it says little of what it reaches on others.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from erl.cli import Sink, plural
from erl.experiments.campaign import (
    Campaign,
    GivenTrials,
    Progress,
    checkpoint_cohort,
    outcome,
    say_interrupted,
)
from erl.experiments.evolution_flags import EvolutionFlags
from erl.experiments.flags import MAX_SEED
from erl.experiments.forecast import steps_of
from erl.lifetimes.record import LifetimeRecord
from erl.search.samplers import CmaesSampler
from erl.studies.configuration import EvolutionStudy, FinalsStudy, differences
from erl.studies.distributions import SearchSpace, integer, sampler_of
from erl.studies.study import Study, existing
from erl.studies.trial_report import traceback_command
from erl.studies.trials import RunningTrial, key_of, lifetime_records, why_failed
from erl.studies.winner import (
    Finalist,
    begin_finals,
    choose,
    finals_name,
    link_finals,
    proposed_by,
    store_choice,
)
from erl.worlds.specification import LifetimeSpec

# From hyperparameters and the index of a seed to the lifetimes on all environments.
LivesOf = Callable[[dict[str, Any], int], list[LifetimeSpec]]
# More trials than any study has: a parameter's range is the same for ever.
MOST_TRIALS = 10**9


def finalists_of(
    study: Study, config: EvolutionStudy, space: SearchSpace, sampler: Any, n: int
) -> list[Finalist]:
    """The best completed trials of an evolution, and the mean of the search.

    Of trials with the same hyperparameters one is enough. The mean is that of the run of CMA-ES
    which holds the best trial. Other samplers have none.

    Args:
        study: of the evolution.
        config: its configuration.
        space: what is searched.
        sampler: the evolution's.
        n: how many trials at most.
    """
    done = [(float(t.value), t) for t in study.trials("COMPLETE") if t.value is not None]
    ranked = [t for v, t in sorted(done, key=lambda d: (-d[0], d[1].number)) if np.isfinite(v)]
    found: dict[str, Finalist] = {}
    for trial in ranked:
        if len(found) < n and key_of(trial.params) not in found:
            found[key_of(trial.params)] = proposed_by(trial, config.score)
    if ranked and isinstance(sampler, CmaesSampler):
        mean = sampler.mean(study.trials(), sampler.run_of(ranked[0]))
        if mean is not None:
            ended, values = mean
            # A parameter with one possible value is not searched.
            params = {name: values.get(name, getattr(d, "low", None)) for name, d in space.items()}
            found.setdefault(key_of(params), Finalist(None, ended, params, None))
    return list(found.values())


def live_finals(
    flags: EvolutionFlags,
    evolution: Study,
    config: EvolutionStudy,
    finalists: Sequence[Finalist],
    lives_of: LivesOf,
    sink: Sink,
) -> bool:
    """Live finalists on fresh seeds, choose the winner among all that ever were, and store it in
    the evolution's study.

    Args:
        flags: how many seeds, and where it is computed.
        evolution: the study.
        config: its configuration.
        finalists: the evolution's as it is now, more than one.
        lives_of: the lifetimes of a finalist.
        sink: where lines go.

    Returns:
        False if it was interrupted. What has ended is stored.
    """
    name = finals_name(evolution.storage, evolution.name_now())
    first = lives_of(finalists[0].params, 0)[0]
    campaign = Campaign(flags, name, FinalsStudy(config), sink, first)
    study = campaign.study
    link_finals(study, evolution)
    begin_finals(evolution, flags.finalists or 0, flags.finalist_seeds)
    known = _known(study, evolution, config, finalists)
    wanted, before = _wanted(finalists, flags.finalist_seeds), len(_records(study))

    def plan(params: dict[str, Any]) -> list[LifetimeSpec]:
        return lives_of(known[_owner(params)].params, params["seed"])

    def notes(params: dict[str, Any]) -> dict[str, Any]:
        finalist = known[_owner(params)]
        return {"params": finalist.params} if finalist.trial is None else {}

    space = {key: integer(0, MOST_TRIALS) for key in ("trial", "mean")}
    space["seed"] = integer(0, MAX_SEED)
    retries, at_once = flags.max_retries, trials_at_once(config, campaign.executor.workers)
    source = GivenTrials(study, wanted, space, plan, retries, at_once, notes)
    progress = FinalsProgress(campaign, config, len(finalists), flags.finalist_seeds)
    if not campaign.run(source, checkpoint_cohort(flags, name), progress, config.score):
        each = len(config.environments)  # lifetimes of a finalist and a seed
        say_interrupted(study, sink, lambda: _say_how_far(study, evolution, wanted, each, sink))
        return False
    lived, again = _lived(study, known, sink)
    choice = choose(lived, len(evolution.trials("COMPLETE", "PRUNED", "FAIL")), again)
    store_choice(evolution, choice)
    records = _records(study)
    new = len(records) - before
    sink.line(
        f"finals:          {plural(len(records), 'lifetime')}, {sum(r.steps for r in records):,} "
        f"steps beside those of the evolution" + f"; {new or 'none'} of them new" * (before > 0)
    )
    if choice is None:
        sink.line("no finalist could be trained again: the trial with the highest fitness stands")
    return True


def _say_how_far(
    study: Study, evolution: Study, wanted: Sequence[dict[str, Any]], each: int, sink: Sink
) -> None:
    """Say how far interrupted finals are, whose trials have so many lifetimes each."""
    done = {key_of(t.params) for t in study.trials("COMPLETE")}
    evolution.name_now()
    sink.line(
        f"interrupted: {sum(key_of(w) in done for w in wanted) * each} of "
        f"{len(wanted) * each} lifetimes of the finals are finished and stored; {evolution.again}"
    )


def trials_at_once(config: EvolutionStudy, workers: int) -> int:
    """How many trials of the finals a coordinator begins at a time: as many as a generation has
    seeds, on all of its workers.
    """
    return -(-(config.popsize or 1) * config.nb_seeds // workers) * workers


def left_of_finals(
    flags: EvolutionFlags,
    config: EvolutionStudy,
    space: SearchSpace,
    evolution: Study | None,
    trials: int,
) -> int:
    """How many lifetimes of the finals there are to train.

    Args:
        flags: how many finalists and seeds.
        config: of the evolution.
        space: what is searched.
        evolution: its study; None for a new one.
        trials: that are left. The finalists are not known while there are some: there may be as
            many as this says.
    """
    if not flags.finalists:
        return 0
    seeds, each = flags.finalist_seeds, len(config.environments)
    if trials:
        generation = config.popsize or flags.nb_trials
        # Without a whole generation, and where nothing is searched, the search has no mean.
        mean = config.sampler == "Cmaes" and flags.nb_trials >= generation
        mean &= not all(distribution.single() for distribution in space.values())
        entrants = min(flags.finalists, flags.nb_trials) + mean
        return entrants * seeds * each if entrants > 1 else 0
    if evolution is None or evolution.config is None or differences(evolution.config, config):
        return 0  # it will be refused
    finalists = finalists_of(evolution, config, space, sampler_of(config, space), flags.finalists)
    if len(finalists) < 2:
        return 0
    wanted = {key_of(w) for w in _wanted(finalists, seeds)}
    finals = existing(flags.storage, finals_name(evolution.storage, evolution.name))
    if finals is not None and isinstance(finals.config, FinalsStudy):
        wanted -= {key_of(t.params) for t in finals.trials("COMPLETE")}
    return len(wanted) * each


def _wanted(finalists: Sequence[Finalist], seeds: int) -> list[dict[str, Any]]:
    """Parameters of the finals' trials."""
    return [f.key | {"seed": seed} for seed in range(seeds) for f in finalists]


def _records(study: Study) -> list[LifetimeRecord]:
    """All lifetimes that a study stores."""
    return [r for t in study.trials() for r in lifetime_records(t).values()]


def _owner(params: dict[str, Any]) -> str:
    """Whose a trial of the finals is."""
    return key_of({k: v for k, v in params.items() if k != "seed"})


def _known(
    study: Study, evolution: Study, config: EvolutionStudy, finalists: Sequence[Finalist]
) -> dict[str, Finalist]:
    """All finalists that there ever were, by the parameter that tells them apart.

    A mean that was trained again already keeps the hyperparameters that it had there. Another
    machine may have computed it with other last digits.
    """
    known = {key_of(f.key): f for f in finalists}
    trials = {t.number: t for t in evolution.trials("COMPLETE")}
    for trial in reversed(study.trials()):
        number, mean, owner = trial.params.get("trial"), trial.params.get("mean"), None
        if mean is not None and "params" in trial.user_attrs:
            owner = Finalist(None, mean, trial.user_attrs["params"], None)
        elif number in trials and key_of({"trial": number}) not in known:
            owner = proposed_by(trials[number], config.score)
        if owner is not None:
            known[key_of(owner.key)] = owner
    return known


def _lived(
    study: Study, known: dict[str, Finalist], sink: Sink
) -> tuple[list[Finalist], list[list[float]]]:
    """Finalists with what they reached when they were trained again, and their scores by the number
    of the seed, NaN where there is none: interrupted finals leave gaps. A finalist that failed on a
    seed is left out, as a trial of the evolution is.
    """
    scores: dict[str, dict[int, float]] = {}
    for trial in study.trials("COMPLETE"):
        if trial.value is not None:
            scores.setdefault(_owner(trial.params), {})[trial.params["seed"]] = float(trial.value)
    for trial in study.trials("FAIL"):
        owner, seed = _owner(trial.params), trial.params["seed"]
        if owner in known and seed not in scores.get(owner, {}):
            sink.line(f"failed: {known[owner].title} seed {seed}: {why_failed(trial)}")
            sink.line(traceback_command(study, [trial]))
            known = {key: finalist for key, finalist in known.items() if key != owner}
    scores = {owner: by_seed for owner, by_seed in scores.items() if owner in known}
    lived = [
        replace(known[owner], again=tuple(by_seed[seed] for seed in sorted(by_seed)))
        for owner, by_seed in scores.items()
    ]
    again = [[s.get(seed, np.nan) for seed in range(max(s) + 1)] for s in scores.values()]
    return lived, again


class FinalsProgress(Progress):
    """Says how far the finals are.

    Args:
        campaign: theirs.
        config: of the evolution.
        finalists: how many there are.
        seeds: on which each is lived.
    """

    def __init__(
        self, campaign: Campaign, config: EvolutionStudy, finalists: int, seeds: int
    ) -> None:
        super().__init__(campaign.sink)
        self._campaign, self._config, self._begun = campaign, config, 0
        environments = "" if config.env_ids is None else f"{len(config.env_ids)} environments x "
        self._title = (
            f"finals: {plural(finalists, 'finalist')} x {environments}"
            f"{plural(seeds, 'fresh seed')} x {config.training_steps:,} steps"
        )

    def begin(self, trials: Sequence[RunningTrial]) -> None:
        """These lifetimes begin."""
        super().begin(trials)
        self._begun += len(trials)
        left = [s for t in trials for i, s in enumerate(t.specs) if i not in t.records]
        self.budget += sum(map(steps_of, left))
        if trials and self._begun == len(trials):
            self.sink.line(f"{self._title}, {self._campaign.workers}")

    def trial_line(self, trial: RunningTrial, value: float | None) -> str:
        """See `Progress`."""
        mean = trial.params.get("mean")
        title = f"trial {trial.params['trial']}" if mean is None else f"mean after {mean}"
        what = "return" if self._config.references is None else "score"
        return f"{title:16s} seed {trial.params['seed']:3d}  {outcome(trial, value, what)}"

    def status_line(self, steps: int, pace: str) -> str:
        """See `Progress`."""
        return f"finals {self.done}/{self._begun}  {steps:,} of {self.budget:,} steps  {pace}"
