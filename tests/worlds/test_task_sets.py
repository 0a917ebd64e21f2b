"""Sets against ER-MRL's, the normalised score against hand-worked numbers, files good and bad, and
the measured random returns.
"""

import dataclasses
import importlib.util
import json
import math
import sys
from importlib import metadata
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import toy_environments  # noqa: F401

from erl.cli import Display, parse
from erl.errors import UserError
from erl.statistics import normalised_score
from erl.worlds.specification import from_json, to_json
from erl.worlds.task_sets import (
    RANDOM_RETURNS,
    TASK_SETS,
    RandomReturn,
    TaskSet,
    load_task_set,
    load_task_sets,
    measured_random_returns,
    references,
    task_set_from_ids,
)
from erl.worlds.tasks import Task, check_task

ER_MRL = {
    "Ant_Swimmer": {"Ant", "Swimmer"},
    "Ant_Cheetah": {"Ant", "HalfCheetah"},
    "Cheetah_Swimmer": {"HalfCheetah", "Swimmer"},
    "Ant_4_tr_envs": {"HalfCheetah", "Hopper", "Swimmer", "Walker2d"},
    "Cheetah_4_tr_envs": {"Ant", "Hopper", "Swimmer", "Walker2d"},
    "Swimmer_4_tr_envs": {"Ant", "HalfCheetah", "Hopper", "Walker2d"},
    "Hopper_4_tr_envs": {"Ant", "HalfCheetah", "Swimmer", "Walker2d"},
    "Walker_4_tr_envs": {"Ant", "HalfCheetah", "Hopper", "Swimmer"},
    "forward_mujoco": {"Ant", "HalfCheetah", "Hopper", "Swimmer", "Walker2d"},
}
TARGETS = {
    "Ant": 125,
    "HalfCheetah": 750,
    "Swimmer": 60,
    "Hopper": 1250,
    "Walker2d": 800,
    "Humanoid": 375,
    "HumanoidStandup": 7500,
}
VERSIONS = ("v4", "v5")


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


# -- sets --


def test_shipped_sets_are_exactly_those_of_er_mrl():
    assert set(load_task_sets(TASK_SETS).sets) == set(ER_MRL)
    for name, runners in ER_MRL.items():
        task_set = load_task_set(name)
        assert task_set.name == name
        assert len(task_set.env_ids) == len(runners)
        assert set(task_set.env_ids) == {f"{r}-v4" for r in runners}
        assert set(references(task_set)) == set(task_set.env_ids)


def test_a_set_from_names():
    task_set = task_set_from_ids(" Ant-v4, Swimmer-v4 ")
    assert task_set == TaskSet("Ant-v4+Swimmer-v4", ("Ant-v4", "Swimmer-v4"))
    assert task_set_from_ids("toy_environments:Recall-v0").env_ids == (
        "toy_environments:Recall-v0",
    )


@pytest.mark.parametrize(
    ("env_ids", "said"),
    [
        ("", "names no environments"),
        (" , ", "names no environments"),
        ("Ant-v4,,Swimmer-v4", "'' is not a name"),
        ("Ant-v4 Swimmer-v4", "is not a name"),
        ("Ant-v4,Ant-v4", "holds Ant-v4 more than once"),
    ],
)
def test_bad_lists_of_names(env_ids, said):
    with pytest.raises(UserError, match=said):
        task_set_from_ids(env_ids)


def test_an_unknown_set_names_its_neighbours():
    with pytest.raises(UserError, match=r"'Ant_Swimer'; did you mean Ant_Swimmer"):
        load_task_set("Ant_Swimer")
    with pytest.raises(UserError, match=r"'zzz'; known are Ant_Swimmer, .*forward_mujoco"):
        load_task_set("zzz")


def test_a_set_survives_storage():
    task_set = TaskSet("mine", ("A-v0", "B-v1"), {"A-v0": 3.0}, {"B-v1": -1.5})
    assert from_json(TaskSet, json.loads(json.dumps(to_json(task_set)))) == task_set


# -- users' files --

TOML = """
[sets]
juggling = ["Tossing-v0", "Ant-v4"]
[target_returns]
Tossing-v0 = 100
"module:Other-v0" = 7.5
Ant-v4 = 200.0
[random_returns]
Tossing-v0 = -20.0
"""
YAML = """
sets:
  juggling: [Tossing-v0, Ant-v4]
target_returns: {Tossing-v0: 100, "module:Other-v0": 7.5, Ant-v4: 200.0}
random_returns: {Tossing-v0: -20.0}
"""


@pytest.mark.parametrize(("name", "text"), [("my.toml", TOML), ("my.yaml", YAML), ("my.YML", YAML)])
def test_users_files(name, text):
    path = write(name, text)
    declared = load_task_sets(path)
    assert declared.sets == {"juggling": ("Tossing-v0", "Ant-v4")}
    assert declared.target_returns == {"Tossing-v0": 100.0, "module:Other-v0": 7.5, "Ant-v4": 200.0}
    assert declared.random_returns == {"Tossing-v0": -20.0}
    # A set carries what the file says of its own environments, and no more.
    task_set = load_task_set("juggling", path)
    assert task_set.target_returns == {"Tossing-v0": 100.0, "Ant-v4": 200.0}
    assert task_set.random_returns == {"Tossing-v0": -20.0}
    assert task_set_from_ids("Tossing-v0", str(path)).random_returns == {"Tossing-v0": -20.0}
    ant = measured_random_returns()["Ant-v4"].return_mean
    assert references(task_set) == {"Tossing-v0": [-20, 100], "Ant-v4": [ant, 200]}
    # ER-MRL's sets stay, under the user's targets.
    assert load_task_set("Ant_Swimmer", path).target_returns == {"Ant-v4": 200.0}
    with pytest.raises(UserError, match="did you mean juggling"):
        load_task_set("jugling", path)


def test_one_table_is_enough():
    assert load_task_sets(write("a.toml", "[sets]\na = ['Ant-v4']")).target_returns == {}
    assert load_task_sets(write("b.yaml", "random_returns: {Ant-v4: 1}")).sets == {}


def test_an_environment_in_place_of_a_set_says_which_flag():
    with pytest.raises(UserError, match=r"but an environment: use --env_ids HalfCheetah-v4$"):
        load_task_set("HalfCheetah-v4")


BAD = {
    "empty": ("", "is empty"),
    "empty tables": ("[sets]", "tables are empty"),
    "no table": ("sets = 3", "sets must be a table"),
    "unknown table": (
        "[target_return]\nAnt-v4 = 1",
        "unknown table 'target_return'; did you mean target_returns",
    ),
    "far from any": (
        "[x]\ny = 1",
        "unknown table 'x'; known are sets, target_returns, random_returns",
    ),
    "empty set": ("[sets]\na = []", "'a' holds no environments"),
    "environment twice": (
        "[sets]\na = ['Ant-v4', 'Hopper-v4', 'Ant-v4']",
        "'a' holds Ant-v4 more than once",
    ),
    "set twice": ("[sets]\na = ['Ant-v4']\na = ['Hopper-v4']", "is not valid"),
    "no list": ("[sets]\na = 'Ant-v4'", "'a' must be a list of environments, not 'Ant-v4'"),
    "a number for a name": ("[sets]\na = [4]", "4 is not a name of an environment"),
    "a list for a name": (
        "[sets]\na = [['Ant-v4'], ['Ant-v4']]",
        "is not a name of an environment",
    ),
    "a name with spaces": ("[sets]\na = ['Ant v4']", "'Ant v4' is not a name"),
    "a path for a set": ("[sets]\n'../a' = ['Ant-v4']", "'../a' is not a valid name of a set"),
    "a word for a return": (
        "[target_returns]\nAnt-v4 = '125'",
        "Ant-v4 must be a finite number, not '125'",
    ),
    "true": ("[target_returns]\nAnt-v4 = true", "finite number, not True"),
    "nan": ("[random_returns]\nAnt-v4 = nan", "random_returns of Ant-v4 must be a finite number"),
    "inf": ("[target_returns]\nAnt-v4 = inf", "finite number"),
    "beyond a float": (f"[target_returns]\nAnt-v4 = 1{'0' * 400}", "finite number"),
    "beyond printing": (f"[target_returns]\nAnt-v4 = 0x{'f' * 9000}", "too long to show"),
    "nested": ("[target_returns.Ant-v4]\nx = 1", "finite number, not {'x': 1}"),
    "empty name": ("[target_returns]\n'' = 1", "'' is not a name"),
    "no TOML": ("[sets", "is not valid"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_toml(case):
    text, said = BAD[case]
    with pytest.raises(UserError) as e:
        load_task_sets(write("bad.toml", text))
    assert said in str(e.value)
    assert "bad.toml" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("- a", "must hold names and values, not a list"),
        ("sets:", "sets must be a table"),
        ("1: {}", "unknown table 1"),
        ("sets: {1: [Ant-v4]}", "1 is not a valid name of a set"),
        ("sets: {a: [Ant-v4], a: [Hopper-v4]}", "'a' is given twice"),
        ("target_returns: {1: 2}", "1 is not a name of an environment"),
        ("target_returns: {Ant-v4: '1e3'}", "finite number, not '1e3'"),
        ("sets: !!map [a, b]", "is not valid"),
        ("sets: !!python/object/apply:os.getcwd []", "is not valid"),
        ("sets: {a: [", "is not valid"),
        ("sets: " + "[" * 5000, "is not valid"),
    ],
)
def test_bad_yaml(text, said):
    with pytest.raises(UserError) as e:
        load_task_sets(write("bad.yaml", text))
    assert said in str(e.value)
    assert "bad.yaml" in str(e.value)
    assert "\n" not in str(e.value)


def test_files_that_cannot_be_read():
    with pytest.raises(UserError, match=r"cannot read .*missing\.toml"):
        load_task_sets("missing.toml")
    with pytest.raises(UserError, match=r"sets\.txt: the name of the file must end in \.yaml"):
        load_task_sets(write("sets.txt", TOML))
    Path("latin.toml").write_bytes(b"[sets]\n# \xe9")
    with pytest.raises(UserError, match="cannot read"):
        load_task_sets("latin.toml")
    Path("folder.toml").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        load_task_sets("folder.toml")


def test_the_names_of_er_mrls_sets_are_taken():
    with pytest.raises(UserError, match="'Ant_Swimmer'; give yours another name"):
        load_task_set("Ant_Cheetah", write("my.toml", "[sets]\nAnt_Swimmer = ['Ant-v4']"))


# -- references --


def test_targets_are_those_of_er_mrl_in_both_versions():
    assert load_task_sets(TASK_SETS).target_returns == {
        f"{name}-{version}": target for name, target in TARGETS.items() for version in VERSIONS
    }
    assert references(TaskSet("mine", ("Walker2d-v5",)))["Walker2d-v5"][1] == 800


def test_random_returns_are_those_that_are_shipped():
    r = json.loads(RANDOM_RETURNS.read_text())["HalfCheetah-v4"]["return_mean"]
    assert -350 < r < -220
    assert references(TaskSet("mine", ("HalfCheetah-v4",))) == {"HalfCheetah-v4": [r, 750]}


def test_published_code_mixes_rewards_of_steps_with_returns_of_episodes():
    figures = json.loads(RANDOM_RETURNS.read_text())
    task_set = load_task_set("forward_mujoco")
    published, ours = references(task_set, published=True), references(task_set)
    for env_id in task_set.env_ids:
        assert published[env_id] == [figures[env_id]["reward_mean"], ours[env_id][1]]
        assert published[env_id][0] != ours[env_id][0]
    # An agent that acts at random then scores far below 0 where random episodes are costly.
    r = figures["HalfCheetah-v4"]["return_mean"]
    assert normalised_score(r, *published["HalfCheetah-v4"]) < -0.3
    # What users declare are returns of episodes, which this mode does not take.
    declared = {"A-v0": 0.0, "Ant-v4": 9.0}
    ant = references(TaskSet("mine", ("Ant-v4",), {}, declared), published=True)["Ant-v4"]
    assert ant == published["Ant-v4"]
    with pytest.raises(UserError, match=r"A-v0.*measure it with .*--env_ids A-v0"):
        references(TaskSet("mine", ("A-v0",), {"A-v0": 1.0}, declared), published=True)


def test_a_missing_reference_says_how_to_add_it():
    with pytest.raises(UserError) as no_target:
        references(TaskSet("mine", ("CartPole-v1",), {}, {"CartPole-v1": 20.0}))
    assert "target return" in str(no_target.value)
    with pytest.raises(UserError) as no_random:
        references(TaskSet("mine", ("Tossing-v0",), {"Tossing-v0": 1.0}))
    assert "random return" in str(no_random.value)
    assert "benchmarks/random_returns.py --env_ids Tossing-v0" in str(no_random.value)
    # The lines shown do what they promise.
    text = ""
    for e in (no_target, no_random):
        assert "\n" not in str(e.value)
        heading, line = str(e.value).split("under the heading ")[1].split(" the line ")
        text += f"{heading}\n{line.replace('NUMBER', '9.5')}\n"
    declared = load_task_sets(write("added.toml", text))
    assert declared.target_returns == {"CartPole-v1": 9.5}
    assert declared.random_returns == {"Tossing-v0": 9.5}


def test_all_missing_references_are_in_one_message():
    known = TaskSet("mine", ("A-v0", "Ant-v4", "B-v0", "CartPole-v1"), {"A-v0": 1.0})
    with pytest.raises(UserError) as error:
        references(known)
    heading = "in a TOML file that --sets names: under the heading"
    assert str(error.value) == (
        "no random return is known for A-v0, B-v0: measure it with "
        "python benchmarks/random_returns.py --env_ids A-v0,B-v0, or declare it "
        f'{heading} [random_returns] the lines "A-v0" = NUMBER and "B-v0" = NUMBER; '
        f"no target return is known for B-v0, CartPole-v1: declare it "
        f'{heading} [target_returns] the lines "B-v0" = NUMBER and "CartPole-v1" = NUMBER'
    )
    with pytest.raises(UserError) as error:
        references(known, published=True)
    assert str(error.value).startswith(
        "no reward of random steps is known for A-v0, B-v0: measure it with "
        "python benchmarks/random_returns.py --env_ids A-v0,B-v0; no target return is known for "
    )


def test_a_target_below_the_random_return_is_refused():
    # ER-MRL's target is below what random actions earn in a whole episode, and above what they earn
    # in a step.
    standup = "HumanoidStandup-v4"
    with pytest.raises(UserError, match="must be above the return of random"):
        references(TaskSet("mine", ("Ant-v4", standup)))
    references(TaskSet("mine", (standup,)), published=True)
    references(TaskSet("mine", (standup,), {standup: 1e5}))
    with pytest.raises(UserError, match="must be above the return of random"):
        references(TaskSet("mine", ("A-v0",), {"A-v0": 1.0}, {"A-v0": 1.0}))


# -- measured random returns --


def test_the_measurements_cover_mujoco_and_follow_their_schema():
    figures = json.loads(RANDOM_RETURNS.read_text())
    mujoco = {
        i
        for i, s in gym.registry.items()
        if str(s.entry_point).startswith("gymnasium.envs.mujoco.")
    }
    mujoco = {i for i in mujoco if i.endswith(VERSIONS)}
    assert len(mujoco) == 22
    with pytest.raises(UserError, match="cannot be made"):
        check_task(Task("Pusher-v4"))  # the one exception
    assert mujoco - {"Pusher-v4"} <= set(figures)
    assert {"CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"} <= set(
        figures
    )
    assert {"LunarLander-v3", "LunarLanderContinuous-v3"} <= set(figures)
    for env_id, entry in figures.items():
        assert {k: type(v) for k, v in entry.items()} == {
            f.name: f.type for f in dataclasses.fields(RandomReturn)
        }
        assert all(math.isfinite(v) for v in entry.values() if isinstance(v, float))
        assert entry["episodes"] >= 100
        assert entry["seed"] >= 0
        assert entry["return_standard_error"] >= 0
        assert 1 <= entry["length_mean"] <= (gym.spec(env_id).max_episode_steps or math.inf)
        # Steps pooled over episodes: the mean reward is the mean return over the mean length.
        assert entry["reward_mean"] * entry["length_mean"] == pytest.approx(
            entry["return_mean"], rel=1e-5, abs=1e-5
        )
        assert measured_random_returns()[env_id] == RandomReturn(**entry)


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Walker2d-v5"])
def test_the_random_policy_scores_zero(env_id):
    env = gym.make(env_id)
    env.action_space.seed(12345)
    returns = []
    for episode in range(100):
        env.reset(seed=None if episode else 54321)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    ((r_random, r_target),) = references(TaskSet("one", (env_id,))).values()
    scores = normalised_score(np.array(returns), r_random, r_target)
    measured, span = measured_random_returns()[env_id], r_target - r_random
    error = math.hypot(
        scores.std(ddof=1) / math.sqrt(len(scores)), measured.return_standard_error / span
    )
    assert abs(scores.mean()) < 4 * error
    assert error < 0.01  # or the line above would say nothing


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "benchmarks" / "random_returns.py"
    spec = importlib.util.spec_from_file_location("random_returns", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["random_returns"] = module  # where the flags' types are looked up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["random_returns"]


def test_a_measurement_does_not_depend_on_what_runs_beside_it(script):
    one, many, fewer = (
        script.random_episodes("Hopper-v5", n, 3, slots) for n, slots in ((9, 1), (9, 4), (5, 5))
    )
    for a, b, c in zip(one, many, fewer):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[:5], c)
    assert len(set(one[0])) == 9
    assert not np.isin(script.random_episodes("Hopper-v5", 9, 4)[0], one[0]).any()


def test_returns_and_lengths_are_those_of_whole_episodes(script):
    returns, lengths = script.random_episodes("CartPole-v1", 20, 0, slots=3)
    np.testing.assert_array_equal(returns, lengths)
    returns, lengths = script.random_episodes("toy_environments:Recall-v0", 40, 0)
    assert set(lengths) == {4}
    assert set(returns) == {-1.0, 1.0}


def test_the_shipped_figures_can_be_had_again(script):
    shipped = measured_random_returns()["CartPole-v1"]
    if shipped.gymnasium != metadata.version("gymnasium"):
        pytest.skip("measured with another Gymnasium")
    again = script.measure("CartPole-v1", shipped.episodes, shipped.seed)
    assert dataclasses.replace(again, mujoco=shipped.mujoco) == shipped


def test_what_the_script_measures_by_default(script):
    assert set(script.default_env_ids()) <= set(measured_random_returns())


def test_the_script_keeps_the_figures_of_other_environments(script, capsys):
    def run(*flags):
        return script.run(parse(script.Config, [*flags, "--output", "r.json"]), Display())

    assert run("--env_ids", "CartPole-v1", "--episodes", "3") == 0
    first = json.loads(Path("r.json").read_text())
    assert run("--env_ids", "toy_environments:Recall-v0", "--episodes", "2", "--seed", "5") == 0
    both = json.loads(Path("r.json").read_text())
    assert both == {**first, "toy_environments:Recall-v0": both["toy_environments:Recall-v0"]}
    assert both["toy_environments:Recall-v0"]["seed"] == 5
    # One that breaks does not take the others with it.
    assert (
        run(
            "--env_ids",
            "toy_environments:Faulty-raise-v0,CartPole-v1",
            "--episodes",
            "200",
            "--seed",
            "1",
        )
        == 1
    )
    assert "the simulator exploded" in capsys.readouterr().err
    assert json.loads(Path("r.json").read_text())["CartPole-v1"]["episodes"] == 200


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--env_ids", "CartPole-v9"], "CartPole-v9"),
        (["--env_ids", ","], "names no environments"),
        (["--env_ids", ""], "--env_ids is empty"),
        (["--env_ids", "CartPole-v1", "--episodes", "1"], "at least 2"),
        (["--env_ids", "CartPole-v1", "--seed", "-1"], "0 or more"),
        (["--env_ids", "CartPole-v1", "--episodes", "many"], "must be a whole number"),
        (["--env_ids", "CartPole-v1", "--output", "no/folder.json"], "cannot keep the numbers"),
        (["--env_ids", "CartPole-v1", "--output", "list.json"], "cannot keep the numbers"),
        (["--env_ids", "toy_environments:Faulty-reward-v0", "--episodes", "200"], "not finite"),
        (["--env_ids", "toy_environments:Endless-v0"], "has not ended after 500 steps"),
    ],
)
def test_bad_input_of_the_script(script, monkeypatch, flags, said):
    monkeypatch.setattr(script, "LONGEST", 500)
    write("list.json", "[1]")
    with pytest.raises(UserError, match=said):
        script.run(parse(script.Config, ["--output", "r.json", *flags]), Display())
