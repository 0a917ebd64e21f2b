"""The run of lifetimes that are trained side by side, or of one: which are still in training,
budgets, telemetry, checkpoints, and the end.

An algorithm says what one iteration is; everything around it is here.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from stable_baselines3.common.preprocessing import get_action_dim

from erl.errors import Interrupted, Stopped
from erl.learners import Agent, Outputs, one_by_one
from erl.learners.core.checkpoints import Part, restore_parts, save_parts
from erl.learners.core.replay import check_memory
from erl.learners.core.settings import EvaluationSettings, check_learned
from erl.learners.core.telemetry import Telemetry
from erl.networks.products import bfloat16_width
from erl.worlds.ledger import Ledger, shared_seconds
from erl.worlds.specification import LifetimeSpec

S = TypeVar("S", bound=EvaluationSettings)
_log = logging.getLogger(__name__)


class Algorithm(Protocol):
    """An algorithm at work on the lifetimes of a run. A row is the place of an agent among those
    that are still in training.
    """

    @property
    def parts(self) -> Mapping[str, Part]:
        """What a checkpoint holds, by name, between two iterations."""

    def start(self) -> None:
        """Begin; called once, before a checkpoint is restored."""

    def iterate(self) -> None:
        """Play and learn: a rollout and an update, or a generation. It may let agents leave through
        `Run.leave`; an exception ends all of them.
        """

    def learned(self, row: int) -> bool:
        """Whether an agent has learned anything: a gradient step was taken, or an evolution was
        told what became of its policies. What was played at random teaches nothing by itself.
        """

    def agent(self, row: int) -> Agent:
        """The agent of a row as it is now."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only; at least one."""

    def close(self) -> None:
        """Close the environments."""


class Run(Generic[S]):
    """The run of a cohort's lifetimes.

    Args:
        cohort, ledgers, outputs: of each lifetime.
        settings: of each lifetime's learner.

    Attributes:
        specs, ledgers, outputs, settings, telemetry: of each lifetime.
        members: indices of the lifetimes that are still in training, in the order of rows.
    """

    def __init__(
        self,
        cohort: Sequence[LifetimeSpec],
        ledgers: Sequence[Ledger],
        outputs: Sequence[Outputs],
        settings: Sequence[S],
    ) -> None:
        self.specs, self.ledgers, self.outputs, self.settings = cohort, ledgers, outputs, settings
        self.telemetry = [
            Telemetry(spec, ledger, output, evaluation)
            for spec, ledger, output, evaluation in zip(cohort, ledgers, outputs, settings)
        ]
        self.members = list(range(len(cohort)))
        self._results: list[Agent | Exception] = [RuntimeError("never trained")] * len(cohort)
        self._started_at = self._saved_at = time.perf_counter()

    def train(self, make: Callable[[Self], Algorithm]) -> list[Agent | Exception]:
        """Iterate until every lifetime has spent its budget or failed, and close what is open then,
        whatever happens.

        Args:
            make: the algorithm, from this run. One that cannot be made leaves nothing open.

        Returns:
            An agent, or why there is none, for each lifetime.
        """
        with ExitStack() as opened:
            opened.callback(self.close)
            self._algorithm = algorithm = make(self)
            opened.callback(algorithm.close)
            algorithm.start()
            self._restore()
            self._finish()
            while self.members:
                algorithm.iterate()
                self._finish()
                self._save()
        return self._results

    def close(self) -> None:
        """Close the logs."""
        for telemetry in self.telemetry:
            telemetry.close()

    # Members

    def steps_per_second(self, row: int = 0) -> float:
        """Of an agent, since the run was begun or taken up; others train in the same seconds."""
        ledger = self.ledgers[self.members[row]]
        return (ledger.steps - ledger.earlier[0]) / (time.perf_counter() - self._started_at)

    def spent(self, row: int = 0) -> bool:
        """Whether an agent has spent its budget."""
        i = self.members[row]
        return self.ledgers[i].steps >= self.specs[i].steps

    def stopped(self, row: int = 0) -> bool:
        """Whether an agent was told to stop before its budget is spent."""
        return not self.spent(row) and self.ledgers[self.members[row]].stopped

    def raise_if_stopped(self) -> None:
        """Raise `Stopped` if the one lifetime of this run was told to stop."""
        if self.stopped():
            raise Stopped

    def drop_stopped(self) -> None:
        """Agents that were told to stop leave."""
        self.leave({row: Stopped() for row in range(len(self.members)) if self.stopped(row)})

    def _finish(self) -> None:
        """Agents that have spent their budget leave with what they have become, if they have
        learned anything.
        """
        results: dict[int, Agent | Exception] = {}
        for row, i in enumerate(self.members):
            if self.spent(row):
                try:
                    check_learned(self._algorithm.learned(row), self.ledgers[i].steps)
                    results[row] = self._algorithm.agent(row)
                except Exception as e:
                    results[row] = e
        self.leave(results)

    def leave(self, results: Mapping[int, Any]) -> None:
        """Agents, by row, leave with these results, or for these reasons."""
        if not results:
            return
        for row, result in results.items():
            self._results[self.members[row]] = result
        keep = [row for row in range(len(self.members)) if row not in results]
        if keep:
            self._algorithm.keep(keep)
        self.members = [self.members[row] for row in keep]

    # Checkpoints

    def _parts(self) -> dict[str, Part]:
        seconds = shared_seconds(self.ledgers, time.perf_counter() - self._started_at)
        return {
            "ledger": [_LedgerState(self.ledgers[i], seconds[i]) for i in self.members],
            "telemetry": [self.telemetry[i] for i in self.members],
            **self._algorithm.parts,
        }

    def _of_members(self) -> tuple[list[str | None], list[LifetimeSpec], list[S]]:
        """Path of the checkpoint, specification and settings of each."""
        return (
            [self.outputs[i].checkpoint for i in self.members],
            [self.specs[i] for i in self.members],
            [self.settings[i] for i in self.members],
        )

    def _save(self) -> None:
        """Write checkpoints, if it is time, or if the command was interrupted: then all leave."""
        paths, specs, settings = self._of_members()
        elapsed = time.perf_counter() - self._saved_at
        interrupted = any(self.ledgers[i].interrupted for i in self.members)
        if any(paths) and (interrupted or elapsed >= self.outputs[0].checkpoint_seconds):
            steps = [self.ledgers[i].steps for i in self.members]
            save_parts(paths, specs, settings, self._parts(), steps)
            self._saved_at = time.perf_counter()
        if interrupted:
            self.leave({row: Interrupted() for row in range(len(self.members))})

    def _restore(self) -> None:
        paths, specs, settings = self._of_members()
        if any(paths):
            restore_parts(paths, specs, settings, self._parts())


class _LedgerState:
    """What of a lifetime's ledger a checkpoint holds."""

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        self._ledger, self._seconds = ledger, seconds

    def get_state(self) -> tuple[int, float, list[tuple[int, float, int]]]:
        return self._ledger.steps, self._seconds, list(self._ledger.episodes)

    def set_state(self, state: tuple[int, float, list[tuple[int, float, int]]]) -> None:
        self._ledger.steps, seconds, self._ledger.episodes[:] = state
        self._ledger.earlier = self._ledger.steps, seconds


class OneByOne:
    """A learner that trains lifetimes one after the other.

    Attributes:
        settings: how its settings are read. They say on how many `threads` it learns.
        algorithm: the `Algorithm` that is at work on the run of one lifetime.
    """

    settings: ClassVar[type[Any]]
    algorithm: ClassVar[type[Any]]

    @property
    def name(self) -> str:
        """In the registry."""
        return self.settings.learner

    def check_settings(self, config: Mapping[str, Any]) -> None:
        """Raise a UserError for settings that cannot be."""
        self.settings.from_learner_config(config)

    def settings_of(self, spec: LifetimeSpec) -> Any:
        """The settings of a lifetime, with the defaults of its environment."""
        return self.settings.from_learner_config(spec.learner.config, spec.task.env_id)

    def buffers(self, spec: LifetimeSpec) -> list[tuple[int, int, int]]:
        """Replay buffers of a lifetime: transitions that each holds at most, and the lengths of an
        observation and of an action. By default there is one.
        """
        observation_space, action_space = spec.spaces()
        capacity = self.settings_of(spec).capacity(spec.steps)
        return [(capacity, observation_space.shape[0], get_action_dim(action_space))]

    def check_together(self, cohorts: Sequence[Sequence[LifetimeSpec]]) -> None:
        """Raise a UserError if the replay buffers of lifetimes that are lived at the same time do
        not fit into memory together.
        """
        # A cohort lives its lifetimes one after the other.
        each = [self.buffers(cohort[0]) for cohort in cohorts]
        owners, whose = "a lifetime", "its"
        if len(each) > 1:
            owners, whose = f"{len(each)} lifetimes at a time", "their"
        if len(each[0]) > 1:
            owners += f" and the processes of {whose} workers"
        device = torch.device(self.settings_of(cohorts[0][0]).device)
        check_memory(self.name, device, *([b] for bs in each for b in bs), owners=owners)

    def cores(self, spec: LifetimeSpec) -> int:
        """Of this machine, that a lifetime keeps busy."""
        return int(self.settings_of(spec).threads)

    def cohort_key(self, spec: LifetimeSpec) -> Hashable | None:
        """Each on its own."""
        return None

    def train(
        self, cohort: Sequence[LifetimeSpec], ledgers: Sequence[Ledger], outputs: Sequence[Outputs]
    ) -> list[Agent | Exception]:
        """Train one after the other."""
        return one_by_one(self._train_one, cohort, ledgers, outputs)

    def _train_one(self, spec: LifetimeSpec, ledger: Ledger, output: Outputs) -> Agent | Exception:
        settings = self.settings_of(spec)
        with torch_threads(settings.threads):
            (agent,) = Run([spec], [ledger], [output], [settings]).train(self.algorithm)
        return agent


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """PyTorch's arithmetic on so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def warn_of_precision(precision: str, device: torch.device | str, batch_size: int) -> None:
    """Warn where `precision` has no effect."""
    if precision != "bf16":
        return
    width = bfloat16_width(torch.device(device).type)
    if width is None:
        _log.warning(
            "precision=bf16 changes nothing on this processor: PyTorch multiplies in single "
            "precision here"
        )
    elif batch_size < width:
        _log.warning(
            "precision=bf16 changes nothing: with batch_size=%d products are too narrow for it, "
            "and it has to be at least %d here",
            batch_size,
            width,
        )
