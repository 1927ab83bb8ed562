"""Translate nanolm's tokenizers to the tokenizer.json of Hugging Face tokenizers, which AutoTokenizer opens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nanolm.config.dataset import TemplateConfig
from nanolm.data.tokenizers import ByteTokenizer, CharTokenizer, PretrainedTokenizer, Tokenizer
from nanolm.data.tokenizers.byte_pieces import BYTE_TO_CHARACTER
from nanolm.data.tokenizers.bytepairs import BpeTokenizer, BytePairs, Gpt2Tokenizer, tokens_of_merges
from nanolm.data.tokenizers.huggingface import UnigramTokenizer
from nanolm.data.tokenizers.sentencepiece import SentencePieceTokenizer
from nanolm.data.tokenizers.words import END, UNKNOWN, WORDS, SpacyTokenizer, TorchtextTokenizer, WordTokenizer
from nanolm.interop.chat_template import chat_template
from nanolm.json_text import dump_json

# Names that a tokenizer's end of text may have, of which the first that it has is chosen.
END_OF_TEXT = ("<|endoftext|>", "<eos>", "</s>", "<|end_of_text|>")

# Post-processors that add no special tokens.
_HARMLESS = (None, "ByteLevel")


def tokenizer_files(
    tokenizer: Tokenizer, name: str, context_length: int, template: TemplateConfig | None = None
) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a tokenizer, and remarks for the user.

    Args:
        name: of the tokenizer, as in tokenizer.name.
        template: of the conversations that the model was trained with; None if there were none.
    """
    if type(tokenizer) is SentencePieceTokenizer:
        return {"tokenizer.model": tokenizer.model}, ["the tokenizer is written as tokenizer.model, for sentencepiece"]
    state = to_tokenizer_json(tokenizer)
    if state is None:
        return {}, [f"tokenizer={name} is not exported: Hugging Face tokenizers cannot express its rules"]
    remarks = []
    post_processor = state.get("post_processor") or {}
    if post_processor.get("type") not in _HARMLESS:
        state = state | {"post_processor": None}
        remarks.append("the tokenizer adds no special tokens to a text, as in training; the original file adds some")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        # The name of a special token in a text is ordinary text, as in nanolm.
        "split_special_tokens": True,
    }
    end = end_of_text(tokenizer)
    if end is not None:
        settings["eos_token"] = end[0]
    if UNKNOWN in tokenizer.special_tokens:
        settings["unk_token"] = UNKNOWN
    if template is not None:
        settings["chat_template"] = chat_template(template)
    return {"tokenizer.json": _encode(state), "tokenizer_config.json": _encode(settings)}, remarks


def end_of_text(tokenizer: Tokenizer) -> tuple[str, int] | None:
    """Return the name and the id of the special token that ends a text; None if there is none."""
    # Their <eos> is a line end, at which generation should not stop.
    if isinstance(tokenizer, WordTokenizer | SpacyTokenizer | TorchtextTokenizer):
        return None
    known = tokenizer.special_tokens
    return next(((name, known[name]) for name in END_OF_TEXT if name in known), None)


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Return the equivalent tokenizer.json; None if there is none (SentencePiece, spaCy, torchtext, a plugin's)."""
    # A plugin's tokenizer may be a subclass with other rules.
    translate = TRANSLATIONS.get(type(tokenizer))
    return None if translate is None else translate(tokenizer)


def _encode(value: dict[str, Any]) -> bytes:
    return (dump_json(value, indent=2, ensure_ascii=False) + "\n").encode()


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
    BpeTokenizer: _byte_pairs,
    Gpt2Tokenizer: _byte_pairs,
    UnigramTokenizer: _hugging_face,
    PretrainedTokenizer: _hugging_face,
    WordTokenizer: _words,
}
