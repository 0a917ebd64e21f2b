"""Learners on the environments of `peculiar_environments`: served, or refused in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from gymnasium import spaces
from peculiar_environments import EXPECTED, PECULIAR
from stable_baselines3.common.vec_env import DummyVecEnv

from erl.errors import EnvironmentFault, UserError
from erl.learners import OWN
from erl.learners.sb3 import algorithms
from erl.lifetimes.living import Cohort, check, live
from erl.worlds.actions import Actions
from erl.worlds.ledger import Ledger
from erl.worlds.observations import Observations
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task, check_task
from erl.worlds.world import World

OFF_POLICY = {"learning_starts": 4, "batch_size": 4, "buffer_size": 100}
SMALL = {"policy_kwargs": {"net_arch": [8]}}
ON_POLICY = {"n_steps": 16, "batch_size": 8, "n_epochs": 1, **SMALL}
EVOLVED = {
    "hidden": [8],
    "batch_size": 4,
    "buffer_size": 200,
    "learning_starts": 8,
    "actor_update_cost": 0.25,
    "critic_update_cost": 0.5,
}
CEM = {"population_size": 4, "rl_population": 2}
MEAN = {"mean_evaluations": 1, "critic_job": 5, "actor_workers": 2}
VALUES = (spaces.Discrete,)
CHOICES = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
FORCES = (spaces.Box,)
# Learner, engine -> settings, and the actions that it knows.
LEARNERS = {
    ("PPO", "cohort"): (ON_POLICY, CHOICES + FORCES),
    ("PPO", "sb3"): (ON_POLICY, CHOICES + FORCES),
    ("A2C", "sb3"): (SMALL, CHOICES + FORCES),
    ("TRPO", "sb3"): ({"n_steps": 16, "batch_size": 8, **SMALL}, CHOICES + FORCES),
    ("RecurrentPPO", "sb3"): (
        {**ON_POLICY, "policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 8}},
        # sb3-contrib's own does not train MultiBinary actions.
        (spaces.Discrete, spaces.MultiDiscrete, *FORCES),
    ),
    ("ARS", "sb3"): ({"n_delta": 2, "n_top": 1, **SMALL}, VALUES + FORCES),
    ("DQN", "sb3"): ({**OFF_POLICY, **SMALL}, VALUES),
    ("QRDQN", "sb3"): ({**OFF_POLICY, **SMALL}, VALUES),
    ("SAC", "sb3"): ({**OFF_POLICY, **SMALL}, FORCES),
    ("SAC", "cohort"): ({**OFF_POLICY, **SMALL}, FORCES),
    ("TD3", "cohort"): ({**OFF_POLICY, **SMALL}, FORCES),
    ("DDPG", "cohort"): ({**OFF_POLICY, **SMALL}, FORCES),
    ("TD3", "sb3"): ({**OFF_POLICY, **SMALL}, FORCES),
    ("DDPG", "sb3"): ({**OFF_POLICY, **SMALL}, FORCES),
    ("TQC", "sb3"): ({**OFF_POLICY, **SMALL}, FORCES),
    ("CrossQ", "sb3"): ({**OFF_POLICY, **SMALL}, FORCES),
    ("ERL-Re2", "auto"): (
        {
            "init_steps": 5,
            "learning_starts": 4,
            "batch_size": 4,
            "buffer_size": 200,
            "pop_size": 3,
            "eval_freq": 0,
            "frac_frames_train": 0.1,
        },
        FORCES,
    ),
    ("DERL", "auto"): (
        {
            "population_size": 2,
            "num_episodes_per_iter": 1,
            "learning_starts": 4,
            "batch_size": 4,
            "buffer_size": 200,
            "hidden": [8],
        },
        VALUES + FORCES,
    ),
    ("CEM-RL", "auto"): ({**EVOLVED, **CEM}, FORCES),
    ("P-CEM-RL", "auto"): ({**EVOLVED, **CEM, "actor_workers": 2}, FORCES),
    ("ACEM-RL", "auto"): (
        {**EVOLVED, "population_size": 4, "critic_job": 5, "actor_workers": 2},
        FORCES,
    ),
    ("(1+1)-ES", "auto"): ({**EVOLVED, **MEAN}, FORCES),
    ("AES-RL", "auto"): ({**EVOLVED, **MEAN, "mean_update_param": 3.0}, FORCES),
}
# Environments on which all learners are run: each kind of actions, parts of observations, and a
# fault in training.
BY_ALL = (
    "DictObservation",
    "ShiftedAction",
    "MultiDiscreteActionTable",
    "MultiBinaryActionTable",
    "TwoByTwoForces",
    "NotANumberLater",
)
# On the others one of each kind: values, forces and both, ours and Stable-Baselines3's. All of them
# step environments in the same ways.
ON_ALL = (
    *(("PPO", "cohort"), ("PPO", "sb3"), ("DQN", "sb3"), ("SAC", "cohort"), ("SAC", "sb3")),
    *(("ERL-Re2", "auto"), ("DERL", "auto")),
)
RESERVOIR = Context((ReservoirParams(units=5, sr=0.9, lr=0.5, rc_connectivity=0.5),), skip_c=True)


def lifetime(name, learner="PPO", engine="cohort", context=None, steps=64, **task):
    settings, _ = LEARNERS[learner, engine]
    return LifetimeSpec(
        Task(f"peculiar_environments:{name}-v0", **task),
        LearnerSpec(learner, settings, engine),
        steps,
        Seeds.derive(0, "single", 0),
        context,
        ep_eval=1,
        fitness="final_eval",
    )


def test_all_learners_are_run():
    assert {name for name, engine in LEARNERS if engine == "sb3"} == {*algorithms()}
    own = {name: "cohort" if learner.cohort else "auto" for name, learner in OWN.items()}
    assert {*LEARNERS} >= {*own.items()}
    assert {*BY_ALL} <= {*EXPECTED}
    served = [PECULIAR[n].get("action_space", spaces.Discrete(2)) for n in BY_ALL]
    assert {type(space) for space in served} == {*CHOICES, *FORCES}


@pytest.mark.parametrize("name", [n for n, e in EXPECTED.items() if e.refused])
def test_what_cannot_be_served_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=EXPECTED[name].refused) as refusal:
        check_task(Task(f"peculiar_environments:{name}-v0"))
    assert "\n" not in str(refusal.value)
    assert name in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, e in EXPECTED.items() if not e.refused])
def test_learners_serve_it_or_refuse_its_actions(name):
    actions = PECULIAR[name].get("action_space", spaces.Discrete(2))
    fails = EXPECTED[name].fails
    for learner, engine in LEARNERS if name in BY_ALL else ON_ALL:
        _, known = LEARNERS[learner, engine]
        spec = lifetime(name, learner, engine, RESERVOIR if learner == "PPO" else None)
        if not isinstance(actions, known):
            with pytest.raises(UserError, match=r"actions|action space") as refusal:
                check(spec)
            assert "\n" not in str(refusal.value)
            continue
        check(spec)
        (record,) = live(Cohort((spec,)))
        if fails is None:
            assert record.error is None, (learner, record.traceback)
            assert record.final_returns == (5.0,), learner
        else:
            with pytest.raises(RuntimeError, match=fails):
                raise RuntimeError(record.error)
            assert record.fitness is None


@pytest.mark.parametrize("name", [n for n, e in EXPECTED.items() if not any(e)])
@pytest.mark.parametrize(("task", "context"), [({}, None), ({"frame_stack": 3}, RESERVOIR)])
def test_all_ways_to_step_show_the_same(name, task, context):
    """An environment by itself, and in lockstep: observations, rewards and ends."""
    spec = lifetime(name, context=context, **task)
    world, env = World([spec], [Ledger()]), spec.make_env()
    assert (world.observation_space, world.action_space) == spec.spaces()
    assert (env.observation_space, env.action_space) == spec.spaces()
    env.action_space.seed(0)
    ours, (theirs, _) = world.begin(0, seed=3), env.reset(seed=3)
    for _ in range(5):
        assert theirs.dtype == env.observation_space.dtype
        assert env.observation_space.contains(theirs) or name == "FractionsInAnIntegerBox"
        assert np.array_equal(ours, theirs)
        action = env.action_space.sample()
        (ours,), rewards, (terminated,), (truncated,) = world.advance(np.array([action]))
        theirs, reward, *ends, _ = env.step(action)
        assert (rewards[0], [terminated, truncated]) == (reward, ends)
    assert terminated
    world.close(), env.close()


@pytest.mark.parametrize("context", [None, RESERVOIR])
@pytest.mark.parametrize("name", ["OneVector", "OneTable"])
def test_the_last_observation_of_an_episode_is_not_the_next_ones_first(name, context):
    """As Stable-Baselines3 gets it, which begins the next episode before it looks."""
    spec = lifetime(name, context=context)
    world, envs = World([spec], [Ledger()]), DummyVecEnv([spec.make_env])
    world.begin(0, seed=3), envs.seed(3), envs.reset()
    for _ in range(5):
        (ours,), *_ = world.advance(np.array([0]))
        *_, (info,) = envs.step([0])
    assert np.array_equal(info["terminal_observation"], ours)
    world.close(), envs.close()


SCRIPT = """
import json, sys
from erl.errors import UserError
from erl.worlds.tasks import Task, check_task

said = {}
for name in sys.argv[1:]:
    try:
        check_task(Task(name))
        said[name] = "served"
    except UserError as e:
        said[name] = str(e)
print(json.dumps([said, __debug__]))
"""


def test_without_assertions_and_from_another_folder_the_same_is_said(tmp_path):
    """A script that lies elsewhere, run with `python -O`, finds modules of the working folder."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "script.py").write_text(SCRIPT)
    (tmp_path / "mine.py").write_text(
        "import gymnasium as gym\nfrom peculiar_environments import Peculiar\n"
        "gym.register('Mine-v0', Peculiar)"
    )
    names = [f"peculiar_environments:{n}-v0" for n, e in EXPECTED.items() if e.refused]
    command = [sys.executable, "-O", str(tmp_path / "bin" / "script.py"), "mine:Mine-v0", *names]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    said, debugging = json.loads(run.stdout)
    assert not debugging
    assert said.pop("mine:Mine-v0") == "served"
    for name, message in said.items():
        with pytest.raises(UserError) as refusal:
            check_task(Task(name))
        assert message == str(refusal.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_between_minus_one_and_one_stay_within_the_bounds(dtype):
    """Whatever the sum rounds to."""
    rng = np.random.default_rng(0)
    for low, width in zip(rng.integers(-30, 30, 500) / 10, rng.integers(1, 50, 500) / 10):
        space = spaces.Box(low, low + width, (1,), dtype)
        for actions in Actions(space).scale(np.array([[-1.0], [1.0], [0.3]])):
            assert space.contains(actions)


@pytest.mark.parametrize("name", ["DictObservation", "UnsortedDict", "TupleObservation"])
def test_observations_are_those_that_gymnasium_flattens(name):
    space = PECULIAR[name]["observation_space"]
    space.seed(3)
    observations = Observations(space, name)
    for _ in range(5):
        sample = space.sample()
        np.testing.assert_array_equal(observations.encode(sample), spaces.flatten(space, sample))


@pytest.mark.parametrize(
    ("space", "right", "wrong"),
    [
        (
            spaces.Discrete(3, start=-1),
            [1, np.int64(1), np.int8(1), 1.0, True, np.array(1), np.array(1.0), "1", [[1]]],
            [2, -2, np.int64(5), 0.5, np.nan, None, "0.5", [1, 1], np.array([1])],
        ),
        (
            spaces.MultiDiscrete([2, 3]),
            [np.array([1, 2]), [1, 2], (1, 2), np.array([1, 2], np.uint8), np.array([1.0, 2.0])],
            [[1, 3], np.array([1, 3]), np.array([[1, 2]]), np.array([1, 2, 0]), [-1, 0], 1],
        ),
        (
            spaces.MultiBinary(2),
            [np.array([0, 1], np.int8), [0, 1], np.array([False, True])],
            [np.array([0, 2]), np.array([-1, 1], np.int8), [0.5, 1]],
        ),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_whole_numbers_that_come_again_are_encoded_and_refused_as_the_first_time(
    space, right, wrong
):
    def answers(observations, value):
        try:
            return observations.encode(value).tolist()
        except EnvironmentFault as fault:
            return str(fault)

    again = Observations(space)
    for value in [*right, *wrong, *right, *wrong]:
        first = Observations(space)
        assert answers(again, value) == answers(first, value)
    expected = spaces.flatten(space, space.dtype.type(right[0]))
    assert all(isinstance(answers(again, value), str) for value in wrong)
    for value in right[:3]:
        row = again.encode(value)
        np.testing.assert_array_equal(row, expected)
        row[:] = 7.0  # what a caller changes is its own


def test_pictures_of_bits_are_not_kept_without_end():
    observations = Observations(spaces.MultiBinary(84 * 84))
    for k in range(400):
        picture = np.zeros(84 * 84, np.int8)
        picture[k] = 1
        assert observations.encode(picture).sum() == 1
    assert 1 < len(observations._known) < 300
