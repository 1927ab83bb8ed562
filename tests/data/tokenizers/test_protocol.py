import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.tokenizer import ByteConfig, CharConfig
from nanolm.data import tokenizers
from nanolm.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from nanolm.errors import TokenizerError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def char(text: str) -> CharTokenizer:
    return CharTokenizer.fit([text], CharConfig())


def test_characters_of_hello() -> None:
    tokenizer = char("Hello")
    assert dict(zip(tokenizer.characters, range(4), strict=True)) == {"H": 0, "e": 1, "l": 2, "o": 3}
    assert tokenizer.encode("Hello").tolist() == [0, 1, 2, 2, 3]


def test_characters_of_tiny_shakespeare(shakespeare: Path) -> None:
    text = shakespeare.read_text(encoding="utf-8")
    tokenizer = char(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.encode("hii there").tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]
    assert tokenizer.encode(text)[:9].tolist() == [18, 47, 56, 57, 58, 1, 15, 47, 58]


@given(TEXTS)
def test_bytes_carry_any_text(text: str) -> None:
    tokenizer = ByteTokenizer.fit([], ByteConfig())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.count_bytes(ids) == len(text.encode())


@given(TEXTS.filter(bool))
def test_characters_carry_the_text_they_were_fitted_to(text: str) -> None:
    tokenizer = char(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == tokenizers.smallest_dtype(tokenizer.vocab_size)
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.count_bytes(ids) == len(text.encode())


def test_every_kind_follows_the_protocol() -> None:
    assert isinstance(char("a"), Tokenizer)
    assert isinstance(ByteTokenizer(), Tokenizer)


def test_a_text_may_come_in_pieces() -> None:
    assert tokenizers.fit(CharConfig(), iter(["ab", "", "bc"])).vocab_size == 3


def test_unseen_characters_are_listed() -> None:
    with pytest.raises(TokenizerError, match=r"2 characters .* never seen: '\\n' \(U\+000A\), '😀' \(U\+1F600\)"):
        char("abc").encode("a\nb😀")
    with pytest.raises(TokenizerError, match=r"'\\ud800' \(U\+D800\)"):
        char("abc").encode("\ud800")
    with pytest.raises(TokenizerError, match="lone surrogate"):
        ByteTokenizer().encode("a\ud800")


def test_the_integers_grow_with_the_vocabulary() -> None:
    assert [tokenizers.smallest_dtype(n).name for n in (256, 257, 65_536, 65_537)] == [
        "uint8",
        "uint16",
        "uint16",
        "uint32",
    ]
    wide = char("".join(map(chr, range(0xE000, 0xE000 + 300))))
    assert wide.encode(chr(0xE000 + 299)).tolist() == [299]
    assert wide.encode("").dtype == np.uint16


@pytest.mark.parametrize("tokenizer", [char("hello é"), ByteTokenizer()])
def test_a_tokenizer_survives_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    name = "byte" if isinstance(tokenizer, ByteTokenizer) else "char"
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizers.to_text(name, tokenizer), encoding="utf-8")
    again = tokenizers.from_file(path)
    assert again.encode("hello").tolist() == tokenizer.encode("hello").tolist()
    assert tokenizers.fingerprint(name, again) == tokenizers.fingerprint(name, tokenizer)
    assert tokenizers.fingerprint("char", char("other")) != tokenizers.fingerprint(name, tokenizer)


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "{}",
        json.dumps({"name": "char"}),
        json.dumps({"name": "char", "characters": "abc"}),
        json.dumps({"name": "char", "characters": ["ab"]}),
        json.dumps({"name": "char", "characters": ["a", 1]}),
        json.dumps({"name": "char", "characters": ["a", "a"]}),
        json.dumps({"name": "char", "characters": []}),
    ],
)
def test_a_damaged_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError):
        tokenizers.from_file(path)
