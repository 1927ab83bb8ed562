"""The way of a planned job through a launcher: its settings travel as an override and are not composed again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict, read_write

from nanolm.compose import import_plugins
from nanolm.compose.hydra_app import CheckedConfigLoader
from nanolm.config.composed import to_omegaconf
from nanolm.config.interpolation import escape
from nanolm.config.yaml_io import read_yaml, save_yaml, typed_settings
from nanolm.json_text import dump_json, parse_json

if TYPE_CHECKING:
    from nanolm.sweeps.planning import Job

# How often a job is started whose process ends without a result.
MAX_ATTEMPTS = 3

# Hydra's launchers omit overrides that begin with "hydra." from their logs.
PLANNED = "hydra.planned="


@dataclasses.dataclass(frozen=True)
class LostJob:
    """Returned by a launcher instead of a job's result, if the processes of the job ended without one.

    Attributes:
        problem: how the last of them ended.
        n_attempts: the number of processes.
    """

    problem: str
    n_attempts: int


def job_overrides(job: Job) -> list[str]:
    """Return the overrides of a job for a launcher, which passes them to `PlannedJobLoader` in the job's process."""
    planned = {
        "folder": job.run.path.name,
        "plugins": job.config.plugins,
        "choices": job.choices,
        "settings": save_yaml(job.config),
    }
    return [PLANNED + dump_json(planned)]


def folder_of(overrides: Sequence[str]) -> str:
    """Return the name of the folder of a job, from the overrides that `job_overrides` made."""
    (override,) = overrides
    return str(parse_json(override.removeprefix(PLANNED))["folder"])


class PlannedJobLoader(CheckedConfigLoader):
    """A config loader from which launchers receive the settings of each job as planned."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the configuration of a job: its planned settings and the Hydra settings of the sweep."""
        (override,) = sweep_overrides
        planned = parse_json(override.removeprefix(PLANNED))
        import_plugins(planned["plugins"])
        settings = to_omegaconf(typed_settings(read_yaml(planned["settings"]), Path(planned["folder"])))
        composed = master_config.copy()
        with read_write(composed), open_dict(composed):
            for name in settings:
                composed[name] = settings._get_node(name)
            composed.hydra.sweep.subdir = escape(planned["folder"])
            composed.hydra.runtime.choices = {**composed.hydra.runtime.choices, **planned["choices"]}
        return composed
