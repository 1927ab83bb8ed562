"""The base class of this package's optimizers, which update tensors together with PyTorch's foreach functions."""

from __future__ import annotations

from typing import Any

import torch


class ForeachOptimizer(torch.optim.Optimizer):
    """An optimizer that updates all parameters of a group together; those without a gradient are left out."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters of every group."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self.update(group, parameters, [parameter.grad for parameter in parameters])

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Update parameters of one group in place."""
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
        torch._foreach_mul_(second_moments, beta2)
        torch._foreach_addcmul_(second_moments, gradients, gradients, 1 - beta2)
        roots = list(torch._foreach_sqrt(second_moments))
        torch._foreach_div_(roots, (1 - beta2**updates) ** 0.5)
        torch._foreach_add_(roots, eps)
        return roots
