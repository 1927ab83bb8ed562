"""Worker processes: their environment, and what happens when they die."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolm.errors import SweepError
from nanolm.sweeps.handover import LostJob
from nanolm.sweeps.launchers.engine import Request
from nanolm.sweeps.launchers.gpus import Gpu
from nanolm.sweeps.launchers.local import pool as pools
from nanolm.sweeps.launchers.local.pool import Pool
from nanolm.sweeps.launchers.local.settings import Slot
from nanolm.sweeps.states import Report, State
from tests.sweeps.launchers.local.tasks import Task

SLOTS = [Slot(0), Slot(1)]


@pytest.fixture(autouse=True)
def _ends_all_processes() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def requests(*numbers: int) -> list[Request]:
    return [Request(number, [f"job {number}"]) for number in numbers]


def drain(pool: Pool, n_jobs: int) -> dict[int, Any]:
    """Return the results of so many jobs, by number."""
    results: dict[int, Any] = {}
    while len(results) < n_jobs:
        results |= {ended.number: ended.result for ended in pool.ended(60.0)}
    return results


def run(task: Task, n_jobs: int, slots: list[Slot] = SLOTS) -> dict[int, Any]:
    pool = Pool(slots, task, {"OMP_NUM_THREADS": "3"})
    pool.start(requests(*range(n_jobs)))
    try:
        return drain(pool, n_jobs)
    finally:
        pool.close()


def test_pool_gives_each_process_its_gpu_and_its_threads(tmp_path: Path) -> None:
    slots = [Slot(place, Gpu(number, number, 0, 0)) for place, number in enumerate("013")]
    environment = dict(os.environ)
    results = run(Task(tmp_path, n_together=3), 5, slots)
    assert {number: each["overrides"] for number, each in results.items()} == {n: [f"job {n}"] for n in range(5)}
    assert {results[number]["CUDA_VISIBLE_DEVICES"] for number in range(3)} == {"0", "1", "3"}
    assert len({each["process"] for each in results.values()}) == 3, "a process runs one job after another"
    for each in results.values():
        assert (each["CUDA_DEVICE_ORDER"], each["OMP_NUM_THREADS"]) == ("PCI_BUS_ID", "3")
        assert each["session"] == each["process"], "Ctrl-C in the terminal reaches the driver only"
    assert os.environ == environment


def test_pool_keeps_its_processes_and_starts_the_lowest_number_first(tmp_path: Path) -> None:
    pool = Pool(SLOTS[:1], Task(tmp_path), {})
    pool.start(requests(3))
    (first,) = drain(pool, 1).values()
    pool.start(requests(4, 1))
    pool.start(requests(2))
    results = drain(pool, 3)
    pool.close()
    assert list(results) == [1, 2, 4]
    assert {each["process"] for each in results.values()} == {first["process"]}


def test_pool_replaces_a_killed_process_and_reports_its_job(tmp_path: Path) -> None:
    pool = Pool(SLOTS, Task(tmp_path, killed={1: 1}), {})
    pool.start(requests(0, 1, 2))
    results = drain(pool, 3)
    assert isinstance(results[1], LostJob)
    assert "was killed by SIGKILL" in results[1].problem
    assert {results[0]["number"], results[2]["number"]} == {0, 2}
    pool.start(requests(1))
    assert drain(pool, 1)[1]["number"] == 1
    pool.close()


def test_pool_reports_jobs_that_it_has_not_started(tmp_path: Path) -> None:
    pool = Pool(SLOTS[:1], Task(tmp_path), {})
    pool.start(requests(0, 1, 2))
    pool.cancel_waiting()
    assert drain(pool, 3) == dict.fromkeys(range(3), Report(State.new))
    assert not pool.ended(60.0)
    pool.close()
    assert not list(tmp_path.iterdir())


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
    pool.start(requests(0, 1))
    first = drain(pool, 2)
    pool.start(requests(2, 3, 4))
    second = drain(pool, 3)
    pool.close()
    assert len({each["process"] for each in first.values()}) == 2
    assert list(second) == [2, 3, 4]
    (text,) = shown
    assert text.startswith("nanolm: 1 instead of 2 jobs run at a time, because the last job took ")
