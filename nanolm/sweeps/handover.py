"""The way of a planned job through a launcher: its settings travel as an override and are not composed again."""

from __future__ import annotations

import dataclasses
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict, read_write

from nanolm.compose import import_plugins
from nanolm.compose.hydra_app import CheckedConfigLoader
from nanolm.config.composed import to_omegaconf
from nanolm.config.interpolation import escape
from nanolm.config.yaml_io import read_yaml, save_yaml, typed_settings
from nanolm.errors import SettingsError
from nanolm.json_text import dump_json, parse_json

if TYPE_CHECKING:
    from nanolm.config.run import Config
    from nanolm.sweeps.planning import Job

# How often a job is started whose process ends without a result.
MAX_ATTEMPTS = 3

# Hydra's launchers omit overrides that begin with "hydra." from their logs.
PLANNED = "hydra.planned="


@dataclasses.dataclass(frozen=True)
class LostJob:
    """Takes the place of a job's result if its process ended without one.

    Attributes:
        problem: how it ended, if that is known.
    """

    problem: str = ""


def job_overrides(job: Job) -> list[str]:
    """Return the overrides of a job for a launcher, which passes them to `PlannedJobLoader` in the job's process."""
    planned = PlannedJob(job.run.path.name, job.config.plugins, job.choices, save_yaml(job.config), version("nanolm"))
    return [PLANNED + dump_json(dataclasses.asdict(planned))]


@dataclasses.dataclass(frozen=True)
class PlannedJob:
    """A job as it travels.

    Attributes:
        folder: the name of its folder in the directory of the sweep.
        plugins: modules to import before its settings are read.
        choices: the option chosen in each group.
        settings: as YAML.
        version: of nanolm in the process of the driver.
    """

    folder: str
    plugins: list[str]
    choices: dict[str, str]
    settings: str
    version: str

    @classmethod
    def parse(cls, overrides: Sequence[str]) -> PlannedJob:
        """Read what `job_overrides` wrote."""
        (override,) = overrides
        found = parse_json(override.removeprefix(PLANNED))
        # Another version may have other fields; `load` refuses it.
        return cls(**{field.name: found.get(field.name) for field in dataclasses.fields(cls)})

    def load(self) -> Config:
        """Import the plugins and return the settings.

        Raises:
            NanolmError: this process has another version of nanolm than the driver, or a plugin cannot be imported, or
                the settings do not fit the schema.
        """
        if self.version != (own := version("nanolm")):
            raise SettingsError(
                f"the sweep was started with nanolm {self.version}, and its job with nanolm {own}",
                where=f"{socket.gethostname()}, {sys.prefix}",
                hint="install the same version on all machines",
            )
        import_plugins(self.plugins)
        return typed_settings(read_yaml(self.settings), Path(self.folder))


class PlannedJobLoader(CheckedConfigLoader):
    """A config loader from which launchers receive the settings of each job as planned."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the configuration of a job: its planned settings and the Hydra settings of the sweep."""
        planned = PlannedJob.parse(sweep_overrides)
        settings = to_omegaconf(planned.load())
        composed = master_config.copy()
        with read_write(composed), open_dict(composed):
            for name in settings:
                composed[name] = settings._get_node(name)
            composed.hydra.sweep.subdir = escape(planned.folder)
            composed.hydra.runtime.choices = {**composed.hydra.runtime.choices, **planned.choices}
        return composed
