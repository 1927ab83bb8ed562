"""The base class of this package's optimizers, which update tensors together with PyTorch's foreach functions.

As in PyTorch's fused optimizers, a `found_inf` of 1 leaves parameters and state unchanged, even where updates are NaN.
It is a tensor, so that the host need not wait for its value. The fused SGD kernel, which reads it, makes all changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from nanolm.training.distributed.parallel import local_shards

_fused_sgd_ = partial(
    torch._fused_sgd_, weight_decay=0.0, dampening=0.0, nesterov=False, maximize=False, grad_scale=None
)


def subtract_(
    tensors: Sequence[torch.Tensor],
    updates: Sequence[torch.Tensor],
    scale: float,
    found_inf: torch.Tensor | None = None,
) -> None:
    """Subtract scale * updates in place, unless found_inf is 1."""
    tensors, updates = _alike(tensors, updates)
    _fused_sgd_(tensors, updates, [], momentum=0.0, lr=scale, is_first_step=False, found_inf=found_inf)


def lerp_(
    tensors: Sequence[torch.Tensor], ends: Sequence[torch.Tensor], weight: float, found_inf: torch.Tensor | None = None
) -> None:
    """Move tensors towards ends by a fraction of the way, as `torch.lerp` does, unless found_inf is 1."""
    subtract_(tensors, torch._foreach_sub(list(tensors), list(ends)), weight, found_inf)


def copy_(
    tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor], found_inf: torch.Tensor | None = None
) -> None:
    """Overwrite tensors with values, which may be overwritten too, unless found_inf is 1."""
    tensors, values = _alike(tensors, values)
    # The first step of SGD copies the gradients to the momenta; with an lr of 0 it has no other effect.
    _fused_sgd_(values, values, tensors, momentum=0.5, lr=0.0, is_first_step=True, found_inf=found_inf)


def multiply_(tensors: Sequence[torch.Tensor], factor: float, found_inf: torch.Tensor | None = None) -> None:
    """Multiply tensors by a factor in place, unless found_inf is 1."""
    if factor != 1:
        scalar = factor if found_inf is None else torch.where(found_inf == 1, 1.0, factor)
        torch._foreach_mul_(local_shards(tensors), scalar)


def _alike(
    tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return this rank's shards, the second ones with the strides of the first: fused kernels read memory in order."""
    tensors, others = local_shards(tensors), local_shards(others)
    return tensors, [
        other if other.stride() == tensor.stride() else torch.empty_like(tensor).copy_(other)
        for tensor, other in zip(tensors, others, strict=True)
    ]


class ForeachOptimizer(torch.optim.Optimizer):
    """An optimizer that updates all parameters of a group together; those without a gradient are left out.

    Attributes:
        found_inf: a 0-d fp32 tensor on the device of the parameters, whose value 1 makes `step` change nothing.
    """

    honors_found_inf = True
    found_inf: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters of every group."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self.update(group, parameters, [parameter.grad for parameter in parameters])

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Update parameters of one group and their state in place, both unless `found_inf` is 1."""
        raise NotImplementedError

    def state_tensors(self, parameters: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        """Return the optimizer state of that name for each parameter, initialized to zero."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]

    def denominators(
        self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], beta2: float, updates: int, eps: float
    ) -> list[torch.Tensor]:
        """Update the second moments and return Adam's denominators: their bias-corrected square roots, plus eps.

        Args:
            parameters: those to update.
            gradients: of the parameters.
            beta2: decay of the second moments.
            updates: number of updates, with this one.
            eps: added to the roots.
        """
        second_moments = self.state_tensors(parameters, "second_moment")
        updated = list(torch._foreach_mul(second_moments, beta2))
        torch._foreach_addcmul_(updated, gradients, gradients, 1 - beta2)
        roots = list(torch._foreach_sqrt(updated))
        torch._foreach_div_(roots, (1 - beta2**updates) ** 0.5)
        torch._foreach_add_(roots, eps)
        copy_(second_moments, updated, self.found_inf)
        return roots
