from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.tokenizer import (
    ByteConfig,
    CharConfig,
)
from nanolm.data import tokenizers
from nanolm.data.tokenizers import ByteTokenizer, CharTokenizer
from nanolm.errors import TokenizerError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def make_char(text: str) -> CharTokenizer:
    return CharTokenizer.fit([text], CharConfig())


def test_char_ids_follow_code_points() -> None:
    tokenizer = make_char("Hello")
    assert dict(zip(tokenizer.characters, range(4), strict=True)) == {"H": 0, "e": 1, "l": 2, "o": 3}
    assert tokenizer.encode("Hello").tolist() == [0, 1, 2, 2, 3]


def test_char_vocabulary_of_tiny_shakespeare(shakespeare: Path) -> None:
    text = shakespeare.read_text(encoding="utf-8")
    tokenizer = make_char(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.encode("hii there").tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]
    assert tokenizer.encode(text)[:9].tolist() == [18, 47, 56, 57, 58, 1, 15, 47, 58]


@given(TEXTS)
def test_byte_is_lossless_for_any_text(text: str) -> None:
    tokenizer = ByteTokenizer.fit([], ByteConfig())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.count_bytes(ids) == len(text.encode())


@given(TEXTS.filter(bool))
def test_char_is_lossless_for_fitted_text(text: str) -> None:
    tokenizer = make_char(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == tokenizers.smallest_dtype(tokenizer.vocab_size)
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.count_bytes(ids) == len(text.encode())


def test_encode_lists_unseen_characters() -> None:
    with pytest.raises(
        TokenizerError, match=r"2 characters not in the tokenizer's vocabulary: '\\n' \(U\+000A\), '😀' \(U\+1F600\)"
    ):
        make_char("abc").encode("a\nb😀")
    with pytest.raises(TokenizerError, match=r"'\\ud800' \(U\+D800\)"):
        make_char("abc").encode("\ud800")
    with pytest.raises(TokenizerError, match="lone surrogate"):
        ByteTokenizer().encode("a\ud800")


def test_char_uses_uint32_above_65536_characters() -> None:
    characters = [chr(point) for point in range(0x10000, 0x10000 + 65_537)]
    tokenizer = CharTokenizer(characters)
    ids = tokenizer.encode("".join(characters))
    assert ids.dtype == np.uint32
    assert (ids == np.arange(65_537)).all()


@pytest.mark.parametrize("n", [254, 255, 256, 257])
def test_char_finds_unseen_characters_at_dtype_limits(n: int) -> None:
    tokenizer = CharTokenizer([chr(point) for point in range(n)])
    text = "".join(map(chr, range(n)))
    assert tokenizer.encode(text).tolist() == list(range(n))
    for unseen in {chr(n), "\u0200", "😀", "\x00" if n < 1 else chr(n + 1)}:
        with pytest.raises(TokenizerError, match=r"1 character not in the tokenizer's vocabulary"):
            tokenizer.encode(text + unseen)


def test_char_encodes_long_text_in_chunks() -> None:
    text = ("a" * 70_000 + "é" * 70_000 + "中" * 70_000 + "😀a") * 2
    tokenizer = tokenizers.fit(CharConfig(), [text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(TokenizerError, match="'b'"):
        tokenizer.encode(text + "b")


def test_char_fit_refuses_surrogates_and_empty_text() -> None:
    with pytest.raises(TokenizerError, match="half a character"):
        tokenizers.fit(CharConfig(), ["a\ud800"])
    with pytest.raises(TokenizerError, match="without characters"):
        tokenizers.fit(CharConfig(), [])
