import math

import pytest
import torch

from nanolm.config.mask import CausalConfig, MaskConfig
from nanolm.config.model import AttentionKind, TransformerConfig
from nanolm.config.size import SizeConfig
from nanolm.model import masks
from nanolm.model.attention import ATTENTIONS, Attention
from nanolm.model.attention_backends import AttentionContext, dense, uniform
from nanolm.model.positions import alibi_slopes, rotary_table, rotate
from nanolm.registry import MASKS
from tests.helpers import causal_context

SIZES = {
    "default widths": SizeConfig(n_layers=1, n_heads=2, d_model=8, context_length=6),
    "separate widths": SizeConfig(n_layers=1, n_heads=3, d_model=8, context_length=6, d_key=4, d_value=5),
}


def attention_by_position(
    layer: Attention, x_TxC: torch.Tensor, mask_TxT: torch.Tensor, qk_norm: bool, slopes_H: torch.Tensor | None
) -> torch.Tensor:
    """Compute attention one head and one position at a time."""
    T = len(x_TxC)
    rows = layer.row_counts["query_key_value"]
    D, E = rows[0] // layer.n_heads, rows[-1] // layer.n_heads
    q, k, v = layer.query_key_value(x_TxC).split(rows, dim=-1)
    y_TxHE = torch.zeros(T, layer.n_heads * E)
    for head in range(layer.n_heads):
        q_h, k_h = q[:, head * D : (head + 1) * D], k[:, head * D : (head + 1) * D]
        v_h = v[:, head * E : (head + 1) * E]
        if qk_norm:
            q_h, k_h = (y / y.square().mean(-1, keepdim=True).add(torch.finfo(y.dtype).eps).sqrt() for y in (q_h, k_h))
            q_h, k_h = (rotate(y[None, None], rotary_table(T, D))[0, 0] for y in (q_h, k_h))
        for t in range(T):
            seen = mask_TxT[t].nonzero().flatten().tolist()
            slope = 0.0 if slopes_H is None else slopes_H[head]
            scores = torch.stack([q_h[t] @ k_h[s] / math.sqrt(D) - slope * abs(t - s) for s in seen])
            for weight, s in zip(scores.softmax(dim=0), seen, strict=True):
                y_TxHE[t, head * E : (head + 1) * E] += weight * v_h[s]
    return y_TxHE if layer.projection is None else layer.projection(y_TxHE)


def adjacent(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return (query - key).abs() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("output_projection", [True, False])
@pytest.mark.parametrize("mask", ["causal", "adjacent"])
@pytest.mark.parametrize(("qk_norm", "alibi"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("length", [1, 5, 6])
def test_attention_matches_the_formula(
    size: str, output_projection: bool, mask: str, qk_norm: bool, alibi: bool, length: int
) -> None:
    MASKS.register("adjacent")(adjacent)
    torch.manual_seed(0)
    config = CausalConfig() if mask == "causal" else MaskConfig(name=mask)
    layer = Attention(TransformerConfig(qk_norm=qk_norm, bias=True, output_projection=output_projection), SIZES[size])
    x_TxC = torch.randn(length, 8)
    positions = torch.arange(length)
    mask_TxT = MASKS[mask](positions[:, None], positions[None, :], config)
    rotary = rotary_table(length, 4) if qk_norm else None
    slopes = alibi_slopes(layer.n_heads) if alibi else None
    stored_TxT = None if mask == "causal" else masks.dense_mask(config, 6)
    context = AttentionContext(config, lambda: stored_TxT, 0, length, slopes, None, torch.device("cpu"))
    found = layer(x_TxC[None], dense(context), rotary)[0]
    torch.testing.assert_close(
        found, attention_by_position(layer, x_TxC, mask_TxT, qk_norm, slopes), atol=1e-5, rtol=1e-5
    )


def test_uniform_attention_averages_its_input() -> None:
    config = TransformerConfig(attention=AttentionKind.uniform, output_projection=False)
    layer = ATTENTIONS[config.attention](config, SIZES["default widths"])
    assert not list(layer.parameters())
    x_TxC = torch.randn(5, 8)
    expected = torch.stack([x_TxC[: t + 1].mean(dim=0) for t in range(5)])
    torch.testing.assert_close(layer(x_TxC[None], uniform(causal_context(5)))[0], expected)
