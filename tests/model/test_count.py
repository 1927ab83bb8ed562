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
from nanolm.model import count
from nanolm.model.build import build, count_parameters
from nanolm.training.optimizers import build as optimizers
from nanolm.training.step import next_token_loss
from tests.helpers import make_config

# Those with a formula: the table of an n-gram model is as large as its text makes it.
MODELS = sorted(path.stem for path in config_folder().glob("model/*.yaml") if path.stem != "ngram")
SIZES = sorted(path.stem for path in config_folder().glob("size/*.yaml"))
# The models whose layers are all alike, in 12 C^2 weights.
TRANSFORMERS = ["gpt", "gpt2", "gpt3"]
OPTIMIZERS = sorted(path.stem for path in config_folder().glob("optimizer/*.yaml"))


def built_without_memory(config: Config, vocab_size: int) -> nn.Module:
    with torch.device("meta"):
        return build(config, vocab_size)


def counted(module: nn.Module | None) -> int:
    return 0 if module is None else count_parameters(module)


def built_parts(model: nn.Module) -> dict[str, int]:
    """What count.parameters should say of it, from its submodules."""
    if hasattr(model, "logits"):
        return {"table": counted(model.logits)}  # type: ignore[arg-type]
    blocks = list(model.blocks)  # type: ignore[arg-type]
    norms = [model.embedding_norm, model.final_norm]
    norms += [norm for block in blocks for norm in (block.attention_norm, block.feed_forward_norm)]  # type: ignore[misc]
    own_bias = model.head_bias
    return {
        "token embedding": counted(model.token_embedding),  # type: ignore[arg-type]
        "positions": counted(model.position_embedding),  # type: ignore[arg-type]
        "attention": sum(counted(block.attention) for block in blocks),
        "feed-forward": sum(counted(block.feed_forward) for block in blocks),
        "norms": sum(counted(norm) for norm in norms),  # type: ignore[arg-type]
        "head": counted(model.head) + (0 if own_bias is None else own_bias.numel()),  # type: ignore[arg-type,operator,union-attr]
    }


def require_equal(config: Config, vocab_size: int) -> None:
    parts = count.parameters(config, vocab_size)
    model = built_without_memory(config, vocab_size)
    assert {part.name: part.amount for part in parts} == built_parts(model)
    assert count.total(parts) == count_parameters(model)
    per_layer = {part.name: part.per_layer for part in parts}
    for block in getattr(model, "blocks", []):
        assert per_layer["attention"] == counted(block.attention)
        assert per_layer["feed-forward"] == counted(block.feed_forward)
        assert per_layer["norms"] == counted(block.attention_norm) + counted(block.feed_forward_norm)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", MODELS)
def test_the_formula_is_the_built_model(model: str, size: str) -> None:
    config = make_config(f"model={model}", f"size={size}")
    for vocab_size in (1, 65, 50_257):
        require_equal(config, vocab_size)


RUNGS = sorted(path.stem for path in config_folder().glob("experiment/ladder/*.yaml"))


@pytest.mark.parametrize("rung", RUNGS)
def test_the_formula_is_every_rung(rung: str) -> None:
    require_equal(make_config(f"experiment=ladder/{rung}"), 65)


@pytest.fixture(scope="module")
def plain_config() -> Config:
    return make_config()


def drawn(kind: type[enum.Enum]) -> st.SearchStrategy[enum.Enum]:
    return st.sampled_from(list(kind))


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_the_formula_is_the_built_model_whatever_the_settings(plain_config: Config, data: st.DataObject) -> None:
    """Every setting that decides a shape, drawn at random; what a check refuses is passed over."""
    n_heads, half_a_head = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    widths = st.none() | st.integers(1, 40)
    size = SizeConfig(
        n_layers=data.draw(st.integers(0, 4)),
        n_heads=n_heads,
        d_model=2 * half_a_head * n_heads,
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
        **{name: data.draw(drawn(kind), label=name) for name, kind in kinds.items()},  # type: ignore[arg-type]
        **{name: data.draw(st.booleans(), label=name) for name in flags},
        attention_bias=data.draw(st.none() | st.booleans()),
        final_norm=data.draw(st.none() | st.booleans()),
    )
    config = dataclasses.replace(plain_config, model=model, size=size)
    assume(not check(config))
    require_equal(config, data.draw(st.integers(1, 300)))


# 96 layers, 12,288, 96 heads, context 2048, an untied head with bias; in the second the digits of V are swapped.
@pytest.mark.parametrize(("vocab_size", "expected"), [(50_257, 175_217_149_009), (50_527, 175_223_784_799)])
def test_gpt3_is_both_printed_figures(vocab_size: int, expected: int) -> None:
    config = make_config("experiment=gpt3")
    assert count.total(count.parameters(config, vocab_size)) == expected
    assert count_parameters(built_without_memory(config, vocab_size)) == expected
    L, C, T, V = 96, 12_288, 2_048, vocab_size
    assert expected == L * (12 * C**2 + 9 * C) + 2 * C + V * (2 * C + 1) + T * C


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
    ],
)
def test_gpt2_has_the_published_sizes(size: str, expected: int) -> None:
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
def test_flops_are_those_that_torch_counts(model: str, more: str) -> None:
    config = make_config(f"model={model}", "size.n_layers=3", "size.n_heads=2", "size.d_model=24", *more.split())
    B, T, vocab_size = 2, config.size.context_length, 11
    forward = count.total(count.flops_per_token(config, vocab_size))
    tokens = torch.randint(vocab_size, (B, T))
    built = build(config, vocab_size)
    # The reference kernel: the fused ones skip what a causal mask hides, and compute scores anew in the backward pass.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            loss = next_token_loss(built(tokens), tokens)
        assert counter.get_total_flops() == B * T * forward
        with FlopCounterMode(display=False) as counter:
            loss.backward()
    # The weights of a plain mean are no one's product, and have no gradient.
    spared = B * T * config.size.n_layers * 2 * T * config.size.d_model if "uniform" in more else 0
    assert counter.get_total_flops() + B * T * forward == B * T * count.training_flops(forward) - spared


@pytest.mark.parametrize("model", TRANSFORMERS)
@pytest.mark.parametrize("size", SIZES)
def test_training_flops_are_six_to_a_weight_and_twelve_to_a_score(model: str, size: str) -> None:
    config = make_config(f"model={model}", f"size={size}")
    L, T, C, V = config.size.n_layers, config.size.context_length, config.size.d_model, 50_257
    n_weights = 12 * L * C**2 + V * C
    found = count.training_flops(count.total(count.flops_per_token(config, V)))
    assert found == 6 * n_weights + 12 * L * T * C


def test_a_table_is_looked_up() -> None:
    config = make_config("model=bigram")
    assert count.total(count.flops_per_token(config, 65)) == 0
    built = build(config, 65)
    with FlopCounterMode(display=False) as counter:
        built(torch.zeros(1, 4, dtype=torch.long))
    assert counter.get_total_flops() == 0


SHAPED = [
    *MODELS,
    "gpt size.d_key=6 size.d_value=20 size.d_ff=13",
    "gpt model.activation=swiglu",
    "gpt model.feed_forward=one_layer",
    "gpt model.attention=uniform model.positions=learned",
]
# To all other optimizers a number is a number, whatever matrix it is in.
BY_SHAPE = ("muon", "adafactor")
STEPPED = [
    (model, optimizer)
    for model in SHAPED
    for optimizer in (*OPTIMIZERS, "sgd optimizer.momentum=0")
    if model == "gpt" or optimizer in BY_SHAPE
]


@pytest.mark.parametrize(("model", "optimizer"), STEPPED)
def test_memory_is_that_of_a_step(model: str, optimizer: str) -> None:
    config = make_config(*f"model={model} optimizer={optimizer} size.d_model=32".split())
    built = build(config, 65)
    opt = optimizers.build(config.optimizer, built)
    tokens = torch.arange(2 * 65).view(2, 65) % 65
    next_token_loss(built(tokens[:, :-1]), tokens[:, 1:]).backward()
    opt.step()
    buffers = [
        value
        for state in opt.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name != "step"
    ]
    gradients = [parameter.grad for parameter in built.parameters() if parameter.grad is not None]
    found = {part.name: part.amount for part in count.memory(config, count.total(count.parameters(config, 65)), 65)}
    assert found == {
        "weights": sum(parameter.nbytes for parameter in built.parameters()),
        "gradients": sum(gradient.nbytes for gradient in gradients),
        "optimizer": sum(buffer.nbytes for buffer in buffers),
    }


def test_the_state_of_optimizers_by_shape_is_written_as_it_is_computed() -> None:
    formulas = {}
    for optimizer in ("muon", "adafactor"):
        config = make_config("model=gpt2", f"optimizer={optimizer}")
        formulas[optimizer] = count.memory(config, 1000, 65)[-1].formula
    assert formulas == {
        "muon": "8 N - 48 L C^2",
        "adafactor": "4 N - 48 L C^2 - 4 V C - 4 T C + 64 L C + 4 V + 8 C + 4 T",
    }


@pytest.mark.parametrize("vocab_size", [65, 2_000])
@pytest.mark.parametrize("model", TRANSFORMERS)
def test_activations_are_near_what_torch_keeps(model: str, vocab_size: int) -> None:
    config = make_config(f"model={model}", "trainer.batch_size=4")
    built = build(config, vocab_size)
    weights = {parameter.data_ptr() for parameter in built.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(vocab_size, (4, 65))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        next_token_loss(built(tokens[:, :-1]), tokens[:, 1:])
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    found += 2 * 4 * vocab_size * tokens[:, 1:].numel()  # the gradients of the loss, which come with the backward pass
    assert found == pytest.approx(count.activation_memory(config, vocab_size).amount, rel=0.25)


def test_activations_follow_the_part_of_a_batch_and_the_number_format() -> None:
    def found(*overrides: str) -> int:
        return count.activation_memory(make_config("model=gpt2", *overrides), 65).amount

    assert found("trainer.gradient_accumulation=4") * 4 == found()
    assert found("trainer.precision=bf16") < found("trainer.precision=fp32") == found()
    assert count.activation_memory(make_config("model=gpt2"), 65, "bf16").amount == found("trainer.precision=bf16")
    part = count.activation_memory(make_config("model=gpt2"), 65)
    assert part == count.Part(
        "activations",
        "B T (64 L C + 8 C + 12 V)",
        16 * 64 * (64 * 4 * 128 + 8 * 128 + 12 * 65),
        16 * 64 * 64 * 4 * 128 // 4,
    )


def test_the_peak_of_a_step_follows_its_micro_batches() -> None:
    def found(*overrides: str) -> int:
        return count.peak_memory(make_config("model=gpt2", *overrides), 10**6, 65)

    whole = count.activation_memory(make_config("model=gpt2"), 65).amount
    assert found() == 12 * 10**6 + whole, "weights, two moments and activations; gradients come later"
    assert found("trainer.gradient_accumulation=4") == 16 * 10**6 + whole // 4
    assert found("trainer.batch_size=1", "size.context_length=8") == 16 * 10**6, "the gradients are larger"


@pytest.mark.parametrize("more", ["", "size.d_key=6 size.d_value=20 size.d_ff=13", "model.activation=swiglu"])
@pytest.mark.parametrize("model", [*TRANSFORMERS, "bare"])
def test_a_written_formula_gives_its_figure(model: str, more: str) -> None:
    line = (f"model={model}", "model.bias=true", "model.norm=layer_norm", "model.head_bias=true", *more.split())
    config = make_config(*line)
    sizes = {"V": 65, "C": 128, "L": 4, "T": 64, "n": 4, "k": 6, "v": 20, "h": 13 if "size" in more else 8 * 128 // 3}
    sizes["n"] = config.size.n_heads
    for part in [*count.parameters(config, 65), *count.flops_per_token(config, 65)]:
        assert _value(part.formula, sizes) == part.amount, part


def _value(formula: str, sizes: dict[str, int]) -> int:
    """Reads a formula as people do: a space multiplies, before a plus."""
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


def test_a_model_of_ones_own_has_no_formula() -> None:
    config = make_config()
    config = dataclasses.replace(config, model=TransformerConfig(name="mine", activation=Activation.gelu_tanh))
    assert not count.has_formula(config)
    with pytest.raises(SettingsError, match=r"no formula for the model 'mine'"):
        count.parameters(config, 65)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name="mine"))
    assert [part.name for part in count.memory(config, 10, 65)] == ["weights", "gradients"]


def test_nothing_heavy_is_imported() -> None:
    code = "import sys\nimport nanolm.model.count\nprint([n for n in ('torch', 'hydra', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
