"""Imports and first composition that the fork server does once for all commands."""

from __future__ import annotations

import plotext  # noqa: F401
import rich.console
import rich.table  # noqa: F401

from tests.composition import compose_config

compose_config([], {})
