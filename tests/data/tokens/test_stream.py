import math

import numpy as np
import pytest

from nanolm.data.batches import gather_rows
from nanolm.data.tokens.stream import Rows, Shards, Stream, chunks, gather_windows


def test_bits_per_byte_of_uniform_bytes_is_eight() -> None:
    stream = Stream(np.zeros(101, dtype=np.uint8), scored_bytes=100)
    assert stream.bits_per_byte(math.log(256)) == pytest.approx(8)


@pytest.mark.parametrize(
    ("start", "inputs", "targets"),
    [
        (None, [[10, 11, 12], [13, 0, 0], [30, 0, 0]], [[11, 12, 13], [14, -100, -100], [31, -100, -100]]),
        (
            7,
            [[7, 10, 11], [12, 13, 0], [7, 0, 0], [7, 30, 0]],
            [[10, 11, 12], [13, 14, -100], [20, -100, -100], [30, 31, -100]],
        ),
    ],
)
def test_rows_inputs_and_targets(start: int | None, inputs: list[list[int]], targets: list[list[int]]) -> None:
    tokens = np.array([10, 11, 12, 13, 14, 20, 30, 31], dtype=np.uint8)
    rows = Rows(np.array([0, 5, 6, 8], dtype=np.uint64), start, context_length=3)
    found_inputs, found_targets = gather_rows(tokens, rows, np.arange(len(rows)))
    assert found_inputs.tolist() == inputs
    assert found_targets.tolist() == targets
    assert rows.n_targets == (found_targets >= 0).sum()


def test_shards_read_as_one_array() -> None:
    parts = [np.arange(0, 7), np.arange(7, 8), np.arange(8, 30)]
    shards, flat = Shards(parts), np.arange(30)
    assert len(shards) == 30
    for start, stop in ((0, 3), (5, 9), (0, 30), (28, 99), (4, 4)):
        assert (shards[start:stop] == flat[start:stop]).all()
    starts = np.arange(30 - 8)
    assert (gather_windows(shards, starts, 9) == gather_windows(flat, starts, 9)).all()
    assert (gather_windows(flat, starts, 9) == starts[:, None] + np.arange(9)).all()
    assert [chunk.tolist() for chunk in chunks(flat[:5], 2, overlap=1)] == [[0, 1, 2], [2, 3, 4]]
