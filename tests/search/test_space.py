"""Names, ranges and whole numbers of what is searched, and the reservoirs and settings that values
describe.
"""

from dataclasses import replace

import numpy as np
import pytest
from optuna import create_study
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from erl.errors import UserError
from erl.experiments.evolution import EvolutionConfig, GeneralizationConfig, MultiEvolutionConfig
from erl.experiments.evolution_study import study_config
from erl.search.space import (
    Range,
    draw_from,
    learner_settings,
    make_context,
    parse_evolve,
    search_space,
)
from erl.studies.configuration import from_stored, to_stored
from erl.studies.distributions import distributions
from erl.worlds.reservoirs import Context, ReservoirParams


def stored(kind=EvolutionConfig, **options):
    """A configuration as a study stores it."""

    class Silent:
        def line(self, text):
            raise AssertionError(text)

    return study_config(kind(**options), Silent())


# -- --evolve --


@pytest.mark.parametrize("text", [None, "", " , "])
def test_nothing_more_is_searched_by_default(text):
    assert parse_evolve(text) == {}


def test_names_alone_have_ranges_of_their_own():
    names = "units, rc_connectivity,input_connectivity,bias,bias_connectivity"
    assert parse_evolve(names) == {
        "units": Range(20, 400, True),
        "rc_connectivity": Range(0.01, 1.0, True),
        "input_connectivity": Range(0.01, 1.0, True),
        "bias": Range(0.01, 1.0, True),
        "bias_connectivity": Range(0.01, 1.0, True),
    }


@pytest.mark.parametrize(
    ("text", "expected", "whole"),
    [
        ("units=5:9", Range(5, 9, False), True),
        ("units=5:9:log", Range(5, 9, True), True),
        ("units=5:9:linear", Range(5, 9, False), True),
        ("units=7:7", Range(7, 7, False), True),
        ("bias=0:1", Range(0.0, 1.0, False), False),
        ("rc_connectivity=1:1", Range(1.0, 1.0, False), False),
        ("learner.learning_rate=1e-5:1e-2:log", Range(1e-5, 1e-2, True), False),
        ("learner.n_steps=32:64", Range(32, 64, False), True),
        ("learner.gamma=0.9:1", Range(0.9, 1.0, False), False),
        ("learner.vf_coef=-1:1.0", Range(-1.0, 1.0, False), False),
        ("context.connectivity=0:1.0", Range(0, 1.0, False), False),
    ],
)
def test_ranges(text, expected, whole):
    [found] = parse_evolve(text).values()
    assert found == expected
    assert found.integer is whole
    [distribution] = distributions({"x": found}).values()
    assert isinstance(distribution, IntDistribution if whole else FloatDistribution)
    assert (distribution.low, distribution.high, distribution.log) == (
        expected.low,
        expected.high,
        expected.log,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unit", "'unit'; did you mean units"),
        ("nonsense", "does not know 'nonsense'"),
        ("sr=0.1:2", "--evolve sr: .* --min_sr and --max_sr"),
        ("iss", "--fixed_iss False, --min_iss and --max_iss"),
        ("units,units=3:5", "names 'units' twice"),
        ("units=20", "a range is low:high"),
        ("units=", "a range is low:high"),
        ("units=a:b", "a range is low:high"),
        ("units=3:5:cubic", "a range is low:high"),
        ("learner.gamma=0.9:inf", "bounds must be finite numbers"),
        ("bias=nan:1", "bounds must be finite numbers"),
        (f"units=3:{'9' * 400}", "bounds must be finite numbers"),
        ("units=3:5:log:log", "a range is low:high"),
        ("units=9:5", "is greater than"),
        ("units=2:5", "units must be at least 3$"),
        ("units=5.0:9", "whole numbers"),
        ("units=5:9.5", "whole numbers"),
        ("bias=-1:1", "bias must be at least 0$"),
        ("bias=0:1:log", "above 0"),
        ("rc_connectivity=0:1", "must be above 0 and at most 1"),
        ("bias_connectivity=0:1", "must be above 0 and at most 1"),
        ("bias_connectivity=0.1:2", "must be above 0 and at most 1"),
        ("input_connectivity=0.1:1.1", "must be above 0 and at most 1"),
        ("learner.learning_rate", "needs a range"),
        ("learner.learning_rate=nan:1", "range|bound"),
        ("learner.learning_rate=1:inf", "range|bound"),
        ("learner.learning_rate=0:1:log", "above 0"),
    ],
)
def test_what_cannot_be_searched(text, said):
    with pytest.raises(UserError, match=said):
        parse_evolve(text)


# -- the search space --


def test_one_reservoir_has_plain_names():
    assert search_space(stored()) == {"sr": Range(1e-4, 1e2), "lr": Range(1e-2, 1.0)}
    assert list(search_space(stored(fixed_iss=False))) == ["sr", "lr", "iss"]
    assert search_space(stored(fixed_iss=False, min_iss=2.0, max_iss=3.0))["iss"] == Range(
        2.0, 3.0, True
    )


@pytest.mark.parametrize("kind", [MultiEvolutionConfig, GeneralizationConfig])
def test_several_reservoirs_have_er_mrls_names(kind):
    config = stored(kind, nb_res=2)
    assert list(search_space(config)) == ["sr_1", "lr_1", "iss_1", "sr_2", "lr_2", "iss_2"]
    assert set(search_space(stored(kind, nb_res=1, fixed_iss=True))) == {"sr_1", "lr_1"}
    assert search_space(config)["iss_2"] == Range(0.1, 10.0, True)


def test_more_parameters_join_for_each_reservoir_and_settings_once():
    evolve = "units=5:9,bias,learner.gamma=0.9:0.99"
    more = {"units": Range(5, 9, False), "bias": Range(0.01, 1.0)}
    gamma = {"learner.gamma": Range(0.9, 0.99, False)}
    one = search_space(stored(evolve=evolve))
    assert one == search_space(stored()) | more | gamma
    several = search_space(stored(MultiEvolutionConfig, nb_res=2, evolve=evolve))
    assert several == search_space(stored(MultiEvolutionConfig, nb_res=2)) | gamma | {
        f"{name}_{k}": r for name, r in more.items() for k in (1, 2)
    }
    assert stored(evolve=evolve).popsize == 4 + int(
        3 * 1.6094379
    )  # 3 ln 5, five searched parameters


# -- what values describe --


def test_values_of_one_reservoir():
    assert make_context(stored(units=7), {"sr": 0.5, "lr": 0.25}) == Context(
        (ReservoirParams(7, 0.5, 0.25, 1.0),)
    )
    assert (
        make_context(stored(fixed_iss=False), {"sr": 0.5, "lr": 0.25, "iss": 3.0}).reservoirs[0].iss
        == 3.0
    )


def test_values_of_several_reservoirs_stay_apart():
    params = {
        "sr_1": 0.1,
        "lr_1": 0.2,
        "iss_1": 0.3,
        "sr_2": 0.4,
        "lr_2": 0.5,
        "iss_2": 0.6,
        "units_2": 9,
    }
    params |= {"rc_connectivity_1": 0.7, "input_connectivity_2": 0.8, "bias_1": 0.9}
    assert make_context(stored(MultiEvolutionConfig, nb_res=2, units=7), params).reservoirs == (
        ReservoirParams(7, 0.1, 0.2, 0.3, rc_connectivity=0.7, bias=0.9),
        ReservoirParams(9, 0.4, 0.5, 0.6, input_connectivity=0.8),
    )


def test_a_study_older_than_partial_context_shows_all_neurons():
    before = to_stored(stored())
    del before["obs_units"], before["evolve"]
    config = from_stored(before)
    assert make_context(config, {"sr": 1.0, "lr": 1.0}).obs_units is None
    assert set(search_space(config)) == {"sr", "lr"}


def test_the_rest_of_the_context_is_the_studys():
    context = make_context(
        stored(skip_c=True, reset_res=False, published_code=True, obs_units=4),
        {"sr": 1.0, "lr": 1.0},
    )
    assert (context.skip_c, context.reset_res, context.feed_action, context.obs_units) == (
        True,
        False,
        False,
        4,
    )


@pytest.mark.parametrize(("kind", "neurons"), [(EvolutionConfig, 5), (MultiEvolutionConfig, 15)])
def test_a_policy_sees_no_more_neurons_than_there_are(kind, neurons):
    params = {
        f"{name}{suffix}": 0.5 for name in ("sr", "lr", "iss") for suffix in ("", "_1", "_2", "_3")
    }
    assert make_context(stored(kind, units=5, obs_units=neurons), params).obs_units == neurons
    with pytest.raises(UserError, match=f"1 to {neurons} of {neurons} neurons, not {neurons + 1}"):
        make_context(stored(kind, units=5, obs_units=neurons + 1), params)


def biases(config, params=None):
    params = {"sr": 1.0, "lr": 1.0} if params is None else params
    return [(r.bias, r.bias_connectivity) for r in make_context(config, params).reservoirs]


def test_the_bias_is_that_of_the_flags_or_of_published_code():
    assert biases(stored()) == [(0.0, 1.0)]
    assert biases(stored(published_code=True)) == [(1.0, 0.1)]
    assert biases(stored(published_code=True, bias=0.0)) == [(0.0, 0.1)]
    assert biases(stored(bias=0.5)) == [(0.5, 1.0)]
    several = {"sr_1": 1.0, "lr_1": 1.0, "iss_1": 1.0, "sr_2": 1.0, "lr_2": 1.0, "iss_2": 1.0}
    two = stored(MultiEvolutionConfig, nb_res=2, bias=0.5, bias_connectivity=0.2)
    assert biases(two, several) == [(0.5, 0.2)] * 2


def test_what_is_searched_of_the_bias_is_what_was_proposed():
    params = {"sr": 1.0, "lr": 1.0, "bias": 0.3, "bias_connectivity": 0.7}
    assert biases(stored(evolve="bias,bias_connectivity"), params) == [(0.3, 0.7)]
    del params["bias"]
    assert biases(stored(evolve="bias_connectivity", bias=2.0), params) == [(2.0, 0.7)]
    assert biases(stored(evolve="bias_connectivity", published_code=True), params) == [(1.0, 0.7)]


def test_a_study_older_than_the_bias_has_none():
    for published in (False, True):
        before = to_stored(stored(published_code=published))
        del before["bias"], before["bias_connectivity"]
        assert biases(from_stored(before)) == [(0.0, 1.0)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"bias": -1.0}, "--bias must be a number from 0, not -1.0"),
        ({"bias": float("inf")}, "--bias must be a number from 0"),
        ({"bias": float("nan")}, "--bias must be a number from 0"),
        ({"bias": 1.0, "bias_connectivity": 0.0}, "above 0 and at most 1, not 0.0"),
        ({"bias": 1.0, "bias_connectivity": 1.5}, "above 0 and at most 1, not 1.5"),
        ({"bias_connectivity": 0.1}, "needs a bias"),
        ({"evolve": "bias_connectivity"}, "needs a bias"),
        ({"evolve": "bias", "bias": 1.0}, "--evolve bias searches it"),
        (
            {"evolve": "bias,bias_connectivity", "bias_connectivity": 0.5},
            "--evolve bias_connectivity searches it",
        ),
        ({"nb_res": 0, "evolve": "learner.gamma=0.9:1", "bias": 1.0}, "is for reservoirs"),
    ],
)
def test_a_bias_that_cannot_be(flags, said):
    with pytest.raises(UserError, match=said):
        stored(**flags)


def test_proposed_settings_go_before_those_of_the_study():
    config = replace(stored(), learner_config={"gamma": 0.9, "n_steps": 64})
    before = dict(config.learner_config)
    assert learner_settings(config, {"sr": 1.0}) == before
    assert learner_settings(config, {"sr": 1.0, "learner.gamma": 0.5, "learner.vf_coef": 0.1}) == {
        "gamma": 0.5,
        "n_steps": 64,
        "vf_coef": 0.1,
    }
    assert config.learner_config == before


@pytest.mark.parametrize("log", [False, True])
def test_whole_numbers_are_drawn_as_optuna_draws_them(log):
    """Also at the ends of a short range."""
    rng = np.random.default_rng(0)
    drawn = [draw_from({"x": Range(1, 4, log)}, rng)["x"] for _ in range(4000)]
    shares = np.bincount(drawn, minlength=5)[1:] / len(drawn)
    sampler = RandomSampler(seed=0)
    study = create_study(sampler=sampler)
    theirs = [study.ask({"x": IntDistribution(1, 4, log=log)}).params["x"] for _ in range(1000)]
    np.testing.assert_allclose(shares, np.bincount(theirs, minlength=5)[1:] / 1000, atol=0.05)
    if not log:
        np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_numbers_are_drawn_within_their_bounds():
    rng = np.random.default_rng(0)
    ranges = {"sr": Range(1e-4, 1e2), "lr": Range(0.5, 0.5), "x": Range(-2, 0, False)}
    drawn = [draw_from(ranges, rng) for _ in range(200)]
    assert all(1e-4 <= d["sr"] <= 1e2 and d["lr"] == 0.5 for d in drawn)
    assert {d["x"] for d in drawn} == {-2, -1, 0}
    assert 0.3 < np.mean([d["sr"] < 0.1 for d in drawn]) < 0.7  # uniform in the logarithm
