import shlex
from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.result_table import plot_losses, print_result_table
from nanolm.runs.summary import Summary

ROWS = [MetricsRow(step=n, split="train", loss=4 / n + 1) for n in range(1, 101)]
ROWS += [MetricsRow(step=n, split="val", loss=4 / n + 1.2) for n in (50, 100)]


def test_loss_plot_has_axes_units_and_names() -> None:
    drawn = plot_losses(ROWS, {"counted_bigram": 2.5}, width=80)
    for part in ("train loss", "val loss", "counted bigram", "step", "nats per token", "100", "\n1.0"):
        assert part in drawn
    assert "\x1b" not in drawn
    assert max(map(len, drawn.splitlines())) <= 80
    assert plot_losses(ROWS[:1], {}, width=80) == ""


def test_result_table_shows_metrics_and_next_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(
        status="completed",
        step=100,
        best_val_loss=1.25,
        best_step=90,
        final_val_loss=1.5,
        bits_per_byte=1.8034,
        val_tokens=1001,
        val_scored_tokens=1000,
        lossless=True,
        baseline_losses={"counted_unigram": 3.0, "counted_bigram": 2.5, "zero": 0.0, "lower": 1.0, "equal": 1.25},
        baseline_bits_per_byte={"gzip": 3.2},
        parameters=1234,
        tokens=6400,
        seconds=3.2,
        tokens_per_second=2000.0,
        wandb_id="abc",
        wandb_mode="offline",
    )
    run = tmp_path / "it's a run"
    run.mkdir()
    print_result_table(summary, RunDirectory(run), "[bold] is not markup here\x1b", "The first", ["mine"])
    out = capsys.readouterr().out
    for part in (
        "completed at step 100", "1.2500", "1.8034", "1.5000", "best is 50.0% below", "best is 43.6% below",
        "best is 25.0% above", "all 1,000 tokens",
        "[bold] is not markup here", "1,234 parameters", "wandb sync",
        f"nanolm generate {shlex.quote(str(run))} --plugins mine --prompt 'The first'",
        f"nanolm train {shlex.quote(f'resume={run}')} trainer.max_steps=200", "\\x1b",
    ):  # fmt: skip
        assert part in out
    notes = [line.split("best is ", 1)[1].strip() for line in out.splitlines() if "best is " in line]
    assert notes[2:5] == ["above", "25.0% above", "the same"]


def test_result_table_without_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(status="interrupted", step=1, parameters=1, tokens=8, seconds=0.1, tokens_per_second=80.0)
    print_result_table(summary, RunDirectory(tmp_path), "")
    assert "interrupted at step 1" in capsys.readouterr().out


def test_result_is_printed_without_the_plot_of_damaged_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 2.0}\n')
    summary = Summary(status="completed", step=100, parameters=1, tokens=6400, seconds=3.2)
    print_result_table(summary, RunDirectory(tmp_path), "")
    out = capsys.readouterr().out
    assert "line 1 of metrics.jsonl is damaged: it has no step or split" in out
    assert "completed at step 100" in out
