"""CEM-RL, and P-CEM-RL, in which its individuals are trained and played by workers in parallel.

Pourchot and Sigaud, "CEM-RL: Combining evolutionary and gradient-based methods for policy search",
ICLR 2019, arXiv 1810.01222. P-CEM-RL is a baseline of Lee, Lee, Shin and Kweon (NeurIPS 2020, arXiv
2012.05417), whose settings these are.

Generation after generation, the cross-entropy method draws individuals. The first `rl_population`
of them learn: the critics are updated, and then the individual, as often as the generation before
had steps (the critics a share of it for each). All play an episode. The better half forms the next
distribution.

There are two published codes, and `order` chooses between theirs. By default it is that of Lee et
al., whose other settings these are too: each individual plays before the next one learns. In
Pourchot and Sigaud's, all play when the last one has learned, and none plays at random before; and
their damping falls by 0.95.

Differences from both: whether a generation plays at random and whether it learns is decided once,
at its beginning; a generation that the budget cuts short is not told.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from erl.executors.virtual_clock import WorkerJob
from erl.learners.core.bench import Play, TrainActor
from erl.learners.core.evolved_settings import OF_GRADIENT, EvolvedSettings
from erl.learners.core.evolved_td3 import EvolvedLearner, EvolvedTD3, Individual
from erl.learners.core.run import Run
from erl.learners.core.settings import Count, NotNegative, Range, Share
from erl.populations.cem import CEM


@dataclass(frozen=True, kw_only=True)
class PCEMRLSettings(EvolvedSettings):
    """Settings of one lifetime of P-CEM-RL; see `EvolvedSettings` for the others.

    Attributes:
        population_size: individuals of a generation.
        rl_population: how many of them learn.
        damp, damp_limit, damp_tau: of the variance, see `populations.cem.CEM`.
        antithetic: whether individuals come in pairs, plus and minus.
        critic_workers: 1 for critics that train without pause beside the generations, 0 for updates
            before a generation's individuals learn.
        critic_job: updates after which a critic worker hands the critics in.
    """

    learner: ClassVar[str] = "P-CEM-RL"

    population_size: Annotated[int, Range(2)] = 10
    rl_population: Annotated[int, Range(0)] = 5
    damp: NotNegative = 1e-3
    damp_limit: NotNegative = 1e-5
    damp_tau: Share = 0.9
    antithetic: bool = True
    buffer_size: Count = 1_000_000
    critic_workers: Literal[0, 1] = 0
    critic_job: Count = 1000

    def _check(self) -> None:
        super()._check()
        if self.rl_population > self.population_size:
            raise self._wrong("rl_population", f"at most population_size, {self.population_size}")
        lockstep = self.actor_executor == "lockstep"
        if lockstep and self.critic_workers and not self.critic_update_cost:
            # Without a limit, they would go on for ever on the virtual clock.
            raise self._wrong(
                "critic_update_cost", "above 0 for critics with a worker of their own"
            )

    def idle(self) -> dict[str, str]:
        """See `EvolvedSettings`."""
        found = super().idle()
        if not self.critic_workers:
            # All wait for one another, so the clock orders nothing.
            names = ("critic_job", "actor_update_cost", "critic_update_cost")
            found |= dict.fromkeys(names, "the critics have no worker of their own")
        if not self.rl_population:
            why = "rl_population is 0, and nothing learns by gradient"
            found |= dict.fromkeys(OF_GRADIENT, why)
        return found

    @property
    def told_together(self) -> int:
        """See `EvolvedSettings`: a whole generation."""
        return self.population_size


@dataclass(frozen=True, kw_only=True)
class CEMRLSettings(PCEMRLSettings):
    """Settings of one lifetime of CEM-RL; see `PCEMRLSettings` for the others.

    Attributes:
        order: of what is done for the individuals that learn. `in-turn`: critics, individual and
            episode of one, then those of the next. `play-last`: critics and individual of one, then
            those of the next, and all episodes in the end; the first ones are not at random.
            `batched`: the critics for all, then
            all individuals side by side, then all episodes.
    """

    learner: ClassVar[str] = "CEM-RL"

    batch_size: Count = 100
    actor_workers: Literal[1] = 1
    critic_workers: Literal[0] = 0
    order: Literal["in-turn", "play-last", "batched"] = "in-turn"

    def idle(self) -> dict[str, str]:
        """See `EvolvedSettings`."""
        found = super().idle()
        if not self.rl_population:
            found["order"] = "rl_population is 0"
            if not self.random_steps:
                found["learning_starts"] = "nothing learns by gradient, and nobody plays at random"
        return found

    @property
    def random_steps(self) -> int:
        """See `EvolvedSettings`: with Pourchot and Sigaud's order none."""
        return 0 if self.order == "play-last" else super().random_steps

    @property
    def players(self) -> int:
        """Individuals side by side."""
        return self.population_size if self.order == "batched" else 1


# What is done to an individual: `critics` (updated for it), `train` or `play`.
Task = tuple[str, Individual]


class Generations(EvolvedTD3[PCEMRLSettings]):
    """CEM-RL or P-CEM-RL at work on the one lifetime of a run.

    Attributes:
        generation: the individuals.
        stages: what is still to be done to them; the tasks of a stage can be done in parallel, and
            the next one waits for all of them.
        running: tasks at work.
        steps, steps_before: of this generation so far, and of the one before.
    """

    counters = ("generation", "stages", "running", "steps", "steps_before")

    def __init__(self, run: Run[PCEMRLSettings]) -> None:
        self.generation: list[Individual] = []
        self.stages: list[list[Task]] = []
        self.running = self.steps = self.steps_before = 0
        super().__init__(run)

    def make_distribution(self, mean: np.ndarray, rng: np.random.Generator) -> CEM:
        """See `EvolvedTD3`."""
        s = self.settings
        return CEM(
            mean,
            rng,
            s.population_size,
            var=s.var,
            damp=s.damp,
            damp_limit=s.damp_limit,
            damp_tau=s.damp_tau,
            antithetic=s.antithetic,
        )

    @property
    def order(self) -> str:
        """See `CEMRLSettings`; P-CEM-RL has no choice."""
        return getattr(self.settings, "order", "batched")

    @property
    def random_play(self) -> bool:
        """See `EvolvedTD3`: with Pourchot and Sigaud's order never."""
        return super().random_play and self.order != "play-last"

    def plan(self) -> list[list[Task]]:
        """The stages of a new generation."""
        everyone = self.generation
        learners = [individual for individual in everyone if individual.learns]
        critics = [("critics", individual) for individual in learners]
        train = [("train", individual) for individual in learners]
        play = [("play", individual) for individual in everyone]
        if self.order == "in-turn":
            turns = [task for turn in zip(critics, train, play) for task in turn]
            return [[task] for task in turns + play[len(learners) :]]
        if self.order == "play-last":
            turns = [task for turn in zip(critics, train) for task in turn]
            return [[task] for task in turns + play]
        serial = [] if self.settings.critic_workers else [[task] for task in critics]
        return [*serial, train, play]

    def begin_generation(self) -> None:
        """Ask for individuals, and plan what becomes of them."""
        s = self.settings
        self.generation = self.ask(s.population_size)
        self.steps_before, self.steps = self.steps, 0
        for individual in self.generation[: s.rl_population]:
            individual.learns = self.learns and self.steps_before > 0
        self.stages = [stage for stage in self.plan() if stage]

    def next_actor_job(self, worker: int, ended: WorkerJob | None) -> WorkerJob | None:
        """See `EvolvedTD3`."""
        if ended is not None:
            self.running -= 1
            if not self.take(ended):
                return None
            if not self.running and not self.stages[0]:
                self.end_stage()
                return None  # all workers are asked in turn
        if not self.stages:
            self.begin_generation()
        while self.stages[0]:
            job = self.job(worker, self.stages[0].pop(0))
            if job is not None:
                self.running += 1
                return job
            if not self.running and not self.stages[0]:  # there was nothing to do in it
                self.end_stage()
        return None  # until the others of this stage have ended

    def end_stage(self) -> None:
        """Go on to the next stage; after the last one the distribution is told."""
        self.stages = self.stages[1:]
        if not self.stages:
            self.tell()

    def job(self, worker: int, task: Task) -> WorkerJob | None:
        """A task as a job; None where there is nothing to do."""
        what, individual = task
        if what == "play":
            return self.play(worker, individual)
        if what == "train":
            return self.train(worker, individual, self.steps_before)
        share = self.steps_before // self.settings.rl_population
        return self.train_critics(worker, individual.genes, share) if share else None

    def take(self, ended: WorkerJob) -> bool:
        """Take what a job has done; whether to go on."""
        data = ended.data
        if isinstance(data, TrainActor):
            data.about.genes = data.genes
        elif isinstance(data, Play):
            if not self.played(data.about, data):
                return False
            assert data.episode is not None
            self.steps += len(data.episode.rewards)
            self.ledger.episode(data.episode.total, len(data.episode.rewards))
        return True

    def tell(self) -> None:
        """The better half forms the next distribution."""
        genes = np.stack([individual.genes for individual in self.generation])
        fitness = np.array([individual.fitness for individual in self.generation])
        self.distribution.tell(genes, fitness)
        self.count_told(self.generation)
        row: dict[str, Any] = {
            "fitness": fitness.tolist(),
            "kind": ["RL" if individual.learns else "ES" for individual in self.generation],
            "var": float(self.distribution.var.mean()),
        }
        learners = sum(individual.learns for individual in self.generation)
        self.record(row, {"rl": learners, "es": len(fitness) - learners})

    def next_critic_job(self, worker: int) -> WorkerJob | None:
        """Critics beside the generations have no limit, as in the published code."""
        if not self.learns or not self.stored_steps or not self.settings.rl_population:
            return None
        return self.train_critics(worker, self.distribution.mean, self.settings.critic_job)


class CEMRLLearner(EvolvedLearner):
    """CEM-RL. Its settings are `CEMRLSettings`."""

    settings, algorithm = CEMRLSettings, Generations


class PCEMRLLearner(EvolvedLearner):
    """P-CEM-RL. Its settings are `PCEMRLSettings`."""

    settings, algorithm = PCEMRLSettings, Generations
