import math
from pathlib import Path

import pytest

from nanolm.errors import RunError, SettingsError
from nanolm.inference.evaluate import evaluate
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory


def test_evaluate_matches_training(trained: Path) -> None:
    summary = RunDirectory(trained).read_summary()
    figures = evaluate(load_run(str(trained)))
    assert figures["loss"] == pytest.approx(summary.best_val_loss, rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(figures["loss"] / math.log(2))
    assert figures["tokens"] == summary.val_tokens - 1
    assert (figures["split"], figures["stride"], figures["step"]) == ("val", 16, summary.best_step)


def test_split_and_stride(trained: Path) -> None:
    loaded = load_run(str(trained), "last")
    assert evaluate(loaded, "train")["tokens"] == RunDirectory(trained).read_summary().train_tokens - 1
    assert evaluate(loaded, stride=1)["loss"] != evaluate(loaded)["loss"]


def test_invalid_arguments_are_errors(trained: Path, tmp_path: Path) -> None:
    loaded = load_run(str(trained))
    with pytest.raises(SettingsError, match=r"no split 'vel'[\s\S]*did you mean val\?"):
        evaluate(loaded, "vel")
    for stride in (0, 17):
        with pytest.raises(SettingsError, match="from 1 to the context length, 16"):
            evaluate(loaded, stride=stride)
    loaded.config.dataset.path = str(tmp_path / "other.txt")  # type: ignore[attr-defined]
    (tmp_path / "other.txt").write_text("another text altogether " * 50)
    with pytest.raises(RunError, match="the text has changed since the run was trained"):
        evaluate(loaded)
