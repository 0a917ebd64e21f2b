"""Agents in the RL Baselines3 Zoo, and in Stable-Baselines3's own evaluation.

The Zoo pins older libraries than this project, so that it is not installed beside it everywhere.
Where it is, its own script plays an agent; elsewhere the tests do by hand what that script does.
"""

import importlib
import os
import shlex
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from plain_evaluation import evaluate
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from erl.errors import UserError
from erl.files import parse_yaml
from erl.lifetimes.living import Cohort, live
from erl.lifetimes.models import load_model
from erl.lifetimes.zoo import as_trained, export
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, to_json
from erl.worlds.tasks import Task

RESERVOIR = Context((ReservoirParams(units=8, sr=0.9, lr=0.5),))
QUICK = {"n_steps": 64, "batch_size": 32, "learning_rate": 1e-05}


def trained(task, learner="PPO", context=RESERVOIR, **config):
    """An agent in the working folder, `seed_0.zip`; its lifetime."""
    settings = LearnerSpec(learner, {**(QUICK if learner == "PPO" else {}), **config})
    seeds = Seeds.derive(1, "single", 0)
    spec = LifetimeSpec(task, settings, 128, seeds, context, 2, "final_eval")
    (record,) = live(Cohort((spec,), models=("seed_0",)))
    assert record.error is None, record.traceback
    return spec


def played(folder, algorithm, env_id, seed):
    """Returns of two episodes, as the Zoo's script plays them from what lies in its folder."""
    name = env_id.rpartition(":")[2]
    settings = parse_yaml((folder / name / "config.yml").read_text(encoding="utf-8"))
    ((wrapper, arguments),) = settings["env_wrapper"][0].items()
    module, _, function = wrapper.rpartition(".")
    wrap = getattr(importlib.import_module(module), function)
    env = make_vec_env(
        gym.spec(name).make,
        seed=seed,
        wrapper_class=lambda env: wrap(env, **arguments),
        env_kwargs=settings["env_kwargs"],
    )
    if settings["normalize"]:
        env = VecNormalize.load(str(folder / name / "vecnormalize.pkl"), env)
        env.training = env.norm_reward = False
    model = algorithm.load(folder / f"{name}.zip", custom_objects={"learning_rate": 0.0})
    observation, returns, total = env.reset(), [], 0.0
    while len(returns) < 2:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, done, _ = env.step(action)
        total += float(reward[0])
        if done[0]:
            returns, total = [*returns, total], 0.0
    return returns


@pytest.mark.parametrize(
    ("task", "learner", "context", "config"),
    [
        (Task("CartPole-v1", del_obs=True), "PPO", RESERVOIR, {}),
        (Task("CartPole-v1", frame_stack=3), "PPO", None, {}),
        (Task("Pendulum-v1", kwargs={"g": 5.0}), "PPO", RESERVOIR, {"normalize": True}),
        (Task("toy_environments:Reach-v0"), "SAC", RESERVOIR, {"learning_starts": 100}),
    ],
)
def test_the_zoo_plays_an_agent_as_it_was_trained(tmp_path, task, learner, context, config):
    spec = trained(task, learner, context, **config)
    line = shlex.split(export("seed_0.zip", "my zoo"))
    name, algorithm = task.env_id.rpartition(":")[2], learner.lower()
    words = f"python -m rl_zoo3.enjoy --algo {algorithm} --env {name} -f 'my zoo' --exp-id 1"
    assert line[:11] == shlex.split(words)
    assert ("--gym-packages" in line) == (":" in task.env_id)
    folder = tmp_path / "my zoo" / algorithm / f"{name}_1"
    returns = played(folder, {"PPO": PPO, "SAC": SAC}[learner], task.env_id, seed=7)
    _, agent = load_model("seed_0")
    assert returns == pytest.approx(evaluate(agent, spec.make_env(), 2, 7).returns, rel=1e-5)
    assert "--exp-id 2" in export("seed_0", "my zoo")  # and nothing is replaced


@pytest.mark.slow
def test_the_zoos_own_script_plays_an_agent(tmp_path):
    pytest.importorskip("rl_zoo3")
    trained(Task("CartPole-v1", del_obs=True))
    line = shlex.split(export("seed_0", "zoo"))
    words = [sys.executable, *line[1:], "--no-render", "--n-timesteps", "100"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Episode Reward: " in done.stdout


def test_what_the_zoo_cannot_play(tmp_path):
    spec = trained(Task("CartPole-v1"))
    with pytest.raises(UserError, match=r"no model missing\.zip"):
        export("missing", "zoo")
    (tmp_path / "zoo").touch()
    with pytest.raises(UserError, match="zoo cannot be written"):
        export("seed_0", "zoo")
    other = gym.make("Pendulum-v1")
    with pytest.raises(UserError, match="trained in CartPole-v1, and this is Pendulum-v1"):
        as_trained(other, to_json(spec))


def test_evaluate_policy_takes_a_loaded_agent_without_a_warning():
    trained(Task("CartPole-v1", del_obs=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec, agent = load_model("seed_0")
        env = Monitor(spec.make_env())
        env.reset(seed=3)
        returns, lengths = evaluate_policy(agent, env, 2, return_episode_rewards=True)
    assert np.array_equal(returns, lengths)  # CartPole's reward is 1 for each step
