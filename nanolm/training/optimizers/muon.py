"""The Muon optimizer: updates are momenta, orthogonalized by Newton-Schulz iteration.

On a square matrix it computes what torch.optim.Muon computes with adjust_lr_fn="match_rms_adamw", nesterov=True and the
same polynomials; a test compares the two. This implementation adds:

- matrices of equal shape go through Newton-Schulz as one batch, instead of one kernel launch per matrix and product;
- fused weights (query, key and value in one linear layer) are split by rows, and each part is orthogonalized by itself;
- the momentum warms up from initial_momentum;
- parameters that are not hidden matrices are updated by AdamW in the same optimizer, so that one state dict holds all;
- the iteration runs in fp32 on a CPU, where bf16 is slow, and in bf16 on a GPU; torch.optim.Muon always uses bf16;
- Polar Express takes fewer iterations (newton_schulz.py);
- NorMuon, cautious and scheduled weight decay, and orthogonalization in every n-th step are settings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from nanolm.config.optimizer import MuonConfig, NewtonSchulz
from nanolm.training.optimizers.foreach import ForeachOptimizer, copy_, lerp_, multiply_, subtract_
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
            "orthogonalize_every": config.orthogonalize_every,
            "normuon_beta2": config.normuon_beta2,
            "cautious_weight_decay": config.cautious_weight_decay,
            "scheduled_weight_decay": config.scheduled_weight_decay,
            "betas": (config.beta1, config.beta2),
            "eps": config.eps,
            "updates": 0,
        }
        super().__init__(groups, settings)
        self._splits = splits

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Update parameters of one group in place, by its rule."""
        rules = {"muon": self._muon_directions, "adamw": self._adamw_directions}
        directions = rules[group["rule"]](group, parameters, gradients)
        self._decay(group, parameters, directions)
        subtract_(parameters, directions, group["lr"], self.found_inf)
        group["updates"] += 1

    def _muon_directions(
        self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Update the momenta, and return them orthogonalized, or the last ones that were."""
        momenta = self.state_tensors(parameters, "momentum")
        warmup_steps = group["momentum_warmup_steps"]
        progress = min(group["updates"] / warmup_steps, 1.0) if warmup_steps else 1.0
        momentum = group["initial_momentum"] + (group["momentum"] - group["initial_momentum"]) * progress
        lerp_(momenta, gradients, 1 - momentum, self.found_inf)
        every = group["orthogonalize_every"]
        if group["updates"] % every and all("direction" in self.state[parameter] for parameter in parameters):
            return self.state_tensors(parameters, "direction")
        updates = torch._foreach_lerp(gradients, momenta, momentum)
        directions = self._orthogonalized(group, parameters, list(updates))
        if group["normuon_beta2"] is not None:
            self._normalize_rows(group, parameters, directions)
        if every > 1:
            copies = [direction.clone() for direction in directions]
            copy_(self.state_tensors(parameters, "direction"), copies, self.found_inf)
        return directions

    def _orthogonalized(
        self, group: dict[str, Any], parameters: list[torch.Tensor], updates: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Orthogonalize the matrices of each update."""
        splits = [self._splits.get(parameter, Split((len(parameter),))) for parameter in parameters]
        matrices = [update.split(*split) for update, split in zip(updates, splits, strict=True)]
        method = NewtonSchulz[group["newton_schulz"]]
        flat = iter(_orthogonalized([*chain(*matrices)], method, group["newton_schulz_steps"]))
        return [
            next(flat) if len(split.sizes) == 1 else torch.cat([*islice(flat, len(split.sizes))], split.dim)
            for split in splits
        ]

    def _normalize_rows(
        self, group: dict[str, Any], parameters: list[torch.Tensor], directions: list[torch.Tensor]
    ) -> None:
        """Divide each row by the root of its second moment, keeping the scale (Li et al. 2025, algorithm 1)."""
        for parameter in parameters:
            if "row_second_moment" not in self.state[parameter]:
                self.state[parameter]["row_second_moment"] = parameter.new_zeros(len(parameter), 1)
        moments = self.state_tensors(parameters, "row_second_moment")
        means = [direction.square().mean(1, keepdim=True) for direction in directions]
        lerp_(moments, means, 1 - group["normuon_beta2"], self.found_inf)
        for direction, moments_Rx1 in zip(directions, moments, strict=True):
            direction.div_(moments_Rx1.sqrt() + group["eps"])
            rms = direction.square().mean().sqrt()
            direction.mul_(ADAMW_RMS / rms.clamp(min=group["eps"]))

    def _decay(self, group: dict[str, Any], parameters: list[torch.Tensor], directions: list[torch.Tensor]) -> None:
        """Apply weight decay: to all weights, or to those that -direction moves towards zero."""
        rate = group["lr"] * group["weight_decay"]
        if group["scheduled_weight_decay"] and rate:
            rate *= group["lr"] / group.get("initial_lr", group["lr"])
        if not group["cautious_weight_decay"]:
            multiply_(parameters, 1 - rate, self.found_inf)
        elif rate:
            decayed = list(torch._foreach_mul(parameters, directions))
            torch._foreach_sign_(decayed)
            torch._foreach_clamp_min_(decayed, 0)
            torch._foreach_mul_(decayed, parameters)
            subtract_(parameters, decayed, rate, self.found_inf)

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
