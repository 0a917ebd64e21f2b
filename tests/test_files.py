"""Files that are written whole, and where none may be written."""

from pathlib import Path

import pytest

from erl.errors import UserError
from erl.files import check_new_file


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
