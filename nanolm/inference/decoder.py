"""Decoding of transformers: one token of every text at a time, from preallocated keys and values.

The computation is that of nanolm.model.transformer for a single query per row. It has half as many operations, which
decide the speed of small models: no masks are built for causal attention, and the modules are unpacked in advance. Rows
may have different positions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.inference.windows import window_start
from nanolm.model.attention import Attention
from nanolm.model.cache import Cache
from nanolm.model.layers import Block, UnweightedRMSNorm
from nanolm.model.transformer import Transformer

# A function of the residual stream x_BxC, or of the output of a norm.
Function = Callable[[torch.Tensor], torch.Tensor]


def supports(model: nn.Module) -> bool:
    """Return whether a model can be decoded token by token: no token may change what earlier positions compute."""
    if (
        not isinstance(model, Transformer)
        or model.is_uniform
        or model.has_sublayer_convolution
        or model.ngram_mix is not None
        or not len(model.blocks)
    ):
        return False
    final = model._final_positions
    return bool((final == torch.arange(len(final))).all())


class DecodedLogits:
    """The logits of a batch of growing texts.

    Keys and values of a text that exceeds the context are computed again after `stride` tokens have been dropped.

    Args:
        max_new_tokens: per text; with the length of the prompts, it limits the preallocated memory.
    """

    def __init__(self, model: Transformer, context_length: int, stride: int, max_new_tokens: int) -> None:
        self._model = model
        self._context_length, self._stride = context_length, stride
        self._max_new_tokens = max_new_tokens
        self._layers = [_unpack(block, model.mask_of_layer[n]) for n, block in enumerate(model.blocks)]  # type: ignore[arg-type]
        self._device = model.token_embedding.weight.device
        # Per layer: BxGxSxD and BxGxSxE, of which S is the capacity.
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._starts: list[int] = []

    def next_logits(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return logits_BxV, fp32, of texts that have grown by one token each since the last call."""
        starts = [window_start(len(text), self._context_length, self._stride) for text in texts]
        if not self._keys:
            self._starts = starts
            return self._prefill(texts, range(len(texts)))
        moved = [row for row, (old, new) in enumerate(zip(self._starts, starts, strict=True)) if old != new]
        self._starts = starts
        if len(moved) == len(texts):
            return self._prefill(texts, moved)
        logits_BxV = self._step(
            [text[start:] for text, start in zip(texts, starts, strict=True)],
            # Rows that have moved are computed below.
            [min(len(text) - start, self._context_length) - 1 for text, start in zip(texts, starts, strict=True)],
        )
        if moved:
            logits_BxV[moved] = self._prefill(texts, moved)
        return logits_BxV

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with some of the texts, in the given order."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]
        self._starts = [self._starts[row] for row in rows]

    def _prefill(self, texts: Sequence[Sequence[int]], rows: Sequence[int]) -> torch.Tensor:
        """Compute the windows of some texts in one pass, equal ones once, and store their keys and values."""
        windows = [tuple(texts[row][self._starts[row] :]) for row in rows]
        distinct = list(dict.fromkeys(windows))
        index_of = {window: index for index, window in enumerate(distinct)}
        lengths = [len(window) for window in distinct]
        longest = max(lengths)
        # Positions after the end of a text change nothing before it, and are overwritten or hidden later.
        tokens = torch.tensor([[*window, *[0] * (longest - len(window))] for window in distinct], device=self._device)
        cache = Cache(len(self._layers), longest, torch.arange(longest + 1))
        x_UxTxC = self._model.to_residual(tokens, cache=cache)
        x_UxC = x_UxTxC[range(len(distinct)), [length - 1 for length in lengths]]
        logits_UxV = self._model.unembed(x_UxC[:, None])[:, 0].float()
        source = torch.tensor([index_of[window] for window in windows], device=self._device)
        if not self._keys:
            capacity = min(self._context_length, max(map(len, texts)) + self._max_new_tokens)
            for layer in cache.layers:
                keys, values = layer.contents()
                # Not empty: the weight 0 of a hidden key times NaN would be NaN.
                self._keys.append(keys.new_zeros(len(texts), keys.size(1), capacity, keys.size(3)))
                self._values.append(values.new_zeros(len(texts), values.size(1), capacity, values.size(3)))
        target = torch.tensor(list(rows), device=self._device)
        for layer, all_keys, all_values in zip(cache.layers, self._keys, self._values, strict=True):
            keys, values = layer.contents()
            all_keys[target, :, :longest] = keys[source]
            all_values[target, :, :longest] = values[source]
        return logits_UxV[source]

    def _step(self, windows: Sequence[Sequence[int]], positions: Sequence[int]) -> torch.Tensor:
        """Compute the next logits_BxV of rows whose last tokens are at the given positions of their windows."""
        model = self._model
        is_uniform = len(set(positions)) == 1
        at = slice(positions[0], positions[0] + 1)
        positions_B = torch.tensor(positions, device=self._device)
        length = max(positions) + 1
        if model.embedding_convolution is None:
            last_B = torch.tensor([window[-1] for window in windows], device=self._device)
            x_BxC = F.embedding(last_B, model.token_embedding.weight)
        else:
            x_BxC = model.embedding_convolution.last(model.token_embedding, windows)
        if model.position_embedding is not None:
            x_BxC = x_BxC + model.position_embedding.weight[at if is_uniform else positions_B]
        if model.sinusoids_TxC is not None:
            x_BxC = x_BxC + model.sinusoids_TxC[at if is_uniform else positions_B]
        if not isinstance(model.embedding_norm, nn.Identity):
            x_BxC = model.embedding_norm(x_BxC)
        rotary = None
        if model.rotary_2xTxR is not None:
            # Broadcast over heads: 2xBx1xR.
            rotary = model.rotary_2xTxR[:, at if is_uniform else positions_B][:, :, None].to(x_BxC.dtype)
        biases = [self._bias(index, positions_B, length, is_uniform) for index in range(len(model.masks))]
        rows = None if is_uniform else torch.arange(len(windows), device=self._device)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            q_BxHxD, k_BxGxD, v_BxGxE = layer.project(x_BxC, rotary)
            if rows is None:
                keys[:, :, positions[0]] = k_BxGxD
                values[:, :, positions[0]] = v_BxGxE
            else:
                keys[rows, :, positions_B] = k_BxGxD
                values[rows, :, positions_B] = v_BxGxE
            x_BxC = layer.finish(x_BxC, q_BxHxD, keys[:, :, :length], values[:, :, :length], biases[layer.mask])
        return model.unembed(x_BxC[:, None])[:, 0].float()

    def _bias(self, index: int, positions_B: torch.Tensor, length: int, is_uniform: bool) -> torch.Tensor | None:
        """Return what is added to the scores, BxHxS or Bx1xS; or whether a key is visible; None if all are."""
        model = self._model
        mask_TxT = model.mask_table(index)
        if mask_TxT is None and is_uniform and model.slopes_H is None:
            return None
        keys_S = torch.arange(length, device=self._device)
        visible_Bx1xS = (keys_S <= positions_B[:, None] if mask_TxT is None else mask_TxT[positions_B, :length])[
            :, None
        ]
        if model.slopes_H is None:
            return visible_Bx1xS
        distance_Bx1xS = (positions_B[:, None] - keys_S).abs()[:, None]
        return (-model.slopes_H[:, None] * distance_Bx1xS).masked_fill(~visible_Bx1xS, -torch.inf)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A block, unpacked.

    Attributes:
        mask: index of its mask.
        norms: before or after attention and the feed-forward network; None for an identity.
    """

    mask: int
    attention: Attention
    is_pre_norm: bool
    is_residual: bool
    attention_norm: Function | None
    feed_forward_norm: Function | None
    feed_forward: Function | None

    def project(
        self, x_BxC: torch.Tensor, rotary_2xBx1xR: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the query, key and value of each row: BxHxD, BxGxD, BxGxE."""
        attention = self.attention
        if self.is_pre_norm and self.attention_norm is not None:
            x_BxC = self.attention_norm(x_BxC)
        stacked = attention.query_key_value(x_BxC)
        n_queries, n_keys, _ = attention.row_counts["query_key_value"]
        # Queries and keys are normalized and rotated together.
        n_heads, n_kv_heads = attention.n_heads, attention.n_kv_heads
        both = stacked[:, : n_queries + n_keys].unflatten(1, (n_heads + n_kv_heads, -1))
        v_BxGxE = stacked[:, n_queries + n_keys :].unflatten(1, (n_kv_heads, -1))
        if attention.heads.has_norm:
            both = _rms_norm(both, attention.heads.eps)
        if rotary_2xBx1xR is not None:
            cos, sin = rotary_2xBx1xR
            a, b = both.chunk(2, dim=-1)
            both = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
        q_BxHxD, k_BxGxD = both.split((n_heads, n_kv_heads), dim=1)
        return q_BxHxD, k_BxGxD, v_BxGxE

    def finish(
        self,
        x_BxC: torch.Tensor,
        q_BxHxD: torch.Tensor,
        k_BxGxSxD: torch.Tensor,
        v_BxGxSxE: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the output of the block."""
        attention = self.attention
        # The heads that share keys and values are the queries of one head.
        q_BxGxHxD = q_BxHxD.unflatten(1, (attention.n_kv_heads, -1))
        if bias is not None:
            bias = bias[:, None] if bias.size(1) == 1 else bias.unflatten(1, (attention.n_kv_heads, -1))
            bias = bias if bias.dtype is torch.bool else bias.to(q_BxHxD.dtype)
        y = F.scaled_dot_product_attention(q_BxGxHxD, k_BxGxSxD, v_BxGxSxE, attn_mask=bias).flatten(1)
        if attention.projection is not None:
            y = attention.projection(y)
        x_BxC = self._add(x_BxC, y, self.attention_norm)
        if self.feed_forward is None:
            return x_BxC
        norm = self.feed_forward_norm
        hidden = norm(x_BxC) if self.is_pre_norm and norm is not None else x_BxC
        return self._add(x_BxC, self.feed_forward(hidden), norm)

    def _add(self, x_BxC: torch.Tensor, y_BxC: torch.Tensor, norm: Function | None) -> torch.Tensor:
        if self.is_residual:
            y_BxC = x_BxC + y_BxC
        return y_BxC if self.is_pre_norm or norm is None else norm(y_BxC)


def _rms_norm(x: torch.Tensor, eps: float | None) -> torch.Tensor:
    """Normalize the last dimension to unit mean square, as F.rms_norm does with twice as many operations on a CPU."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return x * (x * x).mean(dim=-1, keepdim=True).add_(eps).rsqrt_()


def _norm(module: nn.Module | None) -> Function | None:
    """Return the fastest function for a norm; None for an identity."""
    if module is None or isinstance(module, nn.Identity):
        return None
    if isinstance(module, UnweightedRMSNorm):
        return functools.partial(_rms_norm, eps=module.eps)
    return module


def _unpack(block: Block, mask: int) -> _Layer:
    assert isinstance(block.attention, Attention)
    return _Layer(
        mask=mask,
        attention=block.attention,
        is_pre_norm=block.is_pre_norm,
        is_residual=block.is_residual,
        attention_norm=_norm(block.attention_norm),
        feed_forward_norm=_norm(block.feed_forward_norm),
        feed_forward=block.feed_forward,
    )
