"""The decoder-only transformer, of which `model=gpt`, `model=gpt2` and the ladder's models are settings."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.mask import layers_by_mask
from nanolm.config.model import AttentionKind, Positions, TransformerConfig
from nanolm.config.run import Config
from nanolm.model.attention_backends import BACKENDS, AttentionContext, AttentionFn, uniform
from nanolm.model.backend_choice import choose_backend
from nanolm.model.cache import Cache, count_final_positions
from nanolm.model.convolution import CausalConvolution
from nanolm.model.initialization import INITIALIZATIONS
from nanolm.model.layers import Block, norm
from nanolm.model.lora import add_adapters
from nanolm.model.loss import Reduction, cap_logits, chunked_loss, is_chunked, last_positions, next_token_loss
from nanolm.model.mask_tables import MaskTables
from nanolm.model.ngram_mix import NgramMix
from nanolm.model.positions import alibi_slopes, rotary_table, sinusoidal_table
from nanolm.registry import MODELS


@MODELS.register("transformer")
class Transformer(nn.Module):
    """A decoder-only transformer, with weights drawn from torch's global generator.

    `model=gpt2` is that of Radford et al. 2019: learned positions, LayerNorm before each sublayer, tanh-GELU and a tied
    head. `model=gpt` is a modern variant: rotary positions, RMSNorm (also after the embedding), QK-norm, ReLU^2, no
    biases and residual projections initialized to zero.
    """

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        assert isinstance(config.model, TransformerConfig)
        settings, size = config.model, config.size
        length, width = size.context_length, size.d_model
        self.context_length = length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.embedding_convolution = (
            None if settings.embedding_convolution is None else CausalConvolution(width, settings.embedding_convolution)
        )
        self.position_embedding = nn.Embedding(length, width) if settings.positions is Positions.learned else None
        self.sinusoids_TxC: torch.Tensor | None
        self.rotary_2xTxR: torch.Tensor | None
        self.slopes_H: torch.Tensor | None
        for name, positions, table in (
            ("sinusoids_TxC", Positions.sinusoidal, lambda: sinusoidal_table(length, width)),
            ("rotary_2xTxR", Positions.rotary, lambda: rotary_table(length, size.key_width, settings.rotary_base)),
            ("slopes_H", Positions.alibi, lambda: alibi_slopes(size.n_heads)),
        ):
            self.register_buffer(name, table() if settings.positions is positions else None, persistent=False)
        self.embedding_norm = norm(settings, width) if settings.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(settings.dropout_of(settings.embedding_dropout))
        self.blocks = nn.ModuleList(Block(settings, size) for _ in range(size.n_layers))
        layers_of_masks = layers_by_mask(config)
        self.masks = [mask for mask, _ in layers_of_masks]
        index_of_layer = {layer: index for index, (_, layers) in enumerate(layers_of_masks) for layer in layers}
        self.mask_of_layer = [index_of_layer[layer] for layer in range(size.n_layers)]
        self._mask_tables = MaskTables(self.masks, length)
        self.attention_backend = config.trainer.attention_backend
        self.has_sublayer_convolution = settings.sublayer_convolution is not None
        self.is_uniform = settings.attention is AttentionKind.uniform
        self.final_norm = norm(settings, width) if settings.has_final_norm else nn.Identity()
        # A tied head is the embedding itself: one parameter, saved and decayed once. Only its bias is separate.
        self.head = None if settings.tie_embeddings else nn.Linear(width, vocab_size, bias=settings.head_bias)
        has_separate_bias = settings.tie_embeddings and settings.head_bias
        self.head_bias = nn.Parameter(torch.zeros(vocab_size)) if has_separate_bias else None
        self.logit_softcap = settings.logit_softcap
        self.ngram_mix = NgramMix(settings.ngram_mix, vocab_size, width) if settings.has_ngram_mix else None
        # Initializing meta tensors has no effect, and torch takes milliseconds for each.
        if not self.token_embedding.weight.is_meta:
            INITIALIZATIONS[settings.initialization](self)
        if settings.has_adapters:
            # Last, so that the weights are those of a model without adapters.
            add_adapters(self, self.blocks, settings.lora)

    def forward(
        self,
        tokens_BxT: torch.Tensor,
        documents_BxT: torch.Tensor | None = None,
        cache: Cache | None = None,
        targets_BxT: torch.Tensor | None = None,
        reduction: Reduction | None = None,
    ) -> torch.Tensor:
        """Return logits_BxTxV of the token after each position, or the loss of the targets.

        Args:
            tokens_BxT: at most context_length tokens per row. With a cache, the tokens from position cache.length on.
            documents_BxT: document number of each token, for masks within documents; None: one document per row.
            cache: keys and values of earlier tokens, which is updated; None without a cache.
            targets_BxT: the targets of the last positions, for the loss. In training, the counts of model.ngram_mix
                leave out their occurrences.
            reduction: returns the mean or the sum of the loss in nats, without a tensor of all logits where they are
                large (`nanolm.model.loss.is_chunked`); None returns the logits.
        """
        context_BxS = tokens_BxT
        if self.ngram_mix is not None and cache is not None:
            context_BxS = cache.append_tokens(tokens_BxT, self.ngram_mix.order)
        x_BxTxC = self.to_residual(tokens_BxT, documents_BxT, cache)
        if targets_BxT is not None and reduction is not None:
            x_BxTxC = last_positions(x_BxTxC, targets_BxT.size(1))
            if self.has_chunked_loss and is_chunked(targets_BxT.numel(), self.unembedding[0]):
                inputs = self.final_norm(x_BxTxC), *self.unembedding, targets_BxT
                return chunked_loss(*inputs, reduction, self.logit_softcap)
        logits_BxTxV = self.unembed(x_BxTxC)
        if self.ngram_mix is not None:
            left_out = targets_BxT if self.training else None
            logits_BxTxV = self.ngram_mix(logits_BxTxV, self.final_norm(x_BxTxC), context_BxS, left_out)
        if targets_BxT is None or reduction is None:
            return logits_BxTxV
        return next_token_loss(logits_BxTxV, targets_BxT, reduction)

    @property
    def has_chunked_loss(self) -> bool:
        """Whether the loss needs no tensor of all logits; mixing n-grams changes the logits of all tokens."""
        return self.ngram_mix is None

    @property
    def unembedding(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The matrix (VxC) and the bias (V) that turn the normalized residual stream into logits."""
        if self.head is None:
            return self.token_embedding.weight, self.head_bias
        return self.head.weight, self.head.bias

    def to_residual(
        self, tokens_BxT: torch.Tensor, documents_BxT: torch.Tensor | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Return the residual stream after all blocks, x_BxTxC; arguments as in `forward`."""
        start = 0 if cache is None else cache.length
        end = start + tokens_BxT.size(1)
        assert self.context_length >= end, f"{end} tokens exceed the context length {self.context_length}"
        # Within documents, convolutions end where a document begins.
        separated_BxT = documents_BxT if any(mask.within_documents for mask in self.masks) else None
        x_BxTxC = self._embed(tokens_BxT, separated_BxT, cache)
        if self.position_embedding is not None:
            x_BxTxC = x_BxTxC + self.position_embedding.weight[start:end]
        if self.sinusoids_TxC is not None:
            x_BxTxC = x_BxTxC + self.sinusoids_TxC[start:end]
        x_BxTxC = self.dropout(self.embedding_norm(x_BxTxC))
        rotary_2xTxR = None if self.rotary_2xTxR is None else self.rotary_2xTxR[:, start:end]
        attention_fns = [
            self._attention_fn(index, start, end, documents_BxT, cache is not None) for index in range(len(self.masks))
        ]
        for layer, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layers[layer]
            x_BxTxC = block(x_BxTxC, attention_fns[self.mask_of_layer[layer]], rotary_2xTxR, layer_cache, separated_BxT)
        if cache is not None:
            cache.advance(end)
        return x_BxTxC

    def _embed(self, tokens_BxT: torch.Tensor, documents_BxT: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        """Return the embeddings x_BxTxC of the tokens, convolved if configured."""
        if self.embedding_convolution is None:
            return self.token_embedding(tokens_BxT)
        if cache is None:
            return self.embedding_convolution(self.token_embedding(tokens_BxT), documents_BxT)
        length = tokens_BxT.size(1)
        tokens_BxT = cache.append_tokens(tokens_BxT, len(self.embedding_convolution.weight_KxC))
        return self.embedding_convolution(self.token_embedding(tokens_BxT), documents_BxT)[:, -length:]

    def unembed(self, x_BxTxC: torch.Tensor) -> torch.Tensor:
        """Return the logits_BxTxV of a residual stream: that after the last block gives those of the model."""
        x_BxTxC = self.final_norm(x_BxTxC)
        if self.head is None:
            logits_BxTxV = F.linear(x_BxTxC, self.token_embedding.weight, self.head_bias)
        else:
            logits_BxTxV = self.head(x_BxTxC)
        return cap_logits(logits_BxTxV, self.logit_softcap)

    def make_cache(self) -> Cache:
        """Create an empty key-value cache for this model."""
        return Cache(len(self.blocks), self.context_length, self._final_positions)

    @functools.cached_property
    def _final_positions(self) -> torch.Tensor:
        return count_final_positions([self.mask_table(index) for index in self.mask_of_layer], self.context_length)

    def _attention_fn(
        self, index: int, start: int, end: int, documents_BxT: torch.Tensor | None, has_cache: bool
    ) -> AttentionFn:
        """Prepare attention from positions `start` to `end` under one of the masks."""
        mask = self.masks[index]
        context = AttentionContext(
            mask=mask,
            read_table=functools.partial(self.mask_table, index),
            start=start,
            length=end,
            slopes_H=self.slopes_H,
            documents_BxS=documents_BxT if mask.within_documents else None,
            device=self.token_embedding.weight.device,
        )
        if self.is_uniform:
            return uniform(context)
        backend = choose_backend(
            mask,
            end,
            self.attention_backend,
            start=start,
            has_cache=has_cache,
            device_type=context.device.type,
        )
        return BACKENDS[backend](context)

    def mask_table(self, index: int) -> torch.Tensor | None:
        """Return mask_TxT of a distinct mask; None for a causal one."""
        return self._mask_tables.read(index, self.token_embedding.weight.device)
