"""Real runs that are killed, interrupted or out of disk space resume to the same result."""

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanolm.run_layout import checkpoints_by_step
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from tests.helpers import (
    LONG_RUN,
    SMALL,
    Nanolm,
    final_state,
    has_reached_step,
    is_same_state,
    kill_process_group,
    untimed_rows,
    wait_until,
)


@pytest.fixture
def whole(nanolm: Nanolm, small_text: Path) -> tuple[list[dict[str, Any]], Any]:
    done = nanolm("train", *LONG_RUN, f"dataset.path={small_text}", "hydra.run.dir=whole")
    assert done.returncode == 0, done.stderr
    run = RunDirectory(nanolm.folder / "whole")
    return untimed_rows(run), final_state(run)


@pytest.mark.slow
def test_a_run_killed_three_times_resumes_exactly(
    nanolm: Nanolm, small_text: Path, whole: tuple[list[dict[str, Any]], Any]
) -> None:
    line = (*LONG_RUN, f"dataset.path={small_text}", "hydra.run.dir=resumed", "resume=auto")
    run = RunDirectory(nanolm.folder / "resumed")
    for step in (60, 210, 420):
        process = nanolm.start("train", *line)
        wait_until(lambda step=step: has_reached_step(run, step), process)
        kill_process_group(process)
        assert run.read_summary().status == "running"
    done = nanolm("train", *line)
    assert done.returncode == 0, done.stderr
    assert "resumes from step" in done.stderr
    assert untimed_rows(run) == whole[0]
    assert is_same_state(final_state(run), whole[1])
    assert run.read_summary().status == "completed"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_run_resumes_exactly(
    number: signal.Signals, status: int, nanolm: Nanolm, small_text: Path, whole: tuple[list[dict[str, Any]], Any]
) -> None:
    line = (*LONG_RUN, f"dataset.path={small_text}", "hydra.run.dir=resumed")
    run = RunDirectory(nanolm.folder / "resumed")
    process = nanolm.start("train", *line)
    wait_until(lambda: has_reached_step(run, 60), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert "interrupted at step" in out
    summary = run.read_summary()
    assert summary.status == "interrupted"
    assert (run.checkpoints / f"step-{summary.step:08d}").is_dir()
    done = nanolm("train", "resume=resumed")
    assert done.returncode == 0, done.stderr
    assert f"resumes from step {summary.step}" in done.stderr
    assert untimed_rows(run) == whole[0]
    assert is_same_state(final_state(run), whole[1])


def test_a_second_writer_is_refused(nanolm: Nanolm, small_text: Path) -> None:
    line = (*LONG_RUN, f"dataset.path={small_text}", "hydra.run.dir=run", "resume=auto", "trainer.max_steps=100000")
    run = RunDirectory(nanolm.folder / "run")
    first = nanolm.start("train", *line)
    wait_until(lambda: has_reached_step(run, 10), first)
    done = nanolm("train", *line)
    assert done.returncode == 2
    assert f"another process writes to this run: process {first.pid} on" in done.stderr
    assert first.poll() is None
    os.kill(first.pid, signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 143


@pytest.mark.slow
def test_a_full_disk_is_reported_and_keeps_checkpoints(nanolm: Nanolm, small_text: Path) -> None:
    line = (*SMALL, "dataset=text", f"dataset.path={small_text}", "hydra.run.dir=run", "trainer.max_steps=20")
    assert nanolm("train", *line).returncode == 0
    run = RunDirectory(nanolm.folder / "run")
    before = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
    weights = run.checkpoints / "step-00000020" / "model.safetensors"
    done = subprocess.run(
        [sys.executable, "-m", "nanolm", "train", "resume=run", "trainer.max_steps=40"],
        cwd=nanolm.folder,
        env=nanolm.environment,
        capture_output=True,
        text=True,
        timeout=100,
        # Files cannot grow to the size of the weights, as on a full disk.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (weights.stat().st_size - 1,) * 2),
    )
    assert done.returncode == 1, done.stderr
    assert "the checkpoint of step 40 cannot be written" in done.stderr
    assert "resume=run" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()} == before
    assert run.read_summary().status == "failed"
    assert nanolm("train", "resume=run", "trainer.max_steps=40").returncode == 0
    assert run.read_summary().status == "completed"


def test_a_full_file_system_keeps_valid_checkpoints(nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
    line = (*SMALL, "optimizer=adamw", "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=40")
    line += ("trainer.save_every=10",)
    small = tmp_path / "small"
    small.mkdir()
    # Room for a few checkpoints, but not for one more while it is written.
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320k", "none", str(small)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        done = nanolm("train", *line, f"hydra.run.dir={small}/run")
        run = RunDirectory(small / "run")
        assert done.returncode == 1, done.stderr
        assert re.search(r"the checkpoint of step \d+ cannot be written: .*[Nn]o space left", done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        found, damaged = checkpoint.newest(run.checkpoints)
        assert found is not None
        assert damaged == []
        assert sorted(run.checkpoints.iterdir()) == list(checkpoints_by_step(run.checkpoints).values())
        assert all(checkpoint.verify(path) for path in run.checkpoints.iterdir())
        assert run.read_summary().status == "failed"
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        done = nanolm("train", f"resume={small}/run")
        assert done.returncode == 0, done.stderr
        assert f"resumes from step {found.step}" in done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)
