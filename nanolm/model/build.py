"""Construction of the model that a config describes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from nanolm.config.run import Config
from nanolm.data.tokens.stream import Tokens
from nanolm.model import bigram, mlp, ngram, rnn, transformer  # noqa: F401  registers the built-in models
from nanolm.registry import MODELS


@runtime_checkable
class FittedModel(Protocol):
    """A model that is fitted in one pass over the training tokens instead of by gradient descent.

    A model of a plugin is one if it has this method.
    """

    def fit(self, tokens: Tokens) -> int:
        """Fit the model to the training tokens, which can be read in chunks (nanolm.data.tokens.stream.chunks).

        Returns:
            The number of entries of the fitted table, for summary.json.
        """


def build(config: Config, vocab_size: int) -> nn.Module:
    """Build the model on the CPU, with weights drawn from `seed` alone; the global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MODELS[config.model.name](config, vocab_size)


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())
