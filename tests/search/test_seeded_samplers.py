"""Samplers of the user's, `--sampler MODULE:CLASS`: the classes that the document shows, and
Optuna's.
"""

import re
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from documents import blocks
from optuna.distributions import FloatDistribution, IntDistribution

from erl.errors import UserError
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.search.samplers import generation_size, make_sampler, sampler_name
from erl.studies.study import Study

SPACE = {
    "sr": FloatDistribution(1e-4, 1e2, log=True),
    "units": IntDistribution(10, 400, log=True),
    "gamma": FloatDistribution(0.0, 1.0),
}
BROKEN = """
from optuna.distributions import FloatDistribution

FAR = 2


class Beyond(NearTheBest):
    def sample_independent(self, study, trial, name, distribution):
        return FAR * distribution.high


class Together(NearTheBest):
    \"\"\"Proposes all parameters at once.\"\"\"

    def infer_relative_search_space(self, study, trial):
        return {"sr": FloatDistribution(1e-4, 1e2, log=True)}

    def sample_relative(self, study, trial, search_space):
        return FAR


class Unseeded(NearTheBest):
    def __init__(self):
        super().__init__(7)


class Passes(NSGAIISampler):
    def __init__(self, **settings):
        super().__init__(**settings)


class Greedy(NearTheBest):
    def __init__(self, seed, rate):
        super().__init__(seed)


class Begins(NearTheBest):
    \"\"\"Draws before the first parameter what the parameters share.\"\"\"

    def before_trial(self, study, trial):
        self.share = self.rng.uniform()

    def sample_independent(self, study, trial, name, distribution):
        value = distribution.low + self.share * (distribution.high - distribution.low)
        return type(distribution.low)(value)
"""
OWN = [
    "my_sampler:NearTheBest",
    "my_sampler:SmallPopulation",
    "my_sampler:Unseeded",
    "my_sampler:Passes",
    "my_sampler:Begins",
    "optuna.samplers:NSGAIISampler",
    pytest.param("optuna.samplers:GPSampler", marks=pytest.mark.slow),
    "optuna.samplers:CmaEsSampler",
]

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def module(monkeypatch):
    """The document's module, in the working folder."""
    (source,) = [b for b in blocks("docs/evolution.md", "python") if "my_sampler.py" in b]
    Path("my_sampler.py").write_text(source + BROKEN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(__import__("sys").modules, "my_sampler", raising=False)


def proposals(name, generations, fresh, seed=3):
    """Parameters of the trials of some generations of four; `fresh`: each from a new object."""
    sampler = make_sampler(name, SPACE, seed)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(generations):
        trials = []
        for _ in range(4):
            if fresh:
                study.sampler = make_sampler(name, SPACE, seed)
            trials.append(study.ask(SPACE))
        for trial in trials:
            study.tell(trial, -abs(trial.params["gamma"] - 0.3))
    return [t.params for t in study.trials]


@pytest.mark.parametrize("name", OWN)
def test_what_is_proposed_depends_on_seed_number_and_trials_alone(name):
    n = 3 if name.endswith("GPSampler") else 5  # it draws at random ten times first
    found = proposals(name, n, fresh=False)
    assert found == proposals(name, n, fresh=True)
    for params in found:
        assert all(d._contains(d.to_internal_repr(params[n])) for n, d in SPACE.items())
    assert found[:4] != found[4:8]
    if name != "my_sampler:Unseeded":
        assert len({p["gamma"] for p in found}) > 1
        assert found != proposals(name, n, fresh=False, seed=4)


def test_the_parameters_of_a_trial_are_of_one_object():
    for params in proposals("my_sampler:Begins", 2, fresh=False):
        share = (params["units"] - 10) / 390
        assert params["sr"] == pytest.approx(1e2 * share, abs=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Mine", "the sampler no_such_module:Mine cannot be made: ModuleNotFound"),
        ("my_sampler:Nothing", "the sampler my_sampler:Nothing cannot be made: AttributeError"),
        ("my_sampler:np", "my_sampler:np is no sampler of Optuna: it must be a class that is"),
        ("pathlib:Path", "is derived from optuna.samplers.BaseSampler"),
        ("optuna.samplers:BaseSampler", "cannot be made: TypeError"),
        ("my_sampler:Greedy", "TypeError: .*'rate'; its constructor is given nothing but a seed"),
        ("Nobody", "unknown sampler 'Nobody' .*MODULE:CLASS names one of yours"),
    ],
)
def test_what_cannot_be_a_sampler_is_refused_before_anything_is_written(name, message, sink):
    with pytest.raises(UserError, match=message) as error:
        sampler_name(name)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=re.escape(str(error.value))):
        evolve(EvolutionConfig(env_id="CartPole-v1", sampler=name), sink)
    assert not Path("studies.db").exists()


@pytest.mark.parametrize("far", [2, 0, float("nan")])
def test_a_number_out_of_range_is_refused(far, monkeypatch):
    study = optuna.create_study(sampler=make_sampler("my_sampler:Beyond", SPACE, 0))
    monkeypatch.setattr("my_sampler.FAR", far)
    with pytest.raises(UserError, match=r"my_sampler:Beyond proposed sr = .*, which is not in"):
        study.ask(SPACE)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"sr": 200.0}, r"Together proposed sr = 200\.0, which is not in FloatDistribution"),
        ({"sr": float("nan")}, "Together proposed sr = nan, which is not in"),
        ({"sr": "x"}, "Together proposed sr = x, which is not in"),
        ({"sr": None}, "Together proposed sr = None, which is not in"),
        (None, "Together proposed None, where values of sr were asked for"),
        ({"gamma": 0.5}, r"Together proposed {'gamma': 0\.5}, where values of sr were asked for"),
    ],
)
def test_what_a_sampler_proposes_together_is_looked_at(found, said, monkeypatch):
    study = optuna.create_study(sampler=make_sampler("my_sampler:Together", SPACE, 0))
    monkeypatch.setattr("my_sampler.FAR", found)
    with pytest.raises(UserError, match=said):
        study.ask(SPACE)


@pytest.mark.parametrize("value", [0.5, 1e-4, 1e2 * (1 + 1e-15), 1e-4 * (1 - 1e-15)])
def test_rounding_takes_no_number_out_of_its_range(value, monkeypatch):
    study = optuna.create_study(sampler=make_sampler("my_sampler:Together", SPACE, 0))
    monkeypatch.setattr("my_sampler.FAR", {"sr": value})
    assert study.ask(SPACE).params["sr"] == min(max(value, 1e-4), 1e2)


def test_what_a_sampler_raises_is_said_in_one_line():
    """Optuna's search of a grid needs steps, which these ranges have not."""
    name = "optuna.samplers:BruteForceSampler"
    study = optuna.create_study(sampler=make_sampler(name, SPACE, 0))
    with pytest.raises(UserError, match=rf"^the sampler {name} failed to propose: ValueError: .*"):
        study.ask(SPACE)


def test_generations_are_as_large_as_those_of_other_samplers():
    name = "my_sampler:NearTheBest"
    assert generation_size(name, SPACE) == generation_size("Random", SPACE) == 7
    assert generation_size(name, SPACE, 2) == 2
    with pytest.raises(UserError, match="--popsize must be at least 1 with my_sampler:NearTheBest"):
        generation_size(name, SPACE, 0)
    with pytest.raises(UserError, match="cannot start from another study"):
        make_sampler(name, SPACE, 0, start={})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_sampler:NearTheBest", "optuna.samplers:NSGAIISampler"])
def test_a_study_stores_it_and_goes_on(name, told, sink):
    flags = EvolutionConfig(
        env_id="CartPole-v1", sampler=name, nb_trials=8, popsize=4, nb_seeds=1, workers=1
    )
    assert evolve(flags, sink) == 0
    assert f"{name} over sr, lr, generations of 4" in str(sink)
    whole = Study(flags.storage, "CartPole-v1_main_300k_steps")
    assert whole.config.sampler == name
    again = replace(flags, h_test="again")
    assert evolve(replace(again, nb_trials=5), sink) == 0
    assert evolve(again, sink) == 0
    resumed = Study(flags.storage, "CartPole-v1_again_300k_steps")
    found = [t.params for t in resumed.trials()]
    # The first run ended within a generation.
    assert found[:5] == [t.params for t in whole.trials()][:5]
    assert len(found) == 8
    assert len({tuple(p.values()) for p in found}) == 8
    with pytest.raises(UserError, match="exists with another configuration: sampler is"):
        evolve(replace(flags, sampler="Random"), sink)
    with pytest.raises(UserError, match=f"--restarts none would change nothing: .* not for {name}"):
        evolve(replace(flags, h_test="idle", restarts="none"), sink)
    with pytest.raises(UserError, match="--warm_start works only with --sampler Cmaes"):
        evolve(replace(flags, h_test="warm", warm_start=whole.name), sink)
