"""What a command says before it starts, the time that it says is left, and its end at Ctrl-C."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from conftest import InlineExecutor

from erl.errors import UserError
from erl.executors.jobs import HERE, Result, new_rows
from erl.experiments.campaign import Progress, checkpoint_path
from erl.experiments.comparison import ComparisonConfig, compare
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.evolution_study import lifetimes
from erl.experiments.forecast import (
    ENDED,
    GIVEN_UP,
    GIVEN_UP_ASKED,
    Measured,
    Outlook,
    Pace,
    announce,
    cautions,
    check_at_once,
    learning_starts,
    measured_speed,
    pace_of,
    rollout_of,
    updates_of,
)
from erl.experiments.single import SingleConfig, run
from erl.learners.core import checkpoints
from erl.learners.core.checkpoints import checkpoint_files, checkpoint_steps
from erl.learners.core.replay import ReplayBuffer
from erl.lifetimes.record import LifetimeRecord
from erl.studies.study import Study
from erl.studies.trials import lifetime_records
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

TOY = "toy_environments:Recall-v0"
REACH = "toy_environments:Reach-v0"
RE2 = (
    "init_steps=60,learning_starts=50,batch_size=16,pr=8,frac_frames_train=0.1,time_steps=5,"
    "eval_freq=0"
)


def unmeasured(*_):
    """In place of a measurement."""
    return Measured(None, "a reason")


def spec(learner="PPO", steps=10_000, env_id=TOY, fitness="training", **config):
    seeds = Seeds.published(0)
    return LifetimeSpec(Task(env_id), LearnerSpec(learner, config), steps, seeds, fitness=fitness)


@pytest.mark.parametrize("workers", [1, 2])
def test_buffers_that_do_not_fit_together_are_refused_before_anything_is_stored(
    workers, sink, monkeypatch
):
    """28 bytes a transition, with a reservoir more: one of these agents would fit, and three do
    not.
    """
    memory = SimpleNamespace(available=10_000_000, total=10**9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    config = {"env_id": REACH, "learner": "TD3", "steps": 300_000, "workers": workers}
    for dry in (True, False):
        with pytest.raises(UserError, match=r"for 3 agents side by side.*buffer_size=107142 fits"):
            run(SingleConfig(**config, nb_seeds=3, dry_run=dry), sink)
    check_at_once(SingleConfig(**config), Outlook("", [spec("TD3", 300_000, REACH)], 1))
    memory.available = 300_000_000
    settings = {"learner": "TD3", "env_id": REACH, "training_steps": 300_000, "nb_seeds": 3}
    with pytest.raises(UserError, match=r"agents side by side.* fits"):
        evolve(EvolutionConfig(**settings, nb_trials=1, workers=workers), sink)
    assert list(Path.cwd().iterdir()) == []


def test_memory_is_checked_for_as_many_lifetimes_as_run_at_a_time(monkeypatch, sink):
    """A lifetime of AES-RL with processes keeps several cores busy."""
    asked = []
    monkeypatch.setattr("erl.experiments.forecast.check_together", asked.append)
    monkeypatch.setattr("erl.experiments.workers.default_workers", lambda: 16)
    learner = LearnerSpec("AES-RL", {"actor_executor": "processes", "mean_update_param": 1.0})
    specs = [
        LifetimeSpec(Task("Pendulum-v1"), learner, 10**6, Seeds.derive(0, "single", i))
        for i in range(9)
    ]
    for workers, at_once in ((None, 2), (3, 3)):
        flags = SingleConfig(env_id="Pendulum-v1", workers=workers)
        check_at_once(flags, Outlook("", specs, len(specs)))
        assert len(asked.pop()) == at_once


def test_buffers_of_finals_that_do_not_fit_are_refused_before_anything_is_stored(sink, monkeypatch):
    """A generation has four lifetimes, and its finals eight at a time, one for each worker."""
    settings = {"learner": "TD3", "env_id": REACH, "training_steps": 300_000, "nb_seeds": 1}
    flags = EvolutionConfig(**settings, nb_trials=4, popsize=4, finalists=2, workers=8)
    asked = []

    def note(learner, device, *cohorts, **_):
        asked.append([buffer for cohort in cohorts for buffer in cohort])

    with monkeypatch.context() as patch:
        patch.setattr("erl.learners.core.off_policy_training.check_memory", note)
        patch.setattr("erl.experiments.evolution.dry_run", lambda *_: 0)
        evolve(replace(flags, dry_run=True), sink)
    *_, generation, finals = asked
    assert generation * 2 == finals == generation[:1] * 8
    steps, *lengths = generation[0]
    room = 6 * steps * ReplayBuffer.bytes_each(*lengths)
    memory = SimpleNamespace(available=room, total=10**12)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(UserError, match=r"for 8 agents side by side.* fits"):
        evolve(flags, sink)
    assert list(Path.cwd().iterdir()) == []


# -- how much is learned --


@pytest.mark.parametrize(
    ("lifetime", "updates"),
    [
        (spec(), 5),  # rollouts of 2,048 steps
        (spec(n_steps=100), 100),
        (spec(n_steps=100, n_envs=4), 25),
        (spec("A2C"), 2000),
        (spec("SAC", env_id=REACH), 9900),  # from step 100 on
        (spec("SAC", env_id=REACH, train_freq=10), 990),
        (spec("SAC", env_id=REACH, train_freq=10, gradient_steps=-1), 9900),
        (spec("DQN", learning_starts=1000, train_freq=4), 2250),
        (spec("TD3", 20_000, REACH, preset="aes_td3"), None),
        (spec("ERL-Re2", env_id=REACH), None),
    ],
)
def test_updates_of_a_lifetime(lifetime, updates):
    assert updates_of(lifetime) == updates


def test_updates_are_those_that_stable_baselines3_makes():
    from stable_baselines3 import SAC

    lifetime = spec("SAC", 100, REACH, train_freq=7, gradient_steps=2, learning_starts=50)
    model = SAC("MlpPolicy", lifetime.make_env(), **lifetime.learner.config)
    model.learn(100)
    assert abs(updates_of(lifetime) - model._n_updates) <= 2  # those at the edges of a rollout


def test_steps_before_learning():
    assert learning_starts(spec()) == 0
    assert learning_starts(spec("SAC", env_id=REACH)) == 100
    assert learning_starts(spec("TD3", env_id=REACH, preset="aes_td3")) == 10_000
    assert learning_starts(spec("ERL-Re2", env_id=REACH)) == 10_000
    assert learning_starts(spec("ERL-Re2", env_id=REACH, init_steps=60, learning_starts=70)) == 70
    # Each in its own settings, and counted with the episodes of the mean.
    assert learning_starts(spec("CEM-RL", env_id=REACH, order="batched")) == 10_000
    assert learning_starts(spec("AES-RL", env_id=REACH)) == 60_000
    assert learning_starts(spec("AES-RL", env_id=REACH, charge_mean=False)) == 10_000
    assert learning_starts(spec("ACEM-RL", env_id=REACH)) == 10_000
    assert learning_starts(spec("(1+1)-ES", env_id=REACH, mean_evaluations=2)) == 30_000


def test_a_lifetime_of_one_rollout_is_named():
    assert rollout_of(spec()) == 2048
    [note] = cautions(spec(steps=2048))
    assert "one rollout of 2,048 steps: nothing is learned" in note
    assert cautions(spec(steps=2049)) == []
    assert cautions(spec(steps=2048, fitness="final_eval")) == []
    assert cautions(spec("SAC", steps=2048, env_id=REACH)) == []
    # Of a search with few and many steps in a rollout.
    few, many = spec(steps=2048, n_steps=64), spec(steps=2048)
    assert cautions(many, many) == cautions(many)
    assert cautions(many, few)[0].startswith(
        "with some of the searched values, a lifetime of 2,048"
    )
    assert cautions(few, few) == []


# -- before it starts --


class Simulated:
    """Workers at a known speed: each takes 100 steps between two looks, a tenth of a second.

    Args:
        workers: how many.
        monkeypatch: gives the measurement their clock.
        bursts: seconds of a cycle, and those at its end in which no step is taken.
        error: with which each lifetime ends after a second.
        stubborn: whether lifetimes do not ask whether they shall end.
    """

    def __init__(self, workers, monkeypatch, bursts=(1.0, 0.0), error=None, stubborn=False):
        self.stubborn = stubborn
        self.workers, self.now, self.asked = workers, 0.0, []
        (self.cycle, self.pause), self.error = bursts, error
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("erl.experiments.forecast.time", clock)

    def run(self, jobs, columns, tick, every=0.5, on_interrupt=None):
        rows = new_rows(columns, sum(job.rows for job in jobs))
        self.asked.append([job.rows for job in jobs])
        for k in range(10_000):
            self.now = round(self.now + 0.1, 6)
            # Workers start. Those of odd rows are half a cycle behind.
            offsets = self.cycle / 2 * (np.arange(len(rows["steps"])) % 2)
            phases = (k / 10 - 2 + 1e-6 + offsets) % self.cycle
            if k >= 20:
                rows["steps"] += 100 * (phases < self.cycle - self.pause)
            tick(rows)
            if (rows["save"].all() and not self.stubborn) or (self.error and k == 30):
                break
        for i, job in enumerate(jobs):
            yield Result(i, [SimpleNamespace(error=self.error)] * job.rows)


def test_the_speed_is_measured_on_what_would_run_side_by_side(monkeypatch):
    simulated = Simulated(2, monkeypatch)
    measured = measured_speed([spec(steps=10**6)] * 6, simulated)
    assert simulated.asked == [[3, 3]]
    assert measured.speed == pytest.approx(6 * 1000)
    assert simulated.now < 30


@pytest.mark.parametrize("lifetimes", [1, 2])
@pytest.mark.parametrize(
    ("cycle", "pause"), [(0.4, 0.2), (2.0, 1.5), (5.0, 0.6), (6.0, 5.0), (11.0, 10.0), (10.0, 3.0)]
)
def test_the_speed_of_a_learner_that_works_in_bursts(cycle, pause, lifetimes, monkeypatch):
    """It takes steps, and then none while it learns; more lifetimes do so in turns."""
    simulated = Simulated(lifetimes, monkeypatch, (cycle, pause))
    rollouts = spec(steps=10**6, n_steps=round(1000 * (cycle - pause)))
    buffer = spec("ERL-Re2", 10**6, REACH, init_steps=500, learning_starts=500)
    true = lifetimes * 1000 * (1 - pause / cycle)
    for learner in (rollouts, buffer)[: 1 if cycle == 10.0 else 2]:
        measured = measured_speed([learner] * lifetimes, simulated, GIVEN_UP_ASKED)
        assert measured.speed == pytest.approx(true, rel=0.2), measured


def test_a_measurement_lasts_until_a_whole_burst_was_seen_or_says_why_not(monkeypatch, sink):
    lifetime = spec("ERL-Re2", 10**6, REACH, init_steps=500, learning_starts=500)
    outlook = Outlook("1 seed", [lifetime], 1)
    # As often as a second of steps falls into the first four seconds, and where none does.
    for cycle, pause in ((5.0, 4.5), (14.0, 13.0)):
        simulated = Simulated(1, monkeypatch, (cycle, pause))
        announce(outlook, simulated, sink)
        assert re.fullmatch(r"1 seed, 1 worker, about .*", sink.lines.pop())
        assert simulated.now < 2 + GIVEN_UP
    for asked, limit in ((False, "20 s"), (True, "1 min 00 s")):
        simulated = Simulated(1, monkeypatch, (301.0, 300.0))
        announce(outlook, simulated, sink, measure=asked)
        assert sink.lines[0] == "1 seed, 1 worker"
        assert re.fullmatch(
            rf"note: how long it takes could not be measured: ERL-Re2 learns for \d+ s or more "
            rf"without a step, and a measurement ends after {limit}",
            sink.lines.pop(),
        )
        assert simulated.now == pytest.approx(GIVEN_UP_ASKED if asked else GIVEN_UP, abs=3)
        sink.lines.clear()


def test_lifetimes_that_do_not_ask_whether_they_shall_end_are_ended(monkeypatch):
    for stubborn, seconds in ((False, 0.0), (True, ENDED)):
        simulated = Simulated(2, monkeypatch, stubborn=stubborn)
        measured = measured_speed([spec(steps=10**6)] * 2, simulated)
        assert measured.speed == pytest.approx(2 * 1000)
        assert simulated.now == pytest.approx(6.2 + seconds, abs=0.5)


def test_a_measurement_that_comes_to_nothing_is_given_up(monkeypatch):
    simulated = Simulated(1, monkeypatch)
    long = measured_speed([spec(steps=10**7, n_steps=10**6)], simulated)
    assert long.speed == pytest.approx(1000)
    assert simulated.now < 30
    never = spec("ERL-Re2", 10**7, REACH, init_steps=10**6)
    measured = measured_speed([never], simulated)
    assert measured.speed is None
    assert re.fullmatch(
        r"ERL-Re2 did not begin to learn within 20 s \([\d,]+ of 1,000,001 steps\)", measured.why
    )
    still = Simulated(1, monkeypatch, (1.0, 1.0))
    assert measured_speed([never], still).why == "no step was taken within 1 min 00 s"
    broken = Simulated(1, monkeypatch, error="it broke")
    assert measured_speed([never], broken) == Measured(None, "it broke")


def test_the_line_before(monkeypatch, sink):
    outlook = Outlook("6 trials x 2 seeds x 1,000,000 steps", [spec(steps=10**6)] * 12, 12)
    announce(outlook, Simulated(2, monkeypatch), sink)
    assert sink.lines == [
        "6 trials x 2 seeds x 1,000,000 steps, 489 updates each, 2 workers, about 16 min 41 s"
    ]
    # Nine tenths of them are in checkpoints.
    announce(replace(outlook, taken=10_800_000), Simulated(2, monkeypatch), sink)
    assert sink.lines.pop().endswith(
        "489 updates each, 2 workers, 10,800,000 steps were taken before, about 1 min 41 s"
    )
    searched = replace(outlook, lowest=spec(steps=10**6, n_steps=1000))
    announce(searched, Simulated(2, monkeypatch), sink)
    assert "489 to 1,000 updates each" in sink.lines.pop()
    short = Outlook("1 seed x 100 steps", [spec(steps=100, n_steps=50)], 1, ("known",))
    announce(short, Simulated(1, monkeypatch), sink)
    assert sink.lines[1:] == ["1 seed x 100 steps, 2 updates each, 1 worker", "note: known"]


@pytest.mark.parametrize("learner", ["AES-RL", "(1+1)-ES", "ACEM-RL", "CEM-RL", "P-CEM-RL"])
def test_no_time_is_told_where_a_short_measurement_says_nothing(learner, monkeypatch, sink):
    """These make thousands of updates between two episodes."""
    settings = {"mean_update_param": 3} if learner == "AES-RL" else {}
    lifetime, workers = spec(learner, 10**6, REACH, **settings), Simulated(2, monkeypatch)
    announce(Outlook("1 seed", [lifetime], 1), workers, sink, measure=True)
    assert sink.lines[0] == "1 seed, 2 workers"
    assert f"note: {learner} updates thousands of times between two episodes" in sink.lines[1]
    assert workers.asked == []
    now = 0.0
    pace = pace_of([lifetime], 2)
    pace._clock = lambda: now
    for burst in range(20):  # a minute without a step, then a second with a thousand
        now = 61.0 * burst
        pace.mark(100_000 + 1000 * burst)
        pace.mark(100_000 + 1000 * burst)
        now += 1.0
        pace.mark(101_000 + 1000 * burst)
    assert pace.speed == pytest.approx(1000 / 61, rel=0.15)


def test_a_real_measurement(lasting, sink):
    lifetime = spec(steps=10**6, n_steps=64, batch_size=64, n_epochs=1)
    assert measured_speed([lifetime] * 2, lasting(1)).speed > 10


FLAGS = {"training_steps": 64, "nb_trials": 2, "nb_seeds": 2, "units": 5, "popsize": 4}


def small(**flags):
    return EvolutionConfig(env_id=TOY, workers=1, **{**FLAGS, **flags})


def test_an_evolution_counts_the_cores_that_a_lifetime_keeps_busy(monkeypatch, tmp_path, sink):
    monkeypatch.setattr("erl.experiments.workers.default_workers", lambda: 12)
    monkeypatch.setattr("erl.experiments.forecast.measured_speed", unmeasured)
    file = tmp_path / "settings.json"
    settings = {"learning_starts": 100, "mean_update_param": 3, "actor_workers": 5}
    for executor, workers in (("lockstep", 12), ("processes", 2)):
        file.write_text(json.dumps({**settings, "actor_executor": executor}))
        flags = small(learner="AES-RL", learner_config=str(file), dry_run=True)
        flags = replace(flags, env_id=REACH, training_steps=1000, workers=None)
        assert evolve(flags, sink) == 0
        assert any(line.endswith(f", {workers} workers") for line in sink.lines[-3:])


def test_a_dry_run_stores_nothing(quick, inline, sink):
    before = sorted(Path().rglob("*"))
    assert evolve(small(learner_config=quick, dry_run=True), sink) == 0
    assert "2 trials x 2 seeds x 64 steps, 2 updates each, 1 worker" in sink.lines
    assert run(SingleConfig(env_id=REACH, learner="PPO", steps=5000, dry_run=True), sink) == 0
    assert sorted(Path().rglob("*")) == before
    assert sink.lines.count("dry run: nothing was trained or stored") == 2


def test_a_dry_run_refuses_what_the_command_would(quick, inline, sink):
    """A name that belongs to a study with another configuration, or to another program's."""
    evolution = small(learner_config=quick)
    assert evolve(evolution, sink) == 0
    test = {"env_id": TOY, "HP_training_steps": 64, "arms": "PPO", "nb_seeds": 1, "workers": 1}
    assert compare(ComparisonConfig(**test, training_steps=64), sink) == 0
    training = {"env_id": REACH, "learner": "PPO", "steps": 64, "learner_config": quick}
    assert run(SingleConfig(**training), sink) == 0
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    other = r"exists with another configuration: .*"
    with pytest.raises(UserError, match=f"{other}nb_seeds"):
        evolve(replace(evolution, nb_seeds=1, dry_run=True), sink)
    with pytest.raises(UserError, match=f"{other}engine"):
        compare(ComparisonConfig(**test, training_steps=64, engine="sb3", dry_run=True), sink)
    with pytest.raises(UserError, match=f"{other}ep_eval"):
        run(SingleConfig(**training, ep_eval=3, dry_run=True), sink)
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before
    make = {"storage": evolution.storage, "study_name": "by hand"}
    optuna.create_study(**make)
    with pytest.raises(UserError, match="is minimised"):
        evolve(replace(evolution, h_test="x", study="by hand", dry_run=True), sink)


@pytest.mark.parametrize(
    ("tasks", "sampler", "noted"),
    [("2", "Cmaes", False), ("3", "Cmaes", True), ("3", "Random", False), ("", "Cmaes", False)],
)
def test_an_array_with_too_many_coordinators_is_noted(
    tasks, sampler, noted, quick, inline, sink, monkeypatch
):
    """Each begins a whole generation, of 4 of the 16 trials here."""
    monkeypatch.setattr("erl.experiments.forecast.measured_speed", unmeasured)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", tasks)
    flags = small(learner_config=quick, dry_run=True, sampler=sampler, popsize=4, nb_trials=16)
    assert evolve(flags, sink) == 0
    said = [line for line in sink.lines if "tasks of this array" in line]
    note = f"if the {tasks} tasks of this array run at once, they begin 12 of 16 trials"
    assert [note in line for line in said] == [True] * noted


def test_an_evolution_that_continues_counts_what_was_taken_before(quick, inline, sink, monkeypatch):
    """The stored lifetimes of its open trials, and what the checkpoints of the others have."""
    monkeypatch.setattr("erl.experiments.forecast.measured_speed", unmeasured)
    flags = small(learner_config=quick, training_steps=128, checkpoint_minutes=0.0, engine="cohort")
    save = checkpoints.save_checkpoint

    def saving(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", saving)
        assert evolve(flags, sink) == 130
    [path] = Path("runs").rglob("*.pkl")
    taken = checkpoint_steps(str(path))
    assert 0 < taken < 128
    study = Study(flags.storage, f"{TOY}_main_0.128k_steps")
    said = f"2 trials x 2 seeds x 128 steps, 4 updates each, 1 worker, {taken} steps were taken"
    assert evolve(replace(flags, dry_run=True), sink) == 0
    assert f"{said} before" in sink.lines
    # Another lifetime has ended, and its trial has not.
    other = next(t for t in study.trials() if t.number == 1)
    specs = lifetimes(study.config, other.params)
    record = LifetimeRecord(specs[0], 1.0, 1.0, 1, 1, 130, 1.0)
    if str(path) == checkpoint_path(flags.runs, study.name, specs[0]):
        taken = 0
    study.store_record(other._trial_id, 0, record)
    assert evolve(replace(flags, dry_run=True), sink) == 0
    assert f"{taken + 130} steps were taken before" in str(sink)


class Telling(InlineExecutor):
    """Of a single job, shows what its lifetimes wrote on the board."""

    def run(self, jobs, columns, tick, every=0.0, on_interrupt=None):
        [job] = jobs
        rows = new_rows(columns, job.rows)
        yield Result(0, job.function(rows, HERE, *job.arguments))
        tick(rows)


def test_the_pace_of_an_evolution_that_continues_is_told_what_its_checkpoints_hold(
    quick, sink, monkeypatch
):
    monkeypatch.setattr("erl.executors.local.LocalExecutor", Telling)
    monkeypatch.setattr("erl.experiments.forecast.measured_speed", unmeasured)
    flags = small(learner_config=quick, training_steps=2048, checkpoint_minutes=0.0, nb_seeds=1)
    flags = replace(flags, engine="cohort", nb_trials=1)
    save, mark, saved, marks = checkpoints.save_checkpoint, Pace.mark, [], []

    def saving(*arguments):
        save(*arguments)
        saved.append(arguments)
        if len(saved) == 20:
            raise KeyboardInterrupt

    def marking(self, steps, earlier=0):
        marks.append((steps, earlier))
        mark(self, steps, earlier)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", saving)
        assert evolve(flags, sink) == 130
    [path] = Path("runs").rglob("*.pkl")
    taken = checkpoint_steps(str(path))
    monkeypatch.setattr(Pace, "mark", marking)
    assert evolve(flags, sink) == 0
    assert taken > 0
    assert (2048, taken) in marks


def test_steps_of_checkpoints_stay_out_of_the_pace_when_the_next_trials_begin(sink):
    class Mine(Progress):
        def status_line(self, steps, pace):
            return f"{steps:,} steps  {pace}"

    now = 0.0
    progress = Mine(sink, budget=20_000, pace=Pace(clock=lambda: now))
    progress.begin([])
    progress.tick(9000, 9000)
    now = 3.0
    progress.tick(9150, 9000)
    progress.begin([])
    now = 6.0
    progress.tick(5150, 5000)
    assert sink.statuses[-1] == "14,300 steps  50 steps/s  1 min 54 s left"


def test_what_is_there_already_is_said(quick, inline, sink, monkeypatch):
    config = small(learner_config=quick)
    assert evolve(config, sink) == 0
    assert evolve(config, sink) == 0
    assert "2 of 2 trials are there; raise --nb_trials above 2 for more" in sink.lines
    assert not any(line.startswith("goes on:") for line in sink.lines)
    assert evolve(small(learner_config=quick, nb_trials=4), sink) == 0
    assert "goes on: 2 of 4 trials are there" in sink.lines
    flags = ComparisonConfig(
        env_id=TOY, HP_training_steps=64, training_steps=64, nb_seeds=1, arms="PPO", workers=1
    )
    sink.lines.clear()
    assert compare(flags, sink) == 0
    assert "1 agent x 1 seed x 64 steps, 1 lifetime to train, 2 updates each, 1 worker" in (
        sink.lines
    )
    assert compare(flags, sink) == 0
    assert "1 of 1 lifetimes are there; raise --nb_seeds for more" in sink.lines
    sink.lines.clear()
    monkeypatch.setattr("erl.experiments.forecast.measured_speed", unmeasured)
    plain = ComparisonConfig(env_id=TOY, HP_training_steps=64, workers=1, dry_run=True)
    assert compare(plain, sink) == 0
    assert "--training_steps is 10,000,000, ER-MRL's number: 150,000,000 steps in all" in str(sink)


# -- while it runs --


def test_the_time_left_comes_from_recent_speed():
    now = 0.0
    pace = Pace(clock=lambda: now)
    steps, texts = 0, []
    for second in range(120):  # slow for a minute, then ten times as fast
        now = float(second)
        steps += 100 if second < 60 else 1000
        pace.mark(steps)
        texts.append(pace.text(100_000))
    assert texts[0] == ""  # not "0 steps/s  - left"
    assert texts[59] == "100 steps/s  16 min 40 s left"
    assert texts[119] == "1,000 steps/s  1 min 40 s left"


def test_steps_before_learning_are_no_measure():
    now = 0.0
    pace = Pace(skip=10_000, clock=lambda: now)
    for second, steps in enumerate([3000, 6000, 9000, 10_001, 10_051, 10_101, 10_151]):
        now = float(second)
        pace.mark(steps)
    assert pace.text(1000) == "50 steps/s  20 s left"


def test_steps_of_checkpoints_are_done_but_are_no_speed():
    now = 0.0
    pace = Pace(clock=lambda: now)
    # One lifetime goes on at once, and another one after a while.
    for second, (steps, earlier) in enumerate(
        [(9000, 9000), (9050, 9000), (9100, 9000), (12_150, 12_000), (12_200, 12_000)]
    ):
        now = float(second)
        pace.mark(steps, earlier)
    assert pace.text(1000) == "50 steps/s  20 s left"


def test_nothing_is_shown_while_nothing_is_known(sink):
    class Mine(Progress):
        def status_line(self, steps, pace):
            return f"{steps:,} steps  {pace}"

    progress = Mine(sink, budget=100)
    progress.tick(0)
    assert sink.statuses == ["0 steps"]


# -- at the end --


def interrupting(sink, at):
    """Press Ctrl-C when so many steps were taken."""

    def status(text):
        taken = re.search(r"([\d,]+) of", text)
        if taken and int(taken[1].replace(",", "")) >= at and not sink.statuses:
            sink.statuses.append(text)
            raise KeyboardInterrupt("SIGINT")

    sink.status = status
    return sink


@pytest.fixture
def workers(lasting, monkeypatch):
    """Commands find the worker processes that last from test to test."""
    monkeypatch.setattr("erl.executors.local.LocalExecutor", lasting)


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_from_which_the_command_continues(workers, sink):
    """ERL-Re2 has one before its first interval has passed."""
    flags = SingleConfig(learner="ERL-Re2", env_id=REACH, steps=3000, set=RE2, ep_eval=2, workers=1)
    assert run(flags, interrupting(sink, 256)) == 130
    assert "interrupted: writing checkpoints (Ctrl-C again ends at once)" in sink.lines
    assert "checkpoints: 1 of 1 running lifetime" in sink.lines
    [saved] = Path("runs").rglob("*.pkl")
    assert checkpoint_files(str(saved))
    taken = checkpoint_steps(str(saved))
    assert 256 <= taken < 3000
    sink.lines.clear()
    assert run(flags, sink) == 0
    said = f"1 seed x 3,000 steps, 1 lifetime to train, 1 worker, {taken:,} steps were taken before"
    assert said in sink.lines
    [trial] = Study(flags.storage, f"{REACH}_ERL-Re2_single_3k_steps").trials("COMPLETE")
    elsewhere = {"storage": "sqlite:///once.db", "runs": "once", "models": "agents"}
    once = SingleConfig(**vars(flags) | elsewhere)
    assert run(once, sink) == 0
    [other] = Study(once.storage, f"{REACH}_ERL-Re2_single_3k_steps").trials("COMPLETE")
    records = [lifetime_records(t)[0] for t in (trial, other)]
    assert records[0].curve == records[1].curve
    assert records[0].final_returns == records[1].final_returns
    assert not list(Path("runs").rglob("*.pkl"))


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (evolve, small(nb_trials=1)),
        (run, SingleConfig(env_id=REACH, learner="PPO", steps=64, workers=1)),
    ],
)
def test_an_interruption_is_one_also_where_the_storage_is_away(
    command, flags, told, sink, away, monkeypatch
):
    """Batch systems queue a command again by its exit code."""
    for name in ("evolution", "agents"):
        monkeypatch.setattr(f"erl.experiments.{name}.announce", lambda *_: None)

    def interrupt(spec):
        away()
        raise KeyboardInterrupt

    told.before = staticmethod(interrupt)
    assert command(flags, sink) == 130
    [said] = [line for line in sink.lines if line.startswith("interrupted: ")]
    assert said.startswith("interrupted: cannot use the storage sqlite:///studies.db: it went away")
    assert said.endswith("; run the same command again to continue")


def test_what_has_no_checkpoint_ends_at_once(workers, sink):
    flags = SingleConfig(
        learner="PPO", engine="sb3", env_id=REACH, steps=10**6, workers=1, set="n_steps=64"
    )
    assert run(flags, interrupting(sink, 256)) == 130
    assert "checkpoints: 0 of 1 running lifetime; it starts again" in sink.lines


def test_which_lifetimes_start_again(sink):
    progress = Progress(sink)
    for saved, running in ((0, 0), (0, 1), (1, 1), (0, 3), (1, 2), (1, 3), (3, 3)):
        progress.ended_early(saved, running)
    assert sink.lines == [
        "checkpoints: 0 of 1 running lifetime; it starts again",
        "checkpoints: 1 of 1 running lifetime",
        "checkpoints: 0 of 3 running lifetimes; they start again",
        "checkpoints: 1 of 2 running lifetimes; the other one starts again",
        "checkpoints: 1 of 3 running lifetimes; the others start again",
        "checkpoints: 3 of 3 running lifetimes",
    ]


def test_a_run_that_failed_names_no_folder_of_models(inline, sink, monkeypatch):
    monkeypatch.setattr("erl.learners.sb3.SB3Learner.train", lambda *a: [ValueError("broken")])
    flags = SingleConfig(learner="PPO", engine="sb3", env_id=REACH, steps=64, workers=1)
    assert run(flags, sink) == 1
    assert "failed: seed 0: lifetime 0: ValueError: broken" in str(sink)
    assert not [line for line in sink.lines if line.startswith(("models:", "logs:"))]
    monkeypatch.undo()
    monkeypatch.setattr("erl.executors.local.LocalExecutor", inline)
    assert run(replace(flags, seeds="1"), sink) == 0
