"""The figures that are promised, reached with the settings that are promised."""

from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.conftest import config_of

COUNTED_BIGRAM = 2.4819


def summary_of(folder: Path, *overrides: str) -> dict:  # type: ignore[type-arg]
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    return train(config_of("logger=none", *overrides), run).summary


def test_the_trained_bigram_comes_to_its_counted_limit(shakespeare: Path, tmp_path: Path) -> None:
    summary = summary_of(tmp_path, "experiment=bigram", f"dataset.path={shakespeare}")
    assert summary["reference_losses"]["counted_bigram"] == pytest.approx(COUNTED_BIGRAM, abs=5e-5)
    assert abs(summary["final_val_loss"] - COUNTED_BIGRAM) < 0.02
    assert abs(summary["best_val_loss"] - COUNTED_BIGRAM) < 0.02


@pytest.mark.slow
def test_gpt2_tiny_reaches_what_nanogpt_states(shakespeare: Path, tmp_path: Path) -> None:
    line = "dataset=tiny_shakespeare tokenizer=char model=gpt2 size=tiny mask=causal optimizer=adamw scheduler=cosine"
    given = (*line.split(), "trainer.max_steps=2000", "trainer.batch_size=12", f"dataset.path={shakespeare}")
    assert config_of(*given).model.dropout == 0.0  # type: ignore[attr-defined]
    assert summary_of(tmp_path, *given)["final_val_loss"] <= 1.89


@pytest.mark.slow
def test_the_first_run_is_a_fifth_under_the_counted_bigram(tmp_path: Path) -> None:
    summary = summary_of(tmp_path)
    assert summary["final_val_loss"] < 0.8 * summary["reference_losses"]["counted_bigram"]
