import json
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory


def test_evaluate_prints_the_loss(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(trained), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["loss"] == pytest.approx(RunDirectory(trained).read_summary().best_val_loss, rel=1e-5)
    assert cli.run(["evaluate", str(trained)]) == 0
    assert capsys.readouterr().out == (
        f"val loss {result['loss']:.4f} nats per token, {result['bits_per_byte']:.4f} bits per byte over "
        f"{result['tokens']:,} tokens (step {result['step']}, stride 16)\n"
    )


def test_evaluate_passes_its_options(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--checkpoint", "20", "--split", "train", "--stride", "4", "--device", "cpu"]
    assert cli.run(["evaluate", str(trained), "--json", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["step"], result["split"], result["stride"]) == (20, "train", 4)


def test_evaluate_reports_mistakes(trained: Path) -> None:
    with pytest.raises(SettingsError, match=r"no split 'vel'[\s\S]*did you mean val\?"):
        cli.run(["evaluate", str(trained), "--split", "vel"])
