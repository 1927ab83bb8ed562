"""Which positions may see which."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from nanolm.config.fields import declare, in_context
from nanolm.config.model import TransformerConfig
from nanolm.registry import MASKS

if TYPE_CHECKING:
    from nanolm.config.run import Config


@dataclasses.dataclass
class MaskConfig:
    """Which positions a query may attend to: the same in all layers, or a pattern of masks over the layers."""

    name: str = MISSING
    # Masks that the layers take in turn, [causal, banded_causal], or letters such as SSSL: S is banded_causal, L is
    # causal. A mask of the pattern has the settings written here that are its own too, and its defaults for the rest.
    pattern: Any = None
    # Whatever the mask lets through, a position sees nothing of another document.
    within_documents: bool = False


@dataclasses.dataclass
class NoMaskConfig(MaskConfig):
    """Everything, before and after it."""

    name: str = "none"


@dataclasses.dataclass
class CausalConfig(MaskConfig):
    """Itself and everything before it."""

    name: str = "causal"


@dataclasses.dataclass
class DocumentConfig(CausalConfig):
    """Itself and everything before it in its own document (Dubey et al. 2024, Llama 3, section 3.2)."""

    name: str = "document"
    within_documents: bool = True


@dataclasses.dataclass
class WindowConfig(MaskConfig):
    """What every mask has that sees a band around itself."""

    # Positions seen on a side; a position sees itself besides.
    window: int = in_context(16)


@dataclasses.dataclass
class BandedConfig(WindowConfig):
    """Itself, the `window` before it and the `window` after it."""

    name: str = "banded"


@dataclasses.dataclass
class BandedCausalConfig(WindowConfig):
    """Itself and the `window` before it: the locally banded layers of GPT-3 (Brown et al. 2020, section 2.1)."""

    name: str = "banded_causal"


@dataclasses.dataclass
class PrefixConfig(MaskConfig):
    """Itself and everything before it, and all of the first `prefix_length` positions (Raffel et al. 2020, 3.2.1)."""

    name: str = "prefix"
    prefix_length: int = in_context(16)


@dataclasses.dataclass
class StridedConfig(MaskConfig):
    """Itself and every `stride`-th before it (Sparse Transformer, Child et al. 2019, section 4.3)."""

    name: str = "strided"
    stride: int = in_context(8)


@dataclasses.dataclass
class BlockLocalConfig(MaskConfig):
    """Itself and what is before it in its own block of `block_size` positions (Child et al. 2019, section 4.3)."""

    name: str = "block_local"
    block_size: int = in_context(16)


@dataclasses.dataclass
class PatternConfig(WindowConfig, PrefixConfig, StridedConfig, BlockLocalConfig):
    """A pattern whose masks have settings of several kinds, such as [strided, banded_causal]."""

    name: str = "pattern"


declare(
    MASKS,
    NoMaskConfig,
    CausalConfig,
    DocumentConfig,
    BandedConfig,
    BandedCausalConfig,
    PrefixConfig,
    StridedConfig,
    BlockLocalConfig,
    PatternConfig,
)

# Masks that see near by only.
LOCAL_MASKS = (BandedCausalConfig, BandedConfig, BlockLocalConfig)

# What a letter of mask.pattern stands for.
PATTERN_LETTERS = {"S": "banded_causal", "L": "causal"}


def pattern_names(mask: MaskConfig) -> list[str]:
    """The masks of a pattern, by name; none where there is no pattern."""
    if isinstance(mask.pattern, str):
        return [PATTERN_LETTERS.get(letter, letter) for letter in mask.pattern]
    return list(mask.pattern or [])


def pattern_part(base: MaskConfig, name: str) -> MaskConfig:
    """The settings of one mask of a pattern.

    `document` in a pattern says nothing of the masks beside it, even where it is the base; within_documents written on
    any other base holds for all of them.
    """
    schema = MASKS.schemas.get(name, MaskConfig)
    written = {
        field.name: getattr(base, field.name)
        for field in dataclasses.fields(schema)
        if field.name not in ("name", "pattern", "within_documents") and hasattr(base, field.name)
    }
    is_written = base.within_documents and not type(base).within_documents
    return schema(name=name, pattern=None, within_documents=is_written or schema.within_documents, **written)


def layer_masks(config: Config) -> list[MaskConfig]:
    """The mask of each layer, its own settings and no pattern in it. The settings must be sound."""
    names = pattern_names(config.mask)
    parts = [pattern_part(config.mask, name) for name in names] if names else [config.mask]
    return [parts[layer % len(parts)] for layer in range(config.size.n_layers)]


def reads_documents(config: Config) -> bool:
    """Whether the model must be told which document each token is of. The settings must be sound."""
    return isinstance(config.model, TransformerConfig) and any(mask.within_documents for mask in layer_masks(config))


def layers_by_mask(config: Config) -> list[tuple[MaskConfig, list[int]]]:
    """The masks that differ, in the order in which layers first have them, each with its layers, counted from 0."""
    found: list[tuple[MaskConfig, list[int]]] = []
    for layer, mask in enumerate(layer_masks(config)):
        known = next((layers for other, layers in found if other == mask), None)
        if known is None:
            found.append((mask, [layer]))
        else:
            known.append(layer)
    return found
