"""trainer.val_tokens: the same part of the validation split every time, and an exact last evaluation."""

from pathlib import Path

import numpy as np
import pytest

from nanolm.analysis.collection import find
from nanolm.cli import main as cli
from nanolm.data.tokens.stream import Rows, Scored, Stream
from nanolm.report.contents import gather
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL, MetricsRow
from nanolm.runs.result_table import print_result_table
from nanolm.runs.wandb_record import values
from nanolm.training.trainer import train
from nanolm.training.val_sample import N_PIECES, pieces_of
from tests.helpers import final_state, is_same_state, sigterm_at_step, small_config, untimed_rows

LINE = ("model=bigram", "trainer.max_steps=8", "trainer.eval_every=2", "trainer.save_every=3", "trainer.log_every=1")


def new_run(path: Path) -> RunDirectory:
    path.mkdir()
    return RunDirectory(path)


def test_pieces_are_whole_windows_spread_over_the_split() -> None:
    stream = Stream(np.arange(16 * 1000 + 1), scored_bytes=1)
    pieces = pieces_of(stream, 16 * 32, 16)
    assert len(pieces) == N_PIECES
    assert {len(piece.tokens) for piece in pieces} == {2 * 16 + 1}
    assert sum(piece.scored_tokens for piece in pieces) == 16 * 32
    starts = [int(piece.tokens[0]) for piece in pieces]
    assert starts == [16 * (1000 * number // N_PIECES) for number in range(N_PIECES)]
    # Fewer windows than pieces, and a split that is hardly longer than the sample.
    assert [len(piece.tokens) for piece in pieces_of(stream, 1, 16)] == [17]
    short = Stream(np.arange(16 * 20 + 5), scored_bytes=1)
    inside = [token for piece in pieces_of(short, 16 * 19, 16) for token in piece.tokens[1:].tolist()]
    assert len(set(inside)) == len(inside)


def test_pieces_keep_documents_rows_and_prompts() -> None:
    documents = np.array([0, 5, 170], dtype=np.uint64)
    windows = pieces_of(Stream(np.arange(161 * 2), 1, documents=documents), 16 * 10, 16)
    assert windows[0].documents.tolist() == [0, 5]
    (later,) = [piece for piece in windows if 160 in piece.tokens[:-1]]
    assert later.documents.tolist() == [0, 170 - int(later.tokens[0])]
    mask = np.zeros(321, dtype=bool)
    mask[32:48] = True
    (scored,) = pieces_of(Stream(np.arange(321), 1, scored=Scored(mask)), 8, 16)
    assert scored.scored_tokens in (15, 16)
    starts = np.arange(0, 400, 4)
    rows = Rows(starts, 9, 16)
    stream = Stream(np.arange(396), 1, rows)
    pieces = pieces_of(stream, 4 * 20, 16)
    assert sum(piece.scored_tokens for piece in pieces) == 4 * 2 * N_PIECES
    for piece in pieces:
        assert piece.rows is not None
        begin, length, _ = piece.rows.targets(np.arange(len(piece.rows)))
        assert (begin + length).max() == len(piece.tokens)


@pytest.mark.parametrize(
    "line",
    [
        (),
        pytest.param(("trainer.ema_decay=0.5",), marks=pytest.mark.slow),
        pytest.param(("trainer.sampling=lines", "dataset.split_by=line"), marks=pytest.mark.slow),
    ],
)
def test_only_the_last_evaluation_is_exact(line: tuple[str, ...], small_text: Path, tmp_path: Path) -> None:
    limited, exact = new_run(tmp_path / "limited"), new_run(tmp_path / "exact")
    train(small_config(small_text, *LINE, *line, "trainer.val_tokens=100"), limited, quiet=True)
    train(small_config(small_text, *LINE, *line), exact, quiet=True)
    rows, whole = limited.read_metrics(VAL), exact.read_metrics(VAL)
    assert [bool(row.scored_tokens) for row in rows] == [True, True, True, False]
    assert (rows[-1].loss, rows[-1].ema_loss) == (whole[-1].loss, whole[-1].ema_loss)
    for row, true in zip(rows[:-1], whole[:-1], strict=True):
        assert row.loss != true.loss
        assert row.loss == pytest.approx(true.loss, rel=0.1)
    summary = limited.read_summary()
    assert summary.final_val_sample is None
    assert summary.final_val_loss == exact.read_summary().final_val_loss
    assert f"(estimate over {rows[0].scored_tokens} tokens)" in limited.log.read_text()
    assert is_same_state(final_state(limited)[0], final_state(exact)[0])


@pytest.mark.slow
def test_limited_runs_resume_exactly(small_text: Path, tmp_path: Path) -> None:
    config = small_config(small_text, *LINE, "trainer.val_tokens=100", "trainer.ema_decay=0.5")
    whole, parted = new_run(tmp_path / "whole"), new_run(tmp_path / "parted")
    train(config, whole, quiet=True)
    with sigterm_at_step(5):
        train(config, parted, quiet=True)
    assert parted.read_summary().final_val_sample is not None
    train(config, parted, quiet=True)
    assert untimed_rows(parted) == untimed_rows(whole)
    assert is_same_state(final_state(parted), final_state(whole))


@pytest.mark.slow
def test_best_estimate_is_named_unless_the_last_step_is_best(small_text: Path, tmp_path: Path) -> None:
    worse = ("optimizer=sgd", "optimizer.lr=1e4", "scheduler=constant", "scheduler.warmup_steps=7")
    for name, line in (("best_last", ()), ("best_before", worse)):
        run = new_run(tmp_path / name)
        train(small_config(small_text, *LINE, *line, "trainer.val_tokens=100"), run, quiet=True)
        summary = run.read_summary()
        is_last = summary.best_step == 8
        assert is_last == (name == "best_last")
        assert (summary.best_val_sample is None) == is_last
        assert (summary.best_val_loss == summary.final_val_loss) == is_last


def test_estimates_are_named_in_every_table(
    small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The best step is before the last one, so that its loss is an estimate, and the final loss is exact.
    worse = ("optimizer=sgd", "optimizer.lr=1e4", "scheduler=constant", "scheduler.warmup_steps=7")
    run = new_run(tmp_path / "run")
    summary = train(small_config(small_text, *LINE, *worse, "trainer.val_tokens=100"), run, quiet=True).summary
    print_result_table(summary, run, "")
    assert f"estimate over {summary.best_val_sample} of {summary.val_scored_tokens:,}" in capsys.readouterr().out
    for command in ("runs", "checkpoints", "compare"):
        cli.run([command, str(run.path)])
        out = capsys.readouterr().out
        assert f"\u2248{summary.best_val_loss:.4f}" in out, command
        assert "\u2248 estimate over a part of the validation split" in " ".join(out.split()), command
        assert f"\u2248{summary.final_val_loss:.4f}" not in out, command
    (entry,) = gather(find([run.path])).runs
    # Runs are judged by the final loss, and bits per byte are those of it.
    assert entry.estimated == ["best_val_loss"]


@pytest.mark.slow
def test_early_stop_ends_with_an_exact_loss(small_text: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    frozen = ("optimizer=sgd", "optimizer.lr=1e-30", "trainer.early_stop=1", "trainer.val_tokens=100")
    assert train(small_config(small_text, *LINE, *frozen), run, quiet=True).summary.status == "stopped_early"
    assert [row.scored_tokens is None for row in run.read_metrics(VAL)] == [False, True]


def test_larger_limit_than_the_split_is_exact(small_text: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    train(small_config(small_text, *LINE, "trainer.val_tokens=1000000"), run, quiet=True)
    assert all(row.scored_tokens is None for row in run.read_metrics(VAL))


def test_estimates_have_their_own_names_in_wandb() -> None:
    row = MetricsRow(step=1, split=VAL, loss=2.0, bits_per_byte=1.0, scored_tokens=64)
    assert values(row, {}) == {"val/loss_estimate": 2.0, "val/bits_per_byte_estimate": 1.0, "val/scored_tokens": 64}
