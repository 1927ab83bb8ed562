import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config.tokenizer import BpeConfig
from nanolm.data.tokenizers import ByteTokenizer, Tokenizer
from nanolm.data.tokenizers.bytepairs import BpeTokenizer
from nanolm.inference.text_stream import (
    REPLACEMENT,
    ByteDecoder,
    DifferenceDecoder,
    StopScanner,
    TextDecoder,
    text_decoder,
)

BPE = BpeTokenizer.fit(["naïve café, 中文 中文, 😀😀 e\u0301 and so on\n" * 20], BpeConfig(vocab_size=290))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=REPLACEMENT)) | st.sampled_from(
    ["", "a", "中文", "😀\u200d👩", "e\u0301\x00\r\n", "\ufeff", "𐍈" * 5]
)


def parts_of(decoder: TextDecoder, tokens: list[int]) -> list[str]:
    return [*(decoder.add(token) for token in tokens), decoder.finish()]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["byte", "bpe"])
@given(prompt=TEXTS, text=TEXTS)
@settings(max_examples=60)
def test_valid_text_has_no_replacement_characters(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    tokens = tokenizer.encode(text).tolist()
    for decoder in (text_decoder(tokenizer, []), DifferenceDecoder(tokenizer, tokenizer.encode(prompt).tolist())):
        parts = parts_of(decoder, tokens)
        assert REPLACEMENT not in "".join(parts)
        assert "".join(parts) == text


@given(data=st.binary(max_size=30))
@settings(max_examples=100)
def test_invalid_bytes_are_decoded_as_at_once(data: bytes) -> None:
    expected = data.decode("utf-8", errors="replace")
    assert "".join(parts_of(ByteDecoder(ByteTokenizer.pieces), list(data))) == expected
    assert "".join(parts_of(DifferenceDecoder(ByteTokenizer(), []), list(data))) == expected


def test_a_character_appears_with_its_last_token() -> None:
    for decoder in (ByteDecoder(ByteTokenizer.pieces), DifferenceDecoder(ByteTokenizer(), [])):
        assert parts_of(decoder, list("a😀".encode())) == ["a", "", "", "", "😀", ""]


@given(
    text=st.text("ab", max_size=20), stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), data=st.data()
)
@settings(max_examples=150)
def test_stop_strings_are_found_across_parts(text: str, stop: list[str], data: st.DataObject) -> None:
    scanner = StopScanner(stop)
    shown, rest, is_stopped = "", text, False
    while rest and not is_stopped:
        size = data.draw(st.integers(1, len(rest)))
        part, is_stopped = scanner.add(rest[:size])
        shown, rest = shown + part, rest[size:]
    if is_stopped:
        # The text is cut in front of a stop string, and no stop string is complete before that.
        assert any(text[len(shown) :].startswith(each) for each in stop)
        assert not any(each in shown for each in stop)
    else:
        assert shown + scanner.finish() == text
        assert not any(each in text for each in stop)
