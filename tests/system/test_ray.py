"""Sweeps on real Ray clusters of this machine, whose nodes and workers are killed."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolm.runs.directory import RunDirectory
from tests.helpers import (
    REPOSITORY,
    SMALL,
    Nanolm,
    final_state,
    has_reached_step,
    is_same_state,
    untimed_rows,
    wait_until,
)
from tests.ray_nodes import RayNodes, kill, marked_processes, name_of, parent_of, workers_of

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

N_STEPS = 300
OVERRIDES = (
    *SMALL,
    "dataset=text",
    "model=gpt2",
    "model.dropout=0.1",
    f"trainer.max_steps={N_STEPS}",
    "trainer.save_every=20",
    "trainer.eval_every=100",
    "trainer.log_every=10",
)
SEEDS = "seed=1,2,3,4"


@pytest.fixture
def cluster(nanolm: Nanolm) -> Iterator[RayNodes]:
    with RayNodes(nanolm.environment) as nodes:
        nanolm.environment = nodes.environment
        yield nodes


def on(nodes: RayNodes, *settings: str) -> tuple[str, ...]:
    address = f"hydra.launcher.address={nodes.address}"
    return ("hydra/launcher=ray", address, "hydra.launcher.connect_timeout=60", *settings)


def runs_in(folder: Path) -> dict[str, RunDirectory]:
    return {path.parent.name: RunDirectory(path.parent) for path in sorted(folder.glob("*/config.yaml"))}


def reached(nodes: RayNodes, step: int) -> list[Path]:
    """Return the runs in temporary folders of the nodes that have reached a step."""
    return [path for path in nodes.temporary.glob("nanolm-ray-*/sweep/*") if has_reached_step(RunDirectory(path), step)]


def assert_same_runs(nanolm: Nanolm, line: tuple[str, ...], n_runs: int) -> None:
    """Compare a sweep, bit by bit, with one that runs without a launcher."""
    undisturbed = nanolm("train", "-m", *line, "hydra.sweep.dir=whole", timeout=400)
    assert undisturbed.returncode == 0, undisturbed.stderr
    whole, found = runs_in(nanolm.folder / "whole"), runs_in(nanolm.folder / "sweep")
    assert len(whole) == n_runs
    assert whole.keys() == found.keys()
    for name, run in whole.items():
        assert found[name].config.read_bytes() == run.config.read_bytes()
        assert untimed_rows(found[name]) == untimed_rows(run)
        assert is_same_state(final_state(found[name]), final_state(run))


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 120
    while left := [each for each in processes if name_of(each)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    output, errors = process.communicate(timeout=500)
    assert "Traceback" not in output + errors
    assert "raylet" not in output + errors, "Ray writes to a file"
    return output, errors


@pytest.mark.parametrize(("shared", "retries"), [("auto", 0), ("false", 1)])
def test_killed_node_and_worker_leave_no_job_behind(
    shared: str, retries: int, nanolm: Nanolm, cluster: RayNodes, shakespeare: Path
) -> None:
    line = (*OVERRIDES, f"dataset.path={shakespeare}", "trainer.val_tokens=2000", SEEDS)
    node = cluster.add()
    settings = on(cluster, f"hydra.launcher.shared_disk={shared}", f"hydra.launcher.max_retries={retries}")
    process = nanolm.start("train", "-m", *line, "hydra.sweep.dir=sweep", *settings)
    assert isinstance(process, subprocess.Popen)
    folder = nanolm.folder / "sweep"
    wait_until(lambda: bool(workers_of(node) and workers_of(cluster.head)), process)
    if shared == "auto":
        wait_until(lambda: all(has_reached_step(run, 50) for run in list(runs_in(folder).values())[:2]), process)
    kill(node)
    wait_until(lambda: not workers_of(node), process)
    (worker,) = workers_of(cluster.head)
    kill(worker)
    output, errors = finish(process)
    assert process.returncode == 0, errors
    assert "4 jobs: 4 completed" in output
    for problem in ("its node was lost", "its worker died"):
        assert (f"{problem}; a new process resumes it" in errors) == (retries == 0)
    assert_same_runs(nanolm, line, 4)
    # What a lost node had on its disk stays there.
    assert shared == "false" or not reached(cluster, 0)


@pytest.fixture
def impatient(nanolm: Nanolm) -> Iterator[RayNodes]:
    """A cluster that gives a node up after five seconds without an answer, instead of a minute."""
    checks = {"period_ms": "500", "timeout_ms": "500", "failure_threshold": "10"}
    names = {f"RAY_health_check_{name}": value for name, value in checks.items()}
    with RayNodes({**nanolm.environment, **names}) as nodes:
        nanolm.environment = nodes.environment
        yield nodes


def send(number: signal.Signals, processes: list[int]) -> None:
    for process in processes:
        os.kill(process, number)


# Stopped processes answer as little as those of a node without a network.
@pytest.mark.parametrize("shared", ["true", "false"])
def test_jobs_of_a_node_without_a_network_run_elsewhere(
    shared: str, nanolm: Nanolm, impatient: RayNodes, shakespeare: Path
) -> None:
    line = (*OVERRIDES, f"dataset.path={shakespeare}", "trainer.val_tokens=2000", "seed=1,2,3", "trainer.max_steps=600")
    node = impatient.add()
    settings = on(impatient, f"hydra.launcher.shared_disk={shared}")
    process = nanolm.start("train", "-m", *line, "hydra.sweep.dir=sweep", *settings)
    assert isinstance(process, subprocess.Popen)
    folder = nanolm.folder / "sweep"

    def n_reached(step: int) -> int:
        if shared == "false":
            return len(reached(impatient, step))
        return sum(has_reached_step(run, step) for run in runs_in(folder).values())

    wait_until(lambda: bool(workers_of(node)) and n_reached(40) == 2, process)
    cut = [node, *workers_of(node)]
    send(signal.SIGSTOP, cut)
    if shared == "true":
        # The job holds its lock, and may still write.
        wait_until(lambda: n_reached(600) == 2, process)
        send(signal.SIGCONT, cut)
    output, errors = finish(process)
    assert process.returncode == 0, errors
    assert "3 jobs: 3 completed" in output
    assert "its node was lost; a new process resumes it" in errors
    found = {name: run.metrics.read_bytes() for name, run in runs_in(folder).items()}
    if shared == "false":
        send(signal.SIGCONT, cut)
    wait_until_gone(cut)
    assert found == {name: run.metrics.read_bytes() for name, run in runs_in(folder).items()}
    assert_same_runs(nanolm, line, 3)


READ_FROM_A_LOST_NODE = """
import itertools, os, signal, sys, time
import ray
from ray.exceptions import NodeDiedError
from nanolm.sweeps.launchers.ray.nodes import alive_nodes, items_of, on_node

@ray.remote(num_cpus=0, max_retries=0, num_returns="streaming")
def count():
    yield os.getpid()
    for number in itertools.count():
        yield bytes(2**20)

ray.init(address=sys.argv[1], log_to_driver=False)
head = ray.get_runtime_context().get_node_id()
while not (others := [node.key for node in alive_nodes() if node.key != head]):
    time.sleep(0.1)
(node,) = others
items = items_of(on_node(count, node).remote(), node)
worker = next(items)
assert len(next(items)) == 2**20
for process in (int(sys.argv[2]), worker):
    os.kill(process, signal.SIGSTOP)
try:
    for _ in items:
        pass
except NodeDiedError as error:
    print(error)
os._exit(0)
"""


def test_reading_from_a_node_without_a_network_ends(nanolm: Nanolm, impatient: RayNodes, tmp_path: Path) -> None:
    script = tmp_path / "read.py"
    script.write_text(READ_FROM_A_LOST_NODE)
    command = [sys.executable, str(script), impatient.address, str(impatient.add())]
    done = subprocess.run(
        command, env=impatient.environment, capture_output=True, text=True, timeout=200, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert "its node was lost" in done.stdout


def test_run_returns_from_a_node_without_the_disk(nanolm: Nanolm, cluster: RayNodes, small_text: Path) -> None:
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(nanolm.folder)], check=False).returncode:
        pytest.skip("hiding a folder from a node takes the rights of root")
    # Long enough for the signal to reach a job on the node.
    line = (*OVERRIDES, "trainer.max_steps=2000", f"dataset.path={small_text}", "seed=1,2")
    # The folder has the text, too.
    node = cluster.add(hidden=nanolm.folder.parent)
    sweep = ("train", "-m", *line, "hydra.sweep.dir=sweep")
    refused = nanolm(*sweep, *on(cluster, "hydra.launcher.shared_disk=true"), timeout=200)
    assert refused.returncode == 2
    assert "the sweep's directory is not on a shared disk" in refused.stderr
    assert not list((nanolm.folder / "sweep").glob("*/*"))
    process = nanolm.start(*sweep, *on(cluster))
    assert isinstance(process, subprocess.Popen)
    folder = nanolm.folder / "sweep"
    wait_until(lambda: bool(workers_of(node)) and len(reached(cluster, 40)) == 2, process)
    assert all(RunDirectory(path).is_claimed() for path in folder.iterdir() if path.is_dir())
    assert not runs_in(folder)
    for worker in workers_of(node):
        kill(worker)
    wait_until(lambda: bool(runs_in(folder)), process)
    (killed,) = runs_in(folder)
    wait_until(lambda: killed in [path.name for path in reached(cluster, 160)], process)
    os.kill(process.pid, signal.SIGINT)
    _, errors = finish(process)
    assert process.returncode == 130, errors
    assert "its worker died; a new process resumes it" in errors
    assert RunDirectory(folder / killed).read_summary().status == "interrupted"
    assert RunDirectory(folder / killed).read_summary().steps_done >= 160
    done = nanolm(*sweep, *on(cluster), timeout=400)
    assert done.returncode == 0, done.stderr
    assert "cannot see sweep: each run is copied here when its job ends" in done.stderr
    assert "2 jobs: 2 completed" in done.stdout
    assert_same_runs(nanolm, line, 2)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL), ("process of Ray", 1)]
)
def test_local_cluster_ends_with_its_sweep(number: Any, status: int, nanolm: Nanolm, small_text: Path) -> None:
    line = (*OVERRIDES, f"dataset.path={small_text}", "trainer.max_steps=300", "seed=1,2")
    sweep = ("train", "-m", *line, "hydra.sweep.dir=sweep", "hydra/launcher=ray", "hydra.launcher.num_cpus=0.5")
    mark = nanolm.environment["NANOLM_TEST_MARK"] = secrets.token_hex(16)
    process = nanolm.start(*sweep)
    assert isinstance(process, subprocess.Popen)
    folder = nanolm.folder / "sweep"
    wait_until(lambda: any(has_reached_step(run, 40) for run in runs_in(folder).values()), process)
    if number == "process of Ray":
        (child,) = [
            each for each in marked_processes(mark) if parent_of(each) == process.pid and os.getsid(each) == each
        ]
        kill(child)
    else:
        os.kill(process.pid, number)
    _, errors = finish(process)
    assert process.returncode == status, errors
    assert ("its process was killed by SIGKILL" in errors) == (number == "process of Ray")
    deadline = time.monotonic() + 60
    while left := marked_processes(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    if number != "process of Ray":
        assert {run.read_summary().status for run in runs_in(folder).values()} <= {"interrupted", "completed"}
    done = nanolm(*sweep, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "2 jobs: 2 completed" in done.stdout
    assert not marked_processes(mark)
    assert_same_runs(nanolm, line, 2)


def test_sweep_ends_if_its_cluster_is_lost(nanolm: Nanolm, cluster: RayNodes, small_text: Path) -> None:
    line = (*OVERRIDES, f"dataset.path={small_text}", "seed=1,2")
    process = nanolm.start("train", "-m", *line, "hydra.sweep.dir=sweep", *on(cluster))
    assert isinstance(process, subprocess.Popen)
    wait_until(lambda: bool(workers_of(cluster.head)), process)
    cluster.close()
    _, errors = finish(process)
    assert process.returncode == 1
    assert "the connection to the Ray cluster was lost" in errors
    done = nanolm("train", "-m", *line, "hydra.sweep.dir=sweep", timeout=200)
    assert done.returncode == 0, done.stderr


def test_node_with_another_torch_is_refused(nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "packages" / "torch-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.2.3\n")
    path = os.pathsep.join(filter(None, [str(tmp_path / "packages"), nanolm.environment.get("PYTHONPATH")]))
    with RayNodes({**nanolm.environment, "PYTHONPATH": path}) as cluster:
        nanolm.environment = {**cluster.environment, "PYTHONPATH": nanolm.environment.get("PYTHONPATH", "")}
        line = (*OVERRIDES, f"dataset.path={small_text}", "seed=1,2", "hydra.sweep.dir=sweep")
        done = nanolm("train", "-m", *line, *on(cluster), timeout=200)
    assert done.returncode == 2
    assert "cannot run jobs: it has torch 1.2.3, and this process has torch " in done.stderr
    assert not (nanolm.folder / "sweep").exists()


def test_address_that_does_not_answer_is_an_error_in_time(nanolm: Nanolm, small_text: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"hydra.launcher.address=127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        done = nanolm("train", "-m", *SMALL, "seed=1,2", "hydra/launcher=ray", address, "hydra.sweep.dir=sweep")
    assert done.returncode == 2
    assert "the Ray cluster does not answer within 10 s" in done.stderr
    # Python and Ray take some seconds to start, too, on a busy machine.
    assert time.monotonic() - began < 60
    assert not (nanolm.folder / "sweep").exists()
