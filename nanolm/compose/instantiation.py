"""Check the two parts of a composed config that Hydra instantiates: launcher and sweeper."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.compose.overrides import parse

# Settings of launchers that run commands: options of sbatch, and the address of a Ray cluster, whose answers are
# pickles. With them a file could run anything, so they are taken from the command line alone, and so is every list.
COMMANDS = re.compile(r"(^|\.)(additional_parameters|address)$")
# Keys that hydra.utils.instantiate gives a meaning, such as _target_ and _args_.
SPECIAL = re.compile(r"_\w+_")
# Resolvers that can make a mapping, with a _target_ in it, out of a string.
MAKES_MAPPINGS = re.compile(r"\$\{\s*oc\.(create|decode|dict)")
# A line break in an option of sbatch begins a line of shell.
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def executable(composed: DictConfig, overrides: Sequence[str]) -> dict[str, str]:
    """Find settings of the launcher and the sweeper that could run other code than an installed plugin.

    Args:
        composed: a composed config, the hydra node included.
        overrides: the overrides that it was composed with.

    Returns:
        What is wrong, by the name of the setting.
    """
    found: dict[str, str] = {}
    with _resolvable(composed):
        for section in ("launcher", "sweeper"):
            if OmegaConf.is_interpolation(composed.hydra, section) or not OmegaConf.is_dict(composed.hydra[section]):
                found[f"hydra.{section}"] = "is not a mapping"
                continue
            node = composed.hydra[section]
            known = _registered(section, OmegaConf.to_container(node, resolve=False))
            if known is None:
                found[f"hydra.{section}._target_"] = f"names no installed {section}"
                continue
            found |= {
                f"hydra.{name}": problem
                for name, problem in _problems(node, known, section)
                if not (problem == ONLY_TYPED and _is_typed(f"hydra.{name}", node, section, overrides))
            }
    return found


ONLY_TYPED = "can run commands, and is only accepted on the command line"


def _problems(node: Any, known: Any, path: str) -> Iterator[tuple[str, str]]:
    """Find what is wrong below a node, by the name of the setting.

    Args:
        node: a mapping or a list of the config.
        known: the same part of the plugin's own settings; equal values are accepted.
        path: the dotted name of the node, below hydra.
    """
    plain: Any = OmegaConf.to_container(node, resolve=False)
    is_mapping = isinstance(plain, dict)
    if is_mapping and "_target_" in plain and not (isinstance(known, dict) and "_target_" in known):
        known = _registered(path, plain)
    for key, value in plain.items() if is_mapping else enumerate(plain):
        name = f"{path}.{key}"
        usual = known.get(key) if is_mapping and isinstance(known, dict) else None
        if value == usual:
            continue
        if is_mapping and SPECIAL.fullmatch(str(key)):
            yield name, "is not supported"
        elif OmegaConf.is_interpolation(node, key):
            if problem := _interpolation_problem(node, key, value):
                yield name, problem
        elif CONTROL.search(f"{key}{value if isinstance(value, str) else ''}"):
            yield name, "holds a control character"
        else:
            if path.startswith("launcher") and value and (COMMANDS.search(name) or isinstance(value, list)):
                yield name, ONLY_TYPED
            if isinstance(value, dict | list):
                yield from _problems(node[key], usual, name)


def _interpolation_problem(node: Any, key: Any, text: str) -> str:
    """Return what is wrong with an interpolation, which must resolve to a string or a number."""
    if MAKES_MAPPINGS.search(text):
        return f"is created by {text}"
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        return f"cannot be resolved: {str(error).splitlines()[0]}"
    if OmegaConf.is_config(value):
        return f"is a part of the config, {text}"
    return "holds a control character" if isinstance(value, str) and CONTROL.search(value) else ""


def _registered(path: str, settings: Any) -> dict[Any, Any] | None:
    """The settings of the installed plugin with the same _target_, as its code registers them; None if there is none.

    Args:
        path: the group below hydra/, with dots.
        settings: of the plugin, with its _target_.
    """
    from hydra.core.config_store import ConfigNode, ConfigStore

    group: Any = ConfigStore.instance().repo["hydra"]
    for part in path.split("."):
        group = group.get(part) if isinstance(group, dict) else None
    for option in (group or {}).values():
        if isinstance(option, ConfigNode):
            plain = OmegaConf.to_container(option.node, resolve=False)
            if isinstance(plain, dict) and "_target_" in plain and plain["_target_"] == settings.get("_target_"):
                return plain
    return None


def _is_typed(name: str, node: DictConfig, section: str, overrides: Sequence[str]) -> bool:
    """Whether a setting has its whole value from the command line, and nothing of it from a file."""
    value = OmegaConf.select(node, name.removeprefix(f"hydra.{section}."))
    plain = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
    if any(override.key_or_group == name and override.value() == plain for override in parse(overrides)):
        return True
    # A mapping may be typed item by item.
    items = [str(key) for key in plain] if isinstance(plain, dict) else []
    return bool(items) and all("." not in key and _is_typed(f"{name}.{key}", node, section, overrides) for key in items)


@contextlib.contextmanager
def _resolvable(composed: DictConfig) -> Iterator[None]:
    """Let ${hydra:...} look into this config."""
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = composed
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
