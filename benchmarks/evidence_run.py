"""How the experiments of `evidence.toml` are run, and kept while they are unfinished."""

import argparse
import fcntl
import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import evidence_rows
from evidence_plan import HERE, Experiment, chosen
from evidence_rows import collect, has_rows, rows_of, seconds_in

from erl.cli import plural
from erl.errors import UserError
from erl.files import write_text, write_whole
from erl.worlds.specification import commit

# Exit codes of a command that somebody stopped: after Ctrl-C or SIGTERM, the first or the second.
STOPS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = {130, *(128 + s for s in STOPS), *(-s for s in STOPS)}


def run(args: argparse.Namespace) -> int:
    """Run what has no rows yet. What fails does not stop the others.

    Returns:
        Exit code: 0, or 1 if something failed, or 2 if a package is missing.
    """
    folder, rows = Path(args.folder), rows_of(args)
    failures = []
    if not args.small:
        for each in chosen(args):
            if rows == evidence_rows.ROWS and not has_rows(each, rows, args.small):
                take_unfinished(each, folder / each.name)
            check_commands(each, folder / each.name, rows)
    missing = [each for each in chosen(args) if not has_rows(each, rows, args.small)]
    say_left_out(len(chosen(args)), len(missing), args)
    if (
        any("popgym" in c for each in missing for c in each.commands(False))
        and find_spec("popgym") is None
    ):
        print('the memory tasks need another package: pip install -e ".[popgym]"', file=sys.stderr)
        return 2
    for each in missing:
        place = folder / each.name
        place.mkdir(parents=True, exist_ok=True)
        with claimed(place) as lock:
            if lock is None:
                print(f"{each.name}: another process runs it")
            elif not has_rows(each, rows, args.small):  # another process may just have made them
                failure = run_one(each, place, args, lock)
                if failure:
                    failures.append(f"{each.name}: {failure}")
                    print(failures[-1], flush=True)
    if missing:
        print("\n".join([f"{len(failures)} failed", *failures] if failures else ["nothing failed"]))
    return 1 if failures else 0


def say_left_out(every: int, missing: int, args: argparse.Namespace) -> None:
    """Say how many experiments are not run since they have rows, and what runs them."""
    if every == missing:
        return
    counted = f"{every - missing} of {plural(every, 'experiment')}"
    if args.rows or args.small:
        print(f"{counted} have rows in {rows_of(args)} and were left out", flush=True)
    else:
        print(
            f"{counted} have stored rows and were left out; --rows FOLDER runs them anew",
            flush=True,
        )


def archive_of(each: Experiment) -> Path:
    """Where an experiment is kept that has no rows yet."""
    return evidence_rows.ROWS / "unfinished" / f"{each.name}.tar.xz"


def take_unfinished(each: Experiment, place: Path) -> None:
    """Go on with what is kept of an experiment, if it was not begun here.

    Raises:
        UserError: it was begun with other commands than those listed now.
    """
    archive = archive_of(each)
    if archive.exists() and not (place / "begun.json").exists():
        with tarfile.open(archive) as tar:
            note = tar.extractfile("begun.json")
            if note is None or json.load(note)["commands"] != each.commands(False):
                raise UserError(
                    f"{each.name} was begun with other commands than those listed now: "
                    f"remove {archive} to run it anew"
                )
            place.mkdir(parents=True, exist_ok=True)
            tar.extractall(place, filter="data")
        print(f"{each.name}: goes on with what is kept in {archive}", flush=True)


def keep(args: argparse.Namespace) -> None:
    """Keep what experiments without rows have done so far. They may be at work."""
    for each in chosen(args):
        place = Path(args.folder) / each.name
        if not (place / "studies.db").exists() or has_rows(each, evidence_rows.ROWS, False):
            continue
        archive_of(each).parent.mkdir(parents=True, exist_ok=True)
        write_whole(archive_of(each), partial(pack, place))
        print(f"{each.name}: kept in {archive_of(each)}")


def pack(place: Path, archive: str) -> None:
    """Write what an experiment needs to go on: its database, whole also while others write there,
    with what it began and how long it took.
    """
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(archive, "w:xz") as tar:
        copy = Path(temporary) / "studies.db"
        with (
            closing(sqlite3.connect(place / copy.name)) as database,
            closing(sqlite3.connect(copy)) as copied,
        ):
            database.backup(copied)
        tar.add(copy, copy.name)
        for name in ("begun.json", "seconds"):
            if (place / name).exists():  # the clock is noted only now and then
                tar.add(place / name, name)


@contextmanager
def claimed(place: Path) -> Iterator[int | None]:
    """Hold an experiment's lock, or get None if another process holds it. The system releases it
    when the process and the commands that it started have ended, in whatever way.
    """
    with (place / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def check_commands(each: Experiment, place: Path, rows: Path) -> None:
    """Say so where an experiment at full size has rows of other commands than those listed.

    Raises:
        UserError: it has no rows yet, and was begun with other commands: its database would mix
            both.
    """
    file, begun, listed_now = rows / f"{each.name}.json", place / "begun.json", each.commands(False)
    if file.exists():
        if json.loads(file.read_text())["commands"] != listed_now:
            print(
                f"{each.name}: its rows are of other commands; "
                f"without {file} and {place} it is run again"
            )
    elif begun.exists() and json.loads(begun.read_text())["commands"] != listed_now:
        raise UserError(
            f"{each.name} was begun with other commands than those listed now: "
            f"remove {place} to run it anew"
        )


def run_one(each: Experiment, place: Path, args: argparse.Namespace, lock: int) -> str | None:
    """Run an experiment and write its rows.

    Returns:
        What failed; None if nothing did.
    """
    begin(each, place, args.small)
    storage = f"sqlite:///{place.resolve()}/studies.db"
    failure = None
    for command in each.commands(args.small):
        script, *flags = shlex.split(command)
        print(f"{each.name}: python {command}", flush=True)
        # Of files in this folder too: the command runs in another one.
        flags = [str(HERE.parent / f) if f.startswith("benchmarks/") else f for f in flags]
        flags += ["--storage", storage, "--workers", str(args.workers)]
        words = [sys.executable, str(HERE.parent / script), *flags]
        code = timed(subprocess.Popen(words, cwd=place, pass_fds=(lock,)), place / "seconds")
        if code in INTERRUPTED:
            print(f"{each.name}: interrupted; the same command goes on", file=sys.stderr)
            raise SystemExit(130)
        if code:
            how = f"with exit code {code}" if code > 0 else f"by signal {-code}"
            failure = f"{script} ended {how}"
        if code not in (0, 1):  # nothing to go on with; 1 says that a lifetime failed
            return failure
    try:
        collect(each, storage, rows_of(args), place, args)
    except UserError as e:
        return str(e)
    if rows_of(args) == evidence_rows.ROWS:
        archive_of(each).unlink(missing_ok=True)
    return failure


def begin(each: Experiment, place: Path, small: bool) -> None:
    """Note with what an experiment begins. A small run that began otherwise begins anew."""
    note = place / "begun.json"
    begun = {"commands": each.commands(small), "started_at": commit()}
    if note.exists() and json.loads(note.read_text()) != begun and small:
        for path in place.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not note.exists():
        write_text(note, json.dumps(begun, indent=1) + "\n")


def timed(process: "subprocess.Popen[bytes]", file: Path) -> int:
    """Wait for a command, and add its seconds to those in a file, now and then: they count what
    was done before an interruption.

    Returns:
        Its exit code.
    """
    before, begun = seconds_in(file), time.monotonic()
    code = None
    while code is None:
        try:
            code = process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:  # the command got it too, and stores what it has
            print("waiting for the command to end", flush=True)
        write_text(file, f"{before + time.monotonic() - begun:.1f}\n")
    return code
