"""What learners that learn from a replay buffer share: the buffer, its minibatches, and the targets
of TD3.

Fujimoto et al. (2018, arXiv 1802.09477).
"""

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erl.files import read_patiently, write_whole

_SEGMENT_BYTES = 16 << 20


class Batch:
    """Transitions in single precision, actions in [-1, 1].

    Args:
        rows: one after the other, (batch, sum of widths).
        widths: of the first five attributes, which lie in this order in a row.

    Attributes:
        observations, actions, next_observations: (batch, width).
        rewards: (batch, 1).
        goes_on: (batch, 1), 0 where the episode ended for good, 1 elsewhere, also where a time
            limit cut it.
        pairs: observations and actions side by side, (batch, width).
    """

    def __init__(self, rows: Tensor, widths: Sequence[int]) -> None:
        self.observations, self.actions, self.next_observations, self.rewards, self.goes_on = (
            rows.split(widths, 1)
        )
        self.pairs = rows[:, : widths[0] + widths[1]]

    def targets(self, values: Tensor, gamma: float) -> Tensor:
        """r + γ min Q(s', a') (batch, 1), the minimum over the critics: values (n, batch, 1).

        Nothing is worth anything after an end.
        """
        return torch.addcmul(self.rewards, self.goes_on, values.amin(0), value=gamma)


def smoothed(actions: Tensor, noise: Tensor, std: float, clip: float = 0.5) -> Tensor:
    """TD3's smoothing of target actions: noise, standard normal on entry, is scaled, clipped and
    added.
    """
    return (
        actions if std == 0.0 else (actions + (noise * std).clamp_(-clip, clip)).clamp_(-1.0, 1.0)
    )


def _save(rows: np.ndarray, path: str) -> None:
    np.save(path, rows)


class ReplayBuffer:
    """The latest transitions, one row of a preallocated float32 matrix each.

    Args:
        capacity: transitions at most; the oldest goes first.
        observations: length of what a policy sees.
        actions: length of an action.
        device: where it lies.

    Attributes:
        added: transitions ever added.
    """

    def __init__(
        self, capacity: int, observations: int, actions: int, device: torch.device | str = "cpu"
    ) -> None:
        self.capacity, self.added = capacity, 0
        self._widths = [observations, actions, observations, 1, 1]
        # Memory is touched, and so taken, only where transitions have been written.
        self._rows = torch.empty(capacity, sum(self._widths), device=device)
        self._saved: set[str] = (
            set()
        )  # files that are this buffer's: others of their names may be of another course of things

    def __len__(self) -> int:
        """Transitions held."""
        return min(self.added, self.capacity)

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        next_observations: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
    ) -> None:
        """Add transitions (n, …), of which the last stay that fit; `terminated` does not hold where
        only a time limit ended the episode.
        """
        columns = (
            observations,
            actions,
            next_observations,
            rewards[:, None],
            1.0 - terminated[:, None],
        )
        rows = torch.from_numpy(
            np.concatenate([np.asarray(c, dtype=np.float32) for c in columns], 1)
        )
        self.added += len(rows)
        latest = rows[-self.capacity :]
        self._write(latest, self.added - len(latest))

    def _write(self, rows: Tensor, at: int) -> None:
        """Put rows where those with these numbers, counted from the first ever added, belong."""
        begin = at % self.capacity
        n = min(len(rows), self.capacity - begin)
        self._rows[begin : begin + n] = rows[:n].to(self._rows.device)
        self._rows[: len(rows) - n] = rows[n:].to(self._rows.device)

    def batch(self, indices: Tensor) -> Batch:
        """The transitions in these places, an int64 tensor (batch,)."""
        return Batch(self._rows.index_select(0, indices), self._widths)

    # -- checkpoints --

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what is new since the last call into a folder, and give the state that `load` goes
        on from.

        The rows lie in files that never change: full segments of about 16 MB, and the beginning of
        the one that is being filled under a name that tells its length. Until `tidy`, every state
        that was given before stays loadable.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = self._files()
        for name, (begin, end) in files.items():
            path = folder / name
            if name not in self._saved or not path.exists():
                places = torch.arange(begin, end).remainder_(self.capacity).to(self._rows.device)
                rows = self._rows.index_select(0, places).cpu().numpy()
                write_whole(path, partial(_save, rows))
        self._saved = set(files)
        return {"added": self.added, "files": files}

    def _files(self) -> dict[str, tuple[int, int]]:
        """File name -> first row and end, counted from the first row ever added; a segment that
        begins before the oldest row is whole.
        """
        size = max(1, _SEGMENT_BYTES // (4 * self._rows.shape[1]))
        oldest = self.added - len(self)
        files = {}
        for begin in range(oldest // size * size, self.added, size):
            end = min(begin + size, self.added)
            files[f"{begin}-{end}.npy"] = (begin, end)
        return files

    @staticmethod
    def tidy(folder: Path, state: dict[str, Any]) -> None:
        """Remove the files that a state does not need."""
        for path in folder.glob("*.npy"):
            if path.name not in state["files"]:
                path.unlink(missing_ok=True)

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from a state that `save` gave, and remove the files of later ones.

        Raises:
            Exception: a file is missing, damaged, or cannot be read: whatever NumPy makes of it.
                Nothing is held then.
        """
        # What was written after this state holds other transitions under numbers that will be given
        # again.
        self.tidy(folder, state)
        try:
            self.added = state["added"]
            oldest = self.added - len(self)
            for name, (begin, end) in state["files"].items():
                rows = torch.from_numpy(np.load(io.BytesIO(read_patiently(folder / name))))
                if rows.shape != (end - begin, self._rows.shape[1]):
                    raise ValueError(f"{name} holds {tuple(rows.shape)} numbers")
                self._write(rows[max(0, oldest - begin) :], max(oldest, begin))
        except BaseException:
            self.added = 0
            raise
        self._saved = set(state["files"])
