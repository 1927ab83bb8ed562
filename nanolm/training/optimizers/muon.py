"""The Muon optimizer: updates are momenta, orthogonalized by Newton-Schulz iteration.

On a square matrix it computes what torch.optim.Muon computes with adjust_lr_fn="match_rms_adamw", nesterov=True and the
same polynomials; a test compares the two. This implementation adds:

- matrices of equal shape go through Newton-Schulz as one batch, instead of one kernel launch per matrix and product;
- fused weights (query, key and value in one linear layer) are split by rows, and each part is orthogonalized by itself;
- the momentum warms up from initial_momentum;
- parameters that are not hidden matrices are updated by AdamW in the same optimizer, so that one state dict holds all;
- the iteration runs in fp32 on a CPU, where bf16 is slow, and in bf16 on a GPU; torch.optim.Muon always uses bf16;
- Polar Express takes fewer iterations (newton_schulz.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from nanolm.config.optimizer import MuonConfig, NewtonSchulz
from nanolm.training.optimizers.foreach import ForeachOptimizer, lerp_, multiply_, subtract_
from nanolm.training.optimizers.newton_schulz import orthogonalize

# RMS of AdamW's updates, to which Muon's are scaled (Liu et al. 2025, section 2.2).
ADAMW_RMS = 0.2


class Split(NamedTuple):
    """How a parameter divides into the matrices that it holds.

    Attributes:
        sizes: of the matrices.
        dim: 0 for matrices stacked along the rows, 1 for matrices side by side.
    """

    sizes: tuple[int, ...]
    dim: int = 0


class Muon(ForeachOptimizer):
    """Muon (Jordan et al. 2024), with the scale and weight decay of Liu et al. 2025, and AdamW.

    Args:
        groups: parameter groups, each with its lr, weight_decay and `rule`: "muon" (for matrices) or "adamw".
        config: all other settings.
        splits: of the parameters that hold several matrices.
    """

    def __init__(self, groups: list[dict[str, Any]], config: MuonConfig, splits: Mapping[torch.Tensor, Split]) -> None:
        settings = {
            "momentum": config.momentum,
            "initial_momentum": config.initial_momentum,
            "momentum_warmup_steps": config.momentum_warmup_steps,
            "newton_schulz": config.newton_schulz.name,
            "newton_schulz_steps": config.newton_schulz_steps,
            "betas": (config.beta1, config.beta2),
            "eps": config.eps,
            "updates": 0,
        }
        super().__init__(groups, settings)
        self._splits = splits

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Update parameters of one group in place, by its rule."""
        multiply_(parameters, 1 - group["lr"] * group["weight_decay"], self.found_inf)
        rules = {"muon": self._muon_directions, "adamw": self._adamw_directions}
        directions = rules[group["rule"]](group, parameters, gradients)
        subtract_(parameters, directions, group["lr"], self.found_inf)
        group["updates"] += 1

    def _muon_directions(
        self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Update the momenta, and return them orthogonalized."""
        momenta = self.state_tensors(parameters, "momentum")
        warmup_steps = group["momentum_warmup_steps"]
        progress = min(group["updates"] / warmup_steps, 1.0) if warmup_steps else 1.0
        momentum = group["initial_momentum"] + (group["momentum"] - group["initial_momentum"]) * progress
        lerp_(momenta, gradients, 1 - momentum, self.found_inf)
        updates = torch._foreach_lerp(gradients, momenta, momentum)
        splits = [self._splits.get(parameter, Split((len(parameter),))) for parameter in parameters]
        matrices = [update.split(*split) for update, split in zip(updates, splits, strict=True)]
        method = NewtonSchulz[group["newton_schulz"]]
        flat = iter(_orthogonalized([*chain(*matrices)], method, group["newton_schulz_steps"]))
        return [
            next(flat) if len(split.sizes) == 1 else torch.cat([*islice(flat, len(split.sizes))], split.dim)
            for split in splits
        ]

    def _adamw_directions(
        self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Update the moments, and return the direction of AdamW."""
        first_moments = self.state_tensors(parameters, "first_moment")
        beta1, beta2 = group["betas"]
        n = group["updates"] + 1
        lerp_(first_moments, gradients, 1 - beta1, self.found_inf)
        denominators = self.denominators(parameters, gradients, beta2, n, group["eps"])
        torch._foreach_mul_(denominators, 1 - beta1**n)
        return list(torch._foreach_div(first_moments, denominators))


def _orthogonalized(matrices: Sequence[torch.Tensor], method: NewtonSchulz, steps: int) -> list[torch.Tensor]:
    """Orthogonalize matrices, those of one shape together, and scale them to the RMS of AdamW's updates."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        by_shape[matrix.shape].append(number)
    found = list(matrices)
    for shape, numbers in by_shape.items():
        scale = ADAMW_RMS * math.sqrt(max(shape))
        batch_nxrxc = orthogonalize(torch.stack([matrices[number] for number in numbers]), method, steps, scale)
        for number, matrix in zip(numbers, batch_nxrxc, strict=True):
            found[number] = matrix
    return found
