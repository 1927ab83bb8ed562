"""The settings of hydra/launcher=local, their checks, and the slots in which its jobs run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nanolm.config.fields import Role, outside_bounds, setting
from nanolm.errors import NanolmError, Problems, SettingsError
from nanolm.machine import n_cores
from nanolm.sweeps.launchers import gpus
from nanolm.sweeps.launchers.gpus import Gpu

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclasses.dataclass
class LocalConfig:
    """Settings of hydra/launcher=local."""

    n_jobs: int | None = setting(
        None,
        doc="Jobs at a time. null: jobs_per_gpu for each GPU; without GPUs, one for each core.",
        role=Role.runtime,
        ge=1,
    )
    gpus: Any = setting(
        gpus.AUTO,
        doc="auto: every visible GPU that no other process uses; none; or numbers as nvidia-smi shows them: 0,1,3.",
        role=Role.runtime,
    )
    jobs_per_gpu: int = setting(
        1, doc="Jobs at a time on each GPU; more than one is for models too small to fill it.", role=Role.runtime, ge=1
    )


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one job at a time.

    Attributes:
        number: counted from 0.
        gpu: the GPU of its jobs; None: they run without one, or with what they find.
    """

    number: int
    gpu: Gpu | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of its worker process."""
        if self.gpu is None:
            return {}
        # CUDA's own order of devices is another one than that of nvidia-smi.
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", gpus.VISIBLE: self.gpu.number}


def slots(config: DictConfig) -> list[Slot]:
    """Return the slots for jobs; those of one GPU are apart, so that fewer jobs than slots use all GPUs.

    Args:
        config: the composed config of the sweep, with `hydra.launcher`.

    Raises:
        SettingsError: as in `check_local`.
    """
    settings = _settings(config)
    chosen = gpus.chosen_gpus(_gpu_setting(config, settings))
    places: list[Gpu | None] = [*chosen] * settings.jobs_per_gpu or [None] * n_cores()
    if chosen and settings.n_jobs and settings.n_jobs > len(places):
        raise SettingsError(
            f"{settings.n_jobs} jobs at a time on {len(chosen)} GPU{'s' * (len(chosen) != 1)}, "
            f"with {settings.jobs_per_gpu} on each",
            where="hydra.launcher.n_jobs",
            hint=f"hydra.launcher.jobs_per_gpu={-(-settings.n_jobs // len(chosen))}, or leave n_jobs out",
        )
    n_jobs = settings.n_jobs or len(places)
    return [Slot(number, places[number] if chosen else None) for number in range(n_jobs)]


def check_local(config: DictConfig) -> Iterator[NanolmError]:
    """Find what is wrong with the settings of the launcher, GPUs that are missing or taken included."""
    settings = _settings(config)
    problems = list(outside_bounds(settings, "hydra.launcher."))
    if str(settings.gpus) not in (gpus.AUTO, gpus.NONE) and _device(config) == "cpu":
        found = f"{gpus.SETTING} names GPUs, and trainer.device=cpu uses none"
        problems.append(SettingsError(found, where=gpus.SETTING, hint="leave one of the two out"))
    if re.fullmatch(r"cuda:\d+", _device(config)):
        found = f"trainer.device={_device(config)} is one GPU for all jobs"
        hint = f"trainer.device=cuda: each job sees only its own GPU; {gpus.SETTING} chooses them"
        problems.append(SettingsError(found, where="trainer.device", hint=hint))
    if not problems:
        try:
            slots(config)
        except Problems as error:
            problems += error.problems
        except NanolmError as error:
            problems.append(error)
    yield from problems


def _settings(config: DictConfig) -> LocalConfig:
    given = config.hydra.launcher
    return LocalConfig(**{field.name: given[field.name] for field in dataclasses.fields(LocalConfig)})


def _gpu_setting(config: DictConfig, settings: LocalConfig) -> Any:
    return gpus.NONE if _device(config) == "cpu" else settings.gpus


def _device(config: DictConfig) -> str:
    return str(config.trainer.device)
