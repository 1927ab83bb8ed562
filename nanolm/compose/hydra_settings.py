"""The Hydra settings that nanolm supports.

Hydra instantiates classes, configures logging and sets environment variables from its own `hydra` node. Only the
settings listed here and in override_checks can be set; all others are refused, on the command line and in YAML files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanolm.compose.instantiation import ONLY_TYPED, executable
from nanolm.compose.overrides import parse
from nanolm.errors import SettingsError

NOTHING_EXECUTES = "settings do not execute code; Python modules of your own are imported with plugins=[my_module]"

# Hints for unsupported settings; the longest matching name counts.
HINTS = {
    "hydra": "set one setting at a time, as in hydra.run.dir=FOLDER",
    "hydra.run": "hydra.run.dir=FOLDER",
    "hydra.sweep": "hydra.sweep.dir=FOLDER",
    "hydra.sweep.subdir": "nanolm names the folder of each job; hydra.sweep.dir=FOLDER is where these folders go",
    "hydra.mode": "`nanolm train -m` runs a sweep, and `nanolm train` a single run",
    "hydra.job": "leave it out",
    "hydra.job.chdir": "nanolm never changes the working directory; relative paths start where the command is run",
    "hydra.job.name": "hydra.run.dir=FOLDER names a run, and hydra.sweep.dir=FOLDER a sweep and its Slurm jobs",
    "hydra.job.env_set": "set environment variables before the command: NAME=value nanolm train ...",
    "hydra.job.env_copy": "set environment variables before the command: NAME=value nanolm train ...",
    "hydra.output_subdir": "every run directory has its settings in config.yaml",
    "hydra.verbose": "train.log in the run directory has all messages",
    "hydra.callbacks": NOTHING_EXECUTES,
    "hydra.job_logging": NOTHING_EXECUTES,
    "hydra.hydra_logging": NOTHING_EXECUTES,
    "hydra.launcher": f"choose an installed launcher with hydra/launcher=NAME; {NOTHING_EXECUTES}",
    "hydra.sweeper": f"choose an installed sweeper with hydra/sweeper=NAME; {NOTHING_EXECUTES}",
    "hydra.searchpath": "name folders, as in hydra.searchpath=[my/configs], on the command line",
}

NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}

# Settings whose value in nanolm's own train.yaml no other file may change.
PINNED: dict[str, Any] = {
    "callbacks": {},
    "job_logging": NO_LOGGING,
    "hydra_logging": NO_LOGGING,
    "mode": None,
    "output_subdir": None,
    "verbose": False,
    "job.name": "train",
    "job.chdir": False,
    "job.env_set": {},
    "job.env_copy": [],
    "sweep.subdir": "${hydra:job.num}",
}

# Settings that files may set, that Hydra fills in itself, or that only --hydra-help prints. Launchers, sweepers, the
# search path and the overrides are checked separately.
FREE = (
    "run.dir",
    "sweep.dir",
    "launcher",
    "sweeper",
    "searchpath",
    "overrides.hydra",
    "overrides.task",
    "runtime",
    "job.override_dirname",
    "job.config_name",
    "job.config",
    "job.id",
    "job.num",
    "env",
    "help",
    "hydra_help",
)


def check_search_path(overrides: Sequence[str]) -> list[SettingsError]:
    """Check that hydra.searchpath names folders: Hydra imports the package that a pkg:// entry names."""
    return [
        SettingsError(
            f"{entry} is not a folder, and could import a Python package",
            where=override.input_line,
            hint=HINTS["hydra.searchpath"],
        )
        for override in parse([text for text in overrides if re.match(r"[+~]*hydra\.searchpath\b", text)])
        for value in [override.value()]
        for entry in map(str, value if isinstance(value, list) else [value])
        if "://" in entry and not entry.startswith("file://")
    ]


def unsupported(composed: DictConfig, overrides: Sequence[str]) -> dict[str, str]:
    """Compare the composed `hydra` node with what nanolm supports.

    Args:
        composed: a composed config, the hydra node included.
        overrides: the overrides that it was composed with.

    Returns:
        What is wrong, by the name of the setting.
    """
    from hydra.conf import HydraConf

    if OmegaConf.get_type(composed, "hydra") is not HydraConf:
        return {"hydra": "is replaced as a whole"}
    hydra = _sections(OmegaConf.to_container(composed.hydra, resolve=False))
    expected = {**_sections(OmegaConf.to_container(OmegaConf.structured(HydraConf), resolve=False)), **PINNED}
    # The driver of a sweep sets the directory of each job.
    names_a_job = any(text.startswith("hydra.sweep.subdir=") for text in overrides)
    free = (*FREE, "sweep.subdir") if names_a_job else FREE
    found = {
        f"hydra.{name}": "is not supported"
        for name, value in hydra.items()
        if name not in free and value != expected.get(name)
    }
    if sorted([*hydra["overrides.hydra"], *hydra["overrides.task"]]) != sorted(overrides):
        found["hydra.overrides"] = "is not supported"
    if hydra["searchpath"] and not any("hydra.searchpath" in text for text in overrides):
        found["hydra.searchpath"] = "has no effect in a file"
    return found | executable(composed, overrides)


def hint(key: str, problem: str = "") -> str:
    """Return a hint for an unsupported setting, or an empty string.

    Args:
        key: the setting.
        problem: what is wrong with it, of a setting of the launcher or the sweeper.
    """
    key = key.replace("/", ".")
    if problem == ONLY_TYPED:
        return f"{key}=VALUE on the command line"
    names = [name for name in HINTS if name == key or (name != "hydra" and key.startswith(f"{name}."))]
    return HINTS[max(names, key=len)] if names else ""


def _sections(hydra: Any) -> dict[str, Any]:
    """Return the settings of a hydra node; those of sections with both free and pinned settings as section.name."""
    mixed = ("job", "run", "sweep", "overrides")
    return {key: value for key, value in hydra.items() if key not in mixed} | {
        f"{section}.{key}": value for section in mixed for key, value in hydra[section].items()
    }
