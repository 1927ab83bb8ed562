"""Hydra's Compose API over the folder of nanolm's YAML files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from nanolm.compose.overrides import parse, quoted
from nanolm.files import user_path

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONFIG_NAME = "train"


def config_folder() -> Path:
    """Return the folder of nanolm's YAML files: in the package if it is installed, next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@contextlib.contextmanager
def hydra_context() -> Iterator[None]:
    """Initialize Hydra with nanolm's YAML files, also inside a sweep, whose own Hydra is restored at the end."""
    from hydra.core.global_hydra import GlobalHydra

    from nanolm.compose.hydra_app import create_hydra

    leading = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        GlobalHydra.instance().initialize(create_hydra())
        yield
    finally:
        GlobalHydra.instance().hydra = leading


def with_search_path(overrides: Sequence[Override], config_dir: str | None) -> list[Override]:
    """Merge all folders to search into one `hydra.searchpath=` override: Hydra reads only the first one.

    The user's own folder, config_dir, is searched before the folders in the overrides.
    """
    if not config_dir:
        return list(overrides)
    folders: list[Any] = [f"file://{user_path(config_dir).resolve()}"]
    rest = []
    for override in overrides:
        value = override.value()
        if override.key_or_group == "hydra.searchpath" and isinstance(value, list):
            folders += [folder for folder in value if folder not in folders]
        else:
            rest.append(override)
    return [*rest, *parse([f"hydra.searchpath=[{','.join(quoted(str(folder)) for folder in folders)}]"])]


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose overrides; the result has the hydra node in it.

    Raises:
        SettingsError: a Hydra setting is not supported.
        Exception: Hydra's own errors.
    """
    from hydra import compose as hydra_compose

    return hydra_compose(config_name=CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def without_hydra(composed: DictConfig) -> DictConfig:
    task = composed.copy()
    OmegaConf.set_readonly(task, False)
    OmegaConf.set_struct(task, False)
    del task["hydra"]
    return task


def choices_of(chosen: Any) -> dict[str, str]:
    """Return the option of each group from Hydra's `runtime.choices`, those of Hydra's own groups left out."""
    return {
        group: str(option)
        for group, option in sorted(chosen.items())
        if not group.startswith("hydra/") and option is not None
    }
