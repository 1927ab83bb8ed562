"""The settings of hydra/launcher=slurm, their checks, and what submitit is given for them."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nanolm.config.fields import Choice, Role, outside_bounds, setting
from nanolm.errors import NanolmError, SettingsError, install_hint
from nanolm.machine import n_cores

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Programs of Slurm that the driver needs.
PROGRAMS = ("sbatch", "squeue", "scancel", "srun")

# Slurm's formats of a time, longest first, with the number of minutes that each part counts.
TIMES = {
    r"(\d+)-(\d+):(\d+):(\d+)": (1440, 60, 1, 1 / 60),
    r"(\d+)-(\d+):(\d+)": (1440, 60, 1),
    r"(\d+)-(\d+)": (1440, 60),
    r"(\d+):(\d+):(\d+)": (60, 1, 1 / 60),
    r"(\d+):(\d+)": (1, 1 / 60),
    r"(\d+)": (1,),
}
MEMORY = re.compile(r"\d+([KMGT]B?)?", re.IGNORECASE)

# Options of sbatch that are settings here, by their names there.
FIELDS = {
    "account": "account",
    "array": "array_parallelism",
    "constraint": "constraint",
    "cpus_per_task": "cpus_per_task",
    "exclude": "exclude",
    "gpus_per_node": "gpus_per_node",
    "mem": "mem",
    "nodes": "nodes",
    "partition": "partition",
    "qos": "qos",
    "signal": "warning_seconds",
    "time": "time_limit",
}


class Executor(Choice):
    """What starts the jobs."""

    slurm = "slurm", "sbatch."
    local = "local", "submitit itself, as processes on this machine, to try a sweep without Slurm."


def _text(doc: str) -> Any:
    return setting(None, doc=doc, role=Role.runtime)


@dataclasses.dataclass
class SlurmConfig:
    """Settings of hydra/launcher=slurm."""

    partition: str | None = _text("Partitions, separated by commas. null: the default one of the cluster.")
    account: str | None = _text("The account that is charged.")
    qos: str | None = _text("Quality of service.")
    time_limit: str = setting(
        "60",
        doc="Time limit of a job: minutes, or as in sbatch: 4:00:00, 1-12. A job that reaches it saves a checkpoint, "
        "returns to the queue and resumes.",
        role=Role.runtime,
    )
    warning_seconds: int = setting(
        120, doc="Seconds before the time limit at which a job saves its checkpoint.", role=Role.runtime, ge=1
    )
    max_requeues: int = setting(
        20, doc="How often a job returns to the queue, after time limits and preemptions.", role=Role.runtime, ge=0
    )
    nodes: int = setting(
        1,
        doc="Machines of a job. With several, or several GPUs, its processes train together.",
        role=Role.runtime,
        ge=1,
    )
    gpus_per_node: int = setting(
        0, doc="GPUs of a job on each of its machines; each has a process of its own.", role=Role.runtime, ge=0
    )
    cpus_per_task: int | None = setting(
        None, doc="Cores of each process. null: as many as Slurm gives by default.", role=Role.runtime, ge=1
    )
    mem: str | None = _text("Memory of a job on each machine, such as 16G. null: what Slurm gives by default.")
    array_parallelism: int = setting(32, doc="Jobs of an array that run at a time at most.", role=Role.runtime, ge=1)
    constraint: str | None = _text("Features that the machines must have.")
    exclude: str | None = _text("Machines that are not used.")
    setup: list[str] = setting(
        default_factory=list,
        doc="Lines of shell that run on the machine before a job. Only on the command line.",
        role=Role.runtime,
    )
    additional_parameters: dict[str, Any] = setting(
        default_factory=dict,
        doc="Further options of sbatch, by name: {reservation: spring, gres: 'gpu:a100:1'}. Only on the command line.",
        role=Role.runtime,
    )
    poll_seconds: int = setting(
        30,
        doc="Seconds from one squeue to the next, which finds jobs that ended without a result.",
        role=Role.runtime,
        ge=1,
    )
    executor: Executor = setting(
        Executor.slurm,
        doc="slurm; or local: start the jobs on this machine, to try a sweep without Slurm and its options.",
        role=Role.runtime,
    )

    @property
    def minutes(self) -> float:
        """The time limit in minutes.

        Raises:
            SettingsError: it is not a time.
        """
        for pattern, units in TIMES.items():
            if match := re.fullmatch(pattern, str(self.time_limit).strip()):
                return sum(int(part) * unit for part, unit in zip(match.groups(), units, strict=True))
        raise SettingsError(
            f"hydra.launcher.time_limit is {self.time_limit}, which is not a time",
            where="hydra.launcher.time_limit",
            hint="minutes, or as in sbatch: hydra.launcher.time_limit=4:00:00, or 1-12 for a day and twelve hours",
        )

    @property
    def tasks_per_node(self) -> int:
        """The number of processes on each machine."""
        return max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        """The number of processes of a job, which train together."""
        return self.nodes * self.tasks_per_node

    @property
    def n_slots(self) -> int:
        """How many jobs run at a time at most."""
        if self.executor is Executor.slurm:
            return self.array_parallelism
        return max(1, min(self.array_parallelism, n_cores() // (self.world_size * (self.cpus_per_task or 1))))

    def parameters(self, name: str) -> dict[str, Any]:
        """Return what the executor of submitit is given.

        Args:
            name: of the jobs, as squeue shows it.
        """
        if self.executor is Executor.local:
            return {
                "timeout_min": self.minutes,
                "tasks_per_node": self.tasks_per_node,
                "gpus_per_node": self.gpus_per_node,
                "signal_delay_s": self.warning_seconds,
                "setup": list(self.setup),
            }
        # Since Slurm 22.05, srun no longer takes over the number of cores from sbatch.
        cores = [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else []
        together = ["--kill-on-bad-exit=1"] if self.world_size > 1 else []
        no_requeue = "no-requeue" in self.additional_parameters
        given = {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": max(1, round(self.minutes)),
            "signal_delay_s": self.warning_seconds,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_per_node,
            "gpus_per_node": self.gpus_per_node or None,
            "cpus_per_task": self.cpus_per_task,
            "mem": self.mem,
            "array_parallelism": self.array_parallelism,
            "constraint": self.constraint,
            "exclude": self.exclude,
            "setup": list(self.setup) or None,
            # Slurm may start a job again whose machine failed or was needed.
            "additional_parameters": {**({} if no_requeue else {"requeue": True}), **self.additional_parameters},
            "srun_args": [*cores, *together],
        }
        # Some clusters refuse submitit's own workload key.
        return {key: value for key, value in given.items() if value is not None} | {"wckey": None}


def slurm_settings(config: DictConfig) -> SlurmConfig:
    """Return the settings of the launcher in the composed config of a sweep."""
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(given, dict)
    return SlurmConfig(**{field.name: given[field.name] for field in dataclasses.fields(SlurmConfig)})


def check_slurm(config: DictConfig) -> Iterator[NanolmError]:
    """Find what is wrong with the settings of the launcher, and programs that are missing."""
    settings = slurm_settings(config)
    yield from outside_bounds(settings, "hydra.launcher.")
    yield from _missing_programs(settings)
    yield from _wrong_time(settings)
    if settings.mem is not None and not MEMORY.fullmatch(settings.mem):
        yield SettingsError(
            f"hydra.launcher.mem is {settings.mem}, which is not an amount of memory",
            where="hydra.launcher.mem",
            hint="as in sbatch: hydra.launcher.mem=16G",
        )
    yield from _contradictions(settings, str(config.trainer.device))
    directory = str(config.hydra.sweep.dir)
    if found := re.search(r"[%\x00-\x1f]", directory):
        yield SettingsError(
            f"the directory of the sweep has {found[0]!r} in its name, which means something else in options of sbatch",
            where="hydra.sweep.dir",
            hint="choose another name",
        )


def _missing_programs(settings: SlurmConfig) -> Iterator[NanolmError]:
    if importlib.util.find_spec("submitit") is None:
        yield SettingsError("submitit is not installed", where="hydra/launcher=slurm", hint=install_hint("slurm"))
    if not hasattr(signal, "SIGUSR2"):
        yield SettingsError(
            "hydra/launcher=slurm needs the signals of Linux and macOS",
            where="hydra/launcher=slurm",
            hint="hydra/launcher=local",
        )
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing and settings.executor is Executor.slurm:
        yield SettingsError(
            f"there is no {' and no '.join(missing)} on the PATH of this machine",
            where="hydra/launcher=slurm",
            hint="run the command where sbatch works, such as the login node of the cluster; "
            "hydra.launcher.executor=local tries it without Slurm; hydra/launcher=local uses this machine",
        )


def _wrong_time(settings: SlurmConfig) -> Iterator[NanolmError]:
    try:
        seconds = settings.minutes * 60
    except SettingsError as error:
        yield error
        return
    if seconds < 60:
        yield SettingsError(
            f"hydra.launcher.time_limit is {settings.time_limit}, which is less than a minute",
            where="hydra.launcher.time_limit",
            hint="in minutes, or as in sbatch: 4:00:00",
        )
    elif settings.warning_seconds >= seconds:
        yield SettingsError(
            f"a job would have to save its checkpoint {settings.warning_seconds} seconds before its time limit, "
            f"which is only {seconds:g} seconds",
            where="hydra.launcher.warning_seconds, hydra.launcher.time_limit",
            hint="a longer hydra.launcher.time_limit, or fewer hydra.launcher.warning_seconds",
        )


def _contradictions(settings: SlurmConfig, device: str) -> Iterator[NanolmError]:
    """Find settings that do not fit together, or do not fit the device."""
    if device == "cpu" and settings.gpus_per_node:
        yield SettingsError(
            f"hydra.launcher.gpus_per_node={settings.gpus_per_node}, and trainer.device=cpu uses no GPU",
            where="hydra.launcher.gpus_per_node, trainer.device",
            hint="leave one of the two out",
        )
    if device == "cpu" and settings.nodes > 1:
        yield SettingsError(
            f"hydra.launcher.nodes={settings.nodes} is for jobs on GPUs, and trainer.device=cpu uses none",
            where="hydra.launcher.nodes, trainer.device",
            hint="leave out hydra.launcher.nodes: each job of the sweep has a machine of its own in any case",
        )
    if re.fullmatch(r"cuda:\d+", device):
        yield SettingsError(
            f"trainer.device={device} is one GPU of a machine, and Slurm chooses the GPUs of each job",
            where="trainer.device",
            hint="trainer.device=cuda hydra.launcher.gpus_per_node=1",
        )
    if device == "cuda" and not settings.gpus_per_node and not settings.additional_parameters:
        yield SettingsError(
            "trainer.device=cuda needs a GPU, and none is requested from Slurm",
            where="hydra.launcher.gpus_per_node, trainer.device",
            hint="hydra.launcher.gpus_per_node=1; or trainer.device=auto, for GPUs that Slurm does not count",
        )
    if settings.executor is Executor.local and settings.nodes > 1:
        yield SettingsError(
            f"hydra.launcher.nodes={settings.nodes}, and hydra.launcher.executor=local has only this machine",
            where="hydra.launcher.nodes, hydra.launcher.executor",
            hint="leave one of the two out",
        )
    for name in sorted(settings.additional_parameters):
        field = FIELDS.get(name.replace("-", "_"))
        if field:
            yield SettingsError(
                f"additional_parameters sets {name}, which is a setting of its own",
                where="hydra.launcher.additional_parameters",
                hint=f"hydra.launcher.{field}=...",
            )
