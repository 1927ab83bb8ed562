"""A trained run for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint is not its last."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(200)))
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    overrides = ("trainer.max_steps=30", "trainer.eval_every=10", "trainer.save_every=10")
    train(make_config(*SMALL, "dataset=text", f"dataset.path={text}", *overrides), run)
    return run.path
