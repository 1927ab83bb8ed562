"""Write models of GPT-2's and Llama's architecture with their tokenizer as one GGUF file, the format of llama.cpp.

Names of tensors and keys come from the gguf package of the llama.cpp project, and what the tensors hold follows its
convert_hf_to_gguf.py.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanolm.config.run import Config
from nanolm.data.conversation import template_of
from nanolm.data.tokenizers import Tokenizer
from nanolm.errors import NanolmError, SettingsError, install_hint, raise_all
from nanolm.interop.architectures import find_architecture
from nanolm.interop.chat_template import chat_template
from nanolm.interop.safetensors_file import tensor_bytes
from nanolm.interop.tensors import ENTRIES, Part, Tensors
from nanolm.interop.tokenizer_json import end_of_text, to_tokenizer_json

# Names of architectures in GGUF.
ARCHITECTURES = {"GPT2LMHeadModel": "gpt2", "LlamaForCausalLM": "llama"}

_HINT = "--format huggingface needs no such thing"


@dataclasses.dataclass(frozen=True)
class GgufModel:
    """The content of a GGUF file.

    Attributes:
        name: of the model.
        architecture: name of the class in transformers.
        config: settings of the run.
        tokens: their spelling, by id; a byte is spelled as in GPT-2's vocabulary.
        special_tokens: ids of tokens that represent no text.
        merges: two tokens separated by a blank, in order of rank.
        end: id of the token that ends a text.
        tensors: views of the weights, by their name in GGUF.
    """

    name: str
    architecture: str
    config: Config
    tokens: list[str]
    special_tokens: set[int]
    merges: list[str]
    end: int
    tensors: Tensors


def missing_package() -> list[NanolmError]:
    """Return the problem that the gguf package is not installed."""
    if importlib.util.find_spec("gguf") is not None:
        return []
    return [SettingsError("--format gguf needs the package gguf", where="--format", hint=install_hint("gguf"))]


def prepare(config: Config, tokenizer: Tokenizer, weights: Mapping[str, torch.Tensor], name: str) -> GgufModel:
    """Translate a model and its tokenizer.

    Raises:
        NanolmError: with everything that GGUF, or llama.cpp, cannot represent.
    """
    import gguf

    problems: list[NanolmError] = []
    found = None
    try:
        found = find_architecture(config)
    except NanolmError as error:
        problems.append(error)
    if found is not None:
        problems += _architecture_problems(found.name, config)
    try:
        tokens, merges, special, end = _byte_level_bpe(tokenizer, config.tokenizer.name)
    except NanolmError as error:
        problems.append(error)
    raise_all(problems)
    assert found is not None
    names = gguf.get_tensor_name_map(
        {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[ARCHITECTURES[found.name]], config.size.n_layers
    )
    tensors: Tensors = {}
    for entry in ENTRIES[found.name](config, tokenizer.vocab_size):
        rows = weights[entry.name].split([part.n_rows for part in entry.parts])
        for part, matrix in zip(entry.parts, rows, strict=True):
            tensors[names.get_name(part.name, try_suffixes=(".weight", ".bias"))] = _rotary_order(part, matrix, config)
    return GgufModel(name, found.name, config, tokens, special, merges, end, tensors)


def _architecture_problems(name: str, config: Config) -> list[NanolmError]:
    if name not in ARCHITECTURES:
        return [
            SettingsError(
                f"llama.cpp has no {name}; GGUF is written for {' and '.join(ARCHITECTURES)}",
                where="--format",
                hint="--format huggingface writes this model",
            )
        ]
    activation = getattr(config.model, "activation", None)
    if name == "GPT2LMHeadModel" and getattr(activation, "name", None) != "gelu_tanh":
        return [
            SettingsError(
                f"model.activation={getattr(activation, 'name', activation)}, and GPT-2 in llama.cpp has gelu_tanh",
                where="the run's config.yaml",
                hint="--format huggingface writes this model",
            )
        ]
    return []


def _byte_level_bpe(tokenizer: Tokenizer, name: str) -> tuple[list[str], list[str], set[int], int]:
    """Return the tokens by id, the merges, the special ids and the end of text of byte-level BPE as GPT-2 has it.

    Raises:
        SettingsError: the tokenizer is another one.
    """
    state = to_tokenizer_json(tokenizer) or {"model": {}}
    model, before = state["model"], state.get("pre_tokenizer") or {}
    added = state.get("added_tokens") or []
    altered = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "byte_fallback")
    is_like_gpt2 = (
        model.get("type") == "BPE"
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space")
        and before.get("use_regex", True)
        and state.get("normalizer") is None
        and not any(model.get(key) for key in altered)
        and all(token.get("special") for token in added)
    )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or ()]
    if not is_like_gpt2 or not merges:
        raise SettingsError(
            f"GGUF cannot hold tokenizer={name}: it must be byte-level BPE with merges, split as GPT-2's",
            where="the run's tokenizer",
            hint="tokenizer=bpe and tokenizer=gpt2 are; --format huggingface writes this one",
        )
    end = end_of_text(tokenizer)
    if end is None:
        raise SettingsError(
            "the tokenizer has no end of text, and llama.cpp would take the token of id 11 for it",
            where="tokenizer.special_tokens",
            hint="--format huggingface writes this tokenizer",
        )
    ids = dict(model["vocab"]) | {token["content"]: token["id"] for token in added}
    by_id = {number: token for token, number in ids.items()}
    # Ids without a token are possible in a foreign tokenizer.json.
    tokens = [by_id.get(number, f"[unused{number}]") for number in range(tokenizer.vocab_size)]
    special = {token["id"] for token in added} | (set(range(tokenizer.vocab_size)) - by_id.keys())
    return tokens, merges, special, end[1]


def _rotary_order(part: Part, matrix: torch.Tensor, config: Config) -> torch.Tensor:
    """Reorder the rows of Llama's queries and keys: llama.cpp rotates neighbouring pairs of dimensions, not halves."""
    heads = {"q_proj": config.size.n_heads, "k_proj": config.size.key_value_heads}
    n_heads = heads.get(part.name.split(".")[-2])
    return matrix if n_heads is None else matrix.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def metadata(model: GgufModel) -> list[tuple[str, Any]]:
    """Return the names of methods of gguf.GGUFWriter with the values that they write."""
    import gguf

    size = model.config.size
    is_llama = ARCHITECTURES[model.architecture] == "llama"
    found = find_architecture(model.config).to_json(model.config, len(model.tokens))
    template = template_of(model.config.dataset)
    shared = [
        ("add_name", model.name),
        ("add_quantization_version", gguf.GGML_QUANT_VERSION),
        ("add_context_length", size.context_length),
        ("add_embedding_length", size.d_model),
        ("add_block_count", size.n_layers),
        ("add_head_count", size.n_heads),
        ("add_vocab_size", len(model.tokens)),
        ("add_tokenizer_model", "gpt2"),
        ("add_tokenizer_pre", "gpt-2"),
        ("add_token_list", model.tokens),
        (
            "add_token_types",
            [
                int(gguf.TokenType.CONTROL if number in model.special_tokens else gguf.TokenType.NORMAL)
                for number in range(len(model.tokens))
            ],
        ),
        ("add_token_merges", model.merges),
        ("add_bos_token_id", model.end),
        ("add_eos_token_id", model.end),
        ("add_add_bos_token", False),
        ("add_add_eos_token", False),
        *(() if template is None else [("add_chat_template", chat_template(template))]),
    ]
    if not is_llama:
        return [
            *shared,
            ("add_feed_forward_length", found["n_inner"]),
            ("add_layer_norm_eps", found["layer_norm_epsilon"]),
        ]
    return [
        *shared,
        ("add_feed_forward_length", found["intermediate_size"]),
        ("add_head_count_kv", size.key_value_heads),
        ("add_key_length", size.key_width),
        ("add_value_length", size.value_width),
        ("add_layer_norm_rms_eps", found["rms_norm_eps"]),
        ("add_rope_dimension_count", size.key_width),
        ("add_rope_freq_base", found["rope_parameters"]["rope_theta"]),
    ]


def write(path: Path, model: GgufModel, dtype: torch.dtype) -> None:
    """Write a new file and flush it to disk, one tensor at a time.

    Args:
        dtype: of the matrices; vectors and learned positions are fp32, as llama.cpp expects.

    Raises:
        OSError: it cannot be written.
    """
    import gguf

    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    file_types = {
        torch.float32: gguf.LlamaFileType.ALL_F32,
        torch.float16: gguf.LlamaFileType.MOSTLY_F16,
        torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
    }
    writer = gguf.GGUFWriter(path, ARCHITECTURES[model.architecture])
    try:
        writer.add_file_type(file_types[dtype])
        for method, value in metadata(model):
            getattr(writer, method)(value)
        dtypes = {
            name: torch.float32 if tensor.dim() < 2 or name.startswith("position_embd") else dtype
            for name, tensor in model.tensors.items()
        }
        for name, tensor in model.tensors.items():
            kind = gguf.GGMLQuantizationType[kinds[dtypes[name]]]
            # The writer uses the dtype only where no kind is given.
            n_bytes = tensor.numel() * dtypes[name].itemsize
            writer.add_tensor_info(name, tensor.shape, None, n_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        writer.write_padding(file, file.tell())
        for name, tensor in model.tensors.items():
            content = tensor_bytes(tensor, dtypes[name])
            # The writer's own method, numpy.ndarray.tofile, reports a full disk without the number of the error.
            file.write(content)
            writer.write_padding(file, content.nbytes)
        file.flush()
        os.fsync(file.fileno())
    finally:
        writer.close()
