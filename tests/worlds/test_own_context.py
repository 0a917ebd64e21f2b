"""Contexts of the user's own in place of reservoirs, with the classes that the documents show."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from documents import blocks
from plain_evaluation import evaluate

from erl.commands import main
from erl.errors import EnvironmentFault, UserError
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.single import SingleConfig
from erl.learners import get_learner
from erl.lifetimes.living import Cohort, live
from erl.lifetimes.models import load_model
from erl.lifetimes.trace import trace
from erl.studies.study import Study
from erl.studies.trials import lifetime_records
from erl.worlds.context import ContextEncoder
from erl.worlds.ledger import Ledger
from erl.worlds.own_context import OwnBank, OwnContext
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, from_json, to_json
from erl.worlds.tasks import Task, make_env
from erl.worlds.world import World

BROKEN = '''
import numpy as np


class Breaks(DelayLine):
    """Fails after some steps, if its seed is this one."""

    def __init__(self, input_dim, seed, at=10, seed_at=None):
        super().__init__(input_dim, seed, 1)
        self.units, self.at, self.bad = self.units + 1, at, seed_at in (None, seed)

    def step(self, state, inputs):
        state[0] += 1  # it may change what it is given
        if self.bad and state[0] > self.at:
            raise ZeroDivisionError("the line is cut")
        inputs[:] = 0.0
        return state


class Wrong(DelayLine):
    def step(self, state, inputs):
        return state[:-1]


class Twisted(DelayLine):
    def output(self, state):
        return state[None]


class Nowhere(DelayLine):
    def output(self, state):
        return np.full(len(state), np.nan)


class Leaves(DelayLine):
    def step(self, state, inputs):
        raise SystemExit(0)


class Counts(DelayLine):
    """What it has seen is in itself and not in the state."""

    def __init__(self, input_dim, seed):
        super().__init__(input_dim, seed, 1)
        self.seen = np.zeros(input_dim)

    def step(self, state, inputs):
        self.seen = 0.5 * self.seen + inputs
        return self.seen


class CountsInPlace(Counts):
    def step(self, state, inputs):
        self.seen *= 0.5
        self.seen += inputs
        return self.seen


class Draws(DelayLine):
    def step(self, state, inputs):
        return np.random.normal(size=len(state))


class Even(DelayLine):
    def __init__(self, input_dim, seed, length):
        if length % 2:
            raise ValueError("it has to be even")
        super().__init__(input_dim, seed, length)


class Unsized:
    def __init__(self, input_dim, seed):
        self.units = 0


class Node:
    """A reservoir of this project as a context of one's own."""

    def __init__(self, input_dim, seed, **settings):
        from erl.worlds.reservoirs import ReservoirParams, draw_weights

        params = ReservoirParams(**settings)
        self.units, self.lr = params.units, params.lr
        self.weights, self.bias = draw_weights((params,), seed, input_dim)

    def step(self, state, inputs):
        pre = self.weights @ np.concatenate([state, inputs]) + self.bias
        return (1 - self.lr) * state + self.lr * np.tanh(pre)
'''
QUICK = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}
RE2 = {
    "init_steps": 100,
    "learning_starts": 50,
    "batch_size": 16,
    "pr": 8,
    "frac_frames_train": 0.05,
    "eval_freq": 0,
}


@pytest.fixture(autouse=True)
def _module():
    (source,) = [b for b in blocks("docs/own_context.md", "python") if "my_context.py" in b]
    Path("own_contexts.py").write_text(source + BROKEN)


def own(kind, **settings):
    return OwnContext(f"own_contexts:{kind}", settings)


def lifetime(
    kind="DelayLine", index=0, learner="PPO", engine="cohort", env_id="Pendulum-v1", **more
):
    settings = {"PPO": QUICK, "ERL-Re2": RE2}.get(learner, {})
    context = Context((), own=own(kind, **more.pop("settings", {})))
    return LifetimeSpec(
        Task(env_id),
        LearnerSpec(learner, {**settings, **more.pop("config", {})}, engine),
        more.pop("steps", 128),
        Seeds.derive(1, "single", index),
        dataclasses.replace(context, **more),
        2,
        "final_eval",
    )


def essence(record):
    return dataclasses.replace(record, seconds=0.0, commit=None)


@pytest.mark.parametrize("kind", ["own_contexts:DelayLine", "erl.worlds.own_context:DelayLine"])
def test_a_delay_line_shows_the_last_inputs(kind):
    bank = OwnBank([OwnContext(kind, {"length": 3})] * 2, [0, 1], 2)
    inputs = np.arange(20.0).reshape(5, 2, 2)
    for each in inputs:
        seen = bank.step(each)
    assert bank.size == bank.units == 6
    assert np.array_equal(seen[1], inputs[4:1:-1, 1].ravel())
    some = bank.step(inputs[0, :1], np.array([1]))
    assert np.array_equal(some[0, :2], inputs[0, 0])
    assert np.array_equal(bank.state[0], seen[0])  # that one did not step
    bank.keep([1])
    assert np.array_equal(bank.state, some)


def test_delay_lines_step_together_as_they_do_one_by_one():
    rng, seeds = np.random.default_rng(4), [0, 1, 2]
    kinds = ("own_contexts:DelayLine", "erl.worlds.own_context:DelayLine")
    one_by_one, together = (OwnBank([OwnContext(kind)] * 3, seeds, 2) for kind in kinds)
    for agents in (None, np.array([2, 0]), None, np.array([1]), np.arange(3)):
        inputs = rng.normal(size=(3 if agents is None else len(agents), 2))
        seen = [bank.step(inputs, agents).copy() for bank in (one_by_one, together)]
        assert np.array_equal(*seen)
        reset = rng.normal(size=2)
        assert np.array_equal(one_by_one.step_one(0, reset), together.step_one(0, reset))
        assert np.array_equal(one_by_one.state, together.state)
    for bank in (one_by_one, together):
        bank.keep([2, 1])
        bank.step(np.ones((2, 2)))
    assert np.array_equal(one_by_one.state, together.state)


def test_a_trained_readout_recalls():
    memory = own("Recall", units=40, delay=2).make(1, 3)
    inputs = np.random.default_rng(5).uniform(-1, 1, 300)
    state, seen = np.zeros(40), []
    for each in inputs:
        state = memory.step(state, np.array([each]))
        seen.append(memory.output(state)[0])
    recalled = [np.corrcoef(seen[50:], inputs[50 - k : 300 - k])[0, 1] for k in range(5)]
    assert recalled[2] > 0.7
    assert np.argmax(recalled) == 2
    assert own("Recall", units=40).sizes(7) == (40, 7)


@pytest.mark.parametrize(("skip_c", "feed_action"), [(False, True), (True, False)])
def test_a_reservoir_as_a_context_is_the_reservoir(skip_c, feed_action):
    """Encoder, wrapper and resets treat both alike."""
    settings = {"units": 6, "sr": 0.9, "lr": 0.5, "iss": 1.0}
    plain = Context((ReservoirParams(**settings),), skip_c=skip_c, feed_action=feed_action)
    mine = dataclasses.replace(plain, reservoirs=(), own=own("Node", **settings))
    env = make_env(Task("CartPole-v1"))
    encoders = [
        ContextEncoder([context] * 3, [4, 5, 6], env.observation_space, env.action_space)
        for context in (plain, mine)
    ]
    rng = np.random.default_rng(0)
    for t in range(12):
        arguments = rng.normal(size=(3, 4)), rng.integers(2, size=3), rng.normal(size=3)
        one, other = (encoder.step(*arguments).copy() for encoder in encoders)
        np.testing.assert_allclose(one, other, rtol=1e-6)
        if t % 5 == 4:
            first = rng.normal(size=4)
            one, other = (encoder.reset(1, first).copy() for encoder in encoders)
            np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_cohort_is_its_members_alone_to_the_last_bit(n_envs):
    config = {"n_envs": n_envs}
    specs = [lifetime("Recall", i, config=config, settings={"sr": 0.3 + i}) for i in range(3)]
    learner = get_learner("PPO", "cohort")
    assert len({learner.cohort_key(spec) for spec in specs}) == 1  # settings may differ
    other = lifetime("Recall", config=config, settings={"units": 20})
    assert learner.cohort_key(other) != learner.cohort_key(specs[0])
    together = live(Cohort(tuple(specs)))
    assert [record.error for record in together] == [None] * 3
    (alone,) = live(Cohort((specs[1],)))
    assert essence(alone) == essence(together[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "engine", "config"),
    [
        ("PPO", "cohort", {}),
        ("PPO", "sb3", {}),
        ("SAC", "sb3", {"learning_starts": 450}),
        ("TD3", "cohort", {"learning_starts": 450}),
        ("ERL-Re2", "auto", {}),
    ],
)
def test_learners_train_with_it_and_their_models_are_loaded(learner, engine, config, tmp_path):
    steps = {"PPO": 256, "ERL-Re2": 700}.get(learner, 500)
    spec = lifetime("DelayLine", 0, learner, engine, steps=steps, config=config)
    (record,) = live(Cohort((spec,), models=("agent",)))
    assert record.error is None, record.traceback
    loaded, agent = load_model("agent")
    assert loaded == spec
    again = evaluate(agent, loaded.make_env(), 2, loaded.seeds.evaluation)
    assert again.returns == pytest.approx(record.final_returns, rel=1e-5)
    episode = trace(loaded, agent, steps=5)
    assert np.array_equal(episode.states[:, :5], episode.inputs)  # 3 observations, action, reward
    assert np.array_equal(episode.states[2, 5:10], episode.inputs[1])


def test_a_lifetime_goes_on_from_its_checkpoint():
    """The world's state has that of the memories."""
    spec = lifetime("DelayLine", env_id="CartPole-v1")
    worlds = [World([spec], [Ledger()], 2) for _ in range(2)]
    actions = np.random.default_rng(0).integers(2, size=(12, 1, 2))
    for world in worlds:
        world.reset()
    for each in actions[:6]:
        worlds[0].step(each)
    worlds[1].set_states(worlds[0].get_states())
    for each in actions[6:]:
        one, other = (world.step(each)[0].copy() for world in worlds)
        assert np.array_equal(one, other)


def test_one_that_fails_hurts_no_other():
    seed = Seeds.derive(1, "single", 1).reservoir
    specs = [lifetime("Breaks", i, settings={"at": 90, "seed_at": seed}) for i in range(3)]
    records = live(Cohort(tuple(specs)))
    assert [record.error is None for record in records] == [True, False, True]
    assert "the context failed: ZeroDivisionError: the line is cut" in records[1].error
    (alone,) = live(Cohort((specs[2],)))
    assert essence(alone) == essence(records[2])
    env = lifetime("Breaks", settings={"at": 3}).make_env()
    env.reset(seed=0)  # one step of the memory
    action = env.action_space.sample()
    env.step(action)
    env.step(action)
    with pytest.raises(EnvironmentFault, match="the line is cut"):
        env.step(action)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("Missing", {}, "the context own_contexts:Missing cannot be made: AttributeError"),
        ("DelayLine", {"lenght": 3}, r"DelayLine cannot be made with {\"lenght\": 3}: TypeError"),
        ("Wrong", {}, r"fails at its first step: ValueError: step gave a state of shape \(19,\)"),
        ("Twisted", {}, r"output gave an array of shape \(1, 20\), not a vector"),
        ("Nowhere", {}, "first step: ValueError: output gave numbers that are not finite"),
        ("Leaves", {}, "fails at its first step: SystemExit: 0"),
        ("Unsized", {}, "needs `units`, a number of at least 1"),
        ("Counts", {}, "another state for the same state and inputs: its memory belongs in the"),
        ("CountsInPlace", {}, "another state for the same state and inputs"),
        ("Draws", {}, "another state for the same state and inputs"),
        ("Breaks", {"at": 0}, "fails at its first step: ZeroDivisionError: the line is cut"),
    ],
)
def test_what_cannot_be_is_said_before_training(kind, settings, said):
    spec = lifetime(kind, settings=settings)
    with pytest.raises(UserError, match=said):
        get_learner("PPO", "cohort").check(spec)


def test_a_specification_is_stored_and_reservoirs_keep_their_form():
    spec = lifetime("DelayLine", settings={"length": 2})
    assert from_json(LifetimeSpec, json.loads(json.dumps(to_json(spec)))) == spec
    assert "own" not in to_json(Context((ReservoirParams(),)))
    with pytest.raises(UserError, match="no reservoirs beside it"):
        Context((ReservoirParams(),), own=own("DelayLine"))


# -- commands --


def evolution(**flags):
    settings = {"env_id": "CartPole-v1", "training_steps": 64, "nb_trials": 4, "nb_seeds": 1}
    settings |= {"popsize": 4, "workers": 1, "context": "own_contexts:DelayLine"}
    return EvolutionConfig(**(settings | flags))


@pytest.mark.slow
def test_settings_are_evolved_and_tested(inline, quick, sink):
    flags = evolution(
        context="own_contexts:Recall",
        context_set="units=8",
        evolve="context.delay=1:3,context.sr=0.1:2:log",
        learner_config=quick,
    )
    assert evolve(flags, sink) == 0
    name = "CartPole-v1_main_0.064k_steps"
    study = Study("sqlite:///studies.db", name)
    assert {k for t in study.trials() for k in t.params} == {"context.delay", "context.sr"}
    assert all(isinstance(t.params["context.delay"], int) for t in study.trials())
    (record,) = lifetime_records(study.trials()[0]).values()
    settings = dict(record.spec.context.own.settings)
    assert settings == {
        "units": 8,
        "delay": study.trials()[0].params["context.delay"],
        "sr": study.trials()[0].params["context.sr"],
    }
    words = ["test", "--study", name, "--training_steps", "64", "--nb_seeds", "1", "--workers", "1"]
    with pytest.raises(SystemExit) as e:
        main([*words, "--controls", "--arms", "PPO,CONTEXT_PPO_0.0003"])
    assert e.value.code == 0
    spec, _ = load_model(
        f"models/{name}_trial_{study.best().number}_test_0.064k_steps/CONTEXT_PPO_0.0003/seed_0"
    )
    assert spec.context.own.name == "own_contexts:Recall"


def test_a_proposal_that_cannot_be_made_fails_its_trial_alone(inline, quick, sink):
    flags = evolution(
        context="own_contexts:Even",
        evolve="context.length=2:4",
        sampler="Random",
        learner_config=quick,
        engine="cohort",
    )
    assert evolve(flags, sink) == 0
    trials = Study("sqlite:///studies.db", "CartPole-v1_main_0.064k_steps").trials()
    assert {t.params["context.length"] for t in trials} > {3}
    for trial in trials:
        odd = trial.params["context.length"] == 3
        assert trial.state.name == ("FAIL" if odd else "COMPLETE")
        if odd:
            assert "it has to be even" in trial.system_attrs["error"]["reason"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {},
            "nothing is searched. To train with this context unchanged, use: erl train --context ",
        ),
        ({"evolve": "units"}, "--evolve units is for reservoirs"),
        ({"evolve": "context.length=1:3", "context_set": "length=2"}, "searched and set"),
        ({"evolve": "context.length=1:3", "context": None}, "context.length needs --context"),
        ({"evolve": "context.a=1:3"}, "unexpected keyword argument 'a'"),
    ],
)
def test_evolutions_that_cannot_be(flags, said, sink, tmp_path):
    with pytest.raises(UserError, match=said):
        evolve(evolution(**flags), sink)
    assert not (tmp_path / "studies.db").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"units": 7}, "--units is for reservoirs, and --context stands for them"),
        ({"nb_res": 0, "evolve": "learner.gamma=0.9:1"}, "--nb_res 0 evolves without a context"),
        ({"context": "delay"}, "--context must be MODULE:CLASS, not 'delay'"),
        ({"context": None, "context_set": "a=1"}, "--context_set needs --context"),
        ({"context_set": "a"}, "--context_set takes NAME=VALUE"),
    ],
)
def test_flags_that_cannot_be(flags, said):
    with pytest.raises(UserError, match=said):
        evolution(**flags)


def test_a_single_training_has_it(inline, sink):
    from erl.experiments.single import run

    flags = SingleConfig(
        env_id="CartPole-v1",
        learner="PPO",
        steps=64,
        ep_eval=2,
        workers=1,
        set="n_steps=32,batch_size=32,n_epochs=1",
        context="own_contexts:DelayLine",
        context_set="length=2",
    )
    assert run(flags, sink) == 0
    spec, _ = load_model("models/CartPole-v1_CONTEXT_PPO_single_0.064k_steps/seed_0")
    assert spec.context == Context((), own=own("DelayLine", length=2))
    with pytest.raises(UserError, match="context is "):
        run(dataclasses.replace(flags, context_set="length=3"), sink)
