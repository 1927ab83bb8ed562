import base64
import json
from pathlib import Path

import pytest

from nanolm.config.tokenizer import (
    SentencePieceConfig,
)
from nanolm.data import tokenizers
from nanolm.data.tokenizers.sentencepiece import SentencePieceTokenizer
from nanolm.errors import TokenizerError
from tests.texts import CORPUS


def test_fit_refuses_too_small_vocabulary_and_no_text() -> None:
    with pytest.raises(TokenizerError, match="the bytes and the characters of the corpus are more"):
        tokenizers.fit(SentencePieceConfig(vocab_size=262), CORPUS)
    with pytest.raises(TokenizerError, match="the corpus"):
        tokenizers.fit(SentencePieceConfig(), ["\n"])


def test_model_of_a_run_has_known_fields_and_replaces_no_characters(tmp_path: Path) -> None:
    tokenizer = tokenizers.fit(SentencePieceConfig(vocab_size=300), ["the cat sat on the mat\n" * 50])
    assert isinstance(tokenizer, SentencePieceTokenizer)
    model, identity = tokenizer.model, b"\x1a\x10\n\x08identity\x12\x00"
    assert model.count(identity) == 1
    path = tmp_path / "tokenizer.json"
    for changed, message in (
        (model.replace(identity, b"\x1a\x13\n\x08identity\x12\x03abc"), "replaces characters"),
        (model + b"\x1a\x05\x32\x03abc", "replaces characters"),
        (model + b"\x2a\x05\x12\x03abc", "the unknown field 5"),
        (model + b"\x22\x00", "the unknown field 4"),
        (model[:-3], "damaged"),
        (model + b"\xff" * 12, "damaged"),
        (model + b"\x0a\xff\xff\xff\xff\x7f", "damaged"),
        (model + b"\x0b\x0b", "damaged"),
        (b"", "cannot read it|all bytes"),
        (b"\0" * 100, "unknown field 0"),
    ):
        state = {"name": "sentencepiece", "model": base64.b64encode(changed).decode()}
        path.write_text(json.dumps(state))
        with pytest.raises(TokenizerError, match=message) as caught:
            tokenizers.from_file(path)
        assert caught.value.where == str(path)
