"""Updates of the weights that the device skips if a loss or gradient is not finite, without waiting for the host."""

from __future__ import annotations

import torch

# A loss scale of fp16 below this means that non-finite gradients are not due to overflow.
MIN_LOSS_SCALE = 1.0


class NonFiniteFlag:
    """A flag on the device that is raised by the first value that is not finite, and stays raised.

    Attributes:
        raised: a 0-d fp32 tensor: 0, or 1 once the flag is raised.
    """

    def __init__(self, device: torch.device) -> None:
        self.raised = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)

    def check(self, values: torch.Tensor) -> None:
        """Raise the flag if one of the values is not finite."""
        self.check_into(self.raised, values)

    def check_into(self, found_inf: torch.Tensor, values: torch.Tensor) -> None:
        """Set another 0-d tensor to 1 if one of the values is not finite."""
        # The check of GradScaler, one kernel on any device; it also multiplies the values, here by 1.
        torch._amp_foreach_non_finite_check_and_unscale_([values], found_inf, self._one)


def step(optimizer: torch.optim.Optimizer, flag: NonFiniteFlag) -> None:
    """Update the weights, unless the flag is raised.

    Optimizers that honor `found_inf` on the device do not wait for it: PyTorch's fused ones and those of this package.
    """
    if getattr(optimizer, "honors_found_inf", False) or getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = flag.raised  # type: ignore[attr-defined]
        optimizer.step()
    elif not flag.raised.item():
        optimizer.step()


def step_scaled(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: torch.Tensor,
    grad_norm: torch.Tensor,
    flag: NonFiniteFlag,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Update the weights under fp16, after `scaler.unscale_`, and adjust the loss scale.

    An overflow of the gradient skips the update and lowers the loss scale, as in torch.amp.GradScaler. If the loss is
    not finite, or the loss scale falls below MIN_LOSS_SCALE, the flag is raised, and later updates are skipped, too.
    GradScaler waits for the device if the optimizer is not one of PyTorch's fused ones.

    Returns:
        Whether the update was skipped, as 0 or 1, and the new loss scale.
    """
    flag.check(loss)
    # GradScaler has one tensor per device, and a run has one device.
    (is_skipped,) = scaler._found_inf_per_device(optimizer).values()
    flag.check_into(is_skipped, grad_norm)
    torch.maximum(is_skipped, flag.raised, out=is_skipped)
    scaler.step(optimizer)
    scaler.update()
    scale = scaler.scale(torch.ones_like(is_skipped))
    torch.maximum(flag.raised, is_skipped * (scale < MIN_LOSS_SCALE), out=flag.raised)
    return is_skipped, scale
