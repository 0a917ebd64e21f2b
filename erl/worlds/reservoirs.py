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
from dataclasses import dataclass
from typing import Any

import numpy as np
import reservoirpy
from reservoirpy.mat_gen import bernoulli
from reservoirpy.nodes import Reservoir
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
