"""Masks over the whole context as tensors, for the attention backends that read one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nanolm.config.mask import MaskConfig, NoMaskConfig, has_table
from nanolm.model.masks import dense_mask, evaluate_mask, is_own


class MaskTables:
    """The masks of a model, each evaluated when it is first read, and kept on the device that it was read for.

    Masks of plugins are evaluated at once, which checks them.

    Args:
        masks: the distinct masks of the layers.
        length: the context length.

    Raises:
        SettingsError: as `dense_mask`.
    """

    def __init__(self, masks: Sequence[MaskConfig], length: int) -> None:
        self._masks = masks
        self._length = length
        of_plugins = [index for index, mask in enumerate(masks) if has_table(mask) and not is_own(mask)]
        with torch.device("cpu"):  # values are checked, which meta tensors do not have
            self._tables = {index: dense_mask(masks[index], length) for index in of_plugins}

    def read(self, index: int, device: torch.device) -> torch.Tensor | None:
        """Return mask_TxT of a mask; None for a causal one."""
        mask = self._masks[index]
        if isinstance(mask, NoMaskConfig):
            # One element, repeated.
            return torch.ones((), dtype=torch.bool, device=device).expand(self._length, self._length)
        if not has_table(mask):
            return None
        if torch.compiler.is_compiling() and is_own(mask):
            # Not a table: the kernel that reads it compares the positions.
            return evaluate_mask(mask, self._length, device)
        table = self._tables.get(index)
        if table is None or table.device != device:
            # Evaluated on the CPU, because the distances of positions are eight times as large as the table.
            with torch.inference_mode(False):
                table = (evaluate_mask(mask, self._length) if table is None else table).to(device)
            self._tables[index] = table
        return table
