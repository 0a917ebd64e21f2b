import dataclasses
import os
import socket
import sqlite3
import subprocess
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from erl.comparison import ComparisonConfig, compare
from erl.errors import UserError
from erl.evolution import EvolutionConfig, evolve, lifetimes
from erl.lifetime import Job, live
from erl.search import Range
from erl.storage import DEFAULT_STORAGE, open_storage, shown
from erl.study import Study, distributions, records

ENV = "toy_environments:Recall-v0"
NAME = f"{ENV}_main_0.064k_steps"
ADDRESSES = [DEFAULT_STORAGE, "journal.log", "sqlite:///folder with spaces/s.db"]


@pytest.fixture
def config(quick, inline):
    return EvolutionConfig(
        env_id=ENV,
        training_steps=64,
        nb_trials=3,
        nb_seeds=2,
        units=5,
        popsize=2,
        sampler="Random",
        learner_config=quick,
        engine="sb3",
        workers=1,
    )


def change(config, **options):
    return dataclasses.replace(config, **options)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_study_stores_what_it_is_and_is_continued(address, config, sink):
    os.mkdir("folder with spaces")
    config = change(config, storage=address)
    assert evolve(config, sink) == 0
    study = Study(address, NAME)
    assert study.config["env_id"] == ENV
    assert study.config["sampler"] == "Random"
    assert study.config["seed"] == 0
    assert study.config["learner_config"] == {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
    assert not {"storage", "workers"} & study.config.keys()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert study.optuna.user_attrs["commit"].removesuffix("-dirty") == commit.stdout.strip()
    assert {"python", "torch", "optuna", "stable-baselines3"} <= study.optuna.user_attrs["versions"].keys()
    before = [(t.params, t.value) for t in study.trials()]
    assert evolve(change(config, nb_trials=5, workers=2), sink) == 0
    study = Study(address, NAME)
    assert [(t.params, t.value) for t in study.trials()][:3] == before
    assert [t.state for t in study.trials()] == [TrialState.COMPLETE] * 5
    assert evolve(change(config, nb_trials=2), sink) == 0  # nothing left to do
    assert len(Study(address, NAME).trials()) == 5
    assert "python test.py --study" in str(sink)


def test_another_configuration_is_refused_and_the_difference_shown(config, sink):
    evolve(config, sink)
    with pytest.raises(UserError) as e:
        evolve(change(config, units=6, skip_c=True), sink)
    assert "exists with another configuration" in str(e.value)
    assert "units is 5 there and 6 here" in str(e.value)
    assert "skip_c is False there and True here" in str(e.value)
    assert "nb_trials" not in str(e.value)
    assert len(Study(DEFAULT_STORAGE, NAME).trials()) == 3


def test_records_are_a_frame_with_a_row_for_each_lifetime(config, sink):
    evolve(config, sink)
    frame = records(DEFAULT_STORAGE, NAME)
    assert list(frame.trial) == [0, 0, 1, 1, 2, 2]
    assert list(frame.lifetime) == [0, 1] * 3
    assert (frame.steps == 64).all()
    assert (frame.episodes == 16).all()
    assert frame.curve[0][-1][0] == 64
    best = Study(DEFAULT_STORAGE, NAME).best()
    assert frame[frame.trial == best.number].fitness.mean() == best.value
    assert set(frame.seed_reservoir) == {s.seeds.reservoir for s in lifetimes(_stored(), {"sr": 1.0, "lr": 1.0})}
    assert {"sr", "lr", "fitness", "note", "error", "env_id", "learner", "state"} <= set(frame.columns)


def _stored():
    return Study(DEFAULT_STORAGE, NAME).config


def test_failed_trials_keep_reason_and_traceback_and_the_study_goes_on(config, sink):
    code = evolve(change(config, env_id="toy_environments:Faulty-raise-v0"), sink)
    assert code == 1
    study = Study(DEFAULT_STORAGE, "toy_environments:Faulty-raise-v0_main_0.064k_steps")
    assert [t.state for t in study.trials()] == [TrialState.FAIL] * 3
    for trial in study.trials():
        assert trial.user_attrs["error"]["reason"].endswith("at step 51: RuntimeError: the simulator exploded")
        assert 'raise RuntimeError("the simulator exploded")' in trial.user_attrs["error"]["traceback"]
    assert "no trial succeeded: lifetime 0: the environment raised" in str(sink)


# -- leases -----------------------------------------------------------------------------------------------------------


def owner(**changes):
    mine = {"id": "x", "host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    return mine | changes


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def begin(study, config_of_study, who):
    """A trial that a coordinator began, with its first lifetime finished."""

    def plan(params):
        return lifetimes(config_of_study, params)

    space = distributions({"sr": Range(1e-4, 1e2), "lr": Range(1e-2, 1.0)})
    taken = study.create({"sr": 0.5, "lr": 0.5}, space, plan)
    study.storage.set_trial_user_attr(taken.trial_id, "owner", who)
    study._note(taken, 0, live(Job((taken.specs[0],)))[0])
    return taken, plan


def test_a_dead_owners_trial_is_taken_up_and_its_finished_lifetimes_are_kept(config, sink, monkeypatch):
    evolve(change(config, nb_trials=1), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    left, _ = begin(study, study.config, owner(pid=dead_process()))
    kept = study.optuna.trials[1].user_attrs["lifetime:0"]
    lived = []
    monkeypatch.setattr("conftest.live", lambda job: lived.append(job) or live(job))
    assert evolve(change(config, nb_trials=2), sink) == 0
    again = Study(DEFAULT_STORAGE, NAME).trials()
    assert [t.state for t in again] == [TrialState.COMPLETE] * 2
    assert again[1].params == left.params
    assert again[1].user_attrs["lifetime:0"] == kept
    assert [len(job.specs) for job in lived] == [1]


@pytest.mark.parametrize(
    ("who", "lease", "gone"),
    [
        (owner(), 0.0, False),  # a process of this machine that lives needs no lease
        (owner(started=1.0), 1e12, True),  # another process got its number
        (owner(host="elsewhere"), 1e12, False),
        (owner(host="elsewhere"), 1.0, True),
    ],
)
def test_who_is_gone(who, lease, gone, config, sink):
    evolve(change(config, nb_trials=1), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    begin(study, study.config, who)
    study.storage.set_study_user_attr(study._id, "lease:x", lease)
    waiting = Study(DEFAULT_STORAGE, NAME).reclaim()
    assert [t.number for t in waiting] == ([1] if gone else [])


def test_only_one_of_two_takes_a_waiting_trial_up(config, sink):
    evolve(change(config, nb_trials=1), sink)
    study, other = Study(DEFAULT_STORAGE, NAME), Study(DEFAULT_STORAGE, NAME)
    _, plan = begin(study, study.config, owner(pid=dead_process()))
    (waiting,) = study.reclaim()
    taken, late = study.take_up(waiting, plan), other.take_up(waiting, plan)
    assert list(taken.records) == [0]
    assert late is None


def test_a_coordinator_that_was_taken_for_dead_does_not_fall_over_a_trial_that_another_ended(config, sink):
    evolve(change(config, nb_trials=1), sink)
    study, other = Study(DEFAULT_STORAGE, NAME), Study(DEFAULT_STORAGE, NAME)
    taken, _ = begin(study, study.config, owner())
    other.storage.set_trial_state_values(taken.trial_id, TrialState.COMPLETE, [1.0])
    study._note(taken, 1, taken.records[0])
    assert study._end(taken, None) is not None
    study._release(taken.trial_id)
    assert Study(DEFAULT_STORAGE, NAME).trials()[1].value == 1.0


# -- ER-MRL's journals ------------------------------------------------------------------------------------------------


def er_mrl_journal(path, name, iss=False):
    study = optuna.create_study(
        study_name=name, storage=JournalStorage(JournalFileBackend(str(path))), direction="maximize"
    )

    def objective(trial):
        sr = trial.suggest_float("sr", 1e-4, 1e2, log=True)
        lr = trial.suggest_float("lr", 1e-2, 1, log=True)
        return sr + lr + (trial.suggest_float("iss", 1e-1, 10, log=True) if iss else 0)

    study.optimize(objective, n_trials=3)
    return study


@pytest.mark.parametrize("iss", [False, True])
@pytest.mark.parametrize("explicit", [False, True])
def test_er_mrls_own_journal_opens(iss, explicit, sink, inline):
    name = "Pendulum-v1_main_300k_steps"
    best = er_mrl_journal(f"optuna-journal_{name}.log", name, iss).best_trial
    config = ComparisonConfig(
        study=name,
        training_steps=1,
        nb_seeds=1,
        units=5,
        engine="sb3",
        arms="RES_PPO_0.0003",
        storage=f"optuna-journal_{name}.log" if explicit else DEFAULT_STORAGE,
    )
    assert compare(config, sink) == 0
    assert "stores no configuration" in str(sink)
    frame = records(config.storage, f"{name}_trial_{best.number}_test_0.001k_steps")
    assert list(frame.env_id) == ["Pendulum-v1"]
    test = Study(config.storage, f"{name}_trial_{best.number}_test_0.001k_steps")
    assert test.config["params"] == best.params


def test_studies_that_evolved_something_else_are_refused(sink):
    storage = DEFAULT_STORAGE
    optuna.create_study(study_name="other", storage=storage).enqueue_trial({})
    study = optuna.create_study(study_name="things", storage=storage, direction="maximize")
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    optuna.create_study(study_name="two", storage=storage, directions=["maximize", "minimize"])
    for name, message in (("other", "no finished trial"), ("things", "did not evolve"), ("two", "several objectives")):
        with pytest.raises(UserError, match=message):
            compare(ComparisonConfig(study=name), sink)
    with pytest.raises(UserError, match=r"no study 'thing' in sqlite:///studies.db; did you mean things\?; it has"):
        compare(ComparisonConfig(study="thing"), sink)


# -- storage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:s3cret@localhost:1/db",
        "postgresql+psycopg://user:s3cret@localhost:1/db",
        "mysql+pymysql://user:s3cret@localhost:1/db",
        "postgresql://user@localhost:1/db?password=s3cret",
        "postgresql://user:s3cret@localhost:port/db",
        "postgresql://user:s3/cr3t@localhost/db",
        "no-such-thing://user:s3cret@host/db",
        "grpc://user:s3cret@host",
    ],
)
def test_a_password_never_shows(address, capfd):
    with pytest.raises(UserError) as e:
        open_storage(address, create=True)
    for secret in ("s3cret", "s3/", "cr3t"):
        assert secret not in str(e.value)
        assert secret not in shown(address)
    assert e.value.__suppress_context__ or e.value.__context__ is None


def test_addresses_are_shown():
    assert shown("sqlite:///a b.db") == "sqlite:///a b.db"
    assert shown("x.log") == "x.log"
    assert shown("postgresql://me:pw@h/db") == "postgresql://me:***@h/db"


def foreign(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.commit()
    connection.close()


def listing():
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("sqlite:///foreign.db", "another program's database.*recipes"),
        ("sqlite:///words.db", "not a study database"),
        ("sqlite:///words.db/x.db", "study database words.db/x.db"),
        ("sqlite:///nowhere/x.db", "study database nowhere/x.db"),
        ("sqlite:////proc/x.db", "/proc/x.db"),
        ("sqlite:///.", "not a study database"),
        ("sqlite://", "memory"),
        ("sqlite://studies.db", "sqlite://"),
        ("studies.db", "sqlite:///studies.db would be one"),
        ("", "storage address"),
        ("words.log", "words.log is not the journal"),
        ("other.log", "other.log is not the journal"),
        ("nowhere/x.log", "journal file nowhere/x.log"),
        ("words.db/x.log", "journal file words.db/x.log"),
        ("grpc://localhost", "needs a port"),
        ("grpc://localhost:1", "cannot use the storage grpc://localhost:1"),
        ("oracle://u:p@h/x", "oracle"),
        ("://", "storage"),
    ],
)
def test_storages_that_cannot_be_used_are_refused_and_left_as_they_are(address, message, create):
    foreign("foreign.db")
    Path("words.db").write_text("no database at all, " * 100)
    Path("words.log").write_text("no journal\n")
    Path("other.log").write_text('{"a": 1}\n')
    before = listing()
    with pytest.raises(UserError, match=message):
        open_storage(address, create)
    assert listing() == before


@pytest.mark.parametrize("address", ["sqlite:///missing.db", "missing.log", "sqlite:///empty.db"])
def test_reading_creates_nothing(address):
    Path("empty.db").touch()
    before = listing()
    with pytest.raises(UserError):
        Study(address, "x")
    assert listing() == before


def test_a_study_of_another_program_is_not_continued(config, sink):
    study = optuna.create_study(study_name=NAME, storage=DEFAULT_STORAGE, direction="maximize")
    study.optimize(lambda t: t.suggest_float("sr", 0, 1), n_trials=1)
    with pytest.raises(UserError, match="was not made by this project"):
        evolve(config, sink)
