"""Tokenizers: characters, bytes, words and subwords, with one protocol.

A tokenizer is stored as JSON, so that loading it executes nothing. Each module registers its own tokenizers.
"""

from nanolm.data.tokenizers.bytepairs import BpeTokenizer, Gpt2Tokenizer
from nanolm.data.tokenizers.characters import ByteTokenizer, CharTokenizer
from nanolm.data.tokenizers.checks import smallest_dtype
from nanolm.data.tokenizers.huggingface import PretrainedTokenizer, UnigramTokenizer
from nanolm.data.tokenizers.protocol import Tokenizer, fingerprint, fit, from_file, to_text
from nanolm.data.tokenizers.sentencepiece import SentencePieceTokenizer
from nanolm.data.tokenizers.words import SpacyTokenizer, TorchtextTokenizer, WordTokenizer, splitter

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Gpt2Tokenizer",
    "PretrainedTokenizer",
    "SentencePieceTokenizer",
    "SpacyTokenizer",
    "Tokenizer",
    "TorchtextTokenizer",
    "UnigramTokenizer",
    "WordTokenizer",
    "fingerprint",
    "fit",
    "from_file",
    "smallest_dtype",
    "splitter",
    "to_text",
]
