import sys

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from erl.errors import EnvironmentFault, UserError
from erl.worlds.ledger import Ledger, shared_seconds
from erl.worlds.tasks import VELOCITIES, Task, bare_name, check_task, make_env

# Written out here a second time: the reference's table, by hand.
HIDDEN = {
    "CartPole-v1": [1, 3],
    "Pendulum-v1": [2],
    "MountainCar-v0": [1],
    "MountainCarContinuous-v0": [1],
    "LunarLander-v3": [2, 3, 5],
    "LunarLanderContinuous-v3": [2, 3, 5],
}


def test_the_table_of_velocities_is_complete():
    assert {k: list(v) for k, v in VELOCITIES.items()} == HIDDEN


@pytest.mark.parametrize("env_id", HIDDEN)
def test_hidden_velocities_are_absent_and_the_rest_is_as_it_was(env_id):
    full, hidden = make_env(Task(env_id)), make_env(Task(env_id, del_obs=True))
    keep = [i for i in range(full.observation_space.shape[0]) if i not in HIDDEN[env_id]]
    np.testing.assert_array_equal(hidden.observation_space.low, full.observation_space.low[keep])
    np.testing.assert_array_equal(hidden.observation_space.high, full.observation_space.high[keep])
    full.action_space.seed(0)
    everything, visible = [full.reset(seed=3)[0]], [hidden.reset(seed=3)[0]]
    for _ in range(15):
        action = full.action_space.sample()
        everything.append(full.step(action)[0])
        visible.append(hidden.step(action)[0])
        assert hidden.observation_space.contains(visible[-1])
    everything, visible = np.stack(everything), np.stack(visible)
    np.testing.assert_array_equal(visible, everything[:, keep])
    for i in HIDDEN[env_id]:  # the velocity moved, and nothing visible equals it
        assert np.ptp(everything[:, i]) > 0
        assert not any(
            np.array_equal(visible[:, j], everything[:, i]) for j in range(visible.shape[1])
        )


def test_velocities_of_other_environments_are_not_guessed():
    with pytest.raises(
        UserError, match=r"does not know the velocities of 'Acrobot-v1'.*CartPole-v1"
    ):
        check_task(Task("Acrobot-v1", del_obs=True))


def test_velocities_are_known_whatever_module_registers_the_environment():
    observations, _ = check_task(Task("gymnasium:CartPole-v1", del_obs=True))
    assert observations == check_task(Task("CartPole-v1", del_obs=True))[0]


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("Ant-v4", "Ant"),
        ("gymnasium.envs.mujoco:Ant-v4", "Ant"),
        ("ALE/Pong-v5", "ALE/Pong"),
        ("a-very-v1-odd", "a-very-v1-odd"),
        ("Ant", "Ant"),
    ],
)
def test_a_bare_name_has_no_module_and_no_version(env_id, name):
    assert bare_name(env_id) == name


def test_spaces():
    observations, actions = check_task(Task("Pendulum-v1", del_obs=True))
    assert observations.shape == (2,)
    assert actions.shape == (1,)


def test_lunar_landers_old_name_says_its_new_one():
    with pytest.raises(UserError, match=r"LunarLander-v2.*LunarLander-v3"):
        check_task(Task("LunarLander-v2"))


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("HalfCheeta-v4", "HalfCheetah-v4"),
        ("CartPole-v99", "; known versions: .*CartPole-v1"),
        ("gymnasium:CartPole-v99", "; known versions: .*CartPole-v1"),
        ("CartPole", "; known versions: .*CartPole-v1"),
        ("gymnasium:LunarLander-v2", "no longer has .*use LunarLander-v3"),
        ("ALE/Pong-v5", r"has environments ALE/….*MODULE:ALE/Pong-v5$"),
        ("Pong-v5", r"unknown environment 'Pong-v5'; MODULE:NAME names"),
        ("no_such_module:Thing-v0", "no_such_module"),
        (".relative:Thing-v0", ".relative"),
        ("broken_module:Thing-v0", "ZeroDivisionError"),
        ("leaving_module:Thing-v0", "cannot be found: SystemExit: 0"),
        ("toy_environments:Unmakeable-v0", "no licence"),
        ("toy_environments:Image-v0", "images"),
        ("", "unknown environment ''"),
    ],
)
def test_environments_that_cannot_be(env_id, message, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("1 / 0")
    (tmp_path / "leaving_module.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        check_task(Task(env_id))


@pytest.mark.parametrize(
    ("env_id", "given", "message"),
    [
        ("CartPole-v1", "gravity", r"(known: max_episode_steps, sutton_barto_reward)"),
        ("Pendulum-v1", "gravity", r"(known: g, max_episode_steps)"),
        (
            "LunarLander-v3",
            "gravitiy",
            "; did you mean gravity? (known: continuous, enable_wind, gravity, max_episode_steps, "
            "turbulence_power, wind_power)",
        ),
        ("gymnasium:CartPole-v1", "steps", " (known: max_episode_steps, sutton_barto_reward)"),
    ],
)
def test_an_argument_that_there_is_not_is_named_with_those_that_there_are(env_id, given, message):
    with pytest.raises(UserError) as e:
        check_task(Task(env_id, kwargs={given: 5}))
    assert str(e.value).startswith(f"environment {env_id!r} has no argument {given!r}")
    assert str(e.value).endswith(message)
    assert "\n" not in str(e.value)


def test_arguments_behind_those_of_a_signature_are_named_too():
    """MuJoCo's constructors pass what they do not know on."""
    with pytest.raises(UserError, match=r"'xml'; did you mean xml_file\? \(known: .*xml_file\)$"):
        check_task(Task("Ant-v5", kwargs={"xml": "a.xml"}))


def test_a_missing_package_that_is_an_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "popgym", None)
    with pytest.raises(UserError, match=r'; pip install "erl\[popgym\]"$'):
        check_task(Task("popgym:popgym-RepeatFirstEasy-v0"))


def test_the_ledger_counts_steps_and_episodes():
    told = []
    ledger = Ledger(on_step=told.append)
    env = make_env(Task("toy_environments:Recall-v0"), ledger)
    total, expected, now = 0.0, [], 0
    env.reset(seed=0)
    while now < 600:
        _, reward, terminated, truncated, info = env.step(now % 2)
        now += 1
        total += reward
        if terminated or truncated:
            expected.append((now, total, 4))
            assert (info["episode"]["r"], info["episode"]["l"]) == (total, 4)
            env.reset()
            total = 0.0
    assert ledger.steps == 600
    assert ledger.episodes == expected
    assert told == [256, 512]


def test_one_ledger_serves_many_environments():
    ledger = Ledger()
    envs = [make_env(Task("toy_environments:Recall-v0"), ledger) for _ in range(2)]
    for env in envs:
        env.reset()
        env.step(0)
    assert ledger.steps == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", "raised at step 51: RuntimeError: the simulator exploded"),
        ("reward", "a reward that is not finite, nan, at step 51"),
        ("observation", "an observation that is not finite"),
        ("exit", "raised at step 51: SystemExit: 0"),
    ],
)
def test_faults_are_named_with_their_step(fault, message):
    env = make_env(Task(f"toy_environments:Faulty-{fault}-v0"))
    env.reset()
    for _ in range(50):
        if env.step(np.zeros(1, np.float32))[2]:
            env.reset()
    with pytest.raises(EnvironmentFault, match=message):
        env.step(np.zeros(1, np.float32))


def test_an_episode_that_a_reset_cuts_off_is_not_counted():
    env = make_env(Task("CartPole-v1"))
    for _ in range(3):
        env.reset(seed=0)
        env.step(0)
    assert env.ledger.episodes == []
    assert env.ledger.steps == 3


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_stacked_frames_equal_stable_baselines3s(env_id):
    ours = DummyVecEnv([lambda: make_env(Task(env_id, frame_stack=4))])
    theirs = VecFrameStack(DummyVecEnv([lambda: make_env(Task(env_id))]), 4)
    assert ours.observation_space.shape == theirs.observation_space.shape
    ours.seed(3), theirs.seed(3)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for _ in range(250):
        action = [ours.action_space.sample()]
        (o, r, d, i), (p, q, e, j) = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(o, p)
        assert (r, d) == (q, e)
        if d:
            np.testing.assert_array_equal(
                i[0]["terminal_observation"], j[0]["terminal_observation"]
            )


def test_seconds_of_training_are_shared_by_steps_and_none_are_for_reports():
    ledgers = [Ledger(steps=300, earlier=(100, 5.0)), Ledger(steps=600, reporting=2.0)]
    assert shared_seconds(ledgers, 10.0) == [5.0 + 2.0, 6.0]
