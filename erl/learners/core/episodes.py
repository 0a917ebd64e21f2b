"""Episodes of several policies side by side: how learners that judge whole policies step their
environments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from erl.errors import Stopped
from erl.worlds.reservoirs import ReservoirWrapper
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import Ledger

# From (indices of the policies (k,), what each sees (k, features)) to actions (k, actions) in [-1,
# 1].
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Episode:
    """What one policy lived through.

    Attributes:
        observations: (steps + 1, features), float32; the last one is where it stopped.
        actions: (steps, actions) in [-1, 1], float32.
        rewards: (steps,), double precision.
        terminated: whether the task ended it.
        truncated: whether a time limit ended it.
        cut: whether it was left because the lifetime's budget was spent. Where none of these holds,
            it was left at the asked number of steps.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    cut: bool = False

    @property
    def ended(self) -> bool:
        """Whether it is a whole episode."""
        return self.terminated or self.truncated

    @property
    def total(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.sum())

    def transitions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, actions, next observations, rewards, and where it ended for good:
        `ReplayBuffer.add`'s arguments.
        """
        ends = np.zeros(len(self.rewards))
        ends[-1] = self.terminated
        return self.observations[:-1], self.actions, self.observations[1:], self.rewards, ends


class StepsOnly(Ledger):
    """Counts steps in a lifetime's ledger and keeps no episode: the learner decides which of many
    policies' episodes count.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @property
    def steps(self) -> int:  # type: ignore[override]
        """The lifetime's."""
        return self._ledger.steps

    def step(self, n: int = 1) -> None:
        """Count `n` steps."""
        self._ledger.step(n)

    def episode(self, total_return: float, length: int) -> None:
        """Keep nothing."""


class Stage:
    """Environments of one lifetime, one for each policy that plays.

    Every episode begins with a seed of its own, drawn from the lifetime's: what happens in it
    depends on the policy and on the number of episodes before, and not on what an environment has
    been through. So a checkpoint between episodes needs no environment's state. When the lifetime's
    budget is spent, whoever still plays is cut short; it is exceeded by less than a step of each.

    Args:
        spec: the lifetime; its actions are a Box.
        ledger: where steps are counted.
        n: environments.
    """

    def __init__(self, spec: LifetimeSpec, ledger: Ledger, n: int) -> None:
        self.envs: list[gym.Env] = [spec.make_env(StepsOnly(ledger)) for _ in range(n)]
        self._ledger, self._budget = ledger, spec.steps
        self._rng = np.random.default_rng(spec.seeds.environment)
        space = self.envs[0].action_space
        assert isinstance(space, spaces.Box)
        self._low, self._range, self._dtype = space.low, space.high - space.low, space.dtype

    def play(self, act: Act, n: int = 1, limit: int | None = None) -> list[Episode]:
        """One episode of each of n policies, in as many environments; at least a step, whatever is
        left of the budget.

        Args:
            act: asked in every step for those that still play.
            n: at most the number of environments.
            limit: steps after which an episode is left; None for none.

        Raises:
            Stopped: the lifetime was told to end before its budget was spent.
        """
        playing = np.arange(n)
        now = np.stack(
            [
                self._seen(self.envs[i].reset(seed=int(self._rng.integers(2**31)))[0])
                for i in playing
            ]
        )
        observations: list[list[np.ndarray]] = [[row] for row in now]
        actions: list[list[np.ndarray]] = [[] for _ in playing]
        rewards: list[list[float]] = [[] for _ in playing]
        ends = [(False, False)] * n
        cut: list[Any] = []
        while len(playing):
            self.heed()
            chosen = act(playing, now)
            going = []
            for i, action in zip(playing, chosen):
                executed = (self._low + 0.5 * (action + 1.0) * self._range).astype(self._dtype)
                seen, reward, terminated, truncated, _ = self.envs[i].step(executed)
                observations[i].append(self._seen(seen))
                actions[i].append(action)
                rewards[i].append(float(reward))
                ends[i] = (bool(terminated), bool(truncated))
                if not (terminated or truncated) and len(rewards[i]) != limit:
                    going.append(i)
            if going and self._ledger.steps >= self._budget:
                cut, going = going, []
            playing = np.array(going, dtype=int)
            if going:
                now = np.stack([observations[i][-1] for i in going])
        return [
            Episode(np.stack(o), np.stack(a).astype(np.float32), np.array(r), *end, i in cut)
            for i, (o, a, r, end) in enumerate(zip(observations, actions, rewards, ends))
        ]

    def heed(self) -> None:
        """Raise `Stopped` if the lifetime was told to end before its budget was spent."""
        if self._ledger.steps < self._budget and self._ledger.stopped:
            raise Stopped

    @staticmethod
    def _seen(observation: Any) -> np.ndarray:
        return np.array(observation, dtype=np.float32)

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on between episodes, picklable: the stream of seeds, and
        reservoirs that are not reset.
        """
        reservoirs = [
            e.encoder.bank.state.copy() for e in self.envs if isinstance(e, ReservoirWrapper)
        ]
        return {"rng": self._rng.bit_generator.state, "reservoirs": reservoirs}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        self._rng.bit_generator.state = state["rng"]
        wrapped = [e for e in self.envs if isinstance(e, ReservoirWrapper)]
        for env, saved in zip(wrapped, state["reservoirs"], strict=True):
            env.encoder.bank.state[:] = saved

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()


def surrogate(episode: Episode, steps: int, gamma: float, tail: float) -> float:
    """ERL-Re²'s surrogate fitness (Li et al., ICLR 2023, eq. 8): discounted rewards of the first
    steps, and a value for the rest.

    Args:
        episode: at least `steps` long, or ended before.
        steps: H.
        gamma: discount.
        tail: value of the state after H steps; an episode that ended by then has none.
    """
    rewards = episode.rewards[:steps]
    total = float(np.sum(gamma ** np.arange(len(rewards)) * rewards))
    reached = len(episode.rewards) > steps or (len(episode.rewards) == steps and not episode.ended)
    return total + gamma**steps * tail if reached else total
