import threading
from dataclasses import replace

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import DataError

from erl.errors import UserError
from erl.experiments.arms import known_names
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.single import SingleConfig, run
from erl.studies.configuration import EvolutionStudy, SingleStudy, evolved_arm
from erl.studies.copying import copy_study
from erl.studies.distributions import distributions, integer
from erl.studies.flags import CopyConfig
from erl.studies.following import UID
from erl.studies.notes import read_note
from erl.studies.storage import DEFAULT_STORAGE, StorageError, open_storage, study_names
from erl.studies.study import Study
from erl.studies.trials import lifetime_records, stored_records
from erl.studies.winner import TEST_OF

ENV = "toy_environments:Recall-v0"
NAME = f"{ENV}_main_0.064k_steps"
STORAGES = [DEFAULT_STORAGE, "journal.log"]


def copied(address, name, new, delete=True):
    """Rename a study as Optuna's dashboard does where it cannot do better; or only the copying."""
    storage = open_storage(address)
    old = optuna.load_study(study_name=name, storage=storage)
    study = optuna.create_study(study_name=new, storage=storage, directions=old.directions)
    study.add_trials(old.get_trials(deepcopy=False))
    for key, value in old.user_attrs.items():
        study.set_user_attr(key, value)
    if delete:
        storage.delete_study(old._study_id)


def config(quick, **more):
    settings = {"training_steps": 64, "nb_trials": 8, "nb_seeds": 2, "units": 5, "popsize": 4}
    settings |= {"sampler": "Cmaes", "learner_config": quick, "engine": "sb3", "workers": 1}
    return EvolutionConfig(env_id=ENV, **(settings | more))


def found(address, name):
    return [(t.number, t.state.name, t.params, t.value) for t in Study(address, name).trials()]


class Renaming:
    """A sink in whose hands the study is renamed when its sixth trial has ended."""

    def __init__(self, rename):
        self.lines, self.rename = [], rename

    def line(self, text):
        self.lines.append(text)
        if text.startswith("trial    5"):
            self.rename()

    def status(self, text):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("address", STORAGES)
def test_a_study_that_is_deleted_ends_the_command_in_one_line(address, quick, inline):
    def delete():
        optuna.delete_study(study_name=NAME, storage=open_storage(address))

    with pytest.raises(UserError, match=f"study '{NAME}' was deleted while this command used it$"):
        evolve(config(quick, storage=address), Renaming(delete))


@pytest.mark.parametrize("address", STORAGES)
def test_a_command_whose_study_is_renamed_goes_on_and_so_does_the_next(address, quick, told, sink):
    evolve(config(quick, storage="sqlite:///undisturbed.db"), sink)
    renaming = Renaming(lambda: copied(address, NAME, "another name"))
    assert evolve(config(quick, storage=address), renaming) == 0
    assert study_names(open_storage(address)) == ["another name"]
    assert found(address, "another name") == found("sqlite:///undisturbed.db", NAME)
    trials = Study(address, "another name").trials()
    assert all(stored_records(t).keys() == {0, 1} for t in trials)
    assert "--study 'another name'" in renaming.lines[-1]
    study = Study(address, "another name")
    assert study.optuna.metric_names == ["fitness"]
    assert "--study 'another name'" in read_note(study.storage.get_study_system_attrs(study._id))

    longer = config(quick, storage=address, nb_trials=9, study="another name")
    assert evolve(longer, sink) == 0
    assert len(found(address, "another name")) == 9


@pytest.mark.parametrize("address", STORAGES)
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (evolve, EvolutionConfig(env_id=ENV, training_steps=64, nb_trials=2, nb_seeds=1, units=5)),
        (run, SingleConfig(env_id=ENV, learner="PPO", steps=64)),
    ],
)
def test_an_interrupted_command_names_the_study_that_was_renamed(
    address, command, flags, told, sink, monkeypatch
):
    for name in ("evolution", "agents"):
        monkeypatch.setattr(f"erl.experiments.{name}.announce", lambda *_: None)

    def interrupt(spec):
        [name] = study_names(open_storage(address))
        copied(address, name, "my name")
        raise KeyboardInterrupt

    told.before = staticmethod(interrupt)
    assert command(replace(flags, workers=1, storage=address), sink) == 130
    [said] = [line for line in sink.lines if line.startswith("interrupted: ") and ";" in line]
    assert said.endswith("; run the command again with --study 'my name' to continue")


def test_a_command_whose_storage_goes_away_names_the_study_that_was_renamed():
    study = Study(DEFAULT_STORAGE, "old", EvolutionStudy(env_id=ENV))
    copied(DEFAULT_STORAGE, "old", "new")
    assert study.name_now() == "new"
    with pytest.raises(UserError, match="; run the command again with --study new to"), study:
        raise StorageError("it is away")


@pytest.mark.parametrize("address", STORAGES)
def test_a_test_is_found_when_it_or_its_evolution_was_renamed(address, quick, told, sink):
    evolve(config(quick, storage=address, nb_trials=2), sink)
    evolution = Study(address, NAME)
    arm = evolved_arm(known_names(evolution.config, evolution.best().params))
    test = ComparisonConfig(training_steps=64, nb_seeds=1, workers=1, storage=address, arms=arm)
    assert compare(replace(test, study=NAME), sink) == 0
    storage = open_storage(address)
    [name] = set(study_names(storage)) - {NAME}
    told.before = staticmethod(lambda spec: pytest.fail("trained once more"))
    copied(address, NAME, "new")
    assert compare(replace(test, study="new"), sink) == 0
    copied(address, name, "my test")
    assert compare(replace(test, study="new"), sink) == 0
    assert study_names(storage) == ["new", "my test"]
    # One that has no mark, as those of earlier versions, is found by its name and marked.
    target = {"storage": address, "to": "sqlite:///copy.db"}
    copy_study(CopyConfig(**target, study="new"), sink)
    name = f"new{name.removeprefix(NAME)}"
    copy_study(CopyConfig(**target, study="my test", to_name=name), sink)
    uid = Study("sqlite:///copy.db", "new").known_by()
    assert TEST_OF not in Study("sqlite:///copy.db", name).optuna.user_attrs
    assert compare(replace(test, study="new", storage="sqlite:///copy.db"), sink) == 0
    marked = Study("sqlite:///copy.db", name).optuna.user_attrs[TEST_OF]
    assert marked == uid + name.removeprefix("new")


def begun(study):
    """A trial of a study that this process holds."""
    space = distributions({})
    return study.create({}, space, lambda params: [])


def test_a_storage_follows_ids_that_changed_and_forgets_what_is_gone(quick, told, sink):
    evolve(config(quick, nb_trials=3), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    with study:
        before = begun(study)
        ids = [t._trial_id for t in study.trials()]
        copied(DEFAULT_STORAGE, NAME, "new")
        late = study.trials()
        assert [t.number for t in late] == [0, 1, 2, 3]
        assert not {t._trial_id for t in late} & set(ids)
        assert [study.storage.id_now(i) for i in ids] == [t._trial_id for t in late]
        assert study._owner_lives(late[3]) is True  # it is still held
        study.storage.set_trial_user_attr(before.trial_id, "here", 1)
        assert study.trials()[3].user_attrs["here"] == 1
        assert study.name_now() == "new"
        copied(DEFAULT_STORAGE, "new", "newer")  # once more
        study.storage.set_trial_user_attr(before.trial_id, "here", 2)
        assert study.trials()[3].user_attrs["here"] == 2
        assert study.storage.moves == 2
    # Left behind, the trial waits for another coordinator.
    assert Study(DEFAULT_STORAGE, "newer").trials()[3].state == TrialState.WAITING


class LateLock:
    """A lock that another thread has first, and in which it does this."""

    def __init__(self, lock, first):
        self.lock, self.first = lock, first

    def __enter__(self):
        if self.first is not None:
            first, self.first = threading.Thread(target=self.first), None
            first.start()
            first.join()
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


def test_of_two_threads_that_miss_a_renamed_study_one_finds_it_for_both(quick, told, sink):
    evolve(config(quick, nb_trials=3), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    with study:
        mine = begun(study)
        copied(DEFAULT_STORAGE, NAME, "new")
        storage = study.storage
        storage._lock = LateLock(storage._lock, storage.name_now)
        storage.set_trial_user_attr(mine.trial_id, "here", 1)
        assert storage._lock.first is None
        assert study.trials()[3].user_attrs["here"] == 1


def test_records_survive_a_rename_that_is_noticed_when_their_trial_ends(
    quick, told, sink, monkeypatch
):
    evolve(config(quick, nb_trials=3), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    record = lifetime_records(study.trials()[0])[0]
    with study:
        mine = begun(study)
        copied(DEFAULT_STORAGE, NAME, "new", delete=False)
        study.store_record(mine.trial_id, 0, record)  # into the old study, which is copied already

        def deleted(*_):
            optuna.delete_study(study_name=NAME, storage=DEFAULT_STORAGE)

        monkeypatch.setattr("erl.studies.study.note_end", deleted)
        study.store_end(mine.trial_id, "COMPLETE", 1.0)
        ended = study.trials()[3]
        assert study.storage.moves == 1
        assert (ended.state, ended.value) == (TrialState.COMPLETE, 1.0)
        assert stored_records(ended).keys() == {0}
        study.let_go(mine.trial_id)


def test_a_rename_between_a_database_s_reading_and_its_writing_is_followed(quick, told, sink):
    evolve(config(quick, nb_trials=3), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    deletions = []

    def delete_before_update(connection, cursor, statement, *_):
        if statement.startswith("UPDATE trials") and not deletions:
            deletions.append(statement)
            optuna.delete_study(study_name=NAME, storage=DEFAULT_STORAGE)

    with study:
        mine = begun(study)
        copied(DEFAULT_STORAGE, NAME, "new", delete=False)
        engine = study.storage.backend._backend.engine
        event.listen(engine, "before_cursor_execute", delete_before_update)
        study.store_end(mine.trial_id, "COMPLETE", 1.0)
        event.remove(engine, "before_cursor_execute", delete_before_update)
        assert (len(deletions), study.storage.moves) == (1, 1)
        ended = study.trials()[3]
        assert (ended.state, ended.value) == (TrialState.COMPLETE, 1.0)
        study.let_go(mine.trial_id)


def test_a_trial_that_was_begun_while_the_study_was_copied_is_as_good_as_taken(quick, told, sink):
    evolve(config(quick, nb_trials=3), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    with study:
        copy = optuna.create_study(study_name="copy", storage=DEFAULT_STORAGE)
        copy.set_user_attr(UID, study.optuna.user_attrs[UID])
        lost = begun(study)
        optuna.delete_study(study_name=NAME, storage=DEFAULT_STORAGE)
        with pytest.raises(UpdateFinishedTrialError, match="trial 3 was begun while"):
            study.storage.set_trial_user_attr(lost.trial_id, "a", 1)
        study.store_end(lost.trial_id, "COMPLETE", 1.0)  # no error: it does not count
        study.let_go(lost.trial_id)


def test_a_value_that_the_database_does_not_take_is_said_in_one_line(quick, told, sink):
    """As one that is longer than MySQL's."""
    evolve(config(quick, nb_trials=3), sink)
    study = Study(DEFAULT_STORAGE, NAME)

    def refuses(*_):
        raise StorageInternalError("...") from DataError("INSERT", {}, Exception("Data too long"))

    study.storage.backend.set_study_user_attr = refuses
    with pytest.raises(StorageError, match="Data too long") as error:
        study.optuna.set_user_attr("winner", "x")
    assert "\n" not in str(error.value)


def test_a_study_that_was_deleted_is_an_error(quick, told, sink):
    evolve(config(quick, nb_trials=3), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    study.__enter__()
    optuna.delete_study(study_name=NAME, storage=DEFAULT_STORAGE)
    with pytest.raises(UserError, match="was deleted while this command used it"):
        study.trials()
    study.lease.stop()


@pytest.mark.parametrize("address", STORAGES)
def test_nothing_is_written_into_a_study_that_has_the_numbers_of_a_deleted_one(address):
    space = {"seed": integer(0, 10)}
    old = Study(address, "old", SingleStudy("PPO", "CartPole-v1", 100))
    with old:
        trial = old.create({"seed": 1}, space, lambda params: [])
        open_storage(address).delete_study(old._id)
        new = Study(address, "new", SingleStudy("SAC", "Pendulum-v1", 100))
        with new:
            other = new.create({"seed": 7}, space, lambda params: [])
            if address == DEFAULT_STORAGE:
                assert (new._id, other.trial_id) == (old._id, trial.trial_id)
            for write in (
                lambda: old.store_end(trial.trial_id, "COMPLETE", 500.0),
                lambda: old.create({"seed": 2}, space, lambda params: []),
                old.note,
            ):
                with pytest.raises(UserError, match="study 'old' was deleted while this command"):
                    write()
    assert found(address, "new") == [(0, "WAITING", {"seed": 7}, None)]


def test_processes_that_begin_a_study_together_know_it_by_the_same(monkeypatch):
    """Its creator says what it is known by before it says what it is, for which others wait."""
    config = SingleStudy("PPO", "CartPole-v1", 100)
    keys = []
    set_attr = optuna.Study.set_user_attr
    monkeypatch.setattr(
        optuna.Study, "set_user_attr", lambda s, k, v: (keys.append(k), set_attr(s, k, v))
    )
    Study(DEFAULT_STORAGE, "new", config)
    assert keys.index(UID) < keys.index("config")
