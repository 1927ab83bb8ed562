import contextlib
import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest

from nanolm.config.budget import Budget
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


def test_wrong_types_in_the_summary_are_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"status": "completed", "step": "20"}')
    with pytest.raises(RunError, match=r"summary\.json is damaged: step is '20', and must be a whole number"):
        read_summary(tmp_path / "summary.json")


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "large", "deep"])
def test_summary_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / "summary.json"
    path.parent.mkdir()
    (tmp_path / "secret").write_text('{"status": "completed"}')
    {
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(tmp_path / "secret"),
        "large": lambda: path.write_text('{"a": "' + "x" * 1_000_000 + '"}'),
        "deep": lambda: path.write_text("[" * 200_000),
    }[kind]()
    with pytest.raises(RunError, match=r"^summary\.json (cannot be read: it (is|has)|is damaged: nested too deeply)"):
        read_summary(path)


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
    assert Summary(status="completed", step=5).is_complete(Budget("max_steps", 5))
    assert not Summary(status="completed", step=5).is_complete(Budget("max_steps", 6))
    assert not Summary(status="interrupted", step=5).is_complete(Budget("max_steps", 5))
    assert Summary(status="completed", step=1, kind=FITTED, entries=9).is_complete(Budget("max_steps", 6))
    assert not Summary().is_complete(Budget("max_steps", 1))


def test_handmade_summary_has_the_keys_of_a_real_one(trained: Path, tmp_path: Path) -> None:
    made = json.loads((make_run(tmp_path / "run") / "summary.json").read_text())
    real = json.loads(RunDirectory(trained).summary.read_text())
    assert list(made) == list(real)
    results = ("status", "kind", "step", "tokens", "parameters", "best_val_loss", "final_val_loss", "bits_per_byte")
    for key in results:
        assert type(made[key]) is type(real[key]), key
