import http.client
import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pytest
from browser import CHROMIUM, Browser
from faults import Case
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.trial import TrialState
from servers import needed

from erl.errors import UserError
from erl.experiments import display
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.studies.artefacts import folder_of
from erl.studies.dashboard import make_dashboard
from erl.studies.flags import DashboardConfig
from erl.studies.storage import DEFAULT_STORAGE, open_storage
from erl.studies.study import Study
from erl.studies.trials import lifetime_records

get_note = needed("optuna_dashboard").get_note

NAME = "CartPole-v1_main_0.256k_steps"
TEST = f"{NAME}_trial_{{}}_test_0.256k_steps"


class Server:
    """A dashboard that answers in a thread."""

    def __init__(self, storage=DEFAULT_STORAGE):
        self.server = make_dashboard(DashboardConfig(storage=storage, port=0))
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.headers["Content-Type"].startswith("application/json")
        return answer.status, json.loads(content) if is_json else content

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server():
    made = []

    def make(storage=DEFAULT_STORAGE):
        made.append(Server(storage))
        return made[-1]

    yield make
    for one in made:
        one.close()


def evolution(quick, **more):
    settings = {"training_steps": 256, "nb_trials": 4, "nb_seeds": 2, "units": 5, "popsize": 4}
    settings |= {"learner_config": quick, "engine": "sb3", "workers": 1}
    return EvolutionConfig(env_id="CartPole-v1", **(settings | more))


@pytest.fixture
def curves(monkeypatch):
    monkeypatch.setattr(display, "CURVE_SECONDS", 0.0)


def fail(study):
    """A trial that failed with much to say."""
    trial = study.storage.create_new_trial(study._id)
    error = {"reason": "word " * 300, "traceback": "x" * 5000}
    study.storage.set_trial_system_attr(trial, "error", error)
    study.storage.set_trial_state_values(trial, TrialState.FAIL)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_pages_show_study_best_trial_curve_and_film_and_none_is_wider_than_the_window(
    server, quick, inline, sink, curves, tmp_path
):
    evolve(evolution(quick, nb_trials=2, nb_seeds=1), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    best = study.best().number
    fail(study)
    flags = ComparisonConfig(
        study=NAME, training_steps=256, nb_seeds=1, arms="PPO", workers=1, video=True
    )
    compare(flags, sink)
    test = Study(DEFAULT_STORAGE, TEST.format(best))
    page = f"http://127.0.0.1:{server().port}/dashboard/studies"
    browser = Browser(tmp_path)
    try:
        text = browser.open(f"{page}/{study._id}", "Intermediate values", f"trial #{best}")
        assert f"Best Trial (number={best})" in text
        assert "Objective 0" not in text
        assert browser.overflow() <= 0

        shown = [f"Trial {best}", "fitness", "episodes", "curve.png"]
        text = browser.open(f"{page}/{study._id}/trials?numbers={best}", *shown)
        # Beside its note, all that is shown of the trial is short.
        assert "lifetime:0" not in text
        assert browser.overflow() <= 0
        until_loaded(browser, "img", "naturalWidth")

        browser.open(f"{page}/{study._id}/trials?numbers=2", "Trial 2", "Fail")
        assert browser.overflow() <= 0
        browser.open(f"{page}/{study._id}/note", "1 seed x 256 steps", f"--study {NAME}")
        assert browser.overflow() <= 0

        shown = ["seed_0.zip", "seed_0.mp4", "-m erl film"]
        browser.open(f"{page}/{test._id}/trials?numbers=0", *shown)
        assert browser.overflow() <= 0
        until_loaded(browser, "video", "videoWidth")
    finally:
        browser.close()


def until_loaded(browser, tag, size):
    from browser import until

    script = f"[...document.querySelectorAll('main {tag}, {tag}')].some(e => e.{size} > 100)"
    until(lambda: browser.run(script))


def test_notes_are_what_the_dashboard_reads_and_a_users_words_stay(quick, told, sink):
    evolve(evolution(quick), sink)
    study = Study(DEFAULT_STORAGE, NAME)
    loaded = optuna.load_study(study_name=NAME, storage=DEFAULT_STORAGE)
    note = get_note(loaded)
    best = study.best()
    for words in (
        "evolution: PPO in CartPole-v1",
        "2 seeds x 256 steps, root seed 0",
        "4 complete",
        f"trial {best.number}",
        "2,048 steps in",
        f"--study {NAME} --training_steps 256`",
    ):
        assert words in note
    assert loaded.user_attrs["commit"] in note
    attrs = study.storage.get_study_system_attrs(study._id)
    record = lifetime_records(best)[1]
    from erl.studies.notes import read_note, write_note

    of_best = read_note(attrs, best._trial_id)
    assert f"environment {record.spec.seeds.environment}" in of_best
    assert f"{record.steps:,} steps" in of_best

    # A user writes below the line, or in its place; the note is written anew.
    write_note(study.storage, study._id, note.partition("*What")[0])
    assert get_note(loaded) == note  # nothing changed
    from optuna_dashboard import save_note

    save_note(loaded, note + "\n\nmy own words")
    evolve(evolution(quick, nb_trials=5), sink)
    assert get_note(loaded).endswith("stays.*\n\nmy own words")
    assert "5 complete" in get_note(loaded)
    save_note(loaded, "nothing but mine")
    study.note()
    assert get_note(loaded).endswith("nothing but mine")
    assert get_note(loaded).count("5 complete") == 1
    long = "\n".join(f"- line {i}" for i in range(900))
    write_note(study.storage, study._id, long)
    assert long in get_note(loaded)
    write_note(study.storage, study._id, "short")
    assert get_note(loaded).startswith("short\n")
    assert "line" not in get_note(loaded).partition("*What")[0]
    write_note(study.storage, study._id, "long" * 20_000)
    assert get_note(loaded).startswith(f"{'long' * 2500}\n\n*What")


class Twofold:
    """A storage in which another coordinator writes its note before the k-th write of this one."""

    def __init__(self, storage, k, other):
        self._storage, self._left, self._other = storage, k, other

    def get_study_system_attrs(self, study_id):
        return self._storage.get_study_system_attrs(study_id)

    def set_study_system_attr(self, study_id, key, value):
        if self._left == 0:
            self._other()
        self._left -= 1
        self._storage.set_study_system_attr(study_id, key, value)


# The line ends in the first piece, in a later one, between two, and there is none.
@pytest.mark.parametrize("head", [100, 3000, 2045 - 20, 2045 - 39, None])
@pytest.mark.parametrize("mine", [50, 5000])
def test_what_a_user_wrote_stays_whoever_writes_the_note_at_the_same_time(head, mine):
    from optuna_dashboard import save_note

    from erl.studies.notes import LINE, write_note

    own = " ".join(map(str, range(2000)))
    above = "" if head is None else f"{'h' * (head - 2)}\n\n{LINE}"
    notes = ["m" * mine, "o" * 2500]
    storage = optuna.storages.InMemoryStorage()
    for k in range(8):
        study = optuna.create_study(storage=storage)
        save_note(study, f"{above}\n\n{own}")
        write = partial(write_note, study_id=study._study_id)
        twofold = Twofold(storage, k, partial(write, storage, text=notes[1]))
        write(twofold, text=notes[0])
        if k == 0:
            assert twofold._left < 0  # there was a write to come between
        found, _, below = get_note(study).partition(LINE)
        assert found.strip() in notes
        assert below.strip() == own
        for text in notes:
            write(storage, text=text)
            assert get_note(study) == f"{text}\n\n{LINE}{below}"


def test_curves_and_models_are_files_of_their_trials_and_a_copy_takes_them_along(
    quick, inline, sink, curves
):
    from erl.studies.copying import CopyConfig, copy_study

    evolve(evolution(quick, nb_trials=1, nb_seeds=1), sink)
    best = Study(DEFAULT_STORAGE, NAME).best().number
    flags = ComparisonConfig(study=NAME, training_steps=256, nb_seeds=1, arms="PPO", workers=1)
    compare(flags, sink)
    test = TEST.format(best)
    Path("late.txt").write_text("late")
    study = Study(DEFAULT_STORAGE, test)
    [trial] = study.trials()
    study.attach("late.txt", trial_id=trial._trial_id)  # it has ended
    study.attach("late.txt", "of the study.txt")
    Path("late.txt").write_text("later")
    study.attach("late.txt", trial_id=trial._trial_id)  # replaced

    def files(storage, name):
        loaded = optuna.load_study(study_name=name, storage=open_storage(storage))
        store = FileSystemArtifactStore(folder_of(storage))
        [trial] = loaded.trials
        metas = get_all_artifact_meta(trial, storage=loaded._storage)
        metas += get_all_artifact_meta(loaded)
        key = f"dashboard:artifacts:{trial._trial_id}:"
        attrs = loaded._storage.get_study_system_attrs(loaded._study_id)
        late = [json.loads(v) for k, v in attrs.items() if k.startswith(key)]
        found = {m.filename: m.artifact_id for m in metas}
        found |= {m["filename"]: m["artifact_id"] for m in late}
        return {n: store.open_reader(i).read() for n, i in found.items()}

    there = files(DEFAULT_STORAGE, test)
    models = Path("models") / test / "PPO"
    assert there.keys() == {
        "curve.png", "seed_0.zip", "seed_0.json", "late.txt", "of the study.txt",
    }  # fmt: skip
    assert there["seed_0.zip"] == (models / "seed_0.zip").read_bytes()
    assert there["curve.png"].startswith(b"\x89PNG")
    assert there["late.txt"] == b"later"

    open_storage("sqlite:///other.db", create=True)
    optuna.create_study(study_name="first", storage="sqlite:///other.db")
    other = optuna.load_study(study_name="first", storage="sqlite:///other.db")
    other.add_trials([optuna.create_trial(value=1.0)] * 3)  # ids of the copy are others
    assert copy_study(CopyConfig(study=test, to="sqlite:///other.db"), sink) == 0
    assert files("sqlite:///other.db", test) == there
    copy = Study("sqlite:///other.db", test)
    note = f"dashboard:{copy.trials()[0]._trial_id}:note_str:0"
    assert "final policy" in copy.storage.get_study_system_attrs(copy._id)[note]

    # A copy in the same folder has files of its own.
    Path("sub").mkdir()
    same = DEFAULT_STORAGE.replace("///", "///sub/../")
    assert copy_study(CopyConfig(study=test, to=same, to_name="twin"), sink) == 0
    assert files(DEFAULT_STORAGE, "twin") == there
    twin = Study(DEFAULT_STORAGE, "twin")
    Path("new.txt").write_text("of the twin")
    twin.attach("new.txt", "late.txt", trial_id=twin.trials()[0]._trial_id)
    twin.attach("new.txt", "of the study.txt")
    assert files(DEFAULT_STORAGE, test) == there
    changed = files(DEFAULT_STORAGE, "twin")
    assert changed["late.txt"] == changed["of the study.txt"] == b"of the twin"

    key = next(k for k in study.storage.get_study_system_attrs(study._id) if "artifacts:" in k)
    missing = folder_of(DEFAULT_STORAGE) / key.rpartition(":")[2]
    missing.unlink()
    assert copy_study(CopyConfig(study=test, to="journal:more.log"), sink) == 0
    assert "1 of its files" in str(sink)


def test_no_files_are_attached_where_none_are_wanted_or_the_disk_refuses(
    quick, inline, sink, curves, caplog
):
    one = evolution(quick, nb_trials=1, nb_seeds=1)
    evolve(replace(one, artifacts=False), sink)
    assert not folder_of(DEFAULT_STORAGE).exists()
    folder_of(DEFAULT_STORAGE).write_text("a file is in the way")
    assert evolve(replace(one, h_test="other"), sink) == 0
    assert "has not all its files in the dashboard" in caplog.text
    assert Study(DEFAULT_STORAGE, "CartPole-v1_other_0.256k_steps").best() is not None


def test_a_rename_keeps_the_study_and_all_that_belongs_to_it(server, quick, told, sink):
    evolve(evolution(quick), sink)
    optuna.create_study(study_name="taken", storage=DEFAULT_STORAGE)
    dashboard, study = server(), Study(DEFAULT_STORAGE, NAME)
    before = open_storage(DEFAULT_STORAGE).get_study_system_attrs(study._id)
    path = f"/api/studies/{study._id}/rename"
    assert dashboard.ask("POST", path, {"study_name": "taken"})[0] == 400
    assert dashboard.ask("POST", path, {"study_name": "  "})[0] == 400
    assert dashboard.ask("POST", path, {})[0] == 400
    assert dashboard.ask("POST", "/api/studies/99/rename", {"study_name": "a"})[0] == 404
    status, said = dashboard.ask("POST", path, {"study_name": "my name"})
    assert (status, said["study_id"], said["study_name"]) == (201, study._id, "my name")
    assert study.name_now() == "my name"
    renamed = Study(DEFAULT_STORAGE, "my name")
    assert renamed._id == study._id
    assert renamed.storage.get_study_system_attrs(study._id) == before
    assert [t._trial_id for t in renamed.trials()] == [t._trial_id for t in study.trials()]
    status, said = dashboard.ask("GET", f"/api/studies/{study._id}")
    assert (status, said["name"]) == (200, "my name")


def test_a_command_goes_on_under_its_new_name_when_it_is_renamed_in_place(
    server, quick, told, sink
):
    evolve(evolution(quick, storage="sqlite:///undisturbed.db", nb_trials=8), sink)

    class Renaming(type(sink)):
        def line(self, text):
            super().line(text)
            if text.startswith("trial    5"):
                dashboard.ask("POST", "/api/studies/1/rename", {"study_name": "new"})

    evolve(evolution(quick, nb_trials=1), sink)
    dashboard = server()
    renaming = Renaming()
    assert evolve(evolution(quick, nb_trials=8), renaming) == 0
    values = [t.value for t in Study("sqlite:///undisturbed.db", NAME).trials()]
    assert [t.value for t in Study(DEFAULT_STORAGE, "new").trials()] == values
    assert "--study new" in str(renaming)


@pytest.mark.slow
def test_it_is_asked_again_and_again_while_several_commands_write(server):
    case = Case(DEFAULT_STORAGE, nb_trials=12)
    dashboard = None
    processes = [case.start(), case.start()]
    asked = 0
    while any(p.is_alive() for p in processes):
        if dashboard is None:
            try:
                dashboard = server()
            except UserError:  # there is no database yet
                continue
        for path in ("/api/studies", "/api/studies/1"):
            status, _ = dashboard.ask("GET", path)
            assert status == 200 or not case.look()
            asked += status == 200
    assert [p.exitcode for p in processes] == [0, 0]
    assert asked > 10
    outcome = case.finish()
    assert (outcome.lost, outcome.changed, outcome.relived) == (0, 0, 0)


def test_what_cannot_be_served_is_said(monkeypatch):
    with pytest.raises(UserError, match="there is no study database"):
        make_dashboard(DashboardConfig(storage="sqlite:///missing.db", port=0))
    open_storage(DEFAULT_STORAGE, create=True)
    first = make_dashboard(DashboardConfig(port=0))
    with pytest.raises(UserError, match="--port takes another"):
        make_dashboard(DashboardConfig(port=first.server_port))
    first.server_close()
    with pytest.raises(UserError, match="from 0 to 65535"):
        DashboardConfig(port=1 << 16)
    monkeypatch.setitem(__import__("sys").modules, "optuna_dashboard", None)
    with pytest.raises(UserError, match=r"erl\[dashboard\]"):
        make_dashboard(DashboardConfig(port=0))
