"""One job of a sweep, called as a launcher calls it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from nanolm.compose import CONFIG_NAME, config_folder, register_schemas
from nanolm.compose.hydra_api import without_hydra
from nanolm.sweeps.combinations import combinations
from nanolm.sweeps.handover import PlannedJobLoader, job_overrides
from nanolm.sweeps.job import SweepJob, _watch_stop_file
from nanolm.sweeps.planning import Job, plan
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import START_NO_JOB, STOP, read_stop_file, write_stop_file
from nanolm.training import trainer
from nanolm.training.stop import StopRequest
from tests.helpers import SMALL


@pytest.fixture
def job(tmp_path: Path, small_text: Path) -> Job:
    overrides = [*SMALL, "model=bigram", "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=2"]
    (job,) = plan(combinations(overrides), tmp_path / "sweep")
    return job


@pytest.fixture
def call(job: Job) -> Iterator[Callable[..., Report]]:
    """Yield a function that calls a SweepJob as launchers do."""
    register_schemas()
    with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        master = compose(CONFIG_NAME, return_hydra_config=True)

    def call(**attributes: Any) -> Report:
        loader = PlannedJobLoader(create_config_search_path(str(config_folder())))
        composed = loader.load_sweep_config(master, job_overrides(job))
        with open_dict(composed):
            composed.hydra.runtime.output_dir = str(job.run.path)
        HydraConfig.instance().set_config(composed)
        return SweepJob(**attributes)(without_hydra(composed))

    before = HydraConfig.instance().cfg
    yield call
    HydraConfig.instance().cfg = before


def test_job_trains_and_returns_its_loss(job: Job, call: Callable[..., Report]) -> None:
    result = call()
    summary = job.run.read_summary()
    assert (result.state, result.error, result.signal) == (State.completed, "", 0)
    assert result.value == summary.best_val_loss
    assert (summary.choices, summary.group) == (job.choices, "sweep")
    before = job.run.summary.stat().st_mtime_ns
    assert call() == result
    assert job.run.summary.stat().st_mtime_ns == before, "a done job is not run again"


def test_job_does_not_start_after_a_stop(job: Job, call: Callable[..., Report], tmp_path: Path) -> None:
    write_stop_file(tmp_path / ".stop", START_NO_JOB)
    assert call(stop_file=tmp_path / ".stop").state is State.new
    assert call(deadline=time.time() - 1).state is State.new
    assert list(job.run.path.iterdir()) == []


def test_job_does_not_write_to_a_foreign_folder(job: Job, call: Callable[..., Report]) -> None:
    (job.run.path / "thesis.doc").touch()
    assert call().state is State.failed
    assert [path.name for path in job.run.path.iterdir()] == ["thesis.doc"]


def test_job_leaves_a_claimed_folder(job: Job, call: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanolm.sweeps.job.LOCK_TIMEOUT", 0.0)
    with job.run.claim():
        assert call().state is State.running


def test_job_keeps_an_unexpected_error(
    job: Job, call: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise RuntimeError("a part is missing")

    monkeypatch.setattr(trainer, "train", fail)
    result = call(fail_fast=True, stop_file=tmp_path / ".stop")
    assert result.state is State.failed
    assert result.error == f"RuntimeError: a part is missing\n  where: {job.run.log}"
    assert job.run.error.read_text() == result.error + "\n"
    assert "Traceback" in job.run.log.read_text()
    assert read_stop_file(tmp_path / ".stop") == START_NO_JOB
    monkeypatch.undo()
    assert call(start_time=time.time() - 60).state is State.failed, "it failed after the sweep started"
    assert call(start_time=time.time() + 60).state is State.completed
    assert not job.run.error.exists()


def test_job_is_stopped_by_the_stop_file(tmp_path: Path) -> None:
    write_stop_file(tmp_path / ".stop", STOP)
    with StopRequest() as stop:
        _watch_stop_file(tmp_path / ".stop", stop, threading.Event())
    assert stop.exit_status == 143
