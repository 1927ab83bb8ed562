"""Hydra with nanolm's checks: every configuration is checked when it is composed, before Hydra acts on it.

Imported only where Hydra is needed, because it imports much of it. Hydra has no public class to create an application
or a config loader from: the private ones are used because launchers pickle the loader into the processes of their
jobs, where configurations are composed and must be checked again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.types import RunMode
from omegaconf import DictConfig

from nanolm.compose.hydra_api import config_folder
from nanolm.compose.hydra_settings import check_search_path, hint, unsupported
from nanolm.errors import NanolmError, SettingsError, raise_all


class CheckedConfigLoader(ConfigLoaderImpl):
    """A config loader that refuses Hydra settings that nanolm does not support, wherever they come from."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose as Hydra does, and check the result.

        Raises:
            SettingsError: with every setting that is not supported.
        """
        raise_all(check_search_path(overrides))
        composed = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if config_name is None:
            assert not overrides, "--hydra-help composes no overrides"
            return composed
        found = unsupported(composed, overrides)
        if found:
            files = self._files(config_name, overrides, run_mode, composed)
            raise_all([_error(name, problem, overrides, files) for name, problem in found.items()])
        return composed

    def _files(
        self, config_name: str, overrides: list[str], run_mode: RunMode, composed: DictConfig
    ) -> dict[Path, str]:
        """Return the files of the user's folders that a configuration is composed of, with their text."""
        folders = [
            Path(source.path)
            for source in composed.hydra.runtime.config_sources
            if source.schema == "file" and source.provider != "main"
        ]
        defaults = self.compute_defaults_list(config_name, overrides, run_mode).defaults
        paths = [folder / f"{default.config_path}.yaml" for default in defaults for folder in folders]
        return {path: path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()}


def create_hydra(config_dir: str | None = None) -> Hydra:
    """Create the Hydra application that composes and runs nanolm's configurations, and those of the user's folder."""
    version.setbase("1.3")
    search_path = create_config_search_path(str(config_folder()))
    if config_dir is not None:
        search_path.prepend(
            provider="command-line",
            path=f"file://{Path(config_dir).resolve()}",
            anchor=SearchPathQuery(provider="schema"),
        )
    return Hydra(task_name="train", config_loader=CheckedConfigLoader(search_path))


def _error(name: str, problem: str, overrides: Sequence[str], files: dict[Path, str]) -> NanolmError:
    """The error for a setting, naming the overrides that set it, or else the files or options it may come from."""
    parts = name.split(".")
    typed = [text for text in overrides if f"{name}.".startswith(text.lstrip("+~").split("=")[0] + ".")]
    options = [text for text in overrides if re.match(rf"[+~]*hydra/{parts[1]}\b", text)] if parts[1:] else []
    mentioned = [
        str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
        for path, text in files.items()
        if re.search(rf"\b{re.escape(parts[1] if parts[1:] else 'hydra')}\b", f"{path} {text}")
    ]
    return SettingsError(
        f"{name} {problem}", where=", ".join(typed or mentioned or options) or name, hint=hint(name, problem)
    )
