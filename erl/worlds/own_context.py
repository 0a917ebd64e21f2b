"""Contexts of the user's own in place of reservoirs: `--context MODULE:CLASS`.

A `Memory` is one agent's. Its states are kept here, one for each environment of the agent, so that
checkpoints, resets and learners that go back in time work as with reservoirs.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from erl.errors import RAISED, EnvironmentFault, UserError
from erl.worlds.arguments import Arguments


class Memory(Protocol):
    """What a class of the user's makes: `CLASS(input_dim, seed, **settings)`.

    A class may also have `output(state)`: what the policy sees, a vector. Without it, the policy
    sees the state.

    Attributes:
        units: length of its state.
    """

    units: int

    def step(self, state: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """The state that follows. Nothing else may be remembered.

        Args:
            state: (units,), zeros at first.
            inputs: (input_dim,): observation, action, reward.
        """


def see_working_folder() -> None:
    """Have modules in the working folder found, whatever script is run."""
    folder = os.getcwd()
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)


def class_of_user(name: str, what: str) -> Any:
    """A class of the user's.

    Args:
        name: `MODULE:CLASS`.
        what: it is, for the message.

    Raises:
        UserError: it cannot be imported.
    """
    module, _, kind = name.partition(":")
    see_working_folder()
    try:
        return getattr(import_module(module), kind)
    except RAISED as e:  # the module runs when it is imported
        raise UserError(f"the {what} {name} cannot be made: {type(e).__name__}: {e}") from e


@dataclass(frozen=True)
class OwnContext:
    """A class of the user's, and its settings.

    Attributes:
        name: `MODULE:CLASS`.
        settings: keyword arguments of the class.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=Arguments)

    def __post_init__(self) -> None:
        if not isinstance(self.settings, Arguments):
            object.__setattr__(self, "settings", Arguments(self.settings))

    def make(self, input_dim: int, seed: int) -> Memory:
        """The memory of an agent.

        Raises:
            UserError: the class cannot be made with these settings, or lacks something.
        """
        kind = class_of_user(self.name, "context")
        try:
            memory = kind(input_dim, seed, **self.settings)
        except RAISED as e:
            given = f" with {self.settings}" if self.settings else ""
            raise UserError(
                f"the context {self.name} cannot be made{given}: {type(e).__name__}: {e}"
            ) from e
        units = getattr(memory, "units", None)
        if not isinstance(units, int | np.integer) or units < 1:
            raise UserError(f"the context {self.name} needs `units`, a number of at least 1")
        if not callable(getattr(memory, "step", None)):
            raise UserError(f"the context {self.name} has no method step")
        return memory

    def sizes(self, input_dim: int) -> tuple[int, int]:
        """Lengths of its state, and of what the policy sees.

        Raises:
            UserError: see `make`; or its first step fails.
        """
        return _sizes(self, input_dim)


@lru_cache(maxsize=256)
def _sizes(context: OwnContext, input_dim: int) -> tuple[int, int]:
    memory = context.make(input_dim, 0)
    try:
        first, inputs = np.zeros(memory.units), np.zeros(input_dim)
        state = _next(memory, first, inputs)
        seen = _seen(memory, state, None)
        _next(memory, state, np.ones(input_dim))
        again = _next(memory, first, inputs)
    except RAISED as e:
        raise UserError(
            f"the context {context.name} fails at its first step: {type(e).__name__}: {e}"
        ) from e
    if not np.allclose(state, again, rtol=1e-6, atol=1e-9):
        raise UserError(
            f"the context {context.name} gives another state for the same state and inputs: its "
            f"memory belongs in the state, and random numbers are drawn when it is made"
        )
    return int(memory.units), len(seen)


def _next(memory: Memory, state: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """The state that follows. The memory is given copies, which it may change."""
    # A copy: its own array may be the one that it changes in the next step.
    found = np.array(memory.step(state.copy(), inputs.copy()), dtype=float)
    if found.shape != state.shape:
        raise ValueError(f"step gave a state of shape {found.shape}, not {state.shape}")
    if not np.isfinite(found).all():
        raise ValueError("step gave a state with numbers that are not finite")
    return found


def _seen(memory: Memory, state: np.ndarray, size: int | None) -> np.ndarray:
    """What the policy sees, a vector of this length."""
    output = getattr(memory, "output", None)
    seen = state if output is None else np.asarray(output(state.copy()), dtype=float)
    if seen.ndim != 1 or (size is not None and len(seen) != size):
        raise ValueError(f"output gave an array of shape {seen.shape}, not a vector of its length")
    if not np.isfinite(seen).all():
        raise ValueError("output gave numbers that are not finite")
    return seen


class DelayLine:
    """The last inputs side by side, the newest first: memory without recurrence, and the example
    of a context.

    Args:
        input_dim: length of an input.
        seed: nothing is drawn from it.
        length: how many inputs; zeros stand for those before the first.
    """

    def __init__(self, input_dim: int, seed: int, length: int = 4) -> None:
        self.units = length * input_dim

    def step(self, state: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Put the newest input in front, and drop the oldest. It takes rows of many agents too."""
        kept = state.shape[-1] - inputs.shape[-1]
        return np.concatenate([inputs, state[..., :kept]], axis=-1)


class OwnBank:
    """The memories of many agents, stepped one after the other: what `ReservoirBank` is for
    reservoirs. Delay lines, which have no weights, are stepped together.

    A memory that fails stands still from then on, and its agent is at fault.

    Args:
        contexts: one for each agent, whose sizes agree.
        seeds: one for each agent.
        input_dim: length of an input.

    Attributes:
        units: length of one state.
        size: length of what one policy sees.
        state: array (n_agents, units), the current states.
        faults: why memories failed, by the agent's index.
    """

    def __init__(
        self, contexts: Sequence[OwnContext], seeds: Sequence[int], input_dim: int
    ) -> None:
        self.input_dim = input_dim
        self.units, self.size = contexts[0].sizes(input_dim)
        self.faults: dict[int, Exception] = {}
        # An agent's environments share its memory, which keeps nothing between two steps.
        made: dict[tuple[OwnContext, int], Memory | Exception] = {}
        self._memories: list[Memory] = []
        for agent, key in enumerate(zip(contexts, seeds)):
            if key not in made:
                made[key] = self._made(*key)
            memory = made[key]
            if isinstance(memory, Exception):
                self.faults[agent], memory = memory, _Still(self.units, self.size)
            self._memories.append(memory)
        self._together = all(type(memory) is DelayLine for memory in self._memories)
        self.state = np.zeros((self.n_agents, self.units))

    def _made(self, context: OwnContext, seed: int) -> "Memory | Exception":
        try:
            memory = context.make(self.input_dim, seed)
        except UserError as e:
            return e
        if memory.units != self.units:
            return EnvironmentFault(f"the context's `units` depend on its seed: {memory.units}")
        return memory

    @property
    def n_agents(self) -> int:
        """Number of agents that are left."""
        return len(self._memories)

    def step(self, inputs: np.ndarray, agents: np.ndarray | None = None) -> np.ndarray:
        """Advance the memories of all agents, or of some, by one step.

        Args:
            inputs: array (k, input_dim).
            agents: int array (k,), those that advance, all different; None for all n.

        Returns:
            What the policies see, array (k, size).
        """
        if self._together:
            rows = slice(None) if agents is None else agents
            self.state[rows] = self._memories[0].step(self.state[rows], inputs)
            return self.state[rows]
        chosen = range(self.n_agents) if agents is None else agents.tolist()
        return np.stack([self.step_one(agent, row) for agent, row in zip(chosen, inputs)])

    def step_one(self, agent: int, inputs: np.ndarray) -> np.ndarray:
        """Advance one agent's memory: inputs (input_dim,), what the policy sees (size,)."""
        memory = self._memories[agent]
        try:
            state = _next(memory, self.state[agent], inputs)
            seen = _seen(memory, state, self.size)
        except RAISED as e:
            fault = EnvironmentFault(f"the context failed: {type(e).__name__}: {e}")
            fault.__cause__ = e
            self.faults[agent], self._memories[agent] = fault, _Still(self.units, self.size)
            state, seen = np.zeros(self.units), np.zeros(self.size)
        self.state[agent] = state
        return seen

    def keep(self, agents: Sequence[int]) -> None:
        """Keep only these agents."""
        self.state = self.state[list(agents)]
        self._memories = [self._memories[i] for i in agents]
        self.faults = {}


class _Still:
    """In the place of a memory that failed, until its agent is dropped."""

    def __init__(self, units: int, size: int) -> None:
        self.units, self._size = units, size

    def step(self, state: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """The same state."""
        return state

    def output(self, state: np.ndarray) -> np.ndarray:
        """Zeros."""
        return np.zeros(self._size)
