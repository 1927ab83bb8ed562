"""A Config from what was composed or saved, and back to YAML. Nothing that is read here is executed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.config import BASE_SCHEMAS, SINGLE_SCHEMAS, Config
from nanolm.errors import NanolmError, RunError, SettingsError, nearest, raise_all
from nanolm.registry import GROUPS


def to_config(composed: DictConfig) -> Config:
    """The dataclasses behind a composed config.

    Raises:
        SettingsError: a setting has no value, or a key is not in the schema.
    """
    raise_all([*missing_values(composed), *_unknown_keys(composed)])
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise SettingsError(in_words(error), where=str(error.full_key or "")) from error
    assert isinstance(config, Config)
    return config


def save_yaml(config: Config) -> str:
    """The settings as YAML text, nothing left to resolve."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def load_yaml(path: Path) -> Config:
    """The settings of a run. Nothing in the file is resolved, looked up or executed.

    Raises:
        RunError: the file is missing, is not such YAML, or does not fit the schema.
    """
    mend = "it is written by `nanolm train`; take it from a copy of the run"
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        raise RunError(f"there is no {path.name}", where=str(path.parent), mend="name a run directory") from error
    except Exception as error:
        raise RunError(f"config.yaml cannot be read: {error}", where=str(path), mend=mend) from error
    if not isinstance(raw, dict):
        raise RunError("config.yaml holds no settings", where=str(path), mend=mend)
    if "${" in path.read_text(encoding="utf-8"):
        raise RunError(
            "config.yaml holds an interpolation ${...}, which is never resolved here",
            where=str(path),
            mend=mend,
        )
    try:
        typed = OmegaConf.structured(Config)
        for field in dataclasses.fields(Config):
            group = field.name
            if group not in raw and field.default is not MISSING:
                continue  # a setting that is younger than the run
            value = raw.pop(group)
            if isinstance(value, dict):
                typed[group] = OmegaConf.merge(OmegaConf.structured(_schema(group, value)), value)
            else:
                typed[group] = value
        if raw:
            raise KeyError(*raw)
        return to_config(typed)
    except NanolmError:
        raise
    except OmegaConfBaseException as error:
        raise RunError(f"config.yaml does not fit: {in_words(error)}", where=str(path), mend=mend) from error
    except KeyError as error:
        raise RunError(f"config.yaml has a missing or an unknown key: {error}", where=str(path), mend=mend) from error


def missing_values(composed: DictConfig) -> list[NanolmError]:
    return [
        SettingsError(f"{key} has no value", where=key, mend=f"add {key}=... to the line")
        for key in sorted(map(str, OmegaConf.missing_keys(composed)))
    ]


def _unknown_keys(composed: DictConfig) -> list[NanolmError]:
    """Keys that no dataclass has: `+key=value` slips past the types of Hydra."""
    problems: list[NanolmError] = []

    def walk(node: DictConfig, prefix: str) -> None:
        schema = OmegaConf.get_type(node)
        if not dataclasses.is_dataclass(schema):
            return
        fields = {field.name for field in dataclasses.fields(schema)}
        for name in map(str, node):
            if name not in fields:
                mend = (
                    "configs carry short names, and nothing in them is executed"
                    if name == "_target_"
                    else nearest(f"{prefix}{name}", [f"{prefix}{field}" for field in fields])
                )
                problems.append(
                    SettingsError(f"there is no setting {prefix + name!r}", where=f"{prefix}{name}", mend=mend)
                )
                continue
            child = None if OmegaConf.is_missing(node, name) else node._get_node(name)
            if isinstance(child, DictConfig):
                walk(child, f"{prefix}{name}.")

    walk(composed, "")
    return problems


def _schema(group: str, value: dict[Any, Any]) -> type[Any]:
    if group in SINGLE_SCHEMAS:
        return SINGLE_SCHEMAS[group]
    name = str(value.get("name"))
    registry = GROUPS[group]
    if name not in registry.schemas and name not in registry:
        raise SettingsError(
            f"the run was made with {group} {name!r}, which is not known here",
            where=f"{group}.name",
            mend="if it is your own, name its module: --plugins my_module",
        )
    return registry.schemas.get(name, BASE_SCHEMAS[group])


def in_words(error: BaseException) -> str:
    """The one line of a Hydra or OmegaConf error that says what is wrong."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = re.sub(r"\s+full_key:.*", "", str(cause), flags=re.DOTALL)
    return " ".join(line.strip() for line in text.splitlines() if line.strip()) or type(error).__name__
