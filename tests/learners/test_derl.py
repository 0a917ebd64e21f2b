"""DERL as a learner and as a class: the halves, their average, what counts, checkpoints, files."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from plain_evaluation import evaluate
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.evaluation import evaluate_policy

from erl.errors import Stopped, UserError
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.learners import DERL, Outputs, get_learner
from erl.learners.core.episodes import Stage
from erl.learners.core.run import Run
from erl.learners.core.telemetry import NUMBERS, ROWS
from erl.learners.derl.gradient import GradientHalf
from erl.learners.derl.learner import BlendedPolicy, DERLLearner
from erl.learners.derl.settings import DERLSettings
from erl.lifetimes.living import Cohort, check, live
from erl.lifetimes.models import load_model
from erl.lifetimes.record import LifetimeRecord
from erl.networks.policies import Policies
from erl.populations.openai_es import standardised
from erl.studies.storage import DEFAULT_STORAGE
from erl.studies.study import Study
from erl.studies.winner import chosen
from erl.study import generations
from erl.worlds.ledger import Ledger
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, from_json, to_json
from erl.worlds.tasks import Task

REACH, CARTPOLE = "toy_environments:Reach-v0", "CartPole-v1"
both = pytest.mark.parametrize("env_id", [REACH, CARTPOLE])
SMALL = {
    "population_size": 4,
    "num_episodes_per_iter": 2,
    "batch_size": 16,
    "learning_starts": 40,
    "updates_per_step": 0.2,
    "hidden": [8, 8],
    "buffer_size": 500,
}


def spec(env_id=REACH, steps=600, seed=0, ep_eval=2, context=None, **settings):
    learner = LearnerSpec("DERL", {**SMALL, **settings})
    return LifetimeSpec(
        Task(env_id), learner, steps, Seeds.derive(seed, "single", 0), context, ep_eval
    )


def train(s, ledger=None, **outputs):
    ledger = ledger or Ledger()
    (agent,) = DERLLearner().train([s], [ledger], [Outputs(**outputs)])
    if isinstance(agent, Exception):
        raise agent
    return agent, ledger


def at_work(s):
    """The algorithm at work on a lifetime."""
    settings = DERLSettings.from_learner_config(s.learner.config, s.task.env_id)
    return BlendedPolicy(Run([s], [Ledger()], [Outputs()], [settings]))


@pytest.fixture
def training():
    """Makes what is at work, and closes it."""
    made = []

    def make(*args, **settings):
        made.append(at_work(spec(*args, **settings)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def iterated(t):
    """What one more iteration did."""
    t.iterate()
    return t.latest


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.model.policy.parameters()])


# -- the algorithm --


@both
def test_without_the_gradient_it_is_openai_es(training, env_id):
    """Step by step, from the equation: θ + lr / (n sigma) Σ F ε."""
    t = training(env_id, 10**9, es_weight=1.0, rl_weight=0.0, lr_es=0.1)
    evolution, _ = np.random.SeedSequence(t.spec.seeds.learner).spawn(2)
    rng, theta = np.random.default_rng(evolution), t.theta
    stage = Stage(t.spec, Ledger(), 4)
    for _ in range(5):
        noise = rng.standard_normal((4, len(theta)), dtype=np.float32)
        policies = Policies(t.sizes, theta + 0.1 * noise)
        episodes = stage.play(
            lambda who, seen, policies=policies: t.greedy(policies(seen[:, None], who)[:, 0]), 4
        )
        fitness = np.array([e.total for e in episodes])
        theta = theta + 0.1 / (4 * 0.1) * standardised(fitness) @ noise
        row = iterated(t)
        assert row["fitness"] == fitness.tolist()
        assert t.theta == pytest.approx(theta, abs=1e-4)
        theta = t.theta  # rounding does not add up
        assert t.updates == 0
    stage.close()


@both
def test_without_evolution_it_is_the_gradient_half(training, env_id):
    """Step by step: its episodes, stored, and the updates that they pay for."""
    t = training(env_id, 10**9, es_weight=0.0, rl_weight=1.0)
    half = training(env_id, 10**9, es_weight=0.5, rl_weight=0.5)
    for _ in range(8):
        row = iterated(t)
        assert "fitness" not in row
        # The same function of the other one's, called by itself.
        noted, statistics = {}, {}
        theta = half.improve(half.theta, noted, statistics)
        half.gradient.theta = theta
        assert (t.theta == theta).all()
        assert noted["policy_return"] == row["policy_return"]
    assert t.updates == half.updates > 0
    assert t.buffer.added[0] == t.ledger.steps


@both
@pytest.mark.parametrize("es_weight", [0.5, 0.2])
def test_the_next_policy_is_the_weighted_average_of_two_that_began_as_one(
    training, env_id, es_weight, monkeypatch
):
    t = training(env_id, 10**9, es_weight=es_weight, rl_weight=1.0 - es_weight)
    halves = {}

    def watch(name):
        method = getattr(t, name)

        def watched(theta, *rest):
            halves[name] = theta.copy(), method(theta, *rest)
            return halves[name][1]

        monkeypatch.setattr(t, name, watched)

    watch("evolve")
    watch("improve")
    for _ in range(8):
        theta = t.theta
        row = iterated(t)
        (one, es), (two, rl) = halves["evolve"], halves["improve"]
        assert (one == theta).all()
        assert (two == theta).all()
        expected = es_weight * es.astype(float) + (1.0 - es_weight) * rl.astype(float)
        assert t.theta == pytest.approx(expected, abs=1e-6)
        assert (t.gradient.theta == t.theta).all()
        assert row["es_length"] == pytest.approx(np.linalg.norm(es - theta), rel=1e-4)
    assert t.updates > 0
    assert row["rl_length"] == pytest.approx(np.linalg.norm(rl - theta), rel=1e-4)
    cosine = (es - theta) @ (rl - theta) / row["es_length"] / row["rl_length"]
    assert row["cosine"] == pytest.approx(cosine, rel=1e-4, abs=1e-6)


def test_the_es_half_is_told_the_bounded_settings(training):
    t = training(mirrored=True, rank_shaping=True, steps=10**9)
    asked = []
    ask = t.es.ask
    t.es.ask = lambda n: asked.append(ask(n)) or asked[-1]
    theta = t.theta
    t.iterate()
    assert asked[0][:2] + asked[0][2:] == pytest.approx(np.tile(2 * theta, (2, 1)), abs=1e-5)


@both
@pytest.mark.parametrize("population_replay", [False, True])
def test_what_is_stored(training, env_id, population_replay):
    """The policy's own episodes, and the population's where that is asked for; a time limit ends
    nothing, a fall does.
    """
    replay = {"population_replay": population_replay, "buffer_size": 10_000, "learning_starts": 1}
    t = training(env_id, 10**9, updates_per_step=0.1, **replay)
    row = iterated(t)
    assert t.updates + t.updates_due == pytest.approx(0.1 * t.buffer.added[0])
    population, own = 4, 2
    if env_id == REACH:
        assert t.ledger.steps == 20 * (population + own)
        assert t.buffer.added[0] == 20 * (own + population * population_replay)
    else:
        own_steps = sum(length for _, _, length in t.ledger.episodes)
        own_steps += sum(row["fitness"]) * population_replay  # a step is paid 1
        assert t.buffer.added[0] == own_steps
    not_done = t.buffer.batch(torch.arange(len(t.buffer))).not_done
    ends = (own + population * population_replay) * (env_id == CARTPOLE)
    assert int((not_done == 0).sum()) == ends


@both
def test_every_step_is_counted(monkeypatch, env_id):
    taken = 0
    kind = type(gym.make(env_id).unwrapped)
    step = kind.step

    def count(self, action):
        nonlocal taken
        taken += 1
        return step(self, action)

    monkeypatch.setattr(kind, "step", count)
    _, ledger = train(spec(env_id, 700))
    assert taken == ledger.steps
    assert 700 <= ledger.steps < 704


@pytest.mark.parametrize("steps", [300, 316, 317, 334, 360, 368])
def test_who_was_cut_short_is_not_judged(training, steps):
    """An iteration that the budget ends in the population's episodes leaves the policy alone."""
    t = training(REACH, steps)
    while t.ledger.steps < steps:
        theta, row = t.theta, iterated(t)
    # An iteration is 80 steps of the population, four at a time, and 40 of the policy.
    cut = steps % 120 or 120
    assert ("fitness" in row) == (cut > 76)
    assert ("policy_return" in row) == (cut == 120)
    assert (t.theta == theta).all() == (cut <= 76)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 76},
        {"steps": 76, "es_weight": 1.0, "rl_weight": 0.0},
        # Too few updates for one.
        {"es_weight": 0.0, "rl_weight": 1.0, "updates_per_step": 1e-3},
    ],
)
def test_a_lifetime_that_learned_nothing_fails(settings):
    s = spec(eval_freq=20, **settings)
    check(s)
    (record,) = live(Cohort((s,), evaluate=True))
    assert record.fitness is None
    assert f"nothing was learned within {record.steps} steps" in record.error
    assert record.inner["evaluations"]


def test_a_lifetime_that_learned_once_does_not():
    """A step of the evolution, or the updates that 80 steps pay for."""
    for settings in ({"steps": 77}, {"steps": 80, "es_weight": 0.0, "rl_weight": 1.0}):
        train(spec(**settings))
    check(spec(steps=40, population_size=40))


def test_exploration(training):
    """Noise on continuous actions; draws from the policy's distribution for discrete ones."""
    t = training(exploration_noise=0.3)
    outputs = np.full((20_000, 1), 0.2, np.float32)
    actions = t.exploring(outputs)
    assert (np.abs(actions) <= 1.0).all()
    assert actions.mean() == pytest.approx(np.tanh(0.2), abs=0.01)
    assert actions.std() == pytest.approx(0.3, abs=0.02)
    t = training(CARTPOLE)
    logits = np.tile(np.log([0.2, 0.8]).astype(np.float32), (20_000, 1))
    assert t.exploring(logits).mean() == pytest.approx(0.8, abs=0.02)
    assert (t.greedy(logits) == 1).all()


@both
def test_same_seed_same_run(env_id):
    runs = []
    for k, seed in enumerate((1, 1, 2)):
        torch.manual_seed(k)  # The state of PyTorch's generator does not matter.
        runs.append(train(spec(env_id, seed=seed)))
    one, two, other = runs
    assert torch.equal(weights(one[0]), weights(two[0]))
    assert one[1].episodes == two[1].episodes
    assert one[1].notes() == two[1].notes()
    assert not torch.equal(weights(one[0]), weights(other[0]))


@both
def test_several_steps_in_a_target_are_several_in_the_buffer(training, env_id):
    """As many transitions as steps, and rewards of three steps each but at the end."""
    t = training(env_id, 10**9, n_steps=3, es_weight=0.0, rl_weight=1.0, buffer_size=10_000)
    t.iterate()
    assert t.buffer.added[0] == t.ledger.steps
    if env_id == CARTPOLE:
        sums = t.buffer.batch(torch.arange(len(t.buffer))).rewards.unique().tolist()
        assert sums == pytest.approx([1.0, 1.0 + 0.99, 1.0 + 0.99 + 0.99**2])


def test_learning_rates_fall_over_the_lifetime(training):
    t = training(REACH, 1200, lr_policy="lin_0.001")
    while t.ledger.steps < 1200:
        remaining = 1.0 - t.ledger.steps / 1200
        t.iterate()
        assert t.gradient.policy.rates == pytest.approx([0.001 * remaining])
        assert t.gradient.critic.rates == [3e-4]
    assert remaining < 0.5


# -- settings --


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"es_weight": 0.5, "rl_weight": 0.6}, "es_weight and rl_weight sum to 1, and 0.5"),
        ({"es_weight": -0.5, "rl_weight": 1.5}, "es_weight must be a number from 0 to 1, not -0.5"),
        ({"population_size": 1}, "population_size must be a whole number from 2, not 1"),
        ({"sigma": 0}, "sigma must be a number above 0, not 0"),
        ({"lr_es": 0}, "lr_es must be a number above 0"),
        ({"lr_policy": 0}, "lr_policy must be a number above 0 or a schedule lin_NUMBER, not 0"),
        ({"n_steps": 0}, "n_steps must be a whole number from 1, not 0"),
        ({"gamma": 1.5}, "gamma must be a number from 0 to 1"),
        ({"hidden": []}, "hidden must be a list of at least one width"),
        ({"hidden": [0]}, "hidden must be a list"),
        ({"mirrored": 1}, "mirrored must be true or false"),
        ({"population": 3}, "no setting 'population'; did you mean population_"),
        ({"learning_starts": 501}, "learning_starts must be at most buffer_size, 500"),
        ({"device": "abacus"}, "knows no device 'abacus'"),
        ({"es_weight": 0, "rl_weight": 1, "steps": 38}, "a lifetime has only 38"),
        ({"population_size": 41, "steps": 40}, "after population_size = 41 steps, but a lifetime"),
        ({"env_id": "peculiar_environments:WordsObserved-v0"}, "no array of numbers"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(UserError, match=message) as e:
        check(spec(**settings))
    assert "\n" not in str(e.value)


def test_what_the_last_steps_pay_for_is_learned():
    lifetime = spec(steps=39, es_weight=0, rl_weight=1)  # two environments: 40 steps
    check(lifetime)
    train(lifetime)


def test_registry():
    assert get_learner("derl").name == "DERL"
    with pytest.raises(UserError, match="not an algorithm of Stable-Baselines3"):
        get_learner("DERL", "sb3")


# -- in the harness --


@both
def test_record_model_and_stable_baselines(tmp_path, env_id):
    """The record holds the story, and the zip opens in Stable-Baselines3 with the same actions."""
    s = spec(env_id, 900)
    job = Cohort((s,), (Outputs(),), (str(tmp_path / "a"),), True)
    (record,) = live(job)
    assert record.error is None
    assert from_json(LifetimeRecord, json.loads(json.dumps(to_json(record)))) == record
    kept = record.inner["kept"]
    assert {"steps", "fitness", "es_length", "rl_length", "cosine", "policy_return"} <= set(kept)
    assert record.inner["generations"] >= len(kept["steps"])
    assert record.inner["totals"]["population_steps"] > 0
    loaded, agent = load_model(tmp_path / "a")
    assert loaded == s
    again = evaluate(agent, s.make_env(), s.ep_eval, s.seeds.evaluation)
    assert again.returns == record.final_returns
    kind = PPO if env_id == CARTPOLE else TD3
    model = kind.load(tmp_path / "a.zip")
    mean, _ = evaluate_policy(model, s.make_env(), n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)


@both
def test_the_agent_acts_as_the_policy_and_its_critics_come_along(training, env_id):
    t = training(env_id, 10**9)
    for _ in range(4):
        t.iterate()
    model = t.agent().model
    seen = np.random.default_rng(0).normal(size=(50, t.sizes[0])).astype(np.float32)
    expected = t.stage.executed(t.greedy(Policies(t.sizes, t.theta[None])(seen[None])[0]))
    actions, _ = model.predict(seen, deterministic=True)
    assert actions.reshape(expected.shape) == pytest.approx(expected, abs=1e-5)
    if env_id == REACH:
        batch = t.buffer.batch(torch.arange(20))
        values = t.gradient.q.forward(batch.pairs).output
        theirs = model.critic(batch.observations, batch.actions)
        assert torch.allclose(values, torch.stack(theirs), atol=1e-5)


@pytest.mark.usefixtures("inline")
def test_it_is_an_inner_learner_of_evolution_and_test(sink):
    Path("derl.json").write_text(json.dumps(SMALL))
    small = {"env_id": CARTPOLE, "training_steps": 600, "nb_seeds": 1, "workers": 1}
    small |= {"learner": "DERL", "learner_config": "derl.json", "ep_eval": 1}
    search = {"units": 5, "nb_trials": 2, "finalists": 2, "finalist_seeds": 1, "sampler": "Random"}
    assert evolve(EvolutionConfig(**search, **small), sink) == 0
    name = f"{CARTPOLE}_main_0.6k_steps"
    finalists = chosen(Study(DEFAULT_STORAGE, name)).finalists
    assert {f.trial: len(f.again) for f in finalists} == {0: 1, 1: 1}
    frame = generations(DEFAULT_STORAGE, name)
    assert {"fitness", "es_length", "rl_length", "cosine", "policy_return"} <= {*frame.columns}
    assert {*frame.trial} == {0, 1}
    test = {"study": name, "training_steps": 600, "nb_seeds": 1, "workers": 1}
    assert compare(ComparisonConfig(**test), sink) == 0
    assert "RES_DERL" in str(sink)


@both
def test_reservoirs(env_id):
    context = Context((ReservoirParams(units=8),))
    agent, ledger = train(spec(env_id, context=context))
    assert ledger.steps >= 600
    assert agent.model.observation_space.shape == spec(env_id, context=context).spaces()[0].shape


def test_records_are_bounded(training):
    t = training(REACH, 10**9, es_weight=1.0, rl_weight=0.0, population_size=30)
    for _ in range(300):
        row = {"steps": 1, "fitness": np.arange(30.0).tolist(), "es_length": 1.0}
        t.telemetry.generations.add(row, {})
    kept = t.telemetry.generations.to_json()["kept"]
    assert len(kept["steps"]) <= ROWS
    assert sum(map(len, kept["fitness"])) <= NUMBERS
    assert t.telemetry.generations.count == 300


def test_tensorboard_and_status(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    status = tmp_path / "status.json"
    train(spec(), tensorboard=str(tmp_path / "log"), status=str(status))
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    names = {
        "evolution/fitness_mean",
        "halves/cosine",
        "rollout/policy_return",
        "train/critic_loss",
    }
    assert names <= {*log.Tags()["scalars"]}
    assert {*json.loads(status.read_text())} == {"population", "policy", "updates/s"}


def test_evaluation_changes_nothing():
    plain, _ = train(spec())
    evaluated, ledger = train(spec(eval_freq=100, eval_episodes=2))
    assert torch.equal(weights(plain), weights(evaluated))
    assert {*ledger.notes()["evaluations"][0]} == {"steps", "policy"}


@pytest.mark.parametrize("at", [1, 200, 400])
def test_it_stops_when_it_is_told(at):
    ledger = Ledger()
    ledger.should_stop = lambda: ledger.steps >= at
    with pytest.raises(Stopped):
        train(spec(), ledger)
    assert at <= ledger.steps < at + 8


def test_a_fault_fails_its_own_lifetime():
    good, bad = spec(), spec("toy_environments:Faulty-raise-v0")
    agents = DERLLearner().train([bad, good], [Ledger(), Ledger()], [Outputs()] * 2)
    assert "the simulator exploded" in str(agents[0])
    assert torch.equal(weights(agents[1]), weights(train(good)[0]))


class Killed(BaseException):
    """Nothing catches it."""


@both
@pytest.mark.parametrize("context", [None, Context((ReservoirParams(units=8),), reset_res=False)])
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, env_id, context):
    """Bit for bit."""
    s = spec(env_id, 900, context=context)
    straight, ledger = train(s)

    def stop(steps):
        if steps >= 500:
            raise Killed

    path = str(tmp_path / "a.pkl")
    with pytest.raises(Killed):
        train(s, Ledger(on_step=stop), checkpoint=path, checkpoint_seconds=0.0)
    resumed, again = train(s, checkpoint=path, checkpoint_seconds=1e9)
    assert 0 < again.earlier[0] < 900
    assert torch.equal(weights(straight), weights(resumed))
    assert ledger.episodes == again.episodes
    assert ledger.notes() == again.notes()


def test_what_was_learned_before_a_kill_counts(tmp_path):
    """The evolution's third step ends after 240 steps, and the fourth one is cut short."""
    s, outputs = spec(steps=300, es_weight=1.0, rl_weight=0.0), {"checkpoint": f"{tmp_path}/a.pkl"}

    def stop(steps):
        raise Killed

    with pytest.raises(Killed):
        train(s, Ledger(on_step=stop), **outputs, checkpoint_seconds=0.0)
    _, ledger = train(s, **outputs)
    assert ledger.earlier[0] == 240


# -- learning --


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "margin"),
    [
        ({}, -4.0),
        ({"es_weight": 0.0, "rl_weight": 1.0}, -4.0),
        ({"es_weight": 1.0, "rl_weight": 0.0, "lr_es": 0.05}, -6.5),
    ],
)
def test_learning(settings, margin):
    """Reach: at most about -1.2; a policy that does nothing gets -10. The mean over three seeds."""
    returns = []
    for seed in range(3):
        s = spec(
            seed=seed,
            steps=12_000,
            **{
                "population_size": 10,
                "num_episodes_per_iter": 5,
                "updates_per_step": 0.5,
                "lr_policy": 3e-3,
                "lr_value": 3e-3,
                "hidden": [16],
                "learning_starts": 200,
                "buffer_size": 10_000,
                **settings,
            },
        )
        agent, _ = train(s)
        returns.append(np.mean(evaluate(agent, s.make_env(), 10, 1).returns))
    assert np.mean(returns) > margin


# -- the class --


@pytest.fixture
def derl():
    made = []

    def make(env_name=REACH, *args, **settings):
        made.append(DERL(env_name, *args, **{**SMALL, **settings}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_constructor_has_the_names_and_defaults_of_the_settings():
    import inspect

    parameters = inspect.signature(DERL).parameters
    assert [*parameters][:11] == [
        "env_name",
        "state_dim",
        "action_dim",
        "population_size",
        "sigma",
        "lr_es",
        "lr_policy",
        "lr_value",
        "gamma",
        "rl_weight",
        "es_weight",
    ]
    settings = DERLSettings()
    for name in [*parameters][3:11]:
        assert parameters[name].default == getattr(settings, name)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((REACH, 4, 1), {}, "has state_dim=3, not 4"),
        ((REACH, 3, 2), {}, "has action_dim=1, not 2"),
        ((CARTPOLE, 4, 1), {}, "has action_dim=2, not 1"),
        (("Nowhere-v0",), {}, "unknown environment"),
        ((REACH,), {"sigma": 0}, "sigma must be a number above 0"),
        ((REACH,), {"seed": -1}, "seed must be a whole number from 0"),
        ((REACH,), {"rl_weight": 0.3}, "sum to 1"),
        (("peculiar_environments:WordsObserved-v0",), {}, "no array of numbers"),
    ],
)
def test_what_cannot_be_made(arguments, settings, message):
    with pytest.raises(UserError, match=message):
        DERL(*arguments, **settings)


@both
def test_training_says_what_it_does(derl, env_id, capsys):
    agent = derl(env_id)
    rows = agent.train(5, num_episodes_per_iter=3, batch_size=8, log_interval=2)
    assert len(rows) == 5
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["iteration 2", "iteration 4"]
    assert rows[-1]["steps"] == agent.steps
    assert len(rows[0]["fitness"]) == 4
    # Five episodes in place of three go on with the same random streams.
    more = agent.train(1, num_episodes_per_iter=5, log_interval=0)
    assert more[0]["steps"] > rows[-1]["steps"]


@pytest.mark.parametrize("number", [0, -1, 1.5, "3", None])
def test_a_training_of_no_iteration_is_refused(derl, number):
    agent = derl(batch_size=8)
    with pytest.raises(UserError, match="num_iterations must be a whole number from 1, not"):
        agent.train(number, batch_size=4)
    assert agent.steps == 0
    assert agent._policy.settings.batch_size == 8
    assert len(agent.train(np.int64(1), 2, 8, 0)) == 1


def test_where_an_agent_cannot_be_saved_is_said_before_and_after(derl, tmp_path):
    agent, file = derl(), tmp_path / "file"
    file.touch()
    for path, said in ((tmp_path, "folder|Is a directory"), (file / "a.derl", "cannot be written")):
        for act in (agent.check_save, agent.save):
            with pytest.raises(UserError, match=said):
                act(path)
    agent.check_save(tmp_path / "new/a.derl")
    assert [*tmp_path.iterdir()] == [file]


def test_settings_of_an_iteration_hold_until_train_changes_them(derl):
    agent = derl(num_episodes_per_iter=3, batch_size=8)

    def used():
        return agent._policy.settings.num_episodes_per_iter, agent._policy.settings.batch_size

    agent.train(1, log_interval=0)
    assert used() == (3, 8)
    agent.train(1, batch_size=4, log_interval=0)
    assert used() == (3, 4)
    agent.train(1, log_interval=0)
    assert used() == (3, 4)


def test_what_is_recorded_for_a_gpu_is_for_one_size_of_minibatches(training):
    t = training()
    recorded = t.update
    t.change(num_episodes_per_iter=3, batch_size=t.settings.batch_size)
    assert t.update is recorded
    t.change(batch_size=2 * t.settings.batch_size)
    assert t.update is not recorded


def test_learning_rates_fall_over_a_call_of_train(derl, tmp_path):
    agent = derl(lr_value="lin_0.01")
    for _ in range(2):
        agent.train(4, 2, 16, 0)
        assert agent._policy.gradient.critic.rates == pytest.approx([0.01 / 4])
    agent.save(tmp_path / "a.derl")
    assert derl(seed=1).load(tmp_path / "a.derl").steps == agent.steps


def test_it_is_the_harnesss_training(derl):
    """The same seeds give the same policy."""
    agent = derl(seed=3)
    agent.train(3, num_episodes_per_iter=2, batch_size=16, log_interval=0)
    t = at_work(spec(seed=3, steps=10**9))
    for _ in range(3):
        t.iterate()
    t.close()
    assert (agent._policy.theta == t.theta).all()


@both
def test_files_hold_arrays_and_json_and_load_to_the_same_actions(derl, env_id, tmp_path):
    agent, path = derl(env_id), tmp_path / "deep" / "agent.derl"
    agent.train(4, 2, 16, 0)
    agent.save(path)
    with zipfile.ZipFile(path) as file:
        assert {Path(n).suffix for n in file.namelist()} == {".json", ".npy"}
        for name in file.namelist():
            if name.endswith(".npy"):
                np.load(io.BytesIO(file.read(name)), allow_pickle=False)
    other = derl(env_id, seed=99)
    seen = np.random.default_rng(0).normal(size=(30, other._policy.sizes[0]))
    before = other.predict(seen, deterministic=True)[0]
    assert other.load(path) is other
    after = other.predict(seen, deterministic=True)[0]
    assert (after == agent.predict(seen, deterministic=True)[0]).all()
    assert env_id == CARTPOLE or (after != before).any()
    assert other.steps == agent.steps
    for name, tensors in agent._policy.gradient.get_state().items():
        for mine, theirs in zip(other._policy.gradient.get_state()[name], tensors):
            assert torch.equal(mine, theirs)
    assert len(other.train(1, 2, 16, 0)) == 1


@both
def test_a_loaded_agent_goes_on_as_the_saved_one(derl, env_id, tmp_path):
    """The same perturbations in the same episodes, where no replay buffer stays behind."""
    agent, path = derl(env_id, es_weight=1.0, rl_weight=0.0), tmp_path / "a.derl"
    agent.train(2, log_interval=0)
    agent.save(path)
    other = derl(env_id, es_weight=1.0, rl_weight=0.0, seed=99).load(path)
    assert other.train(3, log_interval=0) == agent.train(3, log_interval=0)
    assert (other._policy.theta == agent._policy.theta).all()


@both
def test_predict_changes_no_training(derl, env_id):
    one, other = derl(env_id, learning_starts=1), derl(env_id, learning_starts=1)
    for agent in (one, other):
        agent.train(1, 2, 16, 0)
    one.predict(np.zeros((30, one._policy.sizes[0])))
    assert one.train(1, 2, 16, 0) == other.train(1, 2, 16, 0)
    assert (one._policy.theta == other._policy.theta).all()


def test_load_names_settings_that_the_file_has_otherwise(derl, tmp_path, capsys):
    agent, path = derl(gamma=0.9), tmp_path / "a.derl"
    agent.save(path)
    derl(gamma=0.9).load(path)
    assert capsys.readouterr().out == ""
    other = derl(sigma=0.5).load(path)
    said = capsys.readouterr().out
    assert "sigma 0.5 (saved: 0.1)" in said
    assert "gamma 0.99 (saved: 0.9)" in said
    assert said.count("\n") == 1
    assert other._policy.settings.gamma == 0.99


def test_updates_that_are_due_are_saved(derl, tmp_path):
    agent, path = derl(learning_starts=1, updates_per_step=0.33), tmp_path / "a.derl"
    agent.train(1, 2, 16, 0)
    assert agent._policy.updates_due == pytest.approx(0.2)
    agent.save(path)
    assert derl().load(path)._policy.updates_due == agent._policy.updates_due


def test_files_of_version_0_2_0(derl, tmp_path):
    """They have neither the stream of episodes nor the updates that are due."""
    agent, path = derl(), tmp_path / "a.derl"
    agent.train(1, 2, 16, 0)
    agent.save(path)
    changed(path, episodes=None, updates_due=None)
    other = derl(seed=99).load(path)
    assert (other._policy.theta == agent._policy.theta).all()
    assert len(other.train(1, 2, 16, 0)) == 1


def test_no_code_in_a_file_is_executed(derl, tmp_path):
    agent, path = derl(), tmp_path / "a.derl"
    agent.save(path)
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    evil = np.array([Trap()], dtype=object)
    buffer = io.BytesIO()
    np.save(buffer, evil, allow_pickle=True)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    for replaced in ("policy_0.npy", "derl.json"):
        with zipfile.ZipFile(path, "w") as file:
            for name, data in content.items():
                bad = buffer.getvalue() if name.endswith(".npy") else pickle.dumps(Trap())
                file.writestr(name, bad if name == replaced else data)
        with pytest.raises(UserError, match="cannot be read as an agent of DERL"):
            agent.load(path)
    assert not marker.exists()


def rewritten(path, **parts):
    """Change or remove (None) parts of a saved file."""
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    for name, data in parts.items():
        content[".".join(name.rsplit("_", 1))] = data
    with zipfile.ZipFile(path, "w") as file:
        for name, data in content.items():
            if data is not None:
                file.writestr(name, data)


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def test_files_that_do_not_fit(derl, tmp_path):
    agent, path = derl(), tmp_path / "a.derl"
    agent.save(path)
    with pytest.raises(UserError, match="has env_name"):
        derl(CARTPOLE).load(path)
    with pytest.raises(UserError, match="has sizes"):
        derl(hidden=[16]).load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: rewritten(p, critic_2_npy=None), "is damaged: 'critic_2'"),
        (lambda p: rewritten(p, critic_2_npy=as_npy(np.zeros(3))), "is damaged.*does not fit"),
        (lambda p: rewritten(p, critic_2_npy=as_npy(np.array(["a"]))), "is damaged"),
        (lambda p: rewritten(p, minibatches_npy=as_npy(np.zeros(3, np.uint8))), "is damaged"),
        (lambda p: changed(p, exploration={"bit_generator": "Dice"}), "is damaged"),
        (lambda p: changed(p, steps="many"), "is damaged"),
        (lambda p: changed(p, evolution=None), "is damaged"),
        (lambda p: changed(p, episodes=[1]), "is damaged"),
        (lambda p: changed(p, updates_due="many"), "is damaged"),
        (lambda p: rewritten(p, derl_json=b"[1]"), "cannot be read.*no names"),
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "cannot be read"),
        (lambda p: p.unlink(), "cannot be read"),
    ],
)
def test_a_damaged_file_changes_nothing(derl, tmp_path, change, message):
    agent, path = derl(seed=1), tmp_path / "a.derl"
    derl(seed=2).save(path)
    change(path)
    before = agent._policy.theta, agent.steps, agent._policy.rng.bit_generator.state
    with pytest.raises(UserError, match=message) as e:
        agent.load(path)
    assert "\n" not in str(e.value)
    assert (agent._policy.theta == before[0]).all()
    assert (agent.steps, agent._policy.rng.bit_generator.state) == before[1:]


def changed(path, **values):
    """Change what the JSON of a saved file says; None removes."""
    with zipfile.ZipFile(path) as file:
        about = json.loads(file.read("derl.json")) | values
    about = {name: value for name, value in about.items() if value is not None}
    rewritten(path, derl_json=json.dumps(about).encode())


def test_a_yaml_file(tmp_path):
    path = tmp_path / "derl.yaml"
    path.write_text(f"env_name: {REACH}\npopulation_size: 6\nhidden: [8]\nmirrored: true\n")
    agent = DERL.from_config(path, seed=4)
    s = agent._policy.settings
    assert (s.population_size, s.hidden, s.mirrored) == (6, (8,), True)
    agent.close()
    path.write_text("population_size: 6\n")
    with pytest.raises(UserError, match="env_name"):
        DERL.from_config(path)
    for text in ("[", f"env_name: {REACH}\nhidden: [8]\nhidden: [9]\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not valid"):
            DERL.from_config(path)


@both
def test_predict_of_one_and_of_several(derl, env_id):
    agent = derl(env_id)
    space = gym.make(env_id).observation_space
    space.seed(0)
    seen = np.stack([np.clip(space.sample(), -1, 1) for _ in range(5)])
    several, state = agent.predict(seen, deterministic=True)
    assert state is None
    for k in range(5):
        one, _ = agent.predict(seen[k], deterministic=True)
        assert np.shape(one) == np.shape(several[k])
        assert one == pytest.approx(several[k], abs=1e-6)
    mean, _ = evaluate_policy(agent, gym.make(env_id), n_eval_episodes=1, warn=False)
    assert np.isfinite(mean)


@pytest.mark.parametrize(
    "env_id",
    [
        "FrozenLake-v1",
        *(
            f"peculiar_environments:{name}-v0"
            for name in ("ShiftedAction", "TwoByThreeBox", "DictObservation", "ScalarBox")
        ),
    ],
)
def test_predict_takes_and_gives_what_the_environment_has(derl, env_id):
    agent, env = derl(env_id), gym.make(env_id)
    observation, _ = env.reset(seed=0)
    for deterministic in (True, False) * 5:
        action, _ = agent.predict(observation, deterministic=deterministic)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    if env_id != "peculiar_environments:DictObservation-v0":
        several, _ = agent.predict(np.stack([observation] * 3), deterministic=True)
        one, _ = agent.predict(observation, deterministic=True)
        assert np.shape(several) == (3, *np.shape(one))
        np.testing.assert_allclose(several[1], one, atol=1e-6)


def test_both_halves_begin_with_one_policy(training):
    """The evolution's first mean is the gradient half's first policy."""
    t = training()
    assert (t.es.mean == t.theta).all()
    assert (t.gradient.theta == t.theta).all()
    generator = torch.Generator().manual_seed(t.spec.seeds.learner)
    half = GradientHalf(t.settings, 3, 1, False, generator)
    assert (half.theta == t.theta).all()
