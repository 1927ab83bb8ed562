"""Check the settings of the model and its size."""

from __future__ import annotations

from collections.abc import Iterator

from nanolm.config.model import (
    AttentionKind,
    Initialization,
    MlpConfig,
    NgramConfig,
    Norm,
    Positions,
    RnnConfig,
    TransformerConfig,
)
from nanolm.config.run import Config
from nanolm.config.size import SizeConfig
from nanolm.config.trainer import Parallel
from nanolm.errors import NanolmError, SettingsError
from nanolm.torchrun import world_size


def check_model(config: Config) -> Iterator[NanolmError]:
    """Find widths and components that do not fit together."""
    model, size = config.model, config.size
    if isinstance(model, NgramConfig) and model.order - 1 > size.context_length:
        yield SettingsError(
            f"model.order ({model.order}) needs a context of {model.order - 1} tokens, but size.context_length is "
            f"{size.context_length}",
            where="model.order, size.context_length",
            hint=f"use size.context_length={model.order - 1} or more, or model.order={size.context_length + 1} or less",
        )
    if isinstance(model, MlpConfig) and model.window > size.context_length:
        yield SettingsError(
            f"model.window ({model.window}) is longer than size.context_length ({size.context_length})",
            where="model.window, size.context_length",
            hint=f"use model.window={size.context_length} or less, or size.context_length={model.window} or more",
        )
    if isinstance(model, RnnConfig) and not size.n_layers:
        yield SettingsError(
            "model=rnn needs a recurrent layer, but size.n_layers is 0",
            where="model, size.n_layers",
            hint="use size.n_layers=1 or more, or model=bigram",
        )
    if isinstance(model, TransformerConfig):
        if model.attention is not AttentionKind.uniform:
            yield from _check_widths(model, size)
        yield from _check_components(model)
        yield from _check_ngram_mix(model, config)


def _check_widths(model: TransformerConfig, size: SizeConfig) -> Iterator[NanolmError]:
    if size.n_heads % size.key_value_heads:
        fitting = [str(n) for n in range(1, min(size.n_heads, 1000) + 1) if size.n_heads % n == 0]
        yield SettingsError(
            f"size.n_heads ({size.n_heads}) is not divisible by size.n_kv_heads ({size.n_kv_heads})",
            where="size.n_heads, size.n_kv_heads",
            hint=f"use n_kv_heads = {', '.join(fitting)}",
        )
    if size.d_model % size.n_heads and None in (size.d_key, size.d_value):
        # Only nearby divisors, since d_model may be absurdly large.
        nearby = range(max(1, size.n_heads - 1000), min(size.d_model, size.n_heads + 1000) + 1)
        divisors = {1, *(n for n in nearby if size.d_model % n == 0)}
        *others, last = sorted(sorted(divisors, key=lambda n: abs(n - size.n_heads))[:3])
        choices = f"{', '.join(map(str, others))} or {last}" if others else last
        yield SettingsError(
            f"size.d_model ({size.d_model}) is not divisible by size.n_heads ({size.n_heads})",
            where="size.d_model, size.n_heads",
            hint=f"use n_heads = {choices}, or d_model = {(size.d_model // size.n_heads + 1) * size.n_heads}; "
            "size.d_key and size.d_value set the widths of a head independently",
        )
        return
    if model.positions is Positions.rotary and size.key_width % 2:
        yield SettingsError(
            f"model.positions=rotary needs an even head width, but queries and keys have width {size.key_width}",
            where="model.positions, size.d_model, size.n_heads, size.d_key",
            hint="use an even size.d_key, or model.positions=learned",
        )
    out = size.n_heads * size.value_width
    if not model.output_projection and out != size.d_model:
        yield SettingsError(
            f"without an output projection, {size.n_heads} heads with values of width {size.value_width} give a "
            f"residual stream of width {out}, but size.d_model is {size.d_model}",
            where="model.output_projection, size.n_heads, size.d_value",
            hint="use model.output_projection=true, or size.d_value = size.d_model / size.n_heads",
        )
        if model.tie_embeddings:
            yield SettingsError(
                f"a head tied to the token embedding has width {size.d_model}, but the residual stream has width {out}",
                where="model.tie_embeddings, model.output_projection",
                hint="use model.tie_embeddings=false, or equal widths",
            )


def _check_components(model: TransformerConfig) -> Iterator[NanolmError]:
    if model.attention is AttentionKind.uniform and model.positions in (Positions.rotary, Positions.alibi):
        yield SettingsError(
            f"model.positions={model.positions.name} changes attention scores, but uniform attention has none",
            where="model.positions, model.attention",
            hint="use model.positions=learned, sinusoidal or none",
        )
    if model.final_norm and model.norm is Norm.none:
        yield SettingsError(
            "model.final_norm is true, but model.norm is none",
            where="model.final_norm, model.norm",
            hint="use model.norm=layer_norm or rms_norm, or leave out model.final_norm",
        )
    if model.initialization is Initialization.zero_projections and not model.residual:
        yield SettingsError(
            "model.initialization=zero_projections without residual connections gives zero outputs and gradients",
            where="model.initialization, model.residual",
            hint="use model.initialization=gpt2, xavier or pytorch, or model.residual=true",
        )


def _check_ngram_mix(model: TransformerConfig, config: Config) -> Iterator[NanolmError]:
    order, context_length = model.ngram_mix.order, config.size.context_length
    if order is None:
        return
    if order - 1 > context_length:
        yield SettingsError(
            f"model.ngram_mix.order ({order}) needs a context of {order - 1} tokens, but size.context_length is "
            f"{context_length}",
            where="model.ngram_mix.order, size.context_length",
            hint=f"use size.context_length={order - 1} or more, or model.ngram_mix.order={context_length + 1} or less",
        )
    if model.has_adapters:
        yield SettingsError(
            "model.ngram_mix has trained weights, but with model.lora.rank only adapters are trained",
            where="model.ngram_mix.order, model.lora.rank",
            hint="use model.ngram_mix.order=null, or model.lora.rank=null",
        )
    if world_size() > 1 and config.trainer.parallel is Parallel.fsdp:
        yield SettingsError(
            "model.ngram_mix is a table on every rank, which trainer.parallel=fsdp cannot shard",
            where="model.ngram_mix.order, trainer.parallel",
            hint="use trainer.parallel=ddp",
        )
