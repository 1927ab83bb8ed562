from typing import Any

import numpy as np
import pytest
import torch

from nanolm.config.trainer import Precision
from nanolm.data.tokens.stream import Stream
from nanolm.model.build import build
from nanolm.model.loss import next_token_loss
from nanolm.training import validation
from nanolm.training.precision import NumberFormat
from nanolm.training.validation import exact_loss, token_losses
from tests.helpers import make_config, randomize_weights

CPU = torch.device("cpu")
TOKENS = np.random.default_rng(0).integers(0, 11, 103).astype(np.uint8)


def loss_of(model: torch.nn.Module, tokens: np.ndarray, stride: int) -> float:
    return exact_loss(
        model,
        Stream(tokens, scored_bytes=1),
        context_length=8,
        stride=stride,
        vocab_size=11,
        device=CPU,
        number_format=NumberFormat(Precision.fp32, CPU),
    )


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("length", [2, 8, 9, 10, 17, 103])
@pytest.mark.parametrize("rows_at_once", [1, 10_000])
def test_every_token_is_scored_once(
    stride: int, length: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "CPU_TOKENS", 8 * rows_at_once)
    model = build(make_config("size.context_length=8", "size.n_layers=2", "model.dropout=0.5"), 11).train()
    randomize_weights(model)
    tokens = TOKENS[:length]
    found = loss_of(model, tokens, stride)
    assert model.training
    model.eval()
    losses = []
    first = min(8, length - 1)
    for target in range(1, length):
        # Targets 1 .. first share the first window; after that each stretch of `stride` ends a window of its own.
        end = first if target <= first else min(first + -(-(target - first) // stride) * stride, length - 1)
        window = torch.from_numpy(tokens[max(end - 8, 0) : end].astype(np.int64))[None]
        position = target - 1 - max(end - 8, 0)
        losses.append(next_token_loss(model(window)[:, position : position + 1], torch.tensor([[int(tokens[target])]])))
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_smaller_stride_gives_more_context() -> None:
    model = Copier()
    tokens = np.tile(np.arange(5, dtype=np.uint8), 40)
    assert loss_of(model, tokens, 1) < loss_of(model, tokens, 8)


class Copier(torch.nn.Module):
    """Knows the next token where it has seen five before."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = 5.0 * torch.nn.functional.one_hot((tokens + 1) % 5, 11).float()
        logits[:, :4] = 0
        return logits


def test_losses_of_tokens_have_the_mean_of_the_exact_loss() -> None:
    model = build(make_config("size.context_length=8", "size.n_layers=1"), 11).eval()
    randomize_weights(model)
    sizes: dict[str, Any] = {"context_length": 8, "vocab_size": 11, "device": CPU}
    tokens_N, losses_N = token_losses(model, Stream(TOKENS, scored_bytes=1), 1000, **sizes)
    np.testing.assert_array_equal(tokens_N, TOKENS[1:])
    assert losses_N.mean() == pytest.approx(loss_of(model, TOKENS, 4), rel=1e-5)
    first_N, first_losses_N = token_losses(model, Stream(TOKENS, scored_bytes=1), 20, **sizes)
    np.testing.assert_array_equal(first_N, TOKENS[1:21])
    np.testing.assert_allclose(first_losses_N, losses_N[:20], rtol=1e-4)
