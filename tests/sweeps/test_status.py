"""The status of a sweep, read from its folder."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import RunError, SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.states import DONE, State
from nanolm.sweeps.status import LEFT, describe_left, read_job_status, read_status
from tests.runs.made import make_run

RUNNING = "seed=6-000000000f"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A sweep of eight jobs, of which this process runs one; a step takes 0.1 s and a job has 40."""
    sweep = tmp_path / "sweep"
    for number, (status, loss) in enumerate(
        [("completed", 2.1), ("completed", 2.0), ("diverged", 9.0), ("interrupted", 1.0), ("failed", 1.0)]
    ):
        run = make_run(sweep / f"seed={number}-{number:010x}", losses=[3.0, loss], status=status, max_steps=40)
        if status == "failed":
            (run / "error.txt").write_text("no memory\n  hint:  smaller\n")
    (sweep / "seed=5-000000000e").mkdir()
    run = make_run(sweep / RUNNING, losses=[2.5], status="running", max_steps=40)
    (sweep / "seed=7-00000000aa").mkdir()
    (sweep / "seed=7-00000000aa" / "error.txt").write_text("there is no file\n")
    (sweep / ".submitit-0123456789").touch()
    (sweep / "notes").mkdir()
    with contextlib.ExitStack() as held:
        held.enter_context(RunDirectory(run).claim())
        yield sweep


def test_status_of_each_job_and_the_estimated_end(folder: Path) -> None:
    status = read_status(str(folder))
    assert len(status.jobs) == 8
    assert [len(status.of(*states)) for states in (DONE, LEFT, [State.failed])] == [3, 2, 2]
    (running,) = status.of(State.running)
    assert (running.name, running.step, running.seconds_left) == (RUNNING, 10, pytest.approx(3.0))
    assert running.holder is not None
    assert (running.holder.host, running.holder.process) == (socket.gethostname(), os.getpid())
    assert status.best is not None
    assert status.best.summary.best_val_loss == 2.0
    # Three seconds of the running job, two of the interrupted one, and the mean of 2, 2, 2 and 4 for the new one.
    assert status.seconds_left == pytest.approx(3.0 + 2.0 + 2.5)
    now = datetime.datetime(2026, 1, 1, 23, 59, 50)
    assert describe_left(status, now) == "about 8 s left, until 23:59"


def test_a_running_job_tells_for_how_long(folder: Path) -> None:
    since = datetime.datetime.fromisoformat(read_job_status(folder / RUNNING).holder.since)  # type: ignore[union-attr]
    assert read_job_status(folder / RUNNING, now=since.timestamp() + 90).running_for == 90


def test_an_estimate_needs_a_job_that_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "a-0000000000")
    (tmp_path / "b-0000000001").mkdir()
    status = read_status(str(tmp_path))
    assert status.seconds_left is None
    assert describe_left(status, datetime.datetime.now()) == ""


def test_bits_per_byte_compare_jobs_with_other_tokens(tmp_path: Path) -> None:
    make_run(tmp_path / "a-0000000000", losses=[2.0], bits_per_nat=1.5)
    make_run(tmp_path / "b-0000000001", losses=[4.0], bits_per_nat=0.5, tokenizer="u" * 64)
    status = read_status(str(tmp_path))
    assert status.metric == "bits_per_byte"
    assert status.best is not None
    assert status.best.name == "b-0000000001"


def test_a_damaged_job_counts_as_failed(folder: Path) -> None:
    (folder / "seed=0-0000000000" / "summary.json").write_text("{")
    job = read_job_status(folder / "seed=0-0000000000")
    assert job.state is State.failed
    assert job.error


def test_sweep_status_prints_a_table_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sweep", "status", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{folder}: 3 of 8 jobs done, 1 running, 2 failed, 2 left, about 8 s left, until " in out
    assert "best so far: 2.0000, seed=1-0000000001" in out
    assert "10 of 40" in out
    assert "no memory" in out
    assert "hint:" not in out
    assert cli.run(["sweep", "status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("jobs", "done", "left")} == {"jobs": 8, "done": 3, "left": 2}
    assert found["running"][0]["process"] == os.getpid()
    assert [job["run"] for job in found["failed"]] == ["seed=2-0000000002", "seed=4-0000000004", "seed=7-00000000aa"]


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_a_folder_without_jobs_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"there is no sweep|has no jobs of a sweep") as caught:
        read_status(str(tmp_path / name))
    assert caught.value.hint


def test_watch_needs_a_terminal(folder: Path) -> None:
    for option, message in (([], "an output that is no terminal"), (["--json"], "--json")):
        with pytest.raises(SettingsError, match=f"--watch has no use with {message}"):
            cli.run(["sweep", "status", str(folder), "--watch", *option])
