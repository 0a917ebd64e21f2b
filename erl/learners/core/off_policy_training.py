"""Off-policy algorithms as learners: many lifetimes side by side, steps and updates in turns."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from erl.learners import Agent, Outputs
from erl.learners.core.checkpoints import Part
from erl.learners.core.export import off_policy_model
from erl.learners.core.off_policy import OffPolicy
from erl.learners.core.off_policy_settings import OffPolicySettings
from erl.learners.core.replay import check_memory
from erl.learners.core.run import Run, warn_of_precision
from erl.learners.core.settings import check_budget
from erl.learners.sb3 import SB3Agent
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LifetimeSpec
from erl.worlds.world import World

# Iterations between two entries in the logs.
_LOG_EVERY = 1000


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
        return self.settings.learner

    def check_settings(self, config: Mapping[str, Any]) -> None:
        """Raise a UserError for settings that cannot be, or that the cohort does not know."""
        self.settings.from_learner_config(config)

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for spaces and settings that the cohort does not know, for a budget
        within which nothing is learned, and for a replay buffer that does not fit into memory.
        """
        self.cohort_key(spec)
        s = self.settings.from_learner_config(spec.learner.config)
        each = s.n_envs * s.rollout
        most = -(-spec.steps // each) * each
        check_budget(self.name, spec, {"learning_starts": s.learning_starts}, most=most)
        self.check_together([[spec]])

    def check_together(self, cohorts: Sequence[Sequence[LifetimeSpec]]) -> None:
        """Raise a UserError if the replay buffers of cohorts that train at the same time do not fit
        into memory together.
        """
        s = self.settings.from_learner_config(cohorts[0][0].learner.config)
        buffers = [[self._buffer(spec) for spec in cohort] for cohort in cohorts]
        check_memory(self.name, s.resolved_device(), *buffers, n_envs=s.n_envs)

    def _buffer(self, spec: LifetimeSpec) -> tuple[int, int, int]:
        """Transitions that a lifetime keeps, and the lengths of an observation and of an action."""
        s = self.settings.from_learner_config(spec.learner.config)
        return (s.capacity(spec.steps), *s.lengths(*spec.spaces()))

    def cohort_key(self, spec: LifetimeSpec) -> Hashable:
        """Lifetimes that agree in task, shapes and sizes; their reservoirs, rates, buffers and
        budgets may differ.
        """
        s = self.settings.from_learner_config(spec.learner.config)
        return (self.name, spec.task, spec.context_shape(), s.cohort_key(*spec.spaces()))

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train all agents in lockstep; one that fails or has spent its budget leaves the cohort,
        and the others go on.
        """
        settings = [self.settings.from_learner_config(spec.learner.config) for spec in cohort]
        run = Run(cohort, ledgers, outputs, settings)
        return run.train(partial(OffPolicyTraining, algorithm=self.cohort))


class OffPolicyTraining:
    """An off-policy algorithm at work on a run.

    Attributes:
        world: environments and reservoirs of the agents that are in training.
        learner: the agents.
        observations: what the policies see now, float32 (n, n_envs, features).
        since: episodes that ended, and steps that were taken, since each agent last learned.
    """

    def __init__(
        self, run: Run[OffPolicySettings], algorithm: type[OffPolicy[OffPolicySettings]]
    ) -> None:
        self.run, self.settings = run, run.settings[0]
        self.learner = algorithm(
            run.settings,
            [spec.seeds.learner for spec in run.specs],
            *run.specs[0].spaces(),
            [spec.steps for spec in run.specs],
        )
        self.since = np.zeros((len(run.specs), 2), np.int64)
        self.iterations = 0
        # At the end: what cannot be made before leaves no environment open.
        self.world = World(run.specs, run.ledgers, self.settings.n_envs)

    def start(self) -> None:
        """Begin the first episodes, and warn of a setting that has no effect."""
        s = self.settings
        warn_of_precision(s.precision, self.learner.device, s.batch_size)
        self.observations = self.world.reset().astype(np.float32)
        self.run.leave(dict(self.world.faults))

    def iterate(self) -> None:
        """A rollout, and gradient steps of the agents for which it is time."""
        for _ in range(self.settings.rollout):
            self.step()
            if not self.run.members:
                return
        self.world.enter_steps()
        self.run.drop_stopped()
        if self.run.members:
            self.learn()
            self.report()

    def step(self) -> None:
        """One step of every environment; agents whose environment fails leave, and those whose
        actions are not finite.
        """
        actions = self.learner.act(self.observations)
        seen, rewards, ended, cut = self.world.step(self.learner.executed(actions))
        self.learner.record(self.observations, actions, seen, rewards, ended, cut)
        self.observations[...] = seen
        self.since[:, 0] += ended.sum(1)
        self.since[:, 1] += self.settings.n_envs
        if self.world.faults:
            self.run.leave(dict(self.world.faults))

    def learn(self) -> None:
        """Gradient steps of the agents that are ready and have begun to learn."""
        n, unit = self.settings.train_freq
        ready = self.since[:, 0] >= n if unit == "episode" else np.ones(len(self.since), bool)
        wanted = self.settings.gradient_steps
        due = [
            (steps if wanted < 0 else wanted) if is_ready and taken > s.learning_starts else 0
            for is_ready, (_, steps), taken, s in zip(
                ready, self.since.tolist(), self.learner.steps, self.learner.settings
            )
        ]
        self.since[ready] = 0
        if any(due):
            members = zip(self.learner.steps.tolist(), self.run.members)
            budgets = self.run.specs
            self.learner.learn(due, [max(0.0, 1.0 - t / budgets[i].steps) for t, i in members])

    def report(self) -> None:
        """Evaluations and logs, where it is time; agents that cannot be evaluated since a weight is
        not finite leave.
        """
        failed: dict[int, Exception] = {}
        self.iterations += 1
        in_turn = self.iterations % _LOG_EVERY == 0
        for row, i in enumerate(self.run.members):
            telemetry = self.run.telemetry[i]
            if not (in_turn or telemetry.evaluation_due):
                continue
            scalars: dict[str, float] = {"time/fps": int(self.run.steps_per_second(row))}
            if telemetry.evaluation_due:
                try:
                    agent = self.agent(row)
                except Exception as e:
                    failed[row] = e
                    continue
                for score in telemetry.evaluate({"agent": agent}).values():
                    scalars["eval/mean_reward"] = score
            for name, value in self.learner.statistics(row).items():
                scalars[f"train/{name}"] = value
            scalars["train/n_updates"] = float(self.learner.updates[row])
            telemetry.scalars(scalars)
        self.run.leave(failed)

    def learned(self, row: int) -> bool:
        """Whether there was a gradient step."""
        return bool(self.learner.updates[row])

    def agent(self, row: int) -> SB3Agent:
        """The agent of a row as it is now.

        Raises:
            FloatingPointError: a weight is not finite.
        """
        if not self.learner.finite(row):
            steps = int(self.learner.steps[row])
            raise FloatingPointError(f"the networks' weights are not finite after {steps} steps")
        budget = self.run.specs[self.run.members[row]].steps
        return SB3Agent(off_policy_model(self.learner, row, budget))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.learner.keep(rows)
        self.world.keep(rows)
        self.observations, self.since = self.observations[list(rows)], self.since[list(rows)]

    def close(self) -> None:
        """Close the environments."""
        self.world.close()

    # -- checkpoints --

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint holds."""
        rows = range(len(self.run.members))
        return {"agents": self, "replay buffer": [self.learner.buffer.of(row) for row in rows]}

    def get_states(self) -> list[dict[str, Any]]:
        """The state of each agent, and of its environments."""
        return [
            {
                "learner": self.learner.get_state(row),
                "world": world,
                "observations": self.observations[row].copy(),
                "since": self.since[row].copy(),
            }
            for row, world in enumerate(self.world.get_states())
        ]

    def set_states(self, states: Sequence[dict[str, Any] | None]) -> None:
        """Go on from `get_states`, for the agents that have one."""
        for row, state in enumerate(states):
            if state is not None:
                self.learner.set_state(row, state["learner"])
                self.observations[row], self.since[row] = state["observations"], state["since"]
        # Some environments cannot be put back into the midst of an episode.
        begun = self.world.set_states([None if s is None else s["world"] for s in states])
        for (row, env), observation in begun.items():
            self.observations[row, env] = observation
            self.learner.begin_anew(row, env)
