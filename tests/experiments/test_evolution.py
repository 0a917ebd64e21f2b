import dataclasses
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import pytest
from conftest import STORAGE, InlineExecutor, Lines
from optuna.trial import TrialState

from erl.errors import UserError
from erl.executors.jobs import WorkerLost
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import (
    EvolutionConfig,
    GeneralizationConfig,
    MultiEvolutionConfig,
    _say_winner,
    evolve,
)
from erl.experiments.evolution_study import lifetimes, study_config
from erl.experiments.tested import load_best
from erl.learners import get_learner
from erl.lifetimes.living import COLUMNS, Cohort
from erl.search.space import search_space
from erl.studies.distributions import distributions, sampler_of
from erl.studies.storage import DEFAULT_STORAGE
from erl.studies.study import Study
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

ROOT = Path(__file__).parents[2]
ENV = "toy_environments:Recall-v0"


def make(quick, **options):
    settings = {
        "storage": STORAGE,
        "env_id": ENV,
        "training_steps": 64,
        "nb_trials": 6,
        "nb_seeds": 2,
        "units": 5,
        "popsize": 4,
        "learner_config": quick,
        "engine": "sb3",
        "workers": 1,
    }
    return EvolutionConfig(**(settings | options))


def study_of(config):
    thousands = (
        f"{config.training_steps / 1000:g}"
        if config.training_steps < 1000
        else config.training_steps // 1000
    )
    return Study(config.storage, f"{config.env_id}_{config.h_test}_{thousands}k_steps")


def found(config):
    """What must not depend on machine, workers or interruptions: parameters and fitness of every
    trial, in order.
    """
    return [(t.number, t.state.name, t.params, t.value) for t in study_of(config).trials()]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["Random", "Tpe", "Cmaes"])
def test_same_seed_same_evolution(sampler, quick, told, sink):
    first, again, other = (
        make(quick, sampler=sampler, h_test=name, seed=seed, nb_trials=9, nb_seeds=1)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    for config in (first, again, other):
        assert evolve(config, sink) == 0
    assert found(first) == found(again)
    assert found(first) != found(other)
    assert len({str(params) for _, _, params, _ in found(first)}) == 9


@pytest.mark.slow
def test_two_workers_and_another_process_find_what_one_worker_finds(
    quick, inline, sink, monkeypatch, lasting
):
    one, two, apart = (make(quick, nb_seeds=1, h_test=name) for name in ("one", "two", "apart"))
    assert evolve(one, sink) == 0
    monkeypatch.setattr("erl.executors.local.LocalExecutor", lasting)
    assert evolve(dataclasses.replace(two, workers=2), sink) == 0
    program = (
        "import erl.executors.local\nfrom conftest import InlineExecutor, Lines\n"
        "from erl.experiments.evolution import EvolutionConfig, evolve\n"
        "erl.executors.local.LocalExecutor = InlineExecutor\n"
        f"evolve(EvolutionConfig(**{dataclasses.asdict(apart)}), Lines())"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert found(one) == found(two) == found(apart)
    assert [state for _, state, _, _ in found(one)] == ["COMPLETE"] * 6


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["Random", "Cmaes"])
def test_stopping_between_and_within_generations_changes_nothing(sampler, quick, told, sink):
    whole = make(quick, sampler=sampler, nb_trials=12, nb_seeds=1)
    pieces = dataclasses.replace(whole, h_test="pieces")
    evolve(whole, sink)
    for n in (2, 3, 6, 12):
        evolve(dataclasses.replace(pieces, nb_trials=n), sink)
        assert len(found(pieces)) == n
    assert found(whole) == found(pieces)
    generations = [t.user_attrs["generation"] for t in study_of(pieces).trials()]
    assert generations == [0] * 4 + [1] * 4 + [2] * 4


def test_an_end_while_a_generation_is_proposed_changes_nothing(quick, told, sink, monkeypatch):
    whole, torn = (make(quick, nb_seeds=1, h_test=name) for name in ("whole", "torn"))
    evolve(whole, sink)
    calls, sample = [], Study._sample

    def dies(self, *rest):
        calls.append(1)
        if len(calls) == 3:
            raise SystemError("the end")
        return sample(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "_sample", dies)
        patch.setattr(Study, "_release", lambda *_: None)
        with pytest.raises(SystemError):
            evolve(torn, sink)
    for trial in study_of(torn).trials("RUNNING"):  # as if that had been another process
        gone = {**trial.system_attrs["owner"], "started": 1.0}
        study_of(torn).storage.set_trial_system_attr(trial._trial_id, "owner", gone)
    evolve(torn, sink)
    assert found(torn) == found(whole)


def test_input_scaling_is_searched_if_told_so(quick, told, sink):
    config = make(quick, fixed_iss=False, min_iss=2.0, max_iss=3.0, nb_trials=2)
    assert evolve(config, sink) == 0
    first, second = [t.params["iss"] for t in study_of(config).trials()]
    assert 2.0 <= first <= 3.0
    assert 2.0 <= second <= 3.0
    assert first != second


def test_bounds_may_coincide(quick, told, sink):
    config = make(quick, min_sr=1.0, max_sr=1.0, min_lr=0.5, max_lr=0.5, nb_trials=2)
    assert evolve(config, sink) == 0
    assert [t.params for t in study_of(config).trials()] == [{"sr": 1.0, "lr": 0.5}] * 2
    assert "every range is a single value: nothing is searched" in str(sink)


def test_the_file_of_the_study_is_named_whatever_the_driver(quick, told, sink):
    evolve(make(quick, nb_trials=1, storage="sqlite+pysqlite:///q.db"), sink)
    file = Path("q.db").absolute()
    assert f"study database:  sqlite+pysqlite:///q.db ({file})" in sink.lines


def test_without_reservoirs_each_script_goes_on_with_the_others_study(quick, inline, sink):
    """Their defaults of the input scaling differ, which means nothing there."""
    searched = {"nb_res": 0, "evolve": "learner.gamma=0.9:0.99", "env_id": "CartPole-v1"}
    flags = searched | {"training_steps": 64, "nb_seeds": 1, "workers": 1, "storage": STORAGE}
    flags |= {"learner_config": quick}
    assert evolve(EvolutionConfig(nb_trials=1, **flags), sink) == 0
    assert evolve(MultiEvolutionConfig(nb_trials=2, **flags), sink) == 0
    assert Study(STORAGE, "CartPole-v1_0_main_0.064k_steps").finished() == 2


def test_a_dry_run_of_what_is_complete_says_so(quick, told, sink):
    config = make(quick, nb_trials=2)
    evolve(config, sink)
    del sink.lines[:]
    for nb_trials in (2, 1):
        assert evolve(replace(config, nb_trials=nb_trials, dry_run=True), sink) == 0
        assert sink.lines[-1] == "2 of 2 trials are there; raise --nb_trials above 2 for more"


def test_trials_that_have_not_ended_are_told_apart(quick, told, sink):
    config = make(quick, nb_trials=2)
    evolve(config, sink)
    study_of(config).optuna.enqueue_trial({"sr": 1.0, "lr": 0.5})
    del sink.lines[:]
    assert evolve(config, sink) == 0
    assert any(re.match(r"best trial: +\d of 2 \(1 more have not", line) for line in sink.lines)


@pytest.mark.parametrize("ends", ["COMPLETE", "FAIL", "killed"])
def test_trials_that_another_process_runs_are_waited_for(ends, quick, told, sink, monkeypatch):
    config = make(quick, nb_trials=4)
    assert evolve(config, sink) == 0
    sink.lines.clear()
    pauses = []
    with study_of(config) as other:
        space = distributions(search_space(other.config))
        sampler = sampler_of(other.config, space)
        (trial,) = other.propose(1, sampler, space, lambda params: [], 1, 5)

        def pause(self):
            pauses.append(self)
            if len(pauses) < 3:
                return
            if ends == "killed":
                other.lease.stop()
            else:
                value = 1.0 if ends == "COMPLETE" else None
                other.store_end(trial.trial_id, ends, value, ("broken", None))

        monkeypatch.setattr(Study, "pause", pause)
        assert evolve(make(quick, nb_trials=5), sink) == 0
    assert len(pauses) == 3
    assert "waiting for 1 trial that other processes run; Ctrl-C does not stop them" in sink.lines
    assert study_of(config).finished() == 5
    assert "have not ended" not in str(sink)
    assert any(line.startswith("test them:") for line in sink.lines)


def test_a_generation_that_another_process_is_proposing_is_not_filled_up(
    quick, told, sink, monkeypatch
):
    config = make(quick, nb_trials=4)
    evolve(config, sink)
    with study_of(config) as other:
        space = distributions(search_space(other.config))
        sampler = sampler_of(other.config, space)
        (trial,) = other.propose(1, sampler, space, lambda params: [], 1, 12)
        end = lambda _: other.store_end(trial.trial_id, "COMPLETE", 1.0, None)  # noqa: E731
        monkeypatch.setattr(Study, "pause", end)
        assert evolve(make(quick, nb_trials=9), sink) == 0
    generations = [t.user_attrs["generation"] for t in study_of(config).trials()]
    assert generations == [0] * 4 + [1] + [2] * 4


def test_own_trials_that_all_failed_are_no_success_beside_a_longer_run(quick, told, sink):
    told.error = staticmethod(lambda spec: "broken")
    config = make(quick, nb_trials=2)
    assert evolve(config, sink) == 1
    with study_of(config) as other:
        failed = other.storage.create_new_trial(other._id)
        other._held.add(failed)
        other.storage.set_trial_system_attr(failed, "owner", other.lease.owner)
        sink.lines.clear()
        assert evolve(config, sink) == 1
    assert "are running in other" not in str(sink)
    assert "1 trial of this study is running in other processes, of a run with a larger" in str(
        sink
    )
    assert "no trial succeeded" in sink.lines
    assert "test them:" not in str(sink)


def test_where_no_trial_succeeded_the_next_command_names_the_storage(quick, told, sink):
    told.error = staticmethod(lambda spec: "broken")
    config = make(quick, nb_trials=1, storage="sqlite:///other.db")
    evolve(config, sink)
    sink.lines.clear()
    assert _say_winner(config, study_of(config), 0, None, sink) is None
    said, shown = sink.lines
    assert said == "no trial succeeded"
    assert shown.endswith("--trial 0 --storage sqlite:///other.db")


def test_published_code_uses_its_seeds(quick, told, sink):
    config = make(quick, published_code=True, nb_trials=1, nb_seeds=3)
    evolve(config, sink)
    records = [study_of(config).trials()[0].system_attrs[f"lifetime:{i}"] for i in range(3)]
    assert [set(r["spec"]["seeds"].values()) for r in records] == [{0}, {1}, {2}]
    assert not any(r["spec"]["context"]["feed_action"] for r in records)
    reservoirs = [r["spec"]["context"]["reservoirs"][0] for r in records]
    assert {(r["bias"], r["bias_connectivity"]) for r in reservoirs} == {(1.0, 0.1)}


def test_published_code_has_the_discount_of_erl_re2(sink):
    for published, gamma in ((True, 0.99), (False, 0.9999)):
        flags = EvolutionConfig(
            env_id="Swimmer-v4", learner="ERL-Re2", published_code=published, nb_trials=1
        )
        spec, *_ = lifetimes(study_config(flags, sink), {"sr": 1.0, "lr": 0.5})
        assert get_learner("ERL-Re2").settings_of(spec).gamma == gamma


def test_published_code_has_its_settings_in_evolutions_and_tests(told, sink):
    flags = EvolutionConfig(
        env_id="Swimmer-v4", learner="AES-RL", published_code=True, nb_trials=1, nb_seeds=1
    )
    published = {"gamma": 0.99, "charge_mean": False}
    assert study_config(flags, sink).learner_config.items() >= published.items()
    plain = dataclasses.replace(flags, published_code=False)
    assert "charge_mean" not in study_config(plain, sink).learner_config
    assert evolve(plain, sink) == 0
    test = ComparisonConfig(env_id="Swimmer-v4", HP_training_steps=plain.training_steps)
    assert "charge_mean" not in load_best(test, sink).evolution.learner_config
    test = dataclasses.replace(test, published_code=True)
    assert load_best(test, sink).evolution.learner_config.items() >= published.items()


def test_a_test_of_an_evolution_that_was_made_anew_is_not_its_test(quick, told, sink):
    flags = make(quick, nb_trials=1, nb_seeds=1, sampler="Random")
    assert evolve(flags, sink) == 0
    test = ComparisonConfig(env_id=ENV, HP_training_steps=64, training_steps=64, nb_seeds=1)
    test = replace(test, storage=STORAGE, arms="RES_PPO_0.0003", workers=1)
    assert compare(test, sink) == 0
    study_of(flags).storage.delete_study(study_of(flags)._id)
    assert evolve(dataclasses.replace(flags, bias=0.1), sink) == 0
    with pytest.raises(UserError, match=r"evolution\.bias is 0\.0 there and 0\.1 here"):
        compare(test, sink)


def test_a_study_keeps_the_bias_that_it_had(quick, told, sink):
    flags = make(quick, published_code=True, nb_trials=1, nb_seeds=1)
    evolve(dataclasses.replace(flags, bias=0.0), sink)
    assert evolve(dataclasses.replace(flags, nb_trials=2), sink) == 0
    for trial in study_of(flags).trials():
        [reservoir] = trial.system_attrs["lifetime:0"]["spec"]["context"]["reservoirs"]
        assert reservoir["bias"] == 0.0
    with pytest.raises(UserError, match=r"bias is 0\.0 there and 1\.0 here"):
        evolve(dataclasses.replace(flags, bias=1.0), sink)


def test_the_reservoir_persists_if_told_so(quick, inline, sink):
    config = make(quick, reset_res=False, fitness="final_eval", nb_trials=1, nb_seeds=1)
    evolve(config, sink)
    record = study_of(config).trials()[0].system_attrs["lifetime:0"]
    assert record["spec"]["context"]["reset_res"] is False
    assert len(record["final_returns"]) == 10


def test_no_finished_episode_fails_the_trial_and_few_are_noted(quick, inline, sink):
    none = make(quick, env_id="toy_environments:Endless-v0", nb_trials=1)
    assert evolve(none, sink) == 1
    assert (
        "no episode was finished within 64 steps"
        in study_of(none).trials()[0].system_attrs["error"]["reason"]
    )
    few = make(quick, ep_eval=20, nb_trials=1)
    assert evolve(few, sink) == 0
    assert (
        study_of(few)
        .trials()[0]
        .system_attrs["lifetime:0"]["note"]
        .startswith("only 16 of 20 episodes")
    )
    assert "only 16 of 20 episodes" in str(sink)


@pytest.mark.parametrize("fault", ["raise", "reward", "observation", "exit"])
def test_faulty_environments_fail_their_trials(fault, quick, inline, sink):
    config = make(quick, env_id=f"toy_environments:Faulty-{fault}-v0", nb_trials=2, popsize=None)
    assert evolve(config, sink) == 1
    trials = study_of(config).trials()
    assert len(trials) == 2
    for trial in trials:
        assert trial.state == TrialState.FAIL
        assert "51" in trial.system_attrs["error"]["reason"]
        assert "Traceback" in trial.system_attrs["error"]["traceback"]


# Flags that nothing would come of: with what the line begins, and why.
IDLE = [
    ({"min_iss": 0.5}, "--min_iss 0.5", "the input scaling is 1, unless --fixed_iss False"),
    ({"max_iss": 2.0}, "--max_iss 2.0", "the input scaling is 1, unless --fixed_iss False"),
    ({"evolve": "bias,units=20:50"}, "--units 5", "--evolve units searches them"),
    ({"sampler": "tpe", "restarts": "none"}, "--restarts none", "it is for --sampler Cmaes"),
    ({"use_pruned": False}, "--use_pruned False", "nothing is pruned without --pruner"),
    (
        {"use_pruned": False, "pruner": "median", "sampler": "Random"},
        "--use_pruned False",
        "it is for --sampler Cmaes, not for Random",
    ),
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "Cmes"}, "Cmaes"),
        ({"learner": "PPPO"}, "PPO"),
        ({"learner": "SAC"}, "SAC does not take the Discrete actions"),
        ({"engine": "warp"}, "auto, cohort, sb3"),
        ({"fitness": "best"}, "training, final_eval"),
        *(({"popsize": size}, "at least 4 with Cmaes") for size in (0, 1, 3)),
        ({"popsize": 0, "sampler": "Tpe"}, "at least 1 with Tpe"),
        ({"units": 2}, "at least 3 units"),
        ({"min_sr": 2.0, "max_sr": 1.0}, "--min_sr 2.0 is greater than --max_sr 1.0"),
        ({"min_sr": float("nan")}, "above 0"),
        ({"max_sr": float("inf")}, "above 0"),
        ({"max_lr": 1.5}, "--max_lr must be at most 1"),
        ({"h_test": "../../x"}, "not a valid name"),
        ({"h_test": ""}, "not a valid name"),
        ({"h_test": "a/b"}, "not a valid name"),
        ({"h_test": "a\n"}, "not a valid name"),
        ({"h_test": "-x"}, "not a valid name.* first a letter, a digit or _"),
        ({"h_test": "a..b"}, "not a valid name.* no two dots side by side"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"learner_config": "missing.yaml"}, "cannot read"),
        *(
            ({n: v}, f"--{n} must be at least 1")
            for n in ("training_steps", "nb_trials", "nb_seeds", "ep_eval")
            for v in (0, -3)
        ),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"units": 100, "evolve": "units=20:1000000000000"}, "does not fit into memory"),
        ({"evolve": "learner.n_steps=1e1:1e2:log"}, "n_steps must be a whole number.* digits"),
        *((flags, f"{said} would change nothing: {why}") for flags, said, why in IDLE),
    ],
)
def test_bad_input_is_refused_and_nothing_written(options, message, quick, inline, sink):
    before = sorted(Path().iterdir())
    with pytest.raises(UserError, match=message):
        evolve(make(quick, **options), sink)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("kind", [MultiEvolutionConfig, GeneralizationConfig])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fixed_iss": True, "min_iss": 0.5}, "--min_iss 0.5 .* --fixed_iss False"),
        ({"evolve": "units=5:9", "units": 50}, "--units 50 .* --evolve units"),
    ],
)
def test_they_are_refused_for_several_reservoirs_too(options, said, kind, quick, inline, sink):
    where = {"env_ids": "Swimmer-v4"} if kind is GeneralizationConfig else {"env_id": ENV}
    small = {"training_steps": 64, "nb_trials": 1, "nb_seeds": 1, "learner_config": quick}
    before = sorted(Path().iterdir())
    with pytest.raises(UserError, match=said):
        evolve(kind(**where, **small, **options), sink)
    assert sorted(Path().iterdir()) == before


def test_flags_that_repeat_a_default_are_no_fault(quick, told, sink):
    same = {"min_iss": 0.1, "max_iss": 10.0, "restarts": "ipop", "use_pruned": True, "units": 100}
    flags = make(quick, evolve="units=5:9", sampler="Random", nb_trials=1, **same)
    assert evolve(flags, sink) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("options", "said", "why"), IDLE)
def test_a_study_that_has_flags_which_change_nothing_goes_on(
    options, said, why, quick, told, sink, monkeypatch
):
    flags = make(quick, **options)
    with monkeypatch.context() as patch:
        patch.setattr("erl.experiments.evolution_study._refuse_idle", lambda *_: None)  # as it was
        assert evolve(dataclasses.replace(flags, nb_trials=4), sink) == 0
    assert evolve(flags, sink) == 0
    assert len(found(flags)) == 6


# -- workers that die --


def lifetime(env_id=ENV, steps=64):
    settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
    return LifetimeSpec(Task(env_id), LearnerSpec("PPO", settings, "sb3"), steps, Seeds(1, 2, 3, 4))


def job(**options):
    return Cohort((lifetime(**options),)).job()


@pytest.mark.slow
def test_a_lifetime_that_kills_its_worker_fails_alone(lasting):
    executor = lasting(2, max_retries=1)
    jobs = [job(env_id="toy_environments:Faulty-die-v0"), *[job()] * 4]
    try:
        results = {r.index: r for r in executor.run(jobs, COLUMNS, lambda board: None)}
    finally:
        executor.close()
    assert isinstance(results[0].error, WorkerLost)
    assert "died 2 times" in str(results[0].error)
    assert [results[i].value[0].steps for i in range(1, 5)] == [64] * 4


@pytest.mark.slow
def test_a_killed_workers_lifetime_is_lived_again_by_another(lasting):
    executor = lasting(1)
    ticks, killed = [], []

    def tick(board):
        ticks.append(int(board["steps"].sum()))
        if not killed and ticks[-1] > 256:
            killed.extend(executor._pools[0]._processes)
            os.kill(killed[0], signal.SIGKILL)

    try:
        results = list(executor.run([job(steps=6400)], COLUMNS, tick, every=0.02))
        assert len(killed) == 1
        assert results[0].value[0].steps == 6400
        for process in executor._pools[0]._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        again = list(executor.run([job()], COLUMNS, lambda board: None))
        assert again[0].value[0].steps == 64
    finally:
        executor.close()


# -- interruptions --


def to_be_ended(quick, **options):
    """An evolution in the usual storage. Ten of its twelve lifetimes are to come when a trial has
    ended, and the command is ended among them.
    """
    held = {"env_id": "toy_environments:Held-v0", "training_steps": 192}
    return make(quick, storage=DEFAULT_STORAGE, **held, **options)


def start(config):
    """The script in a process group of its own, as a terminal starts it."""
    flags = [f"--{k}={v}" for k, v in dataclasses.asdict(config).items() if v is not None]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "evolve_res.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_a_trial(process):
    """Until the command says that a trial has ended: its lifetimes are stored. From now on every
    lifetime takes more than half a minute.
    """
    for line in iter(process.stdout.readline, ""):
        if line.startswith("trial "):
            Path("hold").touch()
            return
    raise AssertionError(process.communicate()[1])


def family(process):
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def all_gone(processes, seconds=10.0):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the evolution finds that the next tests end in the middle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("undisturbed"))
        patch.setattr("erl.executors.local.LocalExecutor", InlineExecutor)
        Path("quick.yaml").write_text("n_steps: 32\nbatch_size: 32\nn_epochs: 1\n")
        config = to_be_ended("quick.yaml")
        assert evolve(config, Lines()) == 0
        return found(config)


@pytest.mark.slow
def test_after_a_kill_the_same_command_ends_with_the_same_trials(quick, inline, sink, undisturbed):
    config = to_be_ended(quick)
    process = start(config)
    wait_for_a_trial(process)
    processes = family(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert all_gone(processes)  # workers do not outlive their coordinator
    before = {
        (t.number, k): v
        for t in study_of(config).trials()
        for k, v in t.system_attrs.items()
        if k.startswith("lifetime:")
    }
    assert 2 <= len(before) < 12
    Path("hold").unlink()
    assert evolve(config, sink) == 0
    assert found(config) == undisturbed
    after = {(t.number, k): v for t in study_of(config).trials() for k, v in t.system_attrs.items()}
    assert {
        k: after[k] for k in before
    } == before  # wall-clock times and all: they were not trained again


@pytest.mark.slow
def test_ctrl_c_ends_within_seconds_and_the_same_command_goes_on(quick, inline, sink, undisturbed):
    config = to_be_ended(quick, workers=2)
    process = start(config)
    wait_for_a_trial(process)
    processes = family(process)
    os.killpg(process.pid, signal.SIGINT)
    # Those that are left would take two workers minutes; a rollout takes seconds.
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert err == ""
    done = len(study_of(config).trials("COMPLETE"))
    assert 1 <= done < 6
    assert f"interrupted: {done} of 6 trials are finished and stored in sqlite:///studies.db" in out
    assert not study_of(config).trials("RUNNING")
    assert all_gone(processes)
    Path("hold").unlink()
    assert evolve(config, sink) == 0
    assert found(config) == undisturbed


def test_a_storage_that_fails_in_mid_run_is_one_line_and_the_same_command_goes_on(
    quick, told, sink, monkeypatch
):
    config = make(quick)

    def fail(self, trial_id, index, record):
        raise optuna.exceptions.StorageInternalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Study, "store_record", fail)
        with pytest.raises(UserError, match=r"disk is full.*run the same command again"):
            evolve(config, sink)
    assert evolve(config, sink) == 0
    assert [t.state.name for t in study_of(config).trials()] == ["COMPLETE"] * 6


@pytest.mark.parametrize(
    "flag",
    [
        {"checkpoint_minutes": float("nan")},
        {"checkpoint_minutes": -1.0},
        {"runs": ""},
        {"runs": "/proc/x"},
    ],
)
def test_folders_and_intervals_that_cannot_be(flag, quick):
    with pytest.raises(UserError):
        make(quick, **flag)


def test_a_study_that_goes_on_with_other_code_says_so(quick, told, sink, monkeypatch):
    flags = make(quick, nb_trials=1, nb_seeds=1, sampler="Random")
    more = dataclasses.replace(flags, nb_trials=2)
    assert evolve(flags, sink) == 0
    assert study_of(flags).optuna.user_attrs["code"].keys() == {"toy_environments"}
    assert evolve(flags, sink) == 0
    assert "other code" not in str(sink)
    study_of(flags).optuna.set_user_attr("code", {"toy_environments": "before"})
    study_of(flags).optuna.set_user_attr("versions", {"torch": "1.0", "python": "2"})
    assert evolve(more, sink) == 0
    said = "warning: this study was begun with other code (torch, python, toy_environments): its "
    assert said + "results are of both" in sink.lines
