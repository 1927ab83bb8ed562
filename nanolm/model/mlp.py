"""The neural probabilistic language model: a feed-forward network over a fixed window of tokens."""

from __future__ import annotations

import torch
from torch import nn

from nanolm.config.model import MlpConfig
from nanolm.config.run import Config
from nanolm.registry import MODELS


class WindowCache:
    """The embeddings of the last tokens of a text, for generating it token by token.

    Attributes:
        length: number of tokens that the model has read.
    """

    def __init__(self) -> None:
        self.length = 0
        self.embeddings_BxWxC: torch.Tensor | None = None


@MODELS.register("mlp")
class Mlp(nn.Module):
    """The model of Bengio et al. 2003, section 2: y = b + U tanh(d + H x) + W x.

    x are the embeddings of the last `window` tokens, concatenated; the term W x is optional. Weights have PyTorch's
    default initialization. Tokens before the beginning of a row are zero vectors, so that they add nothing.
    """

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        assert isinstance(config.model, MlpConfig)
        size, self.window = config.size, config.model.window
        self.context_length = size.context_length
        n_inputs, n_hidden = self.window * size.d_model, size.hidden_width(has_gate=False)
        self.token_embedding = nn.Embedding(vocab_size, size.d_model)
        self.hidden = nn.Linear(n_inputs, n_hidden)
        self.dropout = nn.Dropout(config.model.dropout)
        self.head = nn.Linear(n_hidden, vocab_size)
        self.direct = nn.Linear(n_inputs, vocab_size, bias=False) if config.model.direct else None

    def forward(self, tokens_BxT: torch.Tensor, cache: WindowCache | None = None) -> torch.Tensor:
        """Return logits_BxTxV of the token after each position.

        Args:
            tokens_BxT: with a cache, the tokens from position cache.length on.
            cache: the tokens before them, which is updated; None at the beginning of a row.
        """
        x_BxTxC = self.token_embedding(tokens_BxT)
        before_BxWxC = None if cache is None else cache.embeddings_BxWxC
        if before_BxWxC is None:
            before_BxWxC = x_BxTxC.new_zeros(len(x_BxTxC), self.window - 1, x_BxTxC.size(-1))
        x_BxSxC = torch.cat([before_BxWxC, x_BxTxC], dim=1)
        if cache is not None:
            cache.embeddings_BxWxC = x_BxSxC[:, x_BxSxC.size(1) - self.window + 1 :]
            cache.length += tokens_BxT.size(1)
        # The oldest token of a window comes first.
        x_BxTxWC = x_BxSxC.unfold(1, self.window, 1).transpose(2, 3).flatten(2).contiguous()
        logits_BxTxV = self.head(self.dropout(torch.tanh(self.hidden(x_BxTxWC))))
        return logits_BxTxV if self.direct is None else logits_BxTxV + self.direct(x_BxTxWC)

    def make_cache(self) -> WindowCache:
        """Create an empty cache for this model."""
        return WindowCache()
