"""AES-RL, ACEM-RL and (1+1)-ES: what they are equal to, the order of events, what counts; and what
all five of the family owe the harness.
"""

import io
import json
import zipfile
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from evolved import NAMES, REACH, act, at_work, episode, lifetime, train, until, weights
from plain_evaluation import evaluate
from stable_baselines3 import TD3
from stable_baselines3.common.evaluation import evaluate_policy

from erl.errors import Stopped, UserError
from erl.learners import Outputs, get_learner
from erl.learners.core.bench import TrainActor
from erl.learners.core.replay import ReplayBuffer
from erl.lifetimes.living import Cohort, live
from erl.lifetimes.models import load_model
from erl.lifetimes.record import LifetimeRecord
from erl.populations.aes import AES, MEAN_UPDATES, VAR_UPDATES
from erl.populations.cem import ACEM
from erl.populations.one_plus_one_es import OnePlusOneES
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, from_json, to_json
from erl.worlds.tasks import Task

ASYNCHRONOUS = ("ACEM-RL", "(1+1)-ES", "AES-RL")
every = pytest.mark.parametrize("name", NAMES)
asynchronous = pytest.mark.parametrize("name", ASYNCHRONOUS)


# -- the algorithms --


def check_against(name, distribution, **settings):
    """Without RL and with one worker: result by result, on the episodes that Gymnasium gives."""
    settings = {"rl_ratio": 0.0, "learning_starts": 0, "actor_workers": 1, "var": 0.1, **settings}
    work, env = at_work(lifetime(name, 10**6, **settings)), gym.make(REACH)
    reference, moved = distribution(work.distribution.mean, work._rng(0)), 0
    played = 0
    for number in range(16):
        mean = reference.mean
        (genes,) = reference.ask(1)
        seed = work._seed(0, number, of="environment")
        fitness, _ = episode(env, genes, work.bench.sizes, seed)
        scores = []
        for _ in range(work.settings.mean_evaluations):
            seed = work._seed(1, played, of="environment")
            scores.append(episode(env, mean, work.bench.sizes, seed)[0])
            played += 1
        score = float(np.mean(scores)) if scores else None
        reference.tell(genes[None], np.array([fitness]), score)
        until(work, number + 1)
        moved += not np.array_equal(mean, work.distribution.mean)
        assert work.distribution.mean == pytest.approx(reference.mean, abs=1e-5)
        assert work.distribution.var == pytest.approx(reference.var, rel=1e-3)
        reference.mean = work.distribution.mean  # rounding does not add up
    assert moved > 2
    assert work.critic_updates == work.actor_updates == 0
    work.close()


@pytest.mark.parametrize("var_update", VAR_UPDATES)
@pytest.mark.parametrize("mean_update", MEAN_UPDATES)
def test_without_rl_aes_rl_is_its_evolution_strategy(mean_update, var_update):
    r = -8.0 if mean_update == "baseline-absolute" else 3.0
    check_against(
        "AES-RL",
        lambda mean, rng: AES(mean, rng, mean_update, r, var_update, var=0.1),
        mean_update=mean_update,
        mean_update_param=r,
        var_update=var_update,
    )


def test_without_rl_the_others_are_theirs():
    check_against("ACEM-RL", lambda mean, rng: ACEM(mean, rng, 4, var=0.1))
    check_against("(1+1)-ES", lambda mean, rng: OnePlusOneES(mean, rng, 0.1), mean_evaluations=2)


def test_an_individual_is_judged_against_the_mean_as_it_was_when_its_episode_ended():
    """Though others have moved the mean before it is told."""
    work = at_work(lifetime("AES-RL", 10**6, var=0.1, mean_evaluations=2))
    tell, env, overtaken = work.tell, gym.make(REACH), 0
    when = {}
    judge = work.judge

    def judged(worker, verdict):
        if not verdict.scores:
            when[verdict.individual.number] = work.distribution.mean
        return judge(worker, verdict)

    def told(verdict):
        nonlocal overtaken
        then = when[verdict.individual.number]
        overtaken += not np.array_equal(then, work.distribution.mean)
        assert np.array_equal(verdict.mean, then)
        returns = [
            episode(env, then, work.bench.sizes, work._seed(1, k, of="environment"))[0]
            for k in range(work.mean_episodes)
        ]
        assert all(np.isclose(returns, score, atol=1e-4).any() for score in verdict.scores)
        tell(verdict)

    work.judge, work.tell = judged, told
    until(work, 15)
    assert overtaken > 5
    work.close()


def test_ages_are_those_of_workers_at_work_together():
    """Who plays as long as others is overtaken by each of them once."""
    spec = lifetime("ACEM-RL", 800, rl_ratio=0.0, actor_workers=4)
    _, ledger = train(spec)
    ages = ledger.notes()["kept"]["age"]
    assert ages[4:] == [3] * (len(ages) - 4)
    _, ledger = train(lifetime("ACEM-RL", 400, rl_ratio=0.0, actor_workers=1))
    assert set(ledger.notes()["kept"]["age"]) == {0}
    # Those that learn take longer: they are overtaken by more than those that do not.
    _, ledger = train(lifetime("ACEM-RL", 1200, actor_workers=4, actor_update_cost=0.5))
    kept = ledger.notes()["kept"]
    ages = {
        kind: np.mean([a for a, k in zip(kept["age"], kept["kind"]) if k == kind])
        for kind in ("RL", "ES")
    }
    assert ages["RL"] > 4 > 3 > ages["ES"]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_the_share_of_rl_individuals_is_held(ratio):
    work = at_work(lifetime("AES-RL", 10**6, rl_ratio=ratio, actor_update_cost=0.0))
    work.stored_steps = 100
    kinds = [work.begin(0).kind == "train_actor" for _ in range(400) if not work.latest.append(1)]
    assert np.mean(kinds) == pytest.approx(ratio, abs=0.01)
    assert work.rl + work.es == 402
    work.close()


def test_none_and_all_are_what_they_say():
    for ratio in (0.0, 1.0):
        _, ledger = train(lifetime("ACEM-RL", 600, rl_ratio=ratio))
        kept = ledger.notes()["kept"]
        since = [k for k, n in zip(kept["kind"], kept["individual"]) if n >= 8]
        assert set(since) == ({"RL"} if ratio else {"ES"})
        assert kept["rl_share"][0] is None  # at random
        assert kept["rl_share"][-1] == ratio


def test_nobody_is_called_rl_whom_no_gradient_improved():
    """There is nothing to learn from before an episode has ended."""
    for name, settings in (("AES-RL", {"rl_ratio": 1.0}), ("CEM-RL", {})):
        work = at_work(lifetime(name, 10**6, learning_starts=0, **settings))
        until(work, 4)
        kept = work.ledger.notes()["kept"]
        first = kept["kind"][0] if name == "CEM-RL" else kept["kind"][:1]
        assert set(first) == {"ES"}
        work.close()


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("AES-RL", {"fixed_var_n": 5.0}, "fixed_var_n=5.0 changes nothing: var_update is adaptive"),
        ("AES-RL", {"negative_ratio": 0.5}, "negative_ratio=0.5 changes nothing: mean_update is"),
        ("ACEM-RL", {"reuse_mean": True}, "reuse_mean=True changes nothing: the mean plays no"),
        ("CEM-RL", {"critic_job": 7}, "critic_job=7 changes nothing: the critics have no worker"),
        ("AES-RL", {"ray_address": "x"}, "ray_address=x changes nothing: actor_executor is"),
        (
            "AES-RL",
            {
                "actor_update_cost": 9.0,
                "critic_update_cost": 85.0,
                "actor_executor": "processes",
            },
            "actor_update_cost=9.0 changes nothing: actor_executor is processes",
        ),
        ("P-CEM-RL", {"critic_update_cost": 9.0}, "the critics have no worker of their own"),
        ("P-CEM-RL", {"critic_update_cost": 9.0, "critic_workers": 1}, None),
        ("CEM-RL", {"rl_population": 0, "order": "batched"}, "order=batched changes nothing: rl_p"),
        ("AES-RL", {"rl_ratio": 1.0, "rl_k": 10.0}, "rl_k=10.0 changes nothing: rl_ratio is 1"),
        ("AES-RL", {"rl_ratio": 0.0, "tau": 0.1}, "tau=0.1 changes nothing: rl_ratio is 0, and"),
        ("AES-RL", {"fixed_var_n": 5.0, "var_update": "fixed"}, None),
        (
            "CEM-RL",
            {"rl_population": 0, "order": "play-last", "learning_starts": 9},
            "learning_starts=9 changes nothing: nothing learns by gradient, and nobody",
        ),
    ],
)
def test_settings_that_change_nothing_are_named(name, settings, said, caplog):
    work = at_work(lifetime(name, 10**6, **settings))
    work.start()
    work.close()
    named = [m for m in caplog.messages if "changes nothing" in m]
    assert any(said in m for m in named) if said is not None else not named


def test_the_default_of_an_environment_is_not_named(caplog):
    work = at_work(lifetime("AES-RL", 10**6, env_id="Swimmer-v4", rl_ratio=0.0))
    work.start()
    work.close()
    assert work.settings.gamma == 0.9999
    assert "gamma" not in caplog.text


def test_an_individual_learns_as_long_as_the_latest_episodes_had_steps():
    work = at_work(lifetime("ACEM-RL", 10**6, rl_ratio=1.0))
    assert isinstance(work.latest, deque)
    work.latest.extend([30] + [7] * 9 + [5])
    work.stored_steps = 100
    assert work.begin(0).units == 7 * 9 + 5
    work.close()


def test_critics_train_without_pause_up_to_the_steps_of_individuals():
    work = at_work(lifetime("AES-RL", 10**6, critic_update_cost=0.0))
    while work.stored_steps < 100:
        work.iterate()
        assert not work.critic_jobs
    until(work, 20)
    assert work.stored_steps - 20 <= work.critic_updates < work.stored_steps + 20
    work.close()
    slow = at_work(lifetime("AES-RL", 10**6, critic_update_cost=2.0))
    until(slow, 20)
    clock, busy = slow.workers.clock, slow.workers.busy[-1]
    assert slow.critic_updates < slow.stored_steps / 2
    assert slow.critic_updates == busy // 40 * 20
    assert busy > 0.5 * clock
    slow.close()


def test_actors_learn_from_the_critics_that_were_handed_in_last():
    work = at_work(lifetime("AES-RL", 10**6, rl_ratio=1.0))
    train_, seen = work.train, set()

    def note(worker, individual, updates):
        job = train_(worker, individual, updates)
        assert isinstance(job.data, TrainActor)
        half = work.critics[0].numel() // 2
        assert np.array_equal(job.data.first_critic, work.critics[0].view(-1)[:half].numpy())
        seen.add(work.critic_updates)
        return job

    work.train = note
    until(work, 20)
    assert len(seen) > 2
    work.close()


@pytest.mark.parametrize("name", ["AES-RL", "(1+1)-ES"])
def test_what_the_mean_plays_is_charged_or_left_out(name):
    """An individual of 20 steps costs 120 with the mean's five episodes."""
    settings = {"mean_evaluations": 5, "actor_workers": 1, "rl_ratio": 0.0}
    _, ledger = train(lifetime(name, 960, **settings))
    kept = ledger.notes()["kept"]
    assert kept["steps"] == [120 * (k + 1) for k in range(8)]
    assert kept["uncounted_steps"] == [20 * (k + 1) for k in range(8)]
    assert kept["individuals"] == list(range(1, 9))
    assert len(ledger.episodes) == 40
    _, ledger = train(lifetime(name, 160, charge_mean=False, **settings))
    kept = ledger.notes()["kept"]
    assert kept["steps"] == kept["uncounted_steps"] == [20 * (k + 1) for k in range(7)]
    assert len(ledger.episodes) == 35  # the mean's, of those that were told


def test_episodes_of_a_mean_that_did_not_move_serve_again():
    """(1+1)-ES moves seldom: then the next individual costs its own episode alone."""
    settings = {"mean_evaluations": 3, "actor_workers": 1, "rl_ratio": 0.0, "reuse_mean": True}
    _, ledger = train(lifetime("(1+1)-ES", 1500, **settings))
    kept = ledger.notes()["kept"]
    costs = np.diff([0, *kept["steps"]])
    moved = [1, *[int(p) for p in kept["p"][:-1]]]
    assert costs.tolist() == [80 if m else 20 for m in moved]
    assert 1 < sum(moved) < len(moved) - 3
    scores = kept["mean_return"]
    assert all(a == b for a, b, m in zip(scores, scores[1:], moved[1:]) if not m)


def test_the_story_of_an_individual():
    _, ledger = train(lifetime("AES-RL", 900))
    notes = ledger.notes()
    kept = notes["kept"]
    names = {"fitness", "kind", "p", "mean_return", "var", "age", "rl_share", "individuals"}
    assert names | {"steps", "uncounted_steps", "individual"} <= set(kept)
    assert set(kept["kind"]) == {"RL", "ES"}
    assert notes["totals"]["rl"] == kept["kind"].count("RL")
    assert notes["totals"]["es"] == kept["kind"].count("ES")
    assert all(0 <= p <= 1 for p in kept["p"])
    for fitness, score, p in zip(kept["fitness"], kept["mean_return"], kept["p"]):
        better = max(fitness[0] - score + 3.0, 0.0)
        assert p == pytest.approx(better / (better + 3.0), abs=1e-3)


LEARNING = {"hidden": [32, 32], "batch_size": 64, "learning_starts": 400, "buffer_size": 20_000}
ASIDE = {"critic_job": 100, "actor_workers": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "settings"),
    [("CEM-RL", 2500, {}), ("ACEM-RL", 2500, ASIDE), ("AES-RL", 5000, ASIDE)],
)
def test_it_learns(name, steps, settings):
    """Seeds 0 to 3 come nearer than -0.8, from about -8; to stand still at 0.5 is -10."""
    agent, _ = train(lifetime(name, steps, **LEARNING, **settings))
    returns = evaluate(agent, gym.make(REACH), 10, 5).returns
    assert np.mean(returns) > -1.5


# -- settings --


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "AES-RL",
            {"mean_update_param": None},
            "no mean_update_param for toy_environments:Reach-v0",
        ),
        (
            "AES-RL",
            {"mean_update_param": None, "mean_update": "baseline-absolute"},
            "as a return below those of the first policies",
        ),
        (
            "AES-RL",
            {"mean_update_param": None},
            "--mean_update_param NUMBER in erl train, or with --learner_config FILE and the line",
        ),
        ("AES-RL", {"mean_update_param": -1}, "mean_update_param must be above 0 for baseline-rel"),
        (
            "AES-RL",
            {"mean_update": "linear"},
            "mean_update must be fixed-linear or fixed-sigmoid or",
        ),
        ("AES-RL", {"fixed_var_n": 0}, "fixed_var_n must be a number from 1, not 0"),
        ("AES-RL", {"critic_workers": 2}, "critic_workers must be 1, not 2"),
        ("AES-RL", {"actor_workers": 0}, "actor_workers must be a whole number from 1, not 0"),
        (
            "AES-RL",
            {"mean_evaluations": 0},
            "mean_evaluations must be a whole number from 1, not 0",
        ),
        ("AES-RL", {"critic_update_cost": -1}, "critic_update_cost must be a number from 0"),
        ("AES-RL", {"device": "abacus"}, "knows no device 'abacus'"),
        (
            "AES-RL",
            {"actor_executor": "threads"},
            "actor_executor must be lockstep or processes or",
        ),
        ("(1+1)-ES", {"success_decay": 0}, "success_decay must be a number above 0 up to 1, not 0"),
        ("ACEM-RL", {"success_rate": 0.1}, "ACEM-RL has no setting 'success_rate'"),
        ("ACEM-RL", {"learning_starts": 600}, "starts to learn after learning_starts = 600"),
        (
            "(1+1)-ES",
            {"mean_evaluations": 5},
            "learning_starts = 100 steps, which count as about 600 with episodes of the mean that "
            "are as long as the individuals', but a lifetime has only 600",
        ),
        ("ACEM-RL", {"env_id": "CartPole-v1"}, "needs continuous .Box. actions, not Discrete"),
        (
            "AES-RL",  # also where no setting could help
            {"env_id": "CartPole-v1", "mean_update_param": None},
            "needs continuous .Box. actions, not Discrete",
        ),
    ],
)
def test_what_cannot_be_is_refused(name, settings, message):
    with pytest.raises(UserError, match=message) as e:
        get_learner(name).check(lifetime(name, **settings))
    assert "\n" not in str(e.value)


def test_a_budget_counts_the_episodes_of_the_mean_where_they_are_charged():
    check, five = get_learner("AES-RL").check, {"mean_evaluations": 5}
    check(lifetime("AES-RL", 601, **five))
    check(lifetime("AES-RL", 101, charge_mean=False, **five))
    check(lifetime("AES-RL", 101, reuse_mean=True, **five))
    get_learner("ACEM-RL").check(lifetime("ACEM-RL", 101))
    for steps, more in ((600, {}), (100, {"charge_mean": False})):
        with pytest.raises(UserError, match="starts to learn after"):
            check(lifetime("AES-RL", steps, **five, **more))


@pytest.mark.parametrize("name", ["ACEM-RL", "ERL-Re2", "DERL"])
def test_lifetimes_at_a_time_have_to_fit_into_memory_together(name, monkeypatch):
    """A buffer is no larger than the budget: 600 steps, and a step of each environment more."""
    learner, each = get_learner(name), ReplayBuffer.bytes_each(3, 1)
    settings = {"buffer_size": 10**6, "learning_starts": 10}
    settings |= {"hidden": [8], "device": "cpu"} if name != "ERL-Re2" else {"init_steps": 10}
    one = LifetimeSpec(
        Task("Pendulum-v1"), LearnerSpec(name, settings), 600, Seeds.derive(0, "single", 0)
    )
    free = SimpleNamespace(available=int(1.5 * 660 * each), total=10**12)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    learner.check(one)
    learner.check_together([[one]])
    with pytest.raises(UserError, match=r"for 2 lifetimes at a time, and .* GB of memory are free"):
        learner.check_together([[one], [one]])
    free.available = 500 * each
    with pytest.raises(UserError, match=r"for a lifetime, and .* buffer_size=\d+ fits"):
        learner.check(one)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("DERL", {"rl_weight": 0.0, "es_weight": 1.0}), ("ERL-Re2", {"RL": False})],
)
def test_what_stores_nothing_needs_no_memory(name, settings, monkeypatch):
    free = SimpleNamespace(available=100, total=10**12)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    learner, seeds = LearnerSpec(name, settings), Seeds.derive(0, "single", 0)
    get_learner(name).check(LifetimeSpec(Task("Pendulum-v1"), learner, 100_000, seeds))


def test_each_process_has_a_replay_buffer(monkeypatch):
    """Three actors' workers, the critics' and the lifetime itself: five."""
    check, each = get_learner("AES-RL").check, ReplayBuffer.bytes_each(3, 1)
    free = SimpleNamespace(available=4 * 603 * each, total=10**12)
    monkeypatch.setattr("erl.learners.core.replay.psutil.virtual_memory", lambda: free)
    check(lifetime("AES-RL"))
    with pytest.raises(UserError, match="for a lifetime and the processes of its workers, and"):
        check(lifetime("AES-RL", actor_executor="processes"))
    free.available = 5 * 603 * each
    check(lifetime("AES-RL", actor_executor="processes"))


def test_defaults_of_an_environment():
    def settings(name, env_id, **given):
        return get_learner(name).settings.from_learner_config(given, env_id)

    assert settings("AES-RL", "HalfCheetah-v4").mean_update_param == 2000.0
    assert settings("AES-RL", "Ant-v5", mean_update="baseline-absolute").mean_update_param == -960
    given = settings("AES-RL", "Ant-v5", mean_update="baseline-absolute", mean_update_param=5)
    assert given.mean_update_param == 5
    assert settings("AES-RL", "Swimmer-v4").rl_ratio == 0.1
    assert settings("ACEM-RL", "Swimmer-v4").rl_ratio == 0.5
    assert settings("CEM-RL", "Swimmer-v4").gamma == 0.9999
    assert settings("AES-RL", "Humanoid-v4").hidden == (256, 256)
    assert settings("(1+1)-ES", "Humanoid-v4").hidden == (400, 300)
    assert settings("CEM-RL", "Hopper-v4").batch_size == 100
    assert settings("P-CEM-RL", "Hopper-v4").buffer_size == 1_000_000
    assert settings("ACEM-RL", "Hopper-v4").buffer_size == 200_000


# -- in the harness: all five --


@pytest.mark.slow
@every
def test_same_seed_same_run(name):
    one, two, other = (train(lifetime(name, 400, seed=s)) for s in (1, 1, 2))
    assert torch.equal(weights(one[0]), weights(two[0]))
    assert one[1].episodes == two[1].episodes
    assert one[1].notes() == two[1].notes()
    assert not torch.equal(weights(one[0]), weights(other[0]))


@every
def test_record_model_and_stable_baselines(tmp_path, name):
    """The record holds the story, and the zip opens in Stable-Baselines3 with the same actions, and
    goes on training there.
    """
    s = lifetime(name, 400)
    (record,) = live(Cohort((s,), (Outputs(),), (str(tmp_path / "a"),), True))
    assert record.error is None, record.traceback
    assert from_json(LifetimeRecord, json.loads(json.dumps(to_json(record)))) == record
    loaded, agent = load_model(tmp_path / "a")
    assert loaded == s
    again = evaluate(agent, s.make_env(), s.ep_eval, s.seeds.evaluation)
    assert again.returns == record.final_returns
    model = TD3.load(tmp_path / "a.zip", gym.make(REACH), buffer_size=200, learning_starts=10)
    assert np.isfinite(evaluate_policy(model, gym.make(REACH), 2, warn=False)[0])
    model.learn(30)


@every
def test_the_agent_is_the_mean_and_its_critics_come_along(name):
    work = at_work(lifetime(name, 10**6, env_id="toy_environments:Lopsided-v0"))
    until(work, 20)
    model = work.agent().model
    seen = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    expected = work.bench.stage.executed(act(work.distribution.mean, work.bench.sizes, seen))
    actions, _ = model.predict(seen, deterministic=True)
    assert actions == pytest.approx(expected, abs=1e-5)
    assert work.critic_updates > 0
    flat = torch.cat([p.detach().flatten() for p in model.critic.q_networks[0].parameters()])
    first = work.bench.critic_layers(work.critics)[0][0]
    theirs = [x for layer in first for x in (layer.weight.t(), layer.bias)]
    assert torch.equal(flat, torch.cat([x.flatten() for x in theirs]))
    work.close()


@every
def test_reservoirs(name):
    context = Context((ReservoirParams(units=8),))
    agent, ledger = train(lifetime(name, 400, context=context))
    assert ledger.steps >= 400
    shape = lifetime(name, context=context).spaces()[0].shape
    assert agent.model.observation_space.shape == shape


@asynchronous
def test_tensorboard_and_status(tmp_path, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    status = tmp_path / "status.json"
    train(lifetime(name, 400), tensorboard=str(tmp_path / "log"), status=str(status))
    names = {
        *EventAccumulator(str(tmp_path / "log")).Reload().Tags()["scalars"],
    }
    assert {
        "evolution/age",
        "evolution/var",
        "evolution/rl_share",
        "evolution/fitness_max",
    } <= names
    assert {"time/uncounted_steps", "time/individuals"} <= names
    assert {"train/critic_updates", "train/critic_loss"} <= names
    assert "population" in json.loads(status.read_text())


@pytest.mark.slow
@every
def test_evaluation_changes_nothing(name):
    plain, _ = train(lifetime(name, 400))
    evaluated, ledger = train(lifetime(name, 400, eval_freq=100, eval_episodes=2))
    assert torch.equal(weights(plain), weights(evaluated))
    assert {*ledger.notes()["evaluations"][0]} == {"steps", "mean"}


@every
@pytest.mark.parametrize("at", [1, 300])
def test_it_stops_when_it_is_told(name, at):
    ledger = Ledger()
    ledger.should_stop = lambda: ledger.steps >= at
    with pytest.raises(Stopped):
        train(lifetime(name), ledger)
    assert at <= ledger.steps < at + 8


@pytest.mark.parametrize("name", ["CEM-RL", "AES-RL"])
def test_a_fault_fails_its_own_lifetime(name):
    good = lifetime(name, 400)
    bad = lifetime(name, 400, env_id="toy_environments:Faulty-raise-v0")
    agents = get_learner(name).train([bad, good], [Ledger(), Ledger()], [Outputs()] * 2)
    assert "the simulator exploded" in str(agents[0])
    assert torch.equal(weights(agents[1]), weights(train(good)[0]))


def test_nothing_told_is_nothing_learned():
    s = lifetime("AES-RL", 400, env_id="toy_environments:EndlessReach-v0")
    with pytest.raises(RuntimeError, match="nothing was learned within 4"):
        train(s)


@pytest.mark.parametrize(
    ("name", "settings", "too_few", "enough"),
    [
        # Three workers: six individuals at random, whom the mean follows in two of the learners.
        ("ACEM-RL", {}, 150, 250),
        ("(1+1)-ES", {}, 250, 400),
        ("AES-RL", {}, 250, 400),
        # An episode of the mean may serve again, and here it never does.
        (
            "AES-RL",
            {"mean_evaluations": 5, "reuse_mean": True, "actor_workers": 1},
            590,
            800,
        ),
        # The mean moves when there are as many results.
        ("ACEM-RL", {"learning_starts": 0, "population_size": 10, "rl_ratio": 0.0}, 150, 250),
    ],
)
def test_individuals_at_random_teach_nothing(name, settings, too_few, enough):
    spec = lifetime(name, too_few, eval_freq=50, **settings)
    get_learner(name).check(spec)
    (record,) = live(Cohort((spec,), evaluate=True))
    assert record.fitness is None
    assert f"nothing was learned within {record.steps} steps" in record.error
    assert len(record.inner["kept"]["fitness"]) > 2
    assert record.inner["evaluations"]
    (record,) = live(Cohort((lifetime(name, enough, **settings),), evaluate=True))
    assert record.error is None, record.traceback


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.slow
@every
@pytest.mark.parametrize(
    "context", [None, Context((ReservoirParams(units=8),), reset_res=False)], ids=["plain", "res"]
)
def test_a_killed_run_goes_on_with_individuals_in_flight(tmp_path, monkeypatch, name, context):
    """Bit for bit, wherever it was killed: in an episode, in a training, in the critics'."""
    s = lifetime(name, 600, context=context)
    straight, ledger = train(s)
    path = str(tmp_path / "a.pkl")
    learner = get_learner(name)
    iterate, count = learner.algorithm.iterate, 0

    def killed(self):
        nonlocal count
        count += 1
        if count in (7, 15, 22):
            raise Killed
        iterate(self)

    monkeypatch.setattr(learner.algorithm, "iterate", killed)
    for _ in range(3):
        with pytest.raises(Killed):
            train(s, checkpoint=path, checkpoint_seconds=0.0)
        assert Path(path).exists()
    again, resumed = train(s, checkpoint=path, checkpoint_seconds=0.0)
    assert torch.equal(weights(straight), weights(again))
    assert ledger.episodes == resumed.episodes
    assert ledger.notes() == resumed.notes()


def test_files_of_one_training_are_the_same(tmp_path):
    for name in "ab":
        agent, _ = train(lifetime("AES-RL", 400))
        agent.save(tmp_path, name)
    one, two = (zipfile.ZipFile(io.BytesIO((tmp_path / f"{n}.zip").read_bytes())) for n in "ab")
    assert one.read("policy.pth") == two.read("policy.pth")
