"""Deleting studies: what goes, what stays, and what is refused."""

from functools import partial
from pathlib import Path

import optuna
import pytest
import told_lifetimes
from test_commands import call
from told_lifetimes import NAME

from erl.experiments.evolution import evolve
from erl.studies import deletion, leases
from erl.studies.configuration import EvolutionStudy, TestStudy
from erl.studies.leases import Lease
from erl.studies.retries import RetryingStorage
from erl.studies.storage import DEFAULT_STORAGE, StorageError, open_storage, study_names
from erl.studies.study import Study
from erl.studies.winner import TEST_OF

make, study = (
    partial(f, storage=DEFAULT_STORAGE) for f in (told_lifetimes.make, told_lifetimes.study)
)
TEST = f"{NAME}_trial_1_test_0.128k_steps"


@pytest.fixture
def evolved(told, sink):
    """An evolution with finals, its test, files in the dashboard, and folders."""
    assert evolve(make(nb_trials=4), sink) == 0
    Study(DEFAULT_STORAGE, TEST, TestStudy(EvolutionStudy(env_id="CartPole-v1"), {}, 128, "sb3"))
    study().optuna.set_user_attr(f"tested:{TEST}", {})
    Path("notes.txt").write_text("kept\n")
    study().attach("notes.txt")
    study().attach("notes.txt", trial_id=study().trials()[0]._trial_id)
    for folder in (f"models/{NAME}", f"logs/{NAME}", f"runs/{NAME}_finals", "models/other"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "file").touch()


def names():
    return study_names(open_storage(DEFAULT_STORAGE))


def everything():
    return {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}


def test_without_yes_it_says_what_would_go_and_changes_nothing(evolved, capsys):
    before = everything()
    code, lines, err = call(capsys, "delete", "--study", NAME)
    assert (code, err) == (0, "")
    assert everything() == before
    assert lines[0] == "this would be deleted from sqlite:///studies.db:"
    assert lines[1].startswith(f"  study {NAME}_finals: finals, trials: ")
    assert lines[2] == (
        f"  study {NAME}: evolution, trials: 4 complete, 2 files in studies.db.artifacts"
    )
    stays = [line for line in lines if line.startswith("stays: ")]
    assert f"stays: runs/{NAME}_finals with 1 file; --files deletes it too" in stays
    assert f"stays: study {TEST}, a test of this evolution" in stays
    assert "other" not in "\n".join(lines)
    assert lines[-1] == "nothing is deleted yet: --yes deletes it"
    assert f"  models/{NAME} with 1 file" in call(capsys, "delete", "--study", NAME, "--files")[1]
    assert everything() == before


def test_a_test_that_was_renamed_is_named(evolved, capsys):
    config = TestStudy(EvolutionStudy(env_id="CartPole-v1"), {}, 128, "sb3")
    for name, uid in (("my test", study().known_by()), ("another's", "else")):
        Study(DEFAULT_STORAGE, name, config).optuna.set_user_attr(TEST_OF, f"{uid}_trial_1_test")
    lines = call(capsys, "delete", "--study", NAME)[1]
    assert "stays: study my test, a test of this evolution" in lines
    assert "another's" not in "\n".join(lines)


def test_a_study_goes_with_its_finals_and_files_and_folders_stay(evolved, sink, capsys):
    code, lines, err = call(capsys, "delete", "--study", NAME, "--yes")
    assert (code, err) == (0, "")
    assert names() == [TEST]
    assert list(Path("studies.db.artifacts").iterdir()) == []
    assert Path(f"models/{NAME}/file").exists()
    assert Path("notes.txt").exists()
    assert f"stays: models/{NAME} with 1 file; --files deletes it too" in lines
    assert f"stays: study {TEST}, a test of this evolution" in lines
    # Its name is free.
    sink.lines.clear()
    assert evolve(make(nb_trials=1, logs="others"), sink) == 0
    assert not any(line.startswith("goes on") for line in sink.lines)


def test_its_folders_go_if_asked_for_and_no_others(evolved, capsys):
    Path("elsewhere").mkdir()
    Path("elsewhere/file").touch()
    Path(f"runs/{NAME}").symlink_to("../elsewhere")
    code, lines, _ = call(capsys, "delete", "--study", NAME, "--files", "--yes")
    assert code == 0
    assert f"deleted: models/{NAME} with 1 file" in lines
    left = {str(p) for top in ("models", "logs", "runs") for p in Path(top).iterdir()}
    assert left == {"models/other"}
    assert Path("elsewhere/file").exists(), "what a link leads to"


def test_a_folder_that_another_study_shares_stays(told, sink, capsys):
    for name in ("a:b", "a/b", ".."):
        optuna.create_study(study_name=name, storage=DEFAULT_STORAGE)
    Path("models/a_b").mkdir(parents=True)
    code, lines, _ = call(capsys, "delete", "--study", "a:b", "--files", "--yes")
    assert code == 0
    assert "stays: models/a_b, which is also the folder of the study a/b" in lines
    assert call(capsys, "delete", "--study", "..", "--files", "--yes")[0] == 0
    assert Path("models/a_b").is_dir()
    assert Path("studies.db").exists()
    assert names() == ["a/b"]


@pytest.mark.parametrize("after", range(6))
def test_a_deletion_that_was_interrupted_is_repeated(after, evolved, capsys, monkeypatch):
    """Whatever it had deleted: three folders, two files, the finals."""
    steps = []

    def interrupted(real, *arguments):
        steps.append(real)
        if len(steps) > after:
            raise KeyboardInterrupt
        return real(*arguments)

    words = ("delete", "--study", NAME, "--files", "--yes")
    with monkeypatch.context() as patch:
        patch.setattr(deletion, "remove", partial(interrupted, deletion.remove))
        delete = RetryingStorage.delete_study
        patch.setattr(RetryingStorage, "delete_study", lambda *a: interrupted(delete, *a))
        assert call(capsys, *words)[0] == 130
    assert len(steps) == after + 1
    assert NAME in names()
    assert call(capsys, *words)[0] == 0
    assert names() == [TEST]
    left = [
        p for top in ("models", "logs", "runs", "studies.db.artifacts") for p in Path(top).iterdir()
    ]
    assert left == [Path("models/other")]


def test_no_file_goes_where_the_storage_cannot_be_written(evolved, capsys, monkeypatch):
    before = everything()

    def refuses(*arguments):
        raise StorageError("it is read-only")

    monkeypatch.setattr(RetryingStorage, "set_study_system_attr", refuses)
    code, lines, err = call(capsys, "delete", "--study", NAME, "--files", "--yes")
    assert (code, lines, err.count("\n")) == (2, [], 1)
    assert everything() == before


def test_a_closed_folder_is_refused_and_a_name_too_long_for_one_is_not(evolved, capsys, closed):
    words = ("delete", "--study", NAME, "--yes", "--models", "closed/m")
    code, lines, err = call(capsys, *words)
    assert (code, lines) == (2, [])
    assert f"closed/m/{NAME}_finals cannot be read: Permission denied" in err
    assert NAME in names()
    optuna.create_study(study_name="x" * 300, storage=DEFAULT_STORAGE)
    assert call(capsys, "delete", "--study", "x" * 300, "--yes")[0] == 0


def test_what_cannot_be_deleted_is_named(evolved, capsys, monkeypatch):
    def refuses(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("erl.studies.deletion.shutil.rmtree", refuses)
    code, lines, _ = call(capsys, "delete", "--study", NAME, "--files", "--yes")
    assert code == 1
    assert f"failed: models/{NAME} could not be deleted: Permission denied" in lines
    assert names() == [TEST]


def test_a_deleted_test_and_deleted_finals_are_named_where_they_stay_known(evolved, capsys):
    code, lines, _ = call(capsys, "delete", "--study", TEST, "--yes")
    assert (code, lines[-1]) == (0, f"study {NAME} still says what this test found")
    code, lines, _ = call(capsys, "delete", "--study", f"{NAME}_finals", "--yes")
    assert code == 0
    assert f"study {NAME} keeps the winner that these finals chose" in lines
    assert names() == [NAME]


def test_files_that_a_copy_names_too_stay(evolved, capsys):
    """Optuna's own copies share them."""
    optuna.copy_study(
        from_study_name=NAME,
        from_storage=DEFAULT_STORAGE,
        to_storage=DEFAULT_STORAGE,
        to_study_name="copy",
    )
    assert call(capsys, "delete", "--study", NAME, "--yes")[0] == 0
    assert len(list(Path("studies.db.artifacts").iterdir())) == 2


@pytest.mark.parametrize("works_on", [NAME, f"{NAME}_finals"])
def test_a_study_on_which_a_command_works_is_refused(works_on, evolved, capsys):
    before = names()
    with study(works_on):
        for words in ([], ["--yes"]):
            code, lines, err = call(capsys, "delete", "--study", NAME, *words)
            assert (code, lines, err.count("\n")) == (2, [], 1)
            assert f"a command works on study '{works_on}', process " in err
    assert names() == before
    assert call(capsys, "delete", "--study", NAME, "--yes")[0] == 0


@pytest.mark.parametrize("alive", [True, False])
def test_a_command_on_another_machine_is_waited_for(alive, evolved, capsys, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.4)
    owner = {"id": "x", "machine": "elsewhere", "host": "far", "pid": 7, "started": 1.0}
    one = study()
    held = {"owner": owner, "renewals": 1}
    one.storage.set_study_system_attr(one._id, "lease:0", held)
    assert call(capsys, "delete", "--study", NAME)[0] == 0  # it only says what would be
    if alive:
        wait = Lease.wait

        def renewed(self, seconds):
            held["renewals"] += 1
            one.storage.set_study_system_attr(one._id, "lease:0", held)
            wait(self, seconds)

        monkeypatch.setattr(Lease, "wait", renewed)
    code, lines, err = call(capsys, "delete", "--study", NAME, "--yes")
    assert "waiting for up to 0 s to see whether the command on far" in lines[0]
    assert code == (2 if alive else 0)
    assert ("process 7 on far: stop it first" in err) == alive
    assert (NAME in names()) == alive


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--study is missing: name the study to delete"),
        ("--study CartPole-v1_main_0.12k_steps", f"did you mean {NAME}"),
        ("--study x --storage sqlite:///none.db", "there is no study database"),
    ],
)
def test_bad_input(words, said, evolved, capsys):
    before = everything()
    code, lines, err = call(capsys, "delete", "--yes", *words.split())
    assert (code, lines, err.count("\n")) == (2, [], 1)
    assert said in err
    assert everything() == before
