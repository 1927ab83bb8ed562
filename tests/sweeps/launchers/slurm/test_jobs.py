"""The engine of hydra/launcher=slurm, with a Slurm whose programs run jobs on this machine, and submitit's own way."""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolm.errors import SettingsError
from nanolm.json_text import dump_json
from nanolm.sweeps.handover import PLANNED, LostJob, PlannedJob
from nanolm.sweeps.launchers.engine import Ended, Request
from nanolm.sweeps.launchers.slurm import jobs as slurm
from nanolm.sweeps.launchers.slurm import submission as slurm_submission
from nanolm.sweeps.launchers.slurm.job import SubmittedJob
from nanolm.sweeps.launchers.slurm.jobs import SlurmJobs
from nanolm.sweeps.launchers.slurm.settings import Executor, SlurmConfig
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import STOP
from tests.sweeps.launchers.slurm.fake_slurm import Cluster, install
from tests.sweeps.launchers.slurm.tasks import Function

pytest.importorskip("submitit")

Make = Callable[..., SlurmJobs]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(made.programs), prepend=":")
    yield made
    made.stop()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that makes an engine, given settings of the launcher."""
    monkeypatch.setattr(slurm, "GRACE", 5.0)
    monkeypatch.setattr(slurm, "INTERVAL", 0.02)
    monkeypatch.setattr(slurm, "ENDING_INTERVAL", 0.05)
    (tmp_path / "starts").mkdir()
    engines = []

    def make_engine(show: Callable[[str], None] = lambda text: None, **settings: Any) -> SlurmJobs:
        function: Any = Function(tmp_path / "starts", tmp_path / "stop")
        directory = tmp_path / "my sweep"
        engine = SlurmJobs(SlurmConfig(**{"poll_seconds": 0.1, **settings}), function, directory, show)
        engines.append(engine)
        return engine

    yield make_engine
    for engine in engines:
        engine.close()


def request(number: int, *attempts: str) -> Request:
    """A job of the fake function: what each of its attempts does."""
    planned = PlannedJob(f"job{number}", [], dict(zip("0123", attempts, strict=False)), "", "1")
    return Request(number, [PLANNED + dump_json(dataclasses.asdict(planned))])


def results(engine: SlurmJobs, n_jobs: int) -> dict[int, Any]:
    found: list[Ended] = []
    while len(found) < n_jobs:
        found += engine.ended(10)
    return {ended.number: ended.result for ended in found}


def starts(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "starts").iterdir())


def wait_for_starts(folder: Path, *names: str) -> None:
    deadline = time.monotonic() + 60
    while not set(names) <= set(starts(folder)):
        time.sleep(0.02)
        assert time.monotonic() < deadline


@pytest.mark.slow
def test_jobs_started_together_are_one_array(cluster: Cluster, make: Make, tmp_path: Path) -> None:
    engine = make(
        partition="gpu",
        time_limit="4:00:00",
        cpus_per_task=2,
        gpus_per_node=1,
        setup=["export A=1"],
        array_parallelism=2,
    )
    engine.start([request(0), request(1, "fail"), request(2, "raise"), request(3, "kill")])
    found = results(engine, 4)
    assert found[0] == Report(State.completed)
    assert found[1] == Report(State.failed, error="a part is missing")
    assert isinstance(found[2], LostJob)
    assert "job 101_2: RuntimeError: a bug" in found[2].problem
    assert isinstance(found[3], LostJob)
    assert re.search(r"job 101_3: FAILED on node1: .*Killed \(.*101_3_0_log\.err\)", found[3].problem)
    (script,) = cluster.scripts()
    for line in ("partition=gpu", "time=240", "cpus-per-task=2", "gpus-per-node=1", "array=0-3%2", "requeue"):
        assert f"#SBATCH --{line}\n" in script
    assert "\nexport A=1\n" in script
    assert "--cpus-per-task=2" in script.splitlines()[-1] + script
    engine.close()
    # Logs of jobs that left none or a bad result are kept.
    left = sorted(path.name for path in (tmp_path / "my sweep" / ".submitit").glob("*/*"))
    assert left[-1] == "101_submission.sh"
    assert {name.split("_")[1] for name in left[:-1]} == {"1", "2", "3"}
    assert not [name for name in left if name.endswith(".pkl")]


def test_sbatch_that_refuses_is_quoted(cluster: Cluster, make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        SettingsError, match="sbatch refuses the jobs: invalid partition specified: best; Batch job"
    ) as e:
        make(partition="best").start([request(0), request(1)])
    assert e.value.exit_status == 2
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_jobs_that_wait_are_cancelled_and_those_that_run_are_stopped(
    cluster: Cluster, make: Make, tmp_path: Path
) -> None:
    cluster.configure(n_at_once=1)
    engine = make()
    engine.start([request(0, "wait"), request(1), request(2)])
    wait_for_starts(tmp_path, "job0-0")
    engine.cancel_waiting()
    assert results(engine, 2) == {1: Report(State.new), 2: Report(State.new)}
    (tmp_path / "stop").write_text(STOP)
    assert results(engine, 1)[0].state is State.interrupted
    assert starts(tmp_path) == ["job0-0"]


@pytest.mark.slow
def test_a_job_that_a_person_cancels_is_not_started_again(cluster: Cluster, make: Make, tmp_path: Path) -> None:
    engine = make()
    engine.start([request(0, "wait")])
    wait_for_starts(tmp_path, "job0-0")
    os.system("scancel 101")
    (report,) = results(engine, 1).values()
    assert report.state is State.failed
    assert report.error.startswith("Slurm job 101 was cancelled")


@pytest.mark.slow
def test_the_local_executor_runs_some_jobs_at_a_time(make: Make, tmp_path: Path) -> None:
    engine = make(executor=Executor.local, array_parallelism=1, time_limit="5")
    engine.start([request(0, "kill"), request(1)])
    found = results(engine, 2)
    assert isinstance(found[0], LostJob)
    assert found[1] == Report(State.completed)


@pytest.mark.slow
def test_jobs_return_to_the_queue(cluster: Cluster, make: Make, tmp_path: Path) -> None:
    engine = make(max_requeues=1)
    engine.start(
        [request(0, "wait"), request(1, "wait"), request(2, "wait"), request(3, "wait"), request(4, "wait", "wait")]
    )
    wait_for_starts(tmp_path, *(f"job{number}-0" for number in range(5)))
    cluster.order("job-101_0", "preempt")
    cluster.order("job-101_1", "preempt_at_once")
    cluster.order("job-101_2", "fail_node")
    cluster.order("job-101_3", "lose_node")
    cluster.order("job-101_4", "preempt")
    wait_for_starts(tmp_path, "job0-1", "job1-1", "job2-1", "job4-1")
    # While Slurm does not answer, no job counts as lost.
    cluster.configure(is_down=True, has_accounting=False)
    early = {ended.number: ended.result for ended in engine.ended(0.5)}
    cluster.configure(is_down=False)
    cluster.order("job-101_4", "preempt")
    found = early | results(engine, 5 - len(early))
    assert [found[number].state for number in (0, 1, 2)] == [State.completed] * 3
    assert isinstance(found[3], LostJob)
    assert "job 101_3: NODE_FAIL" in found[3].problem
    assert found[4].state is State.failed
    assert "it was returned to the queue 1 time, as hydra.launcher.max_requeues allows" in found[4].error
    assert [job["restarts"] for job in cluster.jobs().values()] == [1, 1, 1, 0, 1]
    assert sorted(cluster.calls("scontrol")) == [["requeue", "101_0"], ["requeue", "101_4"]]


@pytest.mark.slow
def test_a_refused_job_is_submitted_again_while_others_run(cluster: Cluster, make: Make, tmp_path: Path) -> None:
    messages: list[str] = []
    engine = make(show=messages.append)
    engine.start([request(0, "wait")])
    wait_for_starts(tmp_path, "job0-0")
    cluster.configure(is_down=True)
    engine.start([request(1)])
    assert engine.ended(0.3) == []
    assert messages == [
        "nanolm: sbatch refuses the jobs: Unable to contact slurm controller (connect failure); "
        "it is asked again while other jobs run"
    ]
    cluster.configure(is_down=False)
    assert results(engine, 1) == {1: Report(State.completed)}


def test_sbatch_does_not_see_the_job_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_MEM_PER_NODE": "1", "SBATCH_ACCOUNT": "me"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with slurm_submission._outside_of_jobs():
        assert variables.items() <= os.environ.items()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with slurm_submission._outside_of_jobs():
        left = {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))}
        assert left == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_a_job_whose_machine_wrote_no_log_may_not_see_the_folder(tmp_path: Path) -> None:
    from submitit import SlurmJob

    job = SubmittedJob("7_1", handle=SlurmJob(tmp_path, "7_1"))
    assert job.describe("FAILED on node1") == (
        f"job 7_1: FAILED on node1; it wrote no log, so its machine may not see {tmp_path}"
    )
    (tmp_path / "7_1_0_log.err").write_text("module: command not found\n\n")
    assert "FAILED on node1: module: command not found (" in job.describe("FAILED on node1")


@pytest.mark.slow
def test_a_job_returns_to_the_queue_before_its_time_limit(cluster: Cluster, make: Make, tmp_path: Path) -> None:
    cluster.configure(minute=2.0)
    engine = make(time_limit="10", warning_seconds=300)
    engine.start([request(0, "wait", "return")])
    (report,) = results(engine, 1).values()
    assert report.state is State.completed
    assert cluster.jobs()["job-101"]["restarts"] == 1
    assert "#SBATCH --signal=USR2@300\n" in cluster.scripts()[0]


@pytest.mark.slow
def test_jobs_of_a_driver_that_died_are_found_in_the_queue(cluster: Cluster, make: Make, tmp_path: Path) -> None:
    cluster.configure(n_at_once=1)
    first = make()
    first.start([request(0, "wait"), request(1), request(2)])
    wait_for_starts(tmp_path, "job0-0")
    # As when its process is killed.
    assert first._lock is not None
    first._lock.release()
    first._jobs = {}
    messages: list[str] = []
    second = make(show=messages.append)
    second.start([request(1), request(2), request(3)])
    assert messages == [
        "nanolm: jobs of another command are in Slurm's queue, and are not submitted again: 101_1, 101_2"
    ]
    assert len(cluster.scripts()) == 2
    (tmp_path / "stop").write_text(STOP)
    found = results(second, 3)
    # Of jobs of another command, the driver reads the runs.
    assert found == {1: Report(State.running), 2: Report(State.running), 3: Report(State.completed)}
    second.close()
    assert not (tmp_path / "my sweep" / ".submitit").exists()


@pytest.mark.slow
def test_ending_a_sweep_ends_jobs_of_a_driver_that_died(cluster: Cluster, make: Make, tmp_path: Path) -> None:
    cluster.configure(n_at_once=1)
    first = make()
    first.start([request(0, "wait"), request(1)])
    wait_for_starts(tmp_path, "job0-0")
    assert first._lock is not None
    second = make()
    second.start([request(0), request(1)])
    second.cancel_waiting()
    # Jobs of a living command are left to it.
    assert {ended.result.state for ended in second.ended(0)} == {State.new}
    assert "CANCELLED" not in cluster.states()
    first._lock.release()
    first._jobs = {}
    third = make()
    third.start([request(0), request(1)])
    third.close()
    assert cluster.states() == ["COMPLETED", "CANCELLED"]
    second.close()
    assert not (tmp_path / "my sweep" / ".submitit").exists()


@pytest.mark.slow
def test_a_reason_that_holds_jobs_is_reported_once(cluster: Cluster, make: Make) -> None:
    cluster.configure(n_at_once=0)
    messages: list[str] = []
    engine = make(show=messages.append)
    engine.start([request(0), request(1)])
    for job in ("job-101_0", "job-101_1"):
        (cluster.folder / job / "hold").write_text("PartitionTimeLimit")
    while len(messages) < 2:
        assert engine.ended(0.05) == []
    engine.ended(0.3)
    assert messages[1:] == [
        "nanolm: Slurm does not start job 101_0: its time limit is longer than its partition allows "
        "(PartitionTimeLimit)\n  hint:  `scontrol show job 101_0` shows it; Ctrl-C cancels the jobs of this sweep"
    ]
    engine.close()
    assert cluster.states() == ["CANCELLED", "CANCELLED"]
