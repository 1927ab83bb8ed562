"""Tokenizers that Hugging Face tokenizers runs: one trained on the corpus, and any tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import PretrainedConfig, UnigramConfig
from nanolm.data.tokenizers.byte_pieces import CHARACTER_OF_BYTE, Pieces, chunks, grouped, spelled
from nanolm.data.tokenizers.bytepairs import room
from nanolm.data.tokenizers.protocol import checked, entry, smallest_dtype, strings, utf8
from nanolm.errors import TokenizerError
from nanolm.files import user_path
from nanolm.json_text import dump_json
from nanolm.registry import TOKENIZERS

# Parts encoded together: bounds the memory, which is about 100 bytes a token meanwhile.
_PARTS = 16
# Unigram scores that the trainer makes up for bytes it never saw lie within this of the lowest, in no fixed order.
_MADE_UP = 257 * 1e-4


class _HuggingFace:
    """A tokenizer.json of Hugging Face tokenizers.

    Args:
        state: its content.
        special_tokens: names of special tokens beyond its own; their ids follow its vocabulary.

    Raises:
        TokenizerError: the content does not describe a tokenizer.
    """

    def __init__(self, state: dict[str, Any], special_tokens: Sequence[str] = ()) -> None:
        from tokenizers import Tokenizer

        tokens = _tokens(state)
        try:
            self._engine = Tokenizer.from_str(dump_json(state))
        except Exception as error:  # the library raises Exception itself
            raise TokenizerError(f"not a tokenizer: {error}", where="tokenizer.json") from error
        self._engine.no_truncation()
        self._engine.no_padding()
        # Their names in a text are ordinary text.
        self._engine.encode_special_tokens = True
        self._state = state
        self._extra = list(special_tokens)
        own = {added["content"]: added["id"] for added in state.get("added_tokens") or () if added.get("special")}
        first = max(tokens.values()) + 1
        self.special_tokens = own | {name: first + n for n, name in enumerate(self._extra)}
        self.vocab_size = first + len(self._extra)
        self._integers = smallest_dtype(self.vocab_size)
        self._cuts_like_gpt2 = _cuts_like_gpt2(state)
        self.lossless = carries_every_text(state)
        self._pieces: Pieces | None = None
        if self.lossless:
            content = [b""] * self.vocab_size
            for token, number in tokens.items():
                content[number] = spelled(token) or b""
            self._pieces = Pieces(content, self.special_tokens)

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text, with no special token put around it.

        Raises:
            TokenizerError: the text has a lone surrogate, or something that the vocabulary lacks.
        """
        utf8(text)
        parts = []
        for several in grouped(chunks(text) if self._cuts_like_gpt2 else [text], _PARTS):
            try:
                encoded = self._engine.encode_batch_fast(several, add_special_tokens=False)
            except Exception as error:  # the library raises Exception itself
                raise TokenizerError(
                    f"the tokenizer cannot encode the text: {error}",
                    where=f"a text of {len(text):,} characters",
                    hint="it has no token for something in the text, and none for what it does not know",
                ) from error
            parts += [np.array(part.ids, dtype=self._integers) for part in encoded]
        return np.concatenate([np.empty(0, dtype=self._integers), *parts])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens by their names."""
        if self._pieces is not None:
            return self._pieces.text(ids)
        numbers = checked(ids, self.vocab_size).tolist()
        return self._engine.decode(numbers, skip_special_tokens=False)

    def count_bytes(self, ids: np.ndarray) -> int:
        """The bytes of the tokens, special ones apart; where it is not lossless, of the text that they decode to."""
        if self._pieces is not None:
            return self._pieces.count_bytes(ids)
        ordinary = ids[~np.isin(ids, list(self.special_tokens.values()))]
        return len(utf8(self.decode(ordinary)))


@TOKENIZERS.register("unigram")
class UnigramTokenizer(_HuggingFace):
    """A unigram language model over pieces of bytes (Kudo 2018), trained by Hugging Face tokenizers."""

    @classmethod
    def fit(cls, texts: Iterable[str], config: UnigramConfig) -> Self:
        """Many pieces at first, pruned to those that explain the corpus best; the 256 bytes always stay.

        Raises:
            TokenizerError: vocab_size has no room for the bytes and the special tokens.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        size = room(config.vocab_size, config.special_tokens, 256)
        engine = Tokenizer(models.Unigram())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.UnigramTrainer(
            vocab_size=size,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=list(CHARACTER_OF_BYTE.values()),
        )
        engine.train_from_iterator((part for text in texts for part in chunks(text)), trainer)
        state = json.loads(engine.to_str())
        state["model"]["vocab"] = _in_order(state["model"]["vocab"])
        return cls(state, config.special_tokens)

    def to_json(self) -> dict[str, Any]:
        """The tokenizer.json of Hugging Face tokenizers as it stands, and the names of the special tokens."""
        return {"tokenizer": self._state, "special_tokens": self._extra}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """From a tokenizer.json and special tokens."""
        tokenizer = cls(entry(state, "tokenizer", dict), strings(state, "special_tokens"))
        if not tokenizer.lossless:
            raise TokenizerError("a unigram tokenizer of nanolm has all 256 bytes", where="tokenizer.json")
        return tokenizer


@TOKENIZERS.register("pretrained")
class PretrainedTokenizer(_HuggingFace):
    """Any tokenizer.json of Hugging Face tokenizers.

    lossless is True where that can be told: BPE or Unigram over bytes with all 256 of them, nothing normalised, no
    blank put in front and no added tokens but special ones. A text is encoded in parts where it is split by GPT-2's
    expression alone, and otherwise whole, which takes about 100 bytes a token.
    """

    @classmethod
    def fit(cls, texts: Iterable[str], config: PretrainedConfig) -> Self:
        """Reads tokenizer.path, a tokenizer.json or a folder with one.

        Raises:
            TokenizerError: it is missing or does not describe a tokenizer.
        """
        path = user_path(config.path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TokenizerError(
                f"cannot read {path}: {error.strerror}",
                where="tokenizer.path",
                hint="name a tokenizer.json of Hugging Face tokenizers, or a folder with one",
            ) from error
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"not a tokenizer: it is not JSON: {error}", where=str(path)) from error
        try:
            return cls(state)
        except TokenizerError as error:
            raise TokenizerError(error.found, where=str(path), hint=error.hint) from error

    def to_json(self) -> dict[str, Any]:
        """The tokenizer.json as it stands."""
        return {"tokenizer": self._state}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """From a tokenizer.json."""
        return cls(entry(state, "tokenizer", dict))


def carries_every_text(state: dict[str, Any]) -> bool:
    """Whether a tokenizer.json can be told to be lossless: decoding gives back every text, byte for byte."""
    model = state["model"]
    steps = _steps(state.get("pre_tokenizer"), "pretokenizers")
    *splits, level = steps or [{}]
    over_bytes = level.get("type") == "ByteLevel" and not level.get("add_prefix_space")
    kept = all(step.get("type") == "Digits" or _keeps_all(step) for step in splits)
    decoders = _steps(state.get("decoder"), "decoders")
    tokens = _tokens(state)
    plain = (
        model.get("type") in ("BPE", "Unigram")
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
    )
    special = {added["content"] for added in state.get("added_tokens") or ()}
    return (
        state.get("normalizer") is None
        and over_bytes
        and kept
        and [decoder.get("type") for decoder in decoders] == ["ByteLevel"]
        and plain
        and set(CHARACTER_OF_BYTE.values()) <= tokens.keys() - special
        and all(token in special or spelled(token) is not None for token in tokens)
        and all(added.get("special") is True for added in state.get("added_tokens") or ())
    )


def _keeps_all(step: dict[str, Any]) -> bool:
    return step.get("type") == "Split" and step.get("behavior") != "Removed"


def _cuts_like_gpt2(state: dict[str, Any]) -> bool:
    """Whether parts cut where GPT-2's expression cuts give the ids of the whole."""
    before = state.get("pre_tokenizer") or {}
    return (
        state.get("normalizer") is None
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space")
        and before.get("use_regex", True) is True
        and all(added.get("special") is True for added in state.get("added_tokens") or ())
    )


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part.get(key, []) if part.get("type") == "Sequence" else [part]


def _tokens(state: object) -> dict[str, int]:
    """Token to id, added tokens among them.

    Raises:
        TokenizerError: there is no vocabulary, or two tokens have the same id.
    """
    model = state.get("model") if isinstance(state, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):
        if not all(isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str) for piece in vocab):
            raise TokenizerError("the vocabulary must list pairs of a piece and its score", where="tokenizer.json")
        pairs = [(piece[0], number) for number, piece in enumerate(vocab)]
    elif isinstance(vocab, dict):
        pairs = list(vocab.items())
    else:
        raise TokenizerError("not a tokenizer: it has no model with a vocabulary", where="tokenizer.json")
    added = state.get("added_tokens") or () if isinstance(state, dict) else ()
    try:
        pairs += [(token["content"], token["id"]) for token in added]
    except (TypeError, KeyError) as error:
        raise TokenizerError("added_tokens must list tokens with content and id", where="tokenizer.json") from error
    wrong = next((token for token, number in pairs if type(number) is not int or number < 0), None)
    if wrong is not None or not pairs:
        found = f"the id of {wrong!r} is not a number" if pairs else "the vocabulary is empty"
        raise TokenizerError(found, where="tokenizer.json")
    tokens = dict(pairs)
    of_id: dict[int, str] = {}
    for token, number in pairs:
        if of_id.setdefault(number, token) != token or tokens[token] != number:
            raise TokenizerError(
                f"{of_id[number]!r} and {token!r} cannot both have the id {number}", where="tokenizer.json"
            )
    return tokens


def _in_order(vocab: list[list[Any]]) -> list[list[Any]]:
    """Pieces by falling score; what hash order and the order of sums left to chance is taken out."""
    lowest = min(score for _, score in vocab)
    scores = {
        piece: round(lowest if len(piece) == 1 and score < lowest + _MADE_UP else score, 6) for piece, score in vocab
    }
    return [[piece, scores[piece]] for piece in sorted(scores, key=lambda piece: (-scores[piece], piece))]
