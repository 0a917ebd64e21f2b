"""What a policy reaches in whole episodes of one environment, step by step: what the evaluation of
many in lockstep is held to.
"""

import numpy as np

from erl.worlds.evaluation import Evaluation


def evaluate(policy, env, n_episodes, seed, deterministic=True):
    """The first reset is given the seed and the later ones none, as Stable-Baselines3's
    `evaluate_policy` does on an environment that was seeded.
    """
    returns, lengths, state = [], [], None
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=None if episode else seed)
        # The policy clears its recurrent state where an episode starts.
        start, total, length, done = np.ones(1, dtype=bool), 0.0, 0, False
        while not done:
            seen = np.asarray(observation, dtype=env.observation_space.dtype)[None]
            actions, state = policy.predict(
                seen, state=state, episode_start=start, deterministic=deterministic
            )
            observation, reward, terminated, truncated, _ = env.step(actions[0])
            start, total, length = np.zeros(1, dtype=bool), total + float(reward), length + 1
            done = terminated or truncated
        returns.append(total)
        lengths.append(length)
    return Evaluation(tuple(returns), tuple(lengths), sum(lengths))
