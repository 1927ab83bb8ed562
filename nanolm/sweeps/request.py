"""A sweep as Hydra requests it from one of nanolm's sweepers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm.runs.directory import display_path
from nanolm.sweeps.job import SweepJob

if TYPE_CHECKING:
    from hydra.types import HydraContext
    from omegaconf import DictConfig


@dataclasses.dataclass(frozen=True)
class SweepRequest:
    """A requested sweep.

    Attributes:
        overrides: the overrides on the command line, with one value or several.
        config: the configuration that Hydra composed for the sweep, with the launcher and the sweeper.
        job: the function that runs a job.
    """

    overrides: list[str]
    config: DictConfig
    hydra_context: HydraContext
    job: SweepJob

    @property
    def directory(self) -> Path:
        """The directory of the sweep."""
        return display_path(Path(str(self.config.hydra.sweep.dir)))

    @property
    def config_sources(self) -> tuple[str | None, list[str]]:
        """The user's folder of YAML files, and the `hydra.searchpath=` overrides, as `compose_jobs` takes them."""
        overrides = self.config.hydra.overrides.hydra
        return self.job.config_dir, [text for text in overrides if text.startswith("hydra.searchpath=")]
