"""How text becomes tokens."""

from __future__ import annotations

import dataclasses
import enum

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare, path_field
from nanolm.registry import TOKENIZERS


@dataclasses.dataclass
class TokenizerConfig:
    """What every tokenizer has."""

    name: str = MISSING


@dataclasses.dataclass
class CharConfig(TokenizerConfig):
    """One token a character; the vocabulary is the characters of the corpus in code point order."""

    name: str = "char"


@dataclasses.dataclass
class ByteConfig(TokenizerConfig):
    """One token a byte of UTF-8; 256 of them."""

    name: str = "byte"


@dataclasses.dataclass
class WordsConfig(TokenizerConfig):
    """What every tokenizer by words has. The most frequent words are the vocabulary."""

    min_frequency: int = bounded(1, ge=1)
    # The special tokens count as well; null: no limit.
    max_size: int | None = bounded(None, ge=1, off="null keeps every word")
    # Without <unk> an unseen word is an error; without <eos> line ends are lost.
    special_tokens: list[str] = dataclasses.field(default_factory=lambda: ["<unk>", "<eos>"])


@dataclasses.dataclass
class WordConfig(WordsConfig):
    """Words, numbers and signs by our own rules."""

    name: str = "word"
    lowercase: bool = False


@dataclasses.dataclass
class SpacyConfig(WordsConfig):
    """Words by spaCy's rules for a language (needs the package spacy)."""

    name: str = "spacy"
    language: str = "en"


@dataclasses.dataclass
class TorchtextConfig(WordsConfig):
    """Words by a splitter of torchtext 0.6 or of the user's, in torchtext's Vocab.

    Here too max_size counts the special tokens; torchtext itself does not count them.
    """

    name: str = "torchtext"
    # basic_english, split (at white space; so does null), toktok, moses, ... or a name registered by a plugin
    splitter: str | None = "basic_english"


@dataclasses.dataclass
class BpeConfig(TokenizerConfig):
    """Byte-pair encoding trained on the corpus, over bytes."""

    name: str = "bpe"
    # With the 256 bytes and the special tokens; a small corpus may give fewer.
    vocab_size: int = bounded(4096, ge=256)
    # Pairs seen less often are not merged.
    min_frequency: int = bounded(2, ge=1)
    special_tokens: list[str] = dataclasses.field(default_factory=lambda: ["<|endoftext|>"])


@dataclasses.dataclass
class UnigramConfig(TokenizerConfig):
    """A unigram language model over pieces of bytes, trained on the corpus."""

    name: str = "unigram"
    # With the 256 bytes and the special tokens; a small corpus may give fewer.
    vocab_size: int = bounded(4096, ge=256)
    special_tokens: list[str] = dataclasses.field(default_factory=lambda: ["<|endoftext|>"])


class SentencePieceModel(enum.Enum):
    """What SentencePiece trains: byte-pair encoding or a unigram language model."""

    bpe = "bpe"
    unigram = "unigram"


@dataclasses.dataclass
class SentencePieceConfig(TokenizerConfig):
    """SentencePiece over characters, trained on the corpus; bytes stand in where it has no piece."""

    name: str = "sentencepiece"
    # With the 256 bytes, the line end, <unk> and </s>; a small corpus may give fewer.
    vocab_size: int = bounded(4096, ge=260)
    model_type: SentencePieceModel = SentencePieceModel.bpe
    # The share of the corpus whose characters are pieces; those of the rest are written in bytes.
    character_coverage: float = bounded(1.0, ge=0.98, le=1)


@dataclasses.dataclass
class Gpt2Config(TokenizerConfig):
    """GPT-2's own ids, from a folder with encoder.json and vocab.bpe, from a tokenizer.json, or downloaded."""

    name: str = "gpt2"
    path: str | None = path_field(None)
    encoder_url: str = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json"
    encoder_sha256: str = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    merges_url: str = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
    merges_sha256: str = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@dataclasses.dataclass
class PretrainedConfig(TokenizerConfig):
    """Any tokenizer.json of Hugging Face tokenizers, or a folder with one."""

    name: str = "pretrained"
    path: str = path_field()


declare(
    TOKENIZERS,
    CharConfig,
    ByteConfig,
    WordConfig,
    SpacyConfig,
    TorchtextConfig,
    BpeConfig,
    UnigramConfig,
    SentencePieceConfig,
    Gpt2Config,
    PretrainedConfig,
)
