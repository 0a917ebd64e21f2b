"""Jobs on the machines of a Ray cluster.

A job is a Ray task, and begins with one thread. Machines need not share a disk: a job writes into a
folder of its own, and what it wrote is carried to where the coordinator would have written it,
every few seconds and at the end; the files of the coordinator's machine that the job needs go along
with it. Ray is a library that only this module needs, and that only a cluster needs.
"""

import logging
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from erl.errors import UserError, describe
from erl.executors.jobs import (
    Columns,
    Job,
    OnInterrupt,
    Result,
    Rows,
    WorkerLost,
    first_rows,
    new_rows,
    under,
)
from erl.executors.warned import NAME, send, to_stderr
from erl.files import unwritable, write_whole

CONNECT_SECONDS = 10.0
# How long nodes have to start a worker and import this project.
CHECK_SECONDS = 120.0
# Between two exchanges of a worker with the board, and between two looks for files that it wrote.
EXCHANGE_SECONDS = 0.25
FILES_SECONDS = 2.0
# What workers' warnings are called among the files of a job.
WARNINGS = f"/{NAME}"

# Contents by absolute path on the coordinator's machine; None for a file that is gone.
Files = dict[str, bytes | None]
Stamp = tuple[int, int]
# What jobs are computed with on a machine, in words; it must be the same on all.
Identify = Callable[[], dict[str, str | None]]


def connect(cluster: str) -> None:
    """Connect this process to a Ray cluster.

    Raises:
        UserError: there is none.
    """
    address = cluster if "//" in cluster else cluster.removeprefix("ray:")
    if cluster == "ray":
        try:
            address = get_ray_address_from_environment("auto", None)
        except ConnectionError:
            raise UserError(
                "no Ray cluster runs on this machine: start one with ray start --head, or give "
                "its address as --cluster ray://HOST:10001"
            ) from None
    # Ray itself retries for more than a minute, and may end the process in the end.
    _knock(address.removeprefix("ray://"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as e:
        raise UserError(f"cannot connect to {cluster}: {describe(e)}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray takes it; here it means what Ctrl-C means


def _knock(address: str) -> None:
    """Raise a UserError if no gRPC server answers, as all of Ray's are."""
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise UserError(
                f"no Ray cluster answers at {address} within {CONNECT_SECONDS:g} seconds"
            ) from None


# -- on the cluster's machines --


class _Board:
    """A Ray actor beside the coordinator that holds the rows of all jobs, and files until they have
    been fetched.

    Args:
        columns: of the board.
        n: rows.
    """

    def __init__(self, columns: Columns, n: int) -> None:
        self._rows = new_rows(columns, n)
        self._from_coordinator = _from_coordinator(columns)
        self._files: dict[int, Files] = {}
        self._handed: dict[int, Files] = {}
        self._looks = 0
        # Another one, if Ray has begun this actor anew and it holds nothing.
        self._identity = os.urandom(8)

    def exchange(self, first: int, n: int, reported: Rows, files: Files) -> tuple[bytes, Rows]:
        """A job that has n rows from `first` on reports, and hears which board it talks to and what
        the coordinator wrote.
        """
        for name, part in reported.items():
            self._rows[name][first : first + n] = part
        if files:
            self._files.setdefault(first, {}).update(files)
        return self._identity, {
            name: self._rows[name][first : first + n].copy() for name in self._from_coordinator
        }

    def look(self, written: Rows, arrived: int) -> tuple[int, Rows, dict[int, Files]]:
        """The coordinator writes its columns, reads those of the jobs, and fetches files, by the
        first row of their job.

        Args:
            written: the coordinator's columns.
            arrived: number of the latest look whose answer arrived; what a later one was given is
                given again.
        """
        for name, array in written.items():
            self._rows[name][:] = array
        if arrived == self._looks:
            self._handed = {}
        for first, files in self._files.items():
            self._handed.setdefault(first, {}).update(files)
        self._files = {}
        self._looks = arrived + 1
        reported = {
            name: a.copy() for name, a in self._rows.items() if name not in self._from_coordinator
        }
        return self._looks, reported, self._handed


def _from_coordinator(columns: Columns) -> set[str]:
    """Names of the columns that the coordinator writes."""
    return {name for name, column in columns.items() if column.from_coordinator}


class _Changes:
    """Files under a folder, as they would lie under `/`, that were written or removed since they
    were last asked for.
    """

    _TRIES = 3

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._seen: dict[Path, Stamp] = {}
        self._found: Files = {}

    def fetch(self) -> Files:
        """Their contents, None for those that were removed; again what has not `arrived` since it
        was fetched.

        A checkpoint comes with what it needs, as far as that has changed: if there is another one
        after its files were read, they are read again.
        """
        found = self._found
        for _ in range(self._TRIES):
            before = self._stamps()
            for path, stamp in before.items():
                if self._seen.get(path) != stamp:
                    with suppress(FileNotFoundError):
                        found[self._there(path)] = path.read_bytes()
                        self._seen[path] = stamp
            after = self._stamps()
            if {p: s for p, s in before.items() if p.suffix == ".pkl"} == {
                p: s for p, s in after.items() if p.suffix == ".pkl"
            }:
                break
        for path in self._seen.keys() - after.keys():
            found[self._there(path)] = None
            del self._seen[path]
        return dict(found)

    def arrived(self) -> None:
        """All that was fetched is elsewhere too."""
        self._found.clear()

    def forget(self) -> None:
        """Nothing is elsewhere."""
        self._seen.clear()

    def _there(self, path: Path) -> str:
        return f"/{path.relative_to(self._folder)}"

    def _stamps(self) -> dict[Path, Stamp]:
        """When files that are whole were written, and their sizes."""
        stamps = {}
        # Folders that vanish meanwhile are passed over.
        for folder, folders, names in os.walk(self._folder):
            # What is still being written has a name with a dot.
            folders[:] = [f for f in folders if not f.startswith(".")]
            for name in names:
                with suppress(FileNotFoundError):
                    stat = os.stat(os.path.join(folder, name))
                    if not name.startswith("."):
                        stamps[Path(folder, name)] = stat.st_mtime_ns, stat.st_size
        return stamps


class _Correspondence:
    """A job's exchanges with the board, in a thread of their own, while the job runs."""

    def __init__(
        self, board: Any, first: int, rows: Rows, columns: Columns, changes: _Changes
    ) -> None:
        self._board, self._first, self._rows, self._changes = board, first, rows, changes
        self._reported = rows.keys() - _from_coordinator(columns)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: Any) -> None:
        self._over.set()
        self._thread.join()

    def _keep_on(self) -> None:
        looked, known = time.monotonic(), None
        n = max((len(part) for part in self._rows.values()), default=0)
        over = False
        while not over:
            over = self._over.wait(EXCHANGE_SECONDS)
            reported = {name: self._rows[name] for name in self._reported}
            files: Files = {}
            due = time.monotonic() - looked >= FILES_SECONDS
            try:
                if due:
                    looked = time.monotonic()
                    files = self._changes.fetch()
                identity, written = ray.get(
                    self._board.exchange.remote(self._first, n, reported, files), timeout=60
                )
                if due:
                    self._changes.arrived()
                if known not in (None, identity):  # what the one before had is lost
                    self._changes.forget()
                known = identity
            except Exception:
                # The board's machine is gone, or a file cannot be read: it is tried again.
                continue
            for name, part in written.items():
                self._rows[name][:] = part


def _work(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    board: Any,
    columns: Columns,
    first: int,
    n: int,
    files: Files,
) -> tuple[Any, Files]:
    """In a Ray task: run a job that has n rows of the board, from `first` on; its value, and the
    files that it wrote.
    """
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="erl-") as folder:
        send(folder)
        for error in _write({under(folder, path): file for path, file in files.items()}).values():
            raise error
        rows = new_rows(columns, n)
        changes = _Changes(folder)
        changes.fetch()  # what was brought along is known already
        changes.arrived()
        try:
            with _Correspondence(board, first, rows, columns, changes):
                value = function(rows, folder, *arguments)
        except SystemExit as e:  # no reason to take Ray's worker along
            raise WorkerLost(f"the job ended its process: {e!r}") from None
        return value, _Changes(folder).fetch()


def _identify(identify: Identify) -> dict[str, str | None]:
    """In a Ray task: what jobs are computed with there."""
    return identify()


# -- the coordinator --


@dataclass
class _Fetched:
    """What the coordinator has of the board.

    Attributes:
        looks: number of the latest look that was answered.
        unwritten: files that found no place yet, by the first row of their job.
    """

    looks: int = 0
    unwritten: dict[int, Files] = field(default_factory=dict)


class RayExecutor:
    """Jobs as tasks on a Ray cluster.

    Args:
        cluster: see `machines.check_cluster`.
        workers: how many jobs at a time; by default as many as fit on the CPUs of the cluster.
        max_retries: how often a job is begun again after its worker or the machine was lost.
        identify: called here and on every node; nodes where it gives something else are refused.
            By default all are taken.
        cores: CPUs that a job keeps busy, on one machine. If none has as many, it takes a whole
            machine.

    Raises:
        UserError: no such cluster, or a machine of it cannot do what this one does.
    """

    def __init__(
        self,
        cluster: str,
        workers: int | None = None,
        max_retries: int = 2,
        identify: Identify = dict,
        cores: int = 1,
    ) -> None:
        connect(cluster)
        self.max_retries = max_retries
        self._tasks: list[Any] = []
        self.note: Callable[[str], Any] = to_stderr
        self._noted: set[str] = set()
        try:
            cpus = [int(node["Resources"].get("CPU", 0)) for node in _nodes()]
            self.cores = min(cores, max(cpus, default=0) or cores)
            fit = sum(n // self.cores for n in cpus)
            if not fit and workers is None:
                raise UserError(
                    f"the cluster {cluster} has no CPU; use --workers to set how many jobs wait "
                    f"for CPUs"
                )
            self.workers = workers or fit
            self._check_nodes(identify)
        except BaseException:
            self.close()
            raise

    def _check_nodes(self, identify: Identify) -> None:
        """Refuse a cluster on which jobs would fail, or become what they do not become here."""
        asked: dict[Any, str] = {}
        for node in _nodes():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_identify).options(
                num_cpus=0, max_retries=0, scheduling_strategy=there
            )
            asked[task.remote(identify)] = node["NodeManagerAddress"]
        mine = identify()
        deadline = time.monotonic() + CHECK_SECONDS
        for answer, address in asked.items():
            try:
                theirs = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
            except GetTimeoutError:
                raise UserError(
                    f"the Ray node {address} does not answer within {CHECK_SECONDS:g} seconds"
                ) from None
            except RayTaskError as e:
                raise UserError(
                    f"the Ray node {address} cannot run this project; install the same version "
                    f"there: {describe(e.cause)}"
                ) from None
            except RayError:  # it is gone
                continue
            differ = [
                f"{name} is {theirs.get(name)} there and {mine.get(name)} here"
                for name in sorted(theirs.keys() | mine.keys())
                if theirs.get(name) != mine.get(name)
            ]
            if differ:
                raise UserError(
                    f"the Ray node {address} differs from this machine: {'; '.join(differ)}"
                )

    def run(
        self,
        jobs: Sequence[Job],
        columns: Columns,
        tick: Callable[[Rows], Any],
        every: float = 0.5,
        on_interrupt: OnInterrupt | None = None,
    ) -> Generator[Result, None, None]:
        """Run all jobs: see `jobs.Executor`."""
        if not jobs:
            return
        first = first_rows(jobs)
        rows = new_rows(columns, first[-1])
        board = self._start_board(columns, first[-1])
        losses = [0] * len(jobs)
        pending = deque(range(len(jobs)))
        running: dict[Any, int] = {}  # task -> job
        fetched = _Fetched()
        try:
            while pending or running:
                while pending and len(running) < self.workers:
                    index = pending.popleft()
                    running[self._start(jobs[index], board, columns, first[index])] = index
                self._tasks = list(running)
                done, _ = ray.wait(self._tasks, timeout=every)
                active = {first[index] for index in running.values()}
                self._look(board, rows, columns, active, fetched)
                tick(rows)
                for task in done:
                    index = running[task]
                    try:
                        result = self._result_of(task, index, jobs[index])
                    except RayError as e:
                        losses[index] += 1
                        error = WorkerLost(
                            f"its Ray worker or machine was lost {losses[index]} times "
                            f"({type(e).__name__})"
                        )
                        result = Result(index, None, error)
                        if losses[index] <= self.max_retries:
                            del running[task]
                            pending.appendleft(index)
                            self.note("a Ray worker or machine was lost; its job is begun again")
                            continue
                    del running[task]  # not earlier: an interruption takes what it finds there
                    fetched.unwritten.pop(first[index], None)
                    yield result
        except KeyboardInterrupt as e:
            if on_interrupt is not None:
                end = time.monotonic() + on_interrupt(rows, e)
                self._look(board, rows, columns, set(), fetched)  # tells the jobs
                yield from self._last_results(running, jobs, end)
            raise
        finally:
            with suppress(Exception):  # Ray itself may be gone
                ray.kill(board)
            self._tasks = list(running)
            self._cancel()

    def _start(self, job: Job, board: Any, columns: Columns, first: int) -> Any:
        """Begin a job, with the files that it needs, as a Ray task."""
        task = ray.remote(_work).options(num_cpus=self.cores, max_retries=0)
        files: Files = {**job.files()}
        return task.remote(job.function, job.arguments, board, columns, first, job.rows, files)

    def _start_board(self, columns: Columns, n: int) -> Any:
        """The board, on the machine that this process is connected through; should that be lost and
        this process live, on another.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return (
            ray.remote(_Board)
            .options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
            .remote(columns, n)
        )

    def _look(
        self, board: Any, rows: Rows, columns: Columns, active: set[int], fetched: _Fetched
    ) -> None:
        """Exchange rows with the board, and write the files of active jobs, which are given by
        their first rows, where they belong. What cannot be written is tried again.
        """
        try:
            written = {name: rows[name] for name in _from_coordinator(columns)}
            fetched.looks, reported, files = ray.get(
                board.look.remote(written, fetched.looks), timeout=5.0
            )
        except RayError:  # no result depends on it
            return
        for name, array in reported.items():
            rows[name][:] = array
        for of_job in files.values():
            self._note_warnings(of_job)
        for first in active & files.keys():
            fetched.unwritten.setdefault(first, {}).update(files[first])
        for first in [*fetched.unwritten]:
            if not _write(fetched.unwritten[first]):  # at the job's end it counts
                del fetched.unwritten[first]

    def _note_warnings(self, files: Files) -> None:
        """Take the workers' warnings out of the files that came from them, and note each once."""
        for line in (files.pop(WARNINGS, None) or b"").decode(errors="replace").splitlines():
            self._note_once(line)

    def _note_once(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            self.note(line)

    def _result_of(self, task: Any, index: int, job: Job) -> Result:
        """What became of a task that has ended; the files that it wrote are where they belong. What
        cannot be written costs a warning, and what the job says.

        Raises:
            RayError: its worker or machine was lost.
        """
        try:
            value, files = ray.get(task)
        except RayTaskError as e:
            return Result(index, None, e.cause if isinstance(e.cause, Exception) else e)
        self._note_warnings(files)
        unwritten = _write(files)
        for name, error in unwritten.items():
            self._note_once(unwritable(f"a file in {Path(name).parent}", error))
        return Result(index, job.without(value, unwritten))

    def _last_results(
        self, running: dict[Any, int], jobs: Sequence[Job], end: float
    ) -> Iterator[Result]:
        """Results of jobs that return before a time of the monotonic clock; their tasks leave
        `running`.
        """
        while running and (rest := end - time.monotonic()) > 0:
            done, _ = ray.wait(list(running), timeout=rest)
            for task in done:
                index = running.pop(task)
                try:
                    result = self._result_of(task, index, jobs[index])
                except Exception:  # it is lost
                    continue
                if result.error is None:
                    yield result

    def close(self) -> None:
        """End the tasks at once, and leave the cluster."""
        self._cancel()
        ray.shutdown()

    def _cancel(self) -> None:
        """End the tasks at once."""
        for task in self._tasks:
            with suppress(Exception):  # it may have ended, or Ray may be gone
                ray.cancel(task, force=True)
        self._tasks = []


def _nodes() -> list[dict[str, Any]]:
    """The machines of the cluster that are there."""
    return [node for node in ray.nodes() if node["Alive"]]


def _write(files: Files) -> dict[str, OSError]:
    """Write files, and then remove those that are gone. Checkpoints (`.pkl`) are written after what
    they need, which has their name as the beginning of its own: at any moment there is a whole
    state.

    What is done is taken out of `files`, so that the rest can be tried again.

    Returns:
        Why files could not be written. Of a checkpoint with such a file nothing more is done.
    """
    errors: dict[str, OSError] = {}
    broken: set[str] = set()
    for name in sorted(files, key=lambda name: (files[name] is None, name.endswith(".pkl"))):
        content, path, state = files[name], Path(name), name.partition(".pkl")[0]
        if state in broken:
            continue
        try:
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, partial(_fill, content))
            del files[name]
        except OSError as e:
            errors[name] = e
            broken.add(state)
    return errors


def _fill(content: bytes, part: str) -> None:
    Path(part).write_bytes(content)
