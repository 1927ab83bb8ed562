"""The Lion optimizer: updates are the sign of a momentum."""

from __future__ import annotations

from typing import Any

import torch

from nanolm.training.optimizers.foreach import parameters_with_grad, state_tensors


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2).

    Args:
        groups: parameter groups, each with its lr and weight_decay.
        lr: for groups without one.
        betas: decay of the momentum in the update and in the state.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters of every group."""
        for group in self.param_groups:
            parameters, gradients = parameters_with_grad(group)
            if not parameters:
                continue
            momenta = state_tensors(self.state, parameters, "momentum")
            beta1, beta2 = group["betas"]
            directions = list(torch._foreach_lerp(momenta, gradients, 1 - beta1))
            torch._foreach_sign_(directions)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, directions, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)
