"""Which device, and which number format the forward pass runs in."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from nanolm.config import Precision
from nanolm.errors import SettingsError
from nanolm.launch import local_rank
from nanolm.option_types import DEVICES, DEVICES_HINT
from nanolm.training.ranks import ALONE, Ranks

DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def choose_device(name: str, ranks: Ranks = ALONE, where: str = "trainer.device") -> torch.device:
    """The device of that name; `auto` is cuda, else mps, else cpu. Of several ranks each has the GPU of its number.

    Args:
        where: the setting or the option that names it.

    Raises:
        SettingsError: no device is called so, or this machine does not have it.
    """
    if not DEVICES.fullmatch(name):
        raise SettingsError(f"no device is called {name!r}", where=where, mend=DEVICES_HINT)
    has_mps = torch.backends.mps.is_available()
    if ranks.n > 1 and name in ("auto", "cuda"):
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
            mend=f"here are: {', '.join(here)}",
        )
    return torch.device(name)


def has_tf32(device: torch.device) -> bool:
    """Whether the device multiplies matrices in tf32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


class NumberFormat:
    """Autocast for the forward pass, and the loss scale that fp16 needs.

    Args:
        precision: auto is bf16 on a GPU that computes in it, fp16 on an older one, fp32 elsewhere.
        device: where the model is.

    Raises:
        SettingsError: the device has no such format.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        if precision is Precision.auto:
            on_gpu = device.type == "cuda"
            precision = Precision.fp32
            if on_gpu:
                precision = Precision.bf16 if torch.cuda.is_bf16_supported() else Precision.fp16
        if precision is Precision.tf32 and not has_tf32(device):
            raise SettingsError(
                f"{device} has no tf32",
                where="trainer.precision",
                mend="GPUs by NVIDIA have it from Ampere on (A100, RTX 30); here trainer.precision=fp32 or bf16",
            )
        # For the whole process: another run in it may have had another format.
        torch.set_float32_matmul_precision("high" if precision is Precision.tf32 else "highest")
        self.name = precision.name
        self.dtype = DTYPES.get(precision)
        self._device_type = device.type
        # Scales the loss so that small gradients survive fp16, and skips updates whose gradients overflowed.
        self.scaler = torch.amp.GradScaler(device.type) if precision is Precision.fp16 else None

    def require_no_scale(self) -> None:
        """For gradients that are in parts on several ranks, none of which sees whether one of the others overflowed.

        Raises:
            SettingsError: the format is fp16.
        """
        if self.scaler is not None:
            raise SettingsError(
                "fp16 looks for overflows in all gradients, and trainer.parallel fsdp leaves each process some of them",
                where="trainer.precision, trainer.parallel",
                mend="trainer.precision=bf16 or fp32, or trainer.parallel=ddp",
            )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, dtype=self.dtype)
