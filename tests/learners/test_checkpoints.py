"""Named parts of several agents' checkpoints: what each comes back to, and who begins anew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from erl.learners.core.checkpoints import (
    Attributes,
    beside,
    checkpoint_steps,
    load_checkpoint,
    remove_checkpoint,
    restore_parts,
    save_parts,
)
from erl.learners.core.replay import ReplayBuffer
from erl.learners.core.settings import Schedule, Settings, Share
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

STEPS = (40, 1_234_567)


@dataclass(frozen=True)
class Mine(Settings):
    learner = "Mine"
    gamma: Share = 0.9
    rate: Share | Schedule = 0.1


class Weights:
    """Of all agents of a cohort."""

    def __init__(self, n):
        self.values = np.zeros((n, 3))

    def get_states(self):
        return [row.copy() for row in self.values]

    def set_states(self, states):
        for row, state in zip(self.values, states):
            if state is not None:
                row[:] = state


class Cohort:
    """Two agents with a part of each kind."""

    def __init__(self, seed):
        self.specs = [
            LifetimeSpec(
                Task("CartPole-v1"), LearnerSpec("Mine"), 100, Seeds.derive(0, "single", i)
            )
            for i in range(2)
        ]
        self.settings = [Mine(), Mine()]
        self.weights = Weights(2)
        self.rngs = [np.random.default_rng([seed, i]) for i in range(2)]
        self.torch_rngs = [torch.Generator().manual_seed(seed + i) for i in range(2)]
        self.buffers = [ReplayBuffer(10, 2, 1) for _ in range(2)]
        self.parts = {
            "weights": self.weights,
            "rng": self.rngs,
            "torch_rng": self.torch_rngs,
            "buffer": self.buffers,
            "count": [Attributes(self, "first"), Attributes(self, "second")],
        }
        self.first = self.second = 0

    def live(self):
        """Some steps of life; what they depend on and what they lead to."""
        for i, (rng, torch_rng, buffer) in enumerate(
            zip(self.rngs, self.torch_rngs, self.buffers, strict=True)
        ):
            x = rng.normal(size=(3, 2))
            buffer.add(x, x[:, :1], x, x[:, 0], np.zeros(3))
            self.weights.values[i] += rng.normal() * float(torch.rand(1, generator=torch_rng))
        self.first, self.second = self.first + 1, self.second + 2

    def essence(self, i):
        buffer = self.buffers[i]
        rows = buffer._rows[: len(buffer)].numpy().tolist()
        count = (self.first, self.second)[i]
        return self.weights.values[i].tolist(), rows, self.rngs[i].bit_generator.state, count


def test_every_part_comes_back(tmp_path):
    cohort, paths = Cohort(1), [str(tmp_path / "a.pkl"), None]
    for _ in range(3):
        cohort.live()
        save_parts(paths, cohort.specs, cohort.settings, cohort.parts, STEPS)
    other = Cohort(7)
    taken = restore_parts(paths, other.specs, other.settings, other.parts)
    assert taken == [True, False]
    cohort.live()
    other.live()
    assert other.essence(0) == cohort.essence(0)
    fresh = Cohort(7)
    fresh.live()
    assert other.essence(1) == fresh.essence(1)
    assert not beside("None").exists()


def test_agents_that_are_left_are_saved_in_their_order(tmp_path):
    cohort, paths = Cohort(1), [str(tmp_path / "a.pkl"), str(tmp_path / "b.pkl")]
    cohort.live()
    cohort.weights.values = cohort.weights.values[1:]
    left = {"weights": cohort.weights, "rng": cohort.rngs[1:]}
    save_parts(paths[1:], cohort.specs[1:], cohort.settings[1:], left, STEPS[1:])
    assert load_checkpoint(paths[0], cohort.specs[0], frozenset()) is None
    names = frozenset({"settings", "weights", "rng"})
    state = load_checkpoint(paths[1], cohort.specs[1], names)
    assert state["weights"].tolist() == cohort.weights.values[0].tolist()
    with pytest.raises(ValueError, match="zip"):
        save_parts(paths, cohort.specs, cohort.settings, left, STEPS)


def test_a_checkpoint_tells_its_steps_without_being_loaded(tmp_path, monkeypatch):
    cohort, paths = Cohort(1), [str(tmp_path / "a.pkl"), str(tmp_path / "b.pkl")]
    save_parts(paths, cohort.specs, cohort.settings, cohort.parts, STEPS)
    with monkeypatch.context() as without:
        without.setattr("pickle.loads", None)
        assert [checkpoint_steps(path) for path in paths] == [*STEPS]
    # Of other libraries, which is not taken up.
    with monkeypatch.context() as upgraded:
        upgraded.setattr("erl.learners.core.checkpoints.versions", lambda: {"numpy": "99"})
        assert [checkpoint_steps(path) for path in paths] == [0, 0]
    # Of an earlier version, empty, and missing.
    earlier = Path(paths[0])
    content, *_ = earlier.read_bytes().rpartition(b"\nsteps 40 by ")
    earlier.write_bytes(content)
    assert restore_parts(paths, cohort.specs, cohort.settings, cohort.parts) == [True, True]
    (tmp_path / "empty.pkl").write_bytes(b"")
    for left in (earlier, tmp_path / "empty.pkl", tmp_path / "none.pkl"):
        assert checkpoint_steps(str(left)) == 0


@pytest.mark.parametrize("change", ["settings", "buffer", "parts"])
def test_an_agent_whose_checkpoint_does_not_fit_begins_anew(tmp_path, caplog, change):
    """With nothing of the old one, its buffer's content neither; the other goes on."""
    cohort, paths = Cohort(1), [str(tmp_path / "a.pkl"), str(tmp_path / "b.pkl")]
    cohort.live()
    save_parts(paths, cohort.specs, cohort.settings, cohort.parts, STEPS)
    other, expected = Cohort(7), Cohort(7)
    if change == "settings":
        other.settings[0] = Mine(gamma=0.5)
    elif change == "buffer":
        next(beside(paths[0]).glob("*.npy")).unlink()
    else:
        other.parts["more"] = [Attributes(other), Attributes(other)]
    taken = restore_parts(paths, other.specs, other.settings, other.parts)
    assert taken == [False, change != "parts"]
    assert caplog.text.count("begins anew") == taken.count(False)
    assert other.essence(0) == expected.essence(0)
    assert other.essence(1) == (cohort if taken[1] else expected).essence(1)
    for path in paths:
        remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def test_schedules_are_compared_by_what_they_are(tmp_path):
    cohort, paths = Cohort(1), [str(tmp_path / "a.pkl"), None]
    cohort.settings = [Mine(rate="lin_0.2"), Mine()]
    save_parts(paths, cohort.specs, cohort.settings, cohort.parts, STEPS)
    # The second finds what the first leaves: a checkpoint that does not fit is set aside.
    for rate, taken in (("lin_0.2", True), ("lin_0.3", False)):
        other = Cohort(7)
        other.settings = [Mine(rate=rate), Mine()]
        found = restore_parts(paths, other.specs, other.settings, other.parts)
        assert found == [taken, False]


def test_a_full_disk_costs_the_checkpoint_only(tmp_path, monkeypatch, caplog):
    cohort, paths = Cohort(1), [str(tmp_path / "a.pkl"), None]
    cohort.live()
    save_parts(paths, cohort.specs, cohort.settings, cohort.parts, STEPS)
    before = cohort.essence(0)
    cohort.live()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("erl.learners.core.checkpoints.write_whole", full)
    save_parts(paths, cohort.specs, cohort.settings, cohort.parts, STEPS)
    assert "no checkpoint written: no space left" in caplog.text
    other = Cohort(7)
    assert restore_parts(paths, other.specs, other.settings, other.parts) == [True, False]
    assert other.essence(0) == before


@pytest.mark.parametrize("refused", ["unlink", "is_dir"])
def test_a_checkpoint_that_cannot_be_removed_costs_a_warning(
    refused, tmp_path, monkeypatch, caplog
):
    path = tmp_path / "a.pkl"
    path.touch()

    def refuse(*_, **__):
        raise PermissionError("Read-only file system")

    monkeypatch.setattr(Path, refused, refuse)
    remove_checkpoint(str(path))
    assert "not needed any more: Read-only file system" in caplog.text
    monkeypatch.undo()
    remove_checkpoint(str(path))
    assert not list(tmp_path.iterdir())
