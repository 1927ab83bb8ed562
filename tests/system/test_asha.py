"""ASHA on a grid of real runs, killed halfway and resumed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_asha_finds_the_best_run_of_a_grid(tmp_path: Path, shakespeare: Path) -> None:
    command = [sys.executable, "scripts/asha.py", f"dataset.path={shakespeare}", "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, "--seeds", "0", "1"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "order 0, killed halfway and resumed" in done.stdout
    assert "order 1, without interruption" in done.stdout
