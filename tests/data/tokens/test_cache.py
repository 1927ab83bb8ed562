import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanolm.config.dataset import TextConfig
from nanolm.config.run import Config
from nanolm.config.tokenizer import TokenizerConfig
from nanolm.data import corpus as corpora
from nanolm.data.batches import gather_rows
from nanolm.data.corpus import reading
from nanolm.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Shards, Stream, chunks, gather_windows
from nanolm.errors import DataError, PathError
from nanolm.registry import TOKENIZERS
from tests.helpers import REPOSITORY, make_config

TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}: é\n" for n in range(300))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and where its streams are."""
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "streams"


def text_config(path: Path, *overrides: str) -> Config:
    return make_config("dataset=text", f"dataset.path='{path}'", *overrides)


def made(path: Path, text: str, *overrides: str, say: Callable[[str], None] | None = None) -> dict[str, Stream]:
    path.write_bytes(text.encode())
    config = text_config(path, *overrides)
    corpus = corpora.load(config.dataset)
    return token_cache.tokenize(corpus, token_cache.fit_tokenizer(corpus, config), config, say)


def folders(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("[!.]*") if path.name != "tokenizers")


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.name.endswith(".tmp")]


def test_a_corpus_becomes_a_stream_a_split(cache: Path, tmp_path: Path) -> None:
    streams = made(tmp_path / "a.txt", "é" * 90 + "ab" * 40, "dataset.val_fraction=0.47", "tokenizer=byte")
    assert {split: len(stream.tokens) for split, stream in streams.items()} == {"train": 180, "val": 80}
    val = streams["val"]
    assert (val.scored_tokens, val.scored_bytes, val.n_characters, val.n_bytes) == (79, 79, 80, 80)
    assert streams["train"].n_characters == 90
    assert val.tokens[:].tobytes() == b"ab" * 40


def test_cached_nul_heavy_text_is_still_refused(cache: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "a.txt", "a\0b\0" * 200
    allowed = made(path, text, "dataset.nul=allow")
    assert len(allowed["train"].tokens) == 720
    with pytest.raises(DataError, match="are NUL"):
        made(path, text)
    assert len(folders(cache)) == 1


def test_a_split_shorter_than_a_context_is_refused(cache: Path, tmp_path: Path) -> None:
    split = ("dataset.val_fraction=0.5", "tokenizer=byte")
    assert made(tmp_path / "a.txt", "a" * 130, *split)
    with pytest.raises(DataError, match=r"the train split has 64 tokens, and a context of 64 needs 65"):
        made(tmp_path / "a.txt", "a" * 128, *split)
    with pytest.raises(DataError, match=r"the test split has 13 tokens[\s\S]*larger dataset.test_fraction"):
        made(tmp_path / "a.txt", "ab" * 650, "dataset.test_fraction=0.01")


def test_tiny_shakespeare_is_what_it_always_was(cache: Path, shakespeare: Path) -> None:
    config = make_config("dataset=tiny_shakespeare", f"dataset.path='{shakespeare}'")
    corpus = corpora.load(config.dataset)
    tokenizer = token_cache.fit_tokenizer(corpus, config)
    streams = token_cache.tokenize(corpus, tokenizer, config)
    text = shakespeare.read_text()
    assert tokenizer.decode(streams["train"].tokens[:]) == text[:1_003_854]
    assert tokenizer.decode(streams["val"].tokens[:]) == text[1_003_854:]
    assert len(streams["val"].tokens) == 111_540


def test_tokens_are_made_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path / "a.txt", TEXT)
    (folder,) = folders(cache)
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(token_cache, "_encode", refuse)
    monkeypatch.setattr(CharTokenizer, "fit", refuse)
    again = made(tmp_path / "elsewhere.txt", TEXT)
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
def test_another_setting_has_tokens_of_its_own(other: str, cache: Path, tmp_path: Path) -> None:
    made(tmp_path / "a.txt", TEXT)
    made(tmp_path / "a.txt", TEXT, other)
    assert len(folders(cache)) == 2
    made(tmp_path / "a.txt", TEXT, "size.context_length=32", "trainer.sampling=epochs")
    assert len(folders(cache)) == 2


def test_another_text_is_never_served_from_the_cache(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    made(path, TEXT)
    before = path.stat()
    changed = TEXT.replace("1 and", "7 and", 1)
    path.write_bytes(changed.encode())
    # Neither its size nor its time tells the two apart.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    config = text_config(path)
    corpus = corpora.load(config.dataset)
    tokenizer = token_cache.fit_tokenizer(corpus, config)
    streams = token_cache.tokenize(corpus, tokenizer, config)
    assert "".join(tokenizer.decode(stream.tokens[:]) for stream in streams.values()) == changed


def test_shards_read_as_one(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "SHARD_TOKENS", 100)
    monkeypatch.setattr(token_cache, "GROUP_CHARACTERS", 333)
    monkeypatch.setattr(reading, "PART_BYTES", 50)
    tokens = made(tmp_path / "a.txt", TEXT, "tokenizer=byte")["train"].tokens
    assert isinstance(tokens, Shards)
    assert len(tokens.parts) > 20
    flat = np.concatenate(tokens.parts)
    assert TEXT.encode().startswith(flat.tobytes())
    assert len(flat) == len(tokens)
    for start, stop in ((0, 5), (95, 105), (100, 200), (0, len(flat)), (len(flat) - 3, len(flat) + 9), (7, 7)):
        assert (tokens[start:stop] == flat[start:stop]).all()
    starts = np.arange(0, len(flat) - 250)
    assert (gather_windows(tokens, starts, 251) == gather_windows(flat, starts, 251)).all()
    assert (np.concatenate(list(chunks(tokens, 70))) == flat).all()
    assert sum(len(chunk) - 1 for chunk in chunks(flat, 70, overlap=1)) == len(flat) - 1


def test_processes_give_the_same_tokens(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "GROUP_CHARACTERS", 1000)
    monkeypatch.setattr(reading, "PART_BYTES", 500)
    made(tmp_path / "a.txt", TEXT, "trainer.sampling=lines")
    alone = (folders(cache)[0] / "manifest.json").read_text()
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(token_cache, "PARALLEL_CHARACTERS", 0)
    monkeypatch.setattr(token_cache, "_n_cores", lambda: 2)
    made(tmp_path / "a.txt", TEXT, "trainer.sampling=lines")
    assert (folders(tmp_path / "second" / "streams")[0] / "manifest.json").read_text() == alone


class Shifted(ByteTokenizer):
    """Bytes in the last 256 ids of a vocabulary."""

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32) + (self.vocab_size - 256)


class Lossy(ByteTokenizer):
    """Words by their lengths; a line end is nothing."""

    lossless = False
    vocab_size = 64

    def encode(self, text: str) -> np.ndarray:
        return np.array([len(word) for word in text.split()], dtype=np.uint8)

    def count_bytes(self, ids: np.ndarray) -> int:
        return int(ids.sum())


@pytest.fixture
def registered() -> Iterator[Callable[[type[Tokenizer]], TokenizerConfig]]:
    names: list[str] = []

    def register(kind: type[Tokenizer]) -> TokenizerConfig:
        names.append(f"test_{kind.__name__.lower()}")
        TOKENIZERS.register(names[-1])(kind)
        return TokenizerConfig(name=names[-1])

    yield register
    for name in names:
        del TOKENIZERS._builders[name]


def with_tokenizer(path: Path, tokenizer: TokenizerConfig, *overrides: str) -> dict[str, Stream]:
    config = text_config(path, *overrides)
    config.tokenizer = tokenizer
    corpus = corpora.load(config.dataset)
    return token_cache.tokenize(corpus, token_cache.fit_tokenizer(corpus, config), config)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")]
)
def test_the_smallest_integers_that_hold_the_vocabulary(
    vocab_size: int, dtype: str, cache: Path, tmp_path: Path, registered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shifted, "vocab_size", vocab_size)
    (tmp_path / "a.txt").write_text(TEXT)
    streams = with_tokenizer(tmp_path / "a.txt", registered(Shifted))
    assert streams["train"].tokens.dtype == np.dtype(dtype)
    ids = np.concatenate([stream.tokens[:] for stream in streams.values()]).astype(np.int64)
    assert (ids - (vocab_size - 256)).astype(np.uint8).tobytes() == TEXT.encode()


def test_a_lossy_tokenizer_is_scored_on_the_bytes_of_the_text(cache: Path, tmp_path: Path, registered: Any) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    lossy = registered(Lossy)
    stream = with_tokenizer(tmp_path / "a.txt", lossy)["val"]
    text = TEXT[int(len(TEXT) * 0.9) :]
    assert stream.scored_bytes == len(text.encode()) - len(text.split()[0])
    assert stream.scored_tokens == len(text.split()) - 1
    # In lines nothing stands before the first word, as this tokenizer has no line end.
    in_lines = with_tokenizer(tmp_path / "a.txt", lossy, "trainer.sampling=lines")["val"]
    firsts = [line.split()[0] for line in text.splitlines()]
    assert in_lines.scored_bytes == len(text.encode()) - len("".join(firsts))
    assert in_lines.scored_tokens == len(text.split()) - len(firsts)


def test_rows_score_every_token_once(cache: Path, tmp_path: Path) -> None:
    whole = TEXT + "last"
    stream = made(tmp_path / "a.txt", whole, "trainer.sampling=lines", "size.context_length=9", "tokenizer=byte")["val"]
    assert stream.rows is not None
    text = whole[int(len(whole) * 0.9) :]
    assert stream.rows.n_pieces == len(text.splitlines())
    assert stream.scored_tokens == stream.scored_bytes == len(text.encode())
    inputs, targets = gather_rows(stream.tokens, stream.rows, np.arange(len(stream.rows)))
    is_scored = targets >= 0
    assert targets[is_scored].astype(np.uint8).tobytes() == text.encode()
    # Before a target stands the token before it in the text; before a line's first, a line end.
    assert inputs[is_scored].astype(np.uint8).tobytes() == b"\n" + text.encode()[:-1]
    assert is_scored.any(axis=1).all()
    assert (np.diff(is_scored.astype(int), axis=1) <= 0).all()


def test_documents_are_rows_however_long(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PART_BYTES", 16)
    monkeypatch.setattr(token_cache, "GROUP_CHARACTERS", 40)
    (tmp_path / "tales").mkdir()
    texts = [f"tale {n}\n" * (n + 1) for n in range(10)]
    for n, text in enumerate(texts):
        (tmp_path / "tales" / f"{n}").write_text(text)
    config = text_config(
        tmp_path / "tales", "trainer.sampling=documents", "dataset.split_by=document", "size.context_length=200"
    )
    found = []
    for stream in token_cache.tokenize(corpora.load(config.dataset), ByteTokenizer(), config).values():
        assert stream.rows is not None
        _, targets = gather_rows(stream.tokens, stream.rows, np.arange(len(stream.rows)))
        found += [row[row >= 0].astype(np.uint8).tobytes().decode() for row in targets]
    assert sorted(found) == sorted([*(text + "\n" for text in texts[:-1]), texts[-1]])


def tales(tmp_path: Path) -> list[str]:
    """Files of 7 to 2,300 bytes in a folder, and what the corpus reads: a line end between them."""
    (tmp_path / "tales").mkdir()
    texts = [f"tale {n}\n" * (1 + 30 * (n % 12)) for n in range(40)]
    for n, text in enumerate(texts):
        (tmp_path / "tales" / f"{n:02}").write_text(text)
    return [*(text + "\n" for text in texts[:-1]), texts[-1]]


def by_documents(stream: Stream) -> list[str]:
    """The text of each document of a stream of bytes."""
    assert stream.documents.dtype == np.uint64
    ends = [*stream.documents.tolist()[1:], len(stream.tokens)]
    return [
        stream.tokens[start:end].tobytes().decode() for start, end in zip(stream.documents.tolist(), ends, strict=True)
    ]


@pytest.mark.parametrize("batches", ["windows", "documents", "lines"])
def test_where_documents_begin_is_kept_beside_the_tokens(
    batches: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Documents in several parts, groups of several documents and of a part of one, shards that end within one.
    monkeypatch.setattr(reading, "PART_BYTES", 300)
    monkeypatch.setattr(token_cache, "GROUP_CHARACTERS", 700)
    monkeypatch.setattr(token_cache, "SHARD_TOKENS", 1000)
    texts = tales(tmp_path)
    line = ("dataset.split_by=document", f"trainer.sampling={batches}")
    config = text_config(tmp_path / "tales", *line)
    streams = token_cache.tokenize(corpora.load(config.dataset), ByteTokenizer(), config)
    found = {split: by_documents(stream) for split, stream in streams.items()}
    assert len(found["val"]) == streams["val"].n_documents == 4
    assert sorted(found["train"] + found["val"]) == sorted(texts)
    alone = {path.name: path.read_bytes() for path in folders(cache)[0].iterdir()}

    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(token_cache, "PARALLEL_CHARACTERS", 0)
    monkeypatch.setattr(token_cache, "_n_cores", lambda: 2)
    token_cache.tokenize(corpora.load(config.dataset), ByteTokenizer(), config)
    (folder,) = folders(tmp_path / "second" / "streams")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == alone


def test_a_split_that_begins_within_a_document_begins_one(cache: Path, tmp_path: Path) -> None:
    whole = "".join(tales(tmp_path))
    config = text_config(tmp_path / "tales", "dataset.test_fraction=0.2")
    streams = token_cache.tokenize(corpora.load(config.dataset), ByteTokenizer(), config)
    found = {split: by_documents(stream) for split, stream in streams.items()}
    assert "".join(text for split in ("train", "val", "test") for text in found[split]) == whole
    assert [stream.documents[0] for stream in streams.values()] == [0, 0, 0]
    # Documents end with a line end of their own; those that the ends of splits cut do not.
    assert [text.endswith("\n\n") for texts in found.values() for text in texts].count(False) == 3
    assert sum(map(len, found.values())) == 42


def test_documents_without_a_token_are_numbered_all_the_same(cache: Path, tmp_path: Path, registered: Any) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a b", " ", "c", "d e f")))
    config = make_config(
        "dataset=jsonl", f"dataset.path='{tmp_path / 'a.jsonl'}'", "dataset.val_fraction=0.4", "size.context_length=1",
        "mask=causal",
    )  # fmt: skip
    config.tokenizer = registered(Lossy)
    stream = token_cache.tokenize(corpora.load(config.dataset), Lossy(), config)["train"]
    assert stream.documents.tolist() == [0, 2, 2]


def test_tokens_without_their_documents_are_never_opened(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(token_cache, "FORMAT", 1)
        made(tmp_path / "a.txt", TEXT)
    (old,) = folders(cache)
    for path in old.glob("*-documents.bin"):
        path.unlink()
    said: list[str] = []
    assert made(tmp_path / "a.txt", TEXT, say=said.append)["train"].documents.tolist() == [0]
    assert said == []
    assert len(folders(cache)) == 2


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("altered", r"train-00000\.bin has been altered"),
        ("cut", r"train-00000\.bin has [\d,]+ bytes, and was written with [\d,]+"),
        ("missing", r"train-00000\.bin is missing"),
        ("manifest", r"manifest\.json has been altered"),
        ("altered documents", r"train-documents\.bin has been altered"),
        ("cut documents", r"train-documents\.bin has 7 bytes, and was written with 8"),
        ("missing documents", r"train-documents\.bin is missing"),
    ],
)
def test_a_damaged_stream_is_named_and_built_anew(how: str, named: str, cache: Path, tmp_path: Path) -> None:
    said: list[str] = []
    how, _, what = how.partition(" ")
    good = {split: stream.tokens[:].copy() for split, stream in made(tmp_path / "a.txt", TEXT).items()}
    (folder,) = folders(cache)
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
    again = made(tmp_path / "a.txt", TEXT, say=said.append)
    assert len(said) == 1
    assert re.search(named, said[0])
    assert all((again[split].tokens[:] == good[split]).all() for split in good)
    assert all(stream.documents.tolist() == [0] for stream in again.values())
    assert not leftovers(cache)
    made(tmp_path / "a.txt", TEXT, say=said.append)
    assert len(said) == 1


def test_a_damaged_tokenizer_in_the_cache_is_fitted_anew(cache: Path, tmp_path: Path) -> None:
    made(tmp_path / "a.txt", TEXT)
    (path,) = (cache / "tokenizers").glob("*.json")
    content = path.read_text()
    path.write_text(content.replace("m", "x"))
    made(tmp_path / "a.txt", TEXT)
    assert path.read_text() == content
    assert len(folders(cache)) == 1


def test_the_files_that_a_tokenizer_names_are_part_of_its_key(tmp_path: Path) -> None:
    (tmp_path / "vocabulary").write_text("a")
    assert token_cache._file_hash(str(tmp_path / "vocabulary")) == hashlib.sha256(b"a").hexdigest()
    assert token_cache._file_hash(str(tmp_path)) is not None
    assert token_cache._file_hash("x" * 5000) is None
    assert token_cache._file_hash(5) is None


def test_a_build_that_is_stopped_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(token_cache._SplitWriter, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "a.txt", TEXT)
    assert not folders(cache)
    assert not leftovers(cache)


def test_what_a_killed_build_left_is_taken_away(cache: Path, tmp_path: Path) -> None:
    made(tmp_path / "a.txt", TEXT)
    (folder,) = folders(cache)
    folder.rename(folder.with_name(f".{folder.name}.1.tmp"))
    made(tmp_path / "a.txt", TEXT)
    assert folders(cache) == [folder]
    assert not leftovers(cache)


BUILD = """
import resource, sys
from nanolm.compose import compose_line
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache
from nanolm.errors import NanolmError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

if __name__ == "__main__":
    config = compose_line(["dataset=text", f"dataset.path='{sys.argv[1]}'", "tokenizer=byte"]).config
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


def test_several_processes_build_one_stream_between_them(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode() * 100)
    processes = [build(tmp_path / "a.txt") for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert {process.returncode for process in processes} == {0}, outputs
    assert len({output.split()[0] for output, _ in outputs}) == 1
    assert len(folders(cache)) == 1
    assert not leftovers(cache)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode() * 100)
    process = build(tmp_path / "a.txt", 100_000)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("PathError: the tokens cannot be written: File too large")
    assert "NANOLM_CACHE=FOLDER" in errors
    assert "Traceback" not in errors
    assert not folders(cache)
    assert not leftovers(cache)
    process = build(tmp_path / "a.txt")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert int(output.split()[0]) == pytest.approx(len(TEXT.encode() * 100) * 0.9, rel=0.01)


def test_a_small_disk_that_is_full(tmp_path: Path) -> None:
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
        assert not folders(disk / "streams")
        assert not leftovers(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_cache_that_cannot_be_made_says_how_to_move_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(PathError, match=r"cannot be written: (Not a directory|File exists)[\s\S]*NANOLM_CACHE"):
        made(tmp_path / "a.txt", TEXT)


def test_memory_does_not_grow_with_the_text(cache: Path, tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        for _ in range(100):
            file.write(TEXT.encode() * 200)
    size = (tmp_path / "a.txt").stat().st_size
    assert size > 100e6
    process = build(tmp_path / "a.txt")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert int(output.split()[1]) < size


def test_the_manifest_says_what_a_stream_is_of(cache: Path, tmp_path: Path) -> None:
    made(tmp_path / "a.txt", TEXT)
    manifest = json.loads((folders(cache)[0] / "manifest.json").read_text())
    assert manifest["about"]["corpus"] == corpora.load(TextConfig(path=str(tmp_path / "a.txt"))).fingerprint
    assert set(manifest["files"]) == {
        f"{split}-{what}.bin" for split in ("train", "val") for what in ("00000", "documents")
    }
