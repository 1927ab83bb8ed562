"""Recurrent language models."""

from __future__ import annotations

import torch
from torch import nn

from nanolm.config.model import Cell, RnnConfig
from nanolm.config.run import Config
from nanolm.registry import MODELS

LAYERS: dict[Cell, type[nn.RNN | nn.GRU | nn.LSTM]] = {Cell.vanilla: nn.RNN, Cell.gru: nn.GRU, Cell.lstm: nn.LSTM}


class RecurrentCache:
    """The state after the last token of a text, for generating it token by token.

    Attributes:
        length: number of tokens that the model has read.
        state: of the recurrent layers, as torch returns it; None before the first token.
    """

    def __init__(self) -> None:
        self.length = 0
        self.state: torch.Tensor | tuple[torch.Tensor, ...] | None = None


@MODELS.register("rnn")
class Rnn(nn.Module):
    """An embedding, recurrent layers and a head, with PyTorch's default initialization.

    The state is carried through a row and starts at zero.
    """

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        assert isinstance(config.model, RnnConfig)
        size, settings = config.size, config.model
        self.context_length = size.context_length
        self.token_embedding = nn.Embedding(vocab_size, size.d_model)
        # PyTorch warns about dropout between the layers if there is only one.
        between = settings.dropout if size.n_layers > 1 else 0.0
        self.layers = LAYERS[settings.cell](
            size.d_model, size.d_model, size.n_layers, batch_first=True, dropout=between
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(size.d_model, vocab_size)

    def forward(self, tokens_BxT: torch.Tensor, cache: RecurrentCache | None = None) -> torch.Tensor:
        """Return logits_BxTxV of the token after each position.

        Args:
            tokens_BxT: with a cache, the tokens from position cache.length on.
            cache: the state after the tokens before them, which is updated; None at the beginning of a row.
        """
        x_BxTxC = self.dropout(self.token_embedding(tokens_BxT))
        # oneDNN has no LSTM in bf16 for processors without AVX-512: on a CPU, autocast leaves the layers in fp32.
        is_autocast = x_BxTxC.device.type != "cpu" and torch.is_autocast_enabled(x_BxTxC.device.type)
        with torch.autocast(x_BxTxC.device.type, enabled=is_autocast):
            x_BxTxC, state = self.layers(x_BxTxC, None if cache is None else cache.state)
        if cache is not None:
            cache.state = state
            cache.length += tokens_BxT.size(1)
        return self.head(self.dropout(x_BxTxC))

    def make_cache(self) -> RecurrentCache:
        """Create an empty cache for this model."""
        return RecurrentCache()
