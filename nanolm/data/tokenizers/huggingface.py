"""Tokenizers run by Hugging Face tokenizers: unigram, trained on the corpus, and any tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import PretrainedConfig, UnigramConfig
from nanolm.data.tokenizers.byte_pieces import BYTE_TO_CHARACTER, BytePieces, batched, text_chunks, token_bytes, train
from nanolm.data.tokenizers.checks import (
    MAX_VOCAB_SIZE,
    check_ids,
    check_vocab_size,
    encode_utf8,
    get_entry,
    get_strings,
    read_json,
    smallest_dtype,
)
from nanolm.data.tokenizers.components import check_components
from nanolm.data.tokenizers.engine import Engine, UnsafeTokenizerError
from nanolm.errors import TokenizerError
from nanolm.files import user_path
from nanolm.json_text import dump_json
from nanolm.registry import TOKENIZERS

# Chunks encoded together: bounds the memory, which is about 100 bytes per token during encoding.
_BATCH = 16
# Characters of several kinds and scripts, which a foreign tokenizer.json has to encode without a crash.
_SAMPLE = "The 3.14 cats' café\r\n\t  ｱﬀ İß 中文 नमस्ते e\u0301 😀\u200d\u2581a\x00 " + "a" * 50 + "\n"
# The trainer's scores of bytes that it never saw are within this of the lowest score, in no fixed order.
_UNSEEN_BYTE_SCORES = 257 * 1e-4


class _HuggingFace:
    """A tokenizer.json of Hugging Face tokenizers.

    Args:
        state: its content.
        special_tokens: names of further special tokens; their ids follow its vocabulary.
        vocab_size: of a model with more embeddings than tokens, whose other ids represent no text; None: no such ids.

    Raises:
        TokenizerError: the content does not describe a tokenizer, or has more tokens than `vocab_size`.
    """

    def __init__(
        self, state: dict[str, Any], special_tokens: Sequence[str] = (), vocab_size: int | None = None
    ) -> None:
        check_components(state)
        self._engine = self._start(state)
        self.state = state
        # For errors.
        self.file = ""
        self._additional = list(special_tokens)
        tokens = _tokens(state)
        own = {added["content"]: added["id"] for added in state.get("added_tokens") or () if added.get("special")}
        first = max(tokens.values()) + 1
        self.special_tokens = own | {name: first + n for n, name in enumerate(self._additional)}
        self.vocab_size = first + len(self._additional)
        if vocab_size is not None and not self.vocab_size <= vocab_size <= MAX_VOCAB_SIZE:
            raise TokenizerError(f"it has {self.vocab_size:,} tokens, and 'vocab_size' is {vocab_size:,}")
        self._vocab_size = vocab_size
        self.vocab_size = vocab_size or self.vocab_size
        self.dtype = smallest_dtype(self.vocab_size)
        self._is_chunkable = _is_chunkable(state)
        self.lossless = is_lossless(state, tokens)
        self._bytes: BytePieces | None = None
        if self.lossless:
            content = [b""] * self.vocab_size
            for token, number in tokens.items():
                content[number] = token_bytes(token) or b""
            self._bytes = BytePieces(content, self.special_tokens)

    @staticmethod
    def _start(state: dict[str, Any]) -> Any:
        """Return an object with `encode` and `decode` that runs the tokenizer.

        Raises:
            TokenizerError: the library refuses the content.
        """
        raise NotImplementedError

    def encode(self, text: str) -> np.ndarray:
        """Convert text to ids, without adding special tokens.

        Raises:
            TokenizerError: the text has a lone surrogate, or something that is not in the vocabulary.
        """
        encode_utf8(text)
        parts = []
        for batch in batched(text_chunks(text) if self._is_chunkable else [text], _BATCH):
            try:
                ids = self._engine.encode(batch)
            except TokenizerError as error:
                where = ", ".join(filter(None, [self.file, f"a text of {len(text):,} characters"]))
                raise type(error)(error.found, where=where, hint=error.hint) from error
            parts.append(check_ids(ids, self.vocab_size).astype(self.dtype))
        return np.concatenate([np.empty(0, dtype=self.dtype), *parts])

    @property
    def pieces(self) -> Sequence[bytes] | None:
        """Bytes of each token, by id; None if tokens do not represent bytes."""
        return None if self._bytes is None else self._bytes.pieces

    def decode(self, ids: Iterable[int]) -> str:
        if self._bytes is not None:
            return self._bytes.decode(ids)
        return self._engine.decode(check_ids(ids, self.vocab_size))

    def count_bytes(self, ids: np.ndarray) -> int:
        """Return the number of bytes of the ids without special tokens; if lossy, of the text that they decode to."""
        if self._bytes is not None:
            return self._bytes.count_bytes(ids)
        ordinary = ids[~np.isin(ids, list(self.special_tokens.values()))]
        return len(encode_utf8(self.decode(ordinary)))


@TOKENIZERS.register("unigram")
class UnigramTokenizer(_HuggingFace):
    """A unigram language model over pieces of bytes (Kudo 2018), trained by Hugging Face tokenizers."""

    @classmethod
    def fit(cls, texts: Iterable[str], config: UnigramConfig) -> Self:
        """Prune a large set of pieces to those that explain the corpus best; the 256 bytes are always kept.

        Raises:
            TokenizerError: vocab_size is too small for the bytes and the special tokens.
        """
        from tokenizers import models, trainers

        size = check_vocab_size(config.vocab_size, config.special_tokens, required=256)
        state = train(models.Unigram(), trainers.UnigramTrainer, texts, vocab_size=size, special_tokens=[])
        state["model"]["vocab"] = _normalize_scores(state["model"]["vocab"])
        return cls(state, config.special_tokens)

    def to_json(self) -> dict[str, Any]:
        """Return the tokenizer.json of Hugging Face tokenizers, and the names of the additional special tokens."""
        return {"tokenizer": self.state, "special_tokens": self._additional}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        content = get_entry(state, "tokenizer", dict)
        if not _is_trained_unigram(content):
            raise TokenizerError("not a tokenizer of this kind: its components are not those that nanolm trains")
        tokenizer = cls(content, get_strings(state, "special_tokens"))
        if not tokenizer.lossless:
            raise TokenizerError("a unigram tokenizer must be lossless, with all 256 bytes")
        return tokenizer

    @staticmethod
    def _start(state: dict[str, Any]) -> Any:
        return _InProcess(state)


@TOKENIZERS.register("pretrained")
class PretrainedTokenizer(_HuggingFace):
    """Any tokenizer.json of Hugging Face tokenizers.

    It runs in another process, since a foreign file may crash the library. A text that GPT-2's expression alone splits
    is encoded in chunks; any other at once, which takes about 100 bytes per token.
    """

    @staticmethod
    def _start(state: dict[str, Any]) -> Any:
        return Engine(state)

    @classmethod
    def fit(cls, texts: Iterable[str], config: PretrainedConfig) -> Self:
        """Read tokenizer.path, a tokenizer.json or a folder with one.

        Raises:
            TokenizerError: it is missing or does not describe a tokenizer.
        """
        path = user_path(config.path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise TokenizerError(
                f"there is no file {path}",
                where="tokenizer.path",
                hint="name a tokenizer.json of Hugging Face tokenizers, or a folder with one",
            )
        state = read_json(path)
        try:
            tokenizer = cls.from_json({"tokenizer": state})
        except TokenizerError as error:
            raise TokenizerError(error.found, where=str(path), hint=error.hint) from error
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise TokenizerError(f"not a tokenizer: {error!r}", where=str(path)) from error
        tokenizer.file = str(path)
        return tokenizer

    def to_json(self) -> dict[str, Any]:
        unused = {} if self._vocab_size is None else {"vocab_size": self._vocab_size}
        return {"tokenizer": self.state, **unused}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        vocab_size = get_entry(state, "vocab_size", int) if "vocab_size" in state else None
        tokenizer = cls(get_entry(state, "tokenizer", dict), vocab_size=vocab_size)
        # A tokenizer that crashes is reported when it is loaded rather than at the first text.
        try:
            tokenizer.encode(_SAMPLE)
        except UnsafeTokenizerError:
            raise
        except TokenizerError:
            # It has no token for something in the text.
            pass
        tokenizer.decode(range(min(tokenizer.vocab_size, 300)))
        return tokenizer


class _InProcess:
    """A tokenizer.json that nanolm trained, in this process."""

    def __init__(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        try:
            self._engine = Tokenizer.from_str(dump_json(state))
        except Exception as error:  # the library raises Exception itself
            raise TokenizerError(f"not a tokenizer: {error}") from error
        # The name of a special token in a text is ordinary text.
        self._engine.encode_special_tokens = True

    def encode(self, batch: list[str]) -> np.ndarray:
        encoded = self._engine.encode_batch_fast(batch, add_special_tokens=False)
        return np.array([number for part in encoded for number in part.ids], dtype=np.uint32)

    def decode(self, ids: np.ndarray) -> str:
        return self._engine.decode(ids.tolist(), skip_special_tokens=False)


def is_lossless(state: dict[str, Any], tokens: dict[str, int]) -> bool:
    """Whether a tokenizer.json is known to be lossless: byte-level BPE or Unigram that drops and changes nothing."""
    model = state["model"]
    special = {token["content"] for token in state.get("added_tokens") or ()}
    *splits, level = _steps(state.get("pre_tokenizer"), "pretokenizers") or [{}]
    decoders = _steps(state.get("decoder"), "decoders")
    return (
        model.get("type") in ("BPE", "Unigram")
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and _is_plain_byte_level(state, level)
        and all(
            step.get("type") == "Digits" or (step.get("type") == "Split" and step.get("behavior") != "Removed")
            for step in splits
        )
        and [decoder.get("type") for decoder in decoders] == ["ByteLevel"]
        and set(BYTE_TO_CHARACTER.values()) <= tokens.keys() - special
        and all(token in special or token_bytes(token) is not None for token in tokens)
    )


def _is_plain_byte_level(state: dict[str, Any], step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer works on the bytes of the text, unchanged by a normalizer, prefix or added tokens."""
    return (
        state.get("normalizer") is None
        and step.get("type") == "ByteLevel"
        and not step.get("add_prefix_space")
        and all(added.get("special") is True for added in state.get("added_tokens") or ())
    )


def _is_trained_unigram(state: dict[str, Any]) -> bool:
    """Whether a tokenizer.json has only what `UnigramTokenizer.fit` writes, which does not crash the library."""
    model, level, decoder = state["model"], state.get("pre_tokenizer"), state.get("decoder")
    return (
        model == {"type": "Unigram", "unk_id": None, "vocab": model.get("vocab"), "byte_fallback": False}
        and isinstance(level, dict)
        and isinstance(decoder, dict)
        and _is_plain_byte_level(state, level)
        and decoder.get("type") == "ByteLevel"
        and not any(state.get(part) for part in ("added_tokens", "post_processor", "truncation", "padding"))
        and all(1 <= len(piece) <= 1000 and -1000 < score <= 0 for piece, score in model["vocab"])
    )


def _is_chunkable(state: dict[str, Any]) -> bool:
    """Whether chunks that are cut where GPT-2's expression splits give the same ids as the whole text."""
    step = state.get("pre_tokenizer") or {}
    return _is_plain_byte_level(state, step) and step.get("use_regex", True) is True


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part.get(key, []) if part.get("type") == "Sequence" else [part]


def _tokens(state: dict[str, Any]) -> dict[str, int]:
    """Return the ids of all tokens of a tokenizer.json that the library has read, added tokens included.

    Raises:
        TokenizerError: there are none, or two tokens have the same id, which the library accepts.
    """
    vocab = state["model"]["vocab"]
    pairs = list(vocab.items()) if isinstance(vocab, dict) else [(piece, n) for n, (piece, _) in enumerate(vocab)]
    pairs += [(added["content"], added["id"]) for added in state.get("added_tokens") or ()]
    if not pairs:
        raise TokenizerError("the vocabulary is empty")
    tokens = dict(pairs)
    names: dict[int, str] = {}
    for token, number in pairs:
        if names.setdefault(number, token) != token or tokens[token] != number:
            raise TokenizerError(f"{names[number]!r} and {token!r} cannot both have the id {number}")
    return tokens


def _normalize_scores(vocab: list[list[Any]]) -> list[list[Any]]:
    """Sort pieces by descending score, without the differences between runs of the trainer.

    Those come from hash order (scores of unseen bytes) and from the order of summation (last digits).
    """
    lowest = min(score for _, score in vocab)
    scores = {
        piece: round(lowest if len(piece) == 1 and score < lowest + _UNSEEN_BYTE_SCORES else score, 6)
        for piece, score in vocab
    }
    return [[piece, scores[piece]] for piece in sorted(scores, key=lambda piece: (-scores[piece], piece))]
