"""Every script on every environment of `peculiar_environments`: served, or refused in one line."""

from pathlib import Path

import pytest
from conftest import STORAGE
from peculiar_environments import EXPECTED

from erl.errors import UserError
from erl.experiments.comparison import (
    ComparisonConfig,
    GeneralizationComparisonConfig,
    compare,
)
from erl.experiments.evolution import EvolutionConfig, GeneralizationConfig, evolve
from erl.experiments.single import SingleConfig, run
from erl.studies.study import Study
from erl.studies.trials import lifetime_records

FILE = "n_steps: 16\nbatch_size: 8\nn_epochs: 1\npolicy_kwargs: {net_arch: [8]}\n"
COMMON = {"storage": STORAGE, "workers": 1}
TRAIN = {**COMMON, "learner": "PPO", "learner_config": "small.yaml", "ep_eval": 1}
EVOLVE = {**TRAIN, "training_steps": 32, "nb_trials": 1, "nb_seeds": 1, "units": 5}
# The LSTM of sb3-contrib does not train MultiBinary actions.
ARMS = "PPO,RES_PPO_0.0003,STACK_PPO,NOREC_RES_PPO_0.0003"


def env_id(name):
    return f"peculiar_environments:{name}-v0"


def returns(study):
    """Of each lifetime's final policy, or why it failed."""
    found = Study(STORAGE, study)
    return [
        record.final_returns or trial.system_attrs.get("error")
        for trial in found.trials()
        for record in lifetime_records(trial).values()
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("name", [n for n, e in EXPECTED.items() if not e.refused])
def test_an_evolution_its_test_and_one_learner(name, sink):
    Path("small.yaml").write_text(FILE)
    fails = EXPECTED[name].fails
    flags = EvolutionConfig(env_id=env_id(name), fitness="final_eval", **EVOLVE)
    evolved = f"{env_id(name)}_main_0.032k_steps"
    single = SingleConfig(env_id=env_id(name), steps=32, **TRAIN)
    if fails:
        assert evolve(flags, sink) == 1
        assert run(single, sink) == 1
        errors = [t.system_attrs["error"]["reason"] for t in Study(STORAGE, evolved).trials()]
        with pytest.raises(RuntimeError, match=fails):
            raise RuntimeError(*errors)
        return
    assert evolve(flags, sink) == 0
    assert run(single, sink) == 0
    test = {"training_steps": 32, "nb_seeds": 1, **COMMON}
    assert compare(ComparisonConfig(study=evolved, arms=ARMS, **test), sink) == 0
    assert returns(evolved) == [(5.0,)]
    assert returns(f"{env_id(name)}_PPO_single_0.032k_steps") == [(5.0,)]
    assert returns(f"{evolved}_trial_0_test_0.032k_steps") == [(5.0,)] * 4


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("name", ["ShiftedAction", "TupleObservation", "Lists", "CloseRaises"])
def test_a_set_of_environments_and_its_test(name, sink):
    Path("small.yaml").write_text(FILE)
    Path("sets.yaml").write_text(
        f"sets: {{mine: ['{env_id(name)}']}}\ntarget_returns: {{'{env_id(name)}': 5}}\n"
        f"random_returns: {{'{env_id(name)}': 0}}\n"
    )
    flags = GeneralizationConfig(env_type="mine", sets="sets.yaml", nb_res=1, **EVOLVE)
    assert evolve(flags, sink) == 0
    test = GeneralizationComparisonConfig(
        study="mine_1_main_0.032k_steps",
        env_id=env_id("TupleAsList" if name == "TupleObservation" else "OneByOneBox"),
        training_steps=32,
        nb_seeds=1,
        arms="PPO,RES_PPO_0.0003,RecurrentPPO",
        **COMMON,
    )
    assert compare(test, sink) == 0


@pytest.mark.parametrize("name", [n for n, e in EXPECTED.items() if e.refused])
def test_what_cannot_be_served_is_refused_and_nothing_is_written(name, sink):
    for script, flags in (
        (evolve, EvolutionConfig(env_id=env_id(name), storage=STORAGE)),
        (evolve, GeneralizationConfig(env_ids=env_id(name), nb_res=1, storage=STORAGE)),
        (run, SingleConfig(env_id=env_id(name), learner="PPO", storage=STORAGE)),
    ):
        with pytest.raises(UserError, match=EXPECTED[name].refused) as refusal:
            script(flags, sink)
        assert "\n" not in str(refusal.value)
    assert not list(Path.cwd().iterdir())
