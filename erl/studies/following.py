"""A study that is renamed while it is used.

Optuna has no operation that renames a study. Its dashboard makes a study with the new name, copies
the trials into it and deletes the old study. All numbers that a storage gives, those of the study
and of its trials, are others then. A process that uses the study goes on with the new one, which
it knows by an attribute that is copied with it.

What is written between the copying and the deletion is lost with the old study. `Study` writes the
records of its open trials again, and what else is lost is trained again.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

from erl.errors import UserError
from erl.studies.retries import RetryingStorage, cause

# User attribute of a study: what it is known by, whatever it is called.
UID = "uid"

_OF_STUDY = frozenset(
    {
        "delete_study",
        "set_study_user_attr",
        "set_study_system_attr",
        "get_study_name_from_id",
        "get_study_directions",
        "get_study_user_attrs",
        "get_study_system_attrs",
        "create_new_trial",
        "get_trial_id_from_study_id_trial_number",
        "get_all_trials",
    }
)
_OF_TRIAL = frozenset(
    {
        "set_trial_param",
        "set_trial_state_values",
        "set_trial_intermediate_value",
        "set_trial_user_attr",
        "set_trial_system_attr",
        "get_trial",
    }
)


def _may_be_gone(error: Exception) -> bool:
    """Whether an error may mean that a study or a trial is gone: also if it went in the middle of
    an operation, between a database's reading and its writing.
    """
    return isinstance(cause(error), KeyError | IntegrityError | ObjectDeletedError | StaleDataError)


class FollowingStorage(RetryingStorage):
    """A storage that goes on with a study of it when that is renamed.

    Attributes:
        moves: how often the study was found under new numbers.
    """

    def __init__(self, storage: RetryingStorage) -> None:
        super().__init__(storage.backend, storage._explain)
        self.retry_seconds = storage.retry_seconds
        self.moves = 0
        self._lock = threading.RLock()
        self._name: str | None = None
        self._uid: str | None = None
        self._first = self._now = -1  # number of the study at first, and by now
        self._numbers: dict[int, int] = {}  # of trials, by the ids that they ever had
        self._moved: dict[int, int] = {}  # from ids of before the last move to those of now
        self._then: Callable[[], None] | None = None

    def follow(
        self, study_id: int, name: str, uid: str | None, then: Callable[[], None] | None = None
    ) -> None:
        """Go on with this study from now on, wherever it goes.

        Args:
            study_id: its number now.
            name: its name now. `get_study_id_from_name` goes on to know it by this name.
            uid: its attribute `UID`; None for a study that has none, and cannot be followed.
            then: called when it was found under another number, before anything else is written.
        """
        self._first = self._now = study_id
        self._name, self._uid, self._then = name, uid, then

    def name_now(self) -> str | None:
        """What the study is called by now; None if it is gone."""
        for _ in range(2):
            moves = self.moves
            names = [s.study_name for s in self.get_all_studies() if self._is_there(s)]
            if names or not self._has_moved(moves):
                break
        return names[0] if names else None

    def id_now(self, trial_id: int) -> int:
        """The id of a trial by now."""
        with suppress(UpdateFinishedTrialError):
            return self._place("get_trial", trial_id)
        return trial_id

    def _call(self, name: str, *args: Any, **named: Any) -> Any:
        if self._uid is None or not args:
            return super()._call(name, *args, **named)
        if name == "get_study_id_from_name" and args[0] == self._name:
            return self._first
        if name not in _OF_STUDY | _OF_TRIAL:
            return super()._call(name, *args, **named)
        for _ in range(2):
            moves = self.moves
            try:
                if not name.startswith("get_"):
                    self._check_there()
                place = self._place(name, args[0])
                return self._noted(super()._call(name, place, *args[1:], **named))
            except (KeyError, IntegrityError, StorageInternalError) as e:
                if not _may_be_gone(e) or not self._has_moved(moves):
                    if isinstance(cause(e), KeyError) and self.name_now() is None:
                        raise UserError(
                            f"study {self._name!r} was deleted while this command used it"
                        ) from e
                    if isinstance(e, StorageInternalError):  # as of a value that is too long for it
                        raise self._explain(e) from e
                    raise
        return self._noted(super()._call(name, self._place(name, args[0]), *args[1:], **named))

    def _is_there(self, study: Any) -> bool:
        """Whether this is the study. SQLite gives the numbers of a deleted one to the next."""
        return study._study_id == self._now and self._uid in (None, study.user_attrs.get(UID))

    def _check_there(self) -> None:
        """Raise a KeyError if the study's number is another one's by now."""
        if super()._call("get_study_user_attrs", self._now).get(UID) != self._uid:
            raise KeyError(self._now)

    def _place(self, name: str, given: int) -> int:
        """The number by now of a study or a trial. While another thread finds a study that was
        renamed, this waits until what was lost is written again: a trial that has ended takes no
        records.
        """
        with self._lock:
            return self._place_now(name, given)

    def _place_now(self, name: str, given: int) -> int:
        if name in _OF_STUDY:
            return self._now if given == self._first else given
        if not self.moves or given not in self._numbers:
            return given
        if given not in self._moved:
            number = self._numbers[given]
            try:
                found = super()._call("get_trial_id_from_study_id_trial_number", self._now, number)
            except KeyError:
                raise UpdateFinishedTrialError(
                    f"trial {number} was begun while its study was renamed, and is gone"
                ) from None
            self._moved[given] = found
        return self._moved[given]

    def _noted(self, result: Any) -> Any:
        """A result; of trials in it the numbers are kept in mind."""
        trials = result if isinstance(result, list) else [result]
        self._numbers |= {t._trial_id: t.number for t in trials if hasattr(t, "_trial_id")}
        return result

    def _has_moved(self, moves: int) -> bool:
        """Whether the study was renamed since it had moved so often: another thread found it, or it
        is gone, and another one has its attribute.
        """
        with self._lock:
            if self.moves != moves:
                return True
            studies = self.get_all_studies()
            if self._uid is None or any(map(self._is_there, studies)):
                return False
            heirs = [s._study_id for s in studies if s.user_attrs.get(UID) == self._uid]
            if not heirs:
                return False
            self._now = max(heirs)
            self._moved = {}
            self.moves += 1
            if self._then is not None:
                self._then()
            return True
