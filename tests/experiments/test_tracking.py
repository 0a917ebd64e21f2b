"""`--track`: what TensorBoard gets reaches Weights & Biases and MLflow, once, also when a study is
continued. No test needs a network.
"""

import importlib.machinery
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from servers import needed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erl.commands import main
from erl.errors import UserError
from erl.experiments import tracking
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.single import SingleConfig, run
from erl.studies.copying import copy_study
from erl.studies.flags import CopyConfig
from erl.studies.study import Study

ENV = "toy_environments:Reach-v0"
NAME = f"{ENV}_PPO_single_0.128k_steps"


class Recorder:
    """A service that keeps what it is sent, by the runs' names."""

    name = "wandb"

    def __init__(self):
        self.runs, self.opened, self.ended, self.broken = {}, [], [], False

    def open(self, study, name, identity, config):
        self.opened.append((study, name, identity))
        assert config["kind"]
        run = SimpleNamespace(id=identity or f"id-{name}", end=lambda: self.ended.append(name))

        def log(points):
            if self.broken:
                raise OSError("http://me:word@host is down")
            self.runs.setdefault(name, []).extend(points)

        run.log = log
        return run

    def where(self, study):
        return f"a list, {study}"

    def scalars(self, name):
        """By the scalars' names: (step, value), in the order in which they came."""
        found = {}
        for point in self.runs[name]:
            found.setdefault(point.tag, []).append((point.step, pytest.approx(point.value)))
        return found


@pytest.fixture
def service(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(tracking, "connect", lambda name: name and recorder)
    return recorder


def flags(**more):
    settings = {"env_id": ENV, "learner": "PPO", "steps": 128, "ep_eval": 2, "workers": 1}
    settings |= {"set": "n_steps=32,batch_size=32,n_epochs=1"}
    return SingleConfig(**(settings | more))


def logged(folder):
    """All scalars of a folder of TensorBoard logs, by name: (step, value)."""
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    tags = log.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in tags}


def logs(name):
    return Path("logs") / name.replace(":", "_")


def test_a_training_is_sent_once_and_goes_on_with_its_run(service, inline, sink):
    assert run(flags(track="wandb"), sink) == 0
    assert service.opened == [(NAME, "seed_0", None)]
    assert service.scalars("seed_0") == logged(logs(NAME) / "seed_0")
    assert service.ended == ["seed_0"]
    assert f"track:    1 run in a list, {NAME}" in sink.lines
    # A second command: what was sent is not sent again, and the new lifetime is.
    assert run(flags(track="wandb", nb_seeds=2), sink) == 0
    assert service.opened[1:] == [(NAME, "seed_1", None)]
    assert service.scalars("seed_0") == logged(logs(NAME) / "seed_0")
    # A lifetime that goes on writes another file into its folder.
    with tracking_writer(logs(NAME) / "seed_0") as writer:
        writer.add_scalar("rollout/ep_rew_mean", 1.0, 64)  # it repeats some steps
        writer.add_scalar("rollout/ep_rew_mean", 2.0, 160)
    assert run(flags(track="wandb", nb_seeds=2), sink) == 0
    assert service.opened[2:] == [(NAME, "seed_0", "id-seed_0")]
    assert service.scalars("seed_0")["rollout/ep_rew_mean"][-1] == (160, 2.0)
    assert len(service.scalars("seed_0")["rollout/ep_rew_mean"]) == 5


def tracking_writer(folder):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def test_an_evolution_and_its_test_are_sent(service, inline, sink, quick):
    settings = {"training_steps": 64, "nb_trials": 4, "nb_seeds": 1, "units": 5, "popsize": 4}
    settings |= {"learner_config": quick, "env_id": ENV, "workers": 1, "track": "wandb"}
    assert evolve(EvolutionConfig(**settings), sink) == 0
    name = f"{ENV}_main_0.064k_steps"
    assert service.opened == [(name, "evolution", None)]
    assert service.scalars("evolution") == logged(logs(name) / "evolution")
    compared = {"HP_training_steps": 64, "training_steps": 64, "nb_seeds": 1, "env_id": ENV}
    assert compare(ComparisonConfig(workers=1, track="wandb", **compared), sink) == 0
    arms = [run_name for _, run_name, _ in service.opened[1:]]
    assert len(arms) >= 2
    assert all(arm.endswith("/seed_0") for arm in arms)
    assert "PPO/seed_0" in arms


def test_what_fails_is_said_once_and_sent_the_next_time(service, inline, sink, monkeypatch):
    monkeypatch.setattr(tracking, "EVERY", 0.01)
    service.broken = True
    assert run(flags(track="wandb"), sink) == 0
    assert str(sink).count("warning: --track wandb: http://me:***@host is down") == 1
    assert "warning: not all was sent to wandb: run the command again" in sink.lines
    assert service.runs == {}
    service.broken = False
    assert run(flags(track="wandb"), sink) == 0
    assert service.scalars("seed_0") == logged(logs(NAME) / "seed_0")


def test_a_run_that_takes_nothing_keeps_back_no_other(service, inline, sink):
    opened = service.open

    def refuses_the_first(study, name, identity, config):
        if name == "seed_0":
            raise OSError("it was deleted")
        return opened(study, name, identity, config)

    service.open = refuses_the_first
    assert run(flags(track="wandb", nb_seeds=3), sink) == 0
    assert service.runs.keys() == {"seed_1", "seed_2"}
    assert "warning: --track wandb: it was deleted" in sink.lines
    assert "warning: not all was sent to wandb: run the command again" in sink.lines


def test_a_run_that_is_gone_is_begun_anew_and_a_copy_has_its_own(service, inline, sink):
    run(flags(track="wandb"), sink)
    study = Study("sqlite:///studies.db", NAME)
    whole = service.runs.pop("seed_0")
    assert study.tracked("wandb", "seed_0")["id"] == "id-seed_0"
    study.store_tracked("wandb", "seed_0", {"id": "another", "sent": {}})
    opened = service.open
    service.open = lambda study, name, identity, config: opened(study, name, None, config)
    run(flags(track="wandb"), sink)
    assert service.runs["seed_0"] == whole
    assert copy_study(CopyConfig(study=NAME, to_name="copy", to="sqlite:///studies.db"), sink) == 0
    assert Study("sqlite:///studies.db", "copy").tracked("wandb", "seed_0") is None


def records(path):
    """The records of a file of Weights & Biases: LevelDB's log, behind a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_weights_and_biases_gets_the_logs_of_worker_processes(monkeypatch, sink):
    wandb = needed("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # of another test, in its folder
    assert run(flags(track="wandb"), sink) == 0
    wandb.teardown()
    (path,) = Path("wandb").glob("offline-run-*/*.wandb")
    found, scalars = [], {}
    for data in records(path):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            found.append((record.run.display_name, record.run.run_group, record.run.project))
        if record.HasField("history"):
            row = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
            scalars[int(row["global_step"])] = float(row["rollout/ep_rew_mean"])
    assert set(found) == {("seed_0", NAME, "erl")}
    expected = logged(logs(NAME) / "seed_0")["rollout/ep_rew_mean"]
    assert scalars == {step: pytest.approx(value) for step, value in expected}
    assert Study("sqlite:///studies.db", NAME).tracked("wandb", "seed_0")["id"] in path.name


def test_mlflow_gets_the_logs(monkeypatch, inline, sink, tmp_path):
    mlflow = needed("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    for seeds in (1, 2):
        assert run(flags(track="mlflow", nb_seeds=seeds), sink) == 0
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(NAME).experiment_id
    runs = {r.info.run_name: r for r in client.search_runs([experiment])}
    assert runs.keys() == {"seed_0", "seed_1"}
    expected = logged(logs(NAME) / "seed_0")
    for tag, points in expected.items():
        history = client.get_metric_history(runs["seed_0"].info.run_id, tag)
        assert [(m.step, m.value) for m in history] == [(s, pytest.approx(v)) for s, v in points]
    assert runs["seed_0"].info.status == "FINISHED"
    assert runs["seed_0"].data.params["steps"] == "128"
    # What was deleted there is sent anew.
    client.delete_run(runs["seed_0"].info.run_id)
    with tracking_writer(logs(NAME) / "seed_0") as writer:
        writer.add_scalar("rollout/ep_rew_mean", 2.0, 160)
    assert run(flags(track="mlflow", nb_seeds=2), sink) == 0
    again = {r.info.run_name: r for r in client.search_runs([experiment])}["seed_0"]
    assert again.info.run_id != runs["seed_0"].info.run_id
    history = client.get_metric_history(again.info.run_id, "rollout/ep_rew_mean")
    assert [m.step for m in history] == [s for s, _ in expected["rollout/ep_rew_mean"]] + [160]
    client.delete_experiment(experiment)
    with tracking_writer(logs(NAME) / "seed_0") as writer:
        writer.add_scalar("rollout/ep_rew_mean", 2.0, 192)
    assert run(flags(track="mlflow", nb_seeds=2), sink) == 0
    assert f"the experiment {NAME} was deleted there: restore or purge it" in str(sink)


def test_where_runs_are_is_said_without_a_password(monkeypatch):
    client = SimpleNamespace(search_experiments=lambda max_results: [])
    monkeypatch.setattr(needed("mlflow"), "MlflowClient", lambda: client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@host:5000")
    assert tracking.MLflow().where("x") == "mlflow at http://me:***@host:5000, experiment x"


def test_a_service_that_cannot_be_used_is_said_before_anything_is_written(
    monkeypatch, capsys, tmp_path, sink
):
    words = ["train", "--env_id", ENV, "--learner", "PPO", "--track"]
    missing = {"wandb": None, "mlflow": importlib.machinery.ModuleSpec("mlflow", None)}
    with monkeypatch.context() as patch:
        patch.setattr("erl.experiments.flags.find_spec", missing.get)
        for name in missing:
            with pytest.raises(SystemExit) as e:
                main([*words, name])
            assert e.value.code == 2
            said = f"--track {name} needs the package {name}: pip install {name}"
            assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown --track 'wanbd'; did you mean wandb"):
        flags(track="wanbd")
    needed("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@localhost:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"--track mlflow cannot be used: .*localhost") as e:
        run(flags(track="mlflow"), sink)
    assert "word" not in str(e.value)
    assert not list(tmp_path.iterdir())
