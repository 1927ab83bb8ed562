"""Check the settings of the attention mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nanolm.config.dataset import SplitBy
from nanolm.config.fields import MISSING, leaves, setting_of
from nanolm.config.mask import (
    LOCAL_MASKS,
    PATTERN_LETTERS,
    DocumentConfig,
    MaskConfig,
    PatternConfig,
    layers_by_mask,
    reads_documents,
)
from nanolm.config.run import Config
from nanolm.config.trainer import AttentionBackend
from nanolm.errors import NanolmError, SettingsError, nearest
from nanolm.registry import MASKS


def check_mask(config: Config) -> Iterator[NanolmError]:
    """Find a pattern without sense, documents that are split, and masks that do not suit the context or the backend."""
    pattern, n_layers = config.mask.pattern, config.size.n_layers
    if pattern is not None or isinstance(config.mask, PatternConfig):
        problems = list(_check_pattern(pattern, n_layers))
        yield from problems
        if problems:
            return
    yield from _check_documents(config)
    for mask, layers in layers_by_mask(config):
        if config.trainer.attention_backend is AttentionBackend.blocked and not isinstance(mask, LOCAL_MASKS):
            place = "" if len(layers) == n_layers else f" in layer {layers[0]}"
            yield SettingsError(
                f"trainer.attention_backend=blocked needs a mask with a bounded reach, but mask={mask.name}{place} "
                "has none",
                where="trainer.attention_backend, mask",
                hint=f"use another backend, or one of these masks: {', '.join(kind.name for kind in LOCAL_MASKS)}",
            )
        yield from _check_settings(mask, config.mask, config.size.context_length)


def _check_pattern(pattern: Any, n_layers: int) -> Iterator[NanolmError]:
    """Find names and letters in a pattern that stand for no mask, and a length that does not divide the layers."""
    known = sorted(MASKS.names - {PatternConfig.name})
    letters = " and ".join(f"{letter} for {name}" for letter, name in PATTERN_LETTERS.items())
    if not isinstance(pattern, str | list) or not pattern:
        yield SettingsError(
            f"mask.pattern is {pattern!r}",
            where="mask.pattern",
            hint=f"a list of masks, [causal,banded_causal], or letters: {letters}, as in SSSL",
        )
        return
    if isinstance(pattern, str):
        unknown = sorted(set(pattern) - set(PATTERN_LETTERS))
        if unknown:
            yield SettingsError(
                f"mask.pattern is {pattern!r}, but there is no mask for {', '.join(unknown)}",
                where="mask.pattern",
                hint=f"{letters}; masks by name go in a list, [causal,banded_causal]",
            )
    else:
        for name in pattern:
            if name not in known:
                yield SettingsError(f"there is no mask {name!r}", where="mask.pattern", hint=nearest(str(name), known))
    if n_layers % len(pattern):
        divisors = [str(n) for n in range(1, n_layers + 1) if n_layers % n == 0]
        yield SettingsError(
            f"size.n_layers ({n_layers}) is not a multiple of the {len(pattern)} masks in mask.pattern",
            where="mask.pattern, size.n_layers",
            hint=f"the number of masks must divide the number of layers: {', '.join(divisors)}",
        )


def _check_documents(config: Config) -> Iterator[NanolmError]:
    if isinstance(config.mask, DocumentConfig) and not config.mask.within_documents:
        yield SettingsError(
            "mask.within_documents is false, but mask=document is causal within documents",
            where="mask.within_documents",
            hint="use mask=causal to see across documents",
        )
    # Rows of lines or documents never see another document, however the text is split.
    is_split_by_line = config.dataset.split_by is SplitBy.line and not config.trainer.sampling.in_rows
    if is_split_by_line and reads_documents(config):
        yield SettingsError(
            "mask.within_documents needs whole documents, but dataset.split_by=line splits them",
            where="mask.within_documents, dataset.split_by",
            hint="use dataset.split_by=document or fraction, or trainer.sampling=lines",
        )


def _check_settings(mask: MaskConfig, base: MaskConfig, context_length: int) -> Iterator[NanolmError]:
    """Find missing values and spans that exceed the context, in the mask of a layer.

    Args:
        mask: of a layer.
        base: config.mask, which may be a pattern with this mask in it.
        context_length: in tokens.
    """
    for key, field, value in leaves(mask):
        is_own = hasattr(base, key)
        if value == MISSING:
            yield SettingsError(
                f"the mask {mask.name!r} in the pattern needs a value for {key}",
                where="mask.pattern",
                hint=f"use mask={mask.name} mask.{key}=... together with the pattern",
            )
        elif setting_of(field).in_context and value > context_length:
            yield SettingsError(
                f"mask.{key} ({value}{'' if is_own else f', the default of {mask.name}'}) is larger than "
                f"size.context_length ({context_length})",
                where=f"mask.{key}, size.context_length" if is_own else "mask.pattern, size.context_length",
                hint=f"use {'' if is_own else 'mask=pattern '}mask.{key}=N with N from 1 to {context_length}",
            )
