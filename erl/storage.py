"""Opening the storages of studies: any address that Optuna takes, checked before it is used, never shown with its password."""

import json
import os
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from erl.errors import UserError

DEFAULT_STORAGE = "sqlite:///studies.db"

optuna.logging.set_verbosity(optuna.logging.WARNING)


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


def refused(storage: str, error: BaseException) -> UserError:
    """Why a storage cannot be used, without its password."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    url = _url(storage)
    secrets = [] if url is None else [url.password, *(v for k, v in url.query.items() if "pass" in k.casefold())]
    for secret in secrets:
        if secret:
            text = text.replace(str(secret), "***")
    return UserError(f"cannot use the storage {shown(storage)}: {text or type(error).__name__}")


def _check_sqlite(storage: str, create: bool) -> None:
    """Refuse a file that is missing or empty (unless it may be created), no SQLite database, or another program's."""
    name = make_url(storage).database
    if not name or name == ":memory:":
        raise UserError(f"{shown(storage)} lives in memory only; name a file, as in {DEFAULT_STORAGE}")
    path = Path(name)
    if not path.exists():
        if not create:
            raise UserError(f"there is no study database {path}")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"cannot create the study database {path}: its folder does not exist or is not writable")
        return
    if create and not os.access(path, os.W_OK):
        raise UserError(f"the study database {path} is not writable")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error as e:
        raise UserError(f"{path} is not a study database: {e}") from e
    if not tables and not create:
        raise UserError(f"the study database {path} is empty")
    if tables and not {"studies", "trials", "version_info"} <= tables:
        raise UserError(f"{path} is another program's database (tables {', '.join(sorted(tables)[:4])}), not a study database")  # fmt: skip


def _check_journal(path: Path, create: bool) -> None:
    """Refuse a file that is missing (unless it may be created), cannot be written, or holds something else."""
    if not path.exists() and not create:
        raise UserError(f"there is no journal file {path}")
    if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir() or not path.parent.is_dir():
        raise UserError(f"cannot write the journal file {path}")
    try:  # Optuna takes a last line that it cannot read for one that is still being written
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        if first and "op_code" not in json.loads(first):
            raise ValueError
    except FileNotFoundError:
        return
    except ValueError:
        raise UserError(f"{path} is not the journal of a study") from None


def open_storage(storage: str, create: bool = False) -> BaseStorage:
    """Open a study database.

    Args:
        storage: any Optuna address: `sqlite:///file`, `postgresql+psycopg://…`, `mysql+pymysql://…`, `grpc://host:port`,
            or the path of a journal file (`journal:path` or `*.log`).
        create: whether a missing file is created.

    Raises:
        UserError: it cannot be used; the message has no password.
    """
    try:
        if storage.startswith("journal:") or storage.endswith(".log"):
            path = Path(storage.removeprefix("journal:"))
            _check_journal(path, create)
            return JournalStorage(JournalFileBackend(str(path)))
        if storage.startswith("grpc://"):
            from optuna.storages import GrpcStorageProxy

            host, _, port = storage.removeprefix("grpc://").rstrip("/").partition(":")
            if not port.isdigit():
                raise UserError(f"{shown(storage)} needs a port, as in grpc://localhost:13000")
            with warnings.catch_warnings(action="ignore"):  # that it is experimental
                proxy = GrpcStorageProxy(host=host, port=int(port))
            study_names(proxy)  # it connects when it is first asked, and here its errors are understood
            return proxy
        if "://" not in storage:
            raise UserError(f"{storage!r} is no storage address; sqlite:///{storage} would be one")
        url = _url(storage)
        if url is None:
            raise UserError(
                f"{shown(storage)} is no storage address: DATABASE://USER:PASSWORD@HOST:PORT/NAME, with special characters as %XX"
            )
        sqlite = url.get_backend_name() == "sqlite"
        if sqlite:
            _check_sqlite(storage, create)
        # SQLite's writers wait for one another; a server's connections are tested before use.
        settings: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
        return _open_tables(storage, settings)
    except UserError:
        raise
    except Exception as e:  # whatever a driver or a file's contents object to
        raise refused(storage, e) from None


def _open_tables(storage: str, settings: dict[str, Any]) -> RDBStorage:
    """Optuna's tables, created if there are none yet; another process that creates them just now is waited for."""
    for attempt in range(10):
        try:
            return RDBStorage(storage, engine_kwargs=settings)
        except (OperationalError, ProgrammingError, IntegrityError) as e:
            if attempt == 9 or ("exist" not in str(e) and "UNIQUE" not in str(e)):
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError


def study_names(storage: BaseStorage) -> list[str]:
    """Names of all studies, the newest last."""
    return [s.study_name for s in storage.get_all_studies()]
