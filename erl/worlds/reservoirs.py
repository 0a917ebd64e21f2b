"""Reservoirs: fixed random recurrent networks, their weights, batched stepping and the Gymnasium
wrapper.

A leaky-integrator reservoir (Jaeger et al., 2007; ReservoirPy's `Reservoir`) updates its state by

    x[t+1] = (1 - lr) x[t] + lr tanh(Win u[t+1] + W x[t] + bias),    u = concat(observation, action,
    reward),

where action and reward are those of the step that led to the observation (zeros after a reset) and
discrete actions are one-hot (ER-MRL: Léger et al., 2024, arXiv 2312.06695). Weights come from
ReservoirPy's initialisers; the stepping is this module's, for any number of reservoirs side by
side.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import reservoirpy
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from reservoirpy.mat_gen import bernoulli
from reservoirpy.nodes import Reservoir, Ridge
from reservoirpy.observables import effective_spectral_radius, memory_capacity
from scipy import sparse

from erl.errors import UserError

# ReservoirPy makes an empty folder of this name in the temporary directory for every process, and
# leaves it there.
_LITTER = getattr(reservoirpy, "_TEMPDIR", "")
if "reservoirpy-temp-" in _LITTER:
    with suppress(OSError):
        os.rmdir(_LITTER)


@dataclass(frozen=True)
class ReservoirParams:
    """Hyperparameters from which a reservoir's weights are drawn.

    Attributes:
        units: number of neurons.
        sr: spectral radius of the recurrent weights W; 0 makes a reservoir without recurrence.
        lr: leak rate, in (0, 1].
        iss: input scaling.
        rc_connectivity: share of recurrent weights that are not zero, in (0, 1].
        input_connectivity: share of input weights that are not zero, in (0, 1].
        bias: scale of the Bernoulli bias of every neuron; 0 for none.
    """

    units: int = 100
    sr: float = 1.0
    lr: float = 1.0
    iss: float = 1.0
    rc_connectivity: float = 0.1
    input_connectivity: float = 0.1
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.units < 3:
            raise UserError(
                f"a reservoir needs at least 3 units (ReservoirPy's limit), not {self.units}"
            )
        if not 0 < self.lr <= 1:
            raise UserError(f"a leak rate lies above 0 and at most at 1, not at {self.lr}")
        if self.sr < 0:
            raise UserError(f"a spectral radius is not negative: {self.sr}")
        for name in ("rc_connectivity", "input_connectivity"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(
                    f"{name} lies above 0 and at most at 1, not at {getattr(self, name)}"
                )


def make_node(params: ReservoirParams, input_dim: int, seed: int) -> Reservoir:
    """ReservoirPy's own node for these hyperparameters, initialised: the source of weights, and the
    tests' oracle.

    It is the agent's reservoir. For a saved agent with one,

        spec, agent = load_model("models/STUDY/RES_PPO_0.0003/seed_0")
        inputs = trace(spec, agent).inputs  # (T + 1, input_dim): observation, action, reward
        node = make_node(spec.context.reservoirs[0], inputs.shape[1], spec.seeds.reservoir)
        states = node.run(inputs)  # (T + 1, units)

    gives the states that the policy saw in that episode; the k-th of several reservoirs has the
    seed `spec.seeds.reservoir + k`, and the policy sees their states side by side. Like any node it
    joins others with `>>`, so that ReservoirPy's readouts and observables apply to it.
    """
    node = Reservoir(
        units=params.units,
        sr=params.sr,
        lr=params.lr,
        input_scaling=params.iss,
        rc_connectivity=params.rc_connectivity,
        input_connectivity=params.input_connectivity,
        bias=bernoulli(input_scaling=params.bias) if params.bias else 0.0,
        seed=seed,
    )
    node.initialize(np.zeros(input_dim))
    return node


class ReservoirBank:
    """The reservoirs of many agents, stepped side by side by one sparse product.

    Agent i owns the reservoirs `params[i]` (all agents own as many neurons in total); its k-th
    reservoir draws its weights from `seeds[i] + k`, as in ER-MRL. Its state is the concatenation of
    its reservoirs' states. All arithmetic is double precision, and the state of an agent does not
    depend, to the last bit, on which agents stand beside it.

    Attributes:
        state: array (n_agents, units), the current states.
    """

    def __init__(
        self, params: Sequence[Sequence[ReservoirParams]], seeds: Sequence[int], input_dim: int
    ) -> None:
        units = {sum(p.units for p in ps) for ps in params}
        if len(units) != 1:
            raise ValueError(f"agents of one bank own equally many neurons, not {sorted(units)}")
        self.units, self.input_dim = units.pop(), input_dim
        made: dict[
            tuple[tuple[ReservoirParams, ...], int], tuple[sparse.csr_matrix, np.ndarray]
        ] = {}
        for ps, seed in zip(params, seeds):
            if (
                tuple(ps),
                seed,
            ) not in made:  # agents with several environments share their weights between them
                nodes = [make_node(p, input_dim, seed + k) for k, p in enumerate(ps)]
                weights = sparse.hstack(
                    [
                        sparse.block_diag([sparse.csr_matrix(n.W) for n in nodes]),
                        sparse.vstack([sparse.csr_matrix(n.Win) for n in nodes]),
                    ]
                ).tocsr()
                weights.sort_indices()
                bias = np.concatenate([np.broadcast_to(n.bias, n.units) for n in nodes])
                made[tuple(ps), seed] = weights, bias
        self._weights = [
            made[tuple(ps), seed][0] for ps, seed in zip(params, seeds)
        ]  # each (units, units + input_dim)
        self._bias = np.stack([made[tuple(ps), seed][1] for ps, seed in zip(params, seeds)])
        self._lr = np.stack([np.concatenate([np.full(p.units, p.lr) for p in ps]) for ps in params])
        self._build()

    def _build(self) -> None:
        """One block-diagonal matrix of all agents; states and inputs in one buffer, so that a step
        copies nothing.
        """
        self.n_agents = len(self._weights)
        self._joint = sparse.block_diag(self._weights).tocsr()
        self._joint.sort_indices()
        self._keep = 1.0 - self._lr
        self._operand = np.zeros((self.n_agents, self.units + self.input_dim))
        self.state = self._operand[:, : self.units]
        self._some: tuple[list[int], Any] = [], None

    def step(self, inputs: np.ndarray, agents: np.ndarray | None = None) -> np.ndarray:
        """Advance the reservoirs of all agents, or of some, by one step.

        Args:
            inputs: array (k, input_dim).
            agents: int array (k,), those whose reservoirs advance, all different; None for all n.

        Returns:
            The new states, array (k, units): of all agents a view that the next step overwrites.
        """
        if agents is not None:
            return self._step_some(inputs, agents)
        self._operand[:, self.units :] = inputs
        pre = (self._joint @ self._operand.reshape(-1)).reshape(self.n_agents, self.units)
        pre += self._bias
        np.tanh(pre, out=pre)
        pre *= self._lr
        self.state *= self._keep
        self.state += pre
        return self.state

    def _step_some(self, inputs: np.ndarray, agents: np.ndarray) -> np.ndarray:
        """The same arithmetic on the rows of these agents."""
        wanted = agents.tolist()
        if self._some[0] != wanted:  # the latest are kept, since episodes last
            rows = (agents[:, None] * self.units + np.arange(self.units)).ravel()
            vectors = (a[agents] for a in (self._bias, self._lr, self._keep))
            self._some = wanted, (self._joint[rows], *vectors)
        weights, bias, lr, keep = self._some[1]
        self._operand[agents, self.units :] = inputs
        pre = (weights @ self._operand.reshape(-1)).reshape(bias.shape)
        pre += bias
        np.tanh(pre, out=pre)
        pre *= lr
        state = self.state[agents]
        state *= keep
        state += pre
        self.state[agents] = state
        return state

    def step_one(self, agent: int, inputs: np.ndarray) -> np.ndarray:
        """Advance one agent's reservoirs by one step: inputs (input_dim,), new state (units,)."""
        operand = self._operand[agent]
        operand[self.units :] = inputs
        pre = np.tanh(self._weights[agent] @ operand + self._bias[agent])
        state = self.state[agent]
        state *= self._keep[agent]
        state += pre * self._lr[agent]
        return state

    def drop(self, keep: Sequence[int]) -> None:
        """Keep only these agents."""
        state = self.state[list(keep)]
        self._weights = [self._weights[i] for i in keep]
        self._bias, self._lr = self._bias[list(keep)], self._lr[list(keep)]
        self._build()
        self.state[:] = state


def action_size(space: spaces.Space) -> int:
    """Length of an action as the reservoir sees it: one-hot for discrete actions."""
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (1,)))


@dataclass(frozen=True)
class Context:
    """What a policy sees in place of the observation.

    Attributes:
        reservoirs: one or more; the policy sees the states of all, side by side.
        skip_c: whether it also sees observation, action and reward (skip connection).
        reset_res: whether states go to zero at the start of an episode.
        feed_action: whether the executed action reaches the reservoirs. ER-MRL's published code
            feeds zeros, or the one-hot of action 0 after a step, instead.
        obs_units: how many neurons the policy sees, the first ones of all reservoirs side by side;
            None for all.
    """

    reservoirs: tuple[ReservoirParams, ...]
    skip_c: bool = False
    reset_res: bool = True
    feed_action: bool = True
    obs_units: int | None = None

    def __post_init__(self) -> None:
        units = sum(r.units for r in self.reservoirs)
        if self.obs_units is not None and self.reservoirs and not 1 <= self.obs_units <= units:
            raise UserError(
                f"a policy can see 1 to {units} of {units} neurons, not {self.obs_units}"
            )


class ContextEncoder:
    """Turns what happened to many agents into what their policies see.

    Args:
        contexts: one for each agent; all own equally many neurons and agree in the other
            attributes.
        seeds: one for each agent, from which its reservoirs' weights are drawn.
        observation_space: of the environment, a Box vector.
        action_space: of the environment, a Box vector or Discrete.

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
        if any(replace(c, reservoirs=first.reservoirs) != first for c in contexts):
            raise ValueError("the contexts of one encoder differ in their reservoirs only")
        self.skip_c, self.reset_res, self.feed_action = (
            first.skip_c,
            first.reset_res,
            first.feed_action,
        )
        self._discrete = isinstance(action_space, spaces.Discrete)
        self._first_action = (
            int(action_space.start) if isinstance(action_space, spaces.Discrete) else 0
        )
        self._obs_dim, self._action_dim = int(observation_space.shape[0]), action_size(action_space)
        self.bank = ReservoirBank(
            [c.reservoirs for c in contexts], seeds, input_dim=self._obs_dim + self._action_dim + 1
        )
        self._visible = first.obs_units or self.bank.units
        low, high = [np.full(self._visible, -1.0)], [np.full(self._visible, 1.0)]
        if self.skip_c:
            low += [
                observation_space.low.ravel(),
                _action_bounds(action_space)[0],
                np.array([-np.inf]),
            ]
            high += [
                observation_space.high.ravel(),
                _action_bounds(action_space)[1],
                np.array([np.inf]),
            ]
        self.space = spaces.Box(
            np.concatenate(low).astype(np.float32),
            np.concatenate(high).astype(np.float32),
            dtype=np.float32,
        )
        self._allocate()

    def _allocate(self) -> None:
        self._inputs = np.zeros((self.bank.n_agents, self.bank.input_dim))
        self._rows = np.arange(self.bank.n_agents)
        self._out = np.zeros((self.bank.n_agents, int(self.space.shape[0])), dtype=np.float32)

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
            actions: as executed: (k, action_dim), or (k,) for discrete ones.
            rewards: (k,).
            agents: int array (k,), those that stepped, all different; None for all n.

        Returns:
            Float32 array (k, features); of all agents a view that the next call overwrites.
        """
        u = self._inputs if agents is None else self._inputs[agents]
        rows = self._rows[: len(u)]
        u[:, : self._obs_dim] = observations
        u[:, -1] = rewards
        if self._discrete:
            u[:, self._obs_dim : -1] = 0.0
            chosen = (
                np.asarray(actions, dtype=np.int64) - self._first_action if self.feed_action else 0
            )
            u[rows, self._obs_dim + chosen] = 1.0
        elif self.feed_action:
            u[:, self._obs_dim : -1] = actions
        else:
            u[:, self._obs_dim : -1] = 0.0
        out = self._out if agents is None else np.empty((len(u), self._out.shape[1]), np.float32)
        out[:, : self._visible] = self.bank.step(u, agents)[:, : self._visible]
        if self.skip_c:
            out[:, self._visible :] = u
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

    def drop(self, keep: Sequence[int]) -> None:
        """Keep only these agents."""
        self.bank.drop(keep)
        self._allocate()


def _action_bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest values of an action as the reservoir sees it, two arrays
    (action_size,).
    """
    if isinstance(space, spaces.Box):
        # A reset shows zeros for the action, whether or not zero is an action.
        return np.minimum(space.low.ravel(), 0.0), np.maximum(space.high.ravel(), 0.0)
    return np.zeros(action_size(space)), np.ones(action_size(space))


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
        assert isinstance(env.observation_space, spaces.Box)
        self.encoder = ContextEncoder([context], [seed], env.observation_space, env.action_space)
        self.observation_space = self.encoder.space

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: the reservoir sees its observation, and zeros for action and reward."""
        observation, info = self.env.reset(**kwargs)
        return self.encoder.reset(0, observation).copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step the environment, then the reservoir with observation, action and reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen = self.encoder.step(observation[None], np.asarray(action)[None], np.asarray([reward]))
        return seen[0].copy(), reward, terminated, truncated, info


# -- what a reservoir can do, by ReservoirPy's observables --


def memory_profile(
    params: ReservoirParams, seed: int, lags: int, steps: int = 2000, ridge: float = 1e-6
) -> np.ndarray:
    """How well a linear readout recalls a random input of so many steps ago (Jaeger, 2001).

    ReservoirPy's `memory_capacity`, on independent uniform numbers in [-0.8, 0.8] that every neuron
    with an input sees. The sum over all lags is the memory capacity, at most the number of units.

    Args:
        params: of the reservoir, which is drawn anew for one input.
        seed: of its weights and of the inputs.
        lags: the longest lag.
        steps: length of the input, a fifth of it for the test.
        ridge: regularisation of the readout.

    Returns:
        Squared correlations (lags,) between recalled and true input, for lags of 1, 2, … steps.
        0 where the readout is constant.
    """
    series = np.random.default_rng(seed).uniform(-0.8, 0.8, (steps, 1))
    model = make_node(params, 1, seed) >> Ridge(ridge=ridge)
    with np.errstate(invalid="ignore", divide="ignore"):
        profile = memory_capacity(model, k_max=lags, as_list=True, series=series)
    return np.nan_to_num(np.asarray(profile, dtype=float))


def effective_radius(params: ReservoirParams, input_dim: int, seed: int) -> float:
    """ReservoirPy's `effective_spectral_radius`: that of lr W + (1 - lr) I.

    Above 1, the reservoir without input does not forget its beginning (Jaeger et al., 2007).
    """
    node = make_node(params, input_dim, seed)
    weights = node.W.toarray() if sparse.issparse(node.W) else np.asarray(node.W)
    return float(effective_spectral_radius(weights, lr=params.lr))
