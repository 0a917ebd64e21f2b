"""What an evolution hands over: the winner of its finals or, without finals, ER-MRL's choice, the
trial with the highest fitness.

Finals live in a study of their own beside the evolution, `{study}_finals`. So the evolution's
trials keep their numbers, and neither its samplers nor its pruners know of them. Finals store what
their evolution is known by, so that they are found when one of the two is renamed. Its trials are
lifetimes of a finalist on a seed: parameters `trial` (number of the evolution's trial) or `mean`
(of the search's distribution: how many trials had ended when it had this mean), and `seed`.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from erl.cli import plural, score_text
from erl.errors import UserError
from erl.search.noise import expect, mean_interval
from erl.studies.configuration import EvolutionStudy, FinalsStudy, TestStudy
from erl.studies.following import UID
from erl.studies.storage import MissingError, open_storage
from erl.studies.study import Study
from erl.studies.trials import Score, lifetime_records
from erl.worlds.arguments import Arguments
from erl.worlds.specification import from_json, to_json

WINNER = "winner"  # user attribute of an evolution's study
UNFINISHED = "unfinished_finals"  # the same: the flags of finals that were begun and not finished
SUFFIX = "_finals"
TESTED = "tested:"  # user attributes of an evolution's study: what its tests found, by their names
FINALS_OF = "finals_of"  # user attribute of finals: the `UID` of their evolution
# User attribute of a test: the `UID` of its evolution, and what follows the evolution's name in the
# name that it had at first.
TEST_OF = "test_of"


def finals_name(storage: BaseStorage, study: str) -> str:
    """The name of the study in which an evolution's finals are, or would be.

    Finals without `FINALS_OF` were made by version 0.2.0 or earlier, and are known by their name.

    Args:
        storage: of both.
        study: the name of the evolution's study.
    """
    there = {s.study_name: s for s in storage.get_all_studies()}
    uid = there[study].user_attrs.get(UID) if study in there else None
    if uid is not None:
        for name, other in there.items():
            if other.user_attrs.get(FINALS_OF) == uid:
                return name

    def is_taken(name: str) -> bool:
        """Whether it is the name of another evolution's finals, or of no finals at all."""
        if name not in there:
            return False
        attrs = there[name].user_attrs
        if "config" not in attrs:  # perhaps finals that another coordinator is about to begin
            return storage.get_n_trials(there[name]._study_id) > 0
        return not _are_finals(attrs) or FINALS_OF in attrs

    name, count = f"{study}{SUFFIX}", 1
    while is_taken(name):
        count += 1
        name = f"{study}{SUFFIX}_{count}"
    return name


def _are_finals(attrs: Mapping[str, Any]) -> bool:
    """Whether a study is finals, from its user attributes."""
    stored = attrs.get("config")
    return isinstance(stored, Mapping) and stored.get("kind") == FinalsStudy.kind


def without_finals(storage: BaseStorage) -> list[str]:
    """Names of the studies of a storage, without the finals of others among them."""
    there = {s.study_name: s.user_attrs for s in storage.get_all_studies()}
    evolutions = {attrs[UID] for attrs in there.values() if UID in attrs}

    def is_part(name: str) -> bool:
        owner = there[name].get(FINALS_OF)
        if owner is not None:
            return owner in evolutions
        named = name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in there
        return named and _are_finals(there[name])

    return [name for name in there if not is_part(name)]


def link_finals(finals: Study, evolution: Study) -> None:
    """Store with finals which evolution they are of, whatever the two are called."""
    uid = evolution.known_by()
    if finals.optuna.user_attrs.get(FINALS_OF) != uid:
        finals.optuna.set_user_attr(FINALS_OF, uid)


@dataclass(frozen=True)
class Finalist:
    """Hyperparameters that may be handed over. One of `trial` and `mean` is given.

    Attributes:
        trial: number of the trial that proposed them.
        mean: they are the mean of the search's distribution, after so many trials had ended.
        params: the hyperparameters.
        fitness: of the trial; None for a mean.
        proposed: the trial's score with each of its seeds; empty where that is not known.
        again: scores on the seeds of the finals, without those that it lacks.
        expected: what it should reach on new seeds, see `expect`; None without finals.
        interval: of that, 95 %; None with less than three seeds.
    """

    trial: int | None
    mean: int | None
    params: dict[str, Any]
    fitness: float | None
    proposed: tuple[float, ...] = ()
    again: tuple[float, ...] = ()
    expected: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        """What it is called in a line."""
        if self.trial is not None:
            return f"trial {self.trial}"
        return f"mean of the search after {self.mean} trials"

    @property
    def slug(self) -> str:
        """What it is called in the names of studies and folders."""
        return f"trial_{self.trial}" if self.trial is not None else f"mean_{self.mean}"

    @property
    def key(self) -> dict[str, Any]:
        """The parameter of the finals' trials that tells whose they are."""
        return {"mean": self.mean} if self.trial is None else {"trial": self.trial}

    @property
    def reached(self) -> str:
        """What it reached, with 95 % intervals where there can be some.

        The fitness of the best trial is a maximum over noisy means, of which the scores of its own
        seeds give no interval. The winner's mean over the seeds of the finals is a maximum over
        few; what is expected of it on new seeds is none.
        """
        parts = []
        if self.fitness is not None:
            seeds = f" ({plural(len(self.proposed), 'seed')})" if self.proposed else ""
            parts.append(f"{score_text(self.fitness)} when proposed{seeds}")
        if self.again:
            parts.append(
                f"{with_interval(self.again)} trained again ({plural(len(self.again), 'seed')})"
            )
        if self.expected is not None:
            parts.append(f"{_shown(self.expected, self.interval)} expected on new seeds")
        return f"fitness {', '.join(parts) or 'not known'}"


def with_interval(scores: Sequence[float]) -> str:
    """A mean and its 95 % interval: `301.00 [262.00, 340.00]`; of two scores none, which would be
    wider than anything that they can be.
    """
    return _shown(float(np.mean(scores)), _interval(scores))


def _interval(scores: Sequence[float]) -> tuple[float, float] | None:
    return mean_interval(scores) if len(scores) > 2 else None


def _shown(value: float, interval: tuple[float, float] | None) -> str:
    ends = "" if interval is None else f" [{score_text(interval[0])}, {score_text(interval[1])}]"
    return score_text(value) + ends


@dataclass(frozen=True)
class Reached:
    """What the agent with a finalist's hyperparameters reached in a test.

    Attributes:
        finalist: its `slug`.
        arm: the agent.
        env_id: environment of a test of generalisation; None for that of the evolution.
        mean: over seeds.
        interval: of that, 95 %; None with less than three seeds.
        seeds: how many.
        steps: that a lifetime took: a learner that works in batches finishes its last one.
        env_kwargs: arguments of the environment of a test of generalisation.
        del_obs: whether velocities were deleted there; None: as in the evolution.
    """

    finalist: str
    arm: str
    env_id: str | None
    mean: float
    interval: tuple[float, float] | None
    seeds: int
    steps: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    # Left out of what is stored where it is None, as before there was such a field.
    del_obs: bool | None = field(default=None, metadata={"omit_default": True})

    @property
    def line(self) -> str:
        """What was reached, and by which agent: a test may be of another learner's agents."""
        where = "" if self.env_id is None else f" in {self.env_id}"
        where += f" with {Arguments(self.env_kwargs)}" * bool(self.env_kwargs)
        if self.del_obs is not None:
            where += f" {'without' if self.del_obs else 'with'} velocities"
        return (
            f"return {_shown(self.mean, self.interval)} as {self.arm} on test seeds{where} "
            f"({plural(self.seeds, 'seed')}, after {self.steps:,} steps)"
        )


def reached_by(
    finalist: Finalist, arm: str, test: TestStudy, scores: Sequence[float], steps: int
) -> Reached:
    """What a finalist reached in a test, from its agent's scores and the steps that its lifetimes
    took; see `Reached`.
    """
    interval, mean = _interval(scores), float(np.mean(scores))
    seeds, kwargs = len(scores), dict(test.env_kwargs)
    where = test.env_id, mean, interval, seeds, steps, kwargs, test.del_obs
    return Reached(finalist.slug, arm, *where)


def linked_test(storage: str, link: str) -> str | None:
    """The name of the test with this `TEST_OF`, whatever it and its evolution are called; None if
    there is none.
    """
    with suppress(MissingError):
        for study in open_storage(storage).get_all_studies():
            if study.user_attrs.get(TEST_OF) == link:
                return study.study_name
    return None


def store_tested(evolution: Study, test: str, found: Reached) -> None:
    """Store with an evolution what the test of this name found."""
    evolution.optuna.set_user_attr(f"{TESTED}{test}", to_json(found))


def reached_in_tests(attrs: Mapping[str, Any], finalist: Finalist) -> dict[str, Reached]:
    """What tests of a finalist found, by their names, from user attributes of the evolution."""
    stored = {k.removeprefix(TESTED): v for k, v in attrs.items() if k.startswith(TESTED)}
    found = {}
    for name, value in sorted(stored.items()):
        with suppress(UserError):  # another version's
            found[name] = from_json(Reached, value)
    return {name: test for name, test in found.items() if test.finalist == finalist.slug}


@dataclass(frozen=True)
class Choice:
    """What an evolution hands over, and why.

    Attributes:
        winner: the chosen one.
        finalists: all that it was chosen among, the best first; empty where there were no finals
            and the winner is the trial with the highest fitness.
        ended: how many trials had ended when it was chosen.
    """

    winner: Finalist
    finalists: tuple[Finalist, ...] = ()
    ended: int = 0


def chosen(study: Study) -> Choice | None:
    """What stands for an evolution wherever its best trial is asked for: the winner of the finals,
    or the trial with the highest fitness if there were none. None if no trial succeeded.
    """
    stored = stored_choice(study.optuna.user_attrs)
    if stored is not None:
        return stored
    best = study.best()
    if best is None:
        return None
    config = study.config
    score = config.score if isinstance(config, EvolutionStudy) else None
    return Choice(proposed_by(best, score), (), len(study.trials("COMPLETE", "PRUNED", "FAIL")))


def stored_choice(attrs: Mapping[str, Any]) -> Choice | None:
    """Whom the finals of an evolution chose, from its study's user attributes; None without.

    Studies of other programs store no configuration as this project does, and may have an attribute
    of this name.
    """
    stored = attrs.get(WINNER)
    ours = isinstance(attrs.get("config"), Mapping) and isinstance(stored, Mapping)
    return from_json(Choice, stored) if ours else None


def readable_choice(attrs: Mapping[str, Any]) -> Choice | None:
    """The same for those who only tell of it: None also where another version stored it."""
    with suppress(UserError):
        return stored_choice(attrs)
    return None


def said_of_winner(study: Study) -> str | None:
    """What an evolution hands over, what that reached, and what tests found of it, for notes; None
    where there were neither finals nor tests.
    """
    attrs = study.optuna.user_attrs
    choice = readable_choice(attrs)
    if choice is None and attrs.get(WINNER) is None and any(k.startswith(TESTED) for k in attrs):
        choice = chosen(study)
    if choice is None:
        return None
    tests = [test.line for test in reached_in_tests(attrs, choice.winner).values()]
    return "; ".join([f"{choice.winner.title}, {choice.winner.reached}", *tests])


def proposed_by(trial: FrozenTrial, score: Score | None) -> Finalist:
    """A completed trial of an evolution as a finalist. Scores that another program stored, or
    another version, are not known.
    """
    scores: list[float] = []
    if score is not None:
        with suppress(UserError):
            table = score_table(trial, score)
            scores = table.mean(0).tolist() if len(table) else []
    value = None if trial.value is None else float(trial.value)
    return Finalist(trial.number, None, dict(trial.params), value, tuple(scores))


def score_table(trial: FrozenTrial, score: Score) -> np.ndarray:
    """A completed trial's scores, (environments, seeds): its lifetimes are the seeds of the first
    environment, then of the next.
    """
    records = lifetime_records(trial)
    rows: dict[str, list[float]] = {}
    for index in sorted(records):
        record = records[index]
        if record.fitness is not None:
            value = score(record.spec, record.fitness)
            rows.setdefault(record.spec.task.env_id, []).append(value)
    return np.array(list(rows.values()), dtype=float).reshape(len(rows), -1 if rows else 0)


def choose(
    finalists: Sequence[Finalist], ended: int, again: Sequence[Sequence[float]] | None = None
) -> Choice | None:
    """The winner among finalists that were trained again: the one with the highest expected score.

    Args:
        finalists: those that failed on some seed have no place here.
        ended: see `Choice`.
        again: of each finalist, the scores by the number of their seed, NaN where it lacks one; by
            default those of `Finalist.again`, of the first seeds.

    Returns:
        None without finalists.
    """
    if not finalists:
        return None
    by_seed = [f.again for f in finalists] if again is None else again
    found = expect([f.proposed for f in finalists], by_seed)
    rows = [
        replace(f, expected=float(v), interval=None if np.isnan(low) else (float(low), float(high)))
        for f, v, low, high in zip(finalists, found.values, found.low, found.high)
    ]
    ranked = sorted(
        rows,
        # Of equals, whatever the processor rounds, the trial before the mean, and the earlier one.
        key=lambda f: (-float(f"{f.expected:.12g}"), f.trial is None, f.trial or f.mean or 0),
    )
    return Choice(ranked[0], tuple(ranked), ended)


def store_choice(study: Study, choice: Choice | None) -> None:
    """Store what the finals chose; None takes an earlier choice back. No finals are unfinished
    then.
    """
    attrs = study.optuna.user_attrs
    if choice is not None or WINNER in attrs:
        study.optuna.set_user_attr(WINNER, to_json(choice))
    if attrs.get(UNFINISHED) is not None:
        study.optuna.set_user_attr(UNFINISHED, None)


def begin_finals(study: Study, finalists: int, seeds: int) -> None:
    """Store that finals of so many finalists and seeds begin. They are unfinished until
    `store_choice`.
    """
    study.optuna.set_user_attr(UNFINISHED, {"finalists": finalists, "finalist_seeds": seeds})


def unfinished_finals(attrs: Mapping[str, Any]) -> str | None:
    """That finals were begun and not finished, and the flags that go on with them, from the user
    attributes of the evolution's study; None if there are no such finals.
    """
    begun = attrs.get(UNFINISHED)
    if begun is None:
        return None
    flags = " ".join(f"--{name} {n}" for name, n in begun.items())
    return f"begun and not finished; {flags} goes on with them"
