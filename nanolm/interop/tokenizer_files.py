"""Read the tokenizer of a model in the Hugging Face format."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from nanolm.config.tokenizer import Gpt2Config
from nanolm.data.tokenizers import PretrainedTokenizer, Tokenizer
from nanolm.data.tokenizers.bytepairs import (
    ENCODER_NAMES,
    MERGES_NAMES,
    Gpt2Tokenizer,
    parse_merges,
    tokens_of_merges,
)
from nanolm.data.tokenizers.checks import MAX_FILE_BYTES, read_json, read_text
from nanolm.data.tokenizers.sentencepiece import SentencePieceTokenizer
from nanolm.errors import RunError, TokenizerError
from nanolm.interop.sources import HINT, SourceFolder
from nanolm.untrusted import read_inside

TOKENIZER, ADDED, SENTENCEPIECE = "tokenizer.json", "added_tokens.json", "tokenizer.model"

END_OF_TEXT = "<|endoftext|>"

# A text that a lossless tokenizer decodes to itself.
_SAMPLE = "The café's  3.14\n\tcats — 中文 😀.\n"


@dataclasses.dataclass(frozen=True)
class FoundTokenizer:
    """The tokenizer of a folder.

    Attributes:
        name: the registered name of the tokenizer.
        files: the files that it was read from.
        remarks: about its vocabulary.
    """

    tokenizer: Tokenizer
    name: str
    files: list[str]
    remarks: list[str]


def read_tokenizer(folder: SourceFolder, vocab_size: int) -> FoundTokenizer:
    """Read tokenizer.json, vocab.json with merges.txt, or tokenizer.model, in this order.

    GPT-2's own vocabulary becomes tokenizer=gpt2, any other of the first two tokenizer=pretrained.

    Args:
        vocab_size: the number of embeddings of the model.

    Raises:
        RunError: there is none.
        TokenizerError: it cannot be read, or has more tokens than the model has embeddings.
    """
    try:
        name, tokenizer, files = _read(folder)
        if tokenizer.vocab_size > vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens, and the model {vocab_size:,} embeddings",
                hint="use the tokenizer that belongs to the model",
            )
        remarks = []
        if tokenizer.vocab_size < vocab_size:
            unused = vocab_size - tokenizer.vocab_size
            remarks.append(f"the model has {unused:,} more embeddings than the tokenizer has tokens; they are kept")
            if isinstance(tokenizer, Gpt2Tokenizer):
                state = byte_level_state(tokenizer.merges, tokenizer.special_tokens)
            elif isinstance(tokenizer, PretrainedTokenizer):
                state = tokenizer.state
            else:
                raise TokenizerError(
                    f"tokenizer.model has {tokenizer.vocab_size:,} tokens, and the model {vocab_size:,} embeddings",
                    hint="convert it to tokenizer.json with transformers' AutoTokenizer",
                )
            name, tokenizer = "pretrained", _pretrained(state, vocab_size)
    except TokenizerError as error:
        raise TokenizerError(error.found, where=error.where or str(folder.path), hint=error.hint or HINT) from error
    return FoundTokenizer(tokenizer, name, files, remarks)


def _read(folder: SourceFolder) -> tuple[str, Tokenizer, list[str]]:
    if folder.has(TOKENIZER):
        state = read_json(folder.path / TOKENIZER, folder.root)
        return *_from_state(state, str(folder.path / TOKENIZER)), [TOKENIZER]
    for encoder, merges in zip(ENCODER_NAMES, MERGES_NAMES, strict=True):
        if folder.has(encoder) and folder.has(merges):
            files = [encoder, merges, *([ADDED] if folder.has(ADDED) else [])]
            vocab = read_json(folder.path / encoder, folder.root)
            rules = parse_merges(read_text(folder.path / merges, folder.root))
            added = read_json(folder.path / ADDED, folder.root) if ADDED in files else {}
            where = f"{folder.path / merges}, {folder.path / encoder}"
            return *_from_state(_state_of_files(vocab, rules, added, where), where), files
    if folder.has(SENTENCEPIECE):
        return "sentencepiece", _sentencepiece(folder), [SENTENCEPIECE]
    raise RunError(
        f"the folder has no tokenizer: neither {TOKENIZER}, nor vocab.json with merges.txt, nor {SENTENCEPIECE}",
        where=str(folder.path),
        hint="copy the files of the model's tokenizer into the folder",
    )


def _from_state(state: dict[str, Any], where: str) -> tuple[str, Tokenizer]:
    """Return the tokenizer that a tokenizer.json describes, with its registered name."""
    if _is_gpt2(state):
        merges = [_merge(rule) for rule in state["model"]["merges"]]
        return "gpt2", Gpt2Tokenizer(merges, [END_OF_TEXT])
    try:
        return "pretrained", _pretrained(state)
    except TokenizerError as error:
        raise TokenizerError(error.found, where=error.where or where, hint=error.hint) from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"not a tokenizer: {error!r}", where=where) from error


def _pretrained(state: dict[str, Any], vocab_size: int | None = None) -> PretrainedTokenizer:
    return PretrainedTokenizer.from_json(
        {"tokenizer": state, **({} if vocab_size is None else {"vocab_size": vocab_size})}
    )


def _is_gpt2(state: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json is GPT-2's own, with its ids."""
    try:
        model, added = state["model"], state.get("added_tokens") or []
        merges = [_merge(rule) for rule in model["merges"]]
        file = "\n".join(["#version: 0.2", *merges, ""])
        level = state["pre_tokenizer"]
        return (
            hashlib.sha256(file.encode()).hexdigest() == Gpt2Config.merges_sha256
            and model["vocab"] == {token: n for n, token in enumerate([*tokens_of_merges(merges), END_OF_TEXT])}
            and all((token["content"], token["id"]) == (END_OF_TEXT, model["vocab"][END_OF_TEXT]) for token in added)
            and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
            and state.get("normalizer") is None
            and (level["type"], level.get("add_prefix_space"), level.get("use_regex", True))
            == ("ByteLevel", False, True)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _merge(rule: Any) -> str:
    """Return a merge as in merges.txt; newer files have it as a list."""
    return " ".join(rule) if isinstance(rule, list) else rule


def _state_of_files(vocab: dict[str, Any], merges: list[str], added: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the tokenizer.json of GPT-2's two files and added_tokens.json; tokens of no merge are special."""
    if not all(type(number) is int for number in [*vocab.values(), *added.values()]):
        raise TokenizerError("an id of the vocabulary is not a whole number", where=where)
    made = {*tokens_of_merges([]), *("".join(rule.split(" ")) for rule in merges)}
    special = {token: number for token, number in vocab.items() if token not in made}
    return byte_level_state(merges, special | added, vocab)


def byte_level_state(
    merges: list[str], special_tokens: dict[str, int], vocab: dict[str, int] | None = None
) -> dict[str, Any]:
    """Return the tokenizer.json of a byte-level BPE that splits as GPT-2 does.

    Args:
        vocab: ids of the tokens; None numbers the bytes, the merges and the special tokens.
    """
    vocab = vocab or {token: n for n, token in enumerate(tokens_of_merges(merges))} | special_tokens
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for name, number in special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _sentencepiece(folder: SourceFolder) -> SentencePieceTokenizer:
    """Read a model of SentencePiece that splits and decodes as nanolm's do."""
    path = folder.path / SENTENCEPIECE
    hint = "convert it to tokenizer.json: transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    try:
        tokenizer = SentencePieceTokenizer(read_inside(path, folder.root, MAX_FILE_BYTES))
        is_lossless = tokenizer.decode(tokenizer.encode(_SAMPLE)) == _SAMPLE
    except OSError as error:
        raise TokenizerError(f"{SENTENCEPIECE} cannot be read: {error.strerror or error}", where=str(path)) from error
    except (TokenizerError, RuntimeError) as error:
        reason = error.found if isinstance(error, TokenizerError) else str(error)
        raise TokenizerError(f"{SENTENCEPIECE} cannot be used: {reason}", where=str(path), hint=hint) from error
    if not is_lossless:
        raise TokenizerError(f"{SENTENCEPIECE} changes texts before it encodes them", where=str(path), hint=hint)
    return tokenizer
