"""The oracle is Stable-Baselines3: it trains on a small environment, its rollouts are replayed to
the cohort, and all numbers are compared.
"""

import pickle
import random
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from erl.errors import UserError
from erl.learners.ppo.algorithm import CohortPPO
from erl.learners.ppo.exchange import to_sb3, vec_normalize
from erl.learners.ppo.settings import PPOSettings, cohort_key
from erl.learners.ppo.update import advantages

BOX = spaces.Box(np.array([-0.5, -1.0], np.float32), np.array([0.5, 0.7], np.float32))
DISCRETE = spaces.Discrete(4)
CHOICES = spaces.MultiDiscrete([3, 2, 4])
BITS = spaces.MultiBinary(3)
ALL = pytest.mark.parametrize(
    "action_space",
    [BOX, DISCRETE, CHOICES, BITS],
    ids=["Box", "Discrete", "MultiDiscrete", "MultiBinary"],
)
SMALL: dict[str, Any] = {"n_steps": 48, "batch_size": 16, "n_epochs": 3}


class Drift(gym.Env):
    """A leaky random walk, pushed by actions: episodes terminate at random, or are truncated by a
    `TimeLimit`.
    """

    def __init__(self, action_space: spaces.Space) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=5).astype(np.float32)
        return self.x, {}

    def step(self, action: Any) -> Any:
        push = np.resize(np.asarray(action, np.float32), 5)
        self.x = (0.9 * self.x + 0.3 * push + 0.3 * self.np_random.normal(size=5)).astype(
            np.float32
        )
        return (
            self.x,
            float(3.0 * self.x[0] - np.square(push).sum()),
            bool(self.np_random.random() < 0.05),
            False,
            {},
        )


class Recorder(VecEnvWrapper):
    """Notes what the environments return, before any normalisation."""

    def reset(self) -> np.ndarray:
        self.first, self.steps = self.venv.reset(), []
        return self.first.copy()

    def step_wait(self) -> Any:
        obs, rewards, ends, infos = self.venv.step_wait()
        self.steps.append((obs.copy(), rewards.copy(), ends.copy(), [dict(info) for info in infos]))
        return obs, rewards, ends, infos


class Teacher:
    """Stable-Baselines3's PPO after `rollouts` rollouts and updates, with notes of all that went in
    and came out.
    """

    def __init__(
        self, settings: dict[str, Any], action_space: spaces.Space, seed: int, rollouts: int = 2
    ) -> None:
        self.settings, self.action_space, self.seed = settings, action_space, seed
        settings = PPOSettings.from_learner_config(settings)
        self.config = c = settings
        self.recorder = Recorder(DummyVecEnv([partial(self.make_env, action_space)] * c.n_envs))
        env: Any = self.recorder
        if c.norm_obs or c.norm_reward:
            gamma = c.gamma if c.norm_gamma is None else c.norm_gamma
            env = VecNormalize(env, norm_obs=c.norm_obs, norm_reward=c.norm_reward, gamma=gamma)
        names = (
            "learning_rate",
            "n_steps",
            "batch_size",
            "n_epochs",
            "gamma",
            "gae_lambda",
            "clip_range",
            "clip_range_vf",
        )
        names += ("normalize_advantage", "ent_coef", "vf_coef", "max_grad_norm", "target_kl")
        kwargs = self.settings.get("policy_kwargs", {})
        if "activation_fn" in kwargs:
            kwargs = kwargs | {"activation_fn": getattr(torch.nn, kwargs["activation_fn"])}
        self.model = PPO(
            "MlpPolicy",
            env,
            seed=seed,
            device="cpu",
            policy_kwargs=kwargs,
            **{name: getattr(c, name) for name in names},
        )
        self.initial = {k: v.clone() for k, v in self.model.policy.state_dict().items()}
        self.notes: list[dict[str, Any]] = []
        train = self.model.train
        self.model.train = lambda: self.note(train)  # type: ignore[method-assign]
        self.model.learn(rollouts * c.n_steps * c.n_envs)

    @staticmethod
    def make_env(action_space: spaces.Space) -> gym.Env:
        return TimeLimit(Drift(action_space), 9)

    def note(self, train: Any) -> None:
        buffer = self.model.rollout_buffer
        note = {
            k: getattr(buffer, k).copy()
            for k in ("actions", "observations", "rewards", "values", "log_probs", "advantages")
        }
        note["progress"] = self.model._current_progress_remaining
        rng, orders = np.random.default_rng(len(self.notes)), []

        def permutation(n: int) -> np.ndarray:
            orders.append(rng.permutation(n))
            return orders[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "permutation", permutation)
            train()
        missing = self.config.n_epochs - len(orders)
        note["orders"] = orders + [rng.permutation(len(orders[0])) for _ in range(missing)]
        note["log"] = {
            k.removeprefix("train/"): v
            for k, v in self.model.logger.name_to_value.items()
            if "train/" in k
        }
        note["weights"] = {k: v.clone() for k, v in self.model.policy.state_dict().items()}
        note["moments"] = [
            {k: v.clone() for k, v in s.items()}
            for s in self.model.policy.optimizer.state_dict()["state"].values()
        ]
        self.notes.append(note)


def make_cohort(teachers: list[Teacher]) -> CohortPPO:
    t = teachers[0]
    return CohortPPO(
        [t.config for t in teachers],
        [t.seed for t in teachers],
        t.recorder.observation_space,
        t.action_space,
    )


def replay_rollout(cohort: CohortPPO, teachers: list[Teacher], r: int) -> None:
    """Show the cohort what the teachers saw and did in their rollout r."""
    c = teachers[0].config
    if r == 0:
        cohort.start(np.stack([t.recorder.first for t in teachers]))
    for step in range(c.n_steps):
        cohort.act()
        for i, t in enumerate(teachers):
            cohort._rollout[i, :, step, cohort._n_inputs + 1 :] = t.notes[r]["actions"][step]
        rows = [t.recorder.steps[r * c.n_steps + step] for t in teachers]
        timeouts = [
            (i, env, info["terminal_observation"])
            for i, (*_, infos) in enumerate(rows)
            for env, info in enumerate(infos)
            if info.get("TimeLimit.truncated")
        ]
        obs, rewards, ends = (np.stack(column) for column in list(zip(*rows))[:3])
        cohort.record(obs, rewards, ends, timeouts)


def replay(cohort: CohortPPO, teachers: list[Teacher], r: int) -> dict[str, np.ndarray]:
    replay_rollout(cohort, teachers, r)
    with pytest.MonkeyPatch.context() as patch:
        orders = np.array([t.notes[r]["orders"] for t in teachers])
        patch.setattr(cohort, "_orders", lambda block: orders[block])
        return cohort.update(teachers[0].notes[r]["progress"])


def assert_near(ours: Any, theirs: Any, what: str, tolerance: float = 1e-5) -> None:
    """Euclidean distance relative to the norm, and the largest difference relative to the largest
    entry (or to 1e-3).
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, what
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-3), what
    assert np.abs(a - b).max() <= 4 * tolerance * max(np.abs(b).max(), 1e-3), what


def assert_same_agent(cohort: CohortPPO, i: int, note: dict[str, Any]) -> None:
    weights = cohort._net.named(cohort._weights[i])
    for name, theirs in note["weights"].items():
        assert_near(weights[name], theirs, name)
    model = to_sb3(cohort, i)
    names = [name for name, _ in model.policy.named_parameters()]
    for name, moments in zip(names, note["moments"], strict=True):
        assert cohort._steps[i] == moments["step"]
        # A moment is a sum over gradients that partly cancel: its rounding is relative to theirs,
        # not to its own size.
        assert_near(
            cohort._net.named(cohort._first[i])[name],
            moments["exp_avg"],
            f"first moment of {name}",
            1e-4,
        )
        assert_near(
            cohort._net.named(cohort._second[i])[name],
            moments["exp_avg_sq"],
            f"second moment of {name}",
            1e-4,
        )


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "constants": {
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "ent_coef": 0.05,
        "vf_coef": 1.5,
        "clip_range": 0.05,
        "learning_rate": 3e-3,
    },
    "schedules": {"learning_rate": "lin_3e-3", "clip_range": "lin_0.1", "clip_range_vf": "lin_0.1"},
    "clip_range_vf": {"clip_range_vf": 0.05, "learning_rate": 3e-3},
    "advantages as they are": {"normalize_advantage": False},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "target_kl": {"target_kl": 0.003, "learning_rate": 3e-3},
    "n_envs": {"n_envs": 3},
    "last minibatch smaller": {"n_envs": 2, "n_steps": 21},
    "last minibatch of one": {"n_steps": 49},
    "batch larger than rollout": {"batch_size": 64},
    "no hidden layers": {"policy_kwargs": {"net_arch": []}},
    "policy without hidden layers": {"policy_kwargs": {"net_arch": {"vf": [8]}}},
    "other depths": {"policy_kwargs": {"net_arch": {"pi": [8, 9, 10], "vf": [20]}}},
    "ReLU": {"policy_kwargs": {"activation_fn": "ReLU", "ortho_init": False}},
    "ELU": {"policy_kwargs": {"activation_fn": "ELU"}},
    "LeakyReLU": {"policy_kwargs": {"activation_fn": "LeakyReLU"}},
    "Sigmoid": {"policy_kwargs": {"activation_fn": "Sigmoid"}},
    "log_std_init": {"policy_kwargs": {"log_std_init": -1.0}},
    "Adam's epsilon": {"policy_kwargs": {"optimizer_kwargs": {"eps": 1e-3}}},
    "normalize": {"normalize": True, "gamma": 0.9},
    "normalize, n_envs": {"normalize": True, "n_envs": 3},
    "normalize rewards": {"normalize": "dict(norm_obs=False, norm_reward=True, gamma=0.5)"},
    "normalize observations": {"normalize": {"norm_reward": False}},
}


# Options that have to do with the distribution of actions.
OF_ACTIONS = ("defaults", "constants", "target_kl", "last minibatch of one", "normalize, n_envs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "action_space"),
    [
        pytest.param(options, space, id=f"{name}-{type(space).__name__}")
        for name, options in OPTIONS.items()
        for space in (BOX, DISCRETE, CHOICES, BITS)
        if name in OF_ACTIONS or space in (BOX, DISCRETE)
    ],
)
def test_update_equals_stable_baselines3(
    options: dict[str, Any], action_space: spaces.Space
) -> None:
    # A third rollout keeps schedules off zero: with a clip range of 0 rounding alone decides what
    # is clipped.
    teacher = Teacher(SMALL | options, action_space, seed=3, rollouts=3)
    cohort = make_cohort([teacher])
    for name, value in cohort._net.named(cohort._weights[0]).items():
        assert np.array_equal(value, teacher.initial[name]), f"initial {name}"
    for r, note in enumerate(teacher.notes[:2]):
        statistics = replay(cohort, [teacher], r)
        assert_same_agent(cohort, 0, note)
        for name, theirs in note["log"].items():
            if name != "clip_range_vf":
                assert statistics[name][0] == pytest.approx(theirs, rel=1e-3, abs=1e-5), name


@pytest.mark.slow
@ALL
def test_agents_of_a_cohort_keep_their_own_settings(action_space: spaces.Space) -> None:
    options: list[dict[str, Any]] = [
        {"learning_rate": 1e-3, "gamma": 0.9},
        {
            "learning_rate": "lin_3e-3",
            "clip_range": 0.05,
            "clip_range_vf": 0.1,
            "max_grad_norm": 0.05,
        },
        {"learning_rate": 3e-3, "target_kl": 0.002, "ent_coef": 0.1},
        {"vf_coef": 2.0, "gae_lambda": 0.5, "normalize": "dict(gamma=0.3)"},
        {
            "learning_rate": 1e-2,
            "target_kl": 0.01,
            "policy_kwargs": {"log_std_init": -0.5, "optimizer_kwargs": {}},
        },
    ]
    teachers = [
        Teacher(SMALL | {"normalize": True} | o, action_space, seed=i, rollouts=3)
        for i, o in enumerate(options)
    ]
    assert (
        len({t.model.policy.optimizer.state_dict()["state"][0]["step"].item() for t in teachers})
        > 1
    )  # some stopped early
    cohort = make_cohort(teachers)
    for r in range(2):
        replay(cohort, teachers, r)
        for i, t in enumerate(teachers):
            assert_same_agent(cohort, i, t.notes[r])


@ALL
@pytest.mark.parametrize("normalize", [False, True])
def test_rollout_equals_stable_baselines3(action_space: spaces.Space, normalize: bool) -> None:
    teacher = Teacher(SMALL | {"n_envs": 2, "normalize": normalize}, action_space, seed=1)
    cohort = make_cohort([teacher])
    for r, note in enumerate(teacher.notes):
        replay_rollout(cohort, [teacher], r)
        assert cohort._timeouts
        values, log_probs, estimates = cohort._evaluate(slice(0, 1))
        by_env = {
            k: v.reshape(48, 2, -1).swapaxes(0, 1)
            for k, v in note.items()
            if isinstance(v, np.ndarray)
        }
        assert_near(cohort._rollout[0, ..., :5], by_env["observations"], "observations", 1e-6)
        assert_near(values[0], by_env["values"].ravel(), "values")
        assert_near(log_probs[0], by_env["log_probs"].ravel(), "log-probabilities", 1e-6)
        assert_near(estimates[0], by_env["advantages"].ravel(), "advantages")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cohort, "_orders", lambda block, note=note: np.array([note["orders"]]))
            cohort.update(note["progress"])
    if normalize:
        ours, theirs = vec_normalize(cohort, 0), teacher.model.get_vec_normalize_env()
        for a, b in ((ours.obs_rms, theirs.obs_rms), (ours.ret_rms, theirs.ret_rms)):
            np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
            np.testing.assert_allclose(a.var, b.var, rtol=1e-12)
            assert a.count == pytest.approx(b.count, rel=1e-12)


def test_advantages_by_hand() -> None:
    # Two steps, then an episode's end, then one step: delta = reward + 0.5 * next value - value,
    # decayed by 0.5 * 0.5.
    rewards, values = (
        np.array([[1.0, 2.0, 3.0]], np.float32),
        np.array([[1.0, 2.0, 4.0]], np.float32),
    )
    found = advantages(
        rewards,
        values,
        np.array([8.0], np.float32),
        np.array([[False, True, False]]),
        np.array([0.5]),
        np.array([0.5]),
    )
    np.testing.assert_array_equal(found, [[1.0 + 1.0 - 1.0 + 0.25 * 0.0, 0.0, 3.0 + 4.0 - 4.0]])


# What a cohort is for: the company changes nothing


def run(
    cohort: CohortPPO, rollouts: int, first: int = 0, agents: list[int] | None = None
) -> list[dict[str, np.ndarray]]:
    """Train on inputs that depend on the agent alone; `agents` are the cohort's agents under the
    names of a larger one.
    """
    c = cohort.settings[0]
    agents = list(range(len(cohort))) if agents is None else agents
    statistics = []
    for r in range(first, first + rollouts):
        rngs = [np.random.default_rng([a, r]) for a in agents]

        def obs(rngs: list = rngs) -> np.ndarray:
            return np.array([g.normal(size=(c.n_envs, cohort._n_inputs)) for g in rngs], np.float32)

        if r == 0:
            cohort.start(obs())
        for _ in range(c.n_steps):
            actions = cohort.act()
            score = actions.reshape(len(cohort), c.n_envs, -1).sum(axis=2)
            ends = np.array([g.random(c.n_envs) < 0.1 for g in rngs])
            lasts = [
                (i, e, rngs[i].normal(size=cohort._n_inputs).astype(np.float32))
                for i, e in zip(*ends.nonzero())
            ]
            cohort.record(obs(), score, ends, [last for last in lasts if last[2][0] > 0])
        statistics.append(cohort.update(1.0 - r / 4))
    return statistics


def own(i: int) -> dict[str, Any]:
    """Settings that only some agents have: they must not show in the others."""
    return {
        "target_kl": 0.01 * i or None,
        "clip_range_vf": 0.2 if i % 3 == 1 else None,
        "ent_coef": 0.01 * (i % 2),
    }


def make(
    n: int, action_space: spaces.Space, first: int = 0, n_inputs: int = 7, **options: Any
) -> CohortPPO:
    configs = [
        PPOSettings.from_learner_config(
            SMALL | {"learning_rate": 1e-3 * (1 + i)} | own(i) | options
        )
        for i in range(first, first + n)
    ]
    seeds = range(100 + first, 100 + first + n)
    return CohortPPO(configs, list(seeds), spaces.Box(-9, 9, (n_inputs,), np.float32), action_space)


def assert_identical(a: CohortPPO, i: int, b: CohortPPO, j: int) -> None:
    for name in CohortPPO._LASTING:
        assert np.array_equal(getattr(a, name)[i], getattr(b, name)[j]), name
    for one, other in ((a._obs_moments, b._obs_moments), (a._return_moments, b._return_moments)):
        assert all(np.array_equal(v[i], vars(other)[k][j]) for k, v in vars(one).items())
    assert a._rngs[i].bit_generator.state == b._rngs[j].bit_generator.state


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": True, "n_envs": 3}, {"n_inputs": 100, "batch_size": 64, "n_steps": 200}],
)
@ALL
def test_an_agent_is_identical_in_every_cohort(
    action_space: spaces.Space, options: dict[str, Any]
) -> None:
    crowd = make(21, action_space, **options)
    all_statistics = run(crowd, 2)
    for agents in ([0, 1, 2], [4], [20]):
        cohort = make(len(agents), action_space, first=agents[0], **options)
        few = run(cohort, 2, agents=agents)
        for i, agent in enumerate(agents):
            assert_identical(cohort, i, crowd, agent)
            for some, all_ in zip(few, all_statistics):
                for name, values in some.items():
                    assert np.array_equal(values[i], all_[name][agent], equal_nan=True), name


def test_dropped_agents_leave_no_trace() -> None:
    whole, part = make(4, BOX, normalize=True), make(4, BOX, normalize=True)
    run(whole, 3)
    run(part, 1)
    part.keep([3, 1])
    run(part, 2, first=1, agents=[3, 1])
    assert len(part) == 2
    assert_identical(part, 0, whole, 3)
    assert_identical(part, 1, whole, 1)


@ALL
def test_an_agent_that_diverges_harms_no_other(action_space: spaces.Space) -> None:
    healthy, cohort = make(3, action_space), make(3, action_space)
    cohort._weights[1, 0], cohort._weights[2] = np.nan, 1e30
    run(healthy, 2)
    run(cohort, 2)
    assert cohort.diverged().tolist()[:2] == [False, True]
    assert_identical(cohort, 0, healthy, 0)


def test_agents_may_be_dropped_in_the_midst_of_a_rollout() -> None:
    whole, part = make(3, BOX, n_envs=2), make(3, BOX, n_envs=2)
    rng = np.random.default_rng(0)
    inputs = [
        (
            rng.normal(size=(3, 2, 7)).astype(np.float32),
            rng.normal(size=(3, 2)),
            rng.random((3, 2)) < 0.2,
        )
        for _ in range(48)
    ]
    for cohort in (whole, part):
        keep = [0, 1, 2]
        cohort.start(inputs[0][0])
        for t, (obs, rewards, ends) in enumerate(inputs):
            if cohort is part and t == 20:
                keep = [2, 0]
                part.keep(keep)
            cohort.act()
            lasts = [
                (j, e, obs[i, e] + 1) for j, i in enumerate(keep) for e in (0, 1) if ends[i, e]
            ]
            cohort.record(obs[keep], rewards[keep], ends[keep], lasts)
        cohort.update(1.0)
    assert_identical(part, 0, whole, 2)
    assert_identical(part, 1, whole, 0)


@ALL
def test_state_dict_goes_on_where_it_was_taken(action_space: spaces.Space) -> None:
    cohort = make(3, action_space, normalize=True)
    run(cohort, 1)
    state = pickle.loads(pickle.dumps([cohort.get_state(i) for i in range(3)]))
    run(cohort, 2, first=1)
    resumed = make(3, action_space, normalize=True)
    for i in range(3):
        resumed.set_state(i, state[i])
    run(resumed, 2, first=1)
    for i in range(3):
        assert_identical(cohort, i, resumed, i)


def test_construction_leaves_global_generators_alone() -> None:
    def states() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before, torchs = states(), torch.get_rng_state()
    to_sb3(make(2, BOX), 0)
    assert torch.equal(torch.get_rng_state(), torchs)
    assert states() == before


# Acting


def test_normal_actions_have_the_policys_moments_and_are_clipped() -> None:
    wide = spaces.Box(-100, 100, (2,), np.float32)
    cohort = make(
        1, wide, n_envs=4000, n_steps=1, batch_size=4000, policy_kwargs={"log_std_init": -0.7}
    )
    cohort.start(np.broadcast_to(np.linspace(-1, 1, 7, dtype=np.float32), (1, 4000, 7)))
    actions = cohort.act()
    mean = to_sb3(cohort, 0).predict(cohort._obs[0, 0, :-1], deterministic=True)[0]
    assert actions.dtype == np.float32
    assert actions.shape == (1, 4000, 2)
    np.testing.assert_allclose(actions[0].mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(actions[0].std(axis=0), np.exp(-0.7), rtol=0.05)
    clipped = make(1, BOX, n_envs=500)
    clipped.start(np.zeros((1, 500, 7), np.float32))
    actions = clipped.act()
    assert (actions >= BOX.low).all()
    assert (actions <= BOX.high).all()
    assert (actions == BOX.low).any()
    assert (np.abs(clipped._rollout[0, :, 0, -2:]) > 1.0).any()  # the buffer keeps what was drawn


def test_discrete_actions_have_the_policys_frequencies() -> None:
    cohort = make(1, DISCRETE, n_envs=20000, policy_kwargs={"ortho_init": False})
    cohort._net.named(cohort._weights[0])["action_net.bias"][:] = [1.0, 0.0, -1.0, 2.0]
    cohort.start(np.ones((1, 20000, 7), np.float32))
    actions = cohort.act()
    probs = (
        to_sb3(cohort, 0)
        .policy.get_distribution(torch.ones(1, 7))
        .distribution.probs.detach()
        .numpy()[0]
    )
    assert actions.dtype == np.int64
    assert actions.shape == (1, 20000)
    np.testing.assert_allclose(np.bincount(actions[0], minlength=4) / 20000, probs, atol=0.015)


@pytest.mark.parametrize("action_space", [CHOICES, BITS], ids=["MultiDiscrete", "MultiBinary"])
def test_choices_and_bits_have_the_policys_frequencies(action_space: spaces.Space) -> None:
    cohort = make(1, action_space, n_envs=20000, policy_kwargs={"ortho_init": False})
    bias = cohort._net.named(cohort._weights[0])["action_net.bias"]
    bias[:] = np.linspace(-1.5, 2.0, len(bias))
    cohort.start(np.ones((1, 20000, 7), np.float32))
    actions = cohort.act()[0]
    assert actions.shape == (20000, 3)
    policy = to_sb3(cohort, 0).policy.get_distribution(torch.ones(1, 7)).distribution
    marginals = policy if isinstance(policy, list) else [policy.probs[:, k] for k in range(3)]
    for k, marginal in enumerate(marginals):
        chosen = marginal.probs[0] if isinstance(policy, list) else [1 - marginal, marginal]
        theirs = np.array([p.item() for p in chosen])
        counted = np.bincount(actions[:, k], minlength=len(theirs))
        np.testing.assert_allclose(counted / 20000, theirs, atol=0.015)
    together = np.corrcoef(actions.T.astype(float))  # choices are independent of one another
    assert np.abs(together - np.eye(3)).max() < 0.04


# To and from Stable-Baselines3


@ALL
def test_an_exported_agent_acts_and_goes_on_training(
    action_space: spaces.Space, tmp_path: Any
) -> None:
    settings = SMALL | {
        "n_envs": 2,
        "normalize": True,
        "learning_rate": "lin_1e-3",
        "policy_kwargs": {"net_arch": [8]},
    }
    teacher = Teacher(settings, action_space, seed=5, rollouts=3)
    cohort = make_cohort([teacher])
    replay(cohort, [teacher], 0)
    steps, total = 48 * 2, 3 * 48 * 2
    to_sb3(cohort, 0, steps, total).save(tmp_path / "agent.zip")
    vec_normalize(cohort, 0).save(str(tmp_path / "vecnormalize.pkl"))

    env = VecNormalize.load(
        str(tmp_path / "vecnormalize.pkl"),
        DummyVecEnv([partial(Teacher.make_env, action_space)] * 2),
    )
    model = PPO.load(tmp_path / "agent.zip", env=env, device="cpu")
    assert (model.num_timesteps, model._total_timesteps, model._n_updates) == (steps, total, 3)
    assert model._current_progress_remaining == pytest.approx(2 / 3)
    obs = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    again = to_sb3(cohort, 0)
    assert np.array_equal(
        model.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0]
    )

    # The loaded model learns from the teacher's second rollout what the cohort learns from it.
    buffer, note = model.rollout_buffer, teacher.notes[1]
    replay(cohort, [teacher], 1)
    for name in ("actions", "observations", "rewards", "values", "log_probs", "advantages"):
        setattr(buffer, name, note[name])
    buffer.returns, buffer.full = note["advantages"] + note["values"], True
    model._update_current_progress_remaining(2 * steps, total)
    model.set_logger(teacher.model.logger)
    orders = iter(note["orders"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "permutation", lambda n: next(orders))
        model.train()
    ours = cohort._net.named(cohort._weights[0])
    for name, theirs in model.policy.state_dict().items():
        assert_near(ours[name], theirs, name)
    model.learn(10)  # and on from there


def test_stable_baselines3_gets_all_of_an_agent() -> None:
    cohort = make(2, BOX, normalize=True)
    run(cohort, 1)
    model, normalizer = to_sb3(cohort, 1), vec_normalize(cohort, 1)
    parameters = dict(model.policy.named_parameters())
    states = {name: model.policy.optimizer.state[p] for name, p in parameters.items()}
    rows = {
        "_weights": parameters,
        "_first": {name: s["exp_avg"] for name, s in states.items()},
        "_second": {name: s["exp_avg_sq"] for name, s in states.items()},
    }
    for name, theirs in rows.items():
        mine = getattr(cohort, name)[1]
        came = np.zeros_like(mine)
        cohort._net.load(came, theirs)
        assert np.array_equal(came, mine), name
    assert {float(s["step"]) for s in states.values()} == {cohort._steps[1]}
    assert model._n_updates == cohort.n_updates[1]
    for moments, theirs in (
        (cohort._obs_moments, normalizer.obs_rms),
        (cohort._return_moments, normalizer.ret_rms),
    ):
        assert np.array_equal(moments.mean[1], np.ravel(theirs.mean))
        assert np.array_equal(moments.var[1], np.ravel(theirs.var))
        assert moments.count[1] == theirs.count


# Settings


def test_settings_in_the_zoos_spelling() -> None:
    config = PPOSettings.from_learner_config(
        {
            "policy": "MlpPolicy",
            "n_envs": 8,
            "normalize": "dict(norm_obs=True, norm_reward=False)",
            "learning_rate": "lin_2e-4",
            "ent_coef": 0.01,
            "policy_kwargs": "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, "
            "net_arch=dict(pi=[256, 64], vf=[32]))",
            "use_sde": False,
        }
    )
    assert (config.n_envs, config.norm_obs, config.norm_reward, config.ent_coef) == (
        8,
        True,
        False,
        0.01,
    )
    assert (config.pi, config.vf, config.activation, config.log_std_init) == (
        (256, 64),
        (32,),
        "ReLU",
        -2,
    )
    assert callable(config.learning_rate)
    assert config.learning_rate(0.5) == pytest.approx(1e-4)
    assert PPOSettings.from_learner_config({}) == PPOSettings()
    assert (
        PPOSettings.from_learner_config({"policy_kwargs": {"optimizer_kwargs": {}}}).adam_eps
        == 1e-8
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerning_rate": 1.0}, "learning_rate"),
        ({"use_sde": True}, "--engine sb3"),
        ({"policy": "CnnPolicy"}, "policy must be MlpPolicy, not"),
        ({"policy_kwargs": {"squash_output": True}}, "--engine sb3"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.SGD}}, "--engine sb3"),
        ({"normalize": {"training": False}}, "--engine sb3"),
        ({"policy_kwargs": {"net_arch": {"qf": [3]}}}, "net_arch has no setting 'qf'"),
        (
            {"policy_kwargs": {"net_arch": [0]}},
            "net_arch must be a list, each a whole number from 1",
        ),
        ({"policy_kwargs": {"optimizer_kwargs": {"betas": (0.5, 0.9)}}}, "--engine sb3"),
        ({"policy_kwargs": {"activation_fn": "SELU"}}, "--engine sb3"),
        ({"policy_kwargs": {"net_arc": [3]}}, "net_arch"),
        ({"normalize": {"norm_rewards": True}}, "norm_reward"),
        ({"learning_rate": "cosine"}, "lin_"),
        ({"batch_size": 1}, "batch_size"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_envs": 2.5}, "n_envs"),
        ({"ent_coef": "small"}, "ent_coef"),
        ({"clip_range_vf": 0}, "clip_range_vf"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        PPOSettings.from_learner_config(settings)
    assert "\n" not in str(error.value)


def test_cohort_key_groups_what_can_be_stepped_together() -> None:
    obs = spaces.Box(-1, 1, (3,), np.float32)

    def key(action_space: spaces.Space = BOX, **settings: Any) -> Any:
        return cohort_key(PPOSettings.from_learner_config(settings), obs, action_space)

    assert key(learning_rate=1.0, target_kl=0.1, clip_range_vf=0.2, gamma=0.5) == key()
    assert (
        len(
            {
                key(),
                key(n_steps=5),
                key(policy_kwargs={"net_arch": [3]}),
                key(normalize=True),
                key(DISCRETE),
                key(CHOICES),
                key(spaces.MultiDiscrete([4])),
                key(BITS),
                key(spaces.MultiBinary(4)),
            }
        )
        == 9
    )
    for space in (
        spaces.MultiDiscrete([[2, 3]]),
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
        spaces.MultiBinary([2, 2]),
        spaces.Discrete(3, start=1),
    ):
        with pytest.raises(UserError, match="--engine sb3"):
            key(space)
    with pytest.raises(UserError, match="--engine sb3"):
        cohort_key(PPOSettings(), spaces.Discrete(4), BOX)
    with pytest.raises(ValueError, match="cohort_key"):
        CohortPPO([PPOSettings(), PPOSettings(n_steps=5)], [0, 1], obs, BOX)


@pytest.mark.parametrize(
    "config",
    [
        {"gamma": 5},
        {"gamma": float("nan")},
        {"ent_coef": float("inf")},
        {"clip_range": -1},
        {"clip_range_vf": [1]},
        {"max_grad_norm": -0.5},
        {"target_kl": -1},
        {"target_kl": "abc"},
        {"learning_rate": -1},
        {"normalize": "maybe"},
        {"normalize": [1]},
        {"normalize_advantage": "no"},
        {"policy_kwargs": 3},
        {"policy_kwargs": [1]},
        {"policy_kwargs": {"net_arch": 64}},
        {"policy_kwargs": {"net_arch": [-5]}},
        {"policy_kwargs": {"net_arch": [0]}},
        {"policy_kwargs": {"net_arch": ["a"]}},
        {"policy_kwargs": {"activation_fn": 5}},
        {"policy_kwargs": {"optimizer_kwargs": 3}},
        {"verbose": 1},
        {"seed": 1},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_one_clear_line(config):
    with pytest.raises(UserError) as caught:
        PPOSettings.from_learner_config(config)
    assert "\n" not in str(caught.value)
