"""When the loss is computed for some positions at a time, so that the logits of all of them are never in memory."""

from __future__ import annotations

from nanolm.config.model import TransformerConfig
from nanolm.config.run import Config

# In fp32 128 MiB. Smaller chunks are slower on a CPU, and launch more kernels on a GPU.
LOGITS_PER_CHUNK = 2**25


def chunk_rows(vocab_size: int) -> int:
    """Return the number of positions of a chunk."""
    return max(1, LOGITS_PER_CHUNK // vocab_size)


def is_large(n_positions: int, vocab_size: int, width: int) -> bool:
    """Return whether chunks save memory: the logits exceed one, and have more columns than the inputs of the head.

    Args:
        width: of the inputs of the head, d_model.
    """
    return vocab_size > width and n_positions > chunk_rows(vocab_size)


def is_chunked(config: Config, n_positions: int, vocab_size: int) -> bool:
    """Return whether a model computes its loss in chunks: a transformer without n-grams, in eager mode."""
    model = config.model
    has_chunks = isinstance(model, TransformerConfig) and not model.has_ngram_mix and config.trainer.compile != "true"
    return has_chunks and is_large(n_positions, vocab_size, config.size.d_model)
