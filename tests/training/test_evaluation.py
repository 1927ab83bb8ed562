from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import NoLog
from nanolm.training import evaluation
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.distributed.ranks import SINGLE_PROCESS
from nanolm.training.evaluation import evaluate, split_loss, write_sample
from nanolm.training.session import Session
from nanolm.training.setup import Setup, prepare
from tests.helpers import small_config


@pytest.fixture
def setup(small_text: Path, tmp_path: Path) -> Setup:
    config = small_config(small_text, "model=bigram", "trainer.sample_tokens=7", "trainer.ema_decay=0.5")
    return prepare(config, RunDirectory(tmp_path / "run"), SINGLE_PROCESS)


def test_sample_has_the_configured_length_and_is_deterministic(setup: Setup) -> None:
    sample = write_sample(setup)
    assert len(sample) == 7
    assert write_sample(setup) == sample


def test_evaluate_records_the_best_loss(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(setup, NoLog(), Saver(tmp_path, setup.config.trainer, print), profile=False)
    state = setup.state
    state.step = 5
    is_best, sample = evaluate(session, 0.0)
    assert is_best
    assert len(sample) == 7
    assert state.val_loss == state.best_val_loss == split_loss(setup, "val")
    assert state.ema_val_loss == pytest.approx(state.val_loss), "the averages equal the initial weights"
    assert state.best_step == 5
    monkeypatch.setattr(evaluation, "split_loss", lambda setup, split: 99.0)
    state.step = 6
    assert evaluate(session, 0.0)[0] is False
    assert (state.val_loss, state.best_step) == (99.0, 5)
