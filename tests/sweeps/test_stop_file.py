"""The file through which the driver of a sweep stops its jobs."""

import os
from pathlib import Path

from nanolm.sweeps.stop_file import STOP, read_stop_file, write_stop_file


def test_stop_file_is_empty_until_written(tmp_path: Path) -> None:
    path = tmp_path / ".stop"
    assert read_stop_file(path) == read_stop_file(None) == ""
    write_stop_file(path, STOP)
    assert read_stop_file(path) == STOP


def test_stop_file_of_another_type_or_size_is_ignored(tmp_path: Path) -> None:
    for number, make in enumerate((os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"))):
        make(tmp_path / f".stop-{number}")
        assert read_stop_file(tmp_path / f".stop-{number}") == ""
    (tmp_path / ".stop").write_bytes(b"\xff" * 10)
    assert read_stop_file(tmp_path / ".stop") not in ("", STOP)
    os.truncate(tmp_path / ".stop", 10**8)
    assert read_stop_file(tmp_path / ".stop") == ""


def test_stop_file_ignores_a_missing_folder(tmp_path: Path) -> None:
    write_stop_file(tmp_path / "gone" / ".stop", STOP)
    assert not (tmp_path / "gone").exists()
