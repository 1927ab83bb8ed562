"""The Muon optimizer: updates are momenta, orthogonalized by Newton-Schulz iteration.

On a square matrix it computes what torch.optim.Muon computes with adjust_lr_fn="match_rms_adamw", nesterov=True and the
same coefficients; a test compares the two. This implementation adds:

- matrices of equal shape go through Newton-Schulz as one batch, instead of one kernel launch per matrix and product;
- fused weights (query, key and value in one linear layer) are split by rows, and each part is orthogonalized by itself;
- the momentum warms up from initial_momentum;
- parameters that are not hidden matrices are updated by AdamW in the same optimizer, so that one state dict holds all;
- the iteration runs in fp32 on a CPU, where bf16 is slow, and in bf16 on a GPU; torch.optim.Muon always uses bf16.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch

from nanolm.config.optimizer import MuonConfig
from nanolm.training.optimizers.foreach import ForeachOptimizer

# The quintic of the iteration maps singular values in (0, 1] to between 0.7 and 1.2 (Jordan et al. 2024).
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)

# RMS of AdamW's updates, to which Muon's are scaled (Liu et al. 2025, section 2.2).
ADAMW_RMS = 0.2


class Muon(ForeachOptimizer):
    """Muon (Jordan et al. 2024), with the scale and weight decay of Liu et al. 2025, and AdamW.

    Args:
        groups: parameter groups, each with its lr, weight_decay and `rule`: "muon" (for matrices) or "adamw".
        config: all other settings.
        row_counts: for parameters that hold several matrices stacked along the rows, the number of rows of each.
    """

    def __init__(
        self, groups: list[dict[str, Any]], config: MuonConfig, row_counts: dict[torch.Tensor, tuple[int, ...]]
    ) -> None:
        settings = {
            "momentum": config.momentum,
            "initial_momentum": config.initial_momentum,
            "momentum_warmup_steps": config.momentum_warmup_steps,
            "newton_schulz_steps": config.newton_schulz_steps,
            "betas": (config.beta1, config.beta2),
            "eps": config.eps,
            "updates": 0,
        }
        super().__init__(groups, settings)
        self._row_counts = row_counts

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Update parameters of one group in place, by its rule."""
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        rules = {"muon": self._step_muon, "adamw": self._step_adamw}
        rules[group["rule"]](group, parameters, gradients)
        group["updates"] += 1

    def _step_muon(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        buffers = self.state_tensors(parameters, "momentum")
        warmup_steps = group["momentum_warmup_steps"]
        progress = min(group["updates"] / warmup_steps, 1.0) if warmup_steps else 1.0
        momentum = group["initial_momentum"] + (group["momentum"] - group["initial_momentum"]) * progress
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum)
        # Matrices of one shape are batched; those with more rows than columns are transposed.
        by_shape: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for parameter, update in zip(parameters, updates, strict=True):
            rows = self._row_counts.get(parameter, (len(parameter),))
            for weight, direction in zip(parameter.split(rows), update.split(rows), strict=True):
                pair = (weight, direction) if weight.size(0) <= weight.size(1) else (weight.T, direction.T)
                by_shape[pair[0].size(0), pair[0].size(1)].append(pair)
        for (_, n_columns), pairs in by_shape.items():
            orthogonal_nxrxc = orthogonalize(
                torch.stack([direction for _, direction in pairs]), group["newton_schulz_steps"]
            )
            scale = group["lr"] * ADAMW_RMS * math.sqrt(n_columns)
            for (weight, _), direction in zip(pairs, orthogonal_nxrxc, strict=True):
                weight.sub_(direction, alpha=scale)

    def _step_adamw(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        first_moments = self.state_tensors(parameters, "first_moment")
        beta1, beta2 = group["betas"]
        n = group["updates"] + 1
        torch._foreach_lerp_(first_moments, gradients, 1 - beta1)
        denominators = self.denominators(parameters, gradients, beta2, n, group["eps"])
        torch._foreach_addcdiv_(parameters, first_moments, denominators, -group["lr"] / (1 - beta1**n))


def orthogonalize(matrices_nxrxc: torch.Tensor, steps: int) -> torch.Tensor:
    """Approximate U V^T for each matrix with the SVD U S V^T, by Newton-Schulz iteration (Jordan et al. 2024).

    Args:
        matrices_nxrxc: a batch of n matrices of r rows and c columns, r <= c.
        steps: iterations.

    Returns:
        The same shape and dtype; singular values are between 0.7 and 1.2, except for those that were close to zero.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    # The iteration tolerates rounding errors, and GPUs are fastest in bf16; CPUs are not.
    x_nxrxc = matrices_nxrxc.bfloat16() if matrices_nxrxc.is_cuda else matrices_nxrxc
    x_nxrxc = x_nxrxc / (x_nxrxc.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square_nxrxr = x_nxrxc @ x_nxrxc.mT
        polynomial_nxrxr = torch.baddbmm(square_nxrxr, square_nxrxr, square_nxrxr, beta=b, alpha=c)
        x_nxrxc = torch.baddbmm(x_nxrxc, polynomial_nxrxr, x_nxrxc, beta=a)
    return x_nxrxc.to(matrices_nxrxc.dtype)
