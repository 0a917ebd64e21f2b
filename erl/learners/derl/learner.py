"""DERL: an evolution strategy and a policy gradient improve one policy, and are averaged.

An iteration has two halves that begin with the same parameters θ of the policy:

1. Evolution: perturb θ with normal noise, judge each perturbed policy by the return of an episode,
   and take a step of OpenAI-ES (`erl.populations.openai_es`): θ_ES.
2. Gradient: play episodes with θ and exploration, store them in the replay buffer, and improve θ
   off-policy (`erl.learners.derl.gradient`): θ_RL.

The next θ is es_weight θ_ES + rl_weight θ_RL. The critics and the optimisers go on as they are. A
half of no weight does not take place: with es_weight 1 it is OpenAI-ES, with rl_weight 1 TD3, or
its kind for discrete actions, alone.

The algorithm is that of a public project of 2025. Its first code differs: there the policy imitated
the stored actions in place of a gradient, sigma entered twice, nothing explored, actions were not
scaled to their bounds, the halves began with unrelated policies, and time limits counted as ends.
An update followed every environment step. `updates_per_step` is 1 by default here too, but updates
come after the iteration's episodes; a tenth is much cheaper, and was enough in the examples.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim

from erl.learners.core.checkpoints import Attributes, Part
from erl.learners.core.episodes import Episode, Stage
from erl.learners.core.replay import ReplayBuffer
from erl.learners.core.run import OneByOne, Run
from erl.learners.core.settings import check_actions, check_budget
from erl.learners.derl.export import to_sb3
from erl.learners.derl.gradient import GradientHalf, n_step
from erl.learners.derl.settings import DERLSettings
from erl.learners.sb3 import SB3Agent
from erl.networks.captured import Captured
from erl.networks.policies import Policies
from erl.populations.openai_es import OpenAIES
from erl.worlds.specification import LifetimeSpec

# Updates whose random numbers are drawn at once.
_CHUNK = 256
_LENGTHS = ("es_length", "rl_length", "cosine")


class BlendedPolicy:
    """DERL at work on the one lifetime of a run.

    Attributes:
        gradient: the gradient half, whose policy is θ between iterations.
        es: the evolution's half.
        discrete: whether there is a number of actions to choose from.
        sizes: of the policy's input, hidden layers and output.
        latest: what the latest iteration did.
        iterations, evolved, updates: how many there were, of both halves, of steps of the
            evolution, and of the networks.
        updates_due: those that steps have paid for and that are still to be made.
    """

    def __init__(self, run: Run[DERLSettings]) -> None:
        self.run, self.spec, self.ledger = run, run.specs[0], run.ledgers[0]
        self.telemetry = run.telemetry[0]
        s = self.settings = run.settings[0]
        self.observation_space, self.action_space = self.spec.spaces()
        self.discrete = isinstance(self.action_space, spaces.Discrete)
        n_observations = int(self.observation_space.shape[0])
        outputs = n_outputs(self.action_space)
        self.sizes = (n_observations, *s.hidden, outputs)
        seed = self.spec.seeds.learner
        self.torch_rng = torch.Generator().manual_seed(seed)
        evolution, exploration = np.random.SeedSequence(seed).spawn(2)
        self.rng = np.random.default_rng(exploration)
        self.gradient = GradientHalf(s, n_observations, outputs, self.discrete, self.torch_rng)
        es_rng = np.random.default_rng(evolution)
        self.es = OpenAIES(self.theta, es_rng, s.sigma, s.lr_es, s.mirrored, s.rank_shaping)
        stored = get_action_dim(self.action_space)
        capacity = s.capacity(self.spec.steps)
        self.buffer = ReplayBuffer(capacity, n_observations, stored, s.device)
        self.update = Captured(self._update, s.device)
        self.stage = Stage(self.spec, self.ledger, self.settings.environments)
        self.latest: dict[str, Any] = {}
        self.iterations = self.evolved = self.updates = 0
        self.updates_due = 0.0

    @property
    def theta(self) -> np.ndarray:
        """Parameters of the policy (dim,), a copy."""
        return self.gradient.theta

    def start(self) -> None:
        """Nothing is to be done before the first iteration."""

    def change(self, **settings: Any) -> None:
        """Go on with other settings, of those that concern an iteration alone."""
        before, self.settings = self.settings, replace(self.settings, **settings)
        if self.settings.batch_size != before.batch_size:
            self.update = Captured(self._update, before.device)  # it is for one shape
        if self.settings.environments != before.environments:
            state = self.stage.get_state()
            self.stage.close()
            self.stage = Stage(self.spec, self.ledger, self.settings.environments)
            self.stage.set_state(state)

    # -- one iteration --

    def iterate(self, progress_remaining: float | None = None) -> None:
        """Both halves from one θ, and their average.

        Args:
            progress_remaining: share of the training that remains, which schedules follow; None for
                that of the lifetime's budget.
        """
        s, theta, begun = self.settings, self.theta, time.perf_counter()
        if progress_remaining is None:
            progress_remaining = max(0.0, 1.0 - self.ledger.steps / self.spec.steps)
        self.gradient.set_rates(progress_remaining)
        row: dict[str, Any] = {}
        scalars: dict[str, float] = {}
        steps, updates = self.ledger.steps, self.updates
        theta_es = theta_rl = theta
        if s.es_weight:
            theta_es = self.evolve(theta, row)
        population_steps = self.ledger.steps - steps
        if s.rl_weight and not self.run.spent():
            theta_rl = self.improve(theta, row, scalars)
        blended = theta_es if s.es_weight else theta_rl
        if s.es_weight and s.rl_weight:
            blended = np.float32(s.es_weight) * theta_es + np.float32(s.rl_weight) * theta_rl
        if not np.isfinite(blended).all():
            raise FloatingPointError(
                f"the policy's weights are not finite after {self.ledger.steps} steps"
            )
        self.gradient.theta = blended
        self.iterations += 1
        row = {"steps": self.ledger.steps, **row, **_compared(theta_es - theta, theta_rl - theta)}
        if self.telemetry.evaluation_due:
            scores = self.telemetry.evaluate({"policy": self.agent()})
            scalars |= {f"eval/{name}": score for name, score in scores.items()}
        scalars |= {f"halves/{name}": row[name] for name in _LENGTHS if name in row}
        scalars |= {
            "train/n_updates": self.updates,
            "time/fps": int(self.run.steps_per_second()),
            "time/iteration_seconds": time.perf_counter() - begun,
        }
        totals = {"population_steps": population_steps, "updates": self.updates - updates}
        self.telemetry.record(row, totals, scalars)
        self.latest = row

    def evolve(self, theta: np.ndarray, row: dict[str, Any]) -> np.ndarray:
        """The evolution's half: θ after a step of OpenAI-ES, or as it was if the budget was spent
        meanwhile: who was cut short is not judged by what is missing.
        """
        s = self.settings
        self.es.mean = theta
        perturbed = self.es.ask(s.population_size)
        policies = Policies(self.sizes, perturbed)

        def act(who: np.ndarray, seen: np.ndarray) -> np.ndarray:
            return self.greedy(policies(seen[:, None], who)[:, 0])

        episodes = self.stage.play(act, s.population_size)
        if s.rl_weight and s.population_replay:
            self._store(episodes)
        if any(episode.cut for episode in episodes):
            return theta
        fitness = np.array([episode.total for episode in episodes])
        row["fitness"] = fitness.tolist()
        if not s.rl_weight:
            # There are no episodes of the policy itself.
            for episode in episodes:
                self.ledger.episode(episode.total, len(episode.rewards))
        self.es.tell(perturbed, fitness)
        self.evolved += 1
        return self.es.mean

    def improve(
        self, theta: np.ndarray, row: dict[str, Any], scalars: dict[str, float]
    ) -> np.ndarray:
        """The gradient's half: play with exploration, store, and make the updates that stored
        steps have paid for; θ after that.
        """
        s = self.settings
        policy = Policies(self.sizes, theta[None])

        def act(who: np.ndarray, seen: np.ndarray) -> np.ndarray:
            return self.exploring(policy(seen[None])[0])

        episodes = self.stage.play(act, s.num_episodes_per_iter)
        self._store(episodes)
        ended = [episode for episode in episodes if episode.ended]
        for episode in ended:
            self.ledger.episode(episode.total, len(episode.rewards))
        if ended:
            row["policy_return"] = float(np.mean([episode.total for episode in ended]))
        if len(self.buffer) < s.learning_starts:
            self.updates_due = 0.0
            return theta
        due = int(self.updates_due + 1e-6)
        self.updates_due -= due
        begun = time.perf_counter()
        scalars |= self.update_networks(due)
        scalars["train/updates_per_second"] = due / (time.perf_counter() - begun)
        return self.gradient.theta

    def _store(self, episodes: Sequence[Episode]) -> None:
        s = self.settings
        for episode in episodes:
            observations, actions, *rest = episode.transitions()
            transitions: Any = observations, actions.reshape(len(actions), -1), *rest
            for chain in n_step(transitions, s.n_steps, s.gamma):
                self.buffer.add(*chain)
            self.updates_due += s.updates_per_step * len(actions)

    def greedy(self, outputs: np.ndarray) -> np.ndarray:
        """Actions for outputs (k, outputs), as a `Stage` takes them: the most probable, or the
        mean.
        """
        return outputs.argmax(1) if self.discrete else np.tanh(outputs)

    def exploring(self, outputs: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Actions for outputs (k, outputs), as a `Stage` takes them: drawn, or with noise; by
        default from the stream of the training.
        """
        rng = self.rng if rng is None else rng
        if self.discrete:
            # The largest of logits with Gumbel noise is a draw from their distribution.
            return (outputs + rng.gumbel(size=outputs.shape)).argmax(1)
        noise = rng.normal(0.0, self.settings.exploration_noise, outputs.shape)
        return np.clip(np.tanh(outputs) + noise, -1.0, 1.0)

    def update_networks(self, n: int) -> dict[str, float]:
        """Update the networks n times; the last losses."""
        s, rng = self.settings, self.torch_rng
        n_noise = 0 if self.discrete else self.sizes[-1]
        losses: dict[str, torch.Tensor] = {}
        for begin in range(0, n, _CHUNK):
            self.run.raise_if_stopped()
            m = min(_CHUNK, n - begin)
            places = torch.randint(len(self.buffer), (m, s.batch_size), generator=rng).to(s.device)
            noise = torch.randn(m, s.batch_size, n_noise, generator=rng).to(s.device)
            for k in range(m):
                losses |= self.update(self.updates % 2, places[k], noise[k])
                self.updates += 1
        return {f"train/{name}": float(value) for name, value in losses.items()}

    def _update(self, k: int, places: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """One update, as a GPU captures it once for each k."""
        return self.gradient.update(k, self.buffer.batch(places), noise)

    # -- what the run needs --

    def learned(self, row: int = 0) -> bool:
        """Whether the evolution took a step, or networks were updated."""
        return bool(self.evolved or self.updates)

    def agent(self, row: int = 0) -> SB3Agent:
        """The policy as it is now."""
        seen, chosen = self.observation_space, self.action_space
        return SB3Agent(to_sb3(self.settings, self.gradient, seen, chosen, self.ledger.steps))

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint holds. Between iterations no episode is running."""
        return {
            "gradient": self.gradient,
            "es": self.es,
            "buffer": self.buffer,
            "stage": self.stage,
            "rng": self.rng,
            "torch_rng": self.torch_rng,
            "counters": Attributes(self, "iterations", "evolved", "updates", "updates_due"),
        }

    def keep(self, rows: Sequence[int]) -> None:
        """There is one lifetime, which nothing outlives."""

    def close(self) -> None:
        """Close the environments."""
        self.stage.close()


def n_outputs(action_space: spaces.Space) -> int:
    """Outputs of a policy: numbers in an action, or actions to choose from."""
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    return get_action_dim(action_space)


def _compared(es: np.ndarray, rl: np.ndarray) -> dict[str, float]:
    """Lengths of the two steps from one θ, and the cosine between them where there are both."""
    lengths = {"es_length": float(np.linalg.norm(es)), "rl_length": float(np.linalg.norm(rl))}
    row = {name: length for name, length in lengths.items() if length > 0.0}
    if len(row) == 2:
        row["cosine"] = float(es @ rl) / (row["es_length"] * row["rl_length"])
    return row


class DERLLearner(OneByOne):
    """DERL, one lifetime at a time. Its settings are `DERLSettings`."""

    settings, algorithm = DERLSettings, BlendedPolicy

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for settings that cannot be, for a budget within which nothing is
        learned, and for actions that are neither Box nor Discrete.
        """
        s = self.settings_of(spec)
        if s.es_weight:
            # The first step of the evolution needs an episode of each. Without it the budget is
            # spent before the policy itself plays.
            check_budget(self.name, spec, {"population_size": s.population_size}, then=0)
        else:
            # All environments take the last step.
            most = spec.steps + s.environments - 1
            starts = {"learning_starts": s.learning_starts}
            check_budget(self.name, spec, starts, then=0, most=most)
        check_actions(self.name, spec.spaces()[1], spaces.Box, spaces.Discrete)
        self.check_together([[spec]])
