import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.data import corpus as corpora
from nanolm.data.tokenizers import CharTokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens import encoding, keys, shards
from nanolm.errors import DataError, PathError
from tests.helpers import REPOSITORY, make_config, stream_folders, temporary_files, text_config, tokenize_text

TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}: é\n" for n in range(300))


def test_tokenize_returns_one_stream_per_split(cache: Path, tmp_path: Path) -> None:
    streams = tokenize_text(tmp_path / "a.txt", "é" * 90 + "ab" * 40, "dataset.val_fraction=0.47", "tokenizer=byte")
    assert {split: len(stream.tokens) for split, stream in streams.items()} == {"train": 180, "val": 80}
    val = streams["val"]
    assert (val.scored_tokens, val.scored_bytes, val.n_characters, val.n_bytes) == (79, 79, 80, 80)
    assert streams["train"].n_characters == 90
    assert val.tokens[:].tobytes() == b"ab" * 40


def test_tokenize_refuses_cached_nul_heavy_text(cache: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "a.txt", "a\0b\0" * 200
    allowed = tokenize_text(path, text, "dataset.nul=allow")
    assert len(allowed["train"].tokens) == 720
    with pytest.raises(DataError, match="are NUL"):
        tokenize_text(path, text)
    assert len(stream_folders(cache)) == 1


def test_tokenize_refuses_split_shorter_than_context(cache: Path, tmp_path: Path) -> None:
    split = ("dataset.val_fraction=0.5", "tokenizer=byte")
    assert tokenize_text(tmp_path / "a.txt", "a" * 130, *split)
    with pytest.raises(DataError, match=r"the train split has 64 tokens, and a context of 64 needs 65"):
        tokenize_text(tmp_path / "a.txt", "a" * 128, *split)
    with pytest.raises(DataError, match=r"the test split has 13 tokens[\s\S]*larger dataset.test_fraction"):
        tokenize_text(tmp_path / "a.txt", "ab" * 650, "dataset.test_fraction=0.01")


def test_tokenize_splits_tiny_shakespeare_as_usual(cache: Path, shakespeare: Path) -> None:
    config = make_config("dataset=tiny_shakespeare", f"dataset.path='{shakespeare}'")
    corpus = corpora.load(config.dataset)
    tokenizer = token_cache.fit_tokenizer(corpus, config)
    streams = token_cache.tokenize(corpus, tokenizer, config)
    text = shakespeare.read_text()
    assert tokenizer.decode(streams["train"].tokens[:]) == text[:1_003_854]
    assert tokenizer.decode(streams["val"].tokens[:]) == text[1_003_854:]
    assert len(streams["val"].tokens) == 111_540


def test_tokenize_reuses_cached_tokens(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokenize_text(tmp_path / "a.txt", TEXT)
    (folder,) = stream_folders(cache)
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    def refuse(*_: object) -> None:
        raise AssertionError("rebuilt")

    monkeypatch.setattr(encoding, "encode", refuse)
    monkeypatch.setattr(CharTokenizer, "fit", refuse)
    again = tokenize_text(tmp_path / "elsewhere.txt", TEXT)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert all((first[split].tokens[:] == again[split].tokens[:]).all() for split in first)
    assert first["val"].scored_bytes == again["val"].scored_bytes


@pytest.mark.parametrize(
    "other",
    [
        "dataset.val_fraction=0.2",
        "dataset.test_fraction=0.1",
        "dataset.split_by=line",
        "tokenizer=byte",
        "trainer.sampling=lines",
        "trainer.sampling=documents",
    ],
)
def test_tokenize_separates_settings(other: str, cache: Path, tmp_path: Path) -> None:
    tokenize_text(tmp_path / "a.txt", TEXT)
    tokenize_text(tmp_path / "a.txt", TEXT, other)
    assert len(stream_folders(cache)) == 2
    tokenize_text(tmp_path / "a.txt", TEXT, "size.context_length=32", "trainer.sampling=epochs")
    assert len(stream_folders(cache)) == 2


def test_tokenize_detects_changed_text(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    tokenize_text(path, TEXT)
    before = path.stat()
    changed = TEXT.replace("1 and", "7 and", 1)
    path.write_bytes(changed.encode())
    # The size and the modification time are unchanged.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    config = text_config(path)
    corpus = corpora.load(config.dataset)
    tokenizer = token_cache.fit_tokenizer(corpus, config)
    streams = token_cache.tokenize(corpus, tokenizer, config)
    assert "".join(tokenizer.decode(stream.tokens[:]) for stream in streams.values()) == changed


def test_tokenize_ignores_older_cache_format(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(keys, "FORMAT", 1)
        tokenize_text(tmp_path / "a.txt", TEXT)
    (old,) = stream_folders(cache)
    for path in old.glob("*-documents.bin"):
        path.unlink()
    messages: list[str] = []
    assert tokenize_text(tmp_path / "a.txt", TEXT, report=messages.append)["train"].documents.tolist() == [0]
    assert messages == []
    assert len(stream_folders(cache)) == 2


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("altered", r"train-00000\.bin has been altered"),
        ("cut", r"train-00000\.bin has [\d,]+ bytes, and was written with [\d,]+"),
        ("missing", r"train-00000\.bin is missing"),
        ("manifest", r"manifest\.json is damaged"),
        ("altered documents", r"train-documents\.bin has been altered"),
        ("cut documents", r"train-documents\.bin has 7 bytes, and was written with 8"),
        ("missing documents", r"train-documents\.bin is missing"),
    ],
)
def test_tokenize_names_and_rebuilds_damaged_stream(how: str, named: str, cache: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    how, _, what = how.partition(" ")
    good = {split: stream.tokens[:].copy() for split, stream in tokenize_text(tmp_path / "a.txt", TEXT).items()}
    (folder,) = stream_folders(cache)
    path = folder / ("manifest.json" if how == "manifest" else f"train-{what or '00000'}.bin")
    content = bytearray(path.read_bytes())
    if how == "altered":
        content[len(content) // 2] ^= 1
    elif how == "manifest":
        content = bytearray(content.replace(b'"vocab_size": ', b'"vocab_size": 1', 1))
    else:
        del content[-1]
    path.write_bytes(content)
    if how == "missing":
        path.unlink()
    again = tokenize_text(tmp_path / "a.txt", TEXT, report=messages.append)
    assert len(messages) == 1
    assert re.search(named, messages[0])
    assert all((again[split].tokens[:] == good[split]).all() for split in good)
    assert all(stream.documents.tolist() == [0] for stream in again.values())
    assert not temporary_files(cache)
    tokenize_text(tmp_path / "a.txt", TEXT, report=messages.append)
    assert len(messages) == 1


def test_fit_tokenizer_replaces_damaged_file(cache: Path, tmp_path: Path) -> None:
    tokenize_text(tmp_path / "a.txt", TEXT)
    (path,) = (cache / "streams" / "tokenizers").glob("*.json")
    content = path.read_text()
    path.write_text(content.replace("m", "x"))
    tokenize_text(tmp_path / "a.txt", TEXT)
    assert path.read_text() == content
    assert len(stream_folders(cache)) == 1


def test_tokenize_removes_interrupted_build(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards._SplitWriter, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenize_text(tmp_path / "a.txt", TEXT)
    assert not stream_folders(cache)
    assert not temporary_files(cache)


def test_tokenize_removes_leftovers_of_killed_build(cache: Path, tmp_path: Path) -> None:
    tokenize_text(tmp_path / "a.txt", TEXT)
    (folder,) = stream_folders(cache)
    folder.rename(folder.with_name(f".{folder.name}.1.tmp"))
    tokenize_text(tmp_path / "a.txt", TEXT)
    assert stream_folders(cache) == [folder]
    assert not temporary_files(cache)


BUILD = """
import resource, sys
from nanolm.compose import compose_command
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache
from nanolm.errors import NanolmError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

if __name__ == "__main__":
    config = compose_command(["dataset=text", f"dataset.path='{sys.argv[1]}'", "tokenizer=byte"]).config
    before = peak()
    corpus = corpora.load(config.dataset)
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    try:
        streams = token_cache.tokenize(corpus, token_cache.fit_tokenizer(corpus, config), config)
    except NanolmError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(len(streams["train"].tokens), peak() - before)
"""


def build(*arguments: Path | int, **environment: str) -> subprocess.Popen[str]:
    """A process that tokenizes a file and prints the number of tokens and by how many bytes its memory grew."""
    script = Path(str(arguments[0])).with_suffix(".py")
    script.write_text(BUILD)
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_tokenize_builds_once_for_several_processes(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode() * 100)
    processes = [build(tmp_path / "a.txt") for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert {process.returncode for process in processes} == {0}, outputs
    assert len({output.split()[0] for output, _ in outputs}) == 1
    assert len(stream_folders(cache)) == 1
    assert not temporary_files(cache)


def test_tokenize_reports_full_disk_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode() * 100)
    process = build(tmp_path / "a.txt", 100_000)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("PathError: the tokens cannot be written: File too large")
    assert "NANOLM_CACHE=FOLDER" in errors
    assert "Traceback" not in errors
    assert not stream_folders(cache)
    assert not temporary_files(cache)
    process = build(tmp_path / "a.txt")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert int(output.split()[0]) == pytest.approx(len(TEXT.encode() * 100) * 0.9, rel=0.01)


def test_tokenize_reports_full_small_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        (tmp_path / "a.txt").write_bytes(TEXT.encode() * 100)
        process = build(tmp_path / "a.txt", NANOLM_CACHE=str(disk))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "No space left on device" in errors
        assert not stream_folders(disk)
        assert not temporary_files(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_tokenize_hints_at_other_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(PathError, match=r"cannot be written: (Not a directory|File exists)[\s\S]*NANOLM_CACHE"):
        tokenize_text(tmp_path / "a.txt", TEXT)


@pytest.mark.slow
def test_tokenize_memory_is_independent_of_text_size(cache: Path, tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        for _ in range(100):
            file.write(TEXT.encode() * 200)
    size = (tmp_path / "a.txt").stat().st_size
    assert size > 100e6
    process = build(tmp_path / "a.txt")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert int(output.split()[1]) < size
