"""Exported tokenizers give nanolm's ids and texts, also for odd texts."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config.tokenizer import ByteConfig, CharConfig, Gpt2Config, SpacyConfig, WordConfig
from nanolm.data import tokenizers
from nanolm.data.tokenizers import PretrainedTokenizer, Tokenizer
from nanolm.data.tokenizers.bytepairs import BpeTokenizer
from nanolm.errors import TokenizerError
from nanolm.interop.tokenizer_json import end_of_text, to_tokenizer_json, tokenizer_files
from tests.texts import A_PAGE, CORPUS, TEXTS, trained, write_small_gpt2

ODD = [
    "",
    " ",
    "\n",
    "To be, or not to be",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 and 中文, naïve e\u0301 \u0301",
    "\0\x01\x07\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f",
    "a" + " " * 3 + "b" + "\t" * 5 + " " * 40 + "\n\n\n   \n c  ",
    "CR LF\r\nCR\rLF\n\r\n\r \r\n",
    "<|endoftext|> <unk> <eos> </s> <s>a<|endoftext|>\n<eos>",
    "\u2581 \u2585 \ufeff \u2028 \u3000\xa0x",
    "it's IT'S we'll 10,000.50 3.14... -- ½ ١٢٣ x² ''tis",
    A_PAGE,
]
# GPT-2's ids of the prompt of a tutorial on GPT-2 in torch for R (Keydana 2023).
PROMPT = (
    "No duty is imposed on the rich, rights of the poor is a hollow phrase ... Enough languishing in custody. Equality"
)
PROMPT_IDS = (
    *(2949, 7077, 318, 10893, 319, 262, 5527, 11, 2489, 286, 262),
    *(3595, 318, 257, 20596, 9546, 2644, 31779, 2786, 3929, 287, 10804),
    *(13, 31428),
)


@functools.cache
def fitted(kind: str) -> Tokenizer:
    texts = [*CORPUS, *ODD]
    if kind == "char":
        return tokenizers.fit(CharConfig(), texts)
    if kind == "byte":
        return tokenizers.fit(ByteConfig(), texts)
    if kind == "pretrained":
        return PretrainedTokenizer.from_json({"tokenizer": to_tokenizer_json(trained("bpe"))})
    if kind.startswith("word"):
        return tokenizers.fit(WordConfig(lowercase=kind == "word in lower case"), texts)
    return trained(kind)


KINDS = ("char", "byte", "bpe", "unigram", "pretrained", "word", "word in lower case")


def engine_of(tokenizer: Tokenizer) -> Any:
    from tokenizers import Tokenizer as Engine

    engine = Engine.from_str(json.dumps(to_tokenizer_json(tokenizer)))
    engine.encode_special_tokens = True
    return engine


def require_same(tokenizer: Tokenizer, engine: Any, text: str) -> None:
    ids = tokenizer.encode(text).tolist()
    assert engine.encode(text, add_special_tokens=False).ids == ids
    assert engine.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
    if tokenizer.lossless:
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_json_equals_nanolm_on_odd_texts(kind: str) -> None:
    tokenizer = fitted(kind)
    engine = engine_of(tokenizer)
    assert engine.get_vocab_size() == tokenizer.vocab_size
    for text in (*ODD, *CORPUS):
        require_same(tokenizer, engine, text)


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
@settings(max_examples=30)
@given(data=st.data())
def test_tokenizer_json_equals_nanolm_on_any_text(kind: str, data: st.DataObject) -> None:
    require_same(fitted(kind), engine_of(fitted(kind)), data.draw(TEXTS))


def test_small_gpt2_tokenizer_json_equals_nanolm(tmp_path: Path) -> None:
    tokenizer = tokenizers.fit(write_small_gpt2(tmp_path), [])
    for text in ODD:
        require_same(tokenizer, engine_of(tokenizer), text)


@pytest.mark.parametrize("kind", ["sentencepiece bpe", "sentencepiece unigram"])
def test_sentencepiece_is_exported_as_model(kind: str, tmp_path: Path) -> None:
    import sentencepiece

    files, remarks = tokenizer_files(trained(kind), "sentencepiece", 16)
    (tmp_path / "tokenizer.model").write_bytes(files["tokenizer.model"])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert list(files) == ["tokenizer.model"]
    assert "sentencepiece" in remarks[0]
    # nanolm encodes U+2581 as its bytes, and splits at line ends.
    for text in ("To be, or not", "emoji 😀 中文 \0\x01\x7f", "a   b", CORPUS[0][:500].replace("\n", " ")):
        assert processor.encode(text) == trained(kind).encode(text).tolist()
        assert processor.decode(processor.encode(text)) == text


def test_other_tokenizers_are_not_exported() -> None:
    class Reversed(BpeTokenizer):
        def encode(self, text: str) -> Any:
            return super().encode(text[::-1])

    tokenizer = trained("bpe")
    assert isinstance(tokenizer, BpeTokenizer)
    files, remarks = tokenizer_files(Reversed(tokenizer.merges, []), "reversed", 16)
    assert files == {}
    assert remarks == ["tokenizer=reversed is not exported: Hugging Face tokenizers cannot express its rules"]


@pytest.mark.slow
def test_spacy_tokenizer_is_not_exported() -> None:
    pytest.importorskip("spacy")
    files, remarks = tokenizer_files(tokenizers.fit(SpacyConfig(), CORPUS), "spacy", 16)
    assert files == {}
    assert "tokenizer=spacy is not exported" in remarks[0]


def test_settings_of_exported_tokenizer() -> None:
    files, _ = tokenizer_files(trained("bpe"), "bpe", 16)
    found = json.loads(files["tokenizer_config.json"])
    assert (found["eos_token"], found["model_max_length"]) == ("<|endoftext|>", 16)
    assert end_of_text(trained("bpe")) == ("<|endoftext|>", trained("bpe").vocab_size - 1)
    # A line end, at which generation should not stop.
    assert end_of_text(fitted("word")) is None
    assert end_of_text(fitted("char")) is None
    assert json.loads(tokenizer_files(fitted("word"), "word", 16)[0]["tokenizer_config.json"])["unk_token"] == "<unk>"


def test_pretrained_tokenizer_adds_no_tokens_as_in_training() -> None:
    state = to_tokenizer_json(trained("bpe"))
    assert state is not None
    end = trained("bpe").special_tokens["<|endoftext|>"]
    pieces = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [end], "tokens": ["<|endoftext|>"]}}
    added = {"type": "TemplateProcessing", "single": pieces, "pair": [*pieces, pieces[1]], "special_tokens": tokens}
    tokenizer = PretrainedTokenizer.from_json({"tokenizer": state | {"post_processor": added}})
    files, remarks = tokenizer_files(tokenizer, "pretrained", 16)
    assert json.loads(files["tokenizer.json"])["post_processor"] is None
    assert len(remarks) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "nanochat"])
@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer_equals_nanolm(kind: str, model_type: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = fitted(kind)
    files, _ = tokenizer_files(tokenizer, kind, 100_000)
    files["config.json"] = json.dumps({"model_type": model_type}).encode()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert len(found) == tokenizer.vocab_size
    assert found.eos_token_id == (end_of_text(tokenizer) or (None, None))[1]
    for text in (*ODD, *CORPUS):
        ids = tokenizer.encode(text).tolist()
        assert found(text).input_ids == ids, (kind, text)
        assert found.decode(ids) == tokenizer.decode(ids)


@pytest.mark.slow
def test_prompt_of_tutorial_has_its_24_ids(data_folder: Path) -> None:
    folder = data_folder / "gpt2"
    if not folder.is_dir():
        pytest.skip(f"no GPT-2 vocabulary in {folder}")
    tokenizer = tokenizers.fit(Gpt2Config(path=str(folder)), [])
    engine = engine_of(tokenizer)
    assert len(PROMPT_IDS) == 24
    assert tuple(engine.encode(PROMPT).ids) == PROMPT_IDS
    assert engine.decode(list(PROMPT_IDS)) == PROMPT
    require_same(tokenizer, engine, A_PAGE)


def test_char_tokenizer_refuses_unseen_characters() -> None:
    tokenizer = tokenizers.fit(CharConfig(), ["abc"])
    with pytest.raises(TokenizerError):
        tokenizer.encode("abd")
    # The library drops them.
    assert engine_of(tokenizer).encode("abd").ids == [0, 1]
