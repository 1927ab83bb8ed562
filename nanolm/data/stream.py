"""A tokenized split: its ids in order, and how many bytes of text they stand for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from nanolm.config import Config
from nanolm.data.corpus import Corpus
from nanolm.data.tokenizers import Tokenizer
from nanolm.errors import DataError


@dataclasses.dataclass(frozen=True)
class Stream:
    """The tokens of one split.

    Attributes:
        tokens: ids, one-dimensional.
        scored_bytes: bytes of UTF-8 that all tokens but the first stand for; nothing precedes the first, so that it
            is never scored.
    """

    tokens: np.ndarray
    scored_bytes: int

    def bits_per_byte(self, loss: float) -> float:
        """The loss over the split, in nats a token, as bits a byte of the very text that was scored."""
        return loss * (len(self.tokens) - 1) / self.scored_bytes / math.log(2)


def tokenize(corpus: Corpus, tokenizer: Tokenizer, config: Config) -> dict[str, Stream]:
    """Every split of a corpus as tokens.

    Raises:
        DataError: a split is too short for one context and its target.
    """
    streams = {}
    needed = config.size.context_length + 1
    for split, text in corpus.splits.items():
        tokens = tokenizer.encode(text)
        if len(tokens) < needed:
            fraction = config.dataset.val_fraction
            raise DataError(
                f"the {split} split has {len(tokens):,} tokens, and a context of "
                f"{config.size.context_length:,} needs {needed:,}",
                where=f"size.context_length {config.size.context_length}, dataset.val_fraction {fraction}",
                mend="a longer text, a shorter size.context_length"
                + (", or a larger dataset.val_fraction" if split == "val" else ""),
            )
        streams[split] = Stream(tokens, tokenizer.count_bytes(tokens[1:]))
    return streams
