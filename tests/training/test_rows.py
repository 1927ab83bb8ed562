"""Training and scoring on rows of lines and documents, whose padding is not scored."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanolm.cli.main import run as nanolm_run
from nanolm.config.tokenizer import TokenizerConfig
from nanolm.config.trainer import Precision
from nanolm.data.batches import IGNORE_INDEX, gather_rows
from nanolm.data.tokenizers import ByteTokenizer
from nanolm.data.tokens.stream import Rows, Stream
from nanolm.errors import SettingsError
from nanolm.inference.evaluate import evaluate
from nanolm.inference.load import load_run
from nanolm.model.build import build
from nanolm.model.loss import next_token_loss
from nanolm.registry import TOKENIZERS
from nanolm.runs.directory import RunDirectory
from nanolm.training import validation
from nanolm.training.precision import NumberFormat
from nanolm.training.step import MicroBatch, update
from nanolm.training.trainer import train
from nanolm.training.validation import exact_loss
from tests.helpers import SMALL, make_config, randomize_weights

CPU = torch.device("cpu")
FP32 = NumberFormat(Precision.fp32, CPU)


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with 6, 1, 3, 0, 2, 6, 1 and 5 targets."""
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(5, (8, 6), generator=generator), torch.randint(5, (8, 6), generator=generator)
    for row, length in enumerate((6, 1, 3, 0, 2, 6, 1, 5)):
        targets[row, length:] = IGNORE_INDEX
    return inputs, targets


def test_micro_batches_are_weighted_by_their_targets() -> None:
    inputs, targets = padded_batch()
    results = []
    for n in (1, 2, 4, 8):
        torch.manual_seed(0)
        model = torch.nn.Embedding(5, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loss, norm = update(model, optimizer, map(MicroBatch, inputs.chunk(n), targets.chunk(n)), FP32, None)
        results.append((loss, norm, model.weight.detach().clone()))
    torch.manual_seed(0)
    model = torch.nn.Embedding(5, 5)
    scored = targets != IGNORE_INDEX
    losses = -model(inputs)[scored].log_softmax(-1).gather(1, targets[scored][:, None])
    assert results[0][0] == pytest.approx(losses.mean().item(), rel=1e-6)
    for loss, norm, weight in results[1:]:
        assert (loss, norm) == pytest.approx(results[0][:2], rel=1e-5)
        torch.testing.assert_close(weight, results[0][2])


@pytest.mark.parametrize("rows_at_once", [1, 10_000])
def test_every_token_of_every_row_is_scored_once(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "CPU_TOKENS", 8 * rows_at_once)
    tokens = np.random.default_rng(0).integers(0, 11, 60).astype(np.uint8)
    starts = [0, 3, 4, 30, 41]
    model = build(make_config("size.context_length=8", "size.n_layers=2"), 11).eval()
    randomize_weights(model)
    stream = Stream(tokens, scored_bytes=60, rows=Rows(np.array([*starts, 60], dtype=np.uint64), 10, 8))
    assert stream.rows is not None
    found = exact_loss(model, stream, context_length=8, stride=8, vocab_size=11, device=CPU, number_format=FP32)
    losses = []
    for start, end in zip(starts, [*starts[1:], 60], strict=True):
        line = [10, *tokens[start:end].tolist()]
        for target in range(1, len(line)):
            begin = (target - 1) // 8 * 8
            logits = model(torch.tensor([line[begin:target]]))
            losses.append(next_token_loss(logits[:, -1:], torch.tensor([[line[target]]])))
    assert len(losses) == stream.scored_tokens == 60
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_padding_does_not_change_the_loss() -> None:
    tokens = np.arange(8, dtype=np.uint8)
    model = build(make_config("size.context_length=8", "size.n_layers=2"), 11).eval()
    randomize_weights(model)
    inputs, targets = (
        torch.from_numpy(side) for side in gather_rows(tokens, Rows(np.array([0, 3, 8]), 10, 8), np.arange(2))
    )
    loss = next_token_loss(model(inputs), targets)
    inputs[targets == IGNORE_INDEX] = 9
    assert next_token_loss(model(inputs), targets) == loss


def trained(folder: Path, *overrides: str, max_steps: int = 12) -> RunDirectory:
    run = RunDirectory(folder)
    run.path.mkdir(exist_ok=True)
    train(make_config(*SMALL, f"trainer.max_steps={max_steps}", "trainer.save_every=6", *overrides), run)
    return run


def rows_of(run: RunDirectory) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


@pytest.mark.parametrize("batches", ["epochs", "lines", "documents"])
def test_resumed_run_equals_uninterrupted_run(
    batches: str, tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ("dataset=text", f"dataset.path={small_text}", f"trainer.sampling={batches}", "trainer.eval_every=6")
    text += ("scheduler=constant", "scheduler.warmup_steps=0", "trainer.gradient_accumulation=2", "trainer.log_every=1")
    whole = trained(tmp_path / "whole", *text)
    trained(tmp_path / "parts", *text, max_steps=6)
    parts = trained(tmp_path / "parts", *text)
    assert rows_of(parts) == rows_of(whole)
    summary = whole.read_summary()
    assert summary.lossless is True
    figures = evaluate(load_run(str(whole.path)))
    assert figures["loss"] == pytest.approx(summary.best_val_loss, rel=1e-5)
    assert figures["tokens"] == summary.val_scored_tokens
    if batches == "epochs":
        return
    # Every character is scored, the first of a line as well.
    assert summary.val_scored_tokens == summary.val_tokens
    assert summary.tokens < 12 * 4 * 16
    with pytest.raises(SettingsError, match="leave out --stride"):
        evaluate(load_run(str(whole.path)), stride=4)


def test_test_split_can_be_scored(tmp_path: Path, small_text: Path) -> None:
    run = trained(tmp_path / "run", "dataset=text", f"dataset.path={small_text}", "dataset.test_fraction=0.2")
    test = evaluate(load_run(str(run.path)), "test")
    assert test["split"] == "test"
    assert test["tokens"] == pytest.approx(0.2 * len(small_text.read_text()), abs=2)


class Letters(ByteTokenizer):
    """ASCII letters and spaces; all else is 0, which stands for anything."""

    lossless = False
    vocab_size = 128

    def encode(self, text: str) -> np.ndarray:
        codes = np.array([ord(character) for character in text])
        return np.where((codes == 32) | ((codes > 64) & (codes < 128)), codes, 0).astype(np.uint8)


@pytest.fixture
def letters() -> Iterator[str]:
    TOKENIZERS.register("test_letters")(Letters)
    TOKENIZERS.schemas["test_letters"] = TokenizerConfig
    yield "test_letters"
    del TOKENIZERS._builders["test_letters"], TOKENIZERS.schemas["test_letters"]


def test_lossy_run_is_marked_next_to_its_bits_per_byte(
    letters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("äöü and more\n" * 100, encoding="utf-8")
    overrides = ("dataset=text", f"dataset.path='{tmp_path / 'a.txt'}'", f"tokenizer={letters}")
    nanolm_run(["train", *SMALL, "trainer.max_steps=2", *overrides, f"hydra.run.dir='{tmp_path / 'run'}'"])
    assert "lossy tokenizer: <unk> hides text" in " ".join(capsys.readouterr().out.split())
    summary = RunDirectory(tmp_path / "run").read_summary()
    assert summary.lossless is False
    # 130 characters in 160 bytes; the first is never scored, and its token stands for one byte.
    assert summary.val_scored_tokens == 129
    expected = summary.best_val_loss * 129 / 159 / math.log(2)
    assert summary.bits_per_byte == pytest.approx(expected)
    nanolm_run(["evaluate", str(tmp_path / "run")])
    assert "lossy tokenizer: <unk> hides text, so bits per byte are not comparable" in capsys.readouterr().out
    nanolm_run(["evaluate", str(tmp_path / "run"), "--json"])
    assert json.loads(capsys.readouterr().out)["lossless"] is False
