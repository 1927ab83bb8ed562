import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.errors import BusyError, PathError, RunError
from nanolm.files import write_durably
from nanolm.runs.directory import RunDirectory, create_unique_folder, display_path
from nanolm.runs.summary import Summary


def test_claim_without_a_run_leaves_no_folder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "outputs" / "a")
    with run.claim():
        assert run.lock.exists()
    assert list(tmp_path.iterdir()) == []


def test_claim_keeps_existing_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with RunDirectory(tmp_path / "a").claim():
        pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes.txt"]


def test_second_writer_is_told_of_the_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a")
    code = (
        "import sys\nfrom nanolm.runs.directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).claim():\n print('claimed', flush=True)\n sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "claimed\n"
        began = time.monotonic()
        with pytest.raises(RunError, match=rf"another process writes to this run: process {first.pid} on"), run.claim():
            pass
        assert time.monotonic() - began < 1
        first.kill()
    with run.claim():  # the lock of a killed process is free
        assert f"process {os.getpid()}" in run.lock.read_text()


def test_unique_folders_are_numbered(tmp_path: Path) -> None:
    names = [create_unique_folder(tmp_path / "outputs" / "a").name for _ in range(3)]
    assert names == ["a", "a_2", "a_3"]


def test_a_write_replaces_the_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_require_names_the_newest_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no folder"):
        RunDirectory(tmp_path / "nowhere").require()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.yaml").touch()
    with pytest.raises(RunError, match=rf"is not a run directory[\s\S]*the newest here is {tmp_path / 'one'}"):
        RunDirectory(tmp_path).require()
    assert RunDirectory(tmp_path / "one").require().exists()


def test_claim_is_visible_and_waits_for_the_timeout(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a")
    assert not run.is_claimed()
    with run.claim():
        assert run.is_claimed()
        with pytest.raises(BusyError), RunDirectory(run.path).claim():
            pass
        began = time.monotonic()
        with pytest.raises(BusyError), RunDirectory(run.path).claim(timeout=0.2):
            pass
        assert time.monotonic() - began >= 0.2
    assert not run.is_claimed()


def test_display_path_is_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert display_path(tmp_path / "a" / "b") == Path("a/b")
    assert display_path("a") == Path("a")
    assert display_path("/elsewhere") == Path("/elsewhere")


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "samples.jsonl", "train.log", "wandb", "checkpoints", "config.yaml", ".lock"]
)
def test_claim_refuses_links_in_the_folder(name: str, tmp_path: Path) -> None:
    run, victim = RunDirectory(tmp_path / "a"), tmp_path / "victim"
    run.path.mkdir()
    (run.path / name).symlink_to(victim)
    with pytest.raises(RunError, match=rf"a run cannot be written here: {name} is a symbolic link"), run.claim():
        pass
    assert [path.name for path in run.path.iterdir()] == [name]
    assert not victim.exists()


def test_claim_refuses_wrong_file_types(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    os.mkfifo(run.log)
    run.metrics.mkdir()
    run.checkpoints.touch()
    expected = r"metrics\.jsonl is a folder, train\.log is a FIFO, checkpoints is a file"
    with pytest.raises(RunError, match=expected), run.claim():
        pass


def test_claim_accepts_a_link_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to("disk")
    with RunDirectory(tmp_path / "a").claim():
        assert (tmp_path / "disk" / ".lock").exists()


def test_hard_linked_lock_file_keeps_its_content(tmp_path: Path) -> None:
    run, other = RunDirectory(tmp_path / "a"), tmp_path / "other"
    run.path.mkdir()
    other.write_text("mine")
    run.lock.hardlink_to(other)
    with run.claim(), pytest.raises(BusyError), RunDirectory(run.path).claim():
        pass
    assert other.read_text() == "mine"


@pytest.mark.parametrize(
    "act",
    [lambda path: RunDirectory(path).claim().__enter__(), create_unique_folder],
    ids=["claim", "fresh"],
)
def test_unwritable_folder_is_explained(act: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, reason in {
        "file/a": "Not a directory|File exists",
        "file/a/b": "Not a directory",
        "loop/a": "Too many levels of symbolic links|File exists",
        "dangling/a": "File exists",
        "a" * 300: "File name too long",
        f"{'a' * 300}/b": "File name too long",
    }.items():
        with pytest.raises(PathError, match=f"the run directory cannot be written to: ({reason})") as error:
            act(tmp_path / name)
        assert str(tmp_path) in error.value.where
        assert "hydra.run.dir=FOLDER chooses another" in error.value.hint


def test_unreadable_file_is_explained(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for path, read in ((run.summary, run.read_summary), (run.metrics, run.read_metrics)):
        path.mkdir()
        with pytest.raises(RunError, match=rf"{path.name} cannot be read: (Is a directory|it is a folder)"):
            read()
    assert RunDirectory(tmp_path / "file").read_summary() == Summary()


def test_read_only_folder_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "read_only"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        for run in (RunDirectory(folder), RunDirectory(folder / "a")):
            with pytest.raises(PathError, match="cannot be written to: Read-only file system"), run.claim():
                pass
        with pytest.raises(PathError, match="cannot be written to: Read-only file system"):
            create_unique_folder(folder / "outputs" / "a")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_fifo_as_lock_does_not_block(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    os.mkfifo(run.lock)
    assert not run.is_claimed()
