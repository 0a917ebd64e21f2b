"""Opening the storages of studies: any address that Optuna takes, checked before it is used, never
shown with its password.
"""

import json
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
from optuna.storages._grpc.client import GrpcClientCache
from optuna.storages._rdb.models import BaseModel
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from erl.errors import UserError, one_line
from erl.studies import DEFAULT_STORAGE
from erl.studies.retries import RetryingStorage, cause

# How soon a connection that was cut without a word is noticed, in seconds; an address may say
# otherwise (`?connect_timeout=3`).
CONNECTING = {
    "sqlite": {"timeout": 60},  # writers wait for one another
    "psycopg": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    },
    "psycopg2": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    },
    "pymysql": {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60},
}
SHORT = 5  # letters of a password that may be part of other words
ANSWER_SECONDS = 60.0  # that a gRPC proxy has for one answer
DRIVERS = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "pymysql": "pymysql",
}

optuna.logging.set_verbosity(optuna.logging.WARNING)


def usual(storage: str) -> str:
    """The address with the driver that this project installs, where it names only PostgreSQL."""
    scheme, separator, rest = storage.partition("://")
    missing = scheme == "postgresql" and find_spec("psycopg2") is None
    return (
        f"postgresql+psycopg://{rest}"
        if separator and (scheme == "postgres" or missing)
        else storage
    )


def _url(storage: str) -> URL | None:
    """The address as a database URL; None if it is none."""
    try:
        return make_url(storage)
    except (SQLAlchemyError, ValueError):
        return None


def shown(storage: str) -> str:
    """A storage address fit for output and records: without its password."""
    if "://" not in storage:
        return storage
    url = _url(storage)
    if url is None:
        return storage.partition("://")[0] + "://***"
    hidden = {k: "***" if "pass" in k.casefold() else v for k, v in url.query.items()}
    return url.set(query=hidden).render_as_string(hide_password=True)


def sqlite_file(storage: str) -> str | None:
    """The file of an SQLite database; None for another storage."""
    url = _url(storage)
    return None if url is None or url.get_backend_name() != "sqlite" else url.database


def journal_file(storage: str) -> str | None:
    """The file of a journal; None for another storage."""
    if storage.startswith("journal:"):
        return storage.removeprefix("journal:")
    return storage if storage.endswith(".log") and "://" not in storage else None


def storage_words(storage: str) -> list[str]:
    """The flag of a command that names a storage; none for the one that it takes anyway."""
    return [] if storage == DEFAULT_STORAGE else ["--storage", shown(storage)]


class StorageError(UserError):
    """A storage that cannot be used, or not any more."""


class GoneError(StorageError):
    """The file of a storage was removed while it was used."""


class MissingError(UserError):
    """There is no such study, or no file that could hold it."""


def refused(storage: str, error: BaseException) -> StorageError:
    """Why a storage cannot be used, without its password."""
    error = cause(error)
    details = error.details() if isinstance(error, grpc.RpcError) else None
    text = one_line(details or getattr(error, "orig", None) or error)
    url, file = _url(storage), sqlite_file(storage)
    with suppress(OSError):  # where nobody can look, the error says why
        if file and not Path(file).exists():  # SQLite says that it is read-only
            gone = f"the file {file} is not there"
            return GoneError(f"cannot use the storage {shown(storage)}: {gone}")
    secrets = (
        []
        if url is None
        else [url.password, *(v for k, v in url.query.items() if "pass" in k.casefold())]
    )
    for secret in secrets:
        # A letter is in every word: it is hidden only where it stands alone.
        if secret and len(str(secret)) < SHORT:
            text = re.sub(rf"(?<!\w){re.escape(str(secret))}(?!\w)", "***", text)
        elif secret:
            text = text.replace(str(secret), "***")
    return StorageError(f"cannot use the storage {shown(storage)}: {text or type(error).__name__}")


def _tables(path: Path, mode: str) -> set[str]:
    """Names of an SQLite database's tables."""
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=60)
        try:
            return {
                row[0]
                for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
        finally:
            connection.close()
    except sqlite3.OperationalError as e:
        # A writer was killed while it wrote: the next process has to undo what it had begun.
        if mode == "ro" and getattr(e, "sqlite_errorname", "").startswith("SQLITE_READONLY"):
            return _tables(path, "rw")
        raise


def _check_sqlite(storage: str, create: bool) -> None:
    """Refuse a file that is missing or empty (unless it may be created), no SQLite database, or
    another program's.
    """
    name = make_url(storage).database
    if not name or name == ":memory:":
        raise UserError(
            f"{shown(storage)} is kept in memory only; name a file, for example {DEFAULT_STORAGE}"
        )
    path = Path(name)
    if not path.exists():
        if not create:
            raise MissingError(
                f"there is no study database {path.absolute()}: run the command in the folder of "
                f"the studies, or name their database with --storage"
            )
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(
                f"cannot create the study database {path}: its folder does not exist or is not "
                f"writable"
            )
        return
    if create and not os.access(path, os.W_OK):
        raise UserError(f"the study database {path} is not writable")
    try:
        tables = _tables(path, "ro")
    except sqlite3.Error as e:
        if getattr(e, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise UserError(f"{path} is locked by another process, and was not let go") from e
        raise UserError(f"{path} is not a study database: {e}") from e
    # A process that was killed while it made the tables left some of them; the next makes the rest.
    begun = tables <= {*BaseModel.metadata.tables, "alembic_version"}
    whole = {"studies", "trials", "version_info"} <= tables
    if begun and not whole and not create:
        raise MissingError(f"the study database {path} is empty")
    if not begun and not whole:
        raise UserError(
            f"{path} is another program's database (tables {', '.join(sorted(tables)[:4])}), not "
            f"a study database"
        )


def _check_journal(path: Path, create: bool) -> None:
    """Refuse a file that is missing, or holds something else. If it may be created, refuse one that
    cannot be written too.
    """
    if not path.exists() and not create:
        raise MissingError(
            f"there is no journal file {path.absolute()}: name the right one with --storage"
        )
    writable = os.access(path if path.exists() else path.parent, os.W_OK)
    if path.is_dir() or not path.parent.is_dir() or (create and not writable):
        raise UserError(f"cannot write the journal file {path}")
    try:  # Optuna takes a last line that it cannot read for one that is still being written
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        entry = json.loads(first) if first else {"op_code": 0}
        if not isinstance(entry, dict) or "op_code" not in entry:
            raise ValueError
    except FileNotFoundError:
        return
    except ValueError:
        raise UserError(f"{path} is not the journal of a study") from None


class _Lock(JournalFileSymlinkLock):
    """The lock of a journal file, whose holder finds no torn line at its end.

    A writer that was killed, or whose disk was full, leaves part of a line. The next line would be
    joined to it, and no reader come past the two. What was torn was never reported as written, so
    it is taken away.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        # The lock is a link to the file, read from the folder that both are in, whatever that is
        # called on another machine. A link that leads nowhere would be waited for without end.
        self._lock_target_file = os.path.basename(path)
        self._path = path

    def acquire(self) -> bool:
        super().acquire()
        try:
            _drop_torn_line(self._path)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        # Others may have removed the lock because it was held for so long; what was written is
        # there all the same.
        with suppress(RuntimeError):
            super().release()


def _drop_torn_line(path: str) -> None:
    """Cut a file after its last line end."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep, block = end, 1 << 16
        while keep > 0:
            start = max(0, keep - block)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)


def _open_journal(path: Path) -> JournalStorage:
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_Lock(str(path))))
    except ValueError:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    json.loads(line)
                except ValueError:
                    raise UserError(
                        f"line {number} of the journal {path} is damaged; to save the rest, "
                        f"copy the lines before it to a new file"
                    ) from None
        raise


class _Deadline(grpc.UnaryUnaryClientInterceptor):
    """Gives every call a time after which it fails: a proxy whose machine is gone never answers."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(timeout=ANSWER_SECONDS), request)


class _Proxy(GrpcStorageProxy):
    def _setup(self) -> None:
        super()._setup()
        self._stub = StorageServiceStub(grpc.intercept_channel(self._channel, _Deadline()))
        self._cache = GrpcClientCache(self._stub)


def _open_proxy(storage: str) -> BaseStorage:
    host, _, port = storage.removeprefix("grpc://").rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{shown(storage)} needs a port, as in grpc://localhost:13000")
    with warnings.catch_warnings(action="ignore"):  # that it is experimental
        proxy = _Proxy(host=host, port=int(port))
    study_names(proxy)  # it connects when it is first asked, and here its errors are understood
    return proxy


def open_storage(storage: str, create: bool = False) -> RetryingStorage:
    """Open a study database.

    Args:
        storage: any Optuna address: `sqlite:///file`, `postgresql+psycopg://…`,
            `mysql+pymysql://…`, `grpc://host:port`, or the path of a journal file (`journal:path`
            or `*.log`).
        create: whether a missing file is created.

    Raises:
        UserError: it cannot be used; the message has no password.
    """
    storage = usual(storage)
    explain = partial(refused, storage)
    try:
        if (journal := journal_file(storage)) is not None:
            path = Path(journal)
            _check_journal(path, create)
            return RetryingStorage(_open_journal(path), explain)
        if storage.startswith("grpc://"):
            return RetryingStorage(_open_proxy(storage), explain)
        if "://" not in storage and storage and (Path(storage).is_dir() or storage.endswith("/")):
            name = f"{storage.rstrip('/')}/studies.db"
            raise UserError(f"{storage!r} is a folder; name a file in it: sqlite:///{name}")
        if "://" not in storage:
            raise UserError(f"{storage!r} is not a storage address; use sqlite:///{storage}")
        url = _url(storage)
        if url is None:
            raise UserError(
                f"{shown(storage)} is not a storage address: "
                f"write DATABASE://USER:PASSWORD@HOST:PORT/NAME, with special characters as %XX"
            )
        return RetryingStorage(get_storage(_open_database(storage, url, create)), explain)
    except UserError:
        raise
    except Exception as e:  # whatever a driver or a file's contents object to
        raise refused(storage, e) from None


def _open_database(storage: str, url: URL, create: bool) -> RDBStorage:
    sqlite = url.get_backend_name() == "sqlite"
    driver = url.drivername if sqlite else url.get_driver_name()
    if sqlite:
        _check_sqlite(storage, create)
    connecting = CONNECTING.get("sqlite" if sqlite else driver, {})
    settings: dict[str, Any] = {
        "connect_args": {k: v for k, v in connecting.items() if k not in url.query}
    }
    if not sqlite:
        settings["pool_pre_ping"] = True  # a server's connections are tested before use
    try:
        return _open_tables(storage, settings)
    except ImportError as e:
        package = DRIVERS.get(driver)
        hint = f' (pip install "{package}")' if package else ""
        scheme, separator, rest = storage.partition("://")
        if scheme in ("mysql", "mariadb"):  # SQLAlchemy's own choice, mysqldb, must be compiled
            instead = shown(f"{scheme}+pymysql{separator}{rest}")
            hint = f": write {instead} (pip install pymysql)"
        raise UserError(
            f"{shown(storage)} needs the driver {driver!r}, which is not installed{hint}"
        ) from e


def _open_tables(storage: str, settings: dict[str, Any]) -> RDBStorage:
    """Optuna's tables, created if there are none yet; another process that creates them just now is
    waited for.
    """
    for attempt in range(10):
        try:
            return RDBStorage(storage, engine_kwargs=settings)
        except (OperationalError, ProgrammingError, IntegrityError) as e:
            made_just_now = e.statement is not None and re.search(
                "exist|unique|duplicate|deadlock", str(e), re.I
            )
            if attempt == 9 or not made_just_now:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError


def study_names(storage: BaseStorage) -> list[str]:
    """Names of all studies, the newest last."""
    return [s.study_name for s in storage.get_all_studies()]


def has_study(storage: str, name: str) -> bool:
    """Whether there is a storage of this address, with a study of this name."""
    try:
        return name in study_names(open_storage(storage))
    except UserError:
        return False


def place_of(text: str, storage: str) -> tuple[str, str]:
    """Storage and name of the study that `STUDY` or `STORAGE#STUDY` means.

    Names may have a `#` too: what is a study as a whole, or behind one of several `#`, is that.

    Args:
        text: the one or the other.
        storage: where a study lies that is only named.
    """
    cuts = [i for i, letter in enumerate(text) if letter == "#"]
    if not cuts or has_study(storage, text):
        return storage, text
    places = [(text[:i] or storage, text[i + 1 :]) for i in cuts]
    return next((p for p in places[:-1] if has_study(*p)), places[-1])


def names_text(names: Sequence[str]) -> str:
    """What a storage has: `has a, b`, or `has no study yet`."""
    return f"has {', '.join(sorted(names)[:12])}" if names else "has no study yet"
