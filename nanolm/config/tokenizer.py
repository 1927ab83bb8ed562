"""Tokenizers."""

from __future__ import annotations

import dataclasses

from nanolm.config.fields import MISSING, Choice, declare, setting
from nanolm.registry import TOKENIZERS


@dataclasses.dataclass
class TokenizerConfig:
    """Settings of every tokenizer."""

    name: str = MISSING


@dataclasses.dataclass
class CharConfig(TokenizerConfig):
    """Characters. The vocabulary is the characters of the corpus, in code point order."""

    name: str = "char"


@dataclasses.dataclass
class ByteConfig(TokenizerConfig):
    """Bytes of UTF-8, a vocabulary of 256."""

    name: str = "byte"


@dataclasses.dataclass
class WordsConfig(TokenizerConfig):
    """Settings of every word tokenizer. The vocabulary is the most frequent words."""

    min_frequency: int = setting(1, doc="Words with fewer occurrences are left out of the vocabulary.", ge=1)
    max_size: int | None = setting(
        None, doc="Maximum vocabulary size, special tokens included. null: no limit.", ge=1, off="null keeps every word"
    )
    special_tokens: list[str] = setting(
        default_factory=lambda: ["<unk>", "<eos>"],
        doc="Special tokens. Without <unk>, an unknown word is an error; without <eos>, line ends are lost.",
    )


@dataclasses.dataclass
class WordConfig(WordsConfig):
    """Words, numbers and punctuation by nanolm's own rules."""

    name: str = "word"
    lowercase: bool = setting(False, doc="Convert the text to lower case.")


@dataclasses.dataclass
class SpacyConfig(WordsConfig):
    """Words by spaCy's rules for a language. Needs the package spacy."""

    name: str = "spacy"
    language: str = setting("en", doc="Language code of spaCy.")


@dataclasses.dataclass
class TorchtextConfig(WordsConfig):
    """Words by a tokenizer function of torchtext 0.6 or of a plugin, with torchtext's Vocab."""

    name: str = "torchtext"
    splitter: str | None = setting(
        "basic_english",
        doc="basic_english, split (at white space; also null), toktok, moses, ... or a name that a plugin registers.",
    )


_VOCAB_SIZE = "Vocabulary size, {} included; a small corpus may give fewer."


@dataclasses.dataclass
class BpeConfig(TokenizerConfig):
    """Byte-level byte-pair encoding, trained on the corpus."""

    name: str = "bpe"
    vocab_size: int = setting(4096, doc=_VOCAB_SIZE.format("the 256 bytes and the special tokens"), ge=256)
    min_frequency: int = setting(2, doc="Pairs with fewer occurrences are not merged.", ge=1)
    special_tokens: list[str] = setting(default_factory=lambda: ["<|endoftext|>"], doc="Special tokens.")


@dataclasses.dataclass
class UnigramConfig(TokenizerConfig):
    """A byte-level unigram language model, trained on the corpus."""

    name: str = "unigram"
    vocab_size: int = setting(4096, doc=_VOCAB_SIZE.format("the 256 bytes and the special tokens"), ge=256)
    special_tokens: list[str] = setting(default_factory=lambda: ["<|endoftext|>"], doc="Special tokens.")


class SentencePieceModel(Choice):
    """Models of SentencePiece."""

    bpe = "bpe", "Byte-pair encoding."
    unigram = "unigram", "Unigram language model."


@dataclasses.dataclass
class SentencePieceConfig(TokenizerConfig):
    """SentencePiece over characters with byte fallback, trained on the corpus."""

    name: str = "sentencepiece"
    vocab_size: int = setting(4096, doc=_VOCAB_SIZE.format("the 256 bytes, the line end, <unk> and </s>"), ge=260)
    model_type: SentencePieceModel = setting(SentencePieceModel.bpe, doc="Model that SentencePiece trains.")
    character_coverage: float = setting(
        1.0,
        doc="Fraction of the characters in the corpus that are in the vocabulary; the rest is encoded as bytes.",
        ge=0.98,
        le=1,
    )


_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


@dataclasses.dataclass
class Gpt2Config(TokenizerConfig):
    """GPT-2's tokenizer, with its token ids."""

    name: str = "gpt2"
    path: str | None = setting(
        None,
        doc="A directory with encoder.json and vocab.bpe, or a tokenizer.json. null: download OpenAI's files.",
        is_path=True,
    )
    encoder_url: str = setting(f"{_OPENAI}encoder.json", doc="Address of encoder.json.")
    encoder_sha256: str = setting(
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", doc="SHA-256 of encoder.json."
    )
    merges_url: str = setting(f"{_OPENAI}vocab.bpe", doc="Address of vocab.bpe.")
    merges_sha256: str = setting(
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", doc="SHA-256 of vocab.bpe."
    )


@dataclasses.dataclass
class PretrainedConfig(TokenizerConfig):
    """A tokenizer.json of Hugging Face tokenizers."""

    name: str = "pretrained"
    path: str = setting(doc="A tokenizer.json, or a directory with one.", is_path=True)


declare(TOKENIZERS, TokenizerConfig)
