"""Faults done to real evolutions at the smallest budgets, and the count of what was lost. Tests do
a few, `benchmarks/faults.py` many.

A coordinator is a forked process; those about which no worker matters live their lifetimes
themselves. After each fault the same command goes on. At the end every trial must be there once,
and be what an evolution that nothing befell has.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import psutil
from conftest import InlineExecutor, Lines
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

import erl.executors.local
from erl.errors import UserError
from erl.executors.local import LocalExecutor
from erl.experiments.evolution import EvolutionConfig, evolve
from erl.experiments.evolution_study import lifetimes, study_config
from erl.experiments.flags import study_name
from erl.lifetimes.living import check
from erl.studies.study import Study

ENV = "toy_environments:Recall-v0"
FORK = multiprocessing.get_context("fork")


@dataclasses.dataclass
class Outcome:
    """How often a fault was done, and to how many trials.

    Attributes:
        faults: times.
        trials: that were asked for.
        lost: of those, the ones that did not end with a fitness.
        changed: those whose parameters or fitness are not the undisturbed evolution's.
        relived: lifetimes that were trained again though their record was stored.
        beyond: trials that ended beyond what was asked for.
        retaken: how often a trial was taken up again after its process was gone.
    """

    faults: int
    trials: int
    lost: int
    changed: int
    relived: int
    beyond: int
    retaken: int

    @property
    def whole(self):
        return not (self.lost or self.changed or self.relived or self.beyond)


class Case:
    """An evolution in a storage, and what it leaves."""

    def __init__(self, address, **more):
        Path("quick.yaml").write_text("n_steps: 32\nbatch_size: 32\nn_epochs: 1\n")
        settings = {
            "training_steps": 64,
            "nb_seeds": 2,
            "units": 5,
            "popsize": 4,
            "sampler": "Random",
            "nb_trials": 8,
        }
        settings |= {
            "learner_config": "quick.yaml",
            "engine": "sb3",
            "workers": 1,
            "max_retries": 10**6,
        }
        self.config = EvolutionConfig(storage=address, **({"env_id": ENV} | settings | more))
        self.name = study_name(self.config.env_id, self.config.h_test, self.config.training_steps)
        self.faults, self.relived = 0, 0
        self._stored = {}
        check(
            lifetimes(study_config(self.config, Lines()), {"sr": 1.0, "lr": 1.0})[0]
        )  # what is imported now no child imports

    def longer(self):
        self.config = dataclasses.replace(self.config, nb_trials=self.config.nb_trials + 8)

    def start(self, executor=InlineExecutor, before=None):
        """The command, in a process of its own."""
        return start(self.config, executor, before)

    def study(self):
        return Study(self.config.storage, self.name)

    def look(self):
        """Note which lifetimes are stored; those that were before must be the same to the last
        bit.
        """
        try:
            trials = self.study().trials()
        except UserError:  # not begun yet
            return 0
        now = {
            (t.number, k): v
            for t in trials
            for k, v in t.system_attrs.items()
            if k.startswith("lifetime:")
        }
        self.relived += sum(now.get(key) != value for key, value in self._stored.items())
        self._stored = now
        return len(now)

    def finish(self, executor=InlineExecutor):
        """The same command once more, to its end; what came of it all."""
        process = self.start(executor)
        process.join(240)
        assert process.exitcode == 0, "the command does not end"
        self.look()
        n, trials = self.config.nb_trials, self.study().trials()
        done = {t.number: (t.params, t.value) for t in trials if t.state.name == "COMPLETE"}
        wanted = undisturbed(self.config, self.name)
        return Outcome(
            faults=self.faults,
            trials=n,
            lost=n - sum(k in done for k in range(n)),
            changed=sum(done[k] != wanted[k] for k in range(n) if k in done),
            relived=self.relived,
            beyond=sum(k >= n for k in done),
            retaken=sum(t.user_attrs.get("lost", 0) for t in trials),
        )


# What evolutions find that nothing befalls, by their configuration: it is the same for many tests.
FOUND: dict = {}


def undisturbed(config, name):
    """Parameters and fitness of each trial, by its number, of the evolution that nothing befell."""
    whole = dataclasses.replace(config, storage="journal:undisturbed.log", workers=1)
    key = dataclasses.replace(whole, nb_trials=1)
    if len(FOUND.get(key, ())) < config.nb_trials:
        start(whole).join()
        trials = Study(whole.storage, name).trials()
        FOUND[key] = {t.number: (t.params, t.value) for t in trials}
    return FOUND[key]


def start(config, executor=InlineExecutor, before=None):
    """The command of an evolution, in a process of its own; it calls `before` first."""
    process = FORK.Process(target=_coordinate, args=(config, executor, before))
    process.start()
    return process


def _coordinate(config, executor, before):
    os.setsid()
    erl.executors.local.LocalExecutor = executor
    if before is not None:
        before()
    try:
        code = evolve(config, Lines())
    except UserError as e:
        print(e, file=sys.stderr)
        code = 3 if "run the same command again" in str(e) else 2
    raise SystemExit(code)


def kill_coordinators(case, rounds, seconds=2.0, tear=None, seed=0):
    """SIGKILL at random moments.

    `tear` does more harm after each, with the storage in nobody's hands.
    """
    moments = random.Random(seed)
    while case.faults < rounds:
        process = case.start()
        process.join(moments.uniform(0, seconds))
        if process.exitcode is not None:
            assert process.exitcode == 0
            case.longer()
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        case.faults += 1
        if tear is not None:
            tear(moments)
        case.look()
    return case.finish()


def tear_journal(path):
    """Leave part of a line, as a writer does that is killed in mid-line."""

    def tear(moments):
        if Path(path).exists() and (lines := Path(path).read_bytes().splitlines(keepends=True)):
            line = moments.choice(lines)
            with Path(path).open("ab") as file:
                file.write(line[: moments.randrange(1, len(line))])

    return tear


def kill_workers(case, rounds, seconds=1.0, seed=0):
    """SIGKILL of worker processes at random moments of one evolution."""
    moments = random.Random(seed)
    process = case.start(LocalExecutor)
    while case.faults < rounds:
        time.sleep(moments.uniform(0, seconds))
        if process.exitcode is not None:
            assert process.exitcode == 0
            case.longer()
            process = case.start(LocalExecutor)
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(process.pid).children(recursive=True)
            workers = [p for p in family if "popen_loky" in " ".join(p.cmdline())]
            if workers:
                moments.choice(workers).kill()
                case.faults += 1
    process.join(240)
    assert process.exitcode == 0
    return case.finish()


def disturb(case, rounds, harm, mend, away, seconds=1.0, seed=0):
    """Take the storage away for a while, again and again, while one coordinator runs, which never
    ends for it.
    """
    moments = random.Random(seed)
    process = case.start()
    while case.faults < rounds:
        time.sleep(moments.uniform(0, seconds))
        if process.exitcode is not None:
            assert process.exitcode in (
                0,
                2,
            )  # 2: it was just opening the storage, and says so at once
            if process.exitcode == 0:
                case.longer()
            process = case.start()
            continue
        harm()
        time.sleep(away)
        mend()
        case.faults += 1
    process.join(240)
    assert process.exitcode in (0, 2)
    return case.finish()


def fill_disk(case, rounds, path, room=1 << 14):
    """No file can grow past what the storage has and a little more, until somebody makes room."""
    case.start().join(240)
    while case.faults < rounds:
        case.longer()
        limit = Path(path).stat().st_size + room
        process = case.start(
            before=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        )
        while Path(path).stat().st_size < limit - room // 2 and process.exitcode is None:
            time.sleep(0.05)
        process.join(0.5)
        assert process.exitcode is None, "it ended with the disk full"
        case.look()
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
        case.faults += 1
        process.join(240)
        assert process.exitcode == 0
    return case.finish()


def losing_answers(rounds):
    """A patch for a coordinator: operations are done, and then now and then the connection
    breaks.
    """
    moments, torn_ones = random.Random(1), []

    def wrap(method):
        def torn(self, *arguments, **named):
            result = method(self, *arguments, **named)
            if moments.random() < 0.25 and len(torn_ones) < rounds:
                torn_ones.append(method.__name__)
                raise OperationalError(
                    "COMMIT", {}, Exception("server closed the connection unexpectedly")
                )
            return result

        return torn

    for name in (
        "_create_new_trial",
        "set_trial_state_values",
        "set_trial_user_attr",
        "set_trial_system_attr",
        "_set_trial_param",
    ):
        setattr(RDBStorage, name, wrap(getattr(RDBStorage, name)))
