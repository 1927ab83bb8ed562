"""SentencePiece (Kudo and Richardson 2018), configured to be lossless."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import SentencePieceConfig
from nanolm.data.tokenizers.byte_pieces import BytePieces, batched
from nanolm.data.tokenizers.checks import check_vocab_size, encode_utf8, get_entry
from nanolm.errors import TokenizerError
from nanolm.registry import TOKENIZERS

# SentencePiece writes a blank as U+2581, so that this character in a text would be decoded as a blank.
_BLANK = "\u2581"
# Its trainer skips a line that has U+2585, its own marker, or more than 4,192 bytes.
_MARK = "\u2585"
_MAX_TRAINING_CHARACTERS = 1000
# Parts of a text that are encoded together.
_BATCH = 4096


@TOKENIZERS.register("sentencepiece")
class SentencePieceTokenizer(BytePieces):
    """A SentencePiece model over characters with byte fallback.

    A line end is a token of its own. U+2581 is encoded as its three bytes.

    Args:
        model: the serialized model.

    Raises:
        TokenizerError: it is not a model, or lacks byte tokens or a line end.
    """

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        _check_specification(model)
        self.model = model
        try:
            self._engine = engine = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise TokenizerError(
                "the model is damaged: SentencePiece cannot read it", where="tokenizer.json"
            ) from error
        pieces = [engine.id_to_piece(n) for n in range(engine.vocab_size())]
        special_tokens = {piece: n for n, piece in enumerate(pieces) if engine.is_control(n) or engine.is_unknown(n)}
        content = [
            bytes([int(piece[3:5], 16)]) if engine.is_byte(n) else encode_utf8(piece.replace(_BLANK, " "))
            for n, piece in enumerate(pieces)
        ]
        super().__init__(content, special_tokens)
        id_of_byte = {piece: n for n, piece in enumerate(content) if engine.is_byte(n)}
        line_end = engine.piece_to_id("\n")
        if len(id_of_byte) != 256 or content[line_end] != b"\n":
            raise TokenizerError("the model does not have all bytes and a line end")
        # Texts that are encoded without the model.
        self._fixed = {"\n": [line_end], _BLANK: [id_of_byte[bytes([byte])] for byte in encode_utf8(_BLANK)]}

    @classmethod
    def fit(cls, texts: Iterable[str], config: SentencePieceConfig) -> Self:
        """Train a model on the lines of the corpus, in one thread, so that the same text gives the same model.

        Raises:
            TokenizerError: vocab_size is too small for the bytes and the characters, or there is no text.
        """
        import sentencepiece

        check_vocab_size(config.vocab_size, (), required=260)
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
                # A small corpus gives a smaller vocabulary than requested.
                hard_vocab_limit=False,
                num_threads=1,
                unk_id=0,
                bos_id=-1,
                eos_id=1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            found = f"SentencePiece cannot train {config.vocab_size:,} pieces"
            if "required_chars" not in str(error):
                raise TokenizerError(f"{found}: {str(error).strip()}", where="the corpus") from error
            raise TokenizerError(
                f"{found}: the bytes and the characters of the corpus are more",
                where="tokenizer.vocab_size, tokenizer.character_coverage",
                hint="use a larger tokenizer.vocab_size or a smaller tokenizer.character_coverage",
            ) from error
        return cls(model.getvalue())

    def encode(self, text: str) -> np.ndarray:
        encode_utf8(text)
        # No piece spans a line end or U+2581.
        parts = re.findall(f"[\n{_BLANK}]|[^\n{_BLANK}]+", text)
        arrays: list[np.ndarray] = [np.empty(0, dtype=self.dtype)]
        for batch in batched(parts, _BATCH):
            ordinary = [part for part in batch if part not in self._fixed]
            encoded = iter(self._engine.encode(ordinary, out_type=int, num_threads=1))
            numbers = [n for part in batch for n in (self._fixed.get(part) or next(encoded))]
            arrays.append(np.array(numbers, dtype=self.dtype))
        return np.concatenate(arrays)

    def to_json(self) -> dict[str, Any]:
        """Return the model in base64."""
        return {"model": base64.b64encode(self.model).decode("ascii")}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        try:
            tokenizer = cls(base64.b64decode(get_entry(state, "model", str), validate=True))
            tokenizer.encode("A model that cannot encode is reported when it is loaded: é 中 😀.\n")
        except binascii.Error as error:
            raise TokenizerError(f"the model is not base64: {error}") from error
        except RuntimeError as error:
            raise TokenizerError(f"the model is damaged: {error}") from error
        return tokenizer


def _check_specification(model: bytes) -> None:
    """Check that a model has only pieces, the trainer's settings and no table that replaces characters.

    Such a table may replace a character by a text of any length, or crash the library.

    Raises:
        TokenizerError: it has something else, or is not a message of Protocol Buffers.
    """
    try:
        # sentencepiece_model.proto: the pieces, the settings of the trainer and those of the normalizer.
        for field, content in _fields(model):
            if field not in (1, 2, 3):
                raise TokenizerError(f"the model has the unknown field {field}")
            # Of the normalizer: the table of replacements, and its source.
            if field == 3 and any(number in (2, 6) and value for number, value in _fields(content)):
                raise TokenizerError("the model replaces characters, which nanolm's models do not")
    except (IndexError, TypeError, ValueError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError("the model is damaged: SentencePiece cannot read it") from error


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Iterate over the fields of a message of Protocol Buffers; numbers are empty bytes."""
    at, end = 0, len(message)

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("a number is too long")

    while at < end:
        field, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
            yield field, b""
            continue
        length = {1: 8, 5: 4}.get(kind, -1) if kind != 2 else varint()
        if length < 0 or at + length > end:
            raise ValueError("a field is truncated")
        yield field, message[at : at + length]
        at += length


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        encode_utf8(text)
        for match in re.finditer(f"[^\n{_BLANK}{_MARK}]{{1,{_MAX_TRAINING_CHARACTERS}}}", text):
            yield match.group()
