import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from nanolm.baselines.entropy import bigram_loss, unigram_loss
from nanolm.config.model import NgramConfig, Smoothing
from nanolm.config.tokenizer import CharConfig
from nanolm.config.trainer import Precision
from nanolm.data.tokenizers import CharTokenizer
from nanolm.data.tokens.stream import Stream
from nanolm.model.build import FittedModel, build, count_parameters
from nanolm.model.ngram import Ngram
from nanolm.training.precision import NumberFormat
from nanolm.training.validation import exact_loss
from tests.helpers import make_config

CPU = torch.device("cpu")


def fitted(text: list[int] | np.ndarray, vocab_size: int, **settings: object) -> Ngram:
    model = Ngram(vocab_size, NgramConfig(**settings))  # type: ignore[arg-type]
    model.fit(np.asarray(text, dtype=np.uint16))
    return model


def expected_distribution(text: list[int], vocab_size: int, config: NgramConfig, context: list[int]) -> list[float]:
    """Compute the distribution after a context from the formulas."""
    raw: Counter[tuple[int, ...]] = Counter()
    for length in range(1, config.order + 1):
        raw.update(tuple(text[at : at + length]) for at in range(len(text) - length + 1))
    # The number of distinct tokens that precede each n-gram.
    preceded = Counter(ngram[1:] for ngram in raw if len(ngram) > 1)
    vocabulary = range(vocab_size)
    h = tuple(context[max(0, len(context) - config.order + 1) :])
    if config.smoothing is Smoothing.add_k:
        total = sum(raw[(*h, w)] for w in vocabulary)
        return [(raw[(*h, w)] + config.add_k) / (total + config.add_k * vocab_size) for w in vocabulary]

    def kneser_ney(h: tuple[int, ...], counts: Counter[tuple[int, ...]]) -> list[float]:
        shorter = kneser_ney(h[1:], preceded) if h else [1 / vocab_size] * vocab_size
        c = [counts[(*h, w)] for w in vocabulary]
        if not sum(c):
            return shorter
        of_length = [count for ngram, count in counts.items() if len(ngram) == len(h) + 1]
        n1, n2 = of_length.count(1), of_length.count(2)
        discount = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
        subtracted = sum(discount for count in c if count)
        return [(max(c[w] - discount, 0) + subtracted * shorter[w]) / sum(c) for w in vocabulary]

    return kneser_ney(h, raw)


texts = st.integers(1, 4).flatmap(
    lambda vocab_size: st.tuples(
        st.just(vocab_size),
        st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=30),
        st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=7),
    )
)


@given(texts, st.integers(1, 5), st.sampled_from(Smoothing), st.floats(0.01, 10))
def test_distribution_matches_the_formula_and_sums_to_one(
    drawn: tuple[int, list[int], list[int]], order: int, smoothing: Smoothing, k: float
) -> None:
    vocab_size, text, row = drawn
    config = NgramConfig(order=order, smoothing=smoothing, add_k=k)
    model = Ngram(vocab_size, config)
    model.fit(np.array(text))
    tokens_BxT = torch.tensor([row, row[::-1]])
    found_BxTxV = model(tokens_BxT).exp()
    expected = [
        [expected_distribution(text, vocab_size, config, tokens[: at + 1]) for at in range(len(row))]
        for tokens in tokens_BxT.tolist()
    ]
    assert_close(found_BxTxV, torch.tensor(expected), rtol=1e-5, atol=1e-7)
    assert_close(found_BxTxV.sum(-1), torch.ones(2, len(row)), rtol=0, atol=1e-5)
    assert found_BxTxV.min() > 0
    for token in range(vocab_size):
        targets_BxT = torch.full_like(tokens_BxT, token)
        assert_close(model.target_log_probabilities(tokens_BxT, targets_BxT).exp(), found_BxTxV[..., token])


@pytest.mark.parametrize("smoothing", Smoothing)
def test_first_positions_equal_models_of_lower_order(smoothing: Smoothing) -> None:
    text = np.random.default_rng(0).integers(0, 5, 400)
    row = torch.from_numpy(text[None, :9].copy())
    found = fitted(text, 5, order=4, smoothing=smoothing)(row)
    for at in range(3):
        assert_close(found[:, at], fitted(text, 5, order=at + 2, smoothing=smoothing)(row)[:, at])


def test_probabilities_stay_positive_for_a_constant_text() -> None:
    model = fitted(np.zeros(1_000_000), 3, order=5)
    found = model(torch.zeros((1, 8), dtype=torch.int64))
    assert found.isfinite().all()
    assert_close(found.exp().sum(-1), torch.ones(1, 8))


def test_ngram_is_uniform_before_fitting() -> None:
    model = build(make_config("model=ngram"), 7)
    assert isinstance(model, FittedModel)
    assert count_parameters(model) == 0
    tokens = torch.tensor([[1, 2, 3]])
    assert_close(model(tokens), torch.full((1, 3, 7), -math.log(7)))


def test_table_size_depends_on_the_text_only() -> None:
    text = np.array([0, 50_256, 1, 50_256, 1, 7], dtype=np.uint16)
    model = fitted(text, 50_257, order=5, smoothing=Smoothing.add_k, add_k=0.5)
    assert len(model.keys) == 4 + 4 + 4 + 3 + 2
    found = model(torch.tensor([[50_256, 1, 50_256, 1]]))[0, -1].exp()
    assert found[7] == pytest.approx(1.5 / (1 + 0.5 * 50_257))
    assert found.sum().item() == pytest.approx(1, rel=1e-4)


def test_loading_resizes_the_table(tmp_path: Path) -> None:
    text = np.random.default_rng(0).integers(0, 6, 500)
    model = fitted(text, 6, order=4)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    assert set(safetensors.torch.load_file(tmp_path / "model.safetensors")) == {"keys", "counts"}
    for other in (Ngram(6, NgramConfig(order=4)), fitted([1, 2], 6, order=4)):
        safetensors.torch.load_model(other, tmp_path / "model.safetensors")
        tokens = torch.from_numpy(text[None, :50].copy())
        assert torch.equal(other(tokens), model(tokens))
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda saved: saved.pop("counts"), r'Missing key\(s\) in state_dict: "counts"'),
        (lambda saved: saved.update(counts=saved["counts"][1:]), "keys and counts do not match"),
        (lambda saved: saved.update(counts=saved["counts"] - 1), "a count is less than 1"),
        (lambda saved: saved.update(keys=saved["keys"].flip(0)), "are not the n-grams of order 3 over 6 tokens"),
        (lambda saved: saved.update(keys=saved["keys"] + 10_000), "are not the n-grams of order 3 over 6 tokens"),
        (lambda saved: saved.update(keys=saved["keys"].float()), "one-dimensional int64 tensors"),
        (lambda saved: saved.update({n: v[1:] for n, v in saved.items()}), "n-gram"),
        (lambda saved: saved.update(fitted([1, 2, 3, 4], 6, order=4).state_dict()), "not the n-grams of order 3"),
    ],
)
def test_loading_rejects_an_invalid_table(change, expected: str) -> None:  # type: ignore[no-untyped-def]
    text = np.random.default_rng(0).integers(0, 6, 500)
    saved = dict(fitted(text, 6, order=3).state_dict())
    change(saved)
    with pytest.raises(RuntimeError, match=expected):
        Ngram(6, NgramConfig(order=3)).load_state_dict(saved)


def test_losses_on_tiny_shakespeare(shakespeare: Path) -> None:
    text = shakespeare.read_text(encoding="utf-8")
    tokens = CharTokenizer.fit([text], CharConfig()).encode(text)
    train, val = tokens[:1_003_854], tokens[1_003_854:]

    def loss(**settings: object) -> float:
        model = fitted(train, 65, **settings)
        where = {"device": CPU, "number_format": NumberFormat(Precision.fp32, CPU)}
        return exact_loss(model, Stream(val, scored_bytes=1), context_length=64, stride=64, vocab_size=65, **where)  # type: ignore[arg-type]

    # A window starts with the token before its first target, so that a bigram scores every target with its context.
    assert loss(order=2, smoothing=Smoothing.add_k) == pytest.approx(bigram_loss(train, val, 65), abs=1e-6)
    assert loss(order=1, smoothing=Smoothing.add_k) == pytest.approx(unigram_loss(train, val, 65), abs=1e-6)
    found = [loss(order=order) for order in range(1, 6)]
    assert found == pytest.approx([3.3473, 2.4844, 2.0517, 1.7458, 1.6020], abs=5e-4)
