"""Thousands of runs, and runs of a million rows, take seconds and little memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.runs.metrics import MetricsRow
from nanolm.runs.records import encode_row
from tests.run_fixtures import make_run

pytestmark = pytest.mark.slow

# Several times what a quiet core of 2024 needs.
MAX_SECONDS = 40
# Bytes of resident memory. What the commands import takes a third of it.
MAX_MEMORY = 600e6

N_RUNS = 5000
N_ROWS = 1_000_000


def measure(folder: Path, *arguments: str) -> str:
    """Run a command within MAX_SECONDS of processor time and MAX_MEMORY; return its output."""
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "nanolm", *arguments], cwd=folder, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_utime + usage.ru_stime < MAX_SECONDS
    assert usage.ru_maxrss * 1024 < MAX_MEMORY
    return output.read_text()


def test_million_rows_are_listed_compared_and_reported(tmp_path: Path, text: Path) -> None:
    run = make_run(tmp_path / "runs" / "long", text, "model=bigram", "trainer.max_steps=4", "trainer.eval_every=2")
    with (run / "metrics.jsonl").open("wb") as file:
        for step in range(1, N_ROWS + 1):
            split, loss = ("val", 2 + step % 7919 / 1e4) if step % 1000 == 0 else ("train", 2.5 + step % 1013 / 1e4)
            loss = 17.25 if step == N_ROWS - 777 else loss
            row = MetricsRow(step=step, split=split, loss=loss, lr=1e-3, grad_norm=0.5, tokens=64 * step, seconds=1.5)
            file.write(encode_row(row))
    assert "long" in measure(tmp_path, "runs", "runs")
    assert "never" in measure(tmp_path, "compare", "runs", "--target", "0.5")
    measure(tmp_path, "report", "runs", "-o", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "17.25" in page
    assert len(page) < 8e6


def test_thousands_of_runs_are_listed_compared_and_reported(tmp_path: Path, text: Path) -> None:
    steps = ("trainer.max_steps=6", "trainer.log_every=1", "trainer.eval_every=3")
    run = make_run(tmp_path / "one", text, "model=bigram", *steps)
    config = (run / "config.yaml").read_text()
    for number in range(N_RUNS):
        copy = tmp_path / "runs" / f"run{number}"
        copy.mkdir(parents=True)
        for name in ("summary.json", "metrics.jsonl", "samples.jsonl", "tokenizer.json"):
            shutil.copy(run / name, copy)
        (copy / "config.yaml").write_text(config.replace("seed: 1337", f"seed: {number}"))
    assert measure(tmp_path, "runs", "runs").count("completed") == N_RUNS
    assert measure(tmp_path, "compare", "runs", "--json").count('"name"') >= N_RUNS
    measure(tmp_path, "report", "runs", "-o", "report.html", "--maps", "0")
    assert (tmp_path / "report.html").stat().st_size < 6e6 + 8000 * N_RUNS
