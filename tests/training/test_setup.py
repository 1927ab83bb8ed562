from pathlib import Path

import pytest
import torch

from nanolm.errors import RunError
from nanolm.runs.directory import RunDirectory
from nanolm.training.distributed.ranks import SINGLE_PROCESS
from nanolm.training.setup import prepare
from nanolm.training.trainer import train
from tests.helpers import final_state, small_config


def test_prepare_of_a_new_run_writes_nothing(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    setup = prepare(small_config(small_text, "model=bigram", "trainer.ema_decay=0.9"), run, SINGLE_PROCESS)
    assert not run.path.exists()
    assert (setup.state.step, setup.parent, setup.damaged) == (0, None, [])
    assert set(setup.streams) == {"train", "val"}
    assert setup.forward is setup.state.model
    assert setup.state.averages is not None
    assert set(setup.about) == {"identity", "corpus", "tokenizer", "precision", "versions"}


def test_prepare_restores_the_newest_checkpoint(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    train(small_config(small_text, "model=bigram", "trainer.max_steps=3"), run)
    torch.manual_seed(1)
    setup = prepare(small_config(small_text, "model=bigram", "trainer.max_steps=6"), run, SINGLE_PROCESS)
    assert setup.state.step == 3
    assert setup.resume_info.changes == {"trainer.max_steps": (3, 6)}
    weights, _ = final_state(run)
    for name, tensor in setup.state.model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_prepare_refuses_another_text(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    config = small_config(small_text, "model=bigram", "trainer.max_steps=3")
    train(config, run)
    small_text.write_text(small_text.read_text() + "more\n")
    with pytest.raises(RunError, match=r"the corpus is not the one[\s\S]*SHA-256"):
        prepare(config, run, SINGLE_PROCESS)
