"""Settings of DERL."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from erl.errors import UserError
from erl.learners.core.settings import (
    Count,
    EvaluationSettings,
    NotNegative,
    Positive,
    Range,
    Schedule,
    Share,
    check_device,
)


@dataclass(frozen=True, kw_only=True)
class DERLSettings(EvaluationSettings):
    """Settings of one agent.

    Attributes:
        es_weight, rl_weight: weights of the two improved policies in the next one; their sum is 1.
            A half of no weight does not take place, and costs no steps.
        population_size: perturbed policies in an iteration.
        sigma: standard deviation of the perturbations.
        lr_es: learning rate of the evolution strategy.
        mirrored: whether perturbations come in pairs, plus and minus.
        rank_shaping: whether ranks of the fitness take its place.
        num_episodes_per_iter: episodes that the policy itself plays in an iteration, with noise on
            its actions, or drawing them; they go into the replay buffer.
        population_replay: whether the perturbed policies' episodes go there, too.
        updates_per_step: updates of the networks for each step that goes into the replay buffer.
        learning_starts: transitions in the replay buffer before the networks are updated.
        lr_policy, lr_value: learning rates of Adam; `lin_0.001` falls from 0.001 to 0 over the
            lifetime.
        gamma, tau: discount, and speed of the targets.
        n_steps: steps whose rewards a target of the value functions holds.
        batch_size, buffer_size: transitions in a minibatch, and in the replay buffer.
        exploration_noise: standard deviation of the noise on continuous actions in [-1, 1].
        ent_coef: weight of the entropy of a discrete policy in its objective.
        hidden: widths of the hidden layers of all networks.
        device: PyTorch's name of where the networks learn.
        threads: cores for the networks' mathematics; another number, other roundings.
    """

    learner: ClassVar[str] = "DERL"

    es_weight: Share = 0.5
    rl_weight: Share = 0.5
    population_size: Annotated[int, Range(2)] = 50
    sigma: Positive = 0.1
    lr_es: Positive = 0.01
    mirrored: bool = False
    rank_shaping: bool = False
    num_episodes_per_iter: Count = 10
    population_replay: bool = False
    updates_per_step: Positive = 1.0
    learning_starts: Count = 1_000
    lr_policy: Positive | Schedule = 3e-4
    lr_value: Positive | Schedule = 3e-4
    gamma: Share = 0.99
    tau: Share = 0.005
    n_steps: Count = 1
    batch_size: Count = 256
    buffer_size: Count = 1_000_000
    exploration_noise: NotNegative = 0.1
    ent_coef: NotNegative = 0.01
    hidden: tuple[Count, ...] = (64, 64)
    device: str = "cpu"
    threads: Count = 1

    def _check(self) -> None:
        if not math.isclose(self.es_weight + self.rl_weight, 1.0, abs_tol=1e-9):
            raise UserError(
                f"DERL's es_weight and rl_weight sum to 1, and {self.es_weight:g} + "
                f"{self.rl_weight:g} do not"
            )
        if not self.hidden:
            raise self._wrong("hidden", "a list of at least one width")
        if self.learning_starts > self.buffer_size:
            raise self._wrong("learning_starts", f"at most buffer_size, {self.buffer_size}")
        check_device(self.learner, self.device)

    @property
    def environments(self) -> int:
        """How many are played in at a time."""
        return max(
            self.population_size if self.es_weight else 1,
            self.num_episodes_per_iter if self.rl_weight else 1,
        )

    def capacity(self, steps: int) -> int:
        """Transitions that the replay buffer of a lifetime of so many steps holds at most."""
        # A lifetime ends when a step of all environments has reached its budget.
        return min(self.buffer_size, steps + self.environments) if self.rl_weight else 1

    def rates(self, progress_remaining: float) -> tuple[float, float]:
        """Learning rates of the policy and of the value functions, where this share of the training
        remains.
        """
        policy, value = (
            float(rate(progress_remaining) if callable(rate) else rate)
            for rate in (self.lr_policy, self.lr_value)
        )
        return policy, value
