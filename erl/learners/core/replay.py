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
import psutil
import torch
from torch import Tensor

from erl.errors import UserError
from erl.executors.machines import memory_limits
from erl.files import read_patiently, write_whole

_SEGMENT_BYTES = 16 << 20
# Where the observation after a transition is, in files.
_FOLLOWS, _APART, _PENDING = 0.0, 1.0, 2.0


class Batch:
    """Transitions in single precision, actions in [-1, 1]: of one member (batch, width), or of
    several (n, batch, width).

    Args:
        rows: observation, action, reward and `not_done` of each transition, side by side.
        next_rows: rows that begin with the observation after each.
        obs_dim, action_dim: lengths of an observation and of an action.

    Attributes:
        observations, actions, next_observations: (…, batch, width).
        rewards: (…, batch, 1).
        not_done: (…, batch, 1), 0 where the episode ended for good, 1 elsewhere, also where a time
            limit cut it.
        pairs: observations and actions side by side, (…, batch, width).
        size: transitions of a member.
    """

    def __init__(self, rows: Tensor, next_rows: Tensor, obs_dim: int, action_dim: int) -> None:
        self._widths, self._next_rows = (obs_dim, action_dim), next_rows
        self.observations, self.actions, self.rewards, self.not_done = rows.split(
            [obs_dim, action_dim, 1, 1], -1
        )
        self.next_observations = next_rows[..., :obs_dim]
        self.pairs = rows[..., : obs_dim + action_dim]
        self.size = rows.shape[-2]

    def pairs_with(self, actions: Tensor) -> Tensor:
        """Observations with other actions, which take the place of those that were there."""
        return _paired(self.pairs, self._widths[0], actions)

    def next_pairs(self, actions: Tensor) -> Tensor:
        """Next observations and these actions side by side."""
        return _paired(self._next_rows[..., : sum(self._widths)], self._widths[0], actions)

    def targets(self, next_q_values: Tensor, gamma: float | Tensor) -> Tensor:
        """r + γ Q(s', a') (…, batch, 1). Nothing is worth anything after an end."""
        if isinstance(gamma, Tensor):
            return torch.addcmul(self.rewards, self.not_done * gamma, next_q_values)
        return torch.addcmul(self.rewards, self.not_done, next_q_values, value=gamma)


def _paired(pairs: Tensor, obs_dim: int, actions: Tensor) -> Tensor:
    pairs[..., obs_dim:] = actions
    return pairs


def smoothed(actions: Tensor, noise: Tensor, std: float) -> Tensor:
    """TD3's smoothing of target actions: noise, standard normal on entry, is scaled, clipped at 0.5
    and added.
    """
    if std == 0.0:
        return actions
    return (actions + (noise * std).clamp_(-0.5, 0.5)).clamp_(-1.0, 1.0)


def _save(rows: np.ndarray, path: str) -> None:
    np.save(path, rows)


def _rows(capacity: int, n_envs: int) -> int:
    """Rows of a member: of its transitions, of what was seen last in each environment, and of as
    many ends of episodes as there may be transitions.
    """
    return 2 * capacity + n_envs


class ReplayBuffer:
    """The latest transitions of n members, each with places of its own.

    A transition is one float32 row: observation, action, reward, and whether the episode goes on.
    The observation after it is that of the next row of its environment, and is not stored again;
    only where another one follows, since the episode ended or was left, and after the newest row,
    a row of its own holds it. Memory is touched, and so taken, only where rows have been written.

    Args:
        capacity: transitions of a member at most; the oldest goes first. Of all members, or of
            each. A multiple of `n_envs`.
        obs_dim: length of what a policy sees.
        action_dim: length of an action.
        device: where it lies.
        n: members.
        n_envs: environments of a member that `add_step` fills in turns.

    Attributes:
        added: transitions ever added by each member, int64 (n,).
    """

    def __init__(
        self,
        capacity: int | Sequence[int],
        obs_dim: int,
        action_dim: int,
        device: torch.device | str = "cpu",
        n: int = 1,
        n_envs: int = 1,
    ) -> None:
        self._capacity = np.broadcast_to(np.asarray(capacity, np.int64), n).copy()
        self.added = np.zeros(n, np.int64)
        self._widths, self._n_envs = (obs_dim, action_dim), n_envs
        # A member's rows: those of transitions, one for the observation after the newest of each
        # environment, and those of observations that stand apart.
        self._pending = int(self._capacity.max())
        self._apart = self._pending + n_envs
        rows = _rows(self._pending, n_envs)
        self._rows = torch.empty(n * rows, obs_dim + action_dim + 2, device=device)
        self._on_cpu = self._rows.device.type == "cpu"
        self._numpy = self._rows.numpy() if self._on_cpu else None
        # Of each transition, the row of the observation after it, counted within the member.
        self._next = np.zeros(n * self._pending, np.int32)
        self._next_there = torch.from_numpy(self._next).to(device)
        self._free: list[list[int]] = [[] for _ in range(n)]
        self._used = [self._apart] * n
        # Where the members that are left have their rows and their part of `_next`.
        self._places = np.stack([np.arange(n) * rows, np.arange(n) * self._pending])
        self._bind()
        # Files that are this buffer's: others of their names may be of another course of things.
        self._saved: list[set[str]] = [set() for _ in range(n)]

    def _bind(self) -> None:
        self._offsets = torch.from_numpy(self._places[:, :, None]).to(self._rows.device)

    @staticmethod
    def bytes_each(obs_dim: int, action_dim: int) -> int:
        """Memory that a transition takes on a CPU; on a GPU twice as much."""
        return 4 * (obs_dim + action_dim + 2) + 4

    @staticmethod
    def bytes_asked(capacities: Sequence[int], obs_dim: int, action_dim: int, n_envs: int) -> int:
        """Memory that is asked for at once for members of these capacities, though most of it may
        never be touched. Linux gives no more than the machine has.
        """
        each = _rows(max(capacities), n_envs) * 4 * (obs_dim + action_dim + 2)
        return len(capacities) * (each + 4 * max(capacities))

    def __len__(self) -> int:
        """Transitions held of the first member."""
        return self.held(0)

    def held(self, i: int) -> int:
        """Transitions held of member i."""
        return int(min(self.added[i], self._capacity[i]))

    # -- filling --

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        next_observations: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        member: int = 0,
    ) -> None:
        """Add the transitions (n, …) of one environment that follow one another, of which the last
        stay that fit. `terminated` does not hold where only a time limit ended the episode.
        """
        rows = np.empty((len(rewards), sum(self._widths) + 2), np.float32)
        self._join(rows, observations, actions, rewards, terminated)
        capacity = int(self._capacity[member])
        self.added[member] += len(rows)
        rows = rows[-capacity:]
        places = np.arange(self.added[member] - len(rows), self.added[member]) % capacity
        self._release(member, places)
        following = (places + 1) % capacity
        following[-1] = self._take(member)
        last = np.zeros((1, rows.shape[1]), np.float32)
        last[0, : self._widths[0]] = next_observations[-1]
        self._write(member, [*places, following[-1]], np.concatenate([rows, last]))
        self._point(member, places, following)

    def add_step(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        next_observations: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        apart: Sequence[tuple[int, int, np.ndarray]] = (),
    ) -> None:
        """Add one step of every environment of every member.

        Args:
            observations, actions, next_observations: (n, n_envs, width); the first observation of a
                new episode where one ended.
            rewards, terminated: (n, n_envs).
            apart: (member, environment, observation) for each episode that was cut: what was seen
                last.
        """
        n, k = rewards.shape
        both = np.zeros((2, n, k, sum(self._widths) + 2), np.float32)
        self._join(both[0], observations, actions, rewards, terminated)
        both[1, ..., : self._widths[0]] = next_observations
        envs = np.arange(k)
        pending = self._pending + envs
        at = (self.added % self._capacity)[:, None] + envs
        before = at - k + (at < k) * self._capacity[:, None]
        rows_at, next_at = self._places[:, :, None]
        # The rows before point to these from now on, unless something stood apart after them.
        now, earlier = (at + next_at).ravel(), (before + next_at).ravel()
        after_them = self._next[earlier]
        waiting = (after_them >= self._pending) & (after_them < self._apart)
        self._next[earlier[waiting]] = at.ravel()[waiting]
        overwritten = (self._next[now] >= self._apart).reshape(n, k)
        if overwritten.any():
            for member in np.flatnonzero(overwritten.any(1)).tolist():
                self._release(member, at[member])
        self._next[now.reshape(n, k)] = pending
        places = np.concatenate([at + rows_at, pending + rows_at])
        self._put(places.ravel(), both.reshape(2 * n * k, -1))
        self.added += k
        self._tell(np.concatenate([now, earlier]))
        for member, env, observation in apart:
            row = np.zeros((1, both.shape[-1]), np.float32)
            row[0, : self._widths[0]] = observation
            place = self._take(member)
            self._write(member, [place], row)
            self._point(member, at[member, env : env + 1], np.array([place]))

    def leave(self, member: int, env: int) -> None:
        """Have the observation after a member's newest transition in an environment stand apart,
        since another episode begins there.
        """
        if not self.added[member]:
            return
        at = (self.added[member] - self._n_envs + env) % self._capacity[member]
        if self._next[at + self._places[1, member]] >= self._apart:
            return  # it does already
        place = self._take(member)
        rows_at = int(self._places[0, member])
        self._rows[rows_at + place] = self._rows[rows_at + self._pending + env]
        self._point(member, np.array([at]), np.array([place]))

    def _join(
        self,
        rows: np.ndarray,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
    ) -> None:
        o, a = self._widths
        rows[..., :o], rows[..., o : o + a] = observations, actions
        rows[..., -2], rows[..., -1] = rewards, 1.0 - terminated

    def _take(self, member: int) -> int:
        """A row for an observation that stands apart."""
        if self._free[member]:
            return self._free[member].pop()
        self._used[member] += 1
        return self._used[member] - 1

    def _release(self, member: int, places: np.ndarray) -> None:
        """Give the rows back that stand apart after transitions which are to be overwritten."""
        after = self._next[places + self._places[1, member]]
        self._free[member] += after[after >= self._apart].tolist()
        self._next[places + self._places[1, member]] = 0

    def _point(self, member: int, places: np.ndarray, rows: np.ndarray) -> None:
        """Note where the observations after these transitions are."""
        there = places + self._places[1, member]
        self._next[there] = rows
        self._tell(there)

    def _tell(self, there: np.ndarray) -> None:
        """Have the device know what changed in `_next`."""
        if not self._on_cpu:
            index = torch.from_numpy(there).to(self._rows.device)
            new = torch.from_numpy(self._next[there]).to(self._rows.device)
            self._next_there.index_copy_(0, index, new)

    def _write(self, member: int, places: Sequence[int], rows: np.ndarray) -> None:
        self._put(np.asarray(places, np.int64) + self._places[0, member], rows)

    def _put(self, places: np.ndarray, rows: np.ndarray) -> None:
        """Put rows where they belong, counted from the first member's first."""
        if self._numpy is not None:
            self._numpy[places] = rows
        else:
            index = torch.from_numpy(places).to(self._rows.device)
            self._rows.index_copy_(0, index, torch.from_numpy(rows).to(self._rows.device))

    # -- sampling --

    def batch(self, places: Tensor) -> Batch:
        """Transitions in these places, int64 (batch,), of a buffer made for one member."""
        following = self._next_there.index_select(0, places)
        rows = self._rows.index_select(0, places)
        return Batch(rows, self._rows.index_select(0, following), *self._widths)

    def batches(self, places: Tensor, begin: int = 0) -> Batch:
        """Transitions of the members from `begin` on in these places, int64 (members, batch)."""
        return Batch(*self._gather(places, begin), *self._widths)

    def _gather(self, places: Tensor, begin: int) -> tuple[Tensor, Tensor]:
        """Rows in these places, and those of the observations after them, (members, batch, …)."""
        if self._on_cpu:
            # NumPy takes less time for so few numbers.
            rows_at, next_at = self._places[:, begin : begin + len(places), None]
            at = places.numpy()
            both = np.stack([at, self._next[at + next_at]]) + rows_at
            found = self._rows.index_select(0, torch.from_numpy(both.reshape(-1)))
            rows, next_rows = found.view(*both.shape, -1)
            return rows, next_rows
        rows_at, next_at = self._offsets[:, begin : begin + len(places)]
        following = self._next_there.index_select(0, (places + next_at).view(-1)).view_as(places)
        size = (*places.shape, self._rows.shape[1])
        rows = self._rows.index_select(0, (places + rows_at).view(-1)).view(size)
        return rows, self._rows.index_select(0, (following + rows_at).view(-1)).view(size)

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members only, in this order. Rows of the others stay where they are."""
        kept = list(members)
        self._capacity, self.added = self._capacity[kept], self.added[kept]
        self._places = self._places[:, kept]
        self._free, self._used = [self._free[i] for i in kept], [self._used[i] for i in kept]
        self._saved = [self._saved[i] for i in kept]
        self._bind()

    def contents(self) -> dict[str, Any]:
        """What the first member holds, for a buffer elsewhere."""
        added = int(self.added[0])
        return {"added": added, "rows": self._segment(0, added - self.held(0), added)}

    def take(self, contents: dict[str, Any]) -> None:
        """Hold what another buffer of this capacity holds; this one held nothing."""
        self.added[0] = contents["added"]
        begin = contents["added"] - self.held(0)
        self._restore(0, begin, contents["added"], contents["rows"])

    # -- checkpoints --

    def of(self, member: int) -> "MemberBuffer":
        """A member's part, for its checkpoint."""
        return MemberBuffer(self, member)

    def save(self, folder: Path, member: int = 0) -> dict[str, Any]:
        """Write what is new of a member since the last call into a folder, and give the state that
        `load` goes on from.

        The rows lie in segments of about 16 MB, whose files never change, and in one that is still
        open, under a name that tells its end. Until `tidy`, every state that was given before stays
        loadable.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = self._files(member)
        for name, (begin, end) in files.items():
            path = folder / name
            if name not in self._saved[member] or not path.exists():
                write_whole(path, partial(_save, self._segment(member, begin, end)))
        # The last one is open.
        self._saved[member] = set(list(files)[:-1])
        return {"added": int(self.added[member]), "files": files}

    def _segment(self, member: int, begin: int, end: int) -> np.ndarray:
        """Rows of transitions `begin` to `end`, counted from the first ever added, with a column
        that tells where the observation after each is; then those observations that are not the
        next row's.
        """
        rows_at, next_at = self._places[:, member]
        places = np.arange(begin, end) % self._capacity[member]
        following = self._next[places + next_at]
        where = np.full(len(places), _FOLLOWS, np.float32)
        where[following >= self._pending] = _PENDING
        where[following >= self._apart] = _APART
        index = np.concatenate([places, following[where != _FOLLOWS]]) + rows_at
        rows = self._rows.index_select(0, torch.from_numpy(index).to(self._rows.device))
        column = np.zeros((len(rows), 1), np.float32)
        column[: len(where), 0] = where
        return np.concatenate([rows.cpu().numpy(), column], axis=1)

    def _files(self, member: int) -> dict[str, tuple[int, int]]:
        """File name -> first row and end, counted from the first row ever added; a segment that
        begins before the oldest row is whole.

        A segment is closed once a later row of each environment is there: what follows the newest
        ones is not settled yet.
        """
        size = max(1, _SEGMENT_BYTES // (4 * self._rows.shape[1]))
        added = int(self.added[member])
        begin = (added - self.held(member)) // size * size
        files = {}
        while begin + size + self._n_envs <= added:
            files[f"{begin}.npy"] = (begin, begin + size)
            begin += size
        if begin < added:
            files[f"{begin}-{added}.npy"] = (begin, added)
        return files

    @staticmethod
    def tidy(folder: Path, state: dict[str, Any]) -> None:
        """Remove the files that a state does not need."""
        for path in folder.glob("*.npy"):
            if path.name not in state["files"]:
                path.unlink(missing_ok=True)

    def load(self, folder: Path, state: dict[str, Any], member: int = 0) -> None:
        """Have a member that holds nothing go on from a state that `save` gave, and remove the
        files of later ones.

        Raises:
            Exception: a file is missing, damaged, or cannot be read: whatever NumPy makes of it.
                Nothing is held then.
        """
        # What was written after this state holds other transitions under numbers that will be given
        # again.
        self.tidy(folder, state)
        try:
            self.added[member] = state["added"]
            for name, (begin, end) in state["files"].items():
                rows = np.load(io.BytesIO(read_patiently(folder / name)))
                extra = np.count_nonzero(rows[: end - begin, -1]) if rows.ndim == 2 else -1
                if rows.shape != (end - begin + extra, self._rows.shape[1] + 1):
                    raise ValueError(f"{name} holds {rows.shape} numbers")
                self._restore(member, begin, end, rows)
        except BaseException:
            self._clear(member)
            raise
        self._saved[member] = set(list(state["files"])[:-1])

    def _clear(self, member: int) -> None:
        """Have a member hold nothing, as in a new buffer."""
        self.added[member], self._free[member], self._used[member] = 0, [], self._apart
        self._saved[member] = set()
        there = self._places[1, member] + np.arange(self._pending)
        self._next[there] = 0
        self._tell(there)

    def _restore(self, member: int, begin: int, end: int, rows: np.ndarray) -> None:
        """Put a segment back."""
        where, extra = rows[: end - begin, -1].astype(np.int64), rows[end - begin :, :-1]
        held = np.arange(begin, end) >= self.added[member] - self.held(member)
        numbers = np.arange(begin, end)[held]
        places = numbers % self._capacity[member]
        following = (places + self._n_envs) % self._capacity[member]
        after = np.zeros(len(where), np.int64)
        for k in np.flatnonzero((where != _FOLLOWS) & held):
            pending = where[k] == _PENDING
            after[k] = self._pending + (begin + k) % self._n_envs if pending else self._take(member)
        apart = where[held] != _FOLLOWS
        following[apart] = after[held][apart]
        self._write(member, places, rows[: end - begin, :-1][held])
        self._write(member, following[apart], extra[held[where != _FOLLOWS]])
        self._point(member, places, following)


class MemberBuffer:
    """One member's part of a replay buffer, as checkpoints take it."""

    def __init__(self, buffer: ReplayBuffer, member: int) -> None:
        self._buffer, self._member = buffer, member

    def save(self, folder: Path) -> dict[str, Any]:
        """See `ReplayBuffer.save`."""
        return self._buffer.save(folder, self._member)

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """See `ReplayBuffer.load`."""
        self._buffer.load(folder, state, self._member)

    def tidy(self, folder: Path, state: dict[str, Any]) -> None:
        """See `ReplayBuffer.tidy`."""
        self._buffer.tidy(folder, state)


def check_memory(
    learner: str,
    device: torch.device,
    *cohorts: Sequence[tuple[int, int, int]],
    n_envs: int = 1,
    owners: str | None = None,
) -> None:
    """Raise a UserError if the replay buffers of members do not fit into the memory that is free,
    or if the machine has less than what is asked for at once.

    Args:
        learner: its name.
        device: where the buffers lie.
        cohorts: for each member of each cohort, transitions at most, and the lengths of an
            observation and of an action.
        n_envs: environments of a member.
        owners: whose buffers they are, in words; by default agents'.
    """
    asked = [
        ReplayBuffer.bytes_asked([capacity for capacity, *_ in cohort], *cohort[0][1:], n_envs)
        for cohort in cohorts
    ]
    buffers = [buffer for cohort in cohorts for buffer in cohort]
    if device.type == "cuda":
        # All that is asked for is taken at once.
        free = total = torch.cuda.mem_get_info(device)[0]
        needed = most = sum(asked)
    else:
        memory = psutil.virtual_memory()
        # Limits are on what is used, not on what is asked for.
        free = min([memory.available, *memory_limits()])
        total, most = memory.total, max(asked)
        needed = sum(n * ReplayBuffer.bytes_each(*lengths) for n, *lengths in buffers)
    if needed > free or most > total:
        share = 0.9 * min(free / needed, total / most)
        fits = int(share * sum(n for n, *_ in buffers) / len(buffers)) // n_envs * n_envs
        raise too_large(
            learner,
            len(buffers),
            needed if needed > free else most,
            f"{free / 1e9:,.1f} GB of memory are free"
            if needed > free
            else f"this machine has {total / 1e9:,.1f} GB of memory",
            f"buffer_size={fits} fits",
            owners,
        )


def too_large(
    learner: str, agents: int, needed: int, given: str, advice: str, owners: str | None = None
) -> UserError:
    """For replay buffers of so many agents, which take more bytes than what is given."""
    whose = owners or ("an agent" if agents == 1 else f"{agents} agents side by side")
    return UserError(
        f"{learner}'s replay buffers take {needed / 1e9:,.1f} GB for {whose}, and {given}: {advice}"
    )
