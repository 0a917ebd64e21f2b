"""Settings of ERL-Re²: the published names, defaults by environment from `environments.toml`,
everything checked.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from erl.errors import UserError
from erl.learners.core.settings import (
    Count,
    EvaluationSettings,
    NotNegative,
    Positive,
    Range,
    Share,
    check_device,
)
from erl.networks.products import WIDE


@dataclass(frozen=True, kw_only=True)
class Re2Settings(EvaluationSettings):
    """Settings of one agent.

    Attributes:
        EA: whether heads evolve. Without, it is TD3 (or DDPG) on the representation.
        RL: whether networks learn. Without, it is a genetic algorithm on heads over a random
            representation.
        algorithm: of the RL agent. `DDPG` has no twin critics, no smoothing of target actions and
            no delay.
        pop_size: heads in the population.
        theta: probability that a generation's fitness comes from whole episodes; else from the
            surrogate.
        time_steps: steps H of the surrogate's partial episodes.
        num_evals: whole episodes of a head, where fitness comes from whole episodes.
        elite_fraction: share of the population that is kept (at least one, and not all).
        mutation_prob: probability that a head that is no new elite is considered for mutation.
        frac: share of an action's weights that a mutation changes.
        prob_reset_and_sup: probability of a super-mutation, and of a reset, of an action's weights.
        sync_period: generations between two copies of the RL head into the population.
        use_ln: whether hidden layers are normalised.
        pr: length of a policy's code.
        OFF_TYPE: 1: the policies' value function sees (s, a); 0: the representation.
        K: policies for which the representation is improved in one update.
        actor_alpha, EA_actor_alpha: weights of the RL agent's and of the population's value in the
            representation's objective.
        TD3_noise: standard deviation of the target policy's smoothing noise (clipped at 0.5).
        exploration_noise: standard deviation of the noise on the RL agent's actions.
        gamma, tau: discount, and speed of the targets.
        learning_rate: of every Adam.
        batch_size, buffer_size: transitions in a minibatch, and in the replay buffer.
        init_steps: steps that the RL agent acts at random before anything learns or evolves.
        learning_starts: transitions in the buffer before anything learns or evolves, beside
            `init_steps`.
        frac_frames_train: updates for each step taken, from the generation on in which learning
            begins.
        eval_freq: steps between two evaluations that are only reported and not counted, each at the
            end of a generation; 0: none.
        eval_episodes: episodes of the champion and of the RL agent in such an evaluation.
        device: PyTorch's name of where the networks learn.
        threads: cores for the networks' mathematics; another number, other roundings.
        precision: `fp32`, or `bf16` for the factors of wide matrix products, those of minibatches
            from 128 on; for processors that have it.

    Without `EA`, what speaks of heads, generations or `K` has no meaning (but `pop_size` and `pr`
    shift the random numbers of everything else); without `RL`, what speaks of learning, `theta`,
    `time_steps` and `sync_period`; with `DDPG`, `TD3_noise`.
    """

    learner: ClassVar[str] = "ERL-Re2"
    defaults: ClassVar[Path] = Path(__file__).with_name("environments.toml")

    theta: Share
    time_steps: Count
    frac: Share
    sync_period: Count
    EA: bool = True
    RL: bool = True
    algorithm: Literal["TD3", "DDPG"] = "TD3"
    pop_size: Count = 5
    num_evals: Count = 1
    elite_fraction: Share = 0.2
    mutation_prob: Share = 0.9
    prob_reset_and_sup: Annotated[float, Range(0, 0.5)] = 0.05
    use_ln: bool = True
    pr: Count = 64
    OFF_TYPE: Literal[0, 1] = 1
    K: Count = 1
    actor_alpha: NotNegative = 1.0
    EA_actor_alpha: NotNegative = 1.0
    TD3_noise: NotNegative = 0.2
    exploration_noise: NotNegative = 0.1
    gamma: Share = 0.99
    tau: Share = 0.005
    learning_rate: Positive = 1e-3
    batch_size: Count = 128
    buffer_size: Count = 1_000_000
    init_steps: Annotated[int, Range(0)] = 10_000
    learning_starts: Annotated[int, Range(0)] = 5_000
    frac_frames_train: Positive = 1.0
    eval_freq: Annotated[int, Range(0)] = 50_000
    device: str = "cpu"
    threads: Count = 1
    precision: Literal["fp32", "bf16"] = "fp32"

    def _check(self) -> None:
        if not (self.EA or self.RL):
            raise UserError("ERL-Re2 learns nothing without EA and RL: turn one of them on")
        if self.precision == "bf16" and self.batch_size < WIDE:
            raise self._wrong("batch_size", f"at least {WIDE} where precision is bf16")
        if self.EA and self.n_elites >= self.pop_size:
            raise self._wrong("elite_fraction", "less than the whole population")
        if self.EA and self.pop_size < 3:
            raise self._wrong("pop_size", "at least 3: an elite, an offspring and one to replace")
        if self.EA and self.pop_size + 1 < self.K:
            raise self._wrong("K", f"at most the number of policies, {self.pop_size + 1}")
        if self.learning_starts > self.buffer_size:
            raise self._wrong("learning_starts", f"at most buffer_size, {self.buffer_size}")
        check_device(self.learner, self.device)

    @property
    def environments(self) -> int:
        """How many are played in at a time."""
        return self.pop_size if self.EA else 1

    def capacity(self, steps: int) -> int:
        """Transitions that the replay buffer of a lifetime of so many steps holds at most."""
        # A lifetime ends when a step of all environments has reached its budget.
        return min(self.buffer_size, steps + self.environments) if self.RL else 1

    @property
    def n_elites(self) -> int:
        """Heads that are kept from one generation to the next."""
        return max(1, int(self.elite_fraction * self.pop_size))

    @property
    def n_critics(self) -> int:
        """Twins of each value function."""
        return 2 if self.algorithm == "TD3" else 1

    @property
    def smoothing(self) -> float:
        """Standard deviation of the noise on target actions."""
        return self.TD3_noise if self.algorithm == "TD3" else 0.0

    @property
    def delay(self) -> int:
        """Updates of the value functions for each update of the policies."""
        return 2 if self.algorithm == "TD3" else 1
