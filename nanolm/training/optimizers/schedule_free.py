"""Schedule-free AdamW: averaging of the weights in place of a learning rate schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from nanolm.training.optimizers.foreach import ForeachOptimizer, copy_, subtract_


class ScheduleFreeAdamW(ForeachOptimizer):
    """Schedule-free AdamW (Defazio et al. 2024, The Road Less Scheduled, algorithm 1).

    Three sequences: z takes the steps, x is the average of all z weighted by lr squared, and gradients are computed at
    y = (1 - beta1) z + beta1 x. The parameters hold y, and x inside `averaged`. The state holds z and the second
    moment; x follows from y and z.

    Args:
        groups: parameter groups, each with its lr and weight_decay.
        betas: interpolation between z and x, greater than 0; decay of the second moment.
        eps: added to the square root of the second moment.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "updates": 0, "weight_sum": 0.0})

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Update parameters of one group in place."""
        for parameter in parameters:
            if "z" not in self.state[parameter]:
                self.state[parameter]["z"] = parameter.clone()
        z = [self.state[parameter]["z"] for parameter in parameters]
        lr = group["lr"]
        beta1, beta2 = group["betas"]
        group["updates"] += 1
        group["weight_sum"] += lr**2
        # The weight of the new z in the average x.
        share = lr**2 / group["weight_sum"] if group["weight_sum"] else 0.0
        denominators = self.denominators(parameters, gradients, beta2, group["updates"], group["eps"])
        directions = list(torch._foreach_div(gradients, denominators))
        if group["weight_decay"]:
            torch._foreach_add_(directions, parameters, alpha=group["weight_decay"])
        # The new y in terms of the old y and z, with the updates of x and z substituted.
        y = list(torch._foreach_lerp(parameters, z, share))
        torch._foreach_add_(y, directions, alpha=lr * (beta1 * (1 - share) - 1))
        copy_(parameters, y, self.found_inf)
        subtract_(z, directions, lr, self.found_inf)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Set the parameters to the averages x inside the context; y is restored exactly.

        It is restored from a copy: computing it from x and z would round, and the number of evaluations would change
        the training.

        A state dict that is taken inside can be loaded outside for an exact resume.
        """
        with torch.no_grad():
            for parameter, state, beta1 in self._updated_parameters():
                state["y"] = parameter.clone()
                parameter.lerp_(state["z"], 1 - 1 / beta1)
        try:
            yield
        finally:
            self._restore_y()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and set the parameters to y."""
        super().load_state_dict(state_dict)
        self._restore_y()

    @torch.no_grad()
    def _restore_y(self) -> None:
        for parameter, state, _ in self._updated_parameters():
            if "y" in state:
                parameter.copy_(state.pop("y"))

    def _updated_parameters(self) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor], float]]:
        """Yield each parameter that has been updated, its state and beta1."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.state.get(parameter):
                    yield parameter, self.state[parameter], group["betas"][0]
