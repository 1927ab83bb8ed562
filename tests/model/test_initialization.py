import math

import pytest
import torch

from nanolm.config.model import Initialization
from nanolm.model.build import build
from nanolm.model.initialization import INITIALIZATIONS
from nanolm.model.transformer import Transformer
from tests.helpers import make_config


def built(scheme: str, *overrides: str) -> Transformer:
    model = build(
        make_config("model=gpt2", f"model.initialization={scheme}", "model.tie_embeddings=false", *overrides), 65
    )
    assert isinstance(model, Transformer)
    return model


def test_initializations_has_every_scheme() -> None:
    assert set(INITIALIZATIONS) == set(Initialization)


@pytest.mark.parametrize("scheme", ["gpt2", "xavier", "zero_projections"])
def test_biases_are_initialized_to_zero(scheme: str) -> None:
    biases = {name: p for name, p in built(scheme, "model.head_bias=true").named_parameters() if name.endswith("bias")}
    assert len(biases) == 4 * 6 + 2
    assert not any(bias.any() for bias in biases.values())


def test_gpt2_scales_residual_projections() -> None:
    block = built("gpt2").blocks[0]
    for weight, std in (
        (block.attention.query_key_value.weight, 0.02),
        (block.attention.projection.weight, 0.02 / math.sqrt(8)),
        (block.feed_forward.expansion.weight, 0.02),
        (block.feed_forward.projection.weight, 0.02 / math.sqrt(8)),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_xavier_treats_attention_matrices_separately() -> None:
    model = built("xavier", "size.d_key=24", "size.d_value=40")
    attention = model.blocks[0].attention
    matrices = attention.query_key_value.weight.split(attention.row_counts["query_key_value"])
    for matrix, rows in zip(matrices, (96, 96, 160), strict=True):
        bound = math.sqrt(6 / (128 + rows))
        assert matrix.shape == (rows, 128)
        assert 0.98 * bound < matrix.abs().max().item() <= bound
    positions = model.position_embedding.weight  # type: ignore[union-attr]
    assert 0.98 * math.sqrt(6 / (64 + 128)) < positions.abs().max().item() <= math.sqrt(6 / (64 + 128))


def test_xavier_treats_a_gate_separately() -> None:
    weight = built("xavier", "model.activation=swiglu", "size.d_ff=96").blocks[0].feed_forward.expansion.weight
    bound = math.sqrt(6 / (128 + 96))
    for matrix in weight.chunk(2):
        assert 0.98 * bound < matrix.abs().max().item() <= bound


def test_pytorch_keeps_the_default_initialization() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = Transformer(make_config("model=bare"), 65)
    model = build(make_config("model=bare", "seed=3"), 65)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_zero_projections_make_blocks_the_identity() -> None:
    model = built("zero_projections", "model.embedding_norm=false").eval()
    tokens = torch.randint(65, (2, 9))
    final = []
    model.final_norm.register_forward_pre_hook(lambda module, inputs: final.append(inputs[0]))
    assert not model(tokens).any()
    assert torch.equal(final[0], model.token_embedding(tokens) + model.position_embedding.weight[:9])  # type: ignore[union-attr]
