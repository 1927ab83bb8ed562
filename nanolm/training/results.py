"""The numbers of training steps, which stay on the device until the host reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from nanolm.training.gating import MIN_LOSS_SCALE


class StepResult:
    """The loss, the gradient norm and, under fp16, the new loss scale of a step.

    The first access to a number waits for the device; `read` does so once for many results.

    Args:
        values: a 1-d tensor of these numbers.
        is_skipped: under fp16, a 0-d tensor: 1 if the update was skipped because a gradient overflowed. None otherwise.
    """

    __slots__ = ("_numbers", "_values", "is_skipped")

    def __init__(self, values: torch.Tensor, is_skipped: torch.Tensor | None = None) -> None:
        self._values = values
        self._numbers: list[float] | None = None
        self.is_skipped = is_skipped

    @property
    def loss(self) -> float:
        """Mean loss of the batch of all ranks in nats per token, before the update."""
        return self._read()[0]

    @property
    def grad_norm(self) -> float:
        """L2 norm of the gradient before clipping."""
        return self._read()[1]

    @property
    def loss_scale(self) -> float | None:
        """The loss scale of fp16 after the update; None in other precisions."""
        return self._read()[2] if len(self._values) > 2 else None

    @property
    def has_overflowed(self) -> bool:
        """Whether the gradient norm is not finite, so that the weights are unchanged."""
        return not math.isfinite(self.grad_norm)

    @property
    def has_diverged(self) -> bool:
        """Whether a number is not finite for another reason than an overflow of fp16."""
        is_overflow = self.loss_scale is not None and self.loss_scale >= MIN_LOSS_SCALE
        return not math.isfinite(self.loss) or (self.has_overflowed and not is_overflow)

    @property
    def is_read(self) -> bool:
        """Whether the numbers are on the host."""
        return self._numbers is not None

    def __iter__(self) -> Iterator[float]:
        """Iterate over the loss and the gradient norm: `loss, grad_norm = result`."""
        return iter((self.loss, self.grad_norm))

    def _read(self) -> list[float]:
        if self._numbers is None:
            self._numbers = self._values.tolist()
        return self._numbers


def read(results: Sequence[StepResult]) -> None:
    """Fetch the numbers of all results from the device at once."""
    unread = [result for result in results if not result.is_read]
    if unread:
        rows = torch.stack([result._values for result in unread]).tolist()
        for result, numbers in zip(unread, rows, strict=True):
            result._numbers = numbers
