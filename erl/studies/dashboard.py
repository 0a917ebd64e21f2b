"""Optuna's dashboard on a study database, with the files of its trials.

`erl dashboard`, or `make dashboard`. The package `optuna-dashboard` is an extra.
"""

import json
import re
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import StudyModel
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from erl.cli import Sink
from erl.errors import UserError
from erl.studies.artefacts import folder_of, store_of
from erl.studies.flags import DashboardConfig
from erl.studies.retries import RetryingStorage
from erl.studies.storage import open_storage, shown


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def make_dashboard(config: DashboardConfig) -> WSGIServer:
    """A server of the dashboard, which listens and does not answer yet (`serve_forever`).

    Raises:
        UserError: the package is missing, or the storage or the port cannot be used.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise UserError(
            'the dashboard needs another package: pip install "erl[dashboard]", or pip install '
            "optuna-dashboard"
        ) from None
    storage = open_storage(config.storage)
    app: Any = wsgi(storage, artifact_store=store_of(config.storage))
    if (database := database_of(storage)) is not None:
        app = _renaming(app, database)
    try:
        return make_server(config.host, config.port, app, _Server, _Quiet)
    except OSError as e:
        raise UserError(
            f"cannot listen at {config.host}:{config.port}: {e.strerror or e}; --port takes another"
        ) from e


def dashboard(config: DashboardConfig, sink: Sink) -> int:
    """Serve the dashboard until Ctrl-C."""
    server = make_dashboard(config)
    host, port = server.server_address[:2]
    sink.line(f"dashboard of {shown(config.storage)}: http://{host!s}:{port}/")
    files = folder_of(config.storage)
    sink.line(f"files of its trials: {Path(files).absolute()}")
    sink.line("Ctrl-C ends it")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


def database_of(storage: RetryingStorage) -> RDBStorage | None:
    """The relational database of a storage; None if it is of another kind."""
    backend: BaseStorage = getattr(storage.backend, "_backend", storage.backend)
    return backend if isinstance(backend, RDBStorage) else None


def rename(database: RDBStorage, study_id: int, name: str) -> bool:
    """Give a study another name, and leave all else as it is; False if the name is taken.

    The dashboard's own way is to copy the study and to delete the first. That loses the files of
    trials that had ended, and what a running command writes meanwhile.
    """
    named = update(StudyModel).where(StudyModel.study_id == study_id).values(study_name=name)
    try:
        with database.engine.begin() as connection:
            connection.execute(named)
    except IntegrityError:
        return False
    return True


def _renaming(app: Any, database: RDBStorage) -> Any:
    """The dashboard's WSGI application, in which a study that is renamed stays the same study."""

    def answer(environ: dict[str, Any], start: Any) -> Any:
        asked = re.fullmatch(r"/api/studies/(\d+)/rename/?", environ.get("PATH_INFO", ""))
        if environ["REQUEST_METHOD"] != "POST" or asked is None:
            return app(environ, start)
        status, said = _rename(environ, database, int(asked[1]))
        start(status, [("Content-Type", "application/json")])
        return [json.dumps(said).encode()]

    return answer


def _rename(
    environ: dict[str, Any], database: RDBStorage, study_id: int
) -> tuple[str, dict[str, Any]]:
    """Do what a request to rename asks; status and what is answered."""
    try:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        name = json.loads(body)["study_name"].strip()
    except (ValueError, KeyError, TypeError, AttributeError):
        name = ""
    if not name:
        return "400 Bad Request", {"reason": "the new name is missing"}
    studies = {s._study_id: s for s in database.get_all_studies()}
    if study_id not in studies:
        return "404 Not Found", {"reason": f"there is no study {study_id}"}
    if not rename(database, study_id, name):
        return "400 Bad Request", {"reason": f"there is a study {name!r} already"}
    return "201 Created", {
        "study_id": study_id,
        "study_name": name,
        "directions": [d.name.lower() for d in studies[study_id].directions],
        "user_attrs": [],
        "is_preferential": False,
    }
