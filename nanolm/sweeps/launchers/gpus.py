"""The GPUs of this machine: which there are, which of them are taken, and which a setting names.

They are read from nvidia-smi: asking CUDA would take memory on each of them, in a process that does not train.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.wording import format_bytes

VISIBLE = "CUDA_VISIBLE_DEVICES"
SETTING = "hydra.launcher.gpus"
AUTO, NONE = "auto", "none"

# Fraction of its memory from which a GPU counts as taken though no process is listed, as in a container.
MOST_USED = 0.1
# Seconds that nvidia-smi may take; it needs several where no driver keeps the GPUs initialized.
TIMEOUT = 30.0


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi reports it.

    Attributes:
        number: its number in the order of the PCI bus, as text.
        total: its memory in bytes.
        used: bytes in use before the sweep.
        processes: ids of the processes that compute on it.
    """

    number: str
    uuid: str
    total: int
    used: int
    processes: tuple[int, ...] = ()

    @property
    def is_taken(self) -> bool:
        """Whether another process uses it."""
        return bool(self.processes) or self.used > MOST_USED * self.total

    def describe(self) -> str:
        """Return its number with its use, for an error."""
        by = f" by process {', '.join(map(str, self.processes))}" if self.processes else ""
        return f"GPU {self.number} is in use{by}: {format_bytes(self.used)} of {format_bytes(self.total)}"


@functools.cache
def installed_gpus() -> tuple[Gpu, ...]:
    """Return all GPUs of this machine. Read once: later, this process's own workers would count as users."""
    fields = "--query-gpu=index,uuid,memory.total,memory.used"
    processes: dict[str, list[int]] = {}
    for uuid, process in _query("--query-compute-apps=gpu_uuid,pid"):
        processes.setdefault(uuid, []).extend([int(process)] if process.isdecimal() else [])
    return tuple(
        Gpu(number, uuid, _megabytes(total), _megabytes(used), tuple(processes.get(uuid, ())))
        for number, uuid, total, used in _query(fields)
    )


def visible_gpus() -> list[Gpu]:
    """Return the GPUs of this machine that CUDA_VISIBLE_DEVICES leaves visible, parts of a GPU (MIG) left out."""
    return [gpu for gpu in installed_gpus() if _is_visible(gpu)]


def chosen_gpus(setting: object) -> list[Gpu]:
    """Return the GPUs that hydra.launcher.gpus names: auto is every visible one that is free.

    Args:
        setting: auto, none, a number, numbers with commas, or a list of numbers.

    Raises:
        SettingsError: with every GPU that does not exist, is not visible or is taken; or no GPU is free.
    """
    numbers = _parse(setting)
    if numbers == [NONE]:
        return []
    visible = visible_gpus()
    if numbers == [AUTO]:
        # Parts of a GPU (MIG) are visible by name only.
        parts = [Gpu(name, name, total=0, used=0) for name in _visible_names() if name.startswith("MIG-")]
        free = [gpu for gpu in visible if not gpu.is_taken] + parts
        if visible and not free:
            raise_all([_taken(gpu) for gpu in visible])
        return free
    by_number = {gpu.number: gpu for gpu in visible}
    problems = [problem for number in numbers if (problem := _wrong(number, by_number))]
    raise_all(problems)
    return [by_number[number] for number in numbers]


def gpus_of_process(process: int) -> str:
    """Return CUDA_VISIBLE_DEVICES of a process of this machine, as it was started; empty if unknown or not set."""
    try:
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    found = (text.removeprefix(f"{VISIBLE}=") for text in map(os.fsdecode, variables) if text.startswith(f"{VISIBLE}="))
    return next(found, "")


def _parse(setting: object) -> list[str]:
    """Return [auto], [none] or the numbers of GPUs.

    Raises:
        SettingsError: it is something else, or names a GPU twice.
    """
    items = setting if isinstance(setting, Sequence) and not isinstance(setting, str) else str(setting).split(",")
    numbers = [str(item).strip() for item in items]
    hint = f"{SETTING}=auto, {SETTING}=none, or numbers as nvidia-smi shows them: {SETTING}=0,1,3"
    if numbers not in ([AUTO], [NONE]) and not (numbers and all(map(str.isdecimal, numbers))):
        raise SettingsError(f"{SETTING}={','.join(numbers)} names no GPUs", where=SETTING, hint=hint)
    numbers = [str(int(number)) if number.isdecimal() else number for number in numbers]
    if len(set(numbers)) < len(numbers):
        hint = "name each GPU once; hydra.launcher.jobs_per_gpu=2 runs two jobs on each"
        raise SettingsError(f"{SETTING}={','.join(numbers)} names a GPU twice", where=SETTING, hint=hint)
    return numbers


def _wrong(number: str, visible: dict[str, Gpu]) -> NanolmError | None:
    """Return what is wrong with a GPU that was asked for."""
    if number in visible:
        return _taken(visible[number]) if visible[number].is_taken else None
    known = [gpu.number for gpu in installed_gpus()]
    if number in known:
        found = f"GPU {number} is not visible: {VISIBLE}={os.environ[VISIBLE]}"
    else:
        found = f"there is no GPU {number}: " + (
            f"this machine has {_range(known)}" if known else "nvidia-smi shows none"
        )
    names = ",".join(visible)
    return SettingsError(found, where=SETTING, hint=f"{SETTING}={names}" if names else f"{SETTING}=none")


def _taken(gpu: Gpu) -> NanolmError:
    free = ",".join(other.number for other in installed_gpus() if _is_visible(other) and not other.is_taken)
    hint = f"{SETTING}={free}, or wait for it" if free else "wait for it, or end that process"
    return SettingsError(gpu.describe(), where=SETTING, hint=hint)


def _is_visible(gpu: Gpu) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES leaves a GPU visible: it lists numbers, or beginnings of UUIDs."""
    if VISIBLE not in os.environ:
        return True
    return any(
        name == gpu.number or (name.startswith("GPU-") and gpu.uuid.startswith(name)) for name in _visible_names()
    )


def _visible_names() -> list[str]:
    return [name.strip() for name in os.environ.get(VISIBLE, "").split(",")]


def _range(numbers: Sequence[str]) -> str:
    return f"GPU {numbers[0]}" if len(numbers) == 1 else f"GPUs {numbers[0]} to {numbers[-1]}"


def _query(fields: str) -> list[list[str]]:
    """Return rows of nvidia-smi; none without it, or if it fails, as without a driver."""
    command = ["nvidia-smi", fields, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [row for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if row]


def _megabytes(text: str) -> int:
    """Convert MiB to bytes; 0 for [N/A], as of GPUs that share the memory of the machine."""
    return int(text) * 2**20 if re.fullmatch(r"\d+", text) else 0
