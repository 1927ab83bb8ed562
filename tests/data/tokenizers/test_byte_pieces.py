import numpy as np
import pytest
from hypothesis import given, settings

from nanolm.data import tokenizers
from nanolm.data.tokenizers import byte_pieces
from nanolm.errors import TokenizerError
from tests.texts import A_PAGE, CORPUS, LOSSLESS, TEXTS, trained


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=TEXTS)
@settings(max_examples=200)
def test_trained_is_lossless_for_any_text(kind: str, text: str) -> None:
    tokenizer = trained(kind)
    assert tokenizer.lossless
    ids = tokenizer.encode(text)
    assert ids.ndim == 1
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text
    assert tokenizer.count_bytes(ids) == len(text.encode())


@pytest.mark.parametrize("kind", LOSSLESS)
def test_trained_is_lossless_for_awkward_texts(kind: str) -> None:
    tokenizer = trained(kind)
    for text in (
        A_PAGE,
        "",
        "\u2581",
        " \u2581 ",
        "\r\n",
        "\0",
        "\u0301",
        "<|endoftext|>",
        "<unk></s><0x41>",
        "x" * 9999,
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(TokenizerError, match=r"U\+D83D is half a character"):
        tokenizer.encode("a\ud83d")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_fit_is_deterministic(kind: str) -> None:
    again = tokenizers.fit(LOSSLESS[kind], iter(CORPUS))
    name = LOSSLESS[kind].name
    assert tokenizers.fingerprint(name, again) == tokenizers.fingerprint(name, trained(kind))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_fit_merges_characters(kind: str) -> None:
    tokenizer = trained(kind)
    assert 300 < tokenizer.vocab_size <= 400
    assert len(tokenizer.encode(CORPUS[0])) < (0.9 if "unigram" in kind else 0.5) * len(CORPUS[0])


@pytest.mark.parametrize("kind", LOSSLESS)
def test_special_tokens_decode_to_names_without_bytes(kind: str) -> None:
    tokenizer = trained(kind)
    for name, number in tokenizer.special_tokens.items():
        assert 0 <= number < tokenizer.vocab_size
        assert number not in tokenizer.encode(name)
        assert tokenizer.decode([number]) == name
        assert tokenizer.count_bytes(np.array([number])) == 0


@given(text=TEXTS)
def test_text_chunks_keep_ids_of_gpt2(gpt2: tokenizers.Tokenizer, hugging_face_gpt2, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_pieces, "_CHUNK", 2)
        assert "".join(byte_pieces.text_chunks(text)) == text
        assert gpt2.encode(text).tolist() == hugging_face_gpt2.encode(text).ids


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_text_chunks_keep_ids_of_trained_tokenizers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CORPUS[0] + A_PAGE
    whole = trained(kind).encode(text)
    monkeypatch.setattr(byte_pieces, "_CHUNK", 5)
    assert len(list(byte_pieces.text_chunks(text))) > 1000
    assert (trained(kind).encode(text) == whole).all()


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000", " \n"])
def test_text_chunks_split_a_million_blanks(gpt2: tokenizers.Tokenizer, blank: str) -> None:
    for text in (blank * 1_000_000, blank * 1_000_000 + "x", "é" + blank * 1_000_000 + "é y"):
        ids = gpt2.encode(text)
        assert gpt2.count_bytes(ids) == len(text.encode())
    few = blank * 2000 + "é"
    assert gpt2.encode(text).tolist()[-20:] == gpt2.encode(few + " y").tolist()[-20:]
