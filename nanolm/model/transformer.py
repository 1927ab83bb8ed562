"""The one decoder that every GPT here, and every rung below it, is a setting of."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.mask import CausalConfig, MaskConfig, layers_by_mask
from nanolm.config.model import AttentionKind, Positions, TransformerConfig
from nanolm.config.run import Config
from nanolm.model import masks
from nanolm.model.attention_backends import BACKENDS, AttentionContext, AttentionFn, choose_backend, uniform
from nanolm.model.cache import Cache, settled_positions
from nanolm.model.initialization import INITIALIZATIONS
from nanolm.model.layers import Block, norm
from nanolm.model.positions import alibi_slopes, rotary_table, sinusoidal_table
from nanolm.registry import MODELS


@MODELS.register("transformer")
def transformer(config: Config, vocab_size: int) -> Transformer:
    """The transformer that the settings describe, its weights drawn from torch's global generator."""
    assert isinstance(config.model, TransformerConfig)
    model = Transformer(config, vocab_size)
    # There are no values to draw on the meta device, where torch takes milliseconds for each tensor.
    if not model.token_embedding.weight.is_meta:
        INITIALIZATIONS[config.model.initialization](model)
    return model


class Transformer(nn.Module):
    """Tokens to logits.

    `model=gpt2` is Radford et al. 2019: learned positions, LayerNorm before each part, tanh-GELU, tied head.
    `model=gpt` is today's recipe: rotary positions, RMSNorm (also right after the embedding), QK-norm, ReLU^2, no
    biases, projections that begin at zero.
    """

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        assert isinstance(config.model, TransformerConfig)
        settings, size = config.model, config.size
        length, width = size.context_length, size.d_model
        self.context_length = length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(length, width) if settings.positions is Positions.learned else None
        self.sinusoids_TxC: torch.Tensor | None
        self.rotary_2xTxP: torch.Tensor | None
        self.slopes_H: torch.Tensor | None
        for name, positions, table in (
            ("sinusoids_TxC", Positions.sinusoidal, lambda: sinusoidal_table(length, width)),
            ("rotary_2xTxP", Positions.rotary, lambda: rotary_table(length, size.key_width)),
            ("slopes_H", Positions.alibi, lambda: alibi_slopes(size.n_heads)),
        ):
            self.register_buffer(name, table() if settings.positions is positions else None, persistent=False)
        self.embedding_norm = norm(settings, width) if settings.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(settings.dropout_of(settings.embedding_dropout))
        self.blocks = nn.ModuleList(Block(settings, size) for _ in range(size.n_layers))
        self._lay_masks(config)
        self.attention_backend = config.trainer.attention_backend
        self.is_uniform = settings.attention is AttentionKind.uniform
        self.final_norm = norm(settings, width) if settings.has_final_norm else nn.Identity()
        # A tied head is the embedding itself: one parameter, saved and decayed once.
        self.head = None if settings.tie_embeddings else nn.Linear(width, vocab_size, bias=settings.head_bias)
        # An untied head has its bias itself.
        has_own_bias = settings.tie_embeddings and settings.head_bias
        self.head_bias = nn.Parameter(torch.zeros(vocab_size)) if has_own_bias else None
        self.logit_softcap = settings.logit_softcap

    def forward(
        self, tokens_BxT: torch.Tensor, documents_BxT: torch.Tensor | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Logits_BxTxV of the token that follows each position.

        Args:
            tokens_BxT: at most context_length of them. With a cache, the tokens from cache.length on.
            documents_BxT: the number of the document that each token lies in, for masks that stay within documents;
                None: all tokens are of one document.
            cache: of a text that grows; it takes up these tokens.
        """
        start = 0 if cache is None else cache.length
        end = start + tokens_BxT.size(1)
        assert self.context_length >= end, f"{end} tokens, and a context of {self.context_length}"
        x_BxTxC = self.token_embedding(tokens_BxT)
        if self.position_embedding is not None:
            x_BxTxC = x_BxTxC + self.position_embedding.weight[start:end]
        if self.sinusoids_TxC is not None:
            x_BxTxC = x_BxTxC + self.sinusoids_TxC[start:end]
        x_BxTxC = self.dropout(self.embedding_norm(x_BxTxC))
        rotary_2xTxP = None if self.rotary_2xTxP is None else self.rotary_2xTxP[:, start:end]
        gathers = [
            self._gather(index, start, end, documents_BxT, cache is not None) for index in range(len(self.masks))
        ]
        for layer, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layers[layer]
            x_BxTxC = block(x_BxTxC, gathers[self.mask_of_layer[layer]], rotary_2xTxP, layer_cache)
        if cache is not None:
            cache.grow(end)
        x_BxTxC = self.final_norm(x_BxTxC)
        if self.head is None:
            logits_BxTxV = F.linear(x_BxTxC, self.token_embedding.weight, self.head_bias)
        else:
            logits_BxTxV = self.head(x_BxTxC)
        if self.logit_softcap is None:
            return logits_BxTxV
        # In half precision the rounding of tanh would bias the loss.
        return self.logit_softcap * torch.tanh(logits_BxTxV.float() / self.logit_softcap)

    def make_cache(self) -> Cache:
        """An empty cache for one batch of texts that grow."""
        return Cache(len(self.blocks), self.context_length, self._settled)

    @functools.cached_property
    def _settled(self) -> torch.Tensor:
        tables = [self._table(index) for index in self.mask_of_layer]
        return settled_positions(tables, self.context_length)

    def _gather(
        self, index: int, start: int, end: int, documents_BxT: torch.Tensor | None, has_cache: bool
    ) -> AttentionFn:
        """Who sees whom under one of the masks, as the chosen path computes it."""
        mask = self.masks[index]
        scene = AttentionContext(
            mask=mask,
            table_TxT=self._table(index),
            start=start,
            length=end,
            slopes_H=self.slopes_H,
            documents_BxT=documents_BxT if mask.within_documents else None,
            device=self.token_embedding.weight.device,
        )
        if self.is_uniform:
            return uniform(scene)
        device_type = scene.device.type
        path = choose_backend(
            mask, end, self.attention_backend, start=start, has_cache=has_cache, device_type=device_type
        )
        return BACKENDS[path](scene)

    def _lay_masks(self, config: Config) -> None:
        """One table for all layers with the same mask; causal needs none."""
        self.masks: list[MaskConfig] = []
        self.mask_of_layer = [0] * config.size.n_layers
        # In one buffer of the whole model: buffers that layers share would be copied for each on the way to a device.
        tables: list[torch.Tensor] = []
        self._table_of_mask: list[int | None] = []
        for mask, layers in layers_by_mask(config):
            for layer in layers:
                self.mask_of_layer[layer] = len(self.masks)
            self.masks.append(mask)
            if isinstance(mask, CausalConfig):
                self._table_of_mask.append(None)
            else:
                self._table_of_mask.append(len(tables))
                with torch.device("cpu"):  # a mask is checked by its values, which the meta device has not
                    tables.append(masks.dense_mask(mask, config.size.context_length))
        self.visible_MxTxT: torch.Tensor | None
        self.register_buffer("visible_MxTxT", torch.stack(tables) if tables else None, persistent=False)

    def _table(self, index: int) -> torch.Tensor | None:
        number = self._table_of_mask[index]
        return None if number is None or self.visible_MxTxT is None else self.visible_MxTxT[number]
