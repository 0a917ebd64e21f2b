import dataclasses
import itertools
import json
import os
import shlex
import subprocess
import threading
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from erl.errors import UserError
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.evolution_study import lifetimes
from erl.lifetimes.living import Cohort, live
from erl.search.space import Range
from erl.studies import leases
from erl.studies.configuration import EvolutionStudy, to_stored
from erl.studies.distributions import distributions
from erl.studies.records import records
from erl.studies.storage import DEFAULT_STORAGE, open_storage
from erl.studies.study import Study, existing
from erl.studies.trials import lifetime_records

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


@pytest.mark.slow
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_study_stores_what_it_is_and_is_continued(address, config, sink):
    os.mkdir("folder with spaces")
    config = change(config, storage=address)
    assert evolve(config, sink) == 0
    study = Study(address, NAME)
    assert study.stored["env_id"] == ENV
    assert study.stored["sampler"] == "Random"
    assert study.stored["seed"] == 0
    assert study.stored["learner_config"] == {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
    assert not {"storage", "workers"} & study.stored.keys()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert study.optuna.user_attrs["commit"].removesuffix("-dirty") == commit.stdout.strip()
    assert {"python", "torch", "optuna", "stable-baselines3"} <= study.optuna.user_attrs[
        "versions"
    ].keys()
    before = [(t.params, t.value) for t in study.trials()]
    assert evolve(change(config, nb_trials=5, workers=2), sink) == 0
    study = Study(address, NAME)
    assert [(t.params, t.value) for t in study.trials()][:3] == before
    assert [t.state for t in study.trials()] == [TrialState.COMPLETE] * 5
    assert evolve(change(config, nb_trials=2), sink) == 0  # nothing left to do
    assert len(Study(address, NAME).trials()) == 5
    assert "erl test --study" in str(sink)


def test_another_configuration_is_refused_and_the_difference_shown(config, sink):
    evolve(config, sink)
    with pytest.raises(UserError) as e:
        evolve(change(config, units=6, skip_c=True), sink)
    assert "exists with another configuration" in str(e.value)
    assert "units is 5 there and 6 here" in str(e.value)
    assert "skip_c is False there and True here" in str(e.value)
    assert "nb_trials" not in str(e.value)
    assert len(Study(DEFAULT_STORAGE, NAME).trials()) == 3


def test_the_refusal_ends_with_the_command_that_began_the_study(config, sink, monkeypatch):
    begun = "erl evolve --env_id toy --h_test 'a b'"
    monkeypatch.setattr("sys.argv", ["/usr/bin/erl", *shlex.split(begun)[1:]])
    evolve(config, sink)
    monkeypatch.setattr("sys.argv", ["/usr/bin/erl", "evolve", "--study", NAME])
    with pytest.raises(UserError) as e:
        evolve(change(config, units=6), sink)
    assert str(e.value).endswith(f"--h_test, without --study; it was begun by: {begun}")


@pytest.mark.parametrize("address", ["sqlite:///studies.db", "journal.log"])
def test_of_several_creators_at_once_one_decides_and_the_others_are_refused(address, quick):
    here, there = (
        EvolutionStudy(env_id=ENV, seed=seed, learner_config={"n_steps": 32}) for seed in (0, 1)
    )
    storage = open_storage(address, create=True)
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], NAME)

    def settles():
        storage.set_study_user_attr(study_id, "config", to_stored(there))

    creator = threading.Timer(0.3, settles)
    creator.start()
    with pytest.raises(UserError, match="seed is 1 there and 0 here"):
        Study(address, NAME, here)
    creator.join()
    # It was created twice at the same moment, and the other one wrote last.
    study = Study(address, NAME, there)
    storage.set_study_user_attr(study_id, "config", to_stored(here))
    with pytest.raises(UserError, match="seed is 0 there and 1 here"), study:
        pass


def test_a_study_whose_creator_was_killed_is_settled_by_the_next(monkeypatch):
    monkeypatch.setattr("erl.studies.study.SETTLE_SECONDS", 0.1)
    storage = open_storage(DEFAULT_STORAGE, create=True)
    storage.create_new_study([StudyDirection.MAXIMIZE], NAME)
    config = EvolutionStudy(env_id=ENV)
    assert Study(DEFAULT_STORAGE, NAME, config).config == config


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
    assert set(frame.seed_reservoir) == {
        s.seeds.reservoir for s in lifetimes(_stored(), {"sr": 1.0, "lr": 1.0})
    }
    assert {"sr", "lr", "fitness", "note", "error", "env_id", "learner", "state"} <= set(
        frame.columns
    )


def _stored():
    return Study(DEFAULT_STORAGE, NAME).config


def test_failed_trials_keep_reason_and_traceback_and_the_study_goes_on(config, sink):
    code = evolve(change(config, env_id="toy_environments:Faulty-raise-v0"), sink)
    assert code == 1
    study = Study(DEFAULT_STORAGE, "toy_environments:Faulty-raise-v0_main_0.064k_steps")
    assert [t.state for t in study.trials()] == [TrialState.FAIL] * 3
    for trial in study.trials():
        assert trial.system_attrs["error"]["reason"].endswith(
            "at step 51: RuntimeError: the simulator exploded"
        )
        assert (
            'raise RuntimeError("the simulator exploded")'
            in trial.system_attrs["error"]["traceback"]
        )
    assert "no trial succeeded: lifetime 0: the environment raised" in str(sink)


# -- leases --


def owner(**changes):
    return {"id": "x", **leases.myself()} | changes


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
    study.storage.set_trial_system_attr(taken.trial_id, "owner", who)
    study.store_record(taken.trial_id, 0, live(Cohort((taken.specs[0],)))[0])
    return taken, plan


def test_a_dead_owners_trial_is_taken_up_and_its_finished_lifetimes_are_kept(
    config, sink, monkeypatch
):
    evolve(change(config, nb_trials=1), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    left, _ = begin(study, study.config, owner(pid=dead_process()))
    kept = study.optuna.trials[1].system_attrs["lifetime:0"]
    lived = []
    monkeypatch.setattr(
        "erl.lifetimes.living.live", lambda job, rows: lived.append(job) or live(job)
    )
    assert evolve(change(config, nb_trials=2), sink) == 0
    again = Study(DEFAULT_STORAGE, NAME).trials()
    assert [t.state for t in again] == [TrialState.COMPLETE] * 2
    assert again[1].params == left.params
    assert again[1].system_attrs["lifetime:0"] == kept
    assert [len(job.specs) for job in lived] == [1]


ELSEWHERE = {"host": "elsewhere", "machine": "elsewhere"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "gone"),
    [
        (
            owner(pid=os.getppid(), started=leases.begun(os.getppid())),
            False,
        ),  # one of this machine needs no sign
        (owner(), True),  # this very process, where it has ended
        (owner(started=1.0), True),  # another process got its number
        (owner(pid=dead_process()), True),
        (owner(**ELSEWHERE), None),  # not known yet
    ],
)
def test_who_is_gone(who, gone, config, sink):
    evolve(change(config, nb_trials=1), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    begin(study, study.config, who)
    newcomer = Study(DEFAULT_STORAGE, NAME)
    assert [t.number for t in newcomer.reclaim()] == ([1] if gone else [])
    assert newcomer.in_doubt() == (gone is None)


class Clocks:
    """Clocks of leases in the test's hands: the monotonic one goes as told, the wall clock leaps
    whenever it is read. Threads of other tests keep theirs.
    """

    def __init__(self, monkeypatch):
        self.now, self._leaps = 0.0, itertools.cycle([0.0, 1e9, 5.0, -1e9])
        monkeypatch.setattr("erl.studies.leases.time", self)
        monkeypatch.setattr("erl.studies.leases.Lease.wait", lambda lease, _: lease.look())

    def monotonic(self):
        return self.now

    def time(self):
        return next(self._leaps)


def test_a_coordinator_elsewhere_is_gone_when_its_count_stood_still_whatever_the_clocks_say(
    config, sink, monkeypatch
):
    evolve(change(config, nb_trials=1), sink)
    study, newcomer = Study(DEFAULT_STORAGE, NAME), Study(DEFAULT_STORAGE, NAME)
    begin(study, study.config, owner(**ELSEWHERE))
    clocks = Clocks(monkeypatch)

    def watch(seconds, renewed=None):
        for _ in range(4):
            clocks.now += seconds / 4
            newcomer.lease.look()
        if renewed is not None:
            lease = {"owner": owner(**ELSEWHERE), "renewals": renewed}
            study.storage.set_study_system_attr(study._id, "lease:0", lease)
        return [t.number for t in newcomer.reclaim()], newcomer.in_doubt()

    assert watch(0, 1) == ([], True)
    assert watch(119) == ([], True)
    assert watch(0.5, 2) == ([], False)  # it lives
    assert watch(119) == ([], False)
    assert watch(0, 3) == ([], False)
    assert watch(119.5) == ([], False)
    # It is known to be gone only after `reclaim` has looked: then the command does not end yet.
    assert newcomer.reclaim() == []
    clocks.now += 1
    newcomer.lease.look()
    assert newcomer.in_doubt()
    assert watch(0) == ([1], False)
    again = Study(DEFAULT_STORAGE, NAME).trials()[1]
    assert (again.state.name, again.system_attrs["owner"]["let_go"], again.user_attrs["lost"]) == (
        "WAITING",
        True,
        1,
    )


def test_the_clock_does_not_move_when_a_process_began(monkeypatch):
    before = leases.myself()
    monkeypatch.setattr("psutil.boot_time", lambda: 1e9)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 1e9, raising=False)
    assert leases.myself() == before


def test_a_process_that_was_killed_but_not_buried_is_gone():
    process = subprocess.Popen(["sleep", "60"])
    who = owner(pid=process.pid, started=leases.begun(process.pid))
    assert leases.lives(who)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its body is left
    assert psutil.pid_exists(process.pid)
    assert not leases.lives(who)
    process.wait()


def test_a_trial_that_is_lost_too_often_fails_and_says_so(config, sink):
    evolve(change(config, nb_trials=1), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    taken, plan = begin(study, study.config, owner(pid=dead_process()))
    for lost in (1, 2, 3):
        gone = owner(id=f"coordinator {lost}", pid=dead_process())
        for _ in range(2):  # another coordinator sees the same loss, and counts no other
            study.storage.set_trial_system_attr(taken.trial_id, "owner", gone)
            study._release(taken.trial_id, gone, max_retries=9)
            waiting = study.trials("WAITING")
            assert study.take_up(waiting[0], plan) is not None
        study.storage.set_trial_system_attr(taken.trial_id, "owner", gone)
        waiting = Study(DEFAULT_STORAGE, NAME).reclaim(max_retries=2)
        trial = Study(DEFAULT_STORAGE, NAME).trials()[1]
        assert trial.user_attrs["lost"] == lost
        assert [t.number for t in waiting] == ([1] if lost < 3 else [])
        if lost < 3:
            assert list(study.take_up(waiting[0], plan).records) == [
                0
            ]  # the lifetime that had ended is kept
    assert trial.state == TrialState.FAIL
    assert trial.system_attrs["error"]["reason"].startswith(
        "lost 3 times: the process that ran it ended"
    )


@pytest.mark.slow
@pytest.mark.parametrize("when", ["letting go", "taking up"])
def test_an_end_in_the_midst_of_letting_go_or_taking_up_is_seen_at_once(
    when, config, sink, monkeypatch
):
    evolve(change(config, nb_trials=1), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    _, plan = begin(study, study.config, owner(pid=dead_process()))
    with monkeypatch.context() as patch:
        ended = dict(study.lease.owner, pid=dead_process())
        patch.setattr(study.lease, "owner", ended)
        stage = {"letting go": "set_trial_state_values", "taking up": "set_trial_system_attr"}[when]
        if when == "taking up":
            [waiting] = study.reclaim()
        patch.setattr(study.storage, stage, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.reclaim() if when == "letting go" else study.take_up(waiting, plan)
    assert Study(DEFAULT_STORAGE, NAME).trials()[1].state.name == "RUNNING"
    [waiting] = Study(DEFAULT_STORAGE, NAME).reclaim()
    assert (waiting.number, waiting.user_attrs["lost"]) == (1, 1)


def test_a_trial_that_was_given_back_is_not_lost(config, sink):
    evolve(change(config, nb_trials=1), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    with study:
        begin(study, study.config, study.lease.owner)
    [waiting] = Study(DEFAULT_STORAGE, NAME).reclaim()
    assert waiting.system_attrs["owner"]["let_go"]
    assert "lost" not in waiting.user_attrs


def test_a_trial_that_was_begun_twice_because_an_answer_was_lost_counts_once(
    config, sink, monkeypatch
):
    """The database commits, and the connection ends before it can say so."""
    create, calls = optuna.storages.RDBStorage._create_new_trial, []

    def torn(self, *arguments):
        result = create(self, *arguments)
        calls.append(1)
        if len(calls) == 2:
            raise OperationalError(
                "INSERT", {}, Exception("server closed the connection unexpectedly")
            )
        return result

    monkeypatch.setattr(optuna.storages.RDBStorage, "_create_new_trial", torn)
    assert evolve(change(config, nb_trials=5), sink) == 0
    trials = Study(DEFAULT_STORAGE, NAME).trials()
    assert [t.number for t in trials if t.state.name == "COMPLETE"] == list(range(5))
    assert len({str(t.params) for t in trials[:5]}) == 5
    assert not [t for t in trials if "lost" in t.user_attrs]


def test_a_trial_too_many_waits_until_the_study_is_made_longer(config, sink, monkeypatch):
    """Two coordinators see at the same moment what is missing, and both begin it."""
    propose = Study.propose

    def late(self, *arguments):
        if not self.trials():
            begin(self, self.config, owner(pid=dead_process()))
        return propose(self, *arguments)

    monkeypatch.setattr(Study, "propose", late)
    assert evolve(change(config, nb_trials=2), sink) == 0
    *ended, waiting = Study(DEFAULT_STORAGE, NAME).trials()
    assert [t.state.name for t in ended] == ["COMPLETE"] * 2
    assert (waiting.number, waiting.state.name) == (2, "WAITING")
    assert evolve(change(config, nb_trials=3), sink) == 0
    *ended, last = Study(DEFAULT_STORAGE, NAME).trials()
    assert [t.state.name for t in (*ended, last)] == ["COMPLETE"] * 3
    assert last.params.keys() == ended[1].params.keys()
    assert "lost" not in last.user_attrs


def test_only_one_of_two_takes_a_waiting_trial_up(config, sink):
    evolve(change(config, nb_trials=1), sink)
    study, other = Study(DEFAULT_STORAGE, NAME), Study(DEFAULT_STORAGE, NAME)
    _, plan = begin(study, study.config, owner(pid=dead_process()))
    (waiting,) = study.reclaim()
    assert waiting.number == 1
    taken, late = study.take_up(waiting, plan), other.take_up(waiting, plan)
    assert list(taken.records) == [0]
    assert late is None


def test_a_coordinator_that_was_taken_for_dead_does_not_fall_over_a_trial_that_another_ended(
    config, sink
):
    evolve(change(config, nb_trials=1), sink)
    study, other = Study(DEFAULT_STORAGE, NAME), Study(DEFAULT_STORAGE, NAME)
    taken, _ = begin(study, study.config, owner())
    other.storage.set_trial_state_values(taken.trial_id, TrialState.COMPLETE, [1.0])
    study.store_record(taken.trial_id, 1, lifetime_records(study.trials()[1])[0])
    study.store_end(taken.trial_id, "COMPLETE", 2.0)
    study._release(taken.trial_id, owner())
    assert Study(DEFAULT_STORAGE, NAME).trials()[1].value == 1.0


# -- ER-MRL's journals --


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


@pytest.mark.slow
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
    assert test.stored["params"] == best.params


def test_studies_that_evolved_something_else_are_refused(sink):
    storage = DEFAULT_STORAGE
    optuna.create_study(study_name="other", storage=storage, direction="maximize").enqueue_trial({})
    study = optuna.create_study(study_name="things", storage=storage, direction="maximize")
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    optuna.create_study(study_name="two", storage=storage, directions=["maximize", "minimize"])
    for name, message in (
        ("other", "no successful trial"),
        ("things", "did not evolve"),
        ("two", "several objectives"),
    ):
        with pytest.raises(UserError, match=message):
            compare(ComparisonConfig(study=name), sink)
    with pytest.raises(
        UserError, match=r"no study 'thing' in sqlite:///studies.db; did you mean things\?; it has"
    ):
        compare(ComparisonConfig(study="thing"), sink)


def test_a_study_of_another_program_is_not_continued(config, sink):
    study = optuna.create_study(study_name=NAME, storage=DEFAULT_STORAGE, direction="maximize")
    study.optimize(lambda t: t.suggest_float("sr", 0, 1), n_trials=1)
    with pytest.raises(UserError, match="was not made by this project"):
        evolve(config, sink)


def test_what_is_stored_of_a_failure_fits_into_every_database(config, sink):
    """MySQL takes 65,535 bytes."""
    study = Study(DEFAULT_STORAGE, NAME, EvolutionStudy(env_id=ENV))
    trial_id = study.storage.create_new_trial(study._id)
    study.store_end(trial_id, "FAIL", None, ("line\n" * 50_000, "é" * 200_000 + "the end"))
    error = study.storage.get_trial(trial_id).system_attrs["error"]
    assert len(json.dumps(error)) < 65_535
    assert error["reason"].startswith("line line line")
    assert error["traceback"].endswith("the end")


def test_a_name_that_the_database_takes_for_another_one_is_refused(monkeypatch):
    """MySQL does not tell capital letters apart."""
    study = Study(DEFAULT_STORAGE, "Main", EvolutionStudy(env_id=ENV))
    monkeypatch.setattr(Study, "_create", lambda self, name: False)  # there is one of this name
    monkeypatch.setattr(RDBStorage, "get_study_id_from_name", lambda self, name: study._id)
    with pytest.raises(UserError, match=r"takes 'main' for its study 'Main', .*another name$"):
        Study(DEFAULT_STORAGE, "main", study.config)


def test_a_study_that_exists_or_not_yet():
    assert existing("sqlite:///studies.db", "x") is None
    Path("studies.db").touch()  # another process is about to make its tables
    assert existing("sqlite:///studies.db", "x") is None
    Study("sqlite:///studies.db", "y", EvolutionStudy(env_id="CartPole-v1"))
    assert existing("sqlite:///studies.db", "x") is None
    assert existing("sqlite:///studies.db", "y").name == "y"
    Path("text.db").write_text("no database, but a long enough text " * 50)
    with pytest.raises(UserError, match=r"text\.db is not a study database"):
        existing("sqlite:///text.db", "x")
