import torch
from torch import nn

from nanolm.model.build import build
from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.muon import orthogonalize
from tests.helpers import make_config, make_optimizer_config, set_random_gradients


def test_muon_matches_torch_on_a_square_matrix() -> None:
    """torch.optim.Muon iterates in bf16, ours in fp32 on a CPU: they agree to the precision of bf16."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    config = make_optimizer_config("muon", "lr=0.02", "weight_decay=0.1", "momentum=0.9", "momentum_warmup_steps=0")
    settings = {"adjust_lr_fn": "match_rms_adamw", "nesterov": True, "ns_steps": config.newton_schulz_steps}
    optimizer = optimizers.build(config, ours)
    torch_optimizer = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.1, momentum=0.9, **settings)
    for update in range(5):
        set_random_gradients(ours, update)
        set_random_gradients(theirs, update)
        optimizer.step()
        torch_optimizer.step()
        moved, expected = ours.weight.detach() - before, theirs.weight.detach() - before
        assert (moved - expected).norm() < 0.03 * expected.norm()


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


def test_muon_splits_fused_qkv_and_transposes_tall_matrices() -> None:
    """The first update of a matrix is lr x 0.2 sqrt(its longer side) x the orthogonal matrix nearest its gradient."""
    model = build(make_config("size.n_layers=2", "size.d_model=24", "size.n_heads=2"), 11)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = optimizers.build(make_optimizer_config("muon", "weight_decay=0", "lr=0.1"), model)
    set_random_gradients(model, 0)
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
