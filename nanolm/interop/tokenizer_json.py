"""Translate nanolm's tokenizers to the tokenizer.json of Hugging Face tokenizers, which AutoTokenizer opens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nanolm.data.tokenizers import ByteTokenizer, CharTokenizer, PretrainedTokenizer, Tokenizer
from nanolm.data.tokenizers.byte_pieces import BYTE_TO_CHARACTER
from nanolm.data.tokenizers.bytepairs import BytePairs, tokens_of_merges
from nanolm.data.tokenizers.huggingface import UnigramTokenizer
from nanolm.data.tokenizers.words import END, UNKNOWN, WORDS, WordTokenizer


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Return the equivalent tokenizer.json; None if there is none (SentencePiece, spaCy, torchtext, a plugin's)."""
    translate = next((function for kind, function in TRANSLATIONS.items() if isinstance(tokenizer, kind)), None)
    return None if translate is None else translate(tokenizer)


def _characters(tokenizer: CharTokenizer) -> dict[str, Any]:
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models

    # Without merges, BPE splits a text into characters.
    engine = Engine(models.BPE({character: n for n, character in enumerate(tokenizer.characters)}, []))
    engine.decoder = decoders.Fuse()
    return json.loads(engine.to_str())


def _bytes(tokenizer: ByteTokenizer) -> dict[str, Any]:
    return _byte_level({BYTE_TO_CHARACTER[byte]: byte for byte in range(256)}, [], {})


def _byte_pairs(tokenizer: BytePairs) -> dict[str, Any]:
    vocab = {token: n for n, token in enumerate(tokens_of_merges(tokenizer.merges))}
    merges = [tuple(merge.split(" ")) for merge in tokenizer.merges]
    return _byte_level(vocab, merges, tokenizer.special_tokens)


def _byte_level(vocab: dict[str, int], merges: list[Any], special_tokens: dict[str, int]) -> dict[str, Any]:
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers

    engine = Engine(models.BPE(vocab, merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return _with_special_tokens(json.loads(engine.to_str()), special_tokens)


def _hugging_face(tokenizer: UnigramTokenizer | PretrainedTokenizer) -> dict[str, Any]:
    known = {added["content"] for added in tokenizer.state.get("added_tokens") or ()}
    return _with_special_tokens(tokenizer.state, {k: v for k, v in tokenizer.special_tokens.items() if k not in known})


def _words(tokenizer: WordTokenizer) -> dict[str, Any]:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Engine

    # A line end is the token <eos>.
    vocab = {
        "\n" if token == END else token: number
        for token, number in zip(tokenizer.tokens, range(tokenizer.vocab_size), strict=True)
    }
    has_unknown = UNKNOWN in vocab
    engine = Engine(models.WordLevel(vocab, unk_token=UNKNOWN) if has_unknown else models.WordLevel(vocab))
    if tokenizer.setting:
        engine.normalizer = normalizers.Lowercase()
    # Oniguruma has no (?P=name).
    words = WORDS.pattern.replace("(?P<sign>", "(").replace("(?P=sign)", r"\1")
    pattern = rf"\n|{words}" if END in tokenizer.special_tokens else words
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    engine.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"^(?=[\p{L}\p{N}])"), " "),
            decoders.Replace(UNKNOWN, f" {UNKNOWN}"),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special_tokens = {name: number for name, number in tokenizer.special_tokens.items() if name != END}
    return _with_special_tokens(json.loads(engine.to_str()), special_tokens)


def _with_special_tokens(state: dict[str, Any], special_tokens: dict[str, int]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": name, **flags} for name, number in special_tokens.items()]
    return state | {"added_tokens": [*(state.get("added_tokens") or ()), *added]}


TRANSLATIONS: dict[type[Any], Callable[[Any], dict[str, Any]]] = {
    CharTokenizer: _characters,
    ByteTokenizer: _bytes,
    BytePairs: _byte_pairs,
    UnigramTokenizer: _hugging_face,
    PretrainedTokenizer: _hugging_face,
    WordTokenizer: _words,
}
