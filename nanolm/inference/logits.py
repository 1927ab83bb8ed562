"""Sources of the next-token logits of a batch of growing texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from nanolm.inference import decoder
from nanolm.inference.windows import window_start
from nanolm.model.sampling import next_logits_fn
from nanolm.model.transformer import Transformer


class LogitsSource(Protocol):
    """The logits of the next token of each text of a batch. A text that exceeds the context is cut from the left."""

    def next_logits(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return logits_BxV, fp32, of texts that have grown by one token each since the last call."""

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with some of the texts, in the given order."""


class CachedLogits:
    """One key-value cache per text: for any model with `make_cache`, whatever its masks."""

    def __init__(self, model: nn.Module, n_texts: int, context_length: int, stride: int, device: torch.device) -> None:
        self._functions = [next_logits_fn(model, context_length, stride) for _ in range(n_texts)]
        self._device = device

    def next_logits(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.stack(
            [
                function(torch.tensor(text, device=self._device)).float()
                for function, text in zip(self._functions, texts, strict=True)
            ]
        )

    def keep(self, rows: Sequence[int]) -> None:
        self._functions = [self._functions[row] for row in rows]


class UncachedLogits:
    """The whole context is computed for every token; texts of the same length are one batch."""

    def __init__(self, model: nn.Module, context_length: int, stride: int, device: torch.device) -> None:
        self._model = model
        self._context_length, self._stride = context_length, stride
        self._device = device

    def next_logits(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        windows = [list(text[window_start(len(text), self._context_length, self._stride) :]) for text in texts]
        rows_of_length: dict[int, list[int]] = {}
        for row, window in enumerate(windows):
            rows_of_length.setdefault(len(window), []).append(row)
        logits: list[torch.Tensor | None] = [None] * len(texts)
        for rows in rows_of_length.values():
            tokens_BxT = torch.tensor([windows[row] for row in rows], device=self._device)
            for row, logits_V in zip(rows, self._model(tokens_BxT)[:, -1].float(), strict=True):
                logits[row] = logits_V
        return torch.stack([logits_V for logits_V in logits if logits_V is not None])

    def keep(self, rows: Sequence[int]) -> None:
        pass


def logits_source(
    model: nn.Module,
    n_texts: int,
    *,
    context_length: int,
    stride: int,
    max_new_tokens: int,
    use_cache: bool,
    device: torch.device,
) -> LogitsSource:
    """Choose the fastest source for a model."""
    if not use_cache or not hasattr(model, "make_cache"):
        return UncachedLogits(model, context_length, stride, device)
    if isinstance(model, Transformer) and decoder.supports(model):
        return decoder.DecodedLogits(model, context_length, stride, max_new_tokens)
    return CachedLogits(model, n_texts, context_length, stride, device)
