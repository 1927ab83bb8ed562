"""Encoding of a corpus group by group: in this process, or in parallel worker processes for a long text."""

from __future__ import annotations

import collections
import dataclasses
import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from nanolm.config.trainer import Sampling
from nanolm.data.corpus import Corpus, Piece
from nanolm.data.tokenizers import Tokenizer
from nanolm.machine import n_cores

# Characters that are sent to a worker at once, as entire documents or parts of long ones.
GROUP_CHARACTERS = 2**20
# For shorter texts, starting worker processes costs more than they save.
PARALLEL_CHARACTERS = 2**23
MAX_WORKERS = 16


@dataclasses.dataclass
class EncodedGroup:
    """The tokens of consecutive pieces of one split.

    Attributes:
        split: train, val or test.
        ids: the tokens.
        document_starts: index of the first token of each document.
        row_starts: index of the first token of each row; empty unless batches are made of rows.
        is_scored: bool, whether the loss includes each token.
        first_token_bytes: bytes of the first token, 0 if it is not scored.
        counts: characters and text_bytes (UTF-8) of the text; scored_text_bytes of its scored part; token_bytes that
            the scored tokens represent, 0 if the tokenizer is lossy; row_first_bytes of the scored first tokens of all
            rows.
    """

    split: str
    ids: np.ndarray
    document_starts: np.ndarray
    row_starts: np.ndarray
    is_scored: np.ndarray
    first_token_bytes: int
    counts: dict[str, int]


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer, rows: str | None) -> Iterator[EncodedGroup]:
    """Encode all splits of a corpus in order.

    Args:
        rows: "lines" or "documents" if batches are made of those; None for a continuous text.
    """
    groups = _groups(corpus)
    n_workers = min(n_cores(), MAX_WORKERS)
    if sum(corpus.n_characters.values()) < PARALLEL_CHARACTERS or n_workers == 1:
        return (encode(group, tokenizer, rows) for group in groups)
    return _encode_in_parallel(groups, tokenizer, rows, n_workers)


def encode(pieces: list[Piece], tokenizer: Tokenizer, rows: str | None) -> EncodedGroup:
    """Encode consecutive pieces of one split; the other arguments are those of `encode_corpus`."""
    segments = pieces
    if rows == Sampling.lines.name:
        # Pieces are cut after line ends, so that each begins with a line.
        segments = [
            Piece(split, line, begins and number == 0, scored)
            for split, text, begins, scored in pieces
            for number, line in enumerate(io.StringIO(text))
        ]
    encoded = [tokenizer.encode(segment.text) for segment in segments]
    ids = encoded[0] if len(encoded) == 1 else np.concatenate(encoded)
    offsets = np.cumsum([0] + [len(one) for one in encoded[:-1]])
    begins_document = np.array([segment.begins for segment in segments])
    begins_row = begins_document | (rows == Sampling.lines.name)
    lengths = np.array([len(one) for one in encoded])
    # Rows without tokens are left out. Segments before the first beginning continue a row of the group before.
    first_segments = np.flatnonzero(begins_row)
    has_tokens = np.add.reduceat(lengths, first_segments) > 0 if len(first_segments) else begins_row[:0]
    row_starts = offsets[first_segments[has_tokens]] if rows else offsets[:0]
    is_scored = np.repeat(np.array([segment.scored for segment in segments]), lengths)
    scored_row_starts = row_starts[is_scored[row_starts]]
    return EncodedGroup(
        split=pieces[0].split,
        ids=ids,
        document_starts=offsets[begins_document],
        row_starts=row_starts,
        is_scored=is_scored,
        first_token_bytes=tokenizer.count_bytes(ids[:1]) if is_scored[:1].any() else 0,
        counts={
            "characters": sum(len(piece.text) for piece in pieces),
            "token_bytes": tokenizer.count_bytes(ids[is_scored]) if tokenizer.lossless else 0,
            "text_bytes": sum(len(piece.text.encode()) for piece in pieces),
            "scored_text_bytes": sum(len(piece.text.encode()) for piece in pieces if piece.scored),
            "row_first_bytes": tokenizer.count_bytes(ids[scored_row_starts]) if len(scored_row_starts) else 0,
        },
    )


def _groups(corpus: Corpus) -> Iterator[list[Piece]]:
    """Collect the pieces of each split into groups that are large enough to send to another process."""
    groups: dict[str, list[Piece]] = {split: [] for split in corpus.splits}
    n_characters = dict.fromkeys(corpus.splits, 0)
    for piece in corpus.pieces():
        groups[piece.split].append(piece)
        n_characters[piece.split] += len(piece.text)
        if n_characters[piece.split] >= GROUP_CHARACTERS:
            yield groups[piece.split]
            groups[piece.split], n_characters[piece.split] = [], 0
    yield from filter(None, groups.values())


def _encode_in_parallel(
    groups: Iterator[list[Piece]], tokenizer: Tokenizer, rows: str | None, n_workers: int
) -> Iterator[EncodedGroup]:
    """Encode groups in worker processes, a few groups ahead of the one that is yielded."""
    # Spawned, not forked: this process has threads (of torch, of tokenizers), which do not survive a fork.
    pool = ProcessPoolExecutor(
        n_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(type(tokenizer), tokenizer.to_json(), tokenizer.lossless),
    )
    pending: collections.deque[tuple[list[Piece], Future[EncodedGroup] | None]] = collections.deque()

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


def _encode_in_worker(pieces: list[Piece], rows: str | None) -> EncodedGroup:
    return encode(pieces, _worker_tokenizer[0], rows)
