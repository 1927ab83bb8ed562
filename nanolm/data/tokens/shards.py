"""The files of a token stream: a checksummed folder of shards, document starts, row starts and scored tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nanolm.checksummed import ChecksummedFile, FolderWriter, read_manifest
from nanolm.data.corpus import Corpus
from nanolm.data.tokenizers import Tokenizer, smallest_dtype
from nanolm.data.tokens.encoding import EncodedGroup, encode_corpus
from nanolm.data.tokens.stream import Rows, Scored, Shards, Stream, Tokens

SHARD_TOKENS = 2**26


def write_streams(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, key: dict[str, Any], on_progress: Callable[[int], object]
) -> None:
    """Tokenize a corpus into a new folder.

    Args:
        folder: appears when it is complete and on disk.
        key: what the tokens depend on, stored in the manifest; its "rows" names what rows are made of.
        on_progress: called with the number of characters done.
    """
    dtype = smallest_dtype(tokenizer.vocab_size)
    has_rows = key["rows"] is not None
    start = _line_end(tokenizer) if has_rows else None
    with FolderWriter(folder) as writer:
        splits = {
            split: _SplitWriter(writer, split, dtype, has_rows, start, corpus.is_partly_scored)
            for split in corpus.splits
        }
        for group in encode_corpus(corpus, tokenizer, key["rows"]):
            splits[group.split].add(group)
            on_progress(group.counts["characters"])
        manifest = {
            "about": key,
            "dtype": dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "lossless": tokenizer.lossless,
            "start": start,
            "splits": {split: split_writer.finish() for split, split_writer in splits.items()},
        }
        writer.commit(manifest)


def open_streams(folder: Path, context_length: int) -> dict[str, Stream]:
    """Map the streams of a verified folder into memory, by split."""
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} was verified"
    dtype = np.dtype(manifest["dtype"])
    streams = {}
    for split, entry in manifest["splits"].items():
        shards = [_map(folder / name, dtype) for name in entry["shards"]]
        tokens: Tokens = shards[0] if len(shards) == 1 else Shards(shards)
        rows = None
        # Streams that were written before there were datasets with prompts have no entries about them.
        is_scored_file = entry.get("is_scored")
        scored = None if is_scored_file is None else Scored(_map(folder / is_scored_file, np.dtype(np.bool_)))
        unscored_bytes = entry["first_token_bytes"]
        if entry["rows"] is not None:
            rows = Rows(_map(folder / entry["rows"], np.dtype(np.uint64)), manifest["start"], context_length, scored)
            unscored_bytes = entry["row_first_bytes"] if rows.start is None else 0
        text_bytes = entry.get("scored_text_bytes", entry["text_bytes"])
        streams[split] = Stream(
            tokens=tokens,
            scored_bytes=(entry["token_bytes"] if manifest["lossless"] else text_bytes) - unscored_bytes,
            rows=rows,
            scored=scored,
            documents=_map(folder / entry["documents"], np.dtype(np.uint64)),
            n_characters=entry["characters"],
            n_bytes=entry["text_bytes"],
        )
    return streams


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    # As a plain array: slicing a memmap costs several times as much.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


class _SplitWriter:
    """Writer of the files of one split.

    Args:
        has_rows: whether to write the starts of rows.
        start: the token before each row; without one, the first token of a row is not scored.
        is_partly_scored: whether to write which tokens are scored.
    """

    def __init__(
        self,
        writer: FolderWriter,
        split: str,
        dtype: np.dtype[Any],
        has_rows: bool,
        start: int | None,
        is_partly_scored: bool,
    ) -> None:
        self._writer, self._split, self._dtype, self._start = writer, split, dtype, start
        self._is_scored = writer.open(f"{split}-scored.bin") if is_partly_scored else None
        self._shards: list[ChecksummedFile] = []
        self._documents = writer.open(f"{split}-documents.bin")
        self._rows = writer.open(f"{split}-rows.bin") if has_rows else None
        self._n_tokens = 0
        names = ("characters", "token_bytes", "text_bytes", "scored_text_bytes", "first_token_bytes", "row_first_bytes")
        self._counts = dict.fromkeys(names, 0)

    def add(self, group: EncodedGroup) -> None:
        """Append the tokens of a group."""
        if not self._n_tokens:
            self._counts["first_token_bytes"] = group.first_token_bytes
        for name, number in group.counts.items():
            self._counts[name] += number
        _write(self._documents, (self._n_tokens + group.document_starts).astype(np.uint64))
        if self._rows is not None:
            _write(self._rows, (self._n_tokens + group.row_starts).astype(np.uint64))
        if self._is_scored is not None:
            is_scored = group.is_scored.copy()
            # Tokens that are never a target.
            if self._rows is None and not self._n_tokens:
                is_scored[:1] = False
            elif self._rows is not None and self._start is None:
                is_scored[group.row_starts] = False
            _write(self._is_scored, is_scored)
        ids = group.ids.astype(self._dtype, copy=False)
        while len(ids):
            shard_index, n_in_shard = divmod(self._n_tokens, SHARD_TOKENS)
            if n_in_shard == 0:
                self._open_shard()
            part = ids[: SHARD_TOKENS - n_in_shard]
            _write(self._shards[shard_index], part)
            self._n_tokens += len(part)
            ids = ids[len(part) :]

    def finish(self) -> dict[str, Any]:
        """Flush all files to disk and return the split's entry in the manifest."""
        if not self._shards:
            self._open_shard()
        if self._rows is not None:
            _write(self._rows, np.array([self._n_tokens], dtype=np.uint64))
            self._rows.finish()
        if self._is_scored is not None:
            self._is_scored.finish()
        self._documents.finish()
        self._shards[-1].finish()
        return {
            "tokens": self._n_tokens,
            "shards": [shard.name for shard in self._shards],
            "documents": self._documents.name,
            "rows": None if self._rows is None else self._rows.name,
            "is_scored": None if self._is_scored is None else self._is_scored.name,
            **self._counts,
        }

    def _open_shard(self) -> None:
        if self._shards:
            self._shards[-1].finish()
        self._shards.append(self._writer.open(f"{self._split}-{len(self._shards):05d}.bin"))


def _write(file: ChecksummedFile, array: np.ndarray) -> None:
    file.write(np.ascontiguousarray(array).data)


def _line_end(tokenizer: Tokenizer) -> int | None:
    """Return the token that precedes the first token of every line, or None if the tokenizer has none."""
    try:
        ids = tokenizer.encode("\n")
    except ValueError:
        return None
    return int(ids[-1]) if len(ids) else None
