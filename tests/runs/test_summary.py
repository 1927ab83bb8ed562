import contextlib
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nanolm.errors import RunError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import (
    FITTED,
    Summary,
    read_summary,
    update_summary,
    write_final_summary,
    write_summary,
)
from tests.runs.made import make_run


def test_summary_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    assert read_summary(path) == Summary()
    summary = Summary(step=3, choices={"model": "gpt"}, baseline_losses={"counted_bigram": 2.5}, git={"dirty": True})
    write_summary(path, summary)
    assert read_summary(path) == summary
    assert json.loads(path.read_text()) == dataclasses.asdict(summary)


def test_damaged_summary_is_named(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for text in ('{"step": ', "[]", "3"):
        path.write_text(text)
        with pytest.raises(RunError, match=r"summary\.json is damaged"):
            read_summary(path)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"step": "3", "status": 7, "lossless": "yes", "choices": "x"}, Summary()),
        ({"step": True, "best_val_loss": True, "seed": [1]}, Summary()),
        ({"step": 3.0, "best_val_loss": 2, "parameters": 1.5}, Summary(step=3, best_val_loss=2)),
        ({"baseline_losses": {"a": None, "b": 2.5, "c": "x"}}, Summary(baseline_losses={"b": 2.5})),
        ({"baseline_bits_per_byte": [1], "versions": {"torch": 2}}, Summary()),
        ({"unknown": 1, "step": 4}, Summary(step=4)),
    ],
)
def test_unknown_and_mistyped_fields_are_ignored(table: dict[str, Any], expected: Summary, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(table))
    assert read_summary(tmp_path / "summary.json") == expected


def test_numbers_that_are_not_finite_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"best_val_loss": NaN, "seconds": 1e999, "step": -Infinity, "tokens": 5}')
    assert read_summary(tmp_path / "summary.json") == Summary(tokens=5)


def test_update_keeps_everything_else_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"step": 3, "note": "mine", "seed": "odd"}')
    update_summary(path, wandb_id="abc", step=4)
    assert json.loads(path.read_text()) == {"step": 4, "note": "mine", "seed": "odd", "wandb_id": "abc"}


def test_final_summary_is_written_in_place_on_a_full_disk(tmp_path: Path) -> None:
    failed = Summary(status="failed", error="No space left on device")
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        run = RunDirectory(small)
        write_summary(run.summary, Summary(status="running", step=1))
        with contextlib.suppress(OSError), (small / "rest").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        with pytest.raises(OSError, match="No space left"):
            write_summary(run.summary, Summary(status="failed"))
        write_final_summary(run.summary, failed)
        assert run.read_summary() == failed
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_run_is_complete_once_all_steps_are_done() -> None:
    assert Summary(status="completed", step=5).is_complete(5)
    assert not Summary(status="completed", step=5).is_complete(6)
    assert not Summary(status="interrupted", step=5).is_complete(5)
    assert Summary(status="completed", step=1, kind=FITTED, entries=9).is_complete(6)
    assert not Summary().is_complete(1)


def test_handmade_summary_has_the_keys_of_a_real_one(trained: Path, tmp_path: Path) -> None:
    made = json.loads((make_run(tmp_path / "run") / "summary.json").read_text())
    real = json.loads(RunDirectory(trained).summary.read_text())
    assert list(made) == list(real)
    results = ("status", "kind", "step", "tokens", "parameters", "best_val_loss", "final_val_loss", "bits_per_byte")
    for key in results:
        assert type(made[key]) is type(real[key]), key
