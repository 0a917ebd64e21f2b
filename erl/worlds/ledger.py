"""The ledger that counts every step of a lifetime, where its environments are stepped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """Counts one lifetime's steps where its environments are stepped, and keeps its episodes.

    Attributes:
        steps: steps taken so far, in all of the lifetime's environments.
        episodes: (steps so far at its end, return, length) of every finished episode, in order.
        on_step: called with `steps` after every 256th step.
        should_stop: asked, from time to time, whether the lifetime shall end before its budget.
        should_save: asked between two iterations, whether the command was interrupted, so that the
            lifetime shall write its checkpoint and end.
        earlier: steps, and seconds they took, before the lifetime was taken up from a checkpoint.
        reporting: seconds since then that went into what is only reported.
        notes: gives what else the learner has noted for the lifetime's record.
    """

    steps: int = 0
    episodes: list[tuple[int, float, int]] = field(default_factory=list)
    on_step: Callable[[int], None] | None = None
    should_stop: Callable[[], bool] | None = None
    should_save: Callable[[], bool] | None = None
    earlier: tuple[int, float] = (0, 0.0)
    reporting: float = 0.0
    notes: Callable[[], dict[str, Any] | None] | None = None

    def step(self, n: int = 1) -> None:
        """Count `n` steps."""
        before, self.steps = self.steps, self.steps + n
        if self.on_step is not None and before >> 8 != self.steps >> 8:
            self.on_step(self.steps)

    @property
    def stopped(self) -> bool:
        """Whether the lifetime was told to end."""
        return self.should_stop is not None and self.should_stop()

    @property
    def interrupted(self) -> bool:
        """Whether the command that trains the lifetime was interrupted."""
        return self.should_save is not None and self.should_save()

    def episode(self, total_return: float, length: int) -> None:
        """Keep a finished episode."""
        self.episodes.append((self.steps, float(total_return), int(length)))


def shared_seconds(ledgers: Sequence[Ledger], elapsed: float) -> list[float]:
    """Seconds of training of lifetimes that were trained side by side for `elapsed` seconds: each
    one's share by its steps.

    What is only reported takes none of them.
    """
    elapsed -= sum(ledger.reporting for ledger in ledgers)
    new = [ledger.steps - ledger.earlier[0] for ledger in ledgers]
    return [ledger.earlier[1] + elapsed * n / max(1, sum(new)) for ledger, n in zip(ledgers, new)]
