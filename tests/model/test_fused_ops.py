from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from nanolm.model.fused_ops import (
    Heads,
    causal_convolution,
    causal_convolution_formula,
    relu_squared,
    relu_squared_formula,
    rms_norm,
    rms_norm_formula,
    split_heads,
    split_heads_formula,
    swiglu,
    swiglu_formula,
)
from nanolm.model.positions import rotary_table

Function = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

ROTARY = rotary_table(5, 8)
WITH_NORM, WITHOUT = Heads(4, 4, 8, True), Heads(4, 4, 8, False)
# Fewer heads of keys and values, with values of another width.
GROUPED = Heads(4, 2, 8, True, eps=0.1)

# Each operation, its formula, and the shapes of its inputs.
OPERATIONS: dict[str, tuple[Function, Function, list[tuple[int, ...]]]] = {
    "relu_squared": (relu_squared, relu_squared_formula, [(3, 5, 16)]),
    "swiglu": (swiglu, swiglu_formula, [(3, 5, 14)]),
    "rms_norm": (rms_norm, rms_norm_formula, [(3, 5, 16)]),
    "rms_norm with eps": (lambda x: rms_norm(x, 0.1), lambda x: rms_norm_formula(x, 0.1), [(3, 5, 16)]),
    "convolution": (causal_convolution, causal_convolution_formula, [(2, 5, 4), (3, 4)]),
    "convolution wider than the text": (causal_convolution, causal_convolution_formula, [(2, 2, 4), (3, 4)]),
    "convolution of one token": (causal_convolution, causal_convolution_formula, [(2, 1, 4), (3, 4)]),
    **{
        f"split_heads {heads}": (
            lambda x, heads=heads: split_heads(x, heads, ROTARY.to(x.dtype)),
            lambda x, heads=heads: split_heads_formula(x, heads, ROTARY.to(x.dtype)),
            [(2, 5, width)],
        )
        for heads, width in ((WITH_NORM, 96), (WITHOUT, 96), (GROUPED, 58))
    },
}


def inputs_of(name: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in OPERATIONS[name][2]]


def gradients(function: Function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the outputs of a function, and the gradients of a weighted sum of them."""
    found = function(*inputs)
    outputs = (found,) if isinstance(found, torch.Tensor) else found
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, weights)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_its_formula(name: str) -> None:
    operation, formula, _ = OPERATIONS[name]
    inputs = inputs_of(name)
    torch.testing.assert_close(gradients(operation, inputs), gradients(formula, inputs))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_has_the_derivatives_of_finite_differences(name: str) -> None:
    operation, inputs = OPERATIONS[name][0], inputs_of(name, torch.float64)
    assert gradcheck(operation, inputs, fast_mode=True)
    assert gradgradcheck(operation, inputs, fast_mode=True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_keeps_half_precision(name: str) -> None:
    operation, formula, _ = OPERATIONS[name]
    inputs = inputs_of(name, torch.bfloat16)
    found = gradients(operation, inputs)
    assert {y.dtype for y in found} == {torch.bfloat16}
    expected = gradients(formula, [x.detach().float().requires_grad_() for x in inputs])
    torch.testing.assert_close([y.float() for y in found], expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", OPERATIONS)
def test_transforms_of_torch_func_get_the_formula(name: str) -> None:
    operation, formula, _ = OPERATIONS[name]
    stacked = [torch.stack([x.detach(), 2 * x.detach()]) for x in inputs_of(name)]
    found, expected = (torch.func.vmap(function)(*stacked) for function in (operation, formula))
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiler_gets_the_formula(name: str) -> None:
    graphs = []

    def backend(module: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(str(module.graph))
        return module.forward

    torch._dynamo.reset()
    torch.compile(OPERATIONS[name][0], backend=backend, fullgraph=True)(*inputs_of(name))
    (graph,) = graphs
    assert "autograd_function_apply" not in graph


def test_rms_norm_of_zeros_is_zero() -> None:
    for eps in (None, 0.1):
        assert rms_norm(torch.zeros(2, 4), eps).tolist() == F.rms_norm(torch.zeros(2, 4), (4,), eps=eps).tolist()
