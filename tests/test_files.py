"""Files that are written whole, and where none may be written."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from erl.errors import UserError
from erl.files import check_new_file, files_below, is_folder, write_whole
from erl.lifetimes.models import find_model, load_model
from erl.studies.artefacts import identities_in, unnamed
from erl.studies.storage import open_storage

REASONS = {"closed/x": "Permission denied", "x" * 300: "File name too long"}
OTHER = "sqlite:///other.db"


def test_what_is_no_file_is_never_replaced(tmp_path):
    old = tmp_path / "old.csv"
    old.write_text("kept")
    for path, overwrite, said in (
        (old, False, "exists; --overwrite replaces it"),
        (tmp_path, True, "exists and is not a file"),
        (Path("/dev/null"), True, "exists and is not a file"),
    ):
        with pytest.raises(UserError, match=said):
            check_new_file(path, overwrite)
    check_new_file(old, True)
    check_new_file(tmp_path / "new" / "a.csv", False)
    assert [p.name for p in tmp_path.iterdir()] == ["old.csv"]


@pytest.mark.parametrize("name", REASONS, ids=REASONS.values())
@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda name: check_new_file(Path(f"{name}.csv"), False), "cannot be written"),
        (lambda name: load_model(find_model(name)), "cannot be read"),
        (lambda name: open_storage(f"sqlite:///{name}.db"), "cannot use the storage sqlite:///"),
        (lambda name: open_storage(f"sqlite:///{name}.db", create=True), "cannot use the storage"),
        (lambda name: open_storage(f"{name}.log"), "cannot use the storage"),
        (lambda name: identities_in(f"sqlite:///{name}", OTHER, "a"), "artifacts cannot be read"),
        (
            lambda name: unnamed(f"sqlite:///{name}", SimpleNamespace(get_all_studies=list), {"a"}),
            "artifacts cannot be read",
        ),
    ],
    ids=["new", "model", "database", "new database", "journal", "copied", "unnamed"],
)
def test_why_a_path_cannot_be_looked_at_is_said(use, said, name, closed):
    with pytest.raises(UserError, match=f"{said}.*{REASONS[name]}"):
        use(name)


def test_a_closed_folder_is_not_taken_for_an_empty_or_a_missing_one(closed):
    Path("a/b").mkdir(parents=True)
    Path("a/b/2.zip").touch()
    Path("a/1.zip").touch()
    assert files_below(Path("a")) == [Path("a/1.zip"), Path("a/b/2.zip")]
    assert files_below(Path("missing")) == files_below(Path("a/1.zip")) == []
    with pytest.raises(UserError, match=r"^closed cannot be read: Permission denied$"):
        files_below(Path("closed"))
    assert [is_folder(name) for name in ("a", "a/1.zip", "x" * 300)] == [True, False, False]
    with pytest.raises(UserError, match=r"^closed/a cannot be read: Permission denied$"):
        is_folder("closed/a")


@pytest.mark.parametrize("before", [{}, {"a.pkl": "old"}], ids=["new", "replaced"])
def test_a_write_that_fails_half_way_changes_nothing(tmp_path, before):
    def write(part):
        with open(part, "w") as file:
            file.write("half of the n")
        raise OSError("no space left")

    path = tmp_path / "a.pkl"
    for name, content in before.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, write)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before
    write_whole(path, lambda part: Path(part).write_text("new"))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.pkl": "new"}
