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
from nanolm.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from nanolm.errors import SettingsError, TokenizerError
from nanolm.registry import TOKENIZERS
from tests.texts import write_small_gpt2

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
        config = write_small_gpt2(folder)
    if isinstance(config, PretrainedConfig):
        state = tokenizers.fit(UnigramConfig(vocab_size=280), [TEXT]).to_json()["tokenizer"]
        (folder / "theirs.json").write_text(json.dumps(state), encoding="utf-8")
        config = PretrainedConfig(path=str(folder / "theirs.json"))
    return tokenizers.fit(config, [TEXT])


def test_configs_cover_every_tokenizer() -> None:
    assert {config.name for config in CONFIGS} == {name for name in TOKENIZERS if name in TOKENIZERS.schemas}


def test_char_and_byte_implement_protocol() -> None:
    assert isinstance(CharTokenizer(["a"]), Tokenizer)
    assert isinstance(ByteTokenizer(), Tokenizer)


def test_fit_accepts_text_in_pieces() -> None:
    assert tokenizers.fit(CharConfig(), iter(["ab", "", "bc"])).vocab_size == 3


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_from_file_restores_tokenizer(config: TokenizerConfig, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("tokenizer", [CharTokenizer(list("helo é")), ByteTokenizer()])
def test_from_file_restores_char_and_byte(tokenizer: Tokenizer, tmp_path: Path) -> None:
    name = "byte" if isinstance(tokenizer, ByteTokenizer) else "char"
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizers.to_text(name, tokenizer), encoding="utf-8")
    again = tokenizers.from_file(path)
    assert again.encode("hello").tolist() == tokenizer.encode("hello").tolist()
    assert tokenizers.fingerprint(name, again) == tokenizers.fingerprint(name, tokenizer)
    assert tokenizers.fingerprint("char", CharTokenizer(list("other"))) != tokenizers.fingerprint(name, tokenizer)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_decode_refuses_ids_outside_vocabulary(config: TokenizerConfig, tmp_path: Path) -> None:
    tokenizer = fitted(config, tmp_path)
    assert isinstance(tokenizer.decode(range(tokenizer.vocab_size)), str)
    for number in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=f"no token {number}"):
            tokenizer.decode([number])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("wrong", [None, 1, True, "x", [1], [None], ["a", "a"], {"a": 1}, {}])
def test_from_file_names_damaged_file(config: TokenizerConfig, wrong: object, tmp_path: Path) -> None:
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
def test_from_file_refuses_damaged_char_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError):
        tokenizers.from_file(path)


@pytest.mark.parametrize("content", ["", "not json", "[]", "1", "{}", '{"name": 1}', "[" * 100_000, "\xff"])
def test_from_file_refuses_other_files(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TokenizerError, match="not a tokenizer") as caught:
        tokenizers.from_file(path)
    assert str(path) in str(caught.value)
    assert "DecodeError" not in str(caught.value)
    with pytest.raises(TokenizerError, match=r"^none\.json is missing"):
        tokenizers.from_file(tmp_path / "none.json")
    with pytest.raises(TokenizerError, match="cannot be read: it is a folder"):
        tokenizers.from_file(tmp_path)
    path.write_text('{"name": "cahr"}')
    with pytest.raises(SettingsError, match="did you mean char"):
        tokenizers.from_file(path)


class Minimal:
    """A plugin with the required members only."""

    vocab_size = 2

    @classmethod
    def fit(cls, texts: Any, config: Any) -> "Minimal":
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
    def from_json(cls, state: dict[str, Any]) -> "Minimal":
        return cls()


def test_plugin_may_omit_optional_attributes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(TOKENIZERS._builders, "minimal", Minimal)
    tokenizer = tokenizers.fit(TokenizerConfig(name="minimal"), [])
    assert (tokenizer.lossless, tokenizer.special_tokens) == (False, {})
    (tmp_path / "tokenizer.json").write_text(tokenizers.to_text("minimal", tokenizer))
    again = tokenizers.from_file(tmp_path / "tokenizer.json")
    assert isinstance(again, Tokenizer)
    assert again.special_tokens == {}


@pytest.mark.parametrize("part", ["vocab_size", "fit", "decode", "count_bytes", "to_json", "from_json"])
def test_plugin_without_required_member_is_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {name: value for name, value in vars(Minimal).items() if name != part}
    monkeypatch.setitem(TOKENIZERS._builders, "less", type("Less", (), members))
    with pytest.raises(TokenizerError, match=f"the tokenizer 'less' has no {part}"):
        tokenizers.fit(TokenizerConfig(name="less"), [])


def test_import_loads_no_heavy_packages() -> None:
    code = (
        "import sys, nanolm.data.tokenizers\n"
        "heavy = {'torch', 'torchtext', 'spacy', 'tiktoken', 'sentencepiece', 'tokenizers', 'requests', 'pooch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_vocabulary_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"name": "char", "characters": list("abcdef")}))
    monkeypatch.setattr("nanolm.data.tokenizers.protocol.MAX_VOCAB_SIZE", 5)
    with pytest.raises(TokenizerError, match="the vocabulary has 6 tokens, and at most 5") as caught:
        tokenizers.from_file(path)
    assert caught.value.where == str(path)
    with pytest.raises(TokenizerError, match="the vocabulary has 6 tokens, and at most 5"):
        tokenizers.fit(CharConfig(), ["abcdef"])
