import json
import pickle
from dataclasses import replace

import pytest

from erl.errors import UserError
from erl.worlds.arguments import Arguments, parse_arguments
from erl.worlds.evaluation import evaluate_afresh
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds, from_json, to_json
from erl.worlds.tasks import Task, check_task, make_env


def test_arguments_compare_hash_pickle_and_do_not_change():
    given = {"gravity": 5, "range": [1, 2.5], "deep": {"a": [True, None]}}
    arguments = Arguments(given)
    assert arguments == given
    assert arguments == Arguments(dict(reversed(given.items())))
    assert hash(arguments) == hash(Arguments(dict(reversed(given.items()))))
    assert arguments != Arguments({**given, "gravity": 6})
    assert pickle.loads(pickle.dumps(arguments)) == arguments
    arguments["range"].append(3)
    given["deep"]["a"].append(1)
    assert dict(arguments) == {"gravity": 5, "range": [1, 2.5], "deep": {"a": [True, None]}}
    assert (len(arguments), list(Arguments())) == (3, [])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a b": 1}, "not a name of an argument"),
        ({1: 2}, "1 is not a name of an argument"),
        ({"a": float("nan")}, "a is not finite"),
        ({"a": [{"b": float("inf")}]}, "a is not finite"),
        ({"a": {1: 2}}, "has the name 1"),
        ({"a": {1, 2}}, "cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_refused(bad, message):
    with pytest.raises(UserError, match=message):
        Arguments(bad)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{gravity: 5}", {"gravity": 5}),
        ('{"gravity": 5e-3, "names": ["x"]}', {"gravity": 0.005, "names": ["x"]}),
        ("gravity: 5e-3\nwind: true", {"gravity": 0.005, "wind": True}),
        ("gravity: 5", {"gravity": 5}),
        ("", {}),
        ("{}", {}),
    ],
)
def test_arguments_are_read_from_text_and_from_files(text, values, tmp_path):
    assert parse_arguments(text) == values
    as_json = text.startswith('{"') or text == "{}"
    for name in ("given.yaml", "given.yml", *["given.json"] * as_json):
        (tmp_path / name).write_text(text)
        assert parse_arguments(str(tmp_path / name)) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "are a mapping of names and values"),
        ("[1, 2]", "are a mapping of names and values"),
        ("{a: 1, a: 2}", "given twice"),
        ("{a: 1", "cannot be read"),
        ("nowhere.yaml", "nowhere.yaml"),
        ("{when: 2020-01-01}", "a date, which cannot be stored"),
        ("{render_mode: human}", "render_mode.* --video films .*, and erl film a saved one"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as refusal:
        parse_arguments(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["deep.json", "deep.yaml"])
def test_what_is_nested_too_deeply_is_refused(name, tmp_path):
    (tmp_path / name).write_text('{"a": ' + "[" * 5000 + "]" * 5000 + "}")
    with pytest.raises(UserError, match="is not valid"):
        parse_arguments(str(tmp_path / name))


def test_they_reach_the_environment_however_it_is_made():
    task = Task("CartPole-v1", kwargs={"sutton_barto_reward": True, "max_episode_steps": 7})
    spec = LifetimeSpec(task, LearnerSpec(), 10, Seeds(1, 2, 3, 4))
    env = make_env(task)
    env.reset(seed=0)
    assert [env.step(0)[1] for _ in range(3)] == [0.0, 0.0, 0.0]

    class Balance:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return (observation[:, 2] > 0).astype(int), None

    (result,) = evaluate_afresh({"": Balance()}, spec, 2, 0).values()
    assert (result.returns, result.lengths) == ((0.0, 0.0), (7, 7))


def test_a_task_without_arguments_is_stored_as_before_there_were_any():
    task = Task("CartPole-v1")
    assert to_json(task) == {"env_id": "CartPole-v1", "del_obs": False, "frame_stack": 1}
    assert from_json(Task, to_json(task)) == task
    given = replace(task, kwargs={"sutton_barto_reward": True})
    stored = json.loads(json.dumps(to_json(given)))
    assert stored["kwargs"] == {"sutton_barto_reward": True}
    assert from_json(Task, stored) == given
    assert hash(from_json(Task, stored)) == hash(given) != hash(task)


def test_arguments_that_the_environment_does_not_know_are_named():
    with pytest.raises(UserError, match=r"CartPole-v1' has no argument 'colour'"):
        check_task(Task("CartPole-v1", kwargs={"colour": 3}))
