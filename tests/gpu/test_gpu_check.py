"""scripts/gpu_check.py, tried on a CPU: what it writes for the day a GPU is at hand."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "gpu_check.py"


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300)


def test_gpu_check_writes_its_rows_and_their_errors(tmp_path: Path) -> None:
    small = ("size.n_layers=1", "size.d_model=32", "trainer.batch_size=2")
    words = ["--device", "cpu", "--sizes", "tiny", "--no-tests", "--seconds", "0.05", "--most-rows", "2"]
    words += ["--eager", "--precisions", "fp32", "tf32"]
    done = run_script(*words, "-o", str(tmp_path / "check"), "--set", *small)
    assert done.returncode == 1, "a CPU has no tf32, which is a row of its own with an error"
    found = json.loads((tmp_path / "check.json").read_text())
    assert [row["precision"] for row in found["rows"]] == ["fp32", "tf32"]
    measured = found["rows"][0]["result"]
    assert measured["tokens_per_second"] > 0
    assert measured["steps"] > 5
    assert measured["last_loss"] < measured["first_loss"]
    assert found["rows"][1]["result"] == {"error": "cpu has no tf32"}
    page = (tmp_path / "check.md").read_text()
    assert "| tiny | gpt2 | fp32 | False | sdpa | True |" in page
    assert found["about"]["device"] == "cpu"


def test_gpu_check_without_a_gpu_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert runpy.run_path(str(SCRIPT))["main"](["-o", str(tmp_path / "check")]) == 2
    assert "this machine has no device 'cuda'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
