"""The counted model: the next token given the few before it, from a table of n-grams."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.model import NgramConfig, Smoothing
from nanolm.config.run import Config
from nanolm.data.tokens.stream import Tokens
from nanolm.model.ngram_trie import continuation_counts, count_grams, level_ends
from nanolm.registry import MODELS

# Of a length none of whose grams is counted once, or none twice: the estimate would be 0, or drop all counted once.
USUAL_DISCOUNT = 0.5


@MODELS.register("ngram")
def ngram(config: Config, vocab_size: int) -> Ngram:
    """A table of n-grams, empty until `fit` has counted them."""
    assert isinstance(config.model, NgramConfig)
    return Ngram(vocab_size, config.model)


class Ngram(nn.Module):
    """Probabilities from the counts of n-grams. It has no parameters; before `fit` all tokens are equally likely.

    A position sees up to order - 1 tokens, itself the last of them and none before its row: the first positions of a
    row have the distributions of models of lower order.

    Attributes:
        keys: int64, the n-grams of the text (nanolm.model.ngram_trie), saved with
        counts: int64, how often each was seen. All else follows from these two and is not saved.
        starts: where the children of each context begin in `keys`.
        shares: what each node adds to the probability of its last token: row 0 where its context is the longest that a
            position has, row 1 where a longer one left something to it. The empty gram, node 0, adds nothing.
        rests: what each context leaves to the next shorter one, in the same rows.
        lowest: of length V, the distribution that takes what all other contexts leave.
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
        self._hold(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), torch.device("cpu"))

    def fit(self, tokens: Tokens) -> int:
        """Counts the n-grams of a text, which takes the place of training.

        Returns:
            How many different ones there are, of all lengths together.
        """
        self._hold(*count_grams(tokens, self.vocab_size, self.order), self.keys.device)
        return len(self.keys)

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:
        """Log-probabilities_BxTxV of the token that follows each position."""
        left_N = torch.ones(tokens_BxT.numel(), device=tokens_BxT.device)
        parts = []
        for context_BxT, row_BxT in self._contexts(tokens_BxT):
            context_N, row_N = context_BxT.flatten(), row_BxT.flatten()
            parts.append(self._children(context_N, row_N, left_N))
            left_N = left_N * self._rest(context_N, row_N)
        probability_NxV = left_N[:, None] * self.lowest
        for places, amounts in parts:
            probability_NxV.view(-1).index_add_(0, places, amounts)
        return _log(probability_NxV).view(*tokens_BxT.shape, self.vocab_size)

    def target_log_probabilities(self, tokens_BxT: torch.Tensor, targets_BxT: torch.Tensor) -> torch.Tensor:
        """Of each target, the log-probability that it follows its position, BxT: what `forward` has at its place."""
        left_BxT = torch.ones(tokens_BxT.shape, device=tokens_BxT.device)
        probability_BxT = torch.zeros_like(left_BxT)
        for context_BxT, row_BxT in self._contexts(tokens_BxT):
            gram_BxT = self._child(context_BxT, targets_BxT)
            probability_BxT += left_BxT * self.shares[row_BxT, gram_BxT.clamp(min=0)]
            left_BxT = left_BxT * self._rest(context_BxT, row_BxT)
        return _log(probability_BxT + left_BxT * self.lowest[targets_BxT])

    def _rest(self, context: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """What each context leaves; all of it where it is none."""
        return torch.where(context >= 0, self.rests[row, context.clamp(min=0)], 1.0)

    def _contexts(self, tokens_BxT: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The contexts that make up each position's distribution, the longest first.

        Returns:
            The node of each context, -1 where there is none; and its row in `shares` and `rests`.
        """
        before_BxT = torch.zeros_like(tokens_BxT)
        positions_T = torch.arange(tokens_BxT.shape[1], device=tokens_BxT.device)
        contexts = []
        for length in range(1, self.order):
            context_BxT = self._child(before_BxT, tokens_BxT)
            before_BxT = F.pad(context_BxT[:, :-1], (1, 0), value=-1)
            has_longer_T = (positions_T >= length) & (length < self.order - 1)
            contexts.append((context_BxT, has_longer_T.long().expand_as(context_BxT)))
        return contexts[::-1]

    def _child(self, context_BxT: torch.Tensor, tokens_BxT: torch.Tensor) -> torch.Tensor:
        """The node of each context with a token behind it; -1 where there is none."""
        if not len(self.keys):
            return torch.full_like(tokens_BxT, -1)
        # A context that is none, -1, makes a negative key, and no key is.
        wanted_BxT = context_BxT * self.vocab_size + tokens_BxT
        place_BxT = torch.searchsorted(self.keys, wanted_BxT).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place_BxT] == wanted_BxT, place_BxT + 1, -1)

    def _children(
        self, context_N: torch.Tensor, row_N: torch.Tensor, left_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the contexts' own counts add: the places in N x V, flat, and how much; left_N is what is given out."""
        at = (context_N >= 0).nonzero().flatten()
        begins, ends = self.starts[context_N[at]], self.starts[context_N[at] + 1]
        lengths = ends - begins
        at = at.repeat_interleave(lengths)
        # Children of one context lie side by side, behind those of the contexts before it.
        children = torch.arange(len(at), device=at.device)
        children += (begins - lengths.cumsum(0) + lengths).repeat_interleave(lengths)
        places = at * self.vocab_size + self.keys[children] % self.vocab_size
        return places, left_N[at] * self.shares[row_N[at], children + 1]

    def _hold(self, keys: np.ndarray, counts: np.ndarray, device: torch.device) -> None:
        """Takes a table as its own, and works out what follows from it.

        Raises:
            ValueError: it is no table of this order and vocabulary.
        """
        ends = level_ends(keys, self.vocab_size, self.order)
        if counts.shape != keys.shape or counts.min(initial=1) < 1:
            raise ValueError("an n-gram has no count, or a count no n-gram")
        if self.smoothing is Smoothing.kneser_ney:
            shares, rests = kneser_ney(keys, counts, ends, self.vocab_size)
        else:
            shares, rests = add_k(keys, counts, self.vocab_size, self.add_k)
        # The empty context is the longest of order 1 alone.
        row = min(self.order - 1, 1)
        lowest_V = np.full(self.vocab_size, rests[row, 0] / self.vocab_size)
        lowest_V[keys[: ends[1] - 1]] += shares[row, : ends[1] - 1]
        # Contexts are the nodes that are shorter than the order, and come first.
        n_contexts = ends[-2]
        starts = np.searchsorted(keys, np.arange(n_contexts + 1) * self.vocab_size)
        derived = {
            "starts": starts,
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
        """A saved table is as large as its text made it: room is made for it first."""
        saved = [state_dict[prefix + name] for name in ("keys", "counts") if prefix + name in state_dict]
        try:
            if len(saved) == 2:
                if any(tensor.dtype != torch.int64 or tensor.dim() != 1 for tensor in saved):
                    raise ValueError("a table is two lists of whole numbers")
                keys, counts = (tensor.cpu().numpy() for tensor in saved)
                self._hold(keys, counts, self.keys.device)
        except ValueError as error:
            problems[-1].append(str(error))
        else:
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, *problems)


def _log(probability: torch.Tensor) -> torch.Tensor:
    # What contexts leave, one after another, may be less than fp32 can say.
    return probability.clamp_(min=torch.finfo(probability.dtype).tiny).log_()


def add_k(keys: np.ndarray, counts: np.ndarray, vocab_size: int, k: float) -> tuple[np.ndarray, np.ndarray]:
    """P(w | h) = (count(h w) + k) / (count(h .) + k V)   (Jurafsky and Martin, Speech and Language Processing, 3.6).

    Returns:
        shares and rests as `Ngram` has them: count / (count(h .) + k V) of each gram, and k V / (count(h .) + k V) of
        each node. Shorter contexts take nothing and leave all of that to the uniform distribution.
    """
    contexts = keys // vocab_size
    totals = np.bincount(contexts, counts, minlength=len(keys) + 1)
    shares, rests = counts / (totals[contexts] + k * vocab_size), k * vocab_size / (totals + k * vocab_size)
    return np.stack([shares, np.zeros_like(shares)]), np.stack([rests, np.ones_like(rests)])


def kneser_ney(keys: np.ndarray, counts: np.ndarray, ends: list[int], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """P(w | h) = max(c(h w) - D, 0) / c(h .) + (D / c(h .)) |{w: c(h w) > 0}| P(w | h without its first token).

    c counts the grams of the longest context that there is, and of shorter ones the different tokens before each gram;
    below single tokens comes the uniform distribution (Chen and Goodman 1999, section 2.7).

    Returns:
        shares and rests as `Ngram` has them: the first term of each gram, and the factor on the last of each node.
    """
    followed = continuation_counts(keys, ends, vocab_size)
    shares, rests = zip(*(discounted(keys, c, ends, vocab_size) for c in (counts, followed)), strict=True)
    return np.stack(shares), np.stack(rests)


def discounted(keys: np.ndarray, counts: np.ndarray, ends: list[int], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Takes D of every count: n1 / (n1 + 2 n2), where n1 grams of that length are counted once and n2 twice.

    (Ney, Essen and Kneser 1994; Chen and Goodman 1999, section 2.7.)

    Returns:
        Of each gram, what is left of its count as a share of its context's; of each node, the share that was taken: 1
        where nothing is counted behind it.
    """
    discounts = np.zeros(len(keys))
    for begin, end in itertools.pairwise(ends):
        of_length = counts[begin - 1 : end - 1]
        once, twice = np.count_nonzero(of_length == 1), np.count_nonzero(of_length == 2)
        discounts[begin - 1 : end - 1] = once / (once + 2 * twice) if once and twice else USUAL_DISCOUNT
    contexts = keys // vocab_size
    totals = np.bincount(contexts, counts, minlength=len(keys) + 1)
    # What is seen at the very beginning of a text follows no token: its count is 0, and its context's may be.
    divisors = np.maximum(totals, 1)
    shares = np.maximum(counts - discounts, 0) / divisors[contexts]
    taken = np.bincount(contexts, np.minimum(counts, discounts), minlength=len(keys) + 1)
    return shares, np.where(totals > 0, taken / divisors, 1.0)
