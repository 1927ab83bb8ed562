"""scripts/gpu_check.py, run on a CPU."""

import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "gpu_check.py"


SMALL = ("size.n_layers=1", "size.d_model=32", "trainer.batch_size=2")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script import its neighbours, as if it was run by its path."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")


def test_gpu_check_measures_rows_and_writes_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(SCRIPT))
    rows = [
        script["Row"]("tiny", "gpt2", precision, False, "sdpa", True, "cpu", SMALL) for precision in ("fp32", "tf32")
    ]
    for row in rows:
        script["print_measured"](dataclasses.asdict(row), seconds=0.02)
    measured, error = map(json.loads, capsys.readouterr().out.splitlines())
    assert error == {"error": "cpu does not support TF32"}
    assert measured["tokens_per_second"] > 0
    assert measured["steps"] > 5
    assert measured["last_loss"] < measured["first_loss"]
    results = zip(rows, (measured, error), strict=True)
    found = [{**dataclasses.asdict(row), "result": result} for row, result in results]
    page = script["in_markdown"]({"about": {"device": "cpu"}, "tests": None, "rows": found, "trainings": []})
    assert "| tiny | gpt2 | fp32 | False | sdpa | True |" in page
    assert "| tiny | gpt2 | tf32 | False | sdpa | True | cpu does not support TF32 |" in page


@pytest.mark.slow
def test_gpu_check_runs_each_row_in_a_process(tmp_path: Path, shakespeare: Path) -> None:
    options = ["--device", "cpu", "--sizes", "tiny", "--no-tests", "--seconds", "0.05", "--most-rows", "2"]
    options += ["--text", str(shakespeare), "--trainings", "nanogpt_gpu", "--seeds", "2"]
    command = [sys.executable, str(SCRIPT), *options, "--precisions", "fp32", "tf32", "-o", str(tmp_path / "check")]
    settings = (
        *SMALL,
        "size.n_heads=2",
        "trainer.max_steps=2",
        "scheduler.warmup_steps=0",
        "trainer.estimate_batches=2",
    )
    done = subprocess.run([*command, "--eager", "--set", *settings], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, "tf32, which a CPU does not have, is a row with an error"
    found = json.loads((tmp_path / "check.json").read_text())
    assert ["error" in row["result"] for row in found["rows"]] == [False, True]
    assert found["about"]["device"] == "cpu"
    assert [run["seed"] for run in found["trainings"]] == [1, 2]
    for run in found["trainings"]:
        assert 3 < run["best"] <= run["final"] < 5
        assert run["final_estimate"] == pytest.approx(run["final"], abs=0.5)
        assert (run["best_tokens"], run["target_tokens"]) == (2 * 2 * 256, None)
    assert "| nanogpt_gpu | 2 |" in (tmp_path / "check.md").read_text()
    assert (tmp_path / "check.md").exists()


def test_gpu_check_reports_a_missing_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert runpy.run_path(str(SCRIPT))["main"](["-o", str(tmp_path / "check")]) == 2
    assert "this machine has no device 'cuda'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
