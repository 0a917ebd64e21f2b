"""What a trial loop keeps when it is interrupted: lifetimes that reach their end while the others
write their checkpoints.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from told_lifetimes import Told, make, study

from erl.executors.jobs import new_rows
from erl.experiments.evolution import evolve
from erl.experiments.trials import TrialLoop, Writer
from erl.studies.trials import lifetime_records

# Of the trials of the first generation, with two lifetimes each.
STATES = ["COMPLETE", "COMPLETE", "WAITING", "WAITING"]


class Ending(Told):
    """After its first result all others come in the seconds after an interruption."""

    presses = True  # Ctrl-C, while it waits

    def run(self, jobs, columns, tick, every=0.0, on_interrupt=None):
        results = list(super().run(jobs, columns, tick))
        board = new_rows(columns, len(results))
        board["steps"][:] = 64
        tick(board)
        try:
            yield results[0]
            if self.presses:
                raise KeyboardInterrupt("SIGINT")
        except KeyboardInterrupt as e:
            on_interrupt(board, e)
            yield from results[1:] if board["save"].all() else ()
            raise


def found(name):
    return [(t.number, t.state.name, t.params, t.value) for t in study(name).trials()]


@pytest.mark.parametrize("taking", [False, True], ids=["while waiting", "while a result is taken"])
def test_what_reaches_its_end_after_ctrl_c_is_stored(taking, told, sink, monkeypatch):
    """One lifetime of the third trial was interrupted, and one of the fourth failed: perhaps since
    the signal reached its simulator. Both are trained again.
    """
    flags = {"engine": "sb3", "nb_trials": 4, "finalists": None}
    assert evolve(make(**flags, h_test="undisturbed"), sink) == 0
    lived, take = [], TrialLoop._take

    def error(spec):
        lived.append(spec)
        return {6: "interrupted", 7: "ConnectionError: the simulator is gone"}.get(len(lived))

    def press(self, result):
        take(self, result)
        if len(lived) == 8:
            lived.append("Ctrl-C")
            raise KeyboardInterrupt("SIGINT")

    with monkeypatch.context() as patch:
        patch.setattr("erl.executors.local.LocalExecutor", Ending)
        patch.setattr(Ending, "error", staticmethod(error))
        if taking:
            patch.setattr(Ending, "presses", False)
            patch.setattr(TrialLoop, "_take", press)
        assert evolve(make(**flags), sink) == 130
    trials = study().trials()
    assert [t.state.name for t in trials] == STATES
    assert [len(lifetime_records(t)) for t in trials] == [2, 2, 1, 1]
    *_, before, last = [line for line in sink.lines if line.startswith(("trial ", "checkpoints:"))]
    assert before.startswith("trial    1")
    assert last == "checkpoints: 0 of 2 running lifetimes; they start again"
    assert "interrupted: 2 of 4 trials are finished" in str(sink)
    again = []
    told.before = staticmethod(again.append)
    assert evolve(make(**flags), sink) == 0
    assert again == [lived[5], lived[6]]
    undisturbed = found("CartPole-v1_undisturbed_0.128k_steps")
    assert [(*t[:1], *t[2:]) for t in found("CartPole-v1_main_0.128k_steps")] == [
        (*t[:1], *t[2:]) for t in undisturbed
    ]


@pytest.mark.parametrize(("signal", "seconds"), [("SIGINT", 300.0), ("SIGTERM", 20.0)])
def test_checkpoints_have_minutes_after_ctrl_c_and_seconds_after_sigterm(signal, seconds):
    """Batch systems kill half a minute after their SIGTERM."""
    told = SimpleNamespace(ending=lambda: None, workers=1)
    loop = TrialLoop(study=None, trials=[], executor=told, make_cohort=None, listener=told)
    board = {"save": np.zeros(2, bool)}
    assert loop._interrupt(board, KeyboardInterrupt(signal)) == seconds
    assert board["save"].all()


def test_lifetimes_side_by_side_are_spread_evenly_over_the_workers(told, sink):
    """And one job has all of them where there is one worker."""
    given, run = [], told.run

    def note(self, jobs, *rest, **named):
        given.append([job.rows for job in jobs])
        yield from run(self, jobs, *rest, **named)

    told.run = note
    flags = {"engine": "cohort", "nb_trials": 4, "finalists": None}
    for workers, rows in ((2, [4, 4]), (3, [3, 3, 2]), (1, [8])):
        assert evolve(make(**flags, workers=workers, h_test=f"{workers}_workers"), sink) == 0
        assert given.pop() == rows


def test_a_write_that_fails_takes_no_other_with_it():
    writer, written = Writer(), []
    writer.write(None, lambda: 1 / 0)
    writer.write(lambda: written.append("then"), written.append, "later")
    writer.finish()
    writer.close()
    assert written == ["later", "then"]
