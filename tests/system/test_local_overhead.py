"""The overhead of hydra/launcher=local, in processor time: other work on the machine does not change it much."""

import resource
from pathlib import Path

import pytest

from tests.helpers import SMALL, Nanolm

# Two workers on two cores then take 0.25 s a job.
MAX_SECONDS = 0.5


@pytest.mark.slow
def test_a_job_of_one_step_takes_half_a_second(nanolm: Nanolm, small_text: Path) -> None:
    line = ("train", "-m", *SMALL, "dataset=text", f"dataset.path={small_text}", "model=bigram", "trainer.max_steps=1")
    launcher = ("hydra/launcher=local", "hydra.launcher.n_jobs=2")

    def processor_seconds(n_jobs: int) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = nanolm(*line, *launcher, f"seed=range(0,{n_jobs})", f"hydra.sweep.dir=of_{n_jobs}", timeout=300)
        assert f"{n_jobs} jobs: {n_jobs} completed" in done.stdout, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    few, many = processor_seconds(4), processor_seconds(44)
    assert (many - few) / 40 <= MAX_SECONDS
