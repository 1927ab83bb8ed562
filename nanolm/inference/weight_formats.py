"""Number formats of the weights of a loaded model: fp32, bf16, and int8 with dynamic quantization."""

from __future__ import annotations

import enum
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.errors import SettingsError
from nanolm.model.build import FittedModel
from nanolm.model.transformer import Transformer

# Appended to every row of inputs that is quantized, with weights of 0. Four, so that rows stay aligned.
RANGE = (1.0, -1.0, 0.0, 0.0)


class WeightFormat(enum.Enum):
    """Values of --dtype."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


def convert_weights(model: nn.Module, weight_format: WeightFormat) -> None:
    """Convert the weights of a model in place; it can be evaluated afterwards, but not trained.

    bfloat16 converts all parameters, and computes in bf16. int8 converts the weights of linear layers and of the head.

    Raises:
        SettingsError: the model has no weights that can be converted.
    """
    if weight_format is WeightFormat.float32:
        return
    where = f"--dtype {weight_format.value}"
    if isinstance(model, FittedModel):
        raise SettingsError("the model has counts, not weights", where=where, hint="leave out --dtype")
    if weight_format is WeightFormat.bfloat16:
        # Angles and slopes are multiplied by positions, which bf16 cannot represent beyond 256.
        kept = {name: getattr(model, name, None) for name in ("rotary_2xTxR", "slopes_H")}
        mix = model.ngram_mix if isinstance(model, Transformer) else None
        if mix is None:
            model.to(torch.bfloat16)
        else:
            # Probabilities of counts stay in fp32.
            assert isinstance(model, Transformer)
            model.ngram_mix = None
            model.to(torch.bfloat16)
            model.ngram_mix = mix
        for name, buffer in kept.items():
            if buffer is not None:
                setattr(model, name, buffer)
        return
    linear_layers = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    if not linear_layers:
        raise SettingsError("the model has no linear layers to quantize", where=where, hint="leave out --dtype")
    for parent, name, child in linear_layers:
        setattr(parent, name, Int8Linear(child.weight, child.bias))
    if isinstance(model, Transformer) and model.head is None:
        # The embedding stays in fp32: a lookup reads a single row of it.
        model.head = Int8Linear(model.token_embedding.weight, model.head_bias)  # type: ignore[assignment]


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale per output, and inputs that are quantized to 7 bits per row.

    On a CPU with FBGEMM the product is one of integers. Elsewhere the weights are converted when they are used, which
    saves memory but no time.
    """

    def __init__(self, weight_OxI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        weight_OxI = weight_OxI.detach().float()
        scale_Ox1 = weight_OxI.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        quantized_OxI = (weight_OxI / scale_Ox1).round().to(torch.int8)
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach(), requires_grad=False)
        self._packed = None
        self.weight: torch.Tensor | None
        self.scale: torch.Tensor | None
        if weight_OxI.device.type == "cpu" and torch.backends.quantized.engine in ("fbgemm", "x86"):
            self._packed = _pack(F.pad(quantized_OxI, (0, len(RANGE))), scale_Ox1[:, 0])
            self.register_buffer("weight", None)
            self.register_buffer("scale", None)
        else:
            self.register_buffer("weight", quantized_OxI)
            self.register_buffer("scale", scale_Ox1[:, 0])
        # Fixes the range of the quantized inputs to [-1, 1], so that a row does not depend on the rest of its batch.
        self._range_1xR = torch.tensor([RANGE])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b over the last dimension."""
        if self._packed is None:
            assert self.weight is not None
            assert self.scale is not None
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
            return y if self.bias is None else y + self.bias
        x_MxI = x.reshape(-1, x.size(-1))
        largest_Mx1 = torch.linalg.vector_norm(x_MxI, torch.inf, dim=-1, keepdim=True).clamp_(min=1e-30)
        rows = torch.cat([x_MxI / largest_Mx1, self._range_1xR.expand(len(x_MxI), -1)], dim=1)
        y_MxO = torch.ops.quantized.linear_dynamic(rows, self._packed, True)
        y_MxO = y_MxO * largest_Mx1 if self.bias is None else torch.addcmul(self.bias, y_MxO, largest_Mx1)
        return y_MxO.view(*x.shape[:-1], -1)


def _pack(quantized_OxI: torch.Tensor, scale_O: torch.Tensor) -> torch.ScriptObject:
    """Pack int8 weights for torch.ops.quantized.linear_dynamic, which takes them as a quantized tensor."""
    zero_points_O = torch.zeros(len(scale_O), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch deprecates tensors of quantized dtypes. Its kernels on plain int8 tensors need AVX-512 or are slower.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch._make_per_channel_quantized_tensor(quantized_OxI, scale_O, zero_points_O, 0)
        return torch.ops.quantized.linear_prepack(tensor, None)


def transpose_large_layers(model: nn.Module) -> None:
    """Store the matrices that widen their input by columns, in place; their values do not change.

    They are those of linear layers, and an embedding that is also the head.

    A CPU multiplies a vector by them 1.2 to 1.7 times as fast (GPT-2's shapes in fp32). Not for models that are saved:
    safetensors accepts no such tensors.
    """
    layers: list[nn.Module] = [module for module in model.modules() if type(module) is nn.Linear]
    if isinstance(model, Transformer) and model.head is None:
        layers.append(model.token_embedding)
    for layer in layers:
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        if weight.size(0) > weight.size(1):
            weight.data = weight.data.t().contiguous().t()
