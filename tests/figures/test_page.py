"""The page of a report says what was run."""

import optuna
import pandas as pd
import pytest
from figure_fixtures import a_test, lifetimes

from erl.figures import evolution
from erl.figures.page import _what_was_run, describe
from erl.figures.style import caption_of
from erl.studies.configuration import EvolutionStudy, SingleStudy, TestStudy
from erl.studies.data import StudyData, read_study


@pytest.mark.parametrize(("n", "said"), [(20, ""), (23, "; and 3 more<")])
def test_a_page_says_how_many_seeds_it_leaves_out(n, said, lifetimes):
    rows = pd.concat([lifetimes] * 2, ignore_index=True).head(n)
    rows = rows.assign(seed_environment=range(n), seed_reservoir=range(n))
    page = "".join(_what_was_run(a_test("t", rows)))
    assert page.count("environment ") == 20
    assert ("more<" in page) == bool(said)
    assert said in page


def test_arguments_of_the_environment_are_said():
    given = {"forward_reward_weight": 0.5}
    single = SingleStudy("PPO", "Swimmer-v4", 1000, env_kwargs=given)
    evolution = EvolutionStudy(env_id="Swimmer-v4", env_kwargs=given)
    test = TestStudy(evolution, {"sr": 1.0}, 1000, "cohort")
    elsewhere = TestStudy(evolution, {"sr": 1.0}, 1000, "cohort", "Hopper-v4")
    for config in (single, evolution, test, elsewhere):
        nothing = pd.DataFrame()
        data = StudyData("name", "", config.kind, config, {}, None, {}, nothing, nothing, nothing)
        words = 'with arguments {"forward_reward_weight": 0.5}'
        assert (words in describe(data)) == (config is not elsewhere)


def test_a_test_of_generalisation_names_its_own_environment():
    evolution = EvolutionStudy(env_ids=("Ant-v4", "Swimmer-v4"), env_kwargs={"frame_skip": 2})
    for env_id, words in ((None, "Ant-v4, Swimmer-v4 with arguments"), ("Hopper-v4", "Hopper-v4,")):
        config, nothing = TestStudy(evolution, {"sr": 1.0}, 1000, "cohort", env_id), pd.DataFrame()
        data = StudyData("name", "", config.kind, config, {}, None, {}, nothing, nothing, nothing)
        assert describe(data).startswith(words)


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_choices_of_other_programs_may_be_none_or_lists():
    study = optuna.create_study(study_name="o", storage="sqlite:///o.db", direction="maximize")
    for _ in range(6):
        trial = study.ask()
        limit = trial.suggest_categorical("limit", [None, 1, 2])
        word = trial.suggest_categorical("word", [None, "a"])
        layers = trial.suggest_categorical("layers", [[8], [8, 8]])
        study.tell(
            trial, len(layers) + (limit or 9) + (word is None) + trial.suggest_float("x", 0, 1)
        )
    data = read_study("sqlite:///o.db#o")
    for name, trial in ((n, t) for n in ("limit", "word", "layers") for t in study.trials):
        value = data.trials[name][trial.number]
        assert value == trial.params[name]
        unit = data.space[name].unit([value])[0]
        choices = data.space[name].choices
        assert unit == choices.index(value) / (len(choices) - 1)
    figure = evolution.slices(data.trials, data.space)
    shown = figure.axes[[*data.space].index("limit")]
    assert len(shown.collections[0].get_offsets()) == 6
    assert "gaps" not in caption_of(evolution.parallel_coordinates(data.trials, data.space))
    best = study.best_trial.params
    page = "".join(_what_was_run(data))
    assert f"limit {best['limit']}" in page
    assert f"layers {best['layers']}" in page
