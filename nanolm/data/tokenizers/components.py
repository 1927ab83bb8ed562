"""Checks of a tokenizer.json of Hugging Face tokenizers before the library reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nanolm.data.tokenizers.checks import MAX_VOCAB_SIZE
from nanolm.errors import TokenizerError

# The key of the components in a Sequence, and the other known types, by part.
_PARTS = {
    "normalizer": (
        "normalizers",
        "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Strip StripAccents",
    ),
    "pre_tokenizer": (
        "pretokenizers",
        "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace Punctuation Split UnicodeScripts "
        "Whitespace WhitespaceSplit",
    ),
    "decoder": ("decoders", "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Strip WordPiece"),
}
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_MAX_DEPTH, _MAX_COMPONENTS = 5, 100
# The largest that is in use is SentencePiece's table of normalizations, of 400,000 characters.
_MAX_CHARACTERS = 2_000_000
_MAX_GROWTH = 1000

_HINT = "nanolm runs tokenizers of known components only; use another tokenizer.json"


def check_components(state: dict[str, Any]) -> None:
    """Check the types, number, nesting and size of the components, and the size of the vocabulary.

    Raises:
        TokenizerError: a component is unknown, or there are too many.
    """
    model = state.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("not a tokenizer: it has no model")
    # Files of early versions of the library do not name the type of the model.
    if "type" in model and model["type"] not in _MODELS:
        raise TokenizerError(f"unknown type of model: {str(model['type'])[:80]!r}", hint=_HINT)
    growth = 1.0
    for part in _PARTS:
        for number, component in enumerate(_components(state.get(part), part, 0)):
            if number == _MAX_COMPONENTS:
                raise TokenizerError(f"the {part} has more than {_MAX_COMPONENTS} components", hint=_HINT)
            if len(str(component)) > _MAX_CHARACTERS:
                raise TokenizerError(f"the {part} has more than {_MAX_CHARACTERS:,} characters", hint=_HINT)
            growth *= _growth(component)
    if growth > _MAX_GROWTH:
        raise TokenizerError(f"it may make a text more than {_MAX_GROWTH:,} times as long", hint=_HINT)
    ids = [*_ids(model.get("vocab")), *_ids(state.get("added_tokens") or [])]
    if ids and max(ids) >= MAX_VOCAB_SIZE:
        raise TokenizerError(f"a token has the id {max(ids)}, and at most {MAX_VOCAB_SIZE:,} tokens are supported")


def _components(found: Any, part: str, depth: int) -> Iterator[dict[str, Any]]:
    """Iterate over the components of a part, those in Sequences included."""
    if found is None:
        return
    key, types = _PARTS[part]
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "Sequence" and isinstance(found.get(key), list):
        if depth == _MAX_DEPTH:
            raise TokenizerError(f"the {part} is nested more than {_MAX_DEPTH} levels deep", hint=_HINT)
        for component in found[key]:
            yield from _components(component, part, depth + 1)
    elif isinstance(kind, str) and kind in types.split():
        yield found
    else:
        raise TokenizerError(f"unknown component in the {part}: {str(kind or found)[:80]!r}", hint=_HINT)


def _growth(component: dict[str, Any]) -> float:
    """Return the factor by which a Replace makes a text longer at most."""
    if component["type"] != "Replace":
        return 1
    pattern, content = component.get("pattern"), component.get("content")
    text = pattern.get("String") if isinstance(pattern, dict) else None
    length = len(text) if isinstance(text, str) else 1
    return max(1.0, len(content) / max(1, length)) if isinstance(content, str) else 1


def _ids(vocab: Any) -> list[int]:
    """Return the ids of a vocabulary, which the library has not checked yet."""
    if isinstance(vocab, dict):
        return [number for number in vocab.values() if isinstance(number, int)]
    if not isinstance(vocab, list):
        return []
    ids = [entry.get("id") for entry in vocab if isinstance(entry, dict)]
    return [number for number in ids if isinstance(number, int)] + ([len(vocab) - 1] if vocab else [])
