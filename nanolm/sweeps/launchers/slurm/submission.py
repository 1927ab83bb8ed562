"""Pass jobs to submitit."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nanolm.errors import SettingsError
from nanolm.signals import without_interrupts
from nanolm.sweeps.launchers.slurm.settings import Executor, SlurmConfig
from nanolm.sweeps.launchers.slurm.task import SlurmTask
from nanolm.terminal import visible


def submit(tasks: Sequence[SlurmTask], settings: SlurmConfig, folder: Path, name: str) -> list[Any]:
    """Submit jobs, several of them as one array.

    Args:
        folder: for submitit's scripts, pickles and logs.
        name: of the jobs, as squeue shows it.

    Returns:
        submitit's handles of the jobs.

    Raises:
        SettingsError: sbatch refuses them.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executors: dict[Executor, Any] = {Executor.slurm: submitit.SlurmExecutor, Executor.local: submitit.LocalExecutor}
    # submitit's own limit counts time limits alone; that of the task is never larger.
    executor = executors[settings.executor](folder, max_num_timeout=settings.max_requeues)
    executor.update_parameters(**settings.parameters(name))
    try:
        # submitit prints what sbatch says; and Ctrl-C is for the driver, which stops the jobs.
        with contextlib.redirect_stderr(io.StringIO()), _outside_of_jobs(), without_interrupts():
            return executor.submit_array(tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise SettingsError(
            f"sbatch refuses the jobs: {_sbatch_message(str(error))}",
            where="hydra/launcher=slurm",
            hint="`sinfo` lists the partitions with their time limits; hydra.launcher.NAME=VALUE changes a setting",
        ) from error
    finally:
        _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove what submitit leaves of a submission: links to the script, and all files if it was refused."""
    for path in folder.glob("*"):
        if path.name.startswith(".submission_file_") or re.fullmatch(r"[0-9a-f]{32}\.pkl", path.name):
            path.unlink(missing_ok=True)


def _sbatch_message(text: str) -> str:
    """Return what sbatch printed, without its name before each line."""
    lines = [re.sub(r"^(sbatch: )?(error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(visible(line) for line in lines if line) or "it gives no reason"


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the variables of a Slurm job in which this process runs, which sbatch would take for options.

    Those of the user's shell, such as SLURM_CONF and SBATCH_ACCOUNT, are kept.
    """
    is_inside = "SLURM_JOB_ID" in os.environ
    names = [name for name in os.environ if is_inside and name.startswith("SLURM_") and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)
