import json
from dataclasses import replace

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from erl.learners import OWN
from erl.learners.core.evolved_settings import EvolvedSettings
from erl.learners.core.telemetry import Generations
from erl.lifetimes.living import Cohort, live
from erl.lifetimes.record import LifetimeRecord
from erl.search.pruning import Pruned
from erl.studies.notes import trial_note
from erl.studies.records import (
    LIFETIME_COLUMNS,
    TRIAL_COLUMNS,
    decoded,
    generation_rows,
    generations,
    lifetime_rows,
    middle_lifetimes,
    records,
    trial_rows,
)
from erl.studies.trials import (
    RunningTrial,
    lifetime_records,
    record_attributes,
    stored_records,
    why_failed,
)
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, Task, to_json


def record(quick, seed):
    settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
    spec = LifetimeSpec(
        task=Task("toy_environments:Recall-v0"),
        learner=LearnerSpec("PPO", settings, "sb3"),
        steps=64,
        seeds=Seeds.derive(0, "single", seed),
    )
    return live(Cohort((spec,)))[0]


def test_records_of_earlier_versions_are_read_as_those_of_today(quick):
    kept = record(quick, 0)
    study = optuna.create_study(
        study_name="s", storage="sqlite:///studies.db", direction="maximize"
    )
    attrs = {"lifetime:0": to_json(kept)}
    old = create_trial(value=1.0, user_attrs=attrs | {"generation": 0})
    new = create_trial(value=1.0, system_attrs=attrs | {"cmaes:begun": 3})
    error = {"reason": "it broke", "traceback": None}
    failed = create_trial(state=TrialState.FAIL, user_attrs={"error": error})
    study.add_trials([old, new, failed])
    trials = study.trials
    assert [lifetime_records(t) for t in trials] == [{0: kept}, {0: kept}, {}]
    assert stored_records(trials[0]) == stored_records(trials[1]) == {0: to_json(kept)}
    assert [why_failed(t) for t in trials] == [None, None, "it broke"]
    frame = records("sqlite:///studies.db", "s")
    assert list(frame.trial) == [0, 1]
    # One that an earlier version began, and this one goes on with.
    both = create_trial(value=1.0, user_attrs={"lifetime:0": {"a": 1}}, system_attrs=attrs)
    assert stored_records(both) == {0: to_json(kept)}


def test_a_parameter_with_the_name_of_a_column_takes_no_place_from_it(quick):
    names = {*TRIAL_COLUMNS, *LIFETIME_COLUMNS}
    values = {name: i / 64 for i, name in enumerate(sorted(names))}
    space = dict.fromkeys(names, FloatDistribution(0, 1))
    kept = record(quick, 0)
    attrs = record_attributes(0, to_json(kept))
    trial = create_trial(value=3.0, params=values, distributions=space, system_attrs=attrs)
    for frame, columns, fitness in (
        (trial_rows([trial]), TRIAL_COLUMNS, 3.0),
        (lifetime_rows(decoded([trial])), LIFETIME_COLUMNS, kept.fitness),
    ):
        assert {*frame.columns} == {*columns, *(f"of_{name}" for name in names)}
        assert (frame.state[0], frame.fitness[0]) == ("COMPLETE", fitness)
        assert {name: frame[f"of_{name}"][0] for name in names} == values


def test_a_note_names_lifetimes_by_their_own_numbers():
    task, learner = Task("CartPole-v1"), LearnerSpec("PPO")
    seeds = [Seeds.derive(0, "evolution", i) for i in range(3)]
    specs = [LifetimeSpec(task, learner, 100, s) for s in seeds]
    lived = {i: LifetimeRecord(specs[i], 1.0, 1.0, 1, 1, 100, 1.0) for i in (2, 0)}
    trial = RunningTrial(5, 5, {}, {}, specs, lived, pruned=Pruned(3, 0.5))
    lines = trial_note(trial, "PRUNED", 0.5).splitlines()
    named = [line.partition("**")[2].partition("**")[0] for line in lines if "lifetime" in line]
    assert named == ["lifetime 0", "lifetime 2"]
    assert f"- **its seeds 2**: reservoir {seeds[2].reservoir}, learner {seeds[2].learner}, " in (
        "\n".join(lines)
    )


def test_generations_have_all_columns_of_their_learner():
    """Also of lifetimes that were too short to note some, or any."""
    seeds, reach = Seeds.derive(0, "single", 0), Task("toy_environments:Reach-v0")
    specs = [LifetimeSpec(reach, LearnerSpec(name), 100, seeds) for name in ("ERL-Re2", "PPO")]
    short, other = (LifetimeRecord(spec, 1.0, 1.0, 1, 1, 100, 1.0) for spec in specs)
    noted = Generations()
    noted.add({"steps": 50, "rl_return": 1.0}, {})
    longer = replace(short, inner=noted.to_json())
    trial = create_trial(value=1.0, params={"x": 2.0}, distributions={"x": FloatDistribution(1, 3)})
    known = ["trial", "lifetime", "x", "env_id", "learner"]
    table = generation_rows([(trial, {0: short})])
    assert [*table] == [*known, "generation", "steps", *OWN["ERL-Re2"].noted]
    assert not len(table.groupby("trial").rl_fate.value_counts(normalize=True))
    table = generation_rows([(trial, {0: short, 1: longer, 2: other})])
    assert table.drop(columns=[*OWN["ERL-Re2"].noted]).values.tolist() == [
        [trial.number, 1, 2.0, reach.env_id, "ERL-Re2", 0, 50]
    ]
    assert [n for n in OWN["ERL-Re2"].noted if table[n].notna().any()] == ["rl_return"]
    assert [*generation_rows([(trial, {0: other})])] == known


@pytest.mark.slow
def test_a_long_record_is_stored_in_pieces(quick):
    """Each attribute fits into 65,535 bytes, as MySQL asks; who reads it sees one record."""
    n = 2000
    rows = Generations(*EvolvedSettings.kept)
    for k in range(n):
        counts = {"steps": 6000 * k, "uncounted_steps": 1000 * k, "individuals": k, "age": 5}
        values = {"fitness": [-1234.5678 - k], "var": 1e-3 / (k + 3), "p": 1 / (k + 3)}
        shares = {"rl_share": k / (k + 3), "mean_return": -1234.567 - k}
        rows.add({**counts, **values, **shares, "individual": k, "kind": "RL"}, {"rl": 1})
    assert len(rows.rows) == n
    short = record(quick, 0)
    # Evaluations are not thinned, and a traceback may have quotation marks and other alphabets.
    evaluations = [{"steps": k, "mean": -1234.5678 - k} for k in range(5000)]
    kept = replace(
        short,
        inner={**rows.to_json(), "evaluations": evaluations},
        traceback='"ä"\\' * 5000,
    )
    assert record_attributes(3, to_json(short)) == {"lifetime:3": to_json(short)}
    attrs = record_attributes(3, to_json(kept))
    assert list(attrs)[-1] == "lifetime:3"
    sizes = [len(json.dumps(value)) for value in attrs.values()]
    assert max(sizes) < 65_535
    assert 300_000 < sum(sizes) < 900_000
    study = optuna.create_study(study_name="s", storage="sqlite:///studies.db")
    study.add_trial(create_trial(value=1.0, system_attrs=dict(reversed(attrs.items()))))
    (trial,) = study.trials
    assert stored_records(trial) == {3: to_json(kept)}
    assert lifetime_records(trial) == {3: kept}
    table = generations("sqlite:///studies.db", "s")
    assert list(table["individual"]) == list(range(n))
    # Another record of this lifetime, whose writing stops half-way, changes nothing.
    other = optuna.create_study(study_name="other", storage="sqlite:///studies.db")
    again = record_attributes(3, to_json(replace(kept, traceback="x" * 50_000)))
    half = dict(list(again.items())[:2])
    other.add_trial(create_trial(value=1.0, system_attrs=attrs | half))
    assert stored_records(other.trials[0]) == {3: to_json(kept)}
    other.add_trial(create_trial(value=1.0, system_attrs=attrs | again))
    assert stored_records(other.trials[1])[3]["traceback"] == "x" * 50_000
    # As version 0.2.0 stored it.
    pieces = [v for k, v in attrs.items() if k.startswith("piece:")]
    old = {f"piece:3:{k}": piece for k, piece in enumerate(pieces)}
    old["lifetime:3"] = {"pieces": len(pieces)}
    other.add_trial(create_trial(value=1.0, system_attrs=old))
    assert stored_records(other.trials[2]) == {3: to_json(kept)}


def test_the_middle_lifetime_of_each_arm():
    import pandas as pd

    frame = pd.DataFrame(
        {
            "arm": ["b", "a", "a", "a", "a", "b", "c"],
            "trial": [0, 1, 2, 3, 4, 5, 6],
            "state": ["COMPLETE"] * 5 + ["FAIL"] * 2,
            "training_return": [1.0, 9.0, 3.0, 3.0, 1.0, 2.0, 2.0],
        }
    )
    assert list(middle_lifetimes(frame).trial) == [0, 2]
    alone = frame.drop(columns="arm")
    assert list(middle_lifetimes(alone).trial) == [2]
    assert len(middle_lifetimes(frame[:0])) == 0
