from pathlib import Path

import pytest

from nanolm.errors import SettingsError
from nanolm.files import write_asked_for, write_durably


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"first", b"second"):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_durably(tmp_path / "folder", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_place_that_is_none_is_named_by_its_flag(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing/a\.png cannot be written: No such file") as error:
        write_asked_for("--png", tmp_path / "missing" / "a.png", b"")
    assert error.value.where == f"--png {tmp_path / 'missing' / 'a.png'}"
