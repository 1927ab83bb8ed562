"""What a sweep says of itself while it goes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from nanolm.runs.summary import Summary, write_summary
from nanolm.sweeps.planning import Job, combinations, plan
from nanolm.sweeps.progress import Progress, _in_words
from nanolm.sweeps.states import read
from tests.helpers import SMALL


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return plan(combinations([*SMALL, "trainer.max_steps=10", "seed=1,2,3,4"]), tmp_path)


def leave(job: Job, **summary: Any) -> None:
    """A run directory that says this of itself."""
    write_summary(job.run.summary, Summary(**summary))
    job.run.config.touch()


def test_a_line_for_each_job_that_ends_and_none_for_those_that_had(jobs: list[Job]) -> None:
    leave(jobs[0], status="completed", step=10, best_val_loss=2.5)
    text = io.StringIO()
    progress = Progress(len(jobs), text)
    progress.watch(jobs, {job.key: read(job) for job in jobs})
    progress.look()
    assert text.getvalue() == ""
    assert progress.line() == "1/4 done, 0 running, 3 left, best 2.5000"

    leave(jobs[1], status="running", step=0)
    jobs[1].run.metrics.write_text(json.dumps({"step": 5, "split": "train"}) + "\n" + '{"ste')
    progress.look()
    assert progress.line().startswith("1/4 done, 1 running, 2 left, ")
    assert "to go" in progress.line()
    leave(jobs[1], status="completed", step=10, best_val_loss=2.25)
    jobs[2].run.error.write_text("no memory left\n")
    leave(jobs[3], status="diverged", step=3)
    progress.look()
    progress.look()
    assert text.getvalue().splitlines() == [
        f"{jobs[1].run.path} completed, val loss 2.2500 (2 of 4)",
        f"nanolm: {jobs[2].run.path} failed: no memory left",
        f"nanolm: {jobs[3].run.path} diverged: the loss is not finite",
    ]
    assert progress.line() == "3/4 done, 0 running, 1 failed, 0 left, 0 s to go, best 2.2500"


def test_a_terminal_has_a_line_at_its_foot(jobs: list[Job]) -> None:
    leave(jobs[0], status="completed", step=10, best_val_loss=2.5)
    screen = io.StringIO()
    progress = Progress(len(jobs), screen, shows_line=True)
    progress.start()
    progress.watch(jobs, {job.key: read(job) for job in jobs})
    jobs[2].run.error.write_text("no memory left\n")
    progress.stop()
    assert "1/4 done, 0 running, 1 failed, 2 left" in screen.getvalue()
    assert f"nanolm: {jobs[2].run.path} failed: no memory left\n" in screen.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(12.4, "12 s"), (600, "10 min"), (9000, "2.5 h"), (float("inf"), "?")])
def test_time_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert _in_words(seconds) == words
