"""The transformer without biases in attention."""

from __future__ import annotations

from nanolm.config import Config
from nanolm.model.layers import Block
from nanolm.model.transformer import Transformer
from nanolm.registry import MODELS


@MODELS.register("gpt3")
def gpt3(config: Config, vocab_size: int) -> Gpt3:
    """The transformer that the settings describe, its attention without biases."""
    return Gpt3(config, vocab_size)


class Gpt3(Transformer):
    """Tokens to logits, with biases everywhere but in attention.

    Brown et al. 2020 say no more of the biases than that the architecture is GPT-2's, which has them in attention too;
    the count of 175,217,149,009 parameters that tutorials derive for GPT-3 leaves these out.
    """

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.attention.query_key_value, block.attention.projection):
                layer.register_parameter("bias", None)
