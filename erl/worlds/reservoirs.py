"""Reservoirs: fixed random recurrent networks, their weights and batched stepping.

A leaky-integrator reservoir (Jaeger et al., 2007; ReservoirPy's `Reservoir`) updates its state by

    x[t+1] = (1 - lr) x[t] + lr tanh(Win u[t+1] + W x[t] + bias),    u = concat(observation, action,
    reward),

where action and reward are those of the step that led to the observation (zeros after a reset) and
discrete actions are one-hot (ER-MRL: Léger et al., 2024, arXiv 2312.06695). Weights come from
ReservoirPy's initialisers; the stepping is this module's, for any number of reservoirs side by
side.
"""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from erl.errors import UserError
from erl.worlds.own_context import OwnContext

if TYPE_CHECKING:
    from reservoirpy.nodes import Reservoir


@cache
def _reservoirpy() -> Any:
    """ReservoirPy, loaded when a reservoir is first drawn: that takes most of a second."""
    import reservoirpy

    # It makes an empty folder of this name in the temporary directory for every process, and leaves
    # it there.
    litter = getattr(reservoirpy, "_TEMPDIR", "")
    if "reservoirpy-temp-" in litter:
        with suppress(OSError):
            os.rmdir(litter)
    return reservoirpy


@dataclass(frozen=True)
class ReservoirParams:
    """Hyperparameters from which a reservoir's weights are drawn.

    Where recurrent weights are drawn whose true spectral radius is zero, or so small that scaling
    makes huge weights of them, they are drawn again: see `make_node`.

    Attributes:
        units: number of neurons.
        sr: spectral radius of the recurrent weights W; 0 makes a reservoir without recurrence.
        lr: leak rate, in (0, 1].
        iss: input scaling.
        rc_connectivity: share of recurrent weights that are not zero, in (0, 1].
        input_connectivity: share of input weights that are not zero, in (0, 1].
        bias: scale of the Bernoulli bias (plus or minus this number) of the neurons that have one;
            0 for none.
        bias_connectivity: share of neurons that have a bias, in (0, 1]. ReservoirPy up to version
            0.3 gave a tenth of them a bias of 1 unless told otherwise.

    Raises:
        UserError: values that cannot be.
    """

    units: int = 100
    sr: float = 1.0
    lr: float = 1.0
    iss: float = 1.0
    rc_connectivity: float = 0.1
    input_connectivity: float = 0.1
    bias: float = 0.0
    # Left out of JSON where it is 1, as before it was a parameter.
    bias_connectivity: float = field(default=1.0, metadata={"omit_default": True})

    def __post_init__(self) -> None:
        for each in fields(self):
            if not math.isfinite(getattr(self, each.name)):
                raise UserError(
                    f"a reservoir's {each.name} must be a finite number, not "
                    f"{getattr(self, each.name)}"
                )
        if self.units < 3:
            raise UserError(
                f"a reservoir needs at least 3 units (ReservoirPy's limit), not {self.units}"
            )
        if not 0 < self.lr <= 1:
            raise UserError(f"a leak rate must be above 0 and at most 1, not {self.lr}")
        if self.sr < 0:
            raise UserError(f"a spectral radius must be at least 0, not {self.sr}")
        for name in ("rc_connectivity", "input_connectivity", "bias_connectivity"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")


# How often recurrent weights are drawn again before a reservoir is given up.
REDRAWS = 20
# Recurrent weights are unsound whose largest is more than so many times their spectral radius:
# without a cycle the radius is zero, and what a numerical method finds in its place is rounding.
LARGEST_WEIGHT = 1000.0
# Neurons of a strongly connected part up to which its eigenvalues are computed densely. Larger
# parts have so many cycles that ReservoirPy's own method finds their radius.
DENSE_UNITS = 100


class UnsoundReservoir(ValueError):
    """Recurrent weights with a spectral radius cannot be drawn from these hyperparameters."""


def make_node(params: ReservoirParams, input_dim: int, seed: int) -> "Reservoir":
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

    A sparse random W of few neurons may have no cycle: then all of its eigenvalues are zero, and
    scaling it to a spectral radius divides by rounding noise. Such a W (see `is_sound`) is drawn
    again, with Win and bias, from a seed that is spawned from `seed`. Without recurrence (sr = 0)
    Win and bias are those that another spectral radius would have, so that the two compare.

    Args:
        params: hyperparameters.
        input_dim: length of an input.
        seed: of all draws.

    Raises:
        UnsoundReservoir: none of 1 + `REDRAWS` draws is sound.
    """
    if params.sr == 0:
        with suppress(UnsoundReservoir):
            node = make_node(replace(params, sr=1.0), input_dim, seed)
            node.W, node.sr = sparse.csr_array(node.W.shape), 0.0
            return node
    for attempt in range(1 + REDRAWS):
        source: Any = seed
        if attempt:
            source = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(attempt,)))
        drawn = _draw(params, input_dim, source)
        if drawn is not None:
            return drawn
    raise UnsoundReservoir(
        f"no reservoir of {params.units} units with rc_connectivity={params.rc_connectivity:g} was "
        f"found whose neurons form a cycle, in {1 + REDRAWS} draws: it needs more units or a "
        f"higher rc_connectivity"
    )


def _draw(params: ReservoirParams, input_dim: int, source: Any) -> "Reservoir | None":
    """One draw; None if its recurrent weights are unsound."""
    from scipy.sparse.linalg import ArpackError

    library = _reservoirpy()
    # ReservoirPy rounds the number of neurons down, and 0.29 * 100 is 28.999…
    with_bias = min(1.0, (round(params.bias_connectivity * params.units) + 0.5) / params.units)

    def bias(*shape: int, connectivity: float, **kwargs: Any) -> np.ndarray:
        return library.mat_gen.bernoulli(
            *shape, input_scaling=params.bias, connectivity=with_bias, **kwargs
        )

    node = library.nodes.Reservoir(
        units=params.units,
        sr=params.sr,
        lr=params.lr,
        input_scaling=params.iss,
        rc_connectivity=params.rc_connectivity,
        input_connectivity=params.input_connectivity,
        W=library.mat_gen.normal if params.sr else lambda *shape, **_: sparse.csr_array(shape),
        bias=bias if params.bias else 0.0,
        seed=source,
    )
    try:
        node.initialize(np.zeros(input_dim))
    except ArpackError:  # W has no weights, or too few to begin with
        return None
    return node if is_sound(node.W, params.sr) else None


def is_sound(weights: Any, sr: float) -> bool:
    """Whether recurrent weights that were scaled to a spectral radius have it, and are not huge.

    The true spectral radius is the largest of the strongly connected parts' (the others are
    nilpotent), each found from its dense eigenvalues.

    Args:
        weights: (units, units), dense or sparse.
        sr: the spectral radius.
    """
    from scipy.sparse.csgraph import connected_components

    if sr == 0:
        return True
    matrix = sparse.csr_array(weights)
    n_parts, part_of = connected_components(matrix, directed=True, connection="strong")
    sizes = np.bincount(part_of, minlength=n_parts)
    if sizes.max() > DENSE_UNITS:
        return bool(np.isfinite(matrix.data).all())
    alone = sizes[part_of] == 1
    radius = float(np.abs(matrix.diagonal()[alone]).max(initial=0.0))
    for part in np.flatnonzero(sizes > 1):
        members = np.flatnonzero(part_of == part)
        block = matrix[members][:, members].toarray()
        radius = max(radius, float(np.abs(np.linalg.eigvals(block)).max()))
    largest = float(np.abs(matrix.data).max(initial=0.0))
    return abs(radius - sr) <= 0.01 * sr and largest <= LARGEST_WEIGHT * radius


@lru_cache(maxsize=64)
def draw_weights(
    params: tuple[ReservoirParams, ...], seed: int, input_dim: int
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The weights of reservoirs that stand side by side, not to be changed.

    Args:
        params: of each; the k-th draws from `seed + k`.
        seed: of the first.
        input_dim: length of an input, which all see.

    Returns:
        W and Win side by side, (units, units + input_dim), units of all; and the bias (units,).

    Raises:
        UnsoundReservoir: see `make_node`.
    """
    nodes = [make_node(p, input_dim, seed + k) for k, p in enumerate(params)]
    recurrent = sparse.block_diag([sparse.csr_matrix(n.W) for n in nodes])
    weights = sparse.hstack(
        [recurrent, sparse.vstack([sparse.csr_matrix(n.Win) for n in nodes])]
    ).tocsr()
    weights.sort_indices()
    return weights, np.concatenate([np.broadcast_to(n.bias, n.units) for n in nodes])


class ReservoirBank:
    """The reservoirs of many agents, stepped side by side by one sparse product.

    Agent i owns the reservoirs `params[i]` (all agents own as many neurons in total); its k-th
    reservoir draws its weights from `seeds[i] + k`, as in ER-MRL. Its state is the concatenation of
    its reservoirs' states. All arithmetic is double precision, and the state of an agent does not
    depend, to the last bit, on which agents stand beside it.

    Attributes:
        state: array (n_agents, units), the current states.
        size: how many of them a policy can see: all.
    """

    def __init__(
        self, params: Sequence[Sequence[ReservoirParams]], seeds: Sequence[int], input_dim: int
    ) -> None:
        units = {sum(p.units for p in ps) for ps in params}
        if len(units) != 1:
            raise ValueError(f"agents of one bank own equally many neurons, not {sorted(units)}")
        self.units, self.input_dim = units.pop(), input_dim
        self.size = self.units
        # Agents with several environments share their weights between them.
        made = {pair: draw_weights(*pair, input_dim) for pair in {*zip(map(tuple, params), seeds)}}
        drawn = [made[tuple(ps), seed] for ps, seed in zip(params, seeds)]
        self._weights = [weights for weights, _ in drawn]  # each (units, units + input_dim)
        self._bias = np.stack([bias for _, bias in drawn])
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

    def keep(self, agents: Sequence[int]) -> None:
        """Keep only these agents."""
        state = self.state[list(agents)]
        self._weights = [self._weights[i] for i in agents]
        self._bias, self._lr = self._bias[list(agents)], self._lr[list(agents)]
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
            feeds zeros, or the one-hot of action 0, instead; here the latter only after a step.
        obs_units: how many neurons the policy sees, the first ones of all reservoirs side by side;
            None for all.
        own: a context of the user's own in place of reservoirs, of which there are none then.
    """

    reservoirs: tuple[ReservoirParams, ...]
    skip_c: bool = False
    reset_res: bool = True
    feed_action: bool = True
    obs_units: int | None = None
    # Left out of JSON where there is none, as before there was any.
    own: OwnContext | None = field(default=None, metadata={"omit_default": True})

    def __post_init__(self) -> None:
        if self.own is not None and (self.reservoirs or self.obs_units is not None):
            raise UserError("a context of one's own has no reservoirs beside it, and no obs_units")
        units = sum(r.units for r in self.reservoirs)
        if self.obs_units is not None and self.reservoirs and not 1 <= self.obs_units <= units:
            raise UserError(
                f"a policy can see 1 to {units} of {units} neurons, not {self.obs_units}"
            )


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
        0 where the readout is constant. What is not recalled at all still correlates by chance, by
        about 5 / steps for each lag.
    """
    series = np.random.default_rng(seed).uniform(-0.8, 0.8, (steps, 1))
    library = _reservoirpy()
    model = make_node(params, 1, seed) >> library.nodes.Ridge(ridge=ridge)
    with np.errstate(invalid="ignore", divide="ignore"):
        profile = library.observables.memory_capacity(
            model, k_max=lags, as_list=True, series=series
        )
    return np.nan_to_num(np.asarray(profile, dtype=float))


def effective_radius(params: ReservoirParams, input_dim: int, seed: int) -> float:
    """ReservoirPy's `effective_spectral_radius`: that of lr W + (1 - lr) I.

    Above 1, the reservoir without input does not forget its beginning (Jaeger et al., 2007).
    """
    node = make_node(params, input_dim, seed)
    weights = node.W.toarray() if sparse.issparse(node.W) else np.asarray(node.W)
    return float(_reservoirpy().observables.effective_spectral_radius(weights, lr=params.lr))
