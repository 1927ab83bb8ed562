"""Sweeps through hydra/launcher=slurm, on a Slurm whose programs run jobs on this machine, with real runs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from tests.helpers import (
    SMALL,
    Nanolm,
    final_state,
    is_same_state,
    kill_process_group,
    untimed_rows,
    wait_until,
)
from tests.sweeps.launchers.slurm.fake_slurm import Cluster, install

pytest.importorskip("submitit")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Jobs of some seconds on the CPU.
LINE = (
    *(override for override in SMALL if not override.startswith("trainer.device")),
    "dataset=text",
    "model=gpt2",
    "model.dropout=0.1",
    "trainer.max_steps=150",
    "trainer.save_every=20",
    "trainer.eval_every=50",
    "trainer.log_every=5",
)
SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.poll_seconds=1")


@pytest.fixture
def cluster(nanolm: Nanolm) -> Iterator[Cluster]:
    made = install(nanolm.folder / "slurm")
    nanolm.environment["PATH"] = f"{made.programs}:{os.environ['PATH']}"
    yield made
    made.stop()


def rows_of(folder: Path, name: str) -> int:
    """Count the rows of the run whose folder begins with a name."""
    return sum(path.read_text().count("\n") for path in folder.glob(f"{name}-*/metrics.jsonl"))


def run_of(folder: Path, name: str) -> RunDirectory:
    """Return the run whose folder begins with a name."""
    (path,) = folder.glob(f"{name}-*")
    return RunDirectory(path)


def assert_same_runs(folder: Path, expected: Path) -> None:
    names = sorted(path.parent.name for path in expected.glob("*/config.yaml"))
    assert names == sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    for name in names:
        run, whole = RunDirectory(folder / name), RunDirectory(expected / name)
        assert untimed_rows(run) == untimed_rows(whole)
        assert is_same_state(final_state(run), final_state(whole))


def test_a_sweep_survives_kills_preemption_and_the_death_of_its_driver(
    cluster: Cluster, nanolm: Nanolm, small_text: Path
) -> None:
    line = (*LINE, f"dataset.path={small_text}", "seed=1,2,3,4")
    undisturbed = nanolm("train", "-m", *line, "hydra.sweep.dir=whole", timeout=300)
    assert undisturbed.returncode == 0, undisturbed.stderr
    overrides = (*line, "hydra.sweep.dir=sweep", *SLURM, "hydra.launcher.array_parallelism=2")
    folder = nanolm.folder / "sweep"
    driver = nanolm.start("train", "-m", *overrides)
    wait_until(lambda: rows_of(folder, "seed=1") > 6 and rows_of(folder, "seed=2") > 6, driver)
    os.kill(cluster.processes("job-101_0")[0], signal.SIGKILL)
    cluster.order("job-101_1", "preempt")
    wait_until(lambda: rows_of(folder, "seed=3") > 2, driver)
    kill_process_group(driver)
    done = nanolm("train", "-m", *overrides, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "4 jobs: 4 completed" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    # What was preempted has returned to the queue, and is not submitted twice.
    assert cluster.jobs()["job-101_1"]["restarts"] == 1
    assert_same_runs(folder, nanolm.folder / "whole")


def test_processes_on_two_machines_train_together(cluster: Cluster, nanolm: Nanolm, small_text: Path) -> None:
    line = (*LINE, f"dataset.path={small_text}", "seed=1,2", *SLURM, "hydra.launcher.nodes=2")
    undisturbed = nanolm("train", "-m", *line, "hydra.sweep.dir=whole", timeout=300)
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = nanolm.folder / "sweep"
    driver = nanolm.start("train", "-m", *line, "hydra.sweep.dir=sweep", "hydra.launcher.array_parallelism=1")
    wait_until(lambda: rows_of(folder, "seed=1") > 6, driver)
    cluster.order("job-102_0", "preempt")
    wait_until(lambda: rows_of(folder, "seed=2") > 6, driver)
    # The second process of a job.
    os.kill(cluster.processes("job-102_1")[1], signal.SIGKILL)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert "2 jobs: 2 completed" in out
    assert "job 102_1: FAILED" in err
    assert "Traceback" not in err
    assert_same_runs(folder, nanolm.folder / "whole")


def test_a_job_of_a_machine_without_a_network_is_not_run_twice(
    cluster: Cluster, nanolm: Nanolm, small_text: Path
) -> None:
    line = (*LINE, f"dataset.path={small_text}", "seed=1,2")
    undisturbed = nanolm("train", "-m", *line, "hydra.sweep.dir=whole", timeout=300)
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = nanolm.folder / "sweep"
    driver = nanolm.start("train", "-m", *line, "hydra.sweep.dir=sweep", *SLURM)
    wait_until(lambda: rows_of(folder, "seed=1") > 6, driver)
    cut = cluster.processes("job-101_0")
    cluster.order("job-101_0", "cut_node")
    # It returns to the queue, starts elsewhere, and finds that its run is locked.
    wait_until(lambda: cluster.jobs()["job-101_0"]["state"] == "COMPLETED", driver)
    assert cluster.jobs()["job-101_0"]["restarts"] == 1
    assert len(rows_before := untimed_rows(run_of(folder, "seed=1"))) > 6
    # A machine that is back ends the jobs that Slurm has given up.
    for process in cut:
        os.kill(process, signal.SIGKILL)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert "2 jobs: 2 completed" in out
    assert "Traceback" not in err
    assert untimed_rows(run_of(folder, "seed=1"))[: len(rows_before)] == rows_before
    assert_same_runs(folder, nanolm.folder / "whole")


def test_a_signal_to_the_driver_empties_the_queue(cluster: Cluster, nanolm: Nanolm, small_text: Path) -> None:
    line = (*LINE, f"dataset.path={small_text}", "seed=1,2,3", "trainer.max_steps=100000", *SLURM)
    driver = nanolm.start("train", "-m", *line, "hydra.sweep.dir=sweep", "hydra.launcher.array_parallelism=1")
    folder = nanolm.folder / "sweep"
    wait_until(lambda: rows_of(folder, "seed=1") > 2, driver)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=100)
    assert driver.returncode == 130, err
    assert "1 interrupted" in out
    assert sorted(cluster.states()) == ["CANCELLED", "CANCELLED", "COMPLETED"]
    (run,) = (RunDirectory(path.parent) for path in folder.glob("*/config.yaml"))
    assert (run.checkpoints / f"step-{run.read_summary().step:08d}").is_dir()
    assert {path.name for path in folder.iterdir()} == {".lock", run.path.name}
