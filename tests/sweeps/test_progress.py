"""The status line of a sweep, and the lines of jobs that end."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from nanolm.runs.summary import Summary, write_summary
from nanolm.sweeps.combinations import combinations
from nanolm.sweeps.planning import Job, plan
from nanolm.sweeps.progress import Progress
from nanolm.sweeps.states import read_job
from tests.helpers import SMALL


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return plan(combinations([*SMALL, "trainer.max_steps=10", "seed=1,2,3,4"]), tmp_path)


def write_run(job: Job, **summary: Any) -> None:
    """Write a run directory with this summary."""
    write_summary(job.run.summary, Summary(**summary))
    job.run.config.touch()


def test_progress_prints_each_job_that_ends_once(jobs: list[Job]) -> None:
    write_run(jobs[0], status="completed", step=10, best_val_loss=2.5)
    text = io.StringIO()
    progress = Progress(len(jobs), text)
    progress.add(jobs, {job.key: read_job(job) for job in jobs})
    progress.update()
    assert text.getvalue() == ""
    assert progress.status_line() == "1/4 done, 0 running, 3 pending, best 2.5000"

    write_run(jobs[1], status="running", step=0)
    jobs[1].run.metrics.write_text(json.dumps({"step": 5, "split": "train"}) + "\n" + '{"ste')
    progress.update()
    assert progress.status_line().startswith("1/4 done, 1 running, 2 pending, ")
    assert " left, best" in progress.status_line()
    write_run(jobs[1], status="completed", step=10, best_val_loss=2.25)
    jobs[2].run.error.write_text("no memory left\n")
    write_run(jobs[3], status="diverged", step=3)
    progress.update()
    progress.update()
    assert text.getvalue().splitlines() == [
        f"{jobs[1].run.path} completed, val loss 2.2500 (2 of 4)",
        f"nanolm: {jobs[2].run.path} failed: no memory left",
        f"nanolm: {jobs[3].run.path} diverged: the loss is not finite",
    ]
    assert progress.status_line() == "3/4 done, 0 running, 1 failed, 0 pending, 0 s left, best 2.2500"


def test_progress_estimates_the_remaining_time(jobs: list[Job]) -> None:
    write_run(jobs[0], status="completed", step=10, best_val_loss=2.5)
    now = 100.0
    progress = Progress(len(jobs), io.StringIO(), clock=lambda: now)
    progress.add(jobs, {job.key: read_job(job) for job in jobs})
    assert progress.seconds_left() is None
    write_run(jobs[1], status="running", step=0)
    jobs[1].run.metrics.write_text(json.dumps({"step": 5, "split": "train"}) + "\n")
    now = 130.0
    progress.update()
    assert progress.seconds_left() == 30 / 0.5 * 2.5
    assert ", 2 min left, " in progress.status_line()


def test_progress_keeps_a_status_line_on_a_terminal(jobs: list[Job]) -> None:
    write_run(jobs[0], status="completed", step=10, best_val_loss=2.5)
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    progress = Progress(len(jobs), terminal)
    progress.start()
    progress.add(jobs, {job.key: read_job(job) for job in jobs})
    jobs[2].run.error.write_text("no memory left\n")
    progress.stop()
    assert "1/4 done, 0 running, 1 failed, 2 pending" in terminal.getvalue()
    assert f"nanolm: {jobs[2].run.path} failed: no memory left\n" in terminal.getvalue()
