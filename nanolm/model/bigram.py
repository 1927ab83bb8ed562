"""The bigram model: the next token depends on the current token only."""

from __future__ import annotations

import torch
from torch import nn

from nanolm.config.run import Config
from nanolm.registry import MODELS


@MODELS.register("bigram")
class Bigram(nn.Module):
    """A trained VxV table of logits, initialized to zero so that all next tokens are equally likely."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.context_length = config.size.context_length
        self.logits = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.logits.weight)

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:
        """Return logits_BxTxV of the token after each position."""
        return self.logits(tokens_BxT)
