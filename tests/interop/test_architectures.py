"""Exported models have the logits of nanolm's, for every setting that an architecture represents."""

import dataclasses

import pytest
import torch

from nanolm.config.mask import MaskConfig
from nanolm.config.model import TransformerConfig
from nanolm.config.size import SizeConfig
from nanolm.errors import SettingsError
from nanolm.interop.architectures import ARCHITECTURES, effective_settings, find_architecture
from nanolm.interop.tensors import ENTRIES, export_tensors, import_tensors, require_tensors
from tests.helpers import make_config, mostly_slow
from tests.interop.oracle import SMALL_SIZE, VOCAB_SIZE, largest_difference, small_model, transformers_model

# Variants of each architecture.
VARIANTS = {
    "gpt2": (
        (),
        ("model.tie_embeddings=false", "size.d_ff=40", "model.norm_eps=1e-3"),
        ("model.activation=gelu",),
        ("model.activation=relu",),
        ("model.activation=relu_squared", "model.dropout=0.3"),
        ("mask=document", "size.n_layers=1"),
    ),
    "llama": (
        (),
        ("size.n_kv_heads=2", "model.tie_embeddings=true", "model.rotary_base=500", "size.d_ff=50"),
        ("size.n_kv_heads=1", "model.attention_bias=true", "model.norm_eps=1e-3"),
        ("size.d_key=6", "size.d_value=6", "size.n_kv_heads=2"),
        ("model.bias=true",),
        ("model.bias=true", "model.attention_bias=false", "size.d_key=12", "size.d_value=12"),
    ),
    "gpt": (
        (),
        ("size.n_kv_heads=1", "model.logit_softcap=5", "model.tie_embeddings=true", "model.norm_eps=1e-3"),
        ("size.d_key=6", "size.d_value=6", "model.attention_bias=true", "model.rotary_base=500"),
        ("size.n_kv_heads=2", "model.activation=gelu_tanh", "model.attention_bias=true", "size.d_ff=50"),
        ("model.activation=gelu", "model.embedding_dropout=0.1"),
        ("mask.pattern=L", "model.logit_softcap=15"),
    ),
}
CASES = [(model, overrides) for model, variants in VARIANTS.items() for overrides in variants]
QUICK = [(model, variants[1]) for model, variants in VARIANTS.items()]

# For every setting of a transformer, values other than the preset's. Each of them is represented or refused.
ALTERNATIVES = {
    "model.name": (),  # a plugin's model: test_plugin_with_settings_of_transformer_is_refused
    "model.positions": ("none", "learned", "sinusoidal", "rotary", "alibi"),
    "model.rotary_base": ("100",),
    "model.attention": ("uniform",),
    "model.qk_norm": ("true", "false"),
    "model.output_projection": ("false",),
    "model.feed_forward": ("none", "one_layer"),
    "model.activation": ("relu", "gelu", "gelu_tanh", "relu_squared", "swiglu"),
    "model.residual": ("false",),
    "model.norm": ("none", "layer_norm", "rms_norm"),
    "model.norm_weight": ("true", "false"),
    "model.norm_eps": ("0.01",),
    "model.norm_placement": ("post",),
    "model.embedding_norm": ("true", "false"),
    "model.embedding_convolution": ("2",),
    "model.sublayer_convolution": ("2",),
    "model.final_norm": ("false",),
    "model.bias": ("true", "false"),
    "model.attention_bias": ("true", "false"),
    "model.tie_embeddings": ("true", "false"),
    "model.head_bias": ("true",),
    "model.logit_softcap": ("3",),
    "model.initialization": ("xavier", "pytorch"),
    "model.lora": (),  # merged: test_adapters.py
    "model.ngram_mix": (),  # OTHER_MODELS
    "model.dropout": ("0.5",),
    "model.embedding_dropout": ("0.5",),
    "model.attention_dropout": ("0.5",),
    "model.residual_dropout": ("0.5",),
    "size.n_layers": ("3",),
    "size.n_heads": ("2",),
    "size.d_model": ("40",),
    "size.context_length": ("21",),
    "size.n_kv_heads": ("2",),
    "size.d_key": ("6",),
    "size.d_value": ("6",),
    "size.d_ff": ("24",),
    "mask.name": (),  # test_masks_other_than_causal_are_refused
    "mask.pattern": ("L", "[causal,document]", "S"),
    "mask.within_documents": ("true",),
}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "overrides"), CASES)
def test_logits_equal_those_of_transformers(model: str, overrides: tuple[str, ...]) -> None:
    config, ours = small_model(f"model={model}", *overrides)
    assert find_architecture(config).option == model
    assert largest_difference(ours, transformers_model(config, ours)) < 1e-4


@pytest.mark.parametrize(("model", "overrides"), mostly_slow(CASES, quick=QUICK))
def test_weights_and_settings_return_unchanged(model: str, overrides: tuple[str, ...]) -> None:
    config, ours = small_model(f"model={model}", *overrides)
    architecture = find_architecture(config)
    entries = ENTRIES[architecture.name](config, VOCAB_SIZE)
    exported = export_tensors(entries, ours.state_dict())
    require_tensors(entries, {name: tuple(tensor.shape) for name, tensor in exported.items()}, set(), "test")
    returned = dict(import_tensors(entries, exported.__getitem__))
    assert returned.keys() == ours.state_dict().keys()
    assert all(torch.equal(returned[name], tensor) for name, tensor in ours.state_dict().items())
    again = export_tensors(entries, returned)
    assert all(torch.equal(again[name], tensor) for name, tensor in exported.items())

    read = architecture.read(architecture.to_json(config, VOCAB_SIZE), "test")
    settings = [f"{key}={'null' if value is None else value}" for key, value in read.items()]
    back = effective_settings(make_config(f"model={architecture.option}", *settings))
    # Dropout is a setting of training.
    expected = {key: value for key, value in effective_settings(config).items() if "dropout" not in key}
    assert {key: back[key] for key in expected} == expected


def find_name(option: str) -> str:
    """Return the name of the architecture of a preset."""
    return next(name for name, architecture in ARCHITECTURES.items() if architecture.option == option)


def test_every_setting_has_alternatives() -> None:
    fields = [
        f"{group}.{field.name}"
        for group, schema in (("model", TransformerConfig), ("size", SizeConfig), ("mask", MaskConfig))
        for field in dataclasses.fields(schema)
    ]
    assert sorted(ALTERNATIVES) == sorted(fields), "a new setting must be represented, irrelevant or refused"


@pytest.mark.slow
@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("key", ALTERNATIVES)
def test_every_setting_is_represented_or_refused(model: str, key: str) -> None:
    for value in ALTERNATIVES[key]:
        overrides = (f"model={model}", f"{key}={value}")
        config, ours = small_model(*overrides)
        obstacles = {name: architecture.obstacles(config) for name, architecture in ARCHITECTURES.items()}
        if all(obstacles.values()):
            # Some settings have no name in an obstacle, but a derived one that has.
            derived = ("model.norm", "model.bias", "model.attention_bias", "size.d_key", "size.d_value")
            own = obstacles[find_name(model)]
            assert key in derived or any(obstacle.startswith(key.replace("mask.pattern", "mask")) for obstacle in own)
        else:
            assert largest_difference(ours, transformers_model(config, ours)) < 1e-4, overrides


OTHER_MODELS = [
    (("model=gpt2", "model.positions=sinusoidal"), "model.positions=sinusoidal (needs learned)"),
    (("model=gpt2", "model.norm_placement=post"), "model.norm_placement=post (needs pre)"),
    (("model=gpt", "model.head_bias=true"), "model.head_bias=true (needs false)"),
    (("model=gpt2", "size.d_key=5", "size.d_value=5"), "size.d_key=5 (needs d_model / n_heads)"),
    (("model=bigram",), "model=bigram (needs transformer)"),
    (("model=ngram",), "model=ngram (needs transformer)"),
    (("model=gpt", "mask=banded_causal"), "mask=banded_causal (needs causal)"),
    (("model=gpt", "mask=banded_causal", "mask.pattern=SL"), 'mask=["banded_causal", "causal"] (needs causal)'),
    (("model=mlp",), "model=mlp (needs transformer)"),
    (("model=rnn",), "model=rnn (needs transformer)"),
    (("model=gpt", "model.ngram_mix.order=5"), "model.ngram_mix.order=5 (needs null)"),
    (("model=bare",), "model.residual=false (needs true)"),
]


@pytest.mark.parametrize(
    ("overrides", "obstacle"),
    mostly_slow(OTHER_MODELS, quick=OTHER_MODELS[:4]),
)
def test_other_models_are_refused(overrides: tuple[str, ...], obstacle: str) -> None:
    with pytest.raises(SettingsError) as error:
        find_architecture(make_config(*SMALL_SIZE, *overrides))
    assert obstacle in error.value.found
    assert "--format safetensors" in error.value.hint


def test_plugin_with_settings_of_transformer_is_refused() -> None:
    class Plugin(TransformerConfig):
        pass

    config = make_config("model=gpt")
    config.model = Plugin(name="wider")
    with pytest.raises(SettingsError, match="model=wider"):
        find_architecture(config)


def test_presets_have_their_architecture() -> None:
    names = {option: find_architecture(make_config(f"model={option}")).name for option in VARIANTS}
    assert names == {architecture.option: name for name, architecture in ARCHITECTURES.items()}
