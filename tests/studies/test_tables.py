"""Tables of tests and single trainings, as they are shown, listed and exported."""

import csv
import re
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from erl.commands import studies
from erl.errors import UserError
from erl.experiments.arms import arm_lifetime, arm_names
from erl.lifetimes.record import LifetimeRecord
from erl.statistics import (
    Arm,
    bootstrap_interval,
    interquartile_mean,
    probability_of_improvement,
)
from erl.studies.configuration import EvolutionStudy, SingleStudy, TestStudy
from erl.studies.data import read_study
from erl.studies.distributions import categorical, integer
from erl.studies.flags import ExportConfig
from erl.studies.study import Study
from erl.studies.tables import AgentTable, agent_tables, lines, to_frame, to_text_frame
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

PARAMS = {"sr": 1.0, "lr": 0.5}
EVOLUTION = EvolutionStudy(env_id="CartPole-v1", units=5, engine="cohort")
TEST = TestStudy(EVOLUTION, PARAMS, 1000, "cohort")
ARMS = arm_names(EVOLUTION, PARAMS)


def made(config, space, runs, name="tested", steps=(1000,)):
    """A study with a finished trial for each (parameters, specification, returns); trials take
    these steps in turn.
    """
    study = Study("sqlite:///studies.db", name, config)
    with study:
        for (params, spec, (training, *final)), taken in zip(runs, cycle(steps)):
            trial = study.create(params, space, lambda _, spec=spec: [spec])
            record = LifetimeRecord(
                spec, training, training, 10, 20, taken, 4.0, final_returns=tuple(final)
            )
            study.store_record(trial.trial_id, 0, record)
            study.store_end(trial.trial_id, "COMPLETE", training, None)
            study.let_go(trial.trial_id)
    return study


@pytest.fixture
def tested():
    """A test of two agents on three seeds; the agent without a reservoir is worse."""
    space = {"arm": categorical(ARMS), "seed": integer(0, 100)}
    runs = [
        ({"arm": arm, "seed": seed}, arm_lifetime(arm, seed, TEST, PARAMS), (x, x + 1, x + 3))
        for seed, better in ((2, 30.0), (0, 10.0), (1, 20.0))
        for arm, x in ((ARMS[1], 100 + better), (ARMS[0], better))
    ]
    return made(TEST, space, runs)


def test_tables_have_the_agents_in_their_order_and_the_seeds_once(tested):
    training, final = agent_tables(tested)
    assert [arm.name for arm in training.arms] == list(ARMS[:2])  # others have no lifetime yet
    assert training.arms[0].scores == (10.0, 20.0, 30.0)
    assert final.arms[1].scores == (112.0, 122.0, 132.0)
    assert training.arms[0].steps_per_second == 250.0
    assert training.title == "return of the last 10 training episodes, 1,000 steps"


def test_where_agents_took_different_steps_the_title_says_from_where_to_where():
    """Batches end at different steps: the LSTM's are shorter."""
    space = {"arm": categorical(ARMS), "seed": integer(0, 100)}
    runs = [
        ({"arm": arm, "seed": 0}, arm_lifetime(arm, 0, TEST, PARAMS), (1.0, 2.0))
        for arm in ARMS[:2]
    ]
    training, final = agent_tables(made(TEST, space, runs, steps=(1_000, 1_024)))
    assert training.title.endswith("training episodes, 1,000 to 1,024 steps")
    assert final.title.endswith("fresh episodes, 1,000 to 1,024 steps")


def test_agents_without_the_evolved_settings_of_the_learner_are_named(tested):
    params = PARAMS | {"learner.gamma": 0.9}
    config, arms = TestStudy(EVOLUTION, params, 1000, "cohort"), ("PPO", "RES_PPO_0.0003")
    space = {"arm": categorical(arms), "seed": integer(0, 100)}
    runs = [
        ({"arm": arm, "seed": 0}, arm_lifetime(arm, 0, config, params), (1.0, 2.0)) for arm in arms
    ]
    said = "the evolved settings of the learner are not those of PPO: "
    assert said in "\n".join(lines(agent_tables(made(config, space, runs, "tuned"))))
    assert "settings of the learner" not in "\n".join(lines(agent_tables(tested)))
    # As figures read them.
    assert read_study("sqlite:///studies.db#tuned").untuned == ("PPO",)
    assert read_study("sqlite:///studies.db#tested").untuned == ()


def test_agents_of_one_cohort_have_no_speed(tested):
    """The same reservoir with other rates trains in the same cohort."""
    space = {"arm": categorical(ARMS), "seed": integer(0, 100)}
    runs = [
        ({"arm": arm, "seed": 0}, arm_lifetime(arm, 0, TEST, PARAMS), (1.0, 2.0))
        for arm in ARMS[:3]
    ]
    table, _ = agent_tables(made(TEST, space, runs, "rates"))
    assert [arm.steps_per_second for arm in table.arms] == [250.0, None, None]
    assert "no steps/s: these agents trained side by side" in "\n".join(lines([table]))
    assert "side by side" not in "\n".join(lines(agent_tables(tested)))


@pytest.mark.parametrize(
    ("n", "note"),
    [
        (1, None),
        (2, "with 2 seeds the intervals mean nothing; 10 is a good number"),
        (3, "with 3 seeds the intervals are rough"),
        (5, None),
    ],
)
def test_few_seeds_are_named(n, note):
    spec = LifetimeSpec(Task("CartPole-v1"), LearnerSpec("PPO", {}), 1000, Seeds.published(0))
    config = SingleStudy("PPO", "CartPole-v1", 1000, 0, {}, "cohort")
    runs = [({"seed": i}, spec, (float(i), 1.0)) for i in range(n)]
    shown = "\n".join(lines(agent_tables(made(config, {"seed": integer(0, 9)}, runs))))
    assert (note in shown) if note else ("intervals" not in shown)


def test_tables_fit_80_columns():
    arms = ["PPO", "RES_PPO_0.0003", "RANDOM_RES_PPO_0.0003"]
    rng = np.random.default_rng(0)
    space = {"arm": categorical(arms), "seed": integer(0, 100)}
    runs = [
        (
            {"arm": arm, "seed": s},
            arm_lifetime("PPO", s, TEST, PARAMS),
            (rng.normal(3000, 900), 1.0),
        )
        for arm in arms
        for s in range(5)
    ]
    shown = lines(agent_tables(made(TEST, space, runs)))
    assert max(map(len, shown)) <= 80


def said(capsys, *words):
    with pytest.raises(SystemExit) as e:
        studies(words)
    out, err = capsys.readouterr()
    assert (e.value.code, err) == (0, "")
    return out


def test_show_and_list_of_a_test(tested, capsys):
    out = said(capsys, "show", "--study", "tested")
    assert "\n".join(lines(agent_tables(tested))).rstrip() in out
    assert "fitness" not in out.partition("last change")[2].replace('"fitness": "training"', "")
    assert re.search(
        rf"tested +test +6 complete +training IQM PPO 20, {ARMS[1]} 120 ", said(capsys, "list")
    )


def test_large_returns_are_written_out():
    tables = [AgentTable("training_return", "", (Arm("TD3", [12e3, 12.5e3, 13e3]),), False)]
    (row,) = to_text_frame(tables).to_dict("records")
    assert row["IQM"] == "12,500"
    assert row["95 % interval"] == "[12,000, 13,000]"


def test_export_of_agents(tested, capsys):
    for file in ("a.csv", "a.md", "a.tex"):
        said_of_it = said(capsys, "export", "--rows", "arms", "--file", file)
        assert "2 arms" in said_of_it
        assert "with 3 seeds the intervals are rough" in said_of_it
    said(capsys, "export", "--rows", "arms", "--file", "b.MD")
    assert Path("b.MD").read_text() == Path("a.md").read_text()
    with open("a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(to_frame(agent_tables(tested))) == 4
    scores, baseline = [110.0, 120.0, 130.0], [10.0, 20.0, 30.0]
    assert float(rows[1]["IQM"]) == interquartile_mean(scores)
    low, high = bootstrap_interval(scores, interquartile_mean)
    assert (float(rows[1]["low"]), float(rows[1]["high"])) == (low, high)
    assert float(rows[1]["P"]) == probability_of_improvement(scores, baseline) == 1.0
    assert rows[0]["P"] == ""
    assert (
        f"| training return | {ARMS[1]} | 3 | 120 | [110, 130] | 1.00 |" in Path("a.md").read_text()
    )
    about = "tested. training return: return of the last "
    assert about in Path("a.md").read_text()
    latex = Path("a.tex").read_text()
    assert rf"\caption{{{about}" in latex
    assert "P is over PPO. with 3 seeds the intervals are rough" in latex
    assert r"RES\_PPO\_0.0003" in latex
    assert latex.count(r"\\") == 5


@pytest.mark.parametrize(
    ("rows", "file", "message"),
    [
        ("lifetimes", "out.xlsx", "--rows lifetimes needs a name that ends in .csv, .csv.gz"),
        ("trials", "out", "ends in .csv"),
        ("trials", "out.md", "ends in .csv"),
        ("arms", "out.xlsx", "ends in .csv, .csv.gz, .md, .tex"),
    ],
)
def test_other_files_are_refused(rows, file, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ExportConfig(rows=rows, file=file)


def test_an_evolution_has_no_agents(capsys):
    Study("sqlite:///studies.db", "evolved", EVOLUTION)
    with pytest.raises(SystemExit):
        studies(["export", "--rows", "arms", "--file", "a.csv"])
    assert "has no agents to compare" in capsys.readouterr().err
