from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nanolm.config.model import NgramConfig
from nanolm.inference.load import load_run
from nanolm.inference.logits import UncachedLogits, logits_source
from nanolm.model.build import build
from nanolm.model.ngram import Ngram
from nanolm.model.ngram_mix import LeaveOneOutNgram
from nanolm.model.sampling import sample
from nanolm.model.transformer import Transformer
from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import make_config, mistakes, randomize_weights, resumes_exactly, small_config

CPU = torch.device("cpu")
TEXT = np.random.default_rng(0).choice(5, 300, p=[0.4, 0.3, 0.15, 0.1, 0.05])


def counted(order: int) -> LeaveOneOutNgram:
    model = LeaveOneOutNgram(5, NgramConfig(order=order))
    model.fit(TEXT)
    return model


def mixed(order: int) -> Transformer:
    model = build(
        make_config(f"model.ngram_mix.order={order}", *["size.n_layers=1", "size.d_model=8", "size.context_length=12"]),
        5,
    )
    assert isinstance(model, Transformer)
    assert model.ngram_mix is not None
    randomize_weights(model)
    model.ngram_mix.count(TEXT)
    return model.eval()


@pytest.mark.parametrize("order", [1, 2, 4])
def test_longest_distribution_is_the_ngram_model(order: int) -> None:
    expected = Ngram(5, NgramConfig(order=order))
    expected.fit(TEXT)
    row = torch.from_numpy(TEXT[None, :40].copy())
    found = counted(order).distributions(row)
    assert len(found) == order
    assert_close(found[-1].log(), expected(row))
    for distribution in found:
        assert_close(distribution.sum(-1), torch.ones(1, 40))


def without_occurrence(at: int, order: int, discounts: dict[tuple[bool, int], float]) -> list[float]:
    """Compute the Kneser-Ney distribution of TEXT[at] from counts without its occurrence, by the formulas."""
    text = TEXT.tolist()
    raw: Counter[tuple[int, ...]] = Counter()
    for length in range(1, order + 1):
        raw.update(tuple(text[i : i + length]) for i in range(len(text) - length + 1))
        raw[tuple(text[at - length + 1 : at + 1])] -= 1
    preceded = Counter(ngram[1:] for ngram, count in raw.items() if count and len(ngram) > 1)

    def distribution(h: tuple[int, ...], counts: Counter[tuple[int, ...]]) -> list[float]:
        shorter = distribution(h[1:], preceded) if h else [0.2] * 5
        c = [counts[(*h, w)] for w in range(5)]
        if not sum(c):
            return shorter
        d = discounts[counts is raw, len(h) + 1]
        rest = sum(min(d, count) for count in c)
        return [(max(c[w] - d, 0) + rest * shorter[w]) / sum(c) for w in range(5)]

    return distribution(tuple(text[at - order + 1 : at]), raw)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_left_out_distribution_is_that_of_the_other_occurrences(order: int) -> None:
    model = counted(order)
    discounts = {
        (row == 0, len(ngram)): model.discounts[row, node].item()
        for row in (0, 1)
        for node, ngram in enumerate(_ngrams(model))
        if node
    }
    start = 100
    row = torch.from_numpy(TEXT[None, start : start + 61].copy())
    found = model.distributions(row[:, :-1], row[:, 1:])[-1][0]
    for position in range(order - 1, 60):
        expected = without_occurrence(start + position + 1, order, discounts)
        assert_close(found[position], torch.tensor(expected), rtol=1e-4, atol=1e-6)


def _ngrams(model: Ngram) -> list[tuple[int, ...]]:
    """Return the n-gram of each node."""
    found: list[tuple[int, ...]] = [()]
    for key in model.keys.tolist():
        found.append((*found[key // 5], key % 5))
    return found


def test_targets_that_are_not_scored_leave_out_nothing() -> None:
    row = torch.from_numpy(TEXT[None, :20].copy())
    model = counted(3)
    for found, expected in zip(
        model.distributions(row, torch.full_like(row, -100)), model.distributions(row), strict=True
    ):
        assert_close(found, expected)


def test_mixed_logits_are_the_sum_of_both() -> None:
    model = mixed(3)
    assert model.ngram_mix is not None
    row = torch.from_numpy(TEXT[None, :12].copy())
    x_1xTxC = model.to_residual(row)
    expected = model.unembed(x_1xTxC)
    weights_KxT = model.ngram_mix.bias_K[:, None] + model.ngram_mix.gate_KxC @ model.final_norm(x_1xTxC)[0].T
    for weight_T, distribution in zip(weights_KxT, model.ngram_mix.ngram.distributions(row), strict=True):
        expected = expected + weight_T[:, None] * distribution.log()
    assert_close(model(row), expected)


@pytest.mark.parametrize("order", [1, 4])
def test_every_source_gives_the_same_logits(order: int) -> None:
    model = mixed(order)
    texts = [TEXT[:2].tolist(), TEXT[5:16].tolist()]
    uncached = UncachedLogits(model, 12, 3, CPU)
    settings = {"context_length": 12, "stride": 3, "max_new_tokens": 8, "device": CPU}
    cached = logits_source(model, 2, use_cache=True, **settings)  # type: ignore[arg-type]
    with torch.inference_mode():
        for token in range(8):
            assert_close(cached.next_logits(texts), uncached.next_logits(texts))
            texts = [[*text, token % 5] for text in texts]
    prompt = torch.tensor([3, 1, 4])
    samples = [sample(model, prompt, 30, context_length=12, use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(*samples)


def test_run_with_counts_resumes_exactly_and_is_self_contained(small_text: Path, tmp_path: Path) -> None:
    assert resumes_exactly(small_text, tmp_path, "model.ngram_mix.order=3", "optimizer=muon", "size.n_layers=1")
    run = RunDirectory(tmp_path / "resumed")
    summary = run.read_summary()
    assert summary.counted_tokens == summary.train_tokens
    assert summary.tokens == summary.train_tokens + 16 * 4 * 16  # type: ignore[operator]
    small_text.unlink()
    model = load_run(str(run.path), device="cpu").model
    assert isinstance(model, Transformer)
    assert model.ngram_mix is not None
    assert len(model.ngram_mix.ngram.keys) == summary.entries


def test_first_loss_leaves_the_targets_out(small_text: Path, tmp_path: Path) -> None:
    config = small_config(
        small_text, "model.ngram_mix.order=4", "trainer.max_steps=1", "trainer.log_every=1", "trainer.batch_size=64"
    )
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    outcome = train(config, run)
    loaded = load_run(str(run.path), device="cpu")
    model = loaded.model
    assert isinstance(model, Transformer)
    assert model.ngram_mix is not None
    tokens = torch.from_numpy(loaded.tokenizer.encode(small_text.read_text())[:4000].astype(np.int64)).view(-1, 16)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def loss(left_out: torch.Tensor | None) -> float:
        p = model.ngram_mix.ngram.distributions(inputs, left_out)[-1]  # type: ignore[union-attr]
        return -p.gather(-1, targets[..., None]).log().mean().item()

    first = run.metrics.read_text().splitlines()[0]
    assert outcome.summary.step == 1
    train_loss = float(first.split('"loss": ')[1].split(",")[0])
    assert abs(train_loss - loss(targets)) < abs(train_loss - loss(None)), (train_loss, loss(targets), loss(None))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("model.ngram_mix.order=8 size.context_length=4", "needs a context of 7 tokens"),
        ("model.ngram_mix.order=3 model.lora.rank=2", "only adapters are trained"),
    ],
)
def test_settings_that_do_not_go_with_counts_are_refused(overrides: str, expected: str) -> None:
    assert any(expected in mistake for mistake in mistakes(*overrides.split()))
