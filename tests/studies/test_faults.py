"""Evolutions that something befalls: the same command goes on, and nothing is lost or counted
twice.

`ERL_FAULTS` says how often each fault is done (3 by default); `benchmarks/faults.py` does each a
hundred times.
"""

import os
import socket
import time
from pathlib import Path

import faults
import psutil
import pytest
import servers
from conftest import Lines
from optuna.storages.journal import JournalFileSymlinkLock

from erl.errors import UserError
from erl.executors.local import LocalExecutor
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.learners.core import checkpoints
from erl.studies import leases
from erl.studies.storage import open_storage
from erl.studies.study import Study

ROUNDS = int(os.environ.get("ERL_FAULTS", "3"))
# Who is killed may hold a journal's lock: Optuna's others wait 30 seconds before they break it.
LOCK = (JournalFileSymlinkLock.__init__, "__defaults__", (5,))


@pytest.fixture
def database(postgresql):
    """A name for a new database."""
    return f"f{os.urandom(8).hex()}"


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", "journal", "postgresql"], indirect=True)
def test_killed_coordinators(storage, monkeypatch):
    monkeypatch.setattr(*LOCK)
    tear = (
        faults.tear_journal(storage.removeprefix("journal:"))
        if storage.startswith("journal")
        else None
    )
    outcome = faults.kill_coordinators(faults.Case(storage), ROUNDS, tear=tear)
    assert outcome.whole, outcome
    assert outcome.faults == ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["postgresql"], indirect=True)
def test_killed_workers(storage):
    outcome = faults.kill_workers(
        faults.Case(storage, nb_trials=4), min(ROUNDS, 1) if ROUNDS <= 3 else ROUNDS
    )
    assert outcome.whole, outcome


@pytest.mark.slow
def test_a_database_that_is_restarted_in_mid_trial():
    if servers.find("initdb") is None:
        servers.missing("PostgreSQL")
    server = servers.PostgreSQL()
    try:
        case = faults.Case(server.create("x"))
        outcome = faults.disturb(case, ROUNDS, server.stop, server.start, away=0.2)
        assert outcome.whole, outcome
        assert not outcome.retaken
    finally:
        server.remove()


@pytest.mark.slow
def test_a_connection_that_is_cut(postgresql, database):
    postgresql.create(database)
    wire = servers.Wire(postgresql.port)
    try:
        case = faults.Case(postgresql.address(database, wire.port))
        outcome = faults.disturb(
            case, ROUNDS, wire.cut, wire.mend, away=float(os.environ.get("ERL_CUT", "1.0"))
        )
        assert outcome.whole, outcome
        assert not outcome.retaken
    finally:
        wire.close()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["postgresql", "sqlite"], indirect=True)
def test_answers_that_are_lost_after_the_database_has_done_what_it_was_told(storage, monkeypatch):
    monkeypatch.setattr(
        leases, "LEASE_SECONDS", 3.0
    )  # for a trial that was taken up, and the answer lost
    case = faults.Case(storage)
    process = case.start(before=lambda: faults.losing_answers(10 * ROUNDS))
    process.join(120)
    assert process.exitcode == 0
    done = [t.number for t in case.study().trials("COMPLETE")]
    assert done == list(range(8))
    outcome = case.finish()
    assert (outcome.lost, outcome.beyond, outcome.changed) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(psutil.Process, "rlimit"), reason="limits of another process are Linux's"
)
@pytest.mark.parametrize("storage", ["sqlite", "journal"], indirect=True)
def test_a_full_disk_under_the_database(storage):
    path = storage.removeprefix("sqlite:///").removeprefix("journal:")
    outcome = faults.fill_disk(faults.Case(storage), min(ROUNDS, 1), path)
    assert outcome.whole, outcome
    assert not outcome.retaken


# -- an outage that lasts --


@pytest.mark.slow
def test_after_a_long_outage_the_run_ends_in_one_line_and_the_same_command_goes_on(
    postgresql, database, inline, monkeypatch
):
    monkeypatch.setattr("erl.studies.study.OUTAGE_SECONDS", 1.0)
    postgresql.create(database)
    wire = servers.Wire(postgresql.port)
    case = faults.Case(postgresql.address(database, wire.port))

    class CutAfter(Lines):
        def line(self, text):
            super().line(text)
            if text.startswith("trial    1"):
                wire.cut()

    with pytest.raises(
        UserError,
        match=r"cannot use the storage postgresql.*; finished lifetimes are stored",
    ) as e:
        evolve(case.config, CutAfter())
    assert "s3cret" not in str(e.value)
    wire.mend()
    case.look()
    assert len(case.study().trials("COMPLETE")) >= 2
    assert evolve(case.config, Lines()) == 0  # in the process where the first has ended
    outcome = case.finish()
    assert outcome.whole, outcome
    wire.close()


@pytest.mark.slow
def test_workers_go_on_while_the_database_is_away(postgresql, database, sink, monkeypatch):
    """Lifetimes of a generation end during the outage, one after the other in one worker, and are
    all stored after it.
    """
    postgresql.create(database)
    wire = servers.Wire(postgresql.port)
    case = faults.Case(postgresql.address(database, wire.port), nb_trials=4)
    monkeypatch.setattr("erl.executors.local.LocalExecutor", Reporting)
    Reporting.results = []
    Reporting.after = {1: wire.cut, 7: wire.mend}
    assert evolve(case.config, sink) == 0
    assert Reporting.results == [False, False] + [True] * 6
    assert [t.state.name for t in case.study().trials()] == ["COMPLETE"] * 4
    wire.close()


class Reporting(LocalExecutor):
    """Does something after its k-th result, and notes whether the outage lasted when results
    came.
    """

    def run(self, jobs, columns, tick, every=0.5, on_interrupt=None):
        away = False
        for k, result in enumerate(super().run(jobs, columns, tick, every)):
            self.results.append(away)
            yield result
            if k in self.after:
                self.after[k]()
                away = not away


# -- hosts and clocks --


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["postgresql", "journal"], indirect=True)
def test_a_host_that_went_down_is_noticed_by_another_whose_clock_leaps(storage, monkeypatch):
    """The first host's coordinator is killed; the second, which cannot see its processes, waits for
    signs, and goes on. For how long it waits, tests/studies/test_leases.py shows.
    """
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(*LOCK)
    case = faults.Case(storage, nb_trials=4, training_steps=32 * 8)
    process = case.start(before=lambda: _be("first", leap=0))
    while not case.look():
        time.sleep(0.05)
    process.kill()
    process.join()
    assert case.look() < 8, "killed too late"
    process = case.start(before=lambda: _be("second", leap=10**6))
    process.join(200)
    assert process.exitcode == 0
    outcome = case.finish()
    assert outcome.whole, outcome
    assert outcome.retaken


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["postgresql"], indirect=True)
def test_a_host_that_lives_keeps_its_trials_whatever_the_clocks(storage, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 4.0)
    case = faults.Case(storage, nb_trials=4, training_steps=32 * 40, nb_seeds=1)
    processes = [
        case.start(before=lambda n=n, leap=leap: _be(n, leap))
        for n, leap in (("a", 10**6), ("b", -(10**6)), ("c", 0))
    ]
    for process in processes:
        process.join(150)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    outcome = case.finish()
    assert outcome.whole, outcome
    assert not outcome.retaken


def _be(host, leap):
    """Another machine, whose wall clock is set by `leap` seconds now and then."""
    socket.gethostname = lambda: host
    now, calls = time.time, []

    def leaping():
        calls.append(1)
        return now() + leap * (len(calls) % 3)

    time.time = leaping


# -- what kills whoever is about it --


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_trial_that_always_kills_its_coordinator_fails_in_the_end(storage):
    case = faults.Case(
        storage,
        env_id="toy_environments:Faulty-die-v0",
        nb_trials=2,
        popsize=2,
        max_retries=2,
        nb_seeds=1,
    )
    codes = []
    while not codes or codes[-1] == 7:
        process = case.start()
        process.join(200)
        codes.append(process.exitcode)
    assert codes == [7, 7, 7, 1]  # begun, and taken up again twice; then no trial has succeeded
    trials = Study(storage, case.name).trials()
    assert [t.state.name for t in trials] == ["FAIL"] * 2
    assert {t.system_attrs["error"]["reason"][:12] for t in trials} == {"lost 3 times"}


# -- files beside the database --


def cohort_config(storage, **more):
    settings = {
        "training_steps": 2048,
        "nb_trials": 2,
        "nb_seeds": 1,
        "units": 5,
        "popsize": 2,
        "sampler": "Random",
    }
    path = Path("ppo.yaml")
    path.write_text("n_steps: 128\nbatch_size: 64\nn_epochs: 1\n")
    more = {
        "checkpoint_minutes": 0.0,
        "learner_config": str(path),
        "workers": 1,
        "storage": storage,
        **more,
    }
    return EvolutionConfig(env_id="CartPole-v1", engine="cohort", **(settings | more))


def stop_after(monkeypatch, n):
    """Let training end after its n-th checkpoint."""
    save, saved = checkpoints.save_checkpoint, []

    def saving(*arguments):
        save(*arguments)
        saved.append(arguments[0])
        if len(saved) == n:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_checkpoint", saving)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_no_more_than_itself(inline, sink, monkeypatch):
    name = "CartPole-v1_main_2k_steps"
    whole = cohort_config("sqlite:///whole.db")
    assert evolve(whole, sink) == 0
    for harm in ("cut", "garbage", "empty", "another's", "none"):
        torn = cohort_config(f"sqlite:///{harm}.db", runs=harm)
        with monkeypatch.context() as patch:
            stop_after(patch, 6)
            assert evolve(torn, sink) == 130
        checkpoints = sorted(Path(harm).rglob("*.pkl"))
        assert len(checkpoints) == 2
        content, other = (p.read_bytes() for p in checkpoints)
        harmed = {
            "cut": content[: len(content) // 2],
            "garbage": os.urandom(500),
            "empty": b"",
            "another's": other,
        }
        checkpoints[0].write_bytes(harmed.get(harm, content))
        assert evolve(torn, sink) == 0
        after, undisturbed = (
            [(t.params, t.value) for t in Study(c.storage, name).trials()] for c in (torn, whole)
        )
        assert after == undisturbed, harm
        assert not list(Path(harm).rglob("*.pkl"))


def limited(limit, run):
    """Exit code of a process in which no file grows past `limit` bytes."""
    import resource

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        raise SystemExit(run())

    process = faults.FORK.Process(target=child)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.slow
def test_a_full_disk_under_checkpoints_and_models(inline, sink, postgresql, database):
    """The database is elsewhere.

    No checkpoint fits: training goes on. No model fits: the lifetime fails, and is tried again.
    """
    storage = postgresql.create(database)
    config = cohort_config(storage)
    assert limited(1000, lambda: evolve(config, Lines())) == 0
    assert not list(Path("runs").rglob("*.pkl*"))
    undisturbed = cohort_config("sqlite:///whole.db", runs="other")
    assert evolve(undisturbed, sink) == 0
    name = "CartPole-v1_main_2k_steps"
    assert [t.value for t in Study(storage, name).trials()] == [
        t.value for t in Study(undisturbed.storage, name).trials()
    ]
    test = ComparisonConfig(
        study=name, training_steps=256, nb_seeds=1, arms="PPO", storage=storage, workers=1
    )
    assert limited(5000, lambda: compare(test, Lines())) == 1
    best = Study(storage, name).best().number
    test_name = f"{name}_trial_{best}_test_0.256k_steps"
    [failed] = Study(storage, test_name).trials()
    assert "File too large" in failed.system_attrs["error"]["reason"]
    assert not [p for p in Path("models").rglob("*") if p.is_file()]
    assert compare(test, sink) == 0
    assert [t.state.name for t in Study(storage, test_name).trials()] == ["FAIL", "COMPLETE"]
    assert list(Path("models").rglob("seed_0.zip"))


# -- tests, too, share their work --


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["postgresql"], indirect=True)
def test_two_tests_at_once_live_each_lifetime_once(storage, quick, inline, sink):
    config = faults.Case(storage, nb_trials=1).config
    assert evolve(config, sink) == 0
    name = f"{faults.ENV}_main_0.064k_steps"
    test = ComparisonConfig(
        study=name, training_steps=64, nb_seeds=2, workers=1, storage=storage, engine="sb3"
    )
    open_storage(storage)
    barrier = faults.FORK.Barrier(3)

    def run():
        barrier.wait()
        raise SystemExit(compare(test, Lines()))

    processes = [faults.FORK.Process(target=run) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    trials = Study(storage, f"{name}_trial_0_test_0.064k_steps").trials(
        "COMPLETE", "FAIL", "RUNNING", "WAITING"
    )
    assert sorted((t.params["arm"], t.params["seed"]) for t in trials) == sorted(
        (arm, seed) for arm in ("PPO", "RES_PPO_0.0001", "RES_PPO_0.0003") for seed in range(2)
    )
    assert {t.state.name for t in trials} == {"COMPLETE"}
