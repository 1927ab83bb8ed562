from pathlib import Path

import numpy as np
import pytest

from nanolm.data import corpus as corpora
from nanolm.data.batches import gather_rows
from nanolm.data.corpus import reading
from nanolm.data.tokenizers import ByteTokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens import encoding, shards
from nanolm.data.tokens.stream import Stream
from tests.helpers import stream_folders, text_config, tokenize_text

TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}: é\n" for n in range(300))


def test_encode_corpus_gives_same_tokens_in_parallel(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "GROUP_CHARACTERS", 1000)
    monkeypatch.setattr(reading, "PART_BYTES", 500)
    tokenize_text(tmp_path / "a.txt", TEXT, "trainer.sampling=lines")
    sequential = (stream_folders(cache)[0] / "manifest.json").read_text()
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(encoding, "PARALLEL_CHARACTERS", 0)
    monkeypatch.setattr(encoding, "n_cores", lambda: 2)
    tokenize_text(tmp_path / "a.txt", TEXT, "trainer.sampling=lines")
    assert (stream_folders(tmp_path / "second")[0] / "manifest.json").read_text() == sequential


def test_encode_makes_rows_of_documents_of_any_length(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PART_BYTES", 16)
    monkeypatch.setattr(encoding, "GROUP_CHARACTERS", 40)
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


def write_tales(tmp_path: Path) -> list[str]:
    """Write files of 7 to 2,300 bytes into a folder; return the documents of its corpus, joined by line ends."""
    (tmp_path / "tales").mkdir()
    texts = [f"tale {n}\n" * (1 + 30 * (n % 12)) for n in range(40)]
    for n, text in enumerate(texts):
        (tmp_path / "tales" / f"{n:02}").write_text(text)
    return [*(text + "\n" for text in texts[:-1]), texts[-1]]


def document_texts(stream: Stream) -> list[str]:
    """Return the text of each document of a stream of bytes."""
    assert stream.documents.dtype == np.uint64
    ends = [*stream.documents.tolist()[1:], len(stream.tokens)]
    return [
        stream.tokens[start:end].tobytes().decode() for start, end in zip(stream.documents.tolist(), ends, strict=True)
    ]


@pytest.mark.parametrize("sampling", ["windows", "documents", "lines"])
def test_encode_records_document_starts(
    sampling: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Documents of several parts, groups of several documents or of a part of one, shards that end within one.
    monkeypatch.setattr(reading, "PART_BYTES", 300)
    monkeypatch.setattr(encoding, "GROUP_CHARACTERS", 700)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    texts = write_tales(tmp_path)
    overrides = ("dataset.split_by=document", f"trainer.sampling={sampling}")
    config = text_config(tmp_path / "tales", *overrides)
    streams = token_cache.tokenize(corpora.load(config.dataset), ByteTokenizer(), config)
    found = {split: document_texts(stream) for split, stream in streams.items()}
    assert len(found["val"]) == streams["val"].n_documents == 4
    assert sorted(found["train"] + found["val"]) == sorted(texts)
    sequential = {path.name: path.read_bytes() for path in stream_folders(cache)[0].iterdir()}

    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(encoding, "PARALLEL_CHARACTERS", 0)
    monkeypatch.setattr(encoding, "n_cores", lambda: 2)
    token_cache.tokenize(corpora.load(config.dataset), ByteTokenizer(), config)
    (folder,) = stream_folders(tmp_path / "second")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == sequential


def test_encode_starts_document_at_start_of_split(cache: Path, tmp_path: Path) -> None:
    text = "".join(write_tales(tmp_path))
    config = text_config(tmp_path / "tales", "dataset.test_fraction=0.2")
    streams = token_cache.tokenize(corpora.load(config.dataset), ByteTokenizer(), config)
    found = {split: document_texts(stream) for split, stream in streams.items()}
    assert "".join(one for split in ("train", "val", "test") for one in found[split]) == text
    assert [stream.documents[0] for stream in streams.values()] == [0, 0, 0]
    # Documents end with a line end of their own, unless the end of a split truncates them.
    assert [text.endswith("\n\n") for texts in found.values() for text in texts].count(False) == 3
    assert sum(map(len, found.values())) == 42
