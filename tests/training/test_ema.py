"""The moving average of the weights: by its formula, through a run, and back from a checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nanolm.config.trainer import TrainerConfig
from nanolm.inference.evaluate import evaluate
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory
from nanolm.training import ema
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.trainer import train
from tests.helpers import final_state, is_same_state, resumes_exactly, small_config, untimed_rows


def test_update_matches_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    averages = ema.init(model)
    expected = model.weight.item()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.fill_(float(step))
        ema.update(averages, model, ema.decay_at(TrainerConfig(ema_decay=0.7), step))
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert averages["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_tail_average_is_the_mean_of_the_last_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    averages = ema.init(model)
    trainer = TrainerConfig(average_last=0.3, max_steps=20)
    weights = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    for step, weight in enumerate(weights, start=1):
        with torch.no_grad():
            model.weight.fill_(weight)
        ema.update(averages, model, ema.decay_at(trainer, step))
        tail = weights[min(14, step - 1) : step]
        assert averages["weight"].item() == pytest.approx(sum(tail) / len(tail), abs=1e-6)


@pytest.mark.parametrize(("fraction", "max_steps", "n"), [(1.0, 7, 7), (0.01, 7, 1), (0.5, 7, 3)])
def test_tail_average_begins_at_a_fraction_of_the_steps(fraction: float, max_steps: int, n: int) -> None:
    trainer = TrainerConfig(average_last=fraction, max_steps=max_steps)
    decays = [ema.decay_at(trainer, step) for step in range(1, max_steps + 1)]
    assert decays == [0.0] * (max_steps - n) + [1 - 1 / k for k in range(1, n + 1)]


def test_swapped_restores_weights_exactly() -> None:
    model = nn.Linear(5, 5)
    averages = ema.init(model)
    with torch.no_grad():
        model.weight.normal_()
    own, kept = model.weight.clone(), averages["weight"].clone()
    with ema.swapped(averages, model):
        assert torch.equal(model.weight, kept)
    assert torch.equal(model.weight, own)
    assert torch.equal(averages["weight"], kept)


def test_averaging_does_not_change_training(small_text: Path, tmp_path: Path) -> None:
    found = []
    for decay in ("null", "0.9"):
        run = RunDirectory(tmp_path / decay)
        run.path.mkdir()
        line = ("model.dropout=0.3", "trainer.max_steps=12", "trainer.eval_every=5", f"trainer.ema_decay={decay}")
        train(small_config(small_text, *line), run)
        found.append((final_state(run)[0], [{**row, "ema_loss": 0} for row in untimed_rows(run)]))
    assert is_same_state(*found)


def test_run_with_averages_resumes_exactly(small_text: Path, tmp_path: Path) -> None:
    assert resumes_exactly(small_text, tmp_path, "trainer.ema_decay=0.9")
    last = [checkpoint.newest(tmp_path / name / "checkpoints")[0] for name in ("whole", "resumed")]
    averages = [load_file(found.path / checkpoint.AVERAGES) for found in last if found is not None]
    assert averages[0]
    assert is_same_state(*averages)
    assert not is_same_state(averages[0], final_state(RunDirectory(tmp_path / "whole"))[0])


def test_resume_test_detects_missing_averages(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.Checkpoint, "load_averages", lambda self, model: None)
    assert not resumes_exactly(small_text, tmp_path, "trainer.ema_decay=0.9")


def test_averaged_weights_are_evaluated_and_saved(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    outcome = train(small_config(small_text, "trainer.ema_decay=0.95", "trainer.max_steps=40"), run)
    row = [row for row in untimed_rows(run) if row["split"] == "val"][-1]
    assert row["ema_loss"] != row["loss"]
    assert outcome.summary.final_ema_val_loss == row["ema_loss"]
    scored = [
        evaluate(load_run(str(tmp_path), "last", "cpu", weights=weights))["loss"] for weights in ("trained", "ema")
    ]
    assert scored == pytest.approx([row["loss"], row["ema_loss"]], rel=1e-6)


def test_tail_average_is_evaluated_and_saved(small_text: Path, tmp_path: Path) -> None:
    config = small_config(small_text, "trainer.average_last=0.5", "trainer.max_steps=8", "trainer.eval_every=2")
    outcome = train(config, RunDirectory(tmp_path))
    rows = [row for row in untimed_rows(RunDirectory(tmp_path)) if row["split"] == "val"]
    assert [row["ema_loss"] == row["loss"] for row in rows] == [True, True, False, False]
    assert outcome.summary.final_ema_val_loss == rows[-1]["ema_loss"]
    loaded = load_run(str(tmp_path), "last", "cpu", weights="ema")
    assert evaluate(loaded)["loss"] == pytest.approx(rows[-1]["ema_loss"], rel=1e-6)
