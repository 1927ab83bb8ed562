"""The model that a config describes."""

from __future__ import annotations

import torch
from torch import nn

from nanolm.config import Config
from nanolm.model import bigram, gpt3, transformer  # noqa: F401  they register themselves
from nanolm.registry import MODELS


def build(config: Config, vocab_size: int) -> nn.Module:
    """Builds the model on the CPU, its weights drawn from the run's seed and nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MODELS[config.model.name](config, vocab_size)


def count_parameters(model: nn.Module) -> int:
    """Trained numbers, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
