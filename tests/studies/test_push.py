"""`erl studies push`: the folder and the model card of a study, and what the Hub's client is asked
for. Nothing is sent.
"""

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from servers import needed

from erl.commands import main
from erl.errors import UserError
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.single import SingleConfig, run
from erl.files import parse_yaml
from erl.lifetimes.models import load_model
from erl.studies.commands import show_study
from erl.studies.flags import PushConfig, ShowConfig
from erl.studies.push import push_study, without_machines
from erl.studies.storage import open_storage, study_names
from erl.studies.study import Study

ENV = "toy_environments:Recall-v0"
EVOLVED = f"{ENV}_main_0.064k_steps"


class Hub:
    """The Hub's client; it keeps what it is asked for, and what lies in the folder then."""

    def __init__(self, asked, fault=None):
        self.asked, self.fault = asked, fault

    def create_repo(self, *arguments, **named):
        self.asked.append(("create_repo", arguments, named))

    def upload_folder(self, **named):
        if self.fault is not None:
            raise self.fault
        folder = named.pop("folder_path")
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        card = (folder / "README.md").read_text(encoding="utf-8")
        self.asked.append(("upload_folder", named, files, card))


def hub(monkeypatch, fault=None):
    asked = []
    client = SimpleNamespace(HfApi=lambda: Hub(asked, fault))
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    return asked


@pytest.fixture
def trained(inline, sink, monkeypatch):
    """The name of a study with two agents."""
    words = ["train", "--env_id", "CartPole-v1", "--storage", "sqlite:///studies.db"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/erl", *words])
    settings = "n_steps=32,batch_size=32,n_epochs=1"
    flags = SingleConfig(
        env_id="CartPole-v1",
        learner="PPO",
        steps=64,
        ep_eval=2,
        workers=1,
        nb_seeds=2,
        set=settings,
    )
    assert run(flags, sink) == 0
    return "CartPole-v1_PPO_single_0.064k_steps"


def test_a_folder_holds_card_tables_and_agents(trained, sink, tmp_path):
    assert push_study(PushConfig(study=trained, folder="new/out"), sink) == 0
    out = tmp_path / "new" / "out"
    files = {p.name for p in out.iterdir()}
    assert files == {
        *("README.md", "study.json", "trials.csv", "lifetimes.csv", "arms.csv"),
        *("seed_0.zip", "seed_0.json", "seed_1.zip", "seed_1.json"),
    }
    _, head, card = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    head = parse_yaml(head)
    assert head["library_name"] == "erl"
    assert "CartPole-v1" in head["tags"]
    (index,) = head["model-index"]
    frame = pd.read_csv(out / "arms.csv")
    lifetimes = pd.read_csv(out / "lifetimes.csv")
    value = index["results"][0]["metrics"][0]["value"]
    assert (
        value == f"{lifetimes.final_return.mean():.2f} +/- {lifetimes.final_return.std(ddof=0):.2f}"
    )
    assert f"{frame.IQM.iloc[0]:,.4g}" in card
    for said in (
        *("training of PPO in CartPole", "numbers of the seeds are 0, 1", "- torch ", "- python "),
        "erl train --env_id CartPole-v1 --storage sqlite:///studies.db",
        'load_model("./seed_0")',
        "With 2 seeds the intervals mean nothing",
    ):
        assert said in card, said
    stored = json.loads((out / "study.json").read_text())
    assert stored["config"] == Study("sqlite:///studies.db", trained).stored
    spec, agent = load_model(out / "seed_1")
    observation, _ = spec.make_env().reset(seed=1)
    assert agent.predict(observation, deterministic=True)[0] in (0, 1)
    assert "hf upload USER/NAME new/out" in str(sink)


def test_a_folder_of_a_private_study_is_uploaded_as_one(trained, sink, monkeypatch):
    monkeypatch.setattr("erl.studies.push.installed", "/environment/bin/{}".format)
    assert push_study(PushConfig(study=trained, folder="out", private=True), sink) == 0
    assert "/environment/bin/hf upload USER/NAME out --private" in str(sink)


def test_agents_that_are_not_there_are_said(trained, sink):
    assert push_study(PushConfig(study=trained, folder="out"), sink) == 0
    assert "no trained agents" not in str(sink)
    assert push_study(PushConfig(study=trained, folder="none", models="elsewhere"), sink) == 0
    assert f"no trained agents in elsewhere/{trained}: --models names the folder above" in str(sink)


def test_the_hubs_client_is_given_the_folder(trained, sink, monkeypatch):
    with monkeypatch.context() as patch:
        asked = hub(patch)
        push_study(PushConfig(study=trained, repo="me/pole", private=True), sink)
    created, (_, named, files, card) = asked
    assert created == ("create_repo", ("me/pole",), {"private": True, "exist_ok": True})
    assert named == {"repo_id": "me/pole", "commit_message": trained}
    assert {"README.md", "seed_0.zip"} <= files
    assert 'snapshot_download("me/pole")' in card
    assert f"https://huggingface.co/me/pole: {trained}" in sink.lines
    # The real client takes what this one was given.
    real = needed("huggingface_hub.hf_api").HfApi
    inspect.signature(real.create_repo).bind(None, *created[1], **created[2])
    inspect.signature(real.upload_folder).bind(None, folder_path=".", **named)


def test_the_hub_reads_the_head_of_a_card(trained, sink):
    cards = needed("huggingface_hub")
    push_study(PushConfig(study=trained, folder="out"), sink)
    data = cards.ModelCard(Path("out/README.md").read_text(encoding="utf-8")).data
    (result,) = data.eval_results
    assert (result.task_type, result.dataset_name) == ("reinforcement-learning", "CartPole-v1")
    assert result.metric_type == "mean_reward"


def test_an_evolution_and_its_test(inline, sink, quick, monkeypatch):
    settings = {"training_steps": 64, "nb_trials": 4, "nb_seeds": 1, "units": 5, "popsize": 4}
    monkeypatch.setattr(sys, "argv", ["evolve_res.py", "--env_id", ENV])
    evolve(EvolutionConfig(env_id=ENV, learner_config=quick, workers=1, **settings), sink)
    monkeypatch.setattr(sys, "argv", ["/x/erl/__main__.py", "test", "--redis_password", "word"])
    compare(ComparisonConfig(study=EVOLVED, training_steps=64, nb_seeds=1, workers=1), sink)
    show_study(ShowConfig(study=EVOLVED), sink)
    assert f"begun by: python evolve_res.py --env_id {ENV}" in sink.lines
    push_study(PushConfig(study=EVOLVED, folder="evolved"), sink)
    card = Path("evolved/README.md").read_text(encoding="utf-8")
    assert "Every trial has the seeds 0 to 0" in card
    assert "evolution: PPO in " in card
    assert f"python evolve_res.py --env_id {ENV}" in card
    # What its test found of it.
    (winner,) = [line for line in card.splitlines() if line.startswith("- **winner**: trial ")]
    assert "on test seeds (1 seed, after 64 steps)" in winner
    [found] = [k for k in json.loads(Path("evolved/study.json").read_text()) if "tested:" in k]
    assert "_test_" in found
    assert "Run an agent" not in card
    names = study_names(open_storage("sqlite:///studies.db"))
    (tested,) = [name for name in names if "_test_" in name]
    push_study(PushConfig(study=tested, folder="t"), sink)
    card = Path("t/README.md").read_text(encoding="utf-8")
    assert f"python evolve_res.py --env_id {ENV}\npython -m erl test --redis_password '***'" in card
    assert Path("t/PPO/seed_0.zip").exists()


@pytest.mark.parametrize(
    ("line", "pushed"),
    [
        (
            "python evolve_res.py --storage 'postgresql+psycopg://me:***@node1:5466/studies' "
            "--cluster ray:10.0.0.1:6379 --nb_trials 4",
            "python evolve_res.py --storage 'ADDRESS' --cluster ADDRESS --nb_trials 4",
        ),
        (
            "erl train --storage=grpc://node1:13000 --seeds 3",
            "erl train --storage=ADDRESS --seeds 3",
        ),
        (
            "erl evolve --warm_start 'mysql://node1/s#A_1k'",
            "erl evolve --warm_start 'ADDRESS#A_1k'",
        ),
        *(
            (f"erl train {words} --seed 1", f"erl train {pushed} --seed 1")
            for words, pushed in (
                ("--ray_address node1", "--ray_address ADDRESS"),
                ("--ray-address=node1:2", "--ray-address=ADDRESS"),
                (
                    "--set gamma=1,ray_address=h:1,threads=2",
                    "--set gamma=1,ray_address=ADDRESS,threads=2",
                ),
            )
        ),
        ('{"a": "https://x.org/a"}', '{"a": "https://x.org/a"}'),
        ('{"ray_address": "h:1", "a": 1}', '{"ray_address": "ADDRESS", "a": 1}'),
        ('{"ray_address": null, "a": 1}', '{"ray_address": null, "a": 1}'),
        ("erl train --storage sqlite:////tmp/a.db", "erl train --storage sqlite:////tmp/a.db"),
        ("erl train --storage journal:a.log", "erl train --storage journal:a.log"),
    ],
)
def test_commands_name_no_server_and_no_cluster(line, pushed):
    assert without_machines(line) == pushed


def test_what_cannot_be_pushed(trained, sink, monkeypatch, capsys):
    for flags, said in (
        ({}, "either --repo, the repository to upload to, or --folder"),
        ({"repo": "me/pole", "folder": "out"}, "either --repo"),
        ({"repo": "pole"}, "USER/NAME, not 'pole'"),
    ):
        with pytest.raises(UserError, match=said):
            PushConfig(study=trained, **flags)
    with pytest.raises(UserError, match="models exists: name a new folder"):
        push_study(PushConfig(study=trained, folder="models"), sink)
    with pytest.raises(UserError, match="/proc/x cannot be written"):
        push_study(PushConfig(study=trained, folder="/proc/x"), sink)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit) as e:
        main(["studies", "push", "--study", trained, "--repo", "me/pole"])
    assert e.value.code == 2
    assert "--repo needs the package huggingface_hub" in capsys.readouterr().err
    hub(monkeypatch, OSError("401: log in"))
    with pytest.raises(UserError, match=r"me/pole cannot be uploaded: 401: log in; --folder"):
        push_study(PushConfig(study=trained, repo="me/pole"), sink)


@pytest.mark.usefixtures("closed")
def test_a_folder_that_is_closed_is_named(trained, sink):
    for flags, said in (
        ({"models": "closed"}, f"closed/{trained} cannot be read"),
        ({"models": "closed/m"}, f"closed/m/{trained} cannot be read"),
        ({"folder": "closed/f"}, "closed/f cannot be written"),
    ):
        with pytest.raises(UserError, match=f"^{said}: Permission denied$"):
            push_study(PushConfig(study=trained, **({"folder": "out"} | flags)), sink)
    assert not Path("out").exists()


def test_a_folder_is_whole_or_not_there(trained, sink, monkeypatch, tmp_path):
    before = {p.name for p in tmp_path.iterdir()}

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(UserError, match="out cannot be written: No space left on device"):
        push_study(PushConfig(study=trained, folder="out"), sink)
    assert {p.name for p in tmp_path.iterdir()} == before
