"""One learner on one task: flags, what is stored and reported, going on, and the command itself."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from stable_baselines3 import PPO, TD3

from erl.cli import parse
from erl.errors import UserError
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.flags import MAX_SEED
from erl.experiments.single import SingleConfig, lifetime, parse_settings, run, study_config
from erl.studies.distributions import integer
from erl.studies.records import records
from erl.studies.study import Study
from erl.worlds.specification import Seeds

RE2 = (
    "init_steps=60,learning_starts=50,batch_size=16,pr=8,frac_frames_train=0.1,time_steps=5,"
    "eval_freq=0,sync_period=1"
)


def config(**flags):
    defaults = {
        "env_id": "toy_environments:Reach-v0",
        "steps": 300,
        "set": RE2,
        "ep_eval": 2,
        "workers": 1,
        "checkpoint_minutes": 0.0,
    }
    return SingleConfig(**{**defaults, **flags})


def test_settings_on_the_command_line():
    assert parse_settings(None) == {}
    assert parse_settings("pr=64,theta=0.3, EA=false,device=cpu,tau=5e-3") == {
        "pr": 64,
        "theta": 0.3,
        "EA": False,
        "device": "cpu",
        "tau": 0.005,
    }
    assert parse_settings(
        "learning_rate=lin_3e-4,policy_kwargs=dict(net_arch=[64, 64], activation_fn=nn.ReLU)"
    ) == {
        "learning_rate": "lin_3e-4",
        "policy_kwargs": "dict(net_arch=[64, 64], activation_fn=nn.ReLU)",
    }
    assert parse_settings("net=[1, 2],more={a: 1, b: 2}") == {
        "net": [1, 2],
        "more": {"a": 1, "b": 2},
    }
    nested = (
        "policy_kwargs={net_arch: {pi: [8, 8], qf: [8]}},b=[[1, 2], [3]],c='1,5',"
        "d=dict(net_arch=dict(pi=[4], vf=[4]))"
    )
    assert parse_settings(nested) == {
        "policy_kwargs": {"net_arch": {"pi": [8, 8], "qf": [8]}},
        "b": [[1, 2], [3]],
        "c": "1,5",
        "d": "dict(net_arch=dict(pi=[4], vf=[4]))",
    }
    assert parse_settings("a='1',b=1") == {"a": "1", "b": 1}
    assert parse_settings('{pr: 64, "EA": false}') == {"pr": 64, "EA": False}
    assert parse_settings("{}") == {}
    for text in (
        "pr",
        "=3",
        "a b=3",
        "x=[1",
        "a=1,a=2",
        "a=2020-01-01",
        "a=2020-13-45",
        "a=!!int x",
        "a=&x [*x]",
        "{1: 2}",
        "{true: 2}",
        "{a b: 2}",
        "{null: 2}",
        "{a: 1, a: 2}",
    ):
        with pytest.raises(UserError, match="--set"):
            parse_settings(text)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"seeds": "1,x"}, "--seeds must be whole numbers"),
        ({"seeds": ""}, "--seeds must be whole numbers"),
        ({"set": "thta=1"}, "did you mean theta"),
        ({"set": "OFF_TYPE=7"}, "OFF_TYPE must be 0 or 1"),
        (
            {"learner": "PPO", "env_id": "CartPole-v1", "set": "eval_freq=-1"},
            "eval_freq must be a whole number from 0",
        ),
        ({"learner": "ERLRe2", "set": None}, "unknown learner"),
        ({"env_id": "CartPole-v1"}, "continuous"),
        ({"h_test": "../x"}, "not a valid name"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seed": 5, "published_code": True}, "--seed 5 would change nothing: .* --nb_seeds"),
        ({"set": "{1: 2}"}, "--set takes {NAME: VALUE}, and 1 is not a name"),
        (
            {"context": "own_contexts:DelayLine", "context_set": "{1: 2}"},
            "--context_set takes {NAME: VALUE}, and 1 is not a name",
        ),
    ],
)
def test_bad_input_writes_nothing(flags, says, sink):
    with pytest.raises(UserError, match=says):
        run(config(**flags), sink)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_seeds_are_trained_stored_and_not_trained_again(sink):
    assert run(config(nb_seeds=2), sink) == 0
    name = "toy_environments:Reach-v0_ERL-Re2_single_0.3k_steps"
    frame = records("sqlite:///studies.db", name)
    assert sorted(frame.seed) == [0, 1]
    assert list(frame.sort_values("seed").seed_learner) == [
        Seeds.derive(0, "single", k).learner for k in range(2)
    ]
    assert "ERL-Re2 (rl)" in str(sink)
    folder = Path("models") / name.replace(":", "_")
    assert {p.name for p in folder.iterdir()} == {
        f"seed_{k}{e}" for k in range(2) for e in (".zip", ".rl.zip", ".json")
    }
    TD3.load(folder / "seed_1.rl.zip")
    assert list(Path("logs").rglob("events*"))
    assert not list(Path("runs").rglob("*.pkl*")), (
        "checkpoints and status go when the record is stored"
    )
    before = frame.to_json()
    assert run(config(seeds="1,3"), sink) == 0
    after = records("sqlite:///studies.db", name)
    assert sorted(after.seed) == [0, 1, 3]
    assert after[after.seed < 2].to_json() == before
    with pytest.raises(UserError, match="another configuration"):
        run(config(set=f"{RE2},theta=0.9"), sink)


@pytest.mark.parametrize("dry_run", [False, True])
def test_agents_of_another_database_are_not_replaced(dry_run, sink):
    flags = config(learner="PPO", env_id="CartPole-v1", set=None, dry_run=dry_run)
    agent = Path("models/CartPole-v1_PPO_single_0.3k_steps/seed_7.zip")
    agent.parent.mkdir(parents=True)
    agent.touch()
    with pytest.raises(UserError, match=r"holds agents of a study called .*--models"):
        run(flags, sink)
    files = [path for path in Path.cwd().rglob("*") if path.is_file()]
    assert files == [agent.absolute()], "nothing was written"


@pytest.mark.usefixtures("inline")
def test_a_study_that_is_only_named_says_which_command_began_it(sink, monkeypatch):
    begun = ["erl", "train", "--learner", "PPO", "--env_id", "CartPole-v1", "--steps", "64"]
    monkeypatch.setattr("sys.argv", begun)
    flags = config(learner="PPO", env_id="CartPole-v1", set="n_steps=64,batch_size=64", steps=64)
    assert run(flags, sink) == 0
    with pytest.raises(UserError) as e:
        run(SingleConfig(study="CartPole-v1_PPO_single_0.064k_steps", workers=1), sink)
    assert "learner is 'PPO' there and 'ERL-Re2' here" in str(e.value)
    assert str(e.value).endswith(f"it was begun by: {' '.join(begun)}")


@pytest.mark.usefixtures("inline")
def test_a_study_goes_on_beside_its_agents(sink):
    flags = config(learner="PPO", env_id="CartPole-v1", set="n_steps=64,batch_size=64", steps=64)
    assert run(flags, sink) == 0
    assert run(replace(flags, nb_seeds=2), sink) == 0
    Path("studies.db").unlink()
    with pytest.raises(UserError, match="--models"):
        run(flags, sink)
    assert run(replace(flags, models="others"), sink) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("learner", "kind"), [("PPO", PPO), ("td3", TD3)])
def test_every_learner(learner, kind, sink):
    settings = (
        "n_steps=64,batch_size=32,n_epochs=1"
        if kind is PPO
        else "learning_starts=50,buffer_size=500"
    )
    assert run(config(learner=learner, set=settings), sink) == 0
    (model,) = Path("models").rglob("seed_0.zip")
    kind.load(model)
    assert "seed   0  return" in str(sink)


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("ends", ["complete", "fail", "killed"])
def test_seeds_that_another_process_trains_are_waited_for(ends, sink, monkeypatch):
    assert run(config(), sink) == 0
    assert "other processes" not in str(sink)
    name = "toy_environments:Reach-v0_ERL-Re2_single_0.3k_steps"
    seed = {"seed": integer(0, MAX_SEED)}
    sink.lines.clear()
    with Study("sqlite:///studies.db", name) as other:
        first = other.trials()[0].system_attrs["lifetime:0"]
        asked, not_asked = (other.create({"seed": k}, seed, lambda params: []) for k in (4, 5))
        pauses = []

        def pause(self):
            pauses.append(self)
            if len(pauses) < 3:
                return
            if ends == "complete":
                other.storage.set_trial_system_attr(asked.trial_id, "lifetime:0", first)
                other.store_end(asked.trial_id, "COMPLETE", 1.0)
            elif ends == "fail":
                other.store_end(asked.trial_id, "FAIL", None, ("broken", None))
            else:
                other.lease.stop()

        monkeypatch.setattr(Study, "pause", pause)
        code = run(config(seeds="0,4"), sink)
    assert len(pauses) == 3
    assert code == (1 if ends == "fail" else 0)
    waiting = "waiting for 2 trials that other processes run; Ctrl-C does not stop them"
    assert sink.lines.count(waiting) == 1
    said = "1 lifetime of this study that this command did not ask for is running in other proc"
    assert (said in str(sink)) == (ends != "killed")
    trained = [t.number for t in other.trials("COMPLETE") if t.params["seed"] == 4]
    assert trained == ([] if ends == "fail" else [asked.number])
    assert not_asked.number not in [t.number for t in other.trials("COMPLETE")]


@pytest.mark.usefixtures("inline")
def test_where_nothing_has_finished_no_figures_are_named(sink):
    assert run(config(env_id="toy_environments:Faulty-reward-v0", steps=200), sink) == 1
    assert "no lifetime has finished yet" in sink.lines
    assert "figures:" not in str(sink)


@pytest.mark.usefixtures("inline")
def test_a_failed_lifetime_is_told_and_tried_again(sink):
    flags = {"env_id": "toy_environments:Faulty-reward-v0", "steps": 200}
    assert run(config(**flags), sink) == 1
    assert "not finite" in str(sink)
    assert run(config(**flags), sink) == 1
    study = Study(
        "sqlite:///studies.db", "toy_environments:Faulty-reward-v0_ERL-Re2_single_0.2k_steps"
    )
    assert len(study.trials("FAIL")) == 2
    assert f"studies show --study {study.name} --trial 1" in str(sink)


def test_published_seeds(sink):
    stored = study_config(config(), sink)
    assert lifetime(replace(stored, published_code=True), 3).seeds == Seeds.published(3)
    assert lifetime(stored, 3).seeds == Seeds.derive(0, "single", 3)


@pytest.mark.usefixtures("inline")
def test_a_root_seed_that_means_nothing_stays_in_a_study_that_has_it(sink, monkeypatch):
    flags = config(published_code=True, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(SingleConfig, "seed", 5)  # as when it was taken
        assert run(flags, sink) == 0
    assert run(replace(flags, nb_seeds=2), sink) == 0
    name = "toy_environments:Reach-v0_ERL-Re2_single_0.3k_steps"
    assert sorted(records("sqlite:///studies.db", name).seed_learner) == [0, 1]


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("finalists", [None, 2])
def test_other_kinds_of_studies_are_refused(finalists, quick, sink):
    evolution = EvolutionConfig(
        env_id="CartPole-v1",
        training_steps=64,
        nb_trials=4,
        popsize=4,
        nb_seeds=1,
        units=5,
        finalists=finalists,
        finalist_seeds=5 if finalists is None else 1,
        learner_config=quick,
        workers=1,
    )
    assert evolve(evolution, sink) == 0
    name = "CartPole-v1_main_0.064k_steps" + "_finals" * (finalists is not None)
    kind = "evolution" if finalists is None else "finals"
    before = Path("studies.db").read_bytes()
    with pytest.raises(UserError, match=f"kind is '{kind}' there and 'single' here"):
        run(config(study=name), sink)
    assert Path("studies.db").read_bytes() == before


@pytest.mark.usefixtures("inline")
def test_an_evolution_does_not_go_on_with_a_training(quick, sink):
    assert run(config(), sink) == 0
    name = "toy_environments:Reach-v0_ERL-Re2_single_0.3k_steps"
    flags = {"env_id": "toy_environments:Reach-v0", "learner_config": quick, "workers": 1}
    before = Path("studies.db").read_bytes()
    with pytest.raises(UserError, match="kind is 'single' there and 'evolution' here"):
        evolve(EvolutionConfig(study=name, nb_trials=1, finalists=2, **flags), sink)
    assert Path("studies.db").read_bytes() == before


def test_flags():
    parsed = parse(
        SingleConfig,
        ["--learner", "ERL-Re2", "--env_id", "HalfCheetah-v4", "--training-timesteps", "5000"],
    )
    assert (parsed.steps, parsed.env_id) == (5000, "HalfCheetah-v4")
    assert SingleConfig(seeds="4, 2,4").indices() == [4, 2]


def test_a_slurm_array_index_picks_the_seed(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert SingleConfig(nb_seeds=3).indices() == [7]
    assert SingleConfig(nb_seeds=3, seeds="1,2").indices() == [1, 2]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7x")
    with pytest.raises(UserError, match="SLURM_ARRAY_TASK_ID"):
        SingleConfig().indices()


@pytest.mark.slow
def test_the_command_with_a_worker():
    flags = [
        "--env_id",
        "toy_environments:Reach-v0",
        "--steps",
        "300",
        "--set",
        RE2,
        "--ep_eval",
        "2",
    ]
    command = [sys.executable, "-m", "erl", *flags, "--nb_seeds", "2", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ERL-Re2 (rl)" in done.stdout
