"""The Lion optimizer: updates are the sign of a momentum."""

from __future__ import annotations

from typing import Any

import torch

from nanolm.training.optimizers.foreach import ForeachOptimizer, lerp_, multiply_, subtract_


class Lion(ForeachOptimizer):
    """Lion (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2).

    Args:
        groups: parameter groups, each with its lr and weight_decay.
        betas: decay of the momentum in the update and in the state.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Update parameters of one group in place."""
        momenta = self.state_tensors(parameters, "momentum")
        beta1, beta2 = group["betas"]
        directions = list(torch._foreach_lerp(momenta, gradients, 1 - beta1))
        torch._foreach_sign_(directions)
        multiply_(parameters, 1 - group["lr"] * group["weight_decay"], self.found_inf)
        subtract_(parameters, directions, group["lr"], self.found_inf)
        lerp_(momenta, gradients, 1 - beta2, self.found_inf)
