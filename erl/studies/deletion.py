"""Deleting a study: what belongs to it, what still names it, and whether a command works on it.

Folders of agents, logs and checkpoints are named after studies. Without the flag that asks for it
they stay.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from erl.cli import Sink, plural
from erl.files import files_below, folder_name, is_folder
from erl.studies.artefacts import files_of, folder_of, unnamed
from erl.studies.commands import is_kind, kind_of, name_of, trials_of
from erl.studies.configuration import EvolutionStudy, FinalsStudy, TestStudy
from erl.studies.flags import DeleteConfig
from erl.studies.following import UID
from erl.studies.leases import Lease, check_unused
from erl.studies.storage import open_storage, shown
from erl.studies.trials import states_text
from erl.studies.winner import TEST_OF, TESTED, finals_name

# How the names of tests go on after that of their evolution.
TESTS = ("_trial_", "_mean_")


@dataclass(frozen=True)
class Doomed:
    """A study that is to be deleted.

    Attributes:
        name: its name.
        study_id: its number in the storage.
        title: what it is, and its trials, in words.
        files: its files beside the database.
    """

    name: str
    study_id: int
    title: str
    files: tuple[Path, ...]


def delete_study(config: DeleteConfig, sink: Sink) -> int:
    """Delete a study, and the finals of an evolution with it; without `--yes` say what that would
    be.

    Returns:
        Exit code: 0, or 1 if a file or a folder could not be deleted.

    Raises:
        UserError: there is no such study, a command works on it, or a folder cannot be read.
            Nothing has been deleted then.
    """
    storage = open_storage(config.storage)
    name = name_of(storage, config)
    studies = {s.study_name: s for s in storage.get_all_studies()}
    # The evolution, which names them, is the last to go.
    names = [*finals_of(storage, name, studies), name]
    for each in names:
        check_unused(storage, each, studies[each]._study_id, config.yes, sink)
    doomed = [_doomed(config.storage, storage, studies[each], names) for each in names]
    folders, kept = _folders(config, names, studies)
    said = list(_references(storage, name, names, studies))
    if config.yes:
        return _delete(config, storage, doomed, folders, [*kept, *said], sink)
    sink.line(f"this would be deleted from {shown(config.storage)}:")
    for study in doomed:
        sink.line(f"  {study.title}")
    for described in folders.values():
        sink.line(f"  {described}" if config.files else _stays(described))
    for line in [*kept, *said]:
        sink.line(line)
    sink.line("nothing is deleted yet: --yes deletes it")
    return 0


def finals_of(storage: BaseStorage, name: str, studies: Mapping[str, Any]) -> list[str]:
    """The name of the finals that go with a study that is deleted; none if there are none.

    Args:
        storage: of both.
        name: of the study.
        studies: all of the storage.
    """
    if is_kind(EvolutionStudy, studies[name]):
        finals = finals_name(storage, name)
        if finals in studies and is_kind(FinalsStudy, studies[finals]):
            return [finals]
    return []


def _delete(
    config: DeleteConfig,
    storage: BaseStorage,
    doomed: Sequence[Doomed],
    folders: Mapping[Path, str],
    said: Sequence[str],
    sink: Sink,
) -> int:
    """Delete folders, if asked for, then the files of studies, then the studies: if it is
    interrupted, the same command deletes the rest. What cannot be deleted is named.
    """
    leases = [Lease(storage, each.study_id) for each in doomed]
    try:
        for lease in leases:
            lease.start()  # no file goes before the storage can be written
        failed = False
        for path, described in folders.items() if config.files else ():
            if remove(path, sink):
                sink.line(f"deleted: {described}")
            else:
                failed = True
        for path in [path for each in doomed for path in each.files]:
            failed |= not remove(path, sink)
        for each in doomed:
            storage.delete_study(each.study_id)
            sink.line(f"deleted: {each.title}")
    finally:
        for lease in leases:
            lease.stop()
    for line in [*([] if config.files else map(_stays, folders.values())), *said]:
        sink.line(line)
    return int(failed)


def remove(path: Path, sink: Sink) -> bool:
    """Remove a file, a link, or a folder with all that is in it; not what a link leads to.

    Returns:
        Whether it could be; otherwise a line says why not.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as e:
        sink.line(f"failed: {path} could not be deleted: {e.strerror or e}")
        return False
    return True


def _stays(described: str) -> str:
    """That a folder is not deleted."""
    return f"stays: {described}; --files deletes it too"


def _described(folder: Path) -> str:
    """A folder, and how much is in it."""
    if folder.is_symlink():
        return f"{folder}, a link"
    return f"{folder} with {plural(len(files_below(folder)), 'file')}"


def _doomed(address: str, storage: BaseStorage, study: Any, names: Sequence[str]) -> Doomed:
    """A study with all that it has in the storage.

    Args:
        address: of the storage.
        storage: the same.
        study: one of its studies.
        names: of all that are to be deleted.
    """
    name, trials = study.study_name, trials_of(storage, study)
    files = tuple(unnamed(address, storage, files_of(study, trials), but=names))
    title = f"study {name}: {kind_of(study)}, trials: {states_text(trials)}"
    title += f", {plural(len(files), 'file')} in {folder_of(address)}" * bool(files)
    return Doomed(name, study._study_id, title, files)


def _folders(
    config: DeleteConfig, names: Sequence[str], studies: Mapping[str, Any]
) -> tuple[dict[Path, str], list[str]]:
    """The folders that bear the names of studies, with how much is in each, and lines about those
    that are not only theirs.

    Args:
        config: names the folders above.
        names: of the studies.
        studies: all of the storage.

    Raises:
        UserError: a folder cannot be read.
    """
    found, kept = {}, []
    for name in names:
        folder = folder_name(name)
        others = [n for n in studies if n not in names and folder_name(n) == folder]
        for above in (config.models, config.logs, config.runs):
            path = Path(above) / folder
            if folder in ("", ".", "..") or not (is_folder(path) or os.path.islink(path)):
                continue
            if others:
                kept.append(f"stays: {path}, which is also the folder of the study {others[0]}")
            else:
                found[path] = _described(path)
    return found, kept


def _references(
    storage: BaseStorage, name: str, names: Sequence[str], studies: Mapping[str, Any]
) -> Iterator[str]:
    """Lines about other studies of the storage that name this one."""
    one = studies[name]
    for other, study in studies.items():
        if other in names:
            continue
        if is_kind(EvolutionStudy, one) and is_kind(TestStudy, study):
            named = other.startswith(tuple(name + ending for ending in TESTS))
            uid = one.user_attrs.get(UID)
            named |= uid is not None and study.user_attrs.get(TEST_OF, "").startswith(uid)
            if named or f"{TESTED}{other}" in one.user_attrs:
                yield f"stays: study {other}, a test of this evolution"
        if f"{TESTED}{name}" in study.user_attrs:
            yield f"study {other} still says what this test found"
        of_finals = is_kind(FinalsStudy, one) and is_kind(EvolutionStudy, study)
        if of_finals and finals_name(storage, other) == name:
            yield f"study {other} keeps the winner that these finals chose"
