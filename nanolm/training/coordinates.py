"""Coordinate check: the size of the activations of models of several widths over their first steps.

If lr and initialization fit all widths, activations and their changes do not depend on the width (Yang et al. 2022,
Tensor Programs V, appendix D.1).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from nanolm.config.lr_scaling import resolve_optimizer
from nanolm.config.run import Config
from nanolm.config.size import SizeConfig
from nanolm.errors import SettingsError
from nanolm.model.build import build
from nanolm.model.layers import Block
from nanolm.model.loss import next_token_loss
from nanolm.model.transformer import Transformer
from nanolm.training.optimizers import build as optimizers

# Widths relative to size.d_model, rounded to whole heads.
FACTORS = (0.5, 1, 2, 4)

# Sequences of the batch, and their length at most.
BATCH_SIZE, MAX_LENGTH = 8, 64


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """The size of one activation.

    Attributes:
        name: of the module whose output it is.
        sizes: mean absolute value by width and then by step; step 0 is initialization.
        exponent: the last step's size is about proportional to the width to the power of this; None if one is 0.
    """

    name: str
    sizes: dict[int, list[float]]
    exponent: float | None


def check_coordinates(config: Config, vocab_size: int, steps: int) -> list[Coordinate]:
    """Train models of several widths for a few steps on one batch of random tokens, with the lr of the peak.

    Args:
        config: settings, whose size is that of one model; the others have heads of the same width.
        vocab_size: vocabulary size.
        steps: optimizer steps.

    Raises:
        SettingsError: the model is no transformer, or has a size that does not follow from its width.
    """
    require_widths(config)
    sizes: dict[str, dict[int, list[float]]] = {}
    for size in sizes_of(config.size):
        for name, values in _sizes(dataclasses.replace(config, size=size), vocab_size, steps).items():
            sizes.setdefault(name, {})[size.d_model] = values
    return [Coordinate(name, by_width, _exponent(by_width)) for name, by_width in sizes.items()]


def require_widths(config: Config) -> None:
    """Refuse a model whose width cannot vary alone.

    Raises:
        SettingsError: it is no transformer, or has a size that does not follow from its width.
    """
    if config.model.name != "transformer":
        raise SettingsError(
            f"model={config.model.name} has no coordinate check, which compares widths of a transformer",
            where="--coordinates",
            hint="use model=gpt or another transformer",
        )
    for name in ("d_ff", "n_kv_heads"):
        if getattr(config.size, name) is not None:
            raise SettingsError(
                f"size.{name} is set, and would be the same at all widths",
                where="--coordinates",
                hint=f"use size.{name}=null",
            )


def sizes_of(size: SizeConfig) -> list[SizeConfig]:
    """Return sizes of several widths, with heads of the same width."""
    head_width = size.d_model // size.n_heads
    widths = {max(1, round(factor * size.n_heads)) * head_width for factor in FACTORS}
    return [dataclasses.replace(size, d_model=width, n_heads=width // head_width) for width in sorted(widths)]


def _sizes(config: Config, vocab_size: int, steps: int) -> dict[str, list[float]]:
    """Return the mean absolute value of each activation before each step and after the last one."""
    torch.manual_seed(config.seed)
    model = build(config, vocab_size)
    assert isinstance(model, Transformer)
    optimizer = optimizers.build(resolve_optimizer(config), model)
    generator = torch.Generator().manual_seed(config.seed)
    shape = (BATCH_SIZE, min(config.size.context_length, MAX_LENGTH) + 1)
    tokens_BxT = torch.randint(vocab_size, shape, generator=generator)
    found: dict[str, list[float]] = {}

    def record(name: str, output: torch.Tensor) -> None:
        found.setdefault(name, []).append(output.detach().abs().mean().item())

    watched: dict[str, nn.Module] = {}
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        watched[f"blocks.{number}.attention"] = block.attention
        if block.feed_forward is not None:
            watched[f"blocks.{number}.feed_forward"] = block.feed_forward
        watched[f"blocks.{number}"] = block
    for name, module in watched.items():
        module.register_forward_hook(lambda _, __, output, name=name: record(name, output))
    for step in range(steps + 1):
        logits_BxTxV = model(tokens_BxT[:, :-1])
        record("logits", logits_BxTxV)
        if step < steps:
            optimizer.zero_grad()
            next_token_loss(logits_BxTxV, tokens_BxT[:, 1:]).backward()
            optimizer.step()
    return found


def _exponent(by_width: dict[int, list[float]]) -> float | None:
    """Fit a power law to the sizes at the last step by least squares of the logarithms."""
    points = [(math.log(width), sizes[-1]) for width, sizes in by_width.items()]
    if len(points) < 2 or not all(size > 0 and math.isfinite(size) for _, size in points):
        return None
    x = [width for width, _ in points]
    y = [math.log(size) for _, size in points]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / sum((a - x_mean) ** 2 for a in x)
