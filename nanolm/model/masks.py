"""Which positions may see which. A mask is a function of (query position, key position, its settings)."""

from __future__ import annotations

import torch

from nanolm.config import CausalConfig, MaskConfig
from nanolm.errors import SettingsError
from nanolm.registry import MASKS


@MASKS.register("causal")
def causal(query: torch.Tensor, key: torch.Tensor, config: CausalConfig) -> torch.Tensor:
    """A position sees itself and everything before it."""
    return key <= query


def dense(config: MaskConfig, length: int) -> torch.Tensor:
    """The mask as a table.

    Returns:
        visible_TxT, bool: row q, column k is whether query q sees key k.

    Raises:
        SettingsError: a row sees nothing, which leaves its softmax without a value.
    """
    positions = torch.arange(length)
    visible_TxT = MASKS[config.name](positions[:, None], positions[None, :], config).expand(length, length)
    blind = (~visible_TxT.any(dim=1)).nonzero().flatten()
    if len(blind):
        raise SettingsError(
            f"the mask {config.name!r} leaves position {int(blind[0])} with nothing to see "
            f"({len(blind)} of {length} positions)",
            where="mask",
            mend="let every position see at least itself",
        )
    return visible_TxT
