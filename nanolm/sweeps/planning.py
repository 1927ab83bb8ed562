"""The jobs of a sweep and their folders.

The name of a folder ends with a hash of the settings that decide the job's result. The text before it is for people:
the settings that differ in the command that first asked for the job. Later commands find the folder by its hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanolm.compose import ComposedJob, compose_jobs
from nanolm.config.budget import budget_of
from nanolm.config.checks.lora import check_start
from nanolm.config.fields import flat
from nanolm.config.identity import differing, identity
from nanolm.config.run import Config
from nanolm.errors import NanolmError, RunError, SettingsError, explain_os_error, raise_all
from nanolm.files import wrong_file_types
from nanolm.json_text import dump_json
from nanolm.locks import Lock
from nanolm.runs.directory import RunDirectory, make_folders, remove_empty
from nanolm.runs.occupancy import require_no_run, require_startable
from nanolm.sweeps.combinations import Combination

# Characters of a folder's name before the hash, and of one value in it: some file systems allow 143 bytes.
NAME_LENGTH = 100
VALUE_LENGTH = 40
KEY_LENGTH = 10

# Files that a job that failed at its start leaves, in addition to those of a killed start.
JOB_FILES = frozenset({"error.txt"})


@dataclasses.dataclass(frozen=True)
class Job:
    """A planned run of a sweep.

    Attributes:
        swept: the settings in which the jobs of the sweep differ, as {key: value} for people to read.
        choices: the option chosen in each group, as the run records it.
        key: a hash of the settings that decide the run's result; the folder's name ends with it.
    """

    swept: dict[str, str]
    config: Config
    choices: dict[str, str]
    key: str
    run: RunDirectory

    @property
    def label(self) -> str:
        """The settings in which the job differs from the others, for people to read."""
        return ", ".join(f"{key}={value}" for key, value in self.swept.items()) or "the only job"


def plan(
    combinations: Sequence[Combination],
    directory: Path,
    config_dir: str | None = None,
    search_path: Sequence[str] = (),
) -> list[Job]:
    """Compose and check the jobs of a sweep and create their folders. Jobs with equal settings are planned once.

    Args:
        config_dir: the user's own folder of YAML files.
        search_path: `hydra.searchpath=` overrides of the command.

    Raises:
        SettingsError: with every mistake in every job.
        RunError: the directory is a run, or a job's folder is a link, contains links where its run writes, or contains
            files of something else.
        PathError: the folders cannot be created.
    """
    composed = compose_jobs([combination.overrides for combination in combinations], config_dir, search_path)
    unique: dict[str, tuple[Combination, ComposedJob]] = {}
    problems: dict[str, SettingsError] = {}
    for combination, job in zip(combinations, composed, strict=True):
        config, key = job.config, job_key(job.config)
        if key not in unique:
            unique[key] = combination, job
        elif differences := ", ".join(differing(unique[key][1].config, config)):
            problems[differences] = SettingsError(
                f"jobs differ only in {differences}, which does not affect a run's result: they would share a folder",
                where=differences,
                hint="run one command for each value, each with its own hydra.sweep.dir",
            )
    for job in composed:
        for problem in check_start(job.config):
            problems[str(problem)] = SettingsError(
                problem.found, where=problem.where, hint="run one command with fork=RUN for each job of the sweep"
            )
    raise_all(list(problems.values()))
    folders = _make_folders(directory, {key: folder_name(each.swept, key) for key, (each, _) in unique.items()})
    return [
        Job(combination.swept, job.config, job.choices, key, RunDirectory(folders[key]))
        for key, (combination, job) in unique.items()
    ]


def job_key(config: Config) -> str:
    """Return a hash of everything that decides a run's result: its identity, its length, and the paths of its text.

    The paths are part of it because no text is read during planning: different paths count as different texts.
    """
    paths = {key: value for key, value in flat(config).items() if key.startswith("dataset.") and key.endswith("path")}
    budget = budget_of(config.trainer)
    stop = [] if config.trainer.early_stop is None else [config.trainer.early_stop, config.trainer.early_stop_delta]
    decisive = [identity(config), budget.value if budget.in_steps else budget.as_dict(), paths, *stop]
    return hashlib.sha256(dump_json(decisive, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def folder_name(swept: Mapping[str, str], key: str) -> str:
    """Return the name of a job's folder: its swept settings, in characters safe for every file system, and its key."""
    text = ",".join(f"{name}={_file_safe(value)}" for name, value in swept.items())
    return f"{text[:NAME_LENGTH].rstrip(',=.')}-{key}" if text else f"run-{key}"


def job_folder(directory: Path, key: str, name: str) -> Path:
    """Return the existing folder whose name ends with the key, or else the folder of that name."""
    return min(directory.glob(f"*-{key}"), default=directory / name)


def comparison_metric(jobs: Sequence[Job]) -> str:
    """Return the metric that ranks jobs: bits per byte if their tokens differ, else nats per token."""
    tokens = {str(job.config.tokenizer) + str(job.config.dataset) for job in jobs}
    return "best_val_loss" if len(tokens) == 1 else "bits_per_byte"


def _make_folders(directory: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Create the folders of new jobs, so that two simultaneous commands do not name one job twice.

    Returns:
        The folder of each job by its key.

    Raises:
        RunError, PathError: as in `plan`.
    """
    require_no_run(directory)
    option = "hydra.sweep.dir=FOLDER"
    try:
        made = make_folders(directory)
        try:
            with Lock(directory / ".lock", option):
                folders = {key: job_folder(directory, key, name) for key, name in names.items()}
                for folder in folders.values():
                    folder.mkdir(exist_ok=True)
        except (OSError, NanolmError):
            remove_empty(made)
            raise
    except OSError as error:
        what = "the folder of the sweep is not writable"
        raise explain_os_error(error, what, where=str(directory), option=option) from error
    if found := wrong_file_types(directory, [], folders.values()):
        raise RunError(
            f"the runs of the sweep cannot be written: {', '.join(found)}",
            where=str(directory),
            hint="nanolm does not write through links: move the folder there, or remove the link",
        )
    problems: list[NanolmError] = []
    for folder in folders.values():
        try:
            require_startable(RunDirectory(folder).require_own(), also=JOB_FILES)
        except RunError as error:
            problems.append(error)
    raise_all(problems)
    return folders


def _file_safe(value: str) -> str:
    """Replace characters that need quoting in a shell or a path; truncate long values at the start, as for paths."""
    return re.sub(r"[^\w.+-]+", "_", value, flags=re.ASCII)[-VALUE_LENGTH:]
