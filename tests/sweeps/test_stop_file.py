"""The file through which the driver of a sweep stops its jobs."""

from pathlib import Path

from nanolm.sweeps.stop_file import STOP, StopFile


def test_stop_file_is_empty_until_written(tmp_path: Path) -> None:
    file = StopFile(str(tmp_path / ".stop"))
    assert file.read() == ""
    file.write(STOP)
    assert file.read() == STOP
    file.remove()
    assert file.read() == ""
    file.remove()


def test_stop_file_ignores_a_missing_folder(tmp_path: Path) -> None:
    StopFile(str(tmp_path / "gone" / ".stop")).write(STOP)
    assert not (tmp_path / "gone").exists()
