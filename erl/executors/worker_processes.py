"""Workers inside a lifetime as processes of this machine.

Jobs, results and shared items travel as files in shared memory (a folder of /dev/shm), each written
once; sockets carry their names alone. What workers count lies in a mapped array.
"""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from erl.executors.concurrent_workers import MakeBench, work
from erl.executors.jobs import WorkerLost
from erl.executors.lockstep import Job

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
_MEMORY = Path("/dev/shm")
_SERVE = "from erl.executors.worker_processes import _serve; _serve()"


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
        processes: of the workers that have begun, by number.
    """

    def __init__(self, n: int, make: MakeBench) -> None:
        self._make, self._n = make, n
        self.folder = _folder()
        (self.folder / "items").mkdir()
        # Of each worker: what it has counted, and how many items it has read.
        self._cells = np.memmap(self.folder / "cells", np.int64, "w+", shape=(2, n))
        self.processes: dict[int, subprocess.Popen] = {}
        self._connections: dict[int, Connection] = {}
        self._shared = self._removed = self._jobs = 0

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
        environment = {
            **os.environ,
            **_ONE_THREAD,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        # Workers inherit what is blocked: Ctrl-C is the lifetime's business.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.processes[worker] = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        connection = self._connections[worker] = Connection(mine.detach())
        begin = (worker, self._n, os.getpid(), self._make, list(backlog))
        self._send(worker, "begin", begin)
        assert connection is not None

    def submit(self, worker: int, job: Job) -> None:
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
        begun = list(self.processes)
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
        process = self.processes.pop(worker, None)
        if process is not None:
            process.kill()
            process.wait()
        connection = self._connections.pop(worker, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """End the workers at once, and remove what lies in shared memory."""
        for worker in list(self.processes):
            self._end(worker)
        shutil.rmtree(self.folder, ignore_errors=True)


# -- in a worker --


def _end_with(parent: int, folder: Path) -> None:
    """End this process when its parent is gone, with what lies in shared memory."""
    while os.getppid() == parent:
        time.sleep(1.0)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _serve() -> None:
    """Do jobs until the parent has no more."""
    connection = Connection(int(sys.argv[1]))
    path = Path(connection.recv())
    folder = path.parent
    worker, n, parent, make, backlog = _read(path)
    path.unlink()
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()
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
    results = 0
    while True:
        try:
            path = Path(connection.recv())
        except EOFError:
            return
        job = _read(path)
        path.unlink()
        result: Any
        try:
            result = work(bench, job, drain)
        except Exception as e:
            result = e
        results += 1
        try:
            name = _write(folder / f"result-{worker}-{results}", result)
        except (pickle.PicklingError, TypeError, AttributeError):
            assert isinstance(result, Exception)
            name = _write(
                folder / f"result-{worker}-{results}",
                RuntimeError(f"{type(result).__name__}: {result}"),
            )
        connection.send(name)
