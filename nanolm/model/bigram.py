"""The first rung: the next token given this one, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from nanolm.config.run import Config
from nanolm.registry import MODELS


@MODELS.register("bigram")
def bigram(config: Config, vocab_size: int) -> Bigram:
    """A table of logits, one row a token."""
    return Bigram(vocab_size, config.size.context_length)


class Bigram(nn.Module):
    """A V x V table of logits. It begins at zero: every next token is as likely as any other."""

    def __init__(self, vocab_size: int, context_length: int) -> None:
        super().__init__()
        self.context_length = context_length
        self.logits = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.logits.weight)

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:
        """Logits_BxTxV of the token that follows each position."""
        return self.logits(tokens_BxT)
