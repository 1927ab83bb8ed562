"""What runs on the nodes of a Ray cluster, without Ray."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolm.config.yaml_io import load_yaml
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.handover import job_overrides
from nanolm.sweeps.job import SweepJob
from nanolm.sweeps.launchers.engine import Request
from nanolm.sweeps.launchers.ray.archive import pack, receive
from nanolm.sweeps.launchers.ray.tasks import (
    Cargo,
    NodeTask,
    _run_apart,
    _run_shared,
    collect,
    describe_node,
    differing_versions,
    own_versions,
    stop_job,
)
from nanolm.sweeps.launchers.ray.texts import find_text, read_chunks
from nanolm.sweeps.planning import Job, job_key
from nanolm.sweeps.shared_disk import Token, token_in
from nanolm.sweeps.states import State
from tests.helpers import small_config


@pytest.fixture(autouse=True)
def _restores_this_process() -> Iterator[None]:
    folder, handler = Path.cwd(), signal.getsignal(signal.SIGINT)
    yield
    os.chdir(folder)
    signal.signal(signal.SIGINT, handler)


def job_of(text: Path, sweep: Path, max_steps: int) -> Job:
    config = small_config(text, "model=bigram", f"trainer.max_steps={max_steps}", "trainer.eval_every=10")
    key = job_key(config)
    return Job({}, config, {}, key, RunDirectory(sweep / f"run-{key}"))


def task_in(sweep: Path, *, is_shared: bool) -> NodeTask:
    sweep.mkdir(exist_ok=True)
    token = Token(sweep / "missing", "text")
    return NodeTask(SweepJob(driver=("other", 1)), sweep, Path.cwd(), token, is_shared, {})


def test_run_on_another_disk_returns_with_the_settings_of_the_sweep(small_text: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    task, job = task_in(sweep, is_shared=False), job_of(small_text, sweep, max_steps=4)
    request = Request(0, job_overrides(job))
    text = find_text(str(small_text))
    assert text is not None
    cargo = Cargo(texts={"path": (text, tuple(read_chunks(text)))})
    # Another machine has another text of this name.
    small_text.write_text("other")
    for n_attempts in (1, 2):
        node = tmp_path / f"node-{n_attempts}"
        node.mkdir()
        report = _run_apart(task, request, cargo, node, get=lambda item: item)
        assert (report.state, report.error, report.summary.steps_done) == (State.completed, "", 4)
        if n_attempts == 1:
            assert str(node) in load_yaml(node / "sweep" / job.run.path.name / "config.yaml").dataset.path
        with job.run.claim():
            receive(collect(task, request, node, {"path": str(small_text)}), job.run)
        assert not node.exists()
        assert load_yaml(job.run.config) == job.config
        assert job.run.read_summary().status == "completed"
        cargo = dataclasses.replace(cargo, run=tuple(pack(job.run)))
    log = job.run.log.read_text()
    assert log.count("step      4") == 1, "a run that is complete is not repeated"


def test_damaged_cargo_fails_the_job(small_text: Path, tmp_path: Path) -> None:
    task, job = task_in(tmp_path / "sweep", is_shared=False), job_of(small_text, tmp_path / "sweep", max_steps=4)
    node = tmp_path / "node"
    node.mkdir()
    report = _run_apart(task, Request(0, job_overrides(job)), Cargo(run=(b"x",)), node, get=lambda item: item)
    assert report.state is State.failed
    assert report.error.startswith("the archive of a run was refused: it ends after 1 bytes")


def test_node_without_the_disk_fails_a_shared_job(small_text: Path, tmp_path: Path) -> None:
    task, job = task_in(tmp_path / "sweep", is_shared=True), job_of(small_text, tmp_path / "sweep", max_steps=4)
    report = _run_shared(task, Request(0, job_overrides(job)))
    assert report.state is State.failed
    assert "does not see the sweep's directory" in report.error
    assert not job.run.path.exists()


def test_stopped_job_on_another_disk_starts_nothing(small_text: Path, tmp_path: Path) -> None:
    task, job = task_in(tmp_path / "sweep", is_shared=False), job_of(small_text, tmp_path / "sweep", max_steps=4)
    node = tmp_path / "node"
    node.mkdir()
    stop_job(node)
    report = _run_apart(task, Request(0, job_overrides(job)), Cargo(), node, get=lambda item: item)
    assert report.state is State.new


def test_nodes_are_compared_by_their_versions(tmp_path: Path) -> None:
    own = own_versions()
    assert "+" not in own["torch"]
    assert differing_versions(own, own) == ""
    assert differing_versions(own, {"nanolm": own["nanolm"]}) == (
        f"it has torch none, and this process has torch {own['torch']}"
    )
    with token_in(tmp_path) as token:
        assert describe_node(token).sees_token
    assert not describe_node(token).sees_token
    assert describe_node(None).versions == own
