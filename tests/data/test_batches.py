import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.batch_schedule import Stage, stage_at
from nanolm.config.trainer import Sampling
from nanolm.data import batches
from nanolm.data.batches import IGNORE_INDEX, Batch, document_ids
from nanolm.data.tokens.stream import Rows, Stream
from nanolm.errors import SettingsError
from tests.helpers import make_config

TOKENS = np.arange(500, dtype=np.uint16)


def draw(kind: Sampling, stream: Stream, *, batch_size: int, context_length: int, **settings: Any) -> Batch:
    """Draw a batch of a run whose batches all have the same shape."""
    return batches.draw(kind, stream, Stage(0, 1, batch_size, context_length), **settings)


def draw_windows(tokens: np.ndarray, **settings: int) -> tuple[np.ndarray, np.ndarray]:
    batch = draw(Sampling.windows, make_stream(tokens), **settings)
    return batch.inputs_BxT, batch.targets_BxT


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 8), st.integers(1, 40))
def test_draw_targets_follow_inputs(seed: int, step: int, batch_size: int, context_length: int) -> None:
    inputs, targets = draw_windows(TOKENS, seed=seed, step=step, batch_size=batch_size, context_length=context_length)
    assert inputs.shape == targets.shape == (batch_size, context_length)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all()
    again, _ = draw_windows(TOKENS, seed=seed, step=step, batch_size=batch_size, context_length=context_length)
    assert (again == inputs).all()


def test_draw_differs_between_steps_and_seeds() -> None:
    starts = {
        (seed, step): tuple(draw_windows(TOKENS, seed=seed, step=step, batch_size=8, context_length=8)[0][:, 0])
        for seed in range(3)
        for step in range(50)
    }
    assert len(set(starts.values())) == len(starts)


def test_draw_windows_is_uniform_over_positions() -> None:
    counts = np.zeros(len(TOKENS), dtype=int)
    for step in range(400):
        inputs, _ = draw_windows(TOKENS, seed=0, step=step, batch_size=64, context_length=20)
        counts += np.bincount(inputs[:, 0], minlength=len(TOKENS))
    assert counts[480:].sum() == 0
    # 25,600 draws over 480 positions: 53 each with a standard deviation of 7.3; the limit is 6 deviations.
    assert abs(counts[:480] - 53.3).max() < 6 * 7.3


def test_draw_text_of_one_window_has_one_batch() -> None:
    inputs, targets = draw_windows(np.arange(9), seed=1, step=1, batch_size=3, context_length=8)
    assert (inputs == np.arange(8)).all()
    assert (targets == np.arange(1, 9)).all()


def make_stream(tokens: np.ndarray, row_starts: list[int] | None = None, context_length: int = 8) -> Stream:
    rows = None
    if row_starts is not None:
        rows = Rows(np.array([*row_starts, len(tokens)], dtype=np.uint64), 499, context_length)
    return Stream(tokens, scored_bytes=len(tokens), rows=rows)


def random_rows(n_rows: int, seed: int) -> list[int]:
    lengths = np.random.default_rng(seed).integers(1, 25, n_rows - 1)
    return [0, *np.cumsum(lengths).tolist()]


kinds = st.sampled_from(list(Sampling))


@given(kinds, st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 4), st.integers(1, 5))
def test_draw_ranks_share_one_batch(kind: Sampling, seed: int, step: int, world_size: int, rows_per_rank: int) -> None:
    stream = make_stream(TOKENS, random_rows(12, 0) if kind.in_rows else None)
    settings = {"seed": seed, "step": step, "batch_size": world_size * rows_per_rank, "context_length": 8}
    full = draw(kind, stream, **settings, with_documents=True)
    shares = [
        draw(kind, stream, **settings, with_documents=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for side, *parts in zip(full, *shares, strict=True):
        if side is None:
            assert kind.in_rows
            assert parts == [None] * world_size
            continue
        assert {part.shape for part in parts} == {(rows_per_rank, 8)}
        assert (np.concatenate(parts) == side).all()


def test_draw_refuses_indivisible_batch_size() -> None:
    with pytest.raises(
        SettingsError, match=r"is not divisible by the number of processes \(3\)[\s\S]*a multiple of 3, such as 9"
    ):
        draw(Sampling.windows, make_stream(TOKENS), seed=0, step=0, batch_size=8, context_length=8, world_size=3)


@given(st.integers(10, 400), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**63 - 1))
def test_draw_epochs_use_every_block_once(n_tokens: int, context_length: int, batch_size: int, seed: int) -> None:
    tokens = np.arange(n_tokens)
    n_blocks = (n_tokens - 1) // context_length
    n_steps = -(-3 * n_blocks // batch_size)
    settings = {"seed": seed, "batch_size": batch_size, "context_length": context_length}
    drawn = [draw(Sampling.epochs, make_stream(tokens), step=step, **settings) for step in range(n_steps)]
    assert all((batch.targets_BxT == batch.inputs_BxT + 1).all() for batch in drawn)
    firsts = np.concatenate([batch.inputs_BxT[:, 0] for batch in drawn])
    for epoch in range(3):
        blocks = firsts[epoch * n_blocks : (epoch + 1) * n_blocks]
        assert sorted(blocks.tolist()) == [block * context_length for block in range(n_blocks)]


def test_draw_epochs_order_differs_by_epoch_and_seed() -> None:
    orders = set()
    for seed in range(5):
        for epoch in range(5):
            batch = draw(Sampling.epochs, make_stream(TOKENS), seed=seed, step=epoch, batch_size=62, context_length=8)
            orders.add(tuple(batch.inputs_BxT[:, 0].tolist()))
    assert len(orders) == 25


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**63 - 1), st.integers(1, 7))
def test_draw_rows_score_every_token_once_per_epoch(
    n_rows: int, context_length: int, seed: int, batch_size: int
) -> None:
    starts = random_rows(n_rows, seed % 1000)
    tokens = np.arange(starts[-1] + 5)
    stream = make_stream(tokens, starts, context_length)
    assert stream.rows is not None
    n_steps = -(-len(stream.rows) // batch_size)
    settings = {"seed": seed, "batch_size": batch_size, "context_length": context_length}
    drawn = [draw(Sampling.lines, stream, step=step, **settings) for step in range(n_steps)]
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
def test_draw_does_not_depend_on_order_of_steps(kind: Sampling, seed: int, step: int) -> None:
    stream = make_stream(TOKENS, random_rows(12, 0) if kind.in_rows else None)
    settings = {"seed": seed, "batch_size": 4, "context_length": 8}
    in_order = [draw(kind, stream, step=step + ahead, **settings, with_documents=True) for ahead in range(4)]
    out_of_order = [draw(kind, stream, step=step + ahead, **settings, with_documents=True) for ahead in (3, 1, 0, 2)]
    for ahead, found in zip((3, 1, 0, 2), out_of_order, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(found, in_order[ahead], strict=True))


def document_starts(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.uint64)


lengths_of_documents = st.lists(st.integers(0, 30), max_size=40)


@given(lengths_of_documents, st.integers(1, 20), st.data())
def test_document_ids_match_search_by_hand(lengths: list[int], length: int, data: st.DataObject) -> None:
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
def test_draw_with_documents_returns_their_ids(kind: Sampling, lengths: list[int], step: int) -> None:
    # Each token is its own position.
    stream = dataclasses.replace(make_stream(TOKENS), documents=document_starts(lengths))
    settings = {"seed": 1, "step": step, "batch_size": 4, "context_length": 8}
    batch, plain = (draw(kind, stream, **settings, with_documents=wanted) for wanted in (True, False))
    assert batch.documents_BxT is not None
    expected = np.searchsorted(stream.documents.astype(np.int64), batch.inputs_BxT, side="right") - 1
    assert (batch.documents_BxT == expected).all()
    assert plain.documents_BxT is None
    assert (plain.inputs_BxT == batch.inputs_BxT).all()
    assert (plain.targets_BxT == batch.targets_BxT).all()


def test_draw_text_without_documents_is_one_document() -> None:
    batch = draw(
        Sampling.windows, make_stream(TOKENS), seed=0, step=0, batch_size=4, context_length=8, with_documents=True
    )
    assert batch.documents_BxT is not None
    assert not batch.documents_BxT.any()


def staged(kind: Sampling, stream: Stream, *overrides: str) -> list[Batch]:
    """Draw all batches of a run of 40 steps of 6 x 8 tokens."""
    config = make_config(
        "trainer.max_steps=40",
        "trainer.batch_size=6",
        "size.context_length=8",
        f"trainer.sampling={kind.name}",
        *overrides,
    )
    return [batches.draw(kind, stream, stage_at(config, step), seed=3, step=step) for step in range(40)]


@pytest.mark.parametrize("kind", list(Sampling))
def test_draw_follows_the_schedules(kind: Sampling) -> None:
    stream = make_stream(TOKENS, random_rows(30, 0) if kind.in_rows else None)
    schedules = ("trainer.batch_size_schedule=[[0.25,2],[0.5,4]]", "trainer.context_length_schedule=[[0.3,4]]")
    drawn = staged(kind, stream, *schedules)
    shapes = [batch.inputs_BxT.shape for batch in drawn]
    assert shapes == [(2, 4)] * 10 + [(4, 4)] * 2 + [(4, 8)] * 8 + [(6, 8)] * 20
    for batch in drawn:
        is_next = batch.targets_BxT == batch.inputs_BxT + 1
        assert is_next.all() if not kind.in_rows else (batch.targets_BxT != IGNORE_INDEX).any(axis=1).all()


def test_draw_windows_of_two_stages_are_independent() -> None:
    firsts = [
        batches.draw(Sampling.windows, make_stream(TOKENS), Stage(0, 9, 8, 8, number), seed=1, step=5).inputs_BxT[:, 0]
        for number in range(3)
    ]
    assert len({tuple(starts) for starts in firsts}) == 3


@pytest.mark.parametrize("kind", [Sampling.epochs, Sampling.lines, Sampling.documents])
def test_draw_changes_of_the_batch_size_keep_epochs_whole(kind: Sampling) -> None:
    stream = make_stream(TOKENS, random_rows(30, 0) if kind.in_rows else None)
    drawn = staged(kind, stream, "trainer.batch_size_schedule=[[0.25,2],[0.5,4],[0.6,7]]")
    rows = np.concatenate([batch.targets_BxT for batch in drawn])
    expected = np.concatenate([batch.targets_BxT for batch in staged(kind, stream)])
    assert (rows == expected[: len(rows)]).all()


def test_draw_context_lengths_have_their_own_epochs() -> None:
    # 20 blocks of 4 tokens and 10 of 8: the stages of 4 tokens have 18 + 6 rows, those of 8 have 30 + 6 + 120.
    stream = make_stream(np.arange(84))
    schedules = ("trainer.context_length_schedule=[[0.15,4],[0.4,8],[0.45,4]]", "trainer.batch_size_schedule=[[0.5,3]]")
    firsts: dict[int, list[int]] = {4: [], 8: []}
    for batch in staged(Sampling.epochs, stream, *schedules):
        firsts[batch.inputs_BxT.shape[1]] += batch.inputs_BxT[:, 0].tolist()
    assert (len(firsts[4]), len(firsts[8])) == (24, 156)
    assert sorted(firsts[4][:20]) == list(range(0, 80, 4))
    for epoch in range(15):
        assert sorted(firsts[8][epoch * 10 : epoch * 10 + 10]) == list(range(0, 80, 8))


def test_draw_short_rows_score_every_token_once_per_epoch() -> None:
    stream = make_stream(TOKENS, random_rows(30, 0))
    assert stream.rows is not None
    n_rows = len(stream.rows.split_at(3))
    assert n_rows > len(stream.rows)
    stage = Stage(0, n_rows, 1, 3)
    drawn = [batches.draw(Sampling.lines, stream, stage, seed=0, step=step) for step in range(n_rows)]
    targets = np.concatenate([batch.targets_BxT for batch in drawn])
    assert sorted(targets[targets != IGNORE_INDEX].tolist()) == TOKENS.tolist()
