import pytest
import torch
from torch import nn

from nanolm.config.optimizer import NewtonSchulz
from nanolm.model.build import build
from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.newton_schulz import orthogonalize
from tests.helpers import make_config, make_optimizer_config, set_random_gradients

QUINTIC = ("newton_schulz=quintic", "newton_schulz_steps=5")


@pytest.mark.parametrize("shape", [(64, 64), (24, 96), (96, 24)])
def test_muon_matches_torch(shape: tuple[int, int]) -> None:
    """torch.optim.Muon iterates in bf16, ours in fp32 on a CPU: they agree to the precision of bf16."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(*shape, bias=False), nn.Linear(*shape, bias=False)
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    overrides = ("lr=0.02", "weight_decay=0.1", "momentum=0.9", "momentum_warmup_steps=0")
    config = make_optimizer_config("muon", *overrides, *QUINTIC)
    settings = {"adjust_lr_fn": "match_rms_adamw", "nesterov": True, "ns_steps": 5}
    optimizer = optimizers.build(config, ours)
    torch_optimizer = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1, momentum=0.9, **settings)
    for update in range(5):
        set_random_gradients(ours, update)
        set_random_gradients(theirs, update)
        optimizer.step()
        torch_optimizer.step()
        moved, expected = ours.weight.detach() - before, theirs.weight.detach() - before
        assert (moved - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("heads", [False, True])
def test_muon_splits_fused_weights_into_matrices(heads: bool) -> None:
    """The first update of a matrix is lr x 0.2 sqrt(its longer side) x the orthogonal matrix nearest its gradient."""
    model = build(make_config("size.n_layers=2", "size.d_model=24", "size.n_heads=2"), 11)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    overrides = ("weight_decay=0", "lr=0.1", f"split_heads={heads}", *QUINTIC)
    optimizer = optimizers.build(make_optimizer_config("muon", *overrides), model)
    set_random_gradients(model, 0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if "blocks" not in name:
            continue
        assert parameter.grad is not None
        # Of query, key and value, and of the two heads.
        n_parts = (6 if heads else 3) if "query_key_value" in name else 2 if heads and "attention.proj" in name else 1
        dim = int("projection" in name)
        moved = (before[name] - parameter.detach()) / (0.1 * 0.2)
        for part, gradient in zip(moved.chunk(n_parts, dim), parameter.grad.chunk(n_parts, dim), strict=True):
            expected = orthogonalize(gradient[None], NewtonSchulz.quintic, 5)[0] * max(part.shape) ** 0.5
            torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-3)


def test_muon_momentum_warms_up() -> None:
    model = nn.Linear(3, 3, bias=False)
    overrides = ("momentum_warmup_steps=4", "initial_momentum=0.5", "momentum=0.9", "lr=1e-9")
    optimizer = optimizers.build(make_optimizer_config("muon", *overrides), model)
    momentum = torch.zeros(3, 3)
    for update, weight in enumerate((0.5, 0.6, 0.7, 0.8, 0.9, 0.9)):
        set_random_gradients(model, update)
        assert model.weight.grad is not None
        momentum = weight * momentum + (1 - weight) * model.weight.grad
        optimizer.step()
        torch.testing.assert_close(optimizer.state[model.weight]["momentum"], momentum)


def test_muon_updates_other_parameters_as_adamw() -> None:
    found = []
    for name in ("muon", "adamw"):
        model = build(make_config("model=gpt2", "size.n_layers=1", "size.d_model=16", "size.n_heads=2"), 11)
        optimizer = optimizers.build(make_optimizer_config(name, "lr=0.01", "weight_decay=0.1"), model)
        for update in range(5):
            set_random_gradients(model, update)
            optimizer.step()
        found.append({key: value.detach() for key, value in model.named_parameters()})
    hidden = {key for key in found[0] if "blocks" in key and key.endswith("weight") and "norm" not in key}
    assert len(hidden) == 4
    for key in found[0]:
        if key not in hidden:
            torch.testing.assert_close(found[0][key], found[1][key], rtol=1e-5, atol=1e-7)
