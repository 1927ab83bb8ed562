"""Everything that can be wrong with settings before the data is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from nanolm.config.checks.scheduler import check_scheduler
from nanolm.config.dataset import SplitBy
from nanolm.config.fields import MISSING, leaves, outside_bounds, setting_of
from nanolm.config.mask import (
    LOCAL_MASKS,
    PATTERN_LETTERS,
    DocumentConfig,
    PatternConfig,
    layers_by_mask,
    pattern_names,
    reads_documents,
)
from nanolm.config.model import AttentionKind, Initialization, NgramConfig, Norm, Positions, TransformerConfig
from nanolm.config.optimizer import AdafactorConfig, MuonConfig, ScheduleFreeConfig
from nanolm.config.run import Config
from nanolm.config.trainer import AttentionBackend, Parallel, Precision, Sampling
from nanolm.config.wandb_environment import check_logger
from nanolm.errors import NanolmError, SettingsError, nearest
from nanolm.option_types import DEVICES, DEVICES_HINT
from nanolm.registry import GROUPS, MASKS
from nanolm.torchrun import world_size

# Settings of a dataset that name something.
NOT_BLANK = ("path", "val_path", "test_path", "train_split", "val_split", "test_split", "subset", "url")

# Narrower heads have no FlexAttention kernel.
FLEX_HEAD_WIDTH = 16


def check(config: Config) -> list[NanolmError]:
    """Everything that is wrong with these settings as far as can be told without the data."""
    problems: list[NanolmError] = [*_check_names(config), *_check_items(config), *outside_bounds(config)]
    if problems:
        return problems
    for check_across in CHECKS:
        problems += check_across(config)
    return problems


def _check_names(config: Config) -> Iterator[NanolmError]:
    """A group whose name is of one option and whose settings are of another, as optimizer.name=lion leaves them."""
    for group, registry in GROUPS.items():
        node = getattr(config, group)
        schema = registry.schemas.get(node.name)
        if schema is not None and not isinstance(node, schema):
            lacking = [field.name for field in dataclasses.fields(schema) if not hasattr(node, field.name)]
            yield SettingsError(
                f"{group}.name is {node.name}, and the settings are not those of {node.name}"
                + (f": {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing" if lacking else ""),
                where=f"{group}.name",
                hint=f"choose an option by {group}=NAME on the command line; in a file of your own, by the option in "
                "its defaults list that it starts from",
            )


def _check_items(config: Config) -> Iterator[NanolmError]:
    """Lists and mappings in lists of strings or numbers, which OmegaConf lets through."""
    for key, field, value in leaves(config):
        kind = next((kind for kind in ("str", "int", "float") if f"list[{kind}]" in str(field.type)), None)
        if kind and isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
            words, example = ("strings", "[a,b]") if kind == "str" else ("numbers", "[1,2]")
            yield SettingsError(f"{key} is {value}, and must be a list of {words}, as in {example}", where=key)


def _check_blank(config: Config) -> Iterator[NanolmError]:
    """Empty settings of a dataset, as an unset shell variable leaves them."""
    for name in NOT_BLANK:
        value = getattr(config.dataset, name, None)
        if isinstance(value, str) and not value.strip():
            yield SettingsError(
                f"dataset.{name} is empty",
                where=f"dataset.{name}",
                hint="is a shell variable unset? the current folder is dataset.path=."
                if name == "path"
                else f"give it a value, or leave dataset.{name} out",
            )


def _check_splits(config: Config) -> Iterator[NanolmError]:
    dataset = config.dataset
    if dataset.val_fraction + dataset.test_fraction >= 1:
        yield SettingsError(
            f"dataset.val_fraction {dataset.val_fraction} and dataset.test_fraction {dataset.test_fraction} leave "
            "nothing to train on",
            where="dataset.val_fraction, dataset.test_fraction",
            hint="together they must be less than 1; 0.1 and 0.1 leave 80%",
        )
    if config.trainer.sampling is Sampling.documents and dataset.split_by is SplitBy.line:
        yield SettingsError(
            "trainer.sampling documents needs whole documents, and dataset.split_by line takes them apart",
            where="trainer.sampling, dataset.split_by",
            hint="trainer.sampling=lines, or dataset.split_by=document",
        )


def _check_widths(config: Config) -> Iterator[NanolmError]:
    model, size = config.model, config.size
    if not isinstance(model, TransformerConfig) or model.attention is AttentionKind.uniform:
        return
    if size.d_model % size.n_heads and None in (size.d_key, size.d_value):
        # Near by, not among all the numbers up to a width that may be absurd.
        reach = range(max(1, size.n_heads - 1000), min(size.d_model, size.n_heads + 1000) + 1)
        divisors = {1, *(n for n in reach if size.d_model % n == 0)}
        near = sorted(sorted(divisors, key=lambda n: abs(n - size.n_heads))[:3])
        yield SettingsError(
            f"size.d_model {size.d_model} cannot be divided among size.n_heads {size.n_heads} heads",
            where="size.d_model, size.n_heads",
            hint=f"near by and possible: n_heads = {', '.join(map(str, near))}, "
            f"or d_model = {size.d_model // size.n_heads * size.n_heads + size.n_heads}; "
            "size.d_key and size.d_value set the heads' widths apart from it",
        )
        return
    if model.positions is Positions.rotary and size.key_width % 2:
        yield SettingsError(
            f"rotary positions turn pairs, and a head's queries and keys are {size.key_width} wide, an odd number",
            where="model.positions, size.d_model, size.n_heads, size.d_key",
            hint="an even size.d_key, or model.positions=learned",
        )
    out = size.n_heads * size.value_width
    if not model.output_projection and out != size.d_model:
        yield SettingsError(
            f"without an output projection the {size.n_heads} heads of {size.value_width} values each leave a stream "
            f"of width {out}, and size.d_model is {size.d_model}",
            where="model.output_projection, size.n_heads, size.d_value",
            hint="model.output_projection=true, or size.d_value = size.d_model / size.n_heads",
        )
        if model.tie_embeddings:
            yield SettingsError(
                f"a tied head is the token embedding, {size.d_model} wide, and the stream that reaches it is {out}",
                where="model.tie_embeddings, model.output_projection",
                hint="model.tie_embeddings=false, or equal widths",
            )


def _check_parts(config: Config) -> Iterator[NanolmError]:
    model = config.model
    if not isinstance(model, TransformerConfig):
        return
    if model.attention is AttentionKind.uniform and model.positions in (Positions.rotary, Positions.alibi):
        yield SettingsError(
            f"{model.positions.name} positions act on the scores of attention, and uniform attention has none",
            where="model.positions, model.attention",
            hint="model.positions=learned, sinusoidal or none",
        )
    if model.final_norm and model.norm is Norm.none:
        yield SettingsError(
            "model.final_norm is true, and model.norm is none",
            where="model.final_norm, model.norm",
            hint="model.norm=layer_norm or rms_norm, or leave model.final_norm out",
        )
    if model.initialization is Initialization.zero_projections and not model.residual:
        yield SettingsError(
            "zero projections without residual connections pass on nothing but zeros, and nothing is ever learned",
            where="model.initialization, model.residual",
            hint="model.initialization=gpt2, xavier or pytorch, or model.residual=true",
        )


def _check_attention_path(config: Config) -> Iterator[NanolmError]:
    model, path = config.model, config.trainer.attention_backend
    if not isinstance(model, TransformerConfig) or path is AttentionBackend.auto:
        return
    if model.attention is AttentionKind.uniform:
        yield SettingsError(
            f"trainer.attention_backend is {path.name}, and uniform attention has one way alone",
            where="trainer.attention_backend, model.attention",
            hint="leave trainer.attention_backend out",
        )
    if path is AttentionBackend.flex and model.dropout_of(model.attention_dropout):
        yield SettingsError(
            "trainer.attention_backend flex has no dropout of attention's weights",
            where="trainer.attention_backend, model.attention_dropout",
            hint="model.attention_dropout=0, or another path",
        )
    size = config.size
    if path is AttentionBackend.flex and min(size.key_width, size.value_width) < FLEX_HEAD_WIDTH:
        yield SettingsError(
            f"trainer.attention_backend flex needs heads of width {FLEX_HEAD_WIDTH} or more, and those of size.d_model "
            f"{size.d_model} with size.n_heads {size.n_heads} are {size.key_width} wide (values {size.value_width})",
            where="trainer.attention_backend, size.d_model, size.n_heads",
            hint="fewer or wider heads, or trainer.attention_backend=sdpa",
        )
    if path is AttentionBackend.flex and config.trainer.device == "cpu":
        yield SettingsError(
            "trainer.attention_backend flex has no backward pass on a CPU",
            where="trainer.attention_backend, trainer.device",
            hint="another path, or a GPU",
        )


def _check_order(config: Config) -> Iterator[NanolmError]:
    if not isinstance(config.model, NgramConfig):
        return
    order, context_length = config.model.order, config.size.context_length
    if order - 1 > context_length:
        yield SettingsError(
            f"model.order {order} looks at {order - 1} tokens, and size.context_length {context_length} shows fewer",
            where="model.order, size.context_length",
            hint=f"size.context_length of {order - 1} or more, or model.order of {context_length + 1} or less",
        )


def _check_masks(config: Config) -> Iterator[NanolmError]:
    pattern, n_layers = config.mask.pattern, config.size.n_layers
    if pattern is not None or isinstance(config.mask, PatternConfig):
        wrong = list(_wrong_in_pattern(pattern))
        names = pattern_names(config.mask) if isinstance(pattern, str | list) else []
        if names and n_layers % len(names):
            divisors = [str(n) for n in range(1, n_layers + 1) if n_layers % n == 0]
            wrong.append(
                SettingsError(
                    f"mask.pattern has {len(names)} masks, which size.n_layers {n_layers} layers cannot take in turn",
                    where="mask.pattern, size.n_layers",
                    hint=f"its length must divide the layers: {', '.join(divisors)}",
                )
            )
        yield from wrong
        if wrong:
            return
    yield from _check_documents(config)
    context_length = config.size.context_length
    for mask, layers in layers_by_mask(config):
        if config.trainer.attention_backend is AttentionBackend.blocked and not isinstance(mask, LOCAL_MASKS):
            yield SettingsError(
                f"trainer.attention_backend blocked is for masks that see near by only, and mask={mask.name} of "
                f"{'every layer' if len(layers) == n_layers else f'layer {layers[0]}'} sees further",
                where="trainer.attention_backend, mask",
                hint=f"another path, or one of these masks: {', '.join(kind.name for kind in LOCAL_MASKS)}",
            )
        for key, field, value in leaves(mask):
            if value == MISSING:
                yield SettingsError(
                    f"the mask {mask.name!r} of the pattern needs a value for {key}",
                    where="mask.pattern",
                    hint=f"mask={mask.name} mask.{key}=... with the pattern beside it",
                )
            elif setting_of(field).in_context and value > context_length:
                has_it = hasattr(config.mask, key)
                yield SettingsError(
                    f"mask.{key} {value}{'' if has_it else f', as {mask.name} has it,'} is longer than "
                    f"size.context_length {context_length}",
                    where=f"mask.{key}, size.context_length" if has_it else "mask.pattern, size.context_length",
                    hint=f"{'' if has_it else 'mask=pattern '}mask.{key}=N with N from 1 to {context_length}",
                )


def _check_documents(config: Config) -> Iterator[NanolmError]:
    if isinstance(config.mask, DocumentConfig) and not config.mask.within_documents:
        yield SettingsError(
            "mask.within_documents is false, and mask=document is causal within documents",
            where="mask.within_documents",
            hint="mask=causal sees across documents",
        )
    # A row of its own sees nothing of another document, however the text was split.
    is_split_by_line = config.dataset.split_by is SplitBy.line and not config.trainer.sampling.in_rows
    if is_split_by_line and reads_documents(config):
        yield SettingsError(
            "mask.within_documents needs whole documents, and dataset.split_by line takes them apart",
            where="mask.within_documents, dataset.split_by",
            hint="dataset.split_by=document or fraction, or trainer.sampling=lines",
        )


def _wrong_in_pattern(pattern: Any) -> Iterator[NanolmError]:
    """What is no mask in it."""
    known = sorted({*MASKS.schemas, *MASKS} - {PatternConfig.name})
    letters = " and ".join(f"{letter} for {name}" for letter, name in PATTERN_LETTERS.items())
    if not isinstance(pattern, str | list) or not pattern:
        yield SettingsError(
            f"mask.pattern is {pattern!r}",
            where="mask.pattern",
            hint=f"a list of masks, [causal,banded_causal], or {letters}, as in SSSL",
        )
    elif isinstance(pattern, str):
        strange = sorted(set(pattern) - set(PATTERN_LETTERS))
        if strange:
            yield SettingsError(
                f"mask.pattern is {pattern!r}, and no mask has the letter {', '.join(strange)}",
                where="mask.pattern",
                hint=f"{letters}; masks by name go in a list, [causal,banded_causal]",
            )
    else:
        for name in pattern:
            if name not in known:
                yield SettingsError(f"no mask is called {name!r}", where="mask.pattern", hint=nearest(str(name), known))


def _check_batch(config: Config) -> Iterator[NanolmError]:
    trainer, n = config.trainer, world_size()
    if trainer.batch_size % n:
        yield SettingsError(
            f"trainer.batch_size {trainer.batch_size} cannot be shared evenly by {n} processes",
            where="trainer.batch_size",
            hint="batch_size counts the sequences of all processes together; "
            f"a multiple of {n}, such as {-(-trainer.batch_size // n) * n}",
        )
    elif trainer.batch_size // n % trainer.gradient_accumulation:
        yield SettingsError(
            f"trainer.batch_size {trainer.batch_size}{f', {trainer.batch_size // n} a process,' if n > 1 else ''} "
            f"cannot be cut into trainer.gradient_accumulation {trainer.gradient_accumulation} equal parts",
            where="trainer.batch_size, trainer.gradient_accumulation",
            hint="batch_size counts all the sequences of an update; accumulate must divide "
            + ("it" if n == 1 else "the share of each process"),
        )


def _check_ranks(config: Config) -> Iterator[NanolmError]:
    """What cannot be right in several processes."""
    trainer = config.trainer
    if world_size() == 1:
        return
    if trainer.parallel is Parallel.fsdp and isinstance(config.optimizer, MuonConfig | AdafactorConfig):
        yield SettingsError(
            f"optimizer={config.optimizer.name} needs whole matrices, and trainer.parallel fsdp leaves each process "
            "some rows of them",
            where="optimizer, trainer.parallel",
            hint="trainer.parallel=ddp, or an optimizer that goes number by number: adamw, adam, sgd, lion, "
            "schedule_free",
        )
    if trainer.device == "mps" or ":" in trainer.device:
        yield SettingsError(
            f"trainer.device {trainer.device} is one device, and {world_size()} processes need one each",
            where="trainer.device",
            hint="trainer.device=cuda gives every process on a machine a GPU of its own; cpu shares the cores",
        )
    if isinstance(config.model, NgramConfig):
        yield SettingsError(
            f"model={config.model.name} is counted in one pass, which several processes cannot share",
            where="model",
            hint="leave torchrun out: nanolm train ...",
        )


def _check_clipping(config: Config) -> Iterator[NanolmError]:
    trainer = config.trainer
    if trainer.clip_norm is not None and trainer.clip_value is not None:
        yield SettingsError(
            f"trainer.clip_norm {trainer.clip_norm} and trainer.clip_value {trainer.clip_value} are both set",
            where="trainer.clip_norm, trainer.clip_value",
            hint="clip by one of them: trainer.clip_norm=null clips by value",
        )


def _check_averages(config: Config) -> Iterator[NanolmError]:
    if config.trainer.ema_decay is not None and isinstance(config.optimizer, ScheduleFreeConfig):
        yield SettingsError(
            "optimizer=schedule_free averages the weights itself, and trainer.ema_decay would average them again",
            where="trainer.ema_decay, optimizer",
            hint="trainer.ema_decay=null, or another optimizer",
        )


def _check_fork(config: Config) -> Iterator[NanolmError]:
    if config.fork and config.resume in ("never", "auto"):
        yield SettingsError(
            f"fork=true begins where another run stands, and resume is {config.resume}",
            where="fork, resume",
            hint="resume=RUN_DIR fork=true, or resume=RUN_DIR/checkpoints/step-N fork=true",
        )


def _check_device(config: Config) -> Iterator[NanolmError]:
    if not DEVICES.fullmatch(config.trainer.device):
        yield SettingsError(f"trainer.device is {config.trainer.device!r}", where="trainer.device", hint=DEVICES_HINT)
    if config.trainer.precision is Precision.fp16 and config.trainer.device == "cpu":
        yield SettingsError(
            "trainer.precision fp16 on a CPU is slower than fp32 and less exact",
            where="trainer.precision, trainer.device",
            hint="trainer.precision=bf16 or fp32",
        )


CHECKS = (
    _check_blank,
    _check_splits,
    _check_widths,
    _check_parts,
    _check_order,
    _check_masks,
    _check_attention_path,
    _check_batch,
    _check_ranks,
    _check_clipping,
    _check_averages,
    _check_fork,
    check_scheduler,
    _check_device,
    check_logger,
)
