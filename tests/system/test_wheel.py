"""The wheel, installed in a clean environment and used in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, SMALL


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "-o", str(tmp_path), str(REPOSITORY)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "nanolm/configs/train.yaml",
        "nanolm/playground/assets/page.html",
        "nanolm/report/assets/page.html",
        "hydra_plugins/nanolm_sweepers/__init__.py",
    } <= {*names}
    assert not [
        name
        for name in names
        if name.split("/")[0] not in ("nanolm", "hydra_plugins", f"nanolm-{wheel.name.split('-')[1]}.dist-info")
    ]
    environment = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    constraints = REPOSITORY / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", str(constraints), str(wheel)], check=True)
    folder = tmp_path / "empty"
    (folder / "mine" / "optimizer").mkdir(parents=True)
    (folder / "mine" / "optimizer" / "fast.yaml").write_text("defaults:\n  - adamw\n  - _self_\nlr: 0.01\n")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def nanolm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [environment / "bin" / "nanolm", *arguments]
        return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=300)

    line = ("trainer.max_steps=10", *SMALL, "hydra.run.dir=run", "--config-dir", "mine", "optimizer=fast")
    done = nanolm("train", *line)
    assert done.returncode == 0, done.stderr
    assert "completed at step 10" in done.stdout
    assert "lr: 0.01" in (folder / "run" / "config.yaml").read_text()
    done = nanolm("train", "-m", "trainer.max_steps=3", *SMALL, "model=bigram", "seed=1,2")
    assert "2 jobs: 2 completed" in done.stdout, done.stderr
    assert nanolm("generate", "run", "--prompt", "The ").stdout.startswith("The ")
