"""Words by our own rules, by spaCy's and by torchtext's."""

import builtins
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.tokenizer import SpacyConfig, TorchtextConfig, WordConfig, WordsConfig
from nanolm.data import tokenizers
from nanolm.data.tokenizers import words
from nanolm.errors import SettingsError, TokenizerError

TEXT = "The cat sat; the cat's hat, 3.14 and 10,000!\nDon't -- the end...\n"


def split(text: str, config: WordsConfig | None = None) -> list[str]:
    tokenizer = tokenizers.fit(config or WordConfig(), [text])
    return [tokenizer.decode([number]) for number in tokenizer.encode(text)]


def test_words_numbers_signs_and_line_ends() -> None:
    expected = "The cat sat ; the cat's hat , 3.14 and 10,000 ! \n Don't -- the end ... \n"
    assert split(TEXT) == expected.split(" ")
    assert split("v1.2.3x a_b हिन्दी café 3d ?!")[:3] == ["v1", ".", "2"]
    assert split("हिन्दी cafe\u0301 ?!! 中文") == ["हिन्दी", "cafe\u0301", "?", "!!", "中文"]


def test_a_blank_goes_before_words_but_not_at_the_beginning_of_a_line() -> None:
    tokenizer = tokenizers.fit(WordConfig(), [TEXT])
    assert tokenizer.decode(tokenizer.encode(TEXT)) == (
        "The cat sat; the cat's hat, 3.14 and 10,000!\nDon't-- the end...\n"
    )
    assert tokenizer.decode(tokenizer.encode("the   cat \n\n sat")) == "the cat\n\nsat"
    assert tokenizer.decode([]) == ""


def test_lower_case() -> None:
    tokenizer = tokenizers.fit(WordConfig(lowercase=True), [TEXT])
    assert tokenizer.decode(tokenizer.encode("THE CAT")) == "the cat"
    assert tokenizer.vocab_size == tokenizers.fit(WordConfig(), [TEXT]).vocab_size - 1


def test_the_most_frequent_words_come_first() -> None:
    tokenizer = tokenizers.fit(WordConfig(max_size=5), ["b a a\n", "c c c b d"])
    assert tokenizer.tokens == ["<unk>", "<eos>", "c", "a", "b"]
    assert tokenizer.special_tokens == {"<unk>": 0, "<eos>": 1}
    assert tokenizer.encode("a d\nx").tolist() == [3, 0, 1, 0]
    assert tokenizers.fit(WordConfig(min_frequency=3), ["b a a", "c c c b d"]).tokens == ["<unk>", "<eos>", "c"]


def test_special_names_in_the_text_are_ordinary_text() -> None:
    assert split("<unk> <eos>") == ["<", "unk", ">", "<", "eos", ">"]


def test_a_word_left_out_counts_as_long_as_they_are_on_average() -> None:
    tokenizer = tokenizers.fit(WordConfig(max_size=3), ["a a a four sixsix\n"])
    ids = tokenizer.encode("a four sixsix a\n")
    assert ids.tolist() == [2, 0, 0, 2, 1]
    assert tokenizer.count_bytes(ids) == len("a four sixsix a\n")
    assert tokenizer.count_bytes(ids[:0]) == 0


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_are_those_of_the_decoded_text(text: str) -> None:
    tokenizer = tokenizers.fit(WordConfig(), [text, "some more"])
    ids = tokenizer.encode(text)
    assert tokenizer.count_bytes(ids) == len(tokenizer.decode(ids).encode())
    assert (tokenizer.encode(tokenizer.decode(ids)) == ids).all() or "'" in text or "’" in text or "." in text


def test_unseen_words_are_listed_where_there_is_no_unk() -> None:
    tokenizer = tokenizers.fit(WordConfig(special_tokens=["<eos>"]), ["a b c\n"])
    assert tokenizer.encode("c a\n").tolist() == [3, 1, 0]
    with pytest.raises(TokenizerError, match=r"2 words that .* never seen: 'dee', 'ex'[\s\S]*<unk> among"):
        tokenizer.encode("a ex dee")
    without = tokenizers.fit(WordConfig(special_tokens=[]), ["a b\n"])
    assert without.decode(without.encode("a\nb")) == "a b"


def test_a_lone_surrogate_is_an_error() -> None:
    for kind in (WordConfig(), TorchtextConfig()):
        with pytest.raises(TokenizerError, match="lone surrogate"):
            tokenizers.fit(kind, ["a"]).encode("a \ud800")
        with pytest.raises(TokenizerError, match="lone surrogate"):
            tokenizers.fit(kind, ["a \ud800"])


def test_a_vocabulary_without_room_or_words() -> None:
    with pytest.raises(TokenizerError, match="max_size 1 has no room for the 2 special tokens"):
        tokenizers.fit(WordConfig(max_size=1), ["a"])
    with pytest.raises(TokenizerError, match="no word is left"):
        tokenizers.fit(WordConfig(min_frequency=2), ["a b"])
    with pytest.raises(TokenizerError, match="'<unk>' is there twice"):
        tokenizers.fit(WordConfig(special_tokens=["<unk>", "<unk>"]), ["a"])


def test_more_than_65536_words_take_wider_integers() -> None:
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
def test_torchtext_at_white_space(splitter: str | None) -> None:
    assert split("a,b  c\n<unk>", TorchtextConfig(splitter=splitter)) == ["a,b", "c", "\n", "<unk>"]


def test_the_vocabulary_is_that_of_torchtext() -> None:
    from torchtext.data import get_tokenizer
    from torchtext.vocab import Vocab

    counts = Counter(word for line in TEXT.split("\n") for word in get_tokenizer("basic_english")(line))
    vocab = Vocab(counts, max_size=6, min_freq=1, specials=["<unk>", "<eos>"])
    assert tokenizers.fit(TorchtextConfig(max_size=8), [TEXT]).tokens == vocab.itos


def test_ours_is_the_order_of_torchtext() -> None:
    ours = tokenizers.fit(WordConfig(), [TEXT])
    assert (
        words.TorchtextTokenizer._chosen(Counter(split(TEXT)) - Counter("\n\n"), TorchtextConfig()) == ours.tokens[2:]
    )


@pytest.fixture
def own_splitter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(words, "_SPLITTERS", {})

    @tokenizers.splitter("at_dashes")
    def at_dashes(line: str) -> list[str]:
        return line.split("-")

    return


@pytest.mark.usefixtures("own_splitter")
def test_a_splitter_of_ones_own() -> None:
    assert split("a-b c-d", TorchtextConfig(splitter="at_dashes")) == ["a", "b c", "d"]
    for taken in ("at_dashes", "basic_english"):
        with pytest.raises(SettingsError, match="there already"):
            tokenizers.splitter(taken)(str.split)


def test_an_unknown_splitter_is_named() -> None:
    with pytest.raises(SettingsError, match="did you mean basic_english"):
        tokenizers.fit(TorchtextConfig(splitter="basic_englsh"), ["a"])
    with pytest.raises(SettingsError, match="tokenizer=spacy"):
        tokenizers.fit(TorchtextConfig(splitter="spacy"), ["a"])


def test_a_splitter_whose_package_is_missing(without) -> None:  # type: ignore[no-untyped-def]
    without("nltk")
    with pytest.raises(SettingsError, match="pip install nltk"):
        tokenizers.fit(TorchtextConfig(splitter="toktok"), ["a"])


def test_spacy() -> None:
    pytest.importorskip("spacy", reason="the extra nanolm[spacy] is not installed")
    tokenizer = tokenizers.fit(SpacyConfig(), ["I don't know.\n"])
    assert tokenizer.tokens == ["<unk>", "<eos>", ".", "I", "do", "know", "n't"]
    assert tokenizer.decode(tokenizer.encode("I know  Mr.\n")) == "I know <unk>\n"
    with pytest.raises(SettingsError, match="no rules for the language 'xx_none'"):
        tokenizers.fit(SpacyConfig(language="xx_none"), ["a"])


def test_spacy_missing(without) -> None:  # type: ignore[no-untyped-def]
    without("spacy")
    with pytest.raises(SettingsError, match="pip install 'spacy>="):
        tokenizers.fit(SpacyConfig(), ["a"])


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Makes a package look as if it were not installed."""
    real = builtins.__import__

    def hide(package: str) -> None:
        def imported(name: str, *arguments: object, **keywords: object) -> object:
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
            return real(name, *arguments, **keywords)

        monkeypatch.setattr(builtins, "__import__", imported)

    return hide
