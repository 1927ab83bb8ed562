"""Keys and values of a text that grows, so that a token more costs a token and not the whole text."""

from __future__ import annotations

import torch


class LayerCache:
    """Keys and values of one layer, of positions from 0 on."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # Keys and values of later positions are written anew.
        self.start = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def with_past(self, k_BxHxTxD: torch.Tensor, v_BxHxTxD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes up the keys and values of positions from `start` on; returns those of all positions from 0 on."""
        if self._keys is None or self._values is None:
            self._keys = k_BxHxTxD.new_empty(*k_BxHxTxD.shape[:2], self.capacity, k_BxHxTxD.size(3))
            self._values = v_BxHxTxD.new_empty(*v_BxHxTxD.shape[:2], self.capacity, v_BxHxTxD.size(3))
        end = self.start + k_BxHxTxD.size(2)
        self._keys[:, :, self.start : end] = k_BxHxTxD
        self._values[:, :, self.start : end] = v_BxHxTxD
        return self._keys[:, :, :end], self._values[:, :, :end]


class Cache:
    """Keys and values of every layer.

    Attributes:
        length: positions whose keys and values stand, whatever comes after them. A model is given the tokens from there
            on: with a causal mask the new ones alone, with one that sees the future those that see the new ones too.
    """

    def __init__(self, n_layers: int, capacity: int, settled: torch.Tensor) -> None:
        """Args:
        n_layers: of the model.
        capacity: positions of its context.
        settled: for 0 .. capacity tokens, how many positions no later token changes.
        """
        self.layers = [LayerCache(capacity) for _ in range(n_layers)]
        self.length = 0
        self._settled = settled.tolist()

    def grow(self, end: int) -> None:
        """Says that the positions before `end` are in."""
        self.length = self._settled[end]
        for layer in self.layers:
            layer.start = self.length


def settled_positions(tables: list[torch.Tensor | None], context_length: int) -> torch.Tensor:
    """How many positions stand when so many tokens are known: no token after them changes what their layers hold.

    Args:
        tables: visible_TxT of each layer; None for a causal one.
        context_length: positions.

    Returns:
        For 0 .. context_length tokens, a number each. Under causal masks it is the number of tokens itself.
    """
    settled = torch.arange(context_length + 1)
    for visible_TxT in tables:
        if visible_TxT is None:
            continue
        # The furthest key that is seen up to each query: from the first query on that sees a key past those that
        # stand, nothing does.
        keys = torch.arange(1, context_length + 1)
        furthest = (visible_TxT.cpu() * keys).amax(dim=1).cummax(dim=0).values
        settled = torch.minimum(settled, torch.searchsorted(furthest, settled, right=True))
    return settled
