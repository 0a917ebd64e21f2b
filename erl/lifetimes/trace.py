"""One episode of a saved agent, with all that went on in it: what films and figures show."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from erl.worlds.actions import Actions
from erl.worlds.context import ContextEncoder, ReservoirWrapper
from erl.worlds.evaluation import LONGEST_EPISODE, Policy
from erl.worlds.specification import LifetimeSpec


@dataclass(frozen=True)
class Trace:
    """An episode, or its beginning, of T steps.

    Attributes:
        spec: of the agent's lifetime.
        seed: of the episode.
        observations: (T + 1, obs_dim), as the environment shows them; the first is the reset's.
        states: (T + 1, units), of all reservoirs side by side after each observation; no columns
            without a reservoir.
        inputs: (T + 1, input_dim), what the reservoirs were fed: observation, action, reward; zeros
            for action and reward at the reset. No columns without a reservoir.
        actions: (T, action_dim), as executed, one-hot where they are discrete.
        rewards: (T,).
        ended: whether the episode ended.
        seconds: of one step; None where the environment does not say.
        frames: what `draw` made of the environment at the reset and after each step, T + 1 of them;
            none if nothing was drawn.
    """

    spec: LifetimeSpec
    seed: int
    observations: np.ndarray
    states: np.ndarray
    inputs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ended: bool
    seconds: float | None = None
    frames: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def times(self) -> np.ndarray:
        """(T + 1,), in seconds where they are known and steps otherwise."""
        return np.arange(len(self.rewards) + 1) * (self.seconds or 1.0)

    @property
    def time_unit(self) -> str:
        """`s` or `steps`."""
        return "steps" if self.seconds is None else "s"


def trace(
    spec: LifetimeSpec,
    agent: Policy,
    seed: int = 0,
    steps: int | None = None,
    draw: Callable[[gym.Env, int], Any] | None = None,
    watch: Callable[[int], None] | None = None,
) -> Trace:
    """Play an episode without exploration and keep everything.

    It is the episode that `evaluate_afresh({name: agent}, spec, 1, seed)` plays.

    Args:
        spec: of the agent's lifetime.
        agent: from `load_model`.
        seed: of the episode.
        steps: at most so many; None for the whole episode.
        draw: makes a frame of the environment after so many steps.
        watch: told after each step how many there were.

    Raises:
        RuntimeError: the episode does not end within `LONGEST_EPISODE` steps.
    """
    env = spec.make_env(render_mode=None if draw is None else "rgb_array")
    try:
        return _play(spec, agent, env, seed, steps, draw, watch)
    finally:
        env.close()


def _play(
    spec: LifetimeSpec,
    agent: Policy,
    env: gym.Env,
    seed: int,
    steps: int | None,
    draw: Callable[[gym.Env, int], Any] | None,
    watch: Callable[[int], None] | None,
) -> Trace:
    encoder = env.encoder if isinstance(env, ReservoirWrapper) else None
    codec, actions = Actions(env.action_space), list[np.ndarray]()
    seen, _ = env.reset(seed=seed)
    shown, states, inputs = [seen], [_state(encoder)], [_inputs(encoder)]
    rewards: list[float] = []
    frames = [] if draw is None else [draw(env, 0)]
    state: Any = None
    start, over = np.ones(1, dtype=bool), False
    while not over and (steps is None or len(rewards) < steps):
        if len(rewards) == LONGEST_EPISODE:
            raise RuntimeError(f"the episode did not end within {LONGEST_EPISODE:,} steps")
        batch = np.asarray(seen, dtype=env.observation_space.dtype)[None]
        action, state = agent.predict(batch, state=state, episode_start=start, deterministic=True)
        seen, reward, terminated, truncated, _ = env.step(action[0])
        over, start = terminated or truncated, np.zeros(1, dtype=bool)
        shown.append(seen)
        states.append(_state(encoder))
        inputs.append(_inputs(encoder))
        actions.append(np.zeros(codec.size))
        codec.encode(action[:1], actions[-1][None])
        rewards.append(float(reward))
        if draw is not None:
            frames.append(draw(env, len(rewards)))
        if watch is not None:
            watch(len(rewards))
    fed = np.stack(inputs)
    observations = np.stack(shown) if encoder is None else fed[:, : -codec.size - 1]
    return Trace(
        spec=spec,
        seed=seed,
        observations=observations.astype(float),
        states=np.stack(states),
        inputs=fed,
        actions=np.array(actions).reshape(len(actions), codec.size),
        rewards=np.array(rewards),
        ended=over,
        seconds=seconds_per_step(env),
        frames=tuple(frames),
    )


def _state(encoder: ContextEncoder | None) -> np.ndarray:
    return np.zeros(0) if encoder is None else encoder.bank.state[0].copy()


def _inputs(encoder: ContextEncoder | None) -> np.ndarray:
    return np.zeros(0) if encoder is None else encoder.inputs[0].copy()


def seconds_per_step(env: gym.Env) -> float | None:
    """Simulated time of one step, where an environment tells it: MuJoCo's `dt`, CartPole's `tau`,
    Box2D's frames per second.
    """
    bare = env.unwrapped
    for name in ("dt", "tau"):
        value = getattr(bare, name, None)
        if isinstance(value, int | float) and value > 0:
            return float(value)
    if type(bare).__module__.startswith("gymnasium.envs.box2d"):
        return 1.0 / float(bare.metadata["render_fps"])
    return None
