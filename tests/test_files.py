"""Files that are written whole, and where none may be written."""

from pathlib import Path

import pytest

from erl.errors import UserError
from erl.files import check_new_file, write_whole


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
