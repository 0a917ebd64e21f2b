"""What workers in an evolution of TD3 actors do: play an episode, train an actor against given
critics, train the critics.

A job holds all that it depends on, but for the replay buffer: whoever does it, here or elsewhere,
now or again, does the same. Jobs of several workers can be computed side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import is_not
from typing import Any, ClassVar, Self

import numpy as np
import torch
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor

from erl.executors.concurrent_workers import Count
from erl.executors.virtual_clock import Open, Timed, WorkerJob
from erl.learners.core.episodes import Episode, OpenStage
from erl.learners.core.evolved_settings import EvolvedSettings
from erl.learners.core.off_policy import Block, runs
from erl.learners.core.replay import ReplayBuffer
from erl.learners.core.td3_update import actor_step, critic_step
from erl.networks.captured import Captured
from erl.networks.perceptrons import Layer, Perceptrons, Shape
from erl.networks.policies import Policies, n_parameters
from erl.networks.trained import Trained
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LifetimeSpec

# Actors that are updated together on a CPU at most: they share the overhead of an operation, and
# more of them no longer fit into the cache.
_SIDE_BY_SIDE = 8
# Updates between two looks whether the lifetime shall end.
_HEED_EVERY = 64


class Travelling:
    """A job's data, as it travels to a worker elsewhere and back.

    Attributes:
        results: names of the fields that come back.
    """

    results: ClassVar[tuple[str, ...]]

    def shipped(self) -> Self:
        """What a worker elsewhere needs of it."""
        return replace(self, about=None)  # type: ignore[type-var]

    @property
    def result(self) -> tuple[Any, ...]:
        """As it comes back from there."""
        return tuple(getattr(self, name) for name in self.results)

    @result.setter
    def result(self, values: tuple[Any, ...]) -> None:
        for name, value in zip(self.results, values, strict=True):
            setattr(self, name, value)


@dataclass
class Play(Travelling):
    """Play an episode.

    Attributes:
        worker: number of the worker that does it.
        genes: of the policy, (dim,).
        seed: of the episode.
        random: seed of random actions, which take the place of the policy's; None for the policy.
        counted: whether its steps count for the budget.
        about: whatever the algorithm wants to find again.
        episode: the result.
        rng: of random actions, once begun.
    """

    results = ("episode",)
    worker: int
    genes: np.ndarray
    seed: int
    random: int | None = None
    counted: bool = True
    about: Any = None
    episode: Episode | None = None
    begun: bool = False
    rng: np.random.Generator | None = None


@dataclass
class TrainActor(Travelling):
    """Improve an actor by so many updates as the job has units.

    Attributes:
        worker: number of the worker that does it.
        genes: of the actor, (dim,); replaced by the result.
        first_critic: parameters (size,) of the critic whose value it ascends.
        seed: of its minibatches.
        about: whatever the algorithm wants to find again.
        done: updates made.
        rng: of its minibatches, once begun.
    """

    results = ("genes", "done")
    worker: int
    genes: np.ndarray
    first_critic: np.ndarray
    seed: int
    about: Any = None
    done: int = 0
    rng: np.random.Generator | None = None


@dataclass
class TrainCritics(Travelling):
    """Train the critics by so many updates as the job has units.

    Attributes:
        worker: number of the worker that does it.
        critics: state of `Trained`; replaced by the result.
        target_actor: genes (dim,) of the policy that they value.
        seed: of minibatches and noise.
        loss: of the last update.
        done: updates made.
        rngs: of minibatches and of noise, once begun.
    """

    results = ("critics", "loss", "done")
    worker: int
    critics: list[Tensor]
    target_actor: np.ndarray
    seed: int
    about: Any = None
    loss: float = float("nan")
    done: int = 0
    rngs: list[np.random.Generator] | None = None


class Elsewhere(Ledger):
    """The ledger of a worker elsewhere: it counts together with the others, and its steps are those
    of all.

    Args:
        count: enters steps, and tells those of all workers.
    """

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def step(self, n: int = 1) -> None:
        """Count n steps."""
        self.steps = self._count(n)


def make_bench(
    spec: LifetimeSpec, settings: EvolvedSettings, capacity: int, count: Count
) -> "Bench":
    """A bench for one worker elsewhere; arithmetic there is as it is in lifetimes."""
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)
    return Bench(spec, settings, Elsewhere(count), 1, capacity)


class Bench:
    """Environments, networks and the replay buffer of n workers in one process.

    Args:
        spec: the lifetime.
        settings: of its learner.
        ledger: where steps are counted.
        n: workers that train and play actors.
        capacity: transitions in the replay buffer.

    Attributes:
        activities: what executors compute, by the kind of jobs: `play`, `train_actor`,
            `train_critics`.
        buffer: the replay buffer.
        stage: the environments.
        sizes: of an actor's input, hidden layers and output.
    """

    def __init__(
        self, spec: LifetimeSpec, settings: EvolvedSettings, ledger: Ledger, n: int, capacity: int
    ) -> None:
        self.settings, self.n = settings, n
        s, device = settings, settings.device
        self._low = s.precision == "bf16"
        observation_space, action_space = spec.spaces()
        o, a = observation_space.shape[0], get_action_dim(action_space)
        self.buffer = ReplayBuffer(capacity, o, a, device)
        self.sizes = (o, *s.hidden, a)
        self.shapes = shapes(o, a, s.hidden)
        actor, critic = self.shapes
        self.actors = Trained(n, actor.size(), s.learning_rate, device=device)
        self.first_critics = torch.zeros(n, critic.size(), device=device)
        self.critics = Trained(1, s.n_critics * critic.size(), s.learning_rate, device=device)
        self.target_actor = torch.zeros(1, actor.size(), device=device)
        self._views: dict[tuple[int, int], tuple[Perceptrons, Perceptrons]] = {}
        critics, grads, targets = (
            t.view(s.n_critics, -1)
            for t in (self.critics.values, self.critics.grads, self.critics.target)
        )
        target_actor = Perceptrons(actor, 1, self.target_actor, low=self._low)
        self._block = Block[Any](
            0,
            1,
            [s],
            target_actor,
            target_actor,
            Perceptrons(critic, s.n_critics, critics, grads, self._low),
            Perceptrons(critic, s.n_critics, targets, low=self._low),
            Perceptrons(critic, 1, critics[:1], low=self._low),
        )
        self._update = Captured(self._update_now, device)
        self._policies: tuple[Sequence[Play], Policies] | None = None
        self._side_by_side = n if torch.device(device).type == "cuda" else min(n, _SIDE_BY_SIDE)
        self.activities: Mapping[str, Timed | Open] = {
            "play": Open(self.play),
            "train_actor": Timed(self.train_actors, s.actor_update_cost),
            "train_critics": Timed(self.train_critics, s.critic_update_cost),
        }
        # At the end: what cannot be made before leaves no environment open.
        self.stage = OpenStage(spec, ledger, n)

    def receive(self, item: Episode | dict[str, Any]) -> None:
        """Store an episode in the replay buffer, or all that another one holds."""
        if isinstance(item, Episode):
            self.buffer.add(*item.transitions())
        else:
            self.buffer.take(item)

    # -- playing --

    def play(self, jobs: Sequence[WorkerJob], limit: int | None) -> tuple[int, Sequence[bool]]:
        """Go on with episodes until one ends, or for `limit` steps."""
        plays: list[Play] = [job.data for job in jobs]
        for play in plays:
            if not play.begun:
                self.stage.begin(play.worker % self.n, play.seed)
                play.begun = True
                if play.random is not None:
                    play.rng = np.random.default_rng(play.random)
        slots = np.array([play.worker % self.n for play in plays])
        policies = self._of(plays)
        counted = sum(play.counted for play in plays)
        ticks, ended = 0, np.zeros(len(plays), bool)
        while not ended.any() and (limit is None or ticks < limit):
            seen = self.stage.seen(slots)
            actions = np.tanh(policies(seen[:, None])[:, 0])
            for row, play in enumerate(plays):
                if play.rng is not None:
                    actions[row] = play.rng.uniform(-1.0, 1.0, actions.shape[1])
            ended = self.stage.advance(slots, actions, counted)
            ticks += 1
        for row in np.flatnonzero(ended).tolist():
            plays[row].episode = self.stage.take(int(slots[row]))
        return ticks, ended.tolist()

    def _of(self, plays: Sequence[Play]) -> Policies:
        """Their policies; the latest are kept, since episodes last."""
        kept = self._policies
        if kept is None or len(kept[0]) != len(plays) or any(map(is_not, kept[0], plays)):
            genes = np.stack([play.genes for play in plays])
            self._policies = kept = plays, Policies(self.sizes, genes, "Tanh")
        return kept[1]

    # -- learning --

    def train_actors(self, jobs: Sequence[WorkerJob], counts: Sequence[int]) -> None:
        """Update actors, each `counts` times: side by side as far as that is faster."""
        left: dict[int, int] = {}
        trainings: dict[int, TrainActor] = {}
        for job, count in zip(jobs, counts):
            training: TrainActor = job.data
            row = training.worker % self.n
            left[row], trainings[row] = count, training
            if training.rng is None:
                training.rng = np.random.default_rng(training.seed)
                self._put(training.genes, self.actors.values[row])
                self.actors.reset(row)
                self.first_critics[row] = torch.from_numpy(training.first_critic)
        most = self._side_by_side
        for begin, end in runs([row in left or None for row in range(self.n)], most):
            rows = range(begin, end)
            while todo := [row for row in rows if left[row]]:
                m = min(left[row] for row in todo)
                for first, last in runs([row in todo or None for row in range(end)], most):
                    self._train([trainings[row] for row in range(first, last)], first, last, m)
                for row in todo:
                    left[row] -= m
        for job, count in zip(jobs, counts):
            job.data.done += count
            if job.data.done == job.units:
                job.data.genes = self._genes(self.actors.values[job.data.worker % self.n])

    def _train(self, trainings: Sequence[TrainActor], begin: int, end: int, m: int) -> None:
        places = np.empty((end - begin, self.settings.batch_size), np.int64)
        held = self.buffer.held(0)
        for k in range(m):
            if k % _HEED_EVERY == 0:
                self.stage.check_stopped()
            for row, training in enumerate(trainings):
                assert training.rng is not None
                places[row] = training.rng.integers(held, size=places.shape[1])
            self._update((begin, end), torch.from_numpy(places).to(self.settings.device), None)

    def train_critics(self, jobs: Sequence[WorkerJob], counts: Sequence[int]) -> None:
        """Update the critics; one worker does that at a time."""
        (job,), (count,) = jobs, counts
        training: TrainCritics = job.data
        if training.rngs is None:
            seeds = np.random.SeedSequence(training.seed).spawn(2)
            training.rngs = [np.random.default_rng(seed) for seed in seeds]
            self.critics.set_state(training.critics)
            self._put(training.target_actor, self.target_actor[0])
        minibatches, noises = training.rngs
        held, batch_size, device = (
            self.buffer.held(0),
            self.settings.batch_size,
            self.settings.device,
        )
        said: dict[str, Tensor] = {}
        for k in range(count):
            if k % _HEED_EVERY == 0:
                self.stage.check_stopped()
            places = torch.from_numpy(minibatches.integers(held, size=(1, batch_size)))
            shape = (1, batch_size, self.sizes[-1])
            noise = torch.from_numpy(noises.standard_normal(shape, dtype=np.float32))
            said = self._update(None, places.to(device), noise.to(device))
        training.done += count
        if training.done == job.units:
            training.critics = self.critics.get_state()
            training.loss = float(said["critic_loss"])

    @torch.inference_mode()
    def _update_now(self, key: Any, places: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        """One update of the critics, where there is noise, or else of the actors on the rows that
        are the key.
        """
        batch = self.buffer.batches(places)
        if noise is not None:
            loss = critic_step(self._block, batch, noise, self.critics)
            self.critics.follow([self.settings.tau])
            return {"critic_loss": loss}
        begin, end = key
        networks = self._side(begin, end)
        return {"actor_loss": actor_step(*networks, batch, self.actors, begin, end)}

    def _side(self, begin: int, end: int) -> tuple[Perceptrons, Perceptrons]:
        """Actors of these rows, and the critic of each."""
        if (begin, end) not in self._views:
            n, rows = end - begin, slice(begin, end)
            actor, critic = self.shapes
            self._views[begin, end] = (
                Perceptrons(actor, n, self.actors.values[rows], self.actors.grads[rows], self._low),
                Perceptrons(critic, n, self.first_critics[rows], low=self._low),
            )
        return self._views[begin, end]

    # -- parameters --

    def _put(self, genes: np.ndarray, row: Tensor) -> None:
        copy_layers(self.layers(genes), self._row_layers(row))

    def _genes(self, row: Tensor) -> np.ndarray:
        genes = np.empty(n_parameters(self.sizes), np.float32)
        copy_layers(self._row_layers(row), self.layers(genes))
        return genes

    def layers(self, genes: np.ndarray) -> list[Layer]:
        """Layers of an actor, which look into its genes: layer after layer the matrix and the
        bias, as `Policies` has them.
        """
        plain = shapes(self.sizes[0], self.sizes[-1], self.settings.hidden, aligned=False)[0]
        # A view of a read-only array; nobody writes into it.
        flat = torch.from_numpy(genes if genes.flags.writeable else genes.copy())
        return Perceptrons(plain, 1, flat).members[0][0]

    def _row_layers(self, row: Tensor) -> list[Layer]:
        return Perceptrons(self.shapes[0], 1, row).members[0][0]

    def critic_layers(self, critics: Sequence[Tensor]) -> list[list[list[Layer]]]:
        """For each critic its layers and those of its target, of a state of `Trained`."""
        values, target, *_ = critics
        n = self.settings.n_critics
        cut = [Perceptrons(self.shapes[1], n, t.view(n, -1)).members for t in (values, target)]
        return [[layers for layers, _ in members] for members in cut]

    # -- checkpoints --

    def get_state(self) -> dict[str, Any]:
        """All that jobs in flight depend on, beside themselves and the replay buffer."""
        return {
            "stage": self.stage.get_state(),
            "actors": self.actors.get_state(),
            "first_critics": self.first_critics.cpu().clone(),
            "critics": self.critics.get_state(),
            "target_actor": self.target_actor.cpu().clone(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_state`."""
        self.stage.set_state(state["stage"])
        self.actors.set_state(state["actors"])
        self.first_critics.copy_(state["first_critics"])
        self.critics.set_state(state["critics"])
        self.target_actor.copy_(state["target_actor"])

    def close(self) -> None:
        """Close the environments."""
        self.stage.close()


def shapes(
    obs_dim: int, action_dim: int, hidden: tuple[int, ...], aligned: bool = True
) -> tuple[Shape, Shape]:
    """Of an actor, whose output is squashed by tanh, and of a critic."""
    actor = Shape(obs_dim, hidden, action_dim, "Tanh", norm=False, aligned=aligned)
    critic = Shape(obs_dim + action_dim, hidden, 1, "LeakyReLU", norm=False, aligned=aligned)
    return actor, critic


def copy_layers(source: Sequence[Layer], target: Sequence[Layer]) -> None:
    """Copy parameters from layers to others of the same widths."""
    for mine, theirs in zip(source, target, strict=True):
        theirs.weight.copy_(mine.weight)
        theirs.bias.copy_(mine.bias)
