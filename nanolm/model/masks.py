"""Attention masks.

A mask is a function of (query positions, key positions, settings) that returns True where the query sees the key.
"""

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
    """Every position sees all positions (Devlin et al. 2019, BERT)."""
    return torch.ones_like(query + key, dtype=torch.bool)


# The setting `within_documents` of mask=document hides positions of other documents.
@MASKS.register("document")
@MASKS.register("causal")
def causal(query: torch.Tensor, key: torch.Tensor, config: CausalConfig | DocumentConfig) -> torch.Tensor:
    """A position sees itself and all earlier positions."""
    return key <= query


@MASKS.register("banded")
def banded(query: torch.Tensor, key: torch.Tensor, config: BandedConfig) -> torch.Tensor:
    """A position sees itself and `window` positions on each side (Beltagy et al. 2020, Longformer, section 3.1)."""
    return (query - key).abs() <= config.window


@MASKS.register("banded_causal")
def banded_causal(query: torch.Tensor, key: torch.Tensor, config: BandedCausalConfig) -> torch.Tensor:
    """A position sees itself and the `window` positions before it (Child et al. 2019, section 4.3, strided, head 1)."""
    return (key <= query) & (query - key <= config.window)


@MASKS.register("prefix")
def prefix(query: torch.Tensor, key: torch.Tensor, config: PrefixConfig) -> torch.Tensor:
    """A position sees the first `prefix_length`, itself and all earlier ones (Raffel et al. 2020, section 3.2.1)."""
    return (key <= query) | (key < config.prefix_length)


@MASKS.register("strided")
def strided(query: torch.Tensor, key: torch.Tensor, config: StridedConfig) -> torch.Tensor:
    """A position sees itself and every `stride`-th one before it (Child et al. 2019, section 4.3, strided, head 2)."""
    return (key <= query) & ((query - key) % config.stride == 0)


@MASKS.register("block_local")
def block_local(query: torch.Tensor, key: torch.Tensor, config: BlockLocalConfig) -> torch.Tensor:
    """A position sees itself and earlier positions of its block (Child et al. 2019, section 4.3, fixed, head 1)."""
    return (key <= query) & (query // config.block_size == key // config.block_size)


def same_document(documents_BxT: torch.Tensor) -> torch.Tensor:
    """Return a bool BxTxT tensor: whether two positions of a row have the same document number."""
    return documents_BxT[:, :, None] == documents_BxT[:, None, :]


def is_own(config: MaskConfig) -> bool:
    """Return whether a mask is one of this module, under which every position sees itself, and not a plugin's."""
    return MASKS[config.name].__module__ == __name__


def evaluate_mask(config: MaskConfig, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Evaluate a mask for all pairs of positions, as if all positions were of one document.

    Returns:
        mask_TxT, bool: whether the query of a row sees the key of a column.

    Raises:
        SettingsError: the mask returned something other than a bool tensor.
    """
    positions = torch.arange(length, device=device)
    found = MASKS[config.name](positions[:, None], positions[None, :], config)
    try:
        mask_TxT = found.expand(length, length)
        is_bool = found.dtype is torch.bool
    except (AttributeError, RuntimeError):
        is_bool = False
    if not is_bool:
        raise SettingsError(
            f"the mask {config.name!r} did not return a bool tensor for {length} x {length} positions",
            where="mask",
            hint="compare the two positions, as in `return key <= query`",
        )
    return mask_TxT


def dense_mask(config: MaskConfig, length: int) -> torch.Tensor:
    """Evaluate a mask on the CPU, as `evaluate_mask` does, and check it.

    Raises:
        SettingsError: the mask returned something other than a bool tensor, or a position sees no position.
    """
    mask_TxT = evaluate_mask(config, length)
    _require_visible_keys(config, mask_TxT)
    return mask_TxT


def describe_mask(config: MaskConfig) -> str:
    """Describe a mask with its settings, as in 'banded_causal, window 16'."""
    hidden = ("name", "pattern", "within_documents")
    settings = [f"{key} {value}" for key, _, value in leaves(config) if key not in hidden]
    return ", ".join([config.name, *settings, *(["within documents"] if config.within_documents else [])])


def describe_layers(layers: Sequence[int], n_layers: int) -> str:
    """Describe layer numbers, counted from 0, as in 'layers 0, 2'."""
    if len(layers) == n_layers:
        return "every layer"
    if len(layers) > 8:
        return f"layers {', '.join(map(str, layers[:3]))}, ... ({len(layers)} of {n_layers})"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def noncausal_warnings(config: Config) -> list[str]:
    """Write a warning for each non-causal mask of the model; empty if the loss is that of next-token prediction.

    Whether a mask is causal is read from its values and not declared, so masks of plugins are detected as well.
    """
    layers_of_masks = layers_by_mask(config) if config.model.reads_mask else []
    warnings = []
    for mask, layers in layers_of_masks:
        if isinstance(mask, CausalConfig):
            continue
        pair = first_future_pair(dense_mask(mask, config.size.context_length))
        if pair is not None:
            place = "" if len(layers_of_masks) == 1 else f" ({describe_layers(layers, config.size.n_layers)})"
            warnings.append(
                f"mask={mask.name}{place} is not causal: position {pair[0]} sees position {pair[1]}; "
                "the loss is not that of next-token prediction"
            )
    return warnings


def first_future_pair(mask_TxT: torch.Tensor) -> tuple[int, int] | None:
    """Find the first (query, key) with the key after the query; None if the mask is causal."""
    future_TxT = mask_TxT.triu(1)
    queries = future_TxT.any(dim=1).nonzero().flatten()
    if not len(queries):
        return None
    query = int(queries[0])
    return query, int(future_TxT[query].nonzero()[0])


def _require_visible_keys(config: MaskConfig, mask_TxT: torch.Tensor) -> None:
    # Keys after a query are missing if the input ends there; keys before it, if a document begins there.
    has_key_T = mask_TxT.diagonal() if config.within_documents else mask_TxT.tril().any(dim=1)
    blind = (~has_key_T).nonzero().flatten()
    if not len(blind):
        return
    row, length = int(blind[0]), len(mask_TxT)
    if config.within_documents:
        found = f"lets position {row} see nothing if a document begins there"
    elif mask_TxT[row].any():
        found = f"lets position {row} see later positions only, and nothing if the text ends there"
    else:
        found = f"lets position {row} see nothing"
    raise SettingsError(
        f"the mask {config.name!r} {found} ({len(blind)} of {length} positions)",
        where="mask",
        hint="let every position see itself",
    )
