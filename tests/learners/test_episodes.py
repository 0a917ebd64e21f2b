"""Episodes of several policies side by side, held to environments of Gymnasium stepped one by
one.
"""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from toy_environments import Reach

from erl.errors import EnvironmentFault, Stopped
from erl.learners.core.episodes import OpenStage, Stage
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

ONE = Context((ReservoirParams(units=30, sr=0.9, lr=0.5),))
TWO = Context(
    (ReservoirParams(units=12, sr=0.9), ReservoirParams(units=8, bias=0.4)),
    skip_c=True,
    reset_res=False,
)


def lifetime(env_id="Hopper-v4", context=None, steps=100_000, **task):
    return LifetimeSpec(
        Task(env_id, **task), LearnerSpec("ERL-Re2"), steps, Seeds.derive(0, "single", 1), context
    )


def heads(spec, n):
    """Policies that answer to what they see, each its own way."""
    observation_space, action_space = spec.spaces()
    rng = np.random.default_rng(0)
    shape = (n, observation_space.shape[0], action_space.shape[0])
    weights = (0.3 * rng.normal(size=shape)).astype(np.float32)

    def act(who, seen):
        assert seen.dtype == np.float32
        rows = [np.tanh(row @ weights[i]) for i, row in zip(who, seen)]
        return np.stack(rows).astype(np.float32)

    return act


def one_by_one(spec, act, plays, n):
    """What each policy lives through in an environment of its own, stepped through all wrappers;
    seeds are drawn as `Stage` draws them.
    """
    envs = [spec.make_env() for _ in range(n)]
    rng = np.random.default_rng(spec.seeds.environment)
    space = envs[0].action_space
    for k, limit in plays:
        seeds = [int(rng.integers(2**31)) for _ in range(k)]
        for i, seed in enumerate(seeds):
            seen, actions, rewards = [envs[i].reset(seed=seed)[0].astype(np.float32)], [], []
            ended = cut = False
            while not (ended or cut or len(rewards) == limit):
                (action,) = act([i], seen[-1][None])
                executed = space.low + 0.5 * (action + 1.0) * (space.high - space.low)
                observation, reward, ended, cut, _ = envs[i].step(executed.astype(space.dtype))
                seen.append(observation.astype(np.float32))
                actions.append(action)
                rewards.append(float(reward))
            yield np.stack(seen), np.stack(actions), np.array(rewards), ended, cut


@pytest.mark.parametrize(
    ("env_id", "context", "task"),
    [
        ("Hopper-v4", None, {}),
        ("Hopper-v4", ONE, {}),
        ("Walker2d-v5", TWO, {"frame_stack": 3}),
        ("Walker2d-v5", dataclasses.replace(ONE, feed_action=False, obs_units=7), {}),
        ("Pendulum-v1", ONE, {"del_obs": True, "frame_stack": 2}),
        ("LunarLanderContinuous-v3", dataclasses.replace(TWO, reset_res=True), {}),
    ],
)
def test_episodes_equal_those_of_plain_environments_bit_for_bit(env_id, context, task):
    spec, n = lifetime(env_id, context, **task), 4
    act, plays = heads(spec, n), [(4, None), (1, None), (4, 17), (3, 60), (4, None)]
    stage = Stage(spec, ledger := Ledger(), n)
    episodes = [e for k, limit in plays for e in stage.play(act, k, limit)]
    stage.close()
    assert ledger.steps == sum(len(e.rewards) for e in episodes)
    for episode, expected in zip(episodes, one_by_one(spec, act, plays, n), strict=True):
        observations, actions, rewards, terminated, truncated = expected
        for ours, theirs in (
            (episode.observations, observations),
            (episode.actions, actions),
            (episode.rewards, rewards),
        ):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert np.array_equal(ours, theirs)
        assert (episode.terminated, episode.truncated) == (terminated, truncated)
        assert not episode.cut


@pytest.mark.parametrize("context", [None, TWO])
def test_a_state_between_episodes_is_all_it_takes_to_go_on(context):
    spec = lifetime(context=context)
    act = heads(spec, 3)
    first, second = (Stage(spec, Ledger(), 3) for _ in range(2))
    first.play(act, 3)
    second.set_state(first.get_state())
    for ours, theirs in zip(first.play(act, 3), second.play(act, 3)):
        assert np.array_equal(ours.observations, theirs.observations)
        assert np.array_equal(ours.rewards, theirs.rewards)
    first.close(), second.close()


class Track(gym.Env):
    """Shows what is recorded, whatever the seed, and cannot be stepped past its end."""

    observation_space = spaces.Box(-10, 10, (1,))
    action_space = spaces.Box(-1, 1, (1,))
    recorded = (0, 1)

    def _look(self):
        return np.array(self.track[self.t : self.t + 1], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.track, self.t = self.recorded, 0
        return self._look(), {}

    def step(self, action):
        self.t += 1
        return self._look(), self.track[self.t], self.t == len(self.track) - 1, False, {}


gym.register("Track-v0", Track)


@pytest.mark.parametrize("context", [None, TWO])
@pytest.mark.parametrize(
    ("now", "goes_on"),
    [
        ((0, 1, 2, 3, 4, 5, 6), True),
        ((0, 1, 2, 3, 9, 9), True),  # it did the same so far
        ((9, 1, 2, 3, 4, 5), False),
        ((0, 1, 9, 3, 4, 5), False),  # and is again where it was
        ((0, 1, 9), False),
        ((9, 9), False),
        ((0, 1, 2, 3), False),
    ],
)
def test_a_running_episode_goes_on_or_begins_anew(now, goes_on, context, monkeypatch):
    """Anew where an environment does otherwise this time, which ends earlier perhaps."""
    spec, slots, action = lifetime("Track-v0", context), np.array([1]), np.zeros((1, 1))
    monkeypatch.setattr(Track, "recorded", (0, 1, 2, 3, 4, 5, 6))
    stage, again, fresh = (OpenStage(spec, Ledger(), 2) for _ in range(3))
    stage.begin(1, seed=5)
    for _ in range(3):
        assert not stage.advance(slots, action, 1)
    monkeypatch.setattr(Track, "recorded", now)
    again.set_state(stage.get_state())
    fresh.begin(1, seed=5)
    assert np.array_equal(again.seen(slots), (stage if goes_on else fresh).seen(slots))
    while not again.advance(slots, action, 1):
        pass
    earned = [*(0, 1, 2, 3), *now[4:]] if goes_on else now
    assert again.take(1).rewards.tolist() == [*earned[1:]]
    stage.close(), again.close(), fresh.close()


def still(who, seen):
    return np.zeros((len(who), 1))


def test_only_a_spent_budget_cuts_an_episode(monkeypatch):
    """Whoever lives longest has what the others leave."""
    stage = Stage(lifetime("toy_environments:Reach-v0", steps=40), ledger := Ledger(), 5)
    lengths = {id(e.unwrapped): n for e, n in zip(stage.world.envs, (40, 2, 3, 2, 3))}
    taken = dict.fromkeys(lengths, 0)
    step = Reach.step

    def shortened(self, action):
        taken[id(self)] += 1
        observation, reward, _, truncated, info = step(self, action)
        return observation, reward, taken[id(self)] == lengths[id(self)], truncated, info

    monkeypatch.setattr(Reach, "step", shortened)
    episodes = stage.play(still, 5)
    assert [len(e.rewards) for e in episodes] == [20, 2, 3, 2, 3]
    assert [(e.terminated, e.truncated) for e in episodes] == [(False, True)] + [(True, False)] * 4
    assert not any(e.cut for e in episodes)
    episodes = stage.play(still, 2)
    assert [(len(e.rewards), e.cut, e.ended) for e in episodes] == [(5, True, False)] * 2
    assert ledger.steps == 40
    assert ledger.episodes == []
    stage.close()


def test_an_episode_may_end_with_the_last_step_of_the_budget():
    stage = Stage(lifetime("toy_environments:Reach-v0", steps=40), Ledger(), 2)
    assert [(e.truncated, e.cut) for e in stage.play(still, 2)] == [(True, False)] * 2
    (one,) = stage.play(still)  # at least a step, whatever is left
    assert (len(one.rewards), one.cut) == (1, True)
    stage.close()


def test_actions_reach_the_environment_in_its_own_range(monkeypatch):
    stage = Stage(lifetime("toy_environments:Lopsided-v0"), Ledger(), 2)
    executed, step = [], Reach.step
    monkeypatch.setattr(Reach, "step", lambda self, a: executed.append(a) or step(self, a))
    stage.play(lambda who, seen: np.array([[0.5], [-1.0]]), 2, limit=2)
    stage.close()
    assert np.concatenate(executed).tolist() == [0.0, -3.0] * 2
    assert {a.dtype for a in executed} == {np.dtype(np.float32)}


def test_it_stops_when_it_is_told():
    stage = Stage(lifetime("toy_environments:EndlessReach-v0"), ledger := Ledger(), 2)
    ledger.should_stop = lambda: ledger.steps >= 10
    with pytest.raises(Stopped):
        stage.play(still, 2)
    assert ledger.steps == 10
    stage.close()


def test_a_faulty_environment_is_told_with_its_step():
    stage = Stage(lifetime("toy_environments:Faulty-raise-v0"), Ledger(), 2)
    for _ in range(5):
        stage.play(still, 2)
    with pytest.raises(EnvironmentFault, match=r"RuntimeError: the simulator exploded.*about step"):
        stage.play(still, 2)
    stage.close()
