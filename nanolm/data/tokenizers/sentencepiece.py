"""SentencePiece (Kudo and Richardson 2018), set so that every text comes back byte for byte."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import SentencePieceConfig
from nanolm.data.tokenizers.byte_pieces import Pieces, grouped
from nanolm.data.tokenizers.bytepairs import room
from nanolm.data.tokenizers.protocol import entry, smallest_dtype, utf8
from nanolm.errors import TokenizerError
from nanolm.registry import TOKENIZERS

# It writes a blank as U+2581, so that one in the text would come back as a blank. The trainer passes over a line
# with U+2585, its own mark, and over one of more than 4,192 bytes.
_BLANK = "\u2581"
_MARK = "\u2585"
_LONGEST = 1000
_LINES = 4096


@TOKENIZERS.register("sentencepiece")
class SentencePieceTokenizer:
    """A SentencePiece model over characters; what it has no piece for is written in bytes.

    A line end is a token of its own. U+2581 is written in its three bytes.

    Args:
        model: the serialized model.

    Raises:
        TokenizerError: it is not a model, or not one with bytes and a line end.
    """

    lossless = True

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._model = model
        try:
            self._engine = engine = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise TokenizerError(
                "the model is damaged: SentencePiece cannot read it", where="tokenizer.json"
            ) from error
        self.vocab_size = engine.vocab_size()
        numbers = range(self.vocab_size)
        self.special_tokens = {
            engine.id_to_piece(n): n for n in numbers if engine.is_control(n) or engine.is_unknown(n)
        }
        content = [
            bytes([int(piece[3:5], 16)]) if engine.is_byte(n) else utf8(piece.replace(_BLANK, " "))
            for n, piece in ((n, engine.id_to_piece(n)) for n in numbers)
        ]
        self._pieces = Pieces(content, self.special_tokens)
        id_of_byte = {content[n]: n for n in numbers if engine.is_byte(n)}
        self._line_end = engine.piece_to_id("\n")
        if len(id_of_byte) != 256 or content[self._line_end] != b"\n":
            raise TokenizerError("the model has not all bytes, or no line end", where="tokenizer.json")
        self._apart = {"\n": [self._line_end], _BLANK: [id_of_byte[bytes([byte])] for byte in utf8(_BLANK)]}
        self._integers = smallest_dtype(self.vocab_size)

    @classmethod
    def fit(cls, texts: Iterable[str], config: SentencePieceConfig) -> Self:
        """Trains a model on the lines of the corpus, in one thread, so that the same text gives the same model.

        Raises:
            TokenizerError: vocab_size has no room for the bytes and the characters, or there is no text.
        """
        import sentencepiece

        room(config.vocab_size, (), 260)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_training_lines(texts),
                model_writer=model,
                vocab_size=config.vocab_size,
                model_type=config.model_type.name,
                normalization_rule_name="identity",
                byte_fallback=True,
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["\n"],
                character_coverage=config.character_coverage,
                # A small corpus gives a smaller vocabulary than was asked for.
                hard_vocab_limit=False,
                num_threads=1,
                unk_id=0,
                bos_id=-1,
                eos_id=1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            few = "required_chars" in str(error)
            raise TokenizerError(
                f"SentencePiece cannot train {config.vocab_size:,} pieces: "
                + ("the bytes and the characters of the corpus are more" if few else f"{error}".strip()),
                where="tokenizer.vocab_size, tokenizer.character_coverage" if few else "the corpus",
                hint="a larger tokenizer.vocab_size, or a smaller tokenizer.character_coverage" if few else "",
            ) from error
        return cls(model.getvalue())

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text.

        Raises:
            TokenizerError: the text has a lone surrogate.
        """
        utf8(text)
        parts: list[np.ndarray] = [np.empty(0, dtype=self._integers)]
        for several in grouped(_cut(text), _LINES):
            ordinary = [part for part in several if part not in self._apart]
            encoded = iter(self._engine.encode(ordinary, out_type=int, num_threads=1))
            numbers = [n for part in several for n in (self._apart.get(part) or next(encoded))]
            parts.append(np.array(numbers, dtype=self._integers))
        return np.concatenate(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens by their names."""
        return self._pieces.text(ids)

    def count_bytes(self, ids: np.ndarray) -> int:
        """The bytes of the pieces; special tokens have none."""
        return self._pieces.count_bytes(ids)

    def to_json(self) -> dict[str, Any]:
        """The model in base64."""
        return {"model": base64.b64encode(self._model).decode("ascii")}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """From a model in base64."""
        try:
            return cls(base64.b64decode(entry(state, "model", str), validate=True))
        except binascii.Error as error:
            raise TokenizerError(f"the model is not base64: {error}", where="tokenizer.json") from error


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        utf8(text)
        for match in re.finditer(f"[^\n{_BLANK}{_MARK}]{{1,{_LONGEST}}}", text):
            yield match.group()


def _cut(text: str) -> Iterator[str]:
    """The text in line ends, U+2581 and what stands between them, as no piece goes across those."""
    for match in re.finditer(f"[\n{_BLANK}]|[^\n{_BLANK}]+", text):
        yield match.group()
