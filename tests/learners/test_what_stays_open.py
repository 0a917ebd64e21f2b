"""A learner that cannot be made leaves neither environments nor logs open."""

import threading
from typing import ClassVar

import gymnasium as gym
import pytest
from toy_environments import Steady

from erl.errors import UserError
from erl.learners import Outputs
from erl.learners.derl.api import DERL
from erl.lifetimes.living import Cohort, live
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task, check_task

ENV = "Numbered-v0"
SMALL = {"batch_size": 4, "buffer_size": 200, "learning_starts": 10}
# Learner, engine and settings, with three environments at least; and what comes late in its making.
LEARNERS = {
    ("PPO", "cohort"): ({"n_envs": 3}, ["ppo.learner.CohortPPO"]),
    ("TD3", "cohort"): ({"n_envs": 3, **SMALL}, ["core.off_policy.OffPolicy.__init__"]),
    ("A2C", "sb3"): ({"n_envs": 3, "normalize": True}, ["sb3.VecNormalize", "sb3.DummyVecEnv"]),
    ("AES-RL", "auto"): (
        {"actor_workers": 3, "mean_update_param": 1.0, **SMALL},
        ["core.evolved_td3.inner_workers", "core.bench.ReplayBuffer"],
    ),
    ("ERL-Re2", "auto"): ({"pop_size": 3, **SMALL}, ["erl_re2.learner.ReplayBuffer"]),
    ("DERL", "auto"): ({"population_size": 4, **SMALL}, ["derl.learner.ReplayBuffer"]),
}


class Numbered(Steady):
    """Only so many can be made."""

    left = 0
    opened: ClassVar[set] = set()

    def __init__(self):
        if Numbered.left == 0:
            raise RuntimeError("no more licences")
        super().__init__()
        Numbered.left -= 1
        self.opened.add(self)

    def close(self):
        self.opened.discard(self)


gym.register(ENV, Numbered)


@pytest.fixture
def nothing_open():
    """Says afterwards that nothing is open that was not before."""
    Numbered.left = 1
    check_task.cache_clear()
    check_task(Task(ENV))
    Numbered.left = 100
    Numbered.opened.clear()
    before = set(threading.enumerate())
    yield
    assert not Numbered.opened
    assert set(threading.enumerate()) <= before  # TensorBoard's write in threads


def refuse(*arguments, **named):
    raise MemoryError("nothing is left")


def error_of(name, engine, settings, context=None):
    learner, seeds = LearnerSpec(name, settings, engine), Seeds.derive(0, "single", 0)
    spec = LifetimeSpec(Task(ENV), learner, 100, seeds, context)
    (record,) = live(Cohort((spec,), (Outputs(tensorboard="logs"),)))
    return record.error


@pytest.mark.parametrize("learner", LEARNERS, ids="-".join)
def test_environments_that_were_made_before_one_that_cannot_be(learner, nothing_open):
    Numbered.left = 2
    assert "no more licences" in error_of(*learner, LEARNERS[learner][0])
    assert not Numbered.left


@pytest.mark.parametrize(
    ("learner", "part"), [(k, part) for k, (_, parts) in LEARNERS.items() for part in parts]
)
def test_what_was_made_before_another_part_that_cannot_be(learner, part, nothing_open, monkeypatch):
    monkeypatch.setattr(f"erl.learners.{part}", refuse)
    assert "nothing is left" in error_of(*learner, LEARNERS[learner][0])


@pytest.mark.parametrize(
    ("learner", "part"),
    [
        (("PPO", "cohort"), "world.ContextEncoder"),
        (("A2C", "sb3"), "specification.ReservoirWrapper"),
    ],
)
def test_environments_whose_reservoirs_cannot_be_made(learner, part, nothing_open, monkeypatch):
    monkeypatch.setattr(f"erl.worlds.{part}", refuse)
    context = Context((ReservoirParams(units=5),))
    assert "nothing is left" in error_of(*learner, LEARNERS[learner][0], context)


@pytest.mark.parametrize("left", [2, 100])
def test_an_agent_of_derl_that_cannot_be_made(left, nothing_open, monkeypatch):
    Numbered.left = left
    monkeypatch.setattr("erl.learners.derl.api.Actions", refuse)
    with pytest.raises(UserError if left == 2 else MemoryError):
        DERL(env_name=ENV, population_size=4, tensorboard="logs")
