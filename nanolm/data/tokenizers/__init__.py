"""Tokenizers: characters, bytes, words and subwords, with one protocol.

A tokenizer is stored as JSON, so that loading it executes nothing. Each module registers its own tokenizers.
"""

from nanolm.data.tokenizers import bytepairs as bytepairs
from nanolm.data.tokenizers import sentencepiece as sentencepiece
from nanolm.data.tokenizers.characters import ByteTokenizer, CharTokenizer
from nanolm.data.tokenizers.checks import smallest_dtype
from nanolm.data.tokenizers.huggingface import PretrainedTokenizer
from nanolm.data.tokenizers.protocol import Tokenizer, fingerprint, fit, from_file, to_text
from nanolm.data.tokenizers.words import splitter

__all__ = [
    "ByteTokenizer",
    "CharTokenizer",
    "PretrainedTokenizer",
    "Tokenizer",
    "fingerprint",
    "fit",
    "from_file",
    "smallest_dtype",
    "splitter",
    "to_text",
]
