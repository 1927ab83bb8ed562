import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolm.config.identity import recorded
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.distributed.ranks import SINGLE_PROCESS
from nanolm.training.session import Session
from nanolm.training.setup import prepare
from tests.helpers import small_config


@pytest.fixture
def session(small_text: Path, tmp_path: Path) -> Iterator[Session]:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    config = small_config(small_text, "model=bigram", "trainer.save_every=4", "trainer.save_in_background=false")
    setup = prepare(config, run, SINGLE_PROCESS)
    log = Log(run, {}, quiet=True)
    with contextlib.closing(log):
        yield Session(setup, log, Saver(run.checkpoints, config.trainer, log.note), profile=False)


def test_save_records_losses_settings_and_logs(session: Session) -> None:
    state, run = session.setup.state, session.setup.run
    session.log.sample(4, "text")
    state.step, state.best_step, state.val_loss = 4, 3, 1.5
    assert session.is_save_due()
    session.save()
    saved = checkpoint.at_step(run.checkpoints, 4)
    assert (saved.step, saved.best_step, saved.manifest["val_loss"]) == (4, 3, 1.5)
    assert saved.manifest["settings"] == recorded(session.setup.config)
    assert saved.manifest["logs"]["metrics.jsonl"]["bytes"] == 0
    assert saved.manifest["logs"][run.samples.name]["bytes"] == run.samples.stat().st_size > 0
    state.step = 5
    assert not session.is_save_due()


def test_diverged_error_names_the_step_and_the_last_checkpoint(session: Session) -> None:
    assert "last good checkpoint: none yet" in str(session.diverged_error(float("nan"), 2.0, 0.1))
    session.setup.state.step = 4
    session.save()
    error = session.diverged_error(float("inf"), 2.0, 0.1)
    assert "the run diverged at step 5: loss inf, gradient norm 2.0, lr 0.1" in str(error)
    assert "last good checkpoint: step-00000004" in str(error)
