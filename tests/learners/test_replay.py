"""The replay buffer beside a plain list of what was lived, across checkpoints at any step."""

from collections import deque

import numpy as np
import pytest
import torch

from erl.learners.core.replay import ReplayBuffer

OBSERVATIONS, ACTIONS = 2, 1


class Lives:
    """Members that live in environments of their own, and all that they lived as plain lists.

    Args:
        rng: of actions, rewards, and ends of episodes.
        capacities: of each member.
        n_envs: environments of a member.
    """

    def __init__(self, rng, capacities, n_envs):
        self.rng, self.shape, self.shown = rng, (len(capacities), n_envs), 0
        self.lived = [deque(maxlen=capacity) for capacity in capacities]
        self.seen = self.observations()

    def observations(self):
        """What each environment shows: nothing that was ever seen before."""
        self.shown += np.prod(self.shape)
        numbers = self.shown - np.arange(np.prod(self.shape)).reshape(*self.shape, 1)
        return numbers * np.array([1.0, -1.0])

    def step(self, buffer):
        """One step of every environment, into the buffer and into the lists."""
        actions = self.rng.normal(size=(*self.shape, ACTIONS))
        rewards, kind = self.rng.normal(size=self.shape), self.rng.random(self.shape)
        terminated, cut = kind < 0.1, kind > 0.85
        last, seen = self.observations(), self.observations()
        seen = np.where((terminated | cut)[..., None], seen, last)
        apart = [(i, k, last[i, k]) for i, k in np.argwhere(cut).tolist()]
        buffer.add_step(self.seen, actions, seen, rewards, terminated, apart)
        for i, k in np.ndindex(self.shape):
            # After an end stands what the next episode begins with, which is worth nothing.
            following = last[i, k] if cut[i, k] else seen[i, k]
            row = *self.seen[i, k], *actions[i, k], rewards[i, k], 1 - terminated[i, k], *following
            self.lived[i].append(np.array(row, np.float32))
        self.seen = seen

    def leave(self, buffer, member, env):
        """Begin another episode where the running one cannot go on."""
        buffer.leave(member, env)
        self.seen[member, env] = self.observations()[member, env]

    def check(self, buffer):
        """What the buffer holds is what was lived."""
        for i, lived in enumerate(self.lived):
            batch = buffer.batches(torch.arange(buffer.held(i))[None], i)
            parts = batch.pairs, batch.rewards, batch.not_done, batch.next_observations
            held = torch.cat(parts, -1)[0].tolist()
            assert sorted(held) == sorted(np.array(lived).tolist())


def empty(capacities, n_envs):
    return ReplayBuffer(capacities, OBSERVATIONS, ACTIONS, n=len(capacities), n_envs=n_envs)


@pytest.fixture
def segments(monkeypatch):
    """Sets how many rows a file has."""

    def of(n):
        row = 4 * (OBSERVATIONS + ACTIONS + 2)
        monkeypatch.setattr("erl.learners.core.replay._SEGMENT_BYTES", n * row)

    return of


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize(
    ("capacities", "n_envs"), [([20], 1), ([8, 16, 30], 1), ([16, 30], 2), ([24], 3)]
)
def test_a_checkpoint_of_any_step_holds_what_was_lived(
    size, capacities, n_envs, segments, tmp_path
):
    """And so does the buffer that goes on from it, with the running episodes or with others."""
    segments(size)
    rng = np.random.default_rng([size, n_envs, *capacities])
    lives, buffer = Lives(rng, capacities, n_envs), empty(capacities, n_envs)
    folders = [tmp_path / str(i) for i in range(len(capacities))]
    for _ in range(3 * max(capacities) // n_envs):
        lives.step(buffer)
        states = [buffer.save(folder, i) for i, folder in enumerate(folders)]
        again = empty(capacities, n_envs)
        for i, (folder, state) in enumerate(zip(folders, states)):
            again.load(folder, state, i)
        lives.check(again)
        if rng.random() < 0.2:
            buffer = again
            for i, k in np.argwhere(rng.random(lives.shape) < 0.5).tolist():
                lives.leave(buffer, i, k)
    lives.check(buffer)


def test_what_stands_apart_already_takes_no_second_row(tmp_path):
    """An episode that was cut and then cannot go on leaves its last observation once."""
    buffer, rng = empty([4], 1), np.random.default_rng(0)
    for _ in range(30):
        seen, last = rng.normal(size=(2, 1, 1, OBSERVATIONS))
        action, number = rng.normal(size=(1, 1, ACTIONS)), np.zeros((1, 1))
        cut = [(0, 0, last[0, 0])]
        buffer.add_step(seen, action, seen, number, number, cut)
        # Rows that were never written may hold anything, also NaN: their bits are compared.
        rows = buffer._rows.clone().view(torch.int32)
        buffer.leave(0, 0)
        assert torch.equal(buffer._rows.view(torch.int32), rows)
    assert len(buffer) == 4


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_buffer_whose_checkpoint_is_refused_is_as_new(n_envs, segments, tmp_path):
    """Though all files but the last one can be read."""
    segments(8)
    lives, buffer = Lives(np.random.default_rng(0), [40, 40], n_envs), empty([40, 40], n_envs)
    for _ in range(36 // n_envs):
        lives.step(buffer)
    state = buffer.save(tmp_path, 1)
    last = tmp_path / list(state["files"])[-1]
    last.write_bytes(last.read_bytes()[:-8])
    again = empty([40, 40], n_envs)
    with pytest.raises(ValueError):  # noqa: PT011
        again.load(tmp_path, state, 1)
    lives = Lives(np.random.default_rng(1), [40, 40], n_envs)
    for _ in range(60 // n_envs):
        lives.step(again)
        lives.check(again)
