import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanolm.config.dataset import TextConfig
from nanolm.config.tokenizer import TokenizerConfig
from nanolm.data import corpus as corpora
from nanolm.data.batches import gather_rows
from nanolm.data.corpus import reading
from nanolm.data.tokenizers import ByteTokenizer, Tokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens import encoding, shards
from nanolm.data.tokens.stream import Shards, Stream, chunks, gather_windows
from nanolm.registry import TOKENIZERS
from tests.helpers import make_config, stream_folders, text_config, tokenize_config, tokenize_text

TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}: é\n" for n in range(300))


def test_shards_of_small_size_read_as_one_array(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    monkeypatch.setattr(encoding, "GROUP_CHARACTERS", 333)
    monkeypatch.setattr(reading, "PART_BYTES", 50)
    tokens = tokenize_text(tmp_path / "a.txt", TEXT, "tokenizer=byte")["train"].tokens
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


class Shifted(ByteTokenizer):
    """A byte tokenizer that uses the last 256 ids of a vocabulary."""

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32) + (self.vocab_size - 256)


class Lossy(ByteTokenizer):
    """A tokenizer that encodes each word as its length and drops line ends."""

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


def tokenize_with(path: Path, tokenizer: TokenizerConfig, *overrides: str) -> dict[str, Stream]:
    config = text_config(path, *overrides)
    config.tokenizer = tokenizer
    return tokenize_config(config)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")]
)
def test_streams_use_smallest_dtype_for_vocabulary(
    vocab_size: int, dtype: str, cache: Path, tmp_path: Path, registered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shifted, "vocab_size", vocab_size)
    (tmp_path / "a.txt").write_text(TEXT)
    streams = tokenize_with(tmp_path / "a.txt", registered(Shifted))
    assert streams["train"].tokens.dtype == np.dtype(dtype)
    ids = np.concatenate([stream.tokens[:] for stream in streams.values()]).astype(np.int64)
    assert (ids - (vocab_size - 256)).astype(np.uint8).tobytes() == TEXT.encode()


def test_lossy_tokenizer_is_scored_by_bytes_of_text(cache: Path, tmp_path: Path, registered: Any) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    lossy = registered(Lossy)
    stream = tokenize_with(tmp_path / "a.txt", lossy)["val"]
    text = TEXT[int(len(TEXT) * 0.9) :]
    assert stream.scored_bytes == len(text.encode()) - len(text.split()[0])
    assert stream.scored_tokens == len(text.split()) - 1
    # The first word of a line is not scored, as this tokenizer has no token for line ends.
    in_lines = tokenize_with(tmp_path / "a.txt", lossy, "trainer.sampling=lines")["val"]
    firsts = [line.split()[0] for line in text.splitlines()]
    assert in_lines.scored_bytes == len(text.encode()) - len("".join(firsts))
    assert in_lines.scored_tokens == len(text.split()) - len(firsts)


def test_rows_score_every_token_once(cache: Path, tmp_path: Path) -> None:
    full_text = TEXT + "last"
    stream = tokenize_text(
        tmp_path / "a.txt", full_text, "trainer.sampling=lines", "size.context_length=9", "tokenizer=byte"
    )["val"]
    assert stream.rows is not None
    text = full_text[int(len(full_text) * 0.9) :]
    assert stream.rows.n_segments == len(text.splitlines())
    assert stream.scored_tokens == stream.scored_bytes == len(text.encode())
    inputs, targets = gather_rows(stream.tokens, stream.rows, np.arange(len(stream.rows)))
    is_scored = targets >= 0
    assert targets[is_scored].astype(np.uint8).tobytes() == text.encode()
    # The input of a target is the token before it in the text; for the first of a line, a line end.
    assert inputs[is_scored].astype(np.uint8).tobytes() == b"\n" + text.encode()[:-1]
    assert is_scored.any(axis=1).all()
    assert (np.diff(is_scored.astype(int), axis=1) <= 0).all()


def test_documents_include_those_without_tokens(cache: Path, tmp_path: Path, registered: Any) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a b", " ", "c", "d e f")))
    config = make_config(
        "dataset=jsonl", f"dataset.path='{tmp_path / 'a.jsonl'}'", "dataset.val_fraction=0.4", "size.context_length=1",
        "mask=causal",
    )  # fmt: skip
    config.tokenizer = registered(Lossy)
    stream = token_cache.tokenize(corpora.load(config.dataset), Lossy(), config)["train"]
    assert stream.documents.tolist() == [0, 2, 2]


def test_manifest_lists_corpus_and_files(cache: Path, tmp_path: Path) -> None:
    tokenize_text(tmp_path / "a.txt", TEXT)
    manifest = json.loads((stream_folders(cache)[0] / "manifest.json").read_text())
    assert manifest["about"]["corpus"] == corpora.load(TextConfig(path=str(tmp_path / "a.txt"))).fingerprint
    assert set(manifest["files"]) == {
        f"{split}-{what}.bin" for split in ("train", "val") for what in ("00000", "documents")
    }
