import math

import pytest
import torch
import torch.nn.functional as F

from nanolm.config.model import Activation, FeedForwardKind, Norm, NormPlacement, TransformerConfig
from nanolm.config.size import SizeConfig
from nanolm.model.attention_backends import uniform
from nanolm.model.layers import ACTIVATIONS, Block, FeedForward, norm
from tests.helpers import causal_context

SIZE = SizeConfig(n_layers=1, n_heads=2, d_model=8, context_length=6)


def test_norms_scale_to_unit_mean_square() -> None:
    x = 1000 * torch.randn(2, 3, 64) + 5
    root_mean_square = norm(TransformerConfig(norm=Norm.rms_norm), 64)(x).square().mean(-1).sqrt()
    torch.testing.assert_close(root_mean_square, torch.ones(2, 3))
    normalized = norm(TransformerConfig(norm=Norm.layer_norm, bias=True), 64)(x)
    torch.testing.assert_close(normalized.mean(-1), torch.zeros(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalized.var(-1, unbiased=False), torch.ones(2, 3), atol=1e-3, rtol=0)
    assert norm(TransformerConfig(norm=Norm.none), 64)(x) is x


def test_bias_setting_applies_to_norms_and_feed_forward() -> None:
    for bias in (False, True):
        config = TransformerConfig(norm=Norm.layer_norm, bias=bias)
        names = {name for layer in (norm(config, 8), FeedForward(config, SIZE)) for name, _ in layer.named_parameters()}
        assert any("bias" in name for name in names) == bias


def test_activations_match_their_formulas() -> None:
    x = torch.linspace(-3, 3, 14)
    tanh_form = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    expected = {
        Activation.relu: torch.where(x > 0, x, 0.0),
        Activation.gelu: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        Activation.gelu_tanh: tanh_form,
        Activation.relu_squared: torch.where(x > 0, x * x, 0.0),
        Activation.swiglu: x[:7] / (1 + torch.exp(-x[:7])) * x[7:],
    }
    assert set(ACTIVATIONS) == set(Activation) == set(expected)
    for activation, values in expected.items():
        torch.testing.assert_close(ACTIVATIONS[activation](x), values)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("kind", [FeedForwardKind.one_layer, FeedForwardKind.two_layers])
def test_feed_forward_matches_the_formula(kind: FeedForwardKind, activation: Activation) -> None:
    config = TransformerConfig(feed_forward=kind, activation=activation, bias=True)
    layer = FeedForward(config, SizeConfig(n_layers=1, n_heads=1, d_model=8, context_length=1, d_ff=5))
    x = torch.randn(2, 3, 8)
    hidden = ACTIVATIONS[activation](F.linear(x, layer.expansion.weight, layer.expansion.bias))
    if kind is FeedForwardKind.two_layers:
        assert hidden.shape == (2, 3, 5)
        hidden = F.linear(hidden, layer.projection.weight, layer.projection.bias)  # type: ignore[union-attr]
    torch.testing.assert_close(layer(x), hidden)


def test_feed_forward_width_defaults_to_a_multiple_of_d_model() -> None:
    def widths(**settings: object) -> tuple[int, ...]:
        layer = FeedForward(TransformerConfig(**settings), SizeConfig(1, 2, 48, 6))  # type: ignore[arg-type]
        return tuple(matrix.weight.shape[0] for matrix in (layer.expansion, layer.projection) if matrix is not None)

    assert widths() == (4 * 48, 48)
    # Three matrices of 8/3 C^2 weights have as many as two of 4 C^2.
    assert widths(activation=Activation.swiglu) == (2 * 128, 48)


@pytest.mark.parametrize("feed_forward", FeedForwardKind)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("placement", NormPlacement)
def test_block_applies_norms_and_residuals(
    placement: NormPlacement, residual: bool, feed_forward: FeedForwardKind
) -> None:
    config = TransformerConfig(
        norm=Norm.layer_norm, norm_placement=placement, residual=residual, feed_forward=feed_forward, qk_norm=False
    )
    block = Block(config, SIZE)
    attend = uniform(causal_context(4))
    x = torch.randn(2, 4, 8)
    expected = x
    sublayers = [(block.attention_norm, lambda y: block.attention(y, attend))]
    if feed_forward is not FeedForwardKind.none:
        sublayers.append((block.feed_forward_norm, block.feed_forward))  # type: ignore[arg-type]
    for sublayer_norm, sublayer in sublayers:
        if placement is NormPlacement.pre:
            expected = residual * expected + sublayer(sublayer_norm(expected))
        else:
            expected = sublayer_norm(residual * expected + sublayer(expected))
    torch.testing.assert_close(block(x, attend), expected)
