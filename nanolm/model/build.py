"""The model that a config describes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from nanolm.config.run import Config
from nanolm.data.tokens.stream import Tokens
from nanolm.model import bigram, ngram, transformer  # noqa: F401  they register themselves
from nanolm.registry import MODELS


@runtime_checkable
class FittedModel(Protocol):
    """A model that is fitted in one pass over the text, and has no steps. A plugin's is one when it has this method."""

    def fit(self, tokens: Tokens) -> int:
        """Takes what it needs from the training tokens, some at a time (nanolm.data.tokens.stream.chunks).

        Returns:
            How many entries its table has, for the summary.
        """


def build(config: Config, vocab_size: int) -> nn.Module:
    """Builds the model on the CPU, its weights drawn from the run's seed and nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MODELS[config.model.name](config, vocab_size)


def count_parameters(model: nn.Module) -> int:
    """Trained numbers, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
