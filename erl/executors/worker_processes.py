"""Workers inside a lifetime as processes of this machine.

Jobs, results and shared items travel as files in shared memory (a folder of /dev/shm), each written
once; sockets carry their names alone. What workers count lies in a mapped array.

To import what a bench needs takes seconds. So one process does that, and workers are forks of it.
"""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from erl.executors.concurrent_workers import MakeBench, work
from erl.executors.jobs import (
    ENDING,
    ONE_THREAD,
    WorkerLost,
    end_with,
    leave_signals_to_coordinator,
)
from erl.executors.virtual_clock import WorkerJob

_MEMORY = Path("/dev/shm")
_FORK = "from erl.executors.worker_processes import _fork_workers; _fork_workers()"


def _folder() -> Path:
    """A new folder in shared memory, or, where there is none, in the folder of temporary files."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="erl-", dir=place))


def _write(path: Path, value: Any) -> str:
    """Pickle a value into a file that is whole or not there; its path."""
    part = path.with_name(f".{path.name}")
    with open(part, "wb") as file:
        pickle.dump(value, file, protocol=5)
    os.replace(part, path)
    return str(path)


def _read(path: str | Path) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


class ProcessHost:
    """Processes of this machine as workers.

    Args:
        n: number of workers.
        make: makes the bench of each, there.

    Attributes:
        pids: of the workers that have begun, by number.
    """

    def __init__(self, n: int, make: MakeBench) -> None:
        self._make, self._n = make, n
        self.folder = _folder()
        (self.folder / "items").mkdir()
        # Of each worker: what it has counted, and how many items it has read.
        self._cells = np.memmap(self.folder / "cells", np.int64, "w+", shape=(2, n))
        self.pids: dict[int, int] = {}
        self._connections: dict[int, Connection] = {}
        self._shared = self._removed = self._jobs = 0
        self._forker: tuple[subprocess.Popen, socket.socket] | None = None

    @property
    def counted(self) -> int:
        """What all workers have counted, also those that died."""
        return int(self._cells[0].sum())

    @counted.setter
    def counted(self, units: int) -> None:
        self._cells[0] = 0
        self._cells[0, 0] = units

    def start(self, worker: int, backlog: Sequence[Any]) -> None:
        """Begin a worker, or replace one that died: see `Host`."""
        self._end(worker)
        self._cells[1, worker] = self._shared  # all earlier ones are in the backlog
        mine, theirs = socket.socketpair()
        try:
            socket.send_fds(self._fork_from(), [b"fork"], [theirs.fileno()])
        except OSError:  # it was killed, and its forks with it
            self._end_forker()
            socket.send_fds(self._fork_from(), [b"fork"], [theirs.fileno()])
        theirs.close()
        connection = self._connections[worker] = Connection(mine.detach())
        self._send(worker, "begin", (worker, self._n, self._make, list(backlog)))
        try:
            self.pids[worker] = connection.recv()
        except (EOFError, OSError):
            self.pids[worker] = 0  # it died at once; `wait` will say so

    def _fork_from(self) -> socket.socket:
        """The socket of the process that workers are forks of."""
        if self._forker is None:
            mine, theirs = socket.socketpair()
            module = getattr(self._make, "func", self._make).__module__
            environment = {
                **os.environ,
                **ONE_THREAD,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            try:
                arguments = (theirs.fileno(), os.getpid(), self.folder, module)
                process = subprocess.Popen(
                    [sys.executable, "-c", _FORK, *map(str, arguments)],
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            self._forker = process, mine
        return self._forker[1]

    def submit(self, worker: int, job: WorkerJob) -> None:
        """Give a worker a job."""
        self._send(worker, "job", job)

    def _send(self, worker: int, what: str, value: Any) -> None:
        self._jobs += 1
        path = _write(self.folder / f"{what}-{worker}-{self._jobs}", value)
        try:
            self._connections[worker].send(path)
        except OSError:  # it died; `wait` will say so
            Path(path).unlink(missing_ok=True)

    def share(self, item: Any) -> None:
        """Give all workers an item, and remove those that all have read."""
        _write(self.folder / "items" / str(self._shared), item)
        self._shared += 1
        begun = list(self.pids)
        read = int(self._cells[1, begun].min()) if begun else self._shared
        for number in range(self._removed, read):
            (self.folder / "items" / str(number)).unlink(missing_ok=True)
        self._removed = max(self._removed, read)

    def wait(self, seconds: float) -> list[tuple[int, Any]]:
        """What has ended: see `Host`."""
        by_connection = {connection: w for w, connection in self._connections.items()}
        results: list[tuple[int, Any]] = []
        for ready in wait(list(by_connection), seconds):
            worker = by_connection[ready]  # type: ignore[index]
            try:
                path = self._connections[worker].recv()
                results.append((worker, _read(path)))
                os.unlink(path)
            except (EOFError, OSError):
                self._end(worker)
                results.append((worker, WorkerLost("its process died: killed, or out of memory")))
        return sorted(results, key=lambda result: result[0])

    def _end(self, worker: int) -> None:
        pid = self.pids.pop(worker, 0)
        # Its end of the socket is closed when it is dead, and no other process has its number.
        connection = self._connections.pop(worker, None)
        if connection is not None:
            if pid and not connection.poll():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            connection.close()

    def _end_forker(self) -> None:
        if self._forker is not None:
            process, connection = self._forker
            connection.close()
            process.kill()
            process.wait()
            self._forker = None

    def close(self) -> None:
        """End the workers at once, and remove what lies in shared memory."""
        for worker in list(self.pids):
            self._end(worker)
        self._end_forker()
        shutil.rmtree(self.folder, ignore_errors=True)


# -- in the process that workers are forks of --


def _fork_workers() -> None:
    """Import what benches need, and become a worker for each socket that comes, in a fork; until
    the parent is gone.
    """
    number, parent, folder, module = sys.argv[1:]
    import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for forks
    with socket.socket(fileno=int(number)) as connection:
        connection.settimeout(1.0)
        while os.getppid() == int(parent):
            try:
                message, handles, *_ = socket.recv_fds(connection, 16, 1)
            except TimeoutError:
                continue
            if not message:
                break
            if os.fork() == 0:
                connection.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                leave_signals_to_coordinator()
                _serve(handles[0], Path(folder))
                os._exit(0)
            os.close(handles[0])
    shutil.rmtree(folder, ignore_errors=True)  # a parent that was killed did not
    os._exit(0)


# -- in a worker --


def _portable(error: Exception) -> Exception:
    """An exception that the parent can read: itself, or else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _serve(handle: int, folder: Path) -> None:
    """Do jobs until the parent has no more."""
    connection = Connection(handle)
    begin = Path(connection.recv())
    connection.send(os.getpid())
    end_with(os.getppid())  # the process that forks, which ends with the parent
    answers = 0

    def answer(result: Any) -> None:
        nonlocal answers
        answers += 1
        if isinstance(result, Exception):
            result = _portable(result)
        name = _write(folder / f"result-{os.getpid()}-{answers}", result)
        with suppress(OSError):  # the parent is gone, as it will find out at once
            connection.send(name)

    try:
        worker, n, make, backlog = _read(begin)
        begin.unlink()
        cells = np.memmap(folder / "cells", np.int64, "r+", shape=(2, n))

        def count(units: int) -> int:
            cells[0, worker] += units
            return int(cells[0].sum())

        def drain() -> list[Any]:
            items = []
            while (item := folder / "items" / str(int(cells[1, worker]))).exists():
                items.append(_read(item))
                cells[1, worker] += 1
            return items

        bench = make(count)
        for item in backlog:
            bench.receive(item)
    except Exception as e:  # another worker would fail in the same way
        answer(e)
        return
    while True:
        try:
            path = Path(connection.recv())
        except (EOFError, OSError):
            return
        job = _read(path)
        path.unlink()
        result: Any
        try:
            result = work(bench, job, drain)
        except Exception as e:
            result = e
        answer(result)
