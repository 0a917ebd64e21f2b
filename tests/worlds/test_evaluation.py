"""Evaluation of many policies in lockstep, held to evaluation one by one in plain environments."""

import gymnasium as gym
import numpy as np
import pytest
from plain_evaluation import evaluate

from erl.errors import EnvironmentFault
from erl.worlds.evaluation import evaluate_afresh
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

RESERVOIRS = Context((ReservoirParams(units=20, sr=0.9, lr=0.5),), reset_res=False, skip_c=True)


class Head:
    """A recurrent policy: it answers to what it saw before, too, and forgets at the start of an
    episode.
    """

    def __init__(self, spec, seed):
        observation_space, self._space = spec.spaces()
        self._dtype = observation_space.dtype
        outputs = getattr(self._space, "n", None) or self._space.shape[0]
        self._weights = np.random.default_rng(seed).normal(
            size=(observation_space.shape[0], outputs)
        )

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert deterministic
        assert observation.dtype == self._dtype
        assert len(observation) == len(episode_start) == 1
        before = np.zeros(self._weights.shape[1]) if state is None else state
        now = observation[0] @ self._weights + 0.5 * before * (1 - episode_start[0])
        if hasattr(self._space, "n"):
            return np.argmax(now)[None], now
        return np.tanh(now)[None].astype(np.float32), now


def lifetime(env_id, context=None, **task):
    return LifetimeSpec(
        Task(env_id, **task), LearnerSpec(), 1, Seeds.derive(0, "test", 0), context=context
    )


@pytest.mark.parametrize(
    "spec",
    [
        lifetime("CartPole-v1", RESERVOIRS, del_obs=True),
        lifetime("CartPole-v1", frame_stack=2),
        lifetime("Hopper-v4"),
        lifetime("Hopper-v5", RESERVOIRS),
        lifetime("toy_environments:Recall-v0", RESERVOIRS),
    ],
    ids=lambda spec: f"{spec.task.env_id}-{spec.context is not None}",
)
def test_many_policies_reach_what_each_reaches_alone(spec):
    policies = {f"head {k}": Head(spec, k) for k in range(4)}
    together = evaluate_afresh(policies, spec, 3, seed=5)
    assert list(together) == list(policies)
    for name, policy in policies.items():
        assert together[name] == evaluate(policy, spec.make_env(), 3, seed=5)
    assert len({result.returns for result in together.values()}) > 1


def test_faults_and_endless_episodes_are_told(monkeypatch):
    spec = lifetime("toy_environments:Faulty-reward-v0")
    with pytest.raises(EnvironmentFault, match="a reward that is not finite"):
        evaluate_afresh({"a": Head(spec, 0), "b": Head(spec, 1)}, spec, 10, seed=0)
    monkeypatch.setattr("erl.worlds.evaluation.LONGEST_EPISODE", 30)
    spec = lifetime("toy_environments:Endless-v0")
    with pytest.raises(RuntimeError, match="did not end within 30 steps"):
        evaluate_afresh({"a": Head(spec, 0)}, spec, 1, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_afresh({"a": Head(spec, 0)}, spec, 0, seed=0)


@pytest.mark.parametrize("kind", ["PPO", "RecurrentPPO"])
def test_one_by_one_equals_stable_baselines3(kind):
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)
    if kind == "PPO":
        model = PPO(
            "MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu"
        )
    else:
        model = RecurrentPPO(
            "MlpLstmPolicy",
            "CartPole-v1",
            n_steps=64,
            batch_size=64,
            n_epochs=2,
            seed=0,
            device="cpu",
            policy_kwargs={"lstm_hidden_size": 16},
        )
    model.learn(256)
    for deterministic in (True, False):
        torch.manual_seed(3)
        vec_env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
        vec_env.seed(42)
        returns, lengths = evaluate_policy(
            model, vec_env, 8, deterministic=deterministic, return_episode_rewards=True, warn=False
        )
        torch.manual_seed(3)
        ours = evaluate(model, gym.make("CartPole-v1"), 8, seed=42, deterministic=deterministic)
        assert ours.returns == tuple(returns)
        assert ours.lengths == tuple(lengths)
        assert len(set(returns)) > 1
