import errno
import os
import stat
from pathlib import Path

import pytest

from nanolm.untrusted import damaged, open_inside, read_inside, unreadable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (folder / "file").write_bytes(b"inside")
    (folder / "deep" / "file").write_bytes(b"deep")
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


def failure(path: Path, folder: Path, max_bytes: int = 100) -> OSError:
    with pytest.raises(OSError) as caught:
        read_inside(path, folder, max_bytes)
    return caught.value


def test_regular_files_are_read(folder: Path) -> None:
    assert read_inside(folder / "file", folder) == b"inside"
    assert read_inside(folder / "deep" / "file", folder) == b"deep"
    with open_inside(folder / "file", folder) as file:
        assert file.read(2) == b"in"
    assert failure(folder / "missing", folder).errno == errno.ENOENT
    assert failure(folder / "missing" / "file", folder).errno == errno.ENOENT


def test_links_inside_of_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("deep/file")
    (folder / "linked_folder").symlink_to("deep")
    (tmp_path / "other_name").symlink_to(folder)
    assert read_inside(folder / "link", folder) == b"deep"
    assert read_inside(folder / "linked_folder" / "file", folder) == b"deep"
    assert read_inside(tmp_path / "other_name" / "link", tmp_path / "other_name") == b"deep"


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "chain").symlink_to("link")
    (folder / "up").symlink_to("..")
    (tmp_path / "run_of_another_name").mkdir()
    (tmp_path / "run_of_another_name" / "file").write_bytes(b"secret")
    (folder / "neighbour").symlink_to("../run_of_another_name/file")
    for path in ("link", "chain", "up/secret", "neighbour"):
        error = failure(folder / path, folder)
        assert error.errno == errno.ELOOP, path
        assert "outside of" in error.strerror
    (folder / "loop").symlink_to("loop")
    assert failure(folder / "loop", folder).errno == errno.ELOOP


def test_special_files_are_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to("fifo")
    assert "it is a FIFO" in failure(folder / "fifo", folder).strerror
    assert "it is a FIFO" in failure(folder / "link", folder).strerror
    assert "it is a folder" in failure(folder / "deep", folder).strerror
    (folder / "device").symlink_to("/dev/zero")
    assert "outside of" in failure(folder / "device", folder).strerror


def test_files_have_a_limit(folder: Path) -> None:
    assert read_inside(folder / "file", folder, max_bytes=6) == b"inside"
    error = failure(folder / "file", folder, max_bytes=5)
    assert error.strerror == "it has 6 bytes, more than 5"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads every file")
def test_missing_permission_is_an_error(folder: Path) -> None:
    (folder / "file").chmod(stat.S_IWUSR)
    assert failure(folder / "file", folder).errno == errno.EACCES


def test_errors_name_file_and_reason(folder: Path) -> None:
    error = damaged(folder / "file", "it has no step")
    assert (error.found, error.where) == ("file is damaged: it has no step", str(folder / "file"))
    error = damaged(folder / "file", "it has no step", line=3)
    assert (error.found, error.where) == ("file is damaged: it has no step (line 3)", f"{folder / 'file'}:3")
    assert "cannot be read: it has 6 bytes" in unreadable(folder / "file", failure(folder / "file", folder, 5)).found
