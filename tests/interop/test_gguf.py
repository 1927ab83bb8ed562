"""GGUF files hold the weights, settings and tokenizer, as the gguf package and transformers read them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanolm.config.run import Config
from nanolm.data import tokenizers
from nanolm.data.tokenizers import ByteTokenizer, CharTokenizer, PretrainedTokenizer, Tokenizer
from nanolm.data.tokenizers.bytepairs import BpeTokenizer
from nanolm.errors import NanolmError, SettingsError
from nanolm.interop import gguf_file
from nanolm.interop.export import export
from nanolm.interop.tokenizer_json import to_tokenizer_json
from nanolm.model.build import build
from tests.helpers import make_config, randomize_weights
from tests.interop.oracle import SMALL_SIZE, load_tensors
from tests.texts import A_PAGE, trained, write_small_gpt2

gguf = pytest.importorskip("gguf")

VARIANTS = (
    ("model=gpt2",),
    ("model=gpt2", "model.tie_embeddings=false", "size.d_ff=40", "model.norm_eps=1e-3"),
    ("model=llama", "size.n_kv_heads=2", "size.d_ff=50"),
    ("model=llama", "model.tie_embeddings=true", "size.d_key=6", "size.d_value=6", "model.rotary_base=500"),
    ("model=llama", "model.bias=true", "size.n_kv_heads=1", "model.norm_eps=1e-3"),
)
SHAPES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}


def small_tokenizer() -> Tokenizer:
    """Byte-level BPE with four merges and an end of text."""
    return BpeTokenizer(["h e", "t he", "i n", "Ġ the"], ["<|endoftext|>"])


def written(folder: Path, dtype: torch.dtype, *overrides: str) -> tuple[Config, torch.nn.Module, Path]:
    config = make_config(*SMALL_SIZE, "tokenizer=bpe", *overrides)
    tokenizer = small_tokenizer()
    model = build(config, tokenizer.vocab_size).eval()
    randomize_weights(model)
    path = folder / "model.gguf"
    gguf_file.write(path, gguf_file.prepare(config, tokenizer, model.state_dict(), "small"), dtype)
    return config, model, path


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    "overrides", [VARIANTS[3], *(pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS)]
)
def test_gguf_is_read_back(overrides: tuple[str, ...], tmp_path: Path) -> None:
    config, model, path = written(tmp_path, torch.float32, *overrides)
    size, tokenizer = config.size, small_tokenizer()
    found = fields(path)
    kind = overrides[0].removeprefix("model=")
    expected = {
        "general.architecture": kind,
        "general.name": "small",
        "general.file_type": 0,
        f"{kind}.context_length": 20,
        f"{kind}.embedding_length": 32,
        f"{kind}.block_count": 2,
        f"{kind}.attention.head_count": 4,
        f"{kind}.vocab_size": tokenizer.vocab_size,
        f"{kind}.feed_forward_length": size.hidden_width(kind == "llama"),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["h e", "t he", "i n", "Ġ the"],
        "tokenizer.ggml.bos_token_id": 260,
        "tokenizer.ggml.eos_token_id": 260,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }
    if kind == "llama":
        expected |= {
            "llama.attention.head_count_kv": size.key_value_heads,
            "llama.attention.key_length": size.key_width,
            "llama.attention.value_length": size.value_width,
            "llama.rope.dimension_count": size.key_width,
            "llama.rope.freq_base": config.model.rotary_base,  # type: ignore[attr-defined]
        }
    assert {key: found[key] for key in expected} == expected
    eps = {"gpt2": "layer_norm_epsilon", "llama": "layer_norm_rms_epsilon"}[kind]
    default = {"gpt2": 1e-5, "llama": torch.finfo(torch.float32).eps}[kind]
    assert found[f"{kind}.attention.{eps}"] == pytest.approx(config.model.norm_eps or default, rel=1e-6)  # type: ignore[attr-defined]
    tokens = found["tokenizer.ggml.tokens"]
    assert tokens == ["!", *tokens[1:256], "he", "the", "in", "Ġthe", "<|endoftext|>"]
    assert found["tokenizer.ggml.token_type"] == [*[1] * 260, 3]

    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stored = tensors(path)
    # Every weight is in the file once, and unchanged but for the order of rows.
    assert sum(tensor.size for tensor in stored.values()) == sum(tensor.size for tensor in state.values())
    together = (np.concatenate([tensor.ravel() for tensor in group.values()]) for group in (stored, state))
    assert np.array_equal(*map(np.sort, together))
    assert np.array_equal(stored["token_embd.weight"], state["token_embedding.weight"])
    assert ("output.weight" in stored) == ("head.weight" in state)
    output = state["blocks.1.attention.projection.weight"]
    assert np.array_equal(stored["blk.1.attn_output.weight"], output)
    if kind == "gpt2":
        assert np.array_equal(stored["blk.0.attn_qkv.weight"], state["blocks.0.attention.query_key_value.weight"])
    else:
        # Neighbouring rows of a head are the pair of dimensions that is rotated.
        half = size.key_width // 2
        queries = state["blocks.0.attention.query_key_value.weight"][: size.key_width]
        assert np.array_equal(stored["blk.0.attn_q.weight"][:2], queries[[0, half]])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gguf_rounds_matrices_only(dtype: torch.dtype, tmp_path: Path) -> None:
    _, model, path = written(tmp_path, dtype, "model=gpt2")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    half = {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    assert kinds["blk.0.attn_qkv.weight"] == kinds["token_embd.weight"] == half
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.attn_qkv.bias"] == kinds["position_embd.weight"] == "F32"
    weight = model.state_dict()["blocks.0.feed_forward.expansion.weight"]
    assert np.array_equal(tensors(path)["blk.0.ffn_up.weight"], weight.to(dtype).float().numpy())
    assert fields(path)["general.file_type"] == {torch.float16: 1, torch.bfloat16: 32}[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", VARIANTS)
def test_transformers_computes_the_same_logits_from_gguf(overrides: tuple[str, ...], tmp_path: Path) -> None:
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from nanolm.interop.architectures import find_architecture

    config, model, path = written(tmp_path, torch.float32, *overrides)
    architecture = find_architecture(config)
    kind = getattr(transformers, architecture.name)
    other = kind(kind.config_class(**architecture.to_json(config, small_tokenizer().vocab_size))).eval()
    read = load_gguf_checkpoint(path, return_tensors=True, model_to_load=other)
    load_tensors(other, read["tensors"])
    tokens_BxT = torch.randint(0, small_tokenizer().vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float((model(tokens_BxT) - other(tokens_BxT).logits).abs().max()) < 1e-4
    if architecture.name == "LlamaForCausalLM":
        # transformers has no key for GPT-2's number of positions.
        names = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers")
        names += ("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings")
        assert {name: read["config"][name] for name in names} == {name: getattr(other.config, name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "small gpt2", "pretrained", "gpt2"])
def test_transformers_reads_the_tokenizer_of_gguf(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    from nanolm.config.tokenizer import Gpt2Config

    if kind == "gpt2":
        folder = request.getfixturevalue("data_folder") / "gpt2"
        if not folder.is_dir():
            pytest.skip(f"no GPT-2 vocabulary in {folder}")
        tokenizer = tokenizers.fit(Gpt2Config(path=str(folder)), [])
    elif kind == "small gpt2":
        tokenizer = tokenizers.fit(write_small_gpt2(tmp_path), [])
    elif kind == "pretrained":
        tokenizer = PretrainedTokenizer.from_json({"tokenizer": to_tokenizer_json(trained("bpe"))})
    else:
        tokenizer = trained("bpe")
    config = make_config(*SMALL_SIZE, "model=gpt2", "tokenizer=bpe")
    model = build(config, tokenizer.vocab_size)
    gguf_file.write(
        tmp_path / "model.gguf", gguf_file.prepare(config, tokenizer, model.state_dict(), "x"), torch.float32
    )
    found = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in (A_PAGE, "To be, or not to be", "a   b\r\n\t 😀 \0\x01"):
        assert found(text).input_ids == tokenizer.encode(text).tolist()
        assert found.decode(found(text).input_ids) == text
    assert found.eos_token_id == tokenizer.special_tokens["<|endoftext|>"]


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (("model=gpt",), "llama.cpp has no NanoChatForCausalLM"),
        (("model=gpt2", "model.activation=relu"), "model.activation=relu, and GPT-2 in llama.cpp has gelu_tanh"),
        (("model=gpt2", "model.norm_placement=post"), "model.norm_placement=post"),
    ],
)
def test_gguf_refuses_other_models(overrides: tuple[str, ...], found: str) -> None:
    config = make_config(*SMALL_SIZE, *overrides)
    with pytest.raises(NanolmError, match=found) as error:
        gguf_file.prepare(config, small_tokenizer(), {}, "x")
    assert error.value.hint


@pytest.mark.parametrize(
    ("tokenizer", "found"),
    [
        (CharTokenizer(["a", "b"]), "byte-level BPE with merges"),
        (ByteTokenizer(), "byte-level BPE with merges"),
        (trained("unigram"), "byte-level BPE with merges"),
        (trained("sentencepiece bpe"), "byte-level BPE with merges"),
        (BpeTokenizer(["h e"], []), "has no end of text"),
    ],
)
def test_gguf_refuses_other_tokenizers(tokenizer: Tokenizer, found: str) -> None:
    with pytest.raises(SettingsError, match=found):
        gguf_file.prepare(make_config(*SMALL_SIZE, "model=gpt2"), tokenizer, {}, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
    ],
)
def test_gguf_refuses_pretrained_with_other_rules(change: dict[str, Any]) -> None:
    state = json.loads(json.dumps(to_tokenizer_json(small_tokenizer()))) | change
    tokenizer = PretrainedTokenizer.from_json({"tokenizer": state})
    with pytest.raises(SettingsError, match="byte-level BPE with merges"):
        gguf_file.prepare(make_config(*SMALL_SIZE, "model=gpt2"), tokenizer, {}, "x")


def test_gguf_reports_model_and_tokenizer_together() -> None:
    with pytest.raises(NanolmError) as error:
        gguf_file.prepare(make_config(*SMALL_SIZE, "model=gpt"), ByteTokenizer(), {}, "x")
    assert "NanoChatForCausalLM" in str(error.value)
    assert "byte-level BPE" in str(error.value)


def test_gguf_without_the_package_says_how_to_install_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(NanolmError, match="needs the package gguf") as error:
        export(trained, tmp_path / "out", format="gguf")
    assert "pip install" in str(error.value)
    assert list(tmp_path.iterdir()) == []
