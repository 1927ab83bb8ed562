"""The driver of a sweep, with a launcher that does not train."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from nanolm.runs.summary import Summary, write_summary
from nanolm.signals import Stopped
from nanolm.sweeps.combinations import combinations
from nanolm.sweeps.driver import MAX_ATTEMPTS, Driver, SweepRequest
from nanolm.sweeps.job import SweepJob
from nanolm.sweeps.launchers.blocking import BlockingJobs
from nanolm.sweeps.planning import Job, plan
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import STOP, read_stop_file
from tests.helpers import SMALL


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return plan(combinations([*SMALL, "trainer.max_steps=10", "seed=1,2,3"]), tmp_path)


class FakeLauncher:
    """Calls a function in place of each job, and counts the batches."""

    def __init__(self, jobs: Sequence[Job], run: Callable[[Job], Report | None]) -> None:
        self._jobs, self._run = {job.run.path.name: job for job in jobs}, run
        self.batches: list[int] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.batches.append(len(job_overrides))
        found = [next(job for name, job in self._jobs.items() if name in override) for (override,) in job_overrides]
        return [JobReturn(_return_value=self._run(job), status=JobStatus.COMPLETED) for job in found]


def complete(job: Job) -> Report:
    write_summary(job.run.summary, Summary(status="completed", step=10, best_val_loss=2.0))
    job.run.config.touch()
    return Report(State.completed)


def driver_of(
    jobs: Sequence[Job],
    run: Callable[[Job], Report | None],
    launcher: str = "other",
    clock: Callable[[], float] = time.time,
    **sweeper: Any,
) -> tuple[Driver, FakeLauncher]:
    hydra = {
        "launcher": {"n_jobs": 2},
        "sweeper": sweeper,
        "sweep": {"dir": str(jobs[0].run.path.parent)},
        "runtime": {"choices": {"hydra/launcher": launcher}},
    }
    request = SweepRequest([], OmegaConf.create({"hydra": hydra}), None, SweepJob())  # type: ignore[arg-type]
    driver = Driver(request, len(jobs), clock)
    fake = FakeLauncher(jobs, run)
    driver._engine = BlockingJobs(fake, str(jobs[0].run.path.parent))
    return driver, fake


@pytest.mark.parametrize(
    ("launcher", "sweeper", "batches"),
    [("other", {}, [3]), ("other", {"max_running": 2}, [2, 1]), ("basic", {}, [1, 1, 1])],
)
def test_driver_passes_jobs_in_batches(
    launcher: str, sweeper: dict[str, int], batches: list[int], jobs: list[Job]
) -> None:
    driver, fake = driver_of(jobs, complete, launcher, **sweeper)
    with driver:
        assert [report.state for report in driver.run(jobs)] == [State.completed] * 3
        driver.run(jobs)
    assert fake.batches == batches


def test_driver_gives_up_a_job_without_a_result(jobs: list[Job]) -> None:
    driver, fake = driver_of(jobs, lambda job: None if job is jobs[1] else complete(job))
    with driver:
        reports = driver.run(jobs)
    assert [report.state for report in reports] == [State.completed, State.failed, State.completed]
    assert fake.batches == [3, *[1] * (MAX_ATTEMPTS - 1)]
    assert f"its process ended without a result, {MAX_ATTEMPTS} times" in jobs[1].run.error.read_text()


def test_driver_names_the_error_of_a_killed_batch(jobs: list[Job]) -> None:
    def kill(job: Job) -> Report:
        raise ChildProcessError("a worker was killed")

    driver, _ = driver_of(jobs[:1], kill)
    with driver:
        (report,) = driver.run(jobs[:1])
    assert report.error.endswith("3 times: ChildProcessError: a worker was killed")


def test_driver_fails_fast_when_asked(jobs: list[Job]) -> None:
    driver, fake = driver_of(jobs, lambda job: Report(State.failed, error="no memory"), "basic", fail_fast=True)
    with driver:
        reports = driver.run(jobs)
    assert [report.state for report in reports] == [State.failed, State.new, State.new]
    assert reports[0].error == "no memory"
    assert fake.batches == [1]
    assert not jobs[1].run.path.exists(), "the empty folder of a job that never started is removed"


def test_driver_starts_no_job_after_its_hours(jobs: list[Job]) -> None:
    now = [0.0]

    def work(job: Job) -> Report:
        now[0] += 3600.0
        job.run.path.mkdir(exist_ok=True)
        return complete(job)

    driver, fake = driver_of(jobs, work, "basic", clock=lambda: now[0], max_hours=1.5)
    with driver:
        reports = driver.run(jobs)
        assert driver.is_over_time
    assert [report.state for report in reports] == [State.completed, State.completed, State.new]
    assert fake.batches == [1, 1]
    # The same command has hours of its own.
    driver, fake = driver_of(jobs, work, "basic", clock=lambda: now[0], max_hours=1.5)
    with driver:
        assert [report.state for report in driver.run(jobs)] == [State.completed] * 3
    assert fake.batches == [1]
    assert not driver.is_over_time


def test_driver_asks_jobs_to_stop_at_a_signal(jobs: list[Job]) -> None:
    seen = []

    def interrupt(job: Job) -> Report:
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append(read_stop_file(driver.job.stop_file))
        return Report(State.interrupted, signal=signal.SIGTERM)

    driver, fake = driver_of(jobs, interrupt, max_running=1)
    with driver:
        driver.run(jobs)
        assert driver.is_stopping
    assert seen == [STOP]
    assert fake.batches == [1]
    assert driver.stop.exit_status == 143
    assert not read_stop_file(driver.job.stop_file), "the stop file is removed at the end"


def test_driver_raises_stopped_in_its_own_process(jobs: list[Job]) -> None:
    def interrupt(job: Job) -> Report:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGHUP)
        return Report(State.interrupted, signal=signal.SIGHUP)

    driver, fake = driver_of(jobs, interrupt, "basic")
    with driver:
        driver.run(jobs)
    assert fake.batches == [1]
    assert driver.stop.exit_status == 129
