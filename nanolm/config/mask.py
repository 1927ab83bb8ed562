"""Attention masks, and the mask of each layer."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from nanolm.config.fields import MISSING, declare, setting
from nanolm.config.model import TransformerConfig
from nanolm.registry import MASKS

if TYPE_CHECKING:
    from nanolm.config.run import Config


@dataclasses.dataclass
class MaskConfig:
    """Settings of every mask: which positions a query may attend to."""

    name: str = MISSING
    pattern: Any = setting(
        None,
        doc="Masks of the layers, repeated over the depth: a list of names, [causal, banded_causal], or letters, SSSL, "
        "where S is banded_causal and L is causal. Each mask of the pattern takes the settings given here that it "
        "has, and its defaults for the rest. null: all layers have the same mask.",
    )
    within_documents: bool = setting(False, doc="Hide the positions of other documents from each position as well.")


_in_context = partial(setting, ge=1, in_context=True)


@dataclasses.dataclass
class NoMaskConfig(MaskConfig):
    """No mask: every position sees all positions, later ones too."""

    name: str = "none"


@dataclasses.dataclass
class CausalConfig(MaskConfig):
    """Every position sees itself and all positions before it."""

    name: str = "causal"


@dataclasses.dataclass
class DocumentConfig(CausalConfig):
    """Causal within documents: a position sees only its own document (Dubey et al. 2024, Llama 3, section 3.2)."""

    name: str = "document"
    within_documents: bool = setting(
        True, doc="Hide the positions of other documents from each position; always true for this mask."
    )


@dataclasses.dataclass
class WindowConfig(MaskConfig):
    """Settings of masks with a window."""

    window: int = _in_context(16, doc="Number of visible positions on each side, not counting the position itself.")


@dataclasses.dataclass
class BandedConfig(WindowConfig):
    """Every position sees itself, `window` positions before it and `window` after it."""

    name: str = "banded"


@dataclasses.dataclass
class BandedCausalConfig(WindowConfig):
    """Sliding window: itself and `window` positions before it, as in GPT-3's local layers (Brown et al. 2020, 2.1)."""

    name: str = "banded_causal"


@dataclasses.dataclass
class PrefixConfig(MaskConfig):
    """Prefix LM: causal, and all positions see the first `prefix_length` positions (Raffel et al. 2020, 3.2.1)."""

    name: str = "prefix"
    prefix_length: int = _in_context(16, doc="Number of positions that every position sees.")


@dataclasses.dataclass
class StridedConfig(MaskConfig):
    """Every position sees itself and every `stride`-th position before it (Child et al. 2019, section 4.3)."""

    name: str = "strided"
    stride: int = _in_context(8, doc="Distance between two visible positions.")


@dataclasses.dataclass
class BlockLocalConfig(MaskConfig):
    """Causal within blocks of `block_size` positions (Child et al. 2019, section 4.3)."""

    name: str = "block_local"
    block_size: int = _in_context(16, doc="Positions per block.")


@dataclasses.dataclass
class PatternConfig(WindowConfig, PrefixConfig, StridedConfig, BlockLocalConfig):
    """A pattern of masks with settings of several kinds, such as [strided, banded_causal]."""

    name: str = "pattern"


declare(MASKS, MaskConfig)

# Masks with a bounded reach.
LOCAL_MASKS = (BandedCausalConfig, BandedConfig, BlockLocalConfig)

# The masks that letters in mask.pattern stand for.
PATTERN_LETTERS = {"S": "banded_causal", "L": "causal"}


def pattern_names(mask: MaskConfig) -> list[str]:
    """Return the names of the masks in a pattern; an empty list without a pattern."""
    if isinstance(mask.pattern, str):
        return [PATTERN_LETTERS.get(letter, letter) for letter in mask.pattern]
    return list(mask.pattern or [])


def pattern_part(base: MaskConfig, name: str) -> MaskConfig:
    """Return the settings of one mask of a pattern.

    within_documents=true applies to every mask of the pattern, except where it is only the default of a base mask
    `document`.
    """
    schema = MASKS.schema(name)
    shared = {
        field.name: getattr(base, field.name)
        for field in dataclasses.fields(schema)
        if field.name not in ("name", "pattern", "within_documents") and hasattr(base, field.name)
    }
    is_given = base.within_documents and not type(base).within_documents
    return schema(name=name, pattern=None, within_documents=is_given or schema.within_documents, **shared)


def layer_masks(config: Config) -> list[MaskConfig]:
    """Return the mask of each layer of a checked config, with its own settings and without a pattern."""
    names = pattern_names(config.mask)
    parts = [pattern_part(config.mask, name) for name in names] if names else [config.mask]
    return [parts[layer % len(parts)] for layer in range(config.size.n_layers)]


def reads_documents(config: Config) -> bool:
    """Whether the model of a checked config needs to know the document of each token."""
    return isinstance(config.model, TransformerConfig) and any(mask.within_documents for mask in layer_masks(config))


def has_table(mask: MaskConfig) -> bool:
    """Return whether a model stores a table of a mask: of all but causal ones and `none`, which kernels know."""
    return not isinstance(mask, CausalConfig | NoMaskConfig)


def layers_by_mask(config: Config) -> list[tuple[MaskConfig, list[int]]]:
    """Return the distinct masks in order of their first layer, each with its layers, counted from 0."""
    found: list[tuple[MaskConfig, list[int]]] = []
    for layer, mask in enumerate(layer_masks(config)):
        known = next((layers for other, layers in found if other == mask), None)
        if known is None:
            found.append((mask, [layer]))
        else:
            known.append(layer)
    return found
