"""Counted n-grams whose log-probabilities are added to the logits of a trained model."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.nn import functional as F

from nanolm.config.model import NgramConfig, NgramMixConfig
from nanolm.data.tokens.stream import Tokens
from nanolm.model.ngram import Ngram, safe_log
from nanolm.model.ngram_smoothing import estimate_discounts
from nanolm.model.ngram_trie import continuation_counts, level_ends

# Names of the counts in a state dict of the transformer. Their size depends on the text.
TABLES = ("ngram_mix.ngram.keys", "ngram_mix.ngram.counts")


class NgramMix(nn.Module):
    """Adds sum_k w_k log p_k to logits, where p_k is the interpolated n-gram distribution of length k.

    The weights are w = b + G x, where x is the residual stream that the head reads, and b and G are trained with the
    model. At the start, the weight of the longest n-grams is 1 and all others are 0, so that a transformer whose head
    is zero starts as the n-gram model, and learns where to trust the counts and what they do not tell.

    In training, the occurrence that is predicted is left out of the counts. With it, every target would have been seen
    after its context, and the model would learn to trust the counts more than new text deserves.
    """

    def __init__(self, config: NgramMixConfig, vocab_size: int, width: int) -> None:
        super().__init__()
        assert config.order is not None
        self.order = config.order
        self.ngram = LeaveOneOutNgram(vocab_size, NgramConfig(order=config.order))
        self.bias_K = nn.Parameter(torch.zeros(config.order))
        self.gate_KxC = nn.Parameter(torch.zeros(config.order, width))
        if not self.bias_K.is_meta:
            nn.init.ones_(self.bias_K.data[-1:])

    def count(self, tokens: Tokens) -> int:
        """Count the n-grams of the training tokens, and return the number of distinct ones."""
        return self.ngram.fit(tokens)

    def forward(
        self,
        logits_BxTxV: torch.Tensor,
        x_BxTxC: torch.Tensor,
        tokens_BxS: torch.Tensor,
        targets_BxT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mixed logits_BxTxV in fp32.

        Args:
            x_BxTxC: the normalized residual stream that the logits were computed from.
            tokens_BxS: the inputs of the T positions, and those before them that the n-grams of the first may need.
            targets_BxT: in training, the targets whose occurrences are left out of the counts; negative ones are not
                scored. None: all counts are used.
        """
        n_positions = logits_BxTxV.size(1)
        log_probabilities_KxBxTxV = self._log_probabilities(tokens_BxS, targets_BxT)[:, :, -n_positions:]
        with torch.autocast(logits_BxTxV.device.type, enabled=False):
            weights_BxTxK = F.linear(x_BxTxC.float(), self.gate_KxC.float(), self.bias_K.float())
            return logits_BxTxV.float() + torch.einsum("btk,kbtv->btv", weights_BxTxK, log_probabilities_KxBxTxV)

    # torch.compiler.disable would import the compiler with this module, which takes seconds.
    @_disable_dynamo
    @torch.no_grad()
    def _log_probabilities(self, tokens_BxS: torch.Tensor, targets_BxS: torch.Tensor | None) -> torch.Tensor:
        return safe_log(torch.stack(self.ngram.distributions(tokens_BxS, targets_BxS)))


class LeaveOneOutNgram(Ngram):
    """A Kneser-Ney model that gives the distributions of all orders, and can leave out the occurrence it predicts.

    Attributes:
        node_counts: count of each node: occurrences in row 0, distinct preceding tokens in row 1.
        discounts: subtracted from the count of each node, in the same rows.
        totals: sum of the counts of the children of each context.
    """

    node_counts: torch.Tensor
    discounts: torch.Tensor
    totals: torch.Tensor

    def distributions(self, tokens_BxT: torch.Tensor, targets_BxT: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Return the distribution of the next token by n-grams of up to k tokens, BxTxV, for each k from 1 to order.

        Where a position has a context of less than k - 1 tokens, the distribution is that of the longest it has.

        Args:
            targets_BxT: the tokens that follow, whose occurrences in the text are left out: each n-gram that ends with
                the target counts once less. Of the distinct tokens that precede an n-gram, one is less if the longer
                n-gram occurs only here. None or a negative token leaves out nothing.
        """
        # The empty context; at order 1 it is the longest.
        empty = (torch.zeros_like(tokens_BxT), torch.full_like(tokens_BxT, int(self.order > 1)))
        levels = [(context.flatten(), row.flatten()) for context, row in (empty, *reversed(self._contexts(tokens_BxT)))]
        nodes: list[torch.Tensor | None] = [None] * self.order
        if targets_BxT is not None:
            target_BT = targets_BxT.flatten()
            nodes = [self._child(context, target_BT).where(target_BT >= 0, -1) for context, _ in levels]
        p_BTxV = torch.full((tokens_BxT.numel(), self.vocab_size), 1 / self.vocab_size, device=tokens_BxT.device)
        found = []
        for (context, row), node, longer in zip(levels, nodes, [*nodes[1:], None], strict=True):
            p_BTxV = self._interpolate(p_BTxV, context, row, node, longer)
            found.append(p_BTxV.view(*tokens_BxT.shape, self.vocab_size))
        return found

    def _interpolate(
        self,
        shorter_BTxV: torch.Tensor,
        context_BT: torch.Tensor,
        row_BT: torch.Tensor,
        node_BT: torch.Tensor | None,
        longer_BT: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the distribution of one order, given that of the order below.

        Args:
            node_BT: the n-gram that is left out, -1 if there is none; None if nothing is left out.
            longer_BT: the n-gram that is longer by one token before it; None at the highest order.
        """
        rest_BT, scale_BT = self._rest(context_BT, row_BT), torch.ones_like(shorter_BTxV[:, 0])
        removed = None
        if node_BT is not None:
            removed = self._leave_out(rest_BT, context_BT, row_BT, node_BT, longer_BT)
            rest_BT, scale_BT = removed[:2]
        p_BTxV = rest_BT[:, None] * shorter_BTxV
        index, amounts = self._contributions(context_BT, row_BT, scale_BT)
        p_BTxV.view(-1).index_add_(0, index, amounts)
        if removed is not None and node_BT is not None:
            at = (node_BT >= 0).nonzero().flatten()
            tokens = self.keys[node_BT[at] - 1] % self.vocab_size
            p_BTxV.view(-1).index_add_(0, at * self.vocab_size + tokens, removed[2][at])
        return p_BTxV

    def _leave_out(
        self,
        rest_BT: torch.Tensor,
        context_BT: torch.Tensor,
        row_BT: torch.Tensor,
        node_BT: torch.Tensor,
        longer_BT: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what changes if an occurrence of each node is left out.

        Returns:
            The rest of each context, the factor on the shares of its children, and the difference of the target's share
            after that.
        """
        at_context, at_node = context_BT.clamp(min=0), node_BT.clamp(min=0)
        is_only = row_BT == 0
        if longer_BT is not None:
            is_only = is_only | ((longer_BT >= 0) & (self.node_counts[0, longer_BT.clamp(min=0)] == 1))
        removed = ((node_BT >= 0) & is_only).float()
        total, count = self.totals[row_BT, at_context], self.node_counts[row_BT, at_node]
        discount = self.discounts[row_BT, at_node]
        left = total - removed
        has_left = left > 0
        left = left.clamp(min=1)
        fewer = torch.minimum(count, discount) - torch.minimum((count - removed).clamp(min=0), discount)
        rest = torch.where(has_left, (rest_BT * total - fewer * removed) / left, 1.0)
        scale = torch.where(has_left, total / left, 0.0)
        share = torch.where(has_left, (count - removed - discount).clamp(min=0) / left, 0.0)
        difference = share - self.shares[row_BT, at_node] * scale
        is_changed = removed > 0
        return (
            torch.where(is_changed, rest, rest_BT),
            torch.where(is_changed, scale, 1.0),
            torch.where(is_changed, difference, 0.0),
        )

    def _set_counts(self, keys: np.ndarray, counts: np.ndarray, device: torch.device) -> None:
        super()._set_counts(keys, counts, device)
        ends = level_ends(keys, self.vocab_size, self.order)
        n_contexts, rows = ends[-2], (counts, continuation_counts(keys, ends, self.vocab_size))
        totals = [np.bincount(keys // self.vocab_size, row, minlength=len(keys) + 1)[:n_contexts] for row in rows]
        derived = {
            "node_counts": np.pad(np.stack(rows), ((0, 0), (1, 0))),
            "discounts": np.pad(np.stack([estimate_discounts(row, ends) for row in rows]), ((0, 0), (1, 0))),
            "totals": np.stack(totals),
        }
        for name, values in derived.items():
            self.register_buffer(name, torch.from_numpy(values).float().to(device), persistent=False)
