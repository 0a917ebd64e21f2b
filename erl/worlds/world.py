"""The one way to roll out: environments and reservoirs of many policies, stepped in lockstep.

`World.begin` and `World.advance` are the engine: an episode begins in one slot, and some or all
slots take a step. `World.reset` and `World.step` are what a cohort of agents makes of it, where
every environment steps every time and episodes follow one another. Learners that judge whole
episodes (`learners.core.episodes`) and evaluation use the engine itself.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from erl.errors import EnvironmentFault
from erl.worlds.actions import Actions
from erl.worlds.context import ContextEncoder
from erl.worlds.ledger import Ledger
from erl.worlds.lockstep import Lockstep
from erl.worlds.reservoirs import Context, UnsoundReservoir, draw_weights
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import check_task, make_bare_env
from erl.worlds.wrappers import close_quietly, closing_on_error, stacked_space

# Ticks between two entries in the ledgers; an episode's end enters what is outstanding at once.
_LEDGER_EVERY = 64


class World:
    """The environments and reservoirs of agents that step together.

    Slot k = agent * n_envs + environment. What happens in a slot does not depend on the others, to
    the last bit.

    Args:
        specs: lifetimes of the agents; their tasks agree, and their contexts but for the
            reservoirs' parameters.
        ledgers: one for each agent; `step` enters steps and episodes there.
        n_envs: environments of one agent. Its reservoirs have the same weights in all of them, and
            a state in each.

    Attributes:
        observation_space: of what one policy sees.
        action_space: what agents choose from.
        faults: by the agent's index, why its environment was taken out, that its policy chose an
            action that is not finite, or that its reservoirs cannot be drawn; go on without it
            (`keep`).
        envs: the environments, in the order of slots.
    """

    def __init__(
        self, specs: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], n_envs: int = 1
    ) -> None:
        check_task(specs[0].task)
        self.n_envs, self.ledgers = n_envs, list(ledgers)
        self._seeds = [spec.seeds.environment for spec in specs]
        self._encoder: ContextEncoder | None = None
        self.faults: dict[int, Exception] = {}
        with closing_on_error() as opened:
            envs = []
            for spec in specs:
                for _ in range(n_envs):
                    env, keep = make_bare_env(spec.task)
                    opened.callback(close_quietly, env)
                    envs.append(env)
            self._lockstep = Lockstep(envs, keep)
            self._prepare(specs)
        self._returns = np.zeros(self._lockstep.n)
        self._outstanding = 0

    def _prepare(self, specs: Sequence[LifetimeSpec]) -> None:
        """Frames, reservoirs and spaces, for environments that are made."""
        self.action_space: spaces.Space = self._lockstep.action_space
        visible: spaces.Box = self._lockstep.observation_space
        k = specs[0].task.frame_stack
        self._frames = None if k == 1 else np.zeros((self._lockstep.n, k * int(visible.shape[0])))
        self._frame_size = int(visible.shape[0])
        visible = stacked_space(visible, k)
        if specs[0].context is not None:
            n = self.n_envs
            contexts = [c for c in self._contexts(specs, visible) for _ in range(n)]
            reservoir_seeds = [spec.seeds.reservoir for spec in specs for _ in range(n)]
            self._encoder = ContextEncoder(contexts, reservoir_seeds, visible, self.action_space)
            self._collect_context_faults()
        self.observation_space: spaces.Box = (
            visible if self._encoder is None else self._encoder.space
        )

    def _contexts(
        self, specs: Sequence[LifetimeSpec], observation_space: spaces.Box
    ) -> list[Context]:
        """Each agent's context. One whose reservoirs cannot be drawn is at fault, and has
        reservoirs without recurrence until it is dropped.
        """
        input_dim = int(observation_space.shape[0]) + Actions(self.action_space).size + 1
        contexts = []
        for agent, spec in enumerate(specs):
            context = spec.context
            if context is None:
                raise ValueError("either all agents of a world have reservoirs or none")
            if context.own is not None:  # what cannot be made is among the encoder's faults
                contexts.append(context)
                continue
            try:
                draw_weights(context.reservoirs, spec.seeds.reservoir, input_dim)
            except UnsoundReservoir as error:
                self.faults[agent] = error
                still = tuple(replace(r, sr=0.0) for r in context.reservoirs)
                context = replace(context, reservoirs=still)
            contexts.append(context)
        return contexts

    @property
    def n_agents(self) -> int:
        """Number of agents that are left."""
        return len(self.ledgers)

    @property
    def envs(self) -> list[gym.Env]:
        """Gymnasium's environments, in the order of slots."""
        return self._lockstep.envs

    # -- the engine --

    def begin(self, slot: int, seed: int | None = None) -> np.ndarray:
        """Begin an episode in one slot, drawn from `seed` or, without one, from the environment's
        running random stream.

        Returns:
            What the policy sees, (features,), valid until the next step.
        """
        observation = self._lockstep.reset(slot, seed)
        if self._frames is not None:
            self._frames[slot] = 0.0
            self._frames[slot, -self._frame_size :] = observation
            observation = self._frames[slot].copy()
        seen = observation if self._encoder is None else self._encoder.reset(slot, observation)
        self._collect_faults()
        return seen

    def advance(
        self, actions: np.ndarray, slots: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of some slots. An ended episode is not begun anew: the caller does that. No
        ledger is told.

        Args:
            actions: of the agents, as executed, (k, …).
            slots: int array (k,), those that step, all different; None for all.

        Returns:
            What the policies see (k, features), valid until the next step; rewards (k,); terminated
            (k,); truncated (k,).
        """
        observations, rewards, terminated, truncated = self._lockstep.step(actions, slots)
        if self._frames is not None:
            part = slice(None) if slots is None else slots
            observations = np.concatenate(
                [self._frames[part, self._frame_size :], observations], axis=1
            )
            self._frames[part] = observations
        seen = (
            observations
            if self._encoder is None
            else self._encoder.step(observations, actions, rewards, slots)
        )
        if self._lockstep.faults or (self._encoder is not None and self._encoder.faults):
            self._collect_faults()
        return seen, rewards, terminated, truncated

    @property
    def reservoir_state(self) -> np.ndarray | None:
        """The states of all slots' reservoirs, (slots, units), a view to read and to set; None
        without reservoirs.
        """
        return None if self._encoder is None else self._encoder.bank.state

    # -- a cohort --

    def reset(self) -> np.ndarray:
        """Begin every agent's first episode; what the policies see, array (n_agents, n_envs,
        features).
        """
        seen = np.zeros((self._lockstep.n, *self.observation_space.shape))
        for slot in range(self._lockstep.n):
            agent, env = divmod(slot, self.n_envs)
            # As Stable-Baselines3 seeds the environments of a vector: the agent's seed plus the
            # environment's index.
            seen[slot] = self.begin(slot, self._seeds[agent] + env)
        return self._by_agent(seen)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, np.ndarray]]]:
        """Step every environment and reservoir; where an episode ends, the next one begins.

        Args:
            actions: as executed, (n_agents, n_envs, …).

        Returns:
            What the policies see next (n_agents, n_envs, features), valid until the next step;
            rewards (n_agents, n_envs); whether an episode ended (n_agents, n_envs); and for each
            episode that a time limit ended (agent, environment, the last it saw).
        """
        actions = actions.reshape(len(self._returns), *actions.shape[2:])
        self._outstanding += 1
        seen, rewards, terminated, truncated = self.advance(actions)
        self._returns += rewards
        if self._outstanding == _LEDGER_EVERY:
            self.enter_steps()
        ended = terminated | truncated
        timeouts = []
        if np.count_nonzero(ended):  # faster than `any`
            self.enter_steps()
            for slot in np.flatnonzero(ended):
                agent, env = divmod(int(slot), self.n_envs)
                self.ledgers[agent].episode(self._returns[slot], int(self._lockstep.elapsed[slot]))
                self._returns[slot] = 0.0
                if not terminated[slot]:
                    timeouts.append((agent, env, seen[slot].copy()))
                seen[slot] = self.begin(int(slot))
        return self._by_agent(seen), self._by_agent(rewards), self._by_agent(ended), timeouts

    def _by_agent(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.n_agents, self.n_envs, *array.shape[1:])

    def enter_steps(self) -> None:
        """Enter outstanding steps in the ledgers."""
        if self._outstanding:
            n, self._outstanding = self._outstanding * self.n_envs, 0
            for ledger in self.ledgers:
                ledger.step(n)

    def _collect_faults(self) -> None:
        for slot, fault in self._lockstep.faults.items():
            agent = slot // self.n_envs
            if agent not in self.faults:
                kind = FloatingPointError if fault.by_policy else EnvironmentFault
                taken = self.ledgers[agent].steps + self._outstanding * self.n_envs
                # An evaluation counts no steps.
                error = kind(f"{fault.reason} (about step {taken})" if taken else fault.reason)
                if fault.traceback:
                    error.add_note(fault.traceback)
                self.faults[agent] = error
        self._collect_context_faults()

    def _collect_context_faults(self) -> None:
        if self._encoder is not None:
            for slot, error in self._encoder.faults.items():
                self.faults.setdefault(slot // self.n_envs, error)

    def keep(self, agents: Sequence[int]) -> None:
        """Keep only these agents; nothing changes for them."""
        self.enter_steps()
        slots = [agent * self.n_envs + env for agent in agents for env in range(self.n_envs)]
        self._lockstep.keep(slots)
        if self._encoder is not None:
            self._encoder.keep(slots)
        if self._frames is not None:
            self._frames = self._frames[slots]
        self._returns = self._returns[slots]
        self.ledgers = [self.ledgers[i] for i in agents]
        self._seeds = [self._seeds[i] for i in agents]
        self.faults = {}

    def get_states(self) -> list[dict[str, Any]]:
        """Each agent's episodes, reservoirs and random streams, picklable."""
        world = self._lockstep.get_state()
        states = []
        for agent in range(self.n_agents):
            part = slice(agent * self.n_envs, (agent + 1) * self.n_envs)
            states.append(
                {
                    "environments": {k: v[part] for k, v in world.items()},
                    "reservoirs": None
                    if self._encoder is None
                    else self._encoder.bank.state[part].copy(),
                    "frames": None if self._frames is None else self._frames[part].copy(),
                    "returns": self._returns[part].copy(),
                }
            )
        return states

    def set_states(
        self, states: Sequence[dict[str, Any] | None]
    ) -> dict[tuple[int, int], np.ndarray]:
        """Go on from `get_states`, for the agents that have one.

        Returns:
            What policies see in those environments whose episode could not be restored and began
            anew, by (agent, environment).
        """
        lost = []
        for agent, state in enumerate(states):
            if state is not None:
                part = slice(agent * self.n_envs, (agent + 1) * self.n_envs)
                slots = range(part.start, part.stop)
                lost += self._lockstep.set_state(state["environments"], slots)
                if self._encoder is not None:
                    self._encoder.bank.state[part] = state["reservoirs"]
                if self._frames is not None:
                    self._frames[part] = state["frames"]
                self._returns[part] = state["returns"]
        anew = {}
        for slot in lost:
            self._returns[slot] = 0.0
            anew[divmod(slot, self.n_envs)] = self.begin(slot).copy()
        return anew

    def close(self) -> None:
        """Close the environments."""
        self.enter_steps()
        self._lockstep.close()
