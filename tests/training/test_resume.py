"""Stopped, saved and loaded equals never stopped: every optimizer and every schedule, with all that they remember."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.compose import config_folder
from nanolm.config.trainer import Precision
from nanolm.config.yaml_io import load_yaml
from nanolm.inference.evaluate import evaluate
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory
from nanolm.training import precision
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.trainer import train
from tests.helpers import (
    RESUME_OVERRIDES,
    RESUME_STEPS,
    SMALL,
    Nanolm,
    final_state,
    is_same_state,
    mostly_slow,
    resumes_exactly,
    sigterm_at_step,
    small_config,
    untimed_rows,
)

OPTIMIZERS = sorted(path.stem for path in config_folder().glob("optimizer/*.yaml"))
SCHEDULERS = sorted(path.stem for path in config_folder().glob("scheduler/*.yaml"))

# Settings without a default, and a plateau that is reached within 16 steps.
NEEDED = {
    "product": ["scheduler.parts=[{name:step,step_size:5},{name:cosine_restarts,period:6}]"],
    "chain": ["scheduler.parts=[cosine,{name:constant,fraction:0.5}]", "scheduler.boundaries=[9]"],
    "plateau": ["scheduler.patience=0", "scheduler.threshold=0.9"],
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_exactly(optimizer: str, small_text: Path, tmp_path: Path) -> None:
    assert resumes_exactly(small_text, tmp_path, f"optimizer={optimizer}", "model=gpt2", "model.dropout=0.3")


@pytest.mark.parametrize("model", ["mlp", *mostly_slow(["rnn", "rnn model.cell=gru"], quick=("rnn",))])
def test_networks_without_attention_resume_exactly(model: str, small_text: Path, tmp_path: Path) -> None:
    overrides = (*f"model={model}".split(), "optimizer=muon", "trainer.sample_tokens=5")
    assert resumes_exactly(small_text, tmp_path, *overrides)


@pytest.mark.parametrize("scheduler", mostly_slow(SCHEDULERS, quick=("chain", "cosine_restarts", "plateau")))
def test_every_scheduler_resumes_exactly(scheduler: str, small_text: Path, tmp_path: Path) -> None:
    overrides = [f"scheduler={scheduler}", *NEEDED.get(scheduler, [])]
    assert resumes_exactly(small_text, tmp_path, "optimizer=sgd", *overrides)
    lrs = {row["lr"] for row in untimed_rows(RunDirectory(tmp_path / "whole")) if row["split"] == "train"}
    assert len(lrs) > 1 or scheduler == "constant"


@pytest.mark.parametrize("stops", [[1], [4, 1, 1], [5], [6], [15]], ids=str)
def test_stops_near_saves_and_epochs_resume_exactly(stops: list[int], small_text: Path, tmp_path: Path) -> None:
    # The text has 8,034 tokens, 502 rows of 16: an epoch is 5 steps, and ends at a save.
    line = ("trainer.sampling=epochs", "trainer.batch_size=100", "trainer.save_every=5")
    config = small_config(small_text, *RESUME_OVERRIDES, *line, "optimizer=muon", "size.context_length=16")
    whole, parted = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parted")
    for run in (whole, parted):
        run.path.mkdir()
    train(config, whole)
    for stop in stops:
        with sigterm_at_step(stop):
            train(config, parted)
    assert parted.read_summary().step == sum(stops)
    train(config, parted)
    assert untimed_rows(parted) == untimed_rows(whole)
    assert is_same_state(final_state(parted), final_state(whole))


@pytest.mark.parametrize(
    ("part", "overrides"),
    [
        ("plateau", ["optimizer=sgd", "scheduler=plateau", *NEEDED["plateau"]]),
        ("momentum", ["optimizer=muon"]),
        ("updates", ["optimizer=muon"]),
        ("z", ["optimizer=schedule_free"]),
        ("y", ["optimizer=schedule_free"]),
        ("weight_sum", ["optimizer=schedule_free"]),
    ],
)
def test_resume_test_detects_missing_optimizer_state(
    part: str, overrides: list[str], small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = checkpoint.Checkpoint.load_state

    def forgetful(self: checkpoint.Checkpoint) -> Any:
        tree = load(self)
        if self.step == RESUME_STEPS:
            return tree
        if part == "plateau":
            assert tree["scalars"]["plateau"]["reduction"] < 1
            tree["scalars"]["plateau"] = {}
        for group in tree["optimizer"]["param_groups"]:
            if part in group:
                group[part] = 0
        for buffers in tree["optimizer"]["state"].values():
            if part == "y":
                del buffers["y"]
            elif part in buffers:
                buffers[part] = torch.zeros_like(buffers[part])
        return tree

    monkeypatch.setattr(checkpoint.Checkpoint, "load_state", forgetful)
    assert not resumes_exactly(small_text, tmp_path, *overrides)


def test_schedule_free_saves_the_evaluated_average(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    train(small_config(small_text, "optimizer=schedule_free", "trainer.max_steps=20"), run)
    scored = run.read_summary().best_val_loss
    assert evaluate(load_run(str(tmp_path), "last", "cpu"))["loss"] == pytest.approx(scored, rel=1e-6)
    weights, state = final_state(run)
    y = state["optimizer"]["state"][0]["y"]
    assert not any(tensor.shape == y.shape and torch.equal(tensor, y) for tensor in weights.values())


def test_schedule_free_is_unchanged_by_evaluation_frequency(small_text: Path, tmp_path: Path) -> None:
    found = []
    for every in (1, 7):
        run = RunDirectory(tmp_path / f"every{every}")
        run.path.mkdir()
        config = small_config(
            small_text, "optimizer=schedule_free", "trainer.max_steps=14", f"trainer.eval_every={every}"
        )
        train(config, run)
        found.append((final_state(run)[0], [row for row in untimed_rows(run) if row["split"] == "train"]))
    assert is_same_state(*found)


def test_run_resumes_with_its_text_at_another_path(nanolm: Nanolm, small_text: Path) -> None:
    line = (*SMALL, "dataset=text", f"dataset.path={small_text}", "model=bigram", "trainer.max_steps=2")
    assert nanolm("train", *line, "hydra.run.dir=run").returncode == 0
    small_text.rename(nanolm.folder / "moved ${x.txt")
    moved = ("resume=run", "dataset.path=moved ${x.txt")
    done = nanolm("train", *moved, "trainer.max_steps=3")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert load_yaml(nanolm.folder / "run" / "config.yaml").dataset.path == "moved ${x.txt"  # type: ignore[attr-defined]
    lacking = nanolm("train", *moved, "model.dropout=0.1")
    assert lacking.returncode == 2
    assert "the run has no setting model.dropout: its model is bigram" in lacking.stderr


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(Precision.bf16, "bf16", ""), (Precision.fp16, "fp32", "precision: fp16 -> fp32")],
    ids=["kept", "the device lacks it"],
)
def test_resumed_run_keeps_its_precision_or_logs_the_change(
    before: Precision, after: str, words: str, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """precision=auto is bf16 on a GPU and fp32 on a CPU, and trainer.device may change."""
    run = RunDirectory(tmp_path)
    config = small_config(small_text, *RESUME_OVERRIDES, "trainer.sample_tokens=0", "trainer.precision=auto")
    with monkeypatch.context() as patch, sigterm_at_step(8):
        patch.setattr(precision, "resolve", lambda *arguments: before)
        train(config, run)
    assert train(config, run).summary.precision == after
    said = run.log.read_text()
    assert words in said
    assert ("precision:" in said) == bool(words)
