"""Studies as data frames: a row for each lifetime, or for each generation of an evolution inside a
lifetime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from erl.lifetimes.record import LifetimeRecord
from erl.studies.study import Study
from erl.studies.trials import lifetime_records, pruned_at, why_failed
from erl.worlds.specification import Seeds, to_json

if TYPE_CHECKING:
    import pandas as pd

Lived = list[tuple[FrozenTrial, dict[int, LifetimeRecord]]]
# What the tables of trials, of lifetimes and of generations call their own columns; those of a
# learner's generations are its own affair.
TRIAL_COLUMNS = (
    *("trial", "state", "fitness", "generation", "begun", "ended", "pruned_at", "error"),
)
LIFETIME_COLUMNS = (
    *("trial", "state", "lifetime", "fitness", "training_return", "final_return", "episodes"),
    *("steps", "seconds", "curve", "reports", "inner", "note", "error", "env_id", "learner"),
    *("ep_eval", *(f"seed_{field.name}" for field in fields(Seeds))),
)
_OWN = frozenset(TRIAL_COLUMNS + LIFETIME_COLUMNS)


def records(storage: str, name: str) -> pd.DataFrame:
    """Every lifetime of a study, one row each.

    Returns:
        Columns: `trial`, `state`, `lifetime`, the trial's parameters (see `as_columns`), `fitness`,
        `training_return`, `final_return`, `episodes`, `steps`, `seconds`, `curve` (list of (steps,
        return)), `reports` (at tenths of the budget), `inner` (dictionary, see `LifetimeRecord`, or
        None), `note`, `error`, `env_id`, `learner`, `ep_eval` (episodes of a training return, and
        of an evaluation), and the seeds.
    """
    return lifetime_rows(decoded(Study(storage, name).trials()))


def as_columns(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the parameters of a trial, as columns. A trial of finals names a trial of the
    evolution in its parameter `trial`: the column is `of_trial`, since `trial` is its own number.
    So it is with every parameter that has the name of another column.
    """
    return {f"of_{k}" if k in _OWN else k: value for k, value in parameters.items()}


def trial_rows(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Trials, one row each: `trial`, `state`, the parameters, `fitness`, `generation`, `begun`,
    `ended`, `pruned_at` (the point of comparison), `error`.
    """
    import pandas as pd

    rows = [
        {
            "trial": t.number,
            "state": t.state.name,
            **as_columns(t.params),
            "fitness": t.values[0] if t.values and len(t.values) == 1 else None,
            "generation": t.user_attrs.get("generation"),
            "begun": t.datetime_start,
            "ended": t.datetime_complete,
            "pruned_at": pruned_at(t),
            "error": why_failed(t),
        }
        for t in trials
    ]
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=TRIAL_COLUMNS)
    # Beside numbers or text, pandas takes a choice that is None for a missing value.
    for name in {
        name
        for t in trials
        for name, of in as_columns(t.distributions).items()
        if isinstance(of, CategoricalDistribution) and None in of.choices
    }:
        frame[name] = pd.Series([row.get(name, math.nan) for row in rows], dtype=object)
    return frame


def decoded(trials: Sequence[FrozenTrial]) -> Lived:
    """Trials with their records, by the index of the lifetime."""
    return [(trial, dict(sorted(lifetime_records(trial).items()))) for trial in trials]


def lifetime_rows(lived: Lived) -> pd.DataFrame:
    """The table of `records`."""
    import pandas as pd

    rows = []
    for trial, found in lived:
        for index, record in found.items():
            rows.append(
                {
                    "trial": trial.number,
                    "state": trial.state.name,
                    "lifetime": index,
                    **as_columns(trial.params),
                    "fitness": record.fitness,
                    "training_return": record.training_return,
                    "final_return": float(np.mean(record.final_returns))
                    if record.final_returns
                    else None,
                    "episodes": record.episodes,
                    "steps": record.steps,
                    "seconds": record.seconds,
                    "curve": record.curve,
                    "reports": record.reports,
                    "inner": record.inner,
                    "note": record.note,
                    "error": record.error,
                    "env_id": record.spec.task.env_id,
                    "learner": record.spec.learner.name,
                    "ep_eval": record.spec.ep_eval,
                    **{f"seed_{k}": v for k, v in to_json(record.spec.seeds).items()},
                }
            )
    return pd.DataFrame(rows)


def generations(storage: str, name: str) -> pd.DataFrame:
    """What the learners' own populations did: the kept generations of every lifetime of a study,
    one row each.

    Returns:
        Columns: `trial`, `lifetime`, the trial's parameters, `env_id`, `learner`, `generation`,
        `steps` (taken when it ended), and all that the learner can note, None where it did not.
        Without a row where no learner has a population, or none ended a generation.

        ERL-Re²: `whole` (1 if judged by whole episodes), `fitness` and `surrogate` (lists, of every
        head), `champion` (place of the best), `champion_return` (of the champion of the generation
        before, in whole episodes played after it was chosen), `rl_return`, `rl_head` (place of the
        RL head's copy) and `rl_fate` (of that copy: elites, selected, discarded).

        AES-RL, ACEM-RL and (1+1)-ES, for each individual: `individual` (its number), `kind` (RL or
        ES), `fitness` (a list of one), `mean_return` (score of the mean), `p` (how far the mean
        went to it; not of ACEM-RL), `age` (results told since it was asked). CEM-RL and P-CEM-RL:
        `fitness` and `kind` of each individual of a generation (lists). All five:
        `uncounted_steps` (of individuals alone), `individuals` (told so far), `var` (mean variance
        of the weights), `rl_share` (of RL individuals among those told so far that did not play at
        random).

        DERL, for each iteration: `fitness` (a list, of the population), `policy_return` (of the
        policy's own episodes), `es_length` and `rl_length` (of the steps of both halves) and
        `cosine` (between them).
    """
    return generation_rows(decoded(Study(storage, name).trials()))


def generation_rows(lived: Lived) -> pd.DataFrame:
    """The table of `generations`."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    for trial, found in lived:
        for index, record in found.items():
            kept, spec = record.generations, record.spec
            known = {
                "trial": trial.number,
                "lifetime": index,
                **as_columns(trial.params),
                "env_id": spec.task.env_id,
                "learner": spec.learner.name,
            }
            columns |= dict.fromkeys([*known, *kept])
            rows += [{**known, **dict(zip(kept, row))} for row in zip(*kept.values())]
    return pd.DataFrame(rows, columns=[*columns] or ["trial", "lifetime", "env_id", "learner"])


def middle_lifetimes(lifetimes: pd.DataFrame) -> pd.DataFrame:
    """Of each arm the finished lifetime with the middle training return: neither the best nor a
    chosen one. Equal returns are told apart by the number of the trial.

    Args:
        lifetimes: of a test or of single runs (`records`).

    Returns:
        A row for each arm, in the order of the arms; the column `arm` is empty where there is none.
    """
    frame = lifetimes if "arm" in lifetimes else lifetimes.assign(arm="")
    if not len(frame):
        return frame
    done = frame[(frame.state == "COMPLETE") & frame.training_return.notna()]
    ordered = done.sort_values(["training_return", "trial"], kind="stable")
    places = [
        part.index[(len(part) - 1) // 2]
        for arm in dict.fromkeys(frame.arm)
        if len(part := ordered[ordered.arm == arm])
    ]
    return frame.loc[places]


def middle_trials(study: Study) -> list[FrozenTrial]:
    """The trials of `middle_lifetimes`; none if none has ended.

    Args:
        study: a test, or single runs.
    """
    if not study.trials("COMPLETE"):
        return []
    numbers = middle_lifetimes(records(study.address, study.name_now())).trial
    # Read after the records: other processes may end trials of the study at any time.
    trials = {t.number: t for t in study.trials("COMPLETE")}
    return [trials[n] for n in numbers]
