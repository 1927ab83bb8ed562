"""Byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019, section 2.2): trained, or GPT-2's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import BpeConfig, Gpt2Config
from nanolm.data.download import fetch
from nanolm.data.tokenizers.byte_pieces import BYTE_TO_CHARACTER, BytePieces, text_chunks, token_bytes, train
from nanolm.data.tokenizers.checks import check_vocab_size, get_strings, read_json, read_text
from nanolm.errors import DataError, TokenizerError
from nanolm.files import user_path
from nanolm.registry import TOKENIZERS

# Matches what GPT-2's expression matches. The group has what needs no backtracking, which is most of a text and faster
# by half; blanks at the end of a text are in it, so that the engine does not backtrack over them one by one.
_EXPRESSION = r"(?:'(?:[dmst]|ll|re|ve)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s"
ENCODER_NAMES, MERGES_NAMES = ("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")


class BytePairs(BytePieces):
    """Byte-pair encoding, run by tiktoken.

    Ids are the 256 bytes in GPT-2's order, one token per merge, and the special tokens.

    Args:
        merges: two tokens in GPT-2's spelling, separated by a blank, in order of rank.
        special_tokens: names.

    Raises:
        TokenizerError: a merge uses tokens that no earlier merge produces, or produces an existing token.
    """

    def __init__(self, merges: Sequence[str], special_tokens: Sequence[str]) -> None:
        import tiktoken

        self.merges = list(merges)
        tokens = tokens_of_merges(self.merges)
        content = [token_bytes(token) or b"" for token in tokens]
        numbers = {name: len(tokens) + n for n, name in enumerate(special_tokens)}
        super().__init__(content + [b""] * len(special_tokens), numbers)
        self._engine = tiktoken.Encoding(
            "nanolm",
            pat_str=_EXPRESSION,
            mergeable_ranks={token: rank for rank, token in enumerate(content)},
            # Never encoded, but without any special token the search for the next one stops at every character.
            special_tokens={"<|endoftext|>": len(content)},
        )

    def encode(self, text: str) -> np.ndarray:
        """Convert text to ids, merging the pair of lowest rank first."""
        parts = [self._engine.encode_to_numpy(part, disallowed_special=()) for part in text_chunks(text)]
        return np.concatenate([np.empty(0, np.uint32), *parts], dtype=self.dtype, casting="unsafe")

    def to_json(self) -> dict[str, Any]:
        """Return the merges in order of rank, and the names of the special tokens."""
        return {"merges": self.merges, "special_tokens": list(self.special_tokens)}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        return cls(get_strings(state, "merges"), get_strings(state, "special_tokens"))


@TOKENIZERS.register("bpe")
class BpeTokenizer(BytePairs):
    """Byte-pair encoding trained on the corpus by Hugging Face tokenizers."""

    @classmethod
    def fit(cls, texts: Iterable[str], config: BpeConfig) -> Self:
        """Merge the most frequent pair until the vocabulary is full or no pair is left.

        Raises:
            TokenizerError: vocab_size is too small for the bytes and the special tokens.
        """
        from tokenizers import models, trainers

        size = check_vocab_size(config.vocab_size, config.special_tokens, required=256)
        state = train(models.BPE(), trainers.BpeTrainer, texts, vocab_size=size, min_frequency=config.min_frequency)
        # Two merges may produce the same token; its rank is that of the first.
        distinct: dict[str, str] = {}
        for left, right in state["model"]["merges"]:
            distinct.setdefault(left + right, f"{left} {right}")
        return cls(list(distinct.values()), config.special_tokens)


@TOKENIZERS.register("gpt2")
class Gpt2Tokenizer(BytePairs):
    """GPT-2's own vocabulary: 50,256 tokens and <|endoftext|>, whose name in a text is ordinary text."""

    @classmethod
    def fit(cls, texts: Iterable[str], config: Gpt2Config) -> Self:
        """Read OpenAI's two files, or an equivalent tokenizer.json, from tokenizer.path; download them without it.

        Raises:
            TokenizerError: a file is missing or damaged, the two are inconsistent, or the download fails.
            RunError: the address is that of a run, and the user did not ask for the download.
        """
        if config.path is None:
            try:
                encoder = fetch(config.encoder_url, config.encoder_sha256, "tokenizer.encoder_url")
                merges = fetch(config.merges_url, config.merges_sha256, "tokenizer.merges_url")
            except DataError as error:
                raise TokenizerError(
                    error.found,
                    where=error.where,
                    hint="get encoder.json and vocab.bpe by other means and set tokenizer.path=FOLDER",
                ) from error
            return cls._from_files(encoder, merges)
        path = user_path(config.path)
        if path.is_dir():
            encoders, merge_files = (
                [path / name for name in names if (path / name).is_file()] for names in (ENCODER_NAMES, MERGES_NAMES)
            )
            if encoders and merge_files:
                return cls._from_files(encoders[0], merge_files[0])
            path = path / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"there is no encoder.json with vocab.bpe, and no tokenizer.json: {config.path}",
                where="tokenizer.path",
                hint="name a folder with GPT-2's two files, or a tokenizer.json; "
                "without tokenizer.path they are downloaded",
            )
        return cls._from_tokenizer_json(path)

    @classmethod
    def _from_files(cls, encoder: Path, merges: Path) -> Self:
        # tiktoken.load.data_gym_to_mergeable_bpe_ranks reads these files too, but returns no merges for tokenizer.json,
        # and its check of one file against the other is an assertion without a message.
        return cls._from_vocab(read_json(encoder), parse_merges(read_text(merges)), encoder, merges)

    @classmethod
    def _from_tokenizer_json(cls, path: Path) -> Self:
        state = read_json(path)
        model, before = state.get("model"), state.get("pre_tokenizer")
        level = isinstance(before, dict) and before.get("type") == "ByteLevel" and not before.get("add_prefix_space")
        if not (isinstance(model, dict) and model.get("type") == "BPE" and level and state.get("normalizer") is None):
            raise TokenizerError(
                "this is not a tokenizer like GPT-2's: byte-level BPE without normalizer and prefix space",
                where=str(path),
                hint=f"tokenizer=pretrained tokenizer.path={path} reads any tokenizer.json",
            )
        rules = model.get("merges")
        if not isinstance(rules, list):
            raise TokenizerError("it has no list of merges", where=str(path))
        rules = [" ".join(map(str, rule)) if isinstance(rule, list) else str(rule) for rule in rules]
        return cls._from_vocab(model.get("vocab"), rules, path, path)

    @classmethod
    def _from_vocab(cls, vocab: object, merges: list[str], encoder_path: Path, merges_path: Path) -> Self:
        """Make the tokenizer from its merges, after checking that the ids of its vocabulary are their ranks."""
        hint = "take both files from the same place"
        if not isinstance(vocab, dict) or not all(type(number) is int for number in vocab.values()):
            raise TokenizerError("it must be a JSON object from tokens to ids", where=str(encoder_path))
        try:
            tokens = tokens_of_merges(merges)
        except TokenizerError as error:
            raise TokenizerError(error.found, where=str(merges_path), hint=hint) from error
        by_id = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in by_id] != list(range(len(by_id))):
            raise TokenizerError("two tokens have the same id, or an id is missing", where=str(encoder_path))
        special_tokens = by_id[len(tokens) :]
        wrong = next((number for number, token in enumerate(tokens) if vocab.get(token) != number), None)
        if wrong is not None:
            token = tokens[wrong]
            problem = f"{token!r} has the id {wrong} by the merges, and {vocab.get(token)} in the vocabulary"
        elif len(special_tokens) > 1:
            problem = f"no merge produces {special_tokens[0]!r} and {len(special_tokens) - 1:,} more tokens"
        else:
            return cls(merges, special_tokens)
        where = f"{merges_path}, {encoder_path}"
        raise TokenizerError(f"the two files are inconsistent: {problem}", where=where, hint=hint)


def parse_merges(text: str) -> list[str]:
    """Return the merges in the text of vocab.bpe or merges.txt, without the line of the version."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [line for n, line in enumerate(lines) if line and not (n == 0 and line.startswith("#version"))]


def tokens_of_merges(merges: Iterable[str]) -> list[str]:
    """Return the tokens of merges in GPT-2's spelling, by id: the 256 bytes and one token per merge.

    Raises:
        TokenizerError: a merge uses tokens that no earlier merge produces, or produces an existing token.
    """
    tokens = dict.fromkeys(BYTE_TO_CHARACTER.values())
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left not in tokens or right not in tokens:
            raise TokenizerError(f"merge {rank}, {merge!r}, uses tokens that no earlier merge produces")
        if left + right in tokens:
            raise TokenizerError(f"merge {rank}, {merge!r}, produces a token that exists already")
        tokens[left + right] = None
    return list(tokens)
