"""Byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019, section 2.2): trained, or GPT-2's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import BpeConfig, Gpt2Config
from nanolm.data.download import fetch
from nanolm.data.tokenizers.byte_pieces import CHARACTER_OF_BYTE, Pieces, chunks, spelled
from nanolm.data.tokenizers.protocol import require_distinct, smallest_dtype, strings
from nanolm.errors import DataError, TokenizerError
from nanolm.files import user_path
from nanolm.registry import TOKENIZERS

# GPT-2's expression, equal in what it matches. In the group is what an automaton can do, which is most of a text and
# faster by half; blanks at the end are in it, so that the engine need not try back from there one by one.
_EXPRESSION = r"(?:'(?:[dmst]|ll|re|ve)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s"
_ENCODER, _MERGES = ("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")


class _BytePairs:
    """Merges in order of rank, run by tiktoken.

    Ids are the 256 bytes in GPT-2's order, a token a merge, and the special tokens.

    Args:
        merges: two tokens in GPT-2's spelling and a blank between them.
        special_tokens: names.

    Raises:
        TokenizerError: a merge is of tokens that no merge before it made, or a token is made twice.
    """

    lossless = True

    def __init__(self, merges: Sequence[str], special_tokens: Sequence[str]) -> None:
        self.merges = list(merges)
        tokens = vocabulary(self.merges)
        content = [spelled(token) or b"" for token in tokens]
        self.special_tokens = {name: len(tokens) + n for n, name in enumerate(special_tokens)}
        self.vocab_size = len(tokens) + len(special_tokens)
        self._integers = smallest_dtype(self.vocab_size)
        self._pieces = Pieces(content + [b""] * len(special_tokens), self.special_tokens)
        self._engine = _engine({token: rank for rank, token in enumerate(content)})

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text's pairs, merged lowest rank first.

        Raises:
            TokenizerError: the text has a lone surrogate.
        """
        parts = [self._engine.encode_to_numpy(part, disallowed_special=()) for part in chunks(text)]
        ids = np.empty(sum(map(len, parts)), dtype=self._integers)
        return np.concatenate(parts, out=ids, casting="unsafe") if parts else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens by their names."""
        return self._pieces.text(ids)

    def count_bytes(self, ids: np.ndarray) -> int:
        """The bytes of the tokens; special tokens have none."""
        return self._pieces.count_bytes(ids)

    def to_json(self) -> dict[str, Any]:
        """The merges in order of rank, and the names of the special tokens."""
        return {"merges": self.merges, "special_tokens": list(self.special_tokens)}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """From merges and special tokens."""
        return cls(strings(state, "merges"), strings(state, "special_tokens"))


@TOKENIZERS.register("bpe")
class BpeTokenizer(_BytePairs):
    """Byte-pair encoding of the corpus, trained by Hugging Face tokenizers."""

    @classmethod
    def fit(cls, texts: Iterable[str], config: BpeConfig) -> Self:
        """The most frequent pair is merged again and again, until the vocabulary is full or no pair is left.

        Raises:
            TokenizerError: vocab_size has no room for the bytes and the special tokens.
        """
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        size = room(config.vocab_size, config.special_tokens, 256)
        engine = Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=config.min_frequency,
            show_progress=False,
            initial_alphabet=list(CHARACTER_OF_BYTE.values()),
        )
        engine.train_from_iterator((part for text in texts for part in chunks(text)), trainer)
        merges = json.loads(engine.to_str())["model"]["merges"]
        # Two merges may make the same token; the first of them is the token's rank.
        distinct: dict[str, str] = {}
        for left, right in merges:
            distinct.setdefault(left + right, f"{left} {right}")
        return cls(list(distinct.values()), config.special_tokens)


@TOKENIZERS.register("gpt2")
class Gpt2Tokenizer(_BytePairs):
    """GPT-2's own ids: 50,256 tokens and <|endoftext|>, whose name in a text is ordinary text."""

    @classmethod
    def fit(cls, texts: Iterable[str], config: Gpt2Config) -> Self:
        """Reads OpenAI's two files, or a tokenizer.json of the same, from tokenizer.path; else downloads them.

        Raises:
            TokenizerError: a file is missing or damaged, the two do not fit each other, or the network does not answer.
        """
        if config.path is None:
            try:
                files = [
                    fetch(config.encoder_url, config.encoder_sha256),
                    fetch(config.merges_url, config.merges_sha256),
                ]
            except DataError as error:
                raise TokenizerError(
                    error.found,
                    where=error.where,
                    hint="get encoder.json and vocab.bpe by other means and say tokenizer.path=FOLDER",
                ) from error
            return cls._of_files(*files)
        path = user_path(config.path)
        if path.is_dir():
            encoder, merges = _first(path, _ENCODER), _first(path, _MERGES)
            if encoder is not None and merges is not None:
                return cls._of_files(encoder, merges)
            path = path / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"there is no encoder.json with vocab.bpe, and no tokenizer.json: {config.path}",
                where="tokenizer.path",
                hint="name a folder with GPT-2's two files, or a tokenizer.json; "
                "without tokenizer.path they are downloaded",
            )
        return cls._of_tokenizer_json(path)

    @classmethod
    def _of_files(cls, encoder: Path, merges: Path) -> Self:
        lines = _read(merges).replace("\r\n", "\n").split("\n")
        rules = [line for n, line in enumerate(lines) if line and not (n == 0 and line.startswith("#version"))]
        return cls._fitting(_json(encoder), rules, encoder, merges)

    @classmethod
    def _of_tokenizer_json(cls, path: Path) -> Self:
        state = _json(path)
        model, before = state.get("model"), state.get("pre_tokenizer")
        level = isinstance(before, dict) and before.get("type") == "ByteLevel" and not before.get("add_prefix_space")
        if not (isinstance(model, dict) and model.get("type") == "BPE" and level and state.get("normalizer") is None):
            raise TokenizerError(
                "this is not GPT-2's kind of tokenizer: BPE over bytes, nothing normalised, no blank put in front",
                where=str(path),
                hint=f"tokenizer=pretrained tokenizer.path={path} takes any",
            )
        rules = model.get("merges")
        if not isinstance(rules, list):
            raise TokenizerError("it has no list of merges", where=str(path))
        rules = [" ".join(map(str, rule)) if isinstance(rule, list) else str(rule) for rule in rules]
        return cls._fitting(model.get("vocab"), rules, path, path)

    @classmethod
    def _fitting(cls, vocab: object, merges: list[str], encoder_path: Path, merges_path: Path) -> Self:
        """From a table of ids and the merges, which must give each token the rank that is its id."""
        if not isinstance(vocab, dict) or not all(type(number) is int for number in vocab.values()):
            raise TokenizerError("it must be a JSON object from tokens to ids", where=str(encoder_path))
        hint = "take both files from the same place"
        try:
            tokens = vocabulary(merges)
        except TokenizerError as error:
            raise TokenizerError(error.found, where=str(merges_path), hint=hint) from error
        by_id = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in by_id] != list(range(len(by_id))):
            raise TokenizerError("two tokens have the same id, or an id is left out", where=str(encoder_path))
        for number, token in enumerate(tokens):
            if vocab.get(token) != number:
                raise TokenizerError(
                    f"the two files do not fit: by the merges {token!r} has the id {number}, "
                    f"and by the table {vocab.get(token)}",
                    where=f"{merges_path}, {encoder_path}",
                    hint=hint,
                )
        special_tokens = by_id[len(tokens) :]
        if len(special_tokens) > 1:
            raise TokenizerError(
                f"the two files do not fit: no merge makes {special_tokens[0]!r} and {len(special_tokens) - 1:,} more",
                where=f"{merges_path}, {encoder_path}",
                hint=hint,
            )
        return cls(merges, special_tokens)


def vocabulary(merges: Iterable[str]) -> list[str]:
    """The tokens of merges in GPT-2's spelling, by id: the 256 bytes and a token a merge.

    Raises:
        TokenizerError: a merge is of tokens that no merge before it made, or makes a token that is there.
    """
    tokens = dict.fromkeys(CHARACTER_OF_BYTE.values())
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left not in tokens or right not in tokens:
            raise TokenizerError(f"merge {rank}, {merge!r}, is not of two tokens made before it", where="merges")
        if left + right in tokens:
            raise TokenizerError(f"merge {rank}, {merge!r}, makes a token that is there already", where="merges")
        tokens[left + right] = None
    return list(tokens)


def room(vocab_size: int, special_tokens: Sequence[str], needed: int) -> int:
    """What a vocabulary has room for beside the special tokens.

    Raises:
        TokenizerError: less than it needs, or a special token is named twice.
    """
    require_distinct(special_tokens, where="tokenizer.special_tokens")
    if vocab_size - len(special_tokens) < needed:
        raise TokenizerError(
            f"a vocabulary of {vocab_size:,} has no room for {needed:,} tokens that it must have "
            f"and {len(special_tokens)} special ones",
            where="tokenizer.vocab_size, tokenizer.special_tokens",
            hint=f"tokenizer.vocab_size={needed + len(special_tokens)} or more",
        )
    return vocab_size - len(special_tokens)


def _engine(ranks: dict[bytes, int]) -> Any:
    import tiktoken

    # It is never looked up, but without any special token the search for the next one stops at every character.
    special_tokens = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding("nanolm", pat_str=_EXPRESSION, mergeable_ranks=ranks, special_tokens=special_tokens)


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read the file: {error}", where=str(path)) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"it is not JSON: {error}", where=str(path)) from error
    if not isinstance(state, dict):
        raise TokenizerError("it must be a JSON object", where=str(path))
    return state
