"""Runs with a budget that is not in steps: the same as with as many steps, also resumed, extended and forked."""

from pathlib import Path

import pytest

from nanolm.cli import main
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import NanolmError
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.trainer import train
from tests.helpers import final_state, is_same_state, sigterm_at_step, small_config, untimed_rows

LINE = (
    *("model=bigram", "optimizer=muon", "optimizer.momentum_warmup_fraction=0.5", "trainer.average_last=0.5"),
    *("trainer.eval_every=3", "trainer.save_every=2", "trainer.log_every=1", "scheduler.warmup_steps=null"),
    *("trainer.batch_size_schedule=[[0.5,2]]",),
)


def new_run(path: Path) -> RunDirectory:
    path.mkdir()
    return RunDirectory(path)


@pytest.mark.slow
def test_run_equals_one_of_as_many_steps_also_resumed(small_text: Path, tmp_path: Path) -> None:
    in_steps, in_tokens = new_run(tmp_path / "steps"), new_run(tmp_path / "tokens")
    train(small_config(small_text, *LINE, "trainer.max_steps=8"), in_steps, quiet=True)
    config = small_config(small_text, *LINE, f"trainer.max_tokens={4 * 2 * 16 + 4 * 4 * 16 + 7}")
    with sigterm_at_step(3):
        train(config, in_tokens, quiet=True)
    summary = in_tokens.read_summary()
    assert (summary.status, summary.max_steps, summary.budget) == ("interrupted", 8, {"max_tokens": 391.0})
    train(config, in_tokens, quiet=True)
    assert untimed_rows(in_tokens) == untimed_rows(in_steps)
    assert is_same_state(final_state(in_tokens), final_state(in_steps))
    assert load_yaml(in_tokens.config).trainer.max_steps is None
    manifest = checkpoint.newest(in_tokens.checkpoints)[0]
    assert manifest is not None
    assert manifest.manifest["max_steps"] == 8
    assert "trainer.max_tokens=391: 8 steps, 384 tokens" in in_tokens.log.read_text()


@pytest.mark.slow
def test_runs_are_extended_in_any_unit(small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "logger=none", "model=bigram", "dataset=text", f"dataset.path={small_text}"]
    words += ["trainer.batch_size=4", "size.context_length=16", "trainer.device=cpu", "trainer.sample_tokens=0"]
    run = RunDirectory(tmp_path / "run")
    assert main.run([*words, "trainer.max_tokens=256", f"hydra.run.dir={run.path}"]) == 0
    assert main.run(["train", f"resume={run.path}"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    for more, n_steps in (("max_tokens=384", 6), ("max_epochs=0.1", 12), ("max_steps=13", 13)):
        assert main.run(["train", f"resume={run.path}", f"trainer.{more}"]) == 0
        summary = run.read_summary()
        assert (summary.status, summary.step, summary.max_steps) == ("completed", n_steps, n_steps)
        assert f"trainer.{next(iter(summary.budget))}" == f"trainer.{more}".split("=")[0]
    assert "the learning rate changes at step 12" in run.log.read_text()
    with pytest.raises(NanolmError) as error:
        main.run(["train", f"fork={run.path}", "trainer.max_tokens=256"])
    assert error.value.found == "the fork would start at step 13, and trainer.max_tokens=256 has 4 steps"
    assert error.value.hint.startswith("trainer.max_tokens=1280, or")
