"""tokenizer.json of every kind: there and back, damaged, and of a user's own kind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanolm.config.tokenizer import (
    BpeConfig,
    ByteConfig,
    CharConfig,
    Gpt2Config,
    PretrainedConfig,
    SentencePieceConfig,
    SpacyConfig,
    TokenizerConfig,
    TorchtextConfig,
    UnigramConfig,
    WordConfig,
)
from nanolm.data import tokenizers
from nanolm.data.tokenizers import CharTokenizer, Tokenizer
from nanolm.errors import SettingsError, TokenizerError
from nanolm.registry import TOKENIZERS
from tests.data.tokenizers.test_subwords import small_gpt2

TEXT = "the cat sat on the mat, and the dog didn't.\nNaïve 😀 \u2581\n" * 20
CONFIGS: list[TokenizerConfig] = [
    CharConfig(),
    ByteConfig(),
    WordConfig(max_size=12),
    SpacyConfig(),
    TorchtextConfig(max_size=12),
    BpeConfig(vocab_size=280),
    UnigramConfig(vocab_size=280),
    SentencePieceConfig(vocab_size=300),
    Gpt2Config(),
    PretrainedConfig(),
]


def fitted(config: TokenizerConfig, folder: Path) -> Tokenizer:
    if isinstance(config, SpacyConfig):
        pytest.importorskip("spacy", reason="the extra nanolm[spacy] is not installed")
    if isinstance(config, Gpt2Config):
        config = small_gpt2(folder)
    if isinstance(config, PretrainedConfig):
        state = tokenizers.fit(UnigramConfig(vocab_size=280), [TEXT]).to_json()["tokenizer"]
        (folder / "theirs.json").write_text(json.dumps(state), encoding="utf-8")
        config = PretrainedConfig(path=str(folder / "theirs.json"))
    return tokenizers.fit(config, [TEXT])


def test_every_kind_is_here() -> None:
    assert {config.name for config in CONFIGS} == {name for name in TOKENIZERS if name in TOKENIZERS.schemas}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_tokenizer_survives_its_file(config: TokenizerConfig, tmp_path: Path) -> None:
    tokenizer = fitted(config, tmp_path)
    assert isinstance(tokenizer, Tokenizer)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizers.to_text(config.name, tokenizer), encoding="utf-8")
    again = tokenizers.from_file(path)
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == tokenizers.smallest_dtype(tokenizer.vocab_size)
    assert (again.encode(TEXT) == ids).all()
    assert again.decode(ids) == tokenizer.decode(ids)
    assert again.count_bytes(ids) == tokenizer.count_bytes(ids)
    assert (again.vocab_size, again.lossless) == (tokenizer.vocab_size, tokenizer.lossless)
    assert again.special_tokens == tokenizer.special_tokens
    assert tokenizers.fingerprint(config.name, again) == tokenizers.fingerprint(config.name, tokenizer)
    assert (tokenizer.decode(ids) == TEXT) == tokenizer.lossless


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_ids_outside_the_vocabulary_are_refused(config: TokenizerConfig, tmp_path: Path) -> None:
    tokenizer = fitted(config, tmp_path)
    assert isinstance(tokenizer.decode(range(tokenizer.vocab_size)), str)
    for number in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=f"no token {number}"):
            tokenizer.decode([number])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("wrong", [None, 1, True, "x", [1], [None], ["a", "a"], {"a": 1}, {}])
def test_a_damaged_file_is_refused_by_name(config: TokenizerConfig, wrong: object, tmp_path: Path) -> None:
    state = json.loads(tokenizers.to_text(config.name, fitted(config, tmp_path)))
    path = tmp_path / "tokenizer.json"
    for key in set(state) - {"name"}:
        if (key, type(wrong)) in {("splitter", type(None)), ("lowercase", bool)}:
            continue
        for damaged in ({**state, key: wrong}, {name: value for name, value in state.items() if name != key}):
            path.write_text(json.dumps(damaged), encoding="utf-8")
            with pytest.raises((TokenizerError, SettingsError)) as caught:
                tokenizers.from_file(path)
            if isinstance(caught.value, TokenizerError):
                assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "not json", "[]", "1", "{}", '{"name": 1}', "[" * 100_000, "\xff"])
def test_what_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TokenizerError, match="not a tokenizer") as caught:
        tokenizers.from_file(path)
    assert str(path) in str(caught.value)
    assert "DecodeError" not in str(caught.value)
    with pytest.raises(TokenizerError, match=r"^none\.json is missing"):
        tokenizers.from_file(tmp_path / "none.json")
    with pytest.raises(TokenizerError, match="cannot be read: Is a directory"):
        tokenizers.from_file(tmp_path)
    path.write_text('{"name": "cahr"}')
    with pytest.raises(SettingsError, match="did you mean char"):
        tokenizers.from_file(path)


def test_more_than_65536_characters_take_wider_integers() -> None:
    characters = [chr(point) for point in range(0x10000, 0x10000 + 65_537)]
    tokenizer = CharTokenizer(characters)
    ids = tokenizer.encode("".join(characters))
    assert ids.dtype == np.uint32
    assert (ids == np.arange(65_537)).all()


@pytest.mark.parametrize("n", [254, 255, 256, 257])
def test_unseen_characters_are_found_whatever_the_size_of_the_vocabulary(n: int) -> None:
    tokenizer = CharTokenizer([chr(point) for point in range(n)])
    text = "".join(map(chr, range(n)))
    assert tokenizer.encode(text).tolist() == list(range(n))
    for unseen in {chr(n), "\u0200", "😀", "\x00" if n < 1 else chr(n + 1)}:
        with pytest.raises(TokenizerError, match=r"1 character .* never seen"):
            tokenizer.encode(text + unseen)


def test_characters_are_encoded_in_parts() -> None:
    text = ("a" * 70_000 + "é" * 70_000 + "中" * 70_000 + "😀a") * 2
    tokenizer = tokenizers.fit(CharConfig(), [text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(TokenizerError, match="'b'"):
        tokenizer.encode(text + "b")


def test_no_half_character_in_a_vocabulary() -> None:
    with pytest.raises(TokenizerError, match="half a character"):
        tokenizers.fit(CharConfig(), ["a\ud800"])
    with pytest.raises(TokenizerError, match="without characters"):
        tokenizers.fit(CharConfig(), [])


class Least:
    """The least that a plugin may give."""

    vocab_size = 2

    @classmethod
    def fit(cls, texts: Any, config: Any) -> "Least":
        return cls()

    def encode(self, text: str) -> np.ndarray:
        return np.array([character == "a" for character in text], dtype=np.uint8)

    def decode(self, ids: Any) -> str:
        return "".join("ba"[number] for number in ids)

    def count_bytes(self, ids: np.ndarray) -> int:
        return len(ids)

    def to_json(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Least":
        return cls()


def test_a_plugin_may_leave_out_what_can_be_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(TOKENIZERS._builders, "least", Least)
    tokenizer = tokenizers.fit(TokenizerConfig(name="least"), [])
    assert (tokenizer.lossless, tokenizer.special_tokens) == (False, {})
    (tmp_path / "tokenizer.json").write_text(tokenizers.to_text("least", tokenizer))
    again = tokenizers.from_file(tmp_path / "tokenizer.json")
    assert isinstance(again, Tokenizer)
    assert again.special_tokens == {}


@pytest.mark.parametrize("part", ["vocab_size", "fit", "decode", "count_bytes", "to_json", "from_json"])
def test_a_plugin_that_lacks_a_part_is_told_which(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {name: value for name, value in vars(Least).items() if name != part}
    monkeypatch.setitem(TOKENIZERS._builders, "less", type("Less", (), members))
    with pytest.raises(TokenizerError, match=f"the tokenizer 'less' has no {part}"):
        tokenizers.fit(TokenizerConfig(name="less"), [])


def test_importing_the_tokenizers_is_light() -> None:
    code = (
        "import sys, nanolm.data.tokenizers\n"
        "heavy = {'torch', 'torchtext', 'spacy', 'tiktoken', 'sentencepiece', 'tokenizers', 'requests', 'pooch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
