import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from reservoirpy.nodes import Reservoir
from stable_baselines3.common.env_checker import check_env as sb3_check

from erl.errors import UserError
from erl.worlds.context import ReservoirWrapper
from erl.worlds.reservoirs import (
    Context,
    ReservoirBank,
    ReservoirParams,
    UnsoundReservoir,
    make_node,
)
from erl.worlds.specification import from_json, to_json
from erl.worlds.tasks import Task, make_env

# Contracting reservoirs (sr < 1), every parameter off its default once.
PARAMS = [
    ReservoirParams(sr=0.9, lr=0.3),
    ReservoirParams(sr=0.5, lr=1.0, iss=0.3, bias=0.7),
    ReservoirParams(sr=0.99, lr=0.05, iss=2.0, rc_connectivity=0.5, input_connectivity=1.0),
    ReservoirParams(sr=0.0, lr=0.5),
]


@pytest.mark.parametrize("params", PARAMS)
def test_one_reservoir_equals_reservoirpy_over_1000_steps(params):
    inputs = np.random.default_rng(0).normal(size=(1000, 7))
    node, bank = make_node(params, 7, seed=11), ReservoirBank([[params]], [11], 7)
    for u in inputs:
        expected = node.step(u)
        np.testing.assert_allclose(bank.step(u[None])[0], expected, rtol=0, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_many_reservoirs_side_by_side_equal_reservoirpy_over_1000_steps():
    """Three agents with two reservoirs each, of different sizes and parameters."""
    params = [
        [
            ReservoirParams(units=40, sr=0.9, lr=0.2 + 0.1 * i),
            ReservoirParams(units=60, sr=0.4, iss=0.5),
        ]
        for i in range(3)
    ]
    seeds = [5, 100, 7]
    nodes = [[make_node(p, 6, s + k) for k, p in enumerate(ps)] for ps, s in zip(params, seeds)]
    bank = ReservoirBank(params, seeds, 6)
    for u in np.random.default_rng(1).normal(size=(1000, 3, 6)):
        expected = np.stack([np.concatenate([n.step(x) for n in ns]) for ns, x in zip(nodes, u)])
        np.testing.assert_allclose(bank.step(u), expected, rtol=0, atol=1e-6)
    assert np.abs(expected[:, :40]).max() > 1e-3
    assert np.abs(expected[:, 40:]).max() > 1e-3


@pytest.mark.parametrize("sr", [0.9, 30.0])
def test_states_do_not_depend_on_the_neighbours_to_the_last_bit(sr):
    params = [[ReservoirParams(units=50, sr=sr, lr=0.1 * (i + 1))] for i in range(5)]
    bank = ReservoirBank(params, range(5), 4)
    alone = ReservoirBank([params[3]], [3], 4)
    single = ReservoirBank([params[3]], [3], 4)
    for t, u in enumerate(np.random.default_rng(2).normal(size=(300, 5, 4))):
        together = bank.step(u)[3]
        np.testing.assert_array_equal(together, alone.step(u[3:4])[0])
        np.testing.assert_array_equal(together, single.step_one(0, u[3]))
        if t == 150:
            bank.keep([3])
            break
    for u in np.random.default_rng(3).normal(size=(50, 1, 4)):
        np.testing.assert_array_equal(bank.step(u), alone.step(u))


def test_weights_follow_from_the_seed():
    a, b, c = (ReservoirBank([[ReservoirParams()]], [s], 3) for s in (1, 1, 2))
    u = np.ones((1, 3))
    np.testing.assert_array_equal(a.step(u), b.step(u))
    assert not np.array_equal(a.state, c.step(u))


def reservoir_env(env_id="Pendulum-v1", del_obs=False, seed=3, **options):
    context = Context((ReservoirParams(units=30, sr=0.8, lr=0.5),), **options)
    return ReservoirWrapper(make_env(Task(env_id, del_obs)), context, seed)


@pytest.mark.parametrize("skip_c", [False, True])
@pytest.mark.parametrize("del_obs", [False, True])
@pytest.mark.parametrize(
    "env_id",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "MountainCar-v0",
        "MountainCarContinuous-v0",
        "LunarLander-v3",
        "LunarLanderContinuous-v3",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_wrapped_environments_pass_both_checkers(env_id, del_obs, skip_c):
    env = reservoir_env(env_id, del_obs, skip_c=skip_c)
    gymnasium_check(env, skip_render_check=True)
    sb3_check(env, warn=False)
    size = env.unwrapped.observation_space.shape[0] - (
        {"C": 2, "P": 1, "M": 1, "L": 3}[env_id[0]] if del_obs else 0
    )
    assert env.get_wrapper_attr("ledger") is not None
    assert env.encoder.bank.input_dim == size + 1 + (
        env.action_space.n if hasattr(env.action_space, "n") else env.action_space.shape[0]
    )


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_reservoir_answers_to_the_action(env_id):
    """With the same observation and reward: those of an environment answer to the action too."""
    low, high = (
        (0, 1)
        if env_id == "CartPole-v1"
        else (np.array([-2.0], np.float32), np.array([2.0], np.float32))
    )
    bank = reservoir_env(env_id).encoder
    observation, reward = np.full(bank._obs_dim, 0.1), np.zeros(1)
    fed = [bank_step(reservoir_env(env_id).encoder, observation, a, reward) for a in (low, high)]
    unfed = [
        bank_step(reservoir_env(env_id, feed_action=False).encoder, observation, a, reward)
        for a in (low, high)
    ]
    assert not np.array_equal(fed[0], fed[1])
    np.testing.assert_array_equal(unfed[0], unfed[1])


def bank_step(encoder, observation, action, reward):
    return encoder.step(observation[None], np.asarray(action)[None], reward).copy()


def test_the_wrapper_feeds_observation_action_and_reward_to_reservoirpys_node():
    env = reservoir_env("Pendulum-v1", skip_c=True)
    raw = gym.make("Pendulum-v1")
    node = make_node(ReservoirParams(units=30, sr=0.8, lr=0.5), 5, seed=3)
    for episode in range(2):
        node.reset()
        o, _ = raw.reset(seed=episode)
        seen, _ = env.reset(seed=episode)
        np.testing.assert_allclose(
            seen, np.concatenate([node.step(np.concatenate([o, [0, 0]])), o, [0, 0]]), atol=1e-6
        )
        for t in range(20):
            action = np.array([np.sin(t)], dtype=np.float32)
            o, r, *_ = raw.step(action)
            seen, *_ = env.step(action)
            u = np.concatenate([o, action, [r]])
            np.testing.assert_allclose(
                seen, np.concatenate([node.step(u), u]), rtol=1e-5, atol=1e-6
            )


def test_states_persist_across_episodes_if_told_so():
    for reset_res in (True, False):
        env = reservoir_env("CartPole-v1", reset_res=reset_res)
        first, _ = env.reset(seed=1)
        env.step(1)
        again, _ = env.reset(seed=1)
        assert np.array_equal(first, again) == reset_res


def test_bounds_of_the_skip_connection_are_the_environments():
    env = reservoir_env("MountainCarContinuous-v0", skip_c=True)
    raw = gym.make("MountainCarContinuous-v0").observation_space
    np.testing.assert_array_equal(env.observation_space.low[30:32], raw.low)
    np.testing.assert_array_equal(env.observation_space.high[30:32], raw.high)
    np.testing.assert_array_equal(env.observation_space.high[32:], [1.0, np.inf])
    np.testing.assert_array_equal(env.observation_space.low[:30], -np.ones(30))


@pytest.mark.parametrize(
    "bad", [{"units": 2}, {"lr": 0.0}, {"lr": 1.1}, {"sr": -1.0}, {"rc_connectivity": 0.0}]
)
def test_impossible_reservoirs_are_refused(bad):
    with pytest.raises(UserError):
        ReservoirParams(**bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(ReservoirParams)])
def test_hyperparameters_are_finite(name, bad):
    with pytest.raises(UserError, match=f"{name} must be a finite number, not"):
        ReservoirParams(**{name: bad})


# -- recurrent weights without a cycle --


def plain_node(params, seed):
    """ReservoirPy's own draw, whatever comes of it."""
    node = Reservoir(
        units=params.units, sr=params.sr, rc_connectivity=params.rc_connectivity, seed=seed
    )
    node.initialize(np.zeros(3))
    return node


def acyclic(weights):
    """Whether no power of the pattern returns to a neuron: some power of it is zero."""
    pattern = (abs(weights.toarray()) > 0).astype(int)
    return not np.linalg.matrix_power(pattern, len(pattern)).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("units", "connectivity", "sr"), [(10, 0.1, 1.0), (20, 0.01, 0.5), (30, 0.05, 2.0)]
)
def test_only_reservoirs_without_a_cycle_are_drawn_again(units, connectivity, sr):
    params = ReservoirParams(units=units, sr=sr, rc_connectivity=connectivity)
    drawn_again = 0
    for seed in range(60):
        theirs, ours = plain_node(params, seed), make_node(params, 3, seed)
        same = np.array_equal(theirs.W.toarray(), ours.W.toarray())
        largest = abs(theirs.W.toarray()).max()
        assert same == (not acyclic(theirs.W) and largest <= 1000 * sr)
        assert same == np.array_equal(theirs.Win.toarray(), ours.Win.toarray())
        drawn_again += not same
        assert np.abs(np.linalg.eigvals(ours.W.toarray())).max() == pytest.approx(sr, rel=0.01)
        assert abs(ours.W.toarray()).max() <= 1000 * sr * 1.01
        again = make_node(params, 3, seed)
        assert np.array_equal(again.W.toarray(), ours.W.toarray())
    assert 0 < drawn_again < 60


def test_without_recurrence_inputs_and_bias_stay():
    params = ReservoirParams(units=20, sr=0.7, rc_connectivity=0.05, bias=0.3)
    for seed in range(4):
        node, still = (make_node(dataclasses.replace(params, sr=sr), 3, seed) for sr in (0.7, 0.0))
        assert still.sr == 0.0
        assert not still.W.nnz
        assert np.array_equal(node.Win.toarray(), still.Win.toarray())
        assert np.array_equal(node.bias, still.bias)
    drawn_again = plain_node(params, 1).Win != make_node(params, 3, 1).Win
    assert drawn_again.nnz


def test_a_reservoir_that_cannot_be_drawn_says_so():
    params = ReservoirParams(units=50, rc_connectivity=0.0001)
    with pytest.raises(UnsoundReservoir, match=r"50 units with rc_connectivity=0.0001.* 21 draws"):
        make_node(params, 3, 0)
    # Without recurrence nothing has to be scaled.
    assert not make_node(dataclasses.replace(params, sr=0.0), 3, 0).W.nnz


def test_weights_and_inputs_of_large_reservoirs_are_reservoirpys():
    params = ReservoirParams(units=150, sr=0.7)
    assert np.array_equal(plain_node(params, 1).W.toarray(), make_node(params, 3, 1).W.toarray())


# -- bias --


def test_a_share_of_neurons_has_a_bias_and_other_draws_do_not_change():
    whole = ReservoirParams(units=100, bias=0.5)
    for share, n in ((0.1, 10), (0.29, 29), (0.004, 0), (1.0, 100)):
        node, without = (
            make_node(p, 3, 7)
            for p in (dataclasses.replace(whole, bias_connectivity=share), ReservoirParams())
        )
        assert np.count_nonzero(node.bias) == n
        assert set(np.unique(node.bias[node.bias != 0])) <= {-0.5, 0.5}
        assert np.array_equal(node.W.toarray(), without.W.toarray())
        assert np.array_equal(node.Win.toarray(), without.Win.toarray())
    assert "bias_connectivity" not in to_json(whole)
    part = dataclasses.replace(whole, bias_connectivity=0.1)
    assert from_json(ReservoirParams, to_json(part)) == part
