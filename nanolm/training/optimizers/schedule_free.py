"""Schedule-free AdamW: an average of the weights in place of a falling learning rate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from nanolm.training.optimizers.foreach import denominators, parameters_with_grad, state_tensors


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """AdamW, schedule-free (Defazio et al. 2024, The Road Less Scheduled, algorithm 1).

    There are three points: z makes the steps, x is the average of all z, weighted by lr squared, and the gradient is
    taken at y = (1 - beta1) z + beta1 x. The parameters are y, but for the time of `averaged`, when they are x. Kept
    are z and the second moment; x follows from y and z.

    Args:
        groups: each with its lr and weight_decay.
        lr: of a group that has none.
        betas: how near y is to x, more than 0; and the decay of the second moment.
        eps: added to the root of the second moment.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "updates": 0, "weight_sum": 0.0}
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group."""
        for group in self.param_groups:
            parameters, gradients = parameters_with_grad(group)
            if parameters:
                self._update(group, parameters, gradients)

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        for parameter in parameters:
            if "z" not in self.state[parameter]:
                self.state[parameter]["z"] = parameter.clone()
        z = [self.state[parameter]["z"] for parameter in parameters]
        second = state_tensors(self.state, parameters, "second_moment")
        lr = group["lr"]
        beta1, beta2 = group["betas"]
        group["updates"] += 1
        group["weight_sum"] += lr**2
        # How much of the average the new z is.
        share = lr**2 / group["weight_sum"] if group["weight_sum"] else 0.0
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        directions = list(torch._foreach_div(gradients, denominators(second, beta2, group["updates"], group["eps"])))
        if group["weight_decay"]:
            torch._foreach_add_(directions, parameters, alpha=group["weight_decay"])
        # The new y, with the new x and z put in.
        torch._foreach_lerp_(parameters, z, share)
        torch._foreach_add_(parameters, directions, alpha=lr * (beta1 * (1 - share) - 1))
        torch._foreach_add_(z, directions, alpha=-lr)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters are the averaged ones, x; then they are y again, to the bit.

        What is saved inside can be loaded outside, and goes on exactly.
        """
        with torch.no_grad():
            for parameter, state, beta1 in self._stepped():
                state["y"] = parameter.clone()
                parameter.lerp_(state["z"], 1 - 1 / beta1)
        try:
            yield
        finally:
            self._return_to_y()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the state, and with it the point at which the gradient is taken."""
        super().load_state_dict(state_dict)
        self._return_to_y()

    @torch.no_grad()
    def _return_to_y(self) -> None:
        for parameter, state, _ in self._stepped():
            if "y" in state:
                parameter.copy_(state.pop("y"))

    def _stepped(self) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor], float]]:
        """Every parameter that has moved, its state, and its group's beta1."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.state.get(parameter):
                    yield parameter, self.state[parameter], group["betas"][0]
