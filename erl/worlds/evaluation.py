"""Evaluating policies in fresh episodes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from erl.worlds.ledger import Ledger
from erl.worlds.specification import LifetimeSpec
from erl.worlds.world import World

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


def evaluate_afresh(
    policies: Mapping[str, Policy],
    spec: LifetimeSpec,
    n_episodes: int,
    seed: int,
    watch: Callable[[int], None] | None = None,
) -> dict[str, Evaluation]:
    """Run each policy for whole episodes in an environment of its own, `spec.make_env()`: the
    environments step in lockstep, and whoever was evaluated before leaves nothing behind, no
    reservoir's state either.

    The first reset is given the seed and the later ones none, as Stable-Baselines3's
    `evaluate_policy` does on an environment that was seeded, so that the two see the same episodes.

    Policies act one by one, each on a batch of one observation, since the arithmetic of some
    depends on the batch.

    Args:
        policies: by name.
        spec: makes the environments and the reservoirs.
        n_episodes: of each policy, at least 1.
        seed: of each policy's environment.
        watch: told after each episode how many have ended, of all policies.

    Raises:
        ValueError: for less than one episode.
        RuntimeError: an episode does not end within `LONGEST_EPISODE` steps.
        EnvironmentFault: an environment raised, or returned what is not finite.
    """
    if n_episodes < 1:
        raise ValueError(f"an evaluation needs at least 1 episode, not {n_episodes}")
    world = World([spec], [Ledger()], len(policies))
    try:
        players = [_Player(policy, n_episodes) for policy in policies.values()]
        for slot, player in enumerate(players):
            player.see(_begin(world, slot, seed))
        playing = list(range(len(players)))
        while playing:
            actions = np.stack([players[slot].act(world.observation_space) for slot in playing])
            seen, rewards, terminated, truncated = world.advance(
                actions, None if len(playing) == len(players) else np.array(playing)
            )
            _raise_faults(world)
            for row, slot in enumerate(list(playing)):
                ended = bool(terminated[row] or truncated[row])
                players[slot].live(float(rewards[row]), seen[row], ended)
                if ended and watch is not None:
                    watch(sum(len(player.returns) for player in players))
                if players[slot].done:
                    playing.remove(slot)
                elif ended:
                    players[slot].see(_begin(world, slot))
    finally:
        world.close()
    return {name: player.result() for name, player in zip(policies, players)}


class _Player:
    """A policy in the midst of its evaluation."""

    def __init__(self, policy: Policy, n_episodes: int) -> None:
        self._policy, self._n_episodes = policy, n_episodes
        self._state: Any = None
        self._start = np.ones(1, dtype=bool)
        self._now = np.zeros(0)
        self._return = 0.0
        self._length = 0
        self.returns: list[float] = []
        self.lengths: list[int] = []

    @property
    def done(self) -> bool:
        """Whether it has played all its episodes."""
        return len(self.returns) == self._n_episodes

    def see(self, first: np.ndarray) -> None:
        """Begin an episode with this observation."""
        # The policy clears its recurrent state where an episode starts.
        self._now, self._start = first.copy(), np.ones(1, dtype=bool)
        self._return, self._length = 0.0, 0

    def act(self, space: gym.Space) -> np.ndarray:
        """Its action."""
        actions, self._state = self._policy.predict(
            np.asarray(self._now, dtype=space.dtype)[None],
            state=self._state,
            episode_start=self._start,
            deterministic=True,
        )
        return actions[0]

    def live(self, reward: float, seen: np.ndarray, ended: bool) -> None:
        """What came of its action."""
        self._now, self._start = seen.copy(), np.zeros(1, dtype=bool)
        self._return += reward
        self._length += 1
        if ended:
            self.returns.append(self._return)
            self.lengths.append(self._length)
        elif self._length == LONGEST_EPISODE:
            raise RuntimeError(
                f"an episode of the evaluation did not end within {self._length:,} steps"
            )

    def result(self) -> Evaluation:
        return Evaluation(tuple(self.returns), tuple(self.lengths), sum(self.lengths))


def _begin(world: World, slot: int, seed: int | None = None) -> np.ndarray:
    seen = world.begin(slot, seed)
    _raise_faults(world)
    return seen


def _raise_faults(world: World) -> None:
    if world.faults:
        error = world.faults[0]
        told = type(error)(f"in an evaluation: {error}")
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from error.__cause__
