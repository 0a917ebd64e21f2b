"""An evolution of TD3 actors at work on one lifetime: what CEM-RL, P-CEM-RL, ACEM-RL,
(1+1)-ES and AES-RL share.

A distribution over the weights of an actor proposes individuals. Some are first improved by TD3's
policy gradient against shared critics; each plays an episode, which goes into the shared replay
buffer; the distribution is told the returns. Which worker does what, and when, is the algorithm's:
`next_actor_job` and `next_critic_job`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from gymnasium import spaces

from erl.executors.inner_workers import inner_workers
from erl.executors.virtual_clock import WorkerJob
from erl.learners.core.bench import (
    Bench,
    Play,
    TrainActor,
    TrainCritics,
    copy_layers,
    make_bench,
)
from erl.learners.core.checkpoints import Attributes, Part
from erl.learners.core.evolved_settings import EvolvedSettings
from erl.learners.core.export import td3_model
from erl.learners.core.run import OneByOne, Run, warn_of_precision
from erl.learners.core.settings import check_actions, check_budget
from erl.learners.sb3 import SB3Agent
from erl.networks.perceptrons import Perceptrons
from erl.networks.policies import n_parameters
from erl.networks.trained import Trained
from erl.populations import Distribution
from erl.worlds.specification import LifetimeSpec
from erl.worlds.wrappers import closing_on_error

_log = logging.getLogger(__name__)
S = TypeVar("S", bound=EvolvedSettings)

# What a seed is for: numbers below the lifetime's seeds, so that none depends on the order of
# events.
_EPISODE, _MEAN = 0, 1  # of the environment
_DISTRIBUTION, _CONTROL, _TRAIN, _CRITICS, _RANDOM = range(5)  # of the learner


@dataclass
class Individual:
    """What a distribution proposed.

    Attributes:
        number: how many there were before.
        genes: weights (dim,), improved where it learns.
        learns: whether it is an RL individual, which the gradient improves first; else an ES one.
        random: whether it plays at random, since learning has not begun.
        asked: how many had been told when it was asked.
        fitness: return of its episode.
    """

    number: int
    genes: np.ndarray
    learns: bool = False
    random: bool = False
    asked: int = 0
    fitness: float = float("nan")


class EvolvedTD3(Generic[S]):
    """The evolution of a run's one lifetime, without its algorithm.

    Attributes:
        distribution: of individuals; its mean is the policy that is handed over.
        bench: what workers work with in this process.
        workers: who does the jobs.
        critics: state of the critics as they were last handed in.
        individuals, told: how many were asked, and told.
        policies_told: how many of the told played by their policy, and not at random.
        rl_told: how many of these the gradient had improved.
        stored_steps: steps of individuals, those that the published code counts.
        critic_updates, actor_updates: how many were made.
        critic_loss: of the latest job of the critics since the process began.
        generations: how often the distribution was told.
    """

    def __init__(self, run: Run[S]) -> None:
        self.run, self.spec, self.ledger = run, run.specs[0], run.ledgers[0]
        self.telemetry = run.telemetry[0]
        s = self.settings = run.settings[0]
        self.observation_space, self.action_space = self.spec.spaces()
        capacity = s.capacity(self.spec.steps)
        here = s.players if s.actor_executor == "lockstep" else 1
        with closing_on_error() as opened:
            self.bench = Bench(self.spec, s, self.ledger, here, capacity)
            opened.callback(self.bench.close)
            generator = torch.Generator().manual_seed(self.spec.seeds.learner)
            mean, self.critics = first_networks(self.bench, generator)
            self.distribution = self.make_distribution(mean, self._rng(_DISTRIBUTION))
            self.rng = self._rng(_CONTROL)
            self.individuals = self.told = self.generations = 0
            self.policies_told = self.rl_told = 0
            self.stored_steps = self.mean_episodes = 0
            self.critic_jobs = self.critic_updates = self.actor_updates = 0
            self.critic_loss: float | None = None
            self.workers = inner_workers(
                s.actor_executor,
                s.workers,
                self._next_job,
                self.bench,
                partial(make_bench, self.spec, s, capacity),
                self._backlog,
                s.ray_address,
            )

    # -- what an algorithm gives --

    def make_distribution(self, mean: np.ndarray, rng: np.random.Generator) -> Distribution:
        """The distribution, which begins with this mean."""
        raise NotImplementedError

    def next_actor_job(self, worker: int, ended: WorkerJob | None) -> WorkerJob | None:
        """The next job of an actor worker, after the one that it has ended; None to wait."""
        raise NotImplementedError

    def next_critic_job(self, worker: int) -> WorkerJob | None:
        """The next job of the critic worker; None to wait."""
        raise NotImplementedError

    # -- jobs --

    def _backlog(self) -> list[Any]:
        """What workers elsewhere begin with."""
        return [self.bench.buffer.contents()] if len(self.bench.buffer) else []

    def _count(self) -> None:
        """Enter the steps that workers elsewhere have taken."""
        if self.workers.counted is not None:
            self.ledger.step(self.workers.counted - self.ledger.steps)

    def _next_job(self, worker: int, ended: WorkerJob | None) -> WorkerJob | None:
        self._count()
        if ended is not None and isinstance(ended.data, TrainCritics):
            self.critics, self.critic_loss = ended.data.critics, ended.data.loss
            self.critic_updates += ended.data.done
        if ended is not None and isinstance(ended.data, TrainActor):
            self.actor_updates += ended.data.done
        spent = self.run.spent()
        if worker >= self.settings.players:
            return None if spent else self.next_critic_job(worker)
        # What has ended is taken even then.
        job = None if spent and ended is None else self.next_actor_job(worker, ended)
        return None if spent else job

    @property
    def learns(self) -> bool:
        """Whether enough was played at random."""
        return self.stored_steps >= self.settings.learning_starts

    @property
    def random_play(self) -> bool:
        """Whether individuals that are asked for now play at random."""
        return not self.learns

    def ask(self, n: int) -> list[Individual]:
        """The next n individuals."""
        asked = [
            Individual(self.individuals + k, genes, random=self.random_play, asked=self.told)
            for k, genes in enumerate(self.distribution.ask(n))
        ]
        self.individuals += n
        return asked

    def play(self, worker: int, individual: Individual) -> WorkerJob:
        """Have an individual play its episode."""
        number = individual.number
        seed = self._seed(_EPISODE, number, of="environment")
        random = self._seed(_RANDOM, number) if individual.random else None
        return WorkerJob("play", Play(worker, individual.genes, seed, random, about=individual))

    def play_mean(self, worker: int, mean: np.ndarray, counted: bool, about: Any) -> WorkerJob:
        """Have the mean, as it was, play an episode, which is not stored."""
        seed = self._seed(_MEAN, self.mean_episodes, of="environment")
        self.mean_episodes += 1
        return WorkerJob("play", Play(worker, mean, seed, counted=counted, about=about))

    def train(self, worker: int, individual: Individual, updates: int) -> WorkerJob:
        """Have an individual improved by so many updates, against the critics as they are."""
        first = self.critics[0].reshape(self.settings.n_critics, -1)[0].numpy().copy()
        seed = self._seed(_TRAIN, individual.number)
        training = TrainActor(worker, individual.genes, first, seed, about=individual)
        return WorkerJob("train_actor", training, updates)

    def train_critics(self, worker: int, target_actor: np.ndarray, updates: int) -> WorkerJob:
        """Have the critics updated so often, which value this policy."""
        seed = self._seed(_CRITICS, self.critic_jobs)
        self.critic_jobs += 1
        return WorkerJob(
            "train_critics", TrainCritics(worker, self.critics, target_actor, seed), updates
        )

    def played(self, individual: Individual, play: Play) -> bool:
        """Take an individual's episode: store it, and note the return.

        Returns:
            Whether it is a whole one: who was cut short by the budget is not judged.
        """
        episode = play.episode
        assert episode is not None
        if episode.cut:
            return False
        self.bench.receive(episode)
        self.workers.share(episode)
        self.stored_steps += len(episode.rewards)
        individual.fitness = episode.total
        return True

    def count_told(self, individuals: Sequence[Individual]) -> None:
        """Count whom the distribution was told together."""
        self.told += len(individuals)
        self.policies_told += sum(not individual.random for individual in individuals)
        self.rl_told += sum(individual.learns for individual in individuals)
        self.generations += 1

    def _seed(self, *key: int, of: str = "learner") -> int:
        sequence = np.random.SeedSequence(getattr(self.spec.seeds, of), spawn_key=key)
        return int(sequence.generate_state(1)[0]) >> 1

    def _rng(self, *key: int) -> np.random.Generator:
        seed = np.random.SeedSequence(self.spec.seeds.learner, spawn_key=key)
        return np.random.default_rng(seed)

    # -- what the run needs --

    def start(self) -> None:
        """Warn of settings that have no effect."""
        s = self.settings
        warn_of_precision(s.precision, s.device, s.batch_size)
        defaults = {field.name: field.default for field in fields(s)}
        defaults |= s.environment_defaults(self.spec.task.env_id)
        for name, why in s.idle().items():
            if getattr(s, name) != defaults[name]:
                _log.warning("%s=%s changes nothing: %s", name, getattr(s, name), why)

    def iterate(self) -> None:
        """Go on to the next end of a job, or for a moment."""
        self.run.raise_if_stopped()
        if not self.workers.advance():
            raise RuntimeError("all workers wait")
        self._count()
        # The budget is spent when the last step is played elsewhere. The episodes that ended with
        # it, or before, are still on their way; the others are cut.
        while self.run.spent() and any(isinstance(j.data, Play) for j in self.workers.elsewhere):
            self.workers.advance()
        if not np.isfinite(self.distribution.mean).all():
            raise FloatingPointError(
                f"the mean's weights are not finite after {self.ledger.steps} steps"
            )
        if self.telemetry.evaluation_due:
            scores = self.telemetry.evaluate({"mean": self.agent()})
            self.telemetry.scalars({f"eval/{name}": score for name, score in scores.items()})

    def record(self, row: Mapping[str, Any], totals: Mapping[str, float]) -> None:
        """Report what the distribution was told, with what both axes of a curve need."""
        steps = {
            "steps": self.ledger.steps,
            "uncounted_steps": self.stored_steps,
            "individuals": self.told,
        }
        if self.policies_told:
            row = {**row, "rl_share": self.rl_told / self.policies_told}
        scalars: dict[str, float] = {
            "time/fps": int(self.run.steps_per_second()),
            "time/uncounted_steps": self.stored_steps,
            "time/individuals": self.told,
            "train/critic_updates": self.critic_updates,
            "train/actor_updates": self.actor_updates,
        }
        if self.critic_loss is not None:
            scalars["train/critic_loss"] = self.critic_loss
        own = ("p", "var", "age", "rl_share")
        scalars |= {f"evolution/{name}": row[name] for name in own if name in row}
        self.telemetry.record({**steps, **row}, totals, scalars)

    def learned(self, row: int = 0) -> bool:
        """Whether the distribution was told what became of a policy: critics make no agent."""
        return self.policies_told > 0

    def agent(self, row: int = 0) -> SB3Agent:
        """The mean."""
        s, mean = self.settings, self.bench.layers(self.distribution.mean)
        model = td3_model(
            [mean, mean],
            self.bench.critic_layers(self.critics),
            self.observation_space,
            self.action_space,
            self.ledger.steps,
            {"net_arch": list(s.hidden), "n_critics": s.n_critics},
            learning_rate=s.learning_rate,
            batch_size=s.batch_size,
            tau=s.tau,
            gamma=s.gamma,
            target_policy_noise=s.target_policy_noise,
            target_noise_clip=s.target_noise_clip,
        )
        return SB3Agent(model)

    # What a subclass counts beside these.
    counters: ClassVar[tuple[str, ...]] = ()

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint holds, individuals in flight among it."""
        names = (
            "critics",
            "individuals",
            "told",
            "policies_told",
            "rl_told",
            "generations",
            "stored_steps",
            "mean_episodes",
            "critic_jobs",
            "critic_updates",
            "actor_updates",
        )
        return {
            "distribution": self.distribution,
            "bench": self.bench,
            "buffer": self.bench.buffer,
            "workers": self.workers,
            "rng": self.rng,
            "counters": Attributes(self, *names, *self.counters),
        }

    def keep(self, rows: Sequence[int]) -> None:
        """There is one lifetime, which nothing outlives."""

    def close(self) -> None:
        """End the workers, and close the environments."""
        self.workers.close()
        self.bench.close()


class EvolvedLearner(OneByOne):
    """A learner with an evolution of TD3 actors, one lifetime at a time.

    Attributes:
        settings: how settings are read.
        algorithm: what is at work on a run.
    """

    settings: ClassVar[type[EvolvedSettings]]
    algorithm: ClassVar[type[EvolvedTD3[Any]]]

    @property
    def published(self) -> dict[str, Any]:
        """Settings in which the published code differs."""
        return self.settings.published

    def settings_of(self, spec: LifetimeSpec) -> Any:
        """See `OneByOne`. Raises a UserError if one has no default for the environment."""
        settings = super().settings_of(spec)
        settings.check_complete(spec.task.env_id)
        return settings

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for actions that are no Box, for settings that cannot be, for a budget
        within which nothing is learned, and for a replay buffer that does not fit into memory.
        """
        check_actions(self.name, spec.spaces()[1], spaces.Box)
        s = self.settings_of(spec)
        cost = s.counted_per_step
        of = "episodes of the mean that are as long as the individuals'"
        check_budget(
            self.name, spec, {"learning_starts": s.random_steps}, cost, of, s.told_together
        )
        self.check_together([[spec]])

    def buffers(self, spec: LifetimeSpec) -> list[tuple[int, int, int]]:
        """See `OneByOne`. Each process has a buffer of its own."""
        s = self.settings_of(spec)
        return super().buffers(spec) * (1 + s.workers * (s.actor_executor == "processes"))

    def cores(self, spec: LifetimeSpec) -> int:
        """Of this machine, that a lifetime keeps busy; also of one that `check` refuses."""
        s = super().settings_of(spec)
        return s.threads * (s.workers if s.actor_executor == "processes" else 1)


def first_networks(
    bench: Bench, generator: torch.Generator
) -> tuple[np.ndarray, list[torch.Tensor]]:
    """An actor's genes and the state of critics, drawn as `torch.nn.Linear` does."""
    (actor, critic), n = bench.shapes, bench.settings.n_critics
    genes, row = np.zeros(n_parameters(bench.sizes), np.float32), torch.zeros(actor.size())
    drawn = Perceptrons(actor, 1, row)
    drawn.initialise(generator)
    copy_layers(drawn.members[0][0], bench.layers(genes))
    critics = Trained(1, n * critic.size())
    Perceptrons(critic, n, critics.values.view(n, -1)).initialise(generator)
    critics.start_target()
    return genes, critics.get_state()
