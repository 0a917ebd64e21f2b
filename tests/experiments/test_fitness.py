"""Hyperparameters in, fitness out, for an optimiser with a loop of its own."""

from pathlib import Path

import pytest
from conftest import InlineExecutor

from erl.errors import UserError
from erl.experiments.evolution import EvolutionConfig, GeneralizationConfig, evolve
from erl.experiments.fitness import Fitness
from erl.experiments.flags import study_name
from erl.studies.study import Study

TOY = "toy_environments:Recall-v0"
SETS = """[sets]
Toys = ["toy_environments:Recall-v0", "toy_environments:Steady-v0"]
[target_returns]
"toy_environments:Recall-v0" = 5
"toy_environments:Steady-v0" = 30
[random_returns]
"toy_environments:Recall-v0" = 1
"toy_environments:Steady-v0" = 2
"""


def small(kind, quick, **more):
    settings = {"training_steps": 64, "nb_trials": 4, "popsize": 4, "nb_seeds": 2, "units": 5}
    return kind(**settings, learner_config=quick, workers=1, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (EvolutionConfig, {"env_id": TOY, "evolve": "learner.gamma=0.5:0.9"}),
        (GeneralizationConfig, {"env_type": "Toys", "sets": "sets.toml"}),
    ],
)
def test_it_is_that_of_an_evolution_s_trials(kind, task, quick, inline, sink):
    Path("sets.toml").write_text(SETS, encoding="utf-8")
    flags = small(kind, quick, **task)
    assert evolve(flags, sink) == 0
    trials = Study(flags.storage, study_name(flags.subject(), "main", 64)).trials()
    Path("studies.db").unlink()
    with Fitness(flags, sink) as fitness:
        assert fitness([t.params for t in trials]) == [t.value for t in trials]
        assert fitness([trials[1].params]) == [trials[1].value]
        assert fitness([]) == []
    assert not Path("studies.db").exists()


def test_points_of_the_unit_cube_are_parameters(quick, inline, sink):
    with Fitness(small(EvolutionConfig, quick, env_id=TOY, evolve="bias=0.1:0.3"), sink) as fitness:
        assert list(fitness.space) == ["sr", "lr", "bias"]
        low, high = (fitness.params([u] * 3) for u in (0, 1))
        assert low == pytest.approx({"sr": 1e-4, "lr": 0.01, "bias": 0.1})
        assert high == pytest.approx({"sr": 1e2, "lr": 1.0, "bias": 0.3})
        assert fitness.params([0.5] * 3) == pytest.approx({"sr": 0.1, "lr": 0.1, "bias": 0.2})
        assert fitness.params([-1, 2, 0.5])["sr"] == 1e-4
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            fitness.params([0.5])


def test_a_trial_that_fails_has_none_and_a_line(quick, inline, sink, monkeypatch):
    flags = small(EvolutionConfig, quick, env_id="toy_environments:Lottery-v0")
    with Fitness(flags, sink) as fitness:
        good = {"sr": 0.9, "lr": 0.5}
        monkeypatch.setattr("toy_environments.Lottery.step", lambda *_: 1 / 0)
        assert fitness([good]) == [None]
    assert "sr 0.9, lr 0.5 failed: lifetime 0: " in str(sink)
    assert "division by zero" in str(sink)


def test_what_cannot_be_is_refused(quick, inline, sink):
    with pytest.raises(UserError, match="--evolve does not know 'nothing'"):
        Fitness(small(EvolutionConfig, quick, env_id=TOY, evolve="nothing"), sink)
    with pytest.raises(UserError, match="Nowhere"):
        Fitness(small(EvolutionConfig, quick, env_id="Nowhere-v0"), sink)
    with Fitness(small(EvolutionConfig, quick, env_id=TOY), sink) as fitness:
        for params in ({"sr": 0.9}, {"sr": 0.9, "lr": 0.5, "iss": 1.0}):
            with pytest.raises(UserError, match="the searched parameters are sr, lr, not sr"):
                fitness([params])
        with pytest.raises(UserError, match="a population is a list of parameters by name"):
            fitness({"sr": 1.0, "lr": 0.5})


def test_its_workers_end_with_the_block(quick, monkeypatch, sink):
    closed = []

    class Closing(InlineExecutor):
        def close(self):
            closed.append(True)

    monkeypatch.setattr("erl.executors.local.LocalExecutor", Closing)
    with pytest.raises(KeyError), Fitness(small(EvolutionConfig, quick, env_id=TOY), sink):
        raise KeyError
    assert closed == [True]
