"""The one decoder that every GPT here is a setting of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config import Config, Initialization, Positions, TransformerConfig, layers_by_mask
from nanolm.model import masks
from nanolm.model.layers import Block, norm
from nanolm.model.positions import rotary_table
from nanolm.registry import MODELS


@MODELS.register("transformer")
def transformer(config: Config, vocab_size: int) -> Transformer:
    """The transformer that the settings describe."""
    return Transformer(config, vocab_size)


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
        self.context_length = size.context_length
        self.token_embedding = nn.Embedding(vocab_size, size.d_model)
        self.position_embedding = (
            nn.Embedding(size.context_length, size.d_model) if settings.positions is Positions.learned else None
        )
        is_rotary = settings.positions is Positions.rotary
        table = rotary_table(size.context_length, size.d_model // size.n_heads) if is_rotary else None
        self.rotary_2xTxP: torch.Tensor | None
        self.register_buffer("rotary_2xTxP", table, persistent=False)
        # Zero-initialised projections leave the stream as the embedding made it: it is normalised at the source.
        self.embedding_norm = (
            norm(settings, size.d_model)
            if settings.initialization is Initialization.zero_projections
            else nn.Identity()
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings, size) for _ in range(size.n_layers))
        self._lay_masks(config)
        self.final_norm = norm(settings, size.d_model)
        # A tied head is the embedding itself: one parameter, saved and decayed once.
        self.head = None if settings.tied_head else nn.Linear(size.d_model, vocab_size, bias=settings.head_bias)
        # An untied head has its bias itself.
        has_own_bias = settings.tied_head and settings.head_bias
        self.head_bias = nn.Parameter(torch.zeros(vocab_size)) if has_own_bias else None
        self.initialize(settings.initialization)

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:
        """Logits_BxTxV of the token that follows each position; T is at most context_length."""
        T = tokens_BxT.size(1)
        assert self.context_length >= T, f"{T} tokens, and a context of {self.context_length}"
        x_BxTxC = self.token_embedding(tokens_BxT)
        if self.position_embedding is not None:
            x_BxTxC = x_BxTxC + self.position_embedding.weight[:T]
        x_BxTxC = self.dropout(self.embedding_norm(x_BxTxC))
        for block, index in zip(self.blocks, self.mask_of_layer, strict=True):
            visible_TxT = None if index is None or self.visible_MxTxT is None else self.visible_MxTxT[index]
            x_BxTxC = block(x_BxTxC, self.rotary_2xTxP, visible_TxT)
        x_BxTxC = self.final_norm(x_BxTxC)
        if self.head is None:
            return F.linear(x_BxTxC, self.token_embedding.weight, self.head_bias)
        return self.head(x_BxTxC)

    def _lay_masks(self, config: Config) -> None:
        """One table for all layers with the same mask; causal needs none."""
        # In one buffer of the whole model: buffers that layers share would be copied for each on the way to a device.
        tables: list[torch.Tensor] = []
        self.mask_of_layer: list[int | None] = [None] * config.size.n_layers
        for mask, layers in layers_by_mask(config):
            if mask.name == "causal":
                continue
            for layer in layers:
                self.mask_of_layer[layer] = len(tables)
            tables.append(masks.dense(mask, config.size.context_length))
        self.visible_MxTxT: torch.Tensor | None
        self.register_buffer("visible_MxTxT", torch.stack(tables) if tables else None, persistent=False)

    @torch.no_grad()
    def initialize(self, scheme: Initialization) -> None:
        """Draws the weights from torch's global generator."""
        INITIALIZATIONS[scheme](self)


def _initialize_gpt2(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for projection in _residual_projections(model):
        nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * len(model.blocks)))


def _initialize_zero_projections(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0)
        elif isinstance(module, nn.Linear):
            bound = math.sqrt(3 / module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for projection in _residual_projections(model):
        nn.init.zeros_(projection.weight)
    if model.head is not None:
        nn.init.zeros_(model.head.weight)


INITIALIZATIONS = {
    Initialization.gpt2: _initialize_gpt2,
    Initialization.zero_projections: _initialize_zero_projections,
}


def _residual_projections(model: Transformer) -> list[nn.Linear]:
    return [
        part.projection
        for block in model.blocks
        if isinstance(block, Block)
        for part in (block.attention, block.feed_forward)
    ]
