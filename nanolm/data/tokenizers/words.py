"""Tokenizers by words: our own rules, spaCy's, torchtext's, or a function of the user's. None of them is lossless.

A text is split line by line. Every line end is one `<eos>`, as in word-level WikiText; a last line without an end
has none, so that a prompt can be continued. Decoding puts a blank before every token that begins with a letter or a
digit and does not begin a line.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import WordsConfig
from nanolm.data.tokenizers.protocol import checked, entry, require_distinct, smallest_dtype, strings, utf8
from nanolm.errors import SettingsError, TokenizerError, install_hint, nearest
from nanolm.registry import TOKENIZERS

UNKNOWN, END = "<unk>", "<eos>"

Splitter = Callable[[str], Iterable[str]]


class _Words:
    """A vocabulary of words, and the splitter of a line that a subclass builds from its settings.

    Args:
        words: the vocabulary without the special tokens, whose ids come first.
        special_tokens: names. Without `<unk>` an unseen word is an error; without `<eos>` line ends are lost.
        unknown_bytes: what an `<unk>` stands for on average, in bytes.
        settings: what the splitter needs to know, as plain JSON values.

    Raises:
        TokenizerError: a token is there twice, or there are none.
    """

    lossless = False
    _settings: tuple[str, ...] = ()

    def __init__(
        self, words: Sequence[str], special_tokens: Sequence[str], unknown_bytes: float, settings: dict[str, Any]
    ) -> None:
        self.tokens = [*special_tokens, *words]
        require_distinct(self.tokens, where="tokenizer.json")
        if not self.tokens or "" in self.tokens:
            raise TokenizerError("a vocabulary needs words, and none of them empty", where="tokenizer.json")
        self.vocab_size = len(self.tokens)
        self.special_tokens = {name: number for number, name in enumerate(special_tokens)}
        self.unknown_bytes = unknown_bytes
        self.settings = settings
        self._id_of = {token: number for number, token in enumerate(self.tokens)}
        self._end = self.special_tokens.get(END)
        self._split = self._splitter(settings)
        self._integers = smallest_dtype(self.vocab_size)
        special = len(special_tokens)
        width = np.array([0.0] * special + [len(utf8(word)) for word in words])
        begins_a_word = np.array([False] * special + [word[0].isalnum() for word in words])
        if (unknown := self.special_tokens.get(UNKNOWN)) is not None:
            width[unknown], begins_a_word[unknown] = unknown_bytes, True
        if self._end is not None:
            width[self._end] = 1
        self._width, self._begins_a_word = width, begins_a_word

    @classmethod
    def _splitter(cls, settings: dict[str, Any]) -> Splitter:
        """The function that splits a line."""
        raise NotImplementedError

    @classmethod
    def _chosen(cls, counts: Counter[str], config: Any) -> list[str]:
        """The words of the vocabulary, most frequent first, in code point order among equals."""
        wanted = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        size = None if config.max_size is None else config.max_size - len(config.special_tokens)
        return [word for word, count in wanted if count >= config.min_frequency][:size]

    @classmethod
    def fit(cls, texts: Iterable[str], config: WordsConfig) -> Self:
        """Counts the words of the texts.

        Raises:
            TokenizerError: max_size has no room for the special tokens, or no word is left.
        """
        special_tokens = list(config.special_tokens)
        require_distinct(special_tokens, where="tokenizer.special_tokens")
        if config.max_size is not None and config.max_size < len(special_tokens):
            raise TokenizerError(
                f"max_size {config.max_size} has no room for the {len(special_tokens)} special tokens",
                where="tokenizer.max_size, tokenizer.special_tokens",
                hint="a larger tokenizer.max_size, or null for no limit",
            )
        settings = {name: getattr(config, name) for name in cls._settings}
        split = cls._splitter(settings)
        counts: Counter[str] = Counter()
        for text in texts:
            utf8(text)
            for line in _lines(text):
                counts.update(split(line))
        for name in special_tokens:
            counts.pop(name, None)
        words = cls._chosen(counts, config)
        if not words:
            raise TokenizerError(
                f"no word is left for the vocabulary of the {len(counts):,} in the corpus",
                where="tokenizer.min_frequency, tokenizer.max_size",
                hint="a smaller tokenizer.min_frequency, a larger tokenizer.max_size, or a text with words",
            )
        for word in words:
            counts.pop(word)
        unknown = sum(len(utf8(word)) * count for word, count in counts.items())
        return cls(words, special_tokens, unknown / counts.total() if counts else float(len(UNKNOWN)), settings)

    def encode(self, text: str) -> np.ndarray:
        """Ids of the words, and of the line ends.

        Raises:
            TokenizerError: with the list of words that were never seen, where there is no `<unk>`; or the text has a
                lone surrogate.
        """
        utf8(text)
        id_of, split, end = self._id_of, self._split, self._end
        unknown = self.special_tokens.get(UNKNOWN, -1)
        ids: list[int] = []
        for number, line in enumerate(_lines(text)):
            if number and end is not None:
                ids.append(end)
            ids.extend([id_of.get(word, unknown) for word in split(line)])
        array = np.array(ids, dtype=np.int64)
        if (array < 0).any():
            raise self._never_seen(text)
        return array.astype(self._integers)

    def _never_seen(self, text: str) -> TokenizerError:
        unseen = sorted({word for line in _lines(text) for word in self._split(line)} - self._id_of.keys())
        return TokenizerError(
            f"{len(unseen)} word{'s' if len(unseen) > 1 else ''} that the tokenizer has never seen: "
            + ", ".join(map(repr, unseen[:10]))
            + (", ..." if len(unseen) > 10 else ""),
            where=f"a text of {len(text):,} characters",
            hint=f"leave them out, or train with {UNKNOWN} among tokenizer.special_tokens",
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The words with blanks between them; `<eos>` is a line end, other special tokens show their names."""
        text: list[str] = []
        at_start = True
        for number in checked(ids, self.vocab_size).tolist():
            if number == self._end:
                text.append("\n")
            else:
                blank = " " if self._begins_a_word[number] and not at_start else ""
                text.append(blank + self.tokens[number])
            at_start = number == self._end
        return "".join(text)

    def count_bytes(self, ids: np.ndarray) -> int:
        """The bytes of the decoded text; an `<unk>` is as long as the words left out of the vocabulary on average.

        Special tokens other than these two count nothing. Of blanks it knows only those that decoding puts back.
        """
        follows_end = np.concatenate([[True], ids[:-1] == self._end])[: len(ids)]
        blanks = self._begins_a_word[ids] & ~follows_end
        return round(float(np.bincount(ids, minlength=self.vocab_size) @ self._width)) + int(blanks.sum())

    def to_json(self) -> dict[str, Any]:
        """The special tokens and the words in the order of their ids, and how a line is split."""
        return {
            "special_tokens": list(self.special_tokens),
            "words": self.tokens[len(self.special_tokens) :],
            "unknown_bytes": self.unknown_bytes,
            **self.settings,
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """From words and how a line is split."""
        unknown_bytes = entry(state, "unknown_bytes", float)
        if not 0 <= unknown_bytes < float("inf"):
            raise TokenizerError(f"'unknown_bytes' is {unknown_bytes}", where="tokenizer.json")
        settings = {name: cls._setting(state, name) for name in cls._settings}
        return cls(strings(state, "words"), strings(state, "special_tokens"), unknown_bytes, settings)

    @classmethod
    def _setting(cls, state: dict[str, Any], name: str) -> Any:
        return entry(state, name, str)


@TOKENIZERS.register("word")
class WordTokenizer(_Words):
    """Words by our own rules.

    A token is a number (3.14, 10,000), a word of letters, marks and digits with the apostrophes inside it (don't), or
    a run of one and the same sign (... and -- are one). White space is not kept.
    """

    _settings = ("lowercase",)

    @classmethod
    def _splitter(cls, settings: dict[str, Any]) -> Splitter:
        # finditer, as findall gives groups.
        words = _word_expression().finditer
        lowercase = settings["lowercase"]
        return lambda line: [match.group() for match in words(line.lower() if lowercase else line)]

    @classmethod
    def _setting(cls, state: dict[str, Any], name: str) -> Any:
        return entry(state, name, bool)


@TOKENIZERS.register("spacy")
class SpacyTokenizer(_Words):
    """Words by the rules of spaCy's tokenizer of a language; no trained model is needed, and none is used."""

    _settings = ("language",)

    @classmethod
    def _splitter(cls, settings: dict[str, Any]) -> Splitter:
        language = settings["language"]
        try:
            import spacy
        except ImportError as error:
            raise SettingsError(
                f"spaCy cannot be imported: {error}",
                where="tokenizer.name spacy",
                hint=install_hint("spacy"),
            ) from error
        try:
            tokenize = spacy.blank(language).tokenizer
        except ImportError as error:
            raise SettingsError(
                f"spaCy has no rules for the language {language!r}: {error}".splitlines()[0],
                where="tokenizer.language",
                hint="a code such as en, de or fr; some languages need packages of their own",
            ) from error
        return lambda line: [token.text for token in tokenize(line) if not token.is_space]


_SPLITTERS: dict[str, Splitter] = {}


def splitter(name: str) -> Callable[[Splitter], Splitter]:
    """Decorates a function from a line to its words, for `tokenizer=torchtext tokenizer.splitter=NAME`.

    Raises:
        SettingsError: the name is taken, by another function or by torchtext.
    """

    def decorate(function: Splitter) -> Splitter:
        known = _SPLITTERS.get(name)
        if name in _OF_TORCHTEXT or (known is not None and _origin(known) != _origin(function)):
            raise SettingsError(
                f"the splitter {name!r} is there already" + (f": {_origin(known)}" if known else ", in torchtext"),
                hint="choose another name",
            )
        _SPLITTERS[name] = function
        return function

    return decorate


_OF_TORCHTEXT = ("split", "basic_english", "moses", "toktok", "revtok", "subword")


@TOKENIZERS.register("torchtext")
class TorchtextTokenizer(_Words):
    """A splitter by its name in torchtext 0.6, or one of the user's, and torchtext's own Vocab."""

    _settings = ("splitter",)

    @classmethod
    def _splitter(cls, settings: dict[str, Any]) -> Splitter:
        splitter = settings["splitter"]
        if splitter is not None and splitter in _SPLITTERS:
            return _SPLITTERS[splitter]
        if splitter is not None and splitter not in _OF_TORCHTEXT:
            raise SettingsError(
                f"no splitter is called {splitter!r}",
                where="tokenizer.splitter",
                hint=nearest(splitter, [*_OF_TORCHTEXT, *_SPLITTERS])
                + "; one of your own is a function from a line to its words, decorated with "
                "nanolm.data.tokenizers.splitter in a module named by plugins=[...]; for spaCy: tokenizer=spacy",
            )
        try:
            from torchtext.data import get_tokenizer

            return get_tokenizer(None if splitter == "split" else splitter)
        except ImportError as error:
            raise SettingsError(
                f"torchtext's splitter {splitter!r} cannot be had: {error}",
                where="tokenizer.splitter",
                hint=f"pip install {error.name or 'torchtext==0.6.0'}",
            ) from error

    @classmethod
    def _chosen(cls, counts: Counter[str], config: Any) -> list[str]:
        from torchtext.vocab import Vocab

        special_tokens = list(config.special_tokens)
        size = None if config.max_size is None else config.max_size - len(special_tokens)
        vocab = Vocab(counts, max_size=size, min_freq=config.min_frequency, specials=special_tokens)
        return vocab.itos[len(special_tokens) :]

    @classmethod
    def _setting(cls, state: dict[str, Any], name: str) -> Any:
        return None if state.get(name, "") is None else entry(state, name, str)


def _origin(function: Splitter) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', 'builtins')}.{named.__qualname__}"


def _lines(text: str) -> Iterator[str]:
    """The lines of a text without their ends; after the last end there is one more, which may be empty."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


@functools.cache
def _word_expression() -> re.Pattern[str]:
    r"""Our rules. Python's \w lacks the marks that Indic and other scripts write vowels with."""
    marks = [point for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point))[0] == "M"]
    begins = [point for n, point in enumerate(marks) if n == 0 or marks[n - 1] != point - 1]
    ends = [point for n, point in enumerate(marks) if n + 1 == len(marks) or marks[n + 1] != point + 1]
    ranges = "".join(f"{chr(begin)}-{chr(end)}" for begin, end in zip(begins, ends, strict=True))
    word = rf"[\w{ranges}]"
    return re.compile(rf"\d+(?:[.,]\d+)+(?!{word})|{word}+(?:['’]{word}+)*|(?:(?P<sign>[^\s\w])(?P=sign)*)")
