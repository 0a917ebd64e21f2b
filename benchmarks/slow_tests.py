"""Where the tests' time goes: CPU seconds of each test, with those of the processes that it starts.

    python benchmarks/slow_tests.py tests/search
    python benchmarks/slow_tests.py --slowest 25 --out times.jsonl

The clock says little on a machine that others use; CPU seconds change much less. Ray's processes
are not counted: they leave the family of the process that starts them.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest

from erl.cli import exit_after

ROOT = Path(__file__).parents[1]


@dataclass
class Times:
    """Of one test, in seconds.

    Attributes:
        test: its name for pytest.
        wall: by the clock.
        here: CPU, of the process of tests.
        elsewhere: CPU, of processes that it started.
    """

    test: str
    wall: float
    here: float
    elsewhere: float

    @property
    def cpu(self) -> float:
        return self.here + self.elsewhere

    @property
    def room(self) -> str:
        return "/".join(self.test.partition("::")[0].split("/")[:2])


def now() -> tuple[float, float, float]:
    """The clock, and CPU seconds so far: of this process, and of all that it started."""
    own = psutil.Process().cpu_times()
    elsewhere = own.children_user + own.children_system
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            elsewhere += sum(process.cpu_times()[:4])
    return time.perf_counter(), own.user + own.system, elsewhere


class Timer:
    """A plugin for pytest.

    Args:
        out: where each test's times are written at once, as a line of JSON.
    """

    def __init__(self, out: Path | None) -> None:
        self.times: list[Times] = []
        self._out = out

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = now()
        result = yield
        # A process that ended in somebody else's care takes its seconds along.
        spent = (max(0.0, b - a) for a, b in zip(before, now(), strict=True))
        self.times.append(Times(item.nodeid, *spent))
        if self._out is not None:
            with self._out.open("a") as file:
                file.write(json.dumps(asdict(self.times[-1])) + "\n")
        return result


def print_tables(times: list[Times], slowest: int) -> None:
    """By room, and the slowest tests."""
    print("| room | tests | CPU seconds | of these in other processes |\n|---|---|---|---|")
    rooms = {t.room: [o for o in times if o.room == t.room] for t in times}
    for room, of in sorted([*rooms.items(), ("all", times)], key=lambda r: (r[0] == "all", r[0])):
        cpu, elsewhere = sum(t.cpu for t in of), sum(t.elsewhere for t in of)
        print(f"| {room} | {len(of):,} | {cpu:.0f} | {elsewhere:.0f} |")
    print("\n| test | CPU seconds |\n|---|---|")
    for t in sorted(times, key=lambda t: -t.cpu)[:slowest]:
        print(f"| `{t.test.removeprefix('tests/')}` | {t.cpu:.1f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", default=["tests"], help="files or folders")
    parser.add_argument("--slowest", type=int, default=25, metavar="N", help="tests to list")
    parser.add_argument("--out", type=Path, help="also write the times of each test here")
    args = parser.parse_args()
    timer = Timer(args.out and args.out.absolute())
    code = pytest.main(["-q", "--rootdir", str(ROOT), *args.tests], plugins=[timer])
    print_tables(timer.times, args.slowest)
    return int(code)


if __name__ == "__main__":
    exit_after(main)
