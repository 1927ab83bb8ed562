from collections import defaultdict

import torch

from nanolm.training.optimizers.foreach import denominators, parameters_with_grad, state_tensors


def test_parameters_without_gradient_are_left_out() -> None:
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    second.grad = torch.full((2,), 3.0)
    parameters, gradients = parameters_with_grad({"params": [first, second]})
    assert [id(parameter) for parameter in parameters] == [id(second)]
    assert gradients[0] is second.grad


def test_state_tensors_start_at_zero_and_are_kept() -> None:
    state: dict[torch.Tensor, dict[str, torch.Tensor]] = defaultdict(dict)
    parameter = torch.ones(2)
    (found,) = state_tensors(state, [parameter], "momentum")
    assert found.tolist() == [0, 0]
    found += 1
    assert state_tensors(state, [parameter], "momentum")[0] is found


def test_denominators_are_bias_corrected_roots_plus_eps() -> None:
    second_moment = torch.tensor([0.75, 3.0])
    (found,) = denominators([second_moment], beta2=0.5, updates=2, eps=0.25)
    torch.testing.assert_close(found, (second_moment / 0.75).sqrt() + 0.25)
    assert second_moment.tolist() == [0.75, 3.0]
