import json
from pathlib import Path
from typing import Any

import pytest

from nanolm.analysis.collection import find
from nanolm.cli import main as cli
from nanolm.cli.scaling import collect_points
from nanolm.errors import RunError
from tests.runs.made import make_run


def loss(size: float, tokens: float) -> float:
    return 1.2 + 30 / size**0.4 + 50 / tokens**0.45


@pytest.fixture
def ladder(tmp_path: Path) -> Path:
    """Three sizes by three lengths, two seeds each."""
    for at, size in enumerate((2_000, 16_000, 128_000)):
        for steps in (100, 400, 1600):
            for seed in (1, 2):
                tokens = 64 * steps
                settings = {"size.d_model": 8 * 2**at, "trainer.max_steps": steps, "seed": seed}
                make_run(
                    tmp_path / f"{size}_{steps}_{seed}",
                    losses=[loss(size, tokens)],
                    settings=settings,
                    parameters=size,
                    tokens=tokens,
                    train_tokens=51_200,
                )
    return tmp_path


def test_law_is_printed_with_fitted_losses(ladder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(ladder / "failed", losses=[], status="failed")
    cli.run(["scaling", str(ladder)])
    out = capsys.readouterr().out
    assert "L = 1.2 + 30 / N^0.400 + 50 / D^0.450" in out
    assert "18 runs, residual 0.00%" in out
    assert "N grows as C^0.53, D as C^0.47" in out
    expected = loss(16_000, 25_600)
    row = ["16k", "25.6k", "2", f"{expected:.4f}", f"{expected:.4f}"]
    assert row in [line.split()[:5] for line in out.splitlines()]
    assert "1 of 19 runs were ignored" in out
    assert "up to 2.0 epochs" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_law_as_json(ladder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["scaling", str(ladder), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["E"], found["a"], found["b"]) == tuple(pytest.approx(value, rel=1e-4) for value in (1.2, 0.4, 0.45))
    assert (found["n_points"], found["unit"]) == (18, "nats per token")
    assert set(found["intervals"]) == {"E", "a", "b"}
    assert found["intervals"]["a"]["low"] == pytest.approx(0.4, abs=1e-3)


def test_law_is_plotted(ladder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = ladder.parent / "law.png"
    cli.run(["scaling", str(ladder), "--png", str(image)])
    out = capsys.readouterr().out
    assert "95% bootstrap intervals: E 1.2" in out
    assert "tokens D (log scale)" in out
    assert "N 128k" in out
    assert image.read_bytes().startswith(b"\x89PNG")


def test_other_varying_settings_are_noted(ladder: Path) -> None:
    make_run(ladder / "other", settings={"optimizer.lr": 0.5, "model.name": "mine"}, choices={"model": "mine"})
    _, _, notes = collect_points(find([ladder]))
    assert any("also differ in model, optimizer.lr" in note for note in notes)


def test_points_are_final_losses_and_whole_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "whole", losses=[1.5, 1.8])
    stopped: dict[str, Any] = {"status": "stopped_early", "losses": [1.5, 1.6, 1.7]}
    make_run(tmp_path / "steady", settings={"scheduler.name": "constant", "seed": 2}, **stopped)
    make_run(tmp_path / "cut_off", settings={"scheduler.name": "cosine", "seed": 3}, **stopped)
    points, _, notes = collect_points(find([tmp_path]))
    assert sorted((point.tokens, point.loss) for point in points) == [(64 * 20, 1.8), (64 * 30, 1.7)]
    assert any("1 of 3 runs were ignored: they stopped early" in note for note in notes)
    assert any("1 of 3 runs stopped early: their D is" in note for note in notes)
    with pytest.raises(RunError) as error:
        cli.run(["scaling", str(tmp_path)])
    assert "they stopped early" in error.value.hint


def test_different_texts_are_an_error(ladder: Path) -> None:
    make_run(ladder / "other", corpus="d" * 64)
    with pytest.raises(RunError, match="different validation texts"):
        collect_points(find([ladder]))


def test_different_tokenizers_are_fitted_in_bits_per_byte(ladder: Path) -> None:
    make_run(ladder / "other", tokenizer="u" * 64, losses=[2.0], bits_per_nat=0.5)
    points, unit, _ = collect_points(find([ladder / "other", ladder]))
    assert unit == "bits per byte"
    assert points[0].loss == 1.0


def test_too_few_runs_are_an_error(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(RunError, match="too few runs for a power law"):
        cli.run(["scaling", str(tmp_path)])
