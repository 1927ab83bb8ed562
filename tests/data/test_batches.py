import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.trainer import Sampling
from nanolm.data.batches import IGNORE_INDEX, document_ids, draw
from nanolm.data.tokens.stream import Rows, Stream
from nanolm.errors import SettingsError

TOKENS = np.arange(500, dtype=np.uint16)


def windows(tokens: np.ndarray, **about: int) -> tuple[np.ndarray, np.ndarray]:
    batch = draw(Sampling.windows, stream_of(tokens), **about)
    return batch.inputs_BxT, batch.targets_BxT


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 8), st.integers(1, 40))
def test_targets_follow_inputs(seed: int, step: int, batch_size: int, context_length: int) -> None:
    inputs, targets = windows(TOKENS, seed=seed, step=step, batch_size=batch_size, context_length=context_length)
    assert inputs.shape == targets.shape == (batch_size, context_length)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all()
    again, _ = windows(TOKENS, seed=seed, step=step, batch_size=batch_size, context_length=context_length)
    assert (again == inputs).all()


def test_steps_and_seeds_differ() -> None:
    starts = {
        (seed, step): tuple(windows(TOKENS, seed=seed, step=step, batch_size=8, context_length=8)[0][:, 0])
        for seed in range(3)
        for step in range(50)
    }
    assert len(set(starts.values())) == len(starts)


def test_every_position_is_drawn_alike_and_none_beyond_the_end() -> None:
    counts = np.zeros(len(TOKENS), dtype=int)
    for step in range(400):
        inputs, _ = windows(TOKENS, seed=0, step=step, batch_size=64, context_length=20)
        counts += np.bincount(inputs[:, 0], minlength=len(TOKENS))
    assert counts[480:].sum() == 0
    # 25,600 draws over 480 positions: 53 each, standard deviation 7.3; 6 of them is beyond chance.
    assert abs(counts[:480] - 53.3).max() < 6 * 7.3


def test_a_text_of_one_window_has_one_batch() -> None:
    inputs, targets = windows(np.arange(9), seed=1, step=1, batch_size=3, context_length=8)
    assert (inputs == np.arange(8)).all()
    assert (targets == np.arange(1, 9)).all()


def stream_of(tokens: np.ndarray, row_starts: list[int] | None = None, context_length: int = 8) -> Stream:
    rows = None
    if row_starts is not None:
        rows = Rows(np.array([*row_starts, len(tokens)], dtype=np.uint64), 499, context_length)
    return Stream(tokens, scored_bytes=len(tokens), rows=rows)


def random_rows(n_rows: int, seed: int) -> list[int]:
    lengths = np.random.default_rng(seed).integers(1, 25, n_rows - 1)
    return [0, *np.cumsum(lengths).tolist()]


kinds = st.sampled_from(list(Sampling))


@given(kinds, st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 4), st.integers(1, 5))
def test_the_ranks_share_one_batch_whatever_their_number(
    kind: Sampling, seed: int, step: int, world_size: int, rows_a_rank: int
) -> None:
    stream = stream_of(TOKENS, random_rows(12, 0) if kind.in_rows else None)
    about = {"seed": seed, "step": step, "batch_size": world_size * rows_a_rank, "context_length": 8}
    whole = draw(kind, stream, **about, with_documents=True)
    shares = [
        draw(kind, stream, **about, with_documents=True, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for side, *parts in zip(whole, *shares, strict=True):
        if side is None:
            assert kind.in_rows
            assert parts == [None] * world_size
            continue
        assert {part.shape for part in parts} == {(rows_a_rank, 8)}
        assert (np.concatenate(parts) == side).all()


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"cannot be shared evenly by 3[\s\S]*a multiple of 3, such as 9"):
        draw(Sampling.windows, stream_of(TOKENS), seed=0, step=0, batch_size=8, context_length=8, world_size=3)


@given(st.integers(10, 400), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**63 - 1))
def test_every_block_comes_once_an_epoch(n_tokens: int, context_length: int, batch_size: int, seed: int) -> None:
    tokens = np.arange(n_tokens)
    n_blocks = (n_tokens - 1) // context_length
    n_steps = -(-3 * n_blocks // batch_size)
    about = {"seed": seed, "batch_size": batch_size, "context_length": context_length}
    drawn = [draw(Sampling.epochs, stream_of(tokens), step=step, **about) for step in range(n_steps)]
    assert all((batch.targets_BxT == batch.inputs_BxT + 1).all() for batch in drawn)
    firsts = np.concatenate([batch.inputs_BxT[:, 0] for batch in drawn])
    for epoch in range(3):
        blocks = firsts[epoch * n_blocks : (epoch + 1) * n_blocks]
        assert sorted(blocks.tolist()) == [block * context_length for block in range(n_blocks)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = set()
    for seed in range(5):
        for epoch in range(5):
            batch = draw(Sampling.epochs, stream_of(TOKENS), seed=seed, step=epoch, batch_size=62, context_length=8)
            orders.add(tuple(batch.inputs_BxT[:, 0].tolist()))
    assert len(orders) == 25


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**63 - 1), st.integers(1, 7))
def test_every_token_of_every_row_is_a_target_once_an_epoch(
    n_rows: int, context_length: int, seed: int, batch_size: int
) -> None:
    starts = random_rows(n_rows, seed % 1000)
    tokens = np.arange(starts[-1] + 5)
    stream = stream_of(tokens, starts, context_length)
    assert stream.rows is not None
    n_steps = -(-len(stream.rows) // batch_size)
    about = {"seed": seed, "batch_size": batch_size, "context_length": context_length}
    drawn = [draw(Sampling.lines, stream, step=step, **about) for step in range(n_steps)]
    sides = [batch[:2] for batch in drawn]
    inputs, targets = (np.concatenate(side)[: len(stream.rows)] for side in zip(*sides, strict=True))
    assert inputs.shape == targets.shape == (len(stream.rows), context_length)
    is_scored = targets != IGNORE_INDEX
    assert sorted(targets[is_scored].tolist()) == tokens.tolist()
    begins_row = np.isin(targets, starts)
    assert (inputs[begins_row] == 499).all()
    assert (inputs[is_scored & ~begins_row] == targets[is_scored & ~begins_row] - 1).all()
    assert (inputs[~is_scored] == 0).all()


@given(kinds, st.integers(0, 2**63 - 1), st.integers(0, 10**12))
def test_a_seek_finds_what_a_walk_finds(kind: Sampling, seed: int, step: int) -> None:
    stream = stream_of(TOKENS, random_rows(12, 0) if kind.in_rows else None)
    about = {"seed": seed, "batch_size": 4, "context_length": 8}
    walked = [draw(kind, stream, step=step + ahead, **about, with_documents=True) for ahead in range(4)]
    sought = [draw(kind, stream, step=step + ahead, **about, with_documents=True) for ahead in (3, 1, 0, 2)]
    for ahead, found in zip((3, 1, 0, 2), sought, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(found, walked[ahead], strict=True))


def document_starts(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.uint64)


lengths_of_documents = st.lists(st.integers(0, 30), max_size=40)


@given(lengths_of_documents, st.integers(1, 20), st.data())
def test_a_token_is_of_the_last_document_that_begins_at_or_before_it(
    lengths: list[int], length: int, data: st.DataObject
) -> None:
    starts = document_starts(lengths)
    begins = data.draw(st.lists(st.integers(0, int(starts[-1])), min_size=1, max_size=8))
    found = document_ids(starts, np.array(begins), length)
    assert found.dtype == np.int64
    by_hand = [
        [max(number for number, start in enumerate(starts.tolist()) if start <= position) for position in window]
        for window in (range(begin, begin + length) for begin in begins)
    ]
    assert found.tolist() == by_hand


@given(st.sampled_from([Sampling.windows, Sampling.epochs]), lengths_of_documents, st.integers(0, 10**9))
def test_a_batch_says_which_document_its_inputs_are_of(kind: Sampling, lengths: list[int], step: int) -> None:
    # Each token is its own position.
    stream = dataclasses.replace(stream_of(TOKENS), documents=document_starts(lengths))
    about = {"seed": 1, "step": step, "batch_size": 4, "context_length": 8}
    batch, plain = (draw(kind, stream, **about, with_documents=wanted) for wanted in (True, False))
    assert batch.documents_BxT is not None
    expected = np.searchsorted(stream.documents.astype(np.int64), batch.inputs_BxT, side="right") - 1
    assert (batch.documents_BxT == expected).all()
    assert plain.documents_BxT is None
    assert (plain.inputs_BxT == batch.inputs_BxT).all()
    assert (plain.targets_BxT == batch.targets_BxT).all()


def test_a_text_without_documents_is_one() -> None:
    batch = draw(
        Sampling.windows, stream_of(TOKENS), seed=0, step=0, batch_size=4, context_length=8, with_documents=True
    )
    assert batch.documents_BxT is not None
    assert not batch.documents_BxT.any()
