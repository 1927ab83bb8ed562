import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.muon import Muon
from nanolm.training.optimizers.state import checked_state
from nanolm.training.step import set_lr
from tests.helpers import is_same_state, make_optimizer_config, resumes_exactly, set_random_gradients

ALL = (
    "orthogonalize_every=2",
    "normuon_beta2=0.9",
    "cautious_weight_decay=true",
    "scheduled_weight_decay=true",
    "momentum_warmup_fraction=0.5",
)


def stepped(*overrides: str, steps: int = 1, lr_factor: float = 1.0) -> list[torch.Tensor]:
    """Return the weights of a linear layer before and after each step, with other gradients in each."""
    torch.manual_seed(0)
    model = nn.Linear(12, 8, bias=False)
    optimizer = optimizers.build(make_optimizer_config("muon", "lr=0.1", *overrides), model)
    set_lr(optimizer, lr_factor)
    weights = [model.weight.detach().clone()]
    for step in range(steps):
        set_random_gradients(model, step)
        optimizer.step()
        weights.append(model.weight.detach().clone())
    return weights


def test_normuon_gives_rows_equal_size_and_keeps_the_scale() -> None:
    before, after, second = stepped("normuon_beta2=0.9", "weight_decay=0", steps=2)
    torch.testing.assert_close((after - before).square().mean(1).sqrt(), torch.full((8,), 0.1 * 0.2))
    rms = (second - after).square().mean(1).sqrt()
    assert rms.std() > 1e-5
    torch.testing.assert_close(rms.square().mean().sqrt(), torch.tensor(0.1 * 0.2))


def test_cautious_weight_decay_spares_weights_that_grow() -> None:
    before, without = stepped("weight_decay=0")
    _, found = stepped("weight_decay=0.5", "cautious_weight_decay=true")
    is_shrinking = (without - before) * before < 0
    assert 0 < is_shrinking.sum() < before.numel()
    torch.testing.assert_close(found - without, -0.1 * 0.5 * before * is_shrinking, rtol=1e-3, atol=1e-7)


def test_scheduled_weight_decay_follows_the_square_of_the_schedule() -> None:
    decays = []
    for override in ("scheduled_weight_decay=false", "scheduled_weight_decay=true"):
        before, found = stepped("weight_decay=0.5", override, lr_factor=0.3)
        _, without = stepped("weight_decay=0", lr_factor=0.3)
        decays.append((without - found) / before)
    torch.testing.assert_close(decays[0], torch.full((8, 12), 0.1 * 0.3 * 0.5), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(decays[1], torch.full((8, 12), 0.1 * 0.3**2 * 0.5), rtol=1e-3, atol=1e-6)


def test_orthogonalize_every_repeats_the_last_update() -> None:
    weights = stepped("orthogonalize_every=3", "weight_decay=0", steps=4)
    moved = [after - before for before, after in itertools.pairwise(weights)]
    torch.testing.assert_close(moved[1], moved[0])
    torch.testing.assert_close(moved[2], moved[0])
    assert not torch.allclose(moved[3], moved[0], atol=1e-3)


@pytest.mark.parametrize("step", [1, 2])
def test_state_of_all_options_resumes_exactly(step: int) -> None:
    config = make_optimizer_config("muon", *ALL)
    models = [nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)) for _ in range(2)]
    built = [optimizers.build(config, model) for model in models]
    for number in range(step):
        set_random_gradients(models[0], number)
        built[0].step()
    models[1].load_state_dict(models[0].state_dict())
    built[1].load_state_dict(checked_state(built[1], copy.deepcopy(built[0].state_dict())))
    for number in range(step, 5):
        for model, optimizer in zip(models, built, strict=True):
            set_random_gradients(model, number)
            optimizer.step()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_options_change_nothing_where_a_gradient_is_not_finite() -> None:
    model = nn.Linear(6, 4)
    optimizer = optimizers.build(make_optimizer_config("muon", *ALL), model)
    assert isinstance(optimizer, Muon)
    set_random_gradients(model, 0)
    optimizer.step()
    set_random_gradients(model, 1)
    optimizer.step()
    before = copy.deepcopy((list(model.parameters()), list(optimizer.state.values())))
    assert model.weight.grad is not None
    model.weight.grad[0, 0] = math.nan
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert is_same_state((list(model.parameters()), list(optimizer.state.values())), before)


@pytest.mark.slow
def test_run_with_all_options_resumes_exactly(small_text: Path, tmp_path: Path) -> None:
    overrides = ("model=gpt", "optimizer=muon", *(f"optimizer.{override}" for override in ALL))
    assert resumes_exactly(small_text, tmp_path, *overrides)
