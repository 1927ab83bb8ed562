import dataclasses
import enum
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nanolm.compose import config_folder
from nanolm.config.checks import check
from nanolm.config.model import (
    Activation,
    AttentionKind,
    FeedForwardKind,
    Initialization,
    Norm,
    NormPlacement,
    Positions,
    TransformerConfig,
)
from nanolm.config.run import Config
from nanolm.config.size import SizeConfig
from nanolm.errors import SettingsError
from nanolm.model import count, memory_estimate
from nanolm.model.build import build, count_parameters
from nanolm.model.loss import next_token_loss
from nanolm.model.shapes import has_formula
from tests.helpers import make_config, mostly_slow

# Models with a formula; the size of an n-gram model depends on its text.
MODELS = sorted(path.stem for path in config_folder().glob("model/*.yaml") if path.stem != "ngram")
SIZES = sorted(path.stem for path in config_folder().glob("size/*.yaml"))
# Models with 12 C^2 weights per layer.
TRANSFORMERS = ["gpt", "gpt2", "gpt3"]


def build_on_meta(config: Config, vocab_size: int) -> nn.Module:
    with torch.device("meta"):
        return build(config, vocab_size)


def count_or_zero(module: nn.Module | None) -> int:
    return 0 if module is None else count_parameters(module)


def built_parts(model: nn.Module) -> dict[str, int]:
    """Return the expected result of count.parameters, from the submodules."""
    if hasattr(model, "logits"):
        return {"table": count_or_zero(model.logits)}  # type: ignore[arg-type]
    if not hasattr(model, "blocks"):
        names = {
            "token embedding": "token_embedding",
            "hidden layer": "hidden",
            "direct connections": "direct",
            "recurrent layers": "layers",
            "head": "head",
        }
        return {part: count_or_zero(getattr(model, name)) for part, name in names.items() if hasattr(model, name)}
    blocks = list(model.blocks)  # type: ignore[arg-type]
    norms = [model.embedding_norm, model.final_norm]
    norms += [norm for block in blocks for norm in (block.attention_norm, block.feed_forward_norm)]  # type: ignore[misc]
    head_bias = model.head_bias
    more = {}
    if getattr(model, "ngram_mix", None) is not None:
        more["n-gram weights"] = sum(parameter.numel() for parameter in model.ngram_mix.parameters())  # type: ignore[operator,union-attr]
    return more | {
        "token embedding": count_or_zero(model.token_embedding),  # type: ignore[arg-type]
        "positions": count_or_zero(model.position_embedding),  # type: ignore[arg-type]
        "attention": sum(count_or_zero(block.attention) for block in blocks),
        "feed-forward": sum(count_or_zero(block.feed_forward) for block in blocks),
        "norms": sum(count_or_zero(norm) for norm in norms),  # type: ignore[arg-type]
        "head": count_or_zero(model.head) + (0 if head_bias is None else head_bias.numel()),  # type: ignore[arg-type,operator,union-attr]
    }


def require_equal(config: Config, vocab_size: int) -> None:
    parts = count.parameters(config, vocab_size)
    model = build_on_meta(config, vocab_size)
    assert {part.name: part.amount for part in parts} == built_parts(model)
    assert count.total(parts) == count_parameters(model)
    per_layer = {part.name: part.per_layer for part in parts}
    for block in getattr(model, "blocks", []):
        assert per_layer["attention"] == count_or_zero(block.attention)
        assert per_layer["feed-forward"] == count_or_zero(block.feed_forward)
        assert per_layer["norms"] == count_or_zero(block.attention_norm) + count_or_zero(block.feed_forward_norm)


@pytest.mark.parametrize(
    ("model", "size"),
    mostly_slow(
        [(model, size) for model in MODELS for size in SIZES],
        quick=[*((model, "tiny") for model in MODELS), ("gpt2", "gpt2_xl"), ("gpt3", "gpt3")],
    ),
)
def test_parameters_equal_the_built_model(model: str, size: str) -> None:
    config = make_config(f"model={model}", f"size={size}")
    for vocab_size in (1, 65, 50_257):
        require_equal(config, vocab_size)


RUNGS = sorted(path.stem for path in config_folder().glob("experiment/ladder/*.yaml"))


@pytest.mark.parametrize("rung", RUNGS)
def test_parameters_equal_the_built_ladder_models(rung: str) -> None:
    require_equal(make_config(f"experiment=ladder/{rung}"), 65)


@pytest.fixture(scope="module")
def plain_config() -> Config:
    return make_config()


def sampled(kind: type[enum.Enum]) -> st.SearchStrategy[enum.Enum]:
    return st.sampled_from(list(kind))


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_parameters_equal_the_built_model_for_random_settings(plain_config: Config, data: st.DataObject) -> None:
    """Draw all settings that affect shapes; invalid combinations are skipped."""
    n_heads, rotary_pairs = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    widths = st.none() | st.integers(1, 40)
    size = SizeConfig(
        n_layers=data.draw(st.integers(0, 4)),
        n_heads=n_heads,
        d_model=2 * rotary_pairs * n_heads,
        context_length=data.draw(st.integers(1, 40)),
        d_key=data.draw(widths.map(lambda width: width and 2 * width)),
        d_value=data.draw(widths),
        d_ff=data.draw(widths),
    )
    kinds = {
        "positions": Positions,
        "attention": AttentionKind,
        "feed_forward": FeedForwardKind,
        "activation": Activation,
        "norm": Norm,
        "norm_placement": NormPlacement,
        "initialization": Initialization,
    }
    flags = ("qk_norm", "output_projection", "residual", "embedding_norm", "bias", "tie_embeddings", "head_bias")
    model = TransformerConfig(
        **{name: data.draw(sampled(kind), label=name) for name, kind in kinds.items()},  # type: ignore[arg-type]
        **{name: data.draw(st.booleans(), label=name) for name in flags},
        attention_bias=data.draw(st.none() | st.booleans()),
        final_norm=data.draw(st.none() | st.booleans()),
    )
    config = dataclasses.replace(plain_config, model=model, size=size)
    assume(not check(config))
    require_equal(config, data.draw(st.integers(1, 300)))


# 96 layers, width 12,288, 96 heads, context 2048, an untied head with bias; two vocabulary sizes in circulation.
@pytest.mark.parametrize(("vocab_size", "expected"), [(50_257, 175_217_149_009), (50_527, 175_223_784_799)])
def test_gpt3_parameters_match_both_known_counts(vocab_size: int, expected: int) -> None:
    config = make_config("experiment=gpt3")
    assert count.total(count.parameters(config, vocab_size)) == expected
    assert count_parameters(build_on_meta(config, vocab_size)) == expected
    N, C, T, V = 96, 12_288, 2_048, vocab_size
    assert expected == N * (12 * C**2 + 9 * C) + 2 * C + V * (2 * C + 1) + T * C


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
    ],
)
def test_gpt2_parameters_match_the_published_counts(size: str, expected: int) -> None:
    assert count.total(count.parameters(make_config("model=gpt2", f"size={size}"), 50_257)) == expected


@pytest.mark.parametrize(
    "more",
    [
        "model.tie_embeddings=true",
        "model.tie_embeddings=false",
        "size.d_key=6 size.d_value=20 size.d_ff=13 model.output_projection=true",
        "model.activation=swiglu",
        "model.feed_forward=one_layer",
        "model.feed_forward=none",
        "model.attention=uniform model.positions=learned",
    ],
)
@pytest.mark.parametrize("model", ["gpt", "gpt2", "bare"])
def test_flops_equal_those_counted_by_torch(model: str, more: str) -> None:
    config = make_config(f"model={model}", "size.n_layers=3", "size.n_heads=2", "size.d_model=24", *more.split())
    B, T, vocab_size = 2, config.size.context_length, 11
    forward = count.total(count.flops_per_token(config, vocab_size))
    tokens = torch.randint(vocab_size, (B, T))
    built = build(config, vocab_size)
    # Fused kernels skip hidden keys and recompute scores in the backward pass; the math kernel does neither.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            loss = next_token_loss(built(tokens), tokens)
        assert counter.get_total_flops() == B * T * forward
        with FlopCounterMode(display=False) as counter:
            loss.backward()
    # The weights of uniform attention need no gradient.
    skipped = B * T * config.size.n_layers * 2 * T * config.size.d_model if "uniform" in more else 0
    expected = B * T * count.training_flops_per_token(config, vocab_size) - skipped
    assert counter.get_total_flops() + B * T * forward == expected


@pytest.mark.parametrize("model", TRANSFORMERS)
@pytest.mark.parametrize("size", SIZES)
def test_training_flops_are_6_per_weight_plus_attention(model: str, size: str) -> None:
    config = make_config(f"model={model}", f"size={size}")
    N, T, C, V = config.size.n_layers, config.size.context_length, config.size.d_model, 50_257
    n_weights = 12 * N * C**2 + V * C
    assert count.training_flops_per_token(config, V) == 6 * n_weights + 12 * N * T * C


def test_bigram_has_no_flops() -> None:
    config = make_config("model=bigram")
    assert count.total(count.flops_per_token(config, 65)) == 0
    built = build(config, 65)
    with FlopCounterMode(display=False) as counter:
        built(torch.zeros(1, 4, dtype=torch.long))
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("more", ["", "model.direct=true", "size.d_ff=13 model.window=3"])
def test_mlp_flops_equal_those_counted_by_torch(more: str) -> None:
    config = make_config("model=mlp", "size.d_model=24", *more.split())
    built, tokens = build(config, 65), torch.zeros(2, 9, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        built(tokens)
    assert counter.get_total_flops() == tokens.numel() * count.total(count.flops_per_token(config, 65))
    assert count.total(count.parameters(config, 65)) == count_parameters(built)


@pytest.mark.parametrize("cell", ["vanilla", "gru", "lstm"])
def test_rnn_flops_are_2_per_weight(cell: str) -> None:
    config = make_config("model=rnn", f"model.cell={cell}", "size.d_model=24", "size.n_layers=3")
    built = build(config, 65)
    weights = [p for name, p in built.named_parameters() if p.dim() == 2 and "embedding" not in name]
    assert count.total(count.flops_per_token(config, 65)) == 2 * sum(weight.numel() for weight in weights)
    assert count.total(count.parameters(config, 65)) == count_parameters(built)


@pytest.mark.parametrize("more", ["", "size.d_key=6 size.d_value=20 size.d_ff=13", "model.activation=swiglu"])
@pytest.mark.parametrize("model", [*TRANSFORMERS, "bare"])
def test_printed_formula_evaluates_to_the_amount(model: str, more: str) -> None:
    overrides = (f"model={model}", "model.bias=true", "model.norm=layer_norm", "model.head_bias=true", *more.split())
    config = make_config(*overrides)
    sizes = {"V": 65, "C": 128, "N": 4, "T": 64, "H": 4, "D": 6, "E": 20, "F": 13 if "size" in more else 8 * 128 // 3}
    sizes["H"] = config.size.n_heads
    for part in [*count.parameters(config, 65), *count.flops_per_token(config, 65)]:
        assert _value(part.formula, sizes) == part.amount, part


def _value(formula: str, sizes: dict[str, int]) -> int:
    """Evaluate a printed formula, in which a space means multiplication."""
    if formula == "none":
        return 0
    factor, bracket, inside = formula.partition(" (")
    if bracket:
        inside, _, rest = inside.partition(")")
        return _value(factor, sizes) * _value(inside, sizes) + (_value(rest[3:], sizes) if rest else 0)
    return sum(math.prod(_factor(word, sizes) for word in term.split()) for term in formula.split(" + "))


def _factor(word: str, sizes: dict[str, int]) -> int:
    base, _, exponent = word.partition("^")
    return (sizes[base] if base in sizes else int(base)) ** int(exponent or 1)


def test_a_model_of_a_plugin_has_no_formula() -> None:
    config = make_config()
    config = dataclasses.replace(config, model=TransformerConfig(name="mine", activation=Activation.gelu_tanh))
    assert not has_formula(config)
    with pytest.raises(SettingsError, match=r"no formula for the model 'mine'"):
        count.parameters(config, 65)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name="mine"))
    assert [part.name for part in memory_estimate.state_memory(config, 10, 65)] == ["weights", "gradients"]


def test_formulas_import_no_heavy_libraries() -> None:
    code = (
        "import sys\nimport nanolm.model.memory_estimate\nprint({'torch', 'hydra', 'numpy', 'sympy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
