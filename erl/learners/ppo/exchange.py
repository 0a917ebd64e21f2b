"""Agents of a cohort as Stable-Baselines3's models."""

import inspect
from dataclasses import fields
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from erl.learners.core.export import set_up
from erl.learners.ppo.algorithm import CohortPPO, RunningMoments


def to_sb3(cohort: CohortPPO, i: int, num_timesteps: int = 0, total_timesteps: int = 0) -> PPO:
    """Agent i as a `stable_baselines3.PPO` without environment, which predicts, saves and, after
    `set_env`, goes on training.

    Args:
        cohort: agents, between an update and the next rollout.
        i: index of the agent.
        num_timesteps: steps that it has taken.
        total_timesteps: its budget, which schedules refer to.
    """
    config = cohort.settings[i]
    names = inspect.signature(PPO).parameters.keys() & {f.name for f in fields(config)}
    settings = {name: getattr(config, name) for name in names}
    settings |= {
        "policy_kwargs": config.policy_kwargs(),
        "device": "cpu",
        "_init_setup_model": False,
    }
    model = PPO("MlpPolicy", None, **settings)  # type: ignore[arg-type]
    spaces_of = cohort.observation_space, cohort.action_space
    updates = int(cohort.n_updates[i])
    set_up(model, *spaces_of, config.n_envs, num_timesteps, total_timesteps, updates)
    arrays = [cohort._net.named(a[i]) for a in (cohort._weights, cohort._first, cohort._second)]
    for name, parameter in model.policy.named_parameters():
        weights, first, second = (torch.tensor(a[name]) for a in arrays)
        parameter.data.copy_(weights)
        if cohort._steps[i]:
            moments = {
                "step": torch.tensor(cohort._steps[i]),
                "exp_avg": first,
                "exp_avg_sq": second,
            }
            model.policy.optimizer.state[parameter] = moments
    return model


def vec_normalize(cohort: CohortPPO, i: int) -> VecNormalize:
    """Agent i's statistics of normalisation as Stable-Baselines3's wrapper, to `save` beside the
    agent's zip file.
    """
    c = cohort.settings[i]
    env = gym.Env()
    env.observation_space, env.action_space = cohort.observation_space, cohort.action_space
    normalizer = VecNormalize(
        DummyVecEnv([lambda: env]),
        norm_obs=c.norm_obs,
        norm_reward=c.norm_reward,
        clip_obs=c.clip_obs,
        clip_reward=c.clip_reward,
        gamma=float(cohort._norm_gamma[i]),
        epsilon=c.norm_epsilon,
    )
    pairs: list[tuple[RunningMoments, Any]] = [(cohort._return_moments, normalizer.ret_rms)]
    if c.norm_obs:
        pairs.append((cohort._obs_moments, normalizer.obs_rms))
    for moments, theirs in pairs:
        theirs.mean = moments.mean[i].reshape(theirs.mean.shape)
        theirs.var = moments.var[i].reshape(theirs.var.shape)
        theirs.count = float(moments.count[i, 0])
    return normalizer
