"""Worker processes: their environment, and what happens when they die."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolm.errors import SweepError
from nanolm.sweeps.handover import MAX_ATTEMPTS, LostJob
from nanolm.sweeps.launchers import pool as pools
from nanolm.sweeps.launchers.gpus import Gpu
from nanolm.sweeps.launchers.local_settings import Slot
from nanolm.sweeps.launchers.pool import Pool
from tests.sweeps.launchers.tasks import Task

SLOTS = [Slot(0), Slot(1)]


@pytest.fixture(autouse=True)
def _ends_all_processes() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def run(task: Task, n_jobs: int, slots: list[Slot] = SLOTS, **settings: Any) -> list[Any]:
    pool = Pool(slots, task, {"OMP_NUM_THREADS": "3"}, **settings)
    try:
        return pool.run([f"job {number}" for number in range(n_jobs)])
    finally:
        pool.close()


def test_pool_gives_each_process_its_gpu_and_its_threads(tmp_path: Path) -> None:
    slots = [Slot(place, Gpu(number, number, 0, 0)) for place, number in enumerate("013")]
    environment = dict(os.environ)
    results = run(Task(tmp_path, n_together=3), 5, slots)
    assert [(each["number"], each["request"]) for each in results] == [(n, f"job {n}") for n in range(5)]
    assert {each["CUDA_VISIBLE_DEVICES"] for each in results[:3]} == {"0", "1", "3"}
    assert len({each["process"] for each in results}) == 3, "a process runs one job after another"
    for each in results:
        assert (each["CUDA_DEVICE_ORDER"], each["OMP_NUM_THREADS"]) == ("PCI_BUS_ID", "3")
        assert each["session"] == each["process"], "Ctrl-C in the terminal reaches the driver only"
    assert os.environ == environment


def test_pool_keeps_its_processes_for_the_next_batch(tmp_path: Path) -> None:
    pool = Pool(SLOTS[:1], Task(tmp_path), {})
    (first,) = pool.run(["a"])
    (second,) = pool.run(["b"], first_number=1)
    pool.close()
    assert (first["process"], second["number"]) == (second["process"], 1)


def test_pool_replaces_a_killed_process_and_repeats_its_job(tmp_path: Path) -> None:
    shown: list[str] = []
    results = run(Task(tmp_path, killed={1: 1, 2: MAX_ATTEMPTS}), 4, show=shown.append)
    assert [each["number"] for each in results if isinstance(each, dict)] == [0, 1, 3]
    assert isinstance(results[2], LostJob)
    assert results[2].n_attempts == MAX_ATTEMPTS
    assert "was killed by SIGKILL" in results[2].problem
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-0", "1-1", "2-0", "2-1", "2-2", "3-0"]
    assert len(shown) == 3
    assert any(text.startswith("nanolm: job 1: its process ") for text in shown)


def test_pool_raises_the_error_of_a_task(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a job"):
        run(Task(tmp_path, failing=1), 3)


def test_pool_gives_up_when_no_process_starts(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"3 worker processes ended before their first job.*status 7"):
        run(Task(tmp_path, exit_status=7), 3, SLOTS[:1])
    assert not list(tmp_path.iterdir())


def test_pool_starts_no_job_that_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process that has run a job keeps its memory, so the next job may fit even if nothing is left.
    monkeypatch.setattr(pools, "fits_host", lambda peak, available, own, running: not (peak and running))
    shown: list[str] = []
    pool = Pool(SLOTS, Task(tmp_path, n_together=2), {}, shown.append)
    # Nothing is known about the first jobs, so both start; then both processes are idle, and only one is used.
    first = pool.run(["a", "b"])
    second = pool.run(["c", "d", "e"], first_number=2)
    pool.close()
    assert len({each["process"] for each in first}) == 2
    assert [each["number"] for each in second] == [2, 3, 4]
    (text,) = shown
    assert text.startswith("nanolm: 1 instead of 2 jobs run at a time, because the last job took ")
