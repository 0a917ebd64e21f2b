"""Storages that try again while a database does not answer. This is the only place where that is
done.

Repeating an operation whose answer was lost is harmless. Attributes, parameters and states are set
to the same values again. A trial that has ended meanwhile refuses, and the code that ends trials
expects that. A trial that was begun twice belongs to a coordinator which does not know of it; that
coordinator sets it to waiting (`Study.reclaim`).
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

OUTAGE_SECONDS = 600.0
MOMENT_SECONDS = 10.0
LONGEST_PAUSE = 10.0

_AWAY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,  # the proxy's own database is away
}
_log = logging.getLogger(__name__)


def cause(error: BaseException) -> BaseException:
    """What Optuna wrapped: the database's own error."""
    return (
        error.__cause__
        if isinstance(error, StorageInternalError) and error.__cause__ is not None
        else error
    )


def is_away(error: BaseException) -> bool:
    """Whether an error may pass: connections, full disks, locks, restarts; not what no repetition
    mends.
    """
    error = cause(error)
    if isinstance(error, grpc.RpcError):
        return error.code() in _AWAY
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # Optuna continues a session whose connection was lost; then there is a pending rollback.
    lost = OperationalError | InterfaceError | PendingRollbackError | PoolTimeout
    return isinstance(error, lost | OSError | StorageInternalError)


def _retried(name: str) -> Any:
    def operation(self: "RetryingStorage", *args: Any, **named: Any) -> Any:
        return self._call(name, *args, **named)

    operation.__name__ = name
    return operation


class RetryingStorage(BaseStorage):
    """Any of Optuna's storages, whose operations are tried again, with growing pauses, while it is
    away.

    Args:
        backend: the storage.
        explain: from the error that remains to the one that is raised.

    Attributes:
        retry_seconds: for how long an operation is tried again; 0, as at first, lets every error
            through at once.
    """

    def __init__(self, backend: BaseStorage, explain: Callable[[Exception], Exception]) -> None:
        self.backend, self._explain = backend, explain
        self.retry_seconds = 0.0
        self._stopped = threading.Event()
        self._warned = False

    def stop_retrying(self) -> None:
        """From now on no operation is tried again, in any thread."""
        self.retry_seconds = 0.0
        self._stopped.set()

    def _call(self, name: str, *args: Any, **named: Any) -> Any:
        """The operation of this name."""
        return self.repeated(getattr(self.backend, name), *args, **named)

    def repeated(self, operation: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """The result of an operation on the storage, which is tried again while that is away."""
        begun, pause, tries = time.monotonic(), 0.1, 0
        while True:
            try:
                result = operation(*args, **named)
            except Exception as e:
                if not is_away(e):
                    raise
                if time.monotonic() - begun >= self.retry_seconds:
                    raise self._explain(e) from e
                if not self._warned:
                    self._warned = True
                    _log.warning(
                        "%.300s; it is tried again for %.0f s", self._explain(e), self.retry_seconds
                    )
                self._stopped.wait(pause * random.uniform(0.5, 1.0))
                pause, tries = min(2 * pause, LONGEST_PAUSE), tries + 1
                continue
            if tries and self._warned:
                self._warned = False
                _log.warning("the storage answers again, after %.0f s", time.monotonic() - begun)
            return result

    create_new_study = _retried("create_new_study")
    delete_study = _retried("delete_study")
    set_study_user_attr = _retried("set_study_user_attr")
    set_study_system_attr = _retried("set_study_system_attr")
    get_study_id_from_name = _retried("get_study_id_from_name")
    get_study_name_from_id = _retried("get_study_name_from_id")
    get_study_directions = _retried("get_study_directions")
    get_study_user_attrs = _retried("get_study_user_attrs")
    get_study_system_attrs = _retried("get_study_system_attrs")
    get_all_studies = _retried("get_all_studies")
    create_new_trial = _retried("create_new_trial")
    set_trial_param = _retried("set_trial_param")
    get_trial_id_from_study_id_trial_number = _retried("get_trial_id_from_study_id_trial_number")
    set_trial_state_values = _retried("set_trial_state_values")
    set_trial_intermediate_value = _retried("set_trial_intermediate_value")
    set_trial_user_attr = _retried("set_trial_user_attr")
    set_trial_system_attr = _retried("set_trial_system_attr")
    get_trial = _retried("get_trial")
    get_all_trials = _retried("get_all_trials")

    def remove_session(self) -> None:
        """Close this thread's connection."""
        self.backend.remove_session()
