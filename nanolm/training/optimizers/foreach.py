"""Lists of tensors that the optimizers of this package update together, with PyTorch's foreach functions."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch


def parameters_with_grad(group: dict[str, Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the parameters of a group that have a gradient, and their gradients."""
    parameters: list[torch.Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
    return parameters, [parameter.grad for parameter in parameters if parameter.grad is not None]


def state_tensors(
    state: MutableMapping[torch.Tensor, dict[str, torch.Tensor]], parameters: list[torch.Tensor], name: str
) -> list[torch.Tensor]:
    """Return the optimizer state of that name for each parameter, initialized to zero."""
    for parameter in parameters:
        if name not in state[parameter]:
            state[parameter][name] = torch.zeros_like(parameter)
    return [state[parameter][name] for parameter in parameters]


def denominators(second_moments: list[torch.Tensor], beta2: float, updates: int, eps: float) -> list[torch.Tensor]:
    """Return the denominators of Adam's updates: square roots of bias-corrected second moments, plus eps."""
    roots = list(torch._foreach_sqrt(second_moments))
    torch._foreach_div_(roots, (1 - beta2**updates) ** 0.5)
    torch._foreach_add_(roots, eps)
    return roots
