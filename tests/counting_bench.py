"""A bench for workers of any kind: it sleeps, counts, sums what was shared, and dies when told."""

import os
import resource
import signal
import time
from dataclasses import dataclass, field, replace

from erl.executors.virtual_clock import Open, Timed


@dataclass
class Sum:
    """Sum what was shared, after so many units.

    Attributes:
        about: whatever the test wants to find again; it stays here.
        fault: what goes wrong: `raise`, `raise odd` (what pickle cannot load), `die` (if the file
            is not there yet), `die always`, `fill` (no more files can be written), or nothing.
    """

    about: object = None
    fault: str = ""
    file: str = ""
    seconds: float = 0.0
    units: list = field(default_factory=list)
    result: object = None

    def shipped(self):
        return replace(self, about=None)


class Odd(Exception):
    """Pickle can write it, but not load it."""

    def __init__(self, what, how):
        super().__init__(f"{what} {how}")


class CountingBench:
    def __init__(self, count):
        self.count, self.total = count, 0
        self.activities = {"sum": Timed(self.sum, 1), "play": Open(self.play)}

    def receive(self, item):
        self.total += item

    def sum(self, jobs, counts):
        ((job,), (n,)) = jobs, counts
        data = job.data
        if data.fault == "raise":
            raise ValueError("the job failed")
        if data.fault == "raise odd":
            raise Odd("the job", "failed oddly")
        if data.fault == "die always" or (data.fault == "die" and not os.path.exists(data.file)):
            if data.file:
                with open(data.file, "w", encoding="utf-8"):
                    pass
            os.kill(os.getpid(), signal.SIGKILL)
        if data.fault == "fill":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        time.sleep(data.seconds)
        self.count(n)
        data.units.append(n)
        data.result = (self.total, data.units, os.getpid())

    def play(self, jobs, limit):
        (job,) = jobs
        self.count(limit)
        job.data.units.append(limit)
        job.data.result = (self.total, job.data.units, os.getpid())
        return limit, [len(job.data.units) == 3]

    def close(self):
        pass


class BrokenBench(CountingBench):
    """It cannot be made."""

    def __init__(self, count):
        raise ValueError("the simulator has no licence")


class ForgetfulBench(CountingBench):
    """It does not take what others shared before."""

    def receive(self, item):
        raise ValueError("the item does not fit")
