import pickle
import random

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium import spaces

from erl.errors import UserError
from erl.worlds.ledger import Ledger
from erl.worlds.lockstep import Lockstep
from erl.worlds.snapshots import snapshot
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task
from erl.worlds.world import World

SEEDS = (3, 14, 159)
FAST = [
    f"{name}-{version}"
    for name in (
        "HalfCheetah",
        "Hopper",
        "Walker2d",
        "Swimmer",
        "Ant",
        "Reacher",
        "InvertedPendulum",
        "InvertedDoublePendulum",
    )
    for version in ("v4", "v5")
]
EACH = [
    "CartPole-v1",
    "Pendulum-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Acrobot-v1",
    "Humanoid-v5",
    "Pusher-v5",
    "LunarLander-v3",
]
# Constructor arguments that change what is observed, paid for or ended.
VARIANTS = [
    (
        "HalfCheetah-v4",
        {"exclude_current_positions_from_observation": False, "ctrl_cost_weight": np.float64(0.3)},
    ),
    ("HalfCheetah-v5", {"frame_skip": 3, "forward_reward_weight": 2}),
    (
        "Hopper-v4",
        {"terminate_when_unhealthy": False, "exclude_current_positions_from_observation": False},
    ),
    ("Hopper-v5", {"terminate_when_unhealthy": False, "healthy_state_range": (-5.0, 5.0)}),
    ("Walker2d-v4", {"terminate_when_unhealthy": False, "healthy_reward": 0.7}),
    ("Walker2d-v5", {"healthy_z_range": (0.9, 1.5), "healthy_reward": 2}),
    ("Swimmer-v4", {"exclude_current_positions_from_observation": False}),
    ("Ant-v4", {"use_contact_forces": True, "exclude_current_positions_from_observation": False}),
    (
        "Ant-v5",
        {
            "include_cfrc_ext_in_observation": False,
            "main_body": "torso",
            "terminate_when_unhealthy": False,
        },
    ),
    ("Ant-v5", {"contact_force_range": (-0.3, 0.2), "contact_cost_weight": 0.1}),
    ("Reacher-v5", {"reward_dist_weight": 0.3, "reward_control_weight": 2.0}),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 3.0}),
]

quiet = pytest.mark.filterwarnings("ignore::UserWarning")


def make(env_id, n=3, wrap=lambda env: env, **kwargs):
    return [wrap(gym.make(env_id, **kwargs)) for _ in range(n)]


def assert_steps_like_gymnasium(lockstep, envs, steps, keep=slice(None)):
    """Random actions in both, with episodes cut short at times, so that every environment is reset
    now and then.
    """
    rng = np.random.default_rng(0)
    box = isinstance(lockstep.action_space, spaces.Box)
    for i, (env, seed) in enumerate(zip(envs, SEEDS)):
        assert np.array_equal(lockstep.reset(i, seed), env.reset(seed=seed)[0][keep])
    ends = 0
    for t in range(steps):
        if box:
            low, high = (
                np.clip(b, -2, 2) for b in (lockstep.action_space.low, lockstep.action_space.high)
            )
            actions = rng.uniform(low, high, (len(envs), *low.shape)).astype(np.float32)
            # A stretch of small actions, so that what falls by itself lives a little.
            actions *= 0.1 if t % 400 > 200 else 1.0
        else:
            actions = rng.integers(lockstep.action_space.n, size=len(envs))
        observations, rewards, terminated, truncated = lockstep.step(actions)
        assert observations.dtype == rewards.dtype == np.float64
        for i, env in enumerate(envs):
            observation, reward, ended, cut, _ = env.step(actions[i] if box else int(actions[i]))
            assert np.array_equal(observations[i], observation[keep]), (t, i)
            assert (rewards[i], terminated[i], truncated[i]) == (reward, ended, cut), (t, i)
            if ended or cut or rng.random() < 0.003:
                ends += 1
                assert np.array_equal(lockstep.reset(i), env.reset()[0][keep])
    assert not lockstep.faults
    assert ends > 1
    return lockstep


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("env_id", FAST + EACH)
def test_equals_gymnasium_bit_for_bit(env_id):
    steps = 300 if env_id.startswith("Humanoid") else 1200
    lockstep = assert_steps_like_gymnasium(Lockstep(make(env_id)), make(env_id), steps)
    assert lockstep.fast == (env_id in FAST)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize(("env_id", "kwargs"), VARIANTS)
def test_equals_gymnasium_for_any_arguments(env_id, kwargs):
    lockstep = Lockstep(make(env_id, **kwargs))
    assert_steps_like_gymnasium(lockstep, make(env_id, **kwargs), 400)
    assert lockstep.fast


@quiet
@pytest.mark.parametrize(
    ("env_id", "keep"),
    [("HalfCheetah-v4", range(8)), ("Hopper-v5", [4, 0]), ("CartPole-v1", [0, 2])],
)
def test_keep_shows_agents_part_of_the_observation(env_id, keep):
    lockstep = Lockstep(make(env_id), keep=np.array(keep))
    assert lockstep.observation_space.shape == (len(keep),)
    assert np.array_equal(
        lockstep.observation_space.high, gym.make(env_id).observation_space.high[list(keep)]
    )
    assert_steps_like_gymnasium(lockstep, make(env_id), 300, list(keep))


@quiet
def test_time_limit_is_counted():
    lockstep = Lockstep(make("HalfCheetah-v4", max_episode_steps=7))
    for i in range(3):
        lockstep.reset(i, 0)
    for t in range(7):
        *_, truncated = lockstep.step(np.zeros((3, 6)))
        assert truncated.any() == (t == 6)
        if t == 2:
            lockstep.reset(1)
    assert truncated.tolist() == [True, False, True]


class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


@quiet
def test_further_wrappers_and_subclasses_step_themselves():
    def wrap(env):
        return gym.wrappers.ClipAction(Doubled(env))

    lockstep = Lockstep(make("HalfCheetah-v4", wrap=wrap))
    assert not assert_steps_like_gymnasium(lockstep, make("HalfCheetah-v4", wrap=wrap), 600).fast

    class Cheetah(type(gym.make("HalfCheetah-v4").unwrapped)):
        pass

    assert not Lockstep([Cheetah()]).fast
    assert not Lockstep(
        [*make("HalfCheetah-v4", 1), *make("HalfCheetah-v4", 1, ctrl_cost_weight=0.2)]
    ).fast


@quiet
def test_an_environment_with_a_method_of_its_own_steps_itself():
    """One that was put on the object, and not on a class."""
    (env,) = make("HalfCheetah-v4", 1)
    assert Lockstep([env]).fast
    core, step = env.unwrapped, env.unwrapped.step
    core.step = lambda action: (*step(action)[:1], 7.0, *step(action)[2:])
    lockstep = Lockstep([env])
    assert not lockstep.fast
    lockstep.reset(0, seed=0)
    assert lockstep.step(np.zeros((1, 6)))[1].tolist() == [7.0]


class Counter(gym.Env):
    """Observes how many steps it made; at step `at` of an episode it does what `fault` says."""

    observation_space = spaces.Box(-np.inf, np.inf, (1, 2))
    action_space = spaces.Discrete(2)

    def __init__(self, fault="none", at=3):
        self.fault, self.at, self.t = fault, at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.fault == "reset":
            raise OSError("no such world")
        self.t = 0
        return np.full((1, 2), np.nan if self.fault == "first" else 0.0), {}

    def step(self, action):
        assert type(action) is int
        self.t += 1
        now = self.fault if self.t == self.at else "none"
        if now == "raise":
            raise ZeroDivisionError("the world divides by zero")
        observation = np.full((1, 2), np.inf if now == "observation" else self.t)
        return (
            observation,
            np.nan if now == "reward" else self.np_random.random(),
            self.t == 50,
            False,
            {},
        )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            "raise",
            "the environment raised ZeroDivisionError: the world divides by zero at step 3 of "
            "its episode",
        ),
        (
            "reward",
            "the environment returned a reward that is not finite at step 3 of its episode: nan",
        ),
        (
            "observation",
            "the environment returned an observation that is not finite at step 3 of its "
            "episode: [inf inf]",
        ),
        ("reset", "the environment raised OSError: no such world when it was reset"),
        (
            "first",
            "the environment returned an observation that is not finite when it was reset: [nan "
            "nan]",
        ),
    ],
)
def test_a_faulty_environment_is_taken_out_alone(fault, reason):
    lockstep = Lockstep([Counter(), Counter(fault), Counter()])
    alone = Lockstep([Counter()])
    for i in range(3):
        assert np.array_equal(lockstep.reset(i, seed=i), [0, 0])
    alone.reset(0, seed=2)
    for t in range(1, 8):
        observations, rewards, terminated, truncated = lockstep.step([0, 1, 0])
        assert np.array_equal(observations[[0, 2]], np.full((2, 2), t))
        assert rewards[2] == alone.step([0])[1][0]
        if t >= 3 or fault in ("reset", "first"):
            assert not observations[1].any()
            assert (rewards[1], terminated[1], truncated[1]) == (0, False, False)
            assert lockstep.faults[1].reason == reason
    assert list(lockstep.faults) == [1]
    assert ("Traceback" in lockstep.faults[1].traceback) == (fault in ("raise", "reset"))
    assert not lockstep.reset(1, seed=0).any()


@quiet
def test_physics_that_raises_is_taken_out_alone(monkeypatch):
    lockstep, alone = Lockstep(make("Hopper-v4")), Lockstep(make("Hopper-v4", 1))
    for i in range(3):
        lockstep.reset(i, seed=i)
    alone.reset(0, seed=2)
    physics, broken = mujoco.mj_step, lockstep.envs[1].unwrapped.data

    def step(model, data, n):
        if data is broken:
            raise mujoco.FatalError("out of stack memory")
        physics(model, data, n)

    monkeypatch.setattr(mujoco, "mj_step", step)
    for _ in range(2):
        after, reference = lockstep.step(np.zeros((3, 3))), alone.step(np.zeros((1, 3)))
        assert all(np.array_equal(a[2], r[0]) for a, r in zip(after, reference))
        assert not any(a[1].any() for a in after)
    assert "out of stack memory at step 1 of its episode" in lockstep.faults[1].reason


@quiet
def test_a_diverged_simulation_is_taken_out_alone(monkeypatch):
    lockstep, alone = Lockstep(make("Hopper-v4")), Lockstep(make("Hopper-v4", 1))
    for i in range(3):
        lockstep.reset(i, seed=i)
    alone.reset(0, seed=2)
    physics, diverging = mujoco.mj_step, lockstep.envs[0].unwrapped.data

    def step(model, data, n):
        physics(model, data, n)
        if data is diverging:
            data.qpos[0] = np.nan

    monkeypatch.setattr(mujoco, "mj_step", step)
    for _ in range(3):
        after, reference = lockstep.step(np.zeros((3, 3))), alone.step(np.zeros((1, 3)))
        assert all(np.array_equal(a[2], r[0]) for a, r in zip(after, reference))
    assert list(lockstep.faults) == [0]
    assert "a reward that is not finite at step 1" in lockstep.faults[0].reason
    assert not lockstep.faults[0].by_policy


@quiet
def test_an_action_that_is_not_finite_takes_its_environment_out_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the working directory
    lockstep, alone = Lockstep(make("Hopper-v4")), Lockstep(make("Hopper-v4", 1))
    for i in range(3):
        lockstep.reset(i, seed=i)
    alone.reset(0, seed=2)
    actions = np.zeros((3, 3))
    actions[0] = np.nan
    for _ in range(3):
        after, reference = lockstep.step(actions), alone.step(actions[2:])
    assert list(lockstep.faults) == [0]
    assert lockstep.faults[0].by_policy
    assert "an action that is not finite at step 1 of its episode: [nan" in (
        lockstep.faults[0].reason
    )
    assert all(np.array_equal(a[2], r[0]) for a, r in zip(after, reference))
    lockstep.keep([2])
    assert not lockstep.faults
    assert np.array_equal(lockstep.step(actions[2:])[0], alone.step(actions[2:])[0])


def build(kind):
    if kind == "Counter":
        return Lockstep([Counter() for _ in SEEDS])
    if kind == "wrapped":
        # A wrapper with a state of its own, around one that holds a lambda.
        return Lockstep(
            make(
                "Ant-v5",
                wrap=lambda env: gym.wrappers.NormalizeReward(gym.wrappers.ClipAction(env)),
            )
        )
    return Lockstep(make(kind))


def random_steps(lockstep, n_steps, seed):
    """What n_steps random steps return; ended episodes begin again."""
    rng, returned = np.random.default_rng(seed), []
    for _ in range(n_steps):
        size = (lockstep.n, *lockstep.action_space.shape)
        box = isinstance(lockstep.action_space, spaces.Box)
        returned.append(
            lockstep.step(rng.uniform(-1, 1, size) if box else rng.integers(2, size=size))
        )
        for i in np.flatnonzero(returned[-1][2] | returned[-1][3]):
            returned.append([lockstep.reset(i)])
    return returned


@quiet
@pytest.mark.parametrize("kind", [*FAST, *EACH, "wrapped", "Counter"])
def test_state_continues_bit_for_bit(kind):
    reference, restored = build(kind), build(kind)
    for i, seed in enumerate(SEEDS):
        reference.reset(i, seed)
    random_steps(reference, 37, seed=0)
    state = reference.get_state()
    if kind == "LunarLander-v3":
        starts = [reference.reset(i) for i in range(3)]
    expected = random_steps(reference, 60, seed=1)
    lost = restored.set_state(pickle.loads(pickle.dumps(state)), range(3))
    if kind == "LunarLander-v3":
        # Box2D's world cannot be had: the episodes begin again, from the same random stream.
        assert lost == [0, 1, 2]
        with pytest.raises(gym.error.ResetNeeded):
            restored.step([0, 0, 0])
        assert np.array_equal(starts, [restored.reset(i) for i in lost])
    else:
        assert lost == []
    for a, b in zip(random_steps(restored, 60, seed=1), expected, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert np.array_equal(restored.elapsed, reference.elapsed)


class Plant:
    """A simulator that can be pickled."""

    def __init__(self):
        self.level = np.zeros(1)


class Kept(Counter):
    """Keeps its simulator in an attribute of this name, which Gymnasium's MuJoCo environments have
    for other things.
    """

    def __init__(self, name):
        super().__init__()
        vars(self)[name] = Plant()
        self.name = name

    def step(self, action):
        level = vars(self)[self.name].level
        level += 1
        observation, *others = super().step(action)
        return observation + level, *others


class Viewed(Counter):
    """Keeps an array and a view of it."""

    def __init__(self):
        super().__init__()
        self.state = np.zeros(4)
        self.position = self.state[:2]

    def step(self, action):
        self.state += 1
        observation, *others = super().step(action)
        return observation + self.position, *others


class OwnPhysics(Counter):
    """Keeps MuJoCo's objects in its own way: the model as `m`, the data as `name`, and with `view`
    an array of it.
    """

    def __init__(self, name, view):
        super().__init__()
        self.m = mujoco.MjModel.from_xml_string(
            "<mujoco><worldbody><body><joint type='slide'/><geom size='1'/></body></worldbody>"
            "</mujoco>"
        )
        self.name = name
        vars(self)[name] = mujoco.MjData(self.m)
        if view:
            self.qpos = vars(self)[name].qpos

    def step(self, action):
        mujoco.mj_step(self.m, vars(self)[self.name])
        observation, *others = super().step(action)
        return observation + vars(self)[self.name].qpos, *others


class Forwards(Counter):
    """Its random stream is another one's, and cannot be assigned.

    Args:
        held: what else it keeps.
    """

    def __init__(self, held=None):
        super().__init__()
        self.held, self.stream = held, np.random.default_rng(0)

    @property
    def np_random(self):
        return self.stream

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.stream = np.random.default_rng(seed)
        return super().reset(seed=seed)


class Chance(Counter):
    """Its random stream is of another kind, and cannot be assigned."""

    def __init__(self):
        super().__init__()
        self.held, self.stream = [lambda: None], random.Random(0)

    @property
    def np_random(self):
        return self.stream


gym.register("Local-v0", lambda: Counter())


@pytest.mark.parametrize(
    ("make_one", "comes_back"),
    [
        (lambda: Kept("plant"), True),
        (lambda: Kept("model"), True),
        (lambda: Kept("data"), True),
        (lambda: Kept("mujoco_renderer"), True),
        (Viewed, False),
        (Forwards, True),
        (lambda: Forwards([lambda: None]), False),
        (lambda: gym.make("Local-v0", disable_env_checker=True), True),
        (lambda: OwnPhysics("data", False), False),
        (lambda: OwnPhysics("d", True), False),
    ],
)
def test_state_comes_back_whole_or_is_said_to_be_lost(make_one, comes_back):
    reference, restored = (Lockstep([make_one(), make_one()]) for _ in range(2))
    for i in range(2):
        reference.reset(i, i)
    random_steps(reference, 10, seed=0)
    lost = restored.set_state(pickle.loads(pickle.dumps(reference.get_state())), range(2))
    assert lost == ([] if comes_back else [0, 1])
    for i in lost:
        assert np.array_equal(reference.reset(i), restored.reset(i))
    # Where episodes began again, these simulators did not: the rest is of the same stream.
    compared = slice(0 if comes_back else 1, None)
    for a, b in zip(random_steps(restored, 8, 1), random_steps(reference, 8, 1), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a[compared], b[compared], strict=True))


def test_a_random_stream_that_cannot_be_had_costs_the_episode_only():
    reference, restored = (Lockstep([Chance()]) for _ in range(2))
    reference.reset(0, 3)
    random_steps(reference, 4, seed=0)
    assert restored.set_state(reference.get_state(), [0]) == [0]
    assert np.array_equal(restored.reset(0), [0, 0])


def test_state_of_a_class_that_has_changed_is_lost(monkeypatch):
    reference, restored = (Lockstep([Kept("plant")]) for _ in range(2))
    reference.reset(0, 3)
    state = pickle.dumps(reference.get_state())
    monkeypatch.delattr(f"{__name__}.Plant")
    assert restored.set_state(pickle.loads(state), [0]) == [0]


@pytest.mark.parametrize("saved", ["cut", "fewer layers", "other physics", "no physics"])
def test_state_that_does_not_fit_is_lost(saved):
    mine, hopper, pendulum = (
        Lockstep(make(name, n=1)) for name in ("HalfCheetah-v5", "Hopper-v5", "Pendulum-v1")
    )
    for lockstep in (mine, hopper, pendulum):
        lockstep.reset(0, 3)
    state = mine.get_state()
    states = {
        "cut": state["envs"][0][:-9],
        "fewer layers": snapshot(mine.envs[0].env),
        "other physics": hopper.get_state()["envs"][0],
        "no physics": pendulum.get_state()["envs"][0],
    }
    assert mine.set_state(state | {"envs": [states[saved]]}, [0]) == [0]


@quiet
@pytest.mark.parametrize("env_id", ["Walker2d-v4", "Pendulum-v1"])
def test_retain_goes_on_with_the_slots_named(env_id):
    lockstep, reference = Lockstep(make(env_id)), Lockstep(make(env_id))
    for i, seed in enumerate(SEEDS):
        lockstep.reset(i, seed), reference.reset(i, seed)
    actions = np.random.default_rng(0).uniform(-0.2, 0.2, (9, 3, *lockstep.action_space.shape))
    for a in actions[:4]:
        lockstep.step(a), reference.step(a)
    lockstep.keep([2, 0])
    assert lockstep.n == 2
    for a in actions[4:]:
        assert all(
            np.array_equal(x, y[[2, 0]])
            for x, y in zip(lockstep.step(a[[2, 0]]), reference.step(a))
        )


class Silent(gym.Env):
    """Has spaces and does nothing."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


def test_arrays_belong_to_the_caller():
    lockstep = Lockstep([Counter(), Counter()])
    lockstep.reset(0, 0), lockstep.reset(1, 0)
    first = lockstep.step([0, 0])
    copies = [a.copy() for a in first]
    lockstep.step([0, 0])
    lockstep.reset(0)
    assert all(np.array_equal(a, c) for a, c in zip(first, copies))


def test_errors_name_the_cause():
    with pytest.raises(ValueError, match="at least one"):
        Lockstep([])
    with pytest.raises(ValueError, match="share"):
        Lockstep([gym.make("CartPole-v1"), gym.make("Pendulum-v1")])
    with pytest.raises(UserError, match=r"has Sequence observations.*Tuple and Dict"):
        Lockstep([Silent(spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2))])
    with pytest.raises(UserError, match=r"has actions Text"):
        Lockstep([Silent(spaces.Discrete(2), spaces.Text(3))])
    with pytest.raises(gym.error.ResetNeeded):
        Lockstep([Counter()]).step([0])


@quiet
def test_a_world_goes_on_with_the_random_streams_of_its_agents():
    """Box2D's episodes begin again. After each resumption they began with the same starts."""
    specs = [
        LifetimeSpec(
            Task("LunarLander-v3"),
            LearnerSpec("PPO", {}, "cohort"),
            1000,
            Seeds.derive(0, "single", i),
        )
        for i in range(3)
    ]

    def made():
        world = World(specs, [Ledger() for _ in specs])
        world.reset()
        return world

    world, anew = made(), made()
    for _ in range(150):  # some episodes end
        world.step(np.zeros((3, 1), dtype=int))
    states = pickle.loads(pickle.dumps(world.get_states()))
    starts = {slot: world.begin(slot).copy() for slot in (1, 2)}
    found = anew.set_states([None, *states[1:]])
    assert sorted(found) == [(1, 0), (2, 0)]
    for (agent, _), start in found.items():
        assert np.array_equal(start, starts[agent])
    assert not np.array_equal(starts[1], made().begin(1))


def test_a_fault_tells_the_steps_of_all_environments_of_its_agent():
    spec = LifetimeSpec(
        Task("toy_environments:Faulty-raise-v0"),
        LearnerSpec("PPO", {}, "cohort"),
        1000,
        Seeds.derive(0, "single", 0),
    )
    world = World([spec], [Ledger()], n_envs=2)
    world.reset()
    while not world.faults:
        world.step(np.zeros((1, 2, 1), dtype=int))
    assert str(world.faults[0]).endswith("(about step 102)")
