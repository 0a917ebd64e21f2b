"""Every kind of storage, for real: files, PostgreSQL, MariaDB, Optuna's proxy; those that cannot be
used; torn journals.
"""

import dataclasses
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from conftest import Lines
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection

from erl.cli import without_passwords
from erl.errors import UserError
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.studies.records import records
from erl.studies.storage import (
    CONNECTING,
    DEFAULT_STORAGE,
    GoneError,
    open_storage,
    refused,
    shown,
    usual,
)
from erl.studies.study import Study

ENV = "toy_environments:Recall-v0"
NAME = f"{ENV}_main_0.064k_steps"
KINDS = ["sqlite", "journal", "postgresql", "mysql", "grpc"]


def make(storage, quick, **options):
    settings = {
        "env_id": ENV,
        "training_steps": 64,
        "nb_trials": 3,
        "nb_seeds": 1,
        "units": 5,
        "popsize": 3,
    }
    more = {
        "sampler": "Random",
        "learner_config": quick,
        "engine": "sb3",
        "workers": 1,
        "storage": storage,
    }
    return EvolutionConfig(**(settings | more | options))


def found(config):
    return [
        (t.number, t.state.name, t.params, t.value) for t in Study(config.storage, NAME).trials()
    ]


# -- all kinds --


@pytest.mark.slow
@pytest.mark.parametrize("storage", KINDS, indirect=True)
def test_an_evolution_is_the_same_in_every_storage(storage, quick, inline, sink):
    usual, here = (
        make(address, quick, fitness="final_eval") for address in ("sqlite:///usual.db", storage)
    )
    assert evolve(usual, sink) == 0
    assert evolve(dataclasses.replace(here, nb_trials=2), sink) == 0
    assert evolve(here, sink) == 0
    assert found(here) == found(usual)
    frames = [records(c.storage, NAME).drop(columns="seconds") for c in (usual, here)]
    assert frames[1][frames[0].columns].equals(frames[0])  # the proxy gives parameters in any order
    assert "s3cret" not in str(sink)
    assert {**Study(here.storage, NAME).stored, "nb_trials": 3} == Study(usual.storage, NAME).stored
    with pytest.raises(UserError, match="no study 'x' in"):
        Study(here.storage, "x")


def _evolve_at_once(barrier, config):
    barrier.wait()
    raise SystemExit(evolve(config, Lines()))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", "journal", "postgresql", "mysql"], indirect=True)
def test_coordinators_that_start_together_share_the_trials_exactly(storage, quick, inline):
    config = make(storage, quick, nb_trials=8, popsize=4)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_evolve_at_once, args=(barrier, config)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    trials = Study(storage, NAME).trials()
    assert [t.state.name for t in trials[:8]] == ["COMPLETE"] * 8
    assert len({str(t.params) for t in trials[:8]}) == 8
    # Numbers beyond the last are proposals that nobody lives unless the study is made longer.
    assert {t.state.name for t in trials[8:]} <= {"WAITING"}
    assert evolve(dataclasses.replace(config, nb_trials=12), Lines()) == 0
    assert sorted(t.number for t in Study(storage, NAME).trials("COMPLETE")) == list(range(12))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["grpc"], indirect=True)
def test_two_commands_share_a_study_behind_a_proxy(storage, quick):
    """Processes of their own, for gRPC's channels do not survive a fork."""
    config = make(storage, quick, nb_trials=6)
    program = (
        "import erl.executors.local\nfrom conftest import InlineExecutor, Lines\n"
        "from erl.experiments.evolution import EvolutionConfig, evolve\n"
        "erl.executors.local.LocalExecutor = InlineExecutor\n"
        f"raise SystemExit(evolve(EvolutionConfig(**{dataclasses.asdict(config)}), Lines()))"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [p.communicate(timeout=200) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    assert [t.number for t in Study(storage, NAME).trials("COMPLETE")] == list(range(6))


# -- those that cannot be used --


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql+psycopg://erl:wr0ng@{host}/postgres", "password authentication failed"),
        (
            "postgresql+psycopg://erl:s3cret%20word@{host}/nowhere",
            'database "nowhere" does not exist',
        ),
    ],
)
def test_what_a_server_refuses_is_said_in_one_line(address, message, postgresql):
    with pytest.raises(UserError, match=message) as e:
        open_storage(address.format(host=f"127.0.0.1:{postgresql.port}"), create=True)
    assert "\n" not in str(e.value)
    assert "wr0ng" not in str(e.value)
    assert "s3cret" not in str(e.value)


@pytest.mark.parametrize(
    ("address", "package", "module"),
    [
        ("postgresql+psycopg://u:s3cret@h/d", r"psycopg\[binary\]", "psycopg"),
        ("mysql+pymysql://u:s3cret@h/d", "pymysql", "pymysql"),
    ],
)
def test_a_missing_driver_is_named(address, package, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError,
        match=rf"needs the driver '{module}', which is not installed \(pip install \"{package}",
    ):
        open_storage(address)


def test_an_address_of_mysql_without_a_driver_names_the_documented_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(UserError) as e:
        open_storage("mysql://u:s3cret@h/d")
    assert str(e.value) == (
        "mysql://u:***@h/d needs the driver 'mysqldb', which is not installed: write "
        "mysql+pymysql://u:***@h/d (pip install pymysql)"
    )
    page = (Path(__file__).parents[2] / "docs/storages.md").read_text(encoding="utf-8")
    assert "`mysql+pymysql://" in page
    assert "`pip install pymysql`" in page


def test_an_address_decides_over_time_limits_itself(postgresql, monkeypatch):
    address = postgresql.address("postgres")
    seen = []
    monkeypatch.setattr(
        "erl.studies.storage._open_tables",
        lambda _, settings: seen.append(settings["connect_args"]) or 1 / 0,
    )
    for ending in ("", "?connect_timeout=3"):
        with pytest.raises(UserError):
            open_storage(address + ending)
    assert seen[0] == CONNECTING["psycopg"]
    assert seen[1] == {k: v for k, v in CONNECTING["psycopg"].items() if k != "connect_timeout"}


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:s3cret@localhost:1/db",
        "postgresql+psycopg://user:s3cret@localhost:1/db",
        "mysql+pymysql://user:s3cret@localhost:1/db",
        "mysql+pymysql://user@server:s3cret@localhost:1/db",
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
        assert secret not in without_passwords(f"cannot use {address}")
    assert e.value.__suppress_context__ or e.value.__context__ is None


def test_addresses_are_shown():
    assert shown("sqlite:///a b.db") == "sqlite:///a b.db"
    assert shown("x.log") == "x.log"
    assert shown("postgresql://me:pw@h/db") == "postgresql://me:***@h/db"


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite_runs.log", "sqlite_runs.log"),
        ("journal:sqlite", "sqlite"),
        ("sqlite:///x.log", "x.log"),
    ],
)
def test_files_of_studies_lie_beside_the_file_of_the_storage(address, file):
    open_storage(address, create=True).create_new_study([StudyDirection.MAXIMIZE], "s")
    Path("a.txt").touch()
    Study(address, "s").attach("a.txt")
    assert len(list(Path(f"{file}.artifacts").iterdir())) == 1
    assert Path(file).read_bytes().startswith(b"SQLite") == ("://" in address)


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
        ("sqlite:///words.db/x.db", "study database .*words.db/x.db"),
        ("sqlite:///nowhere/x.db", "study database .*nowhere/x.db"),
        ("sqlite:////proc/x.db", "/proc/x.db"),
        ("sqlite:///.", "not a study database"),
        ("sqlite://", "memory"),
        ("sqlite://studies.db", "sqlite://"),
        ("studies.db", "'studies.db' is not a storage address; use sqlite:///studies.db"),
        ("./", "'./' is a folder; name a file in it: sqlite:///./studies.db"),
        ("missing/", "'missing/' is a folder; name a file in it: sqlite:///missing/studies.db"),
        ("", "storage address"),
        ("words.log", "words.log is not the journal"),
        ("number.log", "number.log is not the journal"),
        ("other.log", "other.log is not the journal"),
        ("nowhere/x.log", "journal file .*nowhere/x.log"),
        ("words.db/x.log", "journal file .*words.db/x.log"),
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
    Path("number.log").write_text("5\n")
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


def _die_in_mid_write(path):
    """Be killed in the midst of a transaction, with pages in the file that are not committed."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    for i in range(200):
        connection.execute("INSERT INTO studies (study_name) VALUES (?)", (f"{i}" + "x" * 400,))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("create", [True, False])
def test_a_database_whose_writer_was_killed_in_mid_write_opens(create):
    optuna.create_study(study_name="s", storage="sqlite:///x.db")
    process = multiprocessing.get_context("fork").Process(target=_die_in_mid_write, args=("x.db",))
    process.start()
    process.join()
    assert Path("x.db-journal").stat().st_size
    assert [s.study_name for s in open_storage("sqlite:///x.db", create).get_all_studies()] == ["s"]


@pytest.mark.parametrize("left", range(0, 13, 3))
def test_a_database_whose_maker_was_killed_while_it_made_the_tables_is_made_whole(
    left, sink, quick, inline
):
    optuna.create_study(study_name="s", storage="sqlite:///whole.db")
    with sqlite3.connect("whole.db") as whole, sqlite3.connect("x.db") as part:
        made = [
            row[0] for row in whole.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")
        ]
        for statement in made[:left]:
            part.execute(statement)
    part.close()
    if left <= 3:  # no trials yet
        with pytest.raises(UserError, match="empty"):
            open_storage("sqlite:///x.db")
    assert evolve(make("sqlite:///x.db", quick, nb_trials=1), sink) == 0
    assert len(made) > 12


# -- journals --


def torn_journal(path):
    """A journal whose last writer was killed in mid-line."""
    storage = JournalStorage(JournalFileBackend(path))
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2)
    whole = Path(path).read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    Path(path).write_bytes(whole + last[: len(last) // 2])
    return whole


def test_optunas_own_appending_to_a_torn_line_leaves_a_journal_that_nobody_reads():
    """Why the lock mends: should Optuna learn to, this test says so."""
    lines = torn_journal("x.log").count(b"\n")
    study = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend("x.log")))
    with suppress(json.JSONDecodeError):
        study.set_user_attr("a", 1)
        study.set_user_attr("b", 1)
    with pytest.raises(json.JSONDecodeError):
        JournalStorage(JournalFileBackend("x.log"))
    with pytest.raises(UserError, match=rf"line {lines + 1} of the journal x\.log is damaged"):
        open_storage("x.log")


@pytest.mark.parametrize("tail", [None, b"x" * 200_000])
def test_a_torn_line_is_cut_off_before_the_next_is_written(tail):
    whole = torn_journal("x.log")
    if tail is not None:
        Path("x.log").write_bytes(whole + tail)
    torn = Path("x.log").read_bytes()
    storage = open_storage("x.log")
    assert Path("x.log").read_bytes() == torn  # reading changes nothing
    storage.set_study_user_attr(0, "a", 1)
    now = Path("x.log").read_bytes()
    assert now.startswith(whole)
    assert now[len(whole) :].count(b"\n") == 1
    plain = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend("x.log")))
    assert plain.user_attrs == {"a": 1}
    assert len(plain.trials) == 2


def test_a_first_line_that_is_torn_is_cut_off_too():
    Path("x.log").write_bytes(b'{"op_code":0,"worker')
    with pytest.raises(UserError, match="not the journal"):
        open_storage("x.log", create=True)
    Path("x.log").write_bytes(b"")
    storage = open_storage("x.log", create=True)
    Path("x.log").write_bytes(b'{"op_code":0,"worker')
    optuna.create_study(study_name="s", storage=storage)
    assert open_storage("x.log").get_all_studies()[0].study_name == "s"


def test_a_line_that_is_being_written_is_not_cut_off():
    """Threads that write at once, each line as long as several blocks of a file: every one
    arrives.
    """
    storages = [open_storage("x.log", create=True)]
    study = storages[0].create_new_study([StudyDirection.MAXIMIZE], "s")
    storages += [open_storage("x.log") for _ in range(3)]

    def write(k):
        for n in range(10):
            storages[k].set_study_user_attr(study, f"{k} {n}", "x" * 20_000)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(open_storage("x.log").get_study_user_attrs(study)) == 40


def test_the_lock_of_a_process_that_was_killed_is_taken_away_in_every_folder():
    """Optuna looks when the link's target last changed."""
    Path("sub").mkdir()
    storage = open_storage("journal:sub/x.log", create=True)
    lock = storage.backend._backend._lock
    lock.grace_period = 0.1
    assert lock.acquire()  # by somebody who does not release it
    assert Path("sub/x.log.lock").stat().st_size == Path("sub/x.log").stat().st_size
    storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    assert open_storage("journal:sub/x.log").get_all_studies()[0].study_name == "s"


def test_a_journal_that_may_only_be_read_is_read(monkeypatch):
    storage = open_storage("x.log", create=True)
    storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    assert open_storage("x.log").get_all_studies()[0].study_name == "s"
    with pytest.raises(UserError, match=r"^cannot write the journal file x\.log$"):
        open_storage("x.log", create=True)


def test_who_was_taken_for_dead_while_holding_the_lock_has_written_all_the_same(monkeypatch):
    storage = open_storage("x.log", create=True)
    lock = storage.backend._backend._lock
    append = JournalFileBackend.append_logs

    def slow(self, logs):
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda _: Path("x.log.lock").unlink())
            append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", slow)
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    assert lock.acquire()
    lock.release()
    assert storage.get_study_name_from_id(study) == "s"


def test_a_database_that_another_process_locks_is_no_strange_file(monkeypatch):
    open_storage(DEFAULT_STORAGE, create=True)
    connect, other = sqlite3.connect, sqlite3.connect("studies.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(
        "erl.studies.storage.sqlite3.connect", lambda *a, **k: connect(*a, **k | {"timeout": 0.1})
    )
    with pytest.raises(UserError, match="db is locked by another process, and was not let go"):
        open_storage(DEFAULT_STORAGE)
    other.close()


def test_a_file_that_was_removed_is_named(caplog):
    storage = open_storage(DEFAULT_STORAGE, create=True)
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    storage.retry_seconds = 0.2
    storage.remove_session()
    Path("studies.db").unlink()
    with pytest.raises(GoneError, match=r"the file studies\.db is not there$"):
        storage.set_study_user_attr(study, "a", 1)
    assert "the file studies.db is not there; it is tried again for 0 s" in caplog.text


def test_postgres_means_the_driver_that_is_installed(monkeypatch):
    for written in ("postgres://u@h/d", "postgresql://u@h/d", "postgresql+psycopg://u@h/d"):
        assert usual(written) == "postgresql+psycopg://u@h/d"
    assert usual("sqlite:///postgres://") == "sqlite:///postgres://"
    assert usual("postgres") == "postgres"
    with monkeypatch.context() as patch:
        patch.setattr("erl.studies.storage.find_spec", lambda name: object())
        assert usual("postgresql://u@h/d") == "postgresql://u@h/d"
    with pytest.raises(UserError, match=r"cannot use the storage postgresql\+psycopg://u:\*\*\*@"):
        open_storage("postgres://u:s3cret@localhost:1/db")


def test_a_short_password_is_no_part_of_other_words():
    said = str(refused("postgresql://me:e@host/db", ValueError("the server said: e (me:e@host)")))
    assert said.endswith("the server said: *** (me:***@host)")
    said = str(refused("postgresql://me:s3cret@host/db", ValueError("for 'mes3cretly'")))
    assert said.endswith("for 'me***ly'")
