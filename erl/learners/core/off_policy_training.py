"""Training off-policy agents side by side: steps and updates in turns, logs, checkpoints, and the
coming and going of agents.
"""

import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from erl.errors import Stopped, UserError
from erl.learners import Agent, Outputs
from erl.learners.core.checkpoints import beside, load_checkpoint, save_checkpoint, set_aside
from erl.learners.core.export import off_policy_model
from erl.learners.core.off_policy import OffPolicy, check_memory
from erl.learners.core.off_policy_settings import OffPolicySettings
from erl.learners.core.telemetry import Report, Scores, note
from erl.learners.sb3 import SB3Agent
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import Ledger, shared_seconds
from erl.worlds.world import World

_log = logging.getLogger(__name__)
_PARTS = frozenset({"learner", "buffer", "world", "observations", "since", "ledger", "scores"})
# Ticks between two entries in the logs.
_TELL_EVERY = 1000


class OffPolicyLearner:
    """An off-policy algorithm for many lifetimes side by side, in one thread.

    Attributes:
        settings: how settings are read.
        cohort: the algorithm.
    """

    settings: ClassVar[type[OffPolicySettings]]
    cohort: ClassVar[type[OffPolicy[Any]]]

    @property
    def name(self) -> str:
        """In the registry."""
        return self.settings.name()

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for spaces and settings that the cohort does not know, for a budget
        within which nothing is learned, and for a replay buffer that does not fit into memory.
        """
        Scores.of(spec, Ledger())
        self.cohort_key(spec)
        s = self.settings.from_learner_config(spec.learner.config)
        if s.learning_starts >= spec.steps:
            raise UserError(
                f"{self.name} begins to learn after learning_starts, {s.learning_starts:,} steps, "
                f"and a lifetime has {spec.steps:,}"
            )
        observation_space, action_space = spec.spaces()
        lengths = observation_space.shape[0], (action_space.shape or (1,))[0]
        check_memory(self.name, [s.capacity(spec.steps)], *lengths, s.resolved_device(), s.n_envs)

    def cohort_key(self, spec: LifetimeSpec) -> Hashable:
        """Lifetimes that agree in task, shapes and sizes; their reservoirs, rates, buffers and
        budgets may differ.
        """
        s = self.settings.from_learner_config(spec.learner.config)
        context = (
            None if spec.context is None else replace(spec.context, reservoirs=(), obs_units=None)
        )
        units = 0 if spec.context is None else sum(r.units for r in spec.context.reservoirs)
        return (self.name, spec.task, context, units, s.cohort_key(*spec.spaces()))

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train all agents in lockstep; one that fails or has lived its steps leaves the cohort,
        and the others go on.
        """
        return Training(self, cohort, ledgers, outputs).run()


class Training:
    """One cohort's run.

    Agents are known by their index in `cohort`; `self.members` lists those still in training, in
    the order of rows.
    """

    def __init__(
        self,
        learner: OffPolicyLearner,
        cohort: Sequence[LifetimeSpec],
        ledgers: Sequence[Ledger],
        outputs: Sequence[Outputs],
    ) -> None:
        self.specs, self.ledgers, self.outputs = cohort, ledgers, outputs
        self.members = list(range(len(cohort)))
        self.results: list[Agent | Exception] = [RuntimeError("never trained")] * len(cohort)
        settings = [learner.settings.from_learner_config(spec.learner.config) for spec in cohort]
        self.settings = settings[0]  # for what all have in common
        self.world = World(cohort, ledgers, self.settings.n_envs)
        self.learner = learner.cohort(
            settings,
            [spec.seeds.learner for spec in cohort],
            self.world.observation_space,
            self.world.action_space,  # type: ignore[arg-type]
            [spec.steps for spec in cohort],
        )
        # Episodes that ended, and steps that were taken, since an agent last learned.
        self.since = np.zeros((len(cohort), 2), np.int64)
        self._reports = [Report(output, ledger) for output, ledger in zip(outputs, ledgers)]
        self.scores = [Scores.of(spec, ledger) for spec, ledger in zip(cohort, ledgers)]
        for ledger, scores in zip(ledgers, self.scores):
            note(ledger, scores)
        self.scored = any(spec.learner.config.get("eval_freq", 0) for spec in cohort)
        self.ticks = 0
        self.saved_at = self.started_at = time.perf_counter()

    def run(self) -> list[Agent | Exception]:
        """Train until every agent has left."""
        try:
            self.observations = self.world.reset().astype(np.float32)
            self._drop(dict(self.world.faults))
            self._resume()
            self._leave()
            while self.members:
                self._step()
                self._learn()
                self._evaluate()
                self._leave()
                self._save()
        finally:
            self.world.close()
            for report in self._reports:
                report.close()
        return self.results

    # -- a tick --

    def _step(self) -> None:
        """One step of every environment."""
        actions = self.learner.act(self.observations)
        diverged = self.learner.diverged(actions)
        if diverged.any():
            self._drop({row: self._not_finite(row) for row in np.flatnonzero(diverged).tolist()})
            actions = actions[~diverged]
            if not self.members:
                return
        seen, rewards, ended, cut = self.world.step(self.learner.executed(actions))
        self.learner.record(self.observations, actions, seen, rewards, ended, cut)
        self.observations[...] = seen
        self.since += np.stack([ended.sum(1), np.full(len(ended), ended.shape[1])], 1)
        self.ticks += 1
        faults: dict[int, Exception] = dict(self.world.faults)
        for row, i in enumerate(self.members):
            if self.learner.steps[row] < self.specs[i].steps and self.ledgers[i].stopped:
                faults.setdefault(row, Stopped())
        self._drop(faults)

    def _not_finite(self, row: int) -> Exception:
        steps = self.learner.steps[row]
        return FloatingPointError(f"the networks' weights are not finite after {steps} steps")

    def _learn(self) -> None:
        """Gradient steps of the agents for which it is time."""
        n, unit = self.settings.train_freq
        due = []
        for row in range(len(self.members)):
            episodes, steps = self.since[row].tolist()
            ready = episodes >= n if unit == "episode" else steps >= n * self.settings.n_envs
            if ready:
                self.since[row] = 0
            learns = ready and self.learner.steps[row] > self.learner.settings[row].learning_starts
            wanted = self.settings.gradient_steps
            due.append(0 if not learns else steps if wanted < 0 else wanted)
        if any(due):
            self.learner.learn(due, [self._progress(row) for row in range(len(self.members))])

    def _progress(self, row: int) -> float:
        """The share of the training that remains."""
        return max(0.0, 1.0 - float(self.learner.steps[row]) / self.specs[self.members[row]].steps)

    def _evaluate(self) -> None:
        """Scores and logs, where it is time."""
        tell = self.ticks % _TELL_EVERY == 0
        if tell or self.scored:
            self.world.enter_steps()
        if tell:
            new = sum(ledger.steps - ledger.earlier[0] for ledger in self.ledgers)
            fps = int(new / (time.perf_counter() - self.started_at))
        for row, i in enumerate(self.members):
            said: dict[str, float] = {}
            if self.scores[i].due and (scores := self.scores[i].add({"agent": self._agent(row)})):
                said["eval/mean_reward"] = scores["agent"]
            if tell or said:
                statistics = {
                    f"train/{name}": float(value)
                    for name, value in self.learner.statistics[row].items()
                }
                statistics["train/n_updates"] = float(self.learner.updates[row])
                self._reports[i].tell(said | statistics | ({"time/fps": fps} if tell else {}))

    # -- coming and going --

    def _drop(self, reasons: dict[int, Exception]) -> None:
        """Agents, by row, that failed leave the cohort."""
        if reasons:
            for row, reason in reasons.items():
                self.results[self.members[row]] = reason
            self._keep([row for row in range(len(self.members)) if row not in reasons])

    def _keep(self, rows: list[int]) -> None:
        if rows:
            self.learner.keep(rows)
            self.world.drop(rows)
            self.observations, self.since = self.observations[rows], self.since[rows]
        self.members = [self.members[row] for row in rows]

    def _leave(self) -> None:
        """Agents that have lived their steps, and have learned from them, leave the cohort."""
        by_step = self.settings.train_freq[1] == "step"
        done = [
            row
            for row, i in enumerate(self.members)
            if self.learner.steps[row] >= self.specs[i].steps
            and not (by_step and self.since[row, 1])
        ]
        if done:
            self.world.enter_steps()
            for row in done:
                self.results[self.members[row]] = self._result(row)
            self._keep([row for row in range(len(self.members)) if row not in done])

    def _result(self, row: int) -> Agent | Exception:
        if not self.learner.updates[row]:
            return RuntimeError(f"nothing was learned within {self.learner.steps[row]} steps")
        networks = self.learner.networks.values()
        if not all(torch.isfinite(trained.values[row]).all() for trained in networks):
            return self._not_finite(row)
        return self._agent(row)

    def _agent(self, row: int) -> SB3Agent:
        """The agent of a row as it is now."""
        return SB3Agent(off_policy_model(self.learner, row, self.specs[self.members[row]].steps))

    # -- checkpoints --

    def _save(self) -> None:
        """Checkpoint every agent that is still in training, if it is time."""
        if (
            not self.members
            or time.perf_counter() - self.saved_at < self.outputs[0].checkpoint_seconds
        ):
            return
        self.world.enter_steps()
        seconds = shared_seconds(self.ledgers, time.perf_counter() - self.started_at)
        for row, (i, world) in enumerate(zip(self.members, self.world.get_states())):
            path, ledger = self.outputs[i].checkpoint, self.ledgers[i]
            if path is None:
                continue
            folder = beside(path)
            try:
                state = {
                    "learner": self.learner.get_state(row),
                    "buffer": self.learner.buffer.save(folder, row),
                    "world": world,
                    "observations": self.observations[row].copy(),
                    "since": self.since[row].copy(),
                    "ledger": (ledger.steps, seconds[i], list(ledger.episodes)),
                    "scores": self.scores[i].get_state(),
                }
                save_checkpoint(path, self.specs[i], state)
                # What only the state before needs goes when the new one is safe.
                self.learner.buffer.tidy(folder, state["buffer"])
            # a full disk costs the checkpoint, not the training; the one before is still whole
            except OSError as e:
                _log.warning("no checkpoint written: %s", e)
                break
        self.saved_at = time.perf_counter()

    def _resume(self) -> None:
        """Take up the agents that have a checkpoint where it was written."""
        states = [
            self._loaded(row, self.outputs[i].checkpoint, self.specs[i])
            for row, i in enumerate(self.members)
        ]
        if not any(states):
            return
        for row, (i, state) in enumerate(zip(self.members, states)):
            if state is not None:
                ledger = self.ledgers[i]
                self.scores[i].set_state(state["scores"])
                ledger.steps, seconds, ledger.episodes[:] = state["ledger"]
                ledger.earlier = ledger.steps, seconds
                self.learner.set_state(row, state["learner"])
                self.observations[row], self.since[row] = state["observations"], state["since"]
        anew = self.world.set_states([None if s is None else s["world"] for s in states])
        for (row, env), seen in anew.items():
            self.observations[row, env] = seen
            self.learner.begin_anew(row, env)

    def _loaded(self, row: int, path: str | None, spec: LifetimeSpec) -> dict[str, Any] | None:
        """The state in a checkpoint, its replay buffer put back; None where there is none."""
        state = load_checkpoint(path, spec, _PARTS)
        if path is None or state is None:
            return None
        try:
            self.learner.buffer.load(beside(path), state["buffer"], row)
        except Exception as e:
            set_aside(path, f"its replay buffer cannot be read ({type(e).__name__}: {e})")
            return None
        return state
