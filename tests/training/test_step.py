import math

import pytest
import torch

from nanolm.config.trainer import Precision
from nanolm.model.loss import next_token_loss
from nanolm.training.precision import NumberFormat
from nanolm.training.step import MicroBatch, update

FP32 = NumberFormat(Precision.fp32, torch.device("cpu"))


def table() -> tuple[torch.nn.Embedding, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Embedding(5, 5)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(1)
    return MicroBatch(*(torch.randint(5, (8, 6), generator=generator) for _ in range(2)))


def test_loss_is_the_mean_negative_log_probability() -> None:
    logits, targets = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    by_hand = -torch.stack([logits[b, t].softmax(0)[targets[b, t]].log() for b in range(2) for t in range(3)]).mean()
    torch.testing.assert_close(next_token_loss(logits, targets), by_hand)


def test_micro_batches_add_up_to_the_batch() -> None:
    inputs, targets, _ = batch()
    results = []
    for n in (1, 2, 8):
        model, optimizer = table()
        loss, norm = update(model, optimizer, map(MicroBatch, inputs.chunk(n), targets.chunk(n)), FP32, None)
        results.append((loss, norm, model.weight.detach().clone()))
    for loss, norm, weight in results[1:]:
        assert (loss, norm) == pytest.approx(results[0][:2], rel=1e-5)
        torch.testing.assert_close(weight, results[0][2])


def test_clip_norm_scales_the_gradient() -> None:
    model, optimizer = table()
    before = model.weight.detach().clone()
    _, norm = update(model, optimizer, [batch()], FP32, 0.01)
    moved = (model.weight.detach() - before).norm().item()
    assert norm > 0.01
    assert moved == pytest.approx(0.01, rel=1e-4)
    model, optimizer = table()
    _, norm = update(model, optimizer, [batch()], FP32, 1e9)
    assert (model.weight.detach() - before).norm().item() == pytest.approx(norm, rel=1e-4)


def test_clip_value_clamps_the_gradient() -> None:
    model, optimizer = table()
    before = model.weight.detach().clone()
    _, unclipped = update(model, optimizer, [batch()], FP32, None)
    gradient = before - model.weight.detach()
    model, optimizer = table()
    _, norm = update(model, optimizer, [batch()], FP32, None, 0.01)
    assert norm == unclipped
    assert gradient.abs().max() > 0.01
    torch.testing.assert_close(before - model.weight.detach(), gradient.clamp(-0.01, 0.01))


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_values_leave_the_weights_unchanged(where: str, value: float) -> None:
    model, optimizer = table()
    before = model.weight.detach().clone()

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens)
        if where == "loss":
            return logits * value
        logits.register_hook(lambda gradient: gradient * value)
        return logits

    loss, norm = update(forward, optimizer, [batch()], FP32, 1.0)
    assert not (math.isfinite(loss) and math.isfinite(norm))
    assert torch.equal(before, model.weight)


def test_fp16_overflow_skips_the_update_and_lowers_the_scale() -> None:
    model, optimizer = table()
    number_format = NumberFormat(Precision.fp16, torch.device("cpu"))
    assert number_format.scaler is not None
    before, scale = model.weight.detach().clone(), number_format.scaler.get_scale()

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens)
        logits.register_hook(lambda gradient: gradient * math.inf)
        return logits

    update(forward, optimizer, [batch()], number_format, 1.0)
    assert torch.equal(before, model.weight)
    assert number_format.scaler.get_scale() == scale / 2
    update(model, optimizer, [batch()], number_format, 1.0)
    assert not torch.equal(before, model.weight)
