"""AES-RL and P-CEM-RL with workers in processes: the same learner, deaths, going on, and the order
of events beside that of the virtual clock.
"""

import os
import signal
from itertools import cycle
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from evolved import at_work, episode, lifetime, train, until, weights

from erl.errors import Stopped
from erl.executors.worker_processes import ProcessHost
from erl.learners import get_learner
from erl.worlds.ledger import Ledger

SLOW = "toy_environments:Slow-v0"


def processes(name, steps, **settings):
    return lifetime(name, steps, actor_executor="processes", actor_workers=2, **settings)


@pytest.fixture
def work():
    """What is at work on a lifetime whose actors and critics die; it is closed."""
    made = []

    def make(spec):
        made.append(at_work(spec))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.slow
def test_individuals_are_asked_again_when_workers_die(work):
    """An actor's, and the critics': nothing is lost, and nothing is told twice."""
    w = work(processes("AES-RL", 10**6, rl_ratio=0.8))
    told, tell = [], w.tell
    w.tell = lambda verdict: (told.append(verdict.individual), tell(verdict))
    host = w.workers._host
    until(w, 8)
    os.kill(host.pids[0], signal.SIGKILL)
    until(w, 14)
    assert 2 in host.pids  # the critics'
    os.kill(host.pids[2], signal.SIGKILL)
    updates = w.critic_updates
    while w.critic_updates < updates + 60:
        w.iterate()
    until(w, 20)
    assert w.workers.lost == 2
    numbers = sorted(individual.number for individual in told)
    assert len(set(numbers)) == len(numbers)
    missing = set(range(max(numbers))) - set(numbers)
    assert len(missing) <= 2  # at work
    # Every individual played the episode that its number and genes stand for.
    for individual in told[10:]:
        if not individual.random:
            seed = w._seed(0, individual.number, of="environment")
            env = gym.make("toy_environments:Reach-v0")
            total, _ = episode(env, individual.genes, w.bench.sizes, seed)
            assert individual.fitness == pytest.approx(total, abs=1e-4)
    assert w.ledger.steps >= 20 * 40
    assert len(w.bench.buffer) == w.stored_steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AES-RL", {"env_id": SLOW, "learning_starts": 40, "critic_job": 50}),
        ("P-CEM-RL", {"rl_population": 1, "learning_starts": 40}),
    ],
)
def test_a_worker_that_dies_while_it_waits_is_replaced(work, name, settings):
    """The critics' at the limit of its updates; or an actor's that waits for the others."""
    w = work(processes(name, 10**6, **settings))
    host, jobs = w.workers._host, w.workers._jobs
    until(w, 6)
    worker = 2 if name == "AES-RL" else 1
    while jobs[worker] is not None or worker not in host.pids:
        w.iterate()
    os.kill(host.pids[worker], signal.SIGKILL)
    updates = w.critic_updates
    while not w.workers.lost or worker not in host.pids or w.critic_updates == updates:
        w.iterate()
    until(w, w.told + 4)
    assert w.workers.lost == 1


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.slow
def test_a_killed_run_asks_individuals_in_flight_again(tmp_path, monkeypatch):
    spec, path = processes("AES-RL", 900), str(tmp_path / "a.pkl")
    learner, count = get_learner("AES-RL"), 0
    iterate = learner.algorithm.iterate

    def killed(self):
        nonlocal count
        count += self.told >= 8
        if count == 1:
            raise Killed
        iterate(self)

    monkeypatch.setattr(learner.algorithm, "iterate", killed)
    with pytest.raises(Killed):
        train(spec, checkpoint=path, checkpoint_seconds=0.0)
    assert Path(path).exists()
    agent, ledger = train(spec, checkpoint=path, checkpoint_seconds=0.0)
    assert 900 <= ledger.steps <= 902
    kept = ledger.notes()["kept"]
    assert kept["individuals"] == list(range(1, len(kept["individuals"]) + 1))
    assert len(set(kept["individual"])) == len(kept["individual"]) > 15
    assert torch.isfinite(weights(agent)).all()


@pytest.mark.slow
def test_p_cem_rl_without_rl_is_the_same_with_processes():
    """Nothing depends on the order of events there."""
    settings = {"rl_population": 0, "learning_starts": 0}
    here, one = train(lifetime("P-CEM-RL", 320, **settings))
    there, other = train(processes("P-CEM-RL", 320, **settings))
    assert torch.equal(weights(here), weights(there))
    assert sorted(r for _, r, _ in one.episodes) == sorted(r for _, r, _ in other.episodes)


@pytest.mark.slow
def test_ages_agree_with_those_of_the_virtual_clock(monkeypatch):
    """On the virtual clock two workers whose episodes take equally long end them in turns. With
    processes ages are the same where they are heard in this order, whatever the machine does
    meanwhile.
    """
    wait, held, turns = ProcessHost.wait, {}, cycle([0, 1])
    turn = next(turns)

    def wait_in_turns(self, seconds):
        nonlocal turn
        held.update(wait(self, seconds))
        heard = []
        while turn in held:
            heard.append((turn, held.pop(turn)))
            turn = next(turns)
        return heard

    monkeypatch.setattr(ProcessHost, "wait", wait_in_turns)
    settings = {"rl_ratio": 0.0, "learning_starts": 0, "mean_evaluations": 2}
    ages = []
    for executor in ("lockstep", "processes"):
        spec = lifetime("AES-RL", 1800, actor_workers=2, actor_executor=executor, **settings)
        ages.append(train(spec)[1].notes()["kept"]["age"])
    # Processes count steps of individuals that are not told yet, and may end one earlier.
    told = min(map(len, ages))
    assert told > 20
    assert ages[0][:told] == ages[1][:told]
    assert set(ages[0][10:]) == {1}


def test_it_stops_when_it_is_told_and_leaves_nothing_in_shared_memory():
    ledger = Ledger()
    ledger.should_stop = lambda: ledger.steps >= 60
    with pytest.raises(Stopped):
        train(processes("AES-RL", 10**6), ledger)
    assert ledger.steps < 10**5


def test_a_fault_elsewhere_fails_the_lifetime():
    with pytest.raises(Exception, match="the simulator exploded"):
        train(processes("AES-RL", 600, env_id="toy_environments:Faulty-raise-v0"))
