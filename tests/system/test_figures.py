"""Losses that the documentation states, reproduced with the documented settings."""

from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import Summary
from nanolm.training.trainer import train
from tests.helpers import make_config

BIGRAM_LOSS = 2.4819


def train_summary(folder: Path, *overrides: str) -> Summary:
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    return train(make_config("logger=none", *overrides), run).summary


@pytest.mark.slow
def test_trained_bigram_reaches_the_counted_loss(shakespeare: Path, tmp_path: Path) -> None:
    summary = train_summary(tmp_path, "experiment=bigram", f"dataset.path={shakespeare}")
    assert summary.baseline_losses["counted_bigram"] == pytest.approx(BIGRAM_LOSS, abs=5e-5)
    assert abs(summary.final_val_loss - BIGRAM_LOSS) < 0.02
    assert abs(summary.best_val_loss - BIGRAM_LOSS) < 0.02


@pytest.mark.slow
def test_gpt2_tiny_reaches_the_loss_stated_by_nanogpt(shakespeare: Path, tmp_path: Path) -> None:
    line = "dataset=tiny_shakespeare tokenizer=char model=gpt2 size=tiny mask=causal optimizer=adamw scheduler=cosine"
    overrides = (*line.split(), "trainer.max_steps=2000", "trainer.batch_size=12", f"dataset.path={shakespeare}")
    assert make_config(*overrides).model.dropout == 0.0  # type: ignore[attr-defined]
    assert train_summary(tmp_path, *overrides).final_val_loss <= 1.89


@pytest.mark.slow
def test_default_run_is_20_percent_below_the_bigram(tmp_path: Path) -> None:
    summary = train_summary(tmp_path)
    assert summary.final_val_loss < 0.8 * summary.baseline_losses["counted_bigram"]


@pytest.mark.slow
@pytest.mark.parametrize(("rung", "highest"), [("bigram", 2.50), ("single_head", 2.40)])
def test_first_ladder_models_reach_the_published_losses(
    rung: str, highest: float, shakespeare: Path, tmp_path: Path
) -> None:
    """Published: 2.4911 and 2.3698. scripts/ladder.py trains the whole ladder, whose results are in docs/ladder.md."""
    summary = train_summary(tmp_path, f"experiment=ladder/{rung}", "seed=4", f"dataset.path={shakespeare}")
    assert summary.final_val_loss <= highest


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_word_level_gpt_learns(positions: str, shakespeare: Path, tmp_path: Path) -> None:
    """Train for two epochs of tiny Shakespeare."""
    line = ("experiment=tutorial/words", "dataset=tiny_shakespeare", f"dataset.path={shakespeare}")
    steps = (
        "trainer.max_steps=200",
        "trainer.eval_every=100",
        "scheduler.update_every=100",
        "trainer.sample_tokens=20",
    )
    summary = train_summary(tmp_path, *line, f"model.positions={positions}", *steps)
    assert summary.best_val_loss < 0.92 * summary.baseline_losses["counted_unigram"]
