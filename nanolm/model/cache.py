"""A key-value cache for generating text token by token."""

from __future__ import annotations

import torch


class LayerCache:
    """Keys and values of one layer, and inputs of its convolutions.

    Attributes:
        start: position from which the next keys and values are written; later ones are overwritten.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.start = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self._inputs: dict[str, torch.Tensor] = {}

    def append_inputs(self, sublayer: str, x_BxTxC: torch.Tensor, reach: int) -> torch.Tensor:
        """Store the inputs of a sublayer from position `start` on; return them after the `reach` inputs before."""
        before = self._inputs.get(sublayer, x_BxTxC[:, :0])[:, : self.start]
        self._inputs[sublayer] = torch.cat([before, x_BxTxC], dim=1)
        return torch.cat([before[:, -reach:], x_BxTxC], dim=1)

    def append(self, k_BxHxTxD: torch.Tensor, v_BxHxTxE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values from position `start` on; return those of all positions, BxHxSxD and BxHxSxE."""
        if self._keys is None or self._values is None:
            self._keys = k_BxHxTxD.new_empty(*k_BxHxTxD.shape[:2], self.capacity, k_BxHxTxD.size(3))
            self._values = v_BxHxTxE.new_empty(*v_BxHxTxE.shape[:2], self.capacity, v_BxHxTxE.size(3))
        end = self.start + k_BxHxTxD.size(2)
        self._keys[:, :, self.start : end] = k_BxHxTxD
        self._values[:, :, self.start : end] = v_BxHxTxE
        return self._keys[:, :, :end], self._values[:, :, :end]

    def contents(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of all positions up to the capacity; those that were never written are undefined."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys, self._values


class Cache:
    """Keys and values of all layers.

    Attributes:
        length: number of positions whose keys and values are final. The model is called with the tokens from there on:
            under a causal mask the new tokens, under a non-causal mask also earlier positions that see new ones.
    """

    def __init__(self, n_layers: int, capacity: int, final_positions: torch.Tensor) -> None:
        """Create an empty cache.

        Args:
            n_layers: number of layers of the model.
            capacity: context length of the model.
            final_positions: for 0 .. capacity tokens, the number of positions that no later token changes.
        """
        self.layers = [LayerCache(capacity) for _ in range(n_layers)]
        self.length = 0
        self._tokens_BxT: torch.Tensor | None = None
        self._final_positions = final_positions.tolist()

    def append_tokens(self, tokens_BxT: torch.Tensor, reach: int) -> torch.Tensor:
        """Store the tokens from position `length` on; return them after the `reach` tokens before, if there are any."""
        before_BxT = tokens_BxT[:, :0] if self._tokens_BxT is None else self._tokens_BxT[:, : self.length]
        self._tokens_BxT = torch.cat([before_BxT, tokens_BxT], dim=1)
        return torch.cat([before_BxT[:, -reach:], tokens_BxT], dim=1)

    def advance(self, end: int) -> None:
        """Record that the keys and values of all positions before `end` have been written."""
        self.length = self._final_positions[end]
        for layer in self.layers:
            layer.start = self.length


def count_final_positions(masks: list[torch.Tensor | None], context_length: int) -> torch.Tensor:
    """Count the positions whose keys and values no later token can change, in any layer.

    Args:
        masks: mask_TxT of each layer; None for a causal mask.
        context_length: largest number of tokens.

    Returns:
        The count for each number of tokens from 0 to context_length. Under causal masks it is the number of tokens.
    """
    final = torch.arange(context_length + 1)
    for mask_TxT in masks:
        if mask_TxT is None:
            continue
        # The furthest key seen by any query so far. The first query that sees beyond the final positions of the layer
        # below is not final, nor is any query after it.
        keys = torch.arange(1, context_length + 1)
        furthest_T = (mask_TxT.cpu() * keys).amax(dim=1).cummax(dim=0).values
        final = torch.minimum(final, torch.searchsorted(furthest_T, final, right=True))
    return final
