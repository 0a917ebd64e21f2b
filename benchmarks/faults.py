"""Each fault of `tests/faults.py` a hundred times, and what was lost: prints a table.

    python benchmarks/faults.py [--rounds 100] [--only coordinators]

Needs PostgreSQL's programs; takes about an hour on one core. Budgets are the smallest: what is
measured is what the database holds afterwards, against an evolution that nothing befell.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from erl.cli import exit_after

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])

import faults  # noqa: E402
import servers  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument(
        "--cut", type=float, default=30.0, help="seconds for which a connection is cut"
    )
    parser.add_argument("--cuts", type=int, default=10, help="how often it is cut")
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="longest life of a coordinator before it is killed",
    )
    parser.add_argument("--only", default="", help="those faults whose name contains this")
    args = parser.parse_args()
    os.chdir(tempfile.mkdtemp(prefix="erl-faults-"))
    server = servers.PostgreSQL()
    wire = servers.Wire(server.port)
    n = args.rounds

    def case(kind: str, **more: object) -> faults.Case:
        name = f"f{os.urandom(6).hex()}"
        folder = Path(name)
        folder.mkdir()
        os.chdir(folder)
        match kind:
            case "sqlite":
                return faults.Case(f"sqlite:///{name}.db", **more)
            case "journal":
                return faults.Case(f"journal:{name}.log", **more)
            case "postgresql":
                return faults.Case(server.create(name), **more)
        server.create(name)
        return faults.Case(server.address(name, wire.port), **more)

    def journal() -> faults.Outcome:
        it = case("journal")
        tear = faults.tear_journal(it.config.storage.removeprefix("journal:"))
        return faults.kill_coordinators(it, n, args.seconds, tear=tear)

    def full(kind: str) -> faults.Outcome:
        it = case(kind)
        return faults.fill_disk(
            it, n, it.config.storage.removeprefix("sqlite:///").removeprefix("journal:")
        )

    runs = {
        "coordinator killed, SQLite": lambda: faults.kill_coordinators(
            case("sqlite"), n, args.seconds
        ),
        "coordinator killed, PostgreSQL": lambda: faults.kill_coordinators(
            case("postgresql"), n, args.seconds
        ),
        "coordinator killed and a journal's line torn": journal,
        "worker killed, PostgreSQL": lambda: faults.kill_workers(case("postgresql"), n),
        "PostgreSQL stopped at once and restarted": lambda: faults.disturb(
            case("postgresql"), n, server.stop, server.start, away=0.2
        ),
        f"connection cut for {args.cut:g} s, PostgreSQL": lambda: faults.disturb(
            case("wire"), args.cuts, wire.cut, wire.mend, away=args.cut
        ),
        "disk full under SQLite": lambda: full("sqlite"),
        "disk full under a journal": lambda: full("journal"),
    }
    top = os.getcwd()
    print(
        "| fault | times | trials | lost | changed | lifetimes trained again | beyond | taken up "
        "again | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    try:
        for name, run in runs.items():
            if args.only in name:
                os.chdir(top)
                start = time.monotonic()
                o = run()
                cells = (o.faults, o.trials, o.lost, o.changed, o.relived, o.beyond, o.retaken)
                print(
                    f"| {name} | {' | '.join(map(str, cells))} | {time.monotonic() - start:.0f} |",
                    flush=True,
                )
    finally:
        wire.close()
        server.remove()


if __name__ == "__main__":
    exit_after(main)
