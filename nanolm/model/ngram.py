"""The n-gram model, whose probabilities are computed from counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.model import NgramConfig, Smoothing
from nanolm.config.run import Config
from nanolm.data.tokens.stream import Tokens
from nanolm.model.ngram_smoothing import add_k, kneser_ney
from nanolm.model.ngram_trie import count_ngrams, level_ends
from nanolm.registry import MODELS


@MODELS.register("ngram")
def ngram(config: Config, vocab_size: int) -> Ngram:
    """Build an n-gram model without counts, to be fitted."""
    assert isinstance(config.model, NgramConfig)
    return Ngram(vocab_size, config.model)


class Ngram(nn.Module):
    """An interpolated n-gram model. It has no parameters; before `fit` all tokens are equally likely.

    A position sees the last order - 1 tokens, its own included, and none before its row: the first positions of a row
    have the distributions of models of lower order.

    Attributes:
        keys: n-grams of the text (nanolm.model.ngram_trie), int64.
        counts: number of occurrences of each, int64. All other buffers follow from keys and counts and are not saved.
        starts: index in `keys` of the first child of each context.
        shares: contribution of each node to the probability of its last token: row 0 if its context is the longest one
            of the position, row 1 if it is backed off to from a longer one. The empty n-gram, node 0, contributes 0.
        rests: probability that each context leaves to the next shorter one, in the same rows.
        lowest: unigram distribution of length V, weighted with what all longer contexts leave.
    """

    keys: torch.Tensor
    counts: torch.Tensor
    starts: torch.Tensor
    shares: torch.Tensor
    rests: torch.Tensor
    lowest: torch.Tensor

    def __init__(self, vocab_size: int, config: NgramConfig) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.order = config.order
        self.smoothing = config.smoothing
        self.add_k = config.add_k
        self._set_counts(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), torch.device("cpu"))

    def fit(self, tokens: Tokens) -> int:
        """Count the n-grams of a text.

        Returns:
            The number of distinct n-grams of all lengths.
        """
        self._set_counts(*count_ngrams(tokens, self.vocab_size, self.order), self.keys.device)
        return len(self.keys)

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities_BxTxV of the token after each position."""
        rest_BT = torch.ones(tokens_BxT.numel(), device=tokens_BxT.device)
        contributions = []
        for context_BxT, row_BxT in self._contexts(tokens_BxT):
            context_BT, row_BT = context_BxT.flatten(), row_BxT.flatten()
            contributions.append(self._contributions(context_BT, row_BT, rest_BT))
            rest_BT = rest_BT * self._rest(context_BT, row_BT)
        probability_BTxV = rest_BT[:, None] * self.lowest
        for index, amounts in contributions:
            probability_BTxV.view(-1).index_add_(0, index, amounts)
        return safe_log(probability_BTxV).view(*tokens_BxT.shape, self.vocab_size)

    def target_log_probabilities(self, tokens_BxT: torch.Tensor, targets_BxT: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each target, BxT, without computing those of all other tokens."""
        rest_BxT = torch.ones(tokens_BxT.shape, device=tokens_BxT.device)
        probability_BxT = torch.zeros_like(rest_BxT)
        for context_BxT, row_BxT in self._contexts(tokens_BxT):
            node_BxT = self._child(context_BxT, targets_BxT)
            probability_BxT += rest_BxT * self.shares[row_BxT, node_BxT.clamp(min=0)]
            rest_BxT = rest_BxT * self._rest(context_BxT, row_BxT)
        return safe_log(probability_BxT + rest_BxT * self.lowest[targets_BxT])

    def _rest(self, context: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Return the probability that each context leaves to shorter ones; 1 for a context that is not in the trie."""
        return torch.where(context >= 0, self.rests[row, context.clamp(min=0)], 1.0)

    def _contexts(self, tokens_BxT: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Find the contexts of each position, the longest first.

        Returns:
            For each length, the node of each context, -1 if it is not in the trie; and its row in `shares` and `rests`.
        """
        previous_BxT = torch.zeros_like(tokens_BxT)
        positions_T = torch.arange(tokens_BxT.shape[1], device=tokens_BxT.device)
        contexts = []
        for length in range(1, self.order):
            context_BxT = self._child(previous_BxT, tokens_BxT)
            previous_BxT = F.pad(context_BxT[:, :-1], (1, 0), value=-1)
            has_longer_T = (positions_T >= length) & (length < self.order - 1)
            contexts.append((context_BxT, has_longer_T.long().expand_as(context_BxT)))
        return contexts[::-1]

    def _child(self, context_BxT: torch.Tensor, tokens_BxT: torch.Tensor) -> torch.Tensor:
        """Find the node of each context followed by a token; -1 if it is not in the trie."""
        if not len(self.keys):
            return torch.full_like(tokens_BxT, -1)
        # A missing context, -1, gives a negative key, which is never found.
        key_BxT = context_BxT * self.vocab_size + tokens_BxT
        index_BxT = torch.searchsorted(self.keys, key_BxT).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[index_BxT] == key_BxT, index_BxT + 1, -1)

    def _contributions(
        self, context_BT: torch.Tensor, row_BT: torch.Tensor, rest_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return flat indices into BTxV, and the probability that the children of the contexts add there."""
        at = (context_BT >= 0).nonzero().flatten()
        begins, ends = self.starts[context_BT[at]], self.starts[context_BT[at] + 1]
        lengths = ends - begins
        at = at.repeat_interleave(lengths)
        # Concatenated ranges [begin, end) of the children of each context.
        children = torch.arange(len(at), device=at.device)
        children += (begins - lengths.cumsum(0) + lengths).repeat_interleave(lengths)
        index = at * self.vocab_size + self.keys[children] % self.vocab_size
        return index, rest_BT[at] * self.shares[row_BT[at], children + 1]

    def _set_counts(self, keys: np.ndarray, counts: np.ndarray, device: torch.device) -> None:
        """Register the counts, and the buffers that follow from them.

        Raises:
            ValueError: they are not counts of this order and vocabulary.
        """
        ends = level_ends(keys, self.vocab_size, self.order)
        if counts.shape != keys.shape or counts.min(initial=1) < 1:
            raise ValueError("keys and counts do not match, or a count is less than 1")
        if self.smoothing is Smoothing.kneser_ney:
            shares, rests = kneser_ney(keys, counts, ends, self.vocab_size)
        else:
            shares, rests = add_k(keys, counts, self.vocab_size, self.add_k)
        # Only at order 1 is the empty context the longest of a position.
        row = min(self.order - 1, 1)
        lowest_V = np.full(self.vocab_size, rests[row, 0] / self.vocab_size)
        lowest_V[keys[: ends[1] - 1]] += shares[row, : ends[1] - 1]
        # Contexts are the nodes shorter than the order, which come first.
        n_contexts = ends[-2]
        derived = {
            "starts": np.searchsorted(keys, np.arange(n_contexts + 1) * self.vocab_size),
            "shares": np.pad(shares, ((0, 0), (1, 0))),
            "rests": rests[:, :n_contexts].copy(),
            "lowest": lowest_V,
        }
        for name, values in {"keys": keys, "counts": counts, **derived}.items():
            tensor = torch.from_numpy(values)
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            self.register_buffer(name, tensor.to(device), persistent=name not in derived)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *problems: list[str]
    ) -> None:
        """Load buffers whose size depends on the text that was counted."""
        saved = [state_dict[prefix + name] for name in ("keys", "counts") if prefix + name in state_dict]
        try:
            if len(saved) == 2:
                if any(tensor.dtype != torch.int64 or tensor.dim() != 1 for tensor in saved):
                    raise ValueError("keys and counts must be one-dimensional int64 tensors")
                keys, counts = (tensor.cpu().numpy() for tensor in saved)
                self._set_counts(keys, counts, self.keys.device)
        except ValueError as error:
            problems[-1].append(str(error))
        else:
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, *problems)


def safe_log(probability: torch.Tensor) -> torch.Tensor:
    # A product of small rests can underflow in fp32.
    return probability.clamp_(min=torch.finfo(probability.dtype).tiny).log_()
