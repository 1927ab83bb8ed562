import os
import stat
import tempfile
import time
from pathlib import Path

import pytest

from nanolm import files
from nanolm.errors import SettingsError
from nanolm.files import (
    disk_time,
    open_regular,
    remove_tree,
    replacing,
    user_path,
    write_durably,
    write_text,
    wrong_file_types,
)
from nanolm.output_files import write_output_file


def test_write_durably_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"first", b"second"):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_durably(tmp_path / "folder", b"new")
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file") as temporary:
        temporary.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


def test_replacing_a_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        write_durably(path, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, "the default mode under this umask"
        for mode in (0o600, 0o664, 0o755):
            path.chmod(mode)
            write_durably(path, b"again")
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_name_of_maximum_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)
    write_durably(path, b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_temporary_names_are_unpredictable_and_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, victim = tmp_path / "a.txt", tmp_path / "victim"
    victim.write_text("mine")
    with replacing(path) as first, replacing(path) as second:
        assert first != second
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    files.temporary_sibling(tmp_path / "nanolm").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_durably(path, b"evil")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "broken link", "FIFO"])
def test_writes_refuse_links_and_special_files(kind: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "path", tmp_path / "victim"
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(victim)
    if kind == "link":
        victim.write_text("mine")
    for write in (
        lambda: write_durably(path, b"x"),
        lambda: write_text(path, "x"),
        lambda: open_regular(path, "ab"),
        lambda: open_regular(path, "r+b"),
    ):
        with pytest.raises(OSError, match="not a regular file"):
            write()
    with pytest.raises(SettingsError, match="not a regular file"):
        write_output_file("--png", path, b"x", follow_links=False)
    assert not victim.exists() or victim.read_text() == "mine"


def test_open_regular_keeps_the_content_of_other_hard_links(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "path"
    other.write_text("rows\n")
    path.hardlink_to(other)
    with open_regular(path, "ab") as file:
        file.write(b"more\n")
    assert other.read_text() == "rows\n"
    assert path.read_text() == "rows\nmore\n"


def test_wrong_file_types_names_each_path_and_type(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    (tmp_path / "b").mkdir()
    (tmp_path / "c").write_text("")
    os.mkfifo(tmp_path / "d")
    names = [tmp_path / name for name in "abcde"]
    assert wrong_file_types(tmp_path, names, []) == ["a is a symbolic link", "b is a folder", "d is a FIFO"]
    assert wrong_file_types(tmp_path, [], names) == ["a is a symbolic link", "c is a file", "d is a FIFO"]


def test_remove_tree_keeps_the_target_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "nowhere", ignore_errors=True)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(FileNotFoundError):
        remove_tree(tmp_path / "nowhere")


def test_user_path_expands_only_a_leading_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(user_path(path)) for path in ("~", "~/a", "~x/a", "a/~", "./~/a", "")] == [
        "/home/me",
        "/home/me/a",
        "~x/a",
        "a/~",
        "~/a",
        ".",
    ]
    assert user_path(Path("~/a")) == Path("~/a")


def test_user_path_keeps_the_tilde_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert user_path("~/a") == Path("~/a")


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    killed = files.temporary_sibling(tmp_path / files.REPLACEMENT)
    killed.write_text("half")
    other = tmp_path / ".other.0123456789abcdef.tmp"
    other.write_text("not nanolm's")
    with files.replacing(tmp_path / "a") as alive:
        alive.write_text("a")
        files.write_durably(tmp_path / "b", b"b")
        assert sorted(tmp_path.iterdir()) == sorted([alive, other, tmp_path / "b"])
    assert (tmp_path / "a").read_text() == "a"


def test_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path, name in ((tmp_path / "missing" / "b", "missing/b"), (tmp_path / "a", "a")):
        with pytest.raises((FileNotFoundError, IsADirectoryError)) as error:
            files.write_durably(path, b"")
        assert error.value.filename == str(tmp_path / name)


def refuse(**arguments: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_disk_time_is_that_of_the_files_whatever_the_clock_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    file = tmp_path / "file"
    file.touch()
    now = disk_time(tmp_path)
    assert 0.0 <= now - file.stat().st_mtime < 60.0
    assert disk_time(tmp_path / "missing" / "folder") >= now
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert disk_time(tmp_path) == 0.0, "a disk that cannot be written"
