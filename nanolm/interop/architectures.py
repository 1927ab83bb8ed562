"""Transformer architectures of the Hugging Face transformers library, as settings of nanolm's transformer.

`nanolm.interop.config_json` translates between config.json and settings, `nanolm.interop.tensors` the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from nanolm.config.fields import plain
from nanolm.config.mask import CausalConfig, layer_masks
from nanolm.config.model import TransformerConfig
from nanolm.config.run import Config
from nanolm.errors import RunError, SettingsError, raise_all
from nanolm.interop.config_json import (
    ACTIVATIONS,
    Reader,
    Settings,
    gpt2_from_json,
    gpt2_to_json,
    llama_from_json,
    llama_to_json,
    nanochat_from_json,
    nanochat_to_json,
)
from nanolm.json_text import dump_json
from nanolm.wording import shorten


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model class of transformers.

    Attributes:
        name: of the class, as in config.json's `architectures`.
        base: the class of the model without its head.
        model_type: config.json's `model_type`.
        prefix: of its tensors, but for the head's.
        option: the model option whose settings `from_json` changes.
        requires: the values that each setting may have; settings that are not listed are free.
        to_json: from a config and the vocabulary size to the architecture's part of config.json.
        from_json: from config.json to settings that differ from the option's.
    """

    name: str
    base: str
    model_type: str
    prefix: str
    option: str
    requires: Mapping[str, tuple[Any, ...]]
    to_json: Callable[[Config, int], dict[str, Any]]
    from_json: Callable[[Reader], Settings]

    def read(self, config_json: Mapping[str, Any], where: str) -> Settings:
        """Translate config.json to settings.

        Raises:
            RunError: with everything that cannot be represented.
        """
        reader = Reader(config_json)
        reader.require("quantization_config", None)
        settings = self.from_json(reader)
        raise_all([RunError(problem.found, where=where, hint=problem.hint) for problem in reader.problems])
        return settings

    def obstacles(self, config: Config) -> list[str]:
        """Return the settings that this architecture cannot represent, each with the values that it can."""
        # A plugin's model may have the settings of the transformer, too.
        if type(config.model) is not TransformerConfig:
            return [f"model={config.model.name} (needs {TransformerConfig.name})"]
        found = effective_settings(config)
        mix = [f"model.ngram_mix.order={config.model.ngram_mix.order} (needs null)"] * config.model.has_ngram_mix
        return mix + [
            f"{key}={_format(found[key])} (needs {' or '.join(map(_format, allowed))})"
            for key, allowed in self.requires.items()
            if found[key] not in allowed
        ]


def effective_settings(config: Config) -> Settings:
    """Return the settings that decide the architecture, with derived values in place of null.

    `mask` is that of all layers, or a list if they differ. Masks within documents are causal for a single document.
    """
    model, size = config.model, config.size
    masks = list(
        dict.fromkeys("causal" if isinstance(mask, CausalConfig) else mask.name for mask in layer_masks(config))
    )
    assert isinstance(model, TransformerConfig)
    found: Settings = {"mask": masks[0] if len(masks) == 1 else masks or "causal"}
    found |= {f"model.{field.name}": plain(getattr(model, field.name)) for field in dataclasses.fields(model)}
    return found | {
        "model.attention_bias": model.has_attention_bias,
        "model.final_norm": model.has_final_norm,
        "size.n_kv_heads": "n_heads" if size.key_value_heads == size.n_heads else size.key_value_heads,
        "size.d_key": "d_model / n_heads" if size.key_width * size.n_heads == size.d_model else size.key_width,
        "size.d_value": "d_key" if size.value_width == size.key_width else size.value_width,
    }


def find_architecture(config: Config) -> Architecture:
    """Return the architecture that represents a model exactly.

    Raises:
        SettingsError: there is none; the error names the settings that stand in the way of the nearest one.
    """
    obstacles = {name: architecture.obstacles(config) for name, architecture in ARCHITECTURES.items()}
    nearest = min(obstacles, key=lambda name: len(obstacles[name]))
    if not obstacles[nearest]:
        return ARCHITECTURES[nearest]
    raise SettingsError(
        f"no architecture of transformers represents this model exactly; {nearest} is the nearest, except for "
        f"{', '.join(obstacles[nearest])}",
        where="the run's config.yaml",
        hint="--format safetensors writes the weights under nanolm's names with a config.json of its settings",
    )


def architecture_of(config_json: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture that a config.json names.

    Raises:
        RunError: it names none or another one.
    """
    names = _names(config_json)
    for architecture in ARCHITECTURES.values():
        if {architecture.name, architecture.base}.intersection(names):
            return architecture
        if not names and config_json.get("model_type") == architecture.model_type:
            return architecture
    named = ", ".join(names[:5]) or config_json.get("model_type")
    raise RunError(
        f"the architecture {shorten(str(named))} cannot be imported" if named else "config.json names no architecture",
        where=where,
        hint=f"architectures that can be: {', '.join(ARCHITECTURES)}",
    )


def _names(config_json: Mapping[str, Any]) -> list[str]:
    names = config_json.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _format(value: Any) -> str:
    return value if isinstance(value, str) else dump_json(value)


# Values of settings that all architectures share.
_COMMON = {
    "mask": ("causal",),
    "model.embedding_convolution": (None,),
    "model.sublayer_convolution": (None,),
    "model.attention": ("softmax",),
    "model.output_projection": (True,),
    "model.feed_forward": ("two_layers",),
    "model.residual": (True,),
    "model.norm_placement": ("pre",),
    "model.final_norm": (True,),
    "model.head_bias": (False,),
    "size.d_value": ("d_key",),
}

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "GPT2LMHeadModel",
            "GPT2Model",
            "gpt2",
            "transformer.",
            "gpt2",
            _COMMON
            | {
                "model.positions": ("learned",),
                "model.qk_norm": (False,),
                "model.activation": tuple(ACTIVATIONS),
                "model.norm": ("layer_norm",),
                "model.embedding_norm": (False,),
                "model.bias": (True,),
                "model.attention_bias": (True,),
                "model.logit_softcap": (None,),
                "size.n_kv_heads": ("n_heads",),
                "size.d_key": ("d_model / n_heads",),
            },
            gpt2_to_json,
            gpt2_from_json,
        ),
        Architecture(
            "LlamaForCausalLM",
            "LlamaModel",
            "llama",
            "model.",
            "llama",
            _COMMON
            | {
                "model.positions": ("rotary",),
                "model.qk_norm": (False,),
                "model.activation": ("swiglu",),
                "model.norm": ("rms_norm",),
                "model.norm_weight": (True,),
                "model.embedding_norm": (False,),
                "model.logit_softcap": (None,),
            },
            llama_to_json,
            llama_from_json,
        ),
        Architecture(
            "NanoChatForCausalLM",
            "NanoChatModel",
            "nanochat",
            "model.",
            "gpt",
            _COMMON
            | {
                "model.positions": ("rotary",),
                "model.qk_norm": (True,),
                "model.activation": tuple(ACTIVATIONS),
                "model.norm": ("rms_norm",),
                "model.norm_weight": (False,),
                "model.embedding_norm": (True,),
                "model.bias": (False,),
            },
            nanochat_to_json,
            nanochat_from_json,
        ),
    )
}
