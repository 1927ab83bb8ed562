"""Low-rank adapters: the layer, the merged weights, the parameters that are trained, and the counts."""

import pytest
import torch

from nanolm.cli.count import count_model
from nanolm.compose import compose_command
from nanolm.config.checks.lora import target_shapes
from nanolm.config.identity import identity
from nanolm.config.model import LORA_TARGETS
from nanolm.model import count, memory_estimate
from nanolm.model.build import build, count_parameters
from nanolm.model.lora import LoraLinear, adapters, merged_state_dict, trained_parameters
from nanolm.model.loss import next_token_loss
from nanolm.training import ema
from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.muon import Muon
from tests.helpers import make_config, mistakes, mostly_slow

ALL_TARGETS = f"model.lora.targets=[{','.join(LORA_TARGETS)}]"
SMALL = ("size.n_layers=2", "size.n_heads=4", "size.d_model=16", "size.context_length=12")
ADAPTED = (*SMALL, "model.lora.rank=3", "model.lora.alpha=5", ALL_TARGETS)
VARIANTS = (
    ("model=gpt2",),
    ("model=llama", "size.n_kv_heads=2"),
    ("model=gpt", "size.d_key=6", "size.d_value=8"),
    ("model=gpt2", "model.feed_forward=one_layer", "model.lora.targets=[query_key_value,feed_forward_expansion]"),
)
QUICK = [*VARIANTS[:2], *(pytest.param(line, marks=pytest.mark.slow) for line in VARIANTS[2:])]
V = 11


def random_adapters(model: torch.nn.Module) -> None:
    """Draw all adapters, of which B is zero."""
    torch.manual_seed(1)
    for parameter in adapters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("line", QUICK)
def test_adapted_model_equals_its_base_at_the_start(line: tuple[str, ...]) -> None:
    config = make_config(*ADAPTED, *line)
    adapted, base = build(config, V), build(make_config(*SMALL, *(w for w in line if "lora" not in w)), V)
    tokens_BxT = torch.randint(V, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapted.eval()(tokens_BxT), base.eval()(tokens_BxT))
    assert all(torch.equal(adapted.state_dict()[name], tensor) for name, tensor in base.state_dict().items())
    assert len(adapters(adapted)) == 2 * 2 * len(config.model.lora.targets)


@pytest.mark.parametrize("line", QUICK)
def test_merged_weights_give_the_logits_of_the_adapted_model(line: tuple[str, ...]) -> None:
    without = [word for word in line if "lora" not in word]
    adapted, merged = build(make_config(*ADAPTED, *line), V), build(make_config(*SMALL, *without), V)
    random_adapters(adapted)
    merged.load_state_dict(merged_state_dict(adapted))
    tokens_BxT = torch.randint(V, (2, 12), generator=torch.Generator().manual_seed(0))
    before = build(make_config(*SMALL, *without), V)(tokens_BxT)
    assert (adapted(tokens_BxT) - merged(tokens_BxT)).abs().max() < 1e-5
    # A model whose head is zero has no logits that an adapter changes.
    assert "model=gpt" in line or (merged(tokens_BxT) - before).abs().max() > 1e-3


@pytest.mark.parametrize("optimizer", mostly_slow(["adamw", "muon", "schedule_free"], quick=["muon"]))
def test_only_adapters_are_trained(optimizer: str) -> None:
    config = make_config(*ADAPTED, "model=gpt2", f"optimizer={optimizer}")
    model = build(config, V)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    updated = optimizers.build(config.optimizer, model)
    trained = {id(parameter) for group in updated.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in adapters(model).values()}
    assert [(group["name"], group["weight_decay"]) for group in updated.param_groups] == [
        ("hidden", config.optimizer.weight_decay)
    ]
    for _ in range(2):
        tokens_BxT = torch.randint(V, (2, 13), generator=torch.Generator().manual_seed(0))
        next_token_loss(model(tokens_BxT[:, :-1]), tokens_BxT[:, 1:]).backward()
        updated.step()
        updated.zero_grad()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(adapters(model)) == set(trained_parameters(model)) == set(ema.init(model))


def test_muon_splits_the_rows_of_stacked_adapters() -> None:
    config = make_config(*ADAPTED, "model=llama", "size.n_kv_heads=2", "optimizer=muon", "optimizer.split_heads=false")
    model = build(config, V)
    updated = optimizers.build(config.optimizer, model)
    assert isinstance(updated, Muon)
    attention = model.blocks[0].attention
    assert updated._splits[attention.query_key_value.lora_b] == ((16, 8, 8), 0)
    assert attention.query_key_value.lora_a not in updated._splits


def test_adapters_are_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = build(make_config(*ADAPTED, "model=gpt2"), V)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(adapters(model))


@pytest.mark.slow
def test_compiled_model_with_adapters_has_the_same_gradients() -> None:
    model = build(make_config(*ADAPTED, "model=gpt2"), V)
    random_adapters(model)
    tokens_BxT = torch.randint(V, (2, 13), generator=torch.Generator().manual_seed(0))
    found = []
    # Without the C++ compiler that the default backend needs on a CPU.
    for forward in (model, torch.compile(model, backend="aot_eager")):
        next_token_loss(forward(tokens_BxT[:, :-1]), tokens_BxT[:, 1:]).backward()
        found.append([parameter.grad.clone() for parameter in adapters(model).values() if parameter.grad is not None])
        model.zero_grad()
    assert len(found[0]) == len(adapters(model))
    assert all(torch.allclose(eager, compiled, atol=1e-6) for eager, compiled in zip(*found, strict=True))
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora" not in name)


def test_adapter_dropout_is_of_its_input_only() -> None:
    model = build(make_config(*ADAPTED, "model=gpt2", "model.lora.dropout=0.5"), V)
    random_adapters(model)
    layer = model.blocks[0].attention.query_key_value
    assert isinstance(layer, LoraLinear)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("line", QUICK)
def test_count_of_adapters_is_that_of_the_built_model(line: tuple[str, ...]) -> None:
    config = make_config(*ADAPTED, "optimizer=adamw", *line)
    model = build(config, V)
    parts = count.parameters(config, V)
    n_trained = sum(parameter.numel() for parameter in adapters(model).values())
    assert count.total(parts) == count_parameters(model)
    assert count.trained(parts) == n_trained
    memory = {part.name: part.amount for part in memory_estimate.state_memory(config, count.total(parts), V)}
    assert memory == {"weights": 4 * count.total(parts), "gradients": 4 * n_trained, "optimizer": 8 * n_trained}
    shapes = {
        target: tuple(model.blocks[0].get_submodule(LORA_TARGETS[target]).weight.shape)
        for target in config.model.lora.targets
    }
    assert shapes == {target: target_shapes(config)[target] for target in shapes}


@pytest.mark.parametrize(
    ("optimizer", "n_values"),
    mostly_slow([("muon", 1), ("lion", 1), ("sgd", 1), ("adafactor", None)], quick=[("muon", 1), ("adafactor", None)]),
)
def test_memory_of_the_optimizer_is_that_of_adapters(optimizer: str, n_values: int | None) -> None:
    config = make_config(*ADAPTED, "model=gpt2", f"optimizer={optimizer}")
    parts = count.parameters(config, V)
    memory = {part.name: part.amount for part in memory_estimate.state_memory(config, count.total(parts), V)}
    sides = sum(sum(parameter.shape) for parameter in adapters(build(config, V)).values())
    assert memory["optimizer"] == 4 * (n_values * count.trained(parts) if n_values else sides)


def test_adapters_of_rank_8_are_less_than_1_percent_of_gpt2() -> None:
    line = ("model=gpt2", "size=gpt2", "tokenizer=gpt2", "model.lora.rank=8")
    for targets, expected in (("model.lora.alpha=16", 442_368), (ALL_TARGETS, 1_179_648)):
        found = count_model(compose_command([*line, targets]))
        assert found["parameters"]["trained"] == expected < 0.01 * found["parameters"]["total"]
        assert found["parameters"]["total"] == 124_439_808 + expected
        flops = found["flops_per_token"]
        assert flops["training"] == 2 * flops["forward"] + 2 * expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("model.lora.rank=0", "model.lora.rank is 0, and must be at least 1"),
        ("model.lora.rank=-2", "model.lora.rank is -2, and must be at least 1"),
        ("model.lora.rank=4 model.lora.alpha=0", "model.lora.alpha is 0.0, and must be more than 0"),
        ("model.lora.rank=4 model.lora.alpha=-1", "model.lora.alpha is -1.0, and must be more than 0"),
        ("model.lora.rank=4 model.lora.dropout=1", "model.lora.dropout is 1.0, and must be less than 1"),
        ("model.lora.rank=4 model.lora.targets=[attention]", "there is no target 'attention'"),
        ("model.lora.rank=4 model.lora.targets=[]", "model.lora.targets is empty: nothing would be trained"),
        (
            "model.lora.rank=4 model.lora.targets=[projection,projection]",
            "model.lora.targets is [projection, projection], which has a target twice",
        ),
        (
            "model.lora.rank=4 model.output_projection=false",
            "model.lora.targets has projection, and the model has no such layer",
        ),
        (
            "model.lora.rank=4 model.attention=uniform model.positions=none",
            "model.lora.targets has query_key_value, and the model has no such layer",
        ),
        (
            "model.lora.rank=4 model.lora.targets=[feed_forward_projection] model.feed_forward=one_layer",
            "model.lora.targets has feed_forward_projection, and the model has no such layer",
        ),
        (
            "model.lora.rank=17 model.lora.targets=[projection]",
            "model.lora.rank is 17, and projection is a matrix of 16 x 16, whose rank is at most 16",
        ),
        ("model.lora.alpha=3", "model.lora.alpha is 3.0, and without model.lora.rank there are no adapters"),
    ],
)
def test_wrong_settings_of_adapters_are_found(line: str, expected: str) -> None:
    assert mistakes(*SMALL, "model=gpt2", *line.split()) == [expected]


def test_disabled_adapters_are_no_part_of_the_identity() -> None:
    config, other = make_config("model=gpt2"), make_config("model=gpt2")
    other.model.lora.alpha = 32
    assert identity(config) == identity(other)
    other.model.lora.rank = config.model.lora.rank = 4
    assert identity(config) != identity(other)
