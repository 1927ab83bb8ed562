import json
import os
import shutil
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.cli.checkpoints import list_checkpoints
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.trainer import train
from tests.helpers import Nanolm, small_config


@pytest.fixture
def run(small_text: Path, tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    train(small_config(small_text, "trainer.max_steps=30", "trainer.eval_every=10", "trainer.save_every=5"), run)
    return run


def test_intact_checkpoints_are_listed(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    entries = list_checkpoints(run)
    assert [entry.step for entry in entries] == [25, 30]
    best = run.read_summary().best_step
    assert [(entry.is_best, entry.is_last) for entry in entries] == [(False, False), (best == 30, True)]
    evaluated = [row.loss for row in run.read_metrics("val")]
    assert [entry.val_loss for entry in entries] == evaluated[1:]
    for entry in entries:
        path = run.checkpoints / f"step-{entry.step:08d}"
        assert entry.n_bytes == sum(file.stat().st_size for file in path.iterdir())
    assert cli.run(["checkpoints", str(run.path)]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert printed[0].split() == ["step", "val", "loss", "size", "saved", "verified"]
    assert [line.split()[-1] for line in printed if "KiB" in line] == ["intact", "intact"]
    assert "last" in printed[-1]


def test_damaged_files_are_named_and_exit_status_is_1(run: RunDirectory, nanolm: Nanolm) -> None:
    damaged = run.checkpoints / "step-00000030"
    os.truncate(damaged / checkpoint.WEIGHTS, 100)
    (damaged / checkpoint.STRUCTURE).unlink()
    done = nanolm("checkpoints", run.path, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    first, last = json.loads(done.stdout)["checkpoints"]
    assert (first["step"], first["last"], first["faults"]) == (25, True, [])
    assert (last["step"], last["last"], last["best"]) == (30, False, False)
    assert [fault.split()[0] for fault in last["faults"]] == ["model.safetensors", "state.json"]
    assert last["faults"][1] == "state.json is missing"
    done = nanolm("checkpoints", run.path)
    assert done.returncode == 1
    assert "damaged: model.safetensors has 100 bytes" in " ".join(done.stdout.split())


def test_a_damaged_manifest_and_a_quarantined_checkpoint(
    run: RunDirectory, small_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run.checkpoints / "step-00000030" / checkpoint.MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b"0", b"1", 1))
    entries = list_checkpoints(run)
    assert (entries[1].val_loss, entries[1].faults) == (None, ["manifest.json is damaged"])
    train(small_config(small_text, "trainer.max_steps=35", "trainer.save_every=5"), run)
    capsys.readouterr()
    assert cli.run(["checkpoints", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quarantined"] == ["step-00000030.replaced-1"]
    cli.run(["checkpoints", str(run.path)])
    assert capsys.readouterr().out.splitlines()[-1].endswith("quarantined on resume: step-00000030.replaced-1")


def test_a_run_without_checkpoints(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run.checkpoints)
    assert cli.run(["checkpoints", str(run.path)]) == 0
    assert "has no checkpoint yet" in capsys.readouterr().out


def test_a_missing_run_is_an_error(nanolm: Nanolm) -> None:
    done = nanolm("checkpoints", "nowhere")
    assert done.returncode == 2
    assert "there is no folder nowhere" in done.stderr
