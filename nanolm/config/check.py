"""Everything that can be wrong with settings before the data is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING

from nanolm.config.check_scheduler import check_scheduler
from nanolm.config.dataset import SplitBy
from nanolm.config.fields import leaves, outside_bounds
from nanolm.config.mask import PATTERN_LETTERS, PatternConfig, pattern_names
from nanolm.config.model import Positions, TransformerConfig
from nanolm.config.run import Config, layers_by_mask
from nanolm.config.trainer import Batches, Precision
from nanolm.errors import NanolmError, SettingsError, nearest
from nanolm.registry import MASKS


def check(config: Config) -> list[NanolmError]:
    """Everything that is wrong with these settings as far as can be told without the data."""
    problems: list[NanolmError] = list(outside_bounds(config))
    if problems:
        return problems
    for check_across in (
        _check_splits,
        _check_widths,
        _check_masks,
        _check_batch,
        _check_clipping,
        check_scheduler,
        _check_device,
    ):
        problems += check_across(config)
    return problems


def _check_splits(config: Config) -> Iterator[NanolmError]:
    dataset = config.dataset
    if dataset.val_fraction + dataset.test_fraction >= 1:
        yield SettingsError(
            f"dataset.val_fraction {dataset.val_fraction} and dataset.test_fraction {dataset.test_fraction} leave "
            "nothing to train on",
            where="dataset.val_fraction, dataset.test_fraction",
            mend="together they must be less than 1; 0.1 and 0.1 leave 80%",
        )
    if config.trainer.batches is Batches.documents and dataset.split_by is SplitBy.line:
        yield SettingsError(
            "trainer.batches documents needs whole documents, and dataset.split_by line takes them apart",
            where="trainer.batches, dataset.split_by",
            mend="trainer.batches=lines, or dataset.split_by=document",
        )


def _check_widths(config: Config) -> Iterator[NanolmError]:
    if not isinstance(config.model, TransformerConfig):
        return
    size = config.size
    if size.d_model % size.n_heads:
        divisors = [n for n in range(1, size.d_model + 1) if size.d_model % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - size.n_heads))[:3])
        yield SettingsError(
            f"size.d_model {size.d_model} cannot be divided among size.n_heads {size.n_heads} heads",
            where="size.d_model, size.n_heads",
            mend=f"near by and possible: n_heads = {', '.join(map(str, near))}, "
            f"or d_model = {size.d_model // size.n_heads * size.n_heads + size.n_heads}",
        )
    elif config.model.positions is Positions.rotary and (size.d_model // size.n_heads) % 2:
        yield SettingsError(
            f"rotary positions turn pairs, and a head is {size.d_model // size.n_heads} wide, an odd number",
            where="model.positions, size.d_model, size.n_heads",
            mend="choose size.d_model / size.n_heads even, or model.positions=learned",
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
                    mend=f"its length must divide the layers: {', '.join(divisors)}",
                )
            )
        yield from wrong
        if wrong:
            return
    context_length = config.size.context_length
    for mask, _ in layers_by_mask(config):
        for key, field, value in leaves(mask):
            if value == MISSING:
                yield SettingsError(
                    f"the mask {mask.name!r} of the pattern needs a value for {key}",
                    where="mask.pattern",
                    mend=f"mask={mask.name} mask.{key}=... with the pattern beside it",
                )
            elif field.metadata.get("in_context") and value > context_length:
                has_it = hasattr(config.mask, key)
                yield SettingsError(
                    f"mask.{key} {value}{'' if has_it else f', as {mask.name} has it,'} is longer than "
                    f"size.context_length {context_length}",
                    where=f"mask.{key}, size.context_length" if has_it else "mask.pattern, size.context_length",
                    mend=f"{'' if has_it else 'mask=pattern '}mask.{key}=N with N from 1 to {context_length}",
                )


def _wrong_in_pattern(pattern: Any) -> Iterator[NanolmError]:
    """What is no mask in it."""
    known = sorted({*MASKS.schemas, *MASKS} - {PatternConfig.name})
    letters = " and ".join(f"{letter} for {name}" for letter, name in PATTERN_LETTERS.items())
    if not isinstance(pattern, str | list) or not pattern:
        yield SettingsError(
            f"mask.pattern is {pattern!r}",
            where="mask.pattern",
            mend=f"a list of masks, [causal,banded_causal], or {letters}, as in SSSL",
        )
    elif isinstance(pattern, str):
        strange = sorted(set(pattern) - set(PATTERN_LETTERS))
        if strange:
            yield SettingsError(
                f"mask.pattern is {pattern!r}, and no mask has the letter {', '.join(strange)}",
                where="mask.pattern",
                mend=f"{letters}; masks by name go in a list, [causal,banded_causal]",
            )
    else:
        for name in pattern:
            if name not in known:
                yield SettingsError(f"no mask is called {name!r}", where="mask.pattern", mend=nearest(str(name), known))


def _check_batch(config: Config) -> Iterator[NanolmError]:
    trainer = config.trainer
    if trainer.batch_size % trainer.accumulate:
        yield SettingsError(
            f"trainer.batch_size {trainer.batch_size} cannot be cut into trainer.accumulate "
            f"{trainer.accumulate} equal parts",
            where="trainer.batch_size, trainer.accumulate",
            mend="batch_size counts all the sequences of an update; accumulate must divide it",
        )


def _check_clipping(config: Config) -> Iterator[NanolmError]:
    trainer = config.trainer
    if trainer.clip_norm is not None and trainer.clip_value is not None:
        yield SettingsError(
            f"trainer.clip_norm {trainer.clip_norm} and trainer.clip_value {trainer.clip_value} are both set",
            where="trainer.clip_norm, trainer.clip_value",
            mend="clip by one of them: trainer.clip_norm=null clips by value",
        )


def _check_device(config: Config) -> Iterator[NanolmError]:
    kind, _, index = config.trainer.device.partition(":")
    if kind not in ("auto", "cpu", "mps", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        yield SettingsError(
            f"trainer.device is {config.trainer.device!r}",
            where="trainer.device",
            mend="one of: auto, cpu, mps, cuda, cuda:0, cuda:1, ...",
        )
    if config.trainer.precision is Precision.fp16 and kind == "cpu":
        yield SettingsError(
            "trainer.precision fp16 on a CPU is slower than fp32 and less exact",
            where="trainer.precision, trainer.device",
            mend="trainer.precision=bf16 or fp32",
        )
