"""Which positions may see which. A mask is a function of (query position, key position, its settings)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nanolm.config.fields import leaves
from nanolm.config.mask import (
    BandedCausalConfig,
    BandedConfig,
    BlockLocalConfig,
    CausalConfig,
    DocumentConfig,
    MaskConfig,
    NoMaskConfig,
    PrefixConfig,
    StridedConfig,
    layers_by_mask,
)
from nanolm.config.run import Config
from nanolm.errors import SettingsError
from nanolm.registry import MASKS


@MASKS.register("none")
def none(query: torch.Tensor, key: torch.Tensor, config: NoMaskConfig) -> torch.Tensor:
    """A position sees all of them (Devlin et al. 2019, BERT)."""
    return torch.ones_like(query + key, dtype=torch.bool)


@MASKS.register("causal")
def causal(query: torch.Tensor, key: torch.Tensor, config: CausalConfig) -> torch.Tensor:
    """A position sees itself and everything before it."""
    return key <= query


@MASKS.register("document")
def document(query: torch.Tensor, key: torch.Tensor, config: DocumentConfig) -> torch.Tensor:
    """A position sees itself and everything before it; `within_documents` keeps it in its document."""
    return key <= query


@MASKS.register("banded")
def banded(query: torch.Tensor, key: torch.Tensor, config: BandedConfig) -> torch.Tensor:
    """A position sees itself and `window` positions on each side (Beltagy et al. 2020, Longformer, section 3.1)."""
    return (query - key).abs() <= config.window


@MASKS.register("banded_causal")
def banded_causal(query: torch.Tensor, key: torch.Tensor, config: BandedCausalConfig) -> torch.Tensor:
    """A position sees itself and the `window` before it (Child et al. 2019, section 4.3, the first head of strided)."""
    return (key <= query) & (query - key <= config.window)


@MASKS.register("prefix")
def prefix(query: torch.Tensor, key: torch.Tensor, config: PrefixConfig) -> torch.Tensor:
    """A position sees the first `prefix_length`, itself and what is before it (Raffel et al. 2020, section 3.2.1)."""
    return (key <= query) | (key < config.prefix_length)


@MASKS.register("strided")
def strided(query: torch.Tensor, key: torch.Tensor, config: StridedConfig) -> torch.Tensor:
    """A position sees itself and every `stride`-th before it (Child et al. 2019, section 4.3, the second head)."""
    return (key <= query) & ((query - key) % config.stride == 0)


@MASKS.register("block_local")
def block_local(query: torch.Tensor, key: torch.Tensor, config: BlockLocalConfig) -> torch.Tensor:
    """A position sees itself and its block's before it (Child et al. 2019, section 4.3, the first head of fixed)."""
    return (key <= query) & (query // config.block_size == key // config.block_size)


def same_document(documents_BxT: torch.Tensor) -> torch.Tensor:
    """Which positions of a row are of one document: BxTxT, bool; documents_BxT numbers them."""
    return documents_BxT[:, :, None] == documents_BxT[:, None, :]


def dense_mask(config: MaskConfig, length: int) -> torch.Tensor:
    """The mask as a table, on the CPU: over a single document, where it is a mask within documents.

    Returns:
        visible_TxT, bool: row q, column k is whether query q sees key k.

    Raises:
        SettingsError: a row sees nothing, which leaves its softmax without a value; or the mask is no truth values.
    """
    positions = torch.arange(length, device="cpu")
    visible = MASKS[config.name](positions[:, None], positions[None, :], config)
    try:
        visible_TxT = visible.expand(length, length)
        is_table = visible.dtype is torch.bool
    except (AttributeError, RuntimeError):
        is_table = False
    if not is_table:
        raise SettingsError(
            f"the mask {config.name!r} returned no truth values for {length} x {length} positions",
            where="mask",
            hint="compare the two positions that it is given, as in key <= query",
        )
    _require_sight(config, visible_TxT)
    return visible_TxT


def describe_mask(config: MaskConfig) -> str:
    """The mask and its settings in a few words: 'banded_causal, window 16'."""
    left_out = ("name", "pattern", "within_documents")
    settings = [f"{key} {value}" for key, _, value in leaves(config) if key not in left_out]
    return ", ".join([config.name, *settings, *(["within documents"] if config.within_documents else [])])


def noncausal_warnings(config: Config) -> list[str]:
    """What is to be said of a next-token loss under these settings: a sentence for each mask that sees the future."""
    by_mask = layers_by_mask(config) if config.model.reads_mask else []
    found = []
    for mask, layers in by_mask:
        leak = first_future_pair(dense_mask(mask, config.size.context_length))
        if leak is not None:
            place = "" if len(by_mask) == 1 else f", of {describe_layers(layers, config.size.n_layers)},"
            found.append(
                f"mask={mask.name}{place} sees the future: position {leak[0]} sees {leak[1]}; "
                "its loss is no longer that of next-token prediction"
            )
    return found


def describe_layers(layers: Sequence[int], n_layers: int) -> str:
    """Layers in a few words; they are counted from 0, as positions are."""
    if len(layers) == n_layers:
        return "every layer"
    if len(layers) > 8:
        return f"layers {', '.join(map(str, layers[:3]))}, ... ({len(layers)} of {n_layers})"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def first_future_pair(visible_TxT: torch.Tensor) -> tuple[int, int] | None:
    """The first (query, key) that sees the future; None where no position does."""
    leaks_TxT = visible_TxT.triu(1)
    rows = leaks_TxT.any(dim=1).nonzero().flatten()
    if not len(rows):
        return None
    query = int(rows[0])
    return query, int(leaks_TxT[query].nonzero()[0])


def _require_sight(config: MaskConfig, visible_TxT: torch.Tensor) -> None:
    # What a row sees after itself is not there when the input ends with it, nor what is before it when a document
    # begins with it.
    has_sight_T = visible_TxT.diagonal() if config.within_documents else visible_TxT.tril().any(dim=1)
    blind = (~has_sight_T).nonzero().flatten()
    if not len(blind):
        return
    row, length = int(blind[0]), len(visible_TxT)
    if config.within_documents:
        found = f"leaves position {row} with nothing to see where a document begins there"
    elif visible_TxT[row].any():
        found = f"shows position {row} only what comes after it, and nothing where a text ends there"
    else:
        found = f"leaves position {row} with nothing to see"
    raise SettingsError(
        f"the mask {config.name!r} {found} ({len(blind)} of {length} positions)",
        where="mask",
        hint="let every position see at least itself",
    )
