import json
from pathlib import Path

import pytest

from nanolm.errors import RunError
from nanolm.runs.metrics import MetricsRow, read_last_step, read_rows, val_losses
from nanolm.runs.records import encode_row
from tests.runs.made import make_run

ROWS = [MetricsRow(step=step, split=split, loss=1.0 + step) for step in (1, 2) for split in ("train", "val")]


def write(path: Path, rows: list[MetricsRow]) -> bytes:
    content = b"".join(map(encode_row, rows))
    path.write_bytes(content)
    return content


def test_rows_round_trip_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    write(path, ROWS)
    assert read_rows(path) == ROWS
    assert read_rows(path, "val") == ROWS[1::2]
    assert list(json.loads(encode_row(ROWS[0]))) == ["step", "split", "loss"]


def test_norms_are_read_back(tmp_path: Path) -> None:
    row = MetricsRow(step=1, split="train", loss=2.0, weight_norms={"head": 1.5}, grad_norms={"head": 0.25})
    write(tmp_path / "metrics.jsonl", [row])
    assert read_rows(tmp_path / "metrics.jsonl") == [row]


def test_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    content = write(path, ROWS)
    path.write_bytes(content + encode_row(ROWS[-1])[:-4])
    assert read_rows(path) == ROWS
    assert read_rows(path, "val") == ROWS[1::2]


@pytest.mark.parametrize("line", ['{"split": "val", "lo', "[3]", '{"split": "val"}', '{"step": "1", "split": "val"}'])
def test_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "split": "val", "loss": 1}\n'
    path.write_text(good + line + "\n" + good)
    with pytest.raises(RunError, match=r"line 2 of metrics\.jsonl is damaged"):
        read_rows(path)
    if "val" in line:
        with pytest.raises(RunError, match=r"line 2 of metrics\.jsonl is damaged"):
            read_rows(path, "val")


def test_null_and_unknown_values_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "val", "loss": null, "more": "x"}\n')
    assert read_rows(path) == [MetricsRow(step=1, split="val")]
    assert val_losses(read_rows(path)) == {}


def test_last_step_is_read_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"")
    assert read_last_step(path) == 0
    content = write(path, [MetricsRow(step=step, split="train", loss=1.0) for step in range(1, 5001)])
    assert read_last_step(path) == 5000
    path.write_bytes(content[:-3])
    assert read_last_step(path) == 4999
    path.write_bytes(content + b"{}\n")
    assert read_last_step(path) == 0


def test_val_losses_are_keyed_by_step() -> None:
    assert val_losses(ROWS) == {1: 2.0, 2: 3.0}


def test_handmade_rows_have_the_fields_of_real_ones(trained: Path, tmp_path: Path) -> None:
    def keys(run: Path, split: str) -> set[str]:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return {key for line in lines if (row := json.loads(line))["split"] == split for key in row}

    made = make_run(tmp_path / "run")
    for split in ("train", "val"):
        assert keys(made, split) == keys(trained, split)
