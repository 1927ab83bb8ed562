import builtins
import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nanolm.config.tokenizer import SpacyConfig, TorchtextConfig, WordConfig, WordsConfig
from nanolm.data import tokenizers
from nanolm.data.tokenizers import words
from nanolm.errors import SettingsError, TokenizerError

TEXT = "The cat sat; the cat's hat, 3.14 and 10,000!\nDon't -- the end...\n"


def split(text: str, config: WordsConfig | None = None) -> list[str]:
    tokenizer = tokenizers.fit(config or WordConfig(), [text])
    return [tokenizer.decode([number]) for number in tokenizer.encode(text)]


def test_word_splits_words_numbers_signs_and_line_ends() -> None:
    expected = "The cat sat ; the cat's hat , 3.14 and 10,000 ! \n Don't -- the end ... \n"
    assert split(TEXT) == expected.split(" ")
    assert split("v1.2.3x a_b हिन्दी café 3d ?!")[:3] == ["v1", ".", "2"]
    assert split("हिन्दी cafe\u0301 ?!! 中文") == ["हिन्दी", "cafe\u0301", "?", "!!", "中文"]


def test_decode_puts_blanks_before_words_within_lines() -> None:
    tokenizer = tokenizers.fit(WordConfig(), [TEXT])
    assert tokenizer.decode(tokenizer.encode(TEXT)) == (
        "The cat sat; the cat's hat, 3.14 and 10,000!\nDon't-- the end...\n"
    )
    assert tokenizer.decode(tokenizer.encode("the   cat \n\n sat")) == "the cat\n\nsat"
    assert tokenizer.decode([]) == ""


def test_word_lowercase() -> None:
    tokenizer = tokenizers.fit(WordConfig(lowercase=True), [TEXT])
    assert tokenizer.decode(tokenizer.encode("THE CAT")) == "the cat"
    assert tokenizer.vocab_size == tokenizers.fit(WordConfig(), [TEXT]).vocab_size - 1


def test_fit_orders_words_by_frequency() -> None:
    tokenizer = tokenizers.fit(WordConfig(max_size=5), ["b a a\n", "c c c b d"])
    assert tokenizer.tokens == ["<unk>", "<eos>", "c", "a", "b"]
    assert tokenizer.special_tokens == {"<unk>": 0, "<eos>": 1}
    assert tokenizer.encode("a d\nx").tolist() == [3, 0, 1, 0]
    assert tokenizers.fit(WordConfig(min_frequency=3), ["b a a", "c c c b d"]).tokens == ["<unk>", "<eos>", "c"]


def test_encode_treats_special_names_as_text() -> None:
    assert split("<unk> <eos>") == ["<", "unk", ">", "<", "eos", ">"]


def test_count_bytes_uses_mean_length_for_unknown_words() -> None:
    tokenizer = tokenizers.fit(WordConfig(max_size=3), ["a a a four sixsix\n"])
    ids = tokenizer.encode("a four sixsix a\n")
    assert ids.tolist() == [2, 0, 0, 2, 1]
    assert tokenizer.count_bytes(ids) == len("a four sixsix a\n")
    assert tokenizer.count_bytes(ids[:0]) == 0


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_count_bytes_equals_bytes_of_decoded_text(text: str) -> None:
    tokenizer = tokenizers.fit(WordConfig(), [text, "some more"])
    ids = tokenizer.encode(text)
    assert tokenizer.count_bytes(ids) == len(tokenizer.decode(ids).encode())


# Without marks and the underscore: decoding puts no blank before a word that begins with one.
@given(st.text(st.one_of(st.sampled_from("ab1 \n.,'’-"), st.characters(exclude_categories=["Cs", "M", "Pc"]))))
def test_encode_restores_ids_from_decoded_text(text: str) -> None:
    tokenizer = tokenizers.fit(WordConfig(), [text, "some more"])
    ids = tokenizer.encode(text)
    tokens = [tokenizer.tokens[number] for number in ids]
    # Nor does it put one between two runs of the same sign.
    assume(all(a[0] != b[0] or a[0].isalnum() or a == "<eos>" for a, b in itertools.pairwise(tokens)))
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids.tolist()


@pytest.mark.parametrize(("text", "decoded"), [("! !!", "!!!"), ("a _b", "a_b"), ("a \u0301", "a\u0301")])
def test_decode_joins_signs_and_words_without_blank(text: str, decoded: str) -> None:
    tokenizer = tokenizers.fit(WordConfig(), [text])
    assert len(tokenizer.encode(text)) == 2
    assert tokenizer.decode(tokenizer.encode(text)) == decoded
    assert split(decoded) == [decoded]


def test_encode_lists_unseen_words_without_unk() -> None:
    tokenizer = tokenizers.fit(WordConfig(special_tokens=["<eos>"]), ["a b c\n"])
    assert tokenizer.encode("c a\n").tolist() == [3, 1, 0]
    with pytest.raises(
        TokenizerError, match=r"2 words not in the tokenizer's vocabulary: 'dee', 'ex'[\s\S]*<unk> among"
    ):
        tokenizer.encode("a ex dee")
    without = tokenizers.fit(WordConfig(special_tokens=[]), ["a b\n"])
    assert without.decode(without.encode("a\nb")) == "a b"


def test_lone_surrogate_is_refused() -> None:
    for kind in (WordConfig(), TorchtextConfig()):
        with pytest.raises(TokenizerError, match="lone surrogate"):
            tokenizers.fit(kind, ["a"]).encode("a \ud800")
        with pytest.raises(TokenizerError, match="lone surrogate"):
            tokenizers.fit(kind, ["a \ud800"])


def test_fit_refuses_too_small_and_empty_vocabulary() -> None:
    with pytest.raises(TokenizerError, match="max_size 1 has no room for the 2 special tokens"):
        tokenizers.fit(WordConfig(max_size=1), ["a"])
    with pytest.raises(TokenizerError, match="no word is left"):
        tokenizers.fit(WordConfig(min_frequency=2), ["a b"])
    with pytest.raises(TokenizerError, match="'<unk>' is there twice"):
        tokenizers.fit(WordConfig(special_tokens=["<unk>", "<unk>"]), ["a"])


def test_word_uses_uint32_above_65536_words() -> None:
    text = " ".join(f"w{number:05}" for number in range(65_540))
    tokenizer = tokenizers.fit(WordConfig(), [text])
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint32
    assert ids.tolist() == list(range(2, 65_542))


def test_torchtext_basic_english() -> None:
    tokenizer = tokenizers.fit(TorchtextConfig(), ["You can now install TorchText using pip!\n"])
    ids = tokenizer.encode("Install it using pip!")
    assert [tokenizer.tokens[number] for number in ids] == ["install", "<unk>", "using", "pip", "!"]
    assert tokenizer.decode(ids) == "install <unk> using pip!"


@pytest.mark.parametrize("splitter", ["split", None])
def test_torchtext_splits_at_white_space(splitter: str | None) -> None:
    assert split("a,b  c\n<unk>", TorchtextConfig(splitter=splitter)) == ["a,b", "c", "\n", "<unk>"]


def test_torchtext_vocabulary_equals_torchtext() -> None:
    from torchtext.data import get_tokenizer
    from torchtext.vocab import Vocab

    counts = Counter(word for line in TEXT.split("\n") for word in get_tokenizer("basic_english")(line))
    vocab = Vocab(counts, max_size=6, min_freq=1, specials=["<unk>", "<eos>"])
    assert tokenizers.fit(TorchtextConfig(max_size=8), [TEXT]).tokens == vocab.itos
    vocab = Vocab(counts, min_freq=2, specials=["<eos>"])
    assert tokenizers.fit(TorchtextConfig(min_frequency=2, special_tokens=["<eos>"]), [TEXT]).tokens == vocab.itos


def test_word_order_equals_torchtext() -> None:
    from torchtext.vocab import Vocab

    vocab = Vocab(Counter(split(TEXT)) - Counter("\n\n"), specials=["<unk>", "<eos>"])
    assert tokenizers.fit(WordConfig(), [TEXT]).tokens == vocab.itos


@pytest.fixture
def custom_splitter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(words, "_SPLITTERS", {})

    @tokenizers.splitter("at_dashes")
    def at_dashes(line: str) -> list[str]:
        return line.split("-")

    return


@pytest.mark.usefixtures("custom_splitter")
def test_torchtext_uses_registered_splitter() -> None:
    assert split("a-b c-d", TorchtextConfig(splitter="at_dashes")) == ["a", "b c", "d"]
    for taken in ("at_dashes", "basic_english"):
        with pytest.raises(SettingsError, match="exists already"):
            tokenizers.splitter(taken)(str.split)


def test_torchtext_names_missing_splitter() -> None:
    with pytest.raises(SettingsError, match="did you mean basic_english"):
        tokenizers.fit(TorchtextConfig(splitter="basic_englsh"), ["a"])
    with pytest.raises(SettingsError, match="tokenizer=spacy"):
        tokenizers.fit(TorchtextConfig(splitter="spacy"), ["a"])


def test_torchtext_names_missing_package(without) -> None:  # type: ignore[no-untyped-def]
    without("nltk")
    with pytest.raises(SettingsError, match="pip install nltk"):
        tokenizers.fit(TorchtextConfig(splitter="toktok"), ["a"])


def test_spacy_splits_by_its_rules() -> None:
    pytest.importorskip("spacy", reason="the extra nanolm[spacy] is not installed")
    tokenizer = tokenizers.fit(SpacyConfig(), ["I don't know.\n"])
    assert tokenizer.tokens == ["<unk>", "<eos>", ".", "I", "do", "know", "n't"]
    assert tokenizer.decode(tokenizer.encode("I know  Mr.\n")) == "I know <unk>\n"
    with pytest.raises(SettingsError, match="no rules for the language 'xx_none'"):
        tokenizers.fit(SpacyConfig(language="xx_none"), ["a"])


@pytest.mark.parametrize("language", ["en.stop_words", "..os", "", "en/../fr", "zz"])
def test_spacy_imports_only_languages(language: str) -> None:
    pytest.importorskip("spacy", reason="the extra nanolm[spacy] is not installed")
    with pytest.raises(SettingsError, match="has no rules for the language"):
        tokenizers.fit(SpacyConfig(language=language), ["a"])


def test_spacy_names_missing_package(without) -> None:  # type: ignore[no-untyped-def]
    without("spacy")
    with pytest.raises(SettingsError, match="pip install 'spacy>="):
        tokenizers.fit(SpacyConfig(), ["a"])


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Make a package look as if it were not installed."""
    real = builtins.__import__

    def hide(package: str) -> None:
        def imported(name: str, *arguments: object, **keywords: object) -> object:
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
            return real(name, *arguments, **keywords)

        monkeypatch.setattr(builtins, "__import__", imported)

    return hide


@pytest.mark.parametrize("number", [-1.0, 1e308, 2.0**31])
def test_unknown_bytes_are_limited(number: float) -> None:
    state = tokenizers.fit(WordConfig(), ["a b"]).to_json()
    with pytest.raises(TokenizerError, match="'unknown_bytes' is"):
        tokenizers.words.WordTokenizer.from_json(state | {"unknown_bytes": number})  # type: ignore[attr-defined]
