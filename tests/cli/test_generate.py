from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import SettingsError


def generated(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.run(["generate", str(run), "--prompt", "12 and", *options]) == 0
    return capsys.readouterr().out


def test_generate_prints_prompt_and_continuation(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = generated(trained, capsys, "--max-new-tokens", "10")
    assert text.startswith("12 and")
    assert len(text) == len("12 and") + 10 + 1
    assert text == generated(trained, capsys, "--max-new-tokens", "10", "--no-cache")
    assert text != generated(trained, capsys, "--max-new-tokens", "10", "--seed", "1")


def test_generate_greedily(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = generated(trained, capsys, "--temperature", "0", "--stride", "4")
    assert greedy == generated(trained, capsys, "--top-k", "1", "--seed", "5", "--stride", "4")


def test_generate_reports_mistakes(trained: Path) -> None:
    with pytest.raises(SettingsError, match="--stride is 17"):
        cli.run(["generate", str(trained), "--prompt", "1", "--stride", "17"])
