"""One training step: its micro-batches, learning rate, loss, gradients and update."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from nanolm.config.batch_schedule import stage_at
from nanolm.config.mask import reads_documents
from nanolm.config.run import Config
from nanolm.data.batches import IGNORE_INDEX, draw
from nanolm.data.tokens.stream import Stream
from nanolm.model.loss import Reduction, last_positions, next_token_loss
from nanolm.training.distributed.parallel import gradient_sync, local_shards, total_norm
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.gating import NonFiniteFlag, step, step_scaled
from nanolm.training.precision import NumberFormat, widest_dtype
from nanolm.training.results import StepResult
from nanolm.training.transfer import to_device

# Maps inputs_BxT, and documents_BxT for models with document masking, to logits_BxTxV.
Forward = Callable[..., torch.Tensor]
# (forward, inputs_BxT, targets_BxT, documents_BxT, reduction) -> loss in nats
LossFn = Callable[[Forward, torch.Tensor, torch.Tensor, torch.Tensor | None, Reduction], torch.Tensor]


class MicroBatch(NamedTuple):
    """A part of the batch of one step, on the device (see nanolm.data.batches.Batch)."""

    inputs_BxT: torch.Tensor  # noqa: N815  the name shows the shape
    targets_BxT: torch.Tensor  # noqa: N815
    documents_BxT: torch.Tensor | None = None  # noqa: N815


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """An update, as the training loop yields it.

    Attributes:
        number: of optimizer steps done, this one included.
        lr: learning rate of the update; 0 for a model that is fitted in one pass.
        model: the model itself, with the gradients of this update, clipped.
        batch: the micro-batches of this rank, on the model's device; empty for a model that is fitted in one pass.
        result: the numbers of the update. The host waits for the device only if they are asked for.
    """

    number: int
    lr: float
    model: nn.Module
    batch: list[MicroBatch]
    result: StepResult

    @property
    def loss(self) -> float:
        """Mean loss of the batch in nats per token, before the update.

        If it is not finite, the weights are unchanged, and the loop raises DivergedError instead of a next step.
        """
        return self.result.loss

    @property
    def grad_norm(self) -> float:
        """L2 norm of the gradient before clipping."""
        return self.result.grad_norm


def micro_batches(
    config: Config, stream: Stream, step: int, device: torch.device, ranks: Ranks
) -> tuple[list[MicroBatch], int]:
    """Draw the batch of a step and split it for gradient accumulation.

    Returns:
        This rank's micro-batches, and the number of scored targets in the batch of all ranks.
    """
    settings = config.trainer
    batch = draw(
        settings.sampling,
        stream,
        stage_at(config, step),
        seed=config.seed,
        step=step,
        rank=ranks.rank,
        world_size=ranks.world_size,
        with_documents=reads_documents(config),
    )
    if settings.sampling.in_rows or stream.scored is not None:
        n_scored = int(ranks.sum(int(np.count_nonzero(batch.targets_BxT != IGNORE_INDEX))))
    else:
        n_scored = batch.targets_BxT.size * ranks.world_size
    tensors = to_device([array for array in batch if array is not None], device)
    return list(map(MicroBatch, *(tensor.chunk(settings.gradient_accumulation) for tensor in tensors))), n_scored


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the lr of every parameter group to its initial lr times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def loss_function(model: nn.Module) -> LossFn:
    """Choose how the loss is computed: by the model, if its forward has a parameter `reduction`, or from its logits."""
    return loss_by_model if "reduction" in inspect.signature(model.forward).parameters else loss_of_logits


def loss_by_model(
    forward: Forward,
    inputs_BxT: torch.Tensor,
    targets_BxS: torch.Tensor,
    documents_BxT: torch.Tensor | None,
    reduction: Reduction,
) -> torch.Tensor:
    """Return the loss of the targets of the last S positions of a model that computes it, such as a transformer."""
    return forward(inputs_BxT, documents_BxT, targets_BxT=targets_BxS, reduction=reduction)


def loss_of_logits(
    forward: Forward,
    inputs_BxT: torch.Tensor,
    targets_BxS: torch.Tensor,
    documents_BxT: torch.Tensor | None,
    reduction: Reduction,
) -> torch.Tensor:
    """Return the loss of the targets of the last S positions of a model that returns logits."""
    logits_BxTxV = forward(inputs_BxT) if documents_BxT is None else forward(inputs_BxT, documents_BxT)
    return next_token_loss(last_positions(logits_BxTxV, targets_BxS.size(1)), targets_BxS, reduction)


def update(
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    micro_batches: Iterable[MicroBatch],
    number_format: NumberFormat,
    clip_norm: float | None,
    clip_value: float | None = None,
    ranks: Ranks = SINGLE_PROCESS,
    n_scored: int | None = None,
    flag: NonFiniteFlag | None = None,
    loss_fn: LossFn = loss_of_logits,
) -> StepResult:
    """Accumulate gradients over micro-batches, clip them and update the weights.

    A non-finite loss or gradient norm leaves the weights unchanged. Under fp16 an overflow skips the update and lowers
    the loss scale, as in torch.amp.GradScaler. The host does not wait for the device, unless the optimizer has no way
    to skip an update there.

    Args:
        forward: the model, or its distributed form.
        micro_batches: each is weighted by its number of scored targets.
        clip_norm: maximum L2 norm of the gradient; None disables clipping.
        clip_value: maximum absolute value of each element of the gradient; None disables clipping.
        ranks: make this update together, each with its own micro-batches.
        n_scored: number of scored targets in the micro-batches of all ranks; None counts them, on the device.
        flag: raised if the loss or the gradient norm is not finite; an update after that is skipped, too.
        loss_fn: computes the loss of a micro-batch, possibly compiled (see `loss_function`).

    Returns:
        The mean loss in nats over all scored targets, and the gradient norm before clipping; the same on all ranks.
    """
    micro_batches = list(micro_batches)
    scaler, device = number_format.scaler, micro_batches[0].inputs_BxT.device
    flag = flag or NonFiniteFlag(device)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # As optimizer.zero_grad does, without its profiler hook, which takes a tenth of a step of a bigram model.
    for parameter in parameters:
        parameter.grad = None
    # The mean of a single micro-batch needs no count.
    is_single = len(micro_batches) == ranks.world_size == 1
    if n_scored is None:
        n_here = 0 if is_single else sum(int((b.targets_BxT != IGNORE_INDEX).sum()) for b in micro_batches)
        n_scored = int(ranks.sum(n_here))
    total = None if is_single else torch.zeros((), dtype=widest_dtype(device), device=device)
    for number, micro_batch in enumerate(micro_batches, start=1):
        with gradient_sync(forward, is_last=number == len(micro_batches)):
            with number_format.autocast():
                loss = loss_fn(forward, *micro_batch, "mean" if is_single else "sum")
            # Gradients are averaged over the ranks, so each loss is scaled by the world size.
            weighted = loss if is_single else loss * (ranks.world_size / max(n_scored, 1))
            (weighted if scaler is None else scaler.scale(weighted)).backward()
        total = weighted.detach() if total is None else total.add_(weighted.detach(), alpha=1 / ranks.world_size)
    mean_loss = ranks.sum_on_device(total)
    if scaler is not None:
        scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = total_norm(gradients, ranks)
    _clip(local_shards(gradients) if ranks.world_size > 1 else gradients, norm, clip_norm, clip_value)
    if scaler is not None:
        is_skipped, scale = step_scaled(optimizer, scaler, mean_loss, norm, flag)
        return StepResult(torch.stack((mean_loss, norm, scale)), is_skipped)
    values = torch.stack((mean_loss, norm))
    flag.check(values)
    step(optimizer, flag)
    return StepResult(values)


def _clip(gradients: list[torch.Tensor], norm: torch.Tensor, clip_norm: float | None, clip_value: float | None) -> None:
    if clip_norm is not None:
        # A gradient that is not clipped is multiplied by 1.
        torch._foreach_mul_(gradients, (norm / clip_norm).clamp_(min=1.0).reciprocal_().float())
    if clip_value is not None:
        torch._foreach_clamp_max_(gradients, clip_value)
        torch._foreach_clamp_min_(gradients, -clip_value)
