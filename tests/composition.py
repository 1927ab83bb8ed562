"""Compose configs for tests, each choice of options only once."""

from __future__ import annotations

from collections.abc import Sequence

from nanolm.compose import Bases, compose_command, compose_job, parse, to_hydra_syntax
from nanolm.config.run import Config


def compose_config(overrides: Sequence[str], bases: Bases) -> Config:
    """Compose overrides as typed. The settings are not checked.

    Args:
        overrides: without several values.
        bases: earlier compositions; new ones are added.

    Raises:
        SettingsError: with every mistake in the overrides.
    """
    try:
        return compose_job(parse(to_hydra_syntax(overrides)), bases).config
    except Exception:
        return compose_command(overrides).config
