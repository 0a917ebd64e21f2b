import json
import os
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces
from plain_evaluation import evaluate
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from erl.errors import Stopped, UserError
from erl.learners import Outputs
from erl.learners.core.sb3_settings import policies
from erl.learners.sb3 import _ACTIONS, SB3Learner, algorithms, load, whole_sequences
from erl.lifetimes.living import Cohort, check, live
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, from_json, to_json
from erl.worlds.tasks import Task

DISCRETE, CONTINUOUS = "toy_environments:Recall-v0", "toy_environments:Steady-v0"
ON_POLICY = {"n_steps": 64, "batch_size": 32}
OFF_POLICY = {
    "learning_starts": 50,
    "buffer_size": 500,
    "batch_size": 16,
    "train_freq": 10,
    "gradient_steps": 1,
}
SETTINGS = {
    "PPO": ON_POLICY,
    "RecurrentPPO": ON_POLICY | {"policy_kwargs": {"lstm_hidden_size": 8}},
    "TRPO": ON_POLICY,
    "A2C": {},
    "ARS": {"n_delta": 2, "n_eval_episodes": 1},
    **dict.fromkeys(("DQN", "QRDQN", "DDPG", "TD3"), OFF_POLICY),
    **dict.fromkeys(
        ("SAC", "TQC", "CrossQ"), OFF_POLICY | {"policy_kwargs": "dict(net_arch=[16, 16])"}
    ),
}
FITS = {
    DISCRETE: ["PPO", "A2C", "DQN", "QRDQN", "RecurrentPPO", "TRPO", "ARS"],
    CONTINUOUS: [
        "PPO",
        "A2C",
        "SAC",
        "TD3",
        "DDPG",
        "TQC",
        "CrossQ",
        "RecurrentPPO",
        "TRPO",
        "ARS",
    ],
}
RESERVOIR = Context((ReservoirParams(units=8, sr=0.9, lr=0.5),))


def spec(name, env_id=DISCRETE, context=RESERVOIR, steps=150, config=None, **rest):
    settings = SETTINGS[name] if config is None else config
    return LifetimeSpec(
        Task(env_id),
        LearnerSpec(name, settings, "sb3"),
        steps,
        Seeds.derive(7, "single", 0),
        context,
        **rest,
    )


def result(record):
    """What of a record does not depend on the clock."""
    return json.dumps(to_json(replace(record, seconds=0.0)))


def test_every_algorithm_is_tried():
    there = {
        name
        for package in (stable_baselines3, sb3_contrib)
        for name in package.__all__
        if isinstance(kind := getattr(package, name), type) and issubclass(kind, BaseAlgorithm)
    }
    assert set(SETTINGS) == set(algorithms()) == there - {"MaskablePPO"}


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "name"), [(e, n) for e, names in FITS.items() for n in names])
def test_every_algorithm_that_fits_trains_saves_and_loads(env_id, name, tmp_path):
    for context in (None, RESERVOIR):
        lifetime = spec(name, env_id, context, fitness="final_eval", ep_eval=2)
        check(lifetime)
        path = tmp_path / ("with" if context else "without")
        (record,) = live(Cohort((lifetime,), models=(str(path),)))
        assert record.error is None, record.traceback
        assert record.steps >= 150
        assert record.evaluation_steps > 0
        assert np.isfinite(record.training_return)
        assert np.isfinite(record.fitness)
        assert (
            from_json(LifetimeSpec, json.loads(path.with_suffix(".json").read_text())) == lifetime
        )
        model = algorithms()[name].load(path)
        env = lifetime.make_env()
        assert model.observation_space == env.observation_space
        # The file holds the agent that was evaluated: it reaches the same returns from the same
        # seed.
        assert evaluate(model, env, 2, lifetime.seeds.evaluation).returns == record.final_returns


@pytest.mark.parametrize(
    ("name", "env_id"),
    [("DQN", CONTINUOUS), ("SAC", DISCRETE), ("TD3", DISCRETE), ("QRDQN", CONTINUOUS)],
)
def test_algorithms_that_do_not_fit_say_which_do(name, env_id):
    with pytest.raises(UserError, match=f"{name} does not take the .* actions") as e:
        check(spec(name, env_id))
    assert str(e.value).partition("these do: ")[2].split(", ")[0] == "A2C"
    assert set(str(e.value).partition("these do: ")[2].split(", ")) == set(FITS[env_id])


def test_the_lstm_in_one_pass_learns_what_it_learns_step_by_step(monkeypatch):
    """Several environments and sequences that start within and at episodes' starts; sb3-contrib's
    own loop is the oracle.
    """
    lifetime = spec("RecurrentPPO", context=None, config=SETTINGS["RecurrentPPO"] | {"n_envs": 3})
    learner = SB3Learner("RecurrentPPO")

    def parameters():
        settings = learner._settings(lifetime)
        env = learner._make_vec_env(lifetime, settings, Ledger())
        model = learner._make_model(lifetime, settings, env)
        before = {k: v.clone() for k, v in model.policy.state_dict().items()}
        model.learn(2 * 3 * 64)
        return before, model.policy.state_dict()

    before, ours = parameters()
    slow = RecurrentActorCriticPolicy._process_sequence
    monkeypatch.setattr("erl.learners.sb3.whole_sequences", slow)
    _, theirs = parameters()
    for name, value in theirs.items():
        assert (value - before[name]).norm() > 1e-3, name
        assert (ours[name] - value).norm() <= 1e-4 * (value - before[name]).norm(), name


def test_the_lstm_begins_anew_within_a_sequence_too():
    generator = torch.Generator().manual_seed(0)
    lstm = torch.nn.LSTM(3, 4)
    features = torch.randn(2 * 5, 3, generator=generator)
    states = torch.randn(1, 2, 4, generator=generator), torch.randn(1, 2, 4, generator=generator)
    for starts in (
        [0] * 10,
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1] + [0] * 4 + [1] + [0] * 4,
        [0, 0, 1, 0, 0] * 2,
    ):
        arguments = features, states, torch.tensor(starts, dtype=torch.float32), lstm
        ours, (hidden, cell) = whole_sequences(*arguments)
        theirs, (their_hidden, their_cell) = RecurrentActorCriticPolicy._process_sequence(
            *arguments
        )
        for a, b in ((ours, theirs), (hidden, their_hidden), (cell, their_cell)):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PPO", "SAC", "RecurrentPPO"])
def test_same_seed_same_record(name):
    env_id = CONTINUOUS if name == "SAC" else DISCRETE
    lifetime = spec(name, env_id)
    first, second = (live(Cohort((lifetime,)))[0] for _ in range(2))
    assert result(first) == result(second)
    other = replace(lifetime, seeds=Seeds.derive(8, "single", 0))
    assert result(live(Cohort((other,)))[0]) != result(first)


@pytest.mark.slow
def test_same_seed_same_record_in_another_process_which_leaves_nothing_behind(tmp_path):
    """In the temporary folder neither ReservoirPy leaves a folder for each process, nor
    Stable-Baselines3's logger one for each lifetime without logs.
    """
    lifetime = spec("PPO")
    code = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "from erl.lifetimes.living import Cohort, live; from erl.worlds.specification import "
        "LifetimeSpec, from_json, to_json\n"
        "print(json.dumps(to_json(live(Cohort((from_json(LifetimeSpec, "
        "json.loads(sys.argv[1])),)))[0])))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, json.dumps(to_json(lifetime))],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "TMPDIR": str(tmp_path),
            # PyTorch has one folder for each user, which is its own affair.
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path.parent / "torchinductor"),
        },
    )
    there = json.loads(out.stdout.splitlines()[-1])
    here = json.loads(result(live(Cohort((lifetime,)))[0]))
    assert there | {"seconds": 0.0, "commit": here["commit"]} == here
    assert not list(tmp_path.iterdir())


def test_tensorboard_log_is_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "logs"
    live(Cohort((spec("PPO"),), outputs=(Outputs(tensorboard=str(folder)),)))
    events = EventAccumulator(str(folder)).Reload()
    assert {"rollout/ep_rew_mean", "train/loss"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("writes", [0, 1])
def test_a_full_disk_costs_the_logs_and_not_the_training(writes, tmp_path, monkeypatch, caplog):
    """Evaluated, saved and as good as without."""
    done, write = [], TensorBoardOutputFormat.write

    def full(*arguments):
        if len(done) == writes:
            raise OSError("no space left")
        done.append(write(*arguments))

    monkeypatch.setattr(TensorBoardOutputFormat, "write", full)
    lifetime = spec("PPO", context=None)
    (record,) = live(Cohort((lifetime,), (Outputs(tensorboard=str(tmp_path / "log")),)))
    assert len(done) == writes
    assert caplog.text.count("no more TensorBoard logs") == 1
    assert result(record) == result(live(Cohort((lifetime,)))[0])
    (tmp_path / "file").write_text("in the way")
    (record,) = live(Cohort((lifetime,), (Outputs(tensorboard=str(tmp_path / "file/log")),)))
    assert record.error is None


def test_lifetimes_are_lived_without_denormal_numbers(monkeypatch):
    """Adam becomes several times slower with them, once units have died."""

    def kept():
        tiny = 1e-38
        products = (
            torch.full((8,), tiny) * 0.01,
            torch.full((), tiny) * 0.01,
            np.float32(tiny) * np.float32(0.01),
        )
        return [bool(p.max() > 0) for p in products]

    seen = []

    class Learner:
        def train(self, cohort, ledgers, outputs):
            seen.append(kept())
            return [RuntimeError() for _ in cohort]

    monkeypatch.setattr("erl.lifetimes.living.get_learner", lambda *_: Learner())
    assert all(kept())
    for flushed in (False, True):
        torch.set_flush_denormal(flushed)
        live(Cohort((spec("A2C"),)))
        assert any(kept()) != flushed  # as before
    torch.set_flush_denormal(False)
    assert not any(seen[0] + seen[1])


def test_several_environments_share_budget_and_ledger():
    (record,) = live(Cohort((spec("PPO", config=ON_POLICY | {"n_envs": 2}, steps=256),)))
    assert record.steps == 256  # two rollouts of 2 x 64
    assert record.episodes == 64


def test_normalised_observations_reach_the_policy_in_evaluation_too(tmp_path):
    lifetime = spec("PPO", config=ON_POLICY | {"normalize": True}, fitness="final_eval", ep_eval=3)
    (record,) = live(Cohort((lifetime,), models=(str(tmp_path / "model"),)))
    assert record.error is None, record.traceback
    model = algorithms()["PPO"].load(tmp_path / "model")
    statistics = VecNormalize.load(
        str(tmp_path / "model.vecnormalize.pkl"), DummyVecEnv([lifetime.make_env])
    )
    assert np.abs(statistics.obs_rms.mean).max() > 0

    class Normalised:
        def predict(self, observation, *rest, **more):
            return model.predict(statistics.normalize_obs(observation), *rest, **more)

    again = evaluate(Normalised(), lifetime.make_env(), 3, lifetime.seeds.evaluation)
    assert again.returns == record.final_returns


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"learning_rat": 1e-3}, "no setting 'learning_rat'.*learning_rate"),
        ({"seed": 3}, "seed is not PPO's to set here"),
        ({"n_envs": 0}, "n_envs"),
        ({"n_envs": True}, "n_envs"),
        ({"n_steps": "many"}, "n_steps must be a whole number"),
        (
            {"learning_rate": "cos_3"},
            "learning_rate must be a number above 0 or a schedule lin_NUMBER",
        ),
        ({"policy": "MlpPolice"}, "MlpPolicy"),
        ({"policy_kwargs": "dict(activation_fn=nn.Rellu)"}, "ReLU"),
        ({"policy_kwargs": {"net_arkh": [3]}}, "PPO refuses its settings"),
        ({"policy_kwargs": "words"}, "policy_kwargs must be names and values or null, not"),
        ({"normalize": {"norm_everything": True}}, "norm_everything"),
        ({"noise_type": "normal"}, "PPO has no setting 'noise_type'"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, not 0"),
        ({"gamma": "abc"}, "PPO's gamma must be a number from 0 to 1, not 'abc'"),
        ({"gamma": float("nan")}, "gamma must be a number"),
        ({"n_steps": 64.5}, "n_steps must be a whole number"),
        ({"use_sde": 1}, "use_sde must be true or false"),
        ({"normalize": 3}, "normalize must be true or false, or names and values, not 3"),
        (
            {"normalize": {"clip_obs": 0}},
            "PPO's normalize's clip_obs must be a number above 0, not 0",
        ),
        ({"eval_freq": -1}, "eval_freq must be a whole number from 0"),
        ({"eval_episodes": 0}, "eval_episodes must be a whole number from 1"),
    ],
)
def test_settings_that_cannot_be(config, message):
    with pytest.raises(UserError, match=message):
        check(spec("PPO", config=config))


def test_the_action_spaces_are_those_that_the_constructors_take():
    """Asked of them one by one; where Python runs with -O they would not refuse any.

    RecurrentPPO's constructor takes MultiBinary, and its training fails over it.
    """
    boxes = spaces.Box(-1, 1, (2,), np.float32)
    for action_space in (
        boxes,
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(2),
    ):
        env = gym.Env()
        env.observation_space, env.action_space = boxes, action_space
        for name, algorithm in algorithms().items():
            try:
                algorithm(policies(algorithm)[0], env, device="cpu")
                taken = True
            except AssertionError:
                taken = False
            if name == "RecurrentPPO" and isinstance(action_space, spaces.MultiBinary):
                taken = False
            assert taken == isinstance(action_space, _ACTIONS[name]), name


def test_a_check_leaves_the_settings_as_they_were():
    """SAC's constructor writes into the policy_kwargs that it is given."""
    given = OFF_POLICY | {"policy_kwargs": {"net_arch": [16]}}
    lifetime = spec("SAC", CONTINUOUS, config=given)
    check(lifetime)
    assert lifetime.learner.config == OFF_POLICY | {"policy_kwargs": {"net_arch": [16]}}


def test_a_budget_within_which_nothing_is_learned_is_refused():
    with pytest.raises(
        UserError,
        match=r"TD3 starts to learn after learning_starts = 10,000 steps, .* has only 150",
    ):
        check(spec("TD3", CONTINUOUS, config={"learning_starts": 10000}))


def test_a_budget_within_which_no_episode_can_bring_learning_is_refused():
    """The last two episodes may begin one step before the budget is spent."""
    task = Task(CONTINUOUS, kwargs={"max_episode_steps": 8})
    for starts, fits in ((164, True), (165, False)):
        config = OFF_POLICY | {"train_freq": [2, "episode"], "learning_starts": starts}
        lifetime = replace(spec("SAC", CONTINUOUS, config=config), task=task)
        if fits:
            check(lifetime)
        else:
            with pytest.raises(UserError, match="SAC starts to learn after learning_starts = 165"):
                check(lifetime)


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_a_lifetime_in_which_nothing_was_learned_fails(name):
    """How long episodes are is not known here, so that no check refuses it."""
    config = OFF_POLICY | {"train_freq": [1, "episode"], "learning_starts": 10_000}
    lifetime = spec(name, CONTINUOUS if name == "SAC" else DISCRETE, config=config)
    check(lifetime)
    (record,) = live(Cohort((lifetime,)))
    assert "nothing was learned within 15" in record.error
    assert record.fitness is None
    ledger = Ledger(should_stop=lambda: True)
    (stopped,) = SB3Learner(name).train([lifetime], [ledger], [Outputs()])
    assert type(stopped) is Stopped  # what it might have learned is not known


def test_a_budget_ends_with_a_whole_rollout():
    lifetime = spec("TD3", CONTINUOUS, steps=151, config=OFF_POLICY | {"learning_starts": 159})
    check(lifetime)
    (record,) = live(Cohort((lifetime,)))
    assert (record.error, record.steps) == (None, 160)
    with pytest.raises(UserError, match="starts to learn after"):
        check(replace(lifetime, steps=150))


def test_a_schedule_ends_at_zero_where_a_rollout_exceeds_the_budget(monkeypatch):
    rates = []
    train = stable_baselines3.PPO.train

    def noted(model):
        train(model)
        rates.append(model.policy.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(stable_baselines3.PPO, "train", noted)
    config = {"n_steps": 100, "learning_rate": "lin_1e-3", "clip_range": "lin_0.2"}
    (record,) = live(Cohort((spec("PPO", steps=150, config=config),)))
    assert record.error is None, record.traceback
    assert rates == [pytest.approx(1e-3 / 3), 0.0]


def test_an_advantage_that_cannot_be_normalised_is_refused_before_training():
    config = {"n_steps": 64, "sub_sampling_factor": 64, "batch_size": 32}
    with pytest.raises(UserError, match=r"TRPO normalises advantages .* or sub_sampling_factor"):
        check(spec("TRPO", config=config))
    check(spec("TRPO", config=config | {"sub_sampling_factor": 63}))


def test_a_saved_agent_needs_no_replay_buffer_to_be_played(tmp_path):
    lifetime = spec("TD3", CONTINUOUS, config=OFF_POLICY | {"buffer_size": 5000})
    live(Cohort((lifetime,), models=(str(tmp_path / "a"),)))
    assert load("TD3", tmp_path / "a", lifetime).model.replay_buffer.buffer_size == 1
    assert algorithms()["TD3"].load(tmp_path / "a").buffer_size == 5000  # for who trains on


@pytest.mark.parametrize("n", ["foo", 2.5, None])
def test_quantiles_that_are_no_number_are_refused(n):
    with pytest.raises(UserError, match="n_quantiles must be a whole number from 1, not"):
        SB3Learner("TQC").check_settings({"policy_kwargs": {"n_quantiles": n}})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"noise_type": "pink"}, "pink"),
        ({"noise_std": 0.1}, "noise_std changes nothing without noise_type"),
        ({"noise_type": "normal"}, "noise_type changes nothing without noise_std"),
    ],
)
def test_noise_that_cannot_be(config, said):
    with pytest.raises(UserError, match=said):
        check(spec("TD3", CONTINUOUS, config=config))


def test_the_zoos_schedules_and_noise_train():
    config = OFF_POLICY | {"noise_type": "normal", "noise_std": 0.1, "learning_rate": "lin_1e-3"}
    (record,) = live(Cohort((spec("TD3", CONTINUOUS, config=config),)))
    assert record.error is None, record.traceback


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_that_are_not_finite_fail_every_learners_lifetime(name, monkeypatch, tmp_path):
    kind = algorithms()[name]
    learn = kind.learn

    def learn_badly(self, *args, **kwargs):
        learn(self, *args, **kwargs)
        with torch.no_grad():
            next(self.policy.parameters()).fill_(float("nan"))
        return self

    monkeypatch.setattr(kind, "learn", learn_badly)
    env_id = DISCRETE if name in FITS[DISCRETE] else CONTINUOUS
    model = tmp_path / "agent"
    lifetime = spec(name, env_id, context=None, steps=64, fitness="final_eval")
    (record,) = live(Cohort((lifetime,), models=(str(model),)))
    assert record.fitness is None
    assert "the policy's weights are not finite after" in record.error
    assert not list(tmp_path.iterdir())


def test_fewer_episodes_than_asked_are_noted_and_none_is_a_failure():
    (few,) = live(Cohort((spec("PPO", ep_eval=100, steps=64),)))
    assert (few.fitness is not None, few.episodes_averaged) == (True, 16)
    assert few.note == "only 16 of 100 episodes were finished within 64 steps"
    (none,) = live(Cohort((spec("PPO", "toy_environments:Endless-v0", steps=64),)))
    assert (none.fitness, none.error) == (None, "no episode was finished within 64 steps")


def test_a_lifetime_that_fails_hurts_no_other():
    lifetimes = (spec("PPO"), spec("PPO", "toy_environments:Faulty-raise-v0"), spec("PPO"))
    good, bad, also_good = live(Cohort(lifetimes))
    assert good.fitness == also_good.fitness is not None
    assert bad.error == "the environment raised at step 51: RuntimeError: the simulator exploded"
    assert "in step" in bad.traceback
    assert bad.steps == 50


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_evaluations_on_the_way_are_recorded_and_change_nothing(name):
    env_id = CONTINUOUS if name == "SAC" else DISCRETE
    alone, evaluated = (
        live(Cohort((spec(name, env_id, steps=192, config=SETTINGS[name] | more),)))[0]
        for more in ({}, {"eval_freq": 50, "eval_episodes": 3})
    )
    assert alone.inner is None
    assert evaluated.inner is not None
    rows = evaluated.inner["evaluations"]
    assert [row["steps"] for row in rows][:3] == [50, 100, 150]
    assert all(np.isfinite(row["agent"]) for row in rows)
    assert (evaluated.curve, evaluated.final_returns) == (alone.curve, alone.final_returns)
