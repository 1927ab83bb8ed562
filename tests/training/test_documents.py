"""Training and scoring within documents, with a model small enough to be followed by hand."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanolm.config.model import TransformerConfig
from nanolm.config.run import Config
from nanolm.config.trainer import Precision
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Stream
from nanolm.inference.evaluate import evaluate
from nanolm.inference.load import load_run
from nanolm.model import masks
from nanolm.model.loss import next_token_loss
from nanolm.registry import MODELS
from nanolm.runs.directory import RunDirectory
from nanolm.training import validation
from nanolm.training.precision import NumberFormat
from nanolm.training.step import MicroBatch, update
from nanolm.training.trainer import train
from nanolm.training.validation import exact_loss
from tests.helpers import SMALL, make_config

CPU = torch.device("cpu")
FP32 = NumberFormat(Precision.fp32, CPU)


class Gathers(torch.nn.Module):
    """The sum over the tokens of the same document up to here, one table of logits for all of them."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens_BxT: torch.Tensor, documents_BxT: torch.Tensor | None = None) -> torch.Tensor:
        if documents_BxT is None:
            documents_BxT = torch.zeros_like(tokens_BxT)
        assert documents_BxT.shape == tokens_BxT.shape
        return masks.same_document(documents_BxT).tril().float() @ self.table(tokens_BxT)


class TokensAlone(Gathers):
    """The same, and it takes nothing but tokens."""

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(tokens_BxT)


@dataclasses.dataclass
class GathersConfig(TransformerConfig):
    name: str = "test_gathers"


@pytest.fixture(autouse=True)
def gathers() -> Iterator[None]:
    @MODELS.register("test_gathers", schema=GathersConfig)
    def build(config: Config, vocab_size: int) -> torch.nn.Module:
        return Gathers(vocab_size)

    yield
    del MODELS._builders["test_gathers"], MODELS.schemas["test_gathers"]


@pytest.fixture
def tales(tmp_path: Path) -> Path:
    """Documents shorter and longer than a context of 16."""
    path = tmp_path / "tales.jsonl"
    texts = (" ".join(str(k) for k in range(n, n + 1 + n % 9)) for n in range(120))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def settings(tales: Path, *overrides: str, model: str = "test_gathers") -> Config:
    config = make_config(*SMALL, "dataset=jsonl", f"dataset.path='{tales}'", *overrides)
    if model == "test_gathers":
        config.model = GathersConfig()
    return config


def loss_of_documents_alone(model: torch.nn.Module, stream: Stream, context_length: int, stride: int) -> float:
    """Score each token given the part of its document in its window, one token at a time."""
    tokens, n_targets = torch.from_numpy(stream.tokens[:].astype(np.int64)), len(stream.tokens) - 1
    first = min(context_length, n_targets)
    losses = []
    for target in range(1, n_targets + 1):
        # Targets 1 .. first share the first window; after that each stretch of `stride` ends a window of its own.
        end = first if target <= first else min(first + -(-(target - first) // stride) * stride, n_targets)
        begins = max(start for start in stream.documents.tolist() if start <= target - 1)
        begins = max(begins, end - context_length)
        logits = model(tokens[None, begins:target])
        losses.append(next_token_loss(logits[:, -1:], tokens[None, target : target + 1]).item())
    assert len(losses) == stream.scored_tokens
    return float(np.mean(losses))


def stream_of(n_tokens: int, documents: list[int]) -> Stream:
    tokens = np.random.default_rng(0).integers(0, 11, n_tokens).astype(np.uint8)
    return Stream(tokens, scored_bytes=n_tokens, documents=np.array(documents, dtype=np.uint64))


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("n_tokens", [2, 9, 17, 103])
@pytest.mark.parametrize("rows_at_once", [1, 10_000])
def test_split_is_scored_as_separate_documents(
    stride: int, n_tokens: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "CPU_TOKENS", 8 * rows_at_once)
    stream = stream_of(n_tokens, [0, 1, 8, 8, 16, 16, 16, 19, 20, 75])
    torch.manual_seed(0)
    model = Gathers(11)
    about = {"context_length": 8, "stride": stride, "vocab_size": 11, "device": CPU, "number_format": FP32}
    found = exact_loss(model, stream, **about, reads_documents=True)
    assert found == pytest.approx(loss_of_documents_alone(model, stream, 8, stride), rel=1e-5)
    across = exact_loss(model, stream, **about)
    one_document = dataclasses.replace(stream, documents=np.zeros(1, dtype=np.uint64))
    assert across == pytest.approx(loss_of_documents_alone(model, one_document, 8, stride), rel=1e-5)
    assert n_tokens == 2 or across != pytest.approx(found, rel=1e-3)


def test_micro_batches_with_documents_add_up_to_the_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = (torch.randint(5, (8, 6), generator=generator) for _ in range(2))
    documents = torch.randint(2, (8, 6), generator=generator).cumsum(1)
    torch.manual_seed(0)
    initial = Gathers(5)
    expected = next_token_loss(initial(inputs, documents), targets).item()
    assert expected != pytest.approx(next_token_loss(initial(inputs), targets).item(), rel=1e-3)
    results = []
    for n in (1, 2, 8):
        model = copy.deepcopy(initial)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        parts = map(MicroBatch, inputs.chunk(n), targets.chunk(n), documents.chunk(n))
        loss, norm = update(model, optimizer, parts, FP32, None)
        assert loss == pytest.approx(expected, rel=1e-5)
        results.append((norm, model.table.weight.detach()))
    for norm, weight in results[1:]:
        assert norm == pytest.approx(results[0][0], rel=1e-5)
        torch.testing.assert_close(weight, results[0][1])


def trained(config: Config, folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.path.mkdir(exist_ok=True)
    train(config, run)
    return run


def rows_of(run: RunDirectory) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


@pytest.mark.parametrize("batches", ["windows", "epochs"])
def test_resumed_run_within_documents_is_exact(batches: str, tales: Path, tmp_path: Path) -> None:
    line = (f"trainer.sampling={batches}", "scheduler=constant", "scheduler.warmup_steps=0", "trainer.log_every=1")
    line += ("trainer.eval_every=6", "trainer.save_every=6", "mask=document")
    whole = trained(settings(tales, *line, "trainer.max_steps=12"), tmp_path / "whole")
    trained(settings(tales, *line, "trainer.max_steps=6"), tmp_path / "parts")
    parts = trained(settings(tales, *line, "trainer.max_steps=12"), tmp_path / "parts")
    assert rows_of(parts) == rows_of(whole)
    across = trained(settings(tales, *line, "mask=causal", "trainer.max_steps=12"), tmp_path / "across")
    assert all(row["loss"] != other["loss"] for row, other in zip(rows_of(whole), rows_of(across), strict=True))


@pytest.mark.parametrize("stride", [16, 5])
def test_run_within_documents_is_scored_within_them(stride: int, tales: Path, tmp_path: Path) -> None:
    config = settings(tales, "mask=document", "trainer.gradient_accumulation=2", "trainer.max_steps=12")
    run = trained(config, tmp_path / "run")
    loaded = load_run(str(run.path))
    stream = token_cache.tokenize(corpora.load(config.dataset), loaded.tokenizer, config)["val"]
    assert stream.n_documents > 5
    found = evaluate(loaded, stride=stride)
    assert found["loss"] == pytest.approx(loss_of_documents_alone(loaded.model, stream, 16, stride), rel=1e-5)
    assert found["tokens"] == len(stream.tokens) - 1
    if stride == 16:
        assert found["loss"] == pytest.approx(run.read_summary().best_val_loss, rel=1e-5)


# Masks that depend on distance only: with rotary positions the place of a document in a window does not matter.
@pytest.mark.parametrize(
    "mask",
    [
        ("mask=document",),
        ("mask=banded_causal", "mask.window=7", "mask.within_documents=true"),
        ("mask=strided", "mask.stride=2", "mask.within_documents=true", "mask.pattern=[strided,document]"),
    ],
)
@pytest.mark.parametrize("stride", [16, 5])
def test_transformer_scores_documents_separately(
    mask: tuple[str, ...], stride: int, tales: Path, tmp_path: Path
) -> None:
    config = settings(
        tales, *mask, "trainer.gradient_accumulation=2", "trainer.max_steps=30", "optimizer.lr=0.02", model="gpt"
    )
    run = trained(config, tmp_path / "run")
    loaded = load_run(str(run.path))
    stream = token_cache.tokenize(corpora.load(config.dataset), loaded.tokenizer, config)["val"]
    found = evaluate(loaded, stride=stride)["loss"]
    assert found == pytest.approx(loss_of_documents_alone(loaded.model, stream, 16, stride), rel=1e-5)
    if stride == 16:
        assert found == pytest.approx(run.read_summary().best_val_loss, rel=1e-5)
    vocab_size = loaded.tokenizer.vocab_size
    about = {"context_length": 16, "stride": stride, "vocab_size": vocab_size, "device": CPU, "number_format": FP32}
    across = exact_loss(loaded.model, stream, **about)
    assert across != pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(
    "line",
    [("mask=causal",), ("mask=document", "trainer.sampling=documents"), ("mask=document", "trainer.sampling=lines")],
)
def test_documents_are_passed_only_if_a_row_may_have_several(
    line: tuple[str, ...], tales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS._builders, "test_gathers", lambda config, vocab_size: TokensAlone(vocab_size))
    run = trained(settings(tales, *line, "trainer.max_steps=2", "trainer.gradient_accumulation=2"), tmp_path / "run")
    assert evaluate(load_run(str(run.path)))["tokens"] == run.read_summary().val_scored_tokens


def test_text_of_one_document_is_announced(small_text: Path, tales: Path, tmp_path: Path) -> None:
    said = "the train split is one document: mask.within_documents has no effect on it"
    for name, expected, line in (
        ("one", True, ("mask=document", "dataset=text", f"dataset.path='{small_text}'")),
        ("many", False, ("mask=document",)),
        ("causal", False, ("mask=causal", "dataset=text", f"dataset.path='{small_text}'")),
    ):
        run = trained(settings(tales, *line, "trainer.max_steps=1"), tmp_path / name)
        assert (said in (run.path / "train.log").read_text()) is expected
