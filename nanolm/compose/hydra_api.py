"""Hydra's Compose API over the folder of nanolm's YAML files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nanolm.compose.overrides import quoted

CONFIG_NAME = "train"


def config_folder() -> Path:
    """The folder of the YAML files: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@contextlib.contextmanager
def hydra_context() -> Iterator[None]:
    """Hydra over our folder of YAML files, inside a sweep that Hydra itself leads as well as without one."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    leading = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = leading


def search_path(config_dir: str | None) -> list[str]:
    """The word that makes Hydra look into the user's folder as well."""
    return [f"hydra.searchpath=[{quoted('file://' + str(Path(config_dir).resolve()))}]"] if config_dir else []


def compose(overrides: Sequence[str]) -> DictConfig:
    from hydra import compose as hydra_compose

    return hydra_compose(config_name=CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def without_hydra(composed: DictConfig) -> DictConfig:
    task = composed.copy()
    OmegaConf.set_readonly(task, False)
    OmegaConf.set_struct(task, False)
    del task["hydra"]
    return task
