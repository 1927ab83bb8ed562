import pytest
import torch
from torch.testing import assert_close

from nanolm.config.model import Cell
from nanolm.model.build import build
from nanolm.model.rnn import Rnn
from nanolm.model.sampling import sample
from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.muon import Muon
from tests.helpers import make_config


def build_rnn(*overrides: str) -> Rnn:
    config = make_config("model=rnn", "size.d_model=8", "size.n_layers=2", "size.context_length=12", *overrides)
    model = build(config, 7)
    assert isinstance(model, Rnn)
    return model


def test_vanilla_cell_equals_its_equation() -> None:
    model = build_rnn("model.cell=vanilla", "size.n_layers=1")
    tokens = [4, 1, 6]
    weights = dict(model.layers.named_parameters())
    state = torch.zeros(8)
    for at, token in enumerate(tokens):
        state = torch.tanh(
            weights["weight_ih_l0"] @ model.token_embedding.weight[token]
            + weights["weight_hh_l0"] @ state
            + weights["bias_ih_l0"]
            + weights["bias_hh_l0"]
        )
        assert_close(model(torch.tensor([tokens]))[0, at], model.head(state))


@pytest.mark.parametrize("cell", Cell)
def test_rnn_is_causal_and_each_row_starts_at_zero(cell: Cell) -> None:
    model = build_rnn(f"model.cell={cell.name}")
    tokens_BxT = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 6, 4, 5]])
    first, second = model(tokens_BxT)
    assert_close(first[:2], second[:2])
    assert (first[2:] - second[2:]).abs().amax(-1).min() > 0
    assert_close(model(tokens_BxT[1:])[0], second)


@pytest.mark.parametrize("overrides", ["model=mlp model.window=5", *(f"model=rnn model.cell={c.name}" for c in Cell)])
def test_state_of_generation_does_not_change_the_sample(overrides: str) -> None:
    config = make_config(*overrides.split(), "size.d_model=8", "size.n_layers=2", "size.context_length=12")
    model = build(config, 7)
    prompt = torch.tensor([3, 1, 4])
    with_state, without = (
        sample(model, prompt, 40, context_length=12, seed=3, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(with_state, without)


@pytest.mark.parametrize("cell", Cell)
def test_muon_orthogonalizes_each_gate(cell: Cell) -> None:
    model = build_rnn(f"model.cell={cell.name}")
    config = make_config("optimizer=muon", "optimizer.weight_decay=0", "optimizer.lr=1")
    optimizer = optimizers.build(config.optimizer, model)
    assert isinstance(optimizer, Muon)
    weight = model.layers.weight_hh_l0
    before = weight.detach().clone()
    model(torch.randint(7, (4, 12), generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    updates = (before - weight.detach()).split(8)
    assert len(updates) == cell.n_gates
    for update in updates:
        values = torch.linalg.svdvals(update) / torch.linalg.svdvals(update).max()
        assert values.median() > 0.5


def test_autocast_on_a_cpu_leaves_the_state_in_fp32() -> None:
    model = build_rnn()
    tokens = torch.tensor([[1, 2, 3]])
    cache = model.make_cache()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens, cache=cache)
    assert logits.dtype is torch.bfloat16
    assert cache.state is not None
    assert all(state.dtype is torch.float32 for state in cache.state)
    assert_close(logits.float(), model(tokens), atol=2e-2, rtol=2e-2)
