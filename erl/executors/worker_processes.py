"""Workers inside a lifetime as processes of this machine.

Jobs, results and shared items travel as files in shared memory (a folder of /dev/shm), each written
once; sockets carry their names alone. What workers count lies in a mapped array.

To import what a bench needs takes seconds. So one process does that, and workers are forks of it.
It is nobody's child. Executors kill the process of a lifetime with all of its children: this one
is left, and removes the folder.
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
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from erl.errors import UserError
from erl.executors.concurrent_workers import MakeBench, work
from erl.executors.jobs import (
    ENDING,
    ONE_THREAD,
    WorkerLost,
    end_with,
    leave_signals_to_coordinator,
)
from erl.executors.virtual_clock import WorkerJob
from erl.files import write_whole, writing

_MEMORY = Path("/dev/shm")
# The child ends at once, and its own child has no parent.
_FORK = (
    "import os; os.fork() and os._exit(0); "
    "from erl.executors.worker_processes import _fork_workers; _fork_workers()"
)


def _place() -> Path:
    """Shared memory, or, where there is none, the folder of temporary files."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def _write(path: Path, value: Any) -> str:
    """Pickle a value into a file that is whole or not there; its path.

    Raises:
        UserError: there is no place for it.
    """
    with writing(path):
        write_whole(path, partial(_fill, value))
    return str(path)


def _fill(value: Any, part: str) -> None:
    with open(part, "wb") as file:
        pickle.dump(value, file, protocol=5)


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

    Raises:
        UserError: there is no place in shared memory.
    """

    def __init__(self, n: int, make: MakeBench) -> None:
        self._make, self._n = make, n
        with writing(f"a folder in {_place()}"):
            self.folder = Path(tempfile.mkdtemp(prefix="erl-", dir=_place()))
        try:
            with writing(self.folder):
                (self.folder / "items").mkdir()
                # Of each worker: what it has counted, and how many items it has read.
                self._cells = np.memmap(self.folder / "cells", np.int64, "w+", shape=(2, n))
        except UserError:
            self._remove()
            raise
        self.pids: dict[int, int] = {}
        self._connections: dict[int, Connection] = {}
        self._shared = self._removed = self._jobs = 0
        self._forker: socket.socket | None = None

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
                subprocess.run(
                    [sys.executable, "-c", _FORK, *map(str, arguments)],
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    check=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            self._forker = mine
        return self._forker

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
                answer = self._connections[worker].recv()
                if isinstance(answer, str):
                    path, answer = answer, _read(answer)
                    os.unlink(path)
                results.append((worker, answer))
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
            self._forker.close()  # it hears that
            self._forker = None

    def close(self) -> None:
        """End the workers at once, and remove what lies in shared memory."""
        for worker in list(self.pids):
            self._end(worker)
        self._end_forker()
        self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


# -- in the process that workers are forks of --


def _fork_workers() -> None:
    """Import what benches need, and become a worker for each socket that comes, in a fork. When the
    parent is gone or has closed its end, end the workers and remove the folder.
    """
    number, parent, folder, module = sys.argv[1:]
    import_module(module)
    forks: set[int] = set()
    with socket.socket(fileno=int(number)) as connection:
        connection.settimeout(1.0)
        while _alive(int(parent)):
            forks -= {fork for fork in forks if os.waitpid(fork, os.WNOHANG)[0]}
            try:
                message, handles, *_ = socket.recv_fds(connection, 16, 1)
            except TimeoutError:
                continue
            if not message:
                break
            if (fork := os.fork()) == 0:
                connection.close()
                leave_signals_to_coordinator()
                _serve(handles[0], Path(folder))
                os._exit(0)
            forks.add(fork)
            os.close(handles[0])
    for fork in forks:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)
    shutil.rmtree(folder, ignore_errors=True)  # a parent that was killed did not
    os._exit(0)


def _alive(pid: int) -> bool:
    """Whether there is a process of this number, and of this user."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


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
    try:
        begin = Path(connection.recv())
        connection.send(os.getpid())
    except (EOFError, OSError):
        return
    end_with(os.getppid())  # the process that forks, which ends with the parent
    answers = 0

    def answer(result: Any) -> None:
        nonlocal answers
        answers += 1
        if isinstance(result, Exception):
            result = _portable(result)
        try:
            result = _write(folder / f"result-{os.getpid()}-{answers}", result)
        except UserError as e:  # a full memory has no place for a result, and a socket for this
            result = e
        with suppress(OSError):  # the parent is gone, as it will find out at once
            connection.send(result)

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
