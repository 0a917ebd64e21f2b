"""What policies see in place of observations: the states of reservoirs that are fed observation,
action and reward.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from erl.worlds.actions import Actions
from erl.worlds.own_context import OwnBank, OwnContext
from erl.worlds.reservoirs import Context, ReservoirBank


def context_space(
    context: Context, observation_space: spaces.Box, action_space: spaces.Space
) -> spaces.Box:
    """The space of what a policy sees, a float32 Box vector. No reservoir is drawn for it.

    Args:
        context: the reservoirs and what else the policy sees.
        observation_space: of what agents see without reservoirs, a flat Box.
        action_space: of what agents choose.
    """
    actions = Actions(action_space)
    visible, bound = context.obs_units or sum(r.units for r in context.reservoirs), 1.0
    if context.own is not None:
        input_dim = int(observation_space.shape[0]) + actions.size + 1
        visible, bound = context.own.sizes(input_dim)[1], np.inf
    low, high = [np.full(visible, -bound)], [np.full(visible, bound)]
    if context.skip_c:
        low += [observation_space.low, actions.low, np.array([-np.inf])]
        high += [observation_space.high, actions.high, np.array([np.inf])]
    with np.errstate(over="ignore"):  # bounds of double precision may be infinite in single
        lowest, highest = (np.concatenate(ends).astype(np.float32) for ends in (low, high))
    return spaces.Box(lowest, highest, dtype=np.float32)


class ContextEncoder:
    """Turns what happened to many agents into what their policies see.

    Args:
        contexts: one for each agent; all own equally many neurons and agree in the other
            attributes.
        seeds: one for each agent, from which its reservoirs' weights are drawn.
        observation_space: of what agents see, a flat Box.
        action_space: of what agents choose.

    Attributes:
        space: of what one policy sees, a float32 Box vector.
    """

    def __init__(
        self,
        contexts: Sequence[Context],
        seeds: Sequence[int],
        observation_space: spaces.Box,
        action_space: spaces.Space,
    ) -> None:
        first = contexts[0]
        if any(replace(c, reservoirs=first.reservoirs, own=first.own) != first for c in contexts):
            raise ValueError("the contexts of one encoder differ in their reservoirs only")
        self.skip_c, self.reset_res, self.feed_action = (
            first.skip_c,
            first.reset_res,
            first.feed_action,
        )
        self._actions = Actions(action_space)
        self._obs_dim = int(observation_space.shape[0])
        input_dim = self._obs_dim + self._actions.size + 1
        own = [c.own for c in contexts if c.own is not None]
        self.bank: ReservoirBank | OwnBank = (
            OwnBank(own, seeds, input_dim)
            if own
            else ReservoirBank([c.reservoirs for c in contexts], seeds, input_dim)
        )
        self._visible = first.obs_units or self.bank.size
        self.space = context_space(first, observation_space, action_space)
        self._allocate()

    def _allocate(self) -> None:
        self._inputs = np.zeros((self.bank.n_agents, self.bank.input_dim))
        self._out = np.zeros((self.bank.n_agents, int(self.space.shape[0])), dtype=np.float32)
        self._parts = self._views(self._inputs, self._out)

    def _views(self, inputs: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, ...]:
        """Observations, actions and rewards in `inputs`; states and the rest in `out`."""
        d, k = self._obs_dim, self._visible
        return inputs[:, :d], inputs[:, d:-1], inputs[:, -1], out[:, :k], out[:, k:]

    def step(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        agents: np.ndarray | None = None,
    ) -> np.ndarray:
        """What the policies see after a step of every agent, or of some.

        Args:
            observations: (k, obs_dim).
            actions: of the agents, as executed: (k, …).
            rewards: (k,).
            agents: int array (k,), those that stepped, all different; None for all n.

        Returns:
            Float32 array (k, features); of all agents a view that the next call overwrites.
        """
        if agents is None:
            u, out, parts = self._inputs, self._out, self._parts
        else:
            u = self._inputs[agents]
            out = np.empty((len(u), self._out.shape[1]), np.float32)
            parts = self._views(u, out)
        observed, acted, rewarded, states, rest = parts
        observed[:] = observations
        rewarded[:] = rewards
        if self.feed_action:
            self._actions.encode(actions, acted)
        else:
            self._actions.encode_first(acted)
        states[:] = self.bank.step(u, agents)[:, : self._visible]
        if self.skip_c:
            rest[:] = u
        return out

    def reset(self, agent: int, observation: np.ndarray) -> np.ndarray:
        """What one agent's policy sees at the start of an episode: a float32 view (features,) of
        the output row.
        """
        u = self._inputs[agent]
        u[: self._obs_dim] = observation
        u[self._obs_dim :] = 0.0
        if self.reset_res:
            self.bank.state[agent] = 0.0
        self._out[agent, : self._visible] = self.bank.step_one(agent, u)[: self._visible]
        if self.skip_c:
            self._out[agent, self._visible :] = u
        return self._out[agent]

    @property
    def inputs(self) -> np.ndarray:
        """What the reservoirs were fed last, array (n_agents, input_dim): observation, action,
        reward. The next step overwrites it.
        """
        return self._inputs

    @property
    def faults(self) -> dict[int, Exception]:
        """Why contexts of the user's own failed, by the agent's index. Reservoirs do not."""
        return self.bank.faults if isinstance(self.bank, OwnBank) else {}

    def check(self) -> None:
        """Raise what made a context of the user's own fail, if one did."""
        for fault in self.faults.values():
            raise fault

    def keep(self, agents: Sequence[int]) -> None:
        """Keep only these agents."""
        self.bank.keep(agents)
        self._allocate()


def cohort_part(context: Context | None, input_dim: int) -> Hashable:
    """In what the contexts of agents that train side by side agree: kind and sizes. Parameters of
    reservoirs and settings of own contexts may differ.
    """
    if context is None:
        return None, 0
    if context.own is not None:
        sizes = context.own.sizes(input_dim)
        return replace(context, own=OwnContext(context.own.name)), *sizes
    units = sum(r.units for r in context.reservoirs)
    shown = units if context.obs_units is None else context.obs_units
    return replace(context, reservoirs=(), obs_units=shown), units


class ReservoirWrapper(gym.Wrapper, RecordConstructorArgs):
    """Shows a policy the state of reservoirs in place of the observation.

    Args:
        env: environment with vector observations.
        context: the reservoirs and what else the policy sees.
        seed: from which the weights are drawn.
    """

    def __init__(self, env: gym.Env, context: Context, seed: int) -> None:
        RecordConstructorArgs.__init__(self, context=context, seed=seed)
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.observation_space, spaces.Box):
            raise TypeError(
                f"reservoirs are fed vectors, not observations of {env.observation_space}"
            )
        self.encoder = ContextEncoder([context], [seed], env.observation_space, env.action_space)
        self.encoder.check()
        self.observation_space = self.encoder.space

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: the reservoir sees its observation, and zeros for action and reward."""
        observation, info = self.env.reset(**kwargs)
        seen = self.encoder.reset(0, observation).copy()
        self.encoder.check()
        return seen, info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step the environment, then the reservoir with observation, action and reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen = self.encoder.step(observation[None], np.asarray(action)[None], np.asarray([reward]))
        self.encoder.check()
        return seen[0].copy(), reward, terminated, truncated, info
