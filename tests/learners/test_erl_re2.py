"""ERL-Re² as a learner: what counts, what is reported, checkpoints, records, learning."""

import errno
import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from plain_evaluation import evaluate
from scipy import stats
from stable_baselines3 import TD3
from stable_baselines3.common.evaluation import evaluate_policy

from erl.errors import Stopped, UserError
from erl.experiments.campaign import folder_name
from erl.experiments.comparison import (
    ComparisonConfig,
    GeneralizationComparisonConfig,
    MultiComparisonConfig,
    compare,
)
from erl.experiments.evolution import (
    EvolutionConfig,
    GeneralizationConfig,
    MultiEvolutionConfig,
    evolve,
)
from erl.learners import Outputs, get_learner
from erl.learners.core.checkpoints import beside, remove_checkpoint, set_aside
from erl.learners.core.episodes import Episode, Stage
from erl.learners.core.run import Run
from erl.learners.core.settings import EvaluationSettings
from erl.learners.core.telemetry import NUMBERS, ROWS, Generations, Telemetry
from erl.learners.erl_re2.learner import ERLRe2, Re2Learner, surrogate
from erl.learners.erl_re2.settings import Re2Settings
from erl.learners.erl_re2.update import act
from erl.lifetimes.living import Cohort, check, live
from erl.lifetimes.record import LifetimeRecord
from erl.studies.commands import export_study, show_study
from erl.studies.flags import ExportConfig, ShowConfig
from erl.studies.records import generations, records
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, from_json, to_json
from erl.worlds.tasks import Task

# Small enough for a test: little learning, judged often both ways.
SMALL = {
    "init_steps": 60,
    "learning_starts": 50,
    "batch_size": 16,
    "time_steps": 5,
    "theta": 0.5,
    "pr": 8,
    "sync_period": 1,
    "frac_frames_train": 0.1,
    "eval_freq": 0,
    "buffer_size": 300,
}


def spec(
    env_id="toy_environments:Reach-v0", steps=400, seed=0, ep_eval=2, context=None, **settings
):
    learner = LearnerSpec("ERL-Re2", {**SMALL, **settings})
    return LifetimeSpec(
        Task(env_id), learner, steps, Seeds.derive(seed, "single", 0), context, ep_eval
    )


def train(s, ledger=None, **outputs):
    ledger = ledger or Ledger()
    (agent,) = Re2Learner().train([s], [ledger], [Outputs(**outputs)])
    if isinstance(agent, Exception):
        raise agent
    return agent, ledger


def training(s, ledger=None):
    """The algorithm at work on a lifetime."""
    settings = Re2Settings.from_learner_config(s.learner.config, s.task.env_id)
    return ERLRe2(Run([s], [ledger or Ledger()], [Outputs()], [settings]))


def train_through(t):
    """Its agent, once the budget is spent."""
    (agent,) = t.run.train(lambda _: t)
    return agent


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.model.policy.parameters()])


# -- what is allowed --


def test_it_is_in_the_registry_whatever_the_case():
    assert isinstance(get_learner("erl-re2"), Re2Learner)
    with pytest.raises(UserError, match="--engine cohort exists for"):
        get_learner("TQC", "cohort")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"task": Task("CartPole-v1")},
            "continuous .Box. actions, not Discrete",
        ),
        ({"learner": LearnerSpec("ERL-Re2", {"thta": 1})}, "did you mean theta"),
        (
            {"learner": LearnerSpec("ERL-Re2", {}, "sb3"), "steps": 20000},
            "is not an algorithm of Stable-Baselines3",
        ),
        ({"steps": 59}, "starts to learn after init_steps = 60 steps, but a lifetime has only 59"),
        (
            {"steps": 61, "learner": LearnerSpec("ERL-Re2", SMALL | {"learning_starts": 62})},
            "after learning_starts = 62 steps, but .*; lower learning_starts or raise the steps",
        ),
        (
            {"steps": 59, "learner": LearnerSpec("ERL-Re2", SMALL | {"learning_starts": 62})},
            "starts to learn after learning_starts = 62 steps and init_steps = 60 steps, but a "
            "lifetime has only 59; lower learning_starts and init_steps or raise the steps",
        ),
    ],
)
def test_check_refuses(change, says):
    with pytest.raises(UserError, match=says):
        check(replace(spec(), **change))


def test_what_the_last_step_pays_for_is_learned():
    lifetime = spec(steps=60)
    check(lifetime)
    train(lifetime)


# -- the surrogate --


def episode(rewards, terminated=False, truncated=False):
    n = len(rewards)
    return Episode(
        np.zeros((n + 1, 1), np.float32),
        np.zeros((n, 1), np.float32),
        np.array(rewards),
        terminated,
        truncated,
    )


def test_surrogate_by_hand():
    # 1 + 0.5 * 2 + 0.25 * 4 = 3, and 0.125 * 16 = 2 for what follows.
    assert surrogate(episode([1.0, 2.0, 4.0]), 3, 0.5, 16.0) == 5.0
    # Of a longer episode only the first steps count.
    assert surrogate(episode([1.0, 2.0, 4.0, 100.0], terminated=True), 3, 0.5, 16.0) == 5.0
    # What ended by then has nothing to follow.
    assert surrogate(episode([1.0, 2.0], terminated=True), 3, 0.5, 16.0) == 2.0
    assert surrogate(episode([1.0, 2.0], truncated=True), 3, 0.5, 16.0) == 2.0
    assert surrogate(episode([1.0, 2.0, 4.0], terminated=True), 3, 0.5, 16.0) == 3.0


def test_surrogate_of_heads_is_the_equation(monkeypatch):
    """The learner's surrogate against the networks asked one by one."""
    t = training(spec(theta=0.0))
    seen = {}
    monkeypatch.setattr(
        t.stage, "play", lambda *a, **k: seen.setdefault("episodes", Stage.play(t.stage, *a, **k))
    )
    heads = torch.from_numpy(t.population.heads.copy())
    fitness, row = t.evaluate_heads()
    assert row["whole"] == 0
    for head, e, f in zip(heads, seen["episodes"], fitness):
        assert len(e.rewards) == 5
        last = torch.from_numpy(e.observations[5:6])
        value = t.networks.value_of(last, head.unsqueeze(0)).item()
        assert f == pytest.approx(
            sum(0.99**k * r for k, r in enumerate(e.rewards)) + 0.99**5 * value, rel=1e-5
        )
    t.close()


# -- budget, buffer, time limits --


def test_every_step_that_feeds_learning_is_counted(monkeypatch):
    """Steps of the ledger are steps of the environments, and all are in the buffer; evaluation that
    only reports is neither.
    """
    import toy_environments

    taken = []
    step = toy_environments.Reach.step
    monkeypatch.setattr(
        toy_environments.Reach, "step", lambda self, a: taken.append(1) or step(self, a)
    )
    t = training(
        spec(steps=700, buffer_size=10_000, eval_freq=200, eval_episodes=2), ledger := Ledger()
    )
    train_through(t)
    rows = t.telemetry.evaluations
    evaluated = len(rows) * 2 * 2 * 20 - 2 * 20 * sum("champion" not in s for s in rows)
    assert len(rows) == 3
    assert len(taken) == ledger.steps + evaluated
    assert ledger.steps == t.buffer.added
    assert 700 <= ledger.steps < 700 + 5


@pytest.mark.slow
@pytest.mark.parametrize("steps", [300, 305, *range(400, 520, 17)])
@pytest.mark.parametrize(
    "settings", [{}, {"num_evals": 3, "theta": 1.0}, {"RL": False, "num_evals": 2}, {"EA": False}]
)
def test_the_budget_is_kept_and_episodes_cut_off_are_no_fitness(steps, settings, monkeypatch):
    t = training(spec(steps=steps, **settings), ledger := Ledger())
    played, judged, judge, play = [], [], t.evaluate_heads, Stage.play
    monkeypatch.setattr(
        t.stage, "play", lambda *a, **k: played.append(play(t.stage, *a, **k)) or played[-1]
    )

    def judging():
        played.clear()
        fitness, row = judge()
        cut = [e.cut for episodes in played for e in episodes]
        whole = len(played) == t.settings.num_evals and not any(cut)
        assert (fitness is not None) == whole
        assert whole or ledger.steps >= steps
        judged.append(fitness is not None)
        return fitness, row

    monkeypatch.setattr(t, "evaluate_heads", judging)
    train_through(t)
    assert any(judged) == (t.settings.EA and steps >= 60 + t.settings.num_evals * 5 * 20)
    assert all(judged[:-1])
    assert steps <= ledger.steps < steps + 5
    assert all(n == 20 for _, _, n in ledger.episodes)


def test_episodes_that_never_end_are_left_when_the_budget_is_spent():
    s = spec("toy_environments:EndlessReach-v0", steps=300)
    _, ledger = train(s)
    assert ledger.steps == 300
    assert ledger.episodes == []
    (record,) = live(Cohort((s,)))
    assert record.error == "no episode was finished within 300 steps"


@pytest.mark.parametrize("at", [1, 100, 300])
def test_it_stops_when_it_is_told(at):
    ledger = Ledger()
    ledger.should_stop = lambda: ledger.steps >= at
    (agent,) = Re2Learner().train([spec()], [ledger], [Outputs()])
    assert isinstance(agent, Stopped)
    assert at <= ledger.steps < at + 5
    # In updates, too, but not in those that the last steps of the budget pay for.
    t = training(spec(frac_frames_train=2.0), ledger := Ledger())
    ledger.should_stop = lambda: t.updates >= 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erl.learners.erl_re2.learner._CHUNK", 16)
        with pytest.raises(Stopped):
            t.run.train(lambda _: t)
    assert 50 <= t.updates < 50 + 16
    assert ledger.notes()["generations"] > 0  # what was noted by then is not lost
    t.close()
    ledger = Ledger()
    ledger.should_stop = lambda: ledger.steps >= 400
    (agent,) = Re2Learner().train([spec()], [ledger], [Outputs()])
    assert not isinstance(agent, Exception)


def test_fractions_of_updates_are_saved_from_one_generation_to_the_next():
    for share in (0.024, 0.026, 0.3, 1.0):
        t = training(spec(frac_frames_train=share, EA=False, init_steps=0, learning_starts=0))
        train_through(t)
        assert t.updates == int(400 * share + 1e-6)


def test_evaluation_changes_nothing():
    quiet, loud = (train(spec(eval_freq=f, eval_episodes=1)) for f in (0, 100))
    assert torch.equal(weights(quiet[0]), weights(loud[0]))
    assert quiet[1].episodes == loud[1].episodes
    assert len(loud[1].notes()["evaluations"]) > 1


def test_time_limits_are_not_terminal():
    """Reach ends by its time limit only, Steady for good after ten steps."""
    for env_id, terminal, length in (("Reach", 0, 20), ("Steady", 1, 10)):
        t = training(spec(f"toy_environments:{env_id}-v0", steps=120, theta=1.0))
        train_through(t)
        ends = 1.0 - t.buffer.batch(torch.arange(len(t.buffer))).not_done[:, 0]
        assert ends.sum() == terminal * len(t.buffer) / length


def test_episodes_that_count_were_played_by_a_champion_that_was_chosen_before():
    """Fitness of the champion of the generation before, and the RL agent's returns: never the best
    of several.
    """
    t = training(spec(theta=1.0, learning_starts=0), ledger := Ledger())
    t.rl_steps = 60
    judged = []
    for _ in range(3):
        champion, n = t.champion, len(ledger.episodes)
        t.iterate()
        row = t.telemetry.generations.rows[-1]
        judged.append([round(r, 3) for _, r, _ in ledger.episodes[n:]])
        assert judged[-1] == pytest.approx([row["fitness"][champion], row["rl_return"]], rel=1e-3)
        assert row["champion"] == int(np.argmax(row["fitness"]))
    t.close()


# -- switches --


def test_rl_alone_has_no_population():
    agent, ledger = train(spec(EA=False))
    assert agent.companions == {}
    assert all(n == 20 for _, _, n in ledger.episodes)
    assert ledger.steps == 400
    assert "fitness" not in ledger.notes()["kept"]


def test_evolution_alone_learns_no_network():
    s = spec(RL=False, steps=600)
    t = training(s)
    before = [n.values.clone() for n in t.networks.networks]
    agent = train_through(t)
    assert all(torch.equal(n.values, b) for n, b in zip(t.networks.networks, before))
    assert t.updates == 0
    assert t.buffer.added == 0  # nobody would read it
    assert agent.companions == {}
    assert t.telemetry.to_json()["totals"]["whole"] == t.telemetry.to_json()["generations"] == 6
    assert "surrogate" not in t.telemetry.to_json()["kept"]


def test_nothing_evolves_before_the_random_steps_are_over():
    t = training(spec(init_steps=100, steps=1000))
    heads = t.population.heads.copy()
    for _ in range(5):
        t.iterate()
    assert (t.population.heads == heads).all()
    assert (t.ledger.steps, t.evolved, t.updates) == (
        100,
        0,
        2,
    )  # those that the last of these episodes pays for
    actions = t.buffer.batch(torch.arange(100)).actions
    assert actions.min() < -0.9
    assert actions.max() > 0.9
    assert abs(actions.mean()) < 0.2
    t.iterate()
    assert (t.evolved, t.updates) == (1, int(0.1 * (t.ledger.steps - 80) + 1e-6))
    t.close()


@pytest.mark.parametrize(
    "settings", [{"RL": False, "steps": 60}, {"EA": False, "frac_frames_train": 0.0005}]
)
def test_a_lifetime_that_learned_nothing_fails(settings):
    (record,) = live(Cohort((spec(**settings),), evaluate=True))
    assert record.fitness is None
    assert "nothing was learned within" in record.error


def test_the_rl_head_takes_the_place_of_the_worst():
    t = training(spec(theta=1.0, sync_period=2, learning_starts=0, steps=10_000))
    t.rl_steps = 60
    for generation in range(1, 7):
        t.iterate()
        fitness = t.telemetry.generations.rows[-1]["fitness"]
        rl = t.networks.rl_head.numpy()
        if generation % 2:
            assert t.rl_copy is None
            continue
        worst = int(np.argmin(fitness))
        assert t.rl_copy in (worst, (worst + 1) % 5)
        assert t.rl_copy != t.champion
        assert (t.population.heads[t.rl_copy] == rl).all()
    totals = t.telemetry.generations.totals
    fates = sum(totals.get(f"rl_{fate}", 0) for fate in ("elites", "selected", "discarded"))
    assert fates == 2  # of three copies the last is yet to be judged
    t.close()


def test_the_rl_head_takes_no_elites_place():
    t = training(spec(theta=1.0, elite_fraction=0.6, learning_starts=0, steps=10_000))
    t.rl_steps = 60
    evolve, kept = t.population.evolve, []
    t.population.evolve = lambda fitness: kept.append((v := evolve(fitness)).kept) or v
    for _ in range(20):
        t.iterate()
        assert len(kept[-1]) == 3
        assert t.rl_copy not in kept[-1]
    t.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "DDPG"},
        {"OFF_TYPE": 0},
        {"K": 3, "num_evals": 2},
        {"precision": "bf16", "batch_size": 128},
    ],
)
def test_variants_run(settings):
    agent, ledger = train(spec(steps=300, **settings))
    assert ledger.steps >= 300
    assert np.isfinite(weights(agent)).all()


@pytest.mark.parametrize("skip_c", [False, True])
def test_reservoirs(skip_c):
    context = Context((ReservoirParams(units=10, sr=0.9, lr=0.5),), skip_c=skip_c)
    s = spec(steps=200, context=context)
    check(s)
    agent, _ = train(s)
    assert agent.model.observation_space == s.spaces()[0]
    env = s.make_env()
    evaluate_policy(agent, env, 1, warn=False)
    env.close()


def test_a_fault_fails_its_own_lifetime():
    good, bad = (
        spec(steps=80, init_steps=0, learning_starts=10),
        spec("toy_environments:Faulty-reward-v0", steps=400),
    )
    ledgers = [Ledger(), Ledger()]
    agents = Re2Learner().train([bad, good], ledgers, [Outputs(), Outputs()])
    assert "reward that is not finite" in str(agents[0])
    assert str(agents[0]).endswith(f"(about step {ledgers[0].steps})")
    assert not isinstance(agents[1], Exception)


# -- agents --


@pytest.mark.parametrize("use_ln", [True, False])
def test_agents_are_the_policies_and_load_in_sb3(tmp_path, use_ln):
    t = training(spec(use_ln=use_ln))
    agent = train_through(t)
    agent.save(tmp_path, "agent")
    observations = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    heads = {
        "agent": torch.from_numpy(t.population.heads[t.champion]),
        "agent.rl": t.networks.rl_head,
    }
    for name, head in heads.items():
        loaded = TD3.load(tmp_path / f"{name}.zip")
        wanted = act(head, t.networks.represent(torch.from_numpy(observations))).numpy()
        np.testing.assert_allclose(loaded.predict(observations)[0], wanted, atol=1e-5)
        with torch.no_grad():
            x = torch.from_numpy(np.concatenate([observations, wanted], 1))
            values = t.networks._q.forward(x).output
            theirs = torch.stack(
                loaded.critic(torch.from_numpy(observations), torch.from_numpy(wanted))
            )
        torch.testing.assert_close(theirs, values, rtol=1e-4, atol=1e-5)
    env = gym.make("toy_environments:Reach-v0")
    mean, _ = evaluate_policy(agent, env, 2, warn=False)
    again, _ = evaluate_policy(agent.companions["rl"], env, 2, warn=False)
    assert np.isfinite([mean, again]).all()
    # The exported model is a TD3 that trains on.
    loaded = TD3.load(
        tmp_path / "agent.zip", env=env, custom_objects={"buffer_size": 100, "learning_starts": 0}
    )
    loaded.learn(30)


# -- records --


def test_record_of_a_lifetime(tmp_path):
    s = spec(steps=600)
    (record,) = live(Cohort((s,), models=(str(tmp_path / "m"),), evaluate=True))
    assert record.error is None
    assert (tmp_path / "m.zip").exists()
    assert (tmp_path / "m.rl.zip").exists()
    stored = json.loads(json.dumps(to_json(record)))
    assert from_json(LifetimeRecord, stored) == record
    inner = record.inner
    assert len(inner["final_returns"]["rl"]) == len(record.final_returns) == 2
    assert record.evaluation_steps == 2 * 2 * 20
    kept, totals = inner["kept"], inner["totals"]
    assert len(kept["fitness"]) == len(kept["steps"]) == inner["generations"]
    assert totals["whole"] + totals["surrogate"] == sum(f is not None for f in kept["fitness"])
    assert (
        totals["rows_normal"] + totals["rows_super"] + totals["rows_reset"] == totals["mutated"]
    )  # Reach has one action
    # Whole episodes tell what the surrogate would have said, at no further step.
    assert all((s is not None) == (w == 1) for s, w in zip(kept["surrogate"], kept["whole"]))
    # A record from before there was any such thing.
    del stored["inner"]
    assert from_json(LifetimeRecord, stored).inner is None


def test_records_are_bounded():
    log = Generations()
    for g in range(10_000):
        log.add({"steps": g * 1000, "fitness": [1234.56789 * g] * 5, "fate": "elites"}, {"n": 1})
    stored = log.to_json()
    generations = stored["kept"]["generation"]
    assert ROWS / 2 < len(generations) <= ROWS
    assert len(np.unique(np.diff(generations))) == 1
    assert stored["totals"] == {"n": 10_000}
    assert len(json.dumps(stored)) < 40_000
    wide, steady = Generations(), Generations()
    for g in range(1000):
        if g % 100 == 37:  # from a state that was kept while the log went on
            state = wide.get_state()
            wide.add({"fitness": [0.0]}, {"x": 1})
            wide = Generations()
            wide.set_state(state)
            state["rows"].clear()
        for one in (wide, steady):
            one.add(
                {
                    "fitness": np.full(100, g, np.float32),
                    "surrogate": [1.0] * 100,
                    "best": np.float32(g),
                },
                {"n": 1},
            )
    assert wide.to_json() == steady.to_json()
    assert NUMBERS / 2 < 203 * len(wide.rows) <= NUMBERS
    assert json.loads(json.dumps(wide.to_json()))["kept"]["best"][1] == wide.rows[1]["generation"]


def test_champion_and_rl_agent_are_evaluated_alike():
    """From reservoirs at rest, also where a reservoir's state persists from one episode to the
    next.
    """
    s = spec(
        context=Context((ReservoirParams(units=8, sr=1.2, lr=0.1),), reset_res=False), ep_eval=3
    )
    agent, _ = train(s)
    (record,) = live(Cohort((s,), evaluate=True))
    for policy, returns in (
        (agent, record.final_returns),
        (agent.companions["rl"], record.inner["final_returns"]["rl"]),
    ):
        assert evaluate(policy, s.make_env(), 3, s.seeds.evaluation).returns == tuple(returns)
    # Their seconds are none of training, and what fails is only noted.
    now = 0.0

    def look_at_the_clock():
        nonlocal now
        now += 1.0
        return now

    def fail_late(*_):
        nonlocal now
        now += 1000.0
        raise ZeroDivisionError("division by zero")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erl.learners.core.telemetry.evaluate_afresh", fail_late)
        for module in ("erl.lifetimes.living", "erl.learners.core.telemetry"):
            patch.setattr(f"{module}.time", SimpleNamespace(perf_counter=look_at_the_clock))
        (noted,) = live(
            Cohort((replace(s, learner=LearnerSpec("ERL-Re2", SMALL | {"eval_freq": 100})),))
        )
    assert [row["error"] for row in noted.inner["evaluations"]] == [
        "ZeroDivisionError: division by zero"
    ] * 4
    assert noted.fitness == record.fitness
    assert noted.seconds == 5.0  # before, between and after the four evaluations
    # The same policy under two names reaches the same.
    telemetry = Telemetry(s, Ledger(), Outputs(), EvaluationSettings(eval_episodes=3))
    scores = telemetry.evaluate({"one": agent, "two": agent})
    assert scores["one"] == scores["two"]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(spec(steps=600, eval_freq=200, eval_episodes=1), tensorboard=str(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "rollout/ep_rew_mean",
        "rollout/rl_return",
        "evolution/fitness_max",
        "evolution/head_4",
    } <= tags
    assert {
        "train/critic_loss",
        "train/policy_value_loss",
        "train/n_updates",
        "eval/champion",
        "eval/rl",
    } <= tags


# -- what is learned --


def test_what_an_update_is_made_for(monkeypatch):
    """Values of all policies alike, the RL head as it is then among them; K different ones; every
    second update improves, counted through.
    """
    t = training(spec(K=2))
    t.buffer.add(*(np.zeros((40, n)) for n in (3, 1, 3)), np.zeros(40), np.zeros(40))
    t.evolved, calls = 1, []

    def update(course, places, noise, valued, improved):
        calls.append((course, valued.clone(), None if improved is None else improved.clone()))
        if course[0]:
            t.networks.rl_head.add_(1.0)
        return {}

    monkeypatch.setattr(t, "update", update)
    first = t.networks.rl_head.clone()
    for n in (301, 300):
        t.update_networks(n)
    assert [course for course, _, _ in calls] == [(k % 2 == 0, True) for k in range(601)]
    rl, counts = first.clone(), np.zeros(6)
    for (improve, _), valued, improved in calls:
        policies = [*torch.from_numpy(t.population.heads[:5]), rl]
        (who,) = (k for k, head in enumerate(policies) if torch.equal(head, valued))
        counts[who] += 1
        assert (improved is not None) == improve
        if improved is not None:
            several = [k for head in improved for k in range(6) if torch.equal(head, policies[k])]
            assert len(set(several)) == len(several) == 2
            rl = rl + 1.0
    assert stats.chisquare(counts).pvalue > 1e-3
    t.close()


def test_targets_of_the_model_that_is_handed_over():
    """Whoever trains on finds the RL agent's own targets; a head that evolved has none of its
    own.
    """
    t = training(spec(frac_frames_train=1.0))
    agent = train_through(t)
    online, target = (
        agent.companions["rl"].model.policy.get_parameter(f"{n}.mu.6.weight")
        for n in ("actor", "actor_target")
    )
    assert torch.equal(online, t.networks.rl_head[:, :-1])
    assert torch.equal(target, t.networks._head_target[:, :-1])
    assert not torch.equal(online, target)
    online, target = (
        agent.model.policy.get_parameter(f"{n}.mu.6.weight") for n in ("actor", "actor_target")
    )
    assert torch.equal(online, target)


# -- reproduction --


def test_same_seed_same_run():
    (one, first), (two, second), (other, _) = train(spec()), train(spec()), train(spec(seed=1))
    assert torch.equal(weights(one), weights(two))
    assert torch.equal(weights(one.companions["rl"]), weights(two.companions["rl"]))
    assert first.episodes == second.episodes
    assert first.notes() == second.notes()
    assert not torch.equal(weights(one), weights(other))


class Killed(BaseException):
    pass


def kill_training(s, path, at):
    """Train with a checkpoint after each generation, and end in the midst of the one that reaches
    this many steps.
    """

    def stop(steps):
        if steps >= at:
            raise Killed

    with pytest.raises(Killed):
        train(s, Ledger(on_step=stop), checkpoint=str(path), checkpoint_seconds=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, Context((ReservoirParams(units=8),), reset_res=False)])
@pytest.mark.parametrize("at", [300, 650])
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch, at, context):
    """Bit for bit, once before the buffer is full and once after, in a file that the next
    checkpoint never damages.
    """
    monkeypatch.setattr("erl.learners.core.replay._SEGMENT_BYTES", 4 * 10 * 32)
    s = spec(steps=1000, context=context, frac_frames_train=0.07)
    straight, ledger = train(s)
    path = str(tmp_path / "checkpoints" / "a.pkl")
    kill_training(s, path, at)
    assert Path(path).exists()
    resumed, again = train(s, checkpoint=path, checkpoint_seconds=1e9)
    assert 0 < again.earlier[0] < 1000
    assert torch.equal(weights(straight), weights(resumed))
    assert torch.equal(weights(straight.companions["rl"]), weights(resumed.companions["rl"]))
    assert ledger.episodes == again.episodes
    assert ledger.notes() == again.notes()


def test_a_checkpoint_of_an_older_format_is_set_aside(tmp_path, caplog):
    s, path = spec(steps=300), tmp_path / "a.pkl"
    kill_training(s, path, 256)
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content | {"format": content["format"] - 1}))
    _, ledger = train(s, checkpoint=str(path), checkpoint_seconds=1e9)
    assert ledger.earlier[0] == 0
    assert "it is of another format" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["state", "buffer", "missing", "defaults"])
def test_a_checkpoint_that_does_not_fit_is_set_aside(tmp_path, monkeypatch, caplog, damage):
    s, path = spec(steps=300), tmp_path / "a.pkl"
    kill_training(s, path, 256)
    part = next(tmp_path.glob("a.pkl.buffer/*.npy"))
    if damage == "missing":
        part.unlink()
    elif damage == "defaults":
        defaults = Re2Settings.environment_defaults("Reach-v0") | {"tau": 0.5}
        monkeypatch.setattr(Re2Settings, "environment_defaults", lambda env_id: defaults)
    else:
        broken = path if damage == "state" else part
        broken.write_bytes(broken.read_bytes()[:100])
    agent, ledger = train(s, checkpoint=str(path), checkpoint_seconds=0.0)
    assert ledger.earlier == (0, 0.0)
    assert torch.equal(weights(agent), weights(train(s)[0]))
    assert "begins anew" in caplog.text
    assert (tmp_path / "a.pkl.aside1").exists()
    remove_checkpoint(str(path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failures", [2, 3])
def test_a_checkpoint_that_cannot_be_read_for_a_moment(tmp_path, monkeypatch, caplog, failures):
    """Storage that comes back in time costs nothing; else what it has is kept."""
    monkeypatch.setattr("erl.files.WAITS", (0.0, 0.0))
    s, path = spec(steps=300), tmp_path / "a.pkl"
    kill_training(s, path, 256)
    before = {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    failed, read = [], Path.read_bytes

    def fail(self):
        if self.suffix == ".npy" and len(failed) < failures:
            failed.append(self)
            raise OSError(errno.EIO, "no answer")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    agent, ledger = train(s, checkpoint=str(path), checkpoint_seconds=1e9)
    assert torch.equal(weights(agent), weights(train(s)[0]))
    assert (ledger.earlier[0] > 0) == (failures == 2)
    after = {
        p.name.removesuffix(".aside1"): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
    }
    assert after == before
    assert ("no answer" in caplog.text) == (failures == 3)


def test_a_checkpoint_stays_together_whoever_is_killed_while_it_is_set_aside(tmp_path, monkeypatch):
    path = tmp_path / "a.pkl"
    beside(str(path)).mkdir()
    path.write_bytes(b"1")
    replace = Path.replace

    def kill(self, target):
        if self == path:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            set_aside(str(path), "")
    set_aside(str(path), "")
    set_aside(str(path), "somebody else was faster")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pkl.aside1", "a.pkl.aside1.buffer"]


def test_threads_are_those_asked_for_and_given_back(monkeypatch):
    seen, before = [], torch.get_num_threads()
    start = ERLRe2.start
    monkeypatch.setattr(
        ERLRe2, "start", lambda self: seen.append(torch.get_num_threads()) or start(self)
    )
    one, two = (train(spec(steps=160, threads=n))[0] for n in (1, 2))
    assert seen == [1, 2]
    assert torch.get_num_threads() == before
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-3, atol=1e-3)


# -- learning --


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "margin"),
    [({}, 6.0), ({"EA": False}, 7.0), ({"algorithm": "DDPG"}, 5.0)],
    ids=["both", "RL alone", "DDPG"],
)
def test_learning(settings, margin):
    """Reach pays -|x| in each of twenty steps: standing still loses about 10, the best policy less
    than 1.
    """
    learned = {
        "init_steps": 200,
        "learning_starts": 100,
        "batch_size": 32,
        "frac_frames_train": 0.25,
        **settings,
    }
    finals = []
    for seed in range(2):
        s = replace(spec(steps=1600, seed=seed, ep_eval=10, **learned), fitness="final_eval")
        (record,) = live(Cohort((s,)))
        finals.append(record.fitness)
    # Seen over twelve seeds: -0.8, standard deviation 0.4, whatever the settings.
    assert np.mean(finals) > -10.0 + margin, finals


def test_evolution_alone_improves():
    """The heads of a genetic algorithm on a random representation, against those it began with."""
    gains = []
    for seed in range(6):
        t = training(spec(steps=4000, seed=seed, RL=False, pop_size=10, frac=0.1))
        train_through(t)
        means = [np.mean(row["fitness"]) for row in t.telemetry.generations.rows]
        gains.append(np.mean(means[-5:]) - means[0])
    # Nothing is gained without selection. Seen over ten seeds: 8.3, standard deviation 4.0.
    assert np.mean(gains) > 2.0, gains


def test_box_actions_of_any_range_are_taken(monkeypatch):
    """What a head says between -1 and 1 fills the range, in training and in the model that is
    handed over.
    """
    import toy_environments

    executed, step = [], toy_environments.Reach.step
    monkeypatch.setattr(
        toy_environments.Reach, "step", lambda self, a: executed.append(a) or step(self, a)
    )
    t = training(spec("toy_environments:Lopsided-v0"))
    for said, done in ((-1.0, -3.0), (0.0, -1.0), (1.0, 1.0)):
        t.stage.play(lambda who, seen, said=said: np.full((len(who), 1), said), limit=1)
        assert executed[-1].tolist() == [done]
    seen = np.linspace(-1, 1, 21, dtype=np.float32).reshape(7, 3)
    for name, head in (
        ("champion", torch.from_numpy(t.population.heads[0])),
        ("rl", t.networks.rl_head),
    ):
        t.evolved = 1
        wanted = -3.0 + 2.0 * (
            act(head, t.networks.represent(torch.from_numpy(seen))).numpy() + 1.0
        )
        np.testing.assert_allclose(
            t.agents()[name].predict(seen, deterministic=True)[0], wanted, atol=1e-5
        )
    t.close()


@pytest.mark.usefixtures("inline")
def test_reservoirs_evolve_around_it(tmp_path, sink):
    """The outer evolution takes it like any learner."""
    settings = tmp_path / "re2.json"
    settings.write_text(json.dumps(SMALL))
    flags = {
        "nb_trials": 2,
        "nb_seeds": 1,
        "training_steps": 200,
        "popsize": 2,
        "units": 8,
        "ep_eval": 2,
        "workers": 1,
    }
    config = EvolutionConfig(
        env_id="toy_environments:Reach-v0",
        learner="erl-re2",
        learner_config=str(settings),
        sampler="Random",
        **flags,
    )
    assert evolve(config, sink) == 0, str(sink)
    storage, name = "sqlite:///studies.db", "toy_environments:Reach-v0_main_0.2k_steps"
    frame = records(storage, name)
    assert list(frame.learner) == ["ERL-Re2"] * 2
    assert frame.fitness.notna().all()
    # The story of the evolution inside: a row for each kept generation, every head's fitness, the
    # fate of the RL head's copies.
    table = generations(storage, name)
    for trial, inner, sr in zip(frame.trial, frame.inner, frame.sr):
        rows = table[table.trial == trial]
        assert set(rows.sr) == {sr}
        assert set(rows.learner) == {"ERL-Re2"}
        assert list(rows.generation) == list(range(inner["generations"]))
        judged = rows[rows.fitness.notna()]
        assert len(judged) == inner["totals"]["whole"] + inner["totals"]["surrogate"] > 0
        assert {len(f) for f in judged.fitness} == {5}
        for fate in ("elites", "selected", "discarded"):
            assert (rows.rl_fate == fate).sum() == inner["totals"].get(f"rl_{fate}", 0)
    assert show_study(ShowConfig(study=name), sink) == 0
    assert "evolution inside trial" in str(sink)
    assert export_study(ExportConfig(study=name, rows="generations", file="g.csv"), sink) == 0
    assert len(pd.read_csv("g.csv")) == len(table)


SETS = """
[target_returns]
"toy_environments:Reach-v0" = 0
MountainCarContinuous-v0 = 90

[random_returns]
"toy_environments:Reach-v0" = -10
MountainCarContinuous-v0 = -30
"""
REACH, CAR = "toy_environments:Reach-v0", "MountainCarContinuous-v0"


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    ("evolution", "comparison", "flags", "target", "name", "lifetimes"),
    [
        (
            EvolutionConfig,
            ComparisonConfig,
            {"env_id": REACH},
            {"env_id": REACH},
            f"{REACH}_main",
            1,
        ),
        (
            MultiEvolutionConfig,
            MultiComparisonConfig,
            {"env_id": REACH, "nb_res": 2},
            {"env_id": REACH, "nb_res": 2},
            f"{REACH}_2_main",
            1,
        ),
        (
            GeneralizationConfig,
            GeneralizationComparisonConfig,
            {"env_ids": f"{REACH},{CAR}", "sets": "sets.toml"},
            {"env_id": "Pendulum-v1", "nb_res": 2},
            f"{REACH}+{CAR}_2_main",
            2,
        ),
    ],
    ids=["one reservoir", "several", "a set of environments"],
)
def test_all_six_scripts_take_it(evolution, comparison, flags, target, name, lifetimes, sink):
    Path("re2.json").write_text(json.dumps(SMALL))
    Path("sets.toml").write_text(SETS)
    small = {
        "nb_trials": 1,
        "nb_seeds": 1,
        "training_steps": 200,
        "popsize": 2,
        "units": 8,
        "ep_eval": 2,
        "workers": 1,
    }
    config = evolution(
        learner="ERL-Re2",
        learner_config="re2.json",
        sampler="Random",
        fitness="final_eval",
        **small,
        **flags,
    )
    assert evolve(config, sink) == 0, str(sink)
    study = f"{name}_0.2k_steps"
    evolved = records("sqlite:///studies.db", study)
    assert list(evolved.learner) == ["ERL-Re2"] * lifetimes
    assert all(inner["generations"] > 0 for inner in evolved.inner)
    test = comparison(study=study, training_steps=400, nb_seeds=1, workers=1, **target)
    assert compare(test, sink) == 0
    where = f"_on_{target['env_id']}" if lifetimes > 1 else ""
    folder = f"{study}_trial_0{where}_test_0.4k_steps"
    tested = records("sqlite:///studies.db", folder)
    assert list(tested.arm) == ["ERL-Re2", "RES_ERL-Re2"]
    assert tested.final_return.notna().all()
    # The policy saved of an agent with reservoirs sees their neurons, and its RL agent stands
    # beside it.
    saved = sorted(Path("models", folder_name(folder)).rglob("*.zip"))
    assert [p.name.endswith(".rl.zip") for p in saved] == [True, False] * 2, saved
    sizes = {int(np.prod(TD3.load(p).observation_space.shape)) for p in saved}
    assert sizes == {
        gym.make(target["env_id"]).observation_space.shape[0],
        8 * config.nb_res if hasattr(config, "nb_res") else 8,
    }
