"""Encoding of a corpus group by group: in this process, or in parallel worker processes for a long text."""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from nanolm.config.trainer import Sampling
from nanolm.data.corpus import Corpus
from nanolm.data.tokenizers import Tokenizer
from nanolm.machine import n_cores

# Characters that are sent to a worker at once, as entire documents or parts of long ones.
GROUP_CHARACTERS = 2**20
# For shorter texts, starting worker processes costs more than they save.
PARALLEL_CHARACTERS = 2**23
MAX_WORKERS = 16


@dataclasses.dataclass
class TextGroup:
    """Consecutive pieces of one split that are encoded together.

    Attributes:
        split: train, val or test.
        texts: the pieces.
        begins: for each piece, whether a document begins with it.
        n_characters: of all pieces.
    """

    split: str
    texts: list[str] = dataclasses.field(default_factory=list)
    begins: list[bool] = dataclasses.field(default_factory=list)
    n_characters: int = 0


@dataclasses.dataclass
class EncodedGroup:
    """The tokens of a group.

    Attributes:
        split: of the group.
        ids: the tokens.
        document_starts: index of the first token of each document.
        row_starts: index of the first token of each row; empty unless batches are made of rows.
        n_characters: characters of the text.
        n_text_bytes: bytes of the text in UTF-8.
        n_token_bytes: bytes that the tokens represent; 0 if the tokenizer is lossy.
        first_token_bytes: bytes of the first token of the group.
        row_first_bytes: bytes of the first tokens of all rows.
    """

    split: str
    ids: np.ndarray
    document_starts: np.ndarray
    row_starts: np.ndarray
    n_characters: int
    n_text_bytes: int
    n_token_bytes: int
    first_token_bytes: int
    row_first_bytes: int


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer, rows: str | None) -> Iterator[EncodedGroup]:
    """Encode all splits of a corpus in order.

    Args:
        corpus: the text.
        tokenizer: fitted to it.
        rows: "lines" or "documents" if batches are made of those; None for a continuous text.
    """
    groups = _groups(corpus)
    n_workers = min(n_cores(), MAX_WORKERS)
    if sum(corpus.n_characters.values()) < PARALLEL_CHARACTERS or n_workers == 1:
        return (encode(group, tokenizer, rows) for group in groups)
    return _encode_in_parallel(groups, tokenizer, rows, n_workers)


def encode(group: TextGroup, tokenizer: Tokenizer, rows: str | None) -> EncodedGroup:
    """Encode one group; the arguments are those of `encode_corpus`."""
    texts, begins = group.texts, group.begins
    begins_row = begins
    if rows == Sampling.lines.name:
        # Pieces are cut after line ends, so that each begins with a line.
        lines = [_split_lines(text) for text in texts]
        texts = [line for lines_of_text in lines for line in lines_of_text]
        begins = [
            begins_document and number == 0
            for begins_document, lines_of_text in zip(begins, lines, strict=True)
            for number in range(len(lines_of_text))
        ]
        begins_row = [True] * len(texts)
    encoded = [tokenizer.encode(text) for text in texts]
    ids = encoded[0] if len(encoded) == 1 else np.concatenate(encoded)
    offsets = np.cumsum([0] + [len(one) for one in encoded[:-1]])
    has_tokens = np.array([len(one) > 0 for one in encoded])
    row_starts = offsets[np.array(begins_row) & has_tokens] if rows else offsets[:0]
    return EncodedGroup(
        split=group.split,
        ids=ids,
        document_starts=offsets[np.array(begins)],
        row_starts=row_starts,
        n_characters=group.n_characters,
        n_text_bytes=sum(len(text.encode()) for text in group.texts),
        n_token_bytes=tokenizer.count_bytes(ids) if tokenizer.lossless else 0,
        first_token_bytes=tokenizer.count_bytes(ids[:1]) if len(ids) else 0,
        row_first_bytes=tokenizer.count_bytes(ids[row_starts]) if len(row_starts) else 0,
    )


def _groups(corpus: Corpus) -> Iterator[TextGroup]:
    """Collect the pieces of each split into groups that are large enough to send to another process."""
    groups = {split: TextGroup(split) for split in corpus.splits}
    for piece in corpus.pieces():
        group = groups[piece.split]
        group.texts.append(piece.text)
        group.begins.append(piece.begins)
        group.n_characters += len(piece.text)
        if group.n_characters >= GROUP_CHARACTERS:
            yield group
            groups[piece.split] = TextGroup(piece.split)
    yield from (group for group in groups.values() if group.texts)


def _encode_in_parallel(
    groups: Iterator[TextGroup], tokenizer: Tokenizer, rows: str | None, n_workers: int
) -> Iterator[EncodedGroup]:
    """Encode groups in worker processes, a few groups ahead of the one that is yielded."""
    # Spawned, not forked: this process has threads (of torch, of tokenizers), which do not survive a fork.
    pool = ProcessPoolExecutor(
        n_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(type(tokenizer), tokenizer.to_json(), tokenizer.lossless),
    )
    pending: collections.deque[tuple[TextGroup, Future[EncodedGroup] | None]] = collections.deque()

    def next_result() -> EncodedGroup:
        group, future = pending.popleft()
        try:
            return future.result() if future is not None else encode(group, tokenizer, rows)
        except BrokenProcessPool:
            # A worker was killed, or the caller's main module has no `if __name__ == "__main__"`.
            return encode(group, tokenizer, rows)

    try:
        for group in groups:
            try:
                pending.append((group, pool.submit(_encode_in_worker, group, rows)))
            except BrokenProcessPool:
                pending.append((group, None))
            if len(pending) > 2 * n_workers:
                yield next_result()
        while pending:
            yield next_result()
    finally:
        pool.shutdown(cancel_futures=True)


# The tokenizer of a worker process.
_worker_tokenizer: list[Tokenizer] = []


def _start_worker(kind: type[Tokenizer], state: dict[str, Any], lossless: bool) -> None:
    tokenizer = kind.from_json(state)
    # For a plugin's class without the attribute, it was set after the tokenizer was made.
    tokenizer.lossless = lossless
    _worker_tokenizer[:] = [tokenizer]


def _encode_in_worker(group: TextGroup, rows: str | None) -> EncodedGroup:
    return encode(group, _worker_tokenizer[0], rows)


def _split_lines(text: str) -> list[str]:
    """Split a text into lines, each with its line end."""
    *complete, last = text.split("\n")
    return [line + "\n" for line in complete] + ([last] if last else [])
