"""Import the user's modules and register all schemas with Hydra."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.compose.hydra_api import config_folder
from nanolm.compose.yaml_files import YamlFiles, plugin_options
from nanolm.config.composed import unresolved
from nanolm.config.run import SINGLE_SCHEMAS, Config
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.registry import GROUPS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Schemas in Hydra's ConfigStore by (group, name). Storing them again would take a third of the time of composing.
REGISTERED: dict[tuple[str, str], type[Any]] = {}


def import_plugins(names: Iterable[str]) -> None:
    """Import the user's modules, whose decorators fill the registries.

    The current folder is searched after the installed packages, so that a numpy.py there does not hide numpy.

    Raises:
        SettingsError: with every module that is not found, fails on import, or is hidden by an installed one.
    """
    problems: list[NanolmError] = []
    for name in names:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            importlib.import_module(name)
            _require_not_hidden(name)
        except NanolmError as error:
            problems.append(type(error)(error.found, where=error.where or f"the plugin {name!r}", hint=error.hint))
        except (Exception, SystemExit) as error:
            problems.append(_wrong_plugin(name, error))
    raise_all(problems)


def _wrong_plugin(name: str, error: BaseException) -> NanolmError:
    """Return the error for a module that cannot be imported."""
    top, suffix = name.split(".")[0], Path(name).suffix
    if "/" in name or suffix == ".py":
        return SettingsError(
            f"the plugin {name!r} is the name of a file",
            where="plugins",
            hint=f"write the name of the module: plugins=[{Path(name).stem}]; it is looked for among the installed "
            f"packages and in {Path.cwd()}",
        )
    if isinstance(error, ModuleNotFoundError) and (error.name == top or f"{name}.".startswith(f"{error.name}.")):
        return SettingsError(
            f"the plugin {name!r} was not found",
            where="plugins",
            hint=f"it is looked for among the installed packages and in {Path.cwd()}, by its module name",
        )
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", importlib.__path__[0])) and frame.filename != __file__
    ]
    # The last frame may be a library's: the user can change the line of their own file.
    own = [frame for frame in frames if Path(frame.filename).parent == Path(frames[0].filename).parent]
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else f"the plugin {name!r}"
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    reason = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return SettingsError(
        f"the plugin {name!r} fails when it is imported: {type(error).__name__}: {reason}",
        where=place,
        hint=f'`python -c "import {name}"` prints the traceback',
    )


def _require_not_hidden(name: str) -> None:
    """Check that a plugin of the current folder is the module that was imported under its name.

    Raises:
        SettingsError: an installed module of the same name was imported instead.
    """
    top = name.split(".")[0]
    own = [path for path in (Path.cwd() / top / "__init__.py", Path.cwd() / f"{top}.py") if path.is_file()]
    imported = getattr(sys.modules[top], "__file__", None)
    if own and not any(imported and os.path.realpath(imported) == os.path.realpath(path) for path in own):
        raise SettingsError(
            f"{own[0]} is not imported: {imported or 'a built-in module'} has the same name",
            where=f"the plugin {name!r}",
            hint="give the file another name",
        )


def register_schemas() -> None:
    """Store every schema in Hydra's ConfigStore, and make the name of a plugin an option of its group."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if not REGISTERED:
        store.store(name="schema", node=Config)
        for name, schema in SINGLE_SCHEMAS.items():
            store.store(group="schema", name=name, node=schema)
    for group, registry in GROUPS.items():
        for name in registry.names:
            schema = registry.schema(name)
            if REGISTERED.get((group, name)) is schema:
                continue
            REGISTERED[group, name] = schema
            node = OmegaConf.structured(schema)
            node.name = name
            store.store(group=f"schema/{group}", name=name, node=node)
            if name in plugin_options(group) and not (config_folder() / group / f"{name}.yaml").exists():
                store.store(group=group, name=name, node=node)


def plugins_named(parsed: Sequence[Override], files: YamlFiles) -> list[str]:
    """Return the modules in plugins=[...], on the command line or in the experiment or sweep file that it chooses.

    Raises:
        SettingsError: it is not a list of module names.
    """
    given = [(override.value(), override.input_line) for override in parsed if override.key_or_group == "plugins"]
    found: list[str] = []
    problems: list[NanolmError] = []
    for value, where in [*given, *files.plugins()]:
        try:
            # Only interpolations that do not refer to other settings, which are not composed yet.
            names = OmegaConf.to_object(OmegaConf.create({"names": value}))["names"]  # type: ignore[index, call-overload]
        except OmegaConfBaseException as error:
            problems.append(unresolved("plugins", value, error, where))
            continue
        is_list = isinstance(names, list)
        strange = [name for name in names if not (isinstance(name, str) and name.strip())] if is_list else []
        if is_list and not strange:
            found += names
            continue
        reason = f"holds {strange[0]!r}, which is not the name of a module" if strange else f"is {names!r}"
        listed = f"[{names if isinstance(names, str) else 'my_module'}]"
        hint = f"write plugins: {listed}; on the command line 'plugins={listed}'"
        problems.append(SettingsError(f"plugins {reason}", where=where, hint=hint))
    raise_all(problems)
    return found
