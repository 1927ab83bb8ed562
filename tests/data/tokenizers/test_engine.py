"""Files of Hugging Face tokenizers that crash the library, or need unbounded time or memory."""

import base64
import copy
import gc
import json
import os
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanolm.config.tokenizer import PretrainedConfig
from nanolm.data import tokenizers
from nanolm.data.tokenizers import engine
from nanolm.data.tokenizers.engine import Engine
from nanolm.errors import TokenizerError

STATE: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"},
}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def table(size: int) -> dict[str, Any]:
    return {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(struct.pack("<I", size) + b"\0" * 8).decode(),
    }


def nested(part: str, key: str, depth: int) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        component = {"type": "Sequence", key: [component]}
    return {part: component}


# Files that the library itself reads without limits, each with a part of the message.
HOSTILE = {
    "panics in the normalizer": ({"normalizer": table(4)}, "panics"),
    "aborts by allocating 8 GB": ({"normalizer": table(2**32 - 1)}, "crashes"),
    "panics in the pre-tokenizer": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "panics"),
    "backtracks without end": ({"pre_tokenizer": split("(a+)+b")}, "panics"),
    "panics in the model": (
        {
            "model": {
                "type": "BPE",
                "vocab": {"a": 0, "ab": 1, "b": 2},
                "merges": ["a b"],
                "continuing_subword_prefix": "##",
            }
        },
        "panics",
    ),
    "panics in the decoder": ({"decoder": {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**18}}, "panics"),
    "panics in an added token": (
        {
            "added_tokens": [{"id": 3, "content": "é"} | ADDED],
            "normalizer": {"type": "Replace", "pattern": {"Regex": "é"}, "content": ""},
        },
        "panics",
    ),
    "doubles the text 40 times": ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 40}}, "times as long"),
    "nests": (nested("normalizer", "normalizers", 20), "nested more than"),
    "has many components": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 101}},
        "more than 100",
    ),
    "has a large component": ({"normalizer": {"type": "Prepend", "prepend": "x" * 3_000_000}}, "more than 2,000,000"),
    "has an unknown normalizer": (
        {"normalizer": {"type": "Exec", "command": "id"}},
        "unknown component in the normalizer",
    ),
    "has an unknown pre-tokenizer": ({"pre_tokenizer": {"type": ["Split"]}}, "unknown component in the pre_tokenizer"),
    "has an unknown decoder": ({"decoder": "ByteLevel"}, "unknown component in the decoder"),
    "has an unknown model": ({"model": {"type": "Pickle", "vocab": {}}}, "unknown type of model"),
    "has no model": ({"model": None}, "no model"),
    "has a huge id": ({"model": STATE["model"] | {"vocab": {"a": 2_000_000_000, "[UNK]": 0}}}, "at most 4,194,304"),
    "has a huge added id": ({"added_tokens": [{"id": 4_000_000_000, "content": "x"} | ADDED]}, "at most 4,194,304"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_one_error(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes, message = HOSTILE[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"name": "pretrained", "tokenizer": STATE | changes}))
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizers.from_file(path)
    assert caught.value.where == str(path)
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_hostile_file_of_the_user_is_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokenizer.json"
    for name in ("panics in the normalizer", "has an unknown normalizer", "has a huge id"):
        changes, message = HOSTILE[name]
        path.write_text(json.dumps(STATE | changes))
        with pytest.raises(TokenizerError, match=message) as caught:
            tokenizers.fit(PretrainedConfig(path=str(path)), [])
        assert caught.value.where == str(path)
    assert capfd.readouterr() == ("", "")


def test_text_that_crashes_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(STATE | {"pre_tokenizer": split("(z+)+$")}))
    tokenizer = tokenizers.fit(PretrainedConfig(path=str(path)), [])
    assert tokenizer.encode("a").tolist() == [0]
    for _ in range(2):
        with pytest.raises(TokenizerError, match="cannot encode the text") as caught:
            tokenizer.encode("z" * 40 + "b")
        assert str(path) in caught.value.where
        assert "41 characters" in caught.value.where


def test_text_that_multiplies_is_one_error() -> None:
    one_to_many = {"type": "Replace", "pattern": {"String": "z"}, "content": "a b " * 250}
    state = STATE | {"normalizer": one_to_many, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    tokenizer = tokenizers.PretrainedTokenizer.from_json({"tokenizer": state})
    assert len(tokenizer.encode("a" + "z")) > 0
    with pytest.raises(TokenizerError, match=r"makes 500,000 tokens of a text of 1,000 bytes"):
        tokenizer.encode("z" * 1000)


@pytest.mark.slow
def test_endless_work_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_SECONDS", 0.5)
    monkeypatch.setattr(engine, "_SECONDS_PER_MB", 1.0)
    # Quadratic in the length of a word.
    model = {"type": "WordPiece", "vocab": {"b": 0, "[UNK]": 1}, "unk_token": "[UNK]", "continuing_subword_prefix": ""}
    running = Engine(STATE | {"model": model | {"max_input_chars_per_word": 10**9}})
    with pytest.raises(TokenizerError, match="more than 1 s of processor time"):
        running.encode(["a" * 400_000])


def test_engine_survives_signals_and_ends_with_its_object() -> None:
    running = Engine(STATE)
    process = running._process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, number)
    assert running.encode(["a"]).tolist() == [0]
    assert running.decode(np.array([0, 1])) == "a b"
    del running
    gc.collect()
    assert process.returncode == 0


def test_engine_killed_from_outside_is_one_error() -> None:
    running = Engine(STATE)
    running._process.kill()
    with pytest.raises(TokenizerError, match="cannot encode the text"):
        running.encode(["a"])


def test_unigram_of_a_run_has_only_known_components(tmp_path: Path) -> None:
    from tests.texts import trained

    state = trained("unigram").to_json()
    path = tmp_path / "tokenizer.json"
    for part, value in (
        ("normalizer", table(4)),
        ("pre_tokenizer", split("(a+)+$")),
        ("decoder", {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**18}),
        ("added_tokens", [{"id": 3, "content": "é"} | ADDED]),
        ("post_processor", {"type": "TemplateProcessing"}),
    ):
        path.write_text(json.dumps({"name": "unigram", **state, "tokenizer": state["tokenizer"] | {part: value}}))
        with pytest.raises(TokenizerError, match="components are not those") as caught:
            tokenizers.from_file(path)
        assert caught.value.where == str(path)
    for key, value in (("unk_id", 0), ("byte_fallback", True), ("vocab", [["a", 5.0]]), ("vocab", [["a"]]), ("x", 1)):
        other = copy.deepcopy(state)
        other["tokenizer"]["model"][key] = value
        path.write_text(json.dumps({"name": "unigram", **other}))
        with pytest.raises(TokenizerError) as caught:
            tokenizers.from_file(path)
        assert caught.value.where == str(path)


def test_file_of_a_run_is_regular_inside_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    path = run / "tokenizer.json"
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps({"name": "byte"}))
    path.symlink_to(outside)
    with pytest.raises(TokenizerError, match="outside"):
        tokenizers.from_file(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TokenizerError, match="FIFO"):
        tokenizers.from_file(path)
    path.unlink()
    path.write_text(json.dumps({"name": "byte"}) + " " * 1000)
    monkeypatch.setattr("nanolm.data.tokenizers.checks.MAX_FILE_BYTES", 1000)
    with pytest.raises(TokenizerError, match=r"more than 1,000"):
        tokenizers.from_file(path)
    path.write_text(json.dumps({"name": "byte", "x": [[]] * 200}))
    monkeypatch.setattr("nanolm.data.tokenizers.checks.MAX_VOCAB_SIZE", 100)
    with pytest.raises(TokenizerError, match="too many lists"):
        tokenizers.from_file(path)
