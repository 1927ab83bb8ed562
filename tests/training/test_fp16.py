"""Training with a loss scale, which GradScaler makes on a CPU as on a GPU."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.errors import DivergedError
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training import setup
from nanolm.training.trainer import train
from tests.helpers import final_state, is_same_state, small_config, untimed_rows

FP16 = ("trainer.precision=fp16", "trainer.log_every=1", "trainer.clip_norm=1.0")


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, is_spoilt: Any) -> None:
    """Make the gradient of the embedding infinite in the updates that are chosen, counted from 1."""
    updates = 0

    def spoilt(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal updates
        updates += 1
        return torch.full_like(gradient, math.inf) if is_spoilt(updates) else gradient

    def build_spoilt(*arguments: Any) -> torch.nn.Module:
        model = build(*arguments)
        model.token_embedding.weight.register_hook(spoilt)
        return model

    monkeypatch.setattr(setup, "build", build_spoilt)


def test_permanent_overflow_ends_as_diverged(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_gradients(monkeypatch, lambda update: True)
    run = RunDirectory(tmp_path)
    with pytest.raises(DivergedError, match=r"gradient norm inf, .*loss scale 0\.5"):
        train(small_config(small_text, "trainer.max_steps=1000", *FP16), run)
    assert run.read_summary().status == "diverged"
    assert run.read_summary().skipped_updates == run.read_summary().step == 16, "65536 halves to 1 in 16 updates"


def test_skipped_update_is_counted_and_rows_stay_valid_json(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradients(monkeypatch, lambda update: update == 3)
    run = RunDirectory(tmp_path)
    line = ("trainer.max_steps=5", "trainer.ema_decay=0.5", *FP16)
    summary = train(small_config(small_text, *line), run).summary
    assert summary.skipped_updates == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = [json.loads(line, parse_constant=refuse) for line in run.metrics.read_text().splitlines()]
    updates = [row for row in found if row["split"] == "train"]
    assert [row["skipped_updates"] for row in updates] == [0, 0, 1, 1, 1]
    assert ["grad_norm" in row for row in updates] == [True, True, False, True, True]


def test_skipped_update_changes_neither_weights_nor_averages(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradients(monkeypatch, lambda update: update == 3)
    states = []
    for steps in (2, 3):
        run = RunDirectory(tmp_path / str(steps))
        run.path.mkdir()
        spoil_gradients(monkeypatch, lambda update: update == 3)
        line = (f"trainer.max_steps={steps}", "trainer.ema_decay=0.5", "scheduler=constant", *FP16)
        train(small_config(small_text, *line), run)
        (found, *_) = sorted(run.checkpoints.glob("step-*/ema.safetensors"), reverse=True)
        states.append((final_state(run)[0], found.read_bytes()))
    assert is_same_state(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_fp16_run_resumes_with_its_loss_scale(small_text: Path, tmp_path: Path) -> None:
    line = ("model.dropout=0.1", "trainer.gradient_accumulation=2", *FP16)
    whole, parted = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parted")
    for run, stops in ((whole, (8,)), (parted, (4, 8))):
        run.path.mkdir()
        for steps in stops:
            train(small_config(small_text, "scheduler=constant", f"trainer.max_steps={steps}", *line), run)
    updates = [[row for row in untimed_rows(run) if row["split"] == "train"] for run in (whole, parted)]
    assert updates[0] == updates[1]
    assert is_same_state(final_state(whole)[0], final_state(parted)[0])
