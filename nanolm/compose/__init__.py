"""Compose command lines into settings with Hydra, and explain every mistake in them."""

# ruff: noqa: F401
from nanolm.compose.command import ComposedCommand, compose_command, hidden_options, warnings_about
from nanolm.compose.hydra_api import CONFIG_NAME, choices_of, config_folder
from nanolm.compose.jobs import Bases, ComposedJob, compose_job, compose_jobs
from nanolm.compose.overrides import SWEEP_OPTIONS, format_override, parse, quoted
from nanolm.compose.plugins import import_plugins, register_schemas
from nanolm.compose.resume import continue_run
from nanolm.compose.syntax import to_hydra_syntax
