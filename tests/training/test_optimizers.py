import pytest
import torch

from nanolm.model.build import build
from nanolm.training import optimizers
from tests.conftest import config_of


def test_only_matrices_of_linear_layers_decay() -> None:
    model = build(config_of("model=gpt2", "size.n_layers=1"), 11)
    decayed, spared = optimizers.parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(p)].split(".")[-2] for p in decayed["params"]) == [
        "expansion",
        "projection",
        "projection",
        "query_key_value",
    ]
    assert {len(names), len(decayed["params"]) + len(spared["params"])} == {len(names)}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_an_optimizer_goes_downhill(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = optimizers.build(
        config_of(f"optimizer={name}", "optimizer.lr=0.05", "optimizer.weight_decay=0").optimizer, model
    )
    x = torch.randn(64, 4)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    losses = []
    for _ in range(300):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


def test_adamw_is_the_formula() -> None:
    """One step of Loshchilov and Hutter's algorithm 2, by hand."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 2.0)
    config = config_of("optimizer.lr=0.1", "optimizer.weight_decay=0.5", "optimizer.eps=1e-8").optimizer
    optimizer = optimizers.build(config, layer)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1 * 1.0, rel=1e-5)
