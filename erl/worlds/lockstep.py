"""Many environments of one kind, stepped side by side on one core, with the numbers that Gymnasium
gives.

Gymnasium spends a good part of a MuJoCo step on wrappers, infos and small arrays. Here only the
physics is stepped environment by environment. The arrays of mjData that observations and rewards
depend on are gathered for all environments by one concatenation, and a `Family` computes from them,
for all environments at once and in Gymnasium's order of operations, what Gymnasium computes one by
one: equal to the last bit. Environments without a family, and those that carry further wrappers, go
through their own `step`.
"""

import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from erl.errors import RAISED, EnvironmentFault
from erl.worlds.actions import Actions
from erl.worlds.mujoco_families import family_of
from erl.worlds.observations import LARGEST, Observations, is_finite, reward_of
from erl.worlds.snapshots import restore, snapshot
from erl.worlds.wrappers import close_quietly

_UNLIMITED = np.iinfo(np.int64).max
_ONE = np.ones(1, dtype=np.int64)  # an array, since NumPy converts a Python number every time


@dataclass(frozen=True)
class Fault:
    """Why an environment was taken out.

    Attributes:
        reason: in one sentence.
        traceback: formatted, where the environment raised.
        by_policy: whether it is the policy that failed, whose action was not finite.
    """

    reason: str
    traceback: str = ""
    by_policy: bool = False


class Lockstep:
    """n environments of one kind, one for each agent slot, stepped together. It owns them: step,
    reset and close them here only.

    An environment that raises, returns an observation or a reward that is not finite or not of the
    declared shape, or is given an action that is not finite, is taken out, and the others go on.
    Its rows are zeros (False) from that step on, `faults` says why, and resetting it does nothing.

    Args:
        envs: environments made alike, freshly, by `gym.make`.
        keep: indices of the entries that agents see of the flat observation (say, to hide
            velocities); None for all.

    Attributes:
        envs: the environments, in the order of slots, for rendering.
        observation_space: of what agents see, a flat Box: see `Observations`.
        action_space: what agents choose from: see `Actions`.
        elapsed: int array (n,), steps so far of each slot's episode.
        faults: slot -> Fault, for the slots taken out.
        fast: whether only the physics is stepped one by one; False means every environment's own
            `step`.

    Raises:
        UserError: observations or actions that agents do not know.
        ValueError: no environments, or spaces that differ.
    """

    def __init__(
        self, envs: Sequence[gym.Env], keep: Sequence[int] | np.ndarray | None = None
    ) -> None:
        if not envs:
            raise ValueError("a lockstep needs at least one environment")
        spaces_ = [(e.observation_space, e.action_space) for e in envs]
        if any(pair != spaces_[0] for pair in spaces_):
            raise ValueError(
                "environments in lockstep share their observation space and their action space"
            )
        name = envs[0].spec.id if envs[0].spec is not None else str(envs[0])
        self._observations = Observations(spaces_[0][0], name, keep)
        self._actions = Actions(spaces_[0][1], name)
        self.observation_space = self._observations.space
        self.action_space = self._actions.agent_space
        self.envs = list(envs)
        self.elapsed = np.zeros(len(envs), dtype=np.int64)
        self.faults: dict[int, Fault] = {}
        self._unstarted = set(range(len(envs)))
        self._arrange()

    @property
    def n(self) -> int:
        """Number of slots."""
        return len(self.envs)

    def reset(self, i: int, seed: int | None = None) -> np.ndarray:
        """Begin a new episode in slot i, drawn from `seed` or, without one, from the environment's
        running random stream.

        Returns:
            The first observation, a new float64 array (d,).
        """
        self.elapsed[i] = 0
        if i in self.faults:
            return np.zeros(self.observation_space.shape)
        try:
            # Through all wrappers, so that rendering and the checks of a first reset work as ever.
            observation, _ = self.envs[i].reset(seed=seed)
            row = self._observations.encode(observation).astype(np.float64)
        except EnvironmentFault as fault:
            self._take_out(i, f"{fault}, when it was reset")
            return np.zeros(self.observation_space.shape)
        except RAISED as error:
            self._take_out(
                i,
                f"the environment raised {_short(error)} when it was reset",
                traceback.format_exc(),
            )
            return np.zeros(self.observation_space.shape)
        self._unstarted.discard(i)
        if not is_finite(row):
            self._take_out(
                i,
                f"the environment returned an observation that is not finite when it was reset: "
                f"{row}",
            )
            row = np.zeros_like(row)
        return row

    def step(
        self, actions: Any, slots: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of every environment, or of some. An ended episode is not reset: its observation
        is the last one, and the caller resets the slot.

        Args:
            actions: of the agents, one for each slot that steps, (k,) for discrete actions,
                (k, *shape) otherwise; cast to the action space's dtype, not clipped.
            slots: int array (k,), the slots that step, all different; None for all n. The others
                stay as they are.

        Returns:
            Observations (k, d) float64, rewards (k,) float64, terminated (k,) bool, truncated (k,)
            bool: new arrays, the caller's own.

        Raises:
            gymnasium.error.ResetNeeded: a slot that is to step was never reset.
        """
        group = self._group(slots)
        unstarted = self._unstarted & set(group.slots) if self._unstarted else ()
        if unstarted:
            raise gym.error.ResetNeeded(f"reset slots {sorted(unstarted)} before the first step")
        actions = self._actions.batch(actions)
        self.elapsed[group.index] += _ONE
        not_finite = self._actions.not_finite(actions)
        if len(not_finite):
            for row in not_finite:
                slot, action = group.slots[row], actions[row]
                if slot not in self.faults:
                    self._take_out(
                        slot,
                        f"the policy chose an action that is not finite {self._when(slot)}: "
                        f"{action}",
                        by_policy=True,
                    )
            group = self._group(slots)
        observations, rewards, terminated, truncated = (
            self._step_fast(group, actions) if self.fast else self._step_each(group, actions)
        )
        truncated |= self.elapsed[group.index] >= self._limits[group.index]
        # Sums of squares are the cheapest look; one that is merely large is cleared by the closer
        # look.
        if not np.vdot(observations, observations) + np.vdot(rewards, rewards) < LARGEST**2:
            self._take_out_not_finite(group, observations, rewards)
        if self.faults:
            taken_out = [row for row, slot in enumerate(group.slots) if slot in self.faults]
            for array in (observations, rewards, terminated, truncated):
                array[taken_out] = 0
        return observations, rewards, terminated, truncated

    def keep(self, slots: Sequence[int]) -> None:
        """Keep only these slots, in this order (slot k becomes what slots[k] was), and close the
        other environments.
        """
        for i in set(range(self.n)) - set(slots):
            self._close(i)
        self.envs = [self.envs[i] for i in slots]
        self.elapsed = self.elapsed[list(slots)]
        self.faults = {k: self.faults[i] for k, i in enumerate(slots) if i in self.faults}
        self._unstarted = {k for k, i in enumerate(slots) if i in self._unstarted}
        self._arrange()

    def close(self) -> None:
        """Close every environment."""
        for i in range(self.n):
            self._close(i)

    def get_state(self) -> dict[str, list[Any]]:
        """All that it takes to go on with every episode, bit for bit, in a Lockstep of the same
        kind: picklable lists with an entry for each slot.

        An environment's state is the attributes of its Python object and of its wrappers, plus
        mjData. Where some cannot be pickled (Box2D keeps its world in C++), or arrays share memory,
        only the random stream is saved. Changes made to an mjModel are not.
        """
        return {
            "elapsed": self.elapsed.tolist(),
            "streams": [deepcopy(e.unwrapped.np_random) for e in self.envs],
            "envs": [snapshot(e) or b"" for e in self.envs],
        }

    def set_state(self, state: Mapping[str, Sequence[Any]], slots: Sequence[int]) -> list[int]:
        """Have these slots go on from their part of `get_state`'s result.

        Returns:
            The slots whose episode could not be restored: the caller has to reset them, which draws
                from their restored random stream.
        """
        lost = []
        for i, elapsed, stream, saved in zip(
            slots, *(state[k] for k in ("elapsed", "streams", "envs")), strict=True
        ):
            self.elapsed[i] = elapsed
            if i not in self.faults and not (saved and restore(self.envs[i], saved)):
                _set_stream(self.envs[i].unwrapped, stream)
                lost.append(i)
        self._unstarted = (self._unstarted - set(slots)) | set(lost)
        self._arrange()
        return lost

    def _arrange(self) -> None:
        """Prepare what `step` goes through: the environments without Gymnasium's own wrappers, or
        their physics.
        """
        cores, limits = zip(*map(_peel, self.envs)) if self.envs else ((), ())
        self._cores: Sequence[Any] = cores
        self._limits = np.array(limits, dtype=np.int64)
        space = self.envs[0].observation_space if self.envs else None
        doubles = isinstance(space, spaces.Box) and space.dtype == np.float64
        family = family_of(cores) if doubles else None
        self.fast = family is not None
        if family is not None:
            self._family = family(cores[0])
            self._frame_skip = cores[0].frame_skip
        self._all = self._latest = self._make_group(list(range(self.n)))
        self._all.index = slice(None)  # as all rows, and faster

    def _group(self, slots: np.ndarray | None) -> "_Group":
        """What stepping these slots goes through; the latest is kept, since episodes last."""
        if slots is None:
            return self._all
        wanted = slots.tolist()
        if wanted != self._latest.slots:
            self._latest = self._make_group(wanted)
        return self._latest

    def _make_group(self, slots: list[int]) -> "_Group":
        cores = [self._cores[i] for i in slots]
        live = [(row, i, cores[row]) for row, i in enumerate(slots) if i not in self.faults]
        group = _Group(slots, np.array(slots, dtype=int), live)
        if self.fast:
            group.bodies = [(row, i, c.model, c.data, c.data.ctrl) for row, i, c in live]
            group.before, group.after = (
                _Gather([read(c.data) for c in cores])
                for read in (self._family.before, self._family.after)
            )
        return group

    def _step_fast(
        self, group: "_Group", actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        before = group.before()
        frame_skip, contacts = self._frame_skip, self._family.contacts
        controls = actions.astype(np.float64)
        for row, i, model, data, ctrl in group.bodies:
            ctrl[:] = controls[row]
            try:
                mujoco.mj_step(model, data, frame_skip)
                if contacts:
                    mujoco.mj_rnePostConstraint(model, data)
            except RAISED as error:
                self._take_out(
                    i,
                    f"the environment raised {_short(error)} {self._when(i)}",
                    traceback.format_exc(),
                )
        # A diverged environment must not end in a warning about all of them: it is found by its
        # numbers.
        with np.errstate(all="ignore"):
            observations, rewards, terminated = self._family.outcome(before, group.after(), actions)
        observations = self._observations.visible(observations)
        return observations, rewards, terminated, np.zeros(len(group.slots), dtype=bool)

    def _step_each(
        self, group: "_Group", actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        k = len(group.slots)
        observations, rewards = np.zeros((k, self._observations.size)), np.zeros(k)
        terminated, truncated = np.zeros(k, dtype=bool), np.zeros(k, dtype=bool)
        rows = self._actions.decode(actions)
        copied, encode = self._observations.is_plain, self._observations.encode
        for row, i, env in group.live:
            try:
                observation, reward, terminated[row], truncated[row], _ = env.step(rows[row])
                observations[row] = observation if copied(observation) else encode(observation)
                rewards[row] = reward if isinstance(reward, float) else reward_of(reward)
            except EnvironmentFault as fault:
                self._take_out(i, f"{fault}, {self._when(i)}")
            except RAISED as error:
                self._take_out(
                    i,
                    f"the environment raised {_short(error)} {self._when(i)}",
                    traceback.format_exc(),
                )
        return observations, rewards, terminated, truncated

    def _when(self, i: int) -> str:
        return f"at step {self.elapsed[i]} of its episode"

    def _take_out_not_finite(
        self, group: "_Group", observations: np.ndarray, rewards: np.ndarray
    ) -> None:
        for row, i in enumerate(group.slots):
            seen, earned = observations[row], rewards[row]
            for name, value, fine in (
                ("an observation", seen, is_finite(seen)),
                ("a reward", earned, isfinite(earned)),
            ):
                if i not in self.faults and not fine:
                    self._take_out(
                        i,
                        f"the environment returned {name} that is not finite {self._when(i)}: "
                        f"{value}",
                    )

    def _take_out(self, i: int, reason: str, trace: str = "", by_policy: bool = False) -> None:
        self.faults[i] = Fault(reason, trace, by_policy)
        self._unstarted.discard(i)
        self._close(i)
        self._arrange()

    def _close(self, i: int) -> None:
        close_quietly(self.envs[i])


@dataclass
class _Group:
    """Slots that step together, and what that goes through.

    Attributes:
        slots: in the order of the rows of a step's arrays.
        index: the same, to select them from an array with a row for every slot.
        live: (row, slot, environment without Gymnasium's own wrappers) of those without a fault.
        bodies: (row, slot, mjModel, mjData, its controls) of those, where physics is stepped alone.
        before, after: what is read of the physics around a step, where it is stepped alone.
    """

    slots: list[int]
    index: np.ndarray | slice
    live: list[tuple[int, int, Any]]
    bodies: list[tuple[int, int, Any, Any, np.ndarray]] = field(default_factory=list)
    before: "_Gather" = field(init=False)
    after: "_Gather" = field(init=False)


def _set_stream(core: Any, stream: Any) -> None:
    """Give an environment its random stream back, as far as it can be had."""
    try:
        core.np_random = deepcopy(stream)
    except AttributeError:  # a property without a setter: what it hands out may be set
        with suppress(AttributeError):
            core.np_random.bit_generator.state = stream.bit_generator.state


def _short(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _peel(env: gym.Env) -> tuple[Any, int]:
    """The environment below Gymnasium's outermost bookkeeping wrappers, and the time limit that
    they held.
    """
    limit = _UNLIMITED
    while type(env) in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
        if isinstance(env, TimeLimit):
            limit = min(limit, env._max_episode_steps)
        env = env.env  # type: ignore[attr-defined]
    return env, limit


class _Gather:
    """Copies one list of arrays per environment into one matrix, a row per environment."""

    def __init__(self, arrays: list[list[np.ndarray]]) -> None:
        self._arrays = [a.reshape(-1) for row in arrays for a in row]
        self._matrix = np.empty((len(arrays), sum(a.size for a in arrays[0])))

    def __call__(self) -> np.ndarray:
        if self._arrays:
            np.concatenate(self._arrays, out=self._matrix.reshape(-1))
        return self._matrix
