"""Word tokenizers: nanolm's own rules, spaCy's, torchtext's, or a plugin's function. All of them are lossy.

A text is split line by line. Every line end is one `<eos>`, as in word-level WikiText; a last line without a line end
has none, so that a prompt can be continued. Decoding puts a blank before every token that begins with a letter or a
digit, except at the start of a line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np
import regex

from nanolm.config.tokenizer import WordsConfig
from nanolm.data.tokenizers.checks import (
    check_ids,
    encode_utf8,
    get_entry,
    get_strings,
    require_distinct,
    smallest_dtype,
    unseen_error,
)
from nanolm.errors import SettingsError, TokenizerError, install_hint, nearest
from nanolm.registry import TOKENIZERS, origin

UNKNOWN, END = "<unk>", "<eos>"

_ALPHANUMERIC = regex.compile(r"[\p{L}\p{N}]")
# Letters, numbers, marks and the underscore; \w of `re` lacks the marks, with which Indic scripts write vowels.
_WORD = r"[\p{L}\p{N}\p{M}_]"
WORDS = regex.compile(
    rf"\d+(?:[.,]\d+)+(?!{_WORD})|{_WORD}+(?:['’]{_WORD}+)*|(?:(?P<sign>[^\s\x1c-\x1f\p{{L}}\p{{N}}_])(?P=sign)*)"
)

Splitter = Callable[[str], Iterable[str]]


class _Words:
    """A vocabulary of words, with a function that splits a line, which a subclass makes from its one setting.

    Args:
        words: the vocabulary without the special tokens, which have the lowest ids.
        special_tokens: names. Without `<unk>` an unseen word is an error; without `<eos>` line ends are lost.
        unknown_bytes: average number of bytes that an `<unk>` represents.
        setting: the value of the setting of the function that splits a line.

    Raises:
        TokenizerError: a token is there twice or empty, or there are none.
    """

    lossless = False
    # The name and type of the setting.
    _setting: str
    _setting_type: Any = str

    def __init__(self, words: Sequence[str], special_tokens: Sequence[str], unknown_bytes: float, setting: Any) -> None:
        self.tokens = [*special_tokens, *words]
        require_distinct(self.tokens)
        if not self.tokens or "" in self.tokens:
            raise TokenizerError("a vocabulary needs words, none of them empty")
        self.vocab_size = len(self.tokens)
        self.special_tokens = {name: number for number, name in enumerate(special_tokens)}
        self.unknown_bytes = unknown_bytes
        self.setting = setting
        self._id_of = {token: number for number, token in enumerate(self.tokens)}
        self._line_end = self.special_tokens.get(END)
        self._split = self._splitter(setting)
        self.dtype = smallest_dtype(self.vocab_size)
        special = {UNKNOWN: unknown_bytes, END: 1.0}
        self._width = np.array(
            [special.get(name, 0.0) for name in special_tokens] + [len(encode_utf8(word)) for word in words]
        )
        self._follows_blank = np.array(
            [name == UNKNOWN for name in special_tokens] + [_ALPHANUMERIC.match(word) is not None for word in words]
        )

    @classmethod
    def _splitter(cls, setting: Any) -> Splitter:
        """Return the function that splits a line."""
        raise NotImplementedError

    @classmethod
    def fit(cls, texts: Iterable[str], config: WordsConfig) -> Self:
        """Collect the most frequent words of the texts; words of the same frequency are in code point order.

        Raises:
            TokenizerError: max_size is too small for the special tokens, or no word is left.
        """
        special_tokens = list(config.special_tokens)
        require_distinct(special_tokens, where="tokenizer.special_tokens")
        if config.max_size is not None and config.max_size < len(special_tokens):
            raise TokenizerError(
                f"max_size {config.max_size} has no room for the {len(special_tokens)} special tokens",
                where="tokenizer.max_size, tokenizer.special_tokens",
                hint="use a larger tokenizer.max_size, or null for no limit",
            )
        setting = getattr(config, cls._setting)
        split = cls._splitter(setting)
        counts: Counter[str] = Counter()
        for text in texts:
            encode_utf8(text)
            for line in text.split("\n"):
                counts.update(split(line))
        for name in special_tokens:
            counts.pop(name, None)
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        size = None if config.max_size is None else config.max_size - len(special_tokens)
        words = [word for word, count in ranked if count >= config.min_frequency][:size]
        if not words:
            raise TokenizerError(
                f"no word is left for the vocabulary of the {len(counts):,} in the corpus",
                where="tokenizer.min_frequency, tokenizer.max_size",
                hint="use a smaller tokenizer.min_frequency, a larger tokenizer.max_size, or a text with words",
            )
        for word in words:
            counts.pop(word)
        n_bytes = sum(len(encode_utf8(word)) * count for word, count in counts.items())
        return cls(words, special_tokens, n_bytes / counts.total() if counts else float(len(UNKNOWN)), setting)

    def encode(self, text: str) -> np.ndarray:
        encode_utf8(text)
        id_of, split, end = self._id_of, self._split, self._line_end
        unknown = self.special_tokens.get(UNKNOWN, -1)
        ids: list[int] = []
        for number, line in enumerate(text.split("\n")):
            if number and end is not None:
                ids.append(end)
            ids.extend([id_of.get(word, unknown) for word in split(line)])
        array = np.array(ids, dtype=np.int64)
        if (array < 0).any():
            unseen = sorted({word for line in text.split("\n") for word in split(line)} - id_of.keys())
            hint = f"remove them, or train with {UNKNOWN} among tokenizer.special_tokens"
            raise unseen_error("word", [repr(word) for word in unseen], text, hint)
        return array.astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text; `<eos>` becomes a line end, other special tokens their names."""
        text: list[str] = []
        at_start = True
        for number in check_ids(ids, self.vocab_size).tolist():
            if number == self._line_end:
                text.append("\n")
            else:
                blank = " " if self._follows_blank[number] and not at_start else ""
                text.append(blank + self.tokens[number])
            at_start = number == self._line_end
        return "".join(text)

    def count_bytes(self, ids: np.ndarray) -> int:
        """Estimate the bytes of the text: an `<unk>` counts as the average word that is not in the vocabulary.

        Other special tokens than `<unk>` and `<eos>` have none. Only the blanks that decoding adds are counted.
        """
        follows_end = np.concatenate([[True], ids[:-1] == self._line_end])[: len(ids)]
        blanks = self._follows_blank[ids] & ~follows_end
        return round(float(np.bincount(ids, minlength=self.vocab_size) @ self._width)) + int(blanks.sum())

    def to_json(self) -> dict[str, Any]:
        """Return the special tokens and the words in the order of their ids, and the setting of the splitter."""
        return {
            "special_tokens": list(self.special_tokens),
            "words": self.tokens[len(self.special_tokens) :],
            "unknown_bytes": self.unknown_bytes,
            self._setting: self.setting,
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        unknown_bytes = get_entry(state, "unknown_bytes", float)
        # The average length of a word; a larger number would overflow counts of bytes.
        if not 0 <= unknown_bytes < 2**31:
            raise TokenizerError(f"'unknown_bytes' is {unknown_bytes}")
        setting = get_entry(state, cls._setting, cls._setting_type)
        return cls(get_strings(state, "words"), get_strings(state, "special_tokens"), unknown_bytes, setting)


@TOKENIZERS.register("word")
class WordTokenizer(_Words):
    """Words by nanolm's own rules.

    A token is a number (3.14, 10,000), a word of letters, marks and digits with inner apostrophes (don't), or a run of
    one repeated sign (... and --). White space is dropped.
    """

    _setting = "lowercase"
    _setting_type = bool

    @classmethod
    def _splitter(cls, setting: bool) -> Splitter:
        # findall would return the group instead of the match.
        return lambda line: [match.group() for match in WORDS.finditer(line.lower() if setting else line)]


@TOKENIZERS.register("spacy")
class SpacyTokenizer(_Words):
    """Words by spaCy's tokenizer rules for a language, without a trained model."""

    _setting = "language"

    @classmethod
    def _splitter(cls, setting: str) -> Splitter:
        try:
            import spacy
        except ImportError as error:
            raise SettingsError(
                f"spaCy cannot be imported: {error}",
                where="tokenizer.name spacy",
                hint=install_hint("spacy"),
            ) from error
        try:
            # spaCy imports the module of this name.
            if not setting.isidentifier():
                raise ImportError("it is not a language code")
            tokenize = spacy.blank(setting).tokenizer
        except ImportError as error:
            raise SettingsError(
                f"spaCy has no rules for the language {setting!r}: {error}".splitlines()[0],
                where="tokenizer.language",
                hint="use a code such as en, de or fr; some languages need further packages",
            ) from error
        return lambda line: [token.text for token in tokenize(line) if not token.is_space]


_SPLITTERS: dict[str, Splitter] = {}


def splitter(name: str) -> Callable[[Splitter], Splitter]:
    """Register a function from a line to its words, for `tokenizer=torchtext tokenizer.splitter=NAME`.

    Raises:
        SettingsError: the name is used by another function or by torchtext.
    """

    def decorate(function: Splitter) -> Splitter:
        known = _SPLITTERS.get(name)
        if name in _TORCHTEXT_SPLITTERS or (known is not None and origin(known) != origin(function)):
            raise SettingsError(
                f"the splitter {name!r} exists already" + (f": {origin(known)}" if known else ", in torchtext"),
                hint="choose another name",
            )
        _SPLITTERS[name] = function
        return function

    return decorate


_TORCHTEXT_SPLITTERS = ("split", "basic_english", "moses", "toktok", "revtok", "subword")


@TOKENIZERS.register("torchtext")
class TorchtextTokenizer(_Words):
    """Words by a splitter of torchtext 0.6 or of a plugin, with the vocabulary that torchtext's Vocab selects."""

    _setting = "splitter"
    _setting_type = str | None

    @classmethod
    def _splitter(cls, setting: str | None) -> Splitter:
        if setting in _SPLITTERS:
            return _SPLITTERS[setting]
        if setting not in (None, *_TORCHTEXT_SPLITTERS):
            raise SettingsError(
                f"there is no splitter {setting!r}",
                where="tokenizer.splitter",
                hint=nearest(setting, [*_TORCHTEXT_SPLITTERS, *_SPLITTERS])
                + "; to add one, decorate a function from a line to its words with "
                "nanolm.data.tokenizers.splitter in a module of plugins=[...]; for spaCy use tokenizer=spacy",
            )
        try:
            from torchtext.data import get_tokenizer

            return get_tokenizer(None if setting == "split" else setting)
        except ImportError as error:
            raise SettingsError(
                f"torchtext's splitter {setting!r} cannot be loaded: {error}",
                where="tokenizer.splitter",
                hint=f"pip install {error.name or 'torchtext==0.6.0'}",
            ) from error
