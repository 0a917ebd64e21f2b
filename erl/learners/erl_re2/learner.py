"""ERL-Re²: a population of policies and one RL agent that share a nonlinear state representation.

Li, Tang, Hao, Zheng, Fu and Meng, "ERL-Re²: Efficient Evolutionary Reinforcement Learning with
Shared State Representation and Individual Policy Representation", ICLR 2023, arXiv 2210.17375.
Every policy is a linear head on the representation. Heads evolve; the representation is learned
from the value functions of the RL agent and of the population.

Differences from the published code: nothing is ever chosen or reported as the best of several noisy
scores; evaluation only reports, is sparse, and nothing that feeds learning escapes the budget; the
gradient of the representation is taken through weights that have not moved since; evolution, too,
waits for `learning_starts`, so that the population does not drift before it can be judged; without
RL the population is judged by whole episodes from the first step; the RL head's copy spares all
elites; the number of offspring need not be even; a mutation changes at least one weight; an episode
that ends with step H has no value beyond it; a policy is encoded once for a batch, and the replay
buffer stores no policies.
"""

import logging
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from scipy import stats
from stable_baselines3 import TD3
from torch import Tensor

from erl.errors import UserError
from erl.learners import Agent, Outputs, one_by_one
from erl.learners.core.checkpoints import beside, load_checkpoint, save_checkpoint, set_aside
from erl.learners.core.episodes import Episode, Stage, surrogate
from erl.learners.core.export import td3_model
from erl.learners.core.replay import ReplayBuffer
from erl.learners.core.settings import check_budget
from erl.learners.core.telemetry import InnerLog, Report, Scores, note
from erl.learners.erl_re2.settings import Re2Settings
from erl.learners.erl_re2.update import Draws, TwoScale, act, new_heads
from erl.learners.sb3 import SB3Agent
from erl.networks.captured import Captured
from erl.networks.perceptrons import rounds_to_bfloat16
from erl.populations.genetic import GeneticPopulation, Variation
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import Ledger, shared_seconds

_log = logging.getLogger(__name__)

# Updates whose random numbers are drawn at once.
_CHUNK = 256


class Re2Learner:
    """ERL-Re², one lifetime at a time. Its settings are `Re2Settings`."""

    name = "ERL-Re2"

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for settings that cannot be, for a budget within which nothing is
        learned, and for actions that are no Box.
        """
        s = Re2Settings.from_learner_config(spec.learner.config, spec.task.env_id)
        for name in ("init_steps", "learning_starts"):
            if s.RL:
                check_budget(self.name, spec, name, getattr(s, name))
        _, action_space = spec.spaces()
        if not isinstance(action_space, spaces.Box):
            kind = type(action_space).__name__
            raise UserError(
                f"ERL-Re2 takes continuous (Box) actions, and those of {spec.task.env_id} are "
                f"{kind}"
            )

    def cohort_key(self, spec: LifetimeSpec) -> Hashable | None:
        """Each on its own."""
        return None

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train one after the other."""
        return one_by_one(_train_one, cohort, ledgers, outputs)


def _train_one(spec: LifetimeSpec, ledger: Ledger, output: Outputs) -> SB3Agent:
    training, threads = _Training(spec, ledger, output), torch.get_num_threads()
    s = training.settings
    if s.precision == "bf16" and s.device == "cpu" and not rounds_to_bfloat16():
        _log.warning(
            "precision=bf16 changes nothing on this processor: PyTorch multiplies in single "
            "precision here"
        )
    torch.set_num_threads(s.threads)
    try:
        return training.run()
    finally:
        torch.set_num_threads(threads)
        training.close()


class _Training:
    """One lifetime."""

    def __init__(self, spec: LifetimeSpec, ledger: Ledger, output: Outputs) -> None:
        self.spec, self.ledger, self.output = spec, ledger, output
        s = self.settings = Re2Settings.from_learner_config(spec.learner.config, spec.task.env_id)
        self.observation_space, self.action_space = spec.spaces()
        observations, self.actions = (
            self.observation_space.shape[0],
            int(np.prod(self.action_space.shape or (1,))),
        )
        self.torch_rng = torch.Generator().manual_seed(spec.seeds.learner)
        evolution, exploration = np.random.SeedSequence(spec.seeds.learner).spawn(2)
        self.rng = np.random.default_rng(exploration)
        self.networks = TwoScale(s, observations, self.actions, self.torch_rng)
        self.buffer = ReplayBuffer(s.buffer_size, observations, self.actions, s.device)
        self.population = GeneticPopulation(
            new_heads(
                max(3, s.pop_size), self.actions, self.networks.features, self.torch_rng
            ).numpy(),
            np.random.default_rng(evolution),
            s.n_elites,
            s.mutation_prob,
            s.frac,
            s.prob_reset_and_sup,
        )
        self.update = Captured(self._update, s.device)
        self.stage = Stage(spec, ledger, s.pop_size if s.EA else 1)
        self.log = InnerLog()
        self.report = Report(output, ledger)
        # The champion is chosen by fitness and keeps its place until the next generation is judged;
        # before the first, any will do.
        self.champion, self.evolved = 0, 0
        self.synced: int | None = None
        self.rl_steps = self.generation = self.updates = 0
        self.owed = 0.0  # updates
        self.scores = Scores(spec, ledger, s.eval_freq, s.eval_episodes)
        note(ledger, self.scores, self.log)
        self.saved_at = self.started_at = time.perf_counter()

    def run(self) -> SB3Agent:
        self._resume()
        while self.ledger.steps < self.spec.steps:
            self._generation()
            self._save()
        if not (self.evolved or self.updates):
            raise RuntimeError(f"nothing was learned within {self.ledger.steps} steps")
        return self._agent()

    # -- one generation --

    def _generation(self) -> None:
        """Judge and evolve the heads, let the RL agent play, learn as often as steps were taken,
        and copy the RL head over.
        """
        s, before, start = self.settings, self.ledger.steps, time.perf_counter()
        row: dict[str, Any] = {}
        totals: dict[str, float] = {}
        fitness: np.ndarray | None = None
        kept: tuple[int, ...] = ()
        # Nothing evolves on a representation that has not begun to learn; without RL it never will.
        if s.EA and (self._learns or not s.RL):
            fitness, row = self._judge()
            if fitness is not None:
                variation = self.population.evolve(fitness)
                totals = self._note(variation, row)
                kept, self.evolved = variation.kept, self.evolved + 1
                self.champion = kept[0]
        statistics: dict[str, float] = {}
        updates, learning = self.updates, 0.0
        if s.RL:
            if self.ledger.steps < self.spec.steps:
                row |= self._explore()
            if self._learns:
                begun = time.perf_counter()
                self.owed += s.frac_frames_train * (self.ledger.steps - before)
                self.owed -= (due := int(self.owed + 1e-6))
                statistics = self._learn(due)
                learning = time.perf_counter() - begun
        self.generation += 1
        if s.RL and fitness is not None and self.generation % s.sync_period == 0:
            self.synced = int(np.argmin(fitness))
            while self.synced in kept:
                self.synced = (self.synced + 1) % s.pop_size
            self.population.heads[self.synced] = self.networks.rl_head.cpu().numpy()
        if any(not torch.isfinite(network.values).all() for network in self.networks.networks):
            raise FloatingPointError(
                f"the networks' weights are not finite after {self.ledger.steps} steps"
            )
        if self.scores.due:
            for name, score in self.scores.add(self._agents()).items():
                statistics[f"eval/{name}"] = score
        row = {"steps": self.ledger.steps, **row}
        self.log.add(row, totals)
        statistics["train/updates_per_second"] = rate = (
            (self.updates - updates) / learning if learning else 0.0
        )
        self._say(row, rate)
        self._tell(row, statistics, time.perf_counter() - start)

    @property
    def _learns(self) -> bool:
        """Whether networks have what they begin to learn from."""
        return (
            self.rl_steps >= self.settings.init_steps
            and len(self.buffer) >= self.settings.learning_starts
        )

    def _judge(self) -> tuple[np.ndarray | None, dict[str, Any]]:
        """Every head's fitness (pop_size,): returns of whole episodes, or the surrogate, one choice
        for all; and what to note of it.

        There is none if the budget was spent meanwhile: who was cut short is not judged by what is
        missing.
        """
        s, heads = self.settings, torch.from_numpy(self.population.heads).to(self.settings.device)
        whole = not s.RL or self.rng.random() < s.theta

        def acting(who: np.ndarray, seen: np.ndarray) -> np.ndarray:
            z = self.networks.represent(torch.from_numpy(seen).to(s.device))
            return act(heads[who], z.unsqueeze(1)).squeeze(1).cpu().numpy()

        rounds = []
        for _ in range(s.num_evals if whole else 1):
            if self.ledger.steps >= self.spec.steps:
                return None, {}
            rounds.append(self.stage.play(acting, s.pop_size, None if whole else s.time_steps))
            for episode in rounds[-1] if s.RL else ():
                self.buffer.add(*episode.transitions())
            if any(episode.cut for episode in rounds[-1]):
                return None, {}
        surrogates = np.array(self._surrogates(rounds[0], heads)) if s.RL else None
        returns = np.mean([[e.total for e in episodes] for episodes in rounds], axis=0)
        fitness = returns if whole else surrogates
        assert fitness is not None
        if not np.isfinite(fitness).all():
            raise FloatingPointError(
                f"a head's fitness is not finite after {self.ledger.steps} steps: {fitness}"
            )
        if whole:
            # The champion was chosen before it played these episodes: their returns are no best of
            # several.
            for episodes in rounds:
                self.ledger.episode(
                    episodes[self.champion].total, len(episodes[self.champion].rewards)
                )
        row = {"whole": int(whole), "fitness": fitness.tolist()}
        if whole:
            row["champion_return"] = float(returns[self.champion])
            if surrogates is not None:
                row["surrogate"] = surrogates.tolist()
        return fitness, row

    def _surrogates(self, episodes: Sequence[Episode], heads: Tensor) -> list[float]:
        """The surrogate fitness of each head, from the first steps of its episode."""
        s = self.settings
        reached = np.stack([e.observations[min(s.time_steps, len(e.rewards))] for e in episodes])
        tails = self.networks.value_of(torch.from_numpy(reached).to(s.device), heads).tolist()
        return [surrogate(e, s.time_steps, s.gamma, tail) for e, tail in zip(episodes, tails)]

    def _note(self, variation: Variation, row: dict[str, Any]) -> dict[str, float]:
        """Add to a row what evolution did, and give what is summed up: the fate of the RL head's
        copy among it.
        """
        whole = bool(row["whole"])
        row["champion"] = variation.elites[0]
        totals: dict[str, float] = {
            "whole": int(whole),
            "surrogate": int(not whole),
            "crossovers": len(variation.crossovers),
            "swaps": variation.swaps,
            "mutated": len(variation.mutated),
            **{f"rows_{name}": n for name, n in variation.operators.items()},
        }
        if self.synced is not None:
            row["rl_head"] = self.synced
            for fate in ("elites", "selected", "discarded"):
                if self.synced in getattr(variation, fate):
                    totals[f"rl_{fate}"] = 1
                    row["rl_fate"] = fate
                    break
            self.synced = None
        return totals

    def _explore(self) -> dict[str, Any]:
        """One episode of the RL agent, with noise; at random in the first `init_steps`.

        Its return, if it was a whole one.
        """
        s, head = self.settings, self.networks.rl_head
        at_random = self.rl_steps < s.init_steps

        def acting(who: np.ndarray, seen: np.ndarray) -> np.ndarray:
            if at_random:
                return self.rng.uniform(-1.0, 1.0, (1, self.actions))
            actions = (
                act(head, self.networks.represent(torch.from_numpy(seen).to(s.device)))
                .cpu()
                .numpy()
            )
            return np.clip(
                actions + self.rng.normal(0.0, s.exploration_noise, actions.shape), -1.0, 1.0
            )

        (episode,) = self.stage.play(acting)
        self.buffer.add(*episode.transitions())
        self.rl_steps += len(episode.rewards)
        if not episode.ended:
            return {}
        self.ledger.episode(episode.total, len(episode.rewards))
        return {"rl_return": episode.total}

    def _learn(self, n: int) -> dict[str, float]:
        """Update all networks n times; what the last update of everything said."""
        s, rng, rl = self.settings, self.torch_rng, self.settings.pop_size
        heads = torch.from_numpy(self.population.heads[: s.pop_size]).to(s.device)
        policies = torch.cat([heads, self.networks.rl_head.unsqueeze(0)])
        statistics: dict[str, Tensor] = {}
        for begin in range(0, n, _CHUNK):
            self.stage.heed()
            m = min(_CHUNK, n - begin)
            places = torch.randint(len(self.buffer), (m, s.batch_size), generator=rng).to(s.device)
            noise = torch.randn(m, s.batch_size, self.actions, generator=rng).to(s.device)
            valued = torch.randint(rl + 1, (m,), generator=rng).tolist()
            improved = torch.rand(m, rl + 1, generator=rng).argsort(1)[:, : s.K].to(s.device)
            for k in range(m):
                improve = self.updates % s.delay == 0
                statistics |= self.update(
                    (improve, self.evolved > 0),
                    places[k],
                    noise[k],
                    policies[valued[k]] if s.EA else None,
                    policies[improved[k]] if s.EA and self.evolved and improve else None,
                )
                if improve:
                    policies[rl] = self.networks.rl_head
                self.updates += 1
        return {f"train/{name}": float(value) for name, value in statistics.items()}

    def _update(
        self,
        course: tuple[bool, bool],
        places: Tensor,
        noise: Tensor,
        valued: Tensor | None,
        improved: Tensor | None,
    ) -> dict[str, Tensor]:
        return self.networks.update(
            self.buffer.batch(places), Draws(noise, valued, improved), course[0]
        )

    # -- reports --

    def _say(self, row: Mapping[str, Any], updates_per_second: float) -> None:
        """To whoever watches: the latest returns that count of champion and RL agent, and the
        population's mean.
        """
        said = {"updates/s": updates_per_second} if updates_per_second else {}
        if row.get("whole"):
            said["population"] = float(np.mean(row["fitness"]))
        said |= {
            name.removesuffix("_return"): row[name]
            for name in ("champion_return", "rl_return")
            if name in row
        }
        self.report.say(said)

    def _tell(
        self, row: Mapping[str, Any], statistics: Mapping[str, float], seconds: float
    ) -> None:
        """To TensorBoard."""
        said: dict[str, float] = {}
        if "fitness" in row:
            said["evolution/whole_episodes"] = row["whole"]
            said |= {
                f"evolution/fitness_{name}": getattr(np, name)(row["fitness"])
                for name in ("max", "mean", "min")
            }
            said |= {f"evolution/head_{k}": value for k, value in enumerate(row["fitness"])}
            if "surrogate" in row and len({*row["surrogate"]}) > 1 and len({*row["fitness"]}) > 1:
                rho = stats.spearmanr(row["surrogate"], row["fitness"]).statistic
                said["evolution/surrogate_rank_correlation"] = rho
        said |= {
            f"rollout/{name}": row[name] for name in ("champion_return", "rl_return") if name in row
        }
        fates = {
            fate: self.log.totals.get(f"rl_{fate}", 0)
            for fate in ("elites", "selected", "discarded")
        }
        if copies := sum(fates.values()):
            said |= {f"evolution/rl_{fate}": n / copies for fate, n in fates.items()}
        elapsed = time.perf_counter() - self.started_at
        said["time/fps"] = int((self.ledger.steps - self.ledger.earlier[0]) / elapsed)
        said["time/generation_seconds"] = seconds
        self.report.tell(said | {**statistics, "train/n_updates": self.updates})

    def _agents(self) -> dict[str, SB3Agent]:
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

    def _agent(self) -> SB3Agent:
        """The champion by training fitness, or the RL agent where nothing has evolved."""
        agents = self._agents()
        handed_over = agents.pop("champion", None) or agents.pop("rl")
        return SB3Agent(handed_over.model, companions=agents)

    # -- checkpoints --

    _COUNTERS = ("champion", "evolved", "synced", "rl_steps", "generation", "updates", "owed")
    _PARTS = (
        "settings",
        "buffer",
        "networks",
        "population",
        "stage",
        "log",
        "scores",
        "rng",
        "torch_rng",
        "ledger",
    )

    def _save(self) -> None:
        """Write a checkpoint, if it is time. Between generations no episode is running."""
        path, ledger = self.output.checkpoint, self.ledger
        if path is None or time.perf_counter() - self.saved_at < self.output.checkpoint_seconds:
            return
        (seconds,) = shared_seconds([ledger], time.perf_counter() - self.started_at)
        folder = beside(path)
        try:
            state: dict[str, Any] = {
                "settings": asdict(self.settings),
                "buffer": self.buffer.save(folder),
                "networks": self.networks.get_state(),
                "population": self.population.get_state(),
                "stage": self.stage.get_state(),
                "log": self.log.get_state(),
                "scores": self.scores.get_state(),
                "rng": self.rng.bit_generator.state,
                "torch_rng": self.torch_rng.get_state(),
                "ledger": (ledger.steps, seconds, list(ledger.episodes)),
                **{name: getattr(self, name) for name in self._COUNTERS},
            }
            save_checkpoint(path, self.spec, state)
            # What only the state before needs goes when the new one is safe.
            self.buffer.tidy(folder, state["buffer"])
        except (
            OSError
        ) as e:  # a full disk costs the checkpoint, not the training; the one before is still whole
            _log.warning("no checkpoint written: %s", e)
        self.saved_at = time.perf_counter()

    def _resume(self) -> None:
        """Go on where a checkpoint was written, if there is one."""
        path = self.output.checkpoint
        state = load_checkpoint(path, self.spec, frozenset(self._PARTS + self._COUNTERS))
        if path is None or state is None:
            return
        # Hidden layers were normalised before that was a setting.
        if {"use_ln": True, **state["settings"]} != asdict(self.settings):
            set_aside(path, "the learner's defaults have changed since")
            return
        try:
            self.buffer.load(beside(path), state["buffer"])
        except Exception as e:
            set_aside(path, f"its replay buffer cannot be read ({type(e).__name__}: {e})")
            return
        self.networks.set_state(state["networks"])
        self.population.set_state(state["population"])
        self.stage.set_state(state["stage"])
        self.log.set_state(state["log"])
        self.scores.set_state(state["scores"])
        self.rng.bit_generator.state = state["rng"]
        self.torch_rng.set_state(state["torch_rng"])
        self.ledger.steps, seconds, self.ledger.episodes[:] = state["ledger"]
        self.ledger.earlier = self.ledger.steps, seconds
        for name in self._COUNTERS:
            setattr(self, name, state[name])

    def close(self) -> None:
        """Close environments and logs."""
        self.stage.close()
        self.report.close()
