"""ERL-Re²: a population of policies and one RL agent that share a nonlinear state representation.

Li, Tang, Hao, Zheng, Fu and Meng, "ERL-Re²: Efficient Evolutionary Reinforcement Learning with
Shared State Representation and Individual Policy Representation", ICLR 2023, arXiv 2210.17375.
Every policy is a linear head on the representation. Heads evolve; the representation is learned
from the value functions of the RL agent and of the population.

Differences from the published code:

- No score is reported by which something was chosen. Evaluation only reports, is sparse, and
  nothing that feeds learning escapes the budget.
- The value function of policies (PeVFA) encodes a head as the paper says, row by row (W_i, b_i).
  The published code cuts the flat vector of all weights and then all biases into rows, so that each
  row is shifted by one weight more and the last one holds all biases.
- Actions between -1 and 1 are scaled to the environment's bounds, which matters on Humanoid (0.4).
  The published code hands them over as they are.
- Every second update improves the policies, counted through the whole training; there the count
  begins anew in each generation.
- The layer normalisation's epsilon stands under the root, a relative difference of 1e-6 / std.
- The gradient of the representation is taken at the weights of the forward pass: heads and
  representation move only when both gradients are there.
- Evolution, too, waits for `learning_starts`, so that the population does not drift before it can
  be evaluated. Without RL the population is evaluated by whole episodes from the first step.
- The RL head is first copied into the population in the first due generation whose heads were
  judged, since the least fit one makes room. The published code begins a generation earlier, when
  learning begins, and overwrites the first head. With `sync_period` 10 that can be ten generations.
- The discount on Swimmer is 0.9999 (`environments.toml` says why), and 0.99 there.
- The RL head's copy spares all elites; the number of offspring need not be even; a mutation changes
  at least one weight.
- An episode that ends with step H has no value beyond it.
- A policy is encoded once for a batch, and the replay buffer stores no policies.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor

from erl.learners.core.checkpoints import Attributes, Part
from erl.learners.core.episodes import Episode, Stage
from erl.learners.core.export import td3_model
from erl.learners.core.replay import ReplayBuffer
from erl.learners.core.run import OneByOne, Run, warn_of_precision
from erl.learners.core.settings import check_actions, check_budget
from erl.learners.erl_re2.report import evolution_row, evolution_scalars, evolution_totals
from erl.learners.erl_re2.settings import Re2Settings
from erl.learners.erl_re2.update import Draws, TwoScale, act, new_heads
from erl.learners.sb3 import SB3Agent
from erl.networks.captured import Captured
from erl.populations.genetic import GeneticPopulation
from erl.worlds.specification import LifetimeSpec

# Updates whose random numbers are drawn at once.
_CHUNK = 256


class ERLRe2:
    """ERL-Re² at work on the one lifetime of a run.

    Attributes:
        networks: representation, RL head, critics and PeVFA, their targets and optimisers.
        population: the heads that evolve, and their operators.
        champion: index of the fittest head; until the next generation is evaluated it stays there,
            and before the first, any will do.
        rl_copy: index of the RL head's copy in the population; None where evolution has dealt with
            it.
        rl_steps: steps that the RL agent has played.
        generation, evolved, updates: how many there were, of all, with evolution, of networks.
        updates_due: those that steps have paid for and that are still to be made.
    """

    def __init__(self, run: Run[Re2Settings]) -> None:
        self.run, self.spec, self.ledger = run, run.specs[0], run.ledgers[0]
        self.telemetry = run.telemetry[0]
        s = self.settings = run.settings[0]
        self.observation_space, self.action_space = self.spec.spaces()
        n_observations = self.observation_space.shape[0]
        self.n_actions = get_action_dim(self.action_space)
        seed = self.spec.seeds.learner
        self.torch_rng = torch.Generator().manual_seed(seed)
        evolution, exploration = np.random.SeedSequence(seed).spawn(2)
        self.rng = np.random.default_rng(exploration)
        self.networks = TwoScale(s, n_observations, self.n_actions, self.torch_rng)
        capacity = s.capacity(self.spec.steps)
        self.buffer = ReplayBuffer(capacity, n_observations, self.n_actions, s.device)
        features, n_heads = self.networks.features, max(3, s.pop_size)
        self.population = GeneticPopulation(
            new_heads(n_heads, self.n_actions, features, self.torch_rng).numpy(),
            np.random.default_rng(evolution),
            s.n_elites,
            s.mutation_prob,
            s.frac,
            s.prob_reset_and_sup,
        )
        self.update = Captured(self._update, s.device)
        self.stage = Stage(self.spec, self.ledger, s.environments)
        self.champion = self.generation = self.evolved = self.rl_steps = self.updates = 0
        self.rl_copy: int | None = None
        self.updates_due = 0.0

    def start(self) -> None:
        """Warn of a setting that has no effect."""
        s = self.settings
        warn_of_precision(s.precision, s.device, s.batch_size)

    # -- one generation --

    def iterate(self) -> None:
        """Evaluate and evolve the heads, let the RL agent play, learn as often as steps were taken,
        and copy the RL head into the population.
        """
        s, steps, start = self.settings, self.ledger.steps, time.perf_counter()
        row: dict[str, Any] = {}
        totals: dict[str, float] = {}
        scalars: dict[str, float] = {"train/updates_per_second": 0.0}
        fitness, variation = None, None
        # Nothing evolves on a representation that has not begun to learn; without RL it never will.
        if s.EA and (self.learns or not s.RL):
            fitness, row = self.evaluate_heads()
            if fitness is not None:
                variation = self.population.evolve(fitness)
                self.champion, self.evolved = variation.kept[0], self.evolved + 1
                row |= evolution_row(variation, self.rl_copy)
                totals = evolution_totals(variation, row)
                self.rl_copy = None
        if s.RL and not self.run.spent():
            row |= self.play_rl_agent()
        if s.RL and self.learns:
            scalars |= self.learn(self.ledger.steps - steps)
        self.generation += 1
        in_turn = s.RL and self.generation % s.sync_period == 0
        if in_turn and fitness is not None and variation is not None:
            self.copy_rl_head(fitness, variation.kept)
        if any(not torch.isfinite(network.values).all() for network in self.networks.networks):
            raise FloatingPointError(
                f"the networks' weights are not finite after {self.ledger.steps} steps"
            )
        if self.telemetry.evaluation_due:
            scores = self.telemetry.evaluate(self.agents())
            scalars |= {f"eval/{name}": score for name, score in scores.items()}
        scalars |= {
            "train/n_updates": self.updates,
            "time/fps": int(self.run.steps_per_second()),
            "time/generation_seconds": time.perf_counter() - start,
        }
        sums = Counter(self.telemetry.generations.totals)
        sums.update(totals)
        scalars |= evolution_scalars(row, sums)
        self.telemetry.record({"steps": self.ledger.steps, **row}, totals, scalars)

    @property
    def learns(self) -> bool:
        """Whether networks have what they begin to learn from."""
        s = self.settings
        return self.rl_steps >= s.init_steps and len(self.buffer) >= s.learning_starts

    def evaluate_heads(self) -> tuple[np.ndarray | None, dict[str, Any]]:
        """Every head's fitness (pop_size,): returns of whole episodes, or the surrogate, one choice
        for all; and what to report of it.

        There is no fitness if the budget was spent meanwhile: episodes that were cut off count for
        nothing.
        """
        s = self.settings
        heads = torch.from_numpy(self.population.heads).to(s.device)
        whole = not s.RL or self.rng.random() < s.theta

        def actions_of(indices: np.ndarray, observations: np.ndarray) -> np.ndarray:
            z = self.networks.represent(torch.from_numpy(observations).to(s.device))
            return act(heads[indices], z.unsqueeze(1)).squeeze(1).cpu().numpy()

        rounds: list[list[Episode]] = []
        for _ in range(s.num_evals if whole else 1):
            if self.run.spent():
                return None, {}
            limit = None if whole else s.time_steps
            rounds.append(self.stage.play(actions_of, s.pop_size, limit))
            for episode in rounds[-1] if s.RL else ():
                self.buffer.add(*episode.transitions())
            if any(episode.cut for episode in rounds[-1]):
                return None, {}
        surrogates = np.array(self._surrogates(rounds[0], heads)) if s.RL else None
        returns = np.mean([[e.total for e in episodes] for episodes in rounds], axis=0)
        fitness = returns if whole or surrogates is None else surrogates
        if not np.isfinite(fitness).all():
            raise FloatingPointError(
                f"a head's fitness is not finite after {self.ledger.steps} steps: {fitness}"
            )
        row = {"whole": int(whole), "fitness": fitness.tolist()}
        if whole:
            # The champion was chosen before it played these episodes: their returns are no best of
            # several.
            for episodes in rounds:
                played = episodes[self.champion]
                self.ledger.episode(played.total, len(played.rewards))
            row["champion_return"] = float(returns[self.champion])
            if surrogates is not None:
                row["surrogate"] = surrogates.tolist()
        return fitness, row

    def _surrogates(self, episodes: Sequence[Episode], heads: Tensor) -> list[float]:
        """The surrogate fitness of each head (eq. 8), from the first steps of its episode."""
        s = self.settings
        reached = np.stack([e.observations[min(s.time_steps, len(e.rewards))] for e in episodes])
        tails = self.networks.value_of(torch.from_numpy(reached).to(s.device), heads).tolist()
        return [surrogate(e, s.time_steps, s.gamma, tail) for e, tail in zip(episodes, tails)]

    def play_rl_agent(self) -> dict[str, float]:
        """One episode of the RL agent, with noise; at random in the first `init_steps`.

        Its return, if the episode is a whole one.
        """
        s, head = self.settings, self.networks.rl_head
        at_random = self.rl_steps < s.init_steps

        def actions_of(_: np.ndarray, observations: np.ndarray) -> np.ndarray:
            if at_random:
                return self.rng.uniform(-1.0, 1.0, (1, self.n_actions))
            z = self.networks.represent(torch.from_numpy(observations).to(s.device))
            actions = act(head, z).cpu().numpy()
            noise = self.rng.normal(0.0, s.exploration_noise, actions.shape)
            return np.clip(actions + noise, -1.0, 1.0)

        (episode,) = self.stage.play(actions_of)
        self.buffer.add(*episode.transitions())
        self.rl_steps += len(episode.rewards)
        if not episode.ended:
            return {}
        self.ledger.episode(episode.total, len(episode.rewards))
        return {"rl_return": episode.total}

    def learn(self, steps: int) -> dict[str, float]:
        """Make the updates that so many steps pay for, fractions saved for later; the last update's
        losses, and the speed.
        """
        start, before = time.perf_counter(), self.updates
        self.updates_due += self.settings.frac_frames_train * steps
        due = int(self.updates_due + 1e-6)
        self.updates_due -= due
        scalars = self.update_networks(due)
        seconds = time.perf_counter() - start
        return scalars | {"train/updates_per_second": (self.updates - before) / seconds}

    def update_networks(self, n: int) -> dict[str, float]:
        """Update all networks n times; the last losses."""
        s, rng, rl = self.settings, self.torch_rng, self.settings.pop_size
        heads = torch.from_numpy(self.population.heads[: s.pop_size]).to(s.device)
        policies = torch.cat([heads, self.networks.rl_head.unsqueeze(0)])
        losses: dict[str, Tensor] = {}
        for begin in range(0, n, _CHUNK):
            self.run.raise_if_stopped()
            m = min(_CHUNK, n - begin)
            places = torch.randint(len(self.buffer), (m, s.batch_size), generator=rng).to(s.device)
            noise = torch.randn(m, s.batch_size, self.n_actions, generator=rng).to(s.device)
            # Whose values PeVFA learns, and for which policies the representation is learned.
            evaluated = torch.randint(rl + 1, (m,), generator=rng).tolist()
            ascending = torch.rand(m, rl + 1, generator=rng).argsort(1)[:, : s.K].to(s.device)
            for k in range(m):
                improve = self.updates % s.delay == 0
                losses |= self.update(
                    (improve, self.evolved > 0),
                    places[k],
                    noise[k],
                    policies[evaluated[k]] if s.EA else None,
                    policies[ascending[k]] if s.EA and self.evolved and improve else None,
                )
                if improve:
                    policies[rl] = self.networks.rl_head
                self.updates += 1
        return {f"train/{name}": float(value) for name, value in losses.items()}

    def _update(
        self,
        course: tuple[bool, bool],
        places: Tensor,
        noise: Tensor,
        evaluated: Tensor | None,
        ascending: Tensor | None,
    ) -> dict[str, Tensor]:
        """One update, as a GPU captures it once for each `course`: whether the policies are
        improved, and whether evolution has begun.
        """
        batch = self.buffer.batch(places)
        return self.networks.update(batch, Draws(noise, evaluated, ascending), course[0])

    def copy_rl_head(self, fitness: np.ndarray, elites: Sequence[int]) -> None:
        """Put the RL head in the place of the least fit head, or of the next one that is no
        elite.
        """
        place = int(np.argmin(fitness))
        while place in elites:
            place = (place + 1) % self.settings.pop_size
        self.population.heads[place] = self.networks.rl_head.cpu().numpy()
        self.rl_copy = place

    # -- agents --

    def agents(self) -> dict[str, SB3Agent]:
        """The policies that there are: `champion` once there was evolution, `rl` where networks
        learn.
        """
        heads: dict[str, Tensor | None] = {}
        if self.settings.EA and (self.evolved or not self.settings.RL):
            heads["champion"] = torch.from_numpy(self.population.heads[self.champion])
        if self.settings.RL:
            heads["rl"] = None
        return {name: SB3Agent(self._model(head)) for name, head in heads.items()}

    def _model(self, head: Tensor | None) -> TD3:
        """The policy with a head of the population, or the RL agent, as Stable-Baselines3's TD3,
        whose critics are the RL agent's.
        """
        s = self.settings
        return td3_model(
            *self.networks.layers(head),
            self.observation_space,
            self.action_space,
            self.ledger.steps,
            {"net_arch": list(TwoScale.hidden), "n_critics": s.n_critics},
            learning_rate=s.learning_rate,
            batch_size=s.batch_size,
            tau=s.tau,
            gamma=s.gamma,
            policy_delay=s.delay,
            target_policy_noise=s.smoothing,
        )

    def learned(self, row: int = 0) -> bool:
        """Whether heads have evolved, or networks were updated."""
        return bool(self.evolved or self.updates)

    def agent(self, row: int = 0) -> SB3Agent:
        """The champion by training fitness, or the RL agent where nothing has evolved."""
        agents = self.agents()
        handed_over = agents.pop("champion", None) or agents.pop("rl")
        return SB3Agent(handed_over.model, companions=agents)

    # -- what the run needs --

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint holds. Between generations no episode is running."""
        return {
            "networks": self.networks,
            "population": self.population,
            "buffer": self.buffer,
            "stage": self.stage,
            "rng": self.rng,
            "torch_rng": self.torch_rng,
            "counters": Attributes(
                self,
                "champion",
                "rl_copy",
                "rl_steps",
                "generation",
                "evolved",
                "updates",
                "updates_due",
            ),
        }

    def keep(self, rows: Sequence[int]) -> None:
        """There is one lifetime, which nothing outlives."""

    def close(self) -> None:
        """Close the environments."""
        self.stage.close()


def surrogate(episode: Episode, steps: int, gamma: float, tail: float) -> float:
    """ERL-Re²'s surrogate fitness (Li et al., ICLR 2023, eq. 8): discounted rewards of the first
    steps, and a value for the rest.

    Args:
        episode: at least `steps` long, or ended before.
        steps: H.
        gamma: discount.
        tail: value of the state after H steps; an episode that ended by then has none.
    """
    rewards = episode.rewards[:steps]
    total = float(np.sum(gamma ** np.arange(len(rewards)) * rewards))
    reached = len(episode.rewards) > steps or (len(episode.rewards) == steps and not episode.ended)
    return total + gamma**steps * tail if reached else total


class Re2Learner(OneByOne):
    """ERL-Re², one lifetime at a time. Its settings are `Re2Settings`."""

    settings, algorithm = Re2Settings, ERLRe2
    published: ClassVar[dict[str, Any]] = {"gamma": 0.99}  # what `--published_code` asks for

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for settings that cannot be, for a budget within which nothing is
        learned, and for actions that are no Box.
        """
        s = self.settings_of(spec)
        if s.RL:
            starts = {"init_steps": s.init_steps, "learning_starts": s.learning_starts}
            check_budget(self.name, spec, starts, then=0)
        check_actions(self.name, spec.spaces()[1], spaces.Box)
        self.check_together([[spec]])
