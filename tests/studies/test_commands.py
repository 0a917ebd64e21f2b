import csv
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import OperationalError

from erl.cli import score_text
from erl.commands import studies as main
from erl.errors import UserError
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.single import SingleConfig, run
from erl.studies import leases
from erl.studies.artefacts import folder_of, listed
from erl.studies.commands import export_study, with_json
from erl.studies.copying import copy_study
from erl.studies.dashboard import rename
from erl.studies.data import read_study
from erl.studies.flags import CopyConfig, ExportConfig
from erl.studies.records import records
from erl.studies.retries import RetryingStorage
from erl.studies.storage import open_storage, study_names
from erl.studies.study import COPY, Study

KINDS = ["sqlite", "journal", "postgresql"]
ENV = "toy_environments:Recall-v0"
NAME = f"{ENV}_main_0.064k_steps"


def call(capsys, *words):
    """Exit code, lines of stdout, stderr."""
    with pytest.raises(SystemExit) as e:
        main(words)
    said = capsys.readouterr()
    return e.value.code, said.out.splitlines(), said.err


@pytest.fixture
def evolved(request, storage, quick, inline, sink):
    """A storage with an evolution of three trials; the last of them failed."""
    settings = {
        "training_steps": 64,
        "nb_trials": 2,
        "nb_seeds": 2,
        "units": 5,
        "popsize": 3,
        "sampler": "Random",
    }
    evolve(
        EvolutionConfig(
            env_id=ENV, **settings, learner_config=quick, engine="sb3", workers=1, storage=storage
        ),
        sink,
    )
    study = Study(storage, NAME)
    failed = study.storage.create_new_trial(study._id)
    study.storage.set_trial_system_attr(
        failed, "error", {"reason": "the simulator exploded", "traceback": None}
    )
    study.storage.set_trial_user_attr(failed, "lost", 1)
    study.storage.set_trial_state_values(failed, TrialState.FAIL)
    return storage


def rich_study(storage, name="rich"):
    """One of another program's, with everything that a study can hold."""
    study = optuna.create_study(study_name=name, storage=storage, direction="minimize")
    space = {
        "x": FloatDistribution(1e-4, 1e2, log=True),
        "n": IntDistribution(2, 10, step=2),
        "c": CategoricalDistribution(("a", None, 1.5)),
    }

    def add(**more):
        params = {"x": 0.1 + 0.2, "n": 4, "c": None}
        study.add_trial(create_trial(**{"params": params, "distributions": space, **more}))

    add(
        value=1 / 3,
        user_attrs={"words": "Ünïcode", "deep": {"a": [1, {"b": None}]}},
        system_attrs={"cmaes:restart": 3},
    )
    add(value=math.inf)
    add(state=TrialState.PRUNED, value=2.5, intermediate_values={0: 1.0, 7: math.nan, 3: -math.inf})
    add(state=TrialState.FAIL)
    add(state=TrialState.RUNNING, params={}, distributions={})
    study.enqueue_trial({"x": 1.0, "n": 2, "c": "a"})
    study.set_user_attr("config", {"text": "words", "list": [1, 2.5, None]})
    study.set_user_attr("lease:x", 17)  # of version 0.2.0
    study._storage.set_study_system_attr(study._study_id, "lease:0", {"renewals": 3})
    study._storage.set_study_system_attr(study._study_id, "of the system", [1])
    return study


def content(storage, name):
    """All but leases, which are of the coordinators of one study, and of no copy of it."""
    opened = open_storage(storage)
    study = optuna.load_study(study_name=name, storage=opened)
    system = opened.get_study_system_attrs(study._study_id)
    system = {k: v for k, v in system.items() if k != COPY and not k.startswith("lease:")}
    user = {k: v for k, v in study.user_attrs.items() if not k.startswith("lease:")}
    trials = []
    for t in study.get_trials():
        has = (
            t.number,
            t.state,
            t.values and list(t.values),
            t.params,
            t.distributions,
            t.user_attrs,
            t.system_attrs,
        )
        trials.append(
            [
                *has,
                repr(sorted(t.intermediate_values.items())),
                t.datetime_start,
                t.datetime_complete,
            ]
        )
    return study.directions, user, system, trials


# -- list and show --


@pytest.mark.slow
@pytest.mark.parametrize("storage", KINDS, indirect=True)
def test_list_and_show(evolved, capsys):
    rich_study(open_storage(evolved))
    code, lines, err = call(capsys, "list", "--storage", evolved)
    assert (code, err) == (0, "")
    best = Study(evolved, NAME).best()
    assert re.fullmatch(r"study +kind +trials +result +last change", lines[0])
    [line] = [s for s in lines if s.startswith(NAME)]
    assert re.search(
        rf"evolution +2 complete, 1 fail +best fitness {re.escape(score_text(best.value))} +"
        rf"20\d\d-\d\d-\d\d \d\d:\d\d$",
        line,
    )
    [line] = [s for s in lines if s.startswith("rich")]
    assert re.search(
        r"2 complete, 1 pruned, 1 fail, 1 running, 1 waiting +best fitness 0\.3333 ", line
    )

    code, lines, err = call(capsys, "show", "--storage", evolved, "--study", NAME)
    assert (code, err) == (0, "")
    text = "\n".join(lines)
    assert f"  env_id: {json.dumps(ENV)}" in lines
    assert '  sampler: "Random"' in lines
    assert re.search(
        rf"best trials:\n +{best.number}  fitness +{re.escape(score_text(best.value))}  sr "
        rf"{best.params['sr']:.6g}",
        text,
    )
    assert re.search(r"failed trials:\n +2  the simulator exploded", text)
    assert "continued: trial 2 (1 time)" in text
    assert "s3cret" not in text


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_single_study_needs_no_name_and_an_empty_storage_says_so(evolved, capsys):
    assert call(capsys, "show", "--storage", evolved)[1][0].startswith(NAME)
    open_storage("sqlite:///new.db", create=True)
    assert call(capsys, "list", "--storage", "sqlite:///new.db") == (
        0,
        ["sqlite:///new.db has no study yet"],
        "",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "a command is missing"),
        ("lst", "unknown command 'lst'; did you mean list?"),
        ("list --storge x", "unknown flag --storge; did you mean --storage?"),
        ("list --storage sqlite:///missing.db", f"there is no study database {Path.cwd().anchor}"),
        (
            "show --storage sqlite:///two.db",
            "--study is missing; sqlite:///two.db has one, two",
        ),
        (
            "show --storage sqlite:///two.db --study tow",
            "no study 'tow' in sqlite:///two.db; did you mean two?",
        ),
        ("show --storage sqlite:///two.db --study two --best -1", "--best must be at least 0"),
        ("export --storage sqlite:///two.db --study two", "--file is missing"),
        (
            "export --storage sqlite:///two.db --study two --file x.csv --rows trial",
            "did you mean trials?",
        ),
        (
            "export --storage sqlite:///two.db --study two --file x.csv",
            "stores no lifetimes; --rows trials",
        ),
        (
            "export --storage sqlite:///two.db --study two --file no/x.csv --rows trials",
            "its folder does not exist",
        ),
        (
            "export --storage sqlite:///two.db --study two --file there.csv --rows trials",
            "there.csv exists; --overwrite",
        ),
        (
            "export --storage sqlite:///two.db --study two --file d.csv --rows trials --overwrite",
            "is not a file",
        ),
        ("copy --storage sqlite:///two.db --study two", "--to is missing"),
        (
            "copy --storage sqlite:///two.db --study two --to sqlite:///two.db",
            "onto itself; --to_name",
        ),
        (
            "copy --storage sqlite:///two.db --study two --to sqlite:///two.db --to_name one",
            "has a study 'one'; --overw",
        ),
        (
            "copy --storage sqlite:///two.db --study two --to nowhere/x.log",
            "cannot write the journal file nowhere",
        ),
        (
            "copy --storage sqlite:///two.db --study two --to postgresql://u:s3cret@127.0.0.1:1/d",
            "u:***@127.0.0.1:1/d",
        ),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(words, message, capsys):
    for name in ("one", "two"):
        optuna.create_study(study_name=name, storage="sqlite:///two.db")
    Path("there.csv").write_text("kept\n")
    Path("d.csv").mkdir()
    before = {p: p.read_bytes() for p in Path().iterdir() if p.is_file()}
    code, lines, err = call(capsys, *words.split())
    assert (code, lines) == (2, [])
    assert err.startswith("python -m erl.studies")
    assert message in err
    assert err.count("\n") == 1
    assert "s3cret" not in err
    assert {p: p.read_bytes() for p in Path().iterdir() if p.is_file()} == before


@pytest.mark.slow
def test_as_a_user_starts_it():
    for words, code in ((["--help"], 0), (["copy", "--help"], 0), (["list"], 2)):
        command = [sys.executable, "-m", "erl.studies", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == code, done
        assert bool(done.stderr) == (code == 2)
    assert f"there is no study database {Path('studies.db').absolute()}: run" in done.stderr


def test_a_failed_trial_is_shown_with_its_traceback(quick, inline, sink, capsys):
    faulty = "toy_environments:Faulty-raise-v0"
    settings = {"nb_trials": 1, "nb_seeds": 2, "units": 5, "training_steps": 64, "workers": 1}
    flags = EvolutionConfig(env_id=faulty, learner_config=quick, engine="sb3", **settings)
    assert evolve(flags, sink) == 1
    assert any(line.startswith("no trial succeeded: lifetime 0: ") for line in sink.lines)
    name = f"{faulty}_main_0.064k_steps"
    shown = f"studies show --study {name} --trial 0"
    assert sink.lines[-1].startswith("its traceback: ")
    assert sink.lines[-1].endswith(f" {shown}")
    code, lines, err = call(capsys, *shown.split()[1:])
    assert (code, err) == (0, "")
    assert lines[0] == f"trial 0 of {name} in sqlite:///studies.db: evolution"
    assert "state: fail, generation 0" in lines
    assert "fitness: -" in lines
    (trial,) = Study("sqlite:///studies.db", name).trials()
    assert f"  sr: {trial.params['sr']:.6g}" in lines
    failures = [i for i, line in enumerate(lines) if line.startswith("failed: lifetime ")]
    assert [lines[i][:18] for i in failures] == ["failed: lifetime 0", "failed: lifetime 1"]
    assert all(lines[i + 1] == "  Traceback (most recent call last):" for i in failures)
    assert "toy_environments.py" in "\n".join(lines)
    assert "  --trial 0 shows its traceback" in call(capsys, "show")[1]


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_every_state_of_a_trial_is_shown(evolved, capsys):
    def show(number, name=NAME):
        code, lines, err = call(
            capsys, *f"show --storage {evolved} --study {name} --trial {number}".split()
        )
        return lines if code == 0 else err

    trial = Study(evolved, NAME).trials()[0]
    lines = show(0)
    assert f"fitness: {score_text(trial.value)}" in lines
    assert sum("training return" in line for line in lines) == 2
    assert not any(line.startswith("failed") for line in lines)
    assert show(2)[-2:] == ["failed: the simulator exploded", "  no traceback is stored"]
    assert "lost with its process, and continued: 1" in show(2)
    said = "no trial 3: it has 0 to 2\n"
    assert show(3).endswith(said)
    assert show(-1).endswith(said.replace("3", "-1"))
    rich_study(open_storage(evolved))
    states = [line for n in range(6) for line in show(n, "rich") if line.startswith("state: ")]
    assert [s.split()[-1] for s in states] == [
        *("complete", "complete", "pruned", "fail", "running", "waiting")
    ]
    assert "pruned, with 2.5" in show(2, "rich")
    assert show(3, "rich")[-1] == "failed: no reason is stored"
    optuna.create_study(study_name="none", storage=evolved)
    assert show(0, "none").endswith("no trial 0: it has none yet\n")


# -- export --


@pytest.mark.parametrize("storage", KINDS, indirect=True)
def test_export(evolved, capsys):
    assert call(capsys, "export", "--storage", evolved, "--file", "l.csv")[:2] == (
        0,
        [f"l.csv: 4 lifetimes of {NAME}"],
    )
    with open("l.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    frame = records(evolved, NAME)
    assert list(rows[0]) == list(frame.columns)
    assert [float(r["fitness"]) for r in rows] == list(frame.fitness)
    assert [[tuple(p) for p in json.loads(r["curve"])] for r in rows] == [
        list(c) for c in frame.curve
    ]
    assert [tuple(json.loads(r["reports"])) for r in rows] == list(frame.reports)
    code, _, errors = call(
        capsys, "export", "--storage", evolved, "--file", "g.csv", "--rows", "generations"
    )
    assert (code, errors.count("\n")) == (2, 1)
    assert "has no inner generations" in errors
    assert not Path("g.csv").exists()
    assert (
        call(capsys, "export", "--storage", evolved, "--file", "t.csv", "--rows", "trials")[0] == 0
    )
    with open("t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["state"] for r in rows] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert [r["error"] for r in rows] == ["", "", "the simulator exploded"]
    assert [float(r["sr"]) for r in rows[:2]] == [
        t.params["sr"] for t in Study(evolved, NAME).trials()[:2]
    ]


def test_lists_and_dictionaries_of_tables_are_json_in_files(tmp_path):
    rows = {"trial": [0, 1], "kind": [["RL", "ES"], ["ES", "ES"]], "fitness": [[1.5, None], None]}
    table = pd.DataFrame({**rows, "inner": [None, {"totals": {"rl": 1}}], "note": [None, "short"]})
    with_json(table).to_csv(tmp_path / "t.csv", index=False)
    with (tmp_path / "t.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert json.loads(first["kind"]) == ["RL", "ES"]
    assert (json.loads(first["fitness"]), second["fitness"]) == ([1.5, None], "")
    assert (first["inner"], json.loads(second["inner"])) == ("", {"totals": {"rl": 1}})
    assert (first["note"], second["note"], second["trial"]) == ("", "short", "1")
    assert table.kind[0] == ["RL", "ES"]  # it is a copy


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_an_export_that_fails_leaves_the_file_that_was_there(evolved, sink, monkeypatch):
    Path("l.csv").write_text("before")
    before = sorted(Path().iterdir())

    def full(self, path, **_):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    with pytest.raises(UserError, match=r"l\.csv cannot be written: No space left on device"):
        export_study(ExportConfig(storage=evolved, file="l.csv", overwrite=True), sink)
    assert Path("l.csv").read_text() == "before"
    assert sorted(Path().iterdir()) == before


# -- copy --


@pytest.mark.slow
@pytest.mark.parametrize("source", ["sqlite:///source.db", "source.log"])
@pytest.mark.parametrize("storage", [*KINDS, "mysql", "grpc"], indirect=True)
def test_a_copy_has_everything(source, storage, capsys):
    rich_study(open_storage(source, create=True))
    optuna.create_study(
        study_name="other", storage=open_storage(storage, create=True)
    ).enqueue_trial({})
    assert call(capsys, "copy", "--storage", source, "--to", storage)[0] == 0
    copy = optuna.load_study(study_name="rich", storage=open_storage(storage))
    attrs = copy._storage.get_study_system_attrs(copy._study_id)
    assert not [k for k in (*copy.user_attrs, *attrs) if k.startswith("lease:")]
    there, here = content(storage, "rich"), content(source, "rich")
    if storage.startswith("mysql"):  # keeps seconds
        assert [t[:-2] for t in there[3]] == [t[:-2] for t in here[3]]
        assert there[:3] == here[:3]
    else:
        assert there == here
    code, _, err = call(capsys, "copy", "--storage", source, "--to", storage)
    assert (code, "has a study 'rich'; --overwrite replaces it" in err) == (2, True)
    assert call(capsys, "copy", "--storage", source, "--to", storage, "--overwrite")[0] == 0
    assert [len(t) for t in content(storage, "rich")[3]] == [10] * 6
    assert call(capsys, "copy", "--storage", source, "--to", source, "--to_name", "twin")[0] == 0
    assert content(source, "twin") == here


def attached(address, name):
    """The contents of a study's files, by their names."""
    storage = open_storage(address)
    [study] = [s for s in storage.get_all_studies() if s.study_name == name]
    return {a.name: (folder_of(address) / a.id).read_text() for a in listed(study.system_attrs)}


def test_every_copy_has_the_files_of_now_for_itself_and_leaves_none(capsys, monkeypatch):
    source, target = "sqlite:///a.db", "sqlite:///b.db"
    rich_study(open_storage(source, create=True))

    def attach(address, name, text):
        Path("figure.txt").unlink(missing_ok=True)
        Path("figure.txt").write_text(text)
        Study(address, name).attach("figure.txt")

    def copied(name, *words):
        return call(capsys, "copy", "--storage", source, "--to", target, "--to_name", name, *words)

    attach(source, "rich", "1")
    assert copied("x")[0] == copied("y")[0] == 0
    attach(target, "x", "of x")
    assert attached(target, "y") == {"figure.txt": "1"}
    attach(source, "rich", "2")
    assert copied("y", "--overwrite")[0] == 0
    assert attached(target, "y") == {"figure.txt": "2"}
    assert attached(target, "x") == {"figure.txt": "of x"}
    assert len(list(folder_of(target).iterdir())) == 2
    monkeypatch.setattr("erl.studies.copying._compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copied("y", "--overwrite")
    assert len(list(folder_of(target).iterdir())) == 2
    assert attached(target, "x") == {"figure.txt": "of x"}
    assert attached(target, "y") == {"figure.txt": "2"}


def test_files_of_a_study_that_is_replaced_do_not_outlive_it(capsys, monkeypatch):
    rich_study(open_storage("sqlite:///a.db", create=True))
    words = ("copy", "--storage", "sqlite:///a.db", "--to", "sqlite:///b.db", "--to_name", "twin")
    assert call(capsys, *words)[0] == 0
    Path("figure.txt").write_text("of the twin")
    Study("sqlite:///b.db", "twin").attach("figure.txt")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RetryingStorage, "delete_study", interrupted)
        assert call(capsys, *words, "--overwrite")[0] == 130
    assert "twin" in study_names(open_storage("sqlite:///b.db"))
    assert call(capsys, *words, "--overwrite")[0] == 0
    assert list(folder_of("sqlite:///b.db").iterdir()) == []
    trials = optuna.load_study(study_name="twin", storage="sqlite:///b.db").trials
    assert len(trials) == len(optuna.load_study(study_name="rich", storage="sqlite:///a.db").trials)


@pytest.mark.parametrize("works_on", ["twin", "twin_finals"])
def test_a_study_on_which_a_command_works_is_not_overwritten(works_on, capsys):
    storage = open_storage("sqlite:///studies.db", create=True)
    for name in ("rich", "rich_finals", "twin", "twin_finals"):
        optuna.create_study(study_name=name, storage=storage, direction="maximize")
    ids = [s._study_id for s in storage.get_all_studies()]
    words = ("--study", "rich", "--to", "sqlite:///studies.db", "--to_name", "twin", "--overwrite")
    with Study("sqlite:///studies.db", works_on):
        code, _, err = call(capsys, "copy", *words)
        assert (code, f"a command works on study '{works_on}', process " in err) == (2, True)
        assert [s._study_id for s in storage.get_all_studies()] == ids
    assert call(capsys, "copy", *words)[0] == 0


def test_running_trials_of_a_copy_are_of_nobody(capsys):
    """The coordinator that runs the original's will not end them."""
    study = rich_study(open_storage("sqlite:///a.db", create=True))
    owner = {"id": "x", **leases.myself()}
    study.add_trial(create_trial(state=TrialState.RUNNING, system_attrs={"owner": owner, "k": 1}))
    words = ("--storage", "sqlite:///a.db", "--study", "rich", "--to", "sqlite:///b.db")
    assert call(capsys, "copy", *words)[0] == 0
    running = [
        optuna.load_study(study_name="rich", storage=f"sqlite:///{name}.db").trials[-1]
        for name in ("a", "b")
    ]
    assert [t.state for t in running] == [TrialState.RUNNING] * 2
    assert [t.system_attrs for t in running] == [{"owner": owner, "k": 1}, {"k": 1}]


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_study_is_not_copied_onto_itself_whatever_the_address(kind, capsys):
    names = {"sqlite": "s.db", "journal": "s.log"}
    there = {"sqlite": f"sqlite:///{Path('s.db').absolute()}", "journal": "journal:s.log"}[kind]
    here = {"sqlite": "sqlite:///s.db", "journal": "s.log"}[kind]
    rich_study(open_storage(here, create=True))
    before = content(here, "rich")
    for more in ([], ["--overwrite"]):
        code, _, err = call(capsys, "copy", "--storage", here, "--to", there, *more)
        assert (code, "cannot be copied onto itself" in err) == (2, True)
    assert content(here, "rich") == before
    assert [s.study_name for s in open_storage(here).get_all_studies()] == ["rich"]
    assert Path(names[kind]).exists()


@pytest.mark.slow
def test_an_incomplete_copy_of_a_test_hinders_no_list(quick, inline, sink, capsys):
    single = SingleConfig(env_id=ENV, steps=64, seeds="0", learner="PPO", learner_config=quick)
    assert run(replace(single, workers=1), sink) == 0
    storage = open_storage("sqlite:///studies.db")
    [study] = storage.get_all_studies()
    storage.set_study_system_attr(study._study_id, COPY, "incomplete")
    code, lines, error = call(capsys, "list")
    assert (code, error) == (0, "")
    assert "incomplete copy" in lines[1]
    assert call(capsys, "show")[0] == 0


def test_attributes_of_other_programs_are_not_taken_for_ours(capsys):
    storage = open_storage("sqlite:///studies.db", create=True)
    study = optuna.create_study(study_name="foreign", storage=storage, direction="maximize")
    study.add_trial(create_trial(value=1.0))
    odd = [{"kind": "test", "evolution": None}, {"kind": "finals", "evolution": "a text"}]
    odd += [{"kind": "evolution", "env_ids": 3}, {"kind": "single", "context": "a text"}]
    for config in (None, "a text", {"lr": 0.1}, *odd):
        study.set_user_attr("config", config)
        study.set_user_attr("winner", "me")
        assert "foreign" in call(capsys, "list")[1][1]
        assert call(capsys, "show", "--study", "foreign")[0] == 0


def test_a_study_that_is_deleted_meanwhile_hinders_no_list(capsys, monkeypatch):
    storage = open_storage("sqlite:///studies.db", create=True)
    for name in ("stays", "gone"):
        optuna.create_study(study_name=name, storage=storage, direction="maximize")
    read = RetryingStorage.get_all_trials

    def deleted(self, study_id, *arguments, **named):
        if self.get_study_name_from_id(study_id) == "gone":
            self.delete_study(study_id)
        return read(self, study_id, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(RetryingStorage, "get_all_trials", deleted)
        code, lines, err = call(capsys, "list")
        assert (code, [line.split()[0] for line in lines], err) == (0, ["study", "stays"], "")
        optuna.create_study(study_name="gone", storage=storage, direction="maximize")
        code, lines, err = call(capsys, "show", "--study", "gone")
        assert (code, lines) == (2, [])
        assert err.endswith("error: study 'gone' was deleted meanwhile\n")


@pytest.mark.parametrize(
    "attribute",
    [
        ("error", "out of memory"),
        ("pruned", True),
        ("owner", "alice"),
        ("lost", "yes"),
        ("lifetime:total", 3),
        ("generation", "first"),
    ],
    ids=lambda attribute: attribute[0],
)
def test_attributes_of_trials_of_other_programs_are_not_taken_for_ours(attribute, sink, capsys):
    storage = open_storage("sqlite:///studies.db", create=True)
    study = optuna.create_study(study_name="foreign", storage=storage, direction="maximize")
    for state in TrialState:
        value = 1.0 if state in (TrialState.COMPLETE, TrialState.PRUNED) else None
        study.add_trial(create_trial(state=state, value=value, user_attrs=dict([attribute])))
    words = ("--study", "foreign")
    assert call(capsys, "list")[0] == call(capsys, "show", *words)[0] == 0
    for number in range(len(TrialState)):
        assert call(capsys, "show", *words, "--trial", str(number))[0] == 0
    assert call(capsys, "export", *words, "--rows", "trials", "--file", "trials.csv")[0] == 0
    assert len(read_study("foreign").trials) == len(TrialState)


@pytest.mark.slow
@pytest.mark.parametrize("storage", KINDS, indirect=True)
def test_an_evolution_goes_on_in_its_copy(evolved, quick, inline, sink, capsys):
    assert call(capsys, "copy", "--storage", evolved, "--to", "sqlite:///copy.db")[0] == 0
    settings = {
        "training_steps": 64,
        "nb_trials": 6,
        "nb_seeds": 2,
        "units": 5,
        "popsize": 3,
        "sampler": "Random",
    }
    config = {"env_id": ENV, **settings, "learner_config": quick, "engine": "sb3", "workers": 1}
    for storage in (evolved, "sqlite:///copy.db"):
        assert evolve(EvolutionConfig(**config, storage=storage), sink) == 0
    trials = [
        [(t.params, t.value) for t in Study(s, NAME).trials()]
        for s in (evolved, "sqlite:///copy.db")
    ]
    assert trials[0] == trials[1]
    assert len(trials[0]) == 6


@pytest.mark.parametrize("storage", KINDS, indirect=True)
@pytest.mark.parametrize("removable", [True, False])
def test_a_copy_that_was_interrupted_does_not_look_whole(
    storage, removable, sink, capsys, monkeypatch
):
    rich_study(open_storage("source.log", create=True))
    config = CopyConfig(storage="source.log", to=storage)
    with monkeypatch.context() as patch:
        target = open_storage(storage, create=True)
        patch.setattr(
            "erl.studies.copying.open_storage",
            lambda address, create=False: target if create else open_storage(address),
        )
        create, count = target.create_new_trial, []

        def dies(*arguments, **named):
            count.append(1)
            if len(count) == 4:
                raise KeyboardInterrupt
            return create(*arguments, **named)

        patch.setattr(target, "create_new_trial", dies)
        if not removable:  # as if the process had been killed
            patch.setattr(target, "delete_study", lambda _: 1 / 0)
        with pytest.raises(KeyboardInterrupt):
            copy_study(config, sink)
    if removable:
        assert not open_storage(storage).get_all_studies()
    else:
        assert "incomplete copy" in call(capsys, "list", "--storage", storage)[1][1]
        shown = call(capsys, "show", "--study", "rich", "--storage", storage)
        assert (shown[0], shown[1][-1]) == (0, "copy it again, with --overwrite")
        with pytest.raises(
            UserError, match="'rich' is an incomplete copy: copy it again, with --overwrite"
        ):
            Study(storage, "rich")
        with pytest.raises(UserError, match=r"has an incomplete copy 'rich'; --overwrite"):
            copy_study(config, sink)
        assert call(capsys, "copy", "--storage", storage, "--to", "sqlite:///x.db")[0] == 2
    assert call(capsys, "copy", "--storage", "source.log", "--to", storage, "--overwrite")[0] == 0
    assert content(storage, "rich") == content("source.log", "rich")


def test_a_copy_takes_what_several_versions_wrote_into_a_journal(sink):
    """A test had fewer agents once, and a database refuses other values of a parameter."""
    storage = open_storage("source.log", create=True)
    study = optuna.create_study(study_name="one", storage=storage, direction="maximize")
    for known, arm in (("PPO", "RES_PPO"), "PPO"), (("PPO", "STACK_PPO", "RES_PPO"), "RES_PPO"):
        spaces = {"arm": CategoricalDistribution(known), "seed": IntDistribution(0, 9)}
        study.add_trial(
            create_trial(params={"arm": arm, "seed": 3}, distributions=spaces, value=1.0)
        )
    config = CopyConfig(storage="source.log", study="one", to="sqlite:///copy.db")
    assert copy_study(config, sink) == 0
    trials = Study("sqlite:///copy.db", "one").trials()
    assert [t.params for t in trials] == [{"arm": "PPO", "seed": 3}, {"arm": "RES_PPO", "seed": 3}]
    assert {t.distributions["arm"].choices for t in trials} == {("PPO", "RES_PPO", "STACK_PPO")}


def two_studies(target):
    """A study, and one of the same name that its copy is to replace; what each holds."""
    sources = ("sqlite:///source.db", target)
    Path("file.txt").write_text("words")
    for value, address in enumerate(sources):
        storage = open_storage(address, create=True)
        study = optuna.create_study(study_name="one", storage=storage, direction="maximize")
        study.add_trial(create_trial(value=value))
        Study(address, "one").attach("file.txt")
    assert content(sources[0], "one") != content(sources[1], "one")
    return [content(address, "one") for address in sources]


def values(address):
    """The values of the trials of all whole studies of a storage, by their names."""
    storage = open_storage(address)
    return {
        s.study_name: [t.value for t in storage.get_all_trials(s._study_id)]
        for s in storage.get_all_studies()
        if s.system_attrs.get(COPY) != "incomplete"
    }


OVERWRITE = CopyConfig(storage="sqlite:///source.db", study="one", to="again.log", overwrite=True)


@pytest.mark.parametrize("storage", ["sqlite", "journal"], indirect=True)
@pytest.mark.parametrize("fails", ["create_new_study", "copy_files", "_compare"])
def test_a_copy_that_fails_leaves_what_it_was_to_replace(storage, fails, sink, monkeypatch):
    _, before = two_studies(storage)
    files = sorted(folder_of(storage).iterdir())
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        if fails == "create_new_study":
            patch.setattr(RetryingStorage, fails, Mock(side_effect=KeyboardInterrupt))
        else:
            patch.setattr(f"erl.studies.copying.{fails}", Mock(side_effect=full))
        with pytest.raises((UserError, OSError, KeyboardInterrupt)):
            copy_study(replace(OVERWRITE, to=storage), sink)
    assert values(storage) == {"one": [1.0]}
    assert content(storage, "one") == before
    assert sorted(folder_of(storage).iterdir()) == files
    assert copy_study(replace(OVERWRITE, to=storage), sink) == 0
    assert values(storage) == {"one": [0.0]}
    assert len([*folder_of(storage).iterdir()]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("address", ["sqlite:///{}.db", "{}.log"])
def test_at_every_moment_a_study_that_is_replaced_or_its_copy_is_whole(address, monkeypatch):
    class Killed(BaseException):
        pass

    calls = itertools.count()
    real, last = RetryingStorage._call, math.inf

    def until_the_end(self, name, *arguments, **named):
        if not name.startswith("get_") and next(calls) >= last:
            raise Killed
        return real(self, name, *arguments, **named)

    def renamed(*arguments):
        if next(calls) >= last:
            raise Killed
        return rename(*arguments)

    monkeypatch.setattr(RetryingStorage, "_call", until_the_end)
    monkeypatch.setattr("erl.studies.copying.rename", renamed)
    two_studies(address.format("old"))
    file, found = address.removeprefix("sqlite:///"), []
    for moment in itertools.count():
        to, said = address.format(moment), Mock()
        shutil.copy(file.format("old"), file.format(moment))
        calls, last = itertools.count(), moment
        try:
            copy_study(replace(OVERWRITE, to=to), said)
        except Killed:
            last = math.inf
        else:
            break
        there = values(to)
        found.append(there)
        lines = [call.args[0] for call in said.line.call_args_list]
        told = f"one_copy in {to} is whole, and takes the place of one" in lines
        assert [0.0] in there.values() if told else there["one"] == [1.0]
        copy_study(replace(OVERWRITE, to=to), said)
        assert values(to)["one"] == [0.0]
    last = math.inf
    assert {"one_copy": [0.0]} in found
    assert values(to) == {"one": [0.0]}


def test_a_copy_goes_on_after_a_dropped_connection(sink, monkeypatch):
    two_studies("sqlite:///target.db")
    real, count = RDBStorage.set_study_system_attr, itertools.count()

    def dropped(self, *arguments, **named):
        if not next(count):
            raise OperationalError("UPDATE", {}, Exception("the server closed the connection"))
        return real(self, *arguments, **named)

    monkeypatch.setattr(RDBStorage, "set_study_system_attr", dropped)
    assert copy_study(replace(OVERWRITE, to="sqlite:///target.db"), sink) == 0
    assert values("sqlite:///target.db") == {"one": [0.0]}
    assert next(count) > 2
