import math

import pytest
import torch

from nanolm.config import CausalConfig, MaskConfig, SizeConfig, TransformerConfig
from nanolm.model import masks
from nanolm.model.attention import Attention
from nanolm.model.positions import rotary_table, rotate
from nanolm.registry import MASKS

SIZE = SizeConfig(n_layers=1, n_heads=2, d_model=8, context_length=6)


def in_words(attention: Attention, x_TxC: torch.Tensor, visible: torch.Tensor, qk_norm: bool) -> torch.Tensor:
    """Attention position by position, as the formula reads."""
    T, C = x_TxC.shape
    D = C // attention.n_heads
    q, k, v = attention.query_key_value(x_TxC).split(C, dim=-1)
    gathered = torch.zeros(T, C)
    for head in range(attention.n_heads):
        columns = slice(head * D, (head + 1) * D)
        q_h, k_h = q[:, columns], k[:, columns]
        if qk_norm:
            q_h, k_h = (y / y.square().mean(-1, keepdim=True).add(torch.finfo(y.dtype).eps).sqrt() for y in (q_h, k_h))
            q_h, k_h = (rotate(y[None, None], rotary_table(6, D))[0, 0] for y in (q_h, k_h))
        for t in range(T):
            seen = visible[t].nonzero().flatten()
            weights = torch.softmax(torch.stack([q_h[t] @ k_h[s] / math.sqrt(D) for s in seen]), dim=0)
            gathered[t, columns] = sum(w * v[s, columns] for w, s in zip(weights, seen, strict=True))
    return attention.projection(gathered)


def neighbours(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return (query - key).abs() <= 1


@pytest.mark.parametrize("mask", ["causal", "neighbours"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("length", [1, 5, 6])
def test_attention_is_the_formula(mask: str, qk_norm: bool, length: int) -> None:
    MASKS.register("neighbours")(neighbours)
    torch.manual_seed(0)
    config = CausalConfig() if mask == "causal" else MaskConfig(name=mask)
    attention = Attention(TransformerConfig(qk_norm=qk_norm, bias=True), SIZE)
    x_TxC = torch.randn(length, 8)
    positions = torch.arange(length)
    visible = MASKS[mask](positions[:, None], positions[None, :], config)
    rotary = rotary_table(6, 4) if qk_norm else None
    found = attention(x_TxC[None], rotary, None if mask == "causal" else masks.dense(config, 6))[0]
    torch.testing.assert_close(found, in_words(attention, x_TxC, visible, qk_norm), atol=1e-5, rtol=1e-5)
