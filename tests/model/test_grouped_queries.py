"""Grouped-query attention: heads of keys and values that several query heads share (size.n_kv_heads)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nanolm.config.run import Config
from nanolm.inference.load import load_run
from nanolm.model import count, memory_estimate
from nanolm.model.build import build, count_parameters
from nanolm.model.sampling import next_logits_fn, sample
from nanolm.model.transformer import Transformer
from nanolm.report.attention_maps import text_map
from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.newton_schulz import orthogonalize
from tests.helpers import (
    make_config,
    make_optimizer_config,
    mistakes,
    mostly_slow,
    randomize_weights,
    set_random_gradients,
)
from tests.run_fixtures import make_run

VOCAB_SIZE, LENGTH, HEADS = 11, 12, 4
KV_HEADS = [1, 2, 4]
MODELS = ["gpt", "gpt2", "llama"]
PAIRS = [(model, n_kv_heads) for model in MODELS for n_kv_heads in KV_HEADS]
MASKS = ("mask=causal", "mask=banded_causal mask.window=3", "mask=prefix mask.prefix_length=5", "mask=document")
# Attention of bounded reach only has the blocked backend.
CASES = [
    (n_kv_heads, mask, backend)
    for n_kv_heads in (1, 2)
    for mask in MASKS
    for backend in ("dense", "sdpa", "blocked")
    if backend != "blocked" or "banded" in mask
]

MORE = ["seed=1", "size.d_key=6", "size.d_key=6 size.d_value=10", "model.attention=uniform model.positions=none"]


def config_of(*overrides: str) -> Config:
    return make_config(
        "size.n_layers=2", f"size.n_heads={HEADS}", "size.d_model=32", f"size.context_length={LENGTH}", *overrides
    )


def built(*overrides: str) -> Transformer:
    model = build(config_of(*overrides), VOCAB_SIZE)
    assert isinstance(model, Transformer)
    randomize_weights(model)
    return model


def with_repeated_heads(grouped: nn.Module, n_kv_heads: int, *overrides: str) -> Transformer:
    """Build the model without groups that computes the same: the weights of shared heads are repeated."""
    state = grouped.state_dict()
    for name, weight in state.items():
        if "query_key_value" not in name:
            continue
        width = 32 // HEADS
        q, k, v = weight.split([HEADS * width, n_kv_heads * width, n_kv_heads * width])
        k, v = (
            part.unflatten(0, (n_kv_heads, width)).repeat_interleave(HEADS // n_kv_heads, dim=0).flatten(0, 1)
            for part in (k, v)
        )
        state[name] = torch.cat([q, k, v])
    model = built(*overrides)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize(
    ("n_kv_heads", "mask", "backend"),
    mostly_slow(CASES, quick=[(2, "mask=causal", "sdpa"), (2, "mask=banded_causal mask.window=3", "blocked")]),
)
def test_grouped_heads_equal_repeated_heads(n_kv_heads: int, mask: str, backend: str) -> None:
    """Logits and gradients, in every backend, compared with dense attention over repeated heads."""
    overrides = ("model=llama", *mask.split(), "mask.within_documents=true" if "document" in mask else "seed=1")
    grouped = built(*overrides, f"size.n_kv_heads={n_kv_heads}", f"trainer.attention_backend={backend}")
    reference = with_repeated_heads(grouped, n_kv_heads, *overrides, "trainer.attention_backend=dense")
    tokens = torch.randint(VOCAB_SIZE, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(LENGTH) // 5).expand(3, -1) if "document" in mask else None
    results = []
    for model in (reference, grouped):
        logits = model(tokens) if documents is None else model(tokens, documents)
        logits.square().mean().backward()
        results.append([logits, model.token_embedding.weight.grad, model.blocks[0].attention.projection.weight.grad])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("model", "n_kv_heads"), mostly_slow(PAIRS, [("llama", 2)]))
def test_generation_with_a_cache_equals_recomputation(model: str, n_kv_heads: int) -> None:
    grouped = built(f"model={model}", f"size.n_kv_heads={n_kv_heads}").eval()
    tokens = torch.randint(VOCAB_SIZE, (2 * LENGTH + 3,), generator=torch.Generator().manual_seed(0))
    cached, uncached = (next_logits_fn(grouped, LENGTH, 3, use_cache) for use_cache in (True, False))
    with torch.no_grad():
        for length in range(2, len(tokens) + 1):
            torch.testing.assert_close(cached(tokens[:length]), uncached(tokens[:length]), atol=1e-5, rtol=1e-5)
    texts = [
        sample(grouped, tokens[:2], 30, context_length=LENGTH, temperature=0, use_cache=cache).tolist()
        for cache in (True, False)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("more", "n_kv_heads"), mostly_slow([(more, n) for more in MORE for n in KV_HEADS], [(MORE[0], 1), (MORE[2], 2)])
)
def test_key_value_cache_has_the_counted_size(more: str, n_kv_heads: int) -> None:
    config = config_of("model=llama", f"size.n_kv_heads={n_kv_heads}", *more.split())
    model = build(config, VOCAB_SIZE)
    assert isinstance(model, Transformer)
    cache = model.make_cache()
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    tensors = [tensor for layer in cache.layers for tensor in (layer._keys, layer._values) if tensor is not None]
    assert memory_estimate.cache_memory(config, VOCAB_SIZE).amount == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(("model", "n_kv_heads"), mostly_slow(PAIRS, [("llama", 2)]))
def test_counted_parameters_and_flops_are_those_of_the_model(model: str, n_kv_heads: int) -> None:
    config = config_of(f"model={model}", f"size.n_kv_heads={n_kv_heads}")
    grouped = build(config, VOCAB_SIZE)
    assert count.total(count.parameters(config, VOCAB_SIZE)) == count_parameters(grouped)
    tokens = torch.zeros(2, LENGTH, dtype=torch.int64)
    math_kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with math_kernel, FlopCounterMode(display=False) as counter:
        grouped(tokens)
    assert counter.get_total_flops() == tokens.numel() * count.total(count.flops_per_token(config, VOCAB_SIZE))


@pytest.mark.parametrize("n_kv_heads", mostly_slow(KV_HEADS, [2]))
def test_muon_orthogonalizes_queries_keys_and_values_separately(n_kv_heads: int) -> None:
    model = built("model=llama", f"size.n_kv_heads={n_kv_heads}")
    overrides = ("weight_decay=0", "lr=0.1", "split_heads=false")
    config = make_optimizer_config("muon", *overrides, "newton_schulz=polar_express", "newton_schulz_steps=3")
    optimizer = optimizers.build(config, model)
    weight = model.blocks[0].attention.query_key_value.weight
    before = weight.detach().clone()
    set_random_gradients(model, 0)
    optimizer.step()
    assert weight.grad is not None
    rows = [32, 8 * n_kv_heads, 8 * n_kv_heads]
    moved = (before - weight.detach()) / (0.1 * 0.2)
    for part, gradient in zip(moved.split(rows), weight.grad.split(rows), strict=True):
        expected = (
            orthogonalize(gradient[None], config.newton_schulz, config.newton_schulz_steps)[0] * max(part.shape) ** 0.5
        )
        torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-3)


def test_attention_maps_have_a_map_per_query_head(text: Path, tmp_path: Path) -> None:
    overrides = ("model=llama", "size.n_heads=4", "size.n_kv_heads=2", "trainer.max_steps=2")
    loaded = load_run(str(make_run(tmp_path / "run", text, *overrides)), device="cpu")
    for layer in text_map(loaded, "12 and 13").layers:
        assert layer.weights_HxTxS.shape == (4, 9, 9)
        np.testing.assert_allclose(layer.weights_HxTxS.sum(-1), 1, rtol=1e-5)


def test_indivisible_heads_are_a_mistake_with_the_possible_values() -> None:
    for n_kv_heads in (5, 8, 24):
        overrides = ("size.n_heads=12", "size.d_model=96", f"size.n_kv_heads={n_kv_heads}")
        assert mistakes(*overrides) == [f"size.n_heads (12) is not divisible by size.n_kv_heads ({n_kv_heads})"]
    assert not mistakes("size.n_heads=12", "size.d_model=96", "size.n_kv_heads=6")
    assert mistakes("size.n_kv_heads=0") == ["size.n_kv_heads is 0, and must be at least 1"]
