"""Real servers for tests: PostgreSQL and MariaDB in temporary folders, Optuna's gRPC proxy, and a
connection that can be cut.
"""

import glob
import importlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pymysql
import pytest
import sqlalchemy

PASSWORD = "s3cret word"
QUOTED = PASSWORD.replace(" ", "%20")
PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/opt/homebrew/opt/mariadb/bin",
    "/usr/local/pgsql/bin",
    "/usr/sbin",
)


def find(program):
    """A server's program, wherever Debian, Fedora or Homebrew put it; the newest of several
    versions.
    """
    on_path = shutil.which(program)
    if on_path:
        return on_path
    found = [p for place in PLACES for p in glob.glob(f"{place}/{program}")]
    return max(
        found,
        key=lambda p: [int(n) for n in "".join(c if c.isdigit() else " " for c in p).split()],
        default=None,
    )


def missing(what):
    """Skip, or fail where continuous integration should have installed it."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed", pytrace=False)
    pytest.skip(f"{what} is not installed", allow_module_level=True)


def needed(module):
    """A module of a package that is in `requirements.txt`, but that users may do without; `missing`
    where it is not installed.
    """
    with suppress(ImportError):
        return importlib.import_module(module)
    return missing(module)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server in a folder of its own, under a user of its own where we are root: neither runs as
    root.
    """

    user = "nobody"

    def __init__(self):
        self.port = free_port()
        # In memory where tests are: each of them has a database of its own there, of 8 megabytes.
        where = os.environ.get("PYTEST_DEBUG_TEMPROOT")
        self.folder = Path(tempfile.mkdtemp(prefix="erl-server-", dir=where))
        self.as_user = {}
        if os.geteuid() == 0:
            entry = next(e for e in pwd.getpwall() if e.pw_name in (self.user, "nobody"))
            with suppress(KeyError):
                entry = pwd.getpwnam(self.user)
            self.as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)

    def call(self, *command):
        done = subprocess.run(
            [str(c) for c in command],
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=120,
            env={**os.environ, "LC_ALL": "C", "HOME": str(self.folder)},
            **self.as_user,
        )
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgreSQL(Server):
    user = "postgres"

    def __init__(self):
        super().__init__()
        (self.folder / "password").write_text(PASSWORD)
        self.data = self.folder / "data"
        options = (
            "-U",
            "erl",
            "--auth=scram-sha-256",
            f"--pwfile={self.folder}/password",
            "--no-sync",
            "--locale=C",
        )
        self.call(find("initdb"), "-D", self.data, "-E", "UTF8", *options)
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(
                f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = "
                f"''\nfsync = off\n"
                "full_page_writes = off\nshared_buffers = 16MB\nmax_connections = 300\n"
            )
        self.start()

    def start(self):
        self.call(find("pg_ctl"), "-D", self.data, "-w", "-l", self.folder / "log", "start")

    def stop(self, mode="immediate"):
        with suppress(AssertionError):
            self.call(find("pg_ctl"), "-D", self.data, "-w", "-m", mode, "stop")

    def address(self, database, port=None):
        return f"postgresql+psycopg://erl:{QUOTED}@127.0.0.1:{port or self.port}/{database}"

    def create(self, database):
        engine = sqlalchemy.create_engine(self.address("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {database}"))
        engine.dispose()
        return self.address(database)


class MariaDB(Server):
    user = "mysql"

    def __init__(self):
        super().__init__()
        self.data = self.folder / "data"
        install = find("mariadb-install-db")
        self.call(
            install,
            "--no-defaults",
            f"--datadir={self.data}",
            "--auth-root-authentication-method=normal",
        )
        (self.data / "init.sql").write_text(
            f"CREATE USER 'erl'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO "
            f"'erl'@'127.0.0.1';\n"
        )
        self.start()

    def start(self):
        options = (
            f"--datadir={self.data}",
            f"--port={self.port}",
            f"--socket={self.data}/s",
            f"--pid-file={self.data}/pid",
            f"--init-file={self.data}/init.sql",
        )
        small = (
            "--bind-address=127.0.0.1",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=16M",
        )
        self.process = subprocess.Popen(
            [find("mariadbd"), "--no-defaults", "--skip-name-resolve", *options, *small],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("a"),
            **self.as_user,
        )
        for _ in range(300):
            try:
                self.connect().close()
                return
            except pymysql.err.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)
        raise AssertionError("MariaDB does not start")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def connect(self):
        return pymysql.connect(host="127.0.0.1", port=self.port, user="erl", password=PASSWORD)

    def create(self, database):
        with self.connect() as connection:
            connection.cursor().execute(f"CREATE DATABASE {database}")
        return f"mysql+pymysql://erl:{QUOTED}@127.0.0.1:{self.port}/{database}"


class Proxy:
    """Optuna's gRPC proxy in front of a database, a process of its own."""

    def __init__(self, address):
        self.port = free_port()
        code = (
            "import sys; from optuna.storages import get_storage, run_grpc_proxy_server as run; "
            "run(get_storage(sys.argv[1]), port=int(sys.argv[2]))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, address, str(self.port)]
        )
        self.address = f"grpc://localhost:{self.port}"
        for _ in range(600):
            with suppress(OSError):
                socket.create_connection(("localhost", self.port), 1).close()
                return
            assert self.process.poll() is None
            time.sleep(0.1)
        raise AssertionError("the proxy does not start")

    def stop(self):
        self.process.kill()
        self.process.wait()


class Wire:
    """A TCP connection to another port of this machine that can be cut and mended."""

    def __init__(self, to):
        self._to, self.whole, self._ends = to, True, set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.whole:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            self._ends |= {near, far}
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    @staticmethod
    def _pass(a, b):
        with suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
        for end in (a, b):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self.whole = False
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends = set()

    def mend(self):
        self.whole = True

    def close(self):
        self.cut()
        self._listener.close()
