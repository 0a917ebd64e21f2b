"""Toy environments.

Importing this module registers them, in worker processes too: `toy_environments:Recall-v0`.
"""

import os
import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Recall(gym.Env):
    """Show a sign once, ask for it later: no policy without memory earns more than zero on average.

    The first observation shows +1 or -1, the others show 0. After `delay` steps the action's sign
    is paid.
    """

    observation_space = spaces.Box(-1, 1, (1,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, delay: int = 3) -> None:
        self.delay = delay

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sign = int(self.np_random.integers(2))
        self.t = 0
        return np.array([2.0 * self.sign - 1.0], dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        done = self.t > self.delay
        reward = (1.0 if int(action) == self.sign else -1.0) if done else 0.0
        return np.zeros(1, dtype=np.float32), reward, done, False, {}


class Faulty(gym.Env):
    """Breaks after `good` steps in the way that `fault` says."""

    observation_space = spaces.Box(-1, 1, (2,), dtype=np.float32)
    action_space = spaces.Box(-1, 1, (1,), dtype=np.float32)

    def __init__(self, fault: str = "raise", good: int = 50) -> None:
        self.fault, self.good, self.total = fault, good, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        self.total += 1
        broken = self.total > self.good
        if broken and self.fault == "raise":
            raise RuntimeError("the simulator exploded")
        if broken and self.fault == "exit":
            raise SystemExit(0)
        if broken and self.fault == "die":
            os._exit(7)
        observation = np.full(
            2, np.nan if broken and self.fault == "observation" else 0.0, dtype=np.float32
        )
        reward = float("nan") if broken and self.fault == "reward" else 1.0
        return observation, reward, self.t >= 10, False, {}


class Endless(gym.Env):
    """No episode ever ends."""

    observation_space = spaces.Box(-1, 1, (2,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(2, dtype=np.float32), 1.0, False, False, {}


class Unmakeable(gym.Env):
    """Its constructor raises."""

    def __init__(self) -> None:
        raise RuntimeError("no licence")


class Image(Endless):
    observation_space = spaces.Box(0, 255, (8, 8, 3), dtype=np.uint8)


class Steady(Faulty):
    """Continuous actions, episodes of ten steps, nothing breaks."""

    def __init__(self) -> None:
        super().__init__(good=10**9)


class Held(Recall):
    """Recall, a fifth of a second a step while there is a file `hold`."""

    def step(self, action):
        if os.path.exists("hold"):
            time.sleep(0.2)
        return super().step(action)


class Slow(Steady):
    """Steady, half a millisecond a step: there is time for something to happen."""

    def step(self, action):
        time.sleep(0.0005)
        return super().step(action)


gym.register("Recall-v0", Recall)
gym.register("Held-v0", Held)
gym.register("Unmakeable-v0", Unmakeable)
gym.register("Image-v0", Image)
gym.register("Steady-v0", Steady)
gym.register("Slow-v0", Slow)
gym.register("Endless-v0", Endless)
for _fault in ("raise", "reward", "observation", "exit", "die"):
    gym.register(f"Faulty-{_fault}-v0", Faulty, kwargs={"fault": _fault})


class Lottery(gym.Env):
    """Raises after `good` steps in environments that were seeded with an odd number."""

    observation_space = spaces.Box(-1, 1, (2,), dtype=np.float32)
    action_space = spaces.Box(-1, 1, (1,), dtype=np.float32)

    def __init__(self, good: int = 200, error: type[BaseException] = RuntimeError) -> None:
        self.good, self.total, self.odd, self.error = good, 0, False, error

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.odd = bool(seed % 2)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        self.total += 1
        if self.odd and self.total > self.good:
            raise self.error("an odd seed")
        return (
            self.np_random.uniform(-1, 1, 2).astype(np.float32),
            float(action[0]),
            self.t >= 10,
            False,
            {},
        )


gym.register("Lottery-v0", Lottery)
gym.register(
    "Push-v0", Lottery, kwargs={"good": 10**9}
)  # the action is the reward: soon learned with a high rate


class Square(Lottery):
    """An action has two dimensions."""

    action_space = spaces.Box(-1, 1, (2, 2), dtype=np.float32)

    def step(self, action):
        return super().step(action.mean(1))


gym.register("Square-v0", Square, kwargs={"good": 10**9})
gym.register("ExitLottery-v0", Lottery, kwargs={"error": SystemExit})


class Reach(gym.Env):
    """A point on a line is to be brought to zero: -|x| is paid in each of twenty steps.

    Only the time limit ends an episode.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32)
    action_space = spaces.Box(-1, 1, (1,), dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.choice([-1.0, 1.0]) * self.np_random.uniform(0.4, 0.6))
        return self._observe(), {}

    def _observe(self):
        return np.array([self.x, abs(self.x), 1.0], dtype=np.float32)

    def step(self, action):
        self.x += 0.2 * float(np.clip(action[0], -1.0, 1.0))
        return self._observe(), -abs(self.x), False, False, {}


gym.register("Reach-v0", Reach, max_episode_steps=20)
gym.register("EndlessReach-v0", Reach)


class Lopsided(Reach):
    """Actions lie between -3 and 1."""

    action_space = spaces.Box(-3, 1, (1,), dtype=np.float32)


gym.register("Lopsided-v0", Lopsided, max_episode_steps=20)
