"""Training in lockstep: what holds for one agent whatever stands beside it, checkpoints, and
Stable-Baselines3's files.
"""

import collections
import dataclasses
import errno
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from plain_evaluation import evaluate
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from erl.errors import UserError
from erl.learners import Outputs, Unsupported, get_learner
from erl.learners.core.checkpoints import Attributes, load_checkpoint, remove_checkpoint
from erl.learners.core.run import Run
from erl.learners.ppo.learner import PPOTraining
from erl.lifetimes.living import Cohort, live
from erl.lifetimes.models import load_model
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, versions
from erl.worlds.tasks import Task
from erl.worlds.world import World

# Of a checkpoint.
PARTS = frozenset({"settings", "ledger", "telemetry", "agents"})
QUICK = {"n_steps": 128, "n_epochs": 3}


def lifetime(
    i=0, env_id="Pendulum-v1", steps=512, units=20, sr=0.9, del_obs=False, context=True, **config
):
    reservoir = Context((ReservoirParams(units=units, sr=sr, lr=0.5),)) if context else None
    learner = LearnerSpec("PPO", {**QUICK, **config}, "cohort")
    return LifetimeSpec(
        Task(env_id, del_obs), learner, steps, Seeds.derive(0, "single", i), reservoir, ep_eval=2
    )


def essence(record):
    """What a lifetime became, without the clock."""
    return dataclasses.replace(record, seconds=0.0, commit=None)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "HalfCheetah-v4"])
@pytest.mark.parametrize("context", [True, False])
def test_a_record_does_not_depend_on_the_cohort_to_the_last_bit(env_id, context):
    steps = 1024 if env_id == "HalfCheetah-v4" else 512
    specs = [
        lifetime(
            i, env_id, steps, sr=0.3 + 0.2 * i, context=context, learning_rate=10.0 ** -(3 + i % 2)
        )
        for i in range(5)
    ]
    together = live(Cohort(tuple(specs)))
    for chosen in ([2], [4, 1]):
        alone = live(Cohort(tuple(specs[i] for i in chosen)))
        for i, record in zip(chosen, alone):
            assert record.training_return is not None
            assert essence(record) == essence(together[i])


def test_agents_with_smaller_budgets_leave_and_change_nothing_for_the_others():
    specs = [lifetime(0, steps=768), lifetime(1, steps=256), lifetime(2, steps=768)]
    together = live(Cohort(tuple(specs)))
    assert [r.steps for r in together] == [768, 256, 768]
    assert [essence(r) for r in live(Cohort((specs[0], specs[2])))] == [
        essence(together[0]),
        essence(together[2]),
    ]


@pytest.mark.parametrize(
    ("name", "error"), [("Lottery-v0", "RuntimeError"), ("ExitLottery-v0", "SystemExit")]
)
def test_a_faulty_environment_does_not_hurt_its_neighbours(name, error):
    specs = [lifetime(i, f"toy_environments:{name}", 1024) for i in range(6)]
    odd = [bool(s.seeds.environment % 2) for s in specs]
    assert 0 < sum(odd) < 6
    records = live(Cohort(tuple(specs)))
    for record, spec, is_odd in zip(records, specs, odd):
        if is_odd:
            assert record.fitness is None
            assert "an odd seed" in record.error
            assert record.traceback is not None
            assert error in record.traceback
            assert 128 <= record.steps < 1024
        else:
            assert record.steps == 1024
            assert essence(record) == essence(live(Cohort((spec,)))[0])


def test_reservoirs_that_cannot_be_drawn_fail_their_own_lifetime():
    sound, unsound = lifetime(1), lifetime(0)
    sparse = Context((dataclasses.replace(unsound.context.reservoirs[0], rc_connectivity=1e-4),))
    good, bad = live(Cohort((sound, dataclasses.replace(unsound, context=sparse))))
    assert "20 units with rc_connectivity=0.0001" in bad.error
    assert bad.fitness is None
    assert essence(good) == essence(live(Cohort((sound,)))[0])


def test_a_diverging_agent_leaves_and_the_others_go_on():
    specs = [lifetime(0, learning_rate=1e30), lifetime(1)]
    bad, good = live(Cohort(tuple(specs)))
    assert bad.fitness is None
    assert "finite" in bad.error
    assert good.steps == 512
    assert essence(good) == essence(live(Cohort((specs[1],)))[0])


def test_evaluations_on_the_way_are_recorded_and_change_nothing(tmp_path):
    how = [{}, {"eval_freq": 200, "eval_episodes": 3}, {"eval_freq": 256, "normalize": True}]
    pairs = [
        (lifetime(i, steps=640, **more), lifetime(i, steps=640, **{**more, "eval_freq": 0}))
        for i, more in enumerate(how)
    ]
    models = tuple(str(tmp_path / f"agent{k}") for k in range(2))
    records = [
        *live(Cohort(tuple(evaluated for evaluated, _ in pairs[:2]), (), models, evaluate=True)),
        *live(Cohort((pairs[2][0],))),
    ]
    steps = [[row["steps"] for row in r.inner["evaluations"]] if r.inner else [] for r in records]
    # At the end of the rollout, 128 steps, in which a multiple was reached.
    assert steps == [[], [256, 512, 640], [256, 512]]
    for record, (_, plain) in zip(records, pairs):
        (alone,) = live(Cohort((plain,)))
        assert alone.inner is None
        assert (record.curve, record.training_return, record.fitness) == (
            alone.curve,
            alone.training_return,
            alone.fitness,
        )
    # What is said of the last step is what the finished agent reaches, on episodes that are not
    # those of its final evaluation.
    spec = pairs[1][0]
    again = evaluate(PPO.load(models[1]), spec.make_env(), 3, spec.seeds.evaluation + 1)
    assert records[1].inner["evaluations"][-1]["agent"] == np.mean(again.returns)


def test_an_evaluation_that_fails_is_noted_and_changes_nothing(monkeypatch):
    specs = [lifetime(0, eval_freq=256), lifetime(1)]
    monkeypatch.setattr("erl.learners.core.telemetry.evaluate_afresh", lambda *_: 1 / 0)
    noted, other = live(Cohort(tuple(specs)))
    assert [row["steps"] for row in noted.inner["evaluations"] if "division" in row["error"]] == [
        256,
        512,
    ]
    assert (noted.steps, other.steps) == (512, 512)
    assert noted.fitness == live(Cohort((lifetime(0),)))[0].fitness


class Killed(BaseException):
    pass


def live_until(specs, folder, at, monkeypatch):
    """Live with a checkpoint after every rollout, and stop dead after the `at`-th."""
    saved, save = [], Run._save

    def save_then_die(self):
        save(self)
        saved.append(1)
        if len(saved) == at:
            raise Killed

    outputs = tuple(
        Outputs(checkpoint=f"{folder}/{i}.pkl", checkpoint_seconds=0.0) for i in range(len(specs))
    )
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_save", save_then_die)
        with pytest.raises(Killed):
            live(Cohort(tuple(specs), outputs))
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize(
    "config", [{}, {"n_envs": 2, "normalize": True, "eval_freq": 600, "eval_episodes": 1}]
)
def test_a_killed_cohort_goes_on_as_if_nothing_had_happened(env_id, config, tmp_path, monkeypatch):
    if env_id == "HalfCheetah-v4":  # its episodes of a thousand steps tell no more on the way
        config = {k: v for k, v in config.items() if not k.startswith("eval_")}
    specs = [lifetime(i, env_id, 1536, **config) for i in range(3)]
    if env_id == "Pendulum-v1":
        specs = [
            dataclasses.replace(s, task=Task(env_id, del_obs=True, frame_stack=3), context=None)
            for s in specs
        ]
    outputs = live_until(specs, tmp_path, 3, monkeypatch)
    assert len(list(tmp_path.glob("*.pkl"))) == 3
    expected = [essence(r) for r in live(Cohort(tuple(specs)))]
    taken = collections.Counter()

    def step(self, n=1, step=Ledger.step):
        if self.earlier[0] > 0:  # not the ledgers of evaluations
            taken[id(self)] += n
        step(self, n)

    monkeypatch.setattr(Ledger, "step", step)
    # Two of the three go on, in another order: a checkpoint is one agent's.
    records = live(Cohort((specs[2], specs[0]), (outputs[2], outputs[0])))
    assert [essence(r) for r in records] == [expected[2], expected[0]]
    assert [n < 1536 - 256 for n in taken.values()] == [True, True]
    assert all((r.inner is not None) == ("eval_freq" in config) for r in records)


def test_box2d_begins_its_episode_anew_and_goes_on(tmp_path, monkeypatch):
    specs = [lifetime(i, "LunarLander-v3", 768) for i in range(2)]
    outputs = live_until(specs, tmp_path, 2, monkeypatch)
    records = live(Cohort(tuple(specs), outputs))
    assert [r.steps for r in records] == [768, 768]
    assert all(r.fitness is not None for r in records)


def test_an_agent_that_is_taken_up_changes_nothing_for_a_fresh_one(tmp_path, monkeypatch):
    specs = [lifetime(i, "LunarLander-v3", 768) for i in range(2)]
    outputs = live_until(specs[:1], tmp_path, 2, monkeypatch)
    _, fresh = live(Cohort(tuple(specs), (*outputs, Outputs())))
    assert essence(fresh) == essence(live(Cohort((specs[1],)))[0])


def test_seconds_count_what_came_before_a_checkpoint(tmp_path, monkeypatch):
    spec = lifetime(0, steps=1536)
    outputs = live_until([spec], tmp_path, 11, monkeypatch)
    _, seconds, _ = load_checkpoint(outputs[0].checkpoint, spec, PARTS)["ledger"]
    record = live(Cohort((spec,), outputs))[0]
    assert record.seconds > seconds > 0


@pytest.mark.parametrize(
    "damage",
    ["truncated", "other bytes", "other lifetime", "other libraries", "other parts", "unreadable"],
)
def test_a_checkpoint_that_does_not_fit_is_set_aside(damage, tmp_path, monkeypatch, caplog):
    """The lifetime begins anew, the other one in the cohort goes on, and nothing is thrown away
    before the end.
    """
    monkeypatch.setattr("erl.files.WAITS", (0.0, 0.0))
    specs = [lifetime(0), lifetime(2)]
    outputs = live_until(specs, tmp_path, 2, monkeypatch)
    path = Path(outputs[0].checkpoint)
    content, reads = path.read_bytes(), Path.read_bytes
    says, began_anew = "it cannot be read", 1
    if damage == "truncated":
        path.write_bytes(content[:-100])
    elif damage == "other bytes":
        path.write_bytes(b"nonsense")
    elif damage == "unreadable":
        tried = []

        def fail(self):
            if self == path:
                tried.append(self)
                raise OSError(errno.EIO, "no answer")
            return reads(self)

        monkeypatch.setattr(Path, "read_bytes", fail)
    elif damage == "other libraries":
        monkeypatch.setattr(
            "erl.learners.core.checkpoints.versions", lambda: {**versions(), "numpy": "0"}
        )
        says, began_anew = f"numpy {versions()['numpy']}, not 0", 2
    elif damage == "other parts":
        parts = PPOTraining.parts.fget
        more = property(lambda self: {**parts(self), "more": [Attributes(self)] * len(self.ppo)})
        monkeypatch.setattr(PPOTraining, "parts", more)
        says, began_anew = "another parts", 2
    else:
        specs[0] = lifetime(1)
        says = "another lifetime"
    (tmp_path / "0.pkl.aside1").write_text("of an earlier time")
    found = live(Cohort(tuple(specs), outputs))
    assert damage != "unreadable" or len(tried) == 3
    assert caplog.text.count("begins anew") == caplog.text.count(says) == began_anew
    assert (tmp_path / "0.pkl.aside1").read_text() == "of an earlier time"
    kept = reads(tmp_path / "0.pkl.aside2")
    assert kept == content or damage in ("truncated", "other bytes")
    monkeypatch.undo()
    for record, s in zip(found, specs):
        assert essence(record) == essence(live(Cohort((s,)))[0])
    (tmp_path / ".0.abc").mkdir()  # of a process that was killed in the midst of writing
    for output in outputs:
        remove_checkpoint(output.checkpoint)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_costs_nothing_but_itself(tmp_path):
    (tmp_path / "file").write_text("in the way")
    spec = lifetime(0)
    outputs = (Outputs(checkpoint=str(tmp_path / "file" / "0.pkl"), checkpoint_seconds=0.0),)
    assert essence(live(Cohort((spec,), outputs))[0]) == essence(live(Cohort((spec,)))[0])


def _live_in_process(specs, outputs):
    live(Cohort(specs, outputs))


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_checkpoints_that_are_whole(tmp_path):
    specs = tuple(lifetime(i, steps=100_000) for i in range(2))
    outputs = tuple(
        Outputs(checkpoint=str(tmp_path / f"{i}.pkl"), checkpoint_seconds=0.0) for i in range(2)
    )
    # Forked, it imports nothing anew: torch has one thread here, and gradients are by hand.
    process = multiprocessing.get_context("fork").Process(
        target=_live_in_process, args=(specs, outputs)
    )
    process.start()
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("*.pkl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for spec, output in zip(specs, outputs):
        assert load_checkpoint(output.checkpoint, spec, PARTS) is not None


@pytest.mark.slow
@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize("del_obs", [False, True])
@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_world_shows_what_the_wrapped_environments_show(env_id, context, del_obs, frame_stack):
    """Same seeds and actions: observations, rewards, ends, terminal observations and episodes are
    Stable-Baselines3's.
    """
    specs = [lifetime(i, env_id, context=context, del_obs=del_obs) for i in range(3)]
    specs = [
        dataclasses.replace(s, task=dataclasses.replace(s.task, frame_stack=frame_stack))
        for s in specs
    ]
    if context and del_obs:
        specs = [
            dataclasses.replace(s, context=dataclasses.replace(s.context, obs_units=7, skip_c=True))
            for s in specs
        ]
    ledgers = [Ledger() for _ in specs]
    world = World(specs, ledgers, n_envs=2)
    theirs, their_ledgers = [], []
    for spec in specs:
        their_ledgers.append(Ledger())
        env = DummyVecEnv([lambda s=spec, ledger=their_ledgers[-1]: s.make_env(ledger)] * 2)
        env.seed(spec.seeds.environment)
        theirs.append(env)
    assert world.observation_space == theirs[0].observation_space
    np.testing.assert_array_equal(
        world.reset().astype(np.float32), np.stack([e.reset() for e in theirs])
    )
    rng = np.random.default_rng(0)
    seen_timeouts = 0
    for _ in range(450):
        actions = (
            rng.integers(2, size=(3, 2))
            if env_id == "CartPole-v1"
            else rng.uniform(-2, 2, (3, 2, 1)).astype(np.float32)
        )
        seen, rewards, ends, timeouts = world.step(actions)
        seen = seen.astype(np.float32)
        timeouts = {(agent, env): last for agent, env, last in timeouts}
        for i, env in enumerate(theirs):
            o, r, d, infos = env.step(actions[i])
            np.testing.assert_array_equal(seen[i], o)
            np.testing.assert_array_equal(rewards[i].astype(np.float32), r)
            np.testing.assert_array_equal(ends[i], d)
            for k, info in enumerate(infos):
                assert info["TimeLimit.truncated"] == ((i, k) in timeouts)
                if (i, k) in timeouts:
                    seen_timeouts += 1
                    np.testing.assert_array_equal(
                        timeouts[i, k].astype(np.float32), info["terminal_observation"]
                    )
    world.close()
    assert (seen_timeouts > 0) == (env_id == "Pendulum-v1")
    assert [led.steps for led in ledgers] == [led.steps for led in their_ledgers] == [900] * 3
    for ours, other in zip(ledgers, their_ledgers):
        assert [(length, pytest.approx(total)) for _, total, length in ours.episodes] == [
            (n, r) for _, r, n in other.episodes
        ]


def test_the_zip_is_stable_baselines3s(tmp_path):
    specs = tuple(lifetime(i, "CartPole-v1", 1024) for i in range(2))
    outputs = tuple(Outputs(tensorboard=str(tmp_path / f"tb{i}")) for i in range(2))
    records = live(
        Cohort(specs, outputs, tuple(str(tmp_path / f"agent{i}") for i in range(2)), evaluate=True)
    )
    for i, (spec, record) in enumerate(zip(specs, records)):
        env = spec.make_env()
        model = PPO.load(tmp_path / f"agent{i}.zip", env=env)
        assert model.num_timesteps == 1024
        env.reset(seed=spec.seeds.evaluation)
        returns, _ = evaluate_policy(
            model, _seeded(spec), 2, return_episode_rewards=True, warn=False
        )
        assert tuple(returns) == record.final_returns
        optimizer = model.policy.optimizer.state_dict()["state"]
        assert {float(s["step"]) for s in optimizer.values()} == {
            8 * 3 * 2
        }  # rollouts x epochs x minibatches
        model.learn(256, reset_num_timesteps=False)
        assert model.num_timesteps == 1280
        assert list((tmp_path / f"tb{i}").glob("events*"))


def _seeded(spec):
    env = DummyVecEnv([spec.make_env])
    env.seed(spec.seeds.evaluation)
    return env


def test_statistics_of_normalisation_lie_beside_the_zip(tmp_path):
    spec = lifetime(0, normalize=True, n_envs=2, context=False)
    record = live(Cohort((spec,), models=(str(tmp_path / "agent"),), evaluate=True))[0]
    normalizer = VecNormalize.load(str(tmp_path / "agent.vecnormalize.pkl"), _seeded(spec))
    normalizer.training = normalizer.norm_reward = False
    returns, _ = evaluate_policy(
        PPO.load(tmp_path / "agent.zip"), normalizer, 2, return_episode_rewards=True, warn=False
    )
    np.testing.assert_allclose(returns, record.final_returns, rtol=1e-4)


def test_a_model_that_normalised_nothing_needs_no_statistics(tmp_path):
    neither = {"norm_obs": False, "norm_reward": False}
    spec = lifetime(0, normalize=neither, context=False)
    path = tmp_path / "agent"
    live(Cohort((spec,), models=(str(path),)))
    assert not path.with_suffix(".vecnormalize.pkl").exists()
    found, agent = load_model(path)
    assert found == spec
    assert agent.normalize is None


def test_what_the_cohort_does_not_know_it_says():
    for config in ({"use_sde": True}, {"policy_kwargs": "dict(squash_output=True)"}):
        spec = lifetime(0, **config)
        with pytest.raises(Unsupported, match="--engine sb3"):
            get_learner("PPO", "cohort").check(spec)
    for name in ("TQC", "ERL-Re2"):
        with pytest.raises(
            UserError, match=f"--engine cohort exists for .* only; use --engine auto for {name}"
        ):
            get_learner(name, "cohort")
    assert type(get_learner("PPO", "auto")).__name__ == "CohortPPOLearner"
    assert type(get_learner("PPO", "sb3")).__name__ == "SB3Learner"
