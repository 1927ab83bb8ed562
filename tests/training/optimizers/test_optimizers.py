from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nanolm.compose import config_folder
from nanolm.config.checks import check
from nanolm.config.optimizer import OptimizerConfig
from nanolm.errors import SettingsError
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.muon import orthogonalize
from nanolm.training.optimizers.schedule_free import ScheduleFreeAdamW
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config

NAMES = sorted(path.stem for path in config_folder().glob("optimizer/*.yaml"))


def settings(name: str, *overrides: str) -> OptimizerConfig:
    return make_config(f"optimizer={name}", *(f"optimizer.{override}" for override in overrides)).optimizer


def test_parameters_are_told_apart() -> None:
    model = build(make_config("model=gpt2", "model.tie_embeddings=false", "size.n_layers=1"), 11)
    groups = optimizers.parameter_groups(model, settings("adamw", "weight_decay=0.3"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["name"]: sorted(names[id(p)] for p in group["params"]) for group in groups}
    assert found == {
        "hidden": [
            "blocks.0.attention.projection.weight",
            "blocks.0.attention.query_key_value.weight",
            "blocks.0.feed_forward.expansion.weight",
            "blocks.0.feed_forward.projection.weight",
        ],
        "head": ["head.weight"],
        "embedding": ["position_embedding.weight", "token_embedding.weight"],
        "norm": sorted(name for name in names.values() if "norm" in name),
        "bias": sorted(name for name in names.values() if name.endswith(".bias") and "norm" not in name),
    }
    assert {group["name"] for group in groups if group["weight_decay"] == 0.3} == {"hidden", "head"}
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}


def test_a_tied_head_is_an_embedding_and_what_is_unknown_is_other() -> None:
    groups = optimizers.parameter_groups(
        build(make_config("model=gpt2", "model.head_bias=true"), 11), settings("adamw")
    )
    assert [group["name"] for group in groups] == ["hidden", "embedding", "norm", "bias"]
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
    model[1].weight = model[0].weight
    model.register_parameter("scale", nn.Parameter(torch.ones(3)))
    assert [group["name"] for group in optimizers.parameter_groups(model, settings("sgd"))] == ["embedding", "other"]


@pytest.mark.parametrize("name", NAMES)
def test_a_group_has_its_own_lr_and_is_said_to(name: str) -> None:
    config = settings(name, "lr=0.004", "weight_decay=0.1", "lr_multipliers={embedding:0.5,head:0}")
    model = build(make_config("size.n_layers=1"), 11)
    optimizer = optimizers.build(config, model)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "hidden": 0.004,
        "head": 0.0,
        "embedding": 0.002,
    }
    words = optimizers.describe_groups(config, optimizer)
    rules = ("muon, ", "adamw, ") if name == "muon" else ("", "")
    assert words == (
        f"{name}, lr 0.004: hidden 196,608 ({rules[0]}decay 0.1), head 1,408 ({rules[1]}lr 0, decay 0.1), "
        f"embedding 1,408 ({rules[1]}lr 0.002)"
    )


def test_a_mistyped_group_has_a_neighbour() -> None:
    with pytest.raises(SettingsError, match=r"did you mean optimizer\.lr_multipliers\.embedding\?"):
        make_config("optimizer.lr_multipliers.embeding=0.5")
    (problem,) = check(make_config("optimizer.lr_multipliers.embedding=-1"))
    assert problem.found == "optimizer.lr_multipliers.embedding is -1.0, and must be at least 0"


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_goes_downhill(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = optimizers.build(
        make_config(f"optimizer={name}", "optimizer.lr=0.2", "optimizer.weight_decay=0").optimizer, model
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
    config = make_config("optimizer.lr=0.1", "optimizer.weight_decay=0.5", "optimizer.eps=1e-8").optimizer
    optimizer = optimizers.build(config, layer)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1 * 1.0, rel=1e-5)


def gradients_of(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def parameters_after(optimizer: torch.optim.Optimizer, model: nn.Module, updates: int) -> list[torch.Tensor]:
    for update in range(updates):
        gradients_of(model, update)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_newton_schulz_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(5, 24, 96) * torch.logspace(-3, 3, 5)[:, None, None]
    found = orthogonalize(matrices, 5)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.65
    assert values.max() < 1.25
    alone = torch.cat([orthogonalize(matrix[None], 5) for matrix in matrices])
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.cosine_similarity(found.flatten(1), (left @ right).flatten(1)).min() > 0.97


def test_muon_takes_query_key_and_value_apart_and_turns_tall_matrices() -> None:
    """The first update of a matrix is lr x 0.2 sqrt(its longer side) x the orthogonal matrix nearest its gradient."""
    model = build(make_config("size.n_layers=2", "size.d_model=24", "size.n_heads=2"), 11)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = optimizers.build(settings("muon", "weight_decay=0", "lr=0.1"), model)
    gradients_of(model, 0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if "blocks" not in name:
            continue
        assert parameter.grad is not None
        n_parts = 3 if "query_key_value" in name else 1
        moved = (before[name] - parameter.detach()) / (0.1 * 0.2)
        for part, gradient in zip(moved.chunk(n_parts), parameter.grad.chunk(n_parts), strict=True):
            if part.size(0) > part.size(1):
                part, gradient = part.T, gradient.T
            expected = orthogonalize(gradient[None].contiguous(), 5)[0] * max(part.shape) ** 0.5
            torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-3)


def test_muons_momentum_warms_up() -> None:
    model = nn.Linear(3, 3, bias=False)
    overrides = ("momentum_warmup_steps=4", "initial_momentum=0.5", "momentum=0.9", "lr=1e-9")
    optimizer = optimizers.build(settings("muon", *overrides), model)
    momentum = torch.zeros(3, 3)
    for update, weight in enumerate((0.5, 0.6, 0.7, 0.8, 0.9, 0.9)):
        gradients_of(model, update)
        assert model.weight.grad is not None
        momentum = weight * momentum + (1 - weight) * model.weight.grad
        optimizer.step()
        torch.testing.assert_close(optimizer.state[model.weight]["momentum"], momentum)


def test_all_but_hidden_matrices_move_under_muon_as_under_adamw() -> None:
    found = []
    for name in ("muon", "adamw"):
        model = build(make_config("model=gpt2", "size.n_layers=1", "size.d_model=16", "size.n_heads=2"), 11)
        optimizer = optimizers.build(settings(name, "lr=0.01", "weight_decay=0.1"), model)
        parameters_after(optimizer, model, 5)
        found.append({key: value.detach() for key, value in model.named_parameters()})
    hidden = {key for key in found[0] if "blocks" in key and key.endswith("weight") and "norm" not in key}
    assert len(hidden) == 4
    for key in found[0]:
        if key not in hidden:
            torch.testing.assert_close(found[0][key], found[1][key], rtol=1e-5, atol=1e-7)


def test_lion_is_the_formula() -> None:
    model = nn.Linear(4, 3, bias=False)
    weight, momentum = model.weight.detach().clone(), torch.zeros(3, 4)
    optimizer = optimizers.build(settings("lion", "lr=0.1", "weight_decay=0.5", "beta1=0.8", "beta2=0.6"), model)
    for update in range(4):
        gradients_of(model, update)
        assert model.weight.grad is not None
        weight = weight - 0.1 * ((0.8 * momentum + 0.2 * model.weight.grad).sign() + 0.5 * weight)
        momentum = 0.6 * momentum + 0.4 * model.weight.grad
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight)


def test_schedule_free_is_the_algorithm_of_the_paper() -> None:
    """Three points kept apart in double precision, as in algorithm 1, with AdamW's division and a changing lr."""
    model = nn.Linear(4, 3, bias=False).double()
    optimizer = optimizers.build(settings("schedule_free", "weight_decay=0.3", "beta1=0.8", "beta2=0.9"), model)
    z = x = y = model.weight.detach().clone()
    second, total = torch.zeros(3, 4).double(), 0.0
    for update, lr in enumerate((0.01, 0.02, 0.03, 0.03, 0.01)):
        optimizer.param_groups[0]["lr"] = lr
        gradients_of(model, update)
        gradient = model.weight.grad
        assert gradient is not None
        optimizer.step()
        second = 0.9 * second + 0.1 * gradient**2
        z = z - lr * (gradient / ((second / (1 - 0.9 ** (update + 1))).sqrt() + 1e-8) + 0.3 * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
        y = 0.2 * z + 0.8 * x
        torch.testing.assert_close(model.weight.detach(), y)
        with optimizers.evaluation_weights(optimizer):
            torch.testing.assert_close(model.weight.detach(), x)


def test_schedule_free_comes_back_from_the_average_to_the_bit() -> None:
    model = nn.Linear(50, 50)
    optimizer = optimizers.build(settings("schedule_free"), model)
    assert isinstance(optimizer, ScheduleFreeAdamW)
    with optimizer.averaged():
        pass  # nothing has moved yet
    before = parameters_after(optimizer, model, 3)
    held = {id(state): set(state) for state in optimizer.state.values()}
    with optimizer.averaged():
        assert not torch.equal(before[0], model.weight)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert held == {id(state): set(state) for state in optimizer.state.values()}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_a_gradient_stay(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = optimizers.build(settings(name), model)
    before = model[1].weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model[0](torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    assert torch.equal(before, model[1].weight)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_lr_teaches_a_small_model(name: str, small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    length = ("trainer.max_steps=200", "trainer.eval_every=200", "trainer.save_every=200", "size.d_model=32")
    config = make_config(*SMALL, "dataset=text", f"dataset.path={small_text}", f"optimizer={name}", *length)
    summary: dict[str, Any] = train(config, run).summary
    assert summary["final_val_loss"] < 0.8 * summary["reference_losses"]["counted_unigram"]
