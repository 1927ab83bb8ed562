"""Imported by the fork server: what every command does anew in the same way, the first composition above all."""

from __future__ import annotations

import plotext  # noqa: F401
import rich.console
import rich.table  # noqa: F401

from nanolm.compose import compose_config

compose_config([], {})
