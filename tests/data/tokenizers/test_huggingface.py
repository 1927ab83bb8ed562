import json
from pathlib import Path

import pytest

from nanolm.config.tokenizer import (
    PretrainedConfig,
)
from nanolm.data import tokenizers
from nanolm.errors import TokenizerError
from tests.texts import A_PAGE, CORPUS, trained


def test_pretrained_gpt2_is_lossless(
    gpt2: tokenizers.Tokenizer,
    hugging_face_gpt2,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.json").write_text(hugging_face_gpt2.to_str(), encoding="utf-8")
    tokenizer = tokenizers.fit(PretrainedConfig(path=str(tmp_path)), [])
    assert tokenizer.lossless
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256}
    for text in (A_PAGE, "a<|endoftext|>b", CORPUS[0]):
        ids = tokenizer.encode(text)
        assert (ids == gpt2.encode(text)).all()
        assert tokenizer.decode(ids) == text
        assert tokenizer.count_bytes(ids) == len(text.encode())


def pretrained_state(**changes: object) -> dict[str, object]:
    state = json.loads(json.dumps(trained("unigram").to_json()["tokenizer"]))
    return state | changes


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\w+"}, "invert": False}


@pytest.mark.parametrize(
    ("changes", "lossless"),
    [
        ({}, True),
        ({"normalizer": {"type": "NFC"}}, False),
        ({"pre_tokenizer": LEVEL | {"add_prefix_space": True}}, False),
        ({"decoder": None}, False),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT | {"behavior": "Isolated"}, LEVEL]}}, True),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT | {"behavior": "Removed"}, LEVEL]}}, False),
    ],
)
def test_pretrained_is_lossless_depends_on_steps(tmp_path: Path, changes: dict[str, object], lossless: bool) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(pretrained_state(**changes)), encoding="utf-8")
    tokenizer = tokenizers.fit(PretrainedConfig(path=str(path)), [])
    assert tokenizer.lossless is lossless
    ids = tokenizer.encode(A_PAGE)
    assert tokenizer.count_bytes(ids) == len(tokenizer.decode(ids).encode())
    if lossless:
        assert tokenizer.decode(ids) == A_PAGE
    again = tokenizers.PretrainedTokenizer.from_json(tokenizer.to_json())
    assert (again.encode(A_PAGE) == ids).all()


def test_pretrained_without_unknown_token_refuses_text(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(pretrained_state(pre_tokenizer=None)), encoding="utf-8")
    tokenizer = tokenizers.fit(PretrainedConfig(path=str(path)), [])
    assert not tokenizer.lossless
    with pytest.raises(TokenizerError, match="cannot encode the text"):
        tokenizer.encode("中")


@pytest.mark.parametrize(
    "model",
    [
        {},
        None,
        {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []},
        {"type": "BPE", "vocab": {"a": "0"}, "merges": []},
        {"type": "Unigram", "vocab": ["a"], "unk_id": None},
        {"type": "Unigram", "vocab": [], "unk_id": None},
        {"type": "Unheard", "vocab": {"a": 0}},
    ],
)
def test_pretrained_refuses_damaged_file(tmp_path: Path, model: object) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(pretrained_state(model=model)), encoding="utf-8")
    with pytest.raises(TokenizerError) as caught:
        tokenizers.fit(PretrainedConfig(path=str(path)), [])
    assert str(path) in str(caught.value)
