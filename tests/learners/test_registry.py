"""The registry: which implementation trains a learner, and what a study stores of the choice."""

import subprocess
import sys
from dataclasses import replace

import evolved
import pytest

from erl.errors import UserError
from erl.learners import (
    OWN,
    SB3_ALGORITHMS,
    Implementation,
    Outputs,
    canonical_name,
    cores,
    get_learner,
    learner_names,
    resolve_engine,
)
from erl.learners.core.run import warn_of_precision
from erl.lifetimes.living import Cohort, live
from erl.worlds.ledger import Ledger
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task


class Fake:
    """An own implementation of an algorithm that Stable-Baselines3 has too."""

    def check_settings(self, config):
        pass


@pytest.fixture
def td3(monkeypatch):
    monkeypatch.setitem(OWN, "TD3", Implementation(__name__, "Fake", "TD3", cohort=True))


def test_names():
    evolved = ["CEM-RL", "P-CEM-RL", "ACEM-RL", "(1+1)-ES", "AES-RL"]
    assert learner_names() == [*SB3_ALGORITHMS, "ERL-Re2", "DERL", *evolved]
    assert [canonical_name(n) for n in ("erl-re2", "recurrentppo", "who")] == [
        "ERL-Re2",
        "RecurrentPPO",
        "who",
    ]


REPLAYED = {"batch_size": 16, "learning_starts": 50, "buffer_size": 500}
# Settings with which a short lifetime notes all that it can.
SHORT = {
    "ERL-Re2": {
        **REPLAYED,
        "init_steps": 60,
        "time_steps": 5,
        "theta": 0.5,
        "pr": 8,
        "sync_period": 1,
        "frac_frames_train": 0.1,
    },
    "DERL": {**REPLAYED, "hidden": [8, 8], "population_size": 4, "num_episodes_per_iter": 2},
    **{name: evolved.lifetime(name).learner.config for name in evolved.NAMES},
    "ACEM-RL": evolved.lifetime("ACEM-RL", mean_evaluations=1).learner.config,
}


@pytest.mark.parametrize("name", [name for name, own in OWN.items() if not own.cohort])
def test_the_registry_knows_all_that_a_population_notes(name):
    """Learners that are no engine `cohort` are populations."""
    learner, seeds = LearnerSpec(name, SHORT[name]), Seeds.derive(0, "single", 0)
    spec = LifetimeSpec(Task(evolved.REACH), learner, 600, seeds, ep_eval=2)
    (record,) = live(Cohort((spec,)))
    noted = ["generation", "steps", *OWN[name].noted]
    assert {*record.inner["kept"]} == {*noted}
    assert [*record.generations] == noted
    assert replace(record, inner=None).generations == {column: [] for column in noted}


@pytest.mark.parametrize("name", [*SB3_ALGORITHMS, "ERL-Re2", "DERL"])
def test_a_learner_has_the_engines_that_it_says(name):
    for engine, there in (
        ("auto", True),
        ("sb3", name in SB3_ALGORITHMS),
        ("cohort", name in ("PPO", "TD3", "DDPG", "SAC")),
    ):
        if there:
            assert get_learner(name.lower(), engine).name == name
        else:
            with pytest.raises(UserError, match="use --engine auto"):
                get_learner(name, engine)


@pytest.mark.parametrize("name", learner_names())
def test_auto_is_the_cohort_where_a_learner_has_one(name):
    """Whoever writes a specification by hand gets what a new study would get."""
    spec = LearnerSpec(name)
    found = type(get_learner(spec.name, spec.engine))
    assert found.__name__ == (OWN[name].learner if name in OWN else "SB3Learner")
    assert found is type(get_learner(name, resolve_engine(name, spec.engine)))


def test_what_is_unknown():
    with pytest.raises(UserError, match="unknown learner 'PP0'; did you mean PPO"):
        get_learner("PP0")
    with pytest.raises(UserError, match="unknown engine 'sb'; did you mean sb3"):
        get_learner("PPO", "sb")


@pytest.mark.usefixtures("td3")
def test_two_implementations_share_a_name():
    """`auto` is the cohort, in a specification made by hand as in a new study."""
    assert isinstance(get_learner("TD3", "cohort"), Fake)
    assert type(get_learner("TD3", "sb3")).__name__ == "SB3Learner"
    assert isinstance(get_learner("TD3", "auto"), Fake)
    assert resolve_engine("td3", "auto") == "cohort"
    assert learner_names().count("TD3") == 1


def test_what_a_new_study_stores():
    notes = []
    for name, config, engine in (
        ("PPO", {}, "cohort"),
        ("ppo", {"gamma": 0.9}, "cohort"),
        ("PPO", {"gamma": 5}, "cohort"),  # which its check refuses
        ("SAC", {}, "cohort"),
        ("TQC", {}, "sb3"),
        ("ERL-Re2", {}, "auto"),
    ):
        assert resolve_engine(name, "auto", config, notes.append) == engine
    assert notes == []
    assert resolve_engine("PPO", "auto", {"use_sde": True}, notes.append) == "sb3"
    assert notes == [
        "PPO is trained by Stable-Baselines3, one lifetime at a time: the cohort engine of PPO "
        "does not know use_sde=True. Without it lifetimes would train side by side, several times "
        "as fast"
    ]
    for engine in ("cohort", "sb3"):
        assert resolve_engine("PPO", engine, {"use_sde": True}, notes.append) == engine
    assert len(notes) == 1
    with pytest.raises(UserError, match="use --engine sb3"):
        get_learner("PPO", "cohort").check_settings({"use_sde": True})
    get_learner("PPO", "sb3").check_settings({"use_sde": True})


def test_settings_of_the_cohort_alone():
    """Where another setting needs Stable-Baselines3, both are named."""
    config = {"device": "cpu", "normalize": True}
    with pytest.raises(UserError) as error:
        resolve_engine("TD3", "auto", config)
    assert str(error.value) == (
        "TD3's device needs the cohort engine, but the cohort engine of TD3 does not know "
        "normalize=True: leave one of them out"
    )
    for config in ({"device": "cpu"}, {"precision": "bf16"}, {"preset": "aes_td3"}):
        assert resolve_engine("TD3", "auto", config) == "cohort"
        with pytest.raises(UserError, match="needs the cohort engine: use --engine cohort"):
            get_learner("TD3", "sb3").check_settings(config)
    with pytest.raises(UserError, match="DDPG has no setting 'preset'"):
        get_learner("DDPG", "sb3").check_settings({"preset": "aes_td3"})


def test_names_are_known_without_loading_a_learner():
    script = (
        "import sys\nfrom erl.learners import learner_names, canonical_name\n"
        "assert canonical_name('ppo') in learner_names()\n"
        "assert not {'torch', 'stable_baselines3', 'numpy', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


RANDOM = {"precision": "bf16", "learning_starts": 100, "batch_size": 128}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kernel", "tensors", "fp32"])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ERL-Re2", RANDOM | {"init_steps": 100, "time_steps": 5, "buffer_size": 300}),
        ("SAC", RANDOM),
        ("CEM-RL", RANDOM | {"hidden": [8], "learning_starts": 0}),
        ("P-CEM-RL", RANDOM | {"hidden": [8], "learning_starts": 0}),
    ],
)
def test_bfloat16_without_effect_is_said(name, config, way, monkeypatch, caplog):
    monkeypatch.setattr("erl.networks.products.bfloat16_way", lambda device="cpu": way)
    seeds = Seeds.derive(0, "single", 0)
    learner = LearnerSpec(name, config)
    spec = LifetimeSpec(Task("toy_environments:Reach-v0"), learner, 200, seeds)
    (agent,) = get_learner(name).train([spec], [Ledger()], [Outputs()])
    assert not isinstance(agent, Exception)
    assert caplog.text.count("precision=bf16 changes nothing on this processor") == (way == "fp32")


@pytest.mark.parametrize(
    ("way", "batch_size", "said"),
    [
        ("kernel", 100, "too narrow for it, and it has to be at least 128 here"),
        ("kernel", 128, ""),
        ("tensors", 95, "at least 96 here"),
        ("tensors", 100, ""),
        ("fp32", 256, "on this processor"),
    ],
)
def test_minibatches_that_are_too_narrow_for_bfloat16(way, batch_size, said, monkeypatch, caplog):
    monkeypatch.setattr("erl.networks.products.bfloat16_way", lambda device="cpu": way)
    warn_of_precision("fp32", "cpu", batch_size)
    assert not caplog.text
    warn_of_precision("bf16", "cpu", batch_size)
    assert said in caplog.text
    assert len(caplog.messages) == bool(said)


@pytest.mark.parametrize("name", ["ERL-Re2", "DERL", "CEM-RL"])
def test_a_lifetime_keeps_as_many_cores_busy_as_it_has_threads(name):
    task = Task("Pendulum-v1")
    of = [LearnerSpec(name, {"threads": threads}) for threads in (1, 2)]
    specs = [LifetimeSpec(task, learner, 1000, Seeds.published(0)) for learner in of]
    assert [cores(spec) for spec in specs] == [1, 2]
