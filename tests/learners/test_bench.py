"""What workers do: actors and critics against autograd, episodes against Gymnasium, any order and
any company.
"""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from evolved import REACH, act, at_work, episode, lifetime

from erl.executors.virtual_clock import WorkerJob
from erl.learners.core.bench import Bench, Play, TrainActor, TrainCritics
from erl.learners.core.episodes import OpenStage
from erl.learners.core.evolved_td3 import first_networks
from erl.learners.core.export import PlainPolicy
from erl.worlds.ledger import Ledger


@pytest.fixture
def bench():
    """A bench of four workers, whose replay buffer holds some episodes."""
    work = at_work(lifetime("AES-RL", 10**6))
    made = Bench(work.spec, work.settings, Ledger(), 4, 1000)
    genes, critics = first_networks(made, torch.Generator().manual_seed(1))
    for seed in range(5):
        play = Play(seed, genes, seed, random=seed)
        made.play([WorkerJob("play", play)], None)
        made.receive(play.episode)
    yield made, genes, critics
    made.close()
    work.close()


def policy_of(made, genes, critics):
    """The same networks in PyTorch."""
    observation_space = gym.spaces.Box(-np.inf, np.inf, (made.sizes[0],))
    action_space = gym.spaces.Box(-1, 1, (made.sizes[-1],))
    policy = PlainPolicy(observation_space, action_space, lambda _: 1e-3, net_arch=[8, 8])
    copy_in(policy.actor.mu, made.layers(genes))
    copy_in(policy.actor_target.mu, made.layers(genes))
    for critic, members in zip((policy.critic, policy.critic_target), made.critic_layers(critics)):
        for network, layers in zip(critic.q_networks, members):
            copy_in(network, layers)
    return policy


def linear(network):
    return [m for m in network.modules() if isinstance(m, torch.nn.Linear)]


def copy_in(network, layers):
    with torch.no_grad():
        for module, layer in zip(linear(network), layers, strict=True):
            module.weight.copy_(layer.weight.t())
            module.bias.copy_(layer.bias)


def compare(network, layers):
    for module, layer in zip(linear(network), layers, strict=True):
        assert torch.allclose(module.weight.t(), layer.weight, atol=2e-5)
        assert torch.allclose(module.bias, layer.bias, atol=2e-5)


def first(made, critics):
    return critics[0].reshape(2, -1)[0].numpy().copy()


def training(made, genes, critics, worker=0, seed=7):
    return TrainActor(worker, genes, first(made, critics), seed)


def test_an_actor_ascends_the_first_critic(bench):
    """Update by update, as autograd and `torch.optim.Adam` do on the same minibatches."""
    made, genes, critics = bench
    job = WorkerJob("train_actor", training(made, genes, critics), 5)
    made.train_actors([job], [2])
    made.train_actors([job], [3])
    policy, rng = policy_of(made, genes, critics), np.random.default_rng(7)
    adam = torch.optim.Adam(policy.actor.mu.parameters(), made.settings.learning_rate)
    for _ in range(5):
        places = torch.from_numpy(rng.integers(len(made.buffer), size=16))
        seen = made.buffer.batch(places).observations.clone()
        loss = -policy.critic.q1_forward(seen, policy.actor.mu(seen)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    compare(policy.actor.mu, made.layers(job.data.genes))
    assert not np.array_equal(job.data.genes, genes)


def test_critics_descend_the_error_of_td3(bench):
    """Twin critics, smoothed target actions of the given policy, targets that follow at every
    update.
    """
    made, genes, critics = bench
    other = genes + np.float32(0.1)
    job = WorkerJob("train_critics", TrainCritics(4, critics, other, 3), 4)
    made.train_critics([job], [1])
    made.train_critics([job], [3])
    policy, s = policy_of(made, other, critics), made.settings
    adam = torch.optim.Adam(policy.critic.parameters(), s.learning_rate)
    rngs = [np.random.default_rng(seed) for seed in np.random.SeedSequence(3).spawn(2)]
    for _ in range(4):
        places = rngs[0].integers(len(made.buffer), size=(1, 16))[0]
        noise = torch.from_numpy(rngs[1].standard_normal((1, 16, 1), dtype=np.float32)[0])
        batch = made.buffer.batch(torch.from_numpy(places))
        with torch.no_grad():
            smoothing = (noise * 0.2).clamp(-0.5, 0.5)
            next_actions = (policy.actor_target.mu(batch.next_observations) + smoothing).clamp(
                -1, 1
            )
            next_q_values = torch.cat(
                policy.critic_target(batch.next_observations, next_actions), 1
            )
            target_q_values = batch.rewards + batch.not_done * s.gamma * next_q_values.amin(1, True)
        actions = batch.pairs[:, made.sizes[0] :]
        loss = sum(
            torch.nn.functional.mse_loss(q, target_q_values)
            for q in policy.critic(batch.observations, actions)
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for target, parameter in zip(
                policy.critic_target.parameters(), policy.critic.parameters()
            ):
                target.lerp_(parameter, s.tau)
    assert job.data.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    for critic, members in zip(
        (policy.critic, policy.critic_target), made.critic_layers(job.data.critics)
    ):
        for network, layers in zip(critic.q_networks, members):
            compare(network, layers)


def test_actors_side_by_side_become_what_each_becomes_alone(bench):
    """To the last bit, whatever the others do, and however the updates are cut."""
    made, genes, critics = bench
    starts = [genes + np.float32(0.01 * k) for k in range(4)]
    alone = []
    for worker, start in enumerate(starts):
        job = WorkerJob("train_actor", training(made, start, critics, worker, worker), 6 + worker)
        made.train_actors([job], [6 + worker])
        alone.append(job.data.genes)
    jobs = [
        WorkerJob("train_actor", training(made, start, critics, worker, worker), 6 + worker)
        for worker, start in enumerate(starts)
    ]
    made.train_actors(jobs[:1] + jobs[2:], [2, 5, 1])
    made.train_actors(jobs, [4, 7, 3, 8])
    assert all(np.array_equal(job.data.genes, a) for job, a in zip(jobs, alone))


def test_a_job_begins_afresh_whoever_did_what_before(bench):
    made, genes, critics = bench
    results = []
    for _ in range(2):
        actor, critic = training(made, genes, critics), TrainCritics(4, critics, genes, 3)
        made.train_actors([WorkerJob("train_actor", actor, 3)], [3])
        made.train_critics([WorkerJob("train_critics", critic, 3)], [3])
        results.append((actor.genes, [t.numpy() for t in critic.critics]))
    assert np.array_equal(results[0][0], results[1][0])
    assert all(np.array_equal(a, b) for a, b in zip(results[0][1], results[1][1]))


def test_an_episode_is_gymnasiums(bench):
    made, genes, _ = bench
    play = Play(2, genes * 3, 11)
    ticks, ended = made.play([WorkerJob("play", play)], None)
    assert (ticks, ended) == (20, [True])
    total, _ = episode(gym.make(REACH), genes * 3, made.sizes, 11)
    assert play.episode.total == pytest.approx(total, abs=1e-5)


def test_random_actions_are_the_seeds(bench):
    made, genes, _ = bench
    plays = [Play(worker, genes, 1, random=seed) for worker, seed in enumerate((5, 5, 6))]
    for k in (0, 1, 2):  # beside others or alone
        made.play([WorkerJob("play", plays[k])] + [WorkerJob("play", p) for p in plays[3:]], None)
    actions = [play.episode.actions for play in plays]
    assert np.array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])
    assert np.abs(actions[0]).max() <= 1.0


def test_an_actor_in_a_batch_acts_as_alone(bench):
    made, genes, _ = bench
    plays = [Play(k, genes * (k + 1), k) for k in range(4)]
    alone = [copy.deepcopy(play) for play in plays]
    made.play([WorkerJob("play", play) for play in plays], 7)
    made.play([WorkerJob("play", play) for play in plays[1:]], 5)
    jobs = [WorkerJob("play", play) for play in plays]
    while any(play.episode is None for play in plays):
        made.play([job for job in jobs if job.data.episode is None], None)
    for play in alone:
        made.play([WorkerJob("play", play)], None)
    for one, other in zip(plays, alone):
        assert np.array_equal(one.episode.observations, other.episode.observations)
        assert np.array_equal(one.episode.rewards, other.episode.rewards)


def test_genes_are_laid_out_layer_after_layer(bench):
    made, genes, critics = bench
    policy = policy_of(made, genes, critics)
    seen = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    with torch.no_grad():
        expected = policy.actor.mu(torch.from_numpy(seen)).numpy()
    assert act(genes, made.sizes, seen) == pytest.approx(expected, abs=1e-6)


# -- episodes in flight --


def stage_of(env_id=REACH, n=2):
    spec = lifetime("AES-RL", 10**6, env_id=env_id)
    return OpenStage(spec, Ledger(), n)


def step(stage, slots, value):
    return stage.advance(np.array(slots), np.full((len(slots), 1), value, np.float32), len(slots))


def test_a_running_episode_goes_on_elsewhere():
    one = stage_of()
    one.begin(0, 3)
    step(one, [0], 0.5)
    one.begin(1, 4)
    for _ in range(6):
        step(one, [0, 1], -0.3)
    other = stage_of()
    other.set_state(pickle.loads(pickle.dumps(one.get_state())))
    for stage in (one, other):
        while not step(stage, [0, 1], 0.1).any():
            pass
    for slot in (0, 1):
        mine, theirs = one.take(slot), other.take(slot)
        assert np.array_equal(mine.observations, theirs.observations)
        assert np.array_equal(mine.rewards, theirs.rewards)
        assert (mine.truncated, mine.cut) == (theirs.truncated, theirs.cut)
    assert mine.cut
    one.close()
    other.close()


def test_where_an_environment_does_otherwise_the_episode_begins_anew(monkeypatch):
    one, other = stage_of(), stage_of()
    one.begin(0, 3)
    for _ in range(6):
        step(one, [0], 0.5)
    state = one.get_state()
    kind = type(gym.make(REACH).unwrapped)
    reset = kind.reset

    def moved(self, **kwargs):
        result = reset(self, **kwargs)
        self.x += 0.1
        return self._observe(), result[1]

    monkeypatch.setattr(kind, "reset", moved)
    other.set_state(state)
    steps = 0
    while not step(other, [0], 0.1).any():
        steps += 1
    assert steps == 19
    assert len(other.take(0).rewards) == 20
    one.close()
    other.close()
