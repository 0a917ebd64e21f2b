"""PPO as a learner: many lifetimes side by side, in one thread."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from erl.learners import Agent, Outputs
from erl.learners.core.checkpoints import Part
from erl.learners.core.run import Run
from erl.learners.ppo.algorithm import CohortPPO
from erl.learners.ppo.exchange import to_sb3, vec_normalize
from erl.learners.ppo.settings import PPOSettings, cohort_key
from erl.learners.sb3 import SB3Agent
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LifetimeSpec
from erl.worlds.world import World


class CohortPPOLearner:
    """PPO for many lifetimes side by side, in one thread."""

    name = "PPO"
    settings = PPOSettings

    def check_settings(self, config: Mapping[str, Any]) -> None:
        """Raise a UserError for settings that cannot be, or that the cohort does not know."""
        PPOSettings.from_learner_config(config)

    def check(self, spec: LifetimeSpec) -> None:
        """Raise a UserError for spaces and settings that the cohort does not know."""
        self.cohort_key(spec)

    def cohort_key(self, spec: LifetimeSpec) -> Hashable:
        """Lifetimes that agree in task, shapes and sizes; their reservoirs, rates and budgets may
        differ.
        """
        config = PPOSettings.from_learner_config(spec.learner.config)
        observation_space, action_space = spec.spaces()
        return (
            spec.task,
            spec.context_shape(),
            cohort_key(config, observation_space, action_space),
        )

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train all agents in lockstep; one that fails or has spent its budget leaves the
        cohort, and the others go on.
        """
        settings = [PPOSettings.from_learner_config(spec.learner.config) for spec in cohort]
        return Run(cohort, ledgers, outputs, settings).train(PPOTraining)


class PPOTraining:
    """PPO at work on a run: rollouts in the world, and updates.

    Attributes:
        world: environments and reservoirs of the agents that are in training.
        ppo: the agents.
    """

    def __init__(self, run: Run[PPOSettings]) -> None:
        self.run = run
        self.n_steps = run.settings[0].n_steps
        seeds = [spec.seeds.learner for spec in run.specs]
        self.ppo = CohortPPO(run.settings, seeds, *run.specs[0].spaces())
        # At the end: what cannot be made before leaves no environment open.
        self.world = World(run.specs, run.ledgers, run.settings[0].n_envs)

    def start(self) -> None:
        """Begin the first episodes."""
        self.ppo.start(self.world.reset())

    def iterate(self) -> None:
        """A rollout, and an update of all agents that are left."""
        self.roll_out()
        self.run.drop_stopped()
        if self.run.members:
            self.update()

    def roll_out(self) -> None:
        """Play `n_steps` steps; agents whose environment fails leave."""
        for _ in range(self.n_steps):
            actions = self.ppo.act()
            observations, rewards, dones, timeouts = self.world.step(actions)
            self.ppo.record(observations, rewards, dones, timeouts)
            if self.world.faults:
                self.run.leave(dict(self.world.faults))
                if not self.run.members:
                    return
        self.world.enter_steps()

    def update(self) -> None:
        """Learn from the rollout, and report; agents that diverged leave."""
        run = self.run
        progress = [max(0.0, 1.0 - run.ledgers[i].steps / run.specs[i].steps) for i in run.members]
        statistics = self.ppo.update(progress)
        diverged: dict[int, Exception] = {
            int(row): FloatingPointError(
                f"the policy's weights are not finite after "
                f"{run.ledgers[run.members[row]].steps} steps"
            )
            for row in np.flatnonzero(self.ppo.diverged())
        }
        for row, i in enumerate(run.members):
            scalars: dict[str, float] = {"time/fps": int(run.steps_per_second(row))}
            scalars |= {f"train/{name}": values[row] for name, values in statistics.items()}
            telemetry = run.telemetry[i]
            if telemetry.evaluation_due and row not in diverged:
                for score in telemetry.evaluate({"agent": self.agent(row)}).values():
                    scalars["eval/mean_reward"] = score
            telemetry.scalars(scalars)
        run.leave(diverged)

    def learned(self, row: int) -> bool:
        """Whether there was an update."""
        return bool(self.ppo.n_updates[row])

    def agent(self, row: int) -> SB3Agent:
        """The agent of a row as it is now."""
        i = self.run.members[row]
        config, steps = self.run.settings[i], self.run.ledgers[i].steps
        normalized = config.norm_obs or config.norm_reward
        return SB3Agent(
            to_sb3(self.ppo, row, steps, self.run.specs[i].steps),
            vec_normalize(self.ppo, row) if normalized else None,
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.ppo.keep(rows)
        self.world.keep(rows)

    def close(self) -> None:
        """Close the environments."""
        self.world.close()

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint holds."""
        return {"agents": self}

    def get_states(self) -> list[dict[str, Any]]:
        """The state of each agent, and of its environments."""
        worlds = enumerate(self.world.get_states())
        return [{"ppo": self.ppo.get_state(row), "world": world} for row, world in worlds]

    def set_states(self, states: Sequence[dict[str, Any] | None]) -> None:
        """Go on from `get_states`, for the agents that have one."""
        for row, state in enumerate(states):
            if state is not None:
                self.ppo.set_state(row, state["ppo"])
        # Some environments cannot be put back into the midst of an episode.
        begun = self.world.set_states([None if s is None else s["world"] for s in states])
        for (row, env), observation in begun.items():
            self.ppo.observe_anew(row, env, observation)
