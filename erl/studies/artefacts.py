"""Files that belong to studies and trials: Optuna's artifacts, in a folder beside the database.

This is the only file that knows the store. A file is there completely before the database knows of
it. Files of a trial that has ended are known to its study, since Optuna lets nobody change such a
trial; the dashboard shows them all the same.
"""

import json
import mimetypes
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from erl.files import reading, write_whole
from erl.studies.storage import journal_file, sqlite_file

PREFIX = "artifacts:"
DEFAULT_FOLDER = "artifacts"


def of_trial(trial_id: int) -> str:
    """Prefix of the study's attributes that name files of a trial which had ended."""
    return f"dashboard:{PREFIX}{trial_id}:"


def folder_of(address: str) -> Path:
    """The folder with the files of a storage: beside the file that it is, `studies.db.artifacts`;
    for a database on a server `artifacts`, where the command is run.
    """
    file = journal_file(address) or sqlite_file(address)
    return Path(DEFAULT_FOLDER if file is None else f"{file}.{DEFAULT_FOLDER}")


def store_of(address: str) -> FileSystemArtifactStore:
    """The artifact store of a storage."""
    return FileSystemArtifactStore(folder_of(address))


@dataclass(frozen=True)
class Artefact:
    """A file that a study or a trial has.

    Attributes:
        id: of the file in the store.
        name: of the file, as it is shown.
    """

    id: str
    name: str


def listed(attrs: Mapping[str, Any], prefix: str = PREFIX) -> list[Artefact]:
    """The files that system attributes name."""
    found = []
    for key, value in attrs.items():
        meta = json.loads(value) if key.startswith(prefix) else None
        if meta is not None:  # else it was deleted in the dashboard
            found.append(Artefact(meta["artifact_id"], meta["filename"]))
    return found


def files_of(study: Any, trials: Iterable[FrozenTrial]) -> set[str]:
    """The identities of the files of one of a storage's studies and of its trials."""
    attrs = [study.system_attrs, *(t.system_attrs for t in trials)]
    return {
        k.rpartition(":")[2] for a in attrs for k, v in a.items() if PREFIX in k and json.loads(v)
    }


def unnamed(
    address: str, storage: BaseStorage, identities: set[str], but: Collection[str] = ()
) -> list[Path]:
    """The files among these that no study of a storage names. Optuna's `copy_study` copies the
    names of files, and not the files.

    Args:
        address: of the storage.
        storage: the same.
        identities: of the files.
        but: names of studies that do not count.

    Raises:
        UserError: the folder of files cannot be read.
    """
    for study in storage.get_all_studies() if identities else ():
        if study.study_name not in but:
            trials = storage.get_all_trials(study._study_id, deepcopy=False)
            identities = identities - files_of(study, trials)
    folder = folder_of(address)
    with reading(folder):
        return [folder / i for i in sorted(identities) if (folder / i).is_file()]


def attach(
    address: str,
    storage: BaseStorage,
    study_id: int,
    path: str | Path,
    name: str | None = None,
    trial_id: int | None = None,
) -> None:
    """Add a file to a study or a trial. One of the same name is replaced.

    Args:
        address: of the storage, which tells the folder.
        storage: of the study.
        study_id: its number.
        path: of the file; it may be removed afterwards.
        name: as it is shown; by default that of the file.
        trial_id: of the trial; None for the study.

    Raises:
        OSError: the file cannot be read or written.
    """
    path, folder = Path(path), folder_of(address)
    name = name or path.name
    of_study = storage.get_study_system_attrs(study_id)
    there = listed(of_study)
    if trial_id is not None:
        own = listed(storage.get_trial(trial_id).system_attrs)
        there = own + listed(of_study, of_trial(trial_id))
    same = next((a for a in there if a.name == name), None)
    identity = str(uuid.uuid4()) if same is None else same.id
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / identity, partial(_copy, path))
    if same is not None:
        return
    kind, encoding = mimetypes.guess_type(name)
    meta = ArtifactMeta(identity, name, kind or "application/octet-stream", encoding)
    text = json.dumps(vars(meta))
    if trial_id is not None:
        with suppress(UpdateFinishedTrialError):
            storage.set_trial_system_attr(trial_id, PREFIX + identity, text)
            return
    prefix = PREFIX if trial_id is None else of_trial(trial_id)
    storage.set_study_system_attr(study_id, prefix + identity, text)


def _copy(path: Path, part: str) -> None:
    """Have the same file under another name; a copy of it where file systems differ."""
    try:
        os.link(path, part)
    except OSError:
        shutil.copyfile(path, part)


def identities_in(source: str, target: str, identities: Iterable[str]) -> dict[str, str]:
    """What files of one storage are called in another: the same, unless the other one's folder has
    it, where a file of a study must not be that of its copy. A file that is missing keeps its name,
    in case that it comes back.

    Raises:
        UserError: one of the folders cannot be read.
    """

    def has(folder: Path, identity: str) -> bool:
        with reading(folder):
            return (folder / identity).exists()

    folders = folder_of(source), folder_of(target)
    return {
        i: str(uuid.uuid4()) if all(has(folder, i) for folder in folders) else i for i in identities
    }


def renamed(attrs: Mapping[str, Any], identities: Mapping[str, str]) -> dict[str, Any]:
    """System attributes that name files by other identities."""
    changed = {}
    for key, value in attrs.items():
        start, _, identity = key.rpartition(":")
        if PREFIX in key and identity in identities:
            key = f"{start}:{identities[identity]}"
            value = json.dumps(json.loads(value) | {"artifact_id": identities[identity]})
        changed[key] = value
    return changed


def copy_files(source: str, target: str, identities: Mapping[str, str]) -> list[str]:
    """Copy files from one storage's folder to another's.

    Args:
        source: address of the storage that has them.
        target: address of the other one.
        identities: of the files in the source -> those in the target.

    Returns:
        The identities of files that are missing in the source.
    """
    here, there = folder_of(source), folder_of(target)
    missing = []
    for before, after in identities.items():
        if not (here / before).is_file():
            missing.append(before)
        else:
            there.mkdir(parents=True, exist_ok=True)
            write_whole(there / after, partial(_copy, here / before))
    return missing
