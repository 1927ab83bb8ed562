"""The device of a run and the precision of its forward pass."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from nanolm.config.trainer import Precision
from nanolm.errors import SettingsError
from nanolm.option_types import DEVICES, DEVICES_HINT
from nanolm.torchrun import local_rank
from nanolm.training.cpu_bf16 import is_bf16_worthwhile
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def choose_device(name: str, ranks: Ranks = SINGLE_PROCESS, where: str = "trainer.device") -> torch.device:
    """Return the device of a name; `auto` prefers cuda, then mps, then cpu. Each of several ranks gets its own GPU.

    A GPU with an index becomes the current device of the process.

    Args:
        name: trainer.device.
        where: the setting or option that names the device, for errors.

    Raises:
        SettingsError: the name is invalid, or this machine does not have the device.
    """
    if not DEVICES.fullmatch(name):
        raise SettingsError(f"{name!r} is not a device", where=where, hint=DEVICES_HINT)
    has_mps = torch.backends.mps.is_available()
    if ranks.world_size > 1 and name in ("auto", "cuda"):
        name = f"cuda:{local_rank()}" if name == "cuda" or torch.cuda.is_available() else "cpu"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    n_gpus = torch.cuda.device_count()
    kind, _, index = name.partition(":")
    present = {"cpu": True, "mps": has_mps, "cuda": int(index or 0) < n_gpus}[kind]
    if not present:
        here = ["cpu", *(["mps"] if has_mps else []), *(f"cuda:{n}" for n in range(n_gpus))]
        raise SettingsError(
            f"this machine has no device {name!r}", where=where, hint=f"available devices: {', '.join(here)}"
        )
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        # Triton kernels, and calls without a device, use the current one.
        torch.cuda.set_device(device)
    return device


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return the floating-point type for sums on a device: fp64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


def device_facts(device: torch.device) -> dict[str, str]:
    """Return the entries of summary.json about a GPU (name, CUDA, cuDNN); empty for other devices."""
    if device.type != "cuda":
        return {}
    return {
        "gpu": torch.cuda.get_device_name(device),
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def has_bf16(device: torch.device) -> bool:
    """Return whether the device supports bf16 natively; GPUs before Ampere emulate it, which is slow."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def resolve(precision: Precision, device: torch.device, before: str | None = None) -> Precision:
    """Resolve trainer.precision=auto: bf16 on a GPU since Ampere and on a CPU that is faster in it, fp16 on older GPUs.

    Args:
        precision: trainer.precision; anything but auto is returned unchanged.
        before: the precision of earlier sessions of a resumed run, which is kept if the device supports it, since
            another one would change the results.
    """
    if precision is not Precision.auto:
        return precision
    kept = Precision.__members__.get(before or "")
    supported = {Precision.fp16: device.type == "cuda", Precision.bf16: has_bf16(device), Precision.fp32: True}
    if kept is not None and supported.get(kept, False):
        return kept
    if device.type == "cpu":
        return Precision.bf16 if is_bf16_worthwhile() else Precision.fp32
    if device.type != "cuda":
        return Precision.fp32
    return Precision.bf16 if has_bf16(device) else Precision.fp16


class NumberFormat:
    """Autocast for the forward pass and, under fp16, the loss scale.

    Args:
        precision: trainer.precision.
        before: the precision of earlier sessions of a resumed run.
        is_sharded: whether FSDP casts the weights of the model to `dtype` itself: autocast would keep copies of all
            gathered weights.

    Raises:
        SettingsError: the device does not support the precision, or a sharded model does not.
    """

    def __init__(
        self, precision: Precision, device: torch.device, before: str | None = None, is_sharded: bool = False
    ) -> None:
        precision = resolve(precision, device, before)
        if precision is Precision.bf16 and not has_bf16(device):
            raise _unsupported(f"{device} ({torch.cuda.get_device_name(device)})", "bf16", "fp16 or fp32")
        # TF32 (10-bit mantissa) came with bf16, and no other device has it.
        if precision is Precision.tf32 and not (device.type == "cuda" and has_bf16(device)):
            raise _unsupported(str(device), "TF32", "fp32 or bf16")
        if precision is Precision.fp16 and is_sharded:
            # No rank sees whether a gradient on another one overflowed.
            raise SettingsError(
                "trainer.precision=fp16 is not supported with trainer.parallel=fsdp, which shards the gradients",
                where="trainer.precision, trainer.parallel",
                hint="use trainer.precision=bf16 or fp32, or trainer.parallel=ddp",
            )
        # A setting of the whole process, which an earlier run may have changed.
        torch.set_float32_matmul_precision("high" if precision is Precision.tf32 else "highest")
        self.name = precision.name
        self.dtype = DTYPES.get(precision)
        self._device_type = device.type
        self._has_autocast = self.dtype is not None and not is_sharded
        self.scaler = torch.amp.GradScaler(device.type) if precision is Precision.fp16 else None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context manager of a forward pass."""
        return torch.autocast(self._device_type, self.dtype) if self._has_autocast else contextlib.nullcontext()


def _unsupported(device: str, precision: str, others: str) -> SettingsError:
    return SettingsError(
        f"{device} does not support {precision}",
        where="trainer.precision",
        hint=f"NVIDIA GPUs support it since Ampere (A100, RTX 30); use trainer.precision={others}",
    )
