"""Evaluating a policy in fresh episodes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

# Steps after which an evaluation says that an environment does not end, rather than wait for ever.
LONGEST_EPISODE = 1_000_000


class Policy(Protocol):
    """Whatever has Stable-Baselines3's `predict`."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions (n_envs, ...) for observations (n_envs, ...), and the next recurrent state.

        `state` is what the previous call returned, None at first; `episode_start` is a bool array
        (n_envs,).
        """
        ...


@dataclass(frozen=True)
class Evaluation:
    """What a policy reached in fresh episodes.

    Attributes:
        returns: sum of rewards, per episode.
        lengths: number of steps, per episode.
        steps: number of steps of all episodes.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    steps: int


def evaluate(
    policy: Policy, env: gym.Env, n_episodes: int, seed: int, deterministic: bool = True
) -> Evaluation:
    """Run a policy for whole episodes in one environment.

    The first reset is given the seed and the later ones none, as Stable-Baselines3's
    `evaluate_policy` does on an environment that was seeded, so that the two see the same episodes.
    The environment stays open.

    Args:
        policy: called with a batch of one observation.
        env: a plain Gymnasium environment whose episodes end.
        n_episodes: at least 1.
        seed: of the environment; a stochastic policy draws from its own generator.
        deterministic: whether the policy acts without exploration.

    Raises:
        ValueError: for less than one episode.
        FloatingPointError: for a reward that is not finite.
        RuntimeError: an episode does not end within `LONGEST_EPISODE` steps.
    """
    if n_episodes < 1:
        raise ValueError(f"an evaluation takes at least 1 episode, not {n_episodes}")
    returns: list[float] = []
    lengths: list[int] = []
    state: Any = None
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=None if episode else seed)
        # The policy clears its recurrent state where an episode starts.
        episode_start = np.ones(1, dtype=bool)
        episode_return, length, done = 0.0, 0, False
        while not done:
            actions, state = policy.predict(
                _batch_of_one(observation, env.observation_space),
                state=state,
                episode_start=episode_start,
                deterministic=deterministic,
            )
            observation, reward, terminated, truncated, _ = env.step(actions[0])
            length += 1
            if not math.isfinite(reward):
                raise FloatingPointError(
                    f"the reward of step {length} in episode {episode + 1} is {reward} "
                    f"(evaluation seed {seed})"
                )
            if length == LONGEST_EPISODE and not (terminated or truncated):
                raise RuntimeError(
                    f"an episode of the evaluation did not end within {length:,} steps"
                )
            episode_return += float(reward)
            done = terminated or truncated
            episode_start = np.zeros(1, dtype=bool)
        returns.append(episode_return)
        lengths.append(length)
    return Evaluation(tuple(returns), tuple(lengths), sum(lengths))


def evaluate_afresh(
    policy: Policy, make_env: Callable[[], gym.Env], n_episodes: int, seed: int
) -> Evaluation:
    """`evaluate` in an environment made for it: whoever was evaluated before leaves nothing behind,
    no reservoir's state either.
    """
    env = make_env()
    try:
        return evaluate(policy, env, n_episodes, seed)
    finally:
        env.close()


def _batch_of_one(observation: Any, space: gym.Space) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {
            name: np.asarray(observation[name], dtype=s.dtype)[None] for name, s in space.items()
        }
    return np.asarray(observation, dtype=space.dtype)[None]
