from typing import Any

import torch

from nanolm.training.optimizers.foreach import ForeachOptimizer


class Recorder(ForeachOptimizer):
    """Records what it is asked to update."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        super().__init__(parameters, {})
        self.updated: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def update(self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        self.updated.append((parameters, gradients))


def test_parameters_without_gradient_are_left_out() -> None:
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = Recorder([first, second])
    optimizer.step()
    assert optimizer.updated == []
    second.grad = torch.full((2,), 3.0)
    optimizer.step()
    ((parameters, gradients),) = optimizer.updated
    assert [id(parameter) for parameter in parameters] == [id(second)]
    assert gradients[0] is second.grad


def test_state_tensors_start_at_zero_and_are_kept() -> None:
    parameter = torch.ones(2)
    optimizer = Recorder([parameter])
    (found,) = optimizer.state_tensors([parameter], "momentum")
    assert found.tolist() == [0, 0]
    found += 1
    assert optimizer.state_tensors([parameter], "momentum")[0] is found


def test_denominators_are_bias_corrected_roots_plus_eps() -> None:
    parameter, gradient = torch.ones(2), torch.tensor([1.0, 2.0])
    optimizer = Recorder([parameter])
    for updates, expected in ((1, [0.5, 2.0]), (2, [0.75, 3.0])):
        (found,) = optimizer.denominators([parameter], [gradient], beta2=0.5, updates=updates, eps=0.25)
        second_moment = optimizer.state[parameter]["second_moment"]
        assert second_moment.tolist() == expected
        torch.testing.assert_close(found, (second_moment / (1 - 0.5**updates)).sqrt() + 0.25)
