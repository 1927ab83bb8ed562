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
    """Two texts beside a run, a run without its config.yaml, a sweep, and the cache."""
    folder = tmp_path / "texts"
    write(folder, "a.txt", "sub/b.txt", "config.yaml")
    for run in ("R", "sub/sweep/job=1"):
        write(folder, *(f"{run}/{name}" for name in ("config.yaml", "summary.json", "samples.txt", "step/x.txt")))
    write(folder, "bare/metrics.jsonl", "bare/summary.json", "bare/samples.txt")
    write(folder, "barer/checkpoints/step-2/a.txt", "barer/samples.txt", "barest/samples.txt", "barest/train.log")
    write(folder, "sub/sweep/.lock", "sub/sweep/job=2/error.txt")
    write(folder, "failed/.lock", "failed/job=1/error.txt")
    write(folder, "optuna/study.journal", "optuna/job/error.txt")
    write(folder, "cache/downloads/play.txt")
    return folder


def test_runs_sweeps_and_the_cache_are_left_out(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(texts / "cache"))
    assert names(texts, texts) == ["a.txt", "config.yaml", "sub/b.txt"]
    assert names(texts / "**" / "*.txt", texts) == ["a.txt", "sub/b.txt"]
    said = "; ".join(find_files(f"{texts}/**/*.txt").left_out)
    assert f"4 run directories ({texts / 'R'}, {texts / 'bare'}, {texts / 'barer'} and 1 more)" in said
    assert f"3 sweeps ({texts / 'failed'}, {texts / 'optuna'}, {texts / 'sub' / 'sweep'})" in said
    assert f"1 cache folder ({texts / 'cache'})" in said
    assert names(texts / "*.txt", texts) == ["a.txt"]
    monkeypatch.chdir(texts)
    assert find_files("*/*.txt").files == [Path("sub/b.txt")]
    assert find_files("*.txt").left_out == []


def test_a_cache_folder_that_holds_text_is_read(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(texts))
    shutil.rmtree(texts / "cache")
    write(texts, "downloads/play.txt", "streams/text-char/manifest.json")
    found = find_files(f"{texts}/**/*.txt")
    assert "2 cache folders" in "".join(found.left_out)
    assert [file.name for file in found.files] == ["a.txt", "b.txt"]


def test_a_file_of_a_run_is_read_when_it_is_named(texts: Path) -> None:
    assert names(texts / "R" / "samples.txt", texts) == ["R/samples.txt"]
    for pattern in (texts / "R", f"{texts}/R/*.txt", f"{texts}/*/samples.txt"):
        with pytest.raises(DataError, match=r"besides what is left out[\s\S]*run director[\s\S]*named directly"):
            find_files(str(pattern))


def test_links_are_followed_and_cycles_end(tmp_path: Path) -> None:
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
    assert f"1 second name of a file that is read once ({texts / 'again.txt'})" in find_files(str(texts)).left_out


def test_what_is_no_file_is_left_out_by_name(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".hidden/b.txt", ".c")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.txt"))
    found = find_files(str(tmp_path))
    assert [file.name for file in found.files] == ["a.txt"]
    said = "; ".join(found.left_out)
    assert f"2 FIFOs, sockets or devices ({tmp_path / 'pipe.txt'}, {tmp_path / 'socket.txt'})" in said
    assert "2 hidden files and folders" in said
    with pytest.raises(DataError, match="a FIFO, a socket or a device"):
        find_files(str(tmp_path / "pipe.txt"))


def test_a_glob_says_which_folders_it_does_not_enter(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "sub/b.txt")
    said = find_files(f"{tmp_path}/*").left_out
    assert said == [f"1 folder that the glob does not descend into ({tmp_path / 'sub'})"]


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    for pattern in (tmp_path, tmp_path / "*.txt", tmp_path / "gone.txt"):
        with pytest.raises(DataError, match=r"link [\s\S]*leads nowhere[\s\S]*gone.txt"):
            find_files(str(pattern))
    assert names(tmp_path / "a*", tmp_path) == ["a.txt"]
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(DataError, match="Too many levels of symbolic links"):
        find_files(str(tmp_path / "loop.txt"))


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A folder with a subfolder that nobody may read; as root, this process is nobody for a while."""
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


def test_an_unreadable_folder_is_an_error(unreadable: Path) -> None:
    for pattern in (unreadable, unreadable / "**" / "*.txt", unreadable / "closed" / "b.txt"):
        with pytest.raises(DataError, match=r"cannot be read: Permission denied[\s\S]*closed"):
            find_files(str(pattern))
    assert names(unreadable / "*.txt", unreadable) == ["a.txt"]


@pytest.mark.parametrize("pattern", ["", "  ", "a\0b", "x" * 300, "a.txt/b", "a.txt/*", "**/none"])
def test_a_path_that_names_nothing_is_refused(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"dataset\.val_path"):
        find_files(pattern, "dataset.val_path")


def test_names_with_wildcards_are_taken_as_they_stand(tmp_path: Path) -> None:
    write(tmp_path, "a[1]/b.txt", "a[1]/c.md", "what?.txt")
    assert names(tmp_path / "what?.txt", tmp_path) == ["what?.txt"]
    assert names(tmp_path / "a[1]" / "*.txt", tmp_path) == ["a[1]/b.txt"]


def test_names_in_messages_stay_on_one_line_of_utf8(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(os.fsencode(tmp_path) + b"/caf\xe9\n\x1b")
    (said,) = find_files(str(tmp_path)).left_out
    assert said.endswith("caf\\udce9\\n\\x1b)")
