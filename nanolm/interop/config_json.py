"""Translate between config.json of the Hugging Face transformers library and the settings of nanolm's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nanolm.config.model import TransformerConfig
from nanolm.config.run import Config
from nanolm.config.size import SizeConfig
from nanolm.errors import NanolmError, RunError
from nanolm.json_text import dump_json, is_finite_number
from nanolm.model.layers import LAYER_NORM_EPS
from nanolm.wording import shorten

# Names of activation functions in transformers; swiglu is `silu` with a gate.
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "relu_squared": "relu2"}
_THEIR_ACTIVATIONS = {name: ours for ours, name in ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}

# What nn.RMSNorm adds to the mean square of fp32 numbers by default.
RMS_NORM_EPS = torch.finfo(torch.float32).eps

ROTARY_BASE = 10_000.0

# Settings of a model, by dotted key.
Settings = dict[str, Any]


class Reader:
    """Reads config.json and collects everything in it that nanolm's transformer cannot represent."""

    def __init__(self, config_json: Mapping[str, Any]) -> None:
        self.json = config_json
        self.problems: list[NanolmError] = []

    def refuse(self, found: str, hint: str = "") -> None:
        self.problems.append(RunError(found, where="config.json", hint=hint))

    def number(self, name: str, default: float) -> float:
        """Return a number; the default if it is missing or null."""
        value = self.json.get(name)
        if value is not None and not is_finite_number(value):
            self.refuse(f"{name} is {_shown(value)}, and must be a number")
            return default
        return default if value is None else value

    def size(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """Return a size; the default if it is missing or null."""
        value = self.json.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not minimum <= value < 2**31:
            self.refuse(f"{name} is {_shown(value)}, and must be a whole number, {minimum} or more")
            return 1
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.json.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(f"{name} is {_shown(value)}, and must be true or false")
        return default if value is None else bool(value)

    def require(self, name: str, *allowed: Any) -> None:
        """Require that a key is missing or has one of these values."""
        if name in self.json and self.json[name] not in allowed:
            shown = " or ".join(map(dump_json, allowed))
            self.refuse(f"{name} is {_shown(self.json[name])}, and only {shown} is supported")

    def activation(self, name: str, default: str, known: Mapping[str, str]) -> str:
        """Return nanolm's name of an activation function."""
        value = self.json.get(name, default)
        if not isinstance(value, str) or value not in known:
            self.refuse(f"{name} is {_shown(value)}, which is not supported", f"supported: {', '.join(known)}")
            return known[default]
        return known[value]

    def rotary_base(self) -> float:
        """Return the base of rotary positions; older files have it at the top level."""
        self.require("partial_rotary_factor", None, 1)
        parameters = self.json.get("rope_parameters") or self.json.get("rope_scaling") or {}
        plain_types = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1, "factor": 1}
        if not isinstance(parameters, dict) or any(
            parameters.get(key) not in (None, value) for key, value in plain_types.items()
        ):
            hint = "only rotary positions of the type default are supported"
            self.refuse(f"rotary positions are scaled: {_shown(parameters)}", hint)
            return ROTARY_BASE
        theta = parameters.get("rope_theta", self.json.get("rope_theta"))
        if theta is not None and not is_finite_number(theta):
            self.refuse(f"rope_theta is {_shown(theta)}, and must be a number")
            return ROTARY_BASE
        return ROTARY_BASE if theta is None else float(theta)


def _shown(value: Any) -> str:
    return shorten(dump_json(value))


def gpt2_to_json(config: Config, vocab_size: int) -> dict[str, Any]:
    model, size = _transformer(config), config.size
    return {
        "vocab_size": vocab_size,
        "n_positions": size.context_length,
        "n_embd": size.d_model,
        "n_layer": size.n_layers,
        "n_head": size.n_heads,
        "n_inner": size.hidden_width(has_gate=False),
        "activation_function": ACTIVATIONS[model.activation.name],
        "layer_norm_epsilon": model.norm_eps or LAYER_NORM_EPS,
        "resid_pdrop": model.dropout_of(model.residual_dropout),
        "embd_pdrop": model.dropout_of(model.embedding_dropout),
        "attn_pdrop": model.dropout_of(model.attention_dropout),
        "tie_word_embeddings": model.tie_embeddings,
    }


def gpt2_from_json(reader: Reader) -> Settings:
    reader.require("scale_attn_weights", True)
    reader.require("scale_attn_by_inverse_layer_idx", False)
    reader.require("add_cross_attention", False)
    width = reader.size("n_embd", 768)
    hidden = reader.size("n_inner", 4 * width)
    eps = reader.number("layer_norm_epsilon", LAYER_NORM_EPS)
    return {
        "size.n_layers": reader.size("n_layer", 12, minimum=0),
        "size.n_heads": reader.size("n_head", 12),
        "size.d_model": width,
        "size.context_length": reader.size("n_positions", 1024),
        "size.d_ff": None if hidden == 4 * width else hidden,
        "model.activation": reader.activation("activation_function", "gelu_new", _THEIR_ACTIVATIONS),
        "model.norm_eps": None if eps == LAYER_NORM_EPS else eps,
        "model.tie_embeddings": reader.flag("tie_word_embeddings", True),
    }


def llama_to_json(config: Config, vocab_size: int) -> dict[str, Any]:
    return _rotary_to_json(config, vocab_size) | {"hidden_act": "silu", "mlp_bias": _transformer(config).bias}


def llama_from_json(reader: Reader) -> Settings:
    reader.activation("hidden_act", "silu", {"silu": "swiglu"})
    has_bias = reader.flag("mlp_bias", False)
    return _rotary_from_json(reader, has_gate=True, has_bias=has_bias) | {
        "model.bias": has_bias,
        "model.norm_eps": reader.number("rms_norm_eps", 1e-6),
    }


def nanochat_to_json(config: Config, vocab_size: int) -> dict[str, Any]:
    model = _transformer(config)
    return _rotary_to_json(config, vocab_size) | {
        "hidden_act": ACTIVATIONS[model.activation.name],
        "final_logit_softcapping": model.logit_softcap,
    }


def nanochat_from_json(reader: Reader) -> Settings:
    eps = reader.number("rms_norm_eps", 1e-6)
    softcap = reader.json.get("final_logit_softcapping", 15.0)
    return _rotary_from_json(reader, has_gate=False, has_bias=False) | {
        "model.activation": reader.activation("hidden_act", "relu2", _THEIR_ACTIVATIONS),
        "model.norm_eps": None if eps == RMS_NORM_EPS else eps,
        "model.logit_softcap": None if softcap is None else reader.number("final_logit_softcapping", 15.0),
    }


def _rotary_to_json(config: Config, vocab_size: int) -> dict[str, Any]:
    model, size = _transformer(config), config.size
    return {
        "vocab_size": vocab_size,
        "max_position_embeddings": size.context_length,
        "hidden_size": size.d_model,
        "intermediate_size": size.hidden_width(model.has_gate),
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.key_value_heads,
        "head_dim": size.key_width,
        "rms_norm_eps": model.norm_eps or RMS_NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rotary_base},
        "attention_bias": model.has_attention_bias,
        "attention_dropout": model.dropout_of(model.attention_dropout),
        "tie_word_embeddings": model.tie_embeddings,
    }


def _rotary_from_json(reader: Reader, has_gate: bool, has_bias: bool) -> Settings:
    n_heads, width = reader.size("num_attention_heads"), reader.size("hidden_size")
    n_kv_heads = reader.size("num_key_value_heads", n_heads)
    head_width = reader.size("head_dim", width // n_heads)
    is_derived = head_width * n_heads == width
    hidden = reader.size("intermediate_size")
    derived_hidden = SizeConfig(1, n_heads, width, 1).hidden_width(has_gate)
    has_attention_bias = reader.flag("attention_bias", False)
    return {
        "size.n_layers": reader.size("num_hidden_layers", minimum=0),
        "size.n_heads": n_heads,
        "size.n_kv_heads": None if n_kv_heads == n_heads else n_kv_heads,
        "size.d_model": width,
        "size.d_key": None if is_derived else head_width,
        "size.d_value": None if is_derived else head_width,
        "size.d_ff": None if hidden == derived_hidden else hidden,
        "size.context_length": reader.size("max_position_embeddings"),
        "model.rotary_base": reader.rotary_base(),
        "model.attention_bias": None if has_attention_bias == has_bias else has_attention_bias,
        "model.tie_embeddings": reader.flag("tie_word_embeddings", False),
    }


def _transformer(config: Config) -> TransformerConfig:
    assert isinstance(config.model, TransformerConfig)
    return config.model
