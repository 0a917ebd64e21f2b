"""Gymnasium's MuJoCo tasks for many environments at once: what they read of the physics and what
they make of it.

A family computes observations, rewards and ends of episodes for all environments together, in
Gymnasium's order of operations. So it equals it to the last bit, to which
`tests/worlds/test_lockstep.py` holds it.
"""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np


class Family:
    """What some of Gymnasium's MuJoCo classes read of mjData around a step, and what they make of
    it.

    Expressions keep Gymnasium's order and types: a control cost, for one, is a single-precision
    number, as actions are.
    """

    contacts = False  # whether contact forces are read, which mj_step alone does not compute

    def __init__(self, task: Any) -> None:
        self.task, self.dt, self.nq, self.nv = task, task.dt, task.model.nq, task.model.nv
        self.v4 = type(task).__module__.endswith("_v4")

    def before(self, data: mujoco.MjData) -> list[np.ndarray]:
        """Views of what is read before the physics moves."""
        return []

    def after(self, data: mujoco.MjData) -> list[np.ndarray]:
        """Views of what is read afterwards: always the positions and velocities first."""
        return [data.qpos, data.qvel]

    def outcome(
        self, before: np.ndarray, after: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Observations (n, d), rewards (n,), terminated (n,), new arrays, from what was read: one
        row per environment.
        """
        raise NotImplementedError


class _Runner(Family):
    """HalfCheetah and Swimmer: forward velocity less control cost.

    Subclasses add a reward for staying upright.
    """

    hidden = 1  # leading positions that observations leave out by default
    position = 0  # the column of `after` in which the x position stands

    def before(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.qpos[:1]]

    def outcome(
        self, before: np.ndarray, after: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        task = self.task
        rewards = getattr(task, "_forward_reward_weight", 1.0) * (
            (after[:, self.position] - before[:, 0]) / self.dt
        )
        healthy = self.healthy(after)
        if healthy is None:
            terminated = np.zeros(len(after), dtype=bool)
        else:
            terminated = ~healthy if task._terminate_when_unhealthy else np.zeros_like(healthy)
            paid = np.ones_like(healthy) if self.v4 and task._terminate_when_unhealthy else healthy
            rewards = rewards + paid * task._healthy_reward
        costs = task._ctrl_cost_weight * np.square(actions).sum(axis=1)
        skip = self.hidden if task._exclude_current_positions_from_observation else 0
        return self.observe(after, skip), rewards - self.add_contacts(costs, after), terminated

    def healthy(self, after: np.ndarray) -> np.ndarray | None:
        return None

    def observe(self, after: np.ndarray, skip: int) -> np.ndarray:
        return after[:, skip:].copy()

    def add_contacts(self, costs: np.ndarray, after: np.ndarray) -> np.ndarray:
        return costs


class _Swimmer(_Runner):
    hidden = 2


class _Walker(_Runner):
    def healthy(self, after: np.ndarray) -> np.ndarray:
        return _within(after[:, 1], self.task._healthy_z_range) & _within(
            after[:, 2], self.task._healthy_angle_range
        )

    def observe(self, after: np.ndarray, skip: int) -> np.ndarray:
        observations = after[:, skip:].copy()
        velocities = observations[:, self.nq - skip :]
        np.clip(velocities, -10, 10, out=velocities)
        return observations


class _Hopper(_Walker):
    def healthy(self, after: np.ndarray) -> np.ndarray:
        return super().healthy(after) & _within(after[:, 2:], self.task._healthy_state_range).all(
            axis=1
        )


class _Ant(_Runner):
    hidden = 2
    position = -1

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self.body = task.data.body("torso" if self.v4 else task._main_body).id
        self.contacts = not self.v4 or task._use_contact_forces
        # The column in which contact forces begin, after positions and velocities.
        self.end = self.nq + self.nv

    def before(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.xpos[self.body, :1]]

    def after(self, data: mujoco.MjData) -> list[np.ndarray]:
        forces = [data.cfrc_ext.reshape(-1)] if self.contacts else []
        return [data.qpos, data.qvel, *forces, data.xpos[self.body, :1]]

    def healthy(self, after: np.ndarray) -> np.ndarray:
        low, high = self.task._healthy_z_range
        return (
            np.isfinite(after[:, : self.end]).all(axis=1)
            & (low <= after[:, 2])
            & (after[:, 2] <= high)
        )

    def forces(self, after: np.ndarray) -> np.ndarray:
        return np.clip(after[:, self.end : -1], *self.task._contact_force_range)

    def observe(self, after: np.ndarray, skip: int) -> np.ndarray:
        state = after[:, skip : self.end]
        if self.v4 and self.contacts:
            return np.hstack([state, self.forces(after)])
        if not self.v4 and self.task._include_cfrc_ext_in_observation:
            return np.hstack([state, self.forces(after)[:, 6:]])  # without the world body's
        return state.copy()

    def add_contacts(self, costs: np.ndarray, after: np.ndarray) -> np.ndarray:
        if not self.contacts:
            return costs
        return costs + self.task._contact_cost_weight * np.square(self.forces(after)).sum(axis=1)


class _InvertedPendulum(Family):
    def outcome(
        self, before: np.ndarray, after: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        terminated = ~np.isfinite(after).all(axis=1) | (np.abs(after[:, 1]) > 0.2)
        rewards = np.ones(len(after)) if self.v4 else 1.0 - terminated
        return after.copy(), rewards, terminated


class _InvertedDoublePendulum(Family):
    def after(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.qpos, data.qvel, data.qfrc_constraint, data.site_xpos[0]]

    def outcome(
        self, before: np.ndarray, after: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        positions, velocities, _, tip = np.split(after, (3, 6, 9), axis=1)
        terminated = tip[:, 2] <= 1
        alive = (
            np.full(len(after), 10.0) if self.v4 else self.task._healthy_reward * (1 - terminated)
        )
        # The power of a Python float is the C library's, as Gymnasium's is; that of an array
        # differs from it in some last bits.
        penalties = [
            (0.01 * x**2 + (y - 2) ** 2, 0.001 * v1**2 + 0.005 * v2**2)
            for (x, _, y), (_, v1, v2) in zip(tip.tolist(), velocities.tolist())
        ]
        distance, speed = np.array(penalties).reshape(-1, 2).T
        clipped = np.clip(after[:, 3:9], -10, 10)[:, : 6 if self.v4 else 4]
        angles = positions[:, 1:]
        observations = np.hstack([positions[:, :1], np.sin(angles), np.cos(angles), clipped])
        return observations, alive - distance - speed, terminated


class _Reacher(Family):
    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self.finger, self.target = (task.data.body(name).id for name in ("fingertip", "target"))

    def before(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.xpos[self.finger], data.xpos[self.target]]

    def after(self, data: mujoco.MjData) -> list[np.ndarray]:
        return [data.qpos, data.qvel, *self.before(data)]

    def outcome(
        self, before: np.ndarray, after: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        offset = after[:, -6:-3] - after[:, -3:]
        # v4 pays for the distance before the step. Rows one by one, since a norm's last bit depends
        # on how it is summed.
        paid = before[:, :3] - before[:, 3:] if self.v4 else offset
        distance, control = (
            -np.array([np.linalg.norm(row) for row in paid]),
            -np.square(actions).sum(axis=1),
        )
        if not self.v4:
            distance, control = (
                distance * self.task._reward_dist_weight,
                control * self.task._reward_control_weight,
            )
        angles, nq = after[:, :2], self.nq
        parts = [
            np.cos(angles),
            np.sin(angles),
            after[:, 2 : nq + 2],
            offset if self.v4 else offset[:, :2],
        ]
        return np.hstack(parts), distance + control, np.zeros(len(after), dtype=bool)


def _within(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    return (low < values) & (values < high)


# Keys name exact classes: a subclass may compute anything.
_FAMILIES: dict[str, type[Family]] = {
    f"gymnasium.envs.mujoco.{module}_{version}.{name}": family
    for version in ("v4", "v5")
    for module, name, family in (
        ("half_cheetah", "HalfCheetahEnv", _Runner),
        ("swimmer", "SwimmerEnv", _Swimmer),
        ("walker2d", "Walker2dEnv", _Walker),
        ("hopper", "HopperEnv", _Hopper),
        ("ant", "AntEnv", _Ant),
        ("inverted_pendulum", "InvertedPendulumEnv", _InvertedPendulum),
        ("inverted_double_pendulum", "InvertedDoublePendulumEnv", _InvertedDoublePendulum),
        ("reacher", "ReacherEnv", _Reacher),
    )
}


def family_of(cores: Sequence[Any]) -> type[Family] | None:
    """The family of these environments, if they have one, were all constructed with the same
    arguments, and have the methods of their class.
    """

    def arguments(core: Any) -> str:
        given = {
            k: v
            for k, v in vars(core).items()
            if k.startswith("_") and not k.startswith("_np_random")
        }
        return repr((type(core), given, core.fullpath, core.frame_skip, core.dt, core.render_mode))

    # Who puts a method on the object itself wants that one.
    if any(callable(getattr(type(core), k, None)) for core in cores for k in vars(core)):
        return None
    names = {f"{type(core).__module__}.{type(core).__qualname__}" for core in cores}
    family = _FAMILIES.get(names.pop()) if len(names) == 1 else None
    # A window is drawn from within `step`.
    if family is None or cores[0].render_mode == "human" or len(set(map(arguments, cores))) > 1:
        return None
    return family
