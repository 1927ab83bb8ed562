"""Muon: a matrix moves along the orthogonal matrix nearest to its momentum."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch

from nanolm.training.optimizers.foreach import denominators, parameters_with_grad, state_tensors

# A quintic that drives every singular value between 0 and 1 to somewhere between 0.7 and 1.2 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)

# The root mean square of AdamW's updates, to which Muon's are scaled (Liu et al. 2025, section 2.2).
ADAMW_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with the scale and weight decay of Liu et al. 2025, and AdamW beside it.

    Args:
        groups: each with its `rule`, "muon" (matrices) or "adamw", and its lr and weight_decay.
        row_counts: of a parameter that is several matrices one above another, the rows of each.
        lr: of a group that has none.
        momentum: Nesterov's; it goes in a line from initial_momentum in the first momentum_warmup_steps updates.
        newton_schulz_steps: more come nearer to orthogonal.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        row_counts: dict[torch.Tensor, tuple[int, ...]],
        *,
        lr: float,
        momentum: float,
        initial_momentum: float,
        momentum_warmup_steps: int,
        newton_schulz_steps: int,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "initial_momentum": initial_momentum,
            "momentum_warmup_steps": momentum_warmup_steps,
            "newton_schulz_steps": newton_schulz_steps,
            "betas": betas,
            "eps": eps,
            "updates": 0,
        }
        super().__init__(groups, settings)
        self._row_counts = row_counts

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group."""
        rules = {"muon": self._by_muon, "adamw": self._by_adamw}
        for group in self.param_groups:
            parameters, gradients = parameters_with_grad(group)
            if parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                rules[group["rule"]](group, parameters, gradients)
                group["updates"] += 1

    def _by_muon(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        momenta = state_tensors(self.state, parameters, "momentum")
        weight = _momentum(group)
        torch._foreach_lerp_(momenta, gradients, 1 - weight)
        looking_ahead = torch._foreach_lerp(gradients, momenta, weight)
        # Matrices of one shape go through Newton-Schulz together, lying down: a tall one is turned on its side.
        alike: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for parameter, direction in zip(parameters, looking_ahead, strict=True):
            rows = self._row_counts.get(parameter, (len(parameter),))
            for part, towards in zip(parameter.split(rows), direction.split(rows), strict=True):
                lying = (part, towards) if part.size(0) <= part.size(1) else (part.T, towards.T)
                alike[lying[0].size(0), lying[0].size(1)].append(lying)
        for (_, longer), pairs in alike.items():
            directions_NxRxC = torch.stack([towards for _, towards in pairs])
            orthogonal_NxRxC = orthogonalize(directions_NxRxC, group["newton_schulz_steps"])
            scale = group["lr"] * ADAMW_RMS * math.sqrt(longer)
            for (part, _), towards in zip(pairs, orthogonal_NxRxC, strict=True):
                part.sub_(towards, alpha=scale)

    def _by_adamw(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        first = state_tensors(self.state, parameters, "first_moment")
        second = state_tensors(self.state, parameters, "second_moment")
        beta1, beta2 = group["betas"]
        n = group["updates"] + 1
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        roots = denominators(second, beta2, n, group["eps"])
        torch._foreach_addcdiv_(parameters, first, roots, -group["lr"] / (1 - beta1**n))


def _momentum(group: dict[str, Any]) -> float:
    """The momentum of the update that comes next."""
    steps = group["momentum_warmup_steps"]
    progress = min(group["updates"] / steps, 1.0) if steps else 1.0
    return group["initial_momentum"] + (group["momentum"] - group["initial_momentum"]) * progress


def orthogonalize(matrices_NxRxC: torch.Tensor, steps: int) -> torch.Tensor:
    """U V^T, nearly, of each matrix U S V^T, by Newton-Schulz iteration (Jordan et al. 2024).

    Args:
        matrices_NxRxC: R is at most C.
        steps: of the iteration.

    Returns:
        The same shape and dtype; singular values are between 0.7 and 1.2, save for those that are almost nothing.
    """
    a, b, c = QUINTIC
    # The iteration forgives rounding, and GPUs are fastest in bf16; CPUs are not.
    x_NxRxC = matrices_NxRxC.bfloat16() if matrices_NxRxC.is_cuda else matrices_NxRxC
    x_NxRxC = x_NxRxC / (x_NxRxC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square_NxRxR = x_NxRxC @ x_NxRxC.mT
        polynomial_NxRxR = torch.baddbmm(square_NxRxR, square_NxRxR, square_NxRxR, beta=b, alpha=c)
        x_NxRxC = torch.baddbmm(x_NxRxC, polynomial_NxRxR, x_NxRxC, beta=a)
    return x_NxRxC.to(matrices_NxRxC.dtype)
