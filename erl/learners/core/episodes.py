"""Episodes of several policies side by side, for learners that evaluate whole policies."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erl.errors import Stopped
from erl.worlds.actions import Actions
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LifetimeSpec
from erl.worlds.world import World

# From (indices of the policies (k,), what each sees (k, features)) to actions: (k, actions) in
# [-1, 1], which stand for the bounds of a Box, or what else the action space holds.
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Episode:
    """What one policy lived through.

    Attributes:
        observations: (steps + 1, features), float32; the last one is where it stopped.
        actions: (steps, actions) in [-1, 1], float32; or (steps, …), int64, what was chosen from a
            space that is no Box.
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


class Stage:
    """Environments of one lifetime, one for each policy that plays, in lockstep.

    Every episode begins with a seed of its own, drawn from the lifetime's: what happens in it
    depends on the policy and on the number of episodes before, and not on what an environment has
    been through. So a checkpoint between episodes needs no environment's state. When the lifetime's
    budget is spent, whoever still plays is cut short; it is exceeded by less than a step of each.
    Steps are entered in the lifetime's ledger; the learner decides which of many policies' episodes
    count.

    Args:
        spec: the lifetime.
        ledger: where steps are counted.
        n: environments.
    """

    def __init__(self, spec: LifetimeSpec, ledger: Ledger, n: int) -> None:
        self.world = World([spec], [ledger], n)
        self._ledger, self._budget, self._n = ledger, spec.steps, n
        self._rng = np.random.default_rng(spec.seeds.environment)
        self._actions = Actions(self.world.action_space)

    def play(self, act: Act, n: int = 1, limit: int | None = None) -> list[Episode]:
        """One episode of each of n policies, in as many environments; at least a step, whatever is
        left of the budget.

        Args:
            act: asked in every step for those that still play.
            n: at most the number of environments.
            limit: steps after which an episode is left; None for none.

        Raises:
            Stopped: the lifetime was told to end before its budget was spent.
            EnvironmentFault: an environment raised, or returned what is not finite.
            FloatingPointError: a policy chose an action that is not finite.
        """
        playing = np.arange(n)
        now = np.stack([self._begin(k, int(self._rng.integers(2**31))) for k in range(n)])
        # One entry for each step of all: a population has too many episodes to go through them.
        who, observations = [playing], [now]
        actions: list[np.ndarray] = []
        rewards: list[np.ndarray] = []
        terminated, truncated, cut = np.zeros((3, n), dtype=bool)
        while len(playing):
            self.check_stopped()
            chosen = act(playing, now)
            self._ledger.step(len(playing))
            now, earned, terminated[playing], truncated[playing] = self._advance(chosen, playing)
            who.append(playing)
            observations.append(now)
            actions.append(chosen)
            rewards.append(earned)
            if len(rewards) == limit:
                break
            going = ~(terminated | truncated)[playing]
            if not going.all():
                playing, now = playing[going], now[going]
            if self.spent:
                cut[playing] = True
                break
        dtype = np.float32 if self._actions.continuous else np.int64
        columns = zip(
            _by_policy(observations, who, n),
            _by_policy(actions, who[1:], n),
            _by_policy(rewards, who[1:], n),
        )
        ends = zip(terminated.tolist(), truncated.tolist(), cut.tolist())
        return [Episode(o, a.astype(dtype), r, *end) for (o, a, r), end in zip(columns, ends)]

    @property
    def spent(self) -> bool:
        """Whether the lifetime's budget is."""
        return self._ledger.steps >= self._budget

    def _begin(self, slot: int, seed: int) -> np.ndarray:
        """Begin an episode; what its policy sees, (features,)."""
        seen = self.world.begin(slot, seed=seed)
        self._raise_faults()
        return seen.astype(np.float32)

    def _advance(
        self, chosen: np.ndarray, slots: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of these slots: `World.advance`'s result, with float32 observations of its own.
        No ledger is told.
        """
        some = None if len(slots) == self._n else slots
        seen, rewards, terminated, truncated = self.world.advance(self.executed(chosen), some)
        self._raise_faults()
        return seen.astype(np.float32), rewards, terminated, truncated

    def executed(self, chosen: np.ndarray) -> np.ndarray:
        """Actions of agents, for those that `Act` gives."""
        return self._actions.scale(chosen) if self._actions.continuous else chosen

    def _raise_faults(self) -> None:
        if self.world.faults:
            raise self.world.faults[0]

    def check_stopped(self) -> None:
        """Raise `Stopped` if the lifetime was told to end before its budget was spent."""
        if not self.spent and self._ledger.stopped:
            raise Stopped

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on between episodes, picklable: the stream of seeds, and
        reservoirs that are not reset.
        """
        states = self.world.reservoir_state
        reservoirs = [] if states is None else [row[None].copy() for row in states]
        return {"rng": self._rng.bit_generator.state, "reservoirs": reservoirs}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        self._rng.bit_generator.state = state["rng"]
        states = self.world.reservoir_state
        if states is not None:
            states[:] = np.concatenate(state["reservoirs"])

    def close(self) -> None:
        """Close the environments."""
        self.world.close()


@dataclass
class _Running:
    """An episode that goes on.

    Attributes:
        seed: with which it began.
        reservoirs: their state (units,) before it began, which some keep; None without reservoirs.
        observations, actions, rewards: of each step so far; one observation more.
    """

    seed: int
    reservoirs: np.ndarray | None
    observations: list[np.ndarray]
    actions: list[np.ndarray]
    rewards: list[float]
    terminated: bool = False
    truncated: bool = False


class OpenStage(Stage):
    """Environments of one lifetime in which episodes begin and end at different times, in lockstep.

    Each begins with a seed that the caller gives, so that a running one can be played again up to
    where it was: a checkpoint needs no environment's state. Otherwise as `Stage`.
    """

    def __init__(self, spec: LifetimeSpec, ledger: Ledger, n: int) -> None:
        super().__init__(spec, ledger, n)
        self._running: dict[int, _Running] = {}

    def begin(self, slot: int, seed: int) -> None:
        """Begin an episode; one that was running in the slot is left."""
        states = self.world.reservoir_state
        before = None if states is None else states[slot].copy()
        self._running[slot] = _Running(seed, before, [self._begin(slot, seed)], [], [])

    def seen(self, slots: np.ndarray) -> np.ndarray:
        """What the policies of these slots see, float32 (k, features)."""
        return np.stack([self._running[slot].observations[-1] for slot in slots.tolist()])

    def advance(self, slots: np.ndarray, chosen: np.ndarray, counted: int) -> np.ndarray:
        """One step of the episodes in these slots.

        Args:
            slots: int array (k,), in order.
            chosen: actions, as those of `Act`.
            counted: how many of the steps are entered in the ledger.

        Returns:
            Which of them have ended, bool (k,): all of them once the budget is spent.

        Raises:
            Stopped, EnvironmentFault, FloatingPointError: see `Stage.play`.
        """
        self.check_stopped()
        self._ledger.step(counted)
        seen, rewards, terminated, truncated = self._advance(chosen, slots)
        steps = zip(slots.tolist(), seen, chosen, rewards.tolist(), terminated, truncated)
        for slot, observation, action, reward, *ends in steps:
            running = self._running[slot]
            running.observations.append(observation)
            running.actions.append(action)
            running.rewards.append(reward)
            running.terminated, running.truncated = map(bool, ends)
        return np.full(len(slots), self.spent) | terminated | truncated

    def take(self, slot: int) -> Episode:
        """The episode of a slot, as far as it came; nothing is running there afterwards."""
        running = self._running.pop(slot)
        dtype = np.float32 if self._actions.continuous else np.int64
        return Episode(
            np.stack(running.observations),
            np.stack(running.actions).astype(dtype),
            np.array(running.rewards),
            running.terminated,
            running.truncated,
            not (running.terminated or running.truncated),
        )

    def get_state(self) -> dict[str, Any]:
        """All that it takes to go on, picklable: also running episodes."""
        return {**super().get_state(), "running": copy.deepcopy(self._running)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`: running episodes are played again up to where they were. Where an
        environment does otherwise this time, the episode begins anew.
        """
        super().set_state(state)
        self._running = {}
        for slot, saved in state["running"].items():
            self._begin_like(slot, saved)
            if self._does_the_same(slot, saved):
                self._running[slot] = copy.deepcopy(saved)
            else:
                self._begin_like(slot, saved)

    def _begin_like(self, slot: int, saved: _Running) -> None:
        """Begin an episode as a saved one began."""
        states = self.world.reservoir_state
        if states is not None:
            states[slot] = saved.reservoirs
        self.begin(slot, saved.seed)

    def _does_the_same(self, slot: int, saved: _Running) -> bool:
        """Play on as in a saved episode, which goes on, to where it was; whether the environment
        does the same. Where it does not, this stops at once: it may not be stepped past an end.
        """
        first, *later = saved.observations
        if not np.array_equal(self._running[slot].observations[0], first):
            return False
        for action, observation in zip(saved.actions, later, strict=True):
            (seen,), _, (terminated,), (truncated,) = self._advance(action[None], np.array([slot]))
            if terminated or truncated or not np.array_equal(seen, observation):
                return False
        return True


def _by_policy(steps: Sequence[np.ndarray], who: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
    """What each of n policies has of rows that came step by step.

    Args:
        steps: of each step an array with a row for each policy that took part.
        who: which these are.
        n: policies.
    """
    owner = np.concatenate(who)
    rows = np.concatenate(steps)[np.argsort(owner, kind="stable")]
    return np.split(rows, np.cumsum(np.bincount(owner, minlength=n))[:-1])
