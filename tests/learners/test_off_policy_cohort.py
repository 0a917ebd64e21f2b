"""TD3, DDPG and SAC in lockstep: what holds for one agent whatever stands beside it, checkpoints,
semantics of steps and updates, and Stable-Baselines3's files.
"""

import collections
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv

from erl.errors import UserError
from erl.learners import Outputs, get_learner
from erl.learners.core import off_policy, off_policy_training
from erl.learners.core import run as run_module
from erl.learners.core.off_policy_training import OffPolicyTraining
from erl.learners.core.replay import ReplayBuffer
from erl.learners.core.run import Run
from erl.learners.td3 import TD3Settings
from erl.lifetimes.living import Cohort, live
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

QUICK = {
    "batch_size": 32,
    "learning_starts": 50,
    "noise_type": "normal",
    "noise_std": 0.1,
    "policy_kwargs": {"net_arch": [32, 32]},
}


def lifetime(i=0, name="TD3", env_id="Pendulum-v1", steps=240, context=False, task=None, **config):
    reservoir = Context((ReservoirParams(units=20, sr=0.9, lr=0.5),)) if context else None
    learner = LearnerSpec(name, {**QUICK, **config}, "cohort")
    seeds = Seeds.derive(0, "single", i)
    return LifetimeSpec(task or Task(env_id), learner, steps, seeds, reservoir, ep_eval=2)


def numbers(value):
    """All numbers of a model, as bytes."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(numbers(v) for v in value.values())
    return b"".join(map(numbers, value)) if isinstance(value, list) else b""


def lived(*specs, outputs=None):
    """What became of lifetimes side by side: how they failed, or all numbers of the agent; steps,
    episodes and evaluations.
    """
    ledgers = [Ledger() for _ in specs]
    learner = get_learner(specs[0].learner.name, "cohort")
    agents = learner.train(specs, ledgers, outputs or [Outputs()] * len(specs))
    return [
        (
            str(agent) if isinstance(agent, Exception) else numbers(agent.model.get_parameters()),
            ledger.steps,
            ledger.episodes,
            ledger.notes(),
        )
        for agent, ledger in zip(agents, ledgers)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("TD3", {"context": True, "task": Task("Pendulum-v1", del_obs=True)}),
        ("TD3", {"noise_type": "ornstein-uhlenbeck", "n_envs": 2, "train_freq": 2}),
        ("TD3", {"train_freq": [1, "episode"], "gradient_steps": -1}),
        ("TD3", {"env_id": "Hopper-v4", "steps": 200}),
        ("DDPG", {"buffer_size": 150}),
        ("SAC", {"context": True, "gradient_steps": 2, "target_update_interval": 2}),
        ("SAC", {"ent_coef": 0.1, "noise_type": None, "noise_std": 0.0}),
        ("SAC", {"steps": 150, "policy_kwargs": {"net_arch": [192, 192]}}),
    ],
)
def test_a_record_does_not_depend_on_the_cohort_to_the_last_bit(name, config):
    specs = [
        lifetime(i, name, learning_rate=10.0 ** -(3 + i % 2), gamma=0.9 + 0.02 * i, **config)
        for i in range(3)
    ]
    together = lived(*specs)
    assert all(isinstance(what, bytes) for what, *_ in together)
    for chosen in ([1], [2, 0]):
        assert lived(*(specs[i] for i in chosen)) == [together[i] for i in chosen]


def test_agents_at_different_points_of_their_lives_stand_side_by_side():
    """Others begin to learn, delay their actors and end at other times."""
    specs = [
        lifetime(0),
        lifetime(1, learning_starts=101),
        lifetime(2, steps=130),
        lifetime(3, buffer_size=120, learning_starts=200),
    ]
    together = lived(*specs)
    assert [steps for _, steps, *_ in together] == [240, 240, 130, 240]
    assert together == [lived(s)[0] for s in specs]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TD3", "SAC"])
def test_a_failing_agent_leaves_and_the_others_go_on(name):
    specs = [lifetime(i, name, "toy_environments:Lottery-v0") for i in range(6)]
    odd = [bool(s.seeds.environment % 2) for s in specs]
    assert 0 < sum(odd) < 6
    for became, spec, is_odd in zip(lived(*specs), specs, odd):
        if is_odd:
            assert "an odd seed" in became[0]
            assert became[1] < 240
        else:
            assert became == lived(spec)[0]


def test_a_diverging_agent_leaves_and_the_others_go_on():
    specs = [lifetime(0, learning_rate=1e30), lifetime(1)]
    bad, good = lived(*specs)
    assert "finite" in bad[0]
    assert good == lived(specs[1])[0]


def test_an_agent_that_cannot_be_evaluated_leaves_and_the_others_go_on():
    """An evaluation is due before the agent's next action tells that its weights are not finite."""
    often = {"eval_freq": 52, "eval_episodes": 1}
    specs = [lifetime(0, learning_rate=1e30, **often), lifetime(1, **often)]
    bad, good = lived(*specs)
    assert "weights are not finite after 52 steps" in bad[0]
    assert good == lived(specs[1])[0]


def test_evaluations_hurt_nobody_where_nothing_was_learned():
    """The first has spent its budget before its first episode, and so its first update, ends."""
    often = {"eval_freq": 100, "eval_episodes": 1, "train_freq": [1, "episode"]}
    specs = [lifetime(0, steps=100, **often), lifetime(1, **often)]
    idle, good = lived(*specs)
    assert idle[0].startswith("nothing was learned within 100 steps: it needs more")
    assert good == lived(specs[1])[0]


def test_an_agent_that_is_told_to_stop_leaves():
    specs = [lifetime(0), lifetime(1)]
    ledgers = [Ledger(), Ledger()]
    ledgers[0].should_stop = lambda: ledgers[0].steps >= 100
    stopped, agent = get_learner("TD3", "cohort").train(specs, ledgers, [Outputs()] * 2)
    assert type(stopped).__name__ == "Stopped"
    assert ledgers[0].steps < 200
    assert hasattr(agent, "predict")


class Killed(BaseException):
    pass


def live_until(specs, folder, at, monkeypatch):
    """Live with a checkpoint at every tenth tick, and stop dead after the `at`-th."""
    saved = []
    save = Run._save

    def save_then_die(self):
        saved.append(1)
        if len(saved) % 10 == 0:
            save(self)
        if len(saved) == at:
            raise Killed

    outputs = [Outputs(checkpoint=f"{folder}/{i}.pkl", checkpoint_seconds=0.0) for i in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_save", save_then_die)
        with pytest.raises(Killed):
            live(Cohort(tuple(specs), tuple(outputs)))
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("TD3", {"env_id": "Hopper-v4", "steps": 150, "buffer_size": 60}),
        ("TD3", {"noise_type": "ornstein-uhlenbeck", "n_envs": 2, "buffer_size": 80}),
        ("TD3", {"train_freq": [2, "episode"], "gradient_steps": -1, "context": True}),
        ("SAC", {"train_freq": 3, "eval_freq": 100, "eval_episodes": 1}),
        # The one that begins is at another point of its schedule.
        ("TD3", {"learning_rate": "lin_1e-2"}),
        ("SAC", {"learning_rate": "lin_1e-2"}),
    ],
)
def test_a_killed_cohort_goes_on_as_if_nothing_had_happened(name, config, tmp_path, monkeypatch):
    specs = [lifetime(i, name, **config) for i in range(3)]
    at = 70
    outputs = live_until(specs, tmp_path, at, monkeypatch)
    expected = lived(*specs)
    taken = collections.Counter()

    def step(self, n=1, step=Ledger.step):
        if self.earlier[0] > 0:  # not the ledgers of evaluations
            taken[id(self)] += n
        step(self, n)

    monkeypatch.setattr(Ledger, "step", step)
    # Two of the three go on, in another order, beside one that begins.
    records = lived(specs[2], specs[1], specs[0], outputs=(outputs[2], outputs[1], Outputs()))
    assert records == [expected[2], expected[1], expected[0]]
    left = specs[0].steps - (at - 1) * config.get("n_envs", 1)
    assert [n <= left for n in taken.values()] == [True, True]


def test_box2d_begins_its_episode_anew_and_goes_on(tmp_path, monkeypatch):
    specs = [lifetime(i, env_id="LunarLanderContinuous-v3", steps=150) for i in range(3)]
    outputs = live_until(specs, tmp_path, 60, monkeypatch)
    became = lived(*specs, outputs=outputs)
    assert [steps for _, steps, *_ in became] == [150] * 3
    assert all(isinstance(what, bytes) for what, *_ in became)


@pytest.mark.slow
def test_a_damaged_buffer_begins_anew(tmp_path, monkeypatch, caplog):
    specs = [lifetime(i) for i in range(3)]
    outputs = live_until(specs, tmp_path, 60, monkeypatch)
    (segment,) = (tmp_path / "0.pkl.buffer").glob("*.npy")
    segment.write_bytes(segment.read_bytes()[:-8])
    records = lived(*specs, outputs=outputs)
    assert "its replay buffer cannot be read" in caplog.text
    assert records == lived(*specs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [
        ("TD3", TD3, {"learning_rate": "lin_1e-3", "noise_type": "ornstein-uhlenbeck"}),
        ("DDPG", DDPG, {"n_envs": 2}),
        ("SAC", SAC, {"train_freq": [1, "episode"], "env_id": "toy_environments:Reach-v0"}),
        ("TD3", TD3, {"env_id": "toy_environments:Square-v0"}),
        ("SAC", SAC, {"ent_coef": 0.3, "policy_kwargs": {"net_arch": {"pi": [16], "qf": [8, 8]}}}),
    ],
)
def test_stable_baselines3_opens_the_agent_and_goes_on(name, kind, config, tmp_path):
    spec = lifetime(0, name, steps=100, **config)
    ledger = Ledger()
    (agent,) = get_learner(name, "cohort").train([spec], [ledger], [Outputs()])
    agent.save(tmp_path, "agent")
    model = kind.load(tmp_path / "agent.zip", device="cpu")
    assert type(model) is kind
    shape = (7, *model.observation_space.shape)
    observation = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected, _ = agent.predict(observation, deterministic=True)
    assert np.array_equal(model.predict(observation, deterministic=True)[0], expected)
    assert model.num_timesteps == 100
    assert agent.model.buffer_size == model.buffer_size == TD3Settings.buffer_size
    assert agent.model.replay_buffer.buffer_size <= 100, "no larger than the cohort's own"
    optimisers = [model.actor.optimizer, model.critic.optimizer]
    if getattr(model, "ent_coef_optimizer", None) is not None:
        optimisers.append(model.ent_coef_optimizer)
    steps = [{float(s["step"]) for s in o.state.values()} for o in optimisers]
    updates = model._n_updates
    assert steps == [
        {updates // getattr(model, "policy_delay", 1)},
        *[{updates}] * (len(steps) - 1),
    ]
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    env = DummyVecEnv([spec.make_env] * config.get("n_envs", 1))
    model.set_env(env)
    model.learn(150, reset_num_timesteps=False)
    assert model._n_updates > updates
    assert any(not torch.equal(v, before[k]) for k, v in model.policy.state_dict().items())


def test_steps_and_updates_are_stable_baselines3s():
    """How many updates there are, and after which steps, for one and for several environments."""
    for config, steps in (
        ({}, 90),
        ({"n_envs": 2, "train_freq": 3, "gradient_steps": -1}, 90),
        ({"n_envs": 2, "train_freq": 3, "gradient_steps": 5}, 91),
        ({"train_freq": 7, "gradient_steps": 2}, 90),
    ):
        updates, took = {}, {}
        for engine in ("cohort", "sb3"):
            spec = lifetime(0, steps=steps, **config)
            spec = dataclasses.replace(
                spec, learner=dataclasses.replace(spec.learner, engine=engine)
            )
            ledger = Ledger()
            (agent,) = get_learner("TD3", engine).train([spec], [ledger], [Outputs()])
            updates[engine], took[engine] = agent.model._n_updates, ledger.steps
        assert updates["cohort"] == updates["sb3"] > 0, config
        assert took["cohort"] == took["sb3"], config


def training_of(spec):
    learner = get_learner(spec.learner.name, "cohort")
    settings = learner.settings.from_learner_config(spec.learner.config)
    run = Run([spec], [Ledger()], [Outputs()], [settings])
    return run, OffPolicyTraining(run, learner.cohort)


def test_initial_weights_are_stable_baselines3s():
    for name, kind in (("TD3", TD3), ("SAC", SAC)):
        spec = lifetime(0, name)
        mine = training_of(spec)[1].agent(0).model.policy.state_dict()
        seed, kwargs = spec.seeds.learner, dict(QUICK["policy_kwargs"])
        theirs = kind("MlpPolicy", spec.make_env(), seed=seed, policy_kwargs=kwargs)
        assert all(torch.equal(mine[k], v) for k, v in theirs.policy.state_dict().items())


def test_rows_of_the_buffer_are_what_was_lived(monkeypatch):
    """Every transition that is sampled is one that was lived, across ends and time limits."""
    spec = lifetime(0, env_id="toy_environments:Reach-v0", steps=150, buffer_size=70, n_envs=2)
    run, training = training_of(spec)
    seen = collections.deque(maxlen=70)
    record = training.learner.record

    def noting(observations, actions, after, rewards, ended, cut):
        last = {env: observation for _, env, observation in cut}
        for env in range(2):
            next_observation = np.asarray(last.get(env, after[0, env]), np.float32)
            seen.append(
                (*observations[0, env], *actions[0, env], rewards[0, env], next_observation)
            )
        record(observations, actions, after, rewards, ended, cut)

    monkeypatch.setattr(training.learner, "record", noting)
    run.train(lambda _: training)
    assert len(training.learner.buffer) == 70
    batch = training.learner.buffer.batch(torch.arange(70))
    rows = torch.cat([batch.pairs, batch.rewards, batch.next_observations], 1)
    wanted = np.array([[*row[:-1], *row[-1]] for row in seen], np.float32)
    assert sorted(map(tuple, rows.numpy())) == sorted(map(tuple, wanted))
    assert batch.not_done.all()  # only time limits end an episode there


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("TD3", {"n_steps": 3}, "does not know n_steps=3: use --engine sb3"),
        ("TD3", {"normalize": True}, "normalize=True: use --engine sb3"),
        ("TD3", {"optimize_memory_usage": True}, "use --engine sb3"),
        ("SAC", {"use_sde": True}, "use --engine sb3"),
        ("SAC", {"policy_kwargs": "dict(activation_fn=nn.ELU)"}, "activation_fn=ELU"),
        ("TD3", {"policy_kwargs": {"optimizer_class": "x"}}, "use --engine sb3"),
        ("TD3", {"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}}, "amsgrad=True"),
        ("DDPG", {"policy_delay": 2}, "DDPG has no setting 'policy_delay'"),
        ("TD3", {"policy_dely": 2}, "did you mean policy_delay"),
        ("TD3", {"gamma": 1.5}, "gamma must be a number from 0 to 1"),
        ("TD3", {"batch_size": 0}, "batch_size must be a whole number from 1"),
        ("TD3", {"train_freq": [1, "hour"]}, "train_freq must be"),
        ("TD3", {"train_freq": [1, "episode"], "n_envs": 2}, "needs n_envs 1, not 2"),
        ("TD3", {"learning_starts": 240}, "starts to learn after learning_starts"),
        ("TD3", {"device": "cuda"}, "has no device 'cuda'"),
        ("TD3", {"device": "tpu"}, "knows no device 'tpu'"),
        ("TD3", {"seed": 3}, "seed is not TD3's to set here"),
        ("TD3", {"noise_type": "pink"}, "noise_type must be"),
        ("TD3", {"noise_type": None}, "noise_std changes nothing without noise_type"),
        ("SAC", {"ent_coef": "auto_0"}, "ent_coef must be"),
        ("SAC", {"ent_coef": "much"}, "ent_coef must be"),
        ("SAC", {"ent_coef": "auto_"}, "ent_coef must be"),
        ("SAC", {"ent_coef": "auto_1.5.5"}, "auto_NUMBER (above 0), not 'auto_1.5.5'"),
        ("SAC", {"ent_coef": "auto_1e400"}, "ent_coef must be"),
        ("SAC", {"ent_coef": "auto_1e-50"}, "ent_coef must be"),
        ("SAC", {"ent_coef": "auto_1_0"}, "ent_coef must be"),
        ("SAC", {"ent_coef": "auto_nan"}, "ent_coef must be"),
        ("SAC", {"ent_coef": "auto_-1"}, "ent_coef must be"),
        ("SAC", {"ent_coef": -0.1}, "a number from 0"),
        ("TD3", {"policy_kwargs": {"share_features_extractor": 3}}, "must be true or false"),
        ("TD3", {"policy_kwargs": {"net_arch": {"pi": [4]}}}, "net_arch is"),
    ],
)
def test_settings_that_cannot_be(name, config, says):
    if config.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        get_learner(name, "cohort").check(lifetime(0, name, **config))
    assert says in str(error.value)


def test_a_budget_ends_with_a_whole_rollout():
    settings = {"n_envs": 4, "train_freq": 5}
    spec = lifetime(steps=81, learning_starts=99, **settings)
    get_learner("TD3", "cohort").check(spec)
    (agent,) = get_learner("TD3", "cohort").train([spec], [Ledger()], [Outputs()])
    assert not isinstance(agent, Exception)
    with pytest.raises(UserError, match="starts to learn after"):
        get_learner("TD3", "cohort").check(lifetime(steps=80, learning_starts=80, **settings))


def test_values_without_effect_change_nothing():
    given = {
        "sde_sample_freq": 4,
        "replay_buffer_kwargs": {},
        "policy_kwargs": {
            "share_features_extractor": True,
            "log_std_init": -3,
            "optimizer_kwargs": {"amsgrad": False},
        },
    }
    settings = get_learner("SAC", "cohort").settings
    assert settings.from_learner_config(given) == settings.from_learner_config({})


def test_discrete_actions_are_refused():
    with pytest.raises(UserError, match=r"TD3 needs continuous \(Box\) actions, not Discrete"):
        get_learner("TD3", "cohort").check(lifetime(0, env_id="CartPole-v1"))


def test_buffers_that_do_not_fit_are_refused_with_the_size_that_would(monkeypatch):
    class Memory:
        available, total = 10_000_000, 10**9

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    # Observation, action, reward, whether it goes on, and where the next one is: 28 bytes.
    fine, large = lifetime(0, steps=300_000), lifetime(0, steps=400_000)
    get_learner("TD3", "cohort").check(fine)
    with pytest.raises(UserError, match="buffer_size=321428 fits"):
        get_learner("TD3", "cohort").check(large)
    get_learner("TD3", "cohort").check(lifetime(0, steps=400_000, buffer_size=321_428))
    (one, two) = live(Cohort((fine, lifetime(1, steps=300_000))))
    assert one.error == two.error
    assert "for 2 agents side by side" in one.error
    assert "buffer_size=160714 fits" in one.error


def test_buffers_that_do_not_fit_into_the_memory_of_the_job_are_refused(monkeypatch):
    class Memory:
        available, total = 10**9, 10**9

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    fine, large = lifetime(0, steps=300_000), lifetime(0, steps=400_000)
    get_learner("TD3", "cohort").check(large)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "10")
    get_learner("TD3", "cohort").check(fine)
    with pytest.raises(UserError, match="buffer_size=337042 fits"):
        get_learner("TD3", "cohort").check(large)


def test_buffers_for_which_the_machine_is_too_small_are_refused(monkeypatch):
    """Twice as many rows are asked for as there are transitions."""

    class Memory:
        available, total = 10_000_000, 12_000_000

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    with pytest.raises(UserError, match=r"this machine has .* GB of memory: buffer_size=") as error:
        get_learner("TD3", "cohort").check(lifetime(0, steps=300_000))
    fits = int(str(error.value).partition("buffer_size=")[2].split()[0])
    get_learner("TD3", "cohort").check(lifetime(0, steps=300_000, buffer_size=fits))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough")])
def test_buffers_that_cannot_be_allocated_are_refused_in_one_line(error, monkeypatch):
    class Refusing(ReplayBuffer):
        def __init__(self, *_):
            raise error

    monkeypatch.setattr(off_policy, "ReplayBuffer", Refusing)
    (record,) = live(Cohort((lifetime(0),)))
    assert "for an agent, and this machine does not give them: set a smaller" in record.error
    assert "\n" not in record.error


def test_blocks_are_runs_of_one_course():
    assert off_policy.runs([1, 1, None, 1, 2, 2, 2], 2) == [(0, 2), (3, 4), (4, 6), (6, 7)]
    assert off_policy.runs([None, None], 3) == []


def test_logs_and_evaluations_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(off_policy_training, "_LOG_EVERY", 100)
    spec, scored = lifetime(0), lifetime(0, eval_freq=100, eval_episodes=1)
    (plain,) = lived(spec)
    (logged,) = lived(scored, outputs=[Outputs(tensorboard=str(tmp_path))])
    assert [row["steps"] for row in logged[3]["evaluations"]] == [100, 200]
    assert logged[:3] == plain[:3]
    assert list(tmp_path.glob("events*"))


def test_the_speed_in_a_log_is_its_lifetimes_own(monkeypatch):
    """As in the logs of Stable-Baselines3, whoever trains in the same seconds."""
    now, specs = 100.0, [lifetime(i) for i in range(3)]
    monkeypatch.setattr(run_module, "time", SimpleNamespace(perf_counter=lambda: now))
    settings = [TD3Settings.from_learner_config(spec.learner.config) for spec in specs]
    run = Run(specs, [Ledger() for _ in specs], [Outputs()] * 3, settings)
    run.ledgers[1].steps, run.ledgers[2].steps, run.ledgers[2].earlier = 50, 90, (60, 7.0)
    run.members, now = [2, 1], 110.0
    assert [run.steps_per_second(row) for row in range(2)] == [3.0, 5.0]


@pytest.mark.parametrize("name", ["TD3", "DDPG", "SAC"])
def test_agents_learn(name):
    """The action is the reward: what is reached by chance, and what is the most, is known."""
    config = {"learning_rate": 1e-2, "gamma": 0.5}
    specs = [lifetime(i, name, "toy_environments:Push-v0", 400, **config) for i in range(3)]
    for record in live(Cohort(tuple(specs), evaluate=True)):
        assert np.mean(record.final_returns) > 8.0  # of ten steps, each from -1 to 1
