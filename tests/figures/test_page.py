"""The page of a report says what was run."""

import pandas as pd
import pytest
from figure_fixtures import a_test, lifetimes

from erl.figures.page import _what_was_run, describe
from erl.studies.configuration import EvolutionStudy, SingleStudy, TestStudy
from erl.studies.data import StudyData


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
