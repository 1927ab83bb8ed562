"""Long files of metric rows, which are read in blocks."""

import math
import tracemalloc
from pathlib import Path

import pytest

from nanolm.errors import RunError
from nanolm.runs.metrics import (
    MAX_ROW_BYTES,
    MetricsRow,
    check_rows,
    iter_rows,
    read_last_row,
    read_rows,
    thinned_rows,
)
from nanolm.runs.records import encode_row

N_ROWS = 30_000
# Places of the first block, the middle and the last block.
SPIKES = {5: 17.25, 15_001: 1.5e-07, 29_990: 2.0}


def make_row(number: int) -> MetricsRow:
    if number % 50 == 0:
        loss = 2 + (number * 7919 % N_ROWS) / N_ROWS
        return MetricsRow(
            step=number, split="val", loss=loss, bits_per_byte=loss * 1.4, tokens=64 * number, seconds=1.5
        )
    loss = SPIKES.get(number, 2.5 + math.sin(number) / 3)
    norm = 99.5 if number == 20_001 else 0.5 + math.cos(number) / 3
    return MetricsRow(step=number, split="train", loss=loss, lr=1e-05, grad_norm=norm, tokens=64 * number, seconds=1.5)


ROWS = [make_row(number) for number in range(1, N_ROWS + 1)]
LINES = [encode_row(row) for row in ROWS]


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    path.write_bytes(b"".join(LINES))
    return path


def test_long_file_is_read_in_blocks(long_file: Path) -> None:
    assert list(iter_rows(long_file, "val")) == ROWS[49::50]
    assert read_last_row(long_file) == ROWS[-1]
    check_rows(long_file)
    rows = iter_rows(long_file)
    tracemalloc.start()
    assert sum(1 for _ in zip(rows, range(20_000), strict=False)) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 6e6
    tracemalloc.stop()


@pytest.mark.parametrize("is_usual", [True, False])
def test_thinned_rows_keep_spikes_and_best_losses(is_usual: bool, long_file: Path, tmp_path: Path) -> None:
    path = long_file
    if not is_usual:
        # Another order of the keys: every row is parsed.
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"".join(line.replace(b'{"step"', b'{"mfu": 0.5, "step"') for line in LINES))
    rows = list(thinned_rows(path, n_blocks=100))
    assert 200 <= len(rows) <= 2000
    assert rows == sorted(rows, key=lambda row: row.step)
    kept = {row.step for row in rows}
    assert {1, 20_001, N_ROWS, *SPIKES} <= kept
    val = [row for row in ROWS if row.split == "val"]
    assert {min(val, key=lambda row: row.loss or 0).step, max(val, key=lambda row: row.loss or 0).step} <= kept
    assert {row.step for row in val} <= kept, "blocks with a few validation rows keep all"


def test_short_file_is_not_thinned(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES[:2000]))
    assert list(thinned_rows(path)) == ROWS[:2000]


def test_rows_of_norms_are_thinned_without_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    row = MetricsRow(step=1, split="train", loss=2.0, weight_norms={"head": 1.5}, grad_norms={"head": 0.25})
    path.write_bytes(encode_row(row) * 1000)
    rows = list(thinned_rows(path, n_blocks=2))
    assert rows
    assert all(row == MetricsRow(step=1, split="train", loss=2.0) for row in rows)
    assert len(rows) < 20


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 3, "split": "train", "loss": }',
        b'{"step": 3, "split": "train", "loss": .5, "lr": 1e-05}',
        b'{"step": 3, "split": "train", "loss": 1.5.5}',
        b'{"step": 2.5, "split": "train", "loss": 1.5}',
        b'{"step": , "split": "val", "loss": 1.5}',
        b'{"step": 3, "split": "train", "loss": "low"}',
        b'{"step": 3, "loss": 1.5}',
        b'{"split": "train", "loss": 1.5}',
        b'{"step": 3, "split": "tra',
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
        b"{" + b" " * MAX_ROW_BYTES * 3,
    ],
)
def test_damaged_row_of_a_long_file_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES[:20_000]) + line + b"\n" + b"".join(LINES[:100]))
    for read in (check_rows, read_rows):
        with pytest.raises(RunError, match=r"line 20001 of metrics\.jsonl is damaged"):
            read(path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 3.0, "split": "train", "loss": 2, "lr": null}',
        b'{"split": "val", "more": [1, {"a": null}], "step": 3, "loss": NaN}',
        b'{"step":3,"split":"train","loss":1e999}',
    ],
)
def test_unusual_rows_are_no_damage(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES[:500]) + line + b"\n" + b"".join(LINES[500:1000]))
    check_rows(path)
    rows = list(thinned_rows(path, n_blocks=5))
    assert rows[-1] == ROWS[999]
    assert len(read_rows(path)) == 1001
