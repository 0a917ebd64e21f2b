"""The experiments behind the page of results: their plan, runs, rows, tables and costs."""

import dataclasses
import functools
import json
import re
import shutil
import sqlite3
import subprocess
from argparse import Namespace
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from benchmark_modules import load
from conftest import ROOT
from documents import parsed

from erl.errors import UserError
from erl.experiments.comparison import compare
from erl.experiments.comparison_flags import ComparisonConfig
from erl.experiments.evolution import evolve
from erl.experiments.evolution_flags import EvolutionConfig
from erl.experiments.flags import study_name
from erl.statistics import mann_whitney
from erl.studies.catalogue import read_catalogue
from erl.studies.configuration import EvolutionStudy
from erl.studies.storage import open_storage, study_names
from erl.studies.study import Study
from erl.studies.trials import lifetime_records
from erl.studies.winner import chosen
from erl.worlds.reservoirs import memory_profile

planned, tables, evidence = map(load, ("evidence_plan", "evidence_tables", "evidence"))
evidence_rows, evidence_run, evidence_cost = (
    load(f"evidence_{of}") for of in ("rows", "run", "cost")
)


@pytest.mark.parametrize("small", [False, True])
def test_the_experiments_are_commands_of_the_scripts(small, monkeypatch):
    monkeypatch.chdir(ROOT)  # they name files of the project; nothing is written
    every = planned.experiments()
    assert len({e.name for e in every}) == len(every)
    for experiment in every:
        made = [parsed(f"python {c}") for c in experiment.commands(small)]
        evolutions, tests = made[: -len(experiment.tests)], made[-len(experiment.tests) :]
        evolved = {study_name(e.subject(), e.h_test, e.training_steps) for e in evolutions}
        assert {e.seed for e in evolutions} <= {experiment.root}
        held = 2 if experiment.part == "two levels" else None
        assert {e.finalists for e in evolutions} <= {held}
        assert bool(evolutions) is not all(test.evolved for test in tests)
        for test in tests if evolutions else ():  # of a study that was evolved
            assert test.evolution_name in evolved


def test_the_planned_steps_of_an_experiment():
    of = {e.name: e for e in planned.experiments()}
    # 100 trials x 3 seeds, then 7 agents x 10 seeds.
    assert of["swimmer_0"].steps() == {"PPO": 300 * 300_000 + 70 * 1_000_000}
    assert of["swimmer_learner"].steps() == {"PPO": 300 * 300_000 + 30 * 1_000_000}
    assert of["on_popgym"].steps() == {"PPO": 60 * 2 * 200_000 + 3 * 40 * 1_000_000}
    assert of["position_only_cart_pole_easy"].steps() == {
        "PPO": 60 * 200_000 + 60 * 1_000_000,
        "RecurrentPPO": 3 * 1_000_000,
    }
    assert of["repeat_previous_easy_lstm"].steps() == {"RecurrentPPO": 3 * 1_000_000}
    # Two evolutions with finals of 3 x 3, and tests of 2 and of 1 agents. PPO is in none of them.
    evolution = (12 + 9) * 100_000
    assert of["pendulum_erl_re2"].steps() == {"ERL-Re2": evolution + 900_000, "PPO": evolution}


@functools.cache
def all_rows():
    """Scores of all experiments as their tests would give them, without failures."""
    rows, rng = {}, np.random.default_rng(0)
    for each in planned.experiments():
        frames = []
        for command in each.tests:
            default = f"{each.baseline},{each.baseline.removeprefix('RES_')},RANDOM_PPO"
            arms = planned.flag(command, "arms", default).split(",")
            arms += ["RecurrentPPO", "RANDOM_PPO", "PPO"] * ("--controls" in command)
            study, env_id = (planned.flag(command, name, "") for name in ("h_test", "env_id"))
            frames += [
                scored(f"_{study}_", arm, rng.normal(size=3), env_id) for arm in dict.fromkeys(arms)
            ]
        rows[each.name] = pd.concat(frames)
    return rows


@pytest.mark.parametrize("comparison", planned.comparisons(), ids=lambda c: c.name)
def test_the_family_of_a_comparison_is_as_large_as_all_experiments_make_it(comparison):
    roots = {e.name: e.root for e in planned.experiments()}
    table = tables.compared(comparison, all_rows(), roots)
    assert table.p.notna().sum() == comparison.tests
    assert "to come" not in tables.said(comparison, table)


def test_beside_published_results_stand_reservoirs_that_were_evolved_there(capsys, tmp_path):
    """And not those of the same environments that were evolved on a set."""
    env_id = "popgym:popgym-RepeatPreviousEasy-v0"
    rows = {
        "repeat_previous_easy": scored("s", planned.RES, [1.0, 0.5], env_id),
        "repeat_previous_easy_inputs": scored("t", "INPUTS_PPO", [0.25, 0.25], env_id),
        "repeat_previous_easy_lstm": scored("u", "RecurrentPPO", [0.5, 1.0, 0.0], env_id),
        "on_popgym": scored("s", planned.RES, [-1.0, -1.0], env_id),
    }
    evidence.print_published(rows, tmp_path, "")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("| Rep")]
    ours = "0.750 [0.50, 1.00] | - | - | 0.250 [0.25, 0.25] | - | 0.500 [0.00, 1.00] | -"
    assert line == f"| RepeatPreviousEasy | {ours} | 1.000 | 1.000 |"
    made = evidence.of_memory(rows, planned.listed()["published"]["rows"])
    figure = tables.memory_figure(made, [*evidence.OF_MEMORY, *evidence.THEIRS], "About.")
    (axes,) = figure.axes
    means = {points.get_label(): points.get_xdata().tolist() for points in axes.lines}
    assert means["evolved reservoir"] == [0.75]
    assert means["four inputs"] == [0.25]
    assert means["GRU, published"] == means["best of 13, published"] == [1.0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["RepeatPreviousEasy"]
    ends = [path.vertices[:, 0].tolist() for path in axes.collections[0].get_paths()]
    assert ends == [[0.5, 1.0]]
    assert (tmp_path / "memory.svg").exists()


def test_every_experiment_is_compared_and_every_member_exists():
    names = [e.name for e in planned.experiments()]
    used = set()
    for comparison in planned.comparisons():
        assert comparison.baseline in {m.label for m in comparison.members}
        for group in comparison.groups:
            for member in comparison.members:
                found = tables.matching(member, group, names)
                assert found, (comparison.name, group, member.label)
                used |= {*found}
    assert used == {*names}


def scored(study, arm, returns, env_id="X-v0", seeds=None):
    seeds = range(len(returns)) if seeds is None else seeds
    columns = {"study": study, "env_id": env_id, "arm": arm, "seed": seeds}
    return pd.DataFrame(columns | {"training_return": returns, "state": "COMPLETE"})


def a_comparison(**changes):
    members = (
        planned.Member("with", "{group}_a_*", "R"),
        planned.Member("without", "{group}_b_*", "R"),
    )
    return planned.Comparison("c", "p", "?", ("x",), members, "with", **{"tests": 1} | changes)


def test_pairs_of_a_comparison_have_equal_root_and_test_seeds():
    rows = {
        "x_a_1": scored("s", "R", [1.0, 2.0, 3.0]),
        "x_a_2": scored("s", "R", [10.0, 20.0]),
        "x_b_1": scored("s", "R", [4.0, 2.5, 99.0], seeds=[1, 0, 7]),
        "x_b_2": scored("s", "R", [13.0, 24.0]),
    }
    roots = {name: int(name[-1]) for name in rows}
    table = tables.compared(a_comparison(paired=True), rows, roots)
    base, other = table.itertuples()
    assert (base.seeds, other.seeds, other.pairs) == (5, 5, 4)
    assert other.difference == np.mean([1.5, 2.0, 3.0, 4.0])
    assert other.by_root == "1: +1.75, 2: +3.5"
    assert other.p == other.p_holm == 2 / 2**4  # Wilcoxon's, all of one sign
    assert np.isnan(base.p)
    text = tables.shown(a_comparison(paired=True), table)
    assert text["p (Holm)"].tolist() == ["-", "0.12"]


def test_the_family_of_a_comparison_is_all_groups():
    rng = np.random.default_rng(0)
    rows = {
        f"{group}_{arm}_1": scored("s", "R", rng.normal(shift * (arm == "b"), 1, 10), group)
        for group, shift in (("x", 5), ("y", 0))
        for arm in "ab"
    }
    comparison = dataclasses.replace(a_comparison(), groups=("x", "y", "missing"))
    table = tables.compared(comparison, rows, dict.fromkeys(rows, 0)).dropna(subset="p")
    assert table.env_id.tolist() == ["x", "y"]
    small, large = table.p
    assert table.p_holm.tolist() == [2 * small, large]
    larger = dataclasses.replace(comparison, tests=5)  # three have no scores yet
    table = tables.compared(larger, rows, dict.fromkeys(rows, 0)).dropna(subset="p")
    assert table.p_holm.tolist() == [5 * small, min(1.0, 4 * large)]
    assert "for the 5 comparisons with with that were planned, 3 of them to come." in tables.said(
        larger, table
    )
    assert small == mann_whitney(rows["x_b_1"].training_return, rows["x_a_1"].training_return)
    averaged = dataclasses.replace(comparison, averaged=True, paired=True)
    (_, row) = tables.compared(averaged, rows, dict.fromkeys(rows, 0)).itertuples()
    means = [rows[f"x_{a}_1"].training_return + rows[f"y_{a}_1"].training_return for a in "ba"]
    assert row.difference == pytest.approx(((means[0] - means[1]) / 2).mean())
    assert not len(tables.compared(comparison, {}, {}))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_test_whose_experiments_are_not_all_there_is_to_come(averaged):
    """Its p-value would change with the others; that of a complete group stands."""
    rng = np.random.default_rng(0)
    names = [f"{g}_{arm}_{root}" for g in "xy" for arm in "ab" for root in (1, 2)]
    rows = {name: scored("s", "R", rng.normal(size=8), name[0]) for name in names}
    roots = {name: int(name[-1]) for name in names}
    comparison = dataclasses.replace(
        a_comparison(paired=averaged, averaged=averaged, tests=2 - averaged), groups=("x", "y")
    )
    for missing in ("y_a_2", "y_b_2"):
        part = {name: frame for name, frame in rows.items() if name != missing}
        table = tables.compared(comparison, part, roots)
        if averaged:
            assert table.p.isna().all()
            assert not table.difference.isna().all()
        else:
            assert table.dropna(subset="p").env_id.tolist() == ["x"]
            assert table.p_holm.dropna().tolist() == [min(1, 2 * table.p.min())]
        assert "planned, 1 of them to come" in tables.said(comparison, table)
    assert "to come" not in tables.said(comparison, tables.compared(comparison, rows, roots))


def test_the_matrix_has_the_controls_of_every_evolution():
    arms = ("PPO", "R", "RANDOM_R", "NOREC_R")
    rows = pd.concat([scored("s", arm, [float(i), i + 1.0]) for i, arm in enumerate(arms)])
    made = tables.matrix({"on_a": ("A", rows), "on_x": ("X-v0", rows[rows.arm != "NOREC_R"])}, "R")
    assert [*made.evolved_on] == ["A", "A, not evolved", "A, W = 0", "X-v0", "X-v0, not evolved"]
    shown = tables.matrix_shown(made)
    assert shown.columns.tolist() == ["evolved on", "X-v0"]
    assert shown["X-v0"][0].endswith("; 1.5 (0.5)")
    assert tables.matrix({}, "R") is None


def test_the_matrix_keeps_experiments_and_tests_of_the_same_environments_apart():
    one, two = (
        pd.concat([scored(study, "PPO", [1.0, 2.0]), scored(study, "R", returns)])
        for study, returns in (("s", [3.0, 4.0]), ("t", [0.0, 0.5]))
    )
    made = tables.matrix({"a_1": ("A", one), "a_2": ("A", two)}, "R")
    assert [*zip(made.evolved_on, made.probability)] == [("A (a_1)", 1.0), ("A (a_2)", 0.0)]
    made = tables.matrix({"a_1": ("A", pd.concat([one, two]))}, "R")
    assert [*zip(made.tested_on, made.probability)] == [("X-v0 (s)", 1.0), ("X-v0 (t)", 0.0)]
    # Other tests of an experiment, such as controls alone, are no second evolution.
    made = tables.matrix({"a": ("A", one), "a_inputs": ("A", one[one.arm == "PPO"])}, "R")
    assert [*made.evolved_on] == ["A"]


def test_the_matrix_is_drawn_the_same_each_time(monkeypatch, tmp_path, capsys):
    rows = pd.concat([scored("s", arm, [0.0, 1.0, 2.0]) for arm in ("PPO", planned.RES)])
    rows = rows.assign(env_id="popgym:popgym-CountRecallEasy-v0")
    each = Namespace(name="a", part="generalisation", evolved_on="A-v0", evolve="")
    monkeypatch.setattr(planned, "experiments", lambda: [each])
    drawn = []
    for _ in range(2):
        evidence.print_matrix({"a": rows}, tmp_path, "")
        assert "| A-v0 | 0.50 [" in capsys.readouterr().out
        drawn.append((tmp_path / "generalisation.svg").read_text())
    assert {"CountRecallEasy", "A-v0"} <= {*texts_of(tmp_path / "generalisation.svg")}
    assert drawn[0] == drawn[1]
    assert "<dc:date>" not in drawn[0]


def fake_scripts(monkeypatch, tmp_path, codes):
    """Experiments of commands that end with these exit codes, and the commands that were run."""
    made = [planned.Experiment(name, "p", 1, f"{name}.py", (f"{name}_test.py",)) for name in codes]
    monkeypatch.setattr(planned, "experiments", lambda: made)
    monkeypatch.setattr(evidence_rows, "ROWS", tmp_path / "rows")
    ran = []

    def start(words, cwd, pass_fds):
        script = words[1].rpartition("/")[2]
        ran.append(script)
        code = codes[script.removesuffix(".py").removesuffix("_test")]
        return subprocess.Popen(["sh", "-c", f"exit {code}"], cwd=cwd, pass_fds=pass_fds)

    class Scripts:
        Popen = staticmethod(start)
        TimeoutExpired = subprocess.TimeoutExpired

    monkeypatch.setattr(evidence_run, "subprocess", Scripts)
    collected = []
    monkeypatch.setattr(evidence_run, "collect", lambda each, *_: collected.append(each.name))
    arguments = Namespace(
        folder=str(tmp_path), rows=None, small=False, workers=1, parts=None, names=None
    )
    return arguments, ran, collected


def test_a_failure_stops_its_own_experiment_only(monkeypatch, tmp_path, capsys):
    codes = {"bad": 2, "some": 1, "good": 0}
    arguments, ran, collected = fake_scripts(monkeypatch, tmp_path, codes)
    assert evidence_run.run(arguments) == 1
    assert ran == ["bad.py", "some.py", "some_test.py", "good.py", "good_test.py"]
    assert collected == ["some", "good"]
    assert "2 failed\nbad: bad.py ended with exit code 2" in capsys.readouterr().out
    arguments, ran, _ = fake_scripts(monkeypatch, tmp_path, {"stopped": 130, "next": 0})
    with pytest.raises(SystemExit) as e:
        evidence_run.run(arguments)
    assert e.value.code == 130
    assert "stopped: interrupted" in capsys.readouterr().err
    assert ran == ["stopped.py"]


def test_a_command_that_dies_stops_its_own_experiment_only(monkeypatch, tmp_path, capsys):
    """As of a fault of memory; whoever ends it with SIGTERM ends the run."""
    codes = {"dead": "$(kill -SEGV $$)", "good": 0}
    arguments, ran, collected = fake_scripts(monkeypatch, tmp_path, codes)
    assert evidence_run.run(arguments) == 1
    assert (ran, collected) == (["dead.py", "good.py", "good_test.py"], ["good"])
    assert "dead: dead.py ended by signal 11" in capsys.readouterr().out
    codes["dead"] = "$(kill -TERM $$)"
    arguments, _, _ = fake_scripts(monkeypatch, tmp_path, codes)
    with pytest.raises(SystemExit) as e:
        evidence_run.run(arguments)
    assert e.value.code == 130


def test_a_full_run_that_was_begun_with_other_commands_is_refused(monkeypatch, tmp_path, capsys):
    arguments, ran, _ = fake_scripts(monkeypatch, tmp_path, {"a": 0, "b": 0})
    begun, file = tmp_path / "b/begun.json", tmp_path / "rows/b.json"
    begun.parent.mkdir()
    begun.write_text(json.dumps({"commands": ["b.py", "b_test.py"], "started_at": "earlier"}))
    assert evidence_run.run(arguments) == 0  # another commit is no other command
    ran.clear()
    begun.write_text(json.dumps({"commands": ["b.py --more"], "started_at": "earlier"}))
    with pytest.raises(UserError, match=f"^b was begun with other commands.*remove {begun.parent}"):
        evidence_run.run(arguments)
    assert ran == []
    # Rows of other commands stand.
    file.parent.mkdir()
    file.write_text(begun.read_text())
    capsys.readouterr()
    assert evidence_run.run(arguments) == 0
    assert capsys.readouterr().out.count(f"without {file} and {begun.parent} it is run again") == 1
    assert ran == ["a.py", "a_test.py"]


def test_an_unfinished_experiment_goes_on_elsewhere(monkeypatch, tmp_path, capsys):
    arguments, *_ = fake_scripts(monkeypatch, tmp_path, {"a": 0, "b": 0})
    evidence_rows.ROWS.mkdir()
    place = tmp_path / "here/a"
    place.mkdir(parents=True)
    begun = json.dumps({"commands": ["a.py", "a_test.py"], "started_at": "earlier"})
    (place / "begun.json").write_text(begun)
    database = sqlite3.connect(place / "studies.db")
    with database:
        database.execute("create table trials (number)")
        database.execute("insert into trials values (7)")
    database.execute("insert into trials values (8)")  # another program is at work
    command = ["evidence.py", "keep", "--folder", str(tmp_path / "here")]
    monkeypatch.setattr("sys.argv", command)
    assert evidence.main() == 0  # before its clock was noted
    (place / "seconds").write_text("5.0\n")
    assert evidence.main() == 0
    archive = evidence_rows.ROWS / "unfinished/a.tar.xz"
    kept = archive.read_bytes()
    (place / "begun.json").write_text(begun.replace("a.py", "a.py --more"))
    assert evidence.main() == 0
    arguments.folder = str(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"^a was begun with other commands.*remove {archive} "):
        evidence_run.run(arguments)
    assert not (tmp_path / "elsewhere/a").exists()
    archive.write_bytes(kept)
    assert [f.name for f in evidence_rows.ROWS.rglob("*")] == ["unfinished", "a.tar.xz"]
    assert evidence_run.run(arguments) == 0
    assert not archive.exists()  # it has its rows
    assert "a: goes on with what is kept in" in capsys.readouterr().out
    there = tmp_path / "elsewhere/a"
    assert (there / "begun.json").read_text() == begun
    assert evidence_rows.seconds_in(there / "seconds") >= 5.0
    rows = sqlite3.connect(there / "studies.db").execute("select * from trials").fetchall()
    assert rows == [(7,)]
    # What goes on here is not replaced, and what has rows is not kept.
    (there / "begun.json").write_text(begun.replace("earlier", "here"))
    evidence_run.run(arguments)
    assert "here" in (there / "begun.json").read_text()
    (evidence_rows.ROWS / "a.json").write_text(begun)
    capsys.readouterr()
    assert evidence.main() == 0
    assert capsys.readouterr().out == ""


def test_rows_of_ones_own_take_the_place_of_the_stored_ones(monkeypatch, tmp_path, capsys):
    arguments, ran, _ = fake_scripts(monkeypatch, tmp_path, {"a": 0, "b": 0})
    evidence_rows.ROWS.mkdir()
    stored = json.dumps({"commands": ["a.py", "a_test.py"]})
    (evidence_rows.ROWS / "a.json").write_text(stored)
    assert evidence_run.run(arguments) == 0
    assert ran == ["b.py", "b_test.py"]
    printed = capsys.readouterr().out
    assert printed.startswith(
        "1 of 2 experiments have stored rows and were left out; --rows FOLDER runs them anew\n"
    )
    assert printed.endswith("nothing failed\n")
    (evidence_rows.ROWS / "b.json").write_text(json.dumps({"commands": ["b.py", "b_test.py"]}))
    assert evidence_run.run(arguments) == 0
    assert "2 of 2 experiments have stored rows" in (printed := capsys.readouterr().out)
    assert "nothing failed" not in printed  # nothing was run
    # With a folder of one's own all of them run, and their rows are there.
    own = tmp_path / "own"
    arguments.rows, folders = str(own), []

    def collect(each, storage, folder, place, args):
        folders.append(folder)
        folder.mkdir(exist_ok=True)
        (folder / f"{each.name}.json").write_text(stored)

    monkeypatch.setattr(evidence_run, "collect", collect)
    ran.clear()
    assert evidence_run.run(arguments) == 0
    assert ran == ["a.py", "a_test.py", "b.py", "b_test.py"]
    assert folders == [own, own]
    assert "left out" not in capsys.readouterr().out
    ran.clear()
    assert evidence_run.run(arguments) == 0
    assert ran == []
    said = f"2 of 2 experiments have rows in {own} and were left out\n"
    assert capsys.readouterr().out.endswith(said)
    # A small run has its rows in its own folder, unless it is told another one.
    arguments.small = True
    assert evidence_rows.rows_of(arguments) == own
    arguments.rows = None
    assert evidence_rows.rows_of(arguments) == tmp_path


@pytest.mark.slow
def test_tables_are_of_the_rows_that_are_named(monkeypatch, tmp_path, capsys):
    name = "position_only_cart_pole_medium"
    for end in (".csv", ".json", "_trials.csv"):
        shutil.copy(evidence_rows.ROWS / f"{name}{end}", tmp_path)

    def printed(words):
        monkeypatch.setattr("sys.argv", ["evidence.py", *words.split(), "--rows", str(tmp_path)])
        evidence.main()
        return capsys.readouterr().out

    assert re.findall(r"^(\w+) .* done$", printed("plan"), re.M) == [name]
    table = printed("table --parts memory")
    assert re.findall(r"^### (\w+)$", table, re.M) == [name]
    assert "| PositionOnlyCartPoleMedium | 1.000 [1.00, 1.00] |" in table
    costs = printed("cost")
    parts = Counter(each.part for each in planned.experiments())
    assert f"| memory, 1 of {parts['memory']} experiments | " in costs
    assert f"| inputs, {parts['inputs']} experiments, not run yet: estimates | " in costs
    assert ".jsonl" not in costs  # stored rows of other pages
    frame = pd.DataFrame({"experiment": [name]})
    monkeypatch.setattr(evidence, "memory_capacities", lambda *_: frame)  # they take seconds
    assert printed("capacities").count(f"| {name} |") == 1
    assert printed(f"catalogue {name}").startswith("[[evolved]]\n")


def test_what_all_experiments_share_has_one_row():
    rows = [("a", "RES", "3"), ("a", "RANDOM", "1"), ("b", "RES", "2"), ("b", "RANDOM", "1")]
    frame = pd.DataFrame(rows, columns=["experiment", "arm", "capacity"])
    assert evidence.named_once(frame).to_numpy().tolist() == [
        ["a", "RES", "3"],
        ["all 2", "RANDOM", "1"],
        ["b", "RES", "2"],
    ]
    alone = frame[frame.experiment == "a"]
    assert evidence.named_once(alone) is alone


@pytest.mark.parametrize("evolve", ["popgym_task.py", ""], ids=["evolution", "control"])
def test_a_missing_package_is_said_before_anything_runs(monkeypatch, tmp_path, capsys, evolve):
    arguments, ran, _ = fake_scripts(monkeypatch, tmp_path, {"a": 0, "popgym_task": 0})
    other, task = planned.experiments()
    made = [other, dataclasses.replace(task, evolve=evolve)]
    monkeypatch.setattr(planned, "experiments", lambda: made)
    monkeypatch.setattr(evidence_run, "find_spec", lambda name: None)
    assert evidence_run.run(arguments) == 2
    assert ran == []
    said = 'the memory tasks need another package: pip install -e ".[popgym]"\n'
    assert capsys.readouterr().err == said


def test_what_cannot_be_collected_or_printed_is_one_line(monkeypatch, tmp_path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    # As where every worker died before its lifetime had ended.
    Study(storage, "e", EvolutionStudy(env_id="CartPole-v1"))
    each = planned.Experiment("cart", "p", 1, "evolve_res.py", ("test.py",))
    with pytest.raises(UserError, match=r"^no lifetime of e has ended$"):
        evidence_rows.collect(each, storage, tmp_path / "rows", tmp_path, Namespace(workers=1))
    assert not (tmp_path / "rows").exists()
    (tmp_path / "cart.json").write_text(json.dumps({"evolutions": {"e": {"winner": None}}}))
    (tmp_path / "cart.csv").write_text("study\n")
    monkeypatch.setattr("sys.argv", ["evidence.py", "catalogue", "cart", "--rows", str(tmp_path)])
    with pytest.raises(UserError, match=r"^cart: no trial of e has succeeded$"):
        evidence.main()
    monkeypatch.setattr("sys.argv", ["evidence.py", "plan", "--names", "nothing"])
    with pytest.raises(UserError, match=r"^no experiment is called nothing$"):
        evidence.main()


def test_two_processes_do_not_run_the_same_experiment(monkeypatch, tmp_path, capsys):
    arguments, ran, _ = fake_scripts(monkeypatch, tmp_path, {"a": 0, "b": 0})
    (tmp_path / "a").mkdir()
    with evidence_run.claimed(tmp_path / "a") as lock:
        assert lock is not None
        assert evidence_run.run(arguments) == 0
    assert ran == ["b.py", "b_test.py"]
    assert "a: another process runs it" in capsys.readouterr().out
    assert evidence_run.run(arguments) == 0  # the lock is free
    assert ran[2:4] == ["a.py", "a_test.py"]


def test_wall_time_adds_up_over_interruptions(tmp_path):
    file = tmp_path / "seconds"
    file.write_text("100.0\n")
    assert evidence_run.timed(subprocess.Popen(["sleep", "0.2"]), file) == 0
    assert 100.2 <= evidence_rows.seconds_in(file) < 130


def test_a_small_run_of_other_commands_or_another_commit_begins_anew(monkeypatch, tmp_path):
    def commits_are(name):
        for module in (evidence_rows, evidence_run):
            monkeypatch.setattr(module, "commit", lambda: name)

    each = planned.experiments()[0]
    commits_are("a")
    evidence_run.begin(each, tmp_path, True)
    (tmp_path / "studies.db").touch()
    (tmp_path / "models").mkdir()
    evidence_run.begin(each, tmp_path, True)
    assert (tmp_path / "studies.db").exists()
    story = json.loads((tmp_path / "begun.json").read_text())
    (tmp_path / f"{each.name}.json").write_text(json.dumps(story))
    assert evidence_rows.has_rows(each, tmp_path, True)
    commits_are("b")
    assert not evidence_rows.has_rows(each, tmp_path, True)
    evidence_run.begin(each, tmp_path, False)
    assert (tmp_path / "studies.db").exists()  # at full size nothing is deleted
    evidence_run.begin(each, tmp_path, True)
    assert [p.name for p in tmp_path.iterdir() if p.name != f"{each.name}.json"] == ["begun.json"]


SETTINGS = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}


@pytest.mark.slow
def test_the_rows_of_an_experiment(monkeypatch, tmp_path, inline, sink, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(json.dumps(SETTINGS))
    storage = f"sqlite:///{tmp_path}/studies.db"
    words = {"storage": storage, "training_steps": 64, "workers": 1}
    evolution = EvolutionConfig(
        env_id="CartPole-v1",
        h_test="e",
        nb_trials=3,
        nb_seeds=1,
        finalists=2,
        finalist_seeds=1,
        units=5,
        learner_config="small.yaml",
        **words,
    )
    assert evolve(evolution, sink) == 0
    test = ComparisonConfig(
        env_id="CartPole-v1",
        h_test="e",
        HP_training_steps=64,
        nb_seeds=2,
        arms="PPO,RES_PPO_0.0003",
        **words,
    )
    assert compare(test, sink) == 0
    each = planned.Experiment("cart", "p", 1, "evolve_res.py --env_id CartPole-v1", ("test.py",))
    evidence_run.begin(each, tmp_path, False)
    evidence_rows.collect(each, storage, tmp_path / "rows", tmp_path, Namespace(workers=1))
    rows, trials, finals = evidence_rows.read_tables(each, tmp_path / "rows")
    assert (len(rows), len(trials), len(finals)) == (4, 3, 2)
    (study,) = (s for s in study_names(open_storage(storage)) if s.endswith("e_0.064k_steps"))
    of_trials = Study(storage, study)
    record = lifetime_records(of_trials.trials()[0])[0]
    assert {*rows.commit, *trials.commit, *finals.commit} == {record.commit}
    story = json.loads((tmp_path / "rows/cart.json").read_text())
    assert story["versions"] == [record.versions]
    assert story["failed"] == {"trials": 0, "finals": 0, "tests": 0}
    winner = chosen(of_trials).winner
    (evolved,) = story["evolutions"].values()
    assert evolved["winner"]["params"] == winner.params  # all digits
    assert tuple(evolved["winner"]["again"]) == winner.again

    text = tables.catalogue_entries("cart", story, rows)
    (tmp_path / "evolved.toml").write_text(text)
    (entry,) = read_catalogue(tmp_path / "evolved.toml")
    assert entry.winner.params == winner.params
    assert (entry.winner.again, entry.winner.expected) == (winner.again, winner.expected)
    assert (entry.evolution.env_id, entry.evolution.learner_config) == ("CartPole-v1", SETTINGS)
    assert [t.arm for t in entry.tested] == ["PPO", "RES_PPO_0.0003"]
    assert entry.commit == record.commit
    assert "trained again" in entry.winner.reached

    made = tables.memory_capacities("cart", story, rows, ["RES_PPO_0.0003", "NOREC_RES_PPO_0.0003"])
    tested = Study(storage, next(s for s in study_names(open_storage(storage)) if "_test_" in s))
    specs = [
        r.spec for t in tested.trials() for r in lifetime_records(t).values() if r.spec.context
    ]
    capacities = [
        memory_profile(s.context.reservoirs[0], s.seeds.reservoir, tables.LAGS).sum() for s in specs
    ]
    (row,) = made.to_dict("records")  # the other arm has no rows
    assert (row["arm"], row["reservoirs"]) == ("RES_PPO_0.0003", 2)
    shown = row["memory capacity, median [quartiles]"]
    assert shown.startswith(f"{sum(capacities) / 2:.2f} [")
    assert row["sr"] == f"{winner.params['sr']:.3g}"

    monkeypatch.setattr(evidence_rows, "ROWS", tmp_path / "rows")
    assert evidence_cost.taken(each, evidence_rows.ROWS).steps == {
        "PPO": sum(f.steps.sum() for f in (rows, trials, finals))
    }
    capsys.readouterr()
    evidence.print_experiment(each, "", tmp_path / "rows")
    printed = capsys.readouterr().out
    assert all(said in printed for said in (record.commit, "Processor: ", "Versions: ", "failed: "))
    assert "p (Holm)" not in printed


def test_the_table_of_costs_has_every_part_once_run_or_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evidence_rows, "ROWS", tmp_path)
    name = "swimmer_plain_10"
    rows = "arm,steps,seconds\nRES_PPO_0.0003,1000000,1800\nSTACK_PPO,500000,1800\n"
    (tmp_path / f"{name}.csv").write_text(rows)
    (tmp_path / f"{name}_trials.csv").write_text("study,steps,seconds\ns,500000,1800\n")
    (tmp_path / f"{name}_finals.csv").write_text("study,steps,seconds\ns_finals,1000000,1800\n")
    story = {"wall_seconds": 3600, "workers": 2, "evolutions": {"s": {"config": {}}}}
    story["evolutions"]["s"]["config"]["learner"] = "PPO"
    (tmp_path / f"{name}.json").write_text(json.dumps(story))
    evidence_cost.cost(Namespace(parts="inputs", names=None, rows=None))
    ended, left = capsys.readouterr().out.splitlines()[2:]
    assert ended == "| inputs, 1 of 16 experiments | 3.0 | 2.0 | 1.0 | 0.7 |"
    # One worker cannot have taken two hours in one.
    (tmp_path / f"{name}.json").write_text(json.dumps(story | {"workers": 1}))
    evidence_cost.cost(Namespace(parts="inputs", names=None, rows=None))
    assert "| 3.0 | 2.0 | 2.0 | 0.7 |" in capsys.readouterr().out
    assert left.startswith("| inputs, 15 experiments, not run yet: estimates | 270.0 | 6.2 | - |")
    evidence_cost.cost(Namespace(parts=None, names=None, rows=None))
    printed = capsys.readouterr().out
    assert all(f"| {part}, " in printed for part in {e.part for e in planned.experiments()})
    assert "pruning.jsonl, 10 runs" in printed


def test_steps_are_those_of_the_learner_that_made_them(tmp_path, monkeypatch):
    (each,) = [e for e in planned.experiments() if e.name == "pendulum_erl_re2"]
    studies = {"P_re2_100k_steps": "ERL-Re2", "P_ppo_100k_steps": "PPO"}
    tests = {"RES_ERL-Re2": 1, "ERL-Re2": 2, "RANDOM_RES_PPO_0.0003": 4, "RecurrentPPO": 8}
    columns = {"seconds": 0.0}
    tested = pd.DataFrame({"arm": [*tests], "steps": [*tests.values()], **columns})
    trials = pd.DataFrame({"study": [*studies], "steps": [16, 32], **columns})
    finals = pd.DataFrame({"study": ["P_ppo_100k_steps_finals"], "steps": [64], **columns})
    for end, frame in (("", tested), ("_trials", trials), ("_finals", finals)):
        frame.to_csv(tmp_path / f"{each.name}{end}.csv", index=False)
    evolutions = {name: {"config": {"learner": learner}} for name, learner in studies.items()}
    story = {"wall_seconds": 1, "workers": 1, "evolutions": evolutions}
    (tmp_path / f"{each.name}.json").write_text(json.dumps(story))
    monkeypatch.setattr(evidence_rows, "ROWS", tmp_path)
    made = evidence_cost.taken(each, evidence_rows.ROWS)
    assert made.steps == {"ERL-Re2": 1 + 2 + 16, "PPO": 4 + 32 + 64, "RecurrentPPO": 8}
    assert made.published == pytest.approx(19 / 18 + 108 / 1220)
    assert evidence_cost.Cost({"PPO": 1.0, "SAC": 1.0}, None, None).published is None


def test_the_page_of_results_names_every_part_and_has_its_tables(capsys, tmp_path):
    page = (ROOT / "docs/results.md").read_text()
    named = set(re.findall("`([a-z][a-z ]*)`", page))
    assert {e.part for e in planned.experiments()} == named - {
        "make evidence",
        "inner learners",
    }
    evidence_cost.cost(Namespace(parts=None, names=None, rows=None))
    assert capsys.readouterr().out in page
    rows = {
        e.name: pd.read_csv(evidence_rows.ROWS / f"{e.name}.csv")
        for e in planned.experiments()
        if (evidence_rows.ROWS / f"{e.name}.csv").exists()
    }
    evidence.print_published(rows, tmp_path, "")
    printed = capsys.readouterr().out.splitlines()
    assert "\n".join(line for line in printed if line.startswith("|")) in page
    evidence.print_matrix(rows, tmp_path, "")
    for name in ("memory", "generalisation"):
        stored, drawn = (
            texts_of(folder / f"{name}.svg") for folder in (evidence_rows.ROWS, tmp_path)
        )
        assert stored == drawn, f"benchmarks/evidence.py table draws another {name}.svg"


def texts_of(picture):
    """All texts that Matplotlib drew, which it notes beside their outlines."""
    return re.findall("<!-- (.+?) -->", picture.read_text())


def test_git_does_not_ignore_the_rows_of_the_evidence(tmp_path):
    """Asked in a repository of its own: this one may belong to another user."""
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    row = evidence_rows.ROWS.relative_to(ROOT) / "swimmer_0.csv"
    answers = [
        subprocess.run(["git", "check-ignore", "-q", path], cwd=tmp_path).returncode
        for path in (row, "evidence/studies.csv")
    ]
    assert answers == [1, 0]
