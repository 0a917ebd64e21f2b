"""Settings that evolutions of TD3 actors share, and their defaults by environment."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from erl.learners.core.settings import (
    Count,
    EvaluationSettings,
    NotNegative,
    Positive,
    Range,
    Share,
    check_device,
)

# Settings of learning by gradient, which change nothing where nothing learns so.
OF_GRADIENT = (
    "critic_job",
    "actor_update_cost",
    "critic_update_cost",
    "batch_size",
    "learning_rate",
    "gamma",
    "tau",
    "target_policy_noise",
    "target_noise_clip",
)


@dataclass(frozen=True, kw_only=True)
class EvolvedSettings(EvaluationSettings):
    """Settings of one lifetime.

    Attributes:
        hidden: widths of the hidden layers of actors (tanh) and critics (leaky ReLU).
        learning_rate: of every Adam.
        batch_size, buffer_size: transitions in a minibatch, and in the replay buffer.
        gamma, tau: discount, and speed of the critics' targets.
        target_policy_noise, target_noise_clip: smoothing of target actions.
        learning_starts: steps of individuals that are played at random, before anything is learned
            by gradient.
        var: first variance of every weight.
        actor_workers: workers that train and play individuals.
        critic_workers: workers that train the critics: 1, or 0 where that is done in between.
        actor_update_cost, critic_update_cost: steps that a worker could play in the time of one
            update, for the order of events of `lockstep`. By default what was measured on one core
            with HalfCheetah-v4 and networks of 400 and 300: see `benchmarks/aes_rl.md`.
        actor_executor: how the workers work: `lockstep` (one process, a virtual clock,
            reproducible), `processes` of this machine, or `ray`.
        ray_address: of the cluster, as `--cluster` takes it.
        device: PyTorch's name of where the networks learn.
        threads: cores for the networks' mathematics of each worker; another number, other
            roundings.
        precision: `fp32`, or `bf16` for the factors of wide matrix products, on processors that
            have it.
    """

    defaults: ClassVar[Path] = Path(__file__).with_name("evolved_td3.toml")
    # What `--published_code` asks for.
    published: ClassVar[dict[str, Any]] = {"gamma": 0.99}
    # Each individual of a million steps of episodes of 500 steps and more.
    kept: ClassVar[tuple[int, int]] = 2048, 32_768
    # Between two episodes a worker may make thousands of updates.
    updates_in_bursts: ClassVar[bool] = True
    n_critics: ClassVar[int] = 2

    hidden: tuple[Count, ...] = (400, 300)
    learning_rate: Positive = 1e-3
    batch_size: Count = 256
    buffer_size: Count = 200_000
    gamma: Share = 0.99
    tau: Share = 0.005
    target_policy_noise: NotNegative = 0.2
    target_noise_clip: NotNegative = 0.5
    learning_starts: Annotated[int, Range(0)] = 10_000
    var: Positive = 1e-3
    actor_workers: Count = 5
    critic_workers: Literal[0, 1] = 1
    actor_update_cost: NotNegative = 50.0
    critic_update_cost: NotNegative = 85.0
    actor_executor: Literal["lockstep", "processes", "ray"] = "lockstep"
    ray_address: str = "ray"
    device: str = "cpu"
    threads: Count = 1
    precision: Literal["fp32", "bf16"] = "fp32"

    def _check(self) -> None:
        if not self.hidden:
            raise self._wrong("hidden", "a list of at least one width")
        check_device(self.learner, self.device)

    @property
    def players(self) -> int:
        """Workers that train and play individuals."""
        return self.actor_workers

    @property
    def workers(self) -> int:
        """All of them."""
        return self.players + self.critic_workers

    @property
    def counted_per_step(self) -> int:
        """Steps that are counted, about, for each step of an individual."""
        return 1

    @property
    def random_steps(self) -> int:
        """Steps of individuals before the distribution is told any."""
        return self.learning_starts

    @property
    def told_together(self) -> int:
        """Individuals that the distribution is told at a time."""
        return 1

    def capacity(self, steps: int) -> int:
        """Transitions that the replay buffer of a lifetime of so many steps holds at most."""
        # A lifetime ends when a step of all workers has reached its budget.
        return min(self.buffer_size, steps + self.players)

    def idle(self) -> dict[str, str]:
        """Settings that change nothing beside the others, and why."""
        names = {"ray_address"} if self.actor_executor != "ray" else set()
        if self.actor_executor != "lockstep":
            names |= {"actor_update_cost", "critic_update_cost"}
        return dict.fromkeys(sorted(names), f"actor_executor is {self.actor_executor}")

    def check_complete(self, env_id: str) -> None:
        """Raise a UserError if a setting has no default for this environment, and is not given."""

    @classmethod
    def environment_defaults(cls, env_id: str) -> dict[str, Any]:
        """Defaults that depend on the environment, of those that this learner has."""
        section = super().environment_defaults(env_id)
        names = {field.name for field in fields(cls)}
        mine = {**section, **section.get(cls.learner, {})}
        return {name: value for name, value in mine.items() if name in names}
