"""Check the settings of low-rank adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from nanolm.config.fields import plain
from nanolm.config.help import format_value
from nanolm.config.model import LORA_TARGETS, AttentionKind, FeedForwardKind, LoraConfig, TransformerConfig
from nanolm.config.run import Config
from nanolm.errors import NanolmError, SettingsError


def check_lora(config: Config) -> Iterator[NanolmError]:
    """Find targets that the model does not have, a rank that exceeds its matrices, and settings without effect."""
    model = config.model
    if not isinstance(model, TransformerConfig):
        return
    if model.lora.rank is None:
        yield from _check_no_effect(model.lora)
        return
    shapes = target_shapes(config)
    fitting = []
    for target in dict.fromkeys(model.lora.targets):
        if target not in LORA_TARGETS:
            yield SettingsError(
                f"there is no target {target!r}",
                where="model.lora.targets",
                hint=f"targets of this model: {', '.join(shapes)}" if shapes else "leave out model.lora",
            )
        elif target not in shapes:
            yield SettingsError(
                f"model.lora.targets has {target}, and the model has no such layer",
                where=f"model.lora.targets, {_reason(config, target)}",
                hint=f"targets of this model: {', '.join(shapes)}" if shapes else "leave out model.lora",
            )
        else:
            fitting.append(target)
    if len(set(model.lora.targets)) < len(model.lora.targets):
        yield SettingsError(
            f"model.lora.targets is {format_value(model.lora.targets)}, which has a target twice",
            where="model.lora.targets",
            hint=f"model.lora.targets={format_value(list(dict.fromkeys(model.lora.targets)))}",
        )
    if not model.lora.targets:
        yield SettingsError(
            "model.lora.targets is empty: nothing would be trained",
            where="model.lora.targets",
            hint=f"name one or more of {', '.join(shapes)}, or use model.lora.rank=null",
        )
    for target in fitting:
        rows, columns = shapes[target]
        if model.lora.rank > min(rows, columns):
            yield SettingsError(
                f"model.lora.rank is {model.lora.rank}, and {target} is a matrix of {rows} x {columns}, whose rank is "
                f"at most {min(rows, columns)}",
                where="model.lora.rank, model.lora.targets",
                hint=f"use model.lora.rank={min(8, rows, columns)}, or model.lora.rank=null to train all weights",
            )


def check_start(config: Config) -> Iterator[NanolmError]:
    """Refuse adapters of a model that is not trained: its frozen weights would be random."""
    if isinstance(config.model, TransformerConfig) and config.model.has_adapters:
        yield SettingsError(
            f"model.lora.rank is {config.model.lora.rank}, and the run starts from scratch: adapters need trained "
            "weights to adapt",
            where="model.lora.rank",
            hint="name the run to start from: fork=RUN; or use model.lora.rank=null to train all weights",
        )


def _check_no_effect(lora: LoraConfig) -> Iterator[NanolmError]:
    """Refuse settings of adapters that there are not."""
    for field in dataclasses.fields(lora):
        value, default = getattr(lora, field.name), getattr(LoraConfig(), field.name)
        if value != default:
            yield SettingsError(
                f"model.lora.{field.name} is {format_value(plain(value))}, and without model.lora.rank there are no "
                "adapters",
                where=f"model.lora.{field.name}, model.lora.rank",
                hint=f"add model.lora.rank=8, or leave out model.lora.{field.name}",
            )


def target_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """Return the rows and columns of each linear layer of a block that can have adapters."""
    model, size = config.model, config.size
    assert isinstance(model, TransformerConfig)
    shapes: dict[str, tuple[int, int]] = {}
    if size.n_layers == 0:
        return shapes
    width = size.d_model
    heads = width
    if model.attention is not AttentionKind.uniform:
        heads = size.n_heads * size.value_width
        keys_and_values = size.key_value_heads * (size.key_width + size.value_width)
        shapes["query_key_value"] = size.n_heads * size.key_width + keys_and_values, width
    if model.output_projection:
        shapes["projection"] = width, heads
    if model.feed_forward is not FeedForwardKind.none:
        has_two_layers = model.feed_forward is FeedForwardKind.two_layers
        hidden = size.hidden_width(model.has_gate) if has_two_layers else width
        shapes["feed_forward_expansion"] = (1 + model.has_gate) * hidden, width
        if has_two_layers:
            shapes["feed_forward_projection"] = width, hidden
    return shapes


def _reason(config: Config, target: str) -> str:
    """Return the setting because of which a model does not have a layer."""
    model, size = config.model, config.size
    assert isinstance(model, TransformerConfig)
    if size.n_layers == 0:
        return "size.n_layers=0"
    return {
        "query_key_value": f"model.attention={model.attention.name}",
        "projection": f"model.output_projection={format_value(model.output_projection)}",
    }.get(target, f"model.feed_forward={model.feed_forward.name}")
