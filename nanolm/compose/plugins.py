"""The user's modules, and the schemas that Hydra composes over."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from nanolm.compose.hydra_api import config_folder
from nanolm.compose.overrides import expand
from nanolm.config import BASE_SCHEMAS, SINGLE_SCHEMAS, Config
from nanolm.errors import NanolmError, SettingsError
from nanolm.registry import GROUPS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# The schema that Hydra's ConfigStore has for (group, name): to make them anew takes a third of the time of composing.
REGISTERED: dict[tuple[str, str], type[Any]] = {}


def import_plugins(names: Iterable[str]) -> None:
    """Imports the user's modules, whose decorators fill the tables. The current folder is looked in as well.

    Raises:
        SettingsError: a module is not found or fails as it is imported.
    """
    for name in names:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            importlib.import_module(name)
        except NanolmError:
            raise
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == name.split(".")[0]
            raise SettingsError(
                f"the plugin {name!r} was not found"
                if missing
                else f"the plugin {name!r} fails when it is imported: {type(error).__name__}: {error}",
                where="plugins",
                mend=f"it is looked for in {Path.cwd()} and among the installed packages, by its module name",
            ) from error


def register_schemas() -> None:
    """Puts every dataclass into Hydra's ConfigStore, and makes a plugin's name an option of its group."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if not REGISTERED:
        store.store(name="schema", node=Config)
        for name, schema in SINGLE_SCHEMAS.items():
            store.store(group="schema", name=name, node=schema)
    for group, registry in GROUPS.items():
        for name in {*registry.schemas, *registry}:
            schema = registry.schemas.get(name, BASE_SCHEMAS[group])
            if REGISTERED.get((group, name)) is schema:
                continue
            REGISTERED[group, name] = schema
            node = OmegaConf.structured(schema)
            node.name = name
            store.store(group=f"schema/{group}", name=name, node=node)
            if not (config_folder() / group / f"{name}.yaml").exists() and _is_plugin(group, name):
                store.store(group=group, name=name, node=node)


def _is_plugin(group: str, name: str) -> bool:
    registry = GROUPS[group]
    return name in registry and not registry[name].__module__.startswith("nanolm.")


def plugins_named(parsed: Sequence[Override], config_dir: str | None) -> list[str]:
    """The modules in plugins=[...], on the line or in the experiment or sweep file that the line chooses."""
    named: list[str] = []
    for override in parsed:
        if override.key_or_group == "plugins":
            value = override.value()
            named += [str(name) for name in value] if isinstance(value, list) else [str(value)]
        elif override.key_or_group in ("experiment", "sweep"):
            folders = [config_folder(), *([Path(config_dir)] if config_dir else [])]
            for choice in (text.split("=", 1)[-1] for text in expand(override, True)):
                paths = [folder / override.key_or_group / f"{choice}.yaml" for folder in folders]
                found = next((path for path in paths if path.exists()), None)
                named += (OmegaConf.select(OmegaConf.load(found), "plugins") or []) if found else []
    return named
