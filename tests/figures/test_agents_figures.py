"""Agents of studies: what they are called, and which are compared."""

from dataclasses import replace

import pytest
from figure_fixtures import a_test, lifetimes

from erl.errors import UserError
from erl.figures.agents import JOINT, compared, generalisation_tests, titles, told_apart
from erl.figures.page import Section
from erl.figures.report import draw_agents, matrix_figure
from erl.figures.style import caption_of


def test_tests_that_differ_have_cells_of_their_own(lifetimes):
    kicked = {"env_id": "Hopper-v4", "env_kwargs": {"kick": 2}}
    tests = [
        a_test("Swimmer-v4_main_1k_steps_trial_3_test_1k_steps", lifetimes),
        a_test("b", lifetimes, env_id="Hopper-v4"),
        a_test("c", lifetimes, **kicked),
        a_test("d", lifetimes, {"env_kwargs": {"kick": 2}}),
        a_test("e", lifetimes, {"del_obs": True}),
        a_test("Swimmer-v4_main_1k_steps_mean_40_test_1k_steps", lifetimes, params={"sr": 2.0}),
        a_test("Swimmer-v4_main_root7_1k_steps_trial_3_test_1k_steps", lifetimes, {"seed": 7}),
        a_test("h", lifetimes, {"seed": 7}, **kicked),
    ]
    here, hidden = "Swimmer-v4", "Swimmer-v4 with hidden velocities"
    first, second, third = (
        f"{here} ({part})"
        for part in ("1k_steps_trial_3", "1k_steps_mean_40", "root7_1k_steps_trial_3")
    )
    assert list(generalisation_tests(tests)) == [
        (first, here),
        (first, "Hopper-v4"),
        (first, 'Hopper-v4 {"kick": 2}'),
        ('Swimmer-v4 {"kick": 2}', 'Swimmer-v4 {"kick": 2}'),
        (hidden, hidden),
        (second, here),
        (third, here),
        (third, 'Hopper-v4 {"kick": 2}'),
    ]
    # Evolutions that differ are told apart without their winners, and winners of one by these.
    for others, parts in (
        ([tests[6]], ["main", "main_root7"]),
        ([tests[5]], ["trial_3", "mean_40"]),
    ):
        rows = [evolved for evolved, _ in generalisation_tests([tests[0], *others])]
        assert rows == [f"{here} ({part})" for part in parts]
    said = "In brackets: what tells apart the studies of evolutions, or winners, of the same task."
    assert said in caption_of(matrix_figure(tests))
    assert "In brackets:" not in caption_of(matrix_figure(tests[:5]))
    longer = replace(tests[0], config=replace(tests[0].config, training_steps=5000))
    assert [*generalisation_tests([tests[0], longer])] == [
        (here, f"{here}, 1,000 steps"),
        (here, f"{here}, 5,000 steps"),
    ]
    continued = a_test("i", lifetimes, {"nb_trials": 500})
    with pytest.raises(UserError, match="i is another test of the same reservoirs in Swimmer-v4"):
        generalisation_tests([tests[0], continued])


def test_cells_name_modules_only_where_they_tell_environments_apart(lifetimes):
    tests = [
        a_test(name, lifetimes, {"env_id": env_id})
        for name, env_id in zip("012", ("popgym:popgym-Count-v0", "one:Reach-v0", "Ant-v4"))
    ]
    assert [*generalisation_tests(tests)] == [
        (name, name) for name in ("popgym-Count-v0", "Reach-v0", "Ant-v4")
    ]
    tests[2] = a_test("2", lifetimes, {"env_id": "other:Reach-v0"})
    assert [*generalisation_tests(tests)] == [
        (name, name) for name in ("popgym-Count-v0", "one:Reach-v0", "other:Reach-v0")
    ]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["A_main_3k_steps", "A_main_root7_3k_steps"], ["main", "main_root7"]),
        (["a.db#x", "b.db#x"], ["a.db", "b.db"]),
        (["runs/a_1", "runs/b_2", "runs/a_2"], ["a_1", "b_2", "a_2"]),
        (["x", "x_2"], ["x", "x_2"]),
        (["x", "y_x"], ["x", "y_x"]),
    ],
)
def test_names_are_told_apart_by_their_shortest_part(names, parts):
    assert told_apart(names) == parts


def test_a_test_without_evolved_reservoirs_has_no_cell(lifetimes):
    alone = a_test("alone", lifetimes[lifetimes.arm == "PPO"], env_id="Hopper-v4")
    with pytest.raises(UserError, match=r"^alone has no evolved agent: omit it$"):
        generalisation_tests([a_test("a", lifetimes), alone])


def test_evolved_settings_have_a_cell(lifetimes):
    settings = a_test("a", lifetimes.replace({"arm": {"RES_PPO": "EVOLVED_PPO"}}), {"nb_res": 0})
    [(_, learner, arm)] = generalisation_tests([settings]).values()
    assert (learner, arm) == ("PPO", "EVOLVED_PPO")


def test_titles_of_studies_are_unique(lifetimes):
    a, b, c = (a_test(name, lifetimes) for name in ("x", "x", "y"))
    b = replace(b, address="b.db")
    assert titles([a, b, c]) == ["a.db#x", "b.db#x", "y"]
    assert titles([a, a, c]) == ["a.db#x", "a.db#x (2)", "y"]
    joint = replace(a, name=JOINT)
    assert titles([joint]) == [f"a.db#{JOINT}"]
    folders = [replace(a, name="toy:x"), replace(a, name="toy/x", kind="tensorboard")]
    assert titles(folders) == ["a.db#toy:x", "a.db"]


def test_a_test_is_judged_by_what_its_evolution_selected_for(lifetimes):
    assert compared([a_test("a", lifetimes)]).measure == "training_return"
    final = compared([a_test("a", lifetimes, {"fitness": "final_eval"})])
    assert final.measure == final.selected == "final_return"
    both = compared([a_test("a", lifetimes), a_test("b", lifetimes)])
    assert len(both.lifetimes) == len(lifetimes)  # of the first
    assert (both.baseline, both.order) == ("PPO", ["PPO", "RES_PPO", "STACK_PPO"])


def test_logs_of_runs_of_different_length_are_called_that(lifetimes):
    logs = replace(a_test("a", lifetimes.assign(steps=100_000)), kind="tensorboard", config=None)
    assert "Budgets differ" not in compared([logs]).about
    steps = [16_000, *[100_000] * 5, *[1_000_000] * 12]  # the first run was interrupted
    logs = replace(logs, lifetimes=lifetimes.assign(steps=steps))
    said = (
        "Budgets differ: PPO 16,000 to 100,000 steps, RES_PPO 1,000,000 steps, STACK_PPO 1,000,000"
    )
    assert said in compared([logs]).about


def test_a_matrix_is_of_what_the_evolutions_selected_for(lifetimes, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "erl.figures.report.comparison.generalisation", lambda found, column: asked.append(column)
    )
    monkeypatch.setattr("erl.figures.report.comparison.generalisation_matrix", lambda *_: None)
    for fitness in (["final_eval"] * 2, ["final_eval", "training"], ["training"] * 2):
        matrix_figure(
            [a_test(n, lifetimes, {"fitness": f, "env_id": n}) for n, f in zip("ab", fitness)]
        )
    assert asked == ["final_return", "training_return", "training_return"]


def test_captions_name_agents_without_the_evolved_settings(lifetimes):
    said = "The evolved settings of the learner are not those of PPO, STACK_PPO: what they lack is"
    test = a_test("a", lifetimes)
    for untuned in ((), ("PPO", "STACK_PPO")):
        of, section = compared([replace(test, untuned=untuned)]), Section("a")
        draw_agents(section, of)
        names = {name for name, _, _ in section.figures}
        assert {"learning_curves", "improvement_training", "profiles_final"} <= names
        assert not section.missing
        captions = [caption_of(figure) for _, _, figure in section.figures]
        for text in (*captions, section.about):
            assert (said in text) == bool(untuned)
