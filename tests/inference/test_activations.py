"""Activations of a forward pass, compared with the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nanolm
from nanolm.config.trainer import AttentionBackend
from nanolm.errors import SettingsError, TokenizerError
from nanolm.inference.activations import record
from nanolm.model.build import build
from nanolm.model.transformer import Transformer
from tests.helpers import make_config, mostly_slow, randomize_weights

T, V = 12, 30
SIZE = ("size.n_layers=3", "size.n_heads=4", "size.d_model=16", "size.context_length=16")
VARIANTS = {
    "gpt": ("model=gpt",),
    "gpt2": ("model=gpt2",),
    "llama_grouped": ("model=llama", "size.n_kv_heads=2"),
    "alibi": ("model=gpt", "model.positions=alibi"),
    "window": ("model=gpt", "mask=banded_causal", "mask.window=3", "mask.pattern=SL"),
    "noncausal": ("model=gpt", "mask=banded", "mask.window=3"),
    "post_norm": ("model=gpt2", "model.norm_placement=post"),
    "softcap": ("model=gpt", "model.logit_softcap=5"),
    "no_feed_forward": ("model=gpt2", "model.feed_forward=none"),
}


def make_model(*overrides: str) -> tuple[Transformer, torch.Tensor]:
    """Build a model with random weights, and tokens for it."""
    model = build(make_config(*SIZE, *overrides), V)
    assert isinstance(model, Transformer)
    randomize_weights(model)
    return model.eval(), torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, quick=("gpt", "llama_grouped", "window")))
@pytest.mark.parametrize("backend", mostly_slow(AttentionBackend, quick=(AttentionBackend.auto,)))
def test_activations_reproduce_the_model(variant: str, backend: AttentionBackend) -> None:
    model, tokens_BxT = make_model(*VARIANTS[variant])
    model.attention_backend = AttentionBackend.dense
    with torch.no_grad():
        expected = model(tokens_BxT)
    model.attention_backend = backend
    found, layers = record(model, tokens_BxT)
    assert model.attention_backend is backend
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert layers == [0, 1, 2]
    # Exactly: the same operations on the same numbers.
    assert torch.equal(found["logits"], expected)
    assert torch.equal(found["blocks.2.logits"], expected)
    if variant == "post_norm":
        return
    x_BxTxC = found["embedding"]
    for layer in layers:
        for part in ("attention", "feed_forward"):
            if (output := found.get(f"blocks.{layer}.{part}")) is not None:
                x_BxTxC = x_BxTxC + output
        assert torch.equal(x_BxTxC, found[f"blocks.{layer}"])
    with torch.no_grad():
        assert torch.equal(model.unembed(x_BxTxC), expected)


@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, quick=("llama_grouped", "alibi")))
def test_attention_weights_are_the_softmax_of_the_model(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens_BxT = make_model(*VARIANTS[variant])
    softmaxes = []
    softmax = torch.Tensor.softmax

    def keep(scores: torch.Tensor, dim: int) -> torch.Tensor:
        softmaxes.append(softmax(scores, dim=dim))
        return softmaxes[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", keep)
        found, layers = record(model, tokens_BxT)
    for layer in layers:
        weights_BxHxTxS = found[f"blocks.{layer}.attention.weights"]
        assert weights_BxHxTxS.shape == (2, 4, T, T)
        # Each layer calls softmax for the recorded weights, and again for its output.
        assert torch.equal(weights_BxHxTxS, softmaxes[2 * layer])
        assert torch.equal(weights_BxHxTxS, softmaxes[2 * layer + 1])


def test_attention_output_is_its_weights_times_values() -> None:
    model, tokens_BxT = make_model("model=llama", "size.n_kv_heads=2")
    found, _ = record(model, tokens_BxT, [1])
    block = model.blocks[1]
    normed = block.attention_norm(found_residual(model, tokens_BxT))
    values = block.attention.query_key_value(normed).split(block.attention.row_counts["query_key_value"], dim=-1)[2]
    values_BxHxTxE = values.unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(2, dim=1)
    mixed = (found["blocks.1.attention.weights"] @ values_BxHxTxE).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attention.projection(mixed), found["blocks.1.attention"])


def found_residual(model: Transformer, tokens_BxT: torch.Tensor) -> torch.Tensor:
    """Return the residual stream before layer 1."""
    return record(model, tokens_BxT, [0])[0]["blocks.0"]


def test_names_and_shapes_are_those_of_the_documentation(gpt: nanolm.Run) -> None:
    found = gpt.activations("3 and 4", layers=[1])
    size, vocab_size = gpt.config.size, gpt.tokenizer.vocab_size
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "embedding": (7, size.d_model),
        "blocks.1.attention.weights": (size.n_heads, 7, 7),
        "blocks.1.attention": (7, size.d_model),
        "blocks.1.feed_forward": (7, size.d_model),
        "blocks.1": (7, size.d_model),
        "blocks.1.logits": (7, vocab_size),
        "logits": (7, vocab_size),
    }
    assert found.tokens == list("3 and 4")
    assert found.layers == [1]
    assert "blocks.1.attention.weights: 2x7x7" in repr(found)
    with pytest.raises(KeyError, match="there are embedding"):
        _ = found["blocks.0"]


def test_model_without_attention_has_logits_only(pair: Path) -> None:
    run = nanolm.load(pair / "bigram", device="cpu")
    found = run.activations("3 and")
    assert list(found) == ["logits"]
    assert isinstance(run.model, nn.Module)
    table = run.model.get_parameter("logits.weight")
    assert torch.equal(found["logits"], F.embedding(found.ids, table))
    with pytest.raises(SettingsError, match="no layer 0"):
        run.activations("3 and", layers=[0])


@pytest.mark.parametrize(
    ("prompt", "layers", "error"),
    [
        ("", None, SettingsError),
        ("3" * 99, None, SettingsError),
        ("ß", None, TokenizerError),
        ("3", [2], SettingsError),
    ],
)
def test_wrong_input_is_refused(gpt: nanolm.Run, prompt: str, layers: list[int] | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        gpt.activations(prompt, layers=layers)
    with pytest.raises(SettingsError, match="no layer -1"):
        gpt.activations("3", layers=[-1])
