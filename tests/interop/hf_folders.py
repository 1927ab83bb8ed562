"""Small models in the Hugging Face format, written without transformers, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nanolm.data.tokenizers.byte_pieces import BYTE_TO_CHARACTER

# 256 bytes and <|endoftext|>.
VOCAB_SIZE = 257

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": VOCAB_SIZE,
    "n_positions": 16,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
ROTARY = {
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **ROTARY}
NANOCHAT = {
    "architectures": ["NanoChatForCausalLM"],
    "model_type": "nanochat",
    "hidden_act": "relu2",
    "final_logit_softcapping": 15.0,
    **ROTARY,
}
CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "nanochat": NANOCHAT}

Shapes = dict[str, tuple[int, ...]]


def shapes_of(config: Mapping[str, Any]) -> Shapes:
    """The shapes of the tensors of a model of one of CONFIGS, as transformers names them."""
    return _gpt2_shapes(config) if config["model_type"] == "gpt2" else _rotary_shapes(config)


def _gpt2_shapes(config: Mapping[str, Any]) -> Shapes:
    width, prefix = config["n_embd"], "transformer"
    shapes: Shapes = {
        f"{prefix}.wte.weight": (config["vocab_size"], width),
        f"{prefix}.wpe.weight": (config["n_positions"], width),
        **{f"{prefix}.ln_f.{kind}": (width,) for kind in ("weight", "bias")},
    }
    for layer in range(config["n_layer"]):
        for linear, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            shapes[f"{prefix}.h.{layer}.{linear}.weight"] = (inputs, outputs)
            shapes[f"{prefix}.h.{layer}.{linear}.bias"] = (outputs,)
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{prefix}.h.{layer}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return shapes


def _rotary_shapes(config: Mapping[str, Any]) -> Shapes:
    width, hidden, is_llama = config["hidden_size"], config["intermediate_size"], config["model_type"] == "llama"
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: Shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "lm_head.weight": (config["vocab_size"], width),
    }
    attention = {"q_proj": (width, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, width)}
    feed_forward = (
        {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
        if is_llama
        else {"fc1": (hidden, width), "fc2": (width, hidden)}
    )
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{block}.mlp.{name}.weight": shape for name, shape in feed_forward.items()}
        if is_llama:
            shapes |= {f"{block}.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes | ({"model.norm.weight": (width,)} if is_llama else {})


def make_weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Weights that are functions of their names' order and nothing random."""
    weights = {}
    for number, name in enumerate(sorted(shapes)):
        size = torch.Size(shapes[name])
        weights[name] = (0.5 * torch.cos(torch.arange(size.numel()) * 0.37 * (number + 1))).view(size)
    return weights


def write_tokenizer(folder: Path, tokens: int = VOCAB_SIZE) -> None:
    """Write vocab.json and merges.txt: the bytes, and special tokens."""
    vocab = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
    special = ["<|endoftext|>", *(f"<|{n}|>" for n in range(tokens))]
    vocab |= {special[n]: 256 + n for n in range(tokens - 256)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write a folder with config.json, model.safetensors and a tokenizer, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(make_weights(shapes_of(config)) if weights is None else weights), folder / "model.safetensors")
    write_tokenizer(folder)
    return folder
