from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import small_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run of four steps with an evaluation after every second one."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    run = RunDirectory(folder / "run")
    steps = ("trainer.max_steps=4", "trainer.eval_every=2", "trainer.log_every=1")
    with run.claim():
        train(small_config(folder / "text.txt", *steps), run, choices={"model": "bigram"})
    return run.path
