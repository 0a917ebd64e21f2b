"""Training PPO agents side by side: rollouts, updates, logs, checkpoints, and the coming and going
of agents.
"""

import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from erl.errors import Stopped
from erl.learners import Agent, Outputs
from erl.learners.core.checkpoints import load_checkpoint, save_checkpoint
from erl.learners.core.telemetry import Report, Scores, note
from erl.learners.ppo.algorithm import CohortPPO
from erl.learners.ppo.exchange import to_sb3, vec_normalize
from erl.learners.ppo.settings import PPOConfig, cohort_key
from erl.learners.sb3 import SB3Agent
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import Ledger, shared_seconds
from erl.worlds.world import World

_log = logging.getLogger(__name__)
_PARTS = frozenset({"ppo", "world", "ledger", "scores"})


class CohortPPOLearner:
    """PPO for many lifetimes side by side, in one thread."""

    name = "PPO"

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for spaces and settings that the cohort does not know."""
        self.cohort_key(spec)

    def cohort_key(self, spec: LifetimeSpec) -> Hashable:
        """Lifetimes that agree in task, shapes and sizes; their reservoirs, rates and budgets may
        differ.
        """
        config = PPOConfig.from_learner_config(spec.learner.config)
        observation_space, action_space = spec.spaces()
        context = (
            None if spec.context is None else replace(spec.context, reservoirs=(), obs_units=None)
        )
        units = 0 if spec.context is None else sum(r.units for r in spec.context.reservoirs)
        return (spec.task, context, units, cohort_key(config, observation_space, action_space))

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train all agents in lockstep; one that fails or has lived its steps leaves the cohort,
        and the others go on.
        """
        return _Training(cohort, ledgers, outputs).run()


class _Training:
    """One cohort's run: rollouts, updates, logs, checkpoints, and the coming and going of agents.

    Agents are known by their index in `cohort`; `self.members` lists those still in training, in
    the order of rows.
    """

    def __init__(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> None:
        self.specs, self.ledgers, self.outputs = cohort, ledgers, outputs
        self.members = list(range(len(cohort)))
        self.results: list[Agent | Exception] = [RuntimeError("never trained")] * len(cohort)
        self.configs = [PPOConfig.from_learner_config(spec.learner.config) for spec in cohort]
        self.rollout = self.configs[0].n_steps * self.configs[0].n_envs
        self.world = World(cohort, ledgers, self.configs[0].n_envs)
        self.ppo = CohortPPO(
            self.configs,
            [s.seeds.learner for s in cohort],
            self.world.observation_space,
            self.world.action_space,
        )
        self._reports = [Report(output, ledger) for output, ledger in zip(outputs, ledgers)]
        self.scores = [
            Scores(spec, ledger, c.eval_freq, c.eval_episodes)
            for spec, ledger, c in zip(cohort, ledgers, self.configs)
        ]
        for ledger, scores in zip(ledgers, self.scores):
            note(ledger, scores)
        self.saved_at = self.started_at = time.perf_counter()

    def run(self) -> list[Agent | Exception]:
        try:
            self.ppo.start(self.world.reset())
            self._resume()
            self._leave()
            while self.members:
                self._roll_out()
                self._stop()
                if self.members:
                    self._update()
                self._leave()
                self._save()
        finally:
            self.world.close()
            for report in self._reports:
                report.close()
        return self.results

    def _roll_out(self) -> None:
        for _ in range(self.configs[0].n_steps):
            actions = self.ppo.act()
            seen, rewards, ends, timeouts = self.world.step(actions)
            self.ppo.record(seen, rewards, ends, timeouts)
            if self.world.faults:
                self._drop(dict(self.world.faults))
                if not self.members:
                    return
        self.world.enter_steps()

    def _update(self) -> None:
        progress = [
            max(0.0, 1.0 - self.ledgers[i].steps / self.specs[i].steps) for i in self.members
        ]
        statistics = self.ppo.update(progress)
        broken: dict[int, Exception] = {
            int(row): FloatingPointError(
                f"the policy's weights are not finite after "
                f"{self.ledgers[self.members[row]].steps} steps"
            )
            for row in np.flatnonzero(self.ppo.diverged())
        }
        # All agents' steps: what the cohort makes of a second.
        new, elapsed = (
            sum(x.steps - x.earlier[0] for x in self.ledgers),
            time.perf_counter() - self.started_at,
        )
        for row, i in enumerate(self.members):
            said = {"time/fps": int(new / elapsed)} | {
                f"train/{name}": values[row] for name, values in statistics.items()
            }
            due = self.scores[i].due and row not in broken
            if due and (scores := self.scores[i].add({"agent": self._agent(row)})):
                said["eval/mean_reward"] = scores["agent"]
            self._reports[i].tell(said)
        self._drop(broken)

    def _drop(self, reasons: dict[int, Exception]) -> None:
        """Agents, by row, that failed leave the cohort."""
        if reasons:
            for row, reason in reasons.items():
                self.results[self.members[row]] = reason
            self._keep([row for row in range(len(self.members)) if row not in reasons])

    def _keep(self, rows: list[int]) -> None:
        if rows:
            self.ppo.drop(rows)
            self.world.drop(rows)
        self.members = [self.members[row] for row in rows]

    def _stop(self) -> None:
        """Agents that were told to stop leave the cohort."""
        self._drop(
            {
                row: Stopped()
                for row, i in enumerate(self.members)
                if self.ledgers[i].steps < self.specs[i].steps and self.ledgers[i].stopped
            }
        )

    def _leave(self) -> None:
        """Agents that have lived their steps leave the cohort."""
        done = [
            row
            for row, i in enumerate(self.members)
            if self.ledgers[i].steps >= self.specs[i].steps
        ]
        for row in done:
            self.results[self.members[row]] = self._agent(row)
        if done:
            self._keep([row for row in range(len(self.members)) if row not in done])

    def _agent(self, row: int) -> SB3Agent:
        """The agent of a row as it is now."""
        i = self.members[row]
        c = self.configs[i]
        normalizer = vec_normalize(self.ppo, row) if c.norm_obs or c.norm_reward else None
        return SB3Agent(
            to_sb3(self.ppo, row, self.ledgers[i].steps, self.specs[i].steps), normalizer
        )

    def _save(self) -> None:
        """Checkpoint every agent that is still in training, if it is time."""
        if (
            not self.members
            or time.perf_counter() - self.saved_at < self.outputs[0].checkpoint_seconds
        ):
            return
        seconds = shared_seconds(self.ledgers, time.perf_counter() - self.started_at)
        for i, ppo, world in zip(self.members, self.ppo.agent_states(), self.world.get_states()):
            path, ledger = self.outputs[i].checkpoint, self.ledgers[i]
            if path is not None:
                state = {
                    "ppo": ppo,
                    "world": world,
                    "ledger": (ledger.steps, seconds[i], list(ledger.episodes)),
                    "scores": self.scores[i].get_state(),
                }
                try:
                    save_checkpoint(path, self.specs[i], state)
                # a full disk costs the checkpoint, not the training; the one before is still whole
                except OSError as e:
                    _log.warning("no checkpoint written: %s", e)
                    break
        self.saved_at = time.perf_counter()

    def _resume(self) -> None:
        """Take up the agents that have a checkpoint where it was written."""
        states = [
            load_checkpoint(o.checkpoint, s, _PARTS) for o, s in zip(self.outputs, self.specs)
        ]
        if not any(states):
            return
        for ledger, scores, state in zip(self.ledgers, self.scores, states):
            if state is not None:
                scores.set_state(state["scores"])
                ledger.steps, seconds, ledger.episodes[:] = state["ledger"]
                ledger.earlier = ledger.steps, seconds
        self.ppo.load_agent_states([None if s is None else s["ppo"] for s in states])
        anew = self.world.set_states([None if s is None else s["world"] for s in states])
        for (row, env), seen in anew.items():
            self.ppo.observe_anew(row, env, seen)
