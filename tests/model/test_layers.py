import math

import torch

from nanolm.config import Activation, Norm, TransformerConfig
from nanolm.model.layers import ACTIVATIONS, FeedForward, norm


def test_norms_bring_any_scale_to_one() -> None:
    x = 1000 * torch.randn(2, 3, 64) + 5
    root_mean_square = norm(TransformerConfig(norm=Norm.rms_norm), 64)(x).square().mean(-1).sqrt()
    torch.testing.assert_close(root_mean_square, torch.ones(2, 3))
    normalised = norm(TransformerConfig(norm=Norm.layer_norm, bias=True), 64)(x)
    torch.testing.assert_close(normalised.mean(-1), torch.zeros(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.var(-1, unbiased=False), torch.ones(2, 3), atol=1e-3, rtol=0)


def test_biases_are_one_setting() -> None:
    for bias in (False, True):
        config = TransformerConfig(norm=Norm.layer_norm, bias=bias)
        names = {name for part in (norm(config, 8), FeedForward(config, 8)) for name, _ in part.named_parameters()}
        assert any("bias" in name for name in names) == bias


def test_activations_by_their_formulas() -> None:
    x = torch.linspace(-3, 3, 13)
    gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATIONS[Activation.gelu_tanh](x), gelu)
    torch.testing.assert_close(ACTIVATIONS[Activation.relu_squared](x), torch.where(x > 0, x * x, 0.0))
    assert set(ACTIVATIONS) == set(Activation)
