"""A genetic population: selection, crossover and mutation of linear heads (ERL-Re²).

Knows no network, no task and no step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LARGEST = 1e6


@dataclass(frozen=True)
class Variation:
    """What a generation did, by index in the population.

    Attributes:
        elites: the best, who are kept.
        selected: winners of tournaments, without repetition.
        discarded: the others.
        kept: where the elites are now, the best one first; these are not mutated.
        crossovers: pairs that were made anew from a kept elite and a selected one.
        swaps: actions' rows that crossovers copied.
        mutated: those that were mutated.
        operators: rows that each kind of mutation changed: `normal`, `super`, `reset`.
    """

    elites: tuple[int, ...]
    selected: tuple[int, ...]
    discarded: tuple[int, ...]
    kept: tuple[int, ...]
    crossovers: tuple[tuple[int, int], ...]
    swaps: int
    mutated: tuple[int, ...]
    operators: dict[str, int] = field(default_factory=dict)


class GeneticPopulation:
    """A genetic population of policies' linear heads with operators on the level of behaviour
    (ERL-Re², Li et al., ICLR 2023).

    An individual is a head (actions, features + 1): one row for each action, its bias in the last
    column. Operators move whole rows, or change weights within a row, so that they touch some
    actions of the policy and leave the others as they are.

    Where an elite would be overwritten because every other one was selected, it stays where it is.

    Args:
        heads: the first population, (n, actions, features + 1), n at least 3.
        rng: draws everything.
        n_elites: how many are kept, at least one.
        mutation_prob: probability that one that is no kept elite is considered for mutation; a
            second gate lets three of four of those through.
        frac: share of a row's weights that a mutation changes: at least one, unless it is 0.
        prob_reset_and_sup: probability of a super-mutation, and of a reset, of a row.
    """

    tournament = 3

    def __init__(
        self,
        heads: np.ndarray,
        rng: np.random.Generator,
        n_elites: int = 1,
        mutation_prob: float = 0.9,
        frac: float = 1.0,
        prob_reset_and_sup: float = 0.05,
    ) -> None:
        self._heads, self._rng = np.array(heads, dtype=np.float32), rng
        self._n_elites = n_elites
        self._mutation_prob, self._frac, self._extreme = mutation_prob, frac, prob_reset_and_sup

    @property
    def heads(self) -> np.ndarray:
        """The population (n, actions, features + 1): itself, no copy, so that individuals can be
        replaced or improved.
        """
        return self._heads

    def evolve(self, fitness: np.ndarray) -> Variation:
        """Make the next generation from this one, whose fitness (n,) is higher where better."""
        n, rng = len(self._heads), self._rng
        # Best first; equals keep their order, so that a generation is a function of fitness and
        # seed alone.
        rank = np.argsort(-np.asarray(fitness, dtype=float), kind="stable")
        elites = rank[: self._n_elites].tolist()
        draws = rng.integers(n, size=(n - self._n_elites, self.tournament))
        selected = sorted(set(rank[draws.min(1)].tolist()))
        discarded = [i for i in range(n) if i not in selected and i not in elites]
        rest = rng.permutation(discarded).tolist()

        parents = self._heads.copy()
        spare = [i for i in selected if i not in elites]
        kept = [rest.pop(0) if rest else spare.pop(0) if spare else elite for elite in elites]
        for place, elite in zip(kept, elites):
            self._heads[place] = parents[elite]

        # What is left over is made anew in pairs; an odd one is joined by another, or by itself.
        if len(rest) % 2:
            rest.append(rest[rng.integers(len(rest))])
        # Whoever was overwritten by an elite is no parent any more; there is one, since a
        # tournament has a winner.
        mates = [i for i in selected if i not in kept] or kept
        pairs, swaps = list(zip(rest[::2], rest[1::2])), 0
        for one, two in pairs:
            self._heads[one] = self._heads[kept[rng.integers(len(kept))]]
            self._heads[two] = self._heads[mates[rng.integers(len(mates))]]
            swaps += self.crossover(self._heads[one], self._heads[two])

        mutated, operators = [], dict.fromkeys(("normal", "super", "reset"), 0)
        for i in range(n):
            if (
                i not in kept
                and rng.random() < self._mutation_prob
                and rng.random() < rng.uniform(0.0, 2.0)
            ):
                mutated.append(i)
                for name in self.mutate(self._heads[i]):
                    operators[name] += 1
        return Variation(
            tuple(elites),
            tuple(selected),
            tuple(discarded),
            tuple(kept),
            tuple(pairs),
            swaps,
            tuple(mutated),
            operators,
        )

    def crossover(self, one: np.ndarray, two: np.ndarray) -> int:
        """Behaviour-level crossover in place: copy actions' rows, weights and bias, between two
        heads, each way half of the time.

        Returns:
            How many rows were copied, fewer than twice the number of actions.
        """
        actions = len(one)
        n = int(self._rng.integers(2 * actions))
        for row in self._rng.integers(actions, size=n):
            if self._rng.random() < 0.5:
                one[row] = two[row]
            else:
                two[row] = one[row]
        return n

    def mutate(self, head: np.ndarray) -> Sequence[str]:
        """Behaviour-level mutation in place, of every action's row; biases stay.

        Of each row a fraction of the weights w changes, all in one way: w + N(0, 10 |w|) (`super`),
        N(0, 1) (`reset`), or w + N(0, 0.1 |w|) (`normal`); the second argument is the standard
        deviation.

        Returns:
            The way in which each row changed.
        """
        rng, ways = self._rng, []
        weights = head[:, :-1]
        chosen = max(int(weights.shape[1] * self._frac), int(self._frac > 0))
        for row in weights:
            where = rng.choice(len(row), chosen, replace=False)
            noise, way = rng.standard_normal(chosen), rng.random()
            if way < self._extreme:
                ways.append("super")
                row[where] += 10.0 * np.abs(row[where]) * noise
            elif way < 2.0 * self._extreme:
                ways.append("reset")
                row[where] = noise
            else:
                ways.append("normal")
                row[where] += 0.1 * np.abs(row[where]) * noise
        np.clip(weights, -_LARGEST, _LARGEST, out=weights)
        return ways

    def get_state(self) -> dict[str, Any]:
        """Population and random stream."""
        return {"heads": self._heads.copy(), "rng": self._rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        self._heads[:] = state["heads"]
        self._rng.bit_generator.state = state["rng"]
