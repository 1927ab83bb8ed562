import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolm.data.corpus.paths import find_files
from nanolm.errors import DataError


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


def names(pattern: Path | str, below: Path) -> list[str]:
    return [file.relative_to(below).as_posix() for file in find_files(str(pattern)).files]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two texts with runs, a run without config.yaml, sweeps and the cache in the same folder."""
    folder = tmp_path / "texts"
    write(folder, "a.txt", "sub/b.txt", "config.yaml")
    for run in ("R", "sub/sweep/job=1"):
        write(folder, *(f"{run}/{name}" for name in ("config.yaml", "summary.json", "samples.jsonl", "step/x.txt")))
    write(folder, "bare/metrics.jsonl", "bare/summary.json", "bare/samples.jsonl")
    write(folder, "barer/checkpoints/step-2/a.txt", "barer/samples.jsonl", "barest/samples.jsonl", "barest/train.log")
    write(folder, "sub/sweep/.lock", "sub/sweep/job=2/error.txt")
    write(folder, "failed/.lock", "failed/job=1/error.txt")
    write(folder, "optuna/study.journal", "optuna/job/error.txt")
    write(folder, "cache/downloads/play.txt")
    return folder


def test_find_files_skips_runs_sweeps_and_cache(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(texts / "cache"))
    assert names(texts, texts) == ["a.txt", "config.yaml", "sub/b.txt"]
    assert names(texts / "**" / "*.txt", texts) == ["a.txt", "sub/b.txt"]
    messages = "; ".join(find_files(f"{texts}/**/*.txt").skipped)
    assert f"4 run directories ({texts / 'R'}, {texts / 'bare'}, {texts / 'barer'} and 1 more)" in messages
    assert f"3 sweeps ({texts / 'failed'}, {texts / 'optuna'}, {texts / 'sub' / 'sweep'})" in messages
    assert f"1 cache folder ({texts / 'cache'})" in messages
    assert names(texts / "*.txt", texts) == ["a.txt"]
    monkeypatch.chdir(texts)
    assert list(find_files("*/*.txt").files) == [Path("sub/b.txt")]
    assert find_files("*.txt").skipped == []


def test_find_files_reads_text_in_cache_folder(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(texts))
    shutil.rmtree(texts / "cache")
    write(texts, "downloads/play.txt", "streams/text-char/manifest.json")
    found = find_files(f"{texts}/**/*.txt")
    assert "2 cache folders" in "".join(found.skipped)
    assert [file.name for file in found.files] == ["a.txt", "b.txt"]


def test_find_files_reads_named_file_of_run(texts: Path) -> None:
    assert names(texts / "R" / "samples.jsonl", texts) == ["R/samples.jsonl"]
    for pattern in (texts / "R", f"{texts}/R/*.jsonl", f"{texts}/*/samples.jsonl"):
        with pytest.raises(DataError, match=r"is skipped[\s\S]*run director[\s\S]*named directly"):
            find_files(str(pattern))


def test_find_files_follows_links_without_cycles(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/c.txt", "texts/z/a.txt", "texts/b.txt")
    texts = tmp_path / "texts"
    (texts / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("loop", "z/up", "z/again"):
        (texts / name).symlink_to(texts)
    (texts / "first").symlink_to(texts / "z")
    (texts / "again.txt").symlink_to(texts / "b.txt")
    assert names(texts, texts) == ["b.txt", "linked/c.txt", "z/a.txt"]
    assert names(texts / "**", texts) == ["b.txt", "linked/c.txt", "z/a.txt"]
    assert names(texts / "**" / "*.txt", texts) == ["b.txt", "linked/c.txt", "z/a.txt"]
    assert names(texts / "fi*" / "*.txt", texts) == ["first/a.txt"]
    assert f"1 second name of a file that is read once ({texts / 'again.txt'})" in find_files(str(texts)).skipped


def test_find_files_names_skipped_special_files(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".hidden/b.txt", ".c")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.txt"))
    found = find_files(str(tmp_path))
    assert [file.name for file in found.files] == ["a.txt"]
    messages = "; ".join(found.skipped)
    assert f"2 FIFOs, sockets or devices ({tmp_path / 'pipe.txt'}, {tmp_path / 'socket.txt'})" in messages
    assert "2 hidden files and folders" in messages
    with pytest.raises(DataError, match="a FIFO, a socket or a device"):
        find_files(str(tmp_path / "pipe.txt"))


def test_find_files_names_folders_that_glob_skips(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "sub/b.txt")
    messages = find_files(f"{tmp_path}/*").skipped
    assert messages == [f"1 folder that the glob does not descend into ({tmp_path / 'sub'})"]


def test_find_files_refuses_dangling_link(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    for pattern in (tmp_path, tmp_path / "*.txt", tmp_path / "gone.txt"):
        with pytest.raises(DataError, match=r"dangling link[\s\S]*gone.txt"):
            find_files(str(pattern))
    assert names(tmp_path / "a*", tmp_path) == ["a.txt"]
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(DataError, match="Too many levels of symbolic links"):
        find_files(str(tmp_path / "loop.txt"))


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A folder with an unreadable subfolder; root becomes the user nobody during the test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    write(folder, "a.txt", "closed/b.txt")
    (folder / "closed").chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        (folder / "closed").chmod(0o755)
        shutil.rmtree(folder)


def test_find_files_refuses_unreadable_folder(unreadable: Path) -> None:
    for pattern in (unreadable, unreadable / "**" / "*.txt", unreadable / "closed" / "b.txt"):
        with pytest.raises(DataError, match=r"cannot be read: Permission denied[\s\S]*closed"):
            find_files(str(pattern))
    assert names(unreadable / "*.txt", unreadable) == ["a.txt"]


@pytest.mark.parametrize("pattern", ["", "  ", "a\0b", "x" * 300, "a.txt/b", "a.txt/*", "**/none"])
def test_find_files_refuses_path_without_match(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"dataset\.val_path"):
        find_files(pattern, "dataset.val_path")


def test_find_files_accepts_names_with_wildcards(tmp_path: Path) -> None:
    write(tmp_path, "a[1]/b.txt", "a[1]/c.md", "what?.txt")
    assert names(tmp_path / "what?.txt", tmp_path) == ["what?.txt"]
    assert names(tmp_path / "a[1]" / "*.txt", tmp_path) == ["a[1]/b.txt"]


def test_find_files_escapes_names_in_messages(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(os.fsencode(tmp_path) + b"/caf\xe9\n\x1b")
    (messages,) = find_files(str(tmp_path)).skipped
    assert messages.endswith("caf\\xe9\\x0a\\x1b)")
