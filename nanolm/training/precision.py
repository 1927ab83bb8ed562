"""Which device, and which number format the forward pass runs in."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from nanolm.config.trainer import Precision
from nanolm.errors import SettingsError
from nanolm.option_types import DEVICES, DEVICES_HINT
from nanolm.torchrun import local_rank
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def choose_device(name: str, ranks: Ranks = SINGLE_PROCESS, where: str = "trainer.device") -> torch.device:
    """The device of that name; `auto` is cuda, else mps, else cpu. Of several ranks each has the GPU of its number.

    A GPU that is named by its number becomes the current device of the process.

    Args:
        where: the setting or the option that names it.

    Raises:
        SettingsError: no device is called so, or this machine does not have it.
    """
    if not DEVICES.fullmatch(name):
        raise SettingsError(f"no device is called {name!r}", where=where, hint=DEVICES_HINT)
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
            f"this machine has no device {name!r}",
            where=where,
            hint=f"here are: {', '.join(here)}",
        )
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        # Triton kernels, and calls that name no device, use the current one.
        torch.cuda.set_device(device)
    return device


def has_tf32(device: torch.device) -> bool:
    """Whether the device multiplies matrices in tf32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def device_facts(device: torch.device) -> dict[str, str]:
    """What summary.json says of a GPU: its name, CUDA, cuDNN; nothing of another device."""
    if device.type != "cuda":
        return {}
    return {
        "gpu": torch.cuda.get_device_name(device),
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 by itself; GPUs before Ampere emulate it, slowly."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def resolve(precision: Precision, device: torch.device, before: str | None = None) -> Precision:
    """The number format that `auto` stands for.

    Args:
        precision: trainer.precision; anything but auto is returned as it is.
        device: that the run computes on: bf16 on a GPU from Ampere on, fp16 on an older one, fp32 elsewhere.
        before: the format in which a resumed run was trained. It is kept where the device has it, since another one
            changes the results.
    """
    if precision is not Precision.auto:
        return precision
    kept = Precision.__members__.get(before or "")
    is_there = {Precision.fp16: device.type == "cuda", Precision.bf16: has_bf16(device), Precision.fp32: True}
    if kept is not None and is_there.get(kept, False):
        return kept
    if device.type != "cuda":
        return Precision.fp32
    return Precision.bf16 if has_bf16(device) else Precision.fp16


class NumberFormat:
    """Autocast for the forward pass, and the loss scale that fp16 needs.

    Args:
        precision: as `resolve` has it.
        device: where the model is.
        before: the format in which a resumed run was trained.
        has_autocast: False where the model itself computes in `dtype`, as a sharded one does.

    Raises:
        SettingsError: the device has no such format.
    """

    def __init__(
        self, precision: Precision, device: torch.device, before: str | None = None, has_autocast: bool = True
    ) -> None:
        precision = resolve(precision, device, before)
        if precision is Precision.bf16 and not has_bf16(device):
            raise SettingsError(
                f"{device} ({torch.cuda.get_device_name(device)}) does not compute in bf16",
                where="trainer.precision",
                hint="GPUs by NVIDIA do from Ampere on (A100, RTX 30); use trainer.precision=fp16 or fp32 here",
            )
        if precision is Precision.tf32 and not has_tf32(device):
            raise SettingsError(
                f"{device} has no tf32",
                where="trainer.precision",
                hint="GPUs by NVIDIA have it from Ampere on (A100, RTX 30); here trainer.precision=fp32 or bf16",
            )
        # For the whole process: another run in it may have had another format.
        torch.set_float32_matmul_precision("high" if precision is Precision.tf32 else "highest")
        self.name = precision.name
        self.dtype = DTYPES.get(precision)
        self._device_type = device.type
        self._has_autocast = has_autocast
        # Scales the loss so that small gradients survive fp16, and skips updates whose gradients overflowed.
        self.scaler = torch.amp.GradScaler(device.type) if precision is Precision.fp16 else None

    @property
    def is_exhausted(self) -> bool:
        """Whether the loss scale of fp16 has fallen below 1: then it is the gradients that are not finite."""
        return self.scaler is not None and self.scaler.get_scale() < 1

    def require_no_scale(self) -> None:
        """For gradients that are in parts on several ranks, none of which sees whether one of the others overflowed.

        Raises:
            SettingsError: the format is fp16.
        """
        if self.scaler is not None:
            raise SettingsError(
                "fp16 looks for overflows in all gradients, and trainer.parallel fsdp leaves each process some of them",
                where="trainer.precision, trainer.parallel",
                hint="trainer.precision=bf16 or fp32, or trainer.parallel=ddp",
            )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.dtype is None or not self._has_autocast:
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, dtype=self.dtype)
