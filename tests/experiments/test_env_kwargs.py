"""`--env_kwargs`, and the SB3 Zoo's key of that name: given to every environment, and stored."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import STORAGE
from test_foreign_studies import NAME, TEST, evolution, foreign

from erl.cli import main
from erl.errors import UserError
from erl.experiments.comparison import (
    ComparisonConfig,
    GeneralizationComparisonConfig,
    _slug,
    compare,
)
from erl.experiments.evolution import EvolutionConfig, GeneralizationConfig, evolve
from erl.experiments.single import SingleConfig, run
from erl.studies.configuration import EvolutionStudy, SingleStudy, TestStudy
from erl.studies.study import Study
from erl.studies.trials import lifetime_records
from erl.worlds.arguments import parse_arguments
from erl.worlds.tasks import Task, check_task

# The reward is 0 for every step but the last, which costs 1; and an episode has at most 9 steps.
COSTS = {"sutton_barto_reward": True, "max_episode_steps": 9}
TEXT = "{sutton_barto_reward: true, max_episode_steps: 9}"


def study(name):
    return Study(STORAGE, name)


def tasks(name):
    """The task of each lifetime of a study, and its returns."""
    found = study(name)
    return [
        (dict(r.spec.task.kwargs), r.fitness)
        for trial in found.trials("COMPLETE")
        for r in lifetime_records(trial).values()
    ]


def of_a_set(flags):
    """Flags that an evolution for a set of environments has as well."""
    only_one = ("env_id", "context", "context_set")
    return {k: v for k, v in vars(flags).items() if k not in only_one}


def test_the_example_of_arguments_works_in_every_environment():
    (example,) = {
        re.search(r"'(\{.*?\})'", field.metadata["help"])[1]
        for kind in (SingleConfig, EvolutionConfig, GeneralizationConfig, ComparisonConfig)
        for field in fields(kind)
        if field.name == "env_kwargs"
    }
    with pytest.raises(UserError, match=re.escape(example)):
        parse_arguments("5")
    for env_id in ("CartPole-v1", "Pendulum-v1", "Ant-v4", "HalfCheetah-v5"):
        check_task(Task(env_id, kwargs=parse_arguments(example)))


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_an_evolution_and_its_test_use_what_is_stored(quick, sink):
    flags = evolution(quick, env_kwargs=TEXT, training_steps=64)
    assert evolve(flags, sink) == 0
    config = study(NAME).config
    assert isinstance(config, EvolutionStudy)
    assert config.env_kwargs == COSTS
    for kwargs, fitness in tasks(NAME):
        assert kwargs == COSTS
        assert -1 <= fitness <= 0
    # A test needs no flag, and takes no other.
    test = ComparisonConfig(study=NAME, arms="PPO,RES_PPO_0.0003", **TEST)
    assert compare(test, sink) == 0
    best = study(NAME).best().number
    assert [k for k, _ in tasks(f"{NAME}_trial_{best}_test_0.032k_steps")] == [COSTS] * 2
    assert compare(replace(test, env_kwargs=TEXT), sink) == 0
    with pytest.raises(UserError, match=r"evolved with env_kwargs .*9.*, and its test uses the"):
        compare(replace(test, env_kwargs="{}"), sink)
    # The study goes on with the same arguments only.
    assert evolve(replace(flags, nb_trials=3), sink) == 0
    with pytest.raises(UserError, match=r"env_kwargs is .* there and {} here"):
        evolve(replace(flags, env_kwargs=None), sink)


@pytest.mark.usefixtures("inline")
def test_a_test_of_generalisation_has_arguments_of_its_own(quick, sink):
    assert evolve(evolution(quick), sink) == 0
    test = GeneralizationComparisonConfig(
        study=NAME,
        env_id="CartPole-v1",
        env_kwargs="max_episode_steps: 9",
        allow_seen=True,
        arms="PPO",
        **TEST,
    )
    assert compare(test, sink) == 0
    stem = f"{NAME}_trial_{study(NAME).best().number}_on_CartPole-v1"
    name = f"{stem}_with_max_episode_steps_9_test_0.032k_steps"
    config = study(name).config
    assert isinstance(config, TestStudy)
    assert (config.env_kwargs, config.evolution.env_kwargs) == ({"max_episode_steps": 9}, {})
    assert [k for k, _ in tasks(name)] == [{"max_episode_steps": 9}]
    # Other arguments have another test, and so has the environment without any.
    for kwargs in ("max_episode_steps: 8", None):
        assert compare(replace(test, env_kwargs=kwargs), sink) == 0
    assert [k for k, _ in tasks(name.replace("9", "8"))] == [{"max_episode_steps": 8}]
    assert [k for k, _ in tasks(f"{stem}_test_0.032k_steps")] == [{}]
    # Long ones stay short, and apart from each other.
    names = {_slug({"text": f"{'x' * 500}{k}"}) for k in range(2)}
    assert len(names) == 2
    assert max(map(len, names)) < 80


@pytest.mark.usefixtures("inline")
def test_a_journal_has_none_but_those_of_the_flag(sink):
    foreign([({"sr": 1.0, "lr": 0.5}, 1.0)])
    test = ComparisonConfig(study=NAME, arms="PPO", env_kwargs=TEXT, **TEST)
    assert compare(test, sink) == 0
    assert [k for k, _ in tasks(f"{NAME}_trial_0_test_0.032k_steps")] == [COSTS]


@pytest.mark.usefixtures("inline")
def test_environments_of_a_set_are_given_the_same(quick, sink):
    Path("sets.yaml").write_text(
        "sets: {two: [CartPole-v1, CartPole-v0]}\n"
        "target_returns: {CartPole-v1: 5e2, CartPole-v0: 2e2}\n"
        "random_returns: {CartPole-v1: 20, CartPole-v0: 20}\n"
    )
    given = of_a_set(evolution(quick))
    flags = GeneralizationConfig(
        **given | {"env_type": "two", "sets": "sets.yaml", "nb_res": 1, "env_kwargs": TEXT}
    )
    assert evolve(flags, sink) == 0
    assert [k for k, _ in tasks("two_1_main_0.064k_steps")] == [COSTS] * 4
    assert "returns of environments without env_kwargs" in str(sink)


@pytest.mark.usefixtures("inline")
def test_one_learner(quick, sink):
    Path("kwargs.json").write_text('{"sutton_barto_reward": true,\t"max_episode_steps": 9}')
    flags = SingleConfig(
        storage=STORAGE,
        learner="PPO",
        env_id="CartPole-v1",
        steps=64,
        learner_config=quick,
        env_kwargs="kwargs.json",
        workers=1,
    )
    assert run(flags, sink) == 0
    name = "CartPole-v1_PPO_single_0.064k_steps"
    config = study(name).config
    assert isinstance(config, SingleStudy)
    assert config.env_kwargs == COSTS
    [(kwargs, fitness)] = tasks(name)
    assert kwargs == COSTS
    assert -1 <= fitness <= 0


def zoo(text):
    Path("zoo.yaml").write_text(text + "  n_steps: 32\n  batch_size: 32\n")
    return "zoo.yaml"


@pytest.mark.usefixtures("inline")
def test_the_zoos_key_is_honoured_and_the_flag_goes_before_it(quick, sink):
    file = zoo("CartPole-v1:\n  env_kwargs: dict(max_episode_steps=9)\n")
    flags = evolution(file, nb_trials=1)
    assert evolve(flags, sink) == 0
    assert study(NAME).config.env_kwargs == {"max_episode_steps": 9}
    assert tasks(NAME)[0][0] == {"max_episode_steps": 9}
    assert 'environments are made with its env_kwargs {"max_episode_steps": 9}' in str(sink)
    assert evolve(replace(flags, env_kwargs="{}", h_test="none"), sink) == 0
    assert study(NAME.replace("main", "none")).config.env_kwargs == {}
    assert "--env_kwargs goes before its env_kwargs" in str(sink)


def test_different_arguments_for_environments_of_a_set_are_refused(quick, sink):
    file = zoo(
        "CartPole-v0: {env_kwargs: {max_episode_steps: 8}, n_steps: 32, batch_size: 32}\n"
        "CartPole-v1:\n  env_kwargs: {max_episode_steps: 9}\n"
    )
    given = of_a_set(evolution(file))
    flags = GeneralizationConfig(**given | {"env_ids": "CartPole-v0,CartPole-v1", "nb_res": 1})
    with pytest.raises(UserError, match="different env_kwargs for CartPole-v0, CartPole-v1"):
        evolve(flags, sink)


def test_a_file_that_renders_every_step_is_refused(sink):
    file = zoo("CartPole-v1:\n  env_kwargs: dict(render_mode='rgb_array')\n")
    with pytest.raises(UserError, match="have render_mode"):
        evolve(evolution(file), sink)
    # --env_kwargs goes before the file.
    with pytest.raises(UserError, match="has no argument 'colour'"):
        evolve(evolution(file, env_kwargs="{colour: 3}"), sink)


BAD = {
    "{colour: 3}": "has no argument 'colour' (known: max_episode_steps",
    "{render_mode: human}": "leave it out; --video films",
    "{id: 3}": "cannot be made",
    "colour": "are a mapping of names and values",
    "{a: 1, a: 2}": "given twice",
    "{a: &x [*x]}": "a value holds itself",
    "{a: !!bool x}": "not what its tag says",
    "missing.yaml": "missing.yaml",
}


@pytest.mark.parametrize(
    ("script", "text", "said"),
    [("evolve", *bad) for bad in BAD.items()]
    + [(script, *bad) for bad in list(BAD.items())[:2] for script in ("set", "single", "test")],
)
def test_bad_arguments_are_one_line_and_exit_code_2(script, text, said, quick, capsys):
    common = ["--env_kwargs", text]
    function, kind, words = {
        "evolve": (evolve, type(evolution(quick)), ["--env_id", "CartPole-v1"]),
        "set": (evolve, GeneralizationConfig, ["--env_ids", "CartPole-v1,Acrobot-v1"]),
        "single": (run, SingleConfig, ["--env_id", "CartPole-v1", "--learner", "PPO"]),
        "test": (compare, ComparisonConfig, ["--study", NAME, "--storage", STORAGE]),
    }[script]
    if script == "test":
        foreign([({"sr": 1.0, "lr": 0.5}, 1.0)])
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as e:
        main(function, kind, "", words + common, program="it")
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("it: error: ")
    assert said in err
    assert err.count("\n") == 1
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before
