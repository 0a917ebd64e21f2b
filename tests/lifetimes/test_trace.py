"""An episode with all that went on in it: the evaluation's own, and ReservoirPy's states."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from plain_evaluation import evaluate
from stable_baselines3 import PPO

from erl.lifetimes.living import Cohort, live
from erl.lifetimes.models import load_model
from erl.lifetimes.trace import seconds_per_step, trace
from erl.worlds.evaluation import evaluate_afresh
from erl.worlds.reservoirs import Context, ReservoirParams, make_node
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task, make_env

TWO = Context(
    (ReservoirParams(units=8, sr=0.9, lr=0.5, bias=0.3), ReservoirParams(units=6, sr=1.2, lr=0.2))
)


def saved(folder, env_id="Pendulum-v1", context=TWO, steps=256, **task):
    seeds = Seeds.derive(1, "single", 0)
    learner = LearnerSpec("PPO", {"n_steps": 64})
    spec = LifetimeSpec(Task(env_id, **task), learner, steps, seeds, context, 2, "final_eval")
    (record,) = live(Cohort((spec,), models=(str(folder / "seed_0"),)))
    assert record.error is None, record.traceback
    return load_model(folder / "seed_0")


@pytest.mark.parametrize(
    ("env_id", "context", "task"),
    [
        ("Pendulum-v1", TWO, {}),
        ("CartPole-v1", TWO, {"del_obs": True}),
        ("CartPole-v1", None, {"frame_stack": 3}),
        ("Swimmer-v4", None, {}),
    ],
)
def test_it_is_the_episode_that_an_evaluation_plays(env_id, context, task, tmp_path):
    spec, agent = saved(tmp_path, env_id, context, **task)
    episode = trace(spec, agent, seed=5)
    expected = evaluate(agent, spec.make_env(), 1, 5)
    assert sum(episode.rewards.tolist()) == expected.returns[0]
    assert len(episode) == expected.lengths[0]
    assert episode.ended


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_its_states_are_those_of_reservoirpys_nodes(env_id, tmp_path):
    spec, agent = saved(tmp_path, env_id)
    episode = trace(spec, agent, steps=60)
    nodes = [
        make_node(params, episode.inputs.shape[1], spec.seeds.reservoir + k)
        for k, params in enumerate(spec.context.reservoirs)
    ]
    states = np.concatenate([node.run(episode.inputs) for node in nodes], axis=1)
    assert episode.states == pytest.approx(states, abs=1e-6)
    size = episode.actions.shape[1]
    assert (episode.inputs[0, -size - 1 :] == 0).all()
    assert episode.inputs[1:, -size - 1 : -1] == pytest.approx(episode.actions, abs=1e-6)
    assert episode.inputs[1:, -1] == pytest.approx(episode.rewards)
    assert episode.inputs[:, : -size - 1] == pytest.approx(episode.observations)


def test_an_evaluation_is_a_loop_of_the_libraries_written_by_hand(tmp_path):
    spec, agent = saved(tmp_path)
    model = PPO.load(tmp_path / "seed_0")
    env = gym.make("Pendulum-v1")
    nodes = [
        make_node(p, 3 + 1 + 1, spec.seeds.reservoir + k) for k, p in enumerate(TWO.reservoirs)
    ]
    expected = []
    for seed in (7, None):
        seen, _ = env.reset(seed=seed)
        fed, total, ended = np.concatenate([seen, [0.0, 0.0]]), 0.0, False
        for node in nodes:
            node.reset()
        while not ended:
            state = np.concatenate([node.step(fed) for node in nodes]).astype(np.float32)
            action, _ = model.predict(state, deterministic=True)  # clipped to the space
            seen, reward, terminated, truncated, _ = env.step(action)
            fed, total = np.concatenate([seen, action, [reward]]), total + reward
            ended = terminated or truncated
        expected.append(total)
    found = evaluate(agent, spec.make_env(), 2, 7)
    assert found.returns == pytest.approx(expected, rel=1e-4)
    assert evaluate_afresh({"": agent}, spec, 2, 7)[""].returns == found.returns


def test_discrete_actions_are_one_hot(tmp_path):
    spec, agent = saved(tmp_path, "CartPole-v1", None)
    episode = trace(spec, agent)
    assert episode.actions.shape == (len(episode), 2)
    assert (episode.actions.sum(1) == 1).all()
    assert episode.states.shape == (len(episode) + 1, 0)


def test_an_environment_may_write_all_observations_into_one_array(tmp_path, monkeypatch):
    spec, agent = saved(tmp_path)
    expected = trace(spec, agent, steps=9)
    step, shown = PendulumEnv.step, np.zeros(3, np.float32)

    def into_one(self, action):
        shown[:], *others = step(self, action)
        return shown, *others

    monkeypatch.setattr(PendulumEnv, "step", into_one)
    assert np.array_equal(trace(spec, agent, steps=9).observations, expected.observations)


def test_its_length_and_what_is_drawn(tmp_path):
    spec, agent = saved(tmp_path)
    told = []
    episode = trace(spec, agent, steps=7, draw=lambda env, step: step, watch=told.append)
    assert (len(episode), episode.ended) == (7, False)
    assert episode.frames == tuple(range(8))
    assert told == list(range(1, 8))
    assert (episode.time_unit, episode.times[-1]) == ("s", pytest.approx(7 * 0.05))


@pytest.mark.parametrize(
    ("env_id", "seconds"),
    [
        ("Swimmer-v4", 0.04),
        ("CartPole-v1", 0.02),
        ("LunarLander-v3", 0.02),
        ("MountainCar-v0", None),
    ],
)
def test_the_time_of_a_step(env_id, seconds):
    env = make_env(Task(env_id))
    assert seconds_per_step(env) == (None if seconds is None else pytest.approx(seconds))
    env.close()
